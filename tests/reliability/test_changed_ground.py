"""What a run stands on was changed behind it: it is refused when it should go on, the field is named, nothing is lost.

By the command line, which plans first, and by a worker, which only has the run's directory.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import at_step, checkpoint, hashes, load, set_adapters, train
from tiny import write_rows

from qlora_core.config import LoraConfig, Setting, settings
from qlora_core.engine.model import save_adapters
from qlora_core.engine.weights import loaded_directory
from qlora_core.errors import QLoraError, RunError
from qlora_core.models.adapter_files import adapter_parameters
from qlora_core.runs.plan import TrainingPlan, TrainingTracker
from qlora_core.runs.run import Run

SETTINGS = {"run": "club", "samples": 0, "max_answer_tokens": 1, "learning_rate": 1e-2, "epochs": 1, "val_rows": 2}

Plan = Callable[..., tuple[TrainingTracker, TrainingPlan]]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A directory with a model, rows, adapters to start from and a run that was paused; to be copied."""
    from qlora_core.jobs.planning import plan_training
    from qlora_core.runs.plan import resolve_config

    root = tmp_path_factory.mktemp("begun")
    shutil.copytree(tiny_model, root / "model")
    write_rows(root / "rows.jsonl")
    model, spec = load(root / "model", lora=LoraConfig())
    set_adapters(model)
    save_adapters(model, root / "start", adapter_parameters(spec, LoraConfig(), loaded_directory(spec, "float32")), {})
    place = {"model": str(root / "model"), "data": [str(root / "rows.jsonl")], "runs_dir": str(root / "runs")}
    given = {**SETTINGS, **place, "init_adapter": str(root / "start")}
    tracker, plan = plan_training(resolve_config(given), say=lambda _: None)
    run = tracker.create(plan)
    assert train(run, at_step(1, lambda: run.request("pause"))).state == "paused"
    return root


@pytest.fixture
def world(begun: Path, plan: Plan) -> SimpleNamespace:
    """The run where it was made, as it was, and how to plan going on with it."""
    kept = begun.with_name("kept")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(begun, kept)

    def go_on(**changes: Any) -> TrainingPlan:
        given = {"run": "club", "runs_dir": str(begun / "runs"), "model": str(begun / "model"), **changes}
        return plan(**given)[1]

    yield SimpleNamespace(root=begun, run=Run(begun / "runs" / "club"), go_on=go_on)
    shutil.rmtree(begun)
    shutil.copytree(kept, begun)


def contents(run: Run) -> dict[str, str]:
    """Hashes of every file of a run but what its trainer says of itself."""
    told = ("status.json", "metrics.jsonl", "control", "lock")
    return {
        f"{path.parent.relative_to(run.path)}/{name}": value
        for path in sorted(run.path.rglob("*"))
        if path.is_file() and path.name not in told
        for name, value in hashes(path.parent, [path.name]).items()
    }


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def change_a_byte(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change_a_merge(path: Path) -> None:
    """Two letters swap their ids."""
    content = json.loads(path.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(content), encoding="utf-8")


def change_a_row(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace("?", "!", 1), encoding="utf-8")


def change_a_setting(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["train"]["learning_rate"] = 0.5
    path.write_text(json.dumps(content), encoding="utf-8")


BEHIND = {
    "weights": (lambda root, run: change_a_byte(root / "model" / "model.safetensors"), "model"),
    "base config": (lambda root, run: change_json(root / "model" / "config.json", rope_theta=9999.0), "model"),
    "tokeniser": (lambda root, run: change_a_merge(root / "model" / "tokenizer.json"), "tokeniser and template"),
    "end of text": (
        lambda root, run: change_json(root / "model" / "tokenizer_config.json", eos_token="<|endoftext|>"),
        "tokeniser and template",
    ),
    "template": (
        lambda root, run: change_json(
            root / "model" / "tokenizer_config.json", chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"
        ),
        "tokeniser and template",
    ),
    "a row to train": (lambda root, run: change_a_row(run.path / "data" / "train_data.jsonl"), "data"),
    "a row to validate": (lambda root, run: change_a_row(run.path / "data" / "val_data.jsonl"), "data"),
    "initial adapters": (lambda root, run: change_a_byte(run.initial_adapters), "initial adapters"),
    "setting": (lambda root, run: change_a_setting(run.path / "config.json"), "learning_rate"),
}


@pytest.mark.parametrize("what", BEHIND)
def test_changed_behind_the_run_it_is_refused_by_name(world: SimpleNamespace, what: str) -> None:
    change, named = BEHIND[what]
    change(world.root, world.run)
    before = contents(world.run)
    with pytest.raises(RunError) as planned:
        world.go_on()
    assert named in str(planned.value)
    assert (contents(world.run), world.run.state) == (before, "paused")  # a plan writes nothing
    with pytest.raises(RunError) as worked:
        train(world.run)
    assert named in str(worked.value).replace("_", " ") or named in str(worked.value)
    assert (world.run.state, world.run.status()["message"]) == ("failed", str(worked.value))
    assert contents(world.run) == before


@pytest.mark.parametrize("what", ["weights", "a row to train", "setting"])
def test_put_back_it_goes_on(world: SimpleNamespace, what: str) -> None:
    before = {path: path.read_bytes() for path in world.root.rglob("*") if path.is_file()}
    BEHIND[what][0](world.root, world.run)
    with pytest.raises(RunError):
        train(world.run)
    for path, content in before.items():
        if path.parent.name in ("model", "data") or path.name == "config.json":
            path.write_bytes(content)
    world.go_on()
    assert train(world.run).state == "completed"
    assert world.run.metrics()[0]["type"] == "start"
    assert [event["step"] for event in world.run.metrics() if event["type"] == "start"] == [0, 1]


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("model/model.safetensors", r"no model\*.safetensors"),
        ("model", "base model is not there any more"),
        ("runs/club/data/train_data.jsonl", r"data/train_data.jsonl: is missing"),
        ("runs/club/initial_adapters.safetensors", "initial_adapters.safetensors: is missing"),
    ],
)
def test_gone_it_is_refused_by_name(world: SimpleNamespace, gone: str, message: str) -> None:
    path = world.root / gone
    path.unlink() if path.is_file() else shutil.rmtree(path)
    saved = hashes(checkpoint(world.run, 1))
    with pytest.raises(QLoraError, match=message):
        train(world.run)
    assert hashes(checkpoint(world.run, 1)) == saved


def test_other_rows_are_refused(world: SimpleNamespace, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", 13)
    with pytest.raises(RunError, match=r"cannot go on with something else. data: the run has [0-9a-f]+, asked for"):
        world.go_on(data=[str(other)])


def test_rows_that_moved_are_not(world: SimpleNamespace, tmp_path: Path) -> None:
    """The contents count, not where they lie, and what became of the source does not matter to the run's own copy."""
    write_rows(world.root / "rows.jsonl", 3)
    world.go_on()
    shutil.move(world.root / "runs" / "club", tmp_path / "club")
    moved = Run(tmp_path / "club")
    assert train(moved).state == "completed"


# Settings ---------------------------------------------------------------------------------------------------------

OTHER = {"columns": ("prompt=a",), "question": "pt", "language": "pt", "projections": "mlp", "val_rows": 3,
         "adapter": "dora", "learning_rate": 2e-2, "rank": 16, "alpha": 3.0, "passage_tokens": 300,
         "sample_prompts": ("Who?",), "decide": ("title:a.txt=A",), "answers_of": "Rosa"}  # fmt: skip


def other_value(setting: Setting) -> Any:
    """A value that is allowed and not the default."""
    if setting.name in OTHER:
        return OTHER[setting.name]
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if setting.type is bool:
        return not setting.default
    return setting.default + (1 if setting.type is int else 0.25)


def write_hosts(path: Path) -> str:
    """Write a file of two machines, this one and another; return its path."""
    hosts = [{"ssh": "localhost", "ips": ["127.0.0.1"]}, {"ssh": "far", "ips": ["127.0.0.2"]}]
    path.write_text(json.dumps(hosts), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("setting", list(settings("result")), ids=lambda setting: setting.name)
def test_another_setting_that_decides_the_result_is_refused_by_name(world: SimpleNamespace, setting: Setting) -> None:
    before = contents(world.run)
    with pytest.raises(QLoraError) as error:
        world.go_on(**{setting.name: other_value(setting)})
    assert f"{setting.name}: the run has" in str(error.value)
    assert contents(world.run) == before


@pytest.mark.parametrize("setting", [*settings("length"), *settings("pace")], ids=lambda setting: setting.name)
def test_how_long_and_how_often_may_change(world: SimpleNamespace, tmp_path: Path, setting: Setting) -> None:
    value = write_hosts(tmp_path / "hosts.json") if setting.name == "hosts" else other_value(setting)
    plan = world.go_on(**{setting.name: value})
    run = TrainingTracker(world.run.path.parent).create(plan)
    assert run.config().value(setting) == value
    run.refuse_changed_settings()
    run.refuse_damage()


def test_what_was_not_a_setting_yet_was_as_it_is_by_default(world: SimpleNamespace) -> None:
    """A run of an earlier version, which recorded fewer settings and no hashes of its files."""
    environment = world.run.environment()
    del environment["identity"]["rslora"], environment["files"]
    (world.run.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    world.go_on()
    assert train(world.run).state == "completed"
