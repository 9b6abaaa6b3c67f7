"""Questions to base and tuned model, answered in another process, and a run's answers during training.

One process per session of the page, started by the first question. Its answers are shown as plain text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
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
from . import composing
from .composing import Draft, copy_button
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

    @property
    def outline(self) -> tuple[Any, ...]:
        """Return which questions there are, and whether one is being answered."""
        return self.about, self.answering, tuple((turn.question, turn.answers[0].number) for turn in self.turns)

    @property
    def memory(self) -> tuple[str, str, int, str]:
        """Return what the line about the model and its memory depends on."""
        return self.about, self.talk.state, self.talk.memory, self.talk.reason


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

    def submit(
        self,
        run: Run | None,
        form: Mapping[str, Any] | None,
        settings: Mapping[str, Any] | None,
        suggestion: str = "",
    ) -> Draft | None:
        """Ask a run's tuned model and its base a question, side by side.

        Args:
            run: the run.
            form: the form's value; it counts when it was just sent.
            settings: of the answers, as `answer_settings` has them.
            suggestion: a suggested question that was just chosen.

        Returns:
            What is to stand in the field: the question, if it cannot be asked; None if there was none.
        """
        question = self._asked(form, suggestion)
        if question is None or settings is None:
            return None
        if run is None or not run.exists:
            self._problem = say("There is no run yet. Train one above, then ask it.")
            return Draft(question)
        tuned = run.best.is_dir() or run.final.is_dir()
        self.clear()
        return self._ask(run.name, [run.path], Draft(question), settings, (False, True) if tuned else (True,))

    def send(
        self,
        choice: str | None,
        model: str | None,
        form: Mapping[str, Any] | None,
        settings: Mapping[str, Any] | None,
        *,
        suggestion: str = "",
        compare: bool = False,
        turn: int | None = None,
    ) -> Draft | None:
        """Add a turn to the conversation with a run or a base model alone; otherwise like `submit`.

        Args:
            choice: name of the run, or `BASE_ONLY`.
            model: name of the base model that is asked alone.
            form: the form's value; it counts when it was just sent.
            settings: of the answers, as `answer_settings` has them.
            suggestion: a suggested question that was just chosen.
            compare: the run's base answers as well.
            turn: number of the turn that is asked anew, from 0; it and all after it are replaced.
        """
        question = self._asked(form, suggestion)
        if question is None or settings is None or not choice:
            return None
        alone = choice == BASE_ONLY
        model = model or ""
        arguments = ["--model", model] if alone else [self.tracker.runs_dir / choice]
        bases = (True,) if alone else (False, True) if compare else (False,)
        return self._ask(model if alone else choice, arguments, Draft(question, turn), settings, bases)

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

    def _asked(self, form: Mapping[str, Any] | None, suggestion: str) -> str | None:
        """Return the question that was just chosen or sent: a cell that reruns for another reason has the same form."""
        new, self._seen = form is not self._seen, form
        return suggestion or (form["question"] if new and form else None)

    def _ask(
        self,
        about: str,
        arguments: Sequence[str | Path],
        draft: Draft,
        settings: Mapping[str, Any],
        bases: Sequence[bool],
    ) -> Draft:
        question = draft.text.strip()
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
            return draft
        if self._talker is None or about != self._about:
            self.put_away()
            self._talker, self._about, self._turns = Talker(arguments), about, []
        if draft.turn is not None:
            del self._turns[draft.turn :]
        sampling = {name: settings[name] for name in ("max_tokens", "temperature", "top_p", "seed")}
        sampling |= {"max_tokens": int(sampling["max_tokens"]), "seed": int(sampling["seed"])}
        conversations = [self._messages(settings["system"], base) for base in bases]
        asked = {"role": "user", "content": question}
        numbers = tuple(
            self._talker.ask([*before, asked], base=base, **sampling)
            for before, base in zip(conversations, bases, strict=True)
        )
        self._turns.append((question, numbers))
        return Draft()

    def _messages(self, system: str, base: bool) -> list[dict[str, str]]:
        """Return the system message and the turns before; a failed answer does not count as a turn."""
        messages = [{"role": "system", "content": system.strip()}] if system.strip() else []
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


def swift_ticker(phase: tuple[bool, bool, str]) -> Any:
    """Return a fast ticker while an answer is being made; otherwise None, so that nothing ticks in vain."""
    return mo.ui.refresh(options=[SWIFT], default_interval=SWIFT) if phase[0] else None


def controls(phase: tuple[bool, bool, str]) -> tuple[Any, Any]:
    """Return buttons to stop answering and to free memory, each enabled when it can do something."""
    answering, loaded, _ = phase
    stop = mo.ui.run_button(label=say("Stop answering"), disabled=not answering, tooltip=say("Escape"))
    away = mo.ui.run_button(
        label=say("Unload model"), disabled=not loaded, tooltip=say("Frees the memory that it takes")
    )
    return stop, away


def controls_row(phase: tuple[bool, bool, str], stop: Any, away: Any, ticker: Any) -> Any:
    """Return the buttons that can do something now side by side, and the hidden ticker."""
    answering, loaded, _ = phase
    if read_only():
        return None
    buttons = (_stopping(stop) if answering else "", html_of(away) if loaded else "")
    return shown(put('<div class="q-buttons q-kept">{}{}{}</div>', *buttons, _hidden(ticker)))


def _stopping(button: Any) -> Markup:
    """Return the button that stops, where the page's script finds it for the Escape key."""
    return put('<span class="q-stop">{}</span>', html_of(button))


def _hidden(ticker: Any) -> Markup:
    return html_of(unseen(ticker)) if ticker is not None else Markup("")


# What is shown --------------------------------------------------------------------------------------------------


def side_by_side(now: Conversation) -> mo.Html | None:
    """Return the last question with the answers of the tuned model and the base."""
    if now.training:
        return note(training_holds_the_memory())
    parts: list[Any] = [note(now.problem, "warn")] if now.problem else []
    for turn in now.turns[-1:]:
        answers = joined(_answer(answer, now.talk) for answer in turn.answers)
        html = '<div class="q-talk{}" aria-live="polite"><p class="q-asked">{}</p><div class="q-pair">{}</div></div>'
        busy = Markup(" q-busy") if now.answering else Markup("")
        parts.append(shown(put(html, busy, _lines(turn.question), answers)))
    invitation = say("Ask something: the model is loaded with the first question, in a process of its own.")
    if not parts:
        return None if read_only() else empty(invitation)
    return mo.vstack([*parts, small(state_line(now))], gap=0.5)


def bubbles(now: Conversation, edits: Sequence[Any] = (), suggested: mo.Html | None = None) -> mo.Html:
    """Return a conversation, turn by turn, in a box that scrolls.

    Args:
        now: the conversation.
        edits: a button for each question.
        suggested: shown while nothing was said.
    """
    turns = [
        _turn(turn, now.talk, html_of(edit) if edit is not None else Markup(""))
        for turn, edit in itertools.zip_longest(now.turns, edits[: len(now.turns)])
    ]
    problem = training_holds_the_memory() if now.training else now.problem
    if problem:
        turns.append(html_of(note(problem, "info" if now.training else "warn")))
    elif not turns:
        turns.append(html_of(empty(say("Nothing said yet. Write a message; the model is loaded when it is sent."))))
    if not now.turns and suggested is not None and not now.training:
        turns.append(html_of(suggested))
    html = '<div class="q-scroller{}" tabindex="0" role="log" aria-label="{}"><div class="q-bubbles">{}</div></div>'
    busy = Markup(" q-busy") if now.answering else Markup("")
    return shown(put(html, busy, say("Conversation"), joined(turns)))


def _turn(turn: Turn, talk: Talk, edit: Markup) -> Markup:
    """Return a question with its buttons, and its answers below, side by side if there are two."""
    mine = put('<div class="q-bubble q-mine q-said">{}</div><div class="q-acts">{}{}</div>', _lines(turn.question),
               copy_button(), put('<span class="q-edit">{}</span>', edit))  # fmt: skip
    answers = joined(put('<div class="q-bubble">{}</div>', _answer(answer, talk)) for answer in turn.answers)
    kind = Markup("q-two") if len(turn.answers) > 1 else Markup("q-one")
    html = '<section class="q-turn"><div class="q-copied">{}</div><div class="{}">{}</div></section>'
    return put(html, mine, kind, answers)


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
        '<section class="q-answer q-copied{}"><h4>{}</h4><div class="q-said">{}</div>'
        '<div class="q-acts"><p class="q-small">{}</p>{}</div></section>',
        "" if answer.base else " q-tuned", name, said, remark, copy_button() if answer.done and answer.text else "",
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


def run_to_ask(tracker: TrainingTracker, choice: str | None) -> Run | None:
    """Return the run that is talked to; None where a base is asked alone."""
    return None if not choice or choice == BASE_ONLY else tracker.find(choice)


def edit_buttons(now: Conversation, write: Callable[[Draft], Any]) -> list[Any]:
    """Return a button for each question that has it asked anew."""
    return composing.edit_buttons([turn.question for turn in now.turns], write, disabled=now.answering)


def composer(form: Any, phase: tuple[bool, bool, str], stop: Any, cancel: Any) -> mo.Html:
    """Return the field for a message, with the button that stops an answer while one is made."""
    if form is None:
        return composing.form_place(form)
    beside = [html_of(cancel)] if cancel is not None else []
    if phase[0]:
        beside.append(_stopping(stop))
    html = '<div class="q-composer"><div>{}</div><div class="q-beside">{}</div></div>'
    return shown(put(html, html_of(form), joined(beside)))


def compare_box(choice: str | None) -> Any:
    """Return a box to tick for answers of the base beside those of a run; None where a base is asked alone."""
    if read_only() or not choice or choice == BASE_ONLY:
        return None
    return mo.ui.checkbox(label=say("Compare with the base"))


def chat_controls(tracker: TrainingTracker, choice: Any, *others: Any) -> mo.Html:
    """Return who is talked to and what can be done in one line; below it how to get a tuned model if there is none."""
    *elements, ticker = others
    parts = joined(html_of(element) for element in elements if element is not None and not read_only())
    line = shown(put('<div class="q-controls"><div>{}</div>{}{}</div>', html_of(choice), parts, _hidden(ticker)))
    if tracker.runs():
        return line
    text = say(
        "There is no run in {place} yet: `uv run marimo run apps/train.py` makes one. A base can be asked now.",
        place=tracker.runs_dir,
    )
    return mo.vstack([line, empty(text)])


def about_memory(now: Conversation, before: Any) -> Any:
    """Return where the model is and what memory it takes, or will take, as `memory_before` has it."""
    return before if now.talk.state == "absent" else small(state_line(now))


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
    return small(text) if needed < available else note(text, "warn")


def model_name(choice: str | None, name: str) -> Any:
    """Return a field for the base model's name if a base is asked alone."""
    if choice != BASE_ONLY:
        return None
    return mo.ui.text(name, label=say("Base model: a name that `qlora models` lists, or a directory"), full_width=True)


def new_button() -> Any:
    """Return the button that begins a new conversation."""
    return mo.ui.run_button(label=say("New conversation"))
