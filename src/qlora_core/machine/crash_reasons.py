"""Why a process ended, in plain words: from its exit status and last lines, or from what MLX said of the device."""

from __future__ import annotations

import signal

from ..errors import DeviceError, brief
from ..translations import say

MEMORY_WORDS = (
    "memoryerror", "insufficient memory", "out of memory", "bad_alloc", "unable to allocate", "attempting to allocate",
)  # fmt: skip
DEVICE_GAVE_UP = "the device gave up"
WATCHDOG_WORDS = ("impacting interactivity", "gpu timeout")
IN_COMPILED_CODE = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
SHELL = 128  # a shell or a container reports a signal as 128 plus its number


def by_signal(status: int | None) -> int:
    """Return the signal that ended a process; 0 if it ended by itself or its end was not observed."""
    if status is None or 0 <= status <= SHELL:
        return 0
    number = -status if status < 0 else status - SHELL
    return number if number in set(signal.Signals) else 0


def out_of_memory(status: int | None, log: str) -> bool:
    """Return whether memory most likely ran out: the system then kills without a word, or a library reports it."""
    return by_signal(status) == signal.SIGKILL or _says(log, MEMORY_WORDS)


def ended_by_watchdog(log: str) -> bool:
    """Return whether macOS ended work on the GPU that also draws the display."""
    return _says(log, WATCHDOG_WORDS)


def _says(log: str, words: tuple[str, ...]) -> bool:
    return any(word in log.lower() for word in words)


def device_failure(error: BaseException) -> DeviceError | None:
    """Return the error to show if the device failed during a computation, with a remedy; None for any other error.

    Since MLX 0.32 a command buffer that fails on Metal raises such an error and does not end the process.
    """
    if isinstance(error, DeviceError):
        return error
    text = brief(error)
    metal = text.startswith(("[METAL]", "[metal::"))
    memory = out_of_memory(None, text) and (metal or text.startswith(("[malloc", "cuda")))
    if not isinstance(error, RuntimeError) or not (metal or memory):
        return None
    if memory:
        remedy = (
            "Close other programs; going on with --restart 2 computes fewer rows at once, and as many a step. For a "
            "new run: a smaller --batch-size or --max-seq-length."
        )
    else:
        remedy = _watchdog() if ended_by_watchdog(text) else "If it does so again, restart the machine."
    return DeviceError(f"{DEVICE_GAVE_UP}: {text.rstrip('.')}. {remedy}")


def reason(status: int | None, log: str) -> str:
    """Return why a process ended, in words.

    Args:
        status: its exit status, or minus the signal that ended it; None if its end was not observed.
        log: its last lines.
    """
    number = by_signal(status)
    if out_of_memory(status, log):
        return say(
            "Most likely the memory ran out: the system ends a process then without a word. "
            "Close other programs, or choose fewer rows at once or shorter ones."
        )
    if ended_by_watchdog(log):
        return _watchdog()
    if status is None:
        return say("Nobody saw how it ended: the machine may have been switched off, or the memory ran out.")
    if number in IN_COMPILED_CODE:
        name = signal.Signals(number).name
        return say("It crashed inside compiled code ({signal}); its last lines may tell more.", signal=name)
    if number:
        return say("It was ended from outside (signal {number}).", number=number)
    line = (log.strip().splitlines() or [say("it left no line")])[-1]
    return say("It ended with an error that it did not expect: {line}", line=line)


def _watchdog() -> str:
    return say(
        "macOS ended the work because the display waited for the GPU. Let the display sleep while it trains; the "
        "machine stays awake. The variable AGX_RELAX_CDM_CTXSTORE_TIMEOUT, 1 unless you set it otherwise, asks the "
        "driver for patience, which is not always enough."
    )
