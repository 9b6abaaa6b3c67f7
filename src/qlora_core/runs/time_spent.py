"""Where the time of a run goes, over all the processes that trained it. Knows clocks and names of parts only."""

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
"""Parts of a run and their words. `loading` is all before the first step; `training` is the steps alone, which the
trainer counts itself with their tokens."""


def process_age() -> float:
    """Seconds since this process began; 0 where the clock was set back meanwhile."""
    return max(0.0, time.time() - psutil.Process().create_time())


class TimeSpent:
    """Counts seconds of a run's parts.

    Args:
        seconds: what was counted so far, by part; added to in place, since a checkpoint keeps it.
        began: when this process began, by `time.monotonic`.
    """

    def __init__(self, seconds: dict[str, float], began: float) -> None:
        self.seconds = seconds
        self.counted = self.began = began

    @contextlib.contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count what the block takes."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._add(part, time.monotonic() - started)

    def loaded(self) -> None:
        """Count everything until now as loading."""
        self._add("loading", time.monotonic() - self.began)

    def until_now(self) -> None:
        """Count whatever passed since this was last called, and was no part, in the total as well."""
        now = time.monotonic()
        self._add("total", now - self.counted)
        self.counted = now

    def as_summary(self) -> dict[str, Any]:
        """`{"loading_seconds", …, "total_seconds"}` until now."""
        self.until_now()
        counted = [part for part in (*PARTS, "total") if part != "training"]
        return {f"{part}_seconds": self.seconds.get(part, 0.0) for part in counted}

    def _add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
