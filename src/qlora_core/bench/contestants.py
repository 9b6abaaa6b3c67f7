"""The trainers that are compared, each of which runs in a process of its own. Knows none of their libraries."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .job import Job, Watch
from .works import Rows


@dataclass(frozen=True)
class Contestant:
    """A trainer.

    Attributes:
        words: what it is, for people.
        module: module here whose `train` drives it.
        needs: packages that must be installed.
        install: the command that installs them.
        on: devices (`cpu`, `cuda`, `metal`) on which it is compared.
        cautious: whether it is so slow on a CPU that it gets a few steps only.
    """

    words: str
    module: str
    needs: tuple[str, ...] = ("mlx", "mlx_lm")
    install: str = "pip install mlx-lm"
    on: tuple[str, ...] = ("cpu", "cuda", "metal")
    cautious: bool = False


PEFT = ("torch", "transformers", "peft")
CONTESTANTS = {
    "qlora": Contestant("this package", "ours"),
    "mlx-lm": Contestant("mlx-lm's trainer as installed", "mlxlm", cautious=True),
    "mlx-lm-strong": Contestant(
        "mlx-lm's trainer with rows sorted by length, its cache kept, and on a Linux CPU this package's BLAS and "
        "dequantised products",
        "mlxlm",
    ),
    "peft": Contestant(
        "PyTorch and PEFT, the same weights dequantised to float32",
        "torchpeft",
        PEFT,
        "pip install torch transformers peft accelerate",
        ("cpu", "metal"),
    ),
    "peft-nf4": Contestant(
        "PyTorch and PEFT, weights in bitsandbytes' nf4",
        "torchpeft",
        (*PEFT, "bitsandbytes"),
        "pip install torch transformers peft accelerate bitsandbytes",
        ("cuda",),
    ),
    "peft-bf16": Contestant(
        "PyTorch and PEFT, the same weights dequantised to bfloat16",
        "torchpeft",
        PEFT,
        "pip install torch transformers peft accelerate",
        ("cuda",),
    ),
}

Trainer = Callable[[Job, Rows, Watch], dict[str, Any]]
"""Loads, trains while the watch lets it, and returns what else there is to tell (peak memory, versions, kernels)."""


def trainer_of(name: str) -> Trainer:
    """The function that trains as this contestant; imports its library."""
    return importlib.import_module(f"{__package__}.{CONTESTANTS[name].module}").train


def missing_packages(name: str, python: str = "") -> list[str]:
    """What a contestant needs and is not installed: here, or for another Python interpreter."""
    needs = CONTESTANTS[name].needs
    if not python:
        return [package for package in needs if importlib.util.find_spec(package) is None]
    script = (
        f"import importlib.util, json; print(json.dumps([n for n in {needs} if importlib.util.find_spec(n) is None]))"
    )
    try:
        return json.loads(subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return [python]
