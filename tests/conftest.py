"""What tests share: small models, rows, and a command line that runs in a directory of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import write_model, write_rows, write_taught

from qlora_core.cli import plan_training
from qlora_core.runs import Run, TrainingPlan, TrainingTracker, resolve_config

ROOT = Path(__file__).parent.parent
CACHE = tempfile.mkdtemp(prefix="qlora-tests-")
os.environ["QLORA_CACHE"] = CACHE  # for the processes that tests start as well


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests that can go on for ever do."""
    parser.addoption("--examples", type=int, default=150, help="examples that hypothesis makes up for each test")
    parser.addoption("--peft", metavar="PYTHON", help="a Python with torch, transformers and peft, to read our exports")
    parser.addoption("--kills", type=int, default=6, help="how often a process is killed in the middle of its work")
    parser.addoption("--templates", type=int, default=100, help="chat templates that are made up to do harm")
    parser.addoption("--mutations", type=int, default=120, help="files damaged at random that are then opened")
    parser.addoption("--names", type=int, default=1_000, help="names of runs that are made up to lead elsewhere")


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama-shaped model directory; do not write into it."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def tiny_rows(tmp_path: Path) -> Path:
    """A JSONL file of 12 question rows."""
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def plan(tiny_model: Path, tiny_rows: Path, tmp_path: Path) -> Callable[..., tuple[TrainingTracker, TrainingPlan]]:
    """Plan a short run of the tiny model in `tmp_path/runs`, as `qlora train` does; loads no mlx."""

    def make(**settings: Any) -> tuple[TrainingTracker, TrainingPlan]:
        given = {"model": str(tiny_model), "runs_dir": str(tmp_path / "runs"), "batch_size": 4, "epochs": 2, **settings}
        if not Run(Path(given["runs_dir"]) / given.get("run", "")).exists:  # one that exists brings its own data
            given.setdefault("data", [str(tiny_rows)])
        return plan_training(resolve_config(given), say=lambda _: None)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """A run that learnt `TAUGHT` by heart, with a fact sheet, on a base that is quantised on disk; only for reading."""
    from harness import create_run, train, write_quantised

    root = tmp_path_factory.mktemp("trained")
    base = write_quantised(root / "base", tiny_model)
    settings = {"epochs": 40, "eval_every": 10, "save_every": 40, "max_answer_tokens": 12}
    run = create_run(root / "runs", base, write_taught(root / "data"), run="trained", **settings)
    assert train(run).state == "completed"
    return run


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python …` in `tmp_path`, waiting for it to end."""

    def run(*arguments: str | Path, cwd: Path = tmp_path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "PYTHONWARNINGS": "default"}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)

    return run
