"""Errors meant for the person at the keyboard.

    QLoraError
    ├── ConfigError       a setting
    ├── DataError         training data
    ├── DeviceError       MLX, which computes, is not there
    ├── ModelError        a base model, its tokeniser or adapters
    ├── MemoryShortError  not enough free memory to start or go on
    ├── RunError          a run directory
    │   ├── BusyError         somebody else is training there
    │   └── CheckpointError   a checkpoint that cannot be trusted
    ├── DeviceError       a GPU, or its memory, gave up what it was computing
    ├── StorageError      a file cannot be written: full disk, quota, broken device (also an OSError)
    └── TrainingError     training itself went wrong

Each message says what, where (file:line where there is one), what was found, what was wanted and what to do.
The command line prints `error: …` and exits with 1; the page shows the same text. A traceback is a bug of ours.
"""

from typing import Any

LONGEST = 80  # characters of a value in a message


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, and not too long."""
    if isinstance(value, int) and value.bit_length() > 8192:  # Python refuses to write out the longest
        return "a very large number"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # one of these inside
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def brief(error: BaseException, most: int = 400) -> str:
    """What a library says of a failure: on one line, and not too long."""
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


class RunError(QLoraError):
    """A run directory is missing, damaged or does not match what was asked."""


class BusyError(RunError):
    """Another process holds the run's lock."""


class CheckpointError(RunError):
    """A checkpoint fails its manifest or does not fit the model."""


class DeviceError(QLoraError):
    """The device gave up what it was computing, which may hold anything: memory ran out, or the system ended it."""


class StorageError(QLoraError, OSError):
    """A file or directory cannot be written.

    Args:
        message: for the user.
        errno: what the system said.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class TrainingError(QLoraError):
    """Training cannot go on (loss or gradients are not finite, say)."""
