"""The disk fails, at every single operation: no checkpoint is lost, the run is paused, says why, and goes on."""

import errno
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
from harness import create_run, events, hashes, train, write_pair
from safetensors.numpy import load_file
from watched_disk import Failing, Operation, watched

from qlora_core.errors import QLoraError, StorageError
from qlora_core.files.storage import MOST_WAITING, LineFile
from qlora_core.runs.checkpoints import checkpoints, latest_checkpoint
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
from qlora_core.training import loop, saving

SEED = 20
CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
SETTINGS = {"epochs": 1, "max_steps": 4, "save_every": 1, "eval_every": 2, "keep_checkpoints": 2, "dropout": 0.1}
LEFTOVER = re.compile(r"\..*\.(tmp|old)(\.\w+)?|\.reserve")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """A run that was paused after 2 of its 4 steps; only for copying."""
    root = tmp_path_factory.mktemp("half")
    run = create_run(root / "runs", tiny_model, write_pair(root / "data", 16), run="run", **SETTINGS)
    train(run, lambda event: run.request("pause") if event.get("step") == 2 and event["type"] == "step" else None)
    assert [path.name for path in checkpoints(run.path / "checkpoints")] == ["000001", "000002"]
    return run


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory, half: Run) -> dict[str, str]:
    """What the run ends with when nothing fails."""
    return outcome(finished(copy(half, tmp_path_factory.mktemp("whole"))))


def copy(run: Run, root: Path) -> Run:
    shutil.copytree(run.path, root / run.name)
    return Run(root / run.name)


def finished(run: Run) -> Run:
    assert train(run).state == run.state == "completed"
    return run


def outcome(run: Run) -> dict[str, str]:
    """Hashes of everything that a run leaves for its user."""
    return {
        f"{place.name}/{name}": value
        for place in (*checkpoints(run.path / "checkpoints"), run.best, run.final)
        for name, value in hashes(place).items()
        if name not in ("state.json", "manifest.json")  # seconds of training lie in there
    }


def leftovers(run: Run) -> list[str]:
    return sorted(str(path) for path in run.path.rglob(".*") if LEFTOVER.fullmatch(path.name))


def whole(run: Run) -> int:
    """The newest checkpoint, which must be whole, as all older ones must."""
    found = checkpoints(run.path / "checkpoints")
    assert found
    path, problems = latest_checkpoint(run.path / "checkpoints")
    assert (path, problems) == (found[-1], [])
    return int(path.name)


def attempt(run: Run, failing: Failing) -> tuple[str, str]:
    """Train while the disk fails; the state that the trainer had in mind at the end, and what it told."""
    writers = []
    try:
        with watched(run.path, failing), TrainingTracker(run.path.parent).record(run) as writer:
            writers.append(writer)
            loop.train(writer)
    except QLoraError as error:
        return writers[0].status["state"] if writers else "not begun", str(error)
    except OSError as error:  # the lock or the leftovers: told in one line, nothing was begun
        assert not writers
        return "not begun", str(error)
    return writers[0].status["state"], ""


def trials(request: pytest.FixtureRequest, operations: int) -> list[tuple[int, int, bool]]:
    """Number, error and mode of each trial: all of them, or as many as asked for, spread over all."""
    every = [(k, code, mode) for k in range(operations) for code in CODES for mode in (False, True)]
    count = request.config.getoption("--disk-failures")
    return every if not 0 < count < len(every) else random.Random(SEED).sample(every, count)


def test_every_operation_fails_once_and_for_good(request, half: Run, wanted: dict[str, str], tmp_path: Path) -> None:
    counting = Failing(sys.maxsize, errno.EIO)
    assert attempt(copy(half, tmp_path / "counted"), counting) == ("completed", "")
    paused = completed = 0
    for number, code, persistent in trials(request, counting.count):
        failing = Failing(number, code, persistent=persistent)
        run = copy(half, tmp_path / f"{number}-{code}-{persistent}")
        state, told = attempt(run, failing)
        where = f"seed {SEED}, {failing}: {state}, {told!r}"
        if failing.failed is None:  # fewer operations than were counted: the status is written by the clock
            assert number > 0.9 * counting.count, where
            continue
        # rows that cannot be read are as if they were not there
        unread = failing.failed.kind == "read" and failing.failed.path.parent.name == "data"
        assert state in ("completed", "paused", "not begun", *(["failed"] if unread else [])), where
        assert whole(run) >= max([2, *events(run, "checkpoint", "step")]), where
        if state == "completed":
            completed += 1
        else:
            paused += 1
            assert os.strerror(code) in told, where
            assert str(run.path) in told, where
        if state == "paused":
            assert re.search(rf"paused: its last checkpoint, of step {whole(run)}, is as it was", told), where
            assert re.search(r"[\d,]+ bytes free there", told), where
        if not persistent and failing.failed.kind not in ("unlink", "rmdir"):
            assert leftovers(run) == [], where
            assert state == "not begun" or run.state == state, where
        if state != "completed" or persistent:
            finished(run)
        elif failing.failed.kind == "write" and failing.failed.path == run.metrics_file:
            assert events(run, "step", "step") == [1, 2, 3, 4], where  # what could not be written was written later
        assert wanted.items() <= outcome(run).items(), where  # an old checkpoint may still lie there as well
        assert leftovers(run) == [] or failing.failed.kind in ("unlink", "rmdir"), where
        shutil.rmtree(run.path.parent)
    print(f"{paused + completed} failures of {counting.count} operations: {paused} paused, {completed} went on")


# What can be done without ------------------------------------------------------------------------------------------


class Broken:
    """A watcher for which some files cannot be written for a while."""

    def __init__(self, *names: str) -> None:
        self.names, self.on = names, True

    def __call__(self, operation: Operation) -> None:
        if self.on and operation.kind != "read" and any(name in operation.path.name for name in self.names):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(operation.path))


def test_status_and_metrics_that_cannot_be_written_are_a_warning_once_and_come_later(half, wanted, tmp_path) -> None:
    run, broken, told = copy(half, tmp_path), Broken("metrics.jsonl", ".status."), []

    def listen(event):
        told.append(event)
        if event["type"] == "step":
            broken.on = event["step"] < 4
            assert not broken.on or events(run, "start", "step") == [0]  # nothing of this process yet

    with watched(run.path, broken):
        assert train(run, listen).state == "completed"
    warnings = [event["message"] for event in told if event["type"] == "warning"]
    for name in ("metrics.jsonl", "status.json"):
        before, after = (text for text in warnings if name in text)
        assert re.search(rf"{name}: cannot be written: No space left .* Training goes on", before)
        assert after == f"{name} can be written again"
    assert events(run, "step", "step") == [1, 2, 3, 4]
    assert run.state == "completed"
    assert outcome(run) == wanted


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("samples.jsonl", "the sample prompts could not be answered"),
        ("evaluation", "what it learnt could not be tested; `qlora evaluate` does it again"),
        ("summary", "the summary could not be written"),
    ],
)
def test_what_is_only_for_looking_at_does_not_stop_training(half, wanted, tmp_path, broken, told) -> None:
    run = copy(half, tmp_path)
    with watched(run.path, Broken(broken)):
        assert train(run).state == run.state == "completed"
    assert any(told in message for message in events(run, "warning", "message"))
    assert outcome(run) == wanted


def test_a_terminal_that_is_gone_does_not_stop_training(half, wanted, tmp_path) -> None:
    run = copy(half, tmp_path)

    def listen(event):
        if event["type"] != "step":  # others print nothing
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert train(run, listen).state == "completed"
    (warning,) = events(run, "warning", "message")
    assert "what is printed is lost: " in warning
    assert outcome(run) == wanted


def test_lines_that_wait_are_bounded_and_those_lost_are_counted(tmp_path) -> None:
    lines, broken = LineFile(tmp_path / "lines"), Broken("lines")
    text = "x" * 1000
    with watched(tmp_path, broken):
        for number in range(6000):
            with pytest.raises(OSError, match="No space left"):
                lines.append(f"{number} {text}")
            assert len(lines._waiting) <= MOST_WAITING + 2000
        broken.on = False
        lines.append("last")
        lines.close()
    found = [line.split()[0] for line in (tmp_path / "lines").read_text(encoding="utf-8").splitlines()]
    assert found[0] == "0"
    assert found[-2:] == ["5999", "last"]
    assert len(found) + lines.lost == 6001
    assert found[1:-1] == [str(number) for number in range(6000 - len(found) + 2, 6000)]


def test_a_line_cut_short_is_completed_not_repeated(tmp_path) -> None:
    lines = LineFile(tmp_path / "lines")
    with watched(tmp_path, Failing(5, errno.ENOSPC)):  # made, looked at, written thrice, then half of the fourth
        for number in range(3):
            lines.append(f"line {number}")
        with pytest.raises(OSError, match="No space left"):
            lines.append("line 3")
        lines.append("line 4")
        lines.close()
    assert (tmp_path / "lines").read_text(encoding="utf-8").splitlines() == [f"line {number}" for number in range(5)]


def test_a_writer_that_cannot_begin_gives_the_lock_back(half, tmp_path, monkeypatch) -> None:
    run = copy(half, tmp_path)
    run.request("pause")
    with watched(run.path, Broken(".control.")), pytest.raises(StorageError, match=r"control: cannot be written"):
        TrainingTracker(run.path.parent).record(run)
    assert not run.alive


@pytest.mark.parametrize("short", [0, 1])
def test_a_disk_that_will_be_full_is_told_in_the_beginning(half, tmp_path, monkeypatch, short) -> None:
    """Two checkpoints lie there already: one while it is written, and four times the adapters."""
    run = copy(half, tmp_path)
    path = checkpoints(run.path / "checkpoints")[-1] / "adapters.safetensors"
    adapters = sum(value.nbytes for value in load_file(path).values())
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: SimpleNamespace(free=7 * adapters - short))
    train(run)
    found = [message for message in events(run, "warning", "message") if "MB wanted for what the run" in message]
    assert len(found) == short


# Real limits --------------------------------------------------------------------------------------------------------


def command(run: Run, *more: str) -> list[str]:
    where = ["--run", run.name, "--runs-dir", str(run.path.parent)]
    return [sys.executable, "-m", "qlora_core", "train", *where, *more]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 4 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_pauses_the_run_and_room_lets_it_go_on(half, wanted, small_disk) -> None:
    run, ballast = copy(half, small_disk), small_disk / "ballast"
    # beside the reserve, less than a checkpoint takes
    ballast.write_bytes(os.urandom(shutil.disk_usage(small_disk).free - 200_000))
    with pytest.raises(
        StorageError,
        match=r"checkpoints/00000\d: cannot be written: No space left on device \(ENOSPC\); [\d,]+ bytes wanted, "
        r"[\d,]+ bytes free there\. Make room there, then go on\. The run is paused: its last checkpoint, of step \d,",
    ) as told:
        train(run)
    assert run.state == "paused"  # the reserve made room for the last words
    assert run.status()["message"] == str(told.value)
    assert leftovers(run) == []
    assert whole(run) >= 2
    ballast.unlink()
    assert outcome(finished(run)) == wanted


def test_a_limit_on_the_size_of_files_pauses_the_run(half, wanted, tmp_path) -> None:
    """Where no file system can be mounted, this is a real refusal of the system's."""
    run = copy(half, tmp_path)
    size = (checkpoints(run.path / "checkpoints")[-1] / "optimizer.safetensors").stat().st_size
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))  # noqa: E731
    ended = processes.run(command(run), text=True, preexec_fn=limit)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert re.search(r"^error: .*cannot be written: File too large \(EFBIG\).*ulimit -f", ended.stderr, re.MULTILINE)
    assert "Traceback" not in ended.stdout + ended.stderr
    assert run.state == "paused"
    assert whole(run) == 2
    assert leftovers(run) == []
    assert outcome(finished(run)) == wanted
    assert json.loads((run.path / "status.json").read_text(encoding="utf-8"))["state"] == "completed"
