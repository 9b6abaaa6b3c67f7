"""A base's weights: read, quantised one matrix at a time where that is asked, and kept for the next time.

Reading is mlx-lm's and lazy, so that no more than one matrix exists at full size. Knows the cache; nothing of kernels,
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
from ..files.storage import MANIFEST, cache_directory, left_by_file_manager, locked, manifest_problem, publishing
from ..machine.crash_reasons import device_failure
from ..machine.memory import GB
from ..models.base_models import ModelSpec
from .device import mx, nn, tree_flatten

BLOCK = 32_000_000  # weights that are quantised at once: 64 MB in half precision
ROOM = 2 * GB  # left free on the disk beside a base that is kept
_BESIDES = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")  # of a model directory, beside its weights
_OF_THE_WEIGHTS = ("config.json", "model.safetensors.index.json", MANIFEST)

Warn = Callable[[str], None]


def load_weights(spec: ModelSpec, dtype: str, warn: Warn, *, lowest: int | None = None) -> nn.Module:
    """Load a base in `dtype`, quantised where `spec` says so, and every weight in memory.

    What was quantised is kept in the cache by the content of the base, and read from there the next time.

    Args:
        spec: the base.
        dtype: of scales, norms and whatever is not quantised, `float32` say.
        warn: is told when what was quantised could not be kept.
        lowest: of how many layers, the lowest, the weights are wanted; others stay where they are. None: of all.

    Raises:
        ModelError: mlx-lm does not know the architecture, or the weights do not fit it.
    """
    if spec.quantize_bits is None:
        return _read(spec, spec.path, dtype, lowest)
    kept = _kept_directory(spec, dtype)
    with locked(kept):  # whoever comes second waits, and reads
        if manifest_problem(kept, contents=False) is not None:
            model, config = _quantised(spec, dtype)
            _keep(model, config, spec, kept, warn)
            return model
    return _read(spec, kept, dtype, lowest)


@contextlib.contextmanager
def _explained(spec: ModelSpec) -> Iterator[None]:
    """Whatever mlx-lm makes of a configuration that does not fit its weights is the model's fault."""
    try:
        yield
    except Exception as error:  # a model's definition may divide by a size, index by it, …
        if failure := device_failure(error):
            raise failure from None
        kind = spec.config["model_type"]
        raise ModelError(f"{spec.path}: cannot be loaded as a {kind} model: {brief(error)}") from None


def loaded_directory(spec: ModelSpec, dtype: str) -> Path:
    """Where mlx-lm finds the weights that `load_weights` gave: that of the base, if what was quantised is not kept."""
    if spec.quantize_bits is None:
        return spec.path
    kept = _kept_directory(spec, dtype)
    return spec.path if manifest_problem(kept, contents=False) else kept


def _kept_directory(spec: ModelSpec, dtype: str) -> Path:
    """By content, bits, group size and dtype."""
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
    """The model, and its `config.json`."""
    from mlx_lm.utils import load_model, quantize_model

    with _explained(spec):
        model, config = load_model(spec.path, lazy=True)
        own, full = getattr(model, "quant_predicate", None), {}

        def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
            chosen = own(path, module) if own else True
            if chosen:
                full[path] = module.weight
            return chosen

        with contextlib.redirect_stdout(io.StringIO()):  # it prints, and standard output may be JSON
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
    """Lay out an answer without computing it: a setting of a wrong type shows here, and not in the middle of a run."""
    model(mx.array([[0, 1]]))


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)


def _quantise(module: nn.Module, weight: mx.array, dtype: mx.Dtype) -> None:
    """Replace what a quantised layer would compute all at once by the same, block by block."""
    rows = max(1, BLOCK // (weight.size // weight.shape[0]))
    mx.eval(weight)  # else each block would read it from the file anew
    parts = []
    for start in range(0, weight.shape[0], rows):
        block = weight[start : start + rows].astype(dtype)
        parts.append(mx.quantize(block, group_size=module.group_size, bits=module.bits, mode=module.mode))
        mx.eval(parts[-1])
    module.weight, module.scales, module.biases = (mx.concatenate(part) for part in zip(*parts, strict=True))


def _settle(parameters: dict[str, Any]) -> None:
    """Compute parameters, and give back what computing them took."""
    mx.eval(parameters)
    mx.clear_cache()


def _keep(model: nn.Module, config: dict[str, Any], spec: ModelSpec, directory: Path, warn: Warn) -> None:
    """Write a quantised model for the next time, if there is room."""
    from mlx_lm.utils import save_config, save_model

    for stale in directory.parent.glob(f".{directory.name}.*.tmp"):  # of one that was killed: gigabytes
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
    except (OSError, RuntimeError) as error:  # safetensors' writer raises the second
        message = f"the quantised base is not kept in {directory.parent}, and will be quantised anew next time: {error}"
        warn(f"{message.removesuffix('.')}. QLORA_CACHE names another place for it.")


def copy_companions(source: Path, directory: Path) -> None:
    """Copy what lies beside a model's weights and does not describe them: tokeniser, template, licence."""
    for path in {path for pattern in _BESIDES for path in source.glob(pattern)}:
        if path.is_file() and path.name not in _OF_THE_WEIGHTS and not left_by_file_manager(path.name):
            shutil.copyfile(path, directory / path.name)
