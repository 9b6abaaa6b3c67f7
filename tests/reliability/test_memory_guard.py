"""The memory guard: what it decides on 20 traces of a machine's memory, what the trainer makes of it, what it reads."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from harness import assert_same_training, create_run, events, train, write_pair

from qlora_core import cli
from qlora_core.engine import device
from qlora_core.errors import MemoryShortError
from qlora_core.jobs import planning
from qlora_core.machine import memory
from qlora_core.machine.memory import GB, MB, MemoryMonitor, MemorySample
from qlora_core.machine.memory_guard import MemoryGuard
from qlora_core.reports import live_output
from qlora_core.runs.run import Run
from qlora_core.training import loop, saving, watching

LIMIT = 0.5 * GB

Create = Callable[..., Run]


# Decisions --------------------------------------------------------------------------------------------------------


def trace(*available: float, seconds: float = 10.0, **others: list[float] | float) -> list[tuple[MemorySample, float]]:
    """A step every `seconds` with so many GB available; `process`, `active` and `swap` in GB, `pressure` as it is."""
    made = []
    for i, free in enumerate(available):
        values = {name: value[i] if isinstance(value, list) else value for name, value in others.items()}
        sizes = {name: int(values.get(name, 0) * GB) for name in ("process", "active", "swap")}
        sample = MemorySample(available=int(free * GB), process_peak=0, pressure=values.get("pressure"), **sizes)
        made.append((sample, 1000.0 + i * seconds))
    return made


def steps(count: int, start: float, stop: float) -> list[float]:
    """Numbers in equal distances."""
    return [start + (stop - start) * i / (count - 1) for i in range(count)]


N = None
TRACES: dict[str, tuple[list[tuple[MemorySample, float]], list[str | None]]] = {
    "steady": (trace(*[6.0] * 8), [N] * 8),
    "steady and low from the start": (trace(*[0.7] * 8), [N] * 8),
    "a ramp down to nothing": (
        trace(4, 3, 2, 1.1, 0.9, 0.8, 0.6, 0.45, 0.3, 0.2),
        [N, N, N, N, "clear", "save", N, N, "pause", "pause"],
    ),
    "a ramp that levels out above the limit": (
        trace(4, 3, 2, 1, 0.9, 0.8, 0.7, 0.7, 0.7),
        [N, N, N, N, "clear", "save", N, N, N],
    ),
    "a ramp of quick steps": (
        trace(*steps(11, 2.0, 0.0), seconds=0.5),
        # 2.0 1.8 1.6 1.4 1.2 1.0 0.8 0.6 0.4 0.2 0.0: below the limit for a second only
        [N, N, N, N, N, N, "clear", "save", N, N, N],
    ),
    "at once to nothing": (trace(6, 6, 0.1, 0.1, 0.1), [N, N, "clear", "pause", "pause"]),
    "at once to nothing, quick steps": (
        trace(6, 6, *[0.1] * 6, seconds=1.0),
        [N, N, "clear", "save", N, "pause", "pause", "pause"],
    ),
    "clearing helps": (trace(6, 0.9, 3, 3, 3, 3), [N, "clear", N, N, N, N]),
    "clearing helps every time": (
        trace(6, 0.9, 3, 3, 3, 3, 0.9, 3, 3),
        [N, "clear", N, N, N, N, "clear", N, N],
    ),
    "up and down about the mark": (
        trace(6, 0.9, 1.1, 0.9, 1.1, 0.9, 1.1, 0.9, 1.1),
        [N, "clear", N, "save", N, N, N, N, N],
    ),
    "a spike of one step": (trace(6, 6, 0.2, 6, 6, 6), [N, N, "clear", N, N, N]),
    "a spike of two quick steps": (trace(6, 0.2, 0.2, 6, 6, seconds=1.0), [N, "clear", "save", N, N]),
    "a spike above the mark": (trace(6, 1.2, 6, 1.2, 6), [N] * 5),
    "another program takes memory, and gives it back": (
        trace(6, 3, 0.8, 0.8, 0.8, 5, 5, 5, 5, process=2.0),
        [N, N, "clear", "save", N, N, N, N, N],
    ),
    "another program takes all": (trace(6, 2, 0.3, 0.3, process=2.0), [N, N, "clear", "pause"]),
    "a leak": (
        trace(*steps(12, 4.0, 0.15), 0.1, process=[*steps(12, 2.0, 5.85), 5.9]),
        # 4.00 3.65 3.30 2.95 2.60 2.25 1.90 1.55 1.20 0.85 0.50 0.15
        [N, N, N, N, N, N, N, N, N, "clear", "save", N, "pause"],
    ),
    "swap that grew once": (
        trace(*[1.5] * 9, swap=[0, 0, 0, 1, 1, 1, 1, 1, 1], seconds=15.0),
        [N, N, N, N, "clear", "save", N, N, N],
    ),
    "swap that keeps growing": (
        trace(*[1.5] * 7, swap=steps(7, 0.0, 3.0), seconds=15.0),
        [N, N, "clear", "save", N, "pause", "pause"],
    ),
    "swap of other programs, with much available": (trace(*[9.0] * 7, swap=steps(7, 0.0, 6.0), seconds=15.0), [N] * 7),
    "swap that grows slowly, in long steps": (
        trace(*[1.9] * 6, swap=[0.264 * i for i in range(6)], seconds=80.0),
        [N] * 6,
    ),
    "the same, in short steps": (trace(*[1.9] * 96, swap=[0.0165 * i for i in range(96)], seconds=5.0), [N] * 96),
    "swap that grows fast, in long steps": (
        trace(*[1.9] * 5, swap=[0.8 * i for i in range(5)], seconds=80.0),
        [N, "clear", "save", "pause", "pause"],
    ),
    "swap that grows fast, and the system says that all is well": (
        trace(*[1.5] * 7, swap=steps(7, 0.0, 3.0), seconds=15.0, pressure=0),
        [N] * 7,
    ),
    "swap that grows fast, and then the system warns": (
        trace(*[1.5] * 7, swap=steps(7, 0.0, 3.0), seconds=15.0, pressure=[0, 0, 0, 1, 1, 1, 1]),
        [N, N, N, "clear", "save", "pause", "pause"],
    ),
    "the system warns": (trace(*[5.0] * 6, pressure=[0, 1, 1, 1, 0, 0]), [N, "clear", "save", N, N, N]),
    "the system says critical": (trace(*[5.0] * 5, pressure=[0, 1, 2, 2, 2]), [N, "clear", "save", "pause", "pause"]),
    "a small machine has a small limit": (
        trace(1.0, 0.6, 0.45, 0.3, 0.2, 0.2),
        [N, N, "clear", "save", N, "pause"],
    ),
    "a long step to nothing": (trace(6, 0.1, 0.1, seconds=600.0), [N, "clear", "pause"]),
}


@pytest.mark.parametrize("name", TRACES)
def test_what_it_decides(name: str) -> None:
    samples, wanted = TRACES[name]
    guard = MemoryGuard(LIMIT)
    found = [guard.look(sample, now) for sample, now in samples]
    assert [decision and decision.action for decision in found] == wanted


@pytest.mark.parametrize("name", TRACES)
def test_switched_off_it_never_acts(name: str) -> None:
    guard = MemoryGuard(0)
    assert [guard.look(sample, now) for sample, now in TRACES[name][0]] == [None] * len(TRACES[name][0])


def test_there_are_twenty_traces() -> None:
    assert len(TRACES) >= 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a leak", "0.8 GB available, 4.0 at the first step; this process grew by 3.1 GB"),
        ("another program takes all", "0.3 GB available, 6.0 at the first step; other programs took it"),
        ("swap that keeps growing", "1.5 GB available, 1.5 at the first step; 1.0 GB were moved to the disk lately"),
        ("the system warns", "5.0 GB available, 5.0 at the first step; the system says that it is"),
    ],
)
def test_it_says_what_it_saw(name: str, message: str) -> None:
    guard = MemoryGuard(LIMIT)
    decisions = [guard.look(sample, now) for sample, now in TRACES[name][0]]
    assert next(decision.message for decision in decisions if decision) == f"memory is short: {message}"


# What the trainer makes of it -------------------------------------------------------------------------------------


class Told(MemoryMonitor):
    """A machine with as much memory as is written, a number of GB for each look between steps."""

    def __init__(self, *available: float) -> None:
        super().__init__()
        self.available: Iterator[float] = iter(available)
        self.last = 20.0

    def sample(self) -> MemorySample:
        return MemorySample(available=int(self.last * GB), process=0, process_peak=0)

    def between_steps(self, event: dict[str, Any]) -> None:
        """Listens: the step that comes finds the next number."""
        if event["type"] in ("start", "step"):
            self.last = next(self.available, self.last)


@pytest.fixture
def create(tmp_path: Path, tiny_model: Path) -> Create:
    """Make a run of 6 steps; other settings by name."""
    sources = write_pair(tmp_path / "data")

    def make(name: str = "run", **settings: Any) -> Run:
        return create_run(tmp_path, tiny_model, sources, run=name, samples=0, **settings)

    return make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take ten seconds."""
    ticks = iter(range(1000, 100000, 10))
    real = loop.time
    fake = SimpleNamespace(monotonic=lambda: float(next(ticks)), perf_counter=real.perf_counter)
    for module in (loop, saving, watching):
        monkeypatch.setattr(module, "time", fake)


def test_it_clears_saves_and_pauses_with_advice(create: Create, clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = []
    monkeypatch.setattr(device, "clear_cache", lambda: cleared.append(True))
    run, whole, told = create(save_minutes=0.0), create("whole"), Told(20, 0.9, 0.8, 0.4, 0.3)
    with pytest.raises(MemoryShortError) as error:
        train(run, told.between_steps, monitor=told)
    assert cleared == [True]
    assert events(run, "checkpoint", "step") == [3, 5]  # by the guard's word, also the end of an epoch; the pause
    warned = events(run, "warning", "message")
    assert [message.split("; ")[-1] for message in warned] == ["caches are cleared", "saving"]
    assert warned[0].startswith("step 2: memory is short: 0.9 GB available, 20.0 at the first step; ")
    assert (run.state, run.status()["step"], run.status()["message"]) == ("paused", 5, str(error.value))
    for words in ("0.3 GB available", "close other programs", "--batch-size 2 --grad-accumulation-steps 2",
                  "--grad-checkpoint", "--max-seq-length 256"):  # fmt: skip
        assert words in str(error.value)
    assert train(run).state == "completed"
    train(whole)
    assert_same_training(run, whole, 6)


def test_a_save_by_the_guards_word_is_not_due_otherwise(create: Create, clock: None) -> None:
    run, told = create(save_every=6), Told(20, 0.9, 0.9, 20, 20, 20)
    assert train(run, told.between_steps, monitor=told).state == "completed"
    assert events(run, "checkpoint", "step") == [3, 6]


def test_switched_off_it_trains_on(create: Create, clock: None) -> None:
    run, told = create(pause_below_gb=0.0, save_minutes=0.0), Told(20, 0.01)
    assert train(run, told.between_steps, monitor=told).state == "completed"
    assert events(run, "warning") == []


def test_the_command_line_says_it_in_a_line(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path, clock: None, monkeypatch, capsys
) -> None:
    told = Told(20, 0.2, 0.2)
    monkeypatch.setattr(planning, "MemoryMonitor", lambda: told)
    monkeypatch.setattr(live_output.TrainingReporter, "_on_step", lambda self, event: told.between_steps(event))
    monkeypatch.setattr(live_output.TrainingReporter, "_on_start", lambda self, event: told.between_steps(event))
    monkeypatch.setattr(live_output.TrainingReporter, "_on_memory", lambda self, event: None)
    place = ["--model", str(tiny_model), "--data", str(tiny_rows), "--runs-dir", str(tmp_path / "runs")]
    status = cli.main(["train", *place, "--run", "club", "--samples", "0", "--epochs", "3"])
    assert status == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: memory is short: 0.2 GB available, 20.0 at the first step; ")
    assert Run(tmp_path / "runs" / "club").state == "paused"


# Before anything is loaded ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["session", "command line"])
def test_a_run_that_would_not_fit_never_opens_the_weights(
    create: Create, tiny_model: Path, tiny_rows: Path, tmp_path: Path, monkeypatch, capsys, way: str
) -> None:
    """The model is a tenth of a gigabyte too large for what is free."""
    monkeypatch.setattr(device.mx, "load", lambda *_: pytest.fail("weights were opened"))
    monkeypatch.setattr(memory, "available_bytes", lambda: 500 * MB)
    monkeypatch.setattr("qlora_core.training.session.available_bytes", lambda: 500 * MB)
    if way == "session":
        run = create()
        with pytest.raises(MemoryShortError, match=r"not enough memory: 0\.7 GB wanted .*, 0\.5 GB available"):
            train(run)
    else:
        place = ["--model", str(tiny_model), "--data", str(tiny_rows), "--runs-dir", str(tmp_path / "runs")]
        assert cli.main(["train", *place, "--run", "club"]) == 1
        assert "error: not enough memory: 0.7 GB wanted" in capsys.readouterr().err
        run = Run(tmp_path / "runs" / "club")
    assert run.state == "failed"
    assert not (run.path / "checkpoints").exists()


SHAPE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8}  # fmt: skip
MATRICES = {"self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096),
            "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096),
            "mlp.down_proj": (4096, 14336), "input_layernorm": (4096,),
            "post_attention_layernorm": (4096,)}  # fmt: skip


def write_large(path: Path, small: Path) -> Path:
    """A model of Mistral-7B's size, whose weights are a hole of 14 GB that takes no place on the disk."""
    shutil.copytree(small, path)
    config = json.loads((small / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps({**config, **SHAPE}), encoding="utf-8")
    shapes = {"model.embed_tokens": (320, 4096), "model.norm": (4096,)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(32) for name, shape in MATRICES.items()}
    header, place = {}, 0
    for name, shape in shapes.items():
        end = place + 2 * math.prod(shape)
        header[f"{name}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    return path


def test_a_large_model_is_refused_by_its_headers_alone(tmp_path: Path, tiny_model: Path, plan, monkeypatch) -> None:
    large = write_large(tmp_path / "large", tiny_model)
    monkeypatch.setattr(
        "qlora_core.models.base_models.remembered_sha256", lambda path: "00" * 32
    )  # of 14 GB it takes a while
    monkeypatch.setattr(device.mx, "load", lambda *_: pytest.fail("weights were opened"))
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 * GB)
    tracker, planned = plan(model=str(large), run="large")
    assert planned.model.parameters > 6_900_000_000
    with pytest.raises(MemoryShortError, match=r"not enough memory: \d\.\d GB wanted \(base [34]\.\d,"):
        train(tracker.create(planned))


# What is read -----------------------------------------------------------------------------------------------------


def test_swap_is_what_the_machine_says() -> None:
    if not os.access("/proc/meminfo", os.R_OK):
        pytest.skip("no /proc here")
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    numbers = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()}
    assert memory.swap_bytes() == pytest.approx(numbers["SwapTotal"] - numbers["SwapFree"], abs=64 * MB)


def test_without_proc_there_is_no_swap_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "open", lambda *_: (_ for _ in ()).throw(OSError()), raising=False)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    assert memory.swap_bytes() == 0


def test_elsewhere_psutil_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(used=7 * MB))
    assert memory.swap_bytes() == 7 * MB


class Apple:
    """libSystem as its documentation describes it: the footprint is 2 GB, the pressure what is given."""

    def __init__(self, level: int = 1, status: int = 0) -> None:
        self.level, self.status = level, status

    def proc_pid_rusage(self, pid: int, flavor: int, numbers: Any) -> int:
        assert flavor == 0
        for place, value in enumerate((0, 0, 1, 2, 3, 4, 5, 6, 7 * MB, 2 * GB, 9, 10)):
            numbers._obj[place] = value
        return self.status

    def sysctlbyname(self, name: bytes, value: Any, size: Any, *_: Any) -> int:
        assert (name, size._obj.value) == (b"kern.memorystatus_vm_pressure_level", 4)
        value._obj.value = self.level
        return 0


@pytest.mark.parametrize(("level", "pressure"), [(1, 0), (2, 1), (4, 2), (0, None)])
def test_macos_says_what_its_documentation_says(monkeypatch: pytest.MonkeyPatch, level: int, pressure: int) -> None:
    """Against a stand-in for the system's library: on a Mac it has not been run yet."""
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Apple(level))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(used=0))
    sample = MemoryMonitor().sample()
    assert (sample.pressure, sample.process) == (pressure, 2 * GB)


def test_where_macos_does_not_answer_the_resident_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Apple(status=-1))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(used=0))
    assert 10 * MB < MemoryMonitor().sample().process < 2 * GB


@pytest.mark.parametrize(
    ("info", "free"),
    [
        ({"total_memory": 80 * GB}, 65 * GB),  # less what MLX holds and keeps
        ({"total_memory": 80 * GB, "free_memory": 30 * GB}, 30 * GB),  # another program has the rest
        ({"total_memory": 80 * GB, "free_memory": 79 * GB}, 65 * GB),
        ({}, None),
    ],
)
def test_a_gpus_memory_is_what_others_leave_of_it(
    monkeypatch: pytest.MonkeyPatch, info: dict, free: int | None
) -> None:
    """Against numbers as the driver gives them, on any machine."""
    numbers = {"get_active_memory": 10 * GB, "get_peak_memory": 12 * GB, "get_cache_memory": 5 * GB}
    for name, value in numbers.items():
        monkeypatch.setattr(device.mx, name, lambda value=value: value)
    monkeypatch.setattr(device.mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.mx, "device_info", lambda: info)
    assert device.memory_counters().get("free") == free


def on_metal(monkeypatch: pytest.MonkeyPatch, working_set: int) -> None:
    """MLX's own words on a Mac whose GPU should have that much memory."""
    info = {"architecture": "applegpu_g13g", "memory_size": 2 * GB, "max_recommended_working_set_size": working_set}
    monkeypatch.setattr(device.mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(device.mx, "device_info", lambda: {key: value for key, value in info.items() if value})


@pytest.mark.parametrize(
    ("working_set", "available", "free"),
    [
        (20 * GB, 12 * GB, 4 * GB),  # 0.95 of it, less what MLX holds and keeps
        (20 * GB, 3 * GB, 3 * GB),  # other programs have the rest of the machine
        (11 * GB, 12 * GB, 0),
        (0, 12 * GB, None),
    ],
)
def test_apples_gpu_has_what_the_machine_has_left_and_no_more_than_its_part(
    monkeypatch: pytest.MonkeyPatch, working_set: int, available: int, free: int | None
) -> None:
    """Against numbers as Metal gives them, on any machine."""
    on_metal(monkeypatch, working_set)
    numbers = {"get_active_memory": 10 * GB, "get_peak_memory": 12 * GB, "get_cache_memory": 5 * GB}
    for name, value in numbers.items():
        monkeypatch.setattr(device.mx, name, lambda value=value: value)
    monkeypatch.setattr(memory, "available_bytes", lambda: available)
    assert device.memory_counters().get("free") == free
    sample = MemoryMonitor(counters=device.memory_counters).sample()
    assert sample.available == (available if free is None else free)


def test_what_apples_gpu_should_have_is_compared_before_the_weights_are_opened(create: Create, monkeypatch) -> None:
    """The machine has room, its GPU has not."""
    on_metal(monkeypatch, 500 * MB)
    monkeypatch.setattr(memory, "available_bytes", lambda: 50 * GB)
    monkeypatch.setattr(device.mx, "load", lambda *_: pytest.fail("weights were opened"))
    with pytest.raises(MemoryShortError, match=r"not enough memory: 0\.7 GB wanted .*, 0\.\d GB available"):
        train(create())
