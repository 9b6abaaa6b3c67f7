"""One stand-alone model of a base and its adapters, and what merging them changed.

Knows models and their directories; nothing of guides, pages or where an export lies.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .adapters import adapter_base
from .bases import ModelSpec, describe
from .config import BaseConfig
from .device import kernels_to_answer, mx, nn, tree_unflatten
from .endings import device_failure
from .errors import RunError
from .loss import cross_entropy
from .memory import available_bytes
from .model import load_base
from .runs import Run
from .session import load_for_answers
from .storage import write_json
from .tokens import ChatTokenizer, TokenRow, make_dataset
from .weights import copy_companions

JUDGED_ROWS = 32  # rows on which the fused model is compared with the tuned one


def fuse_run(run: Run, directory: Path, *, dequantize: bool) -> dict[str, Any]:
    """Write a run's base with its adapters merged as a model directory in MLX and Hugging Face layout.

    Args:
        run: is only read.
        directory: exists and is empty; gets weights, `config.json` and the tokeniser's files.
        dequantize: plain float16 weights; else quantised as the base is.

    Returns:
        What it became and what merging changed: `bits` (None: unquantised), `dtype`, and on `rows` rows, with `tokens`
        trained tokens, the mean loss in nats before and after (`tuned_loss`, `fused_loss`) and the share of these
        tokens for which both find the same one likeliest (`same_choice`).

    Raises:
        QLoraError: the base or the adapters are not what they were.
        RunError: the weights cannot be written.
    """
    model, tokenizer = load_for_answers(run)
    spec = run.base()
    rows = _judged_rows(run, tokenizer, run.config().data.max_seq_length)
    before = _judge(model, rows)
    _merge(model, dequantize=dequantize)
    dtype = "float16" if dequantize else spec.dtype
    model.set_dtype(getattr(mx, dtype))
    try:
        _save(model, spec, _loaded_from(run, spec), directory, tokenizer.template_text, dequantize=dequantize)
    except RuntimeError as error:  # mlx's own, for a full disk say
        if failure := device_failure(error):
            raise failure from None
        raise RunError(f"{directory}: the fused weights cannot be written: {error}") from None
    del model
    after = _judge(_load(directory), rows)
    return {
        "bits": None if dequantize else spec.bits,
        "dtype": dtype,
        "rows": len(rows),
        "tokens": len(before[1]),
        "tuned_loss": before[0],
        "fused_loss": after[0],
        "same_choice": float(np.mean(before[1] == after[1])),
    }


def _merge(model: nn.Module, *, dequantize: bool) -> None:
    """Replace each adapted layer by one with the adapter in its weight, in place."""
    from mlx_lm.utils import dequantize_model

    fused = [(path, module.fuse(dequantize)) for path, module in model.named_modules() if hasattr(module, "fuse")]
    model.update_modules(tree_unflatten(fused))
    if dequantize:
        dequantize_model(model)


def _save(model: nn.Module, spec: ModelSpec, loaded: Path, directory: Path, template: str, *, dequantize: bool) -> None:
    """Write what was merged; how it is quantised stands beside the base as it was loaded."""
    from mlx_lm.utils import save_model

    config = json.loads(((spec.path if dequantize else loaded) / "config.json").read_text(encoding="utf-8"))
    if dequantize:
        config = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
        config["torch_dtype"] = "float16"
    elif spec.quantize_bits and "quantization" not in config:
        config["quantization"] = {"group_size": spec.quantize_group_size, "bits": spec.quantize_bits, "mode": "affine"}
        config["quantization_config"] = config["quantization"]
    copy_companions(spec.path, directory)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8", newline="\n")
    write_json(directory / "config.json", config)
    save_model(directory, model, donate_model=True)  # a shard at a time, so that not all weights are there twice


def _loaded_from(run: Run, spec: ModelSpec) -> Path:
    """Where the base lies as it was loaded, or as it was before it was quantised."""
    named = adapter_base(run.adapters)
    return named if named.is_dir() else spec.path


def _load(directory: Path) -> nn.Module:
    spec = describe(directory, BaseConfig(model=str(directory), quantize="none"))
    return load_base(spec, kernels_to_answer(spec.dtype, 4 * spec.parameters, available_bytes(), None))


def _judged_rows(run: Run, tokenizer: ChatTokenizer, max_seq_length: int) -> Sequence[TokenRow]:
    """Rows to validate on, else some that were trained."""
    for rows in (run.validation_rows(), run.train_rows()):
        usable = make_dataset(rows[:JUDGED_ROWS], tokenizer, max_seq_length).rows
        if len(usable):
            return usable
    raise RunError(f"{run.path}: has no row that the fused model could be judged by.")


def _judge(model: nn.Module, rows: Sequence[TokenRow]) -> tuple[float, np.ndarray]:
    """Mean loss over the trained tokens of some rows, and the token `(tokens,)` that the model finds likeliest."""
    model.eval()
    loss, choices = 0.0, []
    for row in rows:
        places = np.flatnonzero(row.trained)
        logits = model(mx.array(row.ids)[None])[0][mx.array(places - 1)].astype(mx.float32)
        loss += cross_entropy(logits, mx.array(row.ids[places]), mx.ones(len(places))).item()
        choices.append(np.array(logits.argmax(-1)))
    found = np.concatenate(choices)
    return loss / len(found), found
