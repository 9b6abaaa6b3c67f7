"""Values that the steps of data preparation exchange. Knows nothing of files or models."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

LISTED = 1000  # findings of one kind that a report lists; the others are only counted


@dataclass(frozen=True)
class Record:
    """One training row.

    Attributes:
        content: `{"messages": […]}` or `{"text": …}`, as the prepared file holds it.
        source: file:line, or file:first-last of joined lines.
        metadata: all else that the row carried.
        group: rows of one group stay on one side of the split (the passages of one document).
        split: the split that the row names; "" if it names none.
    """

    content: dict[str, Any]
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    split: str = ""

    @property
    def answers(self) -> bool:
        """Return whether a prompt is answered, as opposed to text going on."""
        return "messages" in self.content


def texts_of(content: dict[str, Any]) -> list[str]:
    """Return every text of a row's content in order, including a message's thoughts and calls."""
    if "text" in content:
        return [content["text"]]
    return [text for message in content["messages"] for text in _said(message)]


def said_in(content: dict[str, Any]) -> str:
    """Return the text that distinguishes a row: all of it but the system message, which many rows may share."""
    if "text" in content:
        return content["text"]
    return "\n".join(text for message in content["messages"] if message["role"] != "system" for text in _said(message))


def _said(message: dict[str, Any]) -> list[str]:
    if len(message) == 2:
        return [message["content"]]
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    thought = [message["reasoning_content"]] if "reasoning_content" in message else []
    return [*thought, message["content"], *calls]


def writable(text: str) -> str:
    """Return a text that can be encoded: file names and rows may hold lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def composed(text: str) -> str:
    """Return a text composed (NFC), like most programs write it: an accented letter is one character, not two.

    Both forms look the same but are different tokens.
    """
    return unicodedata.normalize("NFC", writable(text))


@dataclass(frozen=True, slots=True)
class Fragment:
    """A line of running text, to be joined with its neighbours; an empty one ends a paragraph.

    Attributes:
        text: the line without surrounding white space.
        place: position in its file: a line ("12") or, in a PDF, a page ("page 3").
        level: level of a heading that the format itself marks, 1 to 6; 0 for everything else.
    """

    text: str
    place: str
    level: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph (or list, or table) of a document, or a heading.

    Attributes:
        text: plain text without markup, lines separated by line feeds.
        level: level of a heading, 1 to 6; 0 for all else. A heading without text ends the section before it.
        place: position where it begins: a line ("12"), a page ("page 3"), or "" if the format has neither.
        verbatim: whether its lines are code, to be kept as they are, and no sentences.
        table: rows of a table's cells, the column names first; the text says the same in lines.
    """

    text: str
    level: int = 0
    place: str = ""
    verbatim: bool = False
    table: tuple[tuple[str, ...], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Document:
    """A document as its reader understood it: either blocks, or lines whose structure is still to be found.

    Attributes:
        title: title from its first heading or its metadata; "" if it has none.
        blocks: blocks of a format that marks headings and paragraphs; the heading used as title is left out.
        lines: lines of a format that has only lines (plain text, PDF).
        metadata: facts that the document states about itself (author, date, front matter).
        left_out: parts that its reader did not take for its text: place, reason and beginning of each.
    """

    title: str = ""
    blocks: tuple[Block, ...] = ()
    lines: tuple[Fragment, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[tuple[str, str, str], ...] = ()


class UnusableError(ValueError):
    """The reason why a row cannot be used, how the row begins, and whether it is damaged, so that data are lost."""

    def __init__(self, reason: str, sample: str = "", *, damaged: bool = True) -> None:
        super().__init__(reason)
        self.sample, self.damaged = sample, damaged


class MarkedError(ValueError):
    """The mark by which its author excluded a row from training."""


class Written(float):
    """A number of a file with its text there: 1.50 stays "1.50"."""

    __slots__ = ("text",)

    def __new__(cls, text: str) -> Written:
        """Read the number."""
        made = super().__new__(cls, text)
        made.text = text
        return made

    def __reduce__(self) -> tuple[type[Written], tuple[str]]:
        return Written, (self.text,)


@dataclass(frozen=True)
class Rejected:
    """Something that was not used, or is worth a look: where, why, and how it begins.

    For a guess, `choices` are the settings that decide it, each `(setting, value)`.
    """

    where: str
    reason: str
    sample: str = ""
    choices: tuple[tuple[str, str], ...] = ()


def place_range(first: str, last: str) -> str:
    """Return two places as one range: "12-18", "page 3-4"."""
    name = re.match(r"\D*", first)[0]  # type: ignore[index]
    return first if first == last else f"{first}-{last.removeprefix(name)}"


def ends_of_place(place: str) -> tuple[str, str]:
    """Return the first and the last place of a range."""
    match = re.fullmatch(r"(\D*)(\d+)-(\d+)", place)
    return (match[1] + match[2], match[1] + match[3]) if match else (place, place)


@dataclass
class Findings:
    """Rejected rows, or the like: all are counted, the first `LISTED` kept."""

    count: int = 0
    listed: list[Rejected] = field(default_factory=list)

    def add(self, where: str, reason: str, sample: str = "", choices: Sequence[tuple[str, str]] = ()) -> None:
        """Count one, and keep it while there is room."""
        self.count += 1
        if len(self.listed) < LISTED:
            written = tuple((setting, writable(value)) for setting, value in choices)
            self.listed.append(Rejected(writable(where), writable(reason), writable(sample[:80]), written))

    def extend(self, others: Findings) -> None:
        """Add the findings of another part."""
        self.count += others.count
        self.listed += others.listed[: LISTED - len(self.listed)]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Rejected]:
        return iter(self.listed)
