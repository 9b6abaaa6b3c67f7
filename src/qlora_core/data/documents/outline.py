"""Text and outline of a document in any format: blocks from headings, paragraphs, lists and tables."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..records import Block, Document
from ..tabular import guessed_table

DEEPEST = 12  # lists and tables inside one another; below, their text stays and their shape goes


class UnreadableError(ValueError):
    """A reason in our own words, distinct from a library's."""


# Pictures and what modifies or joins them; no letters, and no signs such as © and №. Keycaps begin with a digit.
_PICTURE = (
    r"[\s\u200d\ufe0e\ufe0f\u2300-\u23ff\u25a0-\u27bf\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
    r"\U000e0020-\U000e007f]"
)
LEADING_EMOJI = re.compile(rf"(?:[#*\d]\ufe0f?\u20e3|{_PICTURE})*")
_TRAILING = re.compile(rf"(?:\u20e3\ufe0f?[#*\d]|{_PICTURE})*")  # of a text that is read backwards


def one_line(text: str) -> str:
    """Return the text on one line with single spaces."""
    return " ".join(text.split())


def filled_lines(text: str) -> str:
    """Return the non-empty lines without surrounding white space."""
    return "\n".join(line for line in map(one_line, text.split("\n")) if line)


def verbatim_lines(text: str) -> str:
    """Return lines unchanged, without empty ones around them and trailing white space."""
    return re.sub(r"[^\S\n]+$", "", text.expandtabs(4) if "\t" in text[:1] else text, flags=re.MULTILINE).strip("\n")


def without_emoji(text: str) -> str:
    """Return a heading on one line without surrounding emoji, unless it has nothing else."""
    text = one_line(text)
    start = LEADING_EMOJI.match(text).end()
    end = len(text) - _TRAILING.match(text[::-1]).end()
    return text[start:end] or text


def make_document(title: str, blocks: Iterable[Block], metadata: dict[str, Any]) -> Document:
    """Make a document, which must hold some text.

    Raises:
        UnreadableError: it holds none.
    """
    blocks = tuple(blocks)
    if not blocks:
        raise UnreadableError("holds no text")
    return Document(title=title, blocks=blocks, metadata=metadata)


def titled(blocks: Sequence[Block], stated: str, metadata: dict[str, Any]) -> Document:
    """Return the document with the title from a heading, or else the title that the file states.

    That is the first heading, if no text precedes it or no other is of level 1. A section heading gives way to a stated
    title.
    """
    first = next((block for block in blocks if block.level), None)
    leads = first and (first is blocks[0] or [block.level for block in blocks].count(1) == first.level == 1)
    if first and leads and (first.level == 1 or not stated):
        return make_document(first.text, (block for block in blocks if block is not first), metadata)
    return make_document(without_emoji(stated), blocks, metadata)


HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_LISTS = ("ul", "ol")
BLOCK_TAGS = {
    *HEADINGS, *_LISTS, "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details",
    "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "head", "header", "hr", "html", "li", "main", "p",
    "pre", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr",
}  # fmt: skip


@dataclass
class _Open:
    """A list or table that has begun, or the document itself: blocks in cells in rows; an item is a row."""

    tag: str = ""
    first: int = 1
    rows: list[list[list[Block]]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # that the items of an ordered list have of their own
    layout: bool = False
    named: bool = False  # its first row names the columns

    def blocks(self) -> list[Block]:
        """Return one block, or the content where a list or table only arranges text with headings of its own."""
        inside = [block for row in self.rows for cell in row for block in cell]
        box = self.tag == "table" and [len(row) for row in self.rows] == [1]
        if not inside or not self.tag or self.layout or box or any(block.level for block in inside):
            return inside
        if self.tag in _LISTS and len(inside) == 1 and inside[0].verbatim:
            return inside
        if self.tag != "table":
            return [Block("\n".join(self._items()), place=inside[0].place)]
        cells = [tuple(one_line(" ".join(block.text for block in cell)) for cell in row) for row in self.rows]
        table = tuple(cells if self.named else guessed_table(cells))
        return [Block("\n".join(_lines_of_table(cells)), place=inside[0].place, table=table)]

    def _items(self) -> Iterator[str]:
        own = self.numbers if len({*self.numbers}) == len(self.rows) else itertools.count(self.first)
        for number, row in zip(own, self.rows, strict=False):
            lines = "\n".join(block.text for cell in row for block in cell)
            lines = re.sub(r"^\[[ xX]\]\s+", "", lines)  # the box of a task list
            marks = itertools.chain([f"{number}. " if self.tag == "ol" else "- "], itertools.repeat("  "))
            for mark, line in zip(marks, lines.split("\n") if lines else (), strict=False):
                yield (mark + line).rstrip()


def _lines_of_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table's rows as lines: two cells with a colon between them, more cells with bars."""
    pairs = max(map(len, rows)) == 2
    for row in filter(any, rows):
        yield ": ".join(filter(None, row)).replace(":: ", ": ") if pairs else one_line(" | ".join(row))


class Outline:
    """A document built from HTML tags and the text between them."""

    def __init__(self) -> None:
        self._stack = [_Open()]
        self._deeper = 0
        self._text: list[str] = []
        self._place, self._level, self._verbatim = "", 0, False
        self._notes: list[str] = []

    def start(self, tag: str, number: int | None = None) -> None:
        """Open a tag; `number` is an item's own, or a list's first item. Inline tags mean nothing."""
        if tag not in BLOCK_TAGS:
            return
        self._flush()
        last = self._stack[-1]
        self._verbatim |= tag == "pre"
        if tag in HEADINGS:
            self._add_notes()
            self._level = int(tag[1])
        elif tag in _LISTS or tag == "table":
            if len(self._stack) <= DEEPEST:
                self._stack.append(_Open(tag, 1 if number is None else number))
            else:
                self._deeper += 1
        elif (tag == "li" and last.tag in _LISTS) or (tag == "tr" and last.tag == "table"):
            last.rows.append([])
            if number is not None:
                last.numbers.append(number)
        elif tag in ("td", "th") and last.tag == "table":
            last.rows = last.rows or [[]]
            last.rows[-1].append([])
            last.named |= tag == "th" and len(last.rows) == 1

    def text(self, text: str, place: str) -> None:
        """Add text, in which a line feed ends a line."""
        if not self._text:
            self._place = place
        if self._text or text.strip():
            self._text.append(text)

    def before(self) -> str:
        """Return the end of the current paragraph's text so far."""
        return "".join(self._text)[-80:]

    def note(self, text: str) -> None:
        """Add a footnote or endnote, which goes behind the text of its section."""
        self._notes += [text] if text else []

    def end(self, tag: str) -> None:
        """Close a tag; every list and table that was opened must be closed."""
        if tag not in BLOCK_TAGS:
            return
        self._flush()
        self._verbatim &= tag != "pre"
        if tag in HEADINGS:
            self._level = 0
        elif tag in _LISTS or tag == "table":
            if self._deeper:
                self._deeper -= 1
                return
            closed = self._stack.pop()
            self._stack[-1].layout |= closed.tag == self._stack[-1].tag == "table"
            for block in closed.blocks():
                self._add(block)

    def blocks(self) -> list[Block]:
        """Return all blocks once the text has ended."""
        self._flush()
        self._add_notes()
        return self._stack[0].blocks()

    def _flush(self) -> None:
        text, self._text = "".join(self._text), []
        text = verbatim_lines(text) if self._verbatim else filled_lines(text)
        if text:
            self._add(Block(without_emoji(text) if self._level else text, self._level, self._place, self._verbatim))
            self._level = 0  # a heading that nobody closed ends with its first paragraph

    def _add_notes(self) -> None:
        if len(self._stack) == 1:
            notes, self._notes = self._notes, []
            for text in notes:
                self._add(Block(text))

    def _add(self, block: Block) -> None:
        rows = self._stack[-1].rows
        if not rows:
            rows.append([])
        if not rows[-1]:
            rows[-1].append([])
        rows[-1][-1].append(block)
