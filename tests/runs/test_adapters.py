"""Adapter files: found, compared by their headers, and started from."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from harness import adapters_of, create_run, load, train, write_pair
from safetensors.numpy import load_file, save_file

from qlora_core.config import BaseConfig, LoraConfig
from qlora_core.errors import ConfigError, ModelError, RunError
from qlora_core.models.adapter_files import check_adapters, find_adapters
from qlora_core.models.base_models import describe
from qlora_core.runs.plan import TrainingTracker, resolve_config
from qlora_core.runs.run import Run


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """A short run of rank 4; only for reading."""
    root = tmp_path_factory.mktemp("first")
    run = create_run(root / "runs", tiny_model, write_pair(root / "data"), run="first", rank=4, max_steps=2)
    assert train(run).state == "completed"
    return run


@pytest.fixture
def spec(tiny_model: Path):
    return describe(tiny_model, BaseConfig(model=str(tiny_model)))


def test_adapters_are_found_by_file_directory_and_run(first: Run) -> None:
    file = first.best / "adapters.safetensors"
    for name in (str(file), str(first.best), str(first.path), "first"):
        assert find_adapters(name, first.path.parent) == file
    with pytest.raises(ModelError, match=r"init_adapter 'second': no such file, directory with adapters"):
        find_adapters("second", first.path.parent)


def test_a_fitting_file_is_accepted(first: Run, spec) -> None:
    check_adapters(first.best / "adapters.safetensors", spec, LoraConfig(rank=4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 2}, r"layers\.0\.mlp\.down_proj\.lora_a has shape (128, 4), wanted (128, 2)"),
        ({"rank": 4, "projections": "qv"}, "layers.0.mlp.down_proj.lora_a is not an adapter of this model"),
        ({"rank": 4, "num_layers": 1}, "layers.0.mlp.down_proj.lora_a is not an adapter of this model"),
        ({"rank": 4, "adapter": "dora"}, "layers.0.mlp.down_proj.m is missing"),
        ({"rank": 4, "alpha": 4.0}, "was trained with scale 4, the settings have 1, which would change what it does. "
                                    "Use --alpha 16."),
        ({"rank": 4, "rslora": True}, "Use --alpha 8."),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_before_training(first: Run, spec, settings, message) -> None:
    with pytest.raises(ModelError, match=re.escape(message.replace("\\", ""))):
        check_adapters(first.best / "adapters.safetensors", spec, LoraConfig(**settings))


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{}", b"no adapters at all"])
def test_a_damaged_file_is_refused(tmp_path: Path, spec, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.safetensors: (not a safetensors file|is cut off)"):
        check_adapters(path, spec, LoraConfig(rank=4))


def test_training_starts_from_them(first: Run, tmp_path: Path, tiny_model: Path) -> None:
    """With a rate of nearly nothing, the adapters stay what they were; a copy of the file lies in the run."""
    path = tmp_path / "mine.safetensors"
    shutil.copyfile(first.final / "adapters.safetensors", path)
    settings = {"rank": 4, "learning_rate": 1e-12, "max_steps": 1, "init_adapter": str(path)}
    run = create_run(tmp_path / "runs", tiny_model, write_pair(tmp_path / "data"), run="second", **settings)
    path.unlink()
    assert train(run).state == "completed"
    start, found = load_file(first.final / "adapters.safetensors"), load_file(run.final / "adapters.safetensors")
    assert found.keys() == start.keys()
    for name, value in start.items():
        np.testing.assert_allclose(found[name], value, atol=1e-9)
    fresh = adapters_of(load(tiny_model, lora=LoraConfig(rank=4), seed=run.config().train.seed)[0])
    assert any(np.abs(fresh[name] - value).max() > 1e-3 for name, value in start.items())


def test_other_adapters_make_another_run_and_are_refused_on_resume(plan, first: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    shutil.copyfile(first.final / "adapters.safetensors", path)
    given = {"rank": 4, "init_adapter": str(path)}
    tracker, planned = plan(run="club", **given)
    tracker.create(planned)
    assert plan(**given)[1].run.name != plan(rank=4)[1].run.name
    path.unlink()
    assert plan(run="club", rank=4)[1].run.exists  # the run has its own copy
    tensors = load_file(first.final / "adapters.safetensors")
    save_file({name: value + 1 for name, value in tensors.items()}, path)
    with pytest.raises(RunError, match="initial adapters: the run has"):
        plan(run="club", **given)


def test_a_run_made_before_a_setting_existed_goes_on(plan) -> None:
    """What was not a setting yet, was as it is by default."""
    tracker, planned = plan(run="club")
    run = tracker.create(planned)
    environment = run.environment()
    for name in ("adapter", "rslora", "lora_plus", "initial adapters"):
        del environment["identity"][name]
    (run.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    assert plan(run="club")[1].run.exists
    with pytest.raises(RunError, match="rslora: the run has False, asked for True"):
        plan(run="club", rslora=True)


def test_a_runs_template_file_is_copied(plan, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}", encoding="utf-8")
    tracker, planned = plan(run="club", template=str(path))
    tracker.create(planned)
    path.unlink()
    stored = resolve_config({"run": "club", "runs_dir": str(tmp_path / "runs")})
    assert Path(stored.base.template) == tmp_path / "runs" / "club" / "chat_template.jinja"
    assert plan(run="club")[1].run.exists
    with pytest.raises(RunError, match="tokeniser and template: the run has"):
        plan(run="club", template="plain")
    with pytest.raises(ConfigError, match=r"mine\.jinja: cannot be read"):
        plan(template=str(path))


def test_a_tracker_finds_initial_adapters_among_its_runs(first: Run, tiny_model: Path, tmp_path: Path) -> None:
    run = create_run(
        first.path.parent, tiny_model, write_pair(tmp_path / "data"), run="on", rank=4, init_adapter="first"
    )
    assert run.initial_adapters.is_file()
    assert TrainingTracker(first.path.parent).find("on").path == run.path
    shutil.rmtree(run.path)
