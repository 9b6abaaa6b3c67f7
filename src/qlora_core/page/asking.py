"""Questions to base and tuned model, answered in another process, and a run's answers during training.

One process per session of the page, started by the first question. Its answers are shown as plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import marimo as mo
from markupsafe import Markup

from ..jobs.chat_client import Answer, Talk, Talker, needed_bytes
from ..machine.memory import available_bytes
from ..reports.in_language import number, size
from ..runs.plan import TrainingTracker
from ..runs.run import SAMPLES, Run, iterate_states
from ..translations import say
from .language import read_only
from .look import empty, folded, html_of, joined, note, put, shown, small, unseen

SWIFT = 0.3  # seconds between two looks while an answer is being made
BASE_ONLY = "base"
LONGEST = 100_000  # characters of a question: more was pasted by mistake


@dataclass(frozen=True)
class Turn:
    """A question and its answers so far."""

    question: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Conversation:
    """The questions and answers at one moment; equal while nothing is new.

    Attributes:
        talk: the process.
        turns: turns in order.
        about: the name of the run or model that answers.
        training: the run that is being trained, which holds the memory; empty if none is.
        problem: why the last question was not asked.
    """

    talk: Talk = field(default_factory=Talk)
    turns: tuple[Turn, ...] = ()
    about: str = ""
    training: str = ""
    problem: str = ""

    @property
    def answering(self) -> bool:
        """Return whether more is to come."""
        return any(not answer.done for turn in self.turns for answer in turn.answers)

    @property
    def phase(self) -> tuple[bool, bool, str]:
        """Return the phase that the buttons depend on."""
        return self.answering, self.talk.state in ("loading", "ready", "answering"), self.training


class Asker:
    """A conversation with one model, remembered question by question.

    Args:
        tracker: the tracker of all runs; while one of them is trained, nothing is loaded.
    """

    def __init__(self, tracker: TrainingTracker) -> None:
        self.tracker = tracker
        self._talker: Talker | None = None
        self._turns: list[tuple[str, tuple[int, ...]]] = []
        self._about = ""
        self._problem = ""
        self._seen: Any = None

    def submit(self, run: Run | None, form: Mapping[str, Any] | None) -> None:
        """Ask a run's tuned model and its base the form's question, side by side."""
        if not self._is_new(form) or not form:
            return
        if run is None or not run.exists:
            self._problem = say("There is no run yet. Train one above, then ask it.")
            return
        tuned = run.best.is_dir() or run.final.is_dir()
        self.clear()
        self._ask(run.name, [run.path], form, (False, True) if tuned else (True,))

    def send(self, choice: str | None, model: str | None, form: Mapping[str, Any] | None) -> None:
        """Add a turn to the conversation with a run or a base model alone."""
        if not self._is_new(form) or not form or not choice:
            return
        alone = choice == BASE_ONLY
        model = model or ""
        arguments = ["--model", model] if alone else [self.tracker.runs_dir / choice]
        self._ask(model if alone else choice, arguments, form, (alone or form["who"] == "base",))

    def look(self) -> Conversation:
        """Return the current state, as a sign that somebody still looks. Unload the model where training begins."""
        training = next((run.name for run in self.tracker.runs() if run.alive), "")
        if training and self._talker:
            self._talker.close()
        talk = self._talker.poll() if self._talker else Talk()
        turns = tuple(Turn(text, tuple(talk.answers[n - 1] for n in numbers)) for text, numbers in self._turns)
        return Conversation(talk, turns, self._about, training, self._problem)

    def cancel(self) -> None:
        """Stop answering."""
        if self._talker:
            self._talker.cancel()

    def put_away(self) -> None:
        """Free the memory; the conversation stays."""
        if self._talker:
            self._talker.close()

    def clear(self) -> None:
        """Begin a new conversation."""
        self.cancel()
        self._turns, self._problem = [], ""

    def _is_new(self, form: Any) -> bool:
        """Return whether a form's value was just sent: a cell that reruns for another reason gets the same object."""
        new, self._seen = form is not self._seen, form
        return new

    def _ask(self, about: str, arguments: Sequence[str | Path], form: Mapping[str, Any], bases: Sequence[bool]) -> None:
        question = form["question"].strip()
        self._problem = ""
        if not question:
            self._problem = say("Write a question first.")
        elif len(question) > LONGEST:
            self._problem = say("Too long: {count} characters, at most {most}.", count=len(question), most=LONGEST)
        elif any(run.alive for run in self.tracker.runs()):
            self._problem = training_holds_the_memory()
        elif self.look().answering:
            self._problem = say("The last question is still being answered.")
        if self._problem or read_only():
            return
        if self._talker is None or about != self._about:
            self.put_away()
            self._talker, self._about, self._turns = Talker(arguments), about, []
        messages = [*self._messages(form, bases[0]), {"role": "user", "content": question}]
        sampling = {name: form[name] for name in ("max_tokens", "temperature", "top_p", "seed")}
        sampling |= {"max_tokens": int(sampling["max_tokens"]), "seed": int(sampling["seed"])}
        self._turns.append((question, tuple(self._talker.ask(messages, base=base, **sampling) for base in bases)))

    def _messages(self, form: Mapping[str, Any], base: bool) -> list[dict[str, str]]:
        """Return the system message and the turns before; a failed answer does not count as a turn."""
        system = form["system"].strip()
        messages = [{"role": "system", "content": system}] if system else []
        for turn in self.look().turns:
            given = next((answer for answer in turn.answers if answer.base == base), turn.answers[0])
            if given.text:
                messages += [
                    {"role": "user", "content": turn.question},
                    {"role": "assistant", "content": given.text},
                ]
        return messages


def training_holds_the_memory() -> str:
    """Return why nothing can be asked now."""
    return say("Training is using the memory: pause it to ask.")


# Elements -------------------------------------------------------------------------------------------------------


def question_form(*, chat: bool = False) -> Any:
    """Return a form for a question and sampling settings, sent by button or Ctrl+Enter; None on a read-only page."""
    if read_only():
        return None
    label = say("Message") if chat else say("Question")
    elements: dict[str, Any] = {
        "question": mo.ui.text_area(label=label, rows=3, full_width=True),
        "max_tokens": mo.ui.number(1, 4096, step=1, value=200, label=say("Longest answer (tokens)"), full_width=True),
        "temperature": mo.ui.number(0, 5, step=0.1, value=0, label=say("Temperature"), full_width=True),
        "top_p": mo.ui.number(0.01, 1, step=0.01, value=1, label=say("Top p"), full_width=True),
        "seed": mo.ui.number(0, 2**31 - 1, step=1, value=0, label=say("Seed"), full_width=True),
        "system": mo.ui.text_area(label=say("System message"), rows=2, full_width=True),
    }
    who = Markup("")
    if chat:
        options = {say("Tuned"): "tuned", say("Base"): "base"}
        elements["who"] = mo.ui.radio(options, value=say("Tuned"), label=say("Who answers"), inline=True)
        who = put('<div class="q-who">{}</div>', Markup("{who}"))
    sampling = [put("<div>{}</div>", Markup(f"{{{name}}}")) for name in ("max_tokens", "temperature", "top_p", "seed")]
    template = put(
        '<div class="q-ask">{}{}<details class="q-folded"><summary>{}</summary>'
        '<div class="q-fields">{}</div><p class="q-small">{}</p>{}</details></div>',
        Markup("{question}"),
        who,
        say("How it answers"),
        joined(sampling),
        say("Temperature 0 takes the likeliest token every time; above, answers vary with the seed."),
        Markup("{system}"),
    )
    form = mo.Html(str(template)).batch(**elements)
    button = say("Send") if chat else say("Ask")
    return form.form(submit_button_label=button, submit_button_tooltip=say("Ctrl+Enter or Cmd+Enter"), bordered=False)


def sent(form: Any) -> Any:
    """Return the value that a form has sent; None before, and without a form."""
    return form.value if form is not None else None


def form_place(form: Any) -> Any:
    """Return the form, or why there is none."""
    return form if form is not None else small(say("This page is only to be looked at: it asks for no answers."))


def swift_ticker(phase: tuple[bool, bool, str]) -> Any:
    """Return a fast ticker while an answer is being made; otherwise None, so that nothing ticks in vain."""
    return mo.ui.refresh(options=[SWIFT], default_interval=SWIFT) if phase[0] else None


def controls(phase: tuple[bool, bool, str]) -> tuple[Any, Any]:
    """Return buttons to stop answering and to free memory, each enabled when it can do something."""
    answering, loaded, _ = phase
    stop = mo.ui.run_button(label=say("Stop answering"), disabled=not answering)
    away = mo.ui.run_button(
        label=say("Unload model"), disabled=not loaded, tooltip=say("Frees the memory that it takes")
    )
    return stop, away


def controls_row(*elements: Any) -> Any:
    """Return the buttons side by side, and the hidden ticker."""
    *buttons, ticker = elements
    if read_only():
        return None
    hidden = html_of(unseen(ticker)) if ticker is not None else ""
    return shown(put('<div class="q-buttons">{}{}</div>', joined(map(html_of, buttons)), hidden))


# What is shown --------------------------------------------------------------------------------------------------


def side_by_side(now: Conversation) -> mo.Html | None:
    """Return the last question with the answers of the tuned model and the base."""
    if now.training:
        return note(training_holds_the_memory())
    parts: list[Any] = [note(now.problem, "warn")] if now.problem else []
    for turn in now.turns[-1:]:
        answers = joined(_answer(answer, now.talk) for answer in turn.answers)
        html = '<div class="q-talk" aria-live="polite"><p class="q-asked">{}</p><div class="q-pair">{}</div></div>'
        parts.append(shown(put(html, _lines(turn.question), answers)))
    if not parts:
        return empty(say("Ask something: the model is loaded with the first question, in a process of its own."))
    return mo.vstack([*parts, small(state_line(now))], gap=0.5)


def bubbles(now: Conversation) -> mo.Html:
    """Return a conversation, turn by turn."""
    parts: list[Any] = []
    if now.training:
        parts.append(note(training_holds_the_memory()))
    elif now.problem:
        parts.append(note(now.problem, "warn"))
    turns = [
        put('<div class="q-bubble q-mine">{}</div>{}', _lines(turn.question), joined(
            put('<div class="q-bubble">{}</div>', _answer(answer, now.talk)) for answer in turn.answers
        ))
        for turn in now.turns
    ]  # fmt: skip
    if turns:
        parts.insert(0, shown(put('<div class="q-bubbles" aria-live="polite">{}</div>', joined(turns))))
    elif not parts:
        parts.append(empty(say("Nothing said yet. Write a message; the model is loaded when it is sent.")))
    return mo.vstack([*parts, small(state_line(now))], gap=0.5)


def state_line(now: Conversation) -> str:
    """Return where the model is and what becomes of its memory."""
    talk = now.talk
    if talk.state == "loading":
        return say("{name} is being loaded …", name=now.about)
    if talk.state in ("ready", "answering"):
        return say(
            "{name} is loaded and takes {size}; they are freed a minute and a half after this page is left.",
            name=now.about, size=size(talk.memory),
        )  # fmt: skip
    if talk.state == "ended":
        return say("{reason} The next question starts another.", reason=talk.reason)
    return say("No model is loaded; no memory is held.")


def _answer(answer: Answer, talk: Talk) -> Markup:
    """Return an answer with its author and its cost."""
    name = say("Base") if answer.base else say("Tuned")
    if answer.error:
        remark = answer.error
    elif answer.cancelled:
        remark = say("Stopped after {tokens} tokens.", tokens=answer.tokens)
    elif answer.done:
        rate = answer.tokens / answer.seconds if answer.seconds else 0.0
        remark = say(
            "{tokens} tokens in {seconds} s, {rate} tokens/s",
            tokens=answer.tokens, seconds=number(answer.seconds, ".1f"), rate=number(rate, ".1f"),
        )  # fmt: skip
    elif answer.text:
        remark = say("{tokens} tokens so far …", tokens=answer.tokens)
    else:
        remark = say("The model is being loaded …") if talk.state == "loading" else say("Waiting …")
    said = _lines(answer.text) if answer.text or not answer.done else put("<em>{}</em>", say("(nothing)"))
    return put(
        '<section class="q-answer{}"><h4>{}</h4><div class="q-said">{}</div><p class="q-small">{}</p></section>',
        "" if answer.base else " q-tuned", name, said, remark,
    )  # fmt: skip


def _lines(text: str) -> Markup:
    return Markup("<br>").join(put("{}", line) for line in text.split("\n"))


# Samples --------------------------------------------------------------------------------------------------------


def samples_mark(run: Run | None) -> tuple[str, int, int]:
    """Return a mark that changes with a run's samples."""
    path = run.path / SAMPLES if run else None
    if path is None or not path.is_file():
        return "", 0, 0
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns


def samples(mark: tuple[str, int, int]) -> mo.Html | None:
    """Return the answers of the base and of a run at each validation, the newest first."""
    found = Run(Path(mark[0]).parent).samples() if mark[0] else []
    by_question: dict[str, list[Mapping[str, Any]]] = {}
    for sample in found:
        by_question.setdefault(str(sample.get("question", "")), []).insert(0, sample)
    if not by_question:
        return None
    parts = [
        folded(question.replace("\n", " ")[:200], shown(_progress(answers)), open=True)
        for question, answers in by_question.items()
    ]
    return mo.vstack(parts, gap=0)


def _progress(answers: Sequence[Mapping[str, Any]]) -> Markup:
    """Return steps and answers of one question in a scrolling box, newest first."""
    row = '<tr><th scope="row">{}</th><td>{}</td></tr>'
    wanted = str(answers[0].get("reference") or "")
    rows = [put(row, say("Expected"), _lines(wanted))] if wanted else []
    for sample in answers:
        step = say("Step {step}", step=sample["step"]) if sample["step"] else say("Before training")
        rows.append(put(row, step, _lines(str(sample.get("answer") or "–"))))
    html = '<div class="q-samples" tabindex="0"><table class="q-facts">{}</table></div>'
    return put(html, joined(rows))


# A page for conversations ---------------------------------------------------------------------------------------


def who_to_ask(tracker: TrainingTracker, asked: Sequence[str] = ()) -> Any:
    """Return a choice of runs, newest first, with their states, and a base model; select the first run in `asked`."""
    options = {
        say("{run} ({state}, step {step})", run=row["run"], state=say(row["state"]), step=row["step"]): row["run"]
        for row in iterate_states(tracker.runs())
    }
    options[say("A base model alone")] = BASE_ONLY
    first = next((label for label, name in options.items() if name in asked), next(iter(options)))
    return mo.ui.dropdown(options, value=first, label=say("Who to talk to"), full_width=True)


def memory_before(tracker: TrainingTracker, choice: str | None, model: str | None) -> mo.Html:
    """Return how much of the free memory answering will take."""
    from ..config import BaseConfig
    from ..models.base_models import find_base

    if not choice:
        return empty(say("Choose a model."))
    spec = find_base(BaseConfig(model=model or "")) if choice == BASE_ONLY else tracker.find(choice).base()
    available = available_bytes()
    needed = needed_bytes(spec, available)
    text = say(
        "{name} will take about {needed} while it is loaded; {free} are free now.",
        name=spec.name, needed=size(needed), free=size(available),
    )  # fmt: skip
    return note(text, "info" if needed < available else "warn")


def choice_place(tracker: TrainingTracker, choice: Any) -> mo.Html:
    """Return the choice, or how to get a tuned model if there is none."""
    if tracker.runs():
        return mo.as_html(choice)
    text = say(
        "There is no run in {place} yet: `uv run marimo run apps/train.py` makes one. A base can be asked now.",
        place=tracker.runs_dir,
    )
    return mo.vstack([choice, empty(text)])


def model_name(choice: str | None, name: str) -> Any:
    """Return a field for the base model's name if a base is asked alone."""
    if choice != BASE_ONLY:
        return None
    return mo.ui.text(name, label=say("Base model: a name that `qlora models` lists, or a directory"), full_width=True)


def new_button() -> Any:
    """Return the button that begins a new conversation."""
    return mo.ui.run_button(label=say("New conversation"))
