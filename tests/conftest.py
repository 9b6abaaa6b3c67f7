"""What tests share: small models, rows, and a command line that runs in a directory of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_model, write_rows

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama-shaped model directory; do not write into it."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def tiny_rows(tmp_path: Path) -> Path:
    """A JSONL file of 12 question rows."""
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python …` in `tmp_path`, waiting for it to end."""

    def run(*arguments: str | Path, cwd: Path = tmp_path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "PYTHONWARNINGS": "default"}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)

    return run
