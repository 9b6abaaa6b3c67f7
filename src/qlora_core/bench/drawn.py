"""Models of a known shape with random weights, for measuring where no real one is at hand.

In Hugging Face's layout in bfloat16, or in MLX's layout at 4 bits, with packed words drawn directly: 4 GB instead of
14.5 for 7B parameters. The weights' scale is that of trained ones, so that activations and losses stay finite.
"""

from __future__ import annotations

import functools
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .catalogue import ARCHITECTURES, SHAPES

SHARD = 2_000_000_000  # bytes
BITS, GROUP = 4, 64

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_checkpoint(shape: str, directory: Path) -> Path:
    """Write a checkpoint in bfloat16; an existing one is kept."""
    return _write_model(SHAPES[shape], directory, _dense)


def write_quantised(shape: str, directory: Path, dtype: str) -> Path:
    """Write a model at 4 bits in MLX's layout; an existing one is kept.

    Args:
        shape: a name of `SHAPES`.
        directory: the directory to create.
        dtype: dtype of scales and norms, and so of the computation: `float32`, `float16` or `bfloat16`.
    """
    settings = SHAPES[shape] | {"quantization": {"group_size": GROUP, "bits": BITS}}
    return _write_model(settings, directory, functools.partial(_packed, dtype=dtype))


def write_small(settings: dict[str, Any], directory: Path) -> Path:
    """Write a small checkpoint in bfloat16 in which every weight has its own numbers.

    Args:
        settings: the `config.json` of a family in `ARCHITECTURES`.
        directory: the directory to create.
    """
    return _write_model(settings, directory, _own)


class Numbers(NamedTuple):
    """A tensor of a file: its safetensors header, and numbers that are repeated until it is full."""

    name: str
    kind: str
    shape: tuple[int, ...]
    pattern: np.ndarray

    @property
    def count(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self.count * self.pattern.itemsize


DrawTensors = Callable[[str, tuple[int, ...], float], Iterator[Numbers]]
"""Function from a weight's name, its shape and its norm's value to the tensors that store it."""


def _write_model(settings: dict[str, Any], directory: Path, draw_tensors: DrawTensors) -> Path:
    if (directory / "config.json").is_file():
        return directory
    config = {
        "architectures": [ARCHITECTURES[settings["model_type"]]],
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **settings,
    }
    directory.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(tensor for weight in _weights(config) for tensor in draw_tensors(*weight)))
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(directory / name, shard)
    places = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    _write_json(directory / "model.safetensors.index.json", {"weight_map": places})
    _write_tokeniser(directory)
    _write_json(directory / "config.json", config)  # written last, as a sign that the rest is complete
    return directory


def _weights(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Yield the name and shape of every weight, and the value that norms are filled with."""
    hidden, inner, family = config["hidden_size"], config["intermediate_size"], config["model_type"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = (head * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    norm = 0.0 if family == "gemma3_text" else 1.0  # Gemma's multiply by 1 + weight
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if family in ("qwen3", "gemma3_text"):
        norms |= {"self_attn.q_norm": head, "self_attn.k_norm": head}
    if family == "gemma3_text":
        norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
    matrices = {
        "self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    yield "model.embed_tokens", (config["vocab_size"], hidden), norm
    for i in range(config["num_hidden_layers"]):
        for name, shape in matrices.items():
            yield f"model.layers.{i}.{name}", shape, norm
        for name, size in norms.items():
            yield f"model.layers.{i}.{name}", (size,), norm
    yield "model.norm", (hidden,), norm
    if not config["tie_word_embeddings"]:
        yield "lm_head", (config["vocab_size"], hidden), norm


def _dense(name: str, shape: tuple[int, ...], norm: float) -> Iterator[Numbers]:
    pattern = _noise(1 / math.sqrt(shape[-1])) if len(shape) > 1 else _constant(norm, "bfloat16")
    yield Numbers(f"{name}.weight", "BF16", shape, pattern)


def _own(name: str, shape: tuple[int, ...], norm: float) -> Iterator[Numbers]:
    if len(shape) == 1:
        yield from _dense(name, shape, norm)
        return
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(math.prod(shape), np.float32)
    yield Numbers(f"{name}.weight", "BF16", shape, _upper_half(drawn / np.float32(math.sqrt(shape[-1]))))


def _packed(name: str, shape: tuple[int, ...], norm: float, *, dtype: str) -> Iterator[Numbers]:
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    if len(shape) == 1:
        yield Numbers(f"{name}.weight", kind, shape, _constant(norm, dtype))
        return
    rows, columns = shape
    levels = 1 << BITS
    # uniform levels have a standard deviation of √((levels² - 1) / 12); weights should have 1/√columns
    scale = 1 / math.sqrt(columns * (levels * levels - 1) / 12)
    groups = (rows, columns // GROUP)
    yield Numbers(f"{name}.weight", "U32", (rows, columns * BITS // 32), _words())
    yield Numbers(f"{name}.scales", kind, groups, _constant(scale, dtype))
    yield Numbers(f"{name}.biases", kind, groups, _constant(-scale * (levels - 1) / 2, dtype))


def _shards(tensors: Iterator[Numbers]) -> Iterator[list[Numbers]]:
    shard: list[Numbers] = []
    for tensor in tensors:
        if shard and sum(part.size for part in [*shard, tensor]) > SHARD:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _write_file(path: Path, shard: list[Numbers]) -> None:
    header, end = {}, 0
    for tensor in shard:
        start, end = end, end + tensor.size
        header[tensor.name] = {"dtype": tensor.kind, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in shard:
            for start in range(0, tensor.count, len(tensor.pattern)):
                tensor.pattern[: tensor.count - start].tofile(file)


@functools.cache
def _constant(value: float, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return _upper_half(np.full(1_000_000, value, np.float32))
    return np.full(1_000_000, value, dtype)


@functools.cache
def _words() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << 32, 8_000_000, np.uint32)


@functools.cache
def _noise(width: float) -> np.ndarray:
    return _upper_half(np.random.default_rng(0).standard_normal(32_000_000, np.float32) * np.float32(width))


def _upper_half(numbers: np.ndarray) -> np.ndarray:
    """Return float32 as bfloat16 by keeping the upper half of each number."""
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _write_tokeniser(directory: Path) -> None:
    """Write a byte-level tokeniser, enough for benchmarks that use token ids directly."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHATML}
    _write_json(directory / "tokenizer_config.json", settings)
