"""Requests to pause or stop training: Ctrl+C, signals, and words in the control file."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..activity import Activity, watching
from ..runs.run import Run
from ..runs.writer import RunWriter

CHECKING = ("validation", "samples", "evaluation")
"""Stages that a pause interrupts, and that can be skipped: nothing that was learnt is lost."""


class PauseAsked(BaseException):
    """Interrupts a computation since the run is to pause. Not an `Exception`, so that no error handler catches it."""


class SkipAsked(BaseException):
    """Interrupts a validation, the sample answers or the final test, which is to be left out."""


@contextlib.contextmanager
def hearing_requests(writer: RunWriter, interruption: Interruption, *, ending: bool = False) -> Iterator[None]:
    """Let a request to pause or to skip interrupt the block between two batches or tokens, where nothing is lost.

    Args:
        writer: told what is being done.
        interruption: knows what was asked for.
        ending: the block is the final test of a run that was stopped, and would be trained further if it were paused
            there: a pause skips it instead.

    Raises:
        PauseAsked: a pause was asked for.
        SkipAsked: what is being done is to be left out.
    """
    stopped = interruption.asked == "stop"

    def listen(activity: Activity | None) -> None:
        writer.working(activity)
        if not (activity and activity.done and activity.stage in CHECKING):
            return
        asked = interruption.asked
        if asked == "pause" and not ending:
            raise PauseAsked
        stop_now = asked == "stop" and not stopped and activity.stage == "evaluation"  # no step is left to stop
        if interruption.skip or stop_now or (ending and (asked == "pause" or interruption.signal)):
            raise SkipAsked

    with watching(listen):
        yield


class Interruption:
    """Notices requests to end training: Ctrl+C, SIGTERM, a closed terminal (SIGHUP), or a word in the control file.

    During training the current step is finished first, but a second Ctrl+C ends training at once. Before training there
    is nothing to save, and the first signal ends it at once. A context manager; signals are only caught in the main
    thread.

    Args:
        run: its control file is read.
        listeners: called as soon as a signal is received, which is long before the step ends.

    Attributes:
        signal: number of the first signal received; 0 if none was.
        training: set once loading is done.
        at_once: whether a KeyboardInterrupt was raised; later signals are ignored.
    """

    def __init__(self, run: Run, listeners: Iterable[Callable[[dict[str, Any]], None]] = ()) -> None:
        self.run, self.listeners = run, listeners
        self.signal = 0
        self.training = self.at_once = False
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> str:
        """Return `pause`, `stop`, or an empty text if neither was asked for."""
        word = self.run.control()
        return word if word in ("pause", "stop") else "pause" if self.signal else ""

    @property
    def skip(self) -> bool:
        """Return whether what is being done is to be left out."""
        return self.run.control() == "skip"

    def skipped(self) -> None:
        """Take back the request to skip, which was for one thing."""
        if self.skip:
            self.run.request("run")

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _frame: object) -> None:
        if self.at_once:
            return
        self.at_once = not self.training or bool(self.signal and number == signal.SIGINT)
        first, self.signal = not self.signal, self.signal or number
        if self.at_once:
            raise KeyboardInterrupt
        # a signal that interrupts the writing of a line cannot write another one; then nothing is reported
        with contextlib.suppress(OSError, RuntimeError):
            for listener in self.listeners if first else ():
                listener({"type": "asked"})
