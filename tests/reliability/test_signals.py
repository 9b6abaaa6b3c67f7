"""Ctrl+C once and twice, SIGTERM, a closed terminal: a real `qlora train`, at random instants and in chosen places.

Whenever it comes, the process ends without a traceback, the run can go on, and what it learns is the same. Each signal
hits one run again and again, in turn while it loads, trains, saves and validates; `--signals N` says how often.
"""

import contextlib
import fcntl
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import at_step, checkpoint, create_run, events, train, trained_state, write_pair
from processes import Patience, end_of

from qlora_core.runs.checkpoints import latest_checkpoint
from qlora_core.runs.run import Run

ENDLESS = 5000  # steps: no trial sees the last one
OF_ONE_RUN = 20  # trials after which another run is taken, so that this holds, and its events are read quickly
SETTINGS = {"max_steps": ENDLESS, "epochs": 10000, "save_every": 1, "eval_every": 1, "samples": 1, "dropout": 0.1,
            "batch_size": 4, "learning_rate": 1e-3, "max_answer_tokens": 1, "warmup_steps": 1}  # fmt: skip
SCRIPT = "import sys; from qlora_core.__main__ import main; print('up', flush=True); sys.exit(main())"
PLACES = ("loading", "training", "saving", "validating")


@dataclass
class Process:
    """A `qlora train` that has just been started; what it printed is in files."""

    run: Run
    child: subprocess.Popen[bytes]
    directory: Path

    def wait_for(self, condition: Callable[[], bool], pause: float = 0.001) -> None:
        """Wait for something to be the case."""
        patience = Patience()
        while not condition():
            assert self.child.poll() is None, f"it ended by itself: {self.printed()}"
            assert not patience.over(), f"{self.run.status()}\n{self.printed()}"
            time.sleep(pause)

    def printed(self) -> str:
        """Everything it said."""
        return "".join((self.directory / name).read_text(encoding="utf-8") for name in ("out", "err"))

    def starts(self) -> int:
        """How many trainers of the run came to their first step."""
        return len(events(self.run, "start"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few rows to train and many to validate on, which then takes longer than a step."""
    return write_pair(tmp_path_factory.mktemp("rows"), train=12, validation=48)


@pytest.fixture
def started(tmp_path: Path, tiny_model: Path, sources: Path) -> Iterator[Callable[..., Process]]:
    """Start, or resume, a run by its name; kill what is left in the end."""
    children: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> Process:
        run = Run(tmp_path / "runs" / name)
        if not run.exists:
            create_run(tmp_path / "runs", tiny_model, sources, run=name, **SETTINGS)
        arguments = ["train", "--run", name, "--runs-dir", str(run.path.parent)]
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            child = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=out, stderr=err)
        children.append(child)
        process = Process(run, child, tmp_path)
        process.wait_for(lambda: (tmp_path / "out").stat().st_size > 0)
        return process

    yield start
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.wait()


def arrive(process: Process, place: str, draw: random.Random, before: int) -> None:
    """Wait until the process is there, more or less."""
    if place == "loading":
        time.sleep(draw.uniform(0, 2.0))
        return
    process.wait_for(lambda: process.starts() > before)
    if place == "training":
        time.sleep(draw.uniform(0, 0.5))
    elif place == "saving":
        saving = process.run.path / "checkpoints"
        process.wait_for(lambda: saving.is_dir() and any(saving.glob(".*.tmp")), pause=0.0001)
    else:
        steps = len(events(process.run, "step"))
        process.wait_for(lambda: len(events(process.run, "step")) > steps)
        time.sleep(draw.uniform(0, 0.02))


KINDS = {
    "Ctrl+C": (signal.SIGINT, False, 130),
    "Ctrl+C twice": (signal.SIGINT, True, 130),
    "SIGTERM": (signal.SIGTERM, False, 3),
    "SIGHUP": (signal.SIGHUP, False, 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_at_any_instant(
    started: Callable[..., Process], tiny_model: Path, sources: Path, tmp_path: Path, kind: str, request
) -> None:
    number, twice, status = KINDS[kind]
    draw = random.Random(kind)
    for trial in range(request.config.getoption("--signals")):
        place = PLACES[(trial + list(KINDS).index(kind)) % len(PLACES)]
        told = f"seed {kind!r}, trial {trial}, {place}"
        if trial % OF_ONE_RUN == 0:
            saved = 0
        process = started(f"hit-{trial // OF_ONE_RUN}")
        run, before = process.run, process.starts()
        arrive(process, place, draw, before)
        process.child.send_signal(number)
        if twice:
            time.sleep(draw.uniform(0, 0.1))
            process.child.send_signal(number)
        ended = end_of(process.child)
        printed = process.printed()
        told += f", status {ended}, {run.status()}\n{printed}"
        assert "Traceback" not in printed, told
        assert "Exception ignored" not in printed, told
        assert not run.alive, told
        trained = process.starts() > before
        if trained:  # from there on it is the trainer's to say how it ended
            assert ended == status, told
            assert run.state == "paused", told
            late = twice and printed.endswith("interrupted\n")  # the second came when it was paused already
            assert "Go on with: " in printed or late, told
        else:  # before there is anything to save, what the system does is right
            assert ended in (status, -number), told
            assert run.state in ("new", "paused", "crashed"), told
        newest, problems = latest_checkpoint(run.path / "checkpoints")
        assert problems == [], told
        step = int(newest.name) if newest else 0
        assert step >= saved, told
        if trained and not twice:
            assert step == run.status()["step"], told
        saved = step
    if saved:
        whole = create_run(tmp_path / "whole", tiny_model, sources, run="whole", **{**SETTINGS, "eval_every": ENDLESS})
        train(whole, at_step(saved, lambda: whole.request("pause")))
        assert trained_state(run, saved) == trained_state(whole, saved)


def test_a_terminal_that_is_closed_pauses_the_run(tmp_path: Path, tiny_model: Path, sources: Path) -> None:
    """What it prints can no longer be written then; it saves all the same."""
    run = create_run(tmp_path / "runs", tiny_model, sources, run="hit", **SETTINGS)
    controlling, terminal = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    arguments = ["train", "--run", "hit", "--runs-dir", str(tmp_path / "runs")]
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=take_terminal, close_fds=True,
    )  # fmt: skip
    os.close(terminal)
    os.set_blocking(controlling, False)
    patience = Patience()
    while len(events(run, "step")) < 2:
        with contextlib.suppress(BlockingIOError):
            os.read(controlling, 65536)  # a terminal that nobody reads stops who writes to it
        assert child.poll() is None
        assert not patience.over()
        time.sleep(0.005)
    os.close(controlling)
    assert end_of(child) == 3
    assert (run.state, run.status()["message"]) == ("paused", "")
    assert checkpoint(run, run.status()["step"]).is_dir()


def test_a_reader_that_goes_away_does_not_end_training(tmp_path: Path, tiny_model: Path, sources: Path) -> None:
    """As in `qlora train | grep -m1 EPOCH`: what was told is in the run's directory, and it is trained to its end."""
    run = create_run(tmp_path / "runs", tiny_model, sources, run="hit", **{**SETTINGS, "max_steps": 3})
    arguments = ["train", "--run", "hit", "--runs-dir", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "qlora_core", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        while b"EPOCH" not in child.stdout.readline():
            assert child.poll() is None
        child.stdout.close()
        errors = child.stderr.read()
    assert run.state == "completed"
    assert (child.returncode, errors) == (0, b"")


# In this process --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Run:
    """A run of 6 steps."""
    return create_run(tmp_path, tiny_model, write_pair(tmp_path / "data"), run="run", samples=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_pause_after_the_step(run: Run, number: signal.Signals) -> None:
    outcome = train(run, at_step(2, lambda: signal.raise_signal(number)))
    assert (outcome.state, outcome.by_ctrl_c, outcome.at_once) == ("paused", False, False)
    assert (run.state, run.status()["step"]) == ("paused", 2)
    assert checkpoint(run, 2).is_dir()


def test_a_signal_that_is_ignored_stays_ignored(run: Run) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(run, at_step(2, lambda: signal.raise_signal(signal.SIGHUP))).state == "completed"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_it_loads_there_is_nothing_to_wait_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr("qlora_core.training.adapted_model.load_base", lambda *_: signal.raise_signal(number))
    outcome = train(run)
    assert (outcome.state, outcome.by_ctrl_c, outcome.at_once) == ("paused", number == signal.SIGINT, True)
    assert (run.state, run.status()["step"]) == ("paused", 0)
    assert not (run.path / "checkpoints").exists()


def test_a_third_ctrl_c_does_not_disturb_the_end(run: Run) -> None:
    def thrice() -> None:
        try:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)

    outcome = train(run, at_step(2, thrice))
    assert (outcome.state, outcome.at_once, run.state) == ("paused", True, "paused")


def test_ctrl_c_after_sigterm_ends_at_once(run: Run) -> None:
    def both() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # somebody is impatient, and still everything is saved
        signal.raise_signal(signal.SIGINT)

    outcome = train(run, at_step(2, both))
    assert (outcome.state, outcome.at_once, run.state) == ("paused", True, "paused")
