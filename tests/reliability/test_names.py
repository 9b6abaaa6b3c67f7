"""Names and places of runs: nothing is read or written outside of the runs' directory, or by anybody else."""

import json
import os
import random
import shutil
import stat
import sys
import unicodedata
from pathlib import Path

import processes
import pytest
from harness import write_pair

from qlora_core.errors import QLoraError, RunError
from qlora_core.exports.export import export_run
from qlora_core.runs.plan import TrainingTracker, resolve_config
from qlora_core.runs.run import Run, is_name
from qlora_core.runs.writer import RunLock

PARTS = [
    "..", ".", "/", "//", "\\", "\0", "\n", "\r", "\t", " ", "\x1b[2J", "~", "$HOME", "%2e%2e", "%2f", "..%c0%af",
    "\u2215", "\uff0f", "\uff0e\uff0e", "\u202e", "\u200b", "é", "e\u0301", "\u017f", "\u212a", "K", "CON", "aux",
    "nul.txt", "COM1", "lpt9.tar", "c:", "a", "b", "1", "-", "--", "_", ".", "...", "a" * 60, "a" * 300, "config.json",
    "etc/passwd", "'", '"', ";", "|", "*", "?", "<", ">", "\ud800", "😀", "secret", "outside",
]  # fmt: skip


def made_up_names(count: int, seed: int = 5) -> list[str]:
    rng = random.Random(seed)
    names = ["".join(rng.choice(PARTS) for _ in range(rng.randint(1, 6))) for _ in range(count)]
    return [rng.choice([name, name.upper(), unicodedata.normalize(rng.choice(["NFC", "NFD"]), name)]) for name in names]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A runs' directory with one run, and beside it another that is none of its."""
    for directory in (tmp_path / "runs" / "club", tmp_path / "outside", tmp_path / "runs" / "club" / "secret"):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path / "runs"


def test_no_name_leads_out_of_the_directory(runs: Path, tmp_path: Path, request, monkeypatch) -> None:
    """What is accepted as a name is one part of a path; what is not, is found nowhere and brings no settings."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where a name is no path either
    tracker, accepted = TrainingTracker(runs), 0
    for name in made_up_names(request.config.getoption("--names")):
        if is_name(name):
            accepted += 1
            assert (runs / name).resolve().parent == runs.resolve(), repr(name)
            assert name.isascii(), repr(name)
            assert name == name.strip(". "), repr(name)
            continue
        with pytest.raises(QLoraError):
            resolve_config({"run": name, "runs_dir": str(runs)})
        if not Run(Path(name)).exists:  # a path is a path, as its user gave it
            with pytest.raises(RunError):
                tracker.find(name)
    assert accepted


@pytest.mark.parametrize(
    "name",
    ["..", "../outside", "club/../../outside", "/etc", "club/secret", "a\0b", "a\nb", "", "CON", "aux.txt",  "nul",
     "com1.a", "trailing.", ".hidden", "-flag", "naïve", "e\u0301", "long" * 17, "\u017fecret", "\u212aelvin"],
)  # fmt: skip
def test_what_is_no_name_is_refused_before_anything_is_written(plan, tmp_path: Path, name: str) -> None:
    if name:
        with pytest.raises(RunError, match="cannot be a run's name"):
            plan(run=name)
    assert not is_name(name)
    assert not (tmp_path / "runs").exists()


def test_a_name_that_differs_only_in_case_is_refused(plan) -> None:
    tracker, planned = plan(run="Club")
    tracker.create(planned)
    assert plan(run="Club")[1].run.path == planned.run.path
    with pytest.raises(RunError, match="club: there is a run Club already, and not every disk can tell the two apart"):
        plan(run="club")


def test_a_run_with_a_name_that_moves_the_cursor_is_not_listed(runs: Path) -> None:
    shutil.copytree(runs / "club", runs / "\x1b[2Jclub")
    assert [run.name for run in TrainingTracker(runs).runs()] == ["club"]


# Links ------------------------------------------------------------------------------------------------------------


def test_a_runs_directory_may_be_a_link(plan, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    tracker, planned = plan(run="club")
    with tracker.record(planned.run):
        assert tracker.create(planned).exists
    assert (tmp_path / "disk" / "club" / "config.json").is_file()


@pytest.mark.parametrize("dangling", [False, True])
def test_a_run_that_is_a_link_is_not_written(plan, tmp_path: Path, dangling: bool) -> None:
    tracker, planned = plan(run="club")
    outside = tmp_path / "outside"
    if not dangling:
        outside.mkdir()
    (tmp_path / "runs").mkdir(mode=0o700)
    planned.run.path.symlink_to(outside)
    for write in (lambda: tracker.record(planned.run), lambda: tracker.create(planned)):
        with pytest.raises(RunError, match=r"club: is a link to .*outside\. A run is written only where it lies"):
            write()
    assert dangling or not list(outside.iterdir())
    assert outside.exists() != dangling


def test_a_run_that_is_a_link_is_read_and_told_nothing(trained: Run, tmp_path: Path) -> None:
    from qlora_core.training.evaluate import evaluate_run

    link = tmp_path / "club"
    link.symlink_to(trained.path)
    (run,) = TrainingTracker(tmp_path).runs()
    assert run.evaluation() == trained.evaluation()
    for write in (lambda: run.request("stop"), lambda: evaluate_run(run, None, None, adapters="best", max_tokens=1)):
        with pytest.raises(RunError, match="club: is a link to"):
            write()
    assert trained.control() == "run"


@pytest.mark.parametrize("name", ["checkpoints", "best", "final", "lock", "metrics.jsonl", "status.json", "control"])
def test_a_run_that_holds_a_link_is_not_written(plan, tmp_path: Path, name: str) -> None:
    tracker, planned = plan(run="club")
    run = tracker.create(planned)
    target = tmp_path / "outside"
    target.write_text("precious", encoding="utf-8")
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(target)
    with pytest.raises(RunError, match=rf"{name}: is a link, and a run holds none"):
        tracker.record(run)
    assert target.read_text(encoding="utf-8") == "precious"


def test_a_lock_is_not_made_through_a_link(runs: Path, tmp_path: Path) -> None:
    (runs / "club" / "lock").symlink_to(tmp_path / "made")
    with pytest.raises(OSError):
        RunLock(runs / "club")
    assert not (tmp_path / "made").exists()
    assert not Run(runs / "club").alive


def test_a_checkpoint_that_is_a_link_is_not_offered(tmp_path: Path) -> None:
    from qlora_core.runs.checkpoints import checkpoints

    (tmp_path / "000002").mkdir()
    (tmp_path / "000004").symlink_to(tmp_path / "000002")
    assert checkpoints(tmp_path) == [tmp_path / "000002"]


def test_an_export_goes_through_no_link(trained: Run, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "letter.txt").touch()
    (tmp_path / "link").symlink_to(precious)
    run = Run(shutil.copytree(trained.path, tmp_path / "runs" / "club"))
    shutil.rmtree(run.path / "export", ignore_errors=True)
    (run.path / "export").symlink_to(precious)
    for out in (tmp_path / "link", run.result):
        for force in (False, True):
            with pytest.raises(RunError, match=r": is a link to .*precious\. Give the place itself with --out"):
                export_run(run, out, to="adapter", force=force)
    assert [path.name for path in precious.iterdir()] == ["letter.txt"]
    (tmp_path / "disk").symlink_to(tmp_path)
    export_run(run, tmp_path / "disk" / "new", to="adapter")  # on the way to a place of the user's own, one is fine
    assert (tmp_path / "new" / "adapters.safetensors").is_file()


# Whose ------------------------------------------------------------------------------------------------------------


def open_to_others(root: Path) -> list[str]:
    """Directories and files below a directory that anybody but their user can read, list or change."""
    found = []
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = Path(directory) / name
            if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077:
                found.append(str(path.relative_to(root)))
    return found


WITHOUT_A_MASK = """
import json, os, sys
from qlora_core.cli import main
for command in json.loads(sys.argv[1]):
    os.umask(0)
    if status := main(command):
        sys.exit(status)
"""


def test_what_commands_make_is_for_their_user_only(tiny_model: Path, tmp_path: Path) -> None:
    """With a umask that would give everything to everybody: run, exports, prepared data, cache."""
    rows = write_pair(tmp_path / "rows")
    home = tmp_path / "home"
    environment = {**os.environ, "QLORA_CACHE": str(home / "cache"), "TMPDIR": str(home / "tmp")}
    home.mkdir(mode=0o700)
    (home / "tmp").mkdir(mode=0o700)
    train_it = ["train", "--model", str(tiny_model), "--data", str(rows), "--run", "club", "--max-steps", "2",
                "--runs-dir", str(home / "deep" / "runs"), "--samples", "0", "--max-answer-tokens", "1"]  # fmt: skip
    commands = [
        train_it,
        ["export", "club", "--runs-dir", str(home / "deep" / "runs"), "--to", "peft", "--out", str(home / "peft")],
        ["data", str(rows / "train.jsonl"), "--out", str(home / "data"), "--model", str(tiny_model)],
    ]
    command = [sys.executable, "-c", WITHOUT_A_MASK, json.dumps(commands)]
    done = processes.run(command, cwd=home, env=environment, text=True)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in home.rglob("*")}
    assert {"adapters.safetensors", "adapter_model.safetensors", "train_data.jsonl", "manifest.json"} <= made
    assert open_to_others(home) == []


def test_a_run_that_the_page_starts_is_for_its_user_only(plan, tmp_path: Path) -> None:
    """The page's process has whatever umask its user has."""
    before = os.umask(0)
    try:
        tracker, planned = plan(run="club", runs_dir=str(tmp_path / "deep" / "runs"))
        with tracker.record(planned.run):
            tracker.create(planned)
    finally:
        os.umask(before)
    for directory in (tmp_path / "deep", tmp_path / "deep" / "runs", planned.run.path):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
