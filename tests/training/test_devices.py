"""A run on several devices of a machine: the same numbers, and a lost device ends it in order.

The engine connects a process once in its life, so each training on several devices has a process of its own.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from harness import checkpoint, create_run, events, train, trained_state, write_pair

from qlora_core.errors import ConfigError, RunError
from qlora_core.files.storage import write_json
from qlora_core.machine.process_pool import cores
from qlora_core.runs import plan
from qlora_core.runs.checkpoints import checkpoints
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock
from qlora_core.training import followers
from qlora_core.training.followers import Followers, Loading
from qlora_core.training.session import make_optimizer, open_session

STEPS, HALF = 6, 3
GIVEN = {"batch_size": 3, "max_steps": STEPS, "schedule": "constant", "eval_every": 1, "save_every": 1,
         "keep_checkpoints": 9, "samples": 0}  # fmt: skip
WORKER = "import sys; from qlora_core.jobs import worker; {first}; sys.exit(worker.main())"
IMPATIENT = "from qlora_core.training import followers; followers.QUIET, followers.GRACE = 3.0, 1.0"
PATIENCE = 120


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A run of six steps of three rows, on a machine with devices enough."""
    monkeypatch.setattr(plan, "refuse_too_many", lambda devices: None)

    def made(name: str, **settings: object) -> Run:
        rows = write_pair(tmp_path / "rows", 11, 3)  # the last step of an epoch has fewer rows than there are devices
        return create_run(tmp_path / "runs", tiny_model, rows, run=name, **GIVEN | settings)

    return made


def change(run: Run, **settings: int) -> Run:
    """Change settings that a resumed run may have changed."""
    config = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    for name, value in settings.items():
        next(group for group in config.values() if isinstance(group, dict) and name in group)[name] = value
    write_json(run.path / "config.json", config)
    return run


def start(run: Run, first: str = "pass") -> subprocess.Popen[bytes]:
    """A trainer as the page starts it; `first` is done in it before."""
    lock = RunLock(run.path)
    command = [sys.executable, "-c", WORKER.format(first=first), str(run.path), "--lock", str(lock.descriptor)]
    with (run.path / "worker.log").open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock.descriptor,),
            start_new_session=True,
        )  # fmt: skip
    lock.release()
    return child


def finished(run: Run) -> Run:
    """Train a run in a process of its own until it is complete."""
    assert start(run).wait(PATIENCE) == 0, (run.path / "worker.log").read_text(encoding="utf-8")
    assert run.state == "completed"
    return run


def after_steps(run: Run, child: subprocess.Popen[bytes], count: int = 1) -> list[psutil.Process]:
    """Wait until a trainer has made some steps, and return the followers."""
    end = time.monotonic() + PATIENCE
    while len(events(run, "step")) < count:
        assert child.poll() is None and time.monotonic() < end, (run.path / "worker.log").read_text(encoding="utf-8")
        time.sleep(0.01)
    return [one for one in psutil.Process(child.pid).children(True) if "qlora_core.training.follower" in one.cmdline()]


def losses(run: Run) -> np.ndarray:
    """Every loss of a run, of steps and validations."""
    return np.array([*events(run, "step", "train_loss"), *events(run, "eval", "val_loss")])


def assert_close(run: Run, wanted: Run) -> None:
    """Losses and adapters agree as far as numbers that are summed in another order do."""
    assert events(run, "step", "tokens") == events(wanted, "step", "tokens")
    assert losses(run) == pytest.approx(losses(wanted), rel=1e-5)


def test_any_number_of_devices_gives_the_same_numbers_and_may_change(make) -> None:
    alone = make("alone")
    train(alone)
    two, three = finished(make("two", devices=2)), finished(make("three", devices=3))
    assert_close(two, alone)
    assert_close(three, alone)

    half = finished(make("half", devices=2, max_steps=HALF))
    other = half.path.with_name("other")
    shutil.copytree(half.path, other)
    finished(change(half, max_steps=STEPS))
    assert trained_state(half, STEPS) == trained_state(two, STEPS)
    train(change(Run(other), max_steps=STEPS, devices=1))
    assert_close(Run(other), alone)

    begun = make("begun", max_steps=HALF)
    train(begun)
    assert_close(finished(change(begun, max_steps=STEPS, devices=2)), alone)
