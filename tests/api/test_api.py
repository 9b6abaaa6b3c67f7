"""The package as a library: what it offers, and the example of its page."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from conftest import ROOT
from tiny import write_taught

import qlora_core
from qlora_core import api
from qlora_core.errors import ConfigError, QLoraError, RunError
from qlora_core.runs.run import Run

PAGE = ROOT / "docs" / "library.md"


def test_what_is_offered_is_made_here_and_told():
    for name in qlora_core.__all__:
        function = getattr(qlora_core, name)
        assert function is getattr(api, name)
        assert function.__module__ == "qlora_core.api"
        assert inspect.getdoc(function)
    told = re.findall(r"^\| `(\w+)\(", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(qlora_core.__all__)


def test_nothing_heavy_comes_with_the_package_alone(python):
    script = "import sys, qlora_core; print({'numpy', 'mlx', 'marimo', 'jinja2'} & set(sys.modules))"
    assert python("-c", script).stdout.strip() == "set()"


def test_what_is_not_offered_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = qlora_core.nonsense


def test_the_example_runs_as_it_stands(tmp_path: Path, tiny_model: Path):
    """On a small model and small data in the places that it names."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 10
    write_taught(tmp_path / "data/sample/club")
    example = example.replace("max_steps=20", f"max_steps=20, model={str(tiny_model)!r}")
    example = example.replace('"data/sample/club")', f'"data/sample/club", model={str(tiny_model)!r})', 1)
    done = processes.run([sys.executable, "-c", example], cwd=tmp_path, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoints_qlora/from-python/best/adapters.safetensors").is_file()
    assert (tmp_path / "take-away/adapter_model.safetensors").is_file()
    lines = done.stdout.splitlines()
    assert lines[0] == "0 rows were refused"
    assert [line for line in lines if line.startswith(("step", "end"))][-2:] == ["step 5", "end 5"]


def test_a_run_is_the_one_of_the_command_line(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    """Planned twice it is the same, and once it is complete nothing is trained."""
    monkeypatch.chdir(tmp_path)
    write_taught(tmp_path / "rows")
    settings = {"model": str(tiny_model), "max_steps": 3, "samples": 0, "max_answer_tokens": 1}
    events: list[str] = []
    run = qlora_core.train(qlora_core.plan("rows", **settings), lambda event: events.append(event["type"]))
    assert run.state == "completed"
    assert events.count("step") == 3
    again = qlora_core.plan("rows", **settings)
    assert (again.run.path, again.done) == (run.path, True)
    assert qlora_core.train(again, lambda _: pytest.fail("it was trained again")).path == run.path
    assert qlora_core.load_run(run.name).path == run.path
    shown = subprocess.run([sys.executable, "-m", "qlora_core", "runs"], capture_output=True, text=True, check=True)
    assert run.name in shown.stdout
    answers = qlora_core.generate(run, ["red?", "blue?"], base=True, max_tokens=2)
    assert len(answers) == 2


def test_errors_are_those_meant_for_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="nothing"):
        qlora_core.load_run("nothing")
    with pytest.raises(QLoraError, match=r"no/such/folder: no such file or directory"):
        qlora_core.prepare("no/such/folder")
    shutil.rmtree(tmp_path / "checkpoints_qlora", ignore_errors=True)


def test_an_export_would_be_sent_and_comes_back_as_a_run(undrawn: Run, tmp_path: Path):
    run = Run(shutil.copytree(undrawn.path, tmp_path / "runs" / "there"))
    told = qlora_core.push(run, "someone/club", to="gguf-lora", dry_run=True)
    assert (told["exported_as"], told["stored"], told["url"]) == ("gguf-lora", "adapters in float16", None)
    assert "adapter.gguf" in told["files"]
    again = qlora_core.push(run.path / "export" / "gguf-lora", "someone/club", dry_run=True)
    assert again["files"] == told["files"]
    base = run.environment()["model"]["path"]
    back = qlora_core.import_adapters(
        run.path / "export" / "gguf-lora", model=Path(base), runs_dir=tmp_path / "runs", run="back"
    )
    assert qlora_core.load_run("back", tmp_path / "runs").path == back.path
    assert qlora_core.generate(back, ["red?"], max_tokens=12) == qlora_core.generate(run, ["red?"], max_tokens=12)
    with pytest.raises(ConfigError, match="no such format"):
        qlora_core.push(run, "someone/club", to="paper")
