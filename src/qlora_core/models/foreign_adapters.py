"""Adapters as other programs write them, read into mlx-lm's names and orientation.

Everything is untrusted until it is read: headers first, nothing pickled, every name and shape compared with the base.
Knows files and shapes; nothing of runs or mlx.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
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
MOST_ALPHA = 4096.0  # the setting's own limit
_PEFT_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<leaf>lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_LEAVES = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "m"}
_UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora",
    "use_rslora",
}  # fmt: skip
"""Settings of PEFT that are taken over, or change nothing about trained adapters."""
_NOT_EXPRESSED = {
    "modules_to_save": "whole modules that were trained beside the adapters",
    "trainable_token_indices": "trained rows of the embedding",
    "target_parameters": "adapters of parameters that are no linear layers",
    "lora_bias": "biases of adapters",
}
"""Effects of some settings of PEFT, which adapters of mlx-lm cannot have."""
_KEEP_THE_BASE = (None, True, False, "gaussian", "orthogonal", "eva")
"""Ways to draw PEFT's adapters that leave the base's own weights as they are."""
_PREFIXES = ("", "model.", "language_model.model.", "model.language_model.", "language_model.", "transformer.")
"""What may stand before a layer's name: not the parts of a model that see or hear."""


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
    if not path.exists():
        raise ModelError(f"{path}: there is no such file or directory.")
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return read_gguf(path)
        if path.suffix == ".safetensors":
            return read_peft(path) if "peft_type" in _settings_beside(path) else _read_mlx_lm(path)
    for name, read in ((PEFT_FILE, read_peft), (ADAPTER_FILE, _read_mlx_lm)):
        if (path / name).is_file():
            return read(path / name)
    directory, files = path, sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(files) > 1:
        raise ModelError(f"{path}: holds several GGUF files ({', '.join(file.name for file in files[:5])}). Name one.")
    if files:
        return read_gguf(files[0])
    if pickled := sorted(directory.glob("adapter_model.bin")):
        raise ModelError(
            f"{pickled[0]}: is pickled, can run code, and is not opened. Have PEFT write it anew: "
            "model.save_pretrained(DIRECTORY, safe_serialization=True)."
        )
    raise ModelError(f"{path}: holds no adapters. Wanted {PEFT_FILE} (PEFT), {ADAPTER_FILE} (mlx-lm) or a .gguf file.")


def _settings_beside(file: Path) -> dict[str, Any]:
    """Return the settings beside a file of adapters; empty if none can be read."""
    try:
        return read_object(file.parent / ADAPTER_CONFIG, LONGEST_CONFIG)
    except (OSError, ValueError):
        return {}


def _read_mlx_lm(file: Path) -> ForeignAdapters:
    directory = file.parent
    settings = adapter_settings(directory)
    kind = settings.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ModelError(f"{directory / ADAPTER_CONFIG}: fine_tune_type is {shown(kind)}; wanted lora or dora.")
    lora = settings["lora_parameters"]
    tensors = read_floats(file, LONGEST_HEADER)
    _refuse_misshapen(file, tensors)
    return ForeignAdapters(
        file, "mlx-lm", kind, float(lora["scale"]), float(lora["dropout"]), settings.get("model") or "", tensors, {}
    )


def read_peft(file: Path) -> ForeignAdapters:
    """Read adapters of PEFT, whose settings lie beside them.

    Raises:
        ModelError: they cannot be read, or hold what mlx-lm's adapters cannot express.
    """
    config = file.parent / ADAPTER_CONFIG
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
        ours = f"{found['module']}.{_LEAVES[found['leaf']]}"
        if ours in tensors:
            raise ModelError(f"{file}: has {found['module']} twice.")
        tensors[ours] = np.ascontiguousarray(value.T)
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
    if settings.get("init_lora_weights") not in _KEEP_THE_BASE:
        way = shown(settings["init_lora_weights"])
        raise ValueError(f"init_lora_weights is {way}, which changed the base's own weights, too")
    for name, value in settings.items():
        if value and name not in _UNDERSTOOD:
            words = _NOT_EXPRESSED.get(name, "something that is not known here and may change the model")
            raise ValueError(f"{shown(name)} stands for {words}, which cannot be taken over")


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


def within_limits(found: ForeignAdapters) -> ForeignAdapters:
    """Return adapters whose scale a run can have: where theirs is another one, it is multiplied into B.

    Raises:
        ModelError: their scale is 0.
    """
    if not found.scale:
        raise ModelError(f"{found.path}: their scale is 0, so that they do nothing.")
    if 0 < found.scale * found.rank <= MOST_ALPHA:
        return found
    factor = np.float32(found.scale)
    tensors = {n: value * factor if n.endswith(".lora_b") else value for n, value in found.tensors.items()}
    return replace(
        found, scale=1.0, tensors=tensors, scales={m: each / found.scale for m, each in found.scales.items()}
    )


def fit_adapters(
    found: ForeignAdapters, spec: ModelSpec, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Return adapters with the names, shapes and scale that a run of a base expects.

    A module that has none, or a smaller rank, is filled up: B with zeros, so that nothing changes, and A with drawn
    numbers, so that it can learn. Another scale is multiplied into B. All numbers become float32, and else stay as
    they are.

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
        inner = within_model(name)
        ours = names.get(inner, name)
        if name.removesuffix(inner) not in _PREFIXES and name != ours:
            raise ModelError(f"{found.path}: {shown(name)} belongs to a part of the model that is not trained here.")
        if ours in tensors:
            raise ModelError(f"{found.path}: has {shown(ours)} under two names.")
        module, _, leaf = name.rpartition(".")
        if leaf == "lora_b" and module in found.scales:
            value = value * np.float32(found.scales[module] / found.scale)
        tensors[ours] = _filled_up(value.astype(np.float32), wanted.get(ours, value.shape), leaf)
    if found.kind == "lora":
        for name in wanted.keys() - tensors.keys():
            leaf = name.rpartition(".")[2]
            none = (wanted[name][0], 0) if leaf == "lora_a" else (0, wanted[name][1])
            tensors[name] = _filled_up(np.zeros(none, np.float32), wanted[name], leaf)
    else:
        _refuse_gaps(found, _modules(tensors), _modules(wanted))
    shapes = {name: value.shape for name, value in tensors.items()}
    refuse_misfits(found.path, shapes, dict(wanted))
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise ModelError(f"{found.path}: {name} holds numbers that are not finite.")
    return {name: tensors[name] for name in sorted(tensors)}


def _modules(names: Iterable[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def _refuse_gaps(found: ForeignAdapters, modules: set[str], wanted: set[str]) -> None:
    """Refuse DoRA that leaves out modules, since what is missing cannot be filled up without the base's numbers.

    Raises:
        ModelError: it does.
    """
    if missing := sorted(wanted - modules):
        raise ModelError(
            f"{found.path}: has DoRA on some layers only: none on {missing[0]}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}. A run has DoRA on the same matrices of "
            "every layer, from the lowest that has any to the last. LoRA may leave out some: train it as that, or on "
            "all of these layers."
        )


def _filled_up(value: np.ndarray, shape: tuple[int, ...], leaf: str) -> np.ndarray:
    """Return a matrix with more ranks, up to those of `shape`, if only these are missing: drawn in A, zeros in B."""
    axis = {"lora_a": 1, "lora_b": 0}.get(leaf)
    if axis is None or value.ndim != len(shape) or value.shape[axis] >= shape[axis]:
        return value
    size = [shape[axis] - value.shape[axis] if each == axis else value.shape[each] for each in range(value.ndim)]
    bound = 1 / math.sqrt(max(1, value.shape[0])) if leaf == "lora_a" else 0.0  # as mlx-lm draws A: its rows are inputs
    missing = np.random.default_rng(0).uniform(-bound, bound, size).astype(np.float32)
    return np.concatenate([value, missing], axis)


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
