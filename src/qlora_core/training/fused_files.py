"""The files of a fused model: weights in shards, `config.json`, tokeniser; as mlx-lm opens them.

Knows names, sizes and settings; nothing of how a weight was rounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..activity import doing
from ..engine.device import mx
from ..engine.model import save_tensors
from ..files.storage import write_json
from ..models.base_models import ModelSpec
from ..tokens.tokenizer import ChatTokenizer
from ..tokens.tokenizer_files import write_tokenizer

SHARD_BYTES = 1_000_000_000  # size of a weight file, which is held in memory until it is written

Storage = dict[str, dict[str, Any]]
"""How each quantised layer is stored, by its path: `group_size`, `bits`, and `mode` unless it is affine."""


def save_weights(weights: dict[str, mx.array], directory: Path, parameters: int) -> None:
    """Compute and write weights one matrix after another; this empties `weights`.

    Given all at once, MLX would compute all of them ahead of time, and hold several times their size.
    """
    total = sum(value.nbytes for value in weights.values())
    shards = list(_shards(weights))
    files: dict[str, str] = {}
    with doing("writing", len(weights)) as tick:
        for number, names in enumerate(shards, start=1):
            name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            shard = {}
            for each in names:
                tick(len(files) + len(shard))
                shard[each] = weights.pop(each)
                mx.eval(shard[each])
                mx.clear_cache()
            save_tensors(directory / name, shard, {"format": "mlx"})
            files |= dict.fromkeys(names, name)
    metadata = {"total_size": total, "total_parameters": parameters}
    index = {"metadata": metadata, "weight_map": dict(sorted(files.items()))}
    write_json(directory / "model.safetensors.index.json", index)


def _shards(weights: dict[str, mx.array]) -> Iterator[list[str]]:
    """Yield the names of the weights for each file."""
    names, size = [], 0
    for name, value in weights.items():
        if names and size + value.nbytes > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += value.nbytes
    yield names


def save_companions(spec: ModelSpec, directory: Path, tokenizer: ChatTokenizer, dtype: str, storage: Storage) -> None:
    """Write the files beside the weights.

    Args:
        spec: the base, whose settings and tokeniser are taken over.
        directory: where the weights lie.
        tokenizer: as the run was trained with it.
        dtype: of the weights that are not quantised.
        storage: how each quantised layer is stored; those that are stored unlike most are named one by one.
    """
    write_tokenizer(tokenizer, directory)
    write_configuration(spec, directory, dtype, storage)


def write_configuration(spec: ModelSpec, directory: Path, dtype: str, storage: Storage) -> None:
    """Write the `config.json` of a base whose weights are stored anew; the arguments are those of `save_companions`."""
    config = json.loads((spec.path / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
    config |= {key: dtype for key in ("torch_dtype", "dtype") if key in config} or {"torch_dtype": dtype}
    if storage:
        usual = max(storage.values(), key=list(storage.values()).count)
        others = {path: how for path, how in storage.items() if how != usual}
        config["quantization"] = {"mode": "affine", **usual, **dict(sorted(others.items()))}
        config["quantization_config"] = config["quantization"]  # the name by which other libraries look for it
    write_json(directory / "config.json", config)
