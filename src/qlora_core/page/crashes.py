"""Why a trainer is gone that did not say so itself, in plain words, from its exit status and its last lines."""

from __future__ import annotations

import signal

from .. import jobs
from ..texts import say
from .watching import Snapshot

MEMORY_WORDS = ("memoryerror", "insufficient memory", "out of memory", "bad_alloc", "unable to allocate")


def crash_words(snapshot: Snapshot, saved: int) -> str:
    """What happened to a crashed run's trainer, and what to do.

    Args:
        snapshot: of the run.
        saved: the step of its last checkpoint; 0 if there is none.
    """
    log = jobs.last_words(snapshot.run) if snapshot.run else ""
    if saved:
        onward = say("Step {step} is saved: “Go on from step {step}” continues there.", step=saved)
    else:
        onward = say("Nothing was saved yet: it starts again from the first step.")
    return "\n".join([say("The trainer is gone."), reason(snapshot.exit_status, log), onward])


def reason(status: int | None, log: str) -> str:
    """Why a process ended.

    Args:
        status: its exit status, or minus the signal that ended it; None where nobody saw it end.
        log: its last lines.
    """
    if status == -signal.SIGKILL or any(word in log.lower() for word in MEMORY_WORDS):
        return say(
            "Most likely the memory ran out: the system ends a process then without a word. "
            "Close other programs, or choose fewer rows at once or shorter ones."
        )
    if status is None:
        return say("Nobody saw how it ended: the machine may have been switched off, or the memory ran out.")
    if status in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL, -signal.SIGFPE):
        name = signal.Signals(-status).name
        return say("It crashed inside compiled code ({signal}); its last lines may tell more.", signal=name)
    if status < 0:
        return say("It was ended from outside (signal {number}).", number=-status)
    line = (log.strip().splitlines() or [say("it left no line")])[-1]
    return say("It ended with an error that it did not expect: {line}", line=line)
