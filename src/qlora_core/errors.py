"""Errors meant for the person at the keyboard.

    QLoraError
    ├── ConfigError       a setting
    ├── DataError         training data
    ├── MissingMlxError   MLX, which does the computing, is not there
    ├── ModelError        a base model, its tokeniser or adapters
    ├── MemoryShortError  not enough free memory to start or go on
    ├── ExportError       an export would lose what was learnt
    ├── RunError          a run directory
    │   ├── BusyError         somebody else is training there
    │   └── CheckpointError   a checkpoint that cannot be trusted
    ├── DeviceError       a GPU failed in the middle of a computation, or ran out of memory
    ├── StorageError      a file cannot be written: full disk, quota, broken device (also an OSError)
    └── TrainingError     training itself went wrong

Each message says what went wrong, where (as file:line if there is one), what was found, what was expected and what to
do. The command line prints `error: …` and exits with 1; the page shows the same text. A traceback is always a bug.
"""

from typing import Any

LONGEST = 80  # characters; longer values are shortened in messages


def shown(value: Any) -> str:
    """Return a value as a message shows it: on one line and shortened."""
    if isinstance(value, int) and value.bit_length() > 8192:  # Python refuses to convert very long integers to text
        return "a very large number"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # the value contains such an integer, or itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def brief(error: BaseException, most: int = 400) -> str:
    """Return a library's error message on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"


class QLoraError(Exception):
    """Base of every error whose message is written for the user."""


class ConfigError(QLoraError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(QLoraError):
    """Training data is missing or unusable."""


class MissingMlxError(QLoraError):
    """MLX is not installed, or has nothing to compute with on this machine."""


class ModelError(QLoraError):
    """A base model, tokeniser or adapter cannot be found, read or fitted together."""


class MemoryShortError(QLoraError):
    """Less memory is free than the run needs."""


class ExportError(QLoraError):
    """An export that must not lose what was learnt would lose it."""


class RunError(QLoraError):
    """A run directory is missing, damaged or does not match what was asked."""


class BusyError(RunError):
    """Another process holds the run's lock."""


class CheckpointError(RunError):
    """A checkpoint fails its manifest or does not fit the model."""


class DeviceError(QLoraError):
    """The device gave up a computation because memory ran out or the system ended it; its results are undefined."""


class StorageError(QLoraError, OSError):
    """A file or directory cannot be written.

    Args:
        message: text for the user.
        errno: the system's error number.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class TrainingError(QLoraError):
    """Training cannot go on, for example because loss or gradients are not finite."""
