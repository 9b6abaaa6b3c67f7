"""The user's answers to the report's questions: the setting `decide`. Knows its syntax, nothing of rows."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import ConfigError
from .records import composed

TITLE, SUBJECT, SECTION, COPY = "title", "subject", "section", "copy"
ANSWERS = {SUBJECT: ("person", "thing", "none"), SECTION: ("end", "go on"), COPY: ("keep", "drop")}
KINDS = (TITLE, *ANSWERS)


@dataclass(frozen=True)
class Decisions:
    """Answers `{(kind, file): answer}`; a file is named as the report names it, or by its name alone."""

    answers: dict[tuple[str, str], str]

    @classmethod
    def read(cls, given: Sequence[str]) -> Decisions:
        """Parse the setting: texts like "title:book.txt=Fifty Years".

        Raises:
            ConfigError: one of them is not written so.
        """
        answers = {}
        for text in given:
            kind, colon, rest = text.partition(":")
            file, equals, answer = rest.rpartition("=") if kind != TITLE else rest.partition("=")
            if not (colon and equals and file and answer) or kind not in KINDS:
                kinds = ", ".join(KINDS)
                raise ConfigError(f"decide: wanted KIND:FILE=ANSWER with KIND one of {kinds}; found {text!r}")
            if answer not in ANSWERS.get(kind, (answer,)):
                raise ConfigError(f"decide: {kind} is one of {', '.join(ANSWERS[kind])}; found {text!r}")
            answers[kind, composed(file)] = answer
        return cls(answers)

    def find(self, kind: str, file: str | Path) -> str:
        """Return the answer for a file; "" if none was given."""
        name = composed(str(file))
        return self.answers.get((kind, name)) or self.answers.get((kind, PurePath(name).name), "")

    def unknown(self, files: Iterable[str | Path]) -> list[str]:
        """Return the decisions about none of these files, as they are written."""
        names = {form for file in files for form in (composed(str(file)), PurePath(composed(str(file))).name)}
        return [f"{kind}:{file}={answer}" for (kind, file), answer in self.answers.items() if file not in names]


def flag(decision: tuple[str, str]) -> str:
    """Return a choice of the report as a command-line flag."""
    setting, value = decision
    return f"--{setting.replace('_', '-')} {shlex.quote(value)}"


def choice(kind: str, file: str, answer: str) -> tuple[str, str]:
    """Return a choice of the report: the setting and its value."""
    return "decide", f"{kind}:{file}={answer}"
