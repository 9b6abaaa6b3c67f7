"""A laptop that sleeps, a process that is stopped, a clock that is set: speed, time left and the lock stay right."""

import contextlib
import dataclasses
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from harness import assert_same_training, create_run, events, train, write_pair
from processes import wait_until

from qlora_core.errors import BusyError
from qlora_core.files.storage import write_json
from qlora_core.jobs import launch
from qlora_core.page import training
from qlora_core.page.problems import Problem
from qlora_core.page.watching import RunWatcher, Snapshot
from qlora_core.reports.live_output import TrainingReporter
from qlora_core.runs import writer
from qlora_core.runs.metrics import MetricsReader
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
from qlora_core.runs.throughput import RECENT_STEPS, Throughput, counted_seconds
from qlora_core.runs.writer import RunLock
from qlora_core.training import loop, saving, steps, watching

HOUR = 3600.0


def look(run: Run) -> Snapshot:
    """The run as the page sees it."""
    return RunWatcher(TrainingTracker(run.path.parent)).look(Problem("nothing planned"), run.name)


# Steps that took longer than they should ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "seconds", "counted"),
    [
        ([10] * 5, [1.0] * 5, [1.0] * 5),
        ([10] * 5, [1, 1, HOUR, 1, 1], [1.0] * 5),
        ([10] * 5, [HOUR, 1, 1, 1, 1], [1.0] * 5),
        ([10] * 5, [1, HOUR, HOUR, 1, 1], [1.0] * 5),
        ([10] * 4, [1, 2, 3, 4], [1, 2, 3, 4]),  # slower and slower is slow, not interrupted
        ([10, 10, 100, 10], [1, 1, 10, 1], [1, 1, 10, 1]),  # a long step takes long
        ([10, 10, 100, 10], [1, 1, 999, 1], [1, 1, 10, 1]),  # and counts as one, if it was interrupted
        ([10], [HOUR], [HOUR]),  # nothing to compare with
        ([], [], []),
        ([np.nan, 10, 10, 10], [1, 1, 1, HOUR], [1, 1, 1, 1]),
    ],
)
def test_an_interrupted_step_counts_as_the_others(tokens, seconds, counted) -> None:
    assert counted_seconds(np.array(tokens), np.array(seconds)).tolist() == pytest.approx(counted)


def test_a_change_of_pace_is_none_of_them() -> None:
    """A run that goes on upon another machine, ten times as slow, is compared with its own neighbours."""
    seconds = np.repeat([1.0, 10.0], 4 * RECENT_STEPS)
    assert counted_seconds(np.full(len(seconds), 10), seconds).sum() == seconds.sum()
    seconds[[7, 300]] = HOUR
    wanted = 4 * RECENT_STEPS * 11.0
    assert counted_seconds(np.full(len(seconds), 10), seconds).sum() == pytest.approx(wanted)


def test_the_pace_of_the_last_steps() -> None:
    pace = Throughput()
    assert (pace.tokens_per_second, pace.seconds_for(10)) == (0.0, 0.0)
    assert [pace.count(100, seconds) for seconds in (0.5, 0.5, 0.5, HOUR, 0.5)] == [0.5] * 5
    assert (pace.tokens_per_second, pace.seconds_for(10)) == (200.0, 5.0)
    for _ in range(RECENT_STEPS):
        pace.count(100, 1.0)
    assert (pace.tokens_per_second, pace.seconds_for(10)) == (100.0, 10.0)


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Run:
    """A run of 12 steps with a validation and a checkpoint each."""
    sources = write_pair(tmp_path / "data", train=12)
    settings = {"batch_size": 2, "epochs": 2, "samples": 0, "eval_every": 1, "save_every": 1}
    return create_run(tmp_path / "runs", tiny_model, sources, run="run", **settings)


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A trainer whose steps take 0.5 s by its clock, and an hour more whenever `during` says so."""
    state = SimpleNamespace(now=0.0, steps=set(), validating=False)
    real_step, real_validation = steps.train_step, loop.validate_model

    def step(session: Any, group: Any) -> Any:
        state.now += 0.5 + HOUR * (session.progress.step + 1 in state.steps)
        return real_step(session, group)

    def validate(session: Any) -> np.ndarray:
        state.now += 0.25 + HOUR * (state.validating and session.progress.step in state.steps)
        return real_validation(session)

    monkeypatch.setattr(steps, "train_step", step)
    monkeypatch.setattr(loop, "validate_model", validate)
    clock = SimpleNamespace(monotonic=lambda: state.now, perf_counter=lambda: state.now)
    for module in (loop, saving, steps, watching):
        monkeypatch.setattr(module, "time", clock)
    return state


@pytest.mark.parametrize("steps", [set(), {6}, {2, 7, 12}], ids=str)
@pytest.mark.parametrize("validating", [False, True])
def test_the_page_tells_speed_and_time_without_it(
    run: Run, asleep: SimpleNamespace, steps: set[int], validating: bool
) -> None:
    asleep.steps, asleep.validating = steps, validating
    train(run)
    seen = look(run)
    tokens = events(run, "step", "tokens")
    assert sum(events(run, "step", "seconds")) == pytest.approx(12 * 0.5 + HOUR * len(steps))  # what is recorded is so
    assert training._tokens_per_second(seen) == pytest.approx(sum(tokens) / 6.0, rel=0.25)
    assert training.seconds_trained(seen) == pytest.approx(12 * 0.5, rel=0.25)
    longer = dataclasses.replace(seen, state="paused", status={**seen.status, "total_steps": 24})
    assert longer.time_left.total == pytest.approx(12 * 0.75, rel=0.25)
    summary = run.summary()
    if 2 not in steps:  # a step is known to be long when there are others to compare it with
        assert summary["training_seconds"] == pytest.approx(6.0, rel=0.25)
        assert summary["tokens_per_second"] == pytest.approx(sum(tokens) / 6.0, rel=0.25)


def test_the_terminal_tells_speed_and_time_without_it() -> None:
    told = []
    stream = SimpleNamespace(write=told.append, flush=lambda: None, isatty=lambda: True, encoding="utf-8")
    reporter = TrainingReporter(stream)
    begin = {"type": "start", "step": 0, "steps_per_epoch": 20, "total_steps": 20, "epochs": 1, "layout": "packed",
             "device": "none"}  # fmt: skip
    reporter(begin)
    reporter({"type": "memory", "step": 0, "label": "Epoch 1 start", "available": 1})
    for step in range(1, 11):
        seconds = HOUR if step == 8 else 2.0
        event = {"train_loss": 1.0, "tokens": 100, "seconds": seconds, "tokens_per_second": 100 / seconds}
        reporter({"type": "step", "step": step, **event})
    reporter._bar.refresh()
    reporter({"type": "end"})
    (shown,) = {line for line in told if "10/20" in line and "50 tokens/s" in line and "20 s left" in line}
    assert "loss 1.000" in shown


# A clock that is set ----------------------------------------------------------------------------------------------


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock jumps by an hour, back and forth, whenever the run's writer looks at it."""
    offsets = itertools.cycle([0.0, HOUR, -HOUR, 0.0, -24 * HOUR])
    fake = SimpleNamespace(time=lambda: time.time() + next(offsets), monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(writer, "time", fake)


def test_a_clock_that_is_set_changes_nothing(run: Run, jumping: None, tmp_path: Path, tiny_model: Path) -> None:
    began = time.monotonic()
    assert train(run).state == run.state == "completed"
    took = time.monotonic() - began
    seen = look(run)
    assert seen.steps["step"].tolist() == list(range(1, 13))
    assert len(seen.evals["step"]) == 12
    assert training.seconds_trained(seen) <= took
    reader = MetricsReader(run.metrics_file)
    reader.poll()
    assert [event["type"] for event in reader.recent][-1] == "end"
    steady = create_run(tmp_path / "steady", tiny_model, tmp_path / "data", run="run", **{
        "batch_size": 2, "epochs": 2, "samples": 0, "eval_every": 1, "save_every": 1})  # fmt: skip
    train(steady)
    assert_same_training(run, steady, 12)
    assert events(run, "checkpoint", "step") == events(steady, "checkpoint", "step")  # none more by the clock


@pytest.mark.parametrize("offset", [HOUR, -HOUR])
def test_how_a_worker_died_is_known_whatever_the_clock_says(tmp_path: Path, offset: float) -> None:
    """The trainer's last word lies in the future, or long ago."""
    run = Run(tmp_path)
    write_json(run.path / "status.json", {"state": "running", "step": 3, "time": time.time() + offset})
    launch._wait(SimpleNamespace(wait=lambda: -9), run)
    assert (run.state, launch.exit_status(run)) == ("crashed", -9)
    write_json(run.path / "status.json", {"state": "running", "step": 4, "time": time.time()})
    assert launch.exit_status(run) is None  # that was an earlier trainer


# A process that is stopped ----------------------------------------------------------------------------------------


def test_a_stopped_trainer_keeps_its_lock_and_goes_on(
    tmp_path: Path, tiny_model: Path, request: pytest.FixtureRequest
) -> None:
    """As when a laptop's lid is closed; `--signals N` stops it N times."""
    sources = write_pair(tmp_path / "data", train=12, validation=12)
    settings = {"batch_size": 4, "max_steps": 5000, "epochs": 10000, "samples": 0, "save_every": 10, "eval_every": 5}
    run = create_run(tmp_path / "runs", tiny_model, sources, run="run", **settings)
    command = [sys.executable, "-m", "qlora_core", "train", "--run", "run", "--runs-dir", str(tmp_path / "runs")]
    draw = random.Random(0)

    def wait_for_steps(more: int) -> None:
        wanted = len(events(run, "step")) + more
        wait_until(lambda: child.poll() is not None or len(events(run, "step")) >= wanted, lambda: str(run.status()))
        assert child.poll() is None

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        try:
            wait_for_steps(30)
            for trial in range(request.config.getoption("--signals")):
                child.send_signal(signal.SIGSTOP)
                time.sleep(draw.uniform(0.05, 1.0))
                assert (run.alive, run.state) == (True, "running"), f"seed 0, trial {trial}"
                with pytest.raises(BusyError):
                    RunLock(run.path)
                child.send_signal(signal.SIGCONT)
                wait_for_steps(20)
            run.request("pause")
            assert (child.stderr.read(), child.wait()) == (b"", 3)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
    step = run.status()["step"]
    assert events(run, "step", "step") == list(range(1, step + 1))
    seen = look(run)
    assert training.seconds_trained(seen) <= sum(
        sum(events(run, kind, "seconds")) for kind in ("step", "eval", "checkpoint")
    )
