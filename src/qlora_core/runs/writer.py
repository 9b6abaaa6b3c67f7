"""Writing a run: the lock that only one process holds, and every file that a trainer adds to."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable
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
from .run import ENVIRONMENT, METRICS, STATUS, Run, refuse_links
from .schema import State

PRINTED = "what is printed"
RESERVE = 65_536  # bytes that are given back for a trainer's last words, should the disk be full


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
    """The error for who wants to train a run that is being trained; `lock` tells by whom."""
    who = holder_in_words(lock)
    process = f"another process ({who})" if who else "another process"
    return BusyError(f"{run}: is being trained by {process}. Follow it, or pause it first.")


def record(run: Run, **facts: Any) -> dict[str, Any]:
    """Add facts to a run's `environment.json`, in the place of those of the same name, and return all of it.

    Only the holder of the run's lock may do this.
    """
    environment = {**run.environment(), **facts}
    write_json(run.path / ENVIRONMENT, environment)
    return environment


class RunWriter:
    """Writes one run: status, metrics, and to whoever listens. A context manager; leaving it gives the lock back.

    What it writes can be done without for a while: if it cannot be written, training goes on with a warning, the status
    is kept in memory and the events wait.

    Raises:
        RunError: the run is a link, or holds one.
    """

    def __init__(self, run: Run, lock: RunLock) -> None:
        refuse_links(run.path)
        self.run = run
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.lock = lock
        self.status = run.status()
        self.status.pop("work", None)  # of a trainer that died over it
        self._written = 0.0
        self._failing: set[str] = set()
        for place, alone in ((run.checkpoint_directory, True), (run.path, False), (run.best, True), (run.final, True)):
            clear_leftovers(place, alone=alone)
        if not lock.inherited and run.control() != "run":
            run.request("run")  # a pause asked of an earlier trainer is done; one asked since the lock was taken is not
        self._metrics = LineFile(run.metrics_file)
        with contextlib.suppress(OSError):  # told at the first event, when somebody listens
            self._metrics.flush()
        self._reserve = run.path / ".reserve"
        with contextlib.suppress(OSError):
            self._reserve.write_bytes(os.urandom(RESERVE))  # not zeros: some file systems store none

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        if STATUS in self._failing:  # once more: readers take a last word that is missing for a crash
            with contextlib.suppress(OSError):
                write_json(self.run.path / STATUS, self.status)
        remove(self._reserve)
        self.lock.release()

    def log(self, type: str, **fields: Any) -> None:
        """Append one event to `metrics.jsonl`, a whole line at once, and tell the listeners."""
        event = {"type": type, **fields, "time": round(time.time(), 3)}
        line = json.dumps(event, ensure_ascii=False)
        self._attempt(METRICS, lambda: self._metrics.append(line))
        self.tell(**event)

    def tell(self, type: str, **fields: Any) -> None:
        """Tell the listeners something that is not worth keeping."""
        for listener in self.listeners:
            self._attempt(PRINTED, functools.partial(listener, {"type": type, **fields}))

    def working(self, activity: Activity | None) -> None:
        """Take what is being done into the status, and tell it; how far it is at most once a second."""
        if activity is None:
            self.status.pop("work", None)
            work = {"stage": "", "done": 0, "total": 0}
        else:
            work = {"stage": activity.stage, "done": activity.done, "total": activity.total}
            same = self.status.get("work", {}).get("stage") == activity.stage
            self.status["work"] = work
            if same and time.monotonic() - self._written < 1:
                return
        if state := self.status.get("state"):
            self.set_status(state)
        self.tell("working", **work)

    def sync(self) -> None:
        """Make what was logged durable."""
        self._attempt(METRICS, self._metrics.sync)

    def set_status(self, state: State, **fields: Any) -> None:
        """Replace `status.json`; fields not given stay as they were."""
        lasting = state != self.status.get("state")  # a beat that a power cut takes is no loss
        self.status = {
            **self.status,
            **fields,
            "state": state,
            "pid": os.getpid(),
            "time": round(time.time(), 3),
        }
        self._written = time.monotonic()
        self._attempt(STATUS, lambda: write_json(self.run.path / STATUS, self.status, lasting=lasting))

    def beat(self, **fields: Any) -> None:
        """Take `fields` into the status; written at most once a second, since every write waits for the disk."""
        self.status |= fields
        if time.monotonic() - self._written >= 1:
            self.set_status(self.status["state"])

    def end(self, state: State, step: int, message: str = "") -> None:
        """Say how training ended; the last event of this process."""
        remove(self._reserve)  # room for the last words, on a disk that is full
        self.log("end", state=state, step=step, message=message)
        self.set_status(state, step=step, message=message)

    def _attempt(self, what: str, write: Callable[[], object]) -> None:
        """Write something that training can do without; the first failure is a warning, and so is that it is over."""
        try:
            write()
        except OSError as error:
            if what not in self._failing:
                self._failing.add(what)
                reason = explain(error, self.run.path / what) if what != PRINTED else f"{what} is lost: {error}."
                self.log("warning", message=f"{reason} Training goes on, and tries again.")
        else:
            if what in self._failing and what != PRINTED:  # some events print nothing, which is no sign
                self._failing.remove(what)
                lost = f"; {self._metrics.lost} lines are lost" if self._metrics.lost else ""
                self.log("warning", message=f"{what} can be written again{lost}")
