"""How many validation rows a decision takes: what the loss on a few rows is worth. Knows only counts."""

from __future__ import annotations

import math

ENOUGH = 30  # rows; then the loss is known to a third, with the usual spread
WORTH_A_WORD = 6  # rows; where no more can be held out, nothing is said
MOST_SHARE = 5  # no more than a fifth of the rows is taken from training for it
SPREAD = 1.0  # standard deviation of rows' losses over their mean: as measured on 15 rows of the sample, trained


def uncertainty(rows: int, spread: float = SPREAD) -> float:
    """Return the half-width of the 95% interval of a mean loss over so many rows, as a share of it, at most 1.

    With fewer than about ten rows it is wider still.
    """
    return min(1.0, 1.96 * spread / math.sqrt(rows))


def rows_to_hold_out(rows: int) -> int:
    """Return how many of so many rows should validate; 0 where there are too few for any number to help."""
    wanted = min(ENOUGH, rows // MOST_SHARE)
    return wanted if wanted >= WORTH_A_WORD else 0
