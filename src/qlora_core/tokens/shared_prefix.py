"""The beginning that many rows share, a system text say: which tokens it is, and rows that have it taken apart.

Knows numbers only.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from .rows import TokenRow

SHORTEST = 16  # tokens; a shorter one saves little (measured on a CPU: 16 of 94 a row, a twentieth)
LOOKED_AT = 1_000  # rows, evenly spaced, that decide
NO_PREFIX = np.zeros(0, np.int32)


def common_prefix(rows: Sequence[TokenRow]) -> np.ndarray:
    """Token ids of the beginning that saves most if all rows that have it share one, int32, `(P,)`; empty if none does.

    No row is trained on it, nor on the token after it: what predicts a trained token belongs to one row alone.
    """
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT), dtype=np.int64))]
    beginnings = sorted((row.ids[: max(_untrained(row) - 1, 0)] for row in chosen), key=lambda ids: ids.tolist())
    alike = np.array([_agreement(one, other) for one, other in itertools.pairwise(beginnings)])
    best = NO_PREFIX
    saved = 0
    for length in np.unique(alike[alike >= SHORTEST]):
        # sorted, those that begin alike are next to each other
        first, last = max(_stretches(alike >= length), key=lambda stretch: stretch[1] - stretch[0])
        if length * (last - first) > saved:
            best, saved = beginnings[first][:length], length * (last - first)
    return np.array(best, np.int32)


def _untrained(row: TokenRow) -> int:
    """Tokens before the first that is trained."""
    return int(row.trained.argmax()) if row.trained.any() else len(row)


def _agreement(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two rows have in common before the first that differs."""
    size = min(len(one), len(other))
    different = one[:size] != other[:size]
    return int(different.argmax()) if different.any() else size


def _stretches(which: np.ndarray) -> list[tuple[int, int]]:
    """Where True follows True: the first of each stretch, and the one after its last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], which, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def begins_with(row: TokenRow, prefix: np.ndarray) -> bool:
    """Whether a row may share this beginning; no row shares none."""
    size = len(prefix)
    return 0 < size < len(row) and not row.trained[: size + 1].any() and np.array_equal(row.ids[:size], prefix)


def part(row: TokenRow, begin: int, end: int | None = None) -> TokenRow:
    """Some tokens of a row, as a row."""
    here = slice(begin, end)
    states = None if row.states is None else row.states[here]
    return dataclasses.replace(row, ids=row.ids[here], trained=row.trained[here], states=states)
