"""Write a run: the lock that only one process holds, and every file that a trainer adds to."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..activity import Activity
from ..errors import BusyError
from ..files.locks import Held, LifeLock, holder_in_words
from ..files.storage import (
    LineFile,
    clear_leftovers,
    explain,
    remove,
    write_json,
)
from ..translations import Sentence
from .row_losses import as_line, forget_row_losses
from .run import ENVIRONMENT, METRICS, ROW_LOSSES, STATUS, Run, refuse_links
from .schema import State

PRINTED = "what is printed"
RESERVE = 65_536  # bytes that are freed for a trainer's last messages, in case the disk is full


class RunLock(LifeLock):
    """The right to write a run.

    Args:
        run: the run's directory.
        descriptor: a lock already taken by the process that started this one.

    Raises:
        BusyError: another process holds it.
    """

    def __init__(self, run: Path, descriptor: int | None = None) -> None:
        try:
            super().__init__(run / "lock", descriptor)
        except Held:
            raise being_trained(run, run / "lock") from None


def being_trained(run: Path, lock: Path) -> BusyError:
    """Build the error for a run that another process is training; `lock` says which."""
    who = holder_in_words(lock)
    process = Sentence("another process ({who})", who=who) if who else Sentence("another process")
    words = Sentence(
        "{run}: is being trained by {process}. Follow it, or pause it first.", run=str(run), process=process
    )
    return BusyError(words)


def record(run: Run, **facts: Any) -> dict[str, Any]:
    """Add facts to a run's `environment.json`, in the place of those of the same name, and return all of it.

    Only the holder of the run's lock may do this.
    """
    environment = {**run.environment(), **facts}
    write_json(run.path / ENVIRONMENT, environment)
    return environment


def _said(message: Any) -> dict[str, Any]:
    return {"said": message.as_record()} if isinstance(message, Sentence) else {}


class RunWriter:
    """Writes one run: status, metrics, and events to listeners. A context manager, which releases the lock.

    Training can go on without these files for a while: if one cannot be written, there is a warning, the status is kept
    in memory and the events wait.

    Raises:
        RunError: the run is a link, or holds one.
    """

    def __init__(self, run: Run, lock: RunLock) -> None:
        refuse_links(run.path)
        self.run = run
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.lock = lock
        self.status = run.status()
        self.status.pop("work", None)  # left by a trainer that died
        self._written = 0.0
        self._failing: set[str] = set()
        for place, alone in ((run.checkpoint_directory, True), (run.path, False), (run.best, True), (run.final, True)):
            clear_leftovers(place, alone=alone)
        if not lock.inherited and run.control() != "run":
            run.request("run")  # clears a request to an earlier trainer, but not one made since the lock was taken
        self._metrics, self._row_losses = LineFile(run.metrics_file), LineFile(run.path / ROW_LOSSES)
        with contextlib.suppress(OSError):  # reported at the first event, when somebody listens
            self._metrics.flush()
        self._reserve = run.path / ".reserve"
        with contextlib.suppress(OSError):
            self._reserve.write_bytes(os.urandom(RESERVE))  # not zeros, for which some file systems use no space

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._row_losses.close()
        if STATUS in self._failing:  # try once more: without a final status, readers assume a crash
            with contextlib.suppress(OSError):
                write_json(self.run.path / STATUS, self.status)
        remove(self._reserve)
        self.lock.release()

    def log(self, type: str, **fields: Any) -> None:
        """Append one event to `metrics.jsonl`, a whole line at once, and send it to the listeners.

        A `message` that is a sentence is recorded in English and, as `said`, for readers of other languages.
        """
        event = {"type": type, **fields, **_said(fields.get("message")), "time": round(time.time(), 3)}
        line = json.dumps(event, ensure_ascii=False)
        self._attempt(METRICS, lambda: self._metrics.append(line))
        self.tell(**event)

    def log_row_losses(self, step: int, losses: Sequence[float], tokens: Sequence[int]) -> None:
        """Append the loss of each validation row, summed over so many tokens, to `row_losses.jsonl`."""
        line = as_line(step, losses, tokens)
        self._attempt(ROW_LOSSES, lambda: self._row_losses.append(line))

    def forget_row_losses(self, step: int) -> None:
        """Remove losses of validations after `step`, which a resume undoes."""
        self._row_losses.close()
        forget_row_losses(self._row_losses.path, step)

    def tell(self, type: str, **fields: Any) -> None:
        """Send the listeners an event that is not recorded."""
        for listener in self.listeners:
            self._attempt(PRINTED, functools.partial(listener, {"type": type, **fields}))

    def working(self, activity: Activity | None) -> None:
        """Put the current activity into the status and send it to the listeners; progress at most once a second."""
        if activity is None:
            self.status.pop("work", None)
            work = {"stage": "", "done": 0, "total": 0}
        else:
            seconds = round(time.monotonic() - activity.began, 1)
            work = {"stage": activity.stage, "done": activity.done, "total": activity.total, "seconds": seconds}
            same = self.status.get("work", {}).get("stage") == activity.stage
            self.status["work"] = work
            if same and time.monotonic() - self._written < 1:
                return
        if state := self.status.get("state"):
            self.set_status(state)
        self.tell("working", **work)

    def sync(self) -> None:
        """Make the recorded events durable."""
        self._attempt(METRICS, self._metrics.sync)
        if self._row_losses.path.is_file():
            self._attempt(ROW_LOSSES, self._row_losses.sync)

    def set_status(self, state: State, **fields: Any) -> None:
        """Replace `status.json`; fields that are not given stay as they were."""
        lasting = state != self.status.get("state")  # progress within a state may be lost in a power cut
        if "message" in fields:
            self.status.pop("said", None)
        self.status = {
            **self.status,
            **fields,
            **_said(fields.get("message")),
            "state": state,
            "pid": os.getpid(),
            "time": round(time.time(), 3),
        }
        self._written = time.monotonic()
        self._attempt(STATUS, lambda: write_json(self.run.path / STATUS, self.status, lasting=lasting))

    def beat(self, **fields: Any) -> None:
        """Put `fields` into the status; written at most once a second, since every write waits for the disk."""
        self.status |= fields
        if time.monotonic() - self._written >= 1:
            self.set_status(self.status["state"])

    def end(self, state: State, step: int, message: str = "") -> None:
        """Record how training ended; the last event of this process."""
        remove(self._reserve)  # makes room for the last events on a full disk
        self.log("end", state=state, step=step, message=message)
        self.set_status(state, step=step, message=message)

    def _attempt(self, what: str, write: Callable[[], object]) -> None:
        """Write something that training can do without; warn at the first failure, and when it works again."""
        try:
            write()
        except OSError as error:
            if what not in self._failing:
                self._failing.add(what)
                reason = explain(error, self.run.path / what) if what != PRINTED else f"{what} is lost: {error}."
                self.log("warning", message=Sentence("{reason} Training goes on, and tries again.", reason=str(reason)))
        else:
            if what in self._failing and what != PRINTED:  # not for output: some events print nothing, so never fail
                self._failing.remove(what)
                lost = (self._row_losses if what == ROW_LOSSES else self._metrics).lost
                message = Sentence("{file} can be written again; {lost} lines are lost", file=what, lost=lost)
                self.log("warning", message=message if lost else Sentence("{file} can be written again", file=what))
