"""Weights of a model directory, read a few rows at a time. Knows safetensors and MLX's packing; nothing of families.

Files are mapped into memory, not read: the system brings in what is looked at and may drop it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError, shown
from ..files.safetensors_headers import tensor_places, weight_files
from ..files.safetensors_values import widen_bfloat16

_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U32": np.uint32, "U8": np.uint8}
BITS, GROUPS = range(2, 9), (32, 64, 128)


@dataclass(frozen=True)
class Packed:
    """Rows of a matrix that MLX quantised: weight = scale · number + bias, a scale and a bias for each group.

    Attributes:
        numbers: uint8, `(rows, inputs)`.
        scales: float32, `(rows, inputs / group)`.
        biases: the same.
    """

    numbers: np.ndarray
    scales: np.ndarray
    biases: np.ndarray

    def values(self) -> np.ndarray:
        """Return the weights, float32, `(rows, inputs)`."""
        rows, inputs = self.numbers.shape
        groups = self.numbers.reshape(rows, self.scales.shape[1], -1).astype(np.float32)
        return (groups * self.scales[..., None] + self.biases[..., None]).reshape(rows, inputs)


@dataclass(frozen=True)
class Weight:
    """A tensor of the model: a matrix, quantised or not, or a vector.

    Attributes:
        name: its module's, with `.weight` or `.bias`.
        shape: as it is when unpacked.
        bits: bits of a quantised weight, else None.
        group: weights that share a scale.
        stored: the arrays on disk: `weight`, and for a quantised one also `scales` and `biases`.
    """

    name: str
    shape: tuple[int, ...]
    bits: int | None
    group: int
    stored: dict[str, np.ndarray]

    def values(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return some rows, or entries of a vector, as float32."""
        return self.packed(rows).values() if self.bits else to_float32(self.stored["weight"][rows])

    def packed(self, rows: np.ndarray | slice = slice(None)) -> Packed:
        """Return some rows of a quantised matrix, unpacked to a number a byte."""
        scales, biases = (to_float32(self.stored[name][rows]) for name in ("scales", "biases"))
        return Packed(_unpack(self.stored["weight"][rows], self.bits), scales, biases)


class StoredWeights:
    """All weights of a model directory.

    Args:
        directory: in Hugging Face's or MLX's layout, with one safetensors file or several.
        config: its `config.json`.

    Raises:
        ModelError: a file is not what it seems, or is quantised otherwise than MLX's affine way.
    """

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self.directory = directory
        self._quantised = config.get("quantization") or config.get("quantization_config") or {}
        self._arrays: dict[str, np.ndarray] = {}
        for path in weight_files(directory):
            self._arrays |= dict(map_tensors(path))
        if self._quantised and not any(name.endswith(".scales") for name in self._arrays):
            raise ModelError(f"{directory}: is quantised in a way that is not MLX's; wanted weights with `.scales`.")

    def __iter__(self) -> Iterator[Weight]:
        """Yield every tensor."""
        for name, array in self._arrays.items():
            if not name.endswith((".scales", ".biases")):
                yield self._weight(name, array)

    def _weight(self, name: str, array: np.ndarray) -> Weight:
        module = name.rpartition(".")[0]
        parts = {leaf: self._arrays[f"{module}.{leaf}"] for leaf in ("scales", "biases") if f"{module}.{leaf}" in
                 self._arrays}  # fmt: skip
        if not name.endswith(".weight") or not parts:
            return Weight(name, array.shape, None, 0, {"weight": array})
        own = self._quantised.get(module)
        how = {**self._quantised, **(own if isinstance(own, dict) else {})}
        bits, group, mode = how.get("bits"), how.get("group_size"), how.get("mode", "affine")
        if mode != "affine" or bits not in BITS or group not in GROUPS or "biases" not in parts:
            raise ModelError(
                f"{self.directory}: {module} is quantised as {shown(mode)} with {shown(bits)} bits in groups of "
                f"{shown(group)}; wanted affine, 2 to 8 bits, groups of 32, 64 or 128."
            )
        rows, words = array.shape
        inputs = words * 32 // bits
        if array.dtype != np.uint32 or any(part.shape != (rows, inputs // group) for part in parts.values()):
            raise ModelError(
                f"{self.directory}: {module} does not have the shapes of {bits} bits in groups of {group}."
            )
        return Weight(name, (rows, inputs), bits, group, {"weight": array, **parts})


def map_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and arrays of a safetensors file; bfloat16 as uint16."""
    for name, ((dtype, shape, size), begin) in tensor_places(path).items():
        if dtype not in _TYPES:
            raise ModelError(f"{path}: {name} is {dtype}; wanted {', '.join(_TYPES)}.")
        if size == 0:
            yield name, np.zeros(shape, _TYPES[dtype])
            continue
        flat = np.memmap(path, np.uint8, "r", begin, (size,))
        yield name, flat.view(_TYPES[dtype]).reshape(shape)


def to_float32(array: np.ndarray) -> np.ndarray:
    """Return an array as float32; uint16 stands for bfloat16."""
    return widen_bfloat16(array) if array.dtype == np.uint16 else array.astype(np.float32)


def _unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Return the numbers that are packed into words, lowest bits first, one a byte."""
    stream = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return stream
    if bits == 4:
        return np.stack([stream & 15, stream >> 4], -1).reshape(len(words), -1)
    each = np.unpackbits(stream, axis=-1, bitorder="little").reshape(len(words), -1, bits)
    return np.packbits(each, axis=-1, bitorder="little")[..., 0]
