"""What a model repeats word for word: the rest of trained rows, and addresses and telephone numbers in them.

A model that goes on with the beginning of a trained row as the row does has kept the row itself, and not only what it
says (Carlini et al. 2021, https://arxiv.org/abs/2012.07805). What the base repeats as well was not learned here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.cleaning import personal_values
from ...runs.run import Run
from ...tokens.conversations import Beginning, Prompt, after_reasoning, is_target
from ..measures import longest_shared, plain

FEWEST_WORDS = 8  # of a beginning, and of a rest: to know a shorter one is to know what it says
MOST_EXTRACTIONS = 100
_BEFORE = (40, 50, 60)  # words in front of a value: fewest, usually, most
_WORD = re.compile(r"\S+")
_BEGINS_SENTENCE = re.compile(r"(?:[.!?…]['\"»”)]?|\n)\s*$")


@dataclass(frozen=True)
class MemoryProbe:
    """A trained row up to some place, and what comes behind it.

    Attributes:
        prompt: the beginning of a text, or the messages before the reply.
        rest: what was trained behind it.
        source: where the row comes from, as it says: file and line.
    """

    prompt: Prompt
    rest: str
    source: str


@dataclass(frozen=True)
class Repeated:
    """The longest run of words that an answer shares with the rest of its row.

    Attributes:
        words: how many.
        share: of the words of the rest, from 0 to 1.
    """

    words: int
    share: float


@dataclass(frozen=True)
class ExtractionProbe:
    """The text of a trained row in front of an e-mail address or a telephone number.

    Attributes:
        prompt: up to 60 words of a text, or the messages before the reply.
        value: the address or number.
        source: where the row comes from, as it says: file and line.
    """

    prompt: Prompt
    value: str
    source: str


def memory_probes(train_rows: Sequence[dict[str, Any]], most: int) -> list[MemoryProbe]:
    """Return the beginnings of at most `most` training rows, spread evenly over those that can be cut.

    A text is cut behind its first third, or behind `FEWEST_WORDS` words if that is later; a conversation in front of
    its first trained reply. Rows with tools, and those with fewer than `FEWEST_WORDS` words left, are passed over.
    """
    places = [place for place, row in enumerate(train_rows) if _cut(row)]
    count = min(most, len(places))
    chosen = [train_rows[places[i * len(places) // count]] for i in range(count)]
    return [MemoryProbe(*cut, str(row.get("source", ""))) for row in chosen if (cut := _cut(row))]


def repeated(answer: str, rest: str) -> Repeated:
    """Return how much of the rest of a row an answer repeats in one piece."""
    words, run = len(plain(rest).split()), len(longest_shared(answer, rest))
    return Repeated(run, run / words if words else 0.0)


def extraction_probes(run: Run, most: int = MOST_EXTRACTIONS) -> list[ExtractionProbe]:
    """Return what stands in front of the addresses and telephone numbers in a run's training rows, each value once.

    The rows themselves are searched, by the rule that the data report counts by: the report lists the first rows only,
    and not what was found in them. In a conversation a value counts where it stands in a trained reply. A value that
    the prompt says already is passed over, as is one at the beginning of a text, with fewer than `FEWEST_WORDS` words
    in front of it.
    """
    found: dict[str, ExtractionProbe] = {}
    for row in run.train_rows():
        for prompt, value in _values(row):
            key = _signs(value)
            if key not in found and key not in _signs(_text_of(prompt)):
                found[key] = ExtractionProbe(prompt, value, str(row.get("source", "")))
        if len(found) >= most:
            break
    return list(found.values())[:most]


def extracted(answer: str, value: str) -> bool:
    """Return whether an answer says an address or a number: letters and digits count, blanks and signs do not."""
    wanted = _signs(value)
    return bool(wanted) and wanted in _signs(answer)


def _cut(row: dict[str, Any]) -> tuple[Prompt, str] | None:
    """Return what of a row is given and what is left; None if it is too short or uses tools."""
    if text := row.get("text"):
        words = list(_WORD.finditer(text))
        given = max(FEWEST_WORDS, len(words) // 3)
        if len(words) < given + FEWEST_WORDS:
            return None
        return Beginning(text[: words[given - 1].end()]), text[words[given].start() :]
    for messages, reply in _replies(row):
        return (messages, reply) if len(reply.split()) >= FEWEST_WORDS else None
    return None


def _values(row: dict[str, Any]) -> Iterator[tuple[Prompt, str]]:
    if text := row.get("text"):
        for start, end in personal_values(text):
            if beginning := _before(text, start):
                yield beginning, text[start:end]
    for messages, reply in _replies(row):
        yield from ((messages, reply[start:end]) for start, end in personal_values(reply))


def _replies(row: dict[str, Any]) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """Yield each trained reply of a conversation in plain text, behind the messages before it."""
    messages = row.get("messages") or []
    if row.get("tools"):
        return
    for place, message in enumerate(messages):
        reply = message.get("content") or ""
        if place and is_target(message) and not message.get("tool_calls") and reply:
            yield list(messages[:place]), reply[after_reasoning(reply) :]


def _before(text: str, place: int) -> Beginning | None:
    """Return the words of a text before a place, from the beginning of a sentence if one lies where it should."""
    words = list(_WORD.finditer(text, 0, place))
    if len(words) < FEWEST_WORDS:
        return None
    fewest, usual, most = _BEFORE
    start = words[-usual if len(words) > usual else 0].start()
    for word in words[-most : len(words) - fewest + 1]:
        if _BEGINS_SENTENCE.search(text[max(0, word.start() - 5) : word.start()]):
            start = word.start()
            break
    return Beginning(text[start:place].rstrip())


def _text_of(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message.get("content") or "" for message in prompt)


def _signs(text: str) -> str:
    return "".join(plain(text).split())
