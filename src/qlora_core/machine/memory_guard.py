"""Watch two things between steps: how much memory is left, and gradients far larger than before.

It decides from the numbers it is given, and the trainer acts on it. Nothing here changes what is learnt. Knows nothing
of mlx, of files or of clocks.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Literal

from ..translations import Sentence
from .memory import GB, MemorySample

SHORT = 2.0  # memory is short below this many times the limit
NEAR = 4.0  # growing swap only counts below this many times the limit asked for
SHARE_AT_START = 0.25  # the limit is at most this share of what is free after the first step: small machines can train
CRITICAL_SECONDS = 3.0  # memory must stay critical this long before training pauses: other programs have brief peaks
CALM_SECONDS = 30.0  # without a shortage, after which the next one counts as new
SWAP_SECONDS, SWAP_GROWTH = 30.0, 256_000_000  # swap grows if so many bytes are added in so many seconds, or faster

FEWEST_NORMS, RECENT_NORMS = 10, 50  # gradient norms whose median is the usual one: at least, at most
SPIKE = 10.0  # a norm this many times the usual one is a spike


# Memory ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """A decision about the memory.

    Attributes:
        action: clear the device's cache; save a checkpoint; or pause, which also saves.
        message: what was observed, as a clause.
    """

    action: Literal["clear", "save", "pause"]
    message: str


class MemoryGuard:
    """Acts before the machine runs out of memory, one action a step, the cheapest first.

    Memory is short when less than twice the limit is available, when the system warns, or when swap keeps growing while
    little is available. Then the cache is cleared, and if that does not help a checkpoint is saved, each once a
    shortage. Memory is critical below the limit, when the system says so, or when swap has kept growing; if that lasts
    for some seconds, training pauses. On a system that reports memory pressure, swap counts only while it warns: macOS
    moves idle programs to disk even when all is well.

    Args:
        limit: available bytes below which it pauses; 0: never act.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self._near = limit, NEAR * limit
        self._first: MemorySample | None = None
        self._cleared = self._saved = False
        self._short_at: float | None = None
        self._critical_since: float | None = None
        self._swap_mark: tuple[float, int] = (0.0, 0)
        self._swap_growth: list[int] = []  # growth in each of the last spans, if swap grew in all of them

    def look(self, sample: MemorySample, now: float) -> Decision | None:
        """Decide what to do after a step.

        Args:
            sample: the memory now.
            now: seconds of a monotonic clock.
        """
        if not self.limit:
            return None
        if self._first is None:
            self._first = sample
            self.limit = min(self.limit, SHARE_AT_START * sample.available)
            self._swap_mark = (now, sample.swap)
        self._follow_swap(sample, now)
        level = self._level(sample)
        if level < 2:
            self._critical_since = None
        if level == 0:
            if self._short_at is not None and now - self._short_at >= CALM_SECONDS:
                self._short_at, self._cleared, self._saved = None, False, False
            return None
        self._short_at = now
        if level == 2 and self._critical_since is None:
            self._critical_since = now
        if not self._cleared:
            self._cleared = True
            return Decision("clear", self._describe(sample))
        if self._critical_since is not None and now - self._critical_since >= CRITICAL_SECONDS:
            return Decision("pause", self._describe(sample))
        if not self._saved:
            self._saved = True
            return Decision("save", self._describe(sample))
        return None

    def _level(self, sample: MemorySample) -> int:
        """Return 0 if there is enough memory, 1 if it is short, 2 if it is critical."""
        pressure = sample.pressure or 0
        counts = sample.available < self._near and sample.pressure != 0
        swapping = len(self._swap_growth) if counts else 0
        if sample.available < self.limit or pressure >= 2 or swapping >= 2:
            return 2
        return int(sample.available < SHORT * self.limit or pressure == 1 or swapping == 1)

    def _follow_swap(self, sample: MemorySample, now: float) -> None:
        since, before = self._swap_mark
        if now - since >= SWAP_SECONDS:
            growth = sample.swap - before
            fast = growth * SWAP_SECONDS >= SWAP_GROWTH * (now - since)  # a step may take longer than the span
            self._swap_growth = [*self._swap_growth, growth] if fast else []
            self._swap_mark = (now, sample.swap)

    def _describe(self, sample: MemorySample) -> str:
        first = self._first or sample
        left, before = sample.available / GB, first.available / GB
        known = {"left": round(left, 1), "before": round(before, 1)}
        lost = first.available - sample.available
        own = max(sample.process - first.process, sample.active - first.active)
        if self._swap_growth:
            why = Sentence("{moved} GB were moved to the disk lately", moved=round(sum(self._swap_growth) / GB, 1))
        elif lost <= 0:
            why = Sentence("the system says that it is")
        elif own >= lost / 2:
            why = Sentence("this process grew by {grown} GB", grown=round(own / GB, 1))
        else:
            why = Sentence("other programs took it")
        return Sentence("memory is short: {left} GB available, {before} at the first step; {why}", why=why, **known)


# Gradients ------------------------------------------------------------------------------------------------------


class NormWatch:
    """Detects a gradient that is far larger than the recent ones."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=RECENT_NORMS)

    def spike(self, norm: float) -> float:
        """Record a gradient norm. Return its ratio to the recent median if it is a spike, else 0."""
        usual = statistics.median(self._norms) if len(self._norms) >= FEWEST_NORMS else 0.0
        self._norms.append(norm)
        return norm / usual if usual and norm > SPIKE * usual else 0.0
