"""Export of a run's result: purposes, sizes, choices, and `qlora export` in its own process.

Reads run directories and allows one export at a time. Finds existing exports on disk, whoever made them. Knows nothing
of mlx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import marimo as mo

from ..errors import BusyError, QLoraError
from ..exports.destination import METRICS_FILE
from ..exports.formats import FORMATS, place_here
from ..exports.source import adapters_to_export
from ..exports.verification import verdict, verified
from ..files.untrusted_json import TABLE_BYTES, read_object
from ..gguf.blocks import KINDS
from ..reports.in_language import moment, number, size
from ..runs.run import Run
from ..translations import say
from .commands import Desk, Working, what_it_does
from .look import empty, fact_table, field, fields, folded, note, row_table, small, text_block
from .problems import failure


@dataclass(frozen=True)
class Exports:
    """A run's exports at one moment.

    Attributes:
        run: the run; None before there is any.
        ready: there are adapters to export.
        made: `{kind: when it was made}`, in seconds since 1970, of those that are there.
        running: the kind that is being made now; empty if none is.
        elsewhere: the run whose export is being made, if it is another one.
        problem: why the last one of this run failed.
        working: what is being done for the one under way.
    """

    run: Run | None = None
    ready: bool = False
    made: tuple[tuple[str, float], ...] = ()
    running: str = ""
    elsewhere: str = ""
    problem: str = ""
    working: Working | None = None

    @property
    def adapters(self) -> tuple[str, ...]:
        """Return the names of the adapters that can be exported."""
        return adapters_to_export(self.run) if self.run else ()

    @property
    def progress(self) -> tuple[Any, ...]:
        """Return a mark that changes also with what is being done."""
        return (*self.version, self.working)

    @property
    def version(self) -> tuple[Any, ...]:
        """Return a mark that changes with everything that is worth drawing again."""
        name = str(self.run.path) if self.run else ""
        return (name, self.ready, self.made, self.running, self.elsewhere, self.problem)


_desk = Desk()
"""Sends exports, one at a time."""


def look(run: Run | None) -> Exports:
    """Read what is there, and how the export under way is getting on."""
    if run is None:
        return Exports()
    made = tuple(
        (kind, facts.stat().st_mtime) for kind in FORMATS if (facts := directory(run, kind) / METRICS_FILE).is_file()
    )
    ready = any(path.is_dir() for path in (run.best, run.final))
    now = _desk.look(run)
    return Exports(run, ready, made, now.kind if now.running else "", now.elsewhere, now.problem, now.working)


def directory(run: Run, kind: str) -> Path:
    """Return where an export lies."""
    return run.exports / kind


def start(run: Run | None, kind: str | None, chosen: Mapping[str, Any] | None = None) -> None:
    """Start an export; an existing one is replaced.

    Args:
        run: whose result.
        kind: the format.
        chosen: values of `choices`.

    Raises:
        QLoraError: there is no run, or nothing chosen.
        BusyError: another export is under way.
    """
    if run is None or kind is None:
        raise QLoraError(say("Train a run first, and choose what to export."))
    out = directory(run, kind)
    given = [run.name, "--runs-dir", str(run.path.parent), "--to", kind, "--out", str(out), "--force"]
    given += flags(chosen or {})
    if not _desk.send(run, ["export", *given], kind):
        raise BusyError(say("An export is under way already: wait for it."))


def flags(chosen: Mapping[str, Any]) -> list[str]:
    """Return the flags of `qlora export` for the values of `choices`."""
    given = []
    for name, value in chosen.items():
        if value:
            given += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    return given


# What is shown --------------------------------------------------------------------------------------------------


def menu() -> mo.ui.radio:
    """Return the choice of what to export."""
    options = {say(form.title): kind for kind, form in FORMATS.items()}
    return mo.ui.radio(options, value=next(iter(options)), label=say("What to export"))


def explained(exports: Exports) -> mo.Html:
    """Return what each kind is for, its size, and whether it is there."""
    if exports.run is None or not exports.ready:
        return empty(say("There is something to export from the first validation on: train a run first."))
    made = dict(exports.made)
    columns = [say("Kind"), say("What for"), say("Approx. size"), say("Exported")]
    rows = []
    for kind, form in FORMATS.items():
        predicted = form.predicted_bytes(exports.run)
        cells = (say(form.title), say(form.purpose), size(predicted) if predicted else "–", _when(made.get(kind)))
        rows.append(dict(zip(columns, cells, strict=True)))
    return row_table(rows, numbers=[columns[2]])


def choices(kind: str | None, adapters: Sequence[str]) -> mo.ui.dictionary:
    """Return an element for each thing about an export that its format leaves to the user, by the flag's name.

    Args:
        kind: the format.
        adapters: names of the adapters that there are, the usual ones first; there is nothing to choose of one.
    """
    takes = FORMATS[kind].takes if kind in FORMATS and adapters else ()
    elements: dict[str, Any] = {}
    if kind in FORMATS and len(adapters) > 1:
        named = {_adapters_words(name): name for name in adapters}
        elements["checkpoint"] = _menu(named, say("Which adapters"))
    if "bits" in takes:
        elements["bits"] = _menu(_bits(), say("Bits of a weight"))
    if "type" in takes:
        elements["type"] = _menu(_types(kind), say("How numbers are stored"))
    if "with_base" in takes:
        elements["with_base"] = mo.ui.checkbox(label=say("Write the base beside it"))
    if "strict" in takes:
        elements["strict"] = mo.ui.checkbox(label=say("Refuse it if it lost something"))
    return mo.ui.dictionary(elements)


def choices_layout(elements: mo.ui.dictionary) -> mo.Html | None:
    """Return the choices, folded, each with what it means; None if there is nothing to choose."""
    if not elements.elements:
        return None
    meanings = {
        "checkpoint": say("A checkpoint keeps what was learnt up to its step."),
        "bits": say("Fewer make it smaller, and lose something from some point on."),
        "type": say("Types that llama.cpp reads. Other programs may not read all of them."),
        "with_base": say("For a llama.cpp that has not got it yet. It keeps the bits that it was trained on."),
        "strict": say("More than 0.01 nats a token: then nothing is written, and what was there stays."),
    }
    shown = [field(element, meanings[name]) for name, element in elements.elements.items()]
    return folded(say("More about this export"), fields(shown))


def _menu(options: Mapping[str, str], label: str) -> mo.ui.dropdown:
    """Return a menu of values by their names, the first one chosen."""
    return mo.ui.dropdown(options, value=next(iter(options)), label=label, allow_select_none=False, full_width=True)


def _adapters_words(name: str) -> str:
    kept = {"best": say("the best"), "final": say("the last, of the end of training")}
    return kept.get(name) or say("those of step {step}", step=number(int(name)))


def _bits() -> dict[str, str]:
    named = {
        say("as few as lose nothing"): "auto",
        say("a mixture, more where fewer do most harm"): "mixed",
        say("16: nothing is rounded"): "16",
    }
    return named | {bits: bits for bits in ("8", "6", "5", "4")}


def _types(kind: str | None) -> dict[str, str]:
    known = {
        "q8_0": say("Q8_0: 8 bits, as good as nothing lost"),
        "as-stored": say("as the base stores them"),
    }
    usual = {say("base and adapters apart, nothing lost"): ""} if kind == "ollama" else {}
    order = ("q8_0", *(each for each in KINDS if each != "q8_0"))
    return usual | {known.get(each, each.upper()): each for each in order}


def _when(seconds: float | None) -> str:
    return moment(seconds) if seconds else "–"


def button(exports: Exports, kind: str | None) -> mo.ui.run_button:
    """Return the button that starts an export and says whether it replaces one."""
    there = kind in dict(exports.made)
    label = say("Export again, replacing what is there") if there else say("Export")
    return mo.ui.run_button(label=label, disabled=not exports.ready or bool(exports.running or exports.elsewhere))


def result(exports: Exports, kind: str | None) -> mo.Html | None:
    """Return the progress of the export; afterwards where the chosen one lies and how to use it."""
    run = exports.run
    if run is None or not exports.ready or kind is None:
        return None
    if exports.running:
        return mo.vstack([note(_under_way(exports.running)), *what_it_does(exports.working)], gap=0.5)
    if exports.elsewhere:
        return note(say("{run} is being exported. One at a time: wait for it.", run=exports.elsewhere))
    failed = [failure(exports.problem)] if exports.problem else []
    if kind not in dict(exports.made):
        warn = [small(say("It loads the whole model: not while another one is being trained."))]
        return mo.vstack([*failed, *(warn if FORMATS[kind].loads_model else [])]) if failed or warn else None
    there = directory(run, kind)
    taken = sum(path.stat().st_size for path in there.iterdir() if path.is_file())
    found, adapters = verified(there), _adapters_of(there)
    facts = {
        say("Location"): str(there.absolute()),
        say("Size"): size(taken),
        say("Adapters"): _adapters_words(adapters) if adapters else "",
        say("Compared with the run"): verdict(found) if found else "",
    }
    use = FORMATS[kind].use(place_here(run, there.absolute()))
    return mo.vstack([*failed, fact_table(facts), text_block("\n".join(use))], gap=0.75)


def _under_way(kind: str) -> str:
    form = FORMATS[kind]
    return say("Exporting “{kind}” … You can close this page.", kind=say(form.title))


def _adapters_of(directory: Path) -> str:
    """Return the name of the adapters that an export holds; empty if it does not say."""
    try:
        name = read_object(directory / METRICS_FILE, TABLE_BYTES).get("adapters")
    except (OSError, ValueError):
        return ""
    return name if isinstance(name, str) and (name in ("best", "final") or name.isdecimal()) else ""
