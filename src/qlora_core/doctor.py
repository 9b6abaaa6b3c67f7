"""What this machine can do: device, BLAS, versions, memory, the built-in model, and whether a product is fast."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

from . import awake, device
from .bases import BUILT_IN, built_in_directory
from .device import mx
from .errors import ModelError
from .memory import GB, available_bytes, total_bytes
from .storage import cache_directory

PACKAGES = ("mlx", "mlx-lm", "marimo", "altair", "tokenizers", "numpy", "psutil", "qlora-notebook")
SLOW = 20.0  # GFLOP/s of a float32 product on a CPU; the reference BLAS reaches about 4


def diagnose(runs_dir: Path) -> dict[str, Any]:
    """Look at everything that training needs.

    Returns:
        Facts by name; `problems` is a list of sentences, each with a remedy, empty when all is well.
    """
    gflops, core = product_speed(), os.environ.get("OPENBLAS_CORETYPE")
    problems = []
    if not device.BLAS.fast:
        problems.append(f"no optimised BLAS: {device.BLAS.remedy}")
    elif device.ON_CPU and gflops < SLOW:
        problems.append(f"a float32 product runs at {gflops:.0f} GFLOP/s, {SLOW:.0f} wanted: is the machine busy?")
    if available_bytes() < 3 * GB:
        problems.append(f"{available_bytes() / GB:.1f} GB of memory available: close other programs before a 7B model")
    try:
        model = str(built_in_directory())
    except ModelError as error:
        model, _ = "not available", problems.append(str(error))
    place = next(path for path in (runs_dir, *runs_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < 2 * GB:
        problems.append(f"{free / GB:.1f} GB of disk free for runs in {runs_dir}: make room")
    return {
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "device": device.describe_device(),
        "blas": device.BLAS.name + (f", as OPENBLAS_CORETYPE={core} has it" if core else ""),
        "gflops": round(gflops, 1),
        "memory_gb": round(total_bytes() / GB, 1),
        "available_gb": round(available_bytes() / GB, 1),
        "disk_free_gb": round(free / GB, 1),
        "sleep": awake.describe(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cache": str(cache_directory()),
        "cache_gb": round(sum(path.stat().st_size for path in cache_directory().rglob("*") if path.is_file()) / GB, 1),
        BUILT_IN: model,
        "problems": problems,
    }


def product_speed(size: int = 1024) -> float:
    """GFLOP/s of a float32 matrix product on the default device, the best of five."""
    a, b = mx.random.normal((size, size)), mx.random.normal((size, size))
    mx.eval(a, b)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        mx.eval(a @ b)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
