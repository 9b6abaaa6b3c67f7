"""How sure a share, a mean or a difference is: 95% intervals and a sign test.

Each interval is over the choice of rows or questions: what others of the same kind could have shown. It says nothing of
other kinds of text, nor of another seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
RESAMPLES = 2_000
AT_ONCE = 2**20  # rows drawn at once, of all samples together
FEWEST = 6  # pairs; with fewer no sign test can come below 5%, and no difference is called one
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95% interval, over so many rows or questions.

    Attributes:
        value: what was measured.
        low: lower end; None where nothing can be said of how sure it is.
        high: upper end.
        count: rows or questions.
    """

    value: float
    low: float | None
    high: float | None
    count: int

    @property
    def is_clear(self) -> bool:
        """Return whether zero lies outside: whether a difference is more than the choice of rows would make."""
        return self.count >= FEWEST and self.low is not None and (self.low > 0 or self.high < 0)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return asdict(self)


def share(right: int, total: int) -> Estimate:
    """Return the share of right answers with Wilson's score interval.

    Raises:
        ValueError: there is no answer.
    """
    if not total:
        raise ValueError("a share of nothing")
    found, z2 = right / total, _Z * _Z
    middle = (found + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(found * (1 - found) / total + z2 / (4 * total * total))
    return Estimate(found, max(0.0, middle - half), min(1.0, middle + half), total)


def share_difference(ours: ArrayLike, theirs: ArrayLike) -> Estimate:
    """Return by how much the share of right answers is higher, to the same questions.

    The interval is Agresti and Min's (2005, Statistics in Medicine 24, 729): Wald's for matched pairs, with half an
    answer added to each of the four kinds of pairs. A bootstrap would be a single point where all pairs are alike.

    Args:
        ours: whether each answer is right, `(questions,)`.
        theirs: the same of the other model.

    Raises:
        ValueError: there is no question.
    """
    ours, theirs = np.asarray(ours, bool), np.asarray(theirs, bool)
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    count = len(ours)
    if not count:
        raise ValueError("a difference of nothing")
    b, c, n = gained + 0.5, lost + 0.5, count + 2
    middle, half = (b - c) / n, _Z * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    return Estimate((gained - lost) / count, max(-1.0, middle - half), min(1.0, middle + half), count)


def weighted_mean(values: ArrayLike, weights: ArrayLike | None = None) -> Estimate:
    """Return the sum of `values` over that of `weights`, with a bootstrap interval over rows.

    The loss a token is `weighted_mean(losses, tokens)`: summed over each row, a row brings its tokens along. The
    percentiles are moved outwards as Student's t asks for ("expanded percentile": Hesterberg 2015, The American
    Statistician 69, 371), since those of few rows are too narrow.

    Args:
        values: `(rows,)`.
        weights: `(rows,)`; 1 each if not given.

    Raises:
        ValueError: there is no row.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    count = len(values)
    if not count:
        raise ValueError("a mean of nothing")
    found = float(values.sum() / weights.sum())
    if count < 2:
        return Estimate(found, None, None, count)
    resampled = np.concatenate(list(_resampled(values, weights)))
    outside = NormalDist().cdf(-math.sqrt(count / (count - 1)) * _student(count - 1))
    low, high = np.quantile(resampled, [outside, 1 - outside])
    return Estimate(found, float(low), float(high), count)


def _resampled(values: np.ndarray, weights: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the means of rows drawn anew `RESAMPLES` times, the same each time; a few at once, for want of memory."""
    count, left, rng = len(values), RESAMPLES, np.random.default_rng(0)
    while left:
        some = min(left, max(1, AT_ONCE // count))
        drawn = rng.integers(0, count, (some, count))
        yield values[drawn].sum(1) / weights[drawn].sum(1)
        left -= some


def mean_difference(ours: ArrayLike, theirs: ArrayLike, weights: ArrayLike | None = None) -> Estimate:
    """Return `weighted_mean` of the differences between paired values: each row brings both of its own."""
    return weighted_mean(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64), weights)


def mean_of_few(values: ArrayLike) -> Estimate:
    """Return the mean of a few numbers, as of seeds, with Student's interval: two say little, and it is wide."""
    values = np.asarray(values, np.float64)
    count, found = len(values), float(values.mean())
    if count < 2:
        return Estimate(found, None, None, count)
    half = _student(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return Estimate(found, found - half, found + half, count)


def sign_test(gained: int, lost: int) -> float:
    """Return how often chance alone would be so uneven, in both directions: the exact binomial test (McNemar's)."""
    changed = gained + lost
    if not changed:
        return 1.0
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
    return min(1.0, 2 * tail)


def _student(freedom: int) -> float:
    """Return the quantile of Student's t for the confidence.

    It is the Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5), right to 0.1% from four degrees of freedom on;
    below stand the exact values.
    """
    if freedom <= 3:
        return {1: 12.706, 2: 4.303, 3: 3.182}[freedom]
    z, n = _Z, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, 1))
