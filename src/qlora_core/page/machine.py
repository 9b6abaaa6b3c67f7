"""The machine: an overview, and the results of measuring it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import marimo as mo

from ..files.storage import nearest_existing
from ..machine.memory import GB, MemoryMonitor, available_bytes, total_bytes
from ..models import base_models
from ..reports import console
from ..reports.in_language import number, size
from ..translations import say
from .commands import News
from .language import read_only
from .look import fact_table, figures, note, small
from .problems import failure

LEAST_MEMORY_GB, LEAST_DISK_GB = 3, 2


def setup(runs_dir: Path) -> mo.Html:
    """Return cards about the machine."""
    disk = _free_disk(runs_dir)
    return figures(
        {
            say("Machine"): (f"{platform.system()} {platform.machine()}", _processor()),
            say("Device"): (_device(), say("MLX {version}", version=_version("mlx"))),
            say("Memory free"): (
                size(available_bytes()),
                say("of {total}", total=size(total_bytes())),
            ),
            say("Disk free for runs"): (number(disk / GB, ",.0f") + " GB", str(runs_dir)),
        }
    )


def obstacles(runs_dir: Path) -> mo.Html | None:
    """Return what stands in the way of training on this machine, each with what to do; None if nothing does."""
    found = [note(problem, "warn") for problem in _problems(_free_disk(runs_dir))]
    return mo.vstack(found, gap=0.5) if found else None


def _free_disk(runs_dir: Path) -> int:
    return shutil.disk_usage(nearest_existing(runs_dir)).free


def _processor() -> str:
    import psutil

    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    return say("{cores} cores, Python {version}", cores=cores, version=platform.python_version())


def _device() -> str:
    if not base_models.has_gpu():
        return "CPU"
    return "Metal" if sys.platform == "darwin" else "CUDA"


def _problems(disk: int) -> Iterator[str]:
    """Yield problems that are visible without loading MLX, each with what to do."""
    if _version("mlx") == "–" or _version("mlx-lm") == "–":
        yield say("MLX is not installed. Run: uv sync")
    elif sys.platform == "linux" and not any(_version(f"mlx-{kind}") != "–" for kind in ("cpu", "cuda-12", "cuda-13")):
        yield say("MLX has nothing to compute with here. Run: uv sync")
    elif base_models.has_nvidia_driver() and not base_models.has_gpu():
        yield say("There is an NVIDIA GPU, and the MLX that is installed is for a CPU. To use the GPU: "
                  "uv sync --no-group cpu --extra cuda")  # fmt: skip
    if sys.platform == "darwin" and platform.machine() != "arm64":
        yield say("This Python is for Intel processors: MLX wants one for Apple silicon. Install an arm64 Python.")
    if not base_models.has_gpu() and importlib.util.find_spec("scipy_openblas32") is None:
        yield say("No optimised BLAS: training would take many times as long. Run: uv sync")
    if available_bytes() < LEAST_MEMORY_GB * GB:
        yield say("Less than {least} GB of memory are free: close other programs before you train a large model.",
                  least=LEAST_MEMORY_GB)  # fmt: skip
    if disk < LEAST_DISK_GB * GB:
        yield say("Less than {least} GB of disk are free for runs: make room.", least=LEAST_DISK_GB)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "–"


def check_button(news: News) -> Any:
    """Return a button that has the device measured."""
    return mo.ui.run_button(label=say("Run hardware check"), disabled=news.running or read_only())


def check(news: News) -> mo.Html | None:
    """Return the measurements of `qlora doctor`."""
    if news.running:
        return small(say("Measuring: some seconds …"))
    if news.problem:
        return failure(news.problem)
    if news.result is None:
        return None
    problems = [note(problem, "warn") for problem in news.result["problems"]]
    warnings = [note(warning) for warning in news.result["warnings"]]
    rows = {say(name): value for name, value in console.diagnosis(news.result).items()}
    return mo.vstack([fact_table(rows), *warnings, *(problems or [note(say("Measured: ready to train."), "success")])])


def memory_now(monitor: MemoryMonitor) -> mo.Html:
    """Return the free memory, and what this page takes."""
    sample = monitor.sample()
    text = say("{free} of memory are free; this page takes {own}.",
               free=size(sample.available), own=size(sample.process))  # fmt: skip
    return small(text)
