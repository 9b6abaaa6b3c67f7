"""Denormal numbers are zero wherever MLX computes on a CPU, in each thread that does."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from qlora_core.engine import device
from qlora_core.engine.device import mx
from qlora_core.exports.templates import inference
from qlora_core.machine.denormals import are_flushed, flush_denormals
from qlora_core.training.adapted_model import streams_of_this_thread

pytestmark = pytest.mark.skipif(not (device.ON_CPU and sys.platform == "linux"), reason="MLX computes on a Linux CPU")

TINY = 1e-30  # a product of two of these is denormal in float32


def test_each_stream_takes_them_for_zero() -> None:
    for stream in streams_of_this_thread(3):
        with mx.stream(stream):
            product = mx.array(TINY) * mx.array(1e-10)
            assert product.item() == 0.0


@pytest.mark.parametrize("threads", [1, 2])
def test_each_thread_of_the_blas_takes_them_for_zero(threads: int) -> None:
    with device.blas_threads(threads):
        a, b = mx.full((512, 64), 1e-22), mx.full((64, 512), 1e-17)
        assert np.count_nonzero(np.array(a @ b)) == 0


def test_a_thread_that_is_started_later_does_as_well() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(are_flushed()))
    thread.start()
    thread.join()
    assert found == [True]


def test_they_can_be_had_back_in_a_thread_of_its_own() -> None:
    found = []

    def other() -> None:
        found.extend([flush_denormals(False), are_flushed()])

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [True, False]
    assert are_flushed()


def in_a_process(code: str) -> str:
    """What a fresh Python prints of it."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_exported_script_flushes_them_without_this_package() -> None:
    code = (
        f"import runpy, sys; sys.modules['qlora_core'] = None; script = runpy.run_path({inference.__file__!r})\n"
        "mx = script['import_mlx']()\nprint((mx.array(1e-30) * mx.array(1e-10)).item())"
    )
    assert in_a_process(code) == "0.0"


def test_every_contestant_of_the_benchmark_starts_with_them_flushed() -> None:
    code = (
        "from qlora_core.bench import __main__ as bench; from qlora_core.bench.job import Job\n"
        "from qlora_core.machine.denormals import are_flushed\n"
        "assert not are_flushed()\n"
        "bench._done = lambda job, directory: {'flushed': are_flushed()}\n"
        "print(bench.measured(Job(contestant='peft')))"
    )
    assert in_a_process(code) == "{'flushed': True}"


def test_a_page_that_trains_nothing_is_left_alone() -> None:
    assert in_a_process(
        "import qlora_core.cli; from qlora_core.machine.denormals import are_flushed; print(are_flushed())"
    ) == ("False")
