"""Rows that are nearly equal, and rows on both sides of a split. Knows nothing of files.

Two rows are taken for near duplicates when they share a band: eight of the forty minima of a MinHash over every five
neighbouring bytes of their texts, capitals aside (Broder, 1997; bands as in Leskovec, Rajaraman and Ullman, *Mining of
Massive Datasets*, 3.4). Of pairs whose pieces are nine tenths the same that finds 94%, of pairs half the same 2%.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BANDS, MINIMA = 5, 8
PIECE = 5  # bytes
PATTERN = 20  # rows
SHORT = 24  # bytes: shorter texts are only ever compared as a whole


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Return a number for each band of each text: uint64, `(texts, BANDS)`; 0 where a text is too short to compare."""
    import rensa

    encoded = [text.casefold().encode("utf-8", "replace") for text in texts]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    compared = np.flatnonzero(lengths >= SHORT)
    bands = np.zeros((len(texts), BANDS), np.uint64)
    if not len(compared):
        return bands
    joined = np.frombuffer(b"".join(encoded[i] for i in compared), np.uint8)
    pieces = _mixed(joined)
    ends = np.cumsum(lengths[compared])
    inside = np.ones(len(joined), bool)  # no piece reaches from one text into the next
    for back in range(1, PIECE):
        inside[ends - back] = False
    offsets = np.concatenate([[0], np.cumsum(lengths[compared] - PIECE + 1)])
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        pieces[inside[: len(pieces)]], offsets.astype(np.uint64), BANDS * MINIMA, 1
    )
    minima = np.array(matrix.to_rows(), np.uint64).reshape(-1, BANDS, MINIMA)
    odd = np.uint64(0x9E3779B97F4A7C15)
    found = np.zeros(minima.shape[:2], np.uint64)
    for place in range(MINIMA):
        found = (found ^ minima[:, :, place]) * odd
        found ^= found >> np.uint64(29)
    bands[compared] = found | np.uint64(1)
    return bands


def _mixed(joined: np.ndarray) -> np.ndarray:
    """Return a hash of every `PIECE` neighbouring bytes: uint64, `(bytes - PIECE + 1,)` (the mixing of splitmix64)."""
    count = len(joined) - PIECE + 1
    hashes = np.zeros(count, np.uint64)
    for place in range(PIECE):
        hashes = (hashes << np.uint64(8)) | joined[place : place + count]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


def components(keys: np.ndarray) -> np.ndarray:
    """Return the connected components of rows: int64, `(rows,)`, the index of the first row of each one's component.

    Args:
        keys: uint64, `(rows, columns)`; two rows with an equal number other than 0 in a column belong together, and so
            does whatever hangs together through others.
    """
    labels = np.arange(len(keys))
    columns = [_shared(column) for column in keys.T]
    while True:
        before = labels.copy()
        for order, starts, sizes in columns:
            if len(order):
                labels[order] = np.repeat(np.minimum.reduceat(labels[order], starts), sizes)
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels


def near_duplicates(bands: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find near duplicates, and rows that only follow a pattern: the same words around other names.

    Near duplicates come in small groups. Where more than `PATTERN` rows and a hundredth of all hang together, they are
    a list of facts asked in one form: each says something new, and some of them may well be held out.

    Args:
        bands: uint64, `(rows, BANDS)`.

    Returns:
        int64, `(rows,)`: the components, in which a patterned row is alone; and bool, `(rows,)`: whether it is one.
    """
    labels = components(bands)
    patterned = np.bincount(labels, minlength=len(labels))[labels] > max(PATTERN, len(labels) / 100)
    return np.where(patterned, np.arange(len(labels)), labels), patterned


def _shared(column: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows with shared numbers, ordered by number; where each number begins; and how many rows have it."""
    order = np.argsort(column, kind="stable")
    order = order[np.searchsorted(column[order], 1) :]
    values = column[order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.zeros(0, int)
    sizes = np.diff(np.append(starts, len(values)))
    kept = np.repeat(sizes > 1, sizes)
    sizes = sizes[sizes > 1]
    return order[kept], np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int) if len(sizes) else sizes, sizes


def shared_across(keys: np.ndarray, side: np.ndarray) -> int:
    """Count the rows of one side that share a number other than 0, in any column, with a row of the other side.

    Args:
        keys: uint64, `(rows, columns)`.
        side: bool, `(rows,)`; the rows where it is True are counted.
    """
    leaking = np.zeros(int(side.sum()), bool)
    for column in keys.T:
        here, there = column[side], np.sort(column[~side])
        if len(there):
            found = there[np.minimum(np.searchsorted(there, here), len(there) - 1)]
            leaking |= (found == here) & (here > 0)
    return int(leaking.sum())


def members(groups: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return bool, `(rows,)`: whether a row's group (a row index as `components` gives it) is among the chosen."""
    among = np.zeros(len(groups), bool)
    among[chosen] = True
    return among[groups]


def alike(one: str, other: str) -> float:
    """Return the share of the pieces of two texts that both contain (Jaccard)."""
    first, second = (
        {text[i : i + PIECE] for i in range(len(text) - PIECE + 1)}
        for text in (one.casefold().encode("utf-8", "replace"), other.casefold().encode("utf-8", "replace"))
    )
    return len(first & second) / max(len(first | second), 1)
