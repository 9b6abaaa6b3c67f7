"""The prefix that many rows share, such as a system text: which tokens it is, and which rows begin with it.

Knows only numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from .rows import TokenRow

SHORTEST = 16  # tokens; a shorter prefix saves little (measured on a CPU: 16 of 94 tokens a row saved a twentieth)
LOOKED_AT = 1_000  # evenly spaced rows that are compared to find the prefix
NO_PREFIX = np.zeros(0, np.int32)


def common_prefix(rows: Sequence[TokenRow]) -> np.ndarray:
    """Return the prefix that saves most tokens when all rows that begin with it share it; empty if none does.

    Its token ids are int32, `(P,)`.
    No row is trained on a token of the prefix, nor on the next one: the last hidden state before a trained token must
    belong to one row alone.
    """
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT), dtype=np.int64))]
    beginnings = sorted((row.ids[: max(_untrained(row) - 1, 0)] for row in chosen), key=lambda ids: ids.tolist())
    # sorted, rows with a common prefix are next to each other; alike[i]: tokens that rows i and i + 1 have in common
    alike = np.array([_agreement(one, other) for one, other in itertools.pairwise(beginnings)])
    best = NO_PREFIX
    saved = 0
    for length in np.unique(alike[alike >= SHORTEST]):
        first, last = max(_stretches(alike >= length), key=lambda stretch: stretch[1] - stretch[0])
        if length * (last - first) > saved:  # every row but the first saves the prefix
            best, saved = beginnings[first][:length], length * (last - first)
    return np.array(best, np.int32)


def _untrained(row: TokenRow) -> int:
    """Return the number of tokens before the first trained one."""
    return int(row.trained.argmax()) if row.trained.any() else len(row)


def _agreement(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many tokens two rows have in common before the first that differs."""
    size = min(len(one), len(other))
    different = one[:size] != other[:size]
    return int(different.argmax()) if different.any() else size


def _stretches(which: np.ndarray) -> list[tuple[int, int]]:
    """Return the runs of True as pairs: index of the first, and index after the last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], which, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def begins_with(row: TokenRow, prefix: np.ndarray) -> bool:
    """Return whether a row may share this prefix; never for an empty one."""
    size = len(prefix)
    return 0 < size < len(row) and not row.trained[: size + 1].any() and np.array_equal(row.ids[:size], prefix)


def part(row: TokenRow, begin: int, end: int | None = None) -> TokenRow:
    """Return some tokens of a row as a row."""
    here = slice(begin, end)
    states = None if row.states is None else row.states[here]
    return dataclasses.replace(row, ids=row.ids[here], trained=row.trained[here], states=states)
