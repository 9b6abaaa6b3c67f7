"""Checks, one after the other: each is ok, doubtful or failed, is printed when it ends, and says what to do.

Output names nobody: not the home directory, the user or the machine. Knows nothing of what is checked.
"""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import brief

State = Literal["ok", "warning", "failed"]
LEAST_NAME = 4  # shortest user or machine name that is distinguishable from a word

_ABSOLUTE = re.compile(r"(?<![\w.~/…])(?:/[\w.@+-]+)+(/[\w.@+-]+)")
REPORT = "If you did nothing unusual, report it with all of these lines."


class Finding(NamedTuple):
    """The outcome of a check.

    Attributes:
        state: `ok`, `warning` or `failed`.
        value: the measurement or observation.
        remedy: the remedy, if it is not ok.
    """

    state: State
    value: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """A check that was made."""

    name: str
    state: State
    value: str
    remedy: str = ""

    def line(self) -> str:
        """Return the check as it is printed."""
        told = f"{self.state:<8} {self.name:<34} {self.value}"
        return f"{told}\n{' ' * 9}→ {self.remedy}" if self.remedy else told


class NotTried(Exception):
    """An error for a check that lacks what it needs because an earlier one, which it names, failed."""


class Checks:
    """The checks made so far.

    Args:
        tell: called with each check's line as it ends.
        trying: called with the name of the current trial, and with an empty text when it is over.
    """

    def __init__(self, tell: Callable[[str], None], trying: Callable[[str], None] = lambda _: None) -> None:
        self.made: list[Check] = []
        self.interrupted = False
        self._tell, self._trying = tell, trying
        self._hidden: list[tuple[str, str]] = []

    def hide(self, path: Path, shown: str) -> None:
        """Replace `path` by `shown` in all texts from now on."""
        self._hidden = [*((str(place), shown) for place in {path, path.resolve()}), *self._hidden]

    def make(self, name: str, look: Callable[[], Finding]) -> None:
        """Make one check. Any exception in it becomes a failure of what it checks."""
        self.make_all(name, lambda: {name: look()})

    def make_all(self, name: str, look: Callable[[], dict[str, Finding]]) -> None:
        """Make several checks together, under one name until they have their own."""
        self._trying(name)
        try:
            found = look()
        except NotTried as reason:
            found = {name: Finding("warning", f"not tried: {reason}")}
        except Exception as error:
            found = {name: Finding("failed", f"{type(error).__name__}: {brief(error)}", REPORT)}
        finally:
            self._trying("")
        for each, finding in found.items():
            self.note(each, finding)

    def note(self, name: str, found: Finding) -> None:
        """Record a finding and report it."""
        check = Check(name, found.state, self._anonymous(found.value), self._anonymous(found.remedy))
        self.made.append(check)
        self._tell(check.line())

    def _anonymous(self, text: str) -> str:
        for path, shown in self._hidden:
            text = text.replace(path, shown)
        return anonymous(text)

    def count(self, state: State) -> int:
        """Return the number of checks that ended this way."""
        return sum(check.state == state for check in self.made)

    def verdict(self) -> str:
        """Return the overall verdict."""
        failed, doubtful = self.count("failed"), self.count("warning")
        begun = "Interrupted; of what was tried by then, " if self.interrupted else ""
        if failed:
            names = ", ".join(check.name for check in self.made if check.state == "failed")
            return f"✗ {begun}{failed} of {len(self.made)} checks failed: {names}."
        warned = f"; {doubtful} with a warning" if doubtful else ""
        if self.interrupted:
            return f"– {begun}nothing failed ({len(self.made)} checks{warned})."
        return f"✓ Training works on this machine: {len(self.made)} checks, none failed{warned}."

    def as_dict(self) -> dict[str, Any]:
        """Return everything as one object."""
        return {
            "checks": [asdict(check) for check in self.made],
            "failed": self.count("failed"),
            "warnings": self.count("warning"),
            "interrupted": self.interrupted,
            "verdict": self.verdict(),
        }


def anonymous(text: str) -> str:
    """Return a text without the home directory, paths of other directories, and the user's and machine's names."""
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?![\w-])", "~", text)
    for name in _names(getpass.getuser):
        text = re.sub(rf"(?<=/){re.escape(name)}(?![\w-])", "USER", text)
    for name in _names(platform.node):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "HOST", text)
    return _ABSOLUTE.sub(r"…\1", text)


def _names(*sources: Callable[[], str]) -> Iterable[str]:
    for source in sources:
        try:
            name = source()
        except (OSError, KeyError, ImportError):  # a user without a name
            continue
        if len(name) >= LEAST_NAME and name != "localhost":
            yield name
