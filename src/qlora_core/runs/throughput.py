"""How fast training is, from the durations of recent steps.

A step during which the process was stopped, or the machine slept, says nothing of the speed: it counts as long as its
neighbours. Steps are compared by their time per token, since they differ in length.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import ArrayLike

RECENT_STEPS = 50  # neighbours that a step is compared with, and recent steps that give speed and remaining time
TOO_LONG = 5.0  # a step with this many times the usual time per token was interrupted rather than slow


def counted_seconds(tokens: ArrayLike, seconds: ArrayLike) -> np.ndarray:
    """Return the duration that counts for each step, `(steps,)`: its own, or the usual one if it was interrupted."""
    tokens, seconds = np.asarray(tokens, np.float64), np.asarray(seconds, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = seconds / tokens
    each[~np.isfinite(each)] = np.inf
    usual = _medians(each)
    interrupted = (each > TOO_LONG * usual) & np.isfinite(each)
    return np.where(interrupted, tokens * np.where(interrupted, usual, 0.0), seconds)


def _medians(values: np.ndarray) -> np.ndarray:
    """Return for each value the median of its neighbours in blocks; for the newest values, of the last ones."""
    if len(values) <= RECENT_STEPS:
        return np.full(len(values), _median(values)) if len(values) else values
    whole = len(values) - len(values) % RECENT_STEPS
    medians = _median(values[:whole].reshape(-1, RECENT_STEPS))
    return np.append(np.repeat(medians, RECENT_STEPS), np.full(len(values) - whole, _median(values[-RECENT_STEPS:])))


def _median(values: np.ndarray) -> np.ndarray:
    return np.sort(values)[..., (values.shape[-1] - 1) // 2]


class Throughput:
    """Measures the speed of the most recent steps."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque(maxlen=RECENT_STEPS)

    def count(self, tokens: int, seconds: float) -> float:
        """Record a step; return the seconds that count for it."""
        self._steps.append((tokens, seconds))
        return float(self._counted()[1][-1])

    @property
    def tokens_per_second(self) -> float:
        """Return the tokens per second over recent steps; 0 before the first."""
        tokens, seconds = self._counted()
        return float(tokens.sum() / seconds.sum()) if seconds.sum() else 0.0

    def seconds_for(self, steps: int) -> float:
        """Return how long `steps` more steps will take; 0 before the first step."""
        _, seconds = self._counted()
        return steps * float(seconds.mean()) if len(seconds) else 0.0

    def _counted(self) -> tuple[np.ndarray, np.ndarray]:
        steps = np.array(self._steps, np.float64).reshape(-1, 2)
        return steps[:, 0], counted_seconds(steps[:, 0], steps[:, 1])
