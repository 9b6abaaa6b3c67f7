"""Export of a run's result: purposes, sizes, and `qlora export` in its own process.

Reads run directories and allows one export at a time. Finds existing exports on disk, whoever made them. Knows nothing
of mlx.
"""

from __future__ import annotations

import datetime
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import marimo as mo

from ..errors import BusyError, QLoraError
from ..exports.destination import METRICS_FILE
from ..exports.formats import FORMATS, place_here
from ..exports.verification import verdict, verified
from ..reports.plain_text import size
from ..runs.run import Run
from ..translations import say
from .commands import Job
from .look import empty, fact_table, note, row_table, small, text_block
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
    """

    run: Run | None = None
    ready: bool = False
    made: tuple[tuple[str, float], ...] = ()
    running: str = ""
    elsewhere: str = ""
    problem: str = ""

    @property
    def version(self) -> tuple[Any, ...]:
        """Return a mark that changes with everything that is worth drawing again."""
        name = str(self.run.path) if self.run else ""
        return (name, self.ready, self.made, self.running, self.elsewhere, self.problem)


class _Desk:
    """The export under way, at most one, for all pages of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.job: Job | None = None
        self.run: Path | None = None
        self.kind = ""


_desk = _Desk()


def look(run: Run | None) -> Exports:
    """Read what is there, and how the export under way is getting on."""
    if run is None:
        return Exports()
    made = tuple(
        (kind, facts.stat().st_mtime) for kind in FORMATS if (facts := directory(run, kind) / METRICS_FILE).is_file()
    )
    ready = any(path.is_dir() for path in (run.best, run.final))
    with _desk.lock:
        job, ours, kind = _desk.job, _desk.run == run.path.absolute(), _desk.kind
    if job is None:
        return Exports(run, ready, made)
    if job.running:
        return Exports(run, ready, made, kind if ours else "", "" if ours or not _desk.run else _desk.run.name)
    return Exports(run, ready, made, problem=_problem(job) if ours else "")


def _problem(job: Job) -> str:
    try:
        job.result()
    except QLoraError as error:
        return str(error)
    return ""


def directory(run: Run, kind: str) -> Path:
    """Return where an export lies."""
    return run.path / "export" / kind


def start(run: Run | None, kind: str | None) -> None:
    """Start an export; an existing one is replaced.

    Raises:
        QLoraError: there is no run, or nothing chosen.
        BusyError: another export is under way.
    """
    if run is None or kind is None:
        raise QLoraError(say("Train a run first, and choose what to export."))
    out = directory(run, kind)
    given = [run.name, "--runs-dir", str(run.path.parent), "--to", kind, "--out", str(out), "--force"]
    with _desk.lock:
        if _desk.job is not None and _desk.job.running:
            raise BusyError(say("An export is under way already: wait for it."))
        _desk.job, _desk.run, _desk.kind = Job(["export", *given]), run.path.absolute(), kind


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
    columns = [say("Kind"), say("What for"), say("Size, about"), say("There already")]
    rows = []
    for kind, form in FORMATS.items():
        predicted = form.predicted_bytes(exports.run)
        cells = (say(form.title), say(form.purpose), size(predicted) if predicted else "–", _when(made.get(kind)))
        rows.append(dict(zip(columns, cells, strict=True)))
    return row_table(rows, numbers=[columns[2]])


def _when(seconds: float | None) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M") if seconds else "–"


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
        return note(say("Exporting: {kind}. This page may be closed meanwhile.", kind=exports.running))
    if exports.elsewhere:
        return note(say("{run} is being exported. One at a time: wait for it.", run=exports.elsewhere))
    failed = [failure(exports.problem)] if exports.problem else []
    if kind not in dict(exports.made):
        warn = [small(say("It loads the whole model: not while another one is being trained."))]
        return mo.vstack([*failed, *(warn if FORMATS[kind].loads_model else [])]) if failed or warn else None
    there = directory(run, kind)
    taken = sum(path.stat().st_size for path in there.iterdir() if path.is_file())
    found = verified(there)
    facts = {
        say("It lies in"): str(there.absolute()),
        say("Size"): size(taken),
        say("Compared with the run"): verdict(found) if found else "",
    }
    use = FORMATS[kind].use(place_here(run, there.absolute()))
    return mo.vstack([*failed, fact_table(facts), text_block("\n".join(use))], gap=0.75)
