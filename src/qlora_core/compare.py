"""Runs side by side: what they are, what came of them, where their settings differ, and what they answer.

Reads run directories only, also of runs that are being trained. Knows nothing of mlx, and judges nothing but whether
numbers may be compared at all.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .adapters import ADAPTER_FILE, adapter_settings
from .config import Role, to_flat
from .console import duration, one_line, section, size
from .errors import RunError
from .runs import Run

COLUMNS = 100  # of the table, for two or three runs
LABEL, NARROWEST = 18, 20
NOTHING = "–"
_ROLES: tuple[Role, ...] = ("result", "length", "pace")  # where things lie tells runs apart, but says nothing


@dataclass(frozen=True)
class Comparison:
    """Some runs and what tells them apart.

    Attributes:
        runs: the facts of each run, `{name: value}`; None is what was not measured. Sizes are bytes, times seconds,
            losses nats a token.
        settings: `{name: [value of each run]}` of the settings that differ.
        notes: what must not be compared, and why.
        samples: questions that all runs were asked: `{"question", "base": [answer …], "tuned": [answer …]}`, an answer
            of each run.
    """

    runs: list[dict[str, Any]]
    settings: dict[str, list[Any]]
    notes: list[str]
    samples: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON may hold it."""
        return asdict(self)

    def lines(self, samples: int = 6) -> list[str]:
        """The comparison as a terminal shows it, with some of the samples, spread over all."""
        heading = [f"{number}  {run['run']}" for number, run in enumerate(self.runs, 1)]
        table = _table([["", *heading], *([label, *map(show, self.runs)] for label, show in _ROWS)])
        if self.settings:
            rows = [[name, *map(_setting, values)] for name, values in self.settings.items()]
            table += [*section("Settings that differ").split("\n"), *_table(rows)]
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


def compare(runs: Sequence[Run]) -> Comparison:
    """Put runs side by side.

    Raises:
        RunError: there are fewer than two, or one of them cannot be read.
    """
    if len(runs) < 2:
        raise RunError(f"{len(runs)} run given; wanted two or more to compare. `qlora runs` lists them.")
    flat = [{name: value for role in _ROLES for name, value in to_flat(run.config(), role).items()} for run in runs]
    settings = {
        name: [one[name] for one in flat] for name in flat[0] if any(one[name] != flat[0][name] for one in flat)
    }
    evaluations = [run.evaluation() for run in runs]
    return Comparison([_facts(run) for run in runs], settings, _notes(runs, evaluations), _samples(evaluations))


# What is compared -------------------------------------------------------------------------------------------------


def _facts(run: Run) -> dict[str, Any]:
    """What a run is."""
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
        **_results(run),
        "recall": evaluation["recall"] if evaluation else None,
    }


def _results(run: Run) -> dict[str, Any]:
    """What came of it: of a run that ended its own summary, else what its events tell so far."""
    status, events = run.status(), run.metrics()
    steps = [event for event in events if event["type"] == "step"]
    losses = [event["train_loss"] for event in steps if event["train_loss"] is not None]
    seconds = sum(event["seconds"] for event in steps)
    so_far = {
        "best_val_loss": status.get("best_val_loss"),
        "best_step": status.get("best_step"),
        "training_seconds": seconds or None,
        "tokens_per_second": sum(event["tokens"] for event in steps) / seconds if seconds else None,
        "peak_memory_bytes": max((event["peak_memory_bytes"] for event in steps), default=None),
        "peak_process_bytes": max((e["process_peak"] for e in events if e["type"] == "memory"), default=None),
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


def _adapter(run: Run) -> dict[str, Any]:
    """Type and size of the adapters that would be used, as far as there are any."""
    try:
        directory = run.adapters
        settings = adapter_settings(directory)
        name = {"lora": "LoRA", "dora": "DoRA"}.get(settings["fine_tune_type"], settings["fine_tune_type"])
        return {"type": name, "bytes": (directory / ADAPTER_FILE).stat().st_size}
    except (RunError, OSError, ValueError, KeyError):
        return {"type": None, "bytes": None}


def _kind(model: dict[str, Any], adapter: str | None) -> str | None:
    if "bits" not in model:  # a run that was made before this was recorded
        return None
    name = adapter or "LoRA"
    return f"Q{name}, {model['bits']} bits" if model["bits"] else f"{name}, unquantised"


def _notes(runs: Sequence[Run], evaluations: Sequence[dict[str, Any] | None]) -> list[str]:
    identities = [run.environment().get("identity", {}) for run in runs]

    def differ(what: str) -> bool:
        return any(identity.get(what) != identities[0].get(what) for identity in identities)

    asked = [[question["question"] for question in evaluation["questions"]] for evaluation in evaluations if evaluation]
    notes = []
    if differ("data"):
        notes.append("The runs were trained and validated on different data: their losses are not comparable.")
    if differ("tokeniser and template"):
        notes.append("The runs cut text into tokens differently: losses and tokens/s are not comparable.")
    if any(questions != asked[0] for questions in asked):
        notes.append("The runs were asked different questions: their recall is not comparable.")
    return notes


def _samples(evaluations: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    if not all(evaluations):
        return []
    answers = [{entry["question"]: entry for entry in evaluation["questions"]} for evaluation in evaluations]
    shared = [question for question in answers[0] if all(question in one for one in answers)]
    return [
        {"question": question, **{who: [one[question][who] for one in answers] for who in ("base", "tuned")}}
        for question in shared
    ]


# How it is shown --------------------------------------------------------------------------------------------------


def _known(name: str, form: Callable[[Any], str]) -> Callable[[dict[str, Any]], str]:
    return lambda run: NOTHING if run[name] is None else form(run[name])


def _recall(kind: str) -> Callable[[dict[str, Any]], str]:
    def show(run: dict[str, Any]) -> str:
        count = (run["recall"] or {}).get(kind)
        return f"{count['tuned']}/{count['questions']}, base {count['base']}" if count else NOTHING

    return show


def _steps(run: dict[str, Any]) -> str:
    return NOTHING if run["steps"] is None else f"{run['steps']:,} of {run['total_steps'] or NOTHING}"


_ROWS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("State", _known("state", str)),
    ("Kind", _known("kind", str)),
    ("Base", lambda run: f"{run['base']}{', ' + run['licence'] if run['licence'] else ''}"),
    ("Base in memory", _known("loaded_bytes", size)),
    ("Bits per weight", _known("bits_per_weight", "{:.2f}".format)),
    ("Adapter", lambda run: f"{run['adapter'] or NOTHING}, rank {run['rank']}"),
    ("Trainable", _known("trainable", "{:,} parameters".format)),
    ("Adapter file", _known("adapter_bytes", size)),
    ("Best val loss", _known("best_val_loss", "{:.4f}".format)),
    ("Perplexity", _known("perplexity", "{:,.2f}".format)),
    ("Last train loss", _known("train_loss", "{:.4f}".format)),
    ("Steps", _steps),
    ("Training time", _known("training_seconds", duration)),
    ("Tokens/s", _known("tokens_per_second", "{:,.0f}".format)),
    ("Peak, arrays", _known("peak_memory_bytes", size)),
    ("Peak, process", _known("peak_process_bytes", size)),
    ("Recall, trained", _recall("trained")),
    ("Recall, held out", _recall("held_out")),
]


def _setting(value: Any) -> str:
    return NOTHING if value in (None, "", ()) else f"{value:g}" if isinstance(value, float) else str(value)


def _numbered(name: str, texts: Sequence[str]) -> dict[str, str]:
    return {f"{name} {number}": text for number, text in enumerate(texts, 1)}


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A label and a column a run; what is too long for its column goes on in the next line."""
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
