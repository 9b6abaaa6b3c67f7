"""LoRA adapters as a GGUF file, for `llama-server --lora` and Ollama's `ADAPTER`, and back again.

A and B lie the other way round than in mlx-lm's files, and the rows of B in llama.cpp's order. The format is that of
llama.cpp's `convert_lora_to_gguf.py`. Knows adapter files and the base's shapes; computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGUFType, GGUFWriter, Keys

from ..errors import ModelError, shown
from ..files.storage import replacing
from ..files.untrusted_json import is_number
from ..models.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    MOST_RANK,
    MOST_SCALE,
    adapter_headers,
    adapter_settings,
)
from .blocks import LARGEST_F16
from .families import FamilyModel, module_name, recognise_model
from .model import About, add_origin, write_padded
from .reading import GgufFile
from .weights import StoredWeights, map_tensors, to_float32

Precision = Literal["f16", "f32"]

_PARTS = ("lora_a", "lora_b")


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters in mlx-lm's form.

    Attributes:
        tensors: `{name: float32}`; A has shape (inputs, rank), B (rank, outputs).
        rank: of all of them.
        scale: by which their product is multiplied.
    """

    tensors: dict[str, np.ndarray]
    rank: int
    scale: float


def write_adapters(
    adapters: Path, base: Path, out: Path, precision: Precision = "f16", about: About | None = None
) -> int:
    """Write LoRA adapters as a GGUF file; return its bytes.

    Args:
        adapters: directory with `adapters.safetensors` and `adapter_config.json` as mlx-lm stores them.
        base: directory of the model that they belong to.
        out: the file to write; it appears when it is complete.
        precision: of the numbers.
        about: what the file says of itself; only name, base, repository and licence are used.

    Raises:
        ModelError: the base's family cannot be written, the adapters do not fit it, or are not LoRA.
        StorageError: the file cannot be written; `out` is as it was.
    """
    model = recognise_model(base)
    settings = adapter_settings(adapters)
    rank, scale = settings["lora_parameters"]["rank"], settings["lora_parameters"]["scale"]
    path = adapters / ADAPTER_FILE
    if (kind := settings.get("fine_tune_type", "lora")) != "lora":
        raise ModelError(
            f"{adapters / ADAPTER_CONFIG}: {kind} adapters cannot be used beside a base in llama.cpp, which knows LoRA "
            "only. Merge them into the base (a fused model) and write that as GGUF."
        )
    tensors = _in_their_order(path, model, rank)
    dtype = np.dtype(np.float16 if precision == "f16" else np.float32)
    about = about or About()
    with replacing(out, wanted=sum(value.size for value in tensors.values()) * dtype.itemsize) as temporary:
        writer = GGUFWriter(temporary, model.family.architecture)
        try:
            writer.add_type(GGUFType.ADAPTER)
            if about.name:
                writer.add_name(about.name)
            add_origin(writer, about)
            writer.add_string(Keys.Adapter.TYPE, "lora")
            writer.add_float32(Keys.Adapter.LORA_ALPHA, scale * rank)  # llama.cpp divides it by the rank
            for name, value in tensors.items():
                writer.add_tensor_info(name, value.shape, dtype, value.size * dtype.itemsize)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            (file,) = writer.fout
            file.write(bytes(-file.tell() % writer.data_alignment))
            for value in tensors.values():
                write_padded(file, [np.ascontiguousarray(value, dtype)])
        finally:
            writer.close()
        return temporary.stat().st_size


def _in_their_order(path: Path, model: FamilyModel, rank: int) -> dict[str, np.ndarray]:
    """Return `{name: numbers}` as GGUF has them: A as (rank, inputs), B as (outputs, rank).

    Raises:
        ModelError: something does not fit the base.
    """
    adapter_headers(path)
    shapes = _shapes(model)
    targets = model.names()
    made: dict[str, np.ndarray] = {}
    for name, stored in sorted(map_tensors(path)):
        module, _, leaf = module_name(name).rpartition(".")
        if leaf not in _PARTS or module not in shapes:
            raise ModelError(f"{path}: {name} is not a LoRA adapter of a linear layer of {model.path.name}.")
        _refuse_misfit(path, name, stored.shape, leaf, shapes[module], rank)
        values = to_float32(stored).T
        if not np.isfinite(values).all() or np.abs(values).max(initial=0) > LARGEST_F16:
            raise ModelError(f"{path}: {name} has numbers that are not finite, or too large.")
        order = model.order(module, shapes[module][0]) if leaf == "lora_b" else None
        made[f"{targets[module]}.weight.{leaf}"] = values if order is None else values[order]
    if not made:
        raise ModelError(f"{path}: holds no adapters.")
    _refuse_halves(path, made)
    return made


def _shapes(model: FamilyModel) -> dict[str, tuple[int, ...]]:
    """Return `{module: (outputs, inputs)}` of the base's linear layers; the embedding is none."""
    names = model.names().keys() - {"model.embed_tokens"}
    found = {module_name(weight.name): weight.shape for weight in StoredWeights(model.path, model.config)}
    linear = {name.rpartition(".")[0]: shape for name, shape in found.items() if len(shape) == 2}
    return {name: shape for name, shape in linear.items() if name in names}


def _refuse_misfit(path: Path, name: str, found: tuple[int, ...], leaf: str, shape: tuple[int, ...], rank: int) -> None:
    outputs, inputs = shape
    wanted = (inputs, rank) if leaf == "lora_a" else (rank, outputs)
    if tuple(found) != wanted:
        raise ModelError(f"{path}: {name} has shape {tuple(found)}, wanted {wanted} for this base.")


def _refuse_halves(path: Path, made: Mapping[str, np.ndarray]) -> None:
    for name in made:
        stem, _, leaf = name.rpartition(".")
        other = f"{stem}.{'lora_b' if leaf == 'lora_a' else 'lora_a'}"
        if other not in made:
            raise ModelError(f"{path}: {other} is missing.")


# Back again -----------------------------------------------------------------------------------------------------


def read_adapters(path: Path, base: Path) -> Adapters:
    """Read a GGUF LoRA into mlx-lm's names and orientation.

    Numbers stored as float32 come back as they were, to the bit. The file is not trusted: names and shapes are checked
    against the base before any number is read.

    Args:
        path: the file.
        base: directory of the model that the adapters belong to.

    Raises:
        ModelError: it is no GGUF LoRA, is damaged, or does not fit the base.
    """
    model = recognise_model(base)
    file = GgufFile(path)
    alpha = file.metadata.get(Keys.Adapter.LORA_ALPHA)
    kind = (file.metadata.get("general.type"), file.metadata.get(Keys.Adapter.TYPE))
    if not all(isinstance(each, str) for each in kind) or kind != ("adapter", "lora"):
        raise ModelError(f"{path}: is not a LoRA adapter; its general.type and adapter.type are {shown(kind)}.")
    found = file.metadata.get("general.architecture")
    if not isinstance(found, str) or found != model.family.architecture:
        raise ModelError(f"{path}: is for {shown(found)}, the base is {model.family.architecture}.")
    if not is_number(alpha) or abs(alpha) > MOST_SCALE * MOST_RANK:
        raise ModelError(f"{path}: {Keys.Adapter.LORA_ALPHA} is {shown(alpha)}, wanted a number.")
    modules = {target: module for module, target in model.names().items()}
    shapes = _shapes(model)
    ranks = {info.shape[0] for name, info in file.tensors.items() if name.endswith(".lora_a")}
    if len(ranks) != 1 or not 1 <= (rank := ranks.pop()) <= MOST_RANK:
        raise ModelError(f"{path}: wanted one rank from 1 to {MOST_RANK} for all adapters.")
    prefix = _prefix(model)
    tensors = {}
    for name, info in file.tensors.items():
        target, _, leaf = name.rpartition(".weight.")
        module = modules.get(target)
        if leaf not in _PARTS or module not in shapes:
            raise ModelError(f"{path}: {shown(name)} is not a LoRA adapter of a linear layer of {model.path.name}.")
        _refuse_misfit(path, name, info.shape[::-1], leaf, shapes[module], rank)
        tensors[name] = (module, leaf)
    _refuse_halves(path, dict.fromkeys(tensors))
    made = {}
    for name, (module, leaf) in tensors.items():
        values = file.values(name)
        order = model.order(module, shapes[module][0]) if leaf == "lora_b" else None
        if order is not None:
            values = values[np.argsort(order)]
        made[f"{prefix}{module}.{leaf}"] = np.ascontiguousarray(values.T)
    if bad := next((name for name, value in made.items() if not np.isfinite(value).all()), None):
        raise ModelError(f"{path}: {bad} has numbers that are not finite.")
    # llama.cpp takes an alpha of 0 for none: a scale of 1
    return Adapters(made, rank, float(str(np.float32(alpha))) / rank if alpha else 1.0)


def _prefix(model: FamilyModel) -> str:
    """Return what the base has before the names of its text model, as mlx-lm loads it."""
    names = (weight.name for weight in StoredWeights(model.path, model.config))
    return "language_model." if any(name.startswith("language_model.") for name in names) else ""
