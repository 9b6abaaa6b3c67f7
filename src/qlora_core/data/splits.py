"""Which rows are held out for validation. Knows hashes and groups, nothing of texts."""

from __future__ import annotations

import numpy as np

from .duplicates import members

ENOUGH_REPLIES = 20  # rows with a prompt and a reply from which validation is drawn from them alone


def split(
    places: np.ndarray, groups: np.ndarray, replies: np.ndarray, *, val_fraction: float, val_rows: int = 0
) -> np.ndarray:
    """Choose the rows to validate on: the same row falls on the same side whatever else is there.

    Validation is drawn from the rows that answer a prompt, where there are `ENOUGH_REPLIES` of them: a passage of a
    book or a document holds what no other row says, so without it that would be lost, and the loss on it would tell
    how surprising it is, not how well the model answers. Else it is drawn from all rows; where there are two groups
    and a share above 0 was asked for, both sides get one, if need be that nearest to them. A group of
    more than half of the rows is held out only where there is no smaller one.

    Args:
        places: float, `(rows,)`, from 0 to 1: a hash of each row (or of its document).
        groups: int, `(rows,)`: the index of the first row of each one's group, which stays together.
        replies: bool, `(rows,)`: whether validation may be drawn from it, while there are enough.
        val_fraction: groups whose place is below it are chosen.
        val_rows: instead, groups in the order of their places until so many rows are reached.

    Returns:
        bool, `(rows,)`: True for validation.
    """
    rows = len(places)
    eligible = replies if replies.sum() >= ENOUGH_REPLIES else np.ones(rows, bool)
    heads = np.flatnonzero(np.bincount(groups[eligible], minlength=rows))  # groups, by their first rows
    sizes = np.bincount(groups, minlength=rows)
    if (small := sizes[heads] <= rows / 2).any():  # a book beside some letters is not to be held out
        heads = heads[small]
    where = places[heads]
    if val_rows:
        order = heads[np.argsort(where, kind="stable")]
        reached = np.cumsum(sizes[order])
        chosen = order[: int(np.searchsorted(reached, val_rows)) + 1]
    else:
        chosen = heads[where < val_fraction]
        if val_fraction > 0 and len(heads) > 1 and not len(chosen):
            chosen = heads[[np.argmin(where)]]
    if len(chosen) and members(groups, chosen).all():  # something must be left to train
        chosen = np.delete(chosen, np.argmax(places[chosen]))
    return members(groups, chosen)
