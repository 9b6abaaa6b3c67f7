"""Roman numerals of chapters, as scanning leaves them. Knows nothing of what a line means."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

ROMAN = {
    tens + ones: 10 * ten + one
    for ten, tens in enumerate(("", "x", "xx", "xxx", "xl", "l", "lx", "lxx", "lxxx", "xc"))
    for one, ones in enumerate(("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix"))
}
SPECKS = r"/\\|~^_¬¦`´•■□¤°'’‘.,:;<>=*-"  # what dust and the edge of a page become
_MISREAD = str.maketrans("l1|!íÍj", "IIIIIII")
_NUMERAL = re.compile(rf"[\s{SPECKS}]*([IVXLl1|!íÍj]{{1,8}})[\s{SPECKS}]*")


def numeral_in(line: str) -> int:
    """Return the value of a line that is one capital Roman numeral, ignoring specks around it; 0 otherwise.

    An I that was misread as l, 1 or ! counts as I, if a letter shows that the line is a numeral and no page number.
    """
    match = _NUMERAL.fullmatch(line) if len(line) <= 24 else None
    if not match or not re.search("[IVX]", match[1]):
        return 0
    return ROMAN.get(match[1].translate(_MISREAD).casefold(), 0)


def written(number: int) -> str:
    """Return a number below a hundred as a Roman numeral."""
    return next(text for text, value in ROMAN.items() if value == number).upper()


def chapters_among(numbers: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the numbers that count chapters: nearly all of 1, 2, 3 …, in order; none if they do not look like it.

    Args:
        numbers: `(line, value)` in the order of the lines.
    """
    chain = longest_growing(numbers)
    if not chain:
        return []
    last = chain[-1][1]
    whole = len(chain) == last > 1 and len(chain) == len(numbers)
    nearly = len(chain) > 2 and chain[0][1] <= 3 and 3 * len(chain) >= 2 * last and 2 * len(chain) > len(numbers)
    return chain if whole or nearly else []


def longest_growing(numbers: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest increasing subsequence of `(position, value)`."""
    tails: list[int] = []  # the lowest number at which a chain of each length ends
    ends: list[int] = []
    before: list[int] = []
    for at, (_, value) in enumerate(numbers):
        length = bisect_left(tails, value)
        tails[length : length + 1] = [value]
        ends[length : length + 1] = [at]
        before.append(ends[length - 1] if length else -1)
    chain, at = [], ends[-1] if ends else -1
    while at >= 0:
        chain.append(numbers[at])
        at = before[at]
    return chain[::-1]
