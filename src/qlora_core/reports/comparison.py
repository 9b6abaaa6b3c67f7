"""Runs side by side: facts, results, curves, settings and answers.

Reads run directories only, including those of runs in training. Terminal and page show the same values. Knows nothing
of mlx, and judges only whether numbers may be compared, and which is better.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..config import Role, to_flat
from ..errors import QLoraError, RunError
from ..models.adapter_files import ADAPTER_FILE, adapter_settings
from ..runs.run import Run
from ..runs.throughput import counted_seconds
from ..translations import say
from .in_language import duration, number, size
from .plain_text import one_line, section

COLUMNS = 100  # of the table, for two or three runs
LABEL, NARROWEST = 20, 20
NOTHING = "–"
_ROLES: tuple[Role, ...] = ("result", "length", "pace")  # locations differ between runs without a meaning


@dataclass(frozen=True)
class Curve:
    """The losses of a run over time.

    Attributes:
        training, validation: points `{"step", "tokens", "seconds", "loss"}`; tokens and seconds of training until
            there, loss in nats a token. Losses that were not finite are left out.
    """

    training: list[dict[str, float]]
    validation: list[dict[str, float]]


@dataclass(frozen=True)
class Row:
    """A line of the table: its label, each run's value as text, and which of the runs have the best one.

    Attributes:
        best: places of those runs; empty where there is no better or worse, or nothing to compare.
    """

    label: str
    values: list[str]
    best: frozenset[int]


@dataclass(frozen=True)
class Comparison:
    """Several runs and the differences between them.

    Attributes:
        runs: the facts of each run, `{name: value}`; None is what was not measured. Sizes are bytes, times seconds,
            losses nats a token.
        settings: `{name: [value of each run]}` of the settings that differ.
        same: `{name: value}` of the settings that do not.
        notes: reasons why some values must not be compared.
        samples: questions that all runs were asked: `{"question", "base": [answer …], "tuned": [answer …]}`, an answer
            of each run.
        curves: one of each run.
        incomparable: names of the facts that must not be compared.
    """

    runs: list[dict[str, Any]]
    settings: dict[str, list[Any]]
    same: dict[str, Any]
    notes: list[str]
    samples: list[dict[str, Any]]
    curves: list[Curve] = field(default_factory=list, repr=False)
    incomparable: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON may hold it; the curves are in the runs' own files."""
        return {name: getattr(self, name) for name in ("runs", "settings", "notes", "samples")}

    def table(self) -> list[Row]:
        """Return what the runs are and their results, one line for each fact."""
        return [Row(m.label, [m.show(run) for run in self.runs], self._best(m)) for m in MEASURES]

    def _best(self, measure: Measure) -> frozenset[int]:
        values = [measure.value(run) for run in self.runs] if measure.better else []
        known = {value for value in values if value is not None}
        if len(known) < 2 or measure.name in self.incomparable:
            return frozenset()
        best = min(known) if measure.better == "low" else max(known)
        return frozenset(place for place, value in enumerate(values) if value == best)

    def lines(self, samples: int = 6) -> list[str]:
        """Return the comparison as a terminal shows it, with some of the samples, spread over all."""
        heading = [f"{number}  {run['run']}" for number, run in enumerate(self.runs, 1)]
        table = in_columns([["", *heading], *([row.label, *row.values] for row in self.table())])
        if self.settings:
            rows = [[name, *map(setting_text, values)] for name, values in self.settings.items()]
            table += [*section("Settings that differ").split("\n"), *in_columns(rows)]
        if self.notes:
            wrapped = (textwrap.wrap(f"! {note}", COLUMNS, subsequent_indent="  ") for note in self.notes)
            table += ["", *(line for lines in wrapped for line in lines)]
        if self.samples:
            table += section("Answers").split("\n")
        for sample in self.samples[:: max(1, len(self.samples) // samples)][:samples]:
            table.append(f"  ? {one_line(sample['question'], COLUMNS - 4)}")
            same = len(set(sample["base"])) == 1
            answers = {"base": sample["base"][0]} if same else _numbered("base", sample["base"])
            answers |= _numbered("tuned", sample["tuned"])
            table += [f"    {name:<7}: {one_line(text, COLUMNS - 13)}" for name, text in answers.items()]
        return table


def compare(runs: Sequence[Run], least: int = 2) -> Comparison:
    """Compare runs side by side.

    Raises:
        RunError: there are fewer than `least`, or one of them cannot be read.
    """
    if len(runs) < least:
        raise RunError(f"{len(runs)} run given; wanted two or more to compare. `qlora runs` lists them.")
    flat = [{name: value for role in _ROLES for name, value in to_flat(run.config(), role).items()} for run in runs]
    values = {name: [one[name] for one in flat] for name in (flat[0] if flat else ())}
    differ = {name for name, found in values.items() if any(value != found[0] for value in found)}
    events = [run.metrics() for run in runs]
    evaluations = [run.evaluation() for run in runs]
    notes, incomparable = _notes(runs, evaluations)
    return Comparison(
        [_facts(run, happened) for run, happened in zip(runs, events, strict=True)],
        {name: found for name, found in values.items() if name in differ},
        {name: found[0] for name, found in values.items() if name not in differ},
        notes,
        _samples(evaluations),
        [_curve(happened) for happened in events],
        incomparable,
    )


# What is compared -------------------------------------------------------------------------------------------------


def _facts(run: Run, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the facts about a run."""
    model, adapter, evaluation = run.environment()["model"], _adapter(run), run.evaluation()
    loaded, parameters = model.get("loaded_bytes"), model.get("parameters")
    return {
        "run": run.name,
        "path": str(run.path),
        "state": run.state,
        "kind": _kind(model, adapter["type"]),
        "base": model["name"],
        "licence": model["licence"],
        "loaded_bytes": loaded,
        "bits_per_weight": 8 * loaded / parameters if loaded and parameters else None,
        "adapter": adapter["type"],
        "rank": run.config().lora.rank,
        "trainable": model.get("trainable"),
        "adapter_bytes": adapter["bytes"],
        **_results(run, events),
        "recall": evaluation["recall"] if evaluation else None,
    }


def _results(run: Run, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a run's results: its own summary if it ended, else what its events tell so far."""
    status = run.status()
    steps = [event for event in events if event["type"] == "step"]
    losses = [event["train_loss"] for event in steps if event.get("train_loss") is not None]
    tokens, seconds = sum(event.get("tokens", 0) for event in steps), float(_counted(steps).sum())
    so_far = {
        "best_val_loss": status.get("best_val_loss"),
        "best_step": status.get("best_step"),
        "training_seconds": seconds or None,
        "tokens_per_second": tokens / seconds if seconds else None,
        "peak_memory_bytes": max((event.get("peak_memory_bytes", 0) for event in steps), default=None),
        "peak_process_bytes": max((e.get("process_peak", 0) for e in events if e["type"] == "memory"), default=None),
    }
    found = {name: (run.summary() or so_far).get(name) for name in so_far}
    best = found["best_val_loss"]
    return {
        **found,
        "perplexity": None if best is None else math.exp(min(best, 700)),
        "train_loss": losses[-1] if losses else None,
        "steps": steps[-1]["step"] if steps else status.get("step"),
        "total_steps": status.get("total_steps"),
    }


def _curve(events: Sequence[dict[str, Any]]) -> Curve:
    tokens, seconds = 0, 0.0
    training, validation = [], []
    counted = iter(_counted([event for event in events if event["type"] == "step"]))
    for event in events:
        if event["type"] == "step":
            tokens, seconds = tokens + event.get("tokens", 0), seconds + float(next(counted))
        loss = event.get({"step": "train_loss", "eval": "val_loss"}.get(event["type"], ""))
        if loss is not None:
            point = {"step": event["step"], "tokens": tokens, "seconds": seconds, "loss": loss}
            (training if event["type"] == "step" else validation).append(point)
    return Curve(training, validation)


def _counted(steps: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the seconds that count for each step, without those of a machine that slept."""
    return counted_seconds([step.get("tokens", 0) for step in steps], [step.get("seconds", 0.0) for step in steps])


def _adapter(run: Run) -> dict[str, Any]:
    """Return type and size of the adapters that would be used, as far as there are any."""
    try:
        directory = run.adapters
        settings = adapter_settings(directory)
        name = {"lora": "LoRA", "dora": "DoRA"}.get(settings["fine_tune_type"], settings["fine_tune_type"])
        return {"type": name, "bytes": (directory / ADAPTER_FILE).stat().st_size}
    except (QLoraError, OSError, KeyError):
        return {"type": None, "bytes": None}


def _kind(model: dict[str, Any], adapter: str | None) -> str | None:
    if "bits" not in model:  # a run older than this record
        return None
    name = adapter or "LoRA"
    return f"Q{name}, {model['bits']} bits" if model["bits"] else f"{name}, unquantised"


_LOSSES = frozenset({"best_val_loss", "perplexity", "train_loss"})
OTHER_DATA = "The runs were trained and validated on different data: their losses are not comparable."
OTHER_TOKENS = "The runs cut text into tokens differently: losses and tokens/s are not comparable."
OTHER_QUESTIONS = "The runs were asked different questions: their recall is not comparable."


def _notes(runs: Sequence[Run], evaluations: Sequence[dict[str, Any] | None]) -> tuple[list[str], frozenset[str]]:
    """Return what must not be compared, in words, and as names of facts."""
    identities = [run.environment().get("identity", {}) for run in runs]

    def differ(what: str) -> bool:
        return any(identity.get(what) != identities[0].get(what) for identity in identities)

    asked = [[question["question"] for question in evaluation["questions"]] for evaluation in evaluations if evaluation]
    notes: dict[str, frozenset[str]] = {}
    if differ("data"):
        notes[OTHER_DATA] = _LOSSES
    if differ("tokeniser and template"):
        notes[OTHER_TOKENS] = _LOSSES | {"tokens_per_second"}
    if any(questions != asked[0] for questions in asked):
        notes[OTHER_QUESTIONS] = frozenset({"trained", "held_out"})
    return list(notes), frozenset().union(*notes.values())


def _samples(evaluations: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    if not evaluations or not all(evaluations):
        return []
    answers = [{entry["question"]: entry for entry in evaluation["questions"]} for evaluation in evaluations]
    shared = [question for question in answers[0] if all(question in one for one in answers)]
    return [
        {"question": question, **{who: [one[question][who] for one in answers] for who in ("base", "tuned")}}
        for question in shared
    ]


# How it is shown --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A fact of a run as a line of the table.

    Attributes:
        name: name of the fact.
        form: its text, where it is known.
        better: whether a lower or a higher number is the better one; empty: neither.
        text: the text made of the whole run instead.
    """

    label: str
    name: str
    form: Callable[[Any], str] = str
    better: Literal["", "low", "high"] = ""
    text: Callable[[dict[str, Any]], str] | None = None

    def value(self, run: dict[str, Any]) -> Any:
        """Return the fact, None if it is not known; for recall the share of correct answers."""
        if self.name not in ("trained", "held_out"):
            return run[self.name]
        count = (run["recall"] or {}).get(self.name)
        return count["tuned"] / count["questions"] if count and count["questions"] else None

    def show(self, run: dict[str, Any]) -> str:
        """Return the fact as text."""
        if self.text:
            return self.text(run)
        return NOTHING if self.value(run) is None else self.form(self.value(run))


def _recall(kind: str) -> Callable[[dict[str, Any]], str]:
    def show(run: dict[str, Any]) -> str:
        count = (run["recall"] or {}).get(kind)
        if not count:
            return NOTHING
        right, base = f"{count['tuned']}/{count['questions']}", count["base"]
        return say("{right}, base {base}", right=right, base=base)

    return show


def _steps(run: dict[str, Any]) -> str:
    if run["steps"] is None:
        return NOTHING
    total = number(run["total_steps"], "") if run["total_steps"] else NOTHING
    return say("{done} of {total}", done=number(run["steps"]), total=total)


def _kind_words(run: dict[str, Any]) -> str:
    """Return the kind of adapters and how the base is quantised, which `kind` holds in English."""
    name, _, rest = (run["kind"] or NOTHING).partition(", ")
    if rest.endswith(" bits"):
        return say("{kind}, {bits} bits", kind=name, bits=rest.removesuffix(" bits"))
    return say("{kind}, unquantised", kind=name) if rest else name


def _adapter_words(run: dict[str, Any]) -> str:
    return say("{adapter}, rank {rank}", adapter=run["adapter"] or NOTHING, rank=run["rank"])


def _numbers(form: str) -> Callable[[float], str]:
    return lambda value: number(value, form)


MEASURES = [
    Measure("State", "state", text=lambda run: say(run["state"])),
    Measure("Kind", "kind", text=_kind_words),
    Measure("Base", "base", text=lambda run: f"{run['base']}{', ' + run['licence'] if run['licence'] else ''}"),
    Measure("Base in memory", "loaded_bytes", size),
    Measure("Bits per weight", "bits_per_weight", _numbers(".2f")),
    Measure("Adapter", "adapter", text=_adapter_words),
    Measure("Trainable", "trainable", lambda count: say("{count} parameters", count=number(count))),
    Measure("Adapter file", "adapter_bytes", size),
    Measure("Best validation loss", "best_val_loss", _numbers(".4f"), "low"),
    Measure("Perplexity", "perplexity", _numbers(",.2f"), "low"),
    Measure("Last training loss", "train_loss", _numbers(".4f")),
    Measure("Steps", "steps", text=_steps),
    Measure("Training time", "training_seconds", duration),
    Measure("Speed, tokens/s", "tokens_per_second", _numbers(",.0f"), "high"),
    Measure("Peak memory, arrays", "peak_memory_bytes", size, "low"),
    Measure("Peak memory, process", "peak_process_bytes", size, "low"),
    Measure("Facts recalled, trained wording", "trained", better="high", text=_recall("trained")),
    Measure("Facts recalled, new wording", "held_out", better="high", text=_recall("held_out")),
]


def setting_text(value: Any) -> str:
    """Return a setting's value for people."""
    if isinstance(value, (tuple, list)):
        value = " ".join(map(str, value))
    return NOTHING if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def _numbered(name: str, texts: Sequence[str]) -> dict[str, str]:
    return {f"{name} {number}": text for number, text in enumerate(texts, 1)}


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a label and a column for each run; a value too long for its column goes on in the next line."""
    count = len(rows[0]) - 1
    width = max(NARROWEST, (COLUMNS - LABEL) // count - 2)
    lines = []
    for label, *values in rows:
        cells = [textwrap.wrap(value, width) or [""] for value in values]
        labels = textwrap.wrap(label, LABEL) or [""]
        for i in range(max(map(len, [labels, *cells]))):
            parts = [f"{cell[i] if i < len(cell) else '':<{width}}" for cell in cells]
            lines.append("  ".join([f"{labels[i] if i < len(labels) else '':<{LABEL}}", *parts]).rstrip())
    return lines
