"""The time that each part of a run took, over all processes that trained it. Knows clocks and names of parts only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psutil

PARTS = {
    "loading": "loading",
    "training": "training",
    "validation": "validation",
    "samples": "sample answers",
    "saving": "saving",
    "evaluation": "final test",
}
"""Parts of a run, and the text for each. `loading` is everything before the first step; `training` is only the steps,
which the trainer counts itself, together with their tokens."""


def process_age() -> float:
    """Return the seconds since this process began; 0 if the clock was set back meanwhile."""
    return max(0.0, time.time() - psutil.Process().create_time())


class TimeSpent:
    """Counts the seconds of each part of a run.

    Args:
        seconds: seconds counted so far, by part; added to in place, since a checkpoint stores it.
        began: when this process began, by `time.monotonic`.
    """

    def __init__(self, seconds: dict[str, float], began: float) -> None:
        self.seconds = seconds
        self.counted = self.began = began

    @contextlib.contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count the time of the block for `part`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._add(part, time.monotonic() - started)

    def loaded(self) -> None:
        """Count all the time until now as loading."""
        self._add("loading", time.monotonic() - self.began)

    def until_now(self) -> None:
        """Add the time since the last call to the total, including time that belongs to no part."""
        now = time.monotonic()
        self._add("total", now - self.counted)
        self.counted = now

    def as_summary(self) -> dict[str, Any]:
        """Return `{"loading_seconds", …, "total_seconds"}` until now."""
        self.until_now()
        counted = [part for part in (*PARTS, "total") if part != "training"]
        return {f"{part}_seconds": self.seconds.get(part, 0.0) for part in counted}

    def _add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
