"""The processes that tests start: waited for as long as they get on, and ended with the test.

A word in their environment tells whose they are. As a program (`python processes.py TOKEN DIRECTORY`) this ends what
is left of a pytest that was killed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

TOKEN = "QLORA_TEST"  # the variable that a test's processes inherit: `session/number of the test/`
WORK = 300.0  # seconds of processor time after which what is waited for will not come
QUIET = 120.0  # seconds in which nothing computes, so that nothing will come
MOVED = 0.5  # seconds of processor time that are more than a process spends on waiting

ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


# Started --------------------------------------------------------------------------------------------------------


class Starts:
    """Counts the processes that this one starts, for `sys.addaudithook`."""

    count = 0

    def __call__(self, event: str, _: object) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"):
            self.count += 1


STARTS = Starts()


@contextlib.contextmanager
def default_signals() -> Iterator[None]:
    """Inside the block, what a process started here does on a signal is the default, whatever this one was told.

    A signal that is ignored (by nohup, by a shell's `&`) stays ignored in a new program; one that is handled does not.
    """
    ignored = [number for number in ENDING if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def named(token: str) -> Iterator[None]:
    """Inside the block, processes that are started can be found by `token`."""
    before = os.environ.get(TOKEN)
    os.environ[TOKEN] = token
    try:
        yield
    finally:
        os.environ.pop(TOKEN) if before is None else os.environ.update({TOKEN: before})


@contextlib.contextmanager
def watched(token: str, directory: str) -> Iterator[None]:
    """When this process is gone, in whatever way, end those named by `token` and delete a directory."""
    command = [sys.executable, __file__, token, directory]
    environment = {name: value for name, value in os.environ.items() if name != TOKEN}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True):
        yield  # its input closes with this process


def named_processes(token: str) -> list[psutil.Process]:
    """Living processes whose token begins so, but for this one."""
    found = []
    for pid in psutil.pids():  # `process_iter` remembers, and would take a number for the process that had it before
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if pid != os.getpid() and process.environ().get(TOKEN, "").startswith(token):
                found.append(process)
    return found


def end_processes(token: str) -> list[str]:
    """End the processes named by `token` that do not end by themselves; their commands.

    What has let go of everything may still be on its way out. The trackers that Python's own pools start serve the
    whole session.
    """
    left = [process for process in named_processes(token) if not _serves_pools(process)]
    patience = Patience(work=10, quiet=10)
    while (left := [process for process in left if _lives(process)]) and not any(map(_trains, left)):
        if patience.over():
            break
        time.sleep(0.02)
    told = [" ".join(_command(process)) for process in left]
    while left:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)
        left = [process for process in named_processes(token) if not _serves_pools(process)]  # and what they started
    return told


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _serves_pools(process: psutil.Process) -> bool:
    return any("resource_tracker" in word for word in _command(process))


def _trains(process: psutil.Process) -> bool:
    """Whether it holds the lock of a run: it has not come to its end."""
    with contextlib.suppress(psutil.Error, OSError):
        return any(Path(file.path).name == "lock" for file in process.open_files())
    return False


# Waited for -----------------------------------------------------------------------------------------------------


class Patience:
    """How long something is waited for: while the session's processes get on, however slow the machine makes them.

    Seconds of the clock say nothing on a machine that has other work; processor time does.
    """

    def __init__(self, work: float = WORK, quiet: float = QUIET) -> None:
        self.work, self.quiet = work, quiet
        session, *_ = os.environ.get(TOKEN, "").rsplit("/", 2)
        self._token = f"{session}/"
        self._seconds: dict[int, float] = {}  # of processor time by process, of those that ended as last seen
        self._begun: float | None = None  # looked for when something has been waited for for a while
        self._moved = 0.0
        self._still = 0.0
        self._looked = time.monotonic()

    def over(self) -> bool:
        """Whether there is nothing to wait for any more: much was computed in vain, or for long nothing at all."""
        now = time.monotonic()
        if now - self._looked < 1:
            return False
        self._still += min(now - self._looked, 2.0)  # whoever stops everything stops this too
        self._looked, spent = now, self._spent()
        if self._begun is None:
            self._begun = self._moved = spent
        if spent > self._moved + MOVED:
            self._moved, self._still = spent, 0.0
        return spent - self._begun > self.work or self._still > self.quiet

    def _spent(self) -> float:
        for process in named_processes(self._token):
            with contextlib.suppress(psutil.Error):
                self._seconds[process.pid] = sum(process.cpu_times()[:2])
        return sum(self._seconds.values())


def wait_until(condition: Callable[[], object], told: Callable[[], str] = str, pause: float = 0.02) -> None:
    """Wait for something to be the case; fail with `told` when it will not come."""
    patience = Patience()
    while not condition():
        if patience.over():
            pytest.fail(f"waited in vain: {told()}")
        time.sleep(pause)


def communicate(child: subprocess.Popen[Any], given: Any = None, work: float = WORK) -> tuple[Any, Any]:
    """What a process prints to its end; it is killed when that will not come."""
    patience = Patience(work)
    while True:
        try:
            return child.communicate(given, timeout=1)
        except subprocess.TimeoutExpired:
            given = None  # it is being written
            if patience.over():
                child.kill()
                pytest.fail(f"waited in vain for {child.args}: {child.communicate()}")


def end_of(child: subprocess.Popen[Any]) -> int:
    """The exit status of a process, when it has ended by itself; its output goes to a file, or nowhere."""
    wait_until(lambda: child.poll() is not None, lambda: str(child.args), pause=0.005)
    return child.returncode


def run(
    command: Any, *, given: Any = None, check: bool = False, work: float = WORK, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a command as `subprocess.run` does with captured output, waiting while it gets on.

    Args:
        command: words.
        given: to its standard input.
        check: an exit status that is not 0 is an error.
        work: seconds of processor time that it may need.
        options: of `subprocess.Popen`.
    """
    if given is not None:
        options["stdin"] = subprocess.PIPE
    with subprocess.Popen(command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}) as child:
        output, errors = communicate(child, given, work)
    done = subprocess.CompletedProcess(command, child.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


# As a program ---------------------------------------------------------------------------------------------------


def main(token: str, directory: str) -> None:
    """Wait for the end of whoever started this, and end what is left of it."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    while left := named_processes(token):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
