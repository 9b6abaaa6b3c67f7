"""Texts and questions that come with the package, in English and European Portuguese, the same for every run.

They were written for this project and name no real person but authors of old books that a question asks for. The loss
on the texts and the answers to the questions show what training cost; what does not exist can only be declined.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Language = Literal["en", "pt"]
_DIRECTORY = Path(__file__).parent / "general"


@dataclass(frozen=True)
class GeneralText:
    """An ordinary text of 60 to 100 words.

    Attributes:
        language: of the text.
        kind: what it is, such as "letter" or "recipe".
        text: plain text in one paragraph.
    """

    language: Language
    kind: str
    text: str


@dataclass(frozen=True)
class GeneralQuestion:
    """A question that most people could answer.

    Attributes:
        language: of the question.
        question: the question.
        expected: answers that are right, each as `measures.says` looks for it.
    """

    language: Language
    question: str
    expected: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """A question about an invented name: the only right answer is not to know.

    Attributes:
        language: of the question.
        question: the question.
        name: the invented name in it.
        original: the question of the run that it was made from; empty if it comes with the package.
        trained_answers: what was trained for that question, and would be wrong here.
        fact: the fact that the original asks for, as the fact sheet calls it; empty if there is none.
    """

    language: Language
    question: str
    name: str
    original: str = ""
    trained_answers: tuple[str, ...] = ()
    fact: str = ""


def general_texts() -> tuple[GeneralText, ...]:
    """Return the ordinary texts, 12 in each language."""
    return tuple(GeneralText(**row) for row in _rows("texts.jsonl"))


def general_questions() -> tuple[GeneralQuestion, ...]:
    """Return the questions of general knowledge, 20 in each language."""
    return tuple(
        GeneralQuestion(row["language"], row["question"], tuple(row["expected"])) for row in _rows("questions.jsonl")
    )


def nonexistent_questions() -> tuple[Probe, ...]:
    """Return the questions about towns, people, works and prizes that do not exist, 10 in each language."""
    return tuple(Probe(**row) for row in _rows("nonexistent.jsonl"))


def shipped_sha256() -> str:
    """Return the SHA-256 of all these texts and questions: other ones have other answers."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_DIRECTORY.glob("*.jsonl")))).hexdigest()


@functools.cache
def _rows(name: str) -> list[dict[str, Any]]:
    lines = (_DIRECTORY / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
