"""Presets: the arithmetic behind them, done again on the shapes that they are meant for."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from qlora_core import cli
from qlora_core.config import BaseConfig, from_flat
from qlora_core.errors import ConfigError
from qlora_core.machine.memory import GB
from qlora_core.models import base_models
from qlora_core.models.base_models import ModelSpec, about_parameters, describe
from qlora_core.runs import memory_estimate
from qlora_core.runs.memory_estimate import LARGE_MODEL, estimate_memory
from qlora_core.runs.plan import resolve_config
from qlora_core.runs.presets import PRESETS, Choice, Preset, preset_choices
from qlora_core.tokens.rows import TokenRow

MISTRAL_7B = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_1_7B = {
    "model_type": "qwen3", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


def write_shape(directory: Path, config: dict) -> Path:
    """A checkpoint of that shape whose numbers are a hole in the file."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    directory.mkdir()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    return {"large": write_shape(root / "large", MISTRAL_7B), "small": write_shape(root / "small", QWEN3_1_7B)}


def chosen(preset: Preset, size: str) -> dict[str, Choice]:
    return dict(getattr(preset, size))


def predicted_peak(model: Path, name: str, monkeypatch: pytest.MonkeyPatch, **settings) -> int:
    """Of rows that are all as long as they may be, every token trained; of a processor that computes most at once."""
    on_gpu = name != "cpu"
    monkeypatch.setattr(memory_estimate, "cores", lambda: 8)
    monkeypatch.setattr(base_models, "has_gpu", lambda: on_gpu)
    config = from_flat({"model": str(model), **settings})
    spec: ModelSpec = describe(model, config.base)
    longest = TokenRow(np.zeros(config.data.max_seq_length, np.int32), np.ones(config.data.max_seq_length, bool))
    rows = [longest] * config.train.batch_size
    return estimate_memory(spec, config, rows, keeps_dense=False, on_gpu=on_gpu).total


@pytest.mark.parametrize("size", ["large", "small"])
@pytest.mark.parametrize("name", PRESETS)
def test_the_micro_batch_is_the_largest_that_fits(shapes, monkeypatch, name: str, size: str) -> None:
    preset = PRESETS[name]
    settings = {setting: choice.value for setting, choice in chosen(preset, size).items()}
    batch = settings["batch_size"]
    peaks = [
        predicted_peak(shapes[size], name, monkeypatch, **settings | {"batch_size": rows}) / GB
        for rows in (batch, 2 * batch)
    ]
    assert peaks[0] <= preset.budget_gb
    assert batch == 8 or peaks[1] > preset.budget_gb
    assert batch * settings["grad_accumulation_steps"] == 8


@pytest.mark.parametrize("name", PRESETS)
def test_layers_are_recomputed_only_where_memory_asks_for_it(shapes, monkeypatch, name: str) -> None:
    """Without it, not even half the micro-batch fits."""
    for size in ("large", "small"):
        settings = {setting: choice.value for setting, choice in chosen(PRESETS[name], size).items()}
        recomputed = settings.get("grad_checkpoint", False)
        if recomputed:
            settings |= {"grad_checkpoint": False, "batch_size": max(1, settings["batch_size"] // 2)}
        peak = predicted_peak(shapes[size], name, monkeypatch, **settings) / GB
        assert (peak > PRESETS[name].budget_gb) == recomputed


@pytest.mark.parametrize("name", PRESETS)
def test_every_choice_is_a_setting_with_a_reason_in_a_line(name: str) -> None:
    for size in ("large", "small"):
        choices = chosen(PRESETS[name], size)
        from_flat({setting: choice.value for setting, choice in choices.items()})
        assert all(choice.why and len(choice.why) <= 90 and "\n" not in choice.why for choice in choices.values())


def test_the_size_is_told_from_the_configuration_alone(shapes, tiny_model) -> None:
    for path in shapes.values():
        spec = describe(path, BaseConfig(model=str(path)))
        assert about_parameters(BaseConfig(model=str(path))) == pytest.approx(spec.parameters, rel=0.15)
    large = preset_choices("m1-16gb", BaseConfig(model=str(shapes["large"])))
    assert large == PRESETS["m1-16gb"].large
    assert about_parameters(BaseConfig(model=str(shapes["large"]))) >= LARGE_MODEL
    assert preset_choices("m1-16gb", BaseConfig(model=str(tiny_model))) == PRESETS["m1-16gb"].small


def test_what_is_given_goes_before_a_preset(shapes) -> None:
    config = resolve_config({"model": str(shapes["large"]), "batch_size": 1, "rank": 16}, "m1-16gb")
    assert (config.train.batch_size, config.lora.rank) == (1, 16)
    assert (config.data.max_seq_length, config.train.grad_accumulation_steps) == (512, 8)


@pytest.mark.parametrize(("name", "memory"), [("m1-16gb", 16 * 2**30), ("m1-8gb", 8 * 2**30)])
def test_on_a_mac_it_fits_into_what_its_gpu_should_have(shapes, monkeypatch, name: str, memory: int) -> None:
    """Two thirds of the memory are recommended as the most, and MLX lets go of what it keeps a little before."""
    from qlora_core.engine.device import WORKING_SET

    most = WORKING_SET * memory * 2 / 3
    assert PRESETS[name].budget_gb * GB + memory_estimate.RESERVE_BYTES <= most * 1.02
    for size in ("large", "small"):
        settings = {setting: choice.value for setting, choice in chosen(PRESETS[name], size).items()}
        assert predicted_peak(shapes[size], name, monkeypatch, **settings) + memory_estimate.RESERVE_BYTES <= most


def test_a_16_gb_mac_leaves_half_of_it_to_other_programs(shapes, monkeypatch) -> None:
    large = preset_choices("m1-16gb", BaseConfig(model=str(shapes["large"])))
    assert (large["batch_size"].value, large["grad_accumulation_steps"].value) == (1, 8)
    assert PRESETS["m1-16gb"].budget_gb * GB <= 1.01 * 16 * 2**30 / 2


def test_an_unknown_preset_is_refused(tiny_model, capsys) -> None:
    with pytest.raises(ConfigError, match="preset 'm9': wanted one of m1-16gb, m1-8gb, cpu, h100"):
        resolve_config({"model": str(tiny_model)}, "m9")
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["train", "--preset", "m9"])
    assert "invalid choice: 'm9'" in capsys.readouterr().err


def test_training_tells_what_a_preset_chose_and_why(python, tiny_model, tiny_rows) -> None:
    given = ["--model", tiny_model, "--data", tiny_rows, "--max-steps", 1, "--max-answer-tokens", 1, "--batch-size", 4]
    done = python("-m", "qlora_core", "train", "--preset", "cpu", *given)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.partition("── Preset cpu")[2].partition("── Data")[0]
    assert "quantize      4: a quarter of the base's size in half precision" in shown
    assert "batch_size    4, as you chose (the preset: 2)" in shown
