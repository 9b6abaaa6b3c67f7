"""Where MLX is missing, or has nothing to compute with, a line says so, with what to do."""

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_core.engine import device

ROOT = Path(__file__).parents[2]
NO_PACKAGE = ("mlx", "ModuleNotFoundError", "No module named 'mlx'")
NO_BACKEND = ("mlx.core", "ImportError", "libmlx.so: cannot open shared object file: No such file or directory")


@pytest.fixture
def break_mlx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Let the processes that a test starts find MLX missing, in whole or its library."""

    def to(module: str, kind: str, message: str) -> None:
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "sitecustomize.py").write_text(
            "import sys\n"
            "class Missing:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            f"        if name == {module!r}:\n"
            f"            raise {kind}({message!r})\n"
            "sys.meta_path.insert(0, Missing())\n",
            encoding="utf-8",
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))

    return to


@pytest.mark.parametrize("missing", [NO_PACKAGE, NO_BACKEND], ids=["package", "backend"])
@pytest.mark.parametrize(
    "start", [["-m", "qlora_core", "train"], [ROOT / "apps" / "train.py"]], ids=["qlora", "script"]
)
def test_training_says_so_in_a_line(python, break_mlx, tiny_model, tiny_rows, start, missing):
    break_mlx(*missing)
    done = python(*start, "--model", tiny_model, "--data", tiny_rows, "--max-steps", "1", "--runs-dir", "runs")
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert line == f"error: MLX, which computes, cannot be used: {missing[2]}. {device._remedy_without_mlx()}"
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("system", "machine", "release", "remedy"),
    [
        ("linux", "x86_64", "", "`uv sync` installs it for a CPU, `uv sync --no-group cpu --extra cuda` for an NVIDIA"),
        (
            "darwin",
            "x86_64",
            "15.5",
            "This Python is for Intel processors, for which MLX is not made. On Apple silicon",
        ),
        ("darwin", "arm64", "13.7.2", "MLX wants macOS 14 or later; this is 13.7.2. Update macOS, then uv sync."),
        ("darwin", "arm64", "26.1", "`uv sync` installs it."),
    ],
)
def test_the_remedy_is_this_machines(monkeypatch, system, machine, release, remedy):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "mac_ver", lambda: (release, ("", "", ""), machine))
    assert device._remedy_without_mlx().startswith(remedy)
