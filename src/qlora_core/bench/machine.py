"""The machine in general words, for results that are published: no host name, no user, no path."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from ..machine.memory import GB, total_bytes
from ..machine.process_pool import cores

PACKAGES = (
    "qlora-notebook", "mlx", "mlx-lm", "numpy", "scipy-openblas32", "torch", "transformers", "peft", "bitsandbytes",
)  # fmt: skip
OF_SPEED = ("BLIS_", "MKL_", "OMP_", "OPENBLAS_", "VECLIB_")
"""Prefixes of environment variables that affect the contestants' speed."""
_PATH = re.compile(r"(?<![\w.~/\\])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+-]+)+[/\\]?")


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory, GPUs and system."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gb": round(total_bytes() / GB, 1),
        "gpus": gpus(),
        "system": _system(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(OF_SPEED)},
        "python": platform.python_version(),
    }


def device_kind() -> str:
    """Return what MLX computes on here: `metal`, `cuda` or `cpu`."""
    if sys.platform == "darwin":
        return "metal"
    return "cuda" if gpus() else "cpu"


def versions() -> dict[str, str]:
    """Return the versions of the relevant packages installed for this interpreter."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def slug(machine: dict[str, Any]) -> str:
    """Return the machine as part of a file name: `amd-epyc-2-cores`."""
    words = " ".join(machine["gpus"]) or f"{machine['processor']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def without_paths(value: Any) -> Any:
    """Return the same value with every absolute path cut to its last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str):
        return _PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], value)
    return value


def gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs; empty without any."""
    return [line for line in _nvidia("name") if line]


def _nvidia(field: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _processor() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "Apple silicon"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    return f"{platform.system()} {platform.machine()}"


class OtherPrograms:
    """Context manager that measures the share of all cores that programs other than the child processes used.

    Speeds from a busy machine are worth little; this value reveals it.
    """

    def __enter__(self) -> OtherPrograms:
        self.share = 0.0
        self._before = self._look()
        return self

    def __exit__(self, *_: object) -> None:
        whole, idle, children = (now - then for now, then in zip(self._look(), self._before, strict=True))
        self.share = max(0.0, (whole - idle - children) / whole) if whole else 0.0

    @staticmethod
    def _look() -> tuple[float, float, float]:
        """Return seconds so far of all cores, of idle ones, and of child processes that ended."""
        times = psutil.cpu_times()._asdict()
        whole = sum(value for name, value in times.items() if name not in ("guest", "guest_nice"))
        used = os.times()
        return whole, times["idle"] + times.get("iowait", 0.0), used.children_user + used.children_system


class DeviceMemory:
    """Context manager that measures the peak GPU memory in use beyond that at the start; 0 without a GPU.

    Args:
        seconds: between two looks.
    """

    def __init__(self, seconds: float = 0.5) -> None:
        self.seconds = seconds
        self.peak = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> DeviceMemory:
        before = self._used()
        if before is not None:
            self._thread = threading.Thread(target=self._watch, args=(before,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()

    def _watch(self, before: int) -> None:
        while not self._over.wait(self.seconds):
            self.peak = max(self.peak, (self._used() or 0) - before)

    @staticmethod
    def _used() -> int | None:
        """Return the bytes in use on all GPUs together; None without one."""
        numbers = [int(line) for line in _nvidia("memory.used") if line.strip().isdigit()]
        return sum(numbers) * 2**20 if numbers else None
