"""One writer a run: whoever starts at the same time, exactly one wins; a lock is what the kernel says, not a number."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest

from qlora_core.errors import BusyError
from qlora_core.jobs import launch
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock, RunWriter

STARTERS, READERS = 8, 4

RACES = """
import json, os, signal, sys, time
from pathlib import Path
from qlora_core.errors import BusyError
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run

run, races, starters, readers = Run(Path(sys.argv[1])), *map(int, sys.argv[2:])

def start(orders, answers):
    for line in orders:  # when to start; all at the same moment
        while time.monotonic() < float(line):
            pass
        try:
            with TrainingTracker(run.path.parent).record(run):
                print("won", file=answers, flush=True)
                orders.readline()
        except BusyError:
            print("busy", file=answers, flush=True)
            orders.readline()

def look(orders, answers):
    while True:
        run.alive

def forked(work):
    (read_order, order), (read_answer, answer) = os.pipe(), os.pipe()
    if pid := os.fork():
        os.close(read_order), os.close(answer)
        return pid, open(order, "w", buffering=1), open(read_answer)
    os.close(order), os.close(read_answer)
    work(open(read_order), open(answer, "w"))
    os._exit(0)

children = [forked(start) for _ in range(starters)] + [forked(look) for _ in range(readers)]
try:
    for _ in range(races):
        moment = time.monotonic() + 0.005
        for _, order, _ in children[:starters]:
            order.write(f"{moment}\\n")
        answers = sorted(answer.readline().strip() for _, _, answer in children[:starters])
        print(json.dumps([answers, run.alive]), flush=True)
        for _, order, _ in children[:starters]:
            order.write("next\\n")
finally:
    for pid, *_ in children:
        os.kill(pid, signal.SIGKILL)
"""


def test_of_those_that_start_at_once_exactly_one_wins(run, python, request):
    """While others look whether the run is alive, as fast as they can: they keep nobody out."""
    races = request.config.getoption("--races")
    done = python("-c", RACES, run.path, races, STARTERS, READERS, work=processes.WORK + 4 * races)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == races
    wanted = [["busy"] * (STARTERS - 1) + ["won"], True]
    assert [(race, found) for race, found in enumerate(results) if found != wanted] == []


@contextlib.contextmanager
def copies(script: str, count: int, *arguments: object) -> Iterator[list[subprocess.Popen]]:
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


def tell(pages: list[subprocess.Popen], line: str) -> None:
    for page in pages:
        page.stdin.write(f"{line}\n")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "club")
    run.path.mkdir(parents=True)
    return run


PAGE = """
import json, sys
from qlora_core.jobs import launch, planning
from qlora_core.config import from_flat
from qlora_core.errors import BusyError
for line in sys.stdin:
    tracker, plan = planning.plan_training(from_flat(json.loads(line)), say=lambda _: None)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print(launch.start(tracker, plan), flush=True)
    except BusyError as error:
        print(error, flush=True)
"""


def test_of_pages_that_start_a_run_at_once_exactly_one_has_a_worker(tiny_model, tiny_rows, tmp_path, request):
    races = request.config.getoption("--races") // 100
    if not races:
        pytest.skip("each takes seconds: one for a hundred --races")
    with copies(PAGE, 3) as pages:
        for race in range(races):
            run = Run(tmp_path / "runs" / f"club-{race}")
            given = {"model": str(tiny_model), "data": [str(tiny_rows)], "runs_dir": str(run.path.parent),
                     "run": run.name, "epochs": 1, "samples": 0, "max_answer_tokens": 1}  # fmt: skip
            tell(pages, json.dumps(given))
            assert [page.stdout.readline() for page in pages] == ["ready\n"] * len(pages)
            tell(pages, "start")
            answers = [page.stdout.readline().strip() for page in pages]
            assert sum(answer.isdigit() for answer in answers) == 1, f"race {race}: {answers}"
            assert sum("is being trained by another process" in answer for answer in answers) == len(pages) - 1
            processes.wait_until(lambda run=run: not run.alive, lambda run=run: launch.last_words(run))
            assert run.state == "completed", launch.last_words(run)


HOLDER = """
import sys, time
from pathlib import Path
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
with TrainingTracker("runs").record(Run(Path(sys.argv[1]))) as writer:
    writer.set_status("running", step=3, total_steps=9)
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_suspended_holder_keeps_the_run_and_a_killed_one_frees_it_at_once(run):
    with copies(HOLDER, 1, run.path) as (holder,):
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

    from qlora_core.files import locks

    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    RunLock(run.path).release()
    looking = os.open(run.path / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    with pytest.raises(BusyError):
        RunLock(run.path)
    os.close(looking)
    RunLock(run.path).release()
