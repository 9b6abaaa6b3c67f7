"""Merge a base and its adapters into one stand-alone model, and measure what merging changed.

Knows models and their directories; nothing of guides, pages or where exports are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import BaseConfig
from ..engine.device import kernels_to_answer, memory_counters, mx, nn, tree_flatten, tree_unflatten
from ..engine.loss import cross_entropy
from ..engine.model import load_base, save_tensors
from ..errors import RunError
from ..files.storage import write_json
from ..machine.crash_reasons import device_failure
from ..machine.memory import GB, available_bytes
from ..models.adapter_files import adapter_base
from ..models.base_models import ModelSpec, describe
from ..runs.memory_estimate import RESERVE_BYTES
from ..runs.run import Run
from ..tokens.dataset import make_dataset
from ..tokens.rows import TokenRow
from ..tokens.tokenizer import ChatTokenizer
from ..tokens.tokenizer_files import write_tokenizer
from .session import load_for_answers

JUDGED_ROWS = 32  # rows on which the fused model is compared with the tuned one
SHARD_BYTES = 1_000_000_000  # size of a weight file, which is held in memory until it is written


def fuse_run(run: Run, directory: Path, *, dequantize: bool) -> dict[str, Any]:
    """Merge a run's adapters into its base, and write a model directory in MLX and Hugging Face layout.

    Args:
        run: only read.
        directory: an existing, empty directory; gets weights, `config.json` and the tokeniser's files.
        dequantize: write plain float16 weights; otherwise they are quantised as the base is.

    Returns:
        What the model became, and what merging changed: `bits` (None: unquantised) and `dtype`; on `rows` rows with
        `tokens` trained tokens, the mean loss in nats before and after (`tuned_loss`, `fused_loss`), and the share of
        these tokens for which both models predict the same one (`same_choice`). If there is too little memory to load
        the model again for that, `not_judged` says so, and the last two are None.

    Raises:
        QLoraError: the base or the adapters are not what they were.
        RunError: the weights cannot be written.
    """
    model, tokenizer = load_for_answers(run)
    spec = run.base()
    rows = _judged_rows(run, tokenizer, run.config().data.max_seq_length)
    before = _judge(model, rows)
    dtype = "float16" if dequantize else spec.dtype
    parameters = spec.parameters
    weights = _merged(model, getattr(mx, dtype), dequantize=dequantize)
    del model
    try:
        _describe(spec, _loaded_from(run, spec), directory, tokenizer, dequantize=dequantize)
        _save(weights, directory, parameters)
    except RuntimeError as error:  # mlx's own, for a full disk say
        if failure := device_failure(error):
            raise failure from None
        raise RunError(f"{directory}: the fused weights cannot be written: {error}") from None
    merged = describe(directory, BaseConfig(model=str(directory), quantize="none"))
    reason = _too_large(merged, rows)
    after = None if reason else _judge(_load(merged), rows)
    return {
        "bits": None if dequantize else spec.bits,
        "dtype": dtype,
        "rows": len(rows),
        "tokens": len(before[1]),
        "tuned_loss": before[0],
        "fused_loss": after[0] if after else None,
        "same_choice": float(np.mean(before[1] == after[1])) if after else None,
        "not_judged": reason,
    }


def _merged(model: nn.Module, dtype: mx.Dtype, *, dequantize: bool) -> dict[str, mx.array]:
    """Return the weights of a model with each adapter merged into its layer, not yet computed.

    The model cannot be used afterwards: its own weights are freed one by one as the merged ones are computed.
    """
    from mlx_lm.utils import dequantize_model

    fused = [(path, module.fuse(dequantize)) for path, module in model.named_modules() if hasattr(module, "fuse")]
    model.update_modules(tree_unflatten(fused))
    if dequantize:
        dequantize_model(model)
    model.set_dtype(dtype)
    weights = dict(tree_flatten(model.parameters()))
    model.update(tree_unflatten([(name, mx.array([])) for name in weights]))
    return weights


def _save(weights: dict[str, mx.array], directory: Path, parameters: int) -> None:
    """Compute and write weights one matrix after another; this empties `weights`.

    Given all at once, MLX would compute all of them ahead of time, and hold several times their size.
    """
    total = sum(value.nbytes for value in weights.values())
    shards = list(_shards(weights))
    files = {}
    for number, names in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        shard = {}
        for each in names:
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


def _describe(spec: ModelSpec, loaded: Path, directory: Path, tokenizer: ChatTokenizer, *, dequantize: bool) -> None:
    """Write the files beside the weights; their quantisation is that of the base as it was loaded."""
    config = json.loads(((spec.path if dequantize else loaded) / "config.json").read_text(encoding="utf-8"))
    if dequantize:
        config = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
        config["torch_dtype"] = "float16"
    elif spec.quantize_bits and "quantization" not in config:
        config["quantization"] = {"group_size": spec.quantize_group_size, "bits": spec.quantize_bits, "mode": "affine"}
        config["quantization_config"] = config["quantization"]
    write_tokenizer(tokenizer, directory)
    write_json(directory / "config.json", config)


def _loaded_from(run: Run, spec: ModelSpec) -> Path:
    """Return the directory of the base as it was loaded, or as it was before it was quantised."""
    named = adapter_base(run.adapters)
    return named if named.is_dir() else spec.path


def _too_large(merged: ModelSpec, rows: Sequence[TokenRow]) -> str:
    """Return why a merged model is not loaded for judging; empty if there is room for it and a row's logits."""
    needed = merged.loaded_bytes + 8 * max(map(len, rows)) * merged.config["vocab_size"] + RESERVE_BYTES
    free = memory_counters().get("free", available_bytes())
    if needed <= free:
        return ""
    return f"it does not fit here: {needed / GB:.1f} GB wanted, {free / GB:.1f} GB available"


def _load(merged: ModelSpec) -> nn.Module:
    available = available_bytes()
    return load_base(merged, kernels_to_answer(merged.dtype, 4 * merged.parameters, available, None))


def _judged_rows(run: Run, tokenizer: ChatTokenizer, max_seq_length: int) -> Sequence[TokenRow]:
    """Return some validation rows, or some training rows if there are none."""
    for rows in (run.validation_rows(), run.train_rows()):
        usable = make_dataset(rows[:JUDGED_ROWS], tokenizer, max_seq_length).rows
        if len(usable):
            return usable
    raise RunError(f"{run.path}: has no row that the fused model could be judged by.")


def _judge(model: nn.Module, rows: Sequence[TokenRow]) -> tuple[float, np.ndarray]:
    """Return the mean loss over the trained tokens of some rows, and the predicted tokens `(tokens,)`."""
    model.eval()
    loss, choices = 0.0, []
    for row in rows:
        places = np.flatnonzero(row.trained)
        logits = model(mx.array(row.ids)[None])[0][mx.array(places - 1)].astype(mx.float32)
        loss += cross_entropy(logits, mx.array(row.ids[places]), mx.ones(len(places))).item()
        choices.append(np.array(logits.argmax(-1)))
    found = np.concatenate(choices)
    return loss / len(found), found
