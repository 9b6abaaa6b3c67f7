"""Adapters of other programs become runs: the same adapters, to the byte where nothing has to be filled up."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qlora_core.engine.generate import answer
from qlora_core.errors import ConfigError, ExportError, ModelError, QLoraError, RunError
from qlora_core.exports import importing
from qlora_core.exports.export import export_run
from qlora_core.exports.formats import ExportChoices
from qlora_core.exports.importing import import_adapters
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
from qlora_core.training.session import load_for_answers

PEFT_FILE, OURS = "adapter_model.safetensors", "adapters.safetensors"


@pytest.fixture(scope="module")
def export(undrawn: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run's adapters as PEFT reads them; only for reading."""
    directory = tmp_path_factory.mktemp("export") / "peft"
    export_run(undrawn, directory, to="peft", verified=False)
    return directory


@pytest.fixture
def exported(export: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(export, tmp_path / "peft")


def settings_of(run: Run, tmp_path: Path, **others: Any) -> dict[str, Any]:
    return {"model": run.environment()["model"]["path"], "runs_dir": str(tmp_path / "runs"), "run": "back"} | others


def change(directory: Path, tensors: dict[str, np.ndarray] | None = None, **settings: Any) -> Path:
    """Change an export of PEFT's."""
    config = directory / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | settings), encoding="utf-8")
    if tensors is not None:
        save_file(tensors, directory / PEFT_FILE)
    return directory


def updates(run: Run) -> dict[str, np.ndarray]:
    """What each module's adapters add to its weight, scale included."""
    tensors, scale = load_file(run.adapters / OURS), run.config().lora.scale
    modules = {name.rpartition(".")[0] for name in tensors}
    return {module: scale * (tensors[f"{module}.lora_a"] @ tensors[f"{module}.lora_b"]) for module in modules}


@pytest.mark.parametrize("form", ["peft", "mlx-lm"])
def test_there_and_back_is_equal_to_the_byte(trained, exported, tmp_path, form):
    source = exported if form == "peft" else trained.best
    run = import_adapters(source, settings_of(trained, tmp_path))
    there, back = load_file(trained.best / OURS), load_file(run.best / OURS)
    assert {name: value.tobytes() for name, value in back.items()} == {n: v.tobytes() for n, v in there.items()}
    assert run.config().lora == trained.config().lora.__class__(
        **{**vars(trained.config().lora), "init_adapter": run.config().lora.init_adapter}
    )
    assert (run.state, run.status()["step"]) == ("completed", 0)
    export_run(run, tmp_path / "again", to="peft")
    assert (tmp_path / "again" / PEFT_FILE).read_bytes() == (exported / PEFT_FILE).read_bytes()
    questions = ["sol?", "mar?"]
    one, other = (answer(*load_for_answers(each), questions, max_tokens=8) for each in (trained, run))
    assert one == other


def test_without_rows_it_is_merged_and_says_that_nothing_was_compared(trained, exported, tmp_path):
    run = import_adapters(exported, settings_of(trained, tmp_path))
    made = export_run(run, tmp_path / "out", to="fused")
    told = "the run has no rows to compare them on"
    assert (made["fused"]["form"], made["fused"]["not_judged"], made["fused"]["tuned_loss"]) == ("8", told, None)
    assert made["verification"]["not_verified"] == told
    assert f"Not judged: {told}." in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    with pytest.raises(ExportError, match=told):
        export_run(run, tmp_path / "strict", to="fused", choices=ExportChoices(strict=True))
    assert not (tmp_path / "strict").exists()


def test_it_goes_on_from_there(trained, exported, tiny_rows, tmp_path):
    """With rows, an imported run is evaluated and trained like any other."""
    run = import_adapters(exported, settings_of(trained, tmp_path, data=[str(tiny_rows)]))
    assert len(run.train_rows()) > 0
    assert TrainingTracker(tmp_path / "runs").find("back").initial_adapters.is_file()
    assert load_file(run.initial_adapters).keys() == load_file(trained.best / OURS).keys()


def test_patterns_of_rank_and_alpha_are_the_same_update(trained, exported, tmp_path):
    """PEFT's `rank_pattern` and `alpha_pattern`: smaller ranks are filled up with zeros, scales go into B."""
    tensors = load_file(exported / PEFT_FILE)
    smaller = [name for name in tensors if "q_proj" in name]
    for name in smaller:
        tensors[name] = np.ascontiguousarray(tensors[name][:2] if "lora_A" in name else tensors[name][:, :2])
    change(
        exported,
        tensors,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"^model.layers.0.self_attn.v_proj": 5.0, "k_proj": 3.0},
    )
    run = import_adapters(exported, settings_of(trained, tmp_path))
    config = json.loads((exported / "adapter_config.json").read_text(encoding="utf-8"))
    for module, update in updates(run).items():
        a, b = (tensors[f"base_model.model.{module}.{each}.weight"] for each in ("lora_A", "lora_B"))
        alpha = 3.0 if "k_proj" in module else config["lora_alpha"]
        alpha = 5.0 if module == "model.layers.0.self_attn.v_proj" else alpha
        expected = (alpha / len(a) * b @ a).T
        assert np.abs(update - expected).max() <= 1e-6 * np.abs(expected).max()


def test_layers_without_adapters_stay_as_they_are(trained, exported, tmp_path):
    """Adapters on the first layer alone, which a run counts from the last: those above are zeros."""
    tensors = {name: value for name, value in load_file(exported / PEFT_FILE).items() if ".layers.0." in name}
    run = import_adapters(change(exported, tensors, layers_to_transform=[0]), settings_of(trained, tmp_path))
    found = updates(run)
    assert all(np.any(update) == (".layers.0." in module) for module, update in found.items())
    assert any(".layers.1." in module for module in found)


def test_names_and_numbers_as_others_write_them(trained, exported, tmp_path):
    """PEFT's `state_dict` keeps the adapter's name; rsLoRA divides by the root of the rank; half precision is read."""
    tensors = load_file(exported / PEFT_FILE)
    named = {name.replace(".weight", ".default.weight"): value.astype(np.float16) for name, value in tensors.items()}
    change(exported, named, use_rslora=True, peft_version="0.18.0", task_type="CAUSAL_LM", bias=None)
    run = import_adapters(exported, settings_of(trained, tmp_path))
    config = json.loads((exported / "adapter_config.json").read_text(encoding="utf-8"))
    assert run.config().lora.scale == pytest.approx(config["lora_alpha"] / config["r"] ** 0.5)
    assert {value.dtype for value in load_file(run.best / OURS).values()} == {np.dtype(np.float32)}


def with_nan(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    name = next(iter(tensors))
    return {**tensors, name: np.full_like(tensors[name], np.nan)}


def without_one(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(list(tensors.items())[1:])


def of_another_model(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: np.pad(v, ((0, 0), (0, 3))) if "lora_A" in n else v for n, v in tensors.items()}


def beyond_the_last_layer(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace(".layers.0.", ".layers.70.").replace(".layers.1.", ".layers.71."): value
            for name, value in tensors.items()}  # fmt: skip


def with_eyes(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**tensors, **{n.replace(".model.model.", ".model.vision_tower.encoder."): v for n, v in tensors.items()}}


def named_twice(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**tensors, **{name.replace(".weight", ".default.weight"): value for name, value in tensors.items()}}


def of_the_embedding(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**tensors, "base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((2, 5), np.float32)}


@pytest.mark.parametrize(
    ("tensors", "settings", "reason"),
    [
        (with_nan, {}, "not finite"),
        (without_one, {}, "has only one of its two matrices"),
        (of_another_model, {}, r"does not fit: .* has shape \(\d+, \d+\), wanted"),
        (beyond_the_last_layer, {}, "has adapters on layer 70; .* has 2 layers"),
        (of_the_embedding, {}, "is no part of a LoRA or DoRA adapter of a linear layer"),
        (None, {"modules_to_save": ["lm_head"]}, "'modules_to_save' stands for whole modules .* cannot be taken over"),
        (None, {"bias": "all"}, "bias is 'all'"),
        (None, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
        (None, {"r": 10**9}, "r is 1000000000"),
        (None, {"lora_alpha": "16"}, "lora_alpha is '16'"),
        (None, {"rank_pattern": {"q_proj": -1}}, "rank_pattern is"),
        (
            None,
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights is 'pissa_niter_4', which changed the base's",
        ),
        (
            None,
            {"use_qalora": True},
            "'use_qalora' stands for something that is not known here and may change the model",
        ),
        (None, {"alora_invocation_tokens": [1, 2]}, "'alora_invocation_tokens' stands for something that is not known"),
        (None, {"lora_alpha": 0, "alpha_pattern": {"q_proj": 4}}, "their scale is 0, so that they do nothing"),
        (with_eyes, {}, "belongs to a part of the model that is not trained here"),
        (named_twice, {}, r"has .* twice"),
        (None, {"alpha_pattern": {r".*layers\.(0|1)\..*": 4}}, "alpha_pattern has the expression"),
        (None, {"target_parameters": ["experts.gate_up_proj"]}, "adapters of parameters that are no linear layers"),
    ],
)
def test_what_cannot_be_taken_over_is_named_and_leaves_nothing(trained, exported, tmp_path, tensors, settings, reason):
    change(exported, tensors(load_file(exported / PEFT_FILE)) if tensors else None, **settings)
    with pytest.raises(ModelError, match=reason):
        import_adapters(exported, settings_of(trained, tmp_path))
    assert not (tmp_path / "runs").exists()


def test_the_file_that_is_named_is_the_one_that_is_read(trained, tmp_path):
    """mlx-lm keeps one of every so many steps beside the last."""
    place = shutil.copytree(trained.best, tmp_path / "adapters")
    tensors = {name: np.ascontiguousarray(2 * value) for name, value in load_file(place / OURS).items()}
    save_file(tensors, place / "0000100_adapters.safetensors")
    run = import_adapters(place / "0000100_adapters.safetensors", settings_of(trained, tmp_path))
    back = load_file(run.best / OURS)
    assert all(np.array_equal(back[name], value) for name, value in tensors.items())
    for name in ("checkpoint-999", "other.safetensors"):
        with pytest.raises(ModelError, match=rf"{name}: there is no such file or directory"):
            import_adapters(place / name, settings_of(trained, tmp_path) | {"run": "other"})


@pytest.mark.parametrize("scale", [-20.0, 1e5])
def test_a_scale_that_no_setting_has_goes_into_b(trained, tmp_path, scale):
    place = shutil.copytree(trained.best, tmp_path / "adapters")
    settings = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
    settings["lora_parameters"]["scale"] = scale
    (place / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    run = import_adapters(place, settings_of(trained, tmp_path))
    factor = scale / trained.config().lora.scale
    for module, update in updates(trained).items():
        expected = factor * update
        assert np.abs(updates(run)[module] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_is_filled_up_can_learn(trained, exported, tmp_path):
    """With both matrices zero neither would ever get a gradient."""
    tensors = {name: value for name, value in load_file(exported / PEFT_FILE).items() if ".layers.0." in name}
    run = import_adapters(change(exported, tensors, layers_to_transform=[0]), settings_of(trained, tmp_path))
    for name, value in load_file(run.best / OURS).items():
        assert np.any(value) or (".layers.1." in name and name.endswith(".lora_b"))


def test_its_card_claims_no_training_that_never_happened(trained, exported, tmp_path):
    run = import_adapters(exported, settings_of(trained, tmp_path))
    export_run(run, tmp_path / "out", to="peft", verified=False)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "trained elsewhere" in card
    assert "in the format of PEFT" in card
    assert "How it was trained" not in card
    assert "no e-mail address" not in card
    assert json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["data"] is None


def test_pickled_adapters_are_not_opened(trained, exported, tmp_path):
    (exported / PEFT_FILE).rename(exported / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"is pickled, can run code, and is not opened\. Have PEFT write it anew"):
        import_adapters(exported, settings_of(trained, tmp_path))
    with pytest.raises(ModelError, match="holds no adapters"):
        import_adapters(tmp_path, settings_of(trained, tmp_path))


def test_what_the_adapters_decide_is_not_a_setting(trained, exported, tmp_path):
    with pytest.raises(ConfigError, match="--rank: the adapters decide this themselves"):
        import_adapters(exported, settings_of(trained, tmp_path, rank=4))


def test_a_base_that_is_not_named_is_asked_for(trained, exported, tmp_path):
    change(exported, base_model_name_or_path=None)
    with pytest.raises(ConfigError, match=r"does not name the base model that it belongs to\. Give it with --model"):
        import_adapters(exported, {"runs_dir": str(tmp_path / "runs")})


def test_no_run_is_written_over(trained, exported, tmp_path):
    run = import_adapters(exported, settings_of(trained, tmp_path))
    before = (run.best / OURS).read_bytes()
    with pytest.raises(RunError, match=r"is a run already\. Give another name with --run"):
        import_adapters(exported, settings_of(trained, tmp_path))
    assert (run.best / OURS).read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 40, b"\x00" * 8])
def test_damage_is_an_error_in_a_line(trained, exported, tmp_path, damage):
    for name in ("adapter_config.json", PEFT_FILE):
        copy = shutil.copytree(exported, tmp_path / f"damaged-{name}")
        (copy / name).write_bytes(damage)
        with pytest.raises(QLoraError) as caught:
            import_adapters(copy, settings_of(trained, tmp_path))
        assert "\n" not in str(caught.value)


def test_dora_on_some_layers_only_is_refused_in_clear_words(trained, exported, tmp_path):
    tensors = {name: value for name, value in load_file(exported / PEFT_FILE).items() if "layers.0." in name}
    for name in [name for name in tensors if "lora_B" in name]:
        lengths = np.ones(len(tensors[name]), np.float32)
        tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = lengths
    change(exported, tensors, use_dora=True)
    with pytest.raises(
        ModelError, match=r"has DoRA on some layers only: none on .*layers\.1\..* and \d+ more\. .*LoRA may"
    ):
        import_adapters(exported, settings_of(trained, tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("unsloth/llama-3-8b-bnb-4bit", "unsloth/llama-3-8b"),
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "unsloth/Qwen3-8B"),
        ("owner/base-BNB-8bit", "owner/base"),
    ],
)
def test_a_base_that_bitsandbytes_quantised_is_told_without_asking_the_hub(
    exported, tmp_path, monkeypatch, name, original
):
    monkeypatch.setattr(importing, "find_base", lambda _: pytest.fail("it was looked for"))
    change(exported, base_model_name_or_path=name)
    with pytest.raises(ConfigError, match=f"bitsandbytes quantised and MLX cannot read.*--model '{original}' if"):
        import_adapters(exported, {"runs_dir": str(tmp_path / "runs")})
