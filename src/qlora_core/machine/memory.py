"""Memory in use and free: of the machine, of this process and, if told how to ask, of the device.

Knows nothing of mlx: `device.memory_counters` is passed in by whoever has it.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

MB, GB = 1_000_000, 1_000_000_000

Counters = Callable[[], dict[str, int]]
"""Returns `active`, `peak` and, on a GPU, `free`, in bytes."""
VM_STAT = "/usr/bin/vm_stat"


@dataclass(frozen=True)
class MemorySample:
    """Memory at one moment, in bytes.

    Attributes:
        available: what programs can still take without swapping; that of the GPU if it has memory of its own, and on
            Apple silicon no more than the GPU should have.
        process: memory of this process: resident memory, or on macOS its footprint, which includes compressed pages.
        process_peak: highest resident memory of this process so far.
        active: memory held by the device's arrays.
        peak: highest `active` so far.
        swap: what the whole machine has moved to disk.
        pressure: 1 if the system warns that memory is short, 2 if it is critical, else 0; None on systems that do not
            say, such as Linux.
    """

    available: int
    process: int
    process_peak: int
    active: int = 0
    peak: int = 0
    swap: int = 0
    pressure: int | None = None


class MemoryMonitor:
    """Measures memory, and reports it on request.

    Args:
        report: called with each line that `log_memory` makes, for example `print`.
        counters: returns the device's own numbers.

    Attributes:
        workers: returns what processes that compute for this one have taken, by the names of `MemorySample`. It is
            added, so peaks are an upper bound: they need not have occurred at the same time.
    """

    def __init__(self, report: Callable[[str], None] | None = None, counters: Counters | None = None) -> None:
        self.report = report
        self.counters = counters
        self.workers: Callable[[], dict[str, int]] | None = None
        self._process = psutil.Process()

    def sample(self) -> MemorySample:
        """Look now."""
        device = self.counters() if self.counters else {}
        beside = self.workers() if self.workers else {}
        process = _footprint(self._process.pid) or self._process.memory_info().rss
        return MemorySample(
            available=device["free"] if "free" in device else available_bytes(),
            process=process + beside.get("process", 0),
            process_peak=peak_process_bytes() + beside.get("process_peak", 0),
            active=device.get("active", 0) + beside.get("active", 0),
            peak=device.get("peak", 0) + beside.get("peak", 0),
            swap=swap_bytes(),
            pressure=_pressure(),
        )

    def log_memory(self, label: str) -> MemorySample:
        """Measure now, and report `[Memory] label: …MB available`."""
        sample = self.sample()
        if self.report:
            self.report(f"[Memory] {label}: {sample.available // MB}MB available")
        return sample


def available_bytes() -> int:
    """Return the memory that can still be taken: of the machine, or of the container's limit if that is less."""
    memory = psutil.virtual_memory()
    available = memory.available
    if sys.platform == "darwin":
        available = _left_by_vm_stat(_vm_stat(), memory.total) or available
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is None or used is None:
        return available
    return min(available, max(limit - used + _cgroup_file_cache(), 0))


def total_bytes() -> int:
    """Return the machine's memory, or the container's limit if that is less."""
    return min(psutil.virtual_memory().total, _cgroup("memory.max") or sys.maxsize)


def peak_process_bytes() -> int:
    """Return the highest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def swap_bytes() -> int:
    """Return how much the machine has moved to disk."""
    if sys.platform != "linux":
        return psutil.swap_memory().used
    found = {}  # psutil reads a second file for it, and warns where that is missing
    with contextlib.suppress(OSError), open("/proc/meminfo", "rb") as file:  # noqa: PTH123 - three times as fast
        for line in file:
            if line.startswith(b"Swap"):
                name, value = line.split()[:2]
                found[name] = int(value) * 1024
    return found.get(b"SwapTotal:", 0) - found.get(b"SwapFree:", 0)


def _vm_stat() -> str:
    """Return what macOS's `vm_stat` prints; empty if it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # descriptors stay open: Python then spawns it, and does not fork a process whose GPU is at work
        return subprocess.run([VM_STAT], capture_output=True, text=True, timeout=5, check=True, close_fds=False).stdout
    return ""


def _left_by_vm_stat(text: str, total: int) -> int:
    """Return how many of `total` bytes are free as Activity Monitor counts it, from the output of `vm_stat`.

    Programs' own pages, wired pages and those that hold compressed ones count as taken; cached files do not. psutil
    counts inactive pages as free, though some must be written to disk first, and active pages of files as taken.
    Returns 0 if a number is missing. Not yet run on a Mac.
    """
    page = re.search(r"page size of (\d+) bytes", text)
    pages = {name: int(number) for name, number in re.findall(r'^"?([^:"]+)"?:\s+(\d+)\.?$', text, re.MULTILINE)}
    try:
        anonymous, purgeable = pages["Anonymous pages"], pages["Pages purgeable"]
        taken = anonymous - purgeable + pages["Pages wired down"] + pages["Pages occupied by compressor"]
    except KeyError:
        return 0
    return max(total - taken * int(page[1]), 0) if page else 0


def _footprint(pid: int) -> int:
    """Return a process's memory as macOS counts it when it chooses a process to end; 0 on other systems.

    Written from Apple's `sys/resource.h`, not yet run: `rusage_info_v0` is 16 bytes and ten 64-bit numbers, of which
    `ri_phys_footprint` is the eighth.
    """
    if sys.platform != "darwin":
        return 0
    numbers = (ctypes.c_uint64 * 12)()
    with contextlib.suppress(AttributeError, OSError):
        if ctypes.CDLL(None).proc_pid_rusage(pid, 0, ctypes.byref(numbers)) == 0:
            return numbers[2 + 7]
    return 0


def _pressure() -> int | None:
    """Return macOS's own memory pressure: 0 (normal), 1 (warning), 2 (critical); None if unknown.

    Written from Apple's `sys/event.h` (the levels are 1, 2 and 4), not yet run.
    """
    if sys.platform != "darwin":
        return None
    level, size = ctypes.c_int(0), ctypes.c_size_t(4)
    name = b"kern.memorystatus_vm_pressure_level"
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(level), ctypes.byref(size), None, ctypes.c_size_t(0))
    return {1: 0, 2: 1, 4: 2}.get(level.value)


def _cgroup(name: str) -> int | None:
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return None


def _cgroup_file_cache() -> int:
    """Return the size of cached file pages, which the kernel gives back when memory is needed."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
