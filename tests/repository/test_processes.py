"""What the suite promises of the processes that tests start, however it was started itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import processes
import psutil
import pytest
from conftest import CACHE, ROOT

from qlora_core.jobs.device_lock import DeviceLock, lock_file

LONG = [sys.executable, "-c", "import time; time.sleep(600)"]


def suite(path: Path, **options) -> subprocess.Popen[str]:
    """Run pytest on one file as if it were one of ours."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", "-n", "0", str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    places = [str(ROOT / "tests/support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    options["env"] = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.Popen([*command, "--rootdir", str(path.parent)], cwd=ROOT / "tests", **pipes, **options)


def ignore_signals() -> None:
    for number in processes.ENDING:
        signal.signal(number, signal.SIG_IGN)


SIGNALS = """
import signal
def test_it(python):
    script = "import signal; print([getattr(signal.getsignal(n), 'name', 'Python') for n in {numbers}])"
    assert eval(python("-c", script).stdout) == ["SIG_DFL", "Python", "SIG_DFL", "SIG_DFL"]
    for number in {numbers}:  # the suite itself goes on, as it was told to
        signal.raise_signal(number)
"""


def test_a_suite_whose_signals_are_ignored_starts_processes_that_hear_them(tmp_path):
    """As under `nohup pytest &`: there SIGINT, SIGHUP and more are ignored, and so would they be by every child."""
    test = tmp_path / "test_signals.py"
    test.write_text(SIGNALS.format(numbers=[int(number) for number in processes.ENDING]), encoding="utf-8")
    with suite(test, preexec_fn=ignore_signals) as child:
        printed, _ = processes.communicate(child)
    assert child.returncode == 0, printed


LEAVES = """
import pathlib
from harness import write_pair
from qlora_core.jobs import launch
def test_it(plan, tmp_path):
    tracker, planned = plan(run="club", epochs=10000, samples=0, max_answer_tokens=1)
    pathlib.Path({told!r}).write_text(str(launch.start(tracker, planned)))
    {then}
"""


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
def test_no_trainer_outlives_its_test_nor_pytest(tmp_path, killed):
    test, told = tmp_path / "test_leaves.py", tmp_path / "told"
    then = "import time; time.sleep(600)" if killed else "pass"
    test.write_text(LEAVES.format(told=str(told), then=then), encoding="utf-8")
    with suite(test) as child:
        if killed:
            processes.wait_until(lambda: told.exists() and told.read_text(encoding="ascii"))
            child.kill()
        printed, _ = processes.communicate(child)
    assert killed or "left running, and ended now" in printed
    assert killed or "qlora_core.jobs.worker" in printed
    trainer = int(told.read_text(encoding="ascii"))
    processes.wait_until(lambda: not living(trainer))


def living(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_what_is_on_its_way_out_is_waited_for():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"]):
        assert processes.end_processes(os.environ[processes.TOKEN]) == []


def test_what_stays_is_ended_with_what_it_started(monkeypatch):
    monkeypatch.setattr(processes, "_trains", lambda process: True)
    starter = f"import subprocess; subprocess.Popen({LONG!r}); print('up', flush=True); subprocess.run({LONG!r})"
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "up\n"
        assert processes.end_processes(os.environ[processes.TOKEN])
    assert processes.named_processes(os.environ[processes.TOKEN]) == []


@pytest.mark.parametrize("number", [1, 2])
def test_each_test_has_the_device_to_itself(number, tmp_path, monkeypatch):
    """The first test's lock would be held for the second."""
    assert lock_file().is_relative_to(CACHE)
    assert not lock_file().exists()
    DeviceLock(tmp_path)  # never released


# Patience -------------------------------------------------------------------------------------------------------


def test_patience_ends_where_nothing_computes():
    patience = processes.Patience(quiet=2)
    with subprocess.Popen(LONG) as child:
        while not patience.over():
            time.sleep(0.05)
        assert child.poll() is None
        child.kill()


def test_patience_lasts_while_something_computes_and_ends_after_much_of_it():
    patience = processes.Patience(work=2)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        while not patience.over():
            time.sleep(0.05)
        times = psutil.Process(child.pid).cpu_times()
        child.kill()
    assert times.user + times.system > 2


def test_what_is_waited_for_in_vain_is_told(monkeypatch):
    monkeypatch.setattr(processes.Patience, "over", lambda self: True)
    with pytest.raises(pytest.fail.Exception, match="waited in vain: for nothing"):
        processes.wait_until(lambda: False, lambda: "for nothing")
    monkeypatch.setattr(processes, "Patience", lambda *_: SimpleNamespace(over=lambda: True))
    with pytest.raises(pytest.fail.Exception, match=r"waited in vain for .*time\.sleep\(600\)"):
        processes.run(LONG, text=True)
