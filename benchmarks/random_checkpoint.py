"""A checkpoint of a known model's shape with random weights, for measuring: bfloat16, sharded, Hugging Face's layout.

    uv run python benchmarks/random_checkpoint.py llama-1b DIRECTORY
    uv run python benchmarks/random_checkpoint.py mistral-7b DIRECTORY     # 14.5 GB

The numbers are normal with the usual width; the tokeniser is the built-in model's, cut to the vocabulary.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHARD = 2_000_000_000  # bytes
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "mistral-7b": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768, "tie_word_embeddings": False,
    },
    "mistral-small": {
        "model_type": "mistral", "hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32768, "tie_word_embeddings": False,
    },
}  # fmt: skip


def write_checkpoint(shape: str, directory: Path) -> Path:
    """Write the checkpoint; what is there already is left as it is."""
    config = SHAPES[shape] | {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "bos_token_id": 1, "eos_token_id": 2}
    if (directory / "config.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(_tensors(config)))
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write(directory / name, shard)
    index = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    _write_tokeniser(directory, config["vocab_size"])
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return directory


def _tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, outputs in {"q": hidden, "k": keys, "v": keys, "o": hidden}.items():
            yield f"{layer}.self_attn.{name}_proj.weight", (outputs, hidden)
        for name in ("gate", "up"):
            yield f"{layer}.mlp.{name}_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{name}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def _shards(tensors: Iterator[tuple[str, tuple[int, ...]]]) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    for name, shape in tensors:
        if shard and 2 * sum(map(math.prod, [*shard.values(), shape])) > SHARD:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _write(path: Path, shard: dict[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for name, shape in shard.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shard.values():
            numbers = _bfloat16(1 / math.sqrt(shape[-1])) if len(shape) > 1 else ONES
            for start in range(0, math.prod(shape), len(numbers)):
                numbers[: math.prod(shape) - start].tofile(file)


ONES = np.full(1_000_000, 0x3F80, np.uint16)  # bfloat16: the upper half of float32


@functools.cache
def _bfloat16(width: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(32_000_000, np.float32) * np.float32(width)
    return (noise.view(np.uint32) >> 16).astype(np.uint16)


def _write_tokeniser(directory: Path, vocabulary: int) -> None:
    """The built-in model's, without the tokens beyond the vocabulary: merges come in the order of their results."""
    from qlora_core.bases import built_in_directory

    source = built_in_directory()
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < vocabulary}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    (directory / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    shutil.copyfile(source / "tokenizer_config.json", directory / "tokenizer_config.json")


if __name__ == "__main__":
    print(write_checkpoint(sys.argv[1], Path(sys.argv[2])))
