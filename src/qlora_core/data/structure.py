"""Layout recovery: headings and paragraphs of a text that has only lines, and what is no part of the text.

Everything that belongs to the page is left out: page numbers, running heads, title page, contents. Text that the page
broke is joined. Knows nothing of files or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from .book_lines import NAME, RULE, TIME, TITLE, Hints, Line, key_of
from .chapter_headings import mark_capitals, mark_chapters
from .page_debris import (
    LONG_SECTION,
    end_sections,
    mark_back_matter,
    mark_broken_heads,
    mark_contents,
    mark_lesser_running_heads,
    mark_notices,
    mark_page_numbers,
    mark_running_heads,
)
from .paragraphs import blocks_of
from .prose import begins_low
from .records import Block, Findings, Fragment
from .title_page import mark_title_page

_RULE = re.compile(r"([=_~#-])\1{4,}")
_TIME = re.compile(r"(?:\d{1,3}:)?\d{1,2}:\d\d[.,]\d{1,3}\s*-->\s*(?:\d{1,3}:)?\d{1,2}:\d\d[.,]\d{1,3}(?:\s+\w+:\S+)*")


def find_structure(
    lines: Sequence[Fragment], debris: Findings, where: str, *, drop_debris: bool = True, hints: Hints | None = None
) -> tuple[str, list[Block]]:
    """Return title and blocks of a text that has only lines: a book saved line by line, a text file, a PDF.

    Args:
        lines: the lines in order; an empty one ends a paragraph.
        debris: collects what belongs to the page: page numbers, running heads, title page, contents.
        where: the file's name, for `debris`.
        drop_debris: whether debris is left out; else it is text, and nothing is reported.
        hints: facts that the user gave, and a collector of doubts.
    """
    hints = hints or Hints()
    found = list(_read(lines))
    contents = mark_contents(found)
    mark_notices(found)
    mark_page_numbers(found)
    mark_running_heads(found, contents.labels)
    mark_chapters([line for line in found if not line.reason], contents, where, hints)
    mark_lesser_running_heads(found)
    title = mark_title_page(found, where, hints)
    mark_back_matter(found)
    if drop_debris:
        mark_broken_heads(found, title, debris, where)
    end_sections(found, where, hints)
    for line in found if drop_debris else ():
        if line.reason not in ("", TITLE, NAME):
            debris.add(f"{where}:{line.place}", line.reason, line.text)
    body = [line for line in found if not line.reason or not (drop_debris or line.reason in (TITLE, NAME))]
    mark_capitals(body)
    text: list[Line] = []
    for line in body:
        text += [Line("", line.place, True, "", level=1)] * line.ends + [line] * (line.reason != NAME)
    return title, list(blocks_of(text))


def _read(lines: Iterable[Fragment]) -> Iterator[Line]:
    gap = ruled = False
    for fragment in lines:
        for text in map(str.strip, fragment.text.split("\n")):
            reason = RULE if _RULE.fullmatch(text) else TIME if _TIME.fullmatch(text) else ""
            if text:
                yield Line(text, fragment.place, gap, key_of(text), reason, fragment.level, fragment.place, own=ruled)
            ruled = reason == RULE or (ruled and not text)
            gap = bool(reason) or ruled or not text


def saved_as_lines(blocks: Sequence[Block]) -> list[Fragment]:
    """Return the lines of a document in which each paragraph is a line of a book, as in a scan; none for any other."""
    texts = [block.text for block in blocks if not block.level and "\n" not in block.text and not block.table]
    low = sum(map(begins_low, texts))
    if len(texts) < LONG_SECTION // 3 or 10 * low < 3 * len(texts) or 2 * len(texts) < len(blocks):
        return []
    places = (block.place or f"paragraph {number}" for number, block in enumerate(blocks, 1))
    return [Fragment(block.text, place, block.level) for block, place in zip(blocks, places, strict=True)]
