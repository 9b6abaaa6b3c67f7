"""A trainer that dies without a word: what is said of it, that its run goes on, and who looks after that."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import processes
import psutil
import pytest
from harness import create_run, events, train, write_pair
from safetensors.numpy import load_file

from qlora_core import cli
from qlora_core.errors import BusyError
from qlora_core.jobs import launch
from qlora_core.jobs.supervisor import Death, _prepare_another, _why_it_stops
from qlora_core.page import training
from qlora_core.page.problems import Problem
from qlora_core.page.watching import RunWatcher
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock

SEED = 6
SETTINGS = {"run": "club", "samples": 0, "max_answer_tokens": 1, "save_every": 2, "keep_awake": False}
WORDS = {
    "SIGABRT": "It crashed inside compiled code (SIGABRT)",
    "exit 137": "Most likely the memory ran out",
    "SIGSEGV": "It crashed inside compiled code (SIGSEGV)",
    "SIGKILL": "Most likely the memory ran out",
}

Deaths = Callable[..., Path]


@pytest.fixture
def deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deaths:
    """Tell workers after which steps to die, and how."""
    path = tmp_path / "deaths.json"
    monkeypatch.setenv("DEATHS", str(path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "dying"))

    def plan_them(*planned: tuple[int, str]) -> Path:
        path.write_text(json.dumps(planned), encoding="utf-8")
        return path

    plan_them()
    return plan_them


def wait_until(run: Run, condition: Callable[[], object]) -> None:
    processes.wait_until(condition, lambda: f"{run.state}, {run.status()}\n{launch.last_words(run)}")


def steps_of(run: Run) -> list[int]:
    return events(run, "step", "step")


def last_saved(run: Run) -> int:
    return training.last_checkpoint(run)


def test_a_dead_worker_leaves_page_and_run_alive(plan, deaths, request):
    """The page is this process: it starts, looks, says why in plain words, and goes on."""
    kills = max(2, request.config.getoption("--kills") // 3)  # each takes as long as three of the others
    rng = random.Random(SEED)
    total = 5 * kills
    for kill, step in enumerate(sorted(rng.sample(range(2, total), kills))):
        how = list(WORDS)[kill % len(WORDS)]
        deaths((step, how))
        tracker, planned = plan(**SETTINGS, epochs=total, max_steps=total)
        run = planned.run
        launch.start(tracker, planned)
        told = f"seed {SEED}, kill {kill}: {how} after step {step}"
        wait_until(run, lambda run=run: not run.alive and launch.exit_status(run) is not None)
        assert run.state == "crashed", told
        assert steps_of(run) == list(range(1, step + 1)), told
        seen = RunWatcher(tracker).look(Problem("no plan"), "club")
        shown = training.run_panel(seen).text
        assert WORDS[how] in shown, told
        assert f"Step {last_saved(run)} is saved" in shown if last_saved(run) else "Nothing was saved yet" in shown
        assert last_saved(run) in (step - 1, step - 2), told  # a death comes before the step's own checkpoint
    deaths()
    launch.start(tracker, planned)
    wait_until(run, lambda: not run.alive)
    assert run.state == "completed", launch.last_words(run)
    assert steps_of(run) == list(range(1, total + 1))


def test_a_supervised_run_goes_on_by_itself_with_less_at_once_and_the_same_result(plan, deaths, tmp_path):
    """Three deaths, two of them for memory; all the time nobody else may take the run."""
    tracker, planned = plan(**SETTINGS, restart=3, max_steps=8, epochs=8)
    clean = tracker.create(dataclasses.replace(planned, run=Run(tmp_path / "clean")))
    deaths((1, "SIGSEGV"), (3, "SIGKILL"), (5, "[METAL] Insufficient Memory"))
    run, taken = planned.run, []
    launch.start(tracker, planned)

    def try_to_take() -> None:
        while not taken or taken[-1] == "busy":
            try:
                RunLock(run.path).release()
                taken.append("free")
            except BusyError:
                taken.append("busy")
                time.sleep(0.002)

    thief = threading.Thread(target=try_to_take)
    thief.start()
    wait_until(run, lambda: not run.alive)
    thief.join()
    assert run.state == "completed", launch.last_words(run, 40)
    assert steps_of(run) == list(range(1, 9))
    said = events(run, "warning", "message")
    assert [word.split(". ")[0] for word in said] == [f"the trainer died after step {n}" for n in (1, 3, 5)]
    assert [word.split("Restart ")[1].split(",")[0].rstrip(".") for word in said] == [f"{n} of 3" for n in (1, 2, 3)]
    assert "with 2 rows at once instead of 4 and twice as many micro-batches: 4 rows a step, as before" in said[1]
    assert "with 1 rows at once instead of 2 and" in said[2]
    assert "at once instead" not in _prepare_another(run, Death(7, 1, memory=True, reason=""), "")  # it cannot be less
    assert (run.micro_batch, run.config().train.batch_size) == (1, 4)
    with launch.beginning(*plan(run="club", max_steps=9, epochs=9)):  # as a plain resume does
        assert run.micro_batch == 1
    assert train(clean).state == "completed"
    losses = [events(each, "step", "train_loss") for each in (run, clean)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    ours, theirs = (load_file(each.final / "adapters.safetensors") for each in (run, clean))
    for name in theirs:
        assert np.allclose(ours[name], theirs[name], rtol=1e-2, atol=1e-5), name


def words(flags: dict[str, object]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def flags(tiny_model: Path, tiny_rows: Path, tmp_path: Path) -> dict[str, object]:
    return {"model": tiny_model, "data": tiny_rows, "runs_dir": tmp_path / "runs", "run": "club", "samples": 0,
            "max_answer_tokens": 1, "save_every": 2}  # fmt: skip


def test_after_two_deaths_at_one_step_it_stops_and_asks(flags, deaths, tmp_path, capfd):
    deaths((3, "SIGSEGV"), (3, "SIGSEGV"), (3, "SIGSEGV"))
    run = Run(tmp_path / "runs" / "club")
    assert cli.main(["train", *words({**flags, "restart": 9})]) == 1
    output, errors = capfd.readouterr()
    (message,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert run.state == "failed"
    assert message == f"error: {run.status()['message']}"
    assert "the trainer died twice after step 3, so it is not started again. It crashed inside compiled" in message
    rest, _, onward = message.partition(" Go on with: ")
    assert onward.startswith("uv run python apps/train.py --run club --runs-dir ")
    named = rest.partition("The rows of step 4: ")[2].rstrip(".").split(", ")
    assert len(named) == 4  # a micro-batch
    assert {name.rpartition(":")[0] for name in named} == {str(tmp_path / "rows.jsonl")}
    assert "! the trainer died after step 3. It crashed" in output
    assert train(run).state == "completed"


METAL = "raise [METAL] Command buffer execution failed: "


def test_a_device_that_gave_up_is_given_another_process(flags, deaths, tmp_path, capfd):
    """From the last checkpoint; with fewer rows at once where its memory ran out."""
    deaths((3, f"{METAL}Impacting Interactivity"), (5, f"{METAL}Insufficient Memory"))
    run = Run(tmp_path / "runs" / "club")
    assert cli.main(["train", *words({**flags, "restart": 3, "max_steps": 6})]) == 0
    output, errors = capfd.readouterr()
    assert (run.state, errors) == ("completed", "")
    assert steps_of(run) == list(range(1, 7))
    said = events(run, "warning", "message")
    first = "the device gave up after step 3. [METAL] Command buffer execution failed: Impacting Interactivity. macOS"
    assert said[0].startswith(first)
    assert said[0].endswith("The run is paused: its last checkpoint, of step 2, is as it was. Restart 1 of 3.")
    assert said[1].startswith("the device gave up after step 5. ")
    assert f"Restart 2 of 3, with {run.micro_batch} rows at once instead of {2 * run.micro_batch}" in said[1]
    assert f"! {said[0]}" in output


def test_one_that_gives_up_twice_at_one_step_stays_paused(flags, deaths, tmp_path, capfd):
    deaths(*[(3, f"{METAL}Impacting Interactivity")] * 3)
    run = Run(tmp_path / "runs" / "club")
    assert cli.main(["train", *words({**flags, "restart": 9})]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert (run.state, run.status()["step"]) == ("paused", 2)
    assert line == f"error: {run.status()['message']}"
    assert "the device gave up twice after step 3, so it is not started again. [METAL] Command buffer" in line


@pytest.mark.parametrize(
    ("deaths", "restarts", "wanted"),
    [
        ([(3, 4)], 2, ""),
        ([(3, 4), (5, 4)], 2, ""),
        ([(3, 4), (5, 4), (3, 4)], 9, "died twice after step 3"),
        ([(3, 4), (3, 2)], 2, ""),  # something was changed in between
        ([(3, 4), (3, 2), (3, 2)], 9, "died twice after step 3"),
        ([(None, 4), (None, 4)], 9, "died twice while it loaded"),
        ([(3, 4), (5, 4), (7, 4)], 2, "died 3 times, last after step 7"),
        ([(3, 4)], 0, "died 1 times"),
    ],
)
def test_when_it_is_not_started_again(deaths, restarts, wanted, tmp_path):
    made = [Death(after, rows, memory=False, reason="Because.") for after, rows in deaths]
    assert wanted in _why_it_stops(Run(tmp_path), made, restarts, [])
    assert bool(_why_it_stops(Run(tmp_path), made, restarts, [])) == bool(wanted)


def only_child(process: psutil.Process) -> psutil.Process:
    (child,) = (each for each in process.children() if "qlora_core.jobs.worker" in each.cmdline())
    return child


def test_signals_reach_the_supervised_trainer_once(flags, tmp_path):
    """Ctrl+Z suspends both and later wakes both; Ctrl+C pauses, and is no second one for the child."""
    run = Run(tmp_path / "runs" / "club")
    command = [sys.executable, "-m", "qlora_core", "train", *words({**flags, "restart": 2, "epochs": 10000})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as supervisor:
        try:
            wait_until(run, lambda: steps_of(run))
            child = only_child(psutil.Process(supervisor.pid))
            supervisor.send_signal(signal.SIGTSTP)
            os.waitid(os.P_PID, supervisor.pid, os.WSTOPPED)
            wait_until(run, lambda: child.status() == psutil.STATUS_STOPPED)
            assert (run.alive, run.state) == (True, "running")
            before = len(steps_of(run))
            supervisor.send_signal(signal.SIGCONT)
            wait_until(run, lambda: len(steps_of(run)) > before)
            supervisor.send_signal(signal.SIGINT)
            output, _ = processes.communicate(supervisor)
        finally:
            if supervisor.poll() is None:
                os.killpg(supervisor.pid, signal.SIGKILL)
    assert supervisor.returncode == 130
    assert (run.alive, run.state) == (False, "paused")
    assert f"Paused at step {run.status()['step']} of" in output


def test_a_trainer_outlives_its_supervisor(plan):
    tracker, planned = plan(**SETTINGS, restart=2, epochs=10000)
    run = planned.run
    supervisor = psutil.Process(launch.start(tracker, planned))
    wait_until(run, lambda: steps_of(run))
    supervisor.kill()
    wait_until(run, lambda: not supervisor.is_running())
    before = len(steps_of(run))
    wait_until(run, lambda: len(steps_of(run)) > before)
    assert (run.alive, run.state) == (True, "running")
    with pytest.raises(BusyError):
        launch.start(tracker, planned)
    run.request("pause")
    wait_until(run, lambda: not run.alive)
    assert run.state == "paused"


def test_fewer_rows_at_once_change_nothing_but_rounding(tiny_model, tmp_path):
    sources = write_pair(tmp_path / "data")
    losses = []
    for rows in (4, 3, 1):
        run = create_run(tmp_path / "runs", tiny_model, sources, run=f"at-once-{rows}", samples=0)
        (run.path / "environment.json").write_text(json.dumps(run.environment() | {"micro_batch": rows}))
        train(run)
        losses.append([*events(run, "step", "train_loss"), *events(run, "eval", "val_loss")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert losses[1] != losses[2]  # it was computed otherwise
