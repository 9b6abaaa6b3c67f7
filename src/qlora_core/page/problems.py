"""Problems on their way down the page: shown once, where they happened, and passed on silently.

Knows marimo's modes; in a script the same problem is one line and an exit status.
"""

from __future__ import annotations

import dataclasses
import errno
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import marimo as mo

from ..errors import QLoraError
from ..translations import Sentence, spoken
from .look import note


def scripted() -> bool:
    """Return whether this is a script (`python apps/train.py`), where cells print and training happens here."""
    return mo.app_meta().mode == "script"


@dataclass(frozen=True)
class Problem:
    """A failure in the place of the value that could not be made.

    Each attribute of a problem is the problem again, so that `config.data` can be passed on unchecked; `onward` marks
    it as already shown.

    Attributes:
        message: what is wrong, where, and what to do.
        shown: whether the page shows it already.
        told_above: whether the page asks for what is missing in words of its own, above Start, and not in red.
    """

    message: str
    shown: bool = False
    told_above: bool = False

    @property
    def onward(self) -> Problem:
        """Return the same problem for the cells below the one that shows it."""
        return dataclasses.replace(self, shown=True)

    def __getattr__(self, name: str) -> Problem:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.onward


def attempt(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call, and turn an error meant for the user into a `Problem`; a `Problem` among the arguments comes back.

    In a script the error becomes one line and the exit status.
    """
    for argument in (*arguments, *named.values()):
        if isinstance(argument, Problem):
            return argument.onward
    if scripted():
        return _in_script(lambda: call(*arguments, **named))
    try:
        return call(*arguments, **named)
    except (QLoraError, OSError) as error:
        return Problem(words_of(error))


def _in_script(call: Callable[[], Any]) -> Any:
    """Call, and end the script with one line and an exit status after an error meant for the user."""
    from ..jobs.exit_status import DONE, guarded  # here, since a page needs neither and numpy comes with them
    from ..reports import live_output

    made: list[Any] = []
    with live_output.waiting(sys.stderr if "--json" in sys.argv else sys.stdout):
        status = guarded(lambda: made.append(call()) or DONE)
    if status:
        sys.exit(status)
    return made[0]


def words_of(error: BaseException) -> str:
    """Return an error's message, in the reader's language where it was raised with a `Sentence`."""
    said = error.args[0] if error.args else ""
    if isinstance(said, Sentence):
        return spoken(said)
    if isinstance(error, OSError) and error.errno in _SYSTEM_WORDS:  # the system itself speaks English
        file = f"{error.filename}: " if error.filename else ""
        return file + spoken(_SYSTEM_WORDS[error.errno])
    return str(error)


_SYSTEM_WORDS = {
    errno.ENOSPC: Sentence("the disk is full. Free some space, or choose a place on another disk."),
    errno.EDQUOT: Sentence("your share of the disk is used up. Free some space, or choose another place."),
    errno.EACCES: Sentence("may not be read or written. Change its permissions, or choose another place."),
    errno.EPERM: Sentence("the system does not permit it. Change its permissions, or choose another place."),
    errno.EROFS: Sentence("the disk can only be read. Choose a place on another one."),
    errno.ENOENT: Sentence("is not there any more."),
    errno.EIO: Sentence("the disk fails. Copy what matters to another one."),
}


def view(make: Callable[..., Any], *values: Any) -> Any:
    """Return what a cell shows on the page: `make(*values)`, or what went wrong. Return nothing in a script."""
    if scripted():
        return None
    made = attempt(make, *values)
    if not isinstance(made, Problem):
        return made
    return None if made.shown else failure(made.message)


def complain(*values: Any) -> mo.Html | None:
    """Return the first problem among `values` that is not shown yet."""
    return next((failure(value.message) for value in values if isinstance(value, Problem) and not value.shown), None)


def failure(message: str) -> mo.Html:
    """Return a message about something that went wrong."""
    return note(message, "danger")
