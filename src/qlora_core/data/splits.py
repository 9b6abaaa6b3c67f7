"""Choice of rows held out for validation. Knows hashes, groups and sources, nothing of texts."""

from __future__ import annotations

import numpy as np

from .duplicates import members


def split(
    places: np.ndarray, groups: np.ndarray, sources: np.ndarray, *, val_fraction: float, val_rows: int = 0
) -> np.ndarray:
    """Choose the validation rows: the same row falls on the same side whatever else there is.

    Every group is chosen by its own hash. A source so large that its share is a row or more gets a group even if none
    of its own falls low enough: the nearest one. With two groups in all and a share above 0, both sides get one. A
    group of more than half of the rows is held out only if there is no smaller one.

    Args:
        places: float, `(rows,)`, from 0 to 1: a hash of each row (or of its document).
        groups: int, `(rows,)`: the index of the first row of each one's group, which stays together.
        sources: int, `(rows,)`: the number of the source that a row comes from.
        val_fraction: groups whose place is below it are chosen.
        val_rows: instead, groups in the order of their places until so many rows are reached.

    Returns:
        bool, `(rows,)`: True for validation.
    """
    rows = len(places)
    sizes = np.bincount(groups, minlength=rows)
    heads = np.flatnonzero(sizes)  # groups, by their first rows
    if (small := sizes[heads] <= rows / 2).any():  # do not hold out a book that stands beside some letters
        heads = heads[small]
    where = places[heads]
    if val_rows:
        order = heads[np.argsort(where, kind="stable")]
        reached = np.cumsum(sizes[order])
        chosen = order[: int(np.searchsorted(reached, val_rows)) + 1]
    else:
        chosen = heads[where < val_fraction]
        if val_fraction > 0:
            chosen = np.append(chosen, _from_each_source(places, groups, sources, chosen, 1 / val_fraction)).astype(int)
            if len(heads) > 1 and not len(chosen):
                chosen = heads[[np.argmin(where)]]
    if len(chosen) and members(groups, chosen).all():  # some rows must be left to train on
        chosen = np.delete(chosen, np.argmax(places[chosen]))
    return members(groups, chosen)


def _from_each_source(
    places: np.ndarray, groups: np.ndarray, sources: np.ndarray, chosen: np.ndarray, least: float
) -> list[int]:
    """Return, for each source of at least so many rows without a chosen group, its group with the lowest place."""
    held_out = members(groups, chosen)
    counts = np.bincount(sources, minlength=1)
    covered = np.bincount(sources[held_out], minlength=len(counts))
    found = []
    for source in np.flatnonzero((counts >= least) & (covered == 0)):
        heads, sizes = np.unique(groups[sources == source], return_counts=True)
        heads = heads[sizes <= counts[source] / 2]
        if len(heads):
            found.append(int(heads[np.argmin(places[heads])]))
    return found
