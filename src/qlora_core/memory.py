"""What memory is used and what is free, of the machine, of this process and, when told how to ask, of the device.

Knows nothing of mlx: `device.memory_counters` is handed in by whoever has it.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

MB, GB = 1_000_000, 1_000_000_000

Counters = Callable[[], dict[str, int]]
"""Returns `active`, `peak` and, on a GPU with memory of its own, `free`, in bytes."""


@dataclass(frozen=True)
class MemorySample:
    """One look at the memory, in bytes.

    Attributes:
        available: what programs can still take without swapping; of the GPU where it has memory of its own.
        process: resident memory of this process now.
        process_peak: the most it ever was.
        active: held by the device's arrays.
        peak: the most that was.
    """

    available: int
    process: int
    process_peak: int
    active: int = 0
    peak: int = 0


class MemoryMonitor:
    """Looks at the memory, and says so on request.

    Args:
        report: called with each line that `log_memory` makes, `print` say.
        counters: the device's own numbers.
    """

    def __init__(self, report: Callable[[str], None] | None = None, counters: Counters | None = None) -> None:
        self.report = report
        self.counters = counters
        self._process = psutil.Process()

    def sample(self) -> MemorySample:
        """Look now."""
        device = self.counters() if self.counters else {}
        return MemorySample(
            available=device.get("free", available_bytes()),
            process=self._process.memory_info().rss,
            process_peak=peak_process_bytes(),
            active=device.get("active", 0),
            peak=device.get("peak", 0),
        )

    def log_memory(self, label: str) -> MemorySample:
        """Look now, and report `[Memory] label: …MB available`."""
        sample = self.sample()
        if self.report:
            self.report(f"[Memory] {label}: {sample.available // MB}MB available")
        return sample


def available_bytes() -> int:
    """Memory that can still be taken: of the machine, or of the container's limit where that is less."""
    available = psutil.virtual_memory().available
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is None or used is None:
        return available
    return min(available, max(limit - used + _cgroup_file_cache(), 0))


def total_bytes() -> int:
    """Memory of the machine, or the container's limit where that is less."""
    return min(psutil.virtual_memory().total, _cgroup("memory.max") or sys.maxsize)


def peak_process_bytes() -> int:
    """The most resident memory this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _cgroup(name: str) -> int | None:
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return None


def _cgroup_file_cache() -> int:
    """Cached file pages, which the kernel gives back when memory is asked for."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
