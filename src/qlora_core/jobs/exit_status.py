"""Exit statuses of a command, and errors told in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ..errors import QLoraError
from ..machine.crash_reasons import device_failure
from ..reports import live_output

DONE, ERROR, PAUSED, INTERRUPTED = 0, 1, 3, 130  # exit statuses of `qlora train`
DEVICE_FAILED = 75  # exit status of a supervised worker whose device failed: the run may be retried


def guarded(call: Callable[[], int]) -> int:
    """Run `call`; an error meant for the user becomes one line and status 1."""
    try:
        return call()
    except QLoraError as error:
        complain(f"error: {error}")
        return ERROR
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away (`qlora runs | head`)
        live_output.silence(sys.stdout)
        return ERROR
    except OSError as error:  # a directory that may not be written, a full disk
        complain(f"error: {error}")
        return ERROR
    except RuntimeError as error:
        if failure := device_failure(error):
            complain(f"error: {failure}")
            return ERROR
        raise


def quiet_ctrl_c() -> None:
    """Make an uncaught Ctrl+C end this process without a traceback, for scripts without a `main`."""
    shown = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        complain("interrupted") if issubclass(kind, KeyboardInterrupt) else shown(kind, error, traceback)

    sys.excepthook = show


def complain(text: str) -> None:
    """Print a line on standard error if there is still somebody to read it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # the terminal was closed
        live_output.silence(sys.stderr)
