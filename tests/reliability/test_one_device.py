"""One training at a time on a device, whatever directory the runs lie in; and waiting for one's turn."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import wait_until

from qlora_core import cli
from qlora_core.errors import BusyError
from qlora_core.files import locks
from qlora_core.jobs import device_lock, launch
from qlora_core.jobs.device_lock import DeviceLock, lock_file
from qlora_core.page import training
from qlora_core.page.problems import Problem
from qlora_core.page.watching import RunWatcher
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run


@pytest.fixture
def other(tmp_path: Path) -> Run:
    """A run in another directory of runs, that is being trained while its locks are held."""
    run = Run(tmp_path / "elsewhere" / "other")
    run.path.mkdir(parents=True)
    return run


@pytest.fixture
def flags(tiny_model: Path, tiny_rows: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(tiny_model), "--data", str(tiny_rows), "--runs-dir", str(tmp_path / "runs"), "--run", "club",
            "--max-steps", "2", "--samples", "0", "--max-answer-tokens", "1"]  # fmt: skip


@contextlib.contextmanager
def training_of(run: Run) -> Iterator[None]:
    """Hold what a trainer of the run holds."""
    with TrainingTracker(run.path.parent).record(run), DeviceLock(run.path):
        yield


def test_a_second_training_is_refused_and_told_who_has_the_device(other, plan, tmp_path):
    with training_of(other):
        tracker, planned = plan(run="club")
        with pytest.raises(BusyError) as refused:
            launch.start(tracker, planned)
    message = str(refused.value)
    assert message.startswith(f"{other.path} is being trained already on this machine's ")
    assert f"(process {os.getpid()}, since " in message
    assert message.endswith("Pause or stop that run, wait until it has ended, or let this one wait with --queue.")
    assert not planned.run.path.exists()  # nothing was written


def test_one_that_waits_says_for_whom_and_begins_when_it_is_free(other, flags, tmp_path, capfd):
    run = Run(tmp_path / "runs" / "club")
    seen = []

    def look_and_let_go() -> None:
        wait_until(lambda: "Waiting" in run.status().get("message", ""), lambda: str(run.status()))
        seen.append((run.alive, run.state, run.status()["message"]))
        shown = RunWatcher(TrainingTracker(run.path.parent)).look(Problem("no plan"), "club")
        seen.append(training.run_panel(shown).text)
        held.close()

    with contextlib.ExitStack() as held:
        held.enter_context(training_of(other))
        other_end = threading.Thread(target=look_and_let_go)
        other_end.start()
        status = cli.main(["train", *flags, "--queue"])
        other_end.join()
    output, errors = capfd.readouterr()
    assert status == 0, errors
    (alive, state, message), panel = seen
    assert (alive, state) == (True, "preparing")
    assert str(other.path) in message
    assert "Waiting: " in panel
    assert f"… Waiting: {other.path} is being trained" in output
    assert (run.state, run.status()["message"]) == ("completed", "")


@pytest.mark.parametrize(("how", "status"), [("pause", 3), ("stop", 3), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_wait_can_be_ended(other, how, status, plan, monkeypatch):
    """By the page's buttons, or a signal: it is paused, and has taken nothing."""
    tracker, planned = plan(run="club", queue=True)
    monkeypatch.setattr(device_lock, "POLL", 0)
    monkeypatch.setattr(
        device_lock.time, "sleep", lambda _: run.request(how) if isinstance(how, str) else signal.raise_signal(how)
    )
    before = signal.getsignal(signal.SIGTERM)
    run = planned.run
    with training_of(other), launch.beginning(tracker, planned) as (writer, device):
        assert device is None
        if status == 130:
            with pytest.raises(KeyboardInterrupt):
                device_lock.wait_for_device(writer)
        else:
            assert device_lock.wait_for_device(writer) is None
    assert (run.alive, run.state) == (False, "paused")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_waits_too_and_takes_over_from_one_that_was_killed(other, plan):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(other.path)], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "ready\n"
        tracker, planned = plan(run="club", queue=True, restart=1, max_steps=2, samples=0, max_answer_tokens=1)
        launch.start(tracker, planned)
        run = planned.run
        wait_until(
            lambda: f"(process {holder.pid}, since" in run.status().get("message", ""), lambda: launch.last_words(run)
        )
        holder.kill()
    wait_until(lambda: not run.alive, lambda: launch.last_words(run))
    assert run.state == "completed", launch.last_words(run)


HOLDER = """
import sys, time
from pathlib import Path
from qlora_core.jobs.device_lock import DeviceLock
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock
lock, device = RunLock(Path(sys.argv[1])), DeviceLock(Path(sys.argv[1]))
print("ready", flush=True)
time.sleep(600)
"""


def test_each_device_has_its_lock(monkeypatch):
    monkeypatch.setattr(device_lock, "has_gpu", lambda: False)
    cpu = lock_file()
    monkeypatch.setattr(device_lock, "has_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first = lock_file()
    for visible, wanted in (("0", first), ("0,1", first), ("", cpu), ("-1", cpu)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert lock_file() == wanted
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a/../x")
    assert lock_file().parent == first.parent
    assert len({cpu, first, lock_file()}) == 3


def test_a_device_is_free_again_with_the_run_that_had_it(other, monkeypatch):
    """Its trainer has given the run back, and is on its way out: that is waited for, a moment."""
    held = DeviceLock(other.path)
    monkeypatch.setattr(device_lock.time, "sleep", lambda _: held.release())
    with DeviceLock(other.path.parent / "next") as taken:
        assert locks.holder(taken.path)["run"] == str(other.path.parent / "next")


def test_the_lock_does_not_change_with_the_machines_name(monkeypatch):
    """macOS renames the machine with the network."""
    before = lock_file()
    monkeypatch.setattr(device_lock.platform, "node", lambda: "another.local")
    assert lock_file() == before


def test_machines_that_share_a_cache_have_a_lock_each(monkeypatch, tmp_path):
    ids = ["5f2c1c52-4f7e-4c0f-8b5c-0123456789ab", "5f2c1c52-4f7e-4c0f-8b5c-ba9876543210"]
    names = []
    monkeypatch.setattr(device_lock.sys, "platform", "linux")
    monkeypatch.setattr(device_lock, "START_ID", tmp_path / "boot_id")
    for text in [*(f"{each}\n" for each in ids), "", "no id"]:
        (tmp_path / "boot_id").write_text(text, encoding="ascii")
        names.append(lock_file().name)
    assert [name.startswith(each) for name, each in zip(names, ids, strict=False)] == [True, True]
    (tmp_path / "boot_id").unlink()
    monkeypatch.setattr(device_lock.platform, "node", lambda: "Bela's Mac.local")
    assert lock_file().name.startswith("bela-s-mac.local-")
    monkeypatch.undo()
    assert names[2] == names[3] != lock_file().name


class Apple:
    """libSystem as the manual of gethostuuid(2) describes it."""

    def __init__(self, content: bytes, status: int = 0) -> None:
        self.content, self.status = content, status

    def gethostuuid(self, found, wait):
        assert list(wait._obj) == [1, 0]
        found[:] = list(self.content)
        return self.status


@pytest.mark.parametrize(
    ("library", "begin"),
    [
        (Apple(bytes(range(16))), "00010203-0405-0607-0809-0a0b0c0d0e0f-"),
        (Apple(bytes(range(16)), status=-1), "mac.local-"),
        (Apple(bytes(16)), "mac.local-"),
        (object(), "mac.local-"),
    ],
    ids=["told", "refused", "empty", "not there"],
)
def test_a_mac_is_told_by_its_hardware(monkeypatch, library, begin):
    """Against a stand-in for the system's library: on a Mac it has not been run yet."""
    monkeypatch.setattr(device_lock.sys, "platform", "darwin")
    monkeypatch.setattr(device_lock.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(device_lock.platform, "node", lambda: "mac.local")
    assert lock_file().name.startswith(begin)
