"""The matrix library in effect, who may import mlx, and how a run computes where."""

import ast
import ctypes
import dataclasses
import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import qlora_core
from qlora_core.engine import device
from qlora_core.engine.device import choose_kernels, mx
from qlora_core.files.storage import cache_directory
from qlora_core.runs import memory_estimate
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.tokens.batching import Rounding

SOURCE = Path(qlora_core.__file__).parent
linux_cpu = pytest.mark.skipif(
    sys.platform == "darwin" or not device.ON_CPU, reason="Accelerate or a GPU does the matrix products here"
)

GB = 10**9


# BLAS -----------------------------------------------------------------------------------------------------------


def loaded_openblas() -> ctypes.CDLL:
    """The OpenBLAS that this process loaded for MLX; numpy has one of its own."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = {line.split()[-1] for line in lines}
    (path,) = (path for path in mapped if Path(path).parent == cache_directory() / "blas")
    return ctypes.CDLL(path)


@linux_cpu
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86-64 processors")
def test_whose_instructions_a_blas_uses_is_in_its_name(python, monkeypatch) -> None:
    """A run that goes on with others is not equal to the bit, and says so by this name."""
    for core in ("Haswell", "Nehalem"):
        monkeypatch.setenv("OPENBLAS_CORETYPE", core)
        ended = python("-c", "from qlora_core.engine.device import BLAS\nprint(BLAS.name)")
        assert ended.stdout.endswith(f"({core})\n"), ended


@linux_cpu
def test_an_optimised_blas_is_in_effect() -> None:
    """By its rounding: MLX's products are OpenBLAS's to the bit, and those of no plain loop."""
    assert device.BLAS.fast
    assert device.BLAS.name.startswith("OpenBLAS")
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((96, 1000), (1000, 64)))
    wanted = np.zeros((96, 64), np.float32)
    pointer, row_major, plain, one, zero = ctypes.c_void_p, 101, 111, ctypes.c_float(1), ctypes.c_float(0)
    loaded_openblas().cblas_sgemm(
        *(row_major, plain, plain, 96, 64, 1000, one, a.ctypes.data_as(pointer), 1000),
        *(b.ctypes.data_as(pointer), 64, zero, wanted.ctypes.data_as(pointer), 64),
    )
    found = np.array(mx.array(a) @ mx.array(b))
    np.testing.assert_array_equal(found, wanted)
    loop = np.zeros((96, 64), np.float32)
    for k in range(1000):
        loop += a[:, k, None] * b[None, k]
    assert not np.array_equal(found, loop)


@linux_cpu
def test_its_threads_can_be_set() -> None:
    count = loaded_openblas().scipy_openblas_get_num_threads
    try:
        device.set_blas_threads(1)
        assert count() == 1
        with device.blas_threads(2):
            assert count() == 2
        assert count() == device.cores()
    finally:
        device.set_blas_threads(device.cores())


@linux_cpu
def test_the_library_is_made_once_and_again_if_it_was_damaged(python: Callable, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    script = "from qlora_core.engine.device import BLAS, mx; print(BLAS.fast, mx.ones((2, 3)) @ mx.ones((3, 2)))"
    first = python("-c", script)
    assert first.stdout.startswith("True"), first.stderr
    (library,) = (tmp_path / "cache" / "blas").glob("*.so")
    content, made = library.read_bytes(), library.stat().st_mtime_ns
    assert python("-c", script).stdout == first.stdout
    assert library.stat().st_mtime_ns == made
    library.write_bytes(content[: len(content) // 2])
    assert python("-c", script).stdout == first.stdout
    assert library.read_bytes() == content


@linux_cpu
def test_without_any_it_says_so_and_how_to_get_one(python: Callable) -> None:
    ended = python(
        "-c",
        "import sys, ctypes.util\n"
        "sys.modules['scipy_openblas32'] = None\n"
        "ctypes.util.find_library = lambda name: None\n"
        "from qlora_core.engine.device import BLAS, mx\n"
        "print(BLAS.name, BLAS.fast, (mx.ones((2, 2)) @ mx.ones((2, 2))).sum().item(), BLAS.remedy)\n",
    )
    assert ended.stdout.startswith("reference False 8.0 training is 20 to 90 times slower"), ended.stderr
    assert "pip install scipy-openblas32" in ended.stdout
    assert "apt install libopenblas0-pthread" in ended.stdout


@linux_cpu
def test_too_late_is_noticed(python: Callable) -> None:
    ended = python("-c", "import mlx.core\nfrom qlora_core.engine.device import BLAS\nprint(BLAS.fast, BLAS.remedy)")
    assert ended.stdout.strip() == "False import qlora_core.engine.device before mlx", ended.stderr


# Imports --------------------------------------------------------------------------------------------------------


def imported_at_once(path: Path) -> Iterator[str]:
    """The modules that a file imports when it is imported itself: all but those inside functions."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.stem)
def test_only_device_imports_mlx(path: Path) -> None:
    """Whoever imports mlx first decides which BLAS it uses; mlx-lm imports it too."""
    found = {name.partition(".")[0] for name in imported_at_once(path)} & {"mlx", "mlx_lm"}
    assert found == ({"mlx"} if path.stem == "device" else set())


def imports_of_mlx_anywhere(path: Path) -> set[str]:
    return {
        name.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
        if name.name.partition(".")[0] in ("mlx", "mlx_lm")
    }


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.stem)
def test_whoever_imports_mlx_in_a_function_has_device_first(path: Path) -> None:
    if path.stem == "device" or not imports_of_mlx_anywhere(path):
        return
    if path.parent.name == "bench":  # a contestant starts as it would without this package
        return
    if path.parent.name == "templates":  # it stands alone, and asks for `device` where there is one
        before = path.read_text(encoding="utf-8").partition("    import mlx.core")[0]
        assert "from qlora_core.engine import device" in before
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level}
    assert own & {"device", "engine.device"} or "device" in {
        alias.name for node in tree.body if isinstance(node, ast.ImportFrom) and node.level for alias in node.names
    }


# Kernel choice --------------------------------------------------------------------------------------------------


@linux_cpu
@pytest.mark.parametrize(
    ("dense", "available", "linear"),
    [(1 * GB, 3 * GB + 1, "kept"), (1 * GB, 3 * GB, "dequantised"), (28 * GB, 16 * GB, "dequantised")],
)
@pytest.mark.parametrize("model_dtype", ["float16", "bfloat16", "float32"])
def test_on_a_cpu_weights_are_kept_dequantised_if_there_is_room(
    dense: int, available: int, linear: str, model_dtype: str
) -> None:
    found = choose_kernels(model_dtype, dense, available)
    wanted = Kernels(
        "cpu", "float32", linear, streams=device.cores(), blas=device.BLAS.name, fast_exp=True, at_once=768
    )
    assert found == wanted


def test_a_stream_a_core_but_no_more_than_eight(monkeypatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    for cores, streams in ((1, 1), (4, 4), (64, 8)):
        monkeypatch.setattr(memory_estimate, "cores", lambda cores=cores: cores)
        assert choose_kernels("float32", GB, 10 * GB).streams == streams


@pytest.mark.parametrize(
    ("backend", "model_dtype", "wanted"),
    [
        ("metal", "bfloat16", ("metal", "bfloat16", "quantised")),
        ("metal", "float32", ("metal", "float16", "quantised")),
        ("cuda", "float16", ("cuda", "float16", "dequantised")),
        ("cuda", "float32", ("cuda", "bfloat16", "dequantised")),
    ],
)
def test_on_a_gpu_the_models_dtype_is_kept_unless_it_is_float32(
    monkeypatch, backend: str, model_dtype: str, wanted: tuple[str, str, str]
) -> None:
    for name in ("metal", "cuda"):
        monkeypatch.setattr(getattr(mx, name), "is_available", lambda name=name: name == backend)
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": "applegpu_g15g"})  # an M3's
    found = choose_kernels(model_dtype, GB, 0)
    assert (found.device, found.dtype, found.linear) == wanted
    assert found.compiled
    assert found.rounding.flat_cost == {"metal": 1.05, "cuda": 1.25}[backend]
    assert all(size % found.rounding.longest == 0 for size in found.rounding.bins)


@pytest.mark.parametrize(
    ("architecture", "bfloat16"),
    [
        ("applegpu_g13g", "float16"),  # M1
        ("applegpu_g13s", "float16"),  # M1 Pro and Max
        ("applegpu_g14g", "float16"),  # M2
        ("applegpu_g14d", "float16"),  # M2 Ultra
        ("applegpu_g15g", "bfloat16"),  # M3
        ("applegpu_g16s", "bfloat16"),  # M4 Pro and Max
        ("applegpu_g20p", "bfloat16"),
        ("another", "bfloat16"),
        (None, "bfloat16"),
    ],
)
def test_an_m1_and_an_m2_compute_in_float16_what_was_saved_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, architecture: str | None, bfloat16: str
) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": architecture} if architecture else {})
    found = {dtype: choose_kernels(dtype, GB, 0).dtype for dtype in ("bfloat16", "float16", "float32")}
    assert found == {"bfloat16": bfloat16, "float16": "float16", "float32": "float16"}


def test_who_only_answers_does_so_in_the_dtype_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the run, or of the base: nobody looks whether float16 overflows."""

    def answering(model_dtype: str, recorded: dict[str, str] | None) -> str:
        return device.kernels_to_answer(model_dtype, GB, 0, recorded).dtype

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": "applegpu_g13g"})
    assert [answering(dtype, None) for dtype in ("bfloat16", "float16", "float32")] == ["bfloat16", *["float16"] * 2]
    for dtype in ("bfloat16", "float16"):
        assert answering("bfloat16", {"device": "metal", "dtype": dtype}) == dtype
    assert answering("bfloat16", {"device": "cpu", "dtype": "float32"}) == "bfloat16"


def test_a_gpu_keeps_dequantised_weights_where_there_is_room(monkeypatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    dense = 4 * GB  # as float32; half of that in half precision
    assert choose_kernels("bfloat16", dense, 7 * GB).linear == "kept"
    assert choose_kernels("bfloat16", dense, 5 * GB).linear == "dequantised"


def test_recorded_kernels_come_back_and_what_an_older_version_did_not_know_is_as_usual() -> None:
    chosen = Kernels("cuda", "bfloat16", "kept", rounding=Rounding(32, 128, (128, 256)), compiled=True)
    assert Kernels.from_dict(json.loads(json.dumps(dataclasses.asdict(chosen)))) == chosen
    before_costs = dataclasses.asdict(chosen)
    del before_costs["rounding"]["flat_cost"]
    assert Kernels.from_dict(before_costs) == chosen
    assert chosen.rounding.flat_cost == 1.25
    old = {"device": "cpu", "dtype": "float32", "linear": "kept", "streams": 2, "blas": "b", "fast_exp": True}
    assert Kernels.from_dict(old) == Kernels("cpu", "float32", "kept", 2, "b", True, arithmetic=1)


def test_cores_are_those_this_process_may_use(python: Callable) -> None:
    if not hasattr(__import__("os"), "sched_setaffinity"):
        pytest.skip("this system cannot pin a process")
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    ended = python("-c", script + "from qlora_core.engine.device import cores\nprint(cores())")
    assert ended.stdout.strip() == "1", ended.stderr


def test_memory_counters_follow_the_arrays() -> None:
    before = device.memory_counters()
    array = mx.ones(1_000_000)
    mx.eval(array)
    after = device.memory_counters()
    assert after["active"] - before["active"] >= 4_000_000
    assert after["peak"] >= after["active"]


def test_the_packages_it_asks_for_are_installed_here() -> None:
    """Otherwise the suite would test the slow way on Linux without anybody noticing."""
    if sys.platform == "linux":
        assert importlib.util.find_spec("scipy_openblas32")
        assert importlib.util.find_spec("lief")


# Apple silicon --------------------------------------------------------------------------------------------------

POSING = """
import os, sys
import psutil, subprocess, ctypes.util  # which look for the system's library when they are imported
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "mlx.core":
            print("before mlx:", os.environ.get("AGX_RELAX_CDM_CTXSTORE_TIMEOUT"))
sys.meta_path.insert(0, Finder())
sys.platform = sys.argv[1]
import qlora_core.engine.device
"""


@pytest.mark.parametrize(
    ("system", "given", "found"), [("darwin", None, "1"), ("darwin", "0", "0"), ("linux", None, None)]
)
def test_the_driver_of_a_macs_gpu_is_asked_for_patience_before_mlx_opens_it(
    python: Callable, monkeypatch, system: str, given: str | None, found: str | None
) -> None:
    """Told as on a Mac; whether the driver heeds it can only be seen there."""
    monkeypatch.delenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", raising=False)
    if given:
        monkeypatch.setenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", given)
    done = python("-c", POSING, system)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"before mlx: {found}"]


METAL = """
import mlx.core as mx
mx.metal.is_available = lambda: True
mx.device_info = lambda: {"memory_size": 16 * 2**30, "max_recommended_working_set_size": 11_453_251_584}
mx.set_cache_limit = lambda limit: print("keeps at most", limit)
from qlora_core.engine import device
print(device.gpu_working_set())
"""


def test_on_metal_an_eighth_of_the_memory_is_kept_for_arrays_to_come(python: Callable) -> None:
    """Without a limit it would be nearly all of it."""
    done = python("-c", METAL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["keeps at most 2147483648", "10880589004"]
