"""One writer a run: whoever starts at the same time, exactly one wins; a lock is what the kernel says, not a number."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_core import jobs
from qlora_core.errors import BusyError
from qlora_core.runs import Run, RunLock, RunWriter, TrainingTracker

STARTERS, READERS = 8, 4
PATIENCE = 60  # seconds after which something that does not happen fails the test

STARTER = """
import sys, time
from pathlib import Path
from qlora_core.errors import BusyError
from qlora_core.runs import Run, TrainingTracker
run = Run(Path(sys.argv[1]))
for line in sys.stdin:  # when to start; all at the same moment
    while time.monotonic() < float(line):
        pass
    try:
        with TrainingTracker(run.path.parent).record(run):
            print("won", flush=True)
            sys.stdin.readline()
    except BusyError:
        print("busy", flush=True)
        sys.stdin.readline()
"""
READER = """
import sys
from pathlib import Path
from qlora_core.runs import Run
run = Run(Path(sys.argv[1]))
while True:
    run.alive
"""


@contextlib.contextmanager
def processes(script: str, count: int, *arguments: object) -> Iterator[list[subprocess.Popen]]:
    """The same script some times over, ended with the block."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(count)]
        try:
            yield made
        finally:
            for process in made:
                process.kill()


def tell(starters: list[subprocess.Popen], line: object) -> None:
    for starter in starters:
        starter.stdin.write(f"{line}\n")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "club")
    run.path.mkdir(parents=True)
    return run


def test_of_those_that_start_at_once_exactly_one_wins(run, request):
    """While others look whether the run is alive, as fast as they can: they keep nobody out."""
    with processes(STARTER, STARTERS, run.path) as starters, processes(READER, READERS, run.path):
        for race in range(request.config.getoption("--races")):
            tell(starters, time.monotonic() + 0.005)
            answers = sorted(starter.stdout.readline().strip() for starter in starters)
            assert answers == ["busy"] * (STARTERS - 1) + ["won"], f"race {race}"
            assert run.alive
            tell(starters, "next")


PAGE = """
import json, sys
from qlora_core import cli, jobs
from qlora_core.config import from_flat
from qlora_core.errors import BusyError
for line in sys.stdin:
    tracker, plan = cli.plan_training(from_flat(json.loads(line)), say=lambda _: None)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print(jobs.start(tracker, plan), flush=True)
    except BusyError as error:
        print(error, flush=True)
"""


def test_of_pages_that_start_a_run_at_once_exactly_one_has_a_worker(tiny_model, tiny_rows, tmp_path, request):
    with processes(PAGE, 3) as pages:
        for race in range(max(1, request.config.getoption("--races") // 100)):
            run = Run(tmp_path / "runs" / f"club-{race}")
            given = {"model": str(tiny_model), "data": [str(tiny_rows)], "runs_dir": str(run.path.parent),
                     "run": run.name, "epochs": 1, "samples": 0, "max_answer_tokens": 1}  # fmt: skip
            tell(pages, json.dumps(given))
            assert [page.stdout.readline() for page in pages] == ["ready\n"] * len(pages)
            tell(pages, "start")
            answers = [page.stdout.readline().strip() for page in pages]
            assert sum(answer.isdigit() for answer in answers) == 1, f"race {race}: {answers}"
            assert sum("is being trained by another process" in answer for answer in answers) == len(pages) - 1
            ended(run)
            assert run.state == "completed", jobs.last_words(run)


def ended(run: Run) -> None:
    end = time.monotonic() + PATIENCE
    while run.alive:
        assert time.monotonic() < end, jobs.last_words(run)
        time.sleep(0.02)


HOLDER = """
import sys, time
from pathlib import Path
from qlora_core.runs import Run, TrainingTracker
with TrainingTracker("runs").record(Run(Path(sys.argv[1]))) as writer:
    writer.set_status("running", step=3, total_steps=9)
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_suspended_holder_keeps_the_run_and_a_killed_one_frees_it_at_once(run):
    with processes(HOLDER, 1, run.path) as (holder,):
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(BusyError, match=rf"another process \({holder.pid}, since [\d :-]+\)"):
            RunLock(run.path)
        holder.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
        assert (run.alive, run.state) == (True, "running")
        with pytest.raises(BusyError, match=rf"suspended: `kill -CONT {holder.pid}` lets it go on"):
            RunLock(run.path)
        holder.kill()
        holder.wait()
        assert (run.alive, run.state) == (False, "crashed")
        RunLock(run.path).release()


def test_a_number_that_another_program_bears_now_means_nothing(run, tmp_path):
    """The process of status and lock is alive, but is not the trainer any more."""
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("running", step=3, total_steps=9)
    for name in ("status.json", "lock"):
        said = json.loads((run.path / name).read_text(encoding="utf-8"))
        (run.path / name).write_text(json.dumps({**said, "pid": os.getppid(), "since": 1e9}), encoding="utf-8")
    assert (run.alive, run.state) == (False, "crashed")
    lock = RunLock(run.path)
    (run.path / "lock").write_text(json.dumps({"pid": os.getppid(), "since": 1e9}), encoding="utf-8")
    with pytest.raises(BusyError, match=r"is being trained by another process\. Follow"):  # nobody is named
        RunLock(run.path)
    lock.release()
    (run.path / "lock").write_text("no JSON", encoding="utf-8")
    with TrainingTracker(run.path.parent).record(run):
        assert run.alive


def test_a_reader_that_is_suspended_while_it_looks_is_not_waited_for_for_ever(run, monkeypatch):
    import fcntl

    from qlora_core import locks

    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    RunLock(run.path).release()
    looking = os.open(run.path / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    with pytest.raises(BusyError):
        RunLock(run.path)
    os.close(looking)
    RunLock(run.path).release()
