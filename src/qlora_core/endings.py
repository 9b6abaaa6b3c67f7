"""Why a trainer is gone that did not say so itself, in plain words, from its exit status and its last lines."""

from __future__ import annotations

import signal

from .texts import say

MEMORY_WORDS = ("memoryerror", "insufficient memory", "out of memory", "bad_alloc", "unable to allocate")
IN_COMPILED_CODE = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
SHELL = 128  # a shell, or a container, tells of a signal as this and its number


def by_signal(status: int | None) -> int:
    """The signal that ended a process; 0 where it ended by itself, or nobody saw it end."""
    if status is None or 0 <= status <= SHELL:
        return 0
    number = -status if status < 0 else status - SHELL
    return number if number in set(signal.Signals) else 0


def out_of_memory(status: int | None, log: str) -> bool:
    """Whether memory ran out, most likely: the system kills without a word then, a library says so and gives up."""
    return by_signal(status) == signal.SIGKILL or any(word in log.lower() for word in MEMORY_WORDS)


def reason(status: int | None, log: str) -> str:
    """Why a process ended.

    Args:
        status: its exit status, or minus the signal that ended it; None where nobody saw it end.
        log: its last lines.
    """
    number = by_signal(status)
    if out_of_memory(status, log):
        return say(
            "Most likely the memory ran out: the system ends a process then without a word. "
            "Close other programs, or choose fewer rows at once or shorter ones."
        )
    if status is None:
        return say("Nobody saw how it ended: the machine may have been switched off, or the memory ran out.")
    if number in IN_COMPILED_CODE:
        name = signal.Signals(number).name
        return say("It crashed inside compiled code ({signal}); its last lines may tell more.", signal=name)
    if number:
        return say("It was ended from outside (signal {number}).", number=number)
    line = (log.strip().splitlines() or [say("it left no line")])[-1]
    return say("It ended with an error that it did not expect: {line}", line=line)
