"""A run at one moment, and which run the page is about.

Reads run directories. Knows nothing of how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..runs import MetricsReader, Run, TrainingPlan, TrainingTracker
from .problems import Problem


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
