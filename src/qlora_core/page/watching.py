"""A run at one moment, and the choice of the run that the page is about.

Reads run directories. Knows nothing of how it is shown.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import marimo as mo
import numpy as np

from ..jobs import launch
from ..reports.charts import stride
from ..runs.metrics import EVAL_FIELDS, STEP_FIELDS, Columns, GrowingTable, MetricsReader
from ..runs.plan import TrainingPlan, TrainingTracker
from ..runs.run import Run
from ..runs.time_estimate import TimeEstimate, left
from .language import read_only
from .problems import Problem, attempt

SHARPNESS = 4  # a chart is redrawn when its last point moved by one in this many


def followed(now: Any, *marks: str) -> tuple[Any, ...]:
    """Make states of the page for marks of one value, each set anew when its mark changed.

    Args:
        now: the value as it is.
        marks: attributes of the value that tell whether it is another one; "" or none at all: the value itself.

    Returns:
        A getter for each mark, and last the function to call with every new look at the value.
    """
    states = [(mark, *mo.state(now)) for mark in marks or ("",)]

    def follow(new: Any) -> None:
        for mark, get, set in states:
            if _marked(new, mark) != _marked(get(), mark):
                set(new)

    return (*(get for _, get, _ in states), follow)


def _marked(value: Any, mark: str) -> Any:
    return getattr(value, mark) if mark else value


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment. Two are equal when nothing worth drawing changed in between.

    Attributes:
        run: the one that is looked at; None before there is any.
        state: state of the run.
        asked: `pause`, `stop` or `skip` while the trainer has not got round to it.
        alive: whether it is being trained.
        version: changes with everything that is worth showing again.
        phase: what buttons and results depend on: the run that may be trained, the one that is looked at, and their
            states; it changes a few times in a run.
        drawing: changes when a chart would look different, or the log grew.
        exit_status: exit status of a crashed run's process; None if nobody saw it end.
        status: the trainer's last word.
        steps: a row an optimizer step.
        evals: a row a validation.
        events: everything else that was recorded.
        recent: the last events that are not steps.
    """

    run: Run | None = field(default=None, compare=False)  # compared through `version`, which holds its name
    state: str = "new"
    asked: str = "run"
    alive: bool = False
    version: tuple[Any, ...] = ()
    phase: tuple[Any, ...] = ()
    drawing: tuple[Any, ...] = ()
    exit_status: int | None = field(default=None, compare=False)
    status: Mapping[str, Any] = field(default_factory=dict, compare=False)
    steps: Columns = field(default_factory=lambda: GrowingTable(STEP_FIELDS).columns(), compare=False)
    evals: Columns = field(default_factory=lambda: GrowingTable(EVAL_FIELDS).columns(), compare=False)
    events: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)
    recent: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)

    def of_type(self, kind: str) -> list[Mapping[str, Any]]:
        """Return the events of one type; steps and validations are columns."""
        return [event for event in self.events if event["type"] == kind]

    def last(self, name: str) -> float | None:
        """Return a number of the last step; None if there is none, or if it was not finite."""
        values = self.steps[name]
        return float(values[-1]) if len(values) and np.isfinite(values[-1]) else None

    @functools.cached_property
    def time_left(self) -> TimeEstimate | None:
        """Return how long steps, validations, samples, saving and the final test still take; None before any is known.

        Of a run that nobody trains: how long it would take if it went on now.
        """
        if self.run is None or not self.status.get("total_steps"):
            return None
        if self.state in ("completed", "stopped"):
            return TimeEstimate()
        known = self.status, self.steps, self.evals, self.events
        estimated = attempt(left, self.run, *known, stopping=self.asked == "stop")
        return None if isinstance(estimated, Problem) else estimated

    @property
    def step(self) -> int:
        """Return the optimizer steps done."""
        return max(int(self.status.get("step", 0)), int(self.last("step") or 0))


def _directory(run: Run) -> tuple[int, int] | None:
    """Return what tells a run's directory from all others and outlives renaming: its device and inode."""
    try:
        found = run.path.stat()
    except OSError:  # deleted meanwhile
        return None
    return found.st_dev, found.st_ino


class RunWatcher:
    """An observer of the run that matters: one in training, else the planned one, else the last one seen.

    Args:
        tracker: the tracker of all runs.
        chosen: name of a run to look at from the beginning; empty: the active one.

    Attributes:
        active: the run that may be trained, paused and stopped.
        run: the run that is looked at: the active one, unless another was chosen.
        chosen: its name, if it was.
    """

    def __init__(self, tracker: TrainingTracker, chosen: str = "") -> None:
        self.tracker = tracker
        self.active: Run | None = None
        self.run: Run | None = None
        self.chosen = chosen
        self._reader: MetricsReader | None = None
        self._directories: dict[str, tuple[int, int]] = {}

    def look(self, plan: TrainingPlan | Problem, chosen: str | None = None) -> Snapshot:
        """Read what is new of the chosen run, else of the active one."""
        active = self._choose(plan.run if isinstance(plan, TrainingPlan) else None)
        self.active = self._now(active) if active else None
        other = self._now(Run(self.tracker.runs_dir / chosen)) if chosen else None
        self.chosen = other.name if other else ""
        self.run = other if other and other.exists else self.active
        if self.run is None:
            return Snapshot()
        if self._reader is None or self._reader.path != self.run.metrics_file:
            self._reader = MetricsReader(self.run.metrics_file)
        return self._read(self.run, self._reader)

    def _read(self, run: Run, reader: MetricsReader) -> Snapshot:
        alive, state, status = run.alive, run.state, run.status()
        asked = run.control() if alive else "run"
        exit_status = launch.exit_status(run) if state == "crashed" else None
        reader.poll()  # read after the state, so that the events of a run that just ended are complete
        steps = len(reader.steps)
        other = len(reader.evals), len(reader.events), reader.generation
        drawn = steps // max(1, stride(steps) // SHARPNESS) if alive else steps
        testing = (status.get("work") or {}).get("stage") == "evaluation" and alive  # Stop is Skip then
        shown = (run.name, state, alive, asked, exit_status, testing)  # a complete run may still be writing its result
        return Snapshot(
            run=run,
            state=state,
            asked=asked,
            alive=alive,
            version=(*shown, steps, *other, status.get("time")),
            phase=(*self._about_active(), *shown),
            drawing=(run.name, state, alive, drawn, *other),
            exit_status=exit_status,
            status=status,
            steps=reader.steps.columns(),
            evals=reader.evals.columns(),
            events=tuple(reader.events),
            recent=tuple(reader.recent),
        )

    def _about_active(self) -> tuple[Any, ...]:
        run = self.active
        if run is None:
            return ()
        alive = run.alive
        testing = (run.status().get("work") or {}).get("stage") == "evaluation"
        return run.name, run.state, alive, (run.control(), testing) if alive else "run"

    def _now(self, run: Run) -> Run:
        """Return a run that was looked at before, under the name that it was given since, whoever did so."""
        if run.exists:
            self._directories[run.name] = _directory(run)
            return run
        known = self._directories.get(run.name)
        return next((other for other in self.tracker.runs() if _directory(other) == known), run) if known else run

    def request(self, what: str) -> None:
        """Ask the active run's trainer to pause, to stop, or to skip a check; at the final test, Stop skips it."""
        if self.active is not None and self.active.alive and not read_only():
            testing = (self.active.status().get("work") or {}).get("stage") == "evaluation"
            what = "skip" if what == "stop" and testing else what
            self.active.request(what)  # type: ignore[arg-type]

    def _choose(self, planned: Run | None) -> Run | None:
        if self.active is not None and self.active.alive:
            return self.active
        if planned is not None and planned.alive:
            return planned
        alive = next((run for run in self.tracker.runs() if run.alive), None)
        if alive is not None or planned is None:
            return alive or self.active
        return planned if planned.exists or self.active is None else self.active
