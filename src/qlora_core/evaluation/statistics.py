"""How sure a share, a mean or a difference is: 95% intervals and a sign test.

Each interval is over the choice of rows or questions: what others of the same kind could have shown. It says nothing of
other kinds of text, nor of another seed.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
RESAMPLES = 2_000
MANY = 500  # rows from which on a mean is as good as normal, and Student's interval enough
FEWEST = 6  # pairs that differ; with fewer no sign test can come below 5%, and no difference is called one
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95% interval, over so many rows or questions.

    Attributes:
        value: what was measured.
        low: lower end; None where nothing can be said of how sure it is.
        high: upper end.
        count: rows or questions.
        changed: of a difference, the rows or questions that came out otherwise; None of any other number.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    changed: int | None = None

    @property
    def is_clear(self) -> bool:
        """Return whether zero lies outside: whether a difference is more than the choice of rows would make."""
        return self._leaves_zero_out and self._enough_changed

    @property
    def can_tell(self) -> bool:
        """Return whether there are rows enough to say that a difference is one, or that none is seen."""
        return self.count >= FEWEST and (self._enough_changed or not self._leaves_zero_out)

    @property
    def _leaves_zero_out(self) -> bool:
        return self.low is not None and (self.low > 0 or self.high < 0)

    @property
    def _enough_changed(self) -> bool:
        return min(self.count, self.count if self.changed is None else self.changed) >= FEWEST

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return {name: value for name, value in asdict(self).items() if name != "changed" or value is not None}


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


def mean_score(scores: ArrayLike) -> Estimate:
    """Return the mean of scores from 0 to 1, as of words in common, with an interval that is right for few, too.

    It is Agresti and Coull's of a share (1998, The American Statistician 52, 119), with two full and two empty scores
    added, and the spread that the scores have. A bootstrap of scores that are all 1 would leave no doubt at all.

    Raises:
        ValueError: there is no score.
    """
    scores = np.asarray(scores, np.float64)
    count = len(scores)
    if not count:
        raise ValueError("a mean of nothing")
    low, high = _with_added(scores.sum() + 2, (scores**2).sum() + 2, count + 4)
    return Estimate(float(scores.mean()), max(0.0, low), min(1.0, high), count)


def share_difference(ours: ArrayLike, theirs: ArrayLike) -> Estimate:
    """Return by how much the share of right answers, or the mean of scores from 0 to 1, is higher.

    The interval is Agresti and Min's (2005, Statistics in Medicine 24, 729): Wald's for matched pairs, with half an
    answer added to each of the four kinds of pairs. A bootstrap would be a single point where all pairs are alike.

    Args:
        ours: whether each answer is right, or its score, `(questions,)`.
        theirs: the same of the other model, to the same questions.

    Raises:
        ValueError: there is no question.
    """
    gained = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    count = len(gained)
    if not count:
        raise ValueError("a difference of nothing")
    low, high = _with_added(gained.sum(), (gained**2).sum() + 1, count + 2)
    return Estimate(float(gained.mean()), max(-1.0, low), min(1.0, high), count, int((gained != 0).sum()))


def _with_added(total: float, squares: float, count: int) -> tuple[float, float]:
    """Return the normal interval of a mean, of the sum of its values and of their squares."""
    middle, half = total / count, _Z * math.sqrt(squares - total * total / count) / count
    return float(middle - half), float(middle + half)


def weighted_mean(values: ArrayLike, weights: ArrayLike | None = None) -> Estimate:
    """Return the sum of `values` over that of `weights`, with an interval over rows: none for fewer than `FEWEST`.

    The loss a token is `weighted_mean(losses, tokens)`: summed over each row, a row brings its tokens along. The
    interval holds two others: Student's, with the jackknife's error and as many rows as would weigh the same if all
    were alike, which is right where rows are of unequal length; and the bootstrap-t (Efron and Tibshirani 1993, An
    Introduction to the Bootstrap, 12.5), which is right where few rows differ much more than the others.

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
    if count < FEWEST or weights.max() == weights.sum():
        return Estimate(found, None, None, count)
    below, above = _student_error(values - found * weights, weights)
    if count < MANY:
        below, above = np.maximum((below, above), _bootstrap_error(values - found * weights, weights))
    return Estimate(found, found - float(below), found + float(above), count)


def _student_error(rests: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return by how much a mean may be too high and too low, after Student, from what is left of each row."""
    count, total = len(rests), weights.sum()
    error = math.sqrt((count - 1) / count * ((rests / (total - weights)) ** 2).sum())
    alike = total**2 / (weights**2).sum()  # rows of the same weight that would tell as much
    half = _student(max(1, int(alike) - 1)) * error
    return half, half


def _bootstrap_error(rests: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return the same from rows drawn anew: how far their mean goes astray, in errors that they themselves tell.

    Draws of rows that are all alike tell no error, and are left out.
    """
    columns = np.stack([rests, weights, rests**2, rests * weights, weights**2], 1)
    count, telling = len(rests), len(rests) / (len(rests) - 1)
    error = math.sqrt(telling * columns[:, 2].sum()) / weights.sum()
    drawn = _draws(count) @ columns
    astray = drawn[:, 0] / drawn[:, 1]
    spread = np.maximum(drawn[:, 2] - 2 * astray * drawn[:, 3] + astray**2 * drawn[:, 4], 0)
    errors = np.sqrt(telling * spread) / drawn[:, 1]
    some = errors > 1e-6 * error
    if not some.any():
        return 0.0, 0.0
    low, high = np.quantile(astray[some] / errors[some], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(high * error), float(-low * error)


@functools.lru_cache(8)  # a run's validations all have the same number of rows
def _draws(count: int) -> np.ndarray:
    """Return how often each of so many rows is drawn, `(RESAMPLES, count)`; the same each time."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)


def mean_difference(ours: ArrayLike, theirs: ArrayLike, weights: ArrayLike | None = None) -> Estimate:
    """Return `weighted_mean` of the differences between paired values: each row brings both of its own."""
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return replace(weighted_mean(differences, weights), changed=int((differences != 0).sum()))


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
