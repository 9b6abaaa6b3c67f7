"""A run that was cut, however often and however it was, ends as if it had not been: equal to the byte.

40 steps with everything that has a state: two epochs, accumulation, dropout, warm-up and cosine, validation within the
epochs, samples. `--cuts 40` cuts at every step.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest
from conftest import ROOT
from harness import Killed, assert_same_training, at_step, create_run, events, kill, train, trained_state, write_pair

from qlora_core.engine import device
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.runs.run import Run
from qlora_core.tokens.batching import Rounding, make_batch
from qlora_core.training import batcher, loop, saving, steps, watching

STEPS = 40
FULL = {
    "batch_size": 2,
    "grad_accumulation_steps": 2,
    "epochs": 2,
    "dropout": 0.1,
    "warmup_steps": 6,
    "schedule": "cosine",
    "eval_every": 7,
    "samples": 1,
    "learning_rate": 1e-2,
}

Create = Callable[..., Run]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 rows to train, 4 of them a step, and 4 to validate on."""
    return write_pair(tmp_path_factory.mktemp("rows"), train=80, validation=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, sources: Path) -> Run:
    """The run that nobody cut."""
    run = create_run(tmp_path_factory.mktemp("whole"), tiny_model, sources, run="whole", **FULL)
    assert train(run).state == "completed"
    assert events(run, "step", "step") == list(range(1, STEPS + 1))
    assert events(run, "eval", "step") == [7, 14, 21, 28, 35, 40]
    return run


@pytest.fixture
def create(tmp_path: Path, tiny_model: Path, sources: Path) -> Create:
    """Make a run like it; other settings by name."""

    def make(name: str = "cut", **settings: Any) -> Run:
        return create_run(tmp_path, tiny_model, sources, run=name, **{**FULL, **settings})

    return make


def test_cut_at_any_step_it_ends_the_same(create: Create, whole: Run, request: pytest.FixtureRequest) -> None:
    """All that is lost is time; also of the numbers that were told on the way."""
    count = min(request.config.getoption("--cuts"), STEPS - 1)
    for step in (1 + (10 + i * (STEPS - 1) // count) % (STEPS - 1) for i in range(count)):
        run = create(f"cut-{step}")
        assert train(run, at_step(step, lambda run=run: run.request("pause"))).state == "paused", step
        assert run.status()["step"] == step
        assert train(run).state == "completed", step
        assert_same_training(run, whole, STEPS)


def test_cut_after_the_last_step_it_ends_the_same(create: Create, whole: Run) -> None:
    """The 40th cut: everything is trained, and the answers to the test questions are still to come."""
    run = create()
    with pytest.raises(Killed):
        train(run, lambda event: kill() if event["type"] == "evaluating" else None)
    assert run.state == "crashed"
    assert train(run).state == "completed"
    assert_same_training(run, whole, STEPS)


def test_cut_many_times_it_ends_the_same(create: Create, whole: Run, request: pytest.FixtureRequest) -> None:
    """By pauses and by kills, so that some steps are made twice."""
    seed = 0
    for trial in range(max(1, request.config.getoption("--cuts") // 5)):
        draw = random.Random(seed + trial)
        run = create(f"cut-{trial}", save_every=draw.choice([2, 3, 5]))
        for step in sorted(draw.sample(range(1, STEPS), 3)):
            if draw.random() < 0.5:
                with pytest.raises(Killed):
                    train(run, at_step(step, kill))
            else:
                train(run, at_step(step, lambda run=run: run.request("pause")))
        assert train(run).state == "completed", f"seed {seed + trial}"
        assert_same_training(run, whole, STEPS)


ELSEWHERE = """
import os, signal, sys
from pathlib import Path
from harness import at_step, train
from qlora_core.runs.run import Run
run, step, how = Run(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
acts = {"pause": lambda: run.request("pause"), "kill": lambda: os.kill(os.getpid(), signal.SIGKILL)}
train(run, at_step(step, acts.get(how, lambda: None)))
"""


def test_cut_and_continued_in_other_processes_it_ends_the_same(create: Create, whole: Run) -> None:
    run = create(save_every=4)
    for step, how in ((15, "kill"), (0, "")):
        command = [sys.executable, "-c", ELSEWHERE, str(run.path), str(step), how]
        done = processes.run(command, cwd=ROOT / "tests/support", text=True)
        assert (done.returncode == -9) == (how == "kill"), done.stderr
    assert events(run, "start", "step") == [0, 12]
    assert run.state == "completed"
    assert_same_training(run, whole, STEPS)


@pytest.mark.parametrize(("compiled", "dropout"), [(False, 0.0), (False, 0.1), (True, 0.0)])
def test_cut_with_the_kernels_of_a_gpu_it_ends_the_same(
    create: Create, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, compiled: bool, dropout: float
) -> None:
    """Rows in bins, layers that share what they multiply, shapes that are compiled: what a CPU does not choose."""
    if compiled:
        request.getfixturevalue("compiling")
    kernels = Kernels("cpu", "float32", "kept", rounding=Rounding(32, 32, (64, 128)), compiled=compiled)
    monkeypatch.setattr(device, "choose_kernels", lambda *_: kernels)
    batches = []
    monkeypatch.setattr(
        batcher, "make_batch", lambda *rows, **how: batches.append(make_batch(*rows, **how)) or batches[-1]
    )
    whole, cut = (create(name, dropout=dropout, max_steps=10, samples=0) for name in ("whole", "cut"))
    assert train(whole).state == "completed"
    for step in (3, 8):
        assert train(cut, at_step(step, lambda: cut.request("pause"))).state == "paused"
    assert train(cut).state == "completed"
    assert_same_training(cut, whole, 10)
    assert any(batch.row is not None for batch in batches)
    assert {Kernels.from_dict(recorded) for recorded in events(cut, "start", "kernels")} == {kernels}


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_every": 0, "samples": 0, "save_every": 1, "pause_below_gb": 0.0, "save_minutes": 0.0},
        {"eval_every": 3, "samples": 3, "max_answer_tokens": 3, "save_every": 11, "keep_checkpoints": 1},
    ],
    ids=str,
)
def test_looking_and_saving_change_nothing(create: Create, whole: Run, settings: dict[str, Any]) -> None:
    run = create(**settings)
    train(run)
    assert_same_training(run, whole, STEPS, best="eval_every" not in settings)


def test_validation_rows_change_nothing(
    create: Create, whole: Run, tmp_path: Path, sources: Path, tiny_model: Path
) -> None:
    """Without any, nothing is validated at all."""
    rows = tmp_path / "without"
    rows.mkdir()
    (rows / "rows.jsonl").write_bytes((sources / "train.jsonl").read_bytes())
    run = create_run(tmp_path, tiny_model, rows, run="without", **FULL, val_fraction=0.0)
    train(run, at_step(22, lambda: run.request("pause")))
    assert events(run, "eval") == []
    assert events(run, "step", "train_loss") == events(whole, "step", "train_loss")[:22]


# By the clock -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The trainer's clock, which only moves when it is told to."""
    made = SimpleNamespace(now=1000.0)
    fake = SimpleNamespace(monotonic=lambda: made.now, perf_counter=time.perf_counter)
    for module in (loop, saving, steps, watching):
        monkeypatch.setattr(module, "time", fake)
    return made


@pytest.fixture
def effortless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that compute nothing: when it saves is all that is looked at."""
    step = steps.Step(loss=1.0, targets=1, tokens=1, norm=1.0, rate=0.0, updated=True)
    monkeypatch.setattr(steps, "train_step", lambda *_: step)


def every_step(clock: SimpleNamespace, seconds: float) -> Callable[[dict[str, Any]], None]:
    """A listener that lets the clock run on at every step."""

    def listen(event: dict[str, Any]) -> None:
        if event["type"] == "step":
            clock.now += seconds

    return listen


@pytest.mark.parametrize(
    ("minutes", "seconds", "save_every", "saved"),
    [
        (5.0, 60, 0, [5, 10, 15, 20, 25, 30, 35, 40]),  # the ends of the epochs are saved anyway
        (5.0, 60, 8, [5, 8, 13, 16, 21, 24, 29, 32, 37, 40]),  # counted from the last one, whatever it was due to
        (5.0, 60, 4, [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]),
        (5.0, 299, 0, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40]),
        (5.0, 900, 0, list(range(1, 41))),  # a step that lasts longer than that
        (30.0, 100, 0, [18, 20, 38, 40]),
        (0.0, 900, 0, [20, 40]),
    ],
)
def test_checkpoints_by_the_clock(
    create: Create, clock: SimpleNamespace, effortless: None, minutes, seconds, save_every, saved
) -> None:
    """No more than these minutes are lost, and no step is saved twice."""
    run = create(save_minutes=minutes, save_every=save_every, keep_checkpoints=100, samples=0)
    train(run, every_step(clock, seconds))
    assert events(run, "checkpoint", "step") == saved


def test_a_resumed_run_counts_the_minutes_anew(create: Create, clock: SimpleNamespace, effortless: None) -> None:
    run = create(save_minutes=5.0, samples=0)
    train(run, every_step(clock, 60), at_step(8, lambda: run.request("pause")))
    clock.now += 3600
    train(run, every_step(clock, 60), at_step(17, lambda: run.request("pause")))
    assert events(run, "checkpoint", "step") == [5, 8, 13, 17]


def test_saving_by_the_clock_changes_nothing_that_is_learnt(create: Create, whole: Run, clock: SimpleNamespace) -> None:
    run = create(save_minutes=1.0)
    train(run, every_step(clock, 25), at_step(20, lambda: run.request("pause")))
    assert len(events(run, "checkpoint")) > 20 / 4
    assert trained_state(run, 20) == trained_state(whole, 20)
