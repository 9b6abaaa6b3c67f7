"""Rows that stand within one value: articles with their questions, and tasks with their instances.

Knows the published formats of SQuAD (also MRQA's and QuAC's), CoQA and Natural Instructions, and nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .values import as_text

NESTS = frozenset(("data", "paragraphs", "qas", "story", "Instances"))
"""Keys of which every value that holds rows has one, so that others are passed over quickly."""

UNANSWERED = "CANNOTANSWER"
"""QuAC's answer where a text has none; it also stands at the end of that text."""


@dataclass(frozen=True)
class Nested:
    """A row within a value.

    Attributes:
        row: the row, in columns that every row has.
        place: its id, or its number, within the value.
        group: what it is about, which other rows are about as well: they stay on one side of the split.
    """

    row: dict[str, Any]
    place: str
    group: str = ""


def nested_rows(value: dict[str, Any]) -> Iterator[Nested] | None:
    """Return the rows within a value; None if it is a row itself."""
    for key, holds, read in _FORMATS:
        if key in value and isinstance(value[key], list) and value[key] and holds(value):
            return read(value)
    return None


def _objects(items: Any, *keys: str) -> bool:
    """Return whether a value is a list of objects with at least one of some keys each."""
    return isinstance(items, list) and all(
        isinstance(item, dict) and not item.keys().isdisjoint(keys) for item in items
    )


# SQuAD ----------------------------------------------------------------------------------------------------------


def _articles(value: dict[str, Any]) -> Iterator[Nested]:
    for article in value["data"]:
        yield from _within(article)


def _within(value: dict[str, Any]) -> Iterator[Nested]:
    """Yield the rows of a part, or the part itself where it holds none, so that it is refused by name."""
    yield from nested_rows(value) or (Nested(value, str(value.get("id", value.get("title", "a part")))),)


def _paragraphs(article: dict[str, Any]) -> Iterator[Nested]:
    about = {key: text for key, text in article.items() if key != "paragraphs"}
    for paragraph in article["paragraphs"]:
        yield from _within({**about, **paragraph})


def _questions(paragraph: dict[str, Any]) -> Iterator[Nested]:
    """Yield a row for each question of a text; if they follow each other, as QuAC's do, they are one conversation."""
    context, asked = paragraph["context"], paragraph["qas"]
    about = {key: value for key, value in paragraph.items() if key not in ("context", "qas", "id")}
    if any("followup" in question for question in asked) and isinstance(context, str):
        yield _talk(paragraph.get("id"), context.removesuffix(UNANSWERED).rstrip(), map(_round, asked), about)
        return
    for number, question in enumerate(asked, 1):
        first, *others = dict.fromkeys(_texts(question.get("answers", question.get("answer")))) or [""]
        row = {key: v for key, v in question.items() if key not in ("answers", "answer", "plausible_answers")}
        more = {"answers[1:]": others} if others else {}
        place = str(question.get("id", question.get("qid", f"question {number}")))
        yield Nested({**about, **row, "context": context, "answers": first, **more}, place, str(context))


def _round(question: dict[str, Any]) -> tuple[Any, str]:
    """Return a question of QuAC and its answer, which is the original one where several people answered."""
    original = _texts(question.get("orig_answer")) or _texts(question.get("answers")) or [UNANSWERED]
    return question.get("question"), original[0]


def _texts(answers: Any) -> list[str]:
    """Return the texts of answers: texts, or objects with a text and where it stands."""
    listed = answers if isinstance(answers, list) else [] if answers is None else [answers]
    said = (answer.get("text", answer.get("input_text")) if isinstance(answer, dict) else answer for answer in listed)
    return [text for text in map(as_text, said) if text]


# Conversations about a text -------------------------------------------------------------------------------------


def _talk(name: Any, context: str, rounds: Iterable[tuple[Any, str]], about: dict[str, Any]) -> Nested:
    """Return a conversation about a text, which follows the first question."""
    turns: list[dict[str, Any]] = []
    for asked, answer in rounds:
        said = f"{asked}\n\n{context}" if not turns and isinstance(asked, str) else asked
        mark = {"train": False} if answer == UNANSWERED else {}
        turns += [{"role": "user", "content": said}, {"role": "assistant", "content": answer, **mark}]
    return Nested({**about, "messages": turns}, str(name or "its text"), context)


def _stories(value: dict[str, Any]) -> Iterator[Nested]:
    """Yield CoQA's conversation, whose questions and answers are two lists (or lists by column)."""
    asked, answers = value["questions"], value["answers"]
    answers = answers["input_text"] if isinstance(answers, dict) else answers
    about = {key: v for key, v in value.items() if key not in ("story", "questions", "answers", "additional_answers")}
    rounds = zip(map(_first, asked), map(_first, answers), strict=True)
    yield _talk(value.get("id"), str(value["story"]), rounds, about)


def _first(said: Any) -> str:
    return next(iter(_texts(said)), "")


def _is_story(value: dict[str, Any]) -> bool:
    answers = value.get("answers")
    said = answers.get("input_text") if isinstance(answers, dict) else answers
    return "story" in value and isinstance(said, list) and len(said) == len(value["questions"])


# Natural Instructions -------------------------------------------------------------------------------------------


def _instances(task: dict[str, Any]) -> Iterator[Nested]:
    """Yield a row for each instance; what else the task holds (examples, sources) stands beside the first."""
    definition = task["Definition"]
    asked = "\n".join(map(str, definition)) if isinstance(definition, list) else definition
    about = {key: value for key, value in task.items() if key not in ("Definition", "Instances")}
    for number, instance in enumerate(task["Instances"], 1):
        first, *others = dict.fromkeys(_texts(instance.get("output"))) or [""]
        row = {key: value for key, value in instance.items() if key not in ("input", "output")}
        more = {"output[1:]": others} if others else {}
        place = str(instance.get("id", f"instance {number}"))
        yield Nested(
            {**about, **row, "instruction": asked, "input": instance.get("input", ""), "output": first, **more}, place
        )
        about = {}


_Holds = Callable[[dict[str, Any]], bool]
_FORMATS: tuple[tuple[str, _Holds, Callable[[dict[str, Any]], Iterator[Nested]]], ...] = (
    ("data", lambda value: _objects(value["data"], "paragraphs", "story"), _articles),
    ("paragraphs", lambda value: _objects(value["paragraphs"], "qas"), _paragraphs),
    ("qas", lambda value: "context" in value and _objects(value["qas"], "question"), _questions),
    ("questions", _is_story, _stories),
    ("Instances", lambda value: "Definition" in value and _objects(value["Instances"], "input"), _instances),
)
"""A key whose value is a list, what else makes a value one of the format, and how it is read."""
