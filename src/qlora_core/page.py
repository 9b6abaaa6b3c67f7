"""Pieces of the page: settings forms, tables, charts, and what a run that is being trained shows.

Knows marimo and altair and nothing of mlx: whatever needs it is a worker or a command in a process of its own. Text
from people, models and files reaches the page through `mo.plain_text` or the one function here that escapes it.
"""

from __future__ import annotations

import ast
import html
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import marimo as mo

from . import bases, cli, console, fit, jobs
from .bases import ModelSpec
from .charts import loss_chart, thin
from .charts import rate_chart as rate_chart  # shown by the notebook
from .compare import compare
from .config import RunConfig, Setting, from_flat, given_settings, settings
from .console import size
from .data import PreparedData
from .errors import ConfigError, QLoraError
from .guides import GUIDES
from .memory import MemoryMonitor, available_bytes
from .presets import PRESETS, Choice
from .runs import MetricsReader, Run, TrainingPlan, TrainingTracker, iterate_states, resolve_config
from .tokens import TokenDataset

LOG_LINES = 200


def scripted() -> bool:
    """True in `python apps/train.py`, where cells print and training happens in this process."""
    return mo.app_meta().mode == "script"


# Problems -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """What went wrong, in the place of the value that could not be made.

    An attribute of it is the problem again, so that `config.data` can be handed on without looking; `onward` marks it
    as shown already.
    """

    message: str
    shown: bool = False

    @property
    def onward(self) -> Problem:
        """The same, for the cells below the one that shows it."""
        return Problem(self.message, shown=True)

    def __getattr__(self, name: str) -> Problem:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.onward


def attempt(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call, and turn an error meant for the user into a `Problem`; a `Problem` among the arguments comes back.

    In a script the error becomes one line and the exit status.
    """
    for argument in (*arguments, *named.values()):
        if isinstance(argument, Problem):
            return argument.onward
    if scripted():
        made: list[Any] = []
        if status := cli.guarded(lambda: made.append(call(*arguments, **named)) or cli.DONE):
            sys.exit(status)
        return made[0]
    try:
        return call(*arguments, **named)
    except (QLoraError, OSError) as error:
        return Problem(str(error))


def view(make: Callable[..., Any], *values: Any) -> Any:
    """What a cell shows on the page: `make(*values)`, or what went wrong where it did. Nothing in a script."""
    if scripted():
        return None
    made = attempt(make, *values)
    if not isinstance(made, Problem):
        return made
    return None if made.shown else failure(made.message)


def complain(*values: Any) -> mo.Html | None:
    """The first problem among `values` that is not shown yet."""
    return next((failure(value.message) for value in values if isinstance(value, Problem) and not value.shown), None)


def failure(message: str) -> mo.Html:
    """A message about something that went wrong."""
    return mo.callout(mo.plain_text(message), kind="danger")


# Flags and settings ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flags:
    """What was given on the command line: the settings a page starts with, and how a script shows its result.

    `config` holds all settings, `given` those that were named.
    """

    config: RunConfig = field(default_factory=RunConfig)
    given: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""
    as_json: bool = False
    problem: Problem | None = None

    def show(self, title: str, rows: Callable[..., dict[str, str]], *values: Any) -> mo.Html | None:
        """Show `rows(*values)`: printed by a script, a table on the page; nothing where a value is a problem."""
        made = attempt(rows, *values)
        if scripted():
            self.tell(console.block(title, made) if title else console.table(made))
        return complain(made) or view(fact_table, made)

    def tell(self, text: str) -> None:
        """Print, in a script only; with `--json`, on standard error."""
        if scripted():
            print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)


def read_flags(argv: Sequence[str]) -> Flags:
    """The flags of `qlora train`. A script ends on a wrong one; a page says so and opens all the same."""
    parser, unknown = cli.training_parser(), []
    if scripted():
        arguments = parser.parse_args(argv)
    else:
        parser.error = parser.exit = _refuse  # type: ignore[assignment,method-assign]
        known = attempt(parser.parse_known_args, argv)
        if isinstance(known, Problem):
            return Flags(problem=known)
        arguments, unknown = known
    config = attempt(lambda: resolve_config(given_settings(arguments), arguments.preset))
    if isinstance(config, Problem):
        return Flags(problem=config)
    problem = Problem(f"unknown flags, left aside: {' '.join(unknown)}") if unknown else None
    return Flags(config, given_settings(arguments), arguments.preset, arguments.json, problem)


def _refuse(*words: Any) -> None:
    reason = next((word.strip() for word in words if isinstance(word, str)), "--help is for the command line")
    raise ConfigError(f"the flags were left aside: {reason}")


def preset_menu() -> mo.ui.dropdown:
    """A machine and a size of model to choose from."""
    sizes = {"large": "3B parameters and more", "small": "smaller models"}
    options = {
        f"{name}: {preset.machine}; {words}": (name, size)
        for name, preset in PRESETS.items()
        for size, words in sizes.items()
    }
    return mo.ui.dropdown(options, label="Settings that fit a machine", full_width=True)


def with_preset(flags: Flags, chosen: tuple[str, str] | None) -> RunConfig:
    """The settings that the forms begin with: those of the command line, and where it said nothing, of a preset."""
    values = {name: choice.value for name, choice in _choices(chosen).items()}
    return from_flat({**values, **flags.given}, base=flags.config)


def preset_reasons(chosen: tuple[str, str] | None) -> mo.Html | None:
    """Why each of a preset's settings is as it is."""
    rows = [{"setting": name.replace("_", " "), "value": c.value, "why": c.why} for name, c in _choices(chosen).items()]
    return row_table(rows) if rows else None


def _choices(chosen: tuple[str, str] | None) -> dict[str, Choice]:
    """A preset's choices but for the base, whose form stands above and keeps what was typed there."""
    above = {setting.name for setting in settings() if setting.group == "base"}
    choices = getattr(PRESETS[chosen[0]], chosen[1]) if chosen else {}
    return {name: choice for name, choice in choices.items() if name not in above}


def settings_form(config: RunConfig, *groups: str) -> mo.ui.dictionary:
    """An element for every setting, or for those of some groups, with the values of `config`."""
    chosen = [setting for setting in settings() if not groups or setting.group in groups]
    return mo.ui.dictionary({setting.name: _element(setting, config.value(setting)) for setting in chosen})


def read_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings `{name: value}` from a form's values.

    Raises:
        ConfigError: a text is not a number.
    """
    return {s.name: _from_element(s, values[s.name]) for s in settings() if s.name in values}


def read_forms(config: RunConfig, *forms: Mapping[str, Any]) -> RunConfig:
    """`config` with what the forms say.

    Raises:
        ConfigError: a value is out of range or no number.
    """
    return from_flat({name: value for values in forms for name, value in read_form(values).items()}, base=config)


def form_layout(form: mo.ui.dictionary, title: str = "More settings") -> mo.Html:
    """Essential settings side by side, the others folded, each with its explanation."""
    known = {s.name: s for s in settings()}
    first = [name for name in form.elements if known[name].essential]
    rest = [name for name in form.elements if not known[name].essential]
    parts: list[Any] = []
    if first:
        fields = [mo.vstack([form.elements[name], _small(known[name].help)], gap=0.25) for name in first]
        parts.append(mo.hstack(fields, widths="equal", gap=1.5, align="start"))
    if rest:
        rows = [
            mo.hstack([form.elements[name], _small(known[name].help)], widths=[1, 2], gap=1.5, align="end")
            for name in rest
        ]
        parts.append(mo.accordion({title: mo.vstack(rows, gap=0.75)}))
    return mo.vstack(parts, gap=0.75)


def _element(setting: Setting, value: Any) -> Any:
    """Numbers with a fraction are typed as text: a number field would round 1e-5 to its step."""
    words = setting.name.replace("_", " ").replace("lora", "LoRA")
    label = words[0].upper() + words[1:] + (f" ({setting.unit})" if setting.unit else "")
    look: dict[str, Any] = {"label": label, "full_width": True}
    if setting.choices:
        return mo.ui.dropdown(setting.choices, value=value, **look)
    if setting.type is bool:
        return mo.ui.checkbox(value, label=label)
    if setting.type is int:
        return mo.ui.number(setting.ge, setting.le, step=1, value=value, debounce=True, **look)
    if setting.type is float:
        return mo.ui.text(f"{value:g}" if float(f"{value:g}") == value else repr(value), **look)
    if setting.type is str:
        return mo.ui.text(value, **look)
    return mo.ui.text_area("\n".join(value), rows=max(1, len(value)), **look)


def _from_element(setting: Setting, value: Any) -> Any:
    if setting.type is float:
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"{setting.name} must be a number; found {value!r}") from None
    if setting.type is int and value is not None and value == int(value):
        return int(value)  # a number field hands out 4.0 as well as 4
    if setting.type in (int, bool, str):
        return value
    return value if setting.choices else tuple(line for line in value.splitlines() if line.strip())


# Tables and text ------------------------------------------------------------------------------------------------

_CELL = "padding: 0.25rem 1rem 0.25rem 0; vertical-align: top; text-align: left; overflow-wrap: anywhere;"
_LINE = "border-top: 1px solid color-mix(in srgb, currentColor 12%, transparent);"


def fact_table(rows: Mapping[str, str]) -> mo.Html:
    """Names on the left, values on the right; rows without a value are left out."""
    return _html_table([(name, value) for name, value in rows.items() if value], first="8rem")


def row_table(rows: Sequence[Mapping[str, Any]]) -> mo.Html:
    """A table with a heading, for a few rows of text."""
    return _html_table([tuple(row.values()) for row in rows], heading=tuple(rows[0]) if rows else ())


def _html_table(rows: Iterable[Sequence[Any]], heading: Sequence[str] = (), first: str = "auto") -> mo.Html:
    """The one place where text becomes HTML: every cell is escaped."""

    def line(cells: Sequence[Any], tag: str, style: str) -> str:
        shown = (html.escape(str(cell)).replace("\n", "<br>") for cell in cells)
        return "<tr>" + "".join(f'<{tag} style="{_CELL}{style}">{cell}</{tag}>' for cell in shown) + "</tr>"

    head = line(heading, "th", "font-weight: 600;") if heading else ""
    body = "".join(line(row, "td", _LINE if heading or number else "") for number, row in enumerate(rows))
    column = f'<colgroup><col style="width: {first}"></colgroup>' if first != "auto" else ""
    style = "width: 100%; font-size: 0.875rem; border-collapse: collapse"
    return mo.Html(f'<table style="{style}">{column}{head}{body}</table>')


def _small(text: str) -> mo.Html:
    return mo.Html(f'<div style="font-size: 0.8rem; opacity: 0.7; padding-bottom: 0.4rem">{html.escape(text)}</div>')


def sample_rows(prepared: PreparedData, count: int = 3) -> mo.Html:
    """The first prepared rows."""
    rows = []
    for row in prepared.train[:count]:
        turns = row.get("messages") or [{"role": "text", "content": row["text"]}]
        text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
        rows.append({"row": text if len(text) <= 300 else text[:299] + "…", "from": row["source"]})
    return mo.accordion({"First rows": row_table(rows)})


def source_of(module: str, *names: str) -> mo.Html:
    """The source of functions of a core module, read from its file: importing it here would bring mlx."""
    found = importlib.util.find_spec(f"qlora_core.{module}")
    text = Path(found.origin).read_text(encoding="utf-8")  # type: ignore[union-attr,arg-type]
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    return mo.accordion({name: mo.plain_text(ast.get_source_segment(text, functions[name]) or "") for name in names})


# A run as it goes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        run: which one; None before there is any.
        state: of the run.
        asked: `pause` or `stop` while the trainer has not got round to it.
        alive: whether it is being trained.
        version: changes with everything that is worth drawing again.
        status: the trainer's last word.
        events: all events so far.
    """

    run: Run | None = None
    state: str = "new"
    asked: str = "run"
    alive: bool = False
    version: tuple[Any, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[dict[str, Any], ...] = ()

    @property
    def phase(self) -> tuple[Any, ...]:
        """What the buttons and the results depend on; it changes a few times in a run."""
        return (self.run.name if self.run else "", self.state, self.asked)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """The events of one type."""
        return [event for event in self.events if event["type"] == kind]


class RunWatcher:
    """Follows the run that matters: one that is being trained, else the planned one, else the last one seen.

    Args:
        tracker: of the directory of all runs.
    """

    def __init__(self, tracker: TrainingTracker) -> None:
        self.tracker = tracker
        self.run: Run | None = None
        self._reader: MetricsReader | None = None

    def look(self, plan: TrainingPlan | Problem) -> Snapshot:
        """Read what is new."""
        run = self._choose(plan.run if isinstance(plan, TrainingPlan) else None)
        if run is None:
            return Snapshot()
        if self._reader is None or self.run is None or self.run.path != run.path:
            self._reader = MetricsReader(run)
        self.run = run
        alive, state, status, asked = run.alive, run.state, run.status(), run.control()
        self._reader.poll()  # after the state: the events of a run that ended in between are then complete
        events = tuple(self._reader.events)
        version = (run.name, state, asked, self._reader.generation, len(events), status.get("time"))
        return Snapshot(run, state, asked if alive else "run", alive, version, status, events)

    def request(self, what: str) -> None:
        """Ask the run's trainer to pause or stop."""
        if self.run is not None and self.run.alive:
            self.run.request(what)  # type: ignore[arg-type]

    def _choose(self, planned: Run | None) -> Run | None:
        if self.run is not None and self.run.alive:
            return self.run
        if planned is not None and planned.alive:
            return planned
        alive = next((run for run in self.tracker.runs() if run.alive), None)
        if alive is not None or planned is None:
            return alive or self.run
        return planned if planned.exists or self.run is None else self.run


def controls(plan: TrainingPlan | Problem, watcher: RunWatcher) -> tuple[Any, Any, Any, mo.Html]:
    """Buttons to start, pause and stop, each enabled when it can do something, and the row that shows them."""
    busy = watcher.run is not None and watcher.run.alive
    label, note = "Start", ""
    if busy:
        note = f"{watcher.run.name} is being trained in a process of its own; this page may be closed."
    elif isinstance(plan, Problem):
        note = f"Not ready: {plan.message.splitlines()[0]}"
    elif plan.done:
        note = "Complete. More epochs train it further; “fresh” starts a new run beside it."
    elif plan.run.exists:
        label, note = "Go on", f"{plan.run.name} goes on from its last checkpoint."
    ready = not busy and isinstance(plan, TrainingPlan) and not plan.done
    asked = watcher.run.control() if busy else "run"
    begin = mo.ui.run_button(label=label, kind="success", disabled=not ready)
    pause = mo.ui.run_button(label="Pause", disabled=not busy or asked != "run", tooltip="Save and end the process")
    tooltip = "Save, and use what there is"
    stop = mo.ui.run_button(label="Stop", kind="danger", disabled=not busy or asked == "stop", tooltip=tooltip)
    row = mo.hstack([begin, pause, stop, _small(note)], justify="start", align="center", gap=0.75)
    return begin, pause, stop, row


def start(tracker: TrainingTracker, plan: TrainingPlan) -> mo.Html:
    """Start a worker process; whether that worked, in words."""
    outcome = attempt(jobs.start, tracker, plan)
    if isinstance(outcome, Problem):
        return failure(outcome.message)
    return mo.callout(f"Started (process {outcome}).", kind="success")


def run_panel(snapshot: Snapshot) -> mo.Html:
    """State, progress and speed of a run, and what went wrong if anything did."""
    if snapshot.run is None or snapshot.state == "new":
        return mo.callout("Nothing trained yet with these settings. Start begins.", kind="info")
    parts: list[Any] = [_small(f"Run {snapshot.run.name}"), _figures(snapshot)]
    if snapshot.state == "failed":
        parts.append(failure(str(snapshot.status.get("message") or "Training failed.")))
    elif snapshot.state == "crashed":
        parts.append(failure("The trainer is gone. Its last words:\n" + jobs.last_words(snapshot.run)))
    elif snapshot.status.get("message"):
        parts.append(mo.callout(mo.plain_text(str(snapshot.status["message"])), kind="warn"))
    return mo.vstack(parts, gap=0.5)


def _figures(snapshot: Snapshot) -> mo.Html:
    steps, evals, status = snapshot.of_type("step"), snapshot.of_type("eval"), snapshot.status
    start = next(iter(reversed(snapshot.of_type("start"))), {})
    last: Mapping[str, Any] = steps[-1] if steps else {}
    done = max(status.get("step", 0), last.get("step", 0))
    total = status.get("total_steps", 0)
    recent = steps[-20:]
    seconds = sum(e["seconds"] for e in recent)
    left = console.duration((total - done) * seconds / len(recent)) if recent and snapshot.alive else "–"
    loss, val = last.get("train_loss"), evals[-1]["val_loss"] if evals else None
    asked = {"pause": "pausing", "stop": "stopping"}.get(snapshot.asked, snapshot.state)
    figures = {
        "State": asked,
        "Step": f"{done} / {total}" if total else "–",
        "Epoch": f"{last['epoch']} / {start.get('epochs', '–')}" if last else "–",
        "Training loss": f"{loss:.3f}" if loss is not None else "–",
        "Validation loss": f"{val:.3f}" if val is not None else "–",
        "Tokens/s": f"{sum(e['tokens'] for e in recent) / seconds:,.0f}" if seconds else "–",
        "Time left": left,
        "Memory": f"{size(last['available_memory_bytes'])} free" if last else "–",
    }
    cards = [mo.stat(value, label=label, bordered=True) for label, value in figures.items()]
    return mo.vstack([mo.hstack(cards[:4], widths="equal"), mo.hstack(cards[4:], widths="equal")], gap=0.5)


def run_chart(snapshot: Snapshot) -> Any:
    """The loss so far, once there is any."""
    steps = snapshot.of_type("step")
    return loss_chart(steps, snapshot.of_type("eval")) if steps else None


def run_log(snapshot: Snapshot) -> mo.Html | None:
    """What a terminal would show of the run."""
    lines = [line for event in snapshot.events if (line := console.event_line(event))]
    return mo.accordion({"Log": mo.plain_text("\n".join(lines[-LOG_LINES:]))}) if lines else None


def runs_overview(tracker: TrainingTracker) -> mo.Html:
    """All runs, newest first."""
    rows = [
        {
            "run": row["run"],
            "state": row["state"],
            "step": f"{row['step']} / {row['total_steps']}",
            "best validation loss": "–" if row["best_val_loss"] is None else f"{row['best_val_loss']:.4f}",
        }
        for row in iterate_states(tracker.runs())
    ]
    return row_table(rows) if rows else _small("None yet.")


# Results --------------------------------------------------------------------------------------------------------


def generation_test(run: Run | None) -> mo.Html:
    """Recall and answers of base and tuned model, as the trainer judged them."""
    evaluation = run.evaluation() if run else None
    if not evaluation or not evaluation["questions"]:
        return _small("Answers appear here when training ends.")
    names = {"trained": "Recall, trained phrasings", "held_out": "Recall, held-out phrasings"}
    cards = [
        mo.stat(
            f"{100 * count['tuned'] / count['questions']:.0f}%",
            label=names.get(kind, f"Recall, {kind}"),
            caption=f"{count['tuned']} of {count['questions']}; base model {count['base']}",
            bordered=True,
        )
        for kind, count in evaluation["recall"].items()
    ]
    mark = {True: " ✓", False: " ✗"}
    rows = [
        {
            "question": q["question"],
            "base": console.one_line(q["base"]) + mark.get(q.get("base_right"), ""),
            "tuned": console.one_line(q["tuned"]) + mark.get(q.get("tuned_right"), ""),
        }
        for q in evaluation["questions"]
    ]
    shown = thin(rows, console.SHOWN_ANSWERS)
    more = [mo.accordion({f"All {len(rows)} questions": row_table(rows)})] if len(shown) < len(rows) else []
    return mo.vstack([*([mo.hstack(cards, widths="equal")] if cards else []), row_table(shown), *more])


def performance(run: Run | None) -> mo.Html:
    """The numbers of a run that ended, and its curves."""
    numbers = run.summary() if run else None
    if not numbers:
        return _small("Numbers appear here when training ends.")
    curves = run.result / "curves.png"
    image = [mo.image(str(curves), alt="Loss, learning rate, speed and memory over steps")] if curves.is_file() else []
    return mo.vstack([fact_table(console.performance(numbers)), *image])


def saved(run: Run | None) -> mo.Html:
    """Where the adapters lie."""
    if run is None or not (run.best.is_dir() or run.final.is_dir()):
        return _small("The best adapters are saved at the first validation, the last ones when training ends.")
    return fact_table(console.places(run))


def integration(run: Run | None) -> mo.Html:
    """The guide that lies beside the exported adapters, in both languages."""
    guides = [path for name in GUIDES if run and (path := run.result / name).is_file()]
    if not guides:
        return _small("The guide appears here when training ends.")
    return mo.accordion({path.name: mo.plain_text(path.read_text(encoding="utf-8")) for path in guides})


def ask(run: Run | None, question: str, base: bool) -> mo.Html:
    """The tuned model's answer to a question, and the base's beside it, each from a process of its own."""
    if run is None or not question.strip():
        return failure("Train a run and write a question first.")
    common = ["generate", run.name, "--runs-dir", str(run.path.parent), f"--prompt={question}"]
    answers = {}
    for name, flags in {"tuned": [], **({"base": ["--base"]} if base else {})}.items():
        with mo.status.spinner(f"Asking the {name} model …"):
            answer = attempt(run_command, [*common, *flags])
        if isinstance(answer, Problem):
            return failure(answer.message)
        answers[name] = answer["response"] or "(nothing)"
    return fact_table(answers)


def machine_check() -> mo.Html:
    """What `qlora doctor` finds; it measures, so it takes some seconds."""
    with mo.status.spinner("Looking …"):
        facts = attempt(run_command, ["doctor"])
    if isinstance(facts, Problem):
        return failure(facts.message)
    problems = [mo.callout(mo.plain_text(problem), kind="warn") for problem in facts["problems"]]
    verdict = problems or [mo.callout("Ready to train.", kind="success")]
    return mo.vstack([fact_table(console.diagnosis(facts)), *verdict])


def run_command(arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON object that `qlora … --json` prints.

    Raises:
        QLoraError: it printed none; with its error line.
    """
    command = [sys.executable, "-m", "qlora_core.cli", *arguments, "--json"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8")
    try:
        return json.loads(ended.stdout)
    except ValueError:
        last = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise QLoraError(last.removeprefix("error: ")) from None


def quantisations(model: ModelSpec, config: RunConfig, train_dataset: TokenDataset) -> mo.Html:
    """LoRA against QLoRA by arithmetic: the same adapters on this base at each number of bits."""
    if model.quantize_bits is None and model.quantization:
        choices = {f"{model.bits} bits (QLoRA), as it is stored": model}
        note = "This base is stored quantised. LoRA, for comparison, takes an unquantised one and --quantize none."
    else:
        note = "Train the other kind with --quantize none, 4 or 8: it is a run of its own."
        names = {"4": "4 bits (QLoRA)", "8": "8 bits (QLoRA)", "none": "unquantised (LoRA)"}
        choices = {
            name: bases.describe(model.path, from_flat({"quantize": bits}, config).base, model.licence)
            for bits, name in names.items()
        }
    rows = [
        {
            "base": name,
            "weights": size(spec.loaded_bytes),
            "bits a weight": f"{spec.bits_per_weight:.2f}",
            "adapters": f"{spec.trainable(config.lora) / 1e6:,.2f} M",
            "predicted peak": size(_estimate(spec, config, train_dataset).total),
        }
        for name, spec in choices.items()
    ]
    return mo.vstack([row_table(rows), _small(note)])


def run_choice(tracker: TrainingTracker) -> mo.ui.multiselect:
    """Runs that ended, of which two or more may be chosen; at first the newest two."""
    names = [run.name for run in tracker.runs() if run.summary()]
    return mo.ui.multiselect(names, value=names[:2], label="Runs", full_width=True)


def comparison(tracker: TrainingTracker, names: Sequence[str]) -> mo.Html:
    """Runs side by side, as `qlora compare` shows them."""
    if len(names) < 2:
        return _small("Two runs that ended are compared here: train one with --quantize none and one with 4, say.")
    return mo.plain_text("\n".join(compare([tracker.find(name) for name in names]).lines()))


def diagnosis(snapshot: Snapshot) -> mo.Html:
    """What the trainer warned of, and how a run that failed ended."""
    words = [event["message"] for event in snapshot.of_type("warning")]
    if snapshot.state == "failed":
        words.append(str(snapshot.status.get("message", "")))
    if snapshot.state == "crashed" and snapshot.run:
        words.append(jobs.last_words(snapshot.run))
    return (
        mo.callout(mo.plain_text("\n".join(words)), kind="warn") if words else _small("The trainer had no complaints.")
    )


def memory_now(monitor: MemoryMonitor) -> mo.Html:
    """What is free, and what this page takes."""
    sample = monitor.sample()
    return fact_table({"Memory": f"{size(sample.available)} available; this page takes {size(sample.process)}"})


def memory_check(model: ModelSpec, config: RunConfig, train_dataset: TokenDataset) -> mo.Html:
    """The predicted peak against what is free now; the trainer asks the same before it loads anything."""
    estimate, available = _estimate(model, config, train_dataset), available_bytes()
    rows = {
        "Base": size(estimate.weights),
        "Dequantised": size(estimate.dense) if estimate.dense else "",
        "Activations": size(estimate.activations + estimate.attention),
        "Logits": size(estimate.logits),
        "Adapters": f"{size(estimate.adapters)}, with gradients and the optimizer's moments",
        "Predicted peak": f"{size(estimate.total)}, the program included",
        "Available": size(available),
    }
    verdict = attempt(fit.check_before_loading, estimate, available, config)
    fits = failure(verdict.message) if isinstance(verdict, Problem) else mo.callout("It fits.", kind="success")
    return mo.vstack([fact_table(rows), fits])


def _estimate(model: ModelSpec, config: RunConfig, train_dataset: TokenDataset) -> fit.MemoryEstimate:
    on_cpu = not bases.has_gpu()
    dense = fit.keeps_dense_weights(4 * model.parameters, available_bytes())
    return fit.estimate_memory(model, config, train_dataset.rows, keeps_dense=on_cpu and dense, on_gpu=not on_cpu)
