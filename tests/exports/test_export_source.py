"""Which adapters of a run are exported: the best, the last, or those of a checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from qlora_core.errors import RunError
from qlora_core.exports.export import export_run
from qlora_core.exports.source import open_source
from qlora_core.files.storage import manifest_problem
from qlora_core.runs.checkpoints import checkpoints
from qlora_core.runs.run import Run

ADAPTERS = "adapters.safetensors"


@pytest.fixture
def run(undrawn: Run, tmp_path: Path) -> Run:
    """A copy of the trained run."""
    return Run(shutil.copytree(undrawn.path, tmp_path / "run"))


def step_of(run: Run) -> str:
    return str(int(checkpoints(run.checkpoint_directory)[-1].name))


def test_a_checkpoint_is_exported_as_it_is(run, tmp_path):
    step = step_of(run)
    export_run(run, tmp_path / "out", to="adapter", checkpoint=step, verified=False)
    place = checkpoints(run.checkpoint_directory)[-1]
    assert (tmp_path / "out" / ADAPTERS).read_bytes() == (place / ADAPTERS).read_bytes()
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["lora_parameters"]["rank"] == run.config().lora.rank
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["adapters"] == step
    assert manifest_problem(tmp_path / "out") is None


def test_a_checkpoint_is_merged_and_verified(run, tmp_path):
    found = export_run(run, tmp_path / "out", to="fused-float16", checkpoint=step_of(run))
    assert found["verification"]["within"]
    assert found["verification"]["same_answers"] == found["verification"]["questions"] > 0
    assert found["fused"]["fused_loss"] == pytest.approx(found["fused"]["tuned_loss"], rel=2e-3)


def test_a_run_paused_before_its_first_validation_has_checkpoints_to_export(run, tmp_path):
    expected = json.loads((run.best / "adapter_config.json").read_text(encoding="utf-8"))
    for place in (run.best, run.final):
        shutil.rmtree(place)
    with pytest.raises(RunError, match="has no trained adapters yet"):
        open_source(run)
    source = open_source(run, step_of(run))
    assert source.settings["lora_parameters"] == expected["lora_parameters"]
    assert source.settings["fine_tune_type"] == expected["fine_tune_type"]


def test_a_name_that_is_none_says_which_there_are(run):
    with pytest.raises(
        RunError, match=rf"has no adapters of the name '3000'\. There are: best, final, .*{step_of(run)}"
    ):
        open_source(run, "3000")


def test_a_damaged_checkpoint_exports_nothing(run, tmp_path):
    place = checkpoints(run.checkpoint_directory)[-1]
    content = bytearray((place / ADAPTERS).read_bytes())
    content[-1] ^= 1
    (place / ADAPTERS).write_bytes(content)
    with pytest.raises(RunError, match=r"this checkpoint is damaged\. Choose another"):
        export_run(run, tmp_path / "out", to="peft", checkpoint=step_of(run))
    assert not (tmp_path / "out").exists()


def test_force_reaches_no_other_run_and_no_data(run, tmp_path):
    other, rows = Run(shutil.copytree(run.path, tmp_path / "other")), tmp_path / "rows"
    rows.mkdir()
    (rows / "rows.jsonl").write_text("{}", encoding="utf-8")
    config, named = (run.path / "config.json"), run.config().data.data[0]
    config.write_text(config.read_text(encoding="utf-8").replace(named, str(rows / "rows.jsonl")), encoding="utf-8")
    for out, what in ((other.path, "is a run"), (rows, "holds the data of the run")):
        before = sorted(path.name for path in out.iterdir())
        with pytest.raises(RunError, match=f"{what} and is never replaced"):
            export_run(run, out, to="adapter", force=True)
        assert sorted(path.name for path in out.iterdir()) == before


def test_best_and_last_differ_by_name_alone(run, tmp_path):
    for name, place in (("best", run.best), ("final", run.final)):
        export_run(run, tmp_path / name, to="adapter", checkpoint=name, verified=False)
        there, back = load_file(place / ADAPTERS), load_file(tmp_path / name / ADAPTERS)
        assert {n: v.tobytes() for n, v in there.items()} == {n: v.tobytes() for n, v in back.items()}
