"""Ctrl+C, signals and words in the control file: how training is asked to pause or stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..activity import Activity, watching
from ..runs.run import Run
from ..runs.writer import RunWriter

PAUSABLE = ("validation", "samples", "evaluation")  # stages that a pause cuts short


class PauseAsked(BaseException):
    """What is computed is given up, since the run is to pause. No error: whoever passes errors over lets it through."""


@contextlib.contextmanager
def hearing_pauses(writer: RunWriter, interruption: Interruption) -> Iterator[None]:
    """Inside the block a pause is heard between two batches, or tokens, of what may take minutes and changes nothing.

    Raises:
        PauseAsked: it was asked for.
    """

    def watch(activity: Activity | None) -> None:
        writer.working(activity)
        if activity and activity.done and activity.stage in PAUSABLE and interruption.asked == "pause":
            raise PauseAsked

    with watching(watch):
        yield


class Interruption:
    """Notices that training should end: Ctrl+C, SIGTERM, a closed terminal (SIGHUP), or a word in the control file.

    While it trains, the current step is finished first, and a second Ctrl+C ends it at once. Before, there is nothing
    to save, and the first signal ends it at once. A context manager; signals are only caught in the main thread.

    Args:
        run: whose control file is read.
        listeners: are told at once that a signal was heard, which is long before the step ends.

    Attributes:
        signal: the number of the first one that came; 0 if none did.
        training: set when loading is done.
        at_once: whether a KeyboardInterrupt was raised; whatever else comes is ignored.
    """

    def __init__(self, run: Run, listeners: Iterable[Callable[[dict[str, Any]], None]] = ()) -> None:
        self.run, self.listeners = run, listeners
        self.signal = 0
        self.training = self.at_once = False
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> str:
        """`pause`, `stop`, or empty."""
        word = self.run.control()
        return word if word != "run" else "pause" if self.signal else ""

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
        # it may have come in the middle of writing a line, when another one is refused: then that is all there is
        with contextlib.suppress(OSError, RuntimeError):
            for listener in self.listeners if first else ():
                listener({"type": "asked"})
