"""Look at this machine: device, BLAS, how fast products are, memory, power, versions, browser, hub, built-in model.

Light enough to run at any time: it takes some seconds and loads no model.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ..engine import device
from ..engine.device import mx
from ..errors import ModelError, brief
from ..files.storage import cache_directory, nearest_existing
from ..jobs.server import PORT
from ..machine import keep_awake
from ..machine.memory import GB, available_bytes, swap_bytes, total_bytes
from ..models.base_models import BUILT_IN, built_in_directory, has_nvidia_driver
from ..reports import console
from .checks import Finding

PACKAGES = ("mlx", "mlx-lm", "marimo", "tokenizers", "numpy", "psutil", "qlora-notebook")
SLOW = 20.0  # GFLOP/s of a float32 product on a CPU; the reference BLAS reaches about 4
COSTLY = 3.0  # allowed slowdown of products of denormals; flushed to zero there is none
MUCH_SWAP = 0.25  # of the memory
ANSWER_SECONDS = 10  # for a small program of the system, and for the hub
CHROMIUM = ("google-chrome", "chromium", "chromium-browser", "microsoft-edge", "firefox")


def diagnose(runs_dir: Path, *, ask_hub: bool = False) -> dict[str, Any]:
    """Check everything that training needs.

    Args:
        runs_dir: directory of all runs.
        ask_hub: whether to send the hub a request, to see if it answers.

    Returns:
        Facts by name; `problems` is a list of sentences, each with a remedy, empty when all is well; `warnings` the
        same of what is no obstacle.
    """
    facts, problems, doubts = _look(runs_dir, ask_hub)
    told = {"problems": [_sentence(one) for _, one in problems], "warnings": [_sentence(one) for _, one in doubts]}
    return facts | told


def machine_findings(runs_dir: Path, *, ask_hub: bool = False) -> dict[str, Finding]:
    """Return the same facts as checks, by name."""
    facts, problems, doubts = _look(runs_dir, ask_hub)
    judged = dict([*doubts, *problems])
    values = {**console.diagnosis(facts), "Built-in model": facts[BUILT_IN]}
    return {name: judged.get(name, Finding("ok", ""))._replace(value=value) for name, value in values.items()}


def _sentence(found: Finding) -> str:
    return ": ".join(filter(None, (found.value, found.remedy)))


Concern = tuple[str, Finding]
"""Line of the diagnosis, and what is wrong with it."""


def _look(runs_dir: Path, ask_hub: bool) -> tuple[dict[str, Any], list[Concern], list[Concern]]:
    """Return facts, obstacles to training, and what is no obstacle but worth knowing."""
    core, found = os.environ.get("OPENBLAS_CORETYPE"), {"Power": power(), "Browser": browser(), "Hub": hub(ask_hub)}
    try:
        model, missing = str(built_in_directory()), ""
    except ModelError as error:
        model, missing = "not available", str(error)
    place = nearest_existing(runs_dir)
    facts = {
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "device": device.describe_device(),
        "blas": device.BLAS.name + (f", as OPENBLAS_CORETYPE={core} has it" if core else ""),
        "gflops": round(product_speed(), 1),
        "denormal_cost": round(denormal_cost(), 1),
        "memory_gb": round(total_bytes() / GB, 1),
        "available_gb": round(available_bytes() / GB, 1),
        "swap_gb": round(swap_bytes() / GB, 1),
        "disk_free_gb": round(shutil.disk_usage(place).free / GB, 1),
        "sleep": keep_awake.describe(),
        "power": found["Power"].value,
        "versions": {name: _version(name) for name in PACKAGES},
        "browser": found["Browser"].value,
        "hub": found["Hub"].value,
        "cache": str(cache_directory()),
        "cache_gb": round(sum(path.stat().st_size for path in cache_directory().rglob("*") if path.is_file()) / GB, 1),
        BUILT_IN: model,
    }
    problems = list(_problems(facts, runs_dir))
    if missing:
        problems.append(("Built-in model", Finding("failed", "", missing)))
    return facts, problems, [*_doubts(facts), *((name, each) for name, each in found.items() if each.remedy)]


def _problems(facts: dict[str, Any], runs_dir: Path) -> Iterator[Concern]:
    if not device.BLAS.fast:
        yield "BLAS", Finding("failed", "no optimised BLAS", device.BLAS.remedy)
    elif device.ON_CPU and facts["gflops"] < SLOW:
        found = f"a float32 product runs at {facts['gflops']:.0f} GFLOP/s, {SLOW:.0f} wanted"
        yield "BLAS", Finding("warning", found, "is the machine busy?")
    if facts["available_gb"] < 3:
        found = f"{facts['available_gb']:.1f} GB of memory available"
        yield "Memory", Finding("warning", found, "close other programs before a 7B model")
    if facts["disk_free_gb"] < 2:
        yield (
            "Disk",
            Finding("failed", f"{facts['disk_free_gb']:.1f} GB of disk free for runs in {runs_dir}", "make room"),
        )


def _doubts(facts: dict[str, Any]) -> Iterator[Concern]:
    if device.ON_CPU and has_nvidia_driver():
        remedy = "to use the GPU: uv sync --no-group cpu --extra cuda"
        yield "Device", Finding("warning", "there is an NVIDIA GPU, and the MLX that is installed is for a CPU", remedy)
    if facts["denormal_cost"] > COSTLY:
        found = f"products of denormal numbers take {facts['denormal_cost']:.0f} times as long as others here"
        yield (
            "Denormals",
            Finding("warning", found, "training is slower than it could be where numbers come close to 0"),
        )
    if facts["swap_gb"] > MUCH_SWAP * facts["memory_gb"]:
        found = f"{facts['swap_gb']:.1f} GB of memory lie on the disk (swap)"
        yield "Swap", Finding("warning", found, "close other programs, or training waits for the disk")


# The processor ----------------------------------------------------------------------------------------------------


def product_speed(size: int = 1024) -> float:
    """Return GFLOP/s of a float32 matrix product on the default device, the best of five."""
    a, b = mx.random.normal((size, size)), mx.random.normal((size, size))
    mx.eval(a, b)
    return 2 * size**3 / best_time(lambda: a @ b) / 1e9


def denormal_cost() -> float:
    """Return how many times slower products of denormal numbers are than products of normal ones, as MLX computes here.

    Return the worse of elementwise products and a matrix product, which runs on the BLAS's own threads.
    """
    tiny, one, factor = (_filled(value) for value in (0x2CA, 0x3F80_0000, 0x3F7F_FFFF))  # 1e-42, 1, just below

    def elementwise(x: mx.array) -> mx.array:
        for _ in range(8):
            x = x * factor
        return x

    def cost(make: Callable[[mx.array], mx.array]) -> float:
        times = [(best_time(lambda: make(tiny), 1), best_time(lambda: make(one), 1)) for _ in range(20)]
        slow, usual = map(min, zip(*times, strict=True))  # alternating, so that other programs disturb both alike
        return slow / usual

    return max(cost(elementwise), cost(lambda x: x @ factor))


def _filled(bits: int, size: int = 256) -> mx.array:
    """Return a float32 matrix of one number given by its bits: arithmetic that flushes denormals could not make it."""
    return mx.array(np.full((size, size), bits, np.uint32)).view(mx.float32)


def best_time(make: Callable[[], mx.array], rounds: int = 5) -> float:
    """Return the seconds that a computation takes: the best of some rounds after the first."""
    mx.eval(make())
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        mx.eval(make())
        best = min(best, time.perf_counter() - started)
    return best


# The system -------------------------------------------------------------------------------------------------------


def power() -> Finding:
    """Tell whether the machine runs on battery or saves power: both slow training, and an empty battery ends it."""
    if _low_power_mode():
        return Finding("warning", "low power mode", "switch it off in System Settings, Battery, to train at full speed")
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, RuntimeError):  # no such sensors on this system
        battery = None
    if battery is None:
        return Finding("ok", "no battery known of")
    charge = f"battery at {battery.percent:.0f}%"
    if battery.power_plugged is False:
        return Finding("warning", f"on its {charge}", "plug it in before you train")
    return Finding("ok", f"plugged in, {charge}")


def _low_power_mode() -> bool:
    """Return whether macOS saves power. Written from `pmset`'s manual, not yet run."""
    if sys.platform != "darwin":
        return False
    try:
        done = subprocess.run(["pmset", "-g"], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return any(line.split() == ["lowpowermode", "1"] for line in done.stdout.splitlines())


def browser() -> Finding:
    """Return the browser that would open the page."""
    remedy = f"`qlora app` prints the page's address; elsewhere it opens after `ssh -L {PORT}:localhost:{PORT} MACHINE`"
    if sys.platform == "darwin":
        return Finding("ok", "the system's own")
    installed = next((name for name in CHROMIUM if shutil.which(name)), "")
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return Finding("warning", f"{installed or 'none found'}, and no display here", remedy)
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return Finding("warning", "none found", f"install one; {remedy}")
    return Finding("ok", installed or getattr(found, "name", "") or "the system's own")


def hub(ask: bool = False) -> Finding:
    """Tell whether models can be fetched: offline, logged in, cache directory. Make a request only if asked to."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    token = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    named = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    login = "with a token" if named or token.is_file() else "no token"
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    value = f"{login}, models in {cache}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("ok", f"not asked, as HF_HUB_OFFLINE has it; {value}")
    if not ask:
        return Finding("ok", f"not asked (--hub asks it); {value}")
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        asked = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(asked, timeout=ANSWER_SECONDS):
            return Finding("ok", f"answers; {value}")
    except urllib.error.HTTPError:  # a refusal is an answer
        return Finding("ok", f"answers; {value}")
    except (OSError, ValueError) as error:
        reason = brief(getattr(error, "reason", error) if isinstance(error, urllib.error.URLError) else error)
        remedy = "connect to a network, or train on the built-in model or one that is on this machine"
        return Finding("warning", f"does not answer ({reason}); {value}", remedy)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
