"""The device: a fast BLAS in place before MLX is imported, the default device, dtype, counters, choice of kernels.

Every module that computes imports `mx`, `nn` and `optim` from here, never from mlx. On Linux, MLX's CPU backend binds
to whichever BLAS the process holds when MLX is first imported, and its own reference BLAS is 20 to 90 times slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingMlxError, brief
from ..files.storage import cache_directory, replacing
from ..machine import memory
from ..machine.denormals import flush_denormals
from ..machine.keep_awake import gpu_environment
from ..machine.process_pool import cores
from ..models.base_models import has_gpu
from ..runs.kernel_choice import Kernels
from ..runs.memory_estimate import CPU_TOKENS, cpu_streams, keeps_dense_weights
from ..tokens.batching import Rounding

NATIVE_BFLOAT16 = 15  # the first generation of Apple's GPUs that computes bfloat16 in hardware
WORKING_SET = 0.95  # share of the working set that Metal recommends, from which MLX frees the memory that it caches
_SYMBOLS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")  # what mlx-cpu looks for


@dataclass(frozen=True)
class Blas:
    """The matrix library in use.

    Attributes:
        name: name for people.
        fast: False for MLX's own reference BLAS on Linux.
        remedy: what to do if it is not fast.
    """

    name: str
    fast: bool = True
    remedy: str = ""


_library: ctypes.CDLL | None = None
_prefix = ""


def _load_blas() -> Blas:
    """Load a fast BLAS into the process: the packaged OpenBLAS, else the system's; describe the one in use."""
    global _library, _prefix
    if sys.platform == "darwin":
        return Blas("Accelerate")
    if "mlx.core" in sys.modules:
        return Blas("reference", fast=False, remedy="import qlora_core.engine.device before mlx")
    problem = ""
    try:
        path, name = _packaged_openblas()
        _library, _prefix = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL), "scipy_"
        return Blas(f"{name} ({_core()})")
    except Exception as error:  # whatever goes wrong here, training must still be possible
        problem = f"{type(error).__name__}: {error}"
    if found := ctypes.util.find_library("openblas"):
        with contextlib.suppress(OSError):
            _library, _prefix = ctypes.CDLL(found, ctypes.RTLD_GLOBAL), ""
            return Blas(f"system {found} ({_core()})")
    return Blas(
        "reference",
        fast=False,
        remedy="training is 20 to 90 times slower than it could be. Install one: pip install scipy-openblas32 lief, "
        f"or your system's OpenBLAS (Debian: apt install libopenblas0-pthread). [{problem}]",
    )


def _core() -> str:
    """Return the processor that OpenBLAS is tuned for, detected or set by OPENBLAS_CORETYPE; last bits depend on it."""
    name = getattr(_library, f"{_prefix}openblas_get_corename")
    name.restype = ctypes.c_char_p
    return name().decode()


def _packaged_openblas() -> tuple[Path, str]:
    """Return a cached copy of scipy-openblas32's library, with the three names that MLX looks for, and its name.

    The package exports these symbols with a prefix. Renaming them in a copy takes a second, once. The package is not
    imported: that would load its own copy of the library, whose thread count would then hide the one of ours.
    """
    package = importlib.util.find_spec("scipy_openblas32")
    if package is None or package.origin is None:
        raise OSError("scipy-openblas32 is not installed")
    source = next(Path(package.origin).parent.glob("lib/libscipy_openblas*.so"))
    content = source.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    target = cache_directory() / "blas" / f"openblas-{digest}.so"
    seal = target.with_suffix(".sha256")
    if not (seal.is_file() and target.is_file() and _sha256(target) == seal.read_text(encoding="ascii")):
        import lief

        library = lief.ELF.parse(str(source))
        if library is None:
            raise OSError(f"{source} is not a library")
        for symbol in library.dynamic_symbols:
            if symbol.name in {f"scipy_{name}" for name in _SYMBOLS}:
                symbol.name = str(symbol.name).removeprefix("scipy_")
        with replacing(target) as temporary:
            library.write(str(temporary))
        with replacing(seal) as temporary:
            temporary.write_text(_sha256(target), encoding="ascii")
    return target, f"OpenBLAS {importlib.metadata.version('scipy-openblas32')}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _keep_freed_memory() -> None:
    """Tell glibc's malloc to keep freed memory.

    On a CPU, MLX's arrays come from malloc, which returns large ones to the kernel at once. A step would then wait for
    up to 700,000 pages to be zeroed again (measured: a third of its time).
    """
    trim_threshold, mmap_threshold, limit = -1, -3, 2**30
    with contextlib.suppress(AttributeError, OSError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, limit)
        libc.mallopt(trim_threshold, limit)


OLDEST_MACOS = 14  # the oldest version that MLX has packages for


def _remedy_without_mlx() -> str:
    """Return how to install MLX on this machine, for when it cannot be imported."""
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return (
            "This Python is for Intel processors, for which MLX is not made. On Apple silicon it runs under Rosetta: "
            "have a native one (uv python install 3.12, then uv sync). On an Intel Mac there is no remedy."
        )
    if sys.platform == "darwin" and int(platform.mac_ver()[0].partition(".")[0] or OLDEST_MACOS) < OLDEST_MACOS:
        return f"MLX wants macOS {OLDEST_MACOS} or later; this is {platform.mac_ver()[0]}. Update macOS, then uv sync."
    if sys.platform == "linux":
        return (
            "`uv sync` installs it for a CPU, `uv sync --no-group cpu --extra cuda` for an NVIDIA GPU; "
            "with pip: pip install 'mlx[cpu]' or 'mlx[cuda12]'."
        )
    return "`uv sync` installs it."


flush_denormals()  # before the BLAS and MLX start their threads, which inherit the setting
BLAS = _load_blas()
if not has_gpu():
    # MLX orders the graph of a step breadth-first, up to this width. A larger width lets the streams, each with a part
    # of the micro-batch, run at the same time; with the default of 20 they run one after another (measured: 1.4 of 2
    # cores were busy with the default, 1.9 with this).
    os.environ.setdefault("MLX_BFS_MAX_WIDTH", "5000")
elif sys.platform == "linux":
    # How much work is sent to the GPU at once: with MLX's default of 100 operations and 1,000 MB, the dequantised
    # weights of many layers are in memory together (measured on an H100: 10 GB more, and no faster).
    os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", "20")
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "100")
    # keep the kernels that are compiled for this GPU; MLX's own choice is a temporary directory
    os.environ.setdefault("MLX_PTX_CACHE_DIR", str(cache_directory() / "kernels"))
for _name, _value in gpu_environment().items():
    os.environ.setdefault(_name, _value)

try:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    from mlx.utils import tree_flatten, tree_map, tree_unflatten
except ImportError as error:  # the package is missing, or on Linux its backend
    raise MissingMlxError(f"MLX, which computes, cannot be used: {brief(error)}. {_remedy_without_mlx()}") from None

__all__ = ["mx", "nn", "optim", "tree_flatten", "tree_map", "tree_unflatten"]

ON_CPU = not mx.metal.is_available() and not mx.cuda.is_available()
if ON_CPU:
    mx.set_default_device(mx.cpu)
    mx.disable_compile()  # it would need a C++ compiler at run time, and saves no time on a CPU
    _keep_freed_memory()
else:
    # without a limit MLX caches the memory of every freed array: training a 7B model filled a GPU of 80 GB, and was no
    # faster than with a cache of 4 or 20 GB (measured); on a Mac it would cache up to 95% of the machine's memory
    mx.set_cache_limit(mx.device_info()["memory_size" if mx.metal.is_available() else "total_memory"] // 8)


def set_blas_threads(count: int) -> None:
    """Set the number of threads for a matrix product, if the library allows it."""
    if _library is not None:
        getattr(_library, f"{_prefix}openblas_set_num_threads")(count)


def choose_kernels(model_dtype: str, dense_bytes: int, available: int) -> Kernels:
    """Return the fastest way to compute on this machine.

    If that is float16 and the base was saved in another dtype, its numbers may overflow: beyond 65,504 they are
    infinite. The trainer checks for that; code that does not should call `kernels_to_answer`.

    Args:
        model_dtype: dtype that the base was saved in. A GPU keeps it, unless it is float32, or it is bfloat16 on an M1
            or M2: these compute bfloat16 in software, and use float16 instead.
        dense_bytes: size of all weights dequantised to float32.
        available: free memory in bytes.
    """
    if mx.metal.is_available():
        dtype = "bfloat16" if model_dtype == "bfloat16" and _has_bfloat16() else "float16"
        # there arithmetic is expensive and moving rows is cheap; attention's gradient is fused for rows, not for bins
        rounding = Rounding(32, 32, (128, 256), flat_cost=1.05)
        return Kernels("metal", dtype, "quantised", rounding=rounding, compiled=True)
    if mx.cuda.is_available():
        dtype = "bfloat16" if model_dtype == "float32" else model_dtype
        # attention's gradient is fused only for multiples of 128, and from 384 on it is not deterministic
        rounding = Rounding(32, 128, (128, 256))
        linear = "kept" if keeps_dense_weights(dense_bytes // 2, available) else "dequantised"
        return Kernels("cuda", dtype, linear, rounding=rounding, compiled=True)
    linear = "kept" if keeps_dense_weights(dense_bytes, available) else "dequantised"
    return Kernels("cpu", "float32", linear, streams=cpu_streams(), blas=BLAS.name, fast_exp=True, at_once=CPU_TOKENS)


def _has_bfloat16() -> bool:
    """Return whether Apple's GPU computes bfloat16 in hardware, as from the M3 on, by its generation.

    `applegpu_g13g` is an M1's architecture, g14 an M2's, g15 an M3's, g16 an M4's; an unknown name counts as a later
    one.
    """
    found = re.match(r"applegpu_g(\d+)", str(mx.device_info().get("architecture", "")))
    return found is None or int(found[1]) >= NATIVE_BFLOAT16


def kernels_to_answer(model_dtype: str, dense_bytes: int, available: int, recorded: dict[str, Any] | None) -> Kernels:
    """Return kernels for code that does not check for overflow: a base saved in bfloat16 never gets float16.

    Args:
        model_dtype: dtype that the base was saved in.
        dense_bytes: size of all weights dequantised to float32.
        available: free memory in bytes.
        recorded: kernels that a run trained this base with; on the same device, answers use the same dtype.
    """
    chosen = choose_kernels(model_dtype, dense_bytes, available)
    if recorded and recorded["device"] == chosen.device:
        return dataclasses.replace(chosen, dtype=recorded["dtype"])
    narrowed = (model_dtype, chosen.dtype) == ("bfloat16", "float16")
    return dataclasses.replace(chosen, dtype="bfloat16") if narrowed else chosen


def memory_counters() -> dict[str, int]:
    """Return the bytes held by MLX's arrays, now and at most, and on a GPU what is free for more.

    On a GPU with memory of its own, that is what is free there; on Apple's, it is what the machine has left, or less if
    MLX gets near the share of memory that the GPU should have. Memory that MLX caches for its next arrays counts as
    taken, both in MLX's own count and in the driver's; only the driver's counts what other programs hold.
    """
    counters = {"active": mx.get_active_memory(), "peak": mx.get_peak_memory()}
    if mx.cuda.is_available():
        info = mx.device_info()
        if total := int(info.get("total_memory", 0)):
            left = max(total - counters["active"] - mx.get_cache_memory(), 0)
            counters["free"] = min(left, int(info.get("free_memory", left)))
    elif mx.metal.is_available() and (most := gpu_working_set()):
        left = max(most - counters["active"] - mx.get_cache_memory(), 0)
        counters["free"] = min(left, memory.available_bytes())
    return counters


def gpu_working_set() -> int:
    """Return how many bytes MLX's arrays should take at most on Apple's GPU; 0 if unknown.

    Beyond that MLX frees the memory that it caches (read in its allocator, not yet run).
    """
    return int(WORKING_SET * int(mx.device_info().get("max_recommended_working_set_size", 0)))


def clear_cache() -> None:
    """Free the memory that is cached for later arrays."""
    mx.clear_cache()
    if ON_CPU:
        with contextlib.suppress(AttributeError, OSError):  # another libc
            ctypes.CDLL(None).malloc_trim(0)


def describe_device() -> str:
    """Return a line for people that describes the device."""
    if mx.metal.is_available():
        return f"Metal ({mx.device_info().get('device_name', 'Apple silicon')})"
    if mx.cuda.is_available():
        return f"CUDA ({mx.device_info().get('device_name', 'NVIDIA')})"
    return f"CPU, {cores()} core{'s' if cores() > 1 else ''}, {BLAS.name}"


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Use `count` BLAS threads inside the block, all cores after it."""
    set_blas_threads(count)
    try:
        yield
    finally:
        set_blas_threads(cores())
