"""Sources that are copies of one text, and rows of one copy that repeat rows of another. Knows no files.

Copies of a book are cut into passages at different places, so that no two rows are equal; they share runs of `RUN`
neighbouring words. To recognise copies, only every `KEPT`th run of a row, by its hash, is kept, in a thousandth of the
memory (Broder, 1997). Rows are then compared by all of their runs.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

RUN = 8  # words
KEPT = 32  # one run in this many is kept to recognise copies
SHARED = 0.25  # share of the smaller source's runs in a copy; other texts on one subject share 1%
LEAST = 8  # kept runs that a source needs to be compared, about 250 words
OVERLAP = 0.1  # share of the shorter row's runs: a sentence or two
COMMON = 20  # sources; a run found in more of them is a common phrase
_WORD = re.compile(r"\w+")
_ODD = np.uint64(0x9E3779B97F4A7C15)


def runs_of(text: str) -> np.ndarray:
    """Return a hash of every `RUN` neighbouring words, ignoring case and punctuation: uint64, `(words - RUN + 1,)`."""
    found = _WORD.findall(text.casefold())
    words = np.fromiter((zlib.crc32(word.encode("utf-8", "replace")) for word in found), np.uint64, len(found))
    count = len(words) - RUN + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for place in range(RUN):
        hashes = (hashes ^ words[place : place + count]) * _ODD
        hashes ^= hashes >> np.uint64(29)
    return hashes


def marks_of(texts: Iterable[str]) -> np.ndarray:
    """Return the runs of all texts that are kept to recognise copies: uint64, each once."""
    found = [runs[runs % np.uint64(KEPT) == 0] for runs in map(runs_of, texts)]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)


def find_copies(marks: Sequence[np.ndarray]) -> list[tuple[int, int, float]]:
    """Return pairs of sources of which one holds a good part of the other.

    Args:
        marks: runs of each source, as `marks_of` gives them.

    Returns:
        `(earlier, later, share)` for each pair, the share being that of the runs of the smaller one.
    """
    sizes = np.array([len(each) for each in marks], np.int64)
    if (sizes >= LEAST).sum() < 2:
        return []
    values = np.concatenate(list(marks))
    owners = np.repeat(np.arange(len(marks)), sizes)
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    counts = np.diff(np.append(starts, len(values)))
    shared: dict[tuple[int, int], int] = {}
    common = (counts > 1) & (counts <= COMMON)
    for start, count in zip(starts[common].tolist(), counts[common].tolist(), strict=True):
        for pair in itertools.combinations(owners[start : start + count].tolist(), 2):
            shared[pair] = shared.get(pair, 0) + 1
    found = []
    for (one, other), count in sorted(shared.items()):
        least = int(min(sizes[one], sizes[other]))
        if least >= LEAST and count / least >= SHARED:
            found.append((one, other, count / least))
    return found


def overlap(runs: np.ndarray, known: np.ndarray) -> int:
    """Count the runs of a row that others contain too.

    Args:
        runs: runs of the row, as `runs_of` gives them.
        known: runs of the others, sorted.
    """
    if not len(known) or not len(runs):
        return 0
    places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
    return int((known[places] == runs).sum())
