"""Processes that compute shares beside the trainer: equal to the bit, whatever becomes of them."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness import FAST, Killed, assert_same_training, at_step, create_run, events, kill, train, write_pair

from qlora_core.machine.memory import GB
from qlora_core.runs import memory_estimate
from qlora_core.runs.run import Run
from qlora_core.training import loop, share_workers
from qlora_core.training.share_workers import ShareWorkers, how_many

ESTIMATE = memory_estimate.MemoryEstimate(weights=GB, dense=0, adapters=0, activations=GB, attention=0, logits=0)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[ShareWorkers]:
    """Have every run start a worker, and wait until it has loaded; those that were started."""
    started = []
    start = loop.start_workers

    def started_and_ready(session, writer) -> None:
        kernels = dataclasses.replace(session.kernels, streams=2)
        session.batcher = dataclasses.replace(session.batcher, kernels=kernels)
        start(session, writer)
        assert session.workers.are_ready(60)
        started.append(session.workers)

    monkeypatch.setattr(share_workers, "WORTHWHILE", 0)
    monkeypatch.setattr(loop, "start_workers", started_and_ready)
    return started


def processes_of(workers: ShareWorkers) -> list[psutil.Process]:
    return [psutil.Process(process.pid) for _, process in workers._workers]


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A run, with two streams on any machine."""
    monkeypatch.setattr(memory_estimate, "cores", lambda: 2)

    def made(name: str, **settings: object) -> Run:
        rows = write_pair(tmp_path / "rows", 20, 5)
        return create_run(tmp_path / "runs", tiny_model, rows, run=name, save_every=2, max_steps=6, **settings)

    return made


def alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train a run on the streams of this process."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "start_workers", lambda session, writer: None)
        train(run)
    return run


def test_a_run_with_workers_equals_one_without(make, workers, monkeypatch) -> None:
    wanted = alone(make("alone"), monkeypatch)
    run = make("together")
    shares = []
    compute = ShareWorkers.compute
    monkeypatch.setattr(
        ShareWorkers,
        "compute",
        lambda self, request, *more: shares.append(len(request.shares)) or compute(self, request, *more),
    )
    assert train(run).state == "completed"
    assert_same_training(run, wanted, 6)
    assert shares.count(2) > 6  # steps and validations
    assert not workers[0]


def test_a_worker_that_is_killed_changes_no_bit_and_is_told(make, workers, monkeypatch) -> None:
    wanted = alone(make("alone"), monkeypatch)
    run = make("together")
    train(run, at_step(3, lambda: processes_of(workers[0])[0].kill()))
    assert_same_training(run, wanted, 6)
    (message,) = [message for message in events(run, "warning", "message") if "process" in message]
    assert "equal results" in message


def test_an_adapter_that_changed_is_sent_again_after_a_resume(make, workers, monkeypatch) -> None:
    wanted = alone(make("alone"), monkeypatch)
    run = make("together")
    with pytest.raises(Killed):
        train(run, at_step(5, kill))
    assert train(run).state == "completed"
    assert_same_training(run, wanted, 6)


def test_whatever_ends_a_run_ends_its_workers(make, workers) -> None:
    found = []

    def fail() -> None:
        found.extend(processes_of(workers[0]))
        raise Killed

    with pytest.raises(Killed):
        train(make("cut"), at_step(2, fail))
    assert found
    assert not any(process.is_running() for process in found)


def test_signals_of_the_terminal_leave_a_worker_alone(make, workers, monkeypatch) -> None:
    run = make("signalled")

    def signalled() -> None:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTSTP):
            os.kill(processes_of(workers[0])[0].pid, number)

    assert train(run, at_step(2, signalled)).state == "completed"
    assert not [message for message in events(run, "warning", "message") if "process" in message]


def test_their_memory_is_counted(make, workers) -> None:
    run = make("counted")
    looked = []
    train(run, at_step(6, lambda: looked.append(workers[0].memory())))
    (told,) = looked
    assert told["process"] > 50_000_000
    assert told["process_peak"] >= told["process"]
    assert run.summary()["peak_process_bytes"] > told["process_peak"]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, 3),
        ({"work": share_workers.WORTHWHILE / 2}, 0),
        ({"separable": False}, 0),
        ({"available": 4 * GB}, 0),
        ({"available": 7 * GB}, 2),
    ],
)
def test_how_many_are_worth_it(changes, wanted) -> None:
    kernels = dataclasses.replace(FAST, streams=4)
    given = {"work": 2 * share_workers.WORTHWHILE, "available": 64 * GB, "separable": True, **changes}
    separable = given.pop("separable")
    assert how_many(kernels, ESTIMATE, **given, separable=separable) == wanted


def test_a_gpu_has_none() -> None:
    kernels = dataclasses.replace(FAST, device="cuda")
    assert how_many(kernels, ESTIMATE, work=1e15, available=64 * GB, separable=True) == 0
