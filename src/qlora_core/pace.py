"""How fast training is, by the last steps' own times.

A step during which the process was stopped, or the machine slept, says nothing of the speed: it is left out. Steps are
compared by their time a token, since they differ in length.
"""

from __future__ import annotations

from collections import deque

import numpy as np

RECENT_STEPS = 50  # of which speed and time left are told
TOO_LONG = 5.0  # times the usual time a token, from which a step was interrupted rather than slow


def uninterrupted(tokens: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Which of some neighbouring steps, `(steps,)`, took about as long as the others: booleans, `(steps,)`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.asarray(seconds, np.float64) / np.asarray(tokens, np.float64)
    known = np.isfinite(each)
    if not known.any():
        return known
    return known & (np.where(known, each, np.inf) <= TOO_LONG * np.median(each[known]))


class Pace:
    """The last steps of a training, as it goes on."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)

    def count(self, tokens: int, seconds: float) -> float:
        """Take in a step; how long it took, without the time that the process was stopped in it."""
        self._steps.append((tokens, seconds))
        kept, last = self._kept()
        if last:
            return seconds
        return tokens * float(kept[:, 1].sum() / kept[:, 0].sum())

    @property
    def tokens_per_second(self) -> float:
        """Over the last steps; 0 before the first."""
        kept, _ = self._kept()
        total = float(kept[:, 1].sum())
        return float(kept[:, 0].sum()) / total if total else 0.0

    def seconds_for(self, steps: int) -> float:
        """How long so many more steps will take; 0 before the first."""
        kept, _ = self._kept()
        return steps * float(kept[:, 1].mean()) if len(kept) else 0.0

    def _kept(self) -> tuple[np.ndarray, bool]:
        """Tokens and seconds of the steps that were not interrupted, `(steps, 2)`, and whether the last is of them."""
        steps = np.array(self._steps, np.float64).reshape(-1, 2)
        mask = uninterrupted(steps[:, 0], steps[:, 1])
        return steps[mask], bool(len(mask) and mask[-1])
