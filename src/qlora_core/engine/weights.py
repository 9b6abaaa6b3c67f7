"""The weights of a base model: read, quantised one matrix at a time if asked for, and cached for the next time.

mlx-lm reads them lazily, so that no more than one matrix exists at full size. Knows the cache; nothing of kernels,
adapters or runs.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..activity import doing
from ..errors import ModelError, brief
from ..files.storage import cache_directory, locked, manifest_problem, publishing
from ..machine.crash_reasons import device_failure
from ..machine.memory import GB
from ..models.base_models import ModelSpec
from ..tokens.tokenizer_files import copy_companions
from .device import mx, nn, tree_flatten

BLOCK = 32_000_000  # weights that are quantised at once: 64 MB in half precision
ROOM = 2 * GB  # space that must remain free on the disk after a quantised base is cached

Warn = Callable[[str], None]


def load_weights(spec: ModelSpec, dtype: str, warn: Warn, *, lowest: int | None = None) -> nn.Module:
    """Load a base into memory in `dtype`, quantised where `spec` says so.

    Quantised weights are cached by the content of the base, and read from the cache the next time.

    Args:
        spec: the base.
        dtype: dtype of scales, norms and whatever is not quantised, for example `float32`.
        warn: called with a message if the quantised weights could not be cached.
        lowest: load only the weights of this many of the lowest layers; None: load all.

    Raises:
        ModelError: mlx-lm does not know the architecture, or the weights do not fit it.
    """
    if spec.quantize_bits is None:
        return _read(spec, spec.path, dtype, lowest)
    kept = _kept_directory(spec, dtype)
    with locked(kept):  # a second process waits, and then reads what the first one wrote
        if manifest_problem(kept, contents=False) is not None:
            model, config = _quantised(spec, dtype)
            _keep(model, config, spec, kept, warn)
            return model
    return _read(spec, kept, dtype, lowest)


@contextlib.contextmanager
def _explained(spec: ModelSpec) -> Iterator[None]:
    """Turn any error that mlx-lm raises for a model whose files do not fit together into a `ModelError`."""
    try:
        yield
    except Exception as error:  # a model's definition may divide by a wrong size, index by it, and so on
        if failure := device_failure(error):
            raise failure from None
        kind = spec.config["model_type"]
        raise ModelError(f"{spec.path}: cannot be loaded as a {kind} model: {brief(error)}") from None


def loaded_directory(spec: ModelSpec, dtype: str) -> Path:
    """Return where mlx-lm finds the weights that `load_weights` loaded: in the cache, else in the base's directory."""
    if spec.quantize_bits is None:
        return spec.path
    kept = _kept_directory(spec, dtype)
    return spec.path if manifest_problem(kept, contents=False) else kept


def _kept_directory(spec: ModelSpec, dtype: str) -> Path:
    """Return the cache directory, keyed by content hash, bits, group size and dtype."""
    how = f"q{spec.quantize_bits}-g{spec.quantize_group_size}-{dtype}"
    return cache_directory() / "models" / f"{spec.short_name}-{spec.fingerprint[:16]}-{how}"


def _read(spec: ModelSpec, path: Path, dtype: str, lowest: int | None) -> nn.Module:
    from mlx_lm.utils import load_model

    with _explained(spec):
        model, _ = load_model(path, lazy=True)
        model.set_dtype(getattr(mx, dtype))
        parts = [model] if lowest is None else model.layers[:lowest]
        leaves = [module for part in parts for _, module in _leaves(part)]
        with doing("loading", len(leaves)) as tick:
            for number, module in enumerate(leaves):
                tick(number)
                _settle(module.parameters())
            for part in parts:
                mx.eval(part.parameters())
        _try(model)
    return model


def _quantised(spec: ModelSpec, dtype: str) -> tuple[nn.Module, dict[str, Any]]:
    """Load and quantise a model; return it with its `config.json`."""
    from mlx_lm.utils import load_model, quantize_model

    with _explained(spec):
        model, config = load_model(spec.path, lazy=True)
        own, full = getattr(model, "quant_predicate", None), {}

        def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
            chosen = own(path, module) if own else True
            if chosen:
                full[path] = module.weight
            return chosen

        with contextlib.redirect_stdout(io.StringIO()):  # it prints, but standard output may have to be JSON
            model, config = quantize_model(
                model, config, spec.quantize_group_size, spec.quantize_bits, quant_predicate=predicate
            )
        leaves = _leaves(model)
        with doing("quantising", len(leaves)) as tick:
            for number, (path, module) in enumerate(leaves):
                tick(number)
                if path in full:
                    _quantise(module, full.pop(path), getattr(mx, dtype))
                _settle(module.parameters())
            model.set_dtype(getattr(mx, dtype))
            mx.eval(model.parameters())
        _try(model)
    return model, config


def _try(model: nn.Module) -> None:
    """Build the graph of an answer without computing it: a wrong type in the settings fails here, not in mid-run."""
    model(mx.array([[0, 1]]))


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)


def _quantise(module: nn.Module, weight: mx.array, dtype: mx.Dtype) -> None:
    """Replace the parameters that a layer would quantise all at once by the same ones, quantised block by block."""
    rows = max(1, BLOCK // (weight.size // weight.shape[0]))
    mx.eval(weight)  # otherwise each block would read it from the file again
    parts = []
    for start in range(0, weight.shape[0], rows):
        block = weight[start : start + rows].astype(dtype)
        parts.append(mx.quantize(block, group_size=module.group_size, bits=module.bits, mode=module.mode))
        mx.eval(parts[-1])
    module.weight, module.scales, module.biases = (mx.concatenate(part) for part in zip(*parts, strict=True))


def _settle(parameters: dict[str, Any]) -> None:
    """Compute parameters, and free the memory that computing them took."""
    mx.eval(parameters)
    mx.clear_cache()


def _keep(model: nn.Module, config: dict[str, Any], spec: ModelSpec, directory: Path, warn: Warn) -> None:
    """Cache a quantised model for the next time, if there is room."""
    from mlx_lm.utils import save_config, save_model

    for stale in directory.parent.glob(f".{directory.name}.*.tmp"):  # gigabytes, left by a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    needed = sum(value.nbytes for _, value in tree_flatten(model.parameters())) + ROOM
    try:
        free = shutil.disk_usage(directory.parent).free
        if free < needed:
            raise OSError(f"{needed / GB:.1f} GB wanted, {free / GB:.1f} GB free")
        with doing("keeping"), publishing(directory, wanted=needed - ROOM) as temporary:
            save_model(temporary, model)
            save_config(config, temporary / "config.json")
            copy_companions(spec.path, temporary)
    except (OSError, RuntimeError) as error:  # MLX raises the second if it cannot write a safetensors file
        message = f"the quantised base is not kept in {directory.parent}, and will be quantised anew next time: {error}"
        warn(f"{message.removesuffix('.')}. QLORA_CACHE names another place for it.")
