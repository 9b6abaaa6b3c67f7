"""Read `metrics.jsonl` as it grows: steps and validations as columns, the rest as events.

A run may have 100,000 steps and be polled every second: each poll parses only what was added. Knows nothing of what the
numbers mean or how they are drawn.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .schema import is_event

Columns = Mapping[str, np.ndarray]
"""Values of each field by its name, float64; NaN if a value was not recorded or not a finite number."""

STEP_FIELDS = ("step", "epoch", "train_loss", "learning_rate", "grad_norm", "tokens", "seconds", "tokens_per_second",
               "peak_memory_bytes", "available_memory_bytes", "cpu_percent")  # fmt: skip
EVAL_FIELDS = ("step", "val_loss", "seconds")
RECENT = 200  # most recent events that are kept for a log

_decode = msgspec.json.Decoder().decode  # four times as fast as json.loads


class GrowingTable:
    """A table of numbers that rows are appended to, read as columns.

    Appending costs the same however many rows there are.

    Args:
        names: names of the fields; other fields are ignored.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._count = 0
        self._table = np.empty((len(names), 0))

    def __len__(self) -> int:
        return self._count

    def extend(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows."""
        end = self._count + len(rows)
        if end > self._table.shape[1]:
            larger = np.empty((len(self.names), max(2 * self._count, end, 256)))
            larger[:, : self._count] = self._table[:, : self._count]
            self._table = larger
        for column, name in zip(self._table, self.names, strict=True):
            column[self._count : end] = np.array([row.get(name) for row in rows], np.float64)  # None becomes NaN
        self._count = end

    def cut(self, step: float) -> None:
        """Remove the rows after a step. Columns returned earlier do not change."""
        filled = self._table[:, : self._count]
        self._table = filled[:, filled[0] <= step]
        self._count = self._table.shape[1]

    def columns(self) -> Columns:
        """Return all rows so far as read-only columns, which do not change when rows are appended."""
        views = self._table[:, : self._count]
        views.flags.writeable = False
        return dict(zip(self.names, views, strict=True))


class MetricsReader:
    """Reads a run's metrics as they grow; each `poll` parses only what was added.

    A half-written last line is left for the next time. When a run resumes from an older checkpoint, what was recorded
    after that step is removed, and `generation` changes.

    Attributes:
        steps: one row for each optimizer step.
        evals: one row for each validation.
        events: all other events.
        recent: the last events that are not steps, for a log, from which nothing is removed.
        generation: changes when something was removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin()
        self.generation = 0

    def _begin(self) -> None:
        self.steps, self.evals = GrowingTable(STEP_FIELDS), GrowingTable(EVAL_FIELDS)
        self.events: list[dict[str, Any]] = []
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._offset = 0

    def poll(self) -> bool:
        """Read what is new; return whether there was anything."""
        chunk = self._read()
        waiting: dict[str, list[dict[str, Any]]] = {"step": [], "eval": []}
        for event in parse(chunk):
            kind = event.get("type")
            if kind != "step":
                self.recent.append(event)
            if kind in waiting:
                waiting[kind].append(event)
                continue
            if kind == "start":
                self._take(waiting)
                self._go_back(event)
            self.events.append(event)
        self._take(waiting)
        return bool(chunk)

    def _read(self) -> bytes:
        if not self.path.is_file():
            return b""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:  # a new run of the same name has replaced this one
                    self._begin()
                    self.generation += 1
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return b""
        chunk = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(chunk)
        return chunk

    def _take(self, waiting: dict[str, list[dict[str, Any]]]) -> None:
        for table, kind in ((self.steps, "step"), (self.evals, "eval")):
            if waiting[kind]:
                table.extend(waiting[kind])
                waiting[kind] = []

    def _go_back(self, start: Mapping[str, Any]) -> None:
        """Remove what came after the step that training starts from."""
        if not (self.steps or self.evals or self.events):
            return
        self.generation += 1
        step = start.get("step", 0)
        self.events = [event for event in self.events if _stays(event, step)]
        self.steps.cut(step)
        self.evals.cut(step)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return all events in order, without those undone by resuming from an older checkpoint."""
    if not path.is_file():
        return []
    lines = path.read_bytes()
    events: list[dict[str, Any]] = []
    for event in parse(lines[: lines.rfind(b"\n") + 1]):
        if event.get("type") == "start":
            events = [earlier for earlier in events if _stays(earlier, event.get("step", 0))]
        events.append(event)
    return events


def events_of(path: Path, kinds: Sequence[str], last: int = 0) -> list[dict[str, Any]]:
    """Return the events of some types, also those undone by a resume; only the `last` ones if it is not 0.

    Other lines are not parsed, so that 100,000 steps do not delay whoever wants to know the validations.
    """
    if not path.is_file():
        return []
    begins = tuple(f'{{"type": "{kind}"'.encode() for kind in kinds)
    lines = path.read_bytes()
    chosen = [line for line in lines[: lines.rfind(b"\n") + 1].split(b"\n") if line.startswith(begins)][-last:]
    return list(parse(b"".join(line + b"\n" for line in chosen)))


def loss_before(events: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the validation loss before the first step, as events tell it; None where it was not computed."""
    return next((event.get("val_loss") for event in events if event["type"] == "before"), None)


def parse(lines: bytes) -> Iterator[dict[str, Any]]:
    """Yield the events of complete lines.

    Damaged lines are skipped, such as one torn by a crash and ended by the next trainer.
    """
    for line in lines.split(b"\n")[:-1]:
        try:
            event = _decode(line)
        except (ValueError, RecursionError):
            continue
        if is_event(event):
            if event["type"] == "eval":
                event.setdefault("perplexity", None)
            yield event


def _stays(event: Mapping[str, Any], step: int) -> bool:
    return event.get("type") in ("start", "warning") or event.get("step", 0) <= step
