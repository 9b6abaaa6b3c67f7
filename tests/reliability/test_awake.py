"""Idle sleep is held off while a trainer lives, however it ends; where that cannot be, nothing is different."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from processes import wait_until

from qlora_core.machine import keep_awake as awake


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a program of the system into a directory that is looked through first; it notes what it was told."""
    told = tmp_path / "told"

    def make(name: str, script: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "$$ $@" > {told}.new; mv {told}.new {told}\n{script}\n', encoding="ascii")
        path.chmod(0o700)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        return told

    return make


INHIBIT = 'shift 4; exec "$@"'  # as systemd-inhibit runs the command after its own flags
ON_LINUX = "--what=idle:sleep --mode=block --who=QLoRA Notebook --why=training a language model cat"


@pytest.fixture
def on_linux(monkeypatch):
    monkeypatch.setattr(awake.sys, "platform", "linux")


def test_linux_is_kept_awake_inside_the_block(program, on_linux):
    told = program("systemd-inhibit", INHIBIT)
    with awake.kept_awake():
        wait_until(told.exists)
        pid, _, words = told.read_text(encoding="ascii").strip().partition(" ")
        assert words == ON_LINUX
        assert psutil.pid_exists(int(pid))
    assert not psutil.pid_exists(int(pid))


def test_macos_is_kept_awake_inside_the_block(program, monkeypatch):
    """With a program of the same name that is told the same; the real one has not yet run here."""
    monkeypatch.setattr(awake.sys, "platform", "darwin")
    told = program("caffeinate", "exec sleep 600")
    with awake.kept_awake():
        wait_until(told.exists)
        pid, _, words = told.read_text(encoding="ascii").strip().partition(" ")
        assert words == f"-i -w {os.getpid()}"
        assert psutil.pid_exists(int(pid))
    assert not psutil.pid_exists(int(pid))


def test_a_killed_trainer_keeps_nothing_awake(program, tmp_path):
    told = program("systemd-inhibit", INHIBIT)
    script = (
        "import sys, time; from qlora_core.machine import keep_awake as awake\n"
        "sys.platform = 'linux'\n"
        "with awake.kept_awake():\n    print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout.readline() == "ready\n"
        wait_until(told.exists)
        pid = int(told.read_text(encoding="ascii").split()[0])
        assert psutil.pid_exists(pid)
        trainer.send_signal(signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_it_is_not_wanted_or_not_there_or_refused(program, on_linux, monkeypatch, tmp_path, capfd):
    told = program("systemd-inhibit", "echo 'Failed to inhibit: Access denied' >&2; exit 1")
    with awake.kept_awake(False):
        pass
    assert not told.exists()
    with awake.kept_awake():
        wait_until(told.exists)
    assert awake.describe() == "not held off while training: Failed to inhibit: Access denied"
    monkeypatch.setenv("PATH", str(tmp_path))
    with awake.kept_awake():
        pass
    assert awake.describe() == "not held off while training: no systemd-inhibit here"
    assert capfd.readouterr() == ("", "")


def test_the_diagnosis_says_what_holds_it_off(program, on_linux):
    program("systemd-inhibit", INHIBIT)
    assert awake.describe() == "held off while training (systemd-inhibit)"


def test_a_training_asks_for_it_as_the_setting_says(program, plan, on_linux):
    from qlora_core.jobs import launch, worker

    told = program("systemd-inhibit", INHIBIT)
    for wanted in (False, True):
        tracker, planned = plan(run=f"awake-{wanted}", keep_awake=wanted, max_steps=1, samples=0, max_answer_tokens=1)
        with launch.beginning(tracker, planned) as (writer, device):
            assert worker.train_here(writer, lambda _: None, device=device).state == "completed"
        assert told.exists() is wanted
