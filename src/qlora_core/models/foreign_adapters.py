"""Adapters as other programs write them, read into mlx-lm's names and orientation.

Everything is untrusted until it is read: headers first, nothing pickled, every name and shape compared with the base.
Knows files and shapes; nothing of runs or mlx.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError, shown
from ..files.safetensors_values import read_floats
from ..files.untrusted_json import is_number, is_whole, read_object
from .adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    LONGEST_CONFIG,
    LONGEST_HEADER,
    MOST_RANK,
    MOST_SCALE,
    adapter_settings,
    refuse_misfits,
)
from .base_models import ModelSpec
from .target_modules import choose_projections, place, within_model

PEFT_FILE = "adapter_model.safetensors"
_PEFT_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<leaf>lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_LEAVES = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "m"}
_NOT_KNOWN = {
    "modules_to_save": "whole modules that were trained beside the adapters",
    "trainable_token_indices": "trained rows of the embedding",
    "layer_replication": "repeated layers",
    "lora_bias": "biases of adapters",
    "target_parameters": "adapters of parameters that are no linear layers",
    "megatron_config": "layers split over several devices",
}
"""Settings of PEFT that change the model in a way that adapters of mlx-lm cannot express."""


@dataclass(frozen=True)
class ForeignAdapters:
    """Adapters of another program.

    Attributes:
        path: the file of the tensors.
        form: `PEFT`, `mlx-lm` or `GGUF`.
        kind: `lora` or `dora`.
        scale: factor of the update B A.
        dropout: on the adapters' input during training.
        base: the base that they name; may be empty.
        tensors: `{name: numbers}` in mlx-lm's format: A `lora_a` (inputs, rank), B `lora_b` (rank, outputs), `m`
            (outputs,).
        scales: `{module: factor}` of modules that differ from `scale`.
    """

    path: Path
    form: str
    kind: str
    scale: float
    dropout: float
    base: str
    tensors: Mapping[str, np.ndarray]
    scales: Mapping[str, float]

    @property
    def rank(self) -> int:
        """Return the largest rank of a module."""
        return max(value.shape[0] for name, value in self.tensors.items() if name.endswith(".lora_b"))


def read_foreign(path: Path, read_gguf: Callable[[Path], ForeignAdapters]) -> ForeignAdapters:
    """Read adapters of PEFT, mlx-lm or llama.cpp.

    Args:
        path: a directory of PEFT's or mlx-lm's, or a file in one, or a GGUF file.
        read_gguf: reads the last.

    Raises:
        ModelError: there are none, or they hold what mlx-lm's adapters cannot express.
    """
    path = path.expanduser()
    if path.suffix == ".gguf":
        return read_gguf(path)
    directory = path if path.is_dir() else path.parent
    if (directory / PEFT_FILE).is_file() and path.name != ADAPTER_FILE:
        return _read_peft(directory)
    if (directory / ADAPTER_FILE).is_file():
        return _read_mlx_lm(directory)
    if files := sorted(directory.glob("*.gguf")) if path.is_dir() else []:
        return read_gguf(files[0])
    if pickled := sorted(directory.glob("adapter_model.bin")):
        raise ModelError(
            f"{pickled[0]}: is pickled, can run code, and is not opened. Have PEFT write it anew: "
            "model.save_pretrained(DIRECTORY, safe_serialization=True)."
        )
    raise ModelError(f"{path}: holds no adapters. Wanted {PEFT_FILE} (PEFT), {ADAPTER_FILE} (mlx-lm) or a .gguf file.")


def _read_mlx_lm(directory: Path) -> ForeignAdapters:
    settings = adapter_settings(directory)
    kind = settings.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ModelError(f"{directory / ADAPTER_CONFIG}: fine_tune_type is {shown(kind)}; wanted lora or dora.")
    lora, file = settings["lora_parameters"], directory / ADAPTER_FILE
    tensors = read_floats(file, LONGEST_HEADER)
    _refuse_misshapen(file, tensors)
    return ForeignAdapters(
        file, "mlx-lm", kind, float(lora["scale"]), float(lora["dropout"]), settings.get("model") or "", tensors, {}
    )


def _read_peft(directory: Path) -> ForeignAdapters:
    config, file = directory / ADAPTER_CONFIG, directory / PEFT_FILE
    try:
        settings = read_object(config, LONGEST_CONFIG)
        _refuse_inexpressible(settings)
    except (OSError, ValueError) as error:
        raise ModelError(f"{config}: not the settings of adapters that can be read: {error}") from None
    tensors = {}
    for name, value in read_floats(file, LONGEST_HEADER).items():
        found = _PEFT_TENSOR.fullmatch(name)
        if not found:
            raise ModelError(f"{file}: {shown(name)} is no part of a LoRA or DoRA adapter of a linear layer.")
        tensors[f"{found['module']}.{_LEAVES[found['leaf']]}"] = np.ascontiguousarray(value.T)
    _refuse_misshapen(file, tensors)
    root = settings.get("use_rslora")
    alphas = settings.get("alpha_pattern") or {}

    def scale(rank: float, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if root else rank)

    usual = scale(settings["r"], settings["lora_alpha"])
    modules = {name.rpartition(".")[0] for name in tensors}
    each = {  # the rank is the matrices' own, whatever `rank_pattern` says
        module: scale(len(tensors[f"{module}.lora_b"]), _of_pattern(alphas, module, settings["lora_alpha"]))
        for module in modules
    }
    others = {module: value for module, value in each.items() if value != usual}
    kind, base = "dora" if settings.get("use_dora") else "lora", settings.get("base_model_name_or_path") or ""
    return ForeignAdapters(file, "PEFT", kind, usual, float(settings.get("lora_dropout") or 0), base, tensors, others)


def _of_pattern(pattern: Mapping[str, float], module: str, usual: float) -> float:
    """Return the value for a module as PEFT finds it: of the first key that is its name or the end of it."""
    for key, value in pattern.items():
        plain = key.removeprefix("^").removesuffix("$")
        if module == plain or (not key.startswith("^") and module.endswith(f".{plain}")):
            return value
    return usual


def _refuse_inexpressible(settings: dict[str, Any]) -> None:
    """Refuse settings of PEFT that are impossible, or that mlx-lm's adapters cannot express."""
    patterns = {name: settings.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    fit = {
        "peft_type": settings.get("peft_type") == "LORA",
        "r": is_whole(settings.get("r"), 1, MOST_RANK),
        "lora_alpha": is_number(settings.get("lora_alpha")) and abs(settings["lora_alpha"]) <= MOST_SCALE,
        "lora_dropout": is_number(settings.get("lora_dropout") or 0) and 0 <= (settings.get("lora_dropout") or 0) < 1,
        "bias": settings.get("bias", "none") in (None, "none"),
        "base_model_name_or_path": isinstance(settings.get("base_model_name_or_path") or "", str),
        **{
            name: isinstance(value, dict) and all(is_number(each) and 0 < each <= MOST_SCALE for each in value.values())
            for name, value in patterns.items()
        },
    }
    if wrong := [name for name, fits in fit.items() if not fits]:
        raise ValueError(f"{wrong[0]} is {shown(settings.get(wrong[0]))}")
    for key in patterns["alpha_pattern"]:
        if not re.fullmatch(r"\^?[\w.]+\$?", key):
            raise ValueError(f"alpha_pattern has the expression {shown(key)}; only names of modules are taken over")
    for name, words in _NOT_KNOWN.items():
        if settings.get(name):
            raise ValueError(f"{name} stands for {words}, which cannot be taken over")


def _refuse_misshapen(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse tensors that do not make pairs of matrices of one rank."""
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        if leaf not in _LEAVES.values() or place(name) is None:
            raise ModelError(f"{file}: {shown(name)} is no adapter of a layer.")
        a, b = (tensors.get(f"{module}.{each}") for each in ("lora_a", "lora_b"))
        if a is None or b is None:
            raise ModelError(f"{file}: {module} has only one of its two matrices.")
        if not (a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] and 0 < b.shape[0] <= MOST_RANK):
            raise ModelError(f"{file}: the matrices of {module} have shapes {a.shape} and {b.shape}.")
    if not tensors:
        raise ModelError(f"{file}: holds no tensors.")


def fit_adapters(
    found: ForeignAdapters, spec: ModelSpec, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Return adapters with the names, shapes and scale that a run of a base expects.

    A module that has none, or a smaller rank, is filled up with zeros, and another scale is multiplied into B: neither
    changes what the adapters do. All numbers become float32, and else stay as they are.

    Args:
        found: the adapters.
        spec: the base.
        wanted: `{name: shape}` as `ModelSpec.adapter_shapes` gives it for the run's settings.

    Raises:
        ModelError: they do not belong to this base.
    """
    names = {within_model(name): name for name in wanted}
    tensors: dict[str, np.ndarray] = {}
    for name, value in found.tensors.items():
        ours = names.get(within_model(name), name)
        module, _, leaf = name.rpartition(".")
        if leaf == "lora_b" and module in found.scales:
            value = value * np.float32(found.scales[module] / found.scale)
        tensors[ours] = _filled_up(value.astype(np.float32), wanted.get(ours, value.shape), leaf)
    if found.kind == "lora":
        for name in wanted.keys() - tensors.keys():
            tensors[name] = np.zeros(wanted[name], np.float32)
    shapes = {name: value.shape for name, value in tensors.items()}
    refuse_misfits(found.path, shapes, dict(wanted))
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise ModelError(f"{found.path}: {name} holds numbers that are not finite.")
    return {name: tensors[name] for name in sorted(tensors)}


def _filled_up(value: np.ndarray, shape: tuple[int, ...], leaf: str) -> np.ndarray:
    """Return a matrix with zeros up to the rank of `shape`, if it is only its rank that is smaller."""
    axis = {"lora_a": 1, "lora_b": 0}.get(leaf)
    if axis is None or value.ndim != len(shape) or value.shape[axis] >= shape[axis]:
        return value
    missing = [(0, shape[axis] - value.shape[axis]) if each == axis else (0, 0) for each in range(value.ndim)]
    return np.pad(value, missing)


def settings_for(found: ForeignAdapters, spec: ModelSpec) -> dict[str, Any]:
    """Return the settings of a run that has such adapters: kind, rank, alpha, dropout, layers and projections.

    Raises:
        ModelError: they are on no layers of this base.
    """
    modules = {within_model(name.rpartition(".")[0]) for name in found.tensors}
    places = [at for module in modules if (at := place(module))]
    first = min(layer for layer, _ in places)
    if first >= spec.num_layers:
        raise ModelError(f"{found.path}: has adapters on layer {first}; {spec.name} has {spec.num_layers} layers.")
    names = {inner.rpartition(".")[2] for _, inner in places}
    layers = range(first, spec.num_layers)
    every = {path.rpartition(".")[2] for path in choose_projections(spec.shapes, layers, "all")}
    return {
        "adapter": found.kind,
        "rank": found.rank,
        "alpha": found.scale * found.rank,
        "rslora": False,
        "dropout": found.dropout,
        "num_layers": spec.num_layers - first if first else 0,
        "projections": "all" if names == every else ",".join(sorted(names)),
    }
