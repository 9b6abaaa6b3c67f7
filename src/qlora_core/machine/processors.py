"""Measure the use of the machine's processors.

Knows nothing of graphics processors, whose use needs libraries of their makers.
"""

from __future__ import annotations

import psutil


class ProcessorMeter:
    """Measures the share of the processors' time that was used, by all programs, since it was last asked."""

    def __init__(self) -> None:
        self._before = psutil.cpu_times()

    def percent(self) -> float | None:
        """Return it in percent of all processors; None if no time has passed."""
        before, self._before = self._before, psutil.cpu_times()
        spent = {name: getattr(self._before, name) - getattr(before, name) for name in self._before._fields}
        idle = spent["idle"] + spent.get("iowait", 0.0)
        # the kernel counts a guest's time as the user's too
        total = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)
        return round(100 * min(max(1 - idle / total, 0.0), 1.0), 1) if total > 0 else None
