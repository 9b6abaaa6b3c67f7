"""Safetensors files read by their headers: names, shapes and sizes, but no data. Knows nothing of models."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from ..errors import ModelError, StorageError, brief, shown
from .storage import explained
from .untrusted_json import is_whole

LONGEST = 100_000_000  # bytes that a header may have
LARGEST = 2**31 - 1  # largest dimension: MLX counts with 32 bits
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of one number of each data type in the format."""

Tensor = tuple[str, list[int], int]
"""Data type, shape and size in bytes."""


def weight_files(path: Path) -> list[Path]:
    """Return the weight files of a model directory.

    Raises:
        ModelError: there are none, or only pickled ones.
    """
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        pickled = any(path.glob("*.bin"))
        raise ModelError(
            f"{path}: no model*.safetensors"
            + (", only pickled .bin files, which can run code and are not opened." if pickled else ".")
        )
    return files


def tensor_headers(file: Path, longest: int = LONGEST) -> dict[str, Tensor]:
    """Return `{name: (dtype, shape, bytes)}` of a safetensors file, from its header alone; see `tensor_places`."""
    return {name: tensor for name, (tensor, _) in tensor_places(file, longest).items()}


def tensor_places(file: Path, longest: int = LONGEST) -> dict[str, tuple[Tensor, int]]:
    """Return each tensor of a safetensors file and the place in the file of its first byte, from the header alone.

    A file accepted here is safe to pass to a library written in C++: each tensor has a known type and exactly the bytes
    that its shape needs, and together they fill the file without gap or overlap.

    Args:
        file: its path.
        longest: most bytes that its header may have.

    Raises:
        ModelError: it is not one, or is cut off.
        StorageError: the device does not let it be read.
    """
    try:
        if not file.is_file():  # reading a named pipe would wait for ever
            raise ValueError("not a regular file")
        found = file.stat().st_size
        if found < 8:
            raise ValueError(f"only {found} bytes")
        with explained(file, problem="cannot be read"), file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(longest, found):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length), object_pairs_hook=_without_doubles)
        header.pop("__metadata__", None)
        tensors, places = {}, []
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"], end - begin)
            _refuse_misshapen(name, *tensors[name])
            places.append((begin, end))
        data = 8 + length
        wanted = data + _covered(sorted(places))
    except StorageError:  # the device's fault, not the file's
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ModelError(f"{file}: not a safetensors file: {brief(error)}") from None
    if found < wanted:
        raise ModelError(f"{file}: is cut off: {wanted} bytes wanted, {found} found. Fetch it again.")
    if found > wanted:
        raise ModelError(f"{file}: not a safetensors file: {found - wanted} bytes belong to no tensor")
    begins = [data + begin for begin, _ in places]
    return {name: (tensor, begin) for (name, tensor), begin in zip(tensors.items(), begins, strict=True)}


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of the header, and refuse duplicate names: another reader might take the other value."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands there twice")
    return made


def _refuse_misshapen(name: str, dtype: str, shape: list[int], size: int) -> None:
    if dtype not in _BITS:
        raise ValueError(f"{name} has the unknown type {shown(dtype)}")
    if not isinstance(shape, list) or not all(is_whole(dimension, 0, LARGEST) for dimension in shape):
        raise ValueError(f"{name} has the shape {shown(shape)}")
    if type(size) is not int or 8 * size != math.prod(shape) * _BITS[dtype]:
        raise ValueError(f"{name} has {shown(size)} bytes for the shape {shown(shape)} of {dtype}")


def _covered(places: list[tuple[int, int]]) -> int:
    """Return where the last tensor ends, after checking that tensors follow each other without gap or overlap."""
    reached = 0
    for begin, end in places:
        if begin != reached:
            raise ValueError(f"tensors overlap or leave a gap at byte {reached} of the data")
        reached = end
    return reached
