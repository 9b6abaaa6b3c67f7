"""Reading order of pages whose text is laid out in columns."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

ENOUGH_LINES = 4  # with text on both sides of a gap, one below the other: fewer are no columns
ENOUGH_LETTERS, ENOUGH_WORDS = 15, 3  # of a line of a column on average: what is shorter is a cell of a table
_GAP = re.compile(r"\s{2,}")


def read_columns(page: str) -> list[str]:
    """Return the lines of a page in reading order; none if it has no columns.

    Args:
        page: a letter of text for every place on the page, blanks where there is nothing.
    """
    lines = page.split("\n")
    gap = _gap_of(lines)
    return list(_side_by_side(lines, gap)) if gap else []


def _gap_of(lines: Sequence[str]) -> int:
    """Return where the text can be cut from top to bottom with text on both sides; 0 if nowhere."""
    votes: Counter[int] = Counter()
    filled = [line.rstrip() for line in lines if line.strip()]
    for line in filled:
        begins = len(line) - len(line.lstrip())
        votes.update(
            at for match in _GAP.finditer(line) if match.start() > begins for at in range(match.start(), match.end())
        )
    if not votes:
        return 0
    most = max(votes.values())
    widest = {at for at, count in votes.items() if count == most}
    places = sorted(at for at in widest if at - 1 in widest) or sorted(widest)  # not at the edge of a gap
    gap = places[len(places) // 2]
    both = [parts for line in filled if all(parts := (line[:gap].strip(), line[gap:].strip())) and _is_cut(line, gap)]
    across = sum(not _is_cut(line, gap) for line in filled)
    if len(both) < ENOUGH_LINES or 3 * across > len(filled) or 2 * len(both) < len(filled) - across:
        return 0
    for side in zip(*both, strict=True):
        letters, words = (sum(map(count, side)) / len(side) for count in (len, lambda text: len(text.split())))
        if letters < ENOUGH_LETTERS or words < ENOUGH_WORDS:
            return 0
    return gap


def _is_cut(line: str, gap: int) -> bool:
    """Return whether no line's text crosses the gap."""
    return not line[gap - 1 : gap + 1].strip()


def _side_by_side(lines: Sequence[str], gap: int) -> Iterator[str]:
    """Yield the left column, then the right one, between lines that cross both."""
    for is_cut, band in itertools.groupby(lines, key=lambda line: _is_cut(line, gap)):
        rows = list(band)
        if not is_cut:
            yield from rows
            continue
        for column in ([row[:gap] for row in rows], [row[gap:] for row in rows]):
            further = _gap_of(column)
            yield from _side_by_side(column, further) if further else column
