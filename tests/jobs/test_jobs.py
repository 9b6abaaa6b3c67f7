"""Training as a process of its own: one a run, asked through files, alive without whoever started it."""

import json
import os
import signal
import sys

import processes
import psutil
import pytest

from qlora_core.errors import BusyError
from qlora_core.jobs import launch
from qlora_core.runs.run import Run


def wait_until(run: Run, condition) -> None:
    """Wait for a condition on the run, and tell the worker's log if it never comes."""
    processes.wait_until(condition, lambda: f"{run.state}, {run.status()}\n{launch.last_words(run)}")


def ends(run: Run, state: str) -> None:
    wait_until(run, lambda: not run.alive)
    assert run.state == state, launch.last_words(run, lines=40)


@pytest.fixture
def started(plan):
    """Start workers, and leave none behind."""
    children = {}

    def start(**settings) -> Run:
        tracker, planned = plan(**{"run": "club", "max_answer_tokens": 1, **settings})
        children[launch.start(tracker, planned)] = planned.run
        return planned.run

    yield start
    for child, run in children.items():
        if run.alive:
            os.kill(child, signal.SIGKILL)
        wait_until(run, lambda child=child: not psutil.pid_exists(child))  # nothing stays in the process table


def test_a_worker_trains_to_the_end_and_nobody_else_may_start(started):
    run = started(epochs=1)
    assert run.state == "preparing"  # at once, before the worker has said a word
    assert run.alive
    with pytest.raises(BusyError, match="is being trained by another process"):
        started(epochs=7)
    assert run.config().train.epochs == 1  # a refused start changes nothing
    ends(run, "completed")
    assert run.adapters == run.best
    assert run.metrics()[-1]["state"] == "completed"
    assert run.status()["pid"] != os.getpid()


def test_a_pause_asked_before_the_worker_is_there_is_kept_and_a_new_start_goes_on(started):
    run = started(epochs=2)
    run.request("pause")
    ends(run, "paused")
    paused = run.status()["step"]
    assert paused < run.status()["total_steps"]
    started(epochs=2)
    ends(run, "completed")
    assert run.status()["step"] == run.status()["total_steps"]
    steps = [event["step"] for event in run.metrics() if event["type"] == "step"]
    assert steps == list(range(1, run.status()["total_steps"] + 1))


def test_an_error_for_people_leaves_the_run_failed_with_its_words(started, plan):
    tracker, planned = plan(run="club")
    run = tracker.create(planned)
    environment = run.environment()
    environment["model"]["path"] = "/nowhere/tiny-llama"
    (run.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    started()
    ends(run, "failed")
    assert run.status()["message"].startswith("/nowhere/tiny-llama: the run's base model is not there any more")
    assert launch.last_words(run) == f"error: {run.status()['message']}"


def test_a_worker_that_dies_before_its_first_word_has_crashed(started, monkeypatch, tmp_path):
    broken = tmp_path / "broken-python"
    broken.write_text("#!/bin/sh\necho no such library\nexit 127\n", encoding="ascii")
    broken.chmod(0o700)
    monkeypatch.setattr(launch.sys, "executable", str(broken))
    run = started()
    ends(run, "crashed")
    assert launch.last_words(run) == "no such library"


STARTER = """
import sys
from qlora_core.jobs import launch, planning
from qlora_core.config import from_flat
import json
tracker, plan = planning.plan_training(from_flat(json.loads(sys.argv[1])), say=lambda _: None)
print(launch.start(tracker, plan))
"""


def test_the_worker_outlives_whoever_started_it(tiny_model, tiny_rows, tmp_path):
    """The starter has ended before the worker begins to load, and its terminal's Ctrl+C does not reach the worker."""
    runs_dir = tmp_path / "runs"
    given = {"model": str(tiny_model), "data": [str(tiny_rows)], "runs_dir": str(runs_dir), "run": "club",
             "max_answer_tokens": 1, "epochs": 1}  # fmt: skip
    done = processes.run([sys.executable, "-c", STARTER, json.dumps(given)], text=True, check=True)
    run, worker = Run(runs_dir / "club"), int(done.stdout)
    assert run.alive
    assert os.getsid(worker) == worker != os.getsid(0)
    ends(run, "completed")


def test_the_last_words_are_the_end_of_the_log(tmp_path):
    run = Run(tmp_path)
    assert launch.last_words(run) == ""
    (tmp_path / "worker.log").write_bytes(b"".join(b"line %d\n" % i for i in range(30)) + b"\xff")
    assert launch.last_words(run, lines=3) == "line 28\nline 29\n\ufffd"
