"""Safetensors files by their headers: names, shapes and sizes; no number is read. Knows nothing of models."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from .errors import ModelError

LONGEST = 100_000_000  # bytes of a header

Tensor = tuple[str, list[int], int]
"""Data type, shape and size in bytes."""


def weight_files(path: Path) -> list[Path]:
    """The weight files of a model directory.

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


def tensor_headers(file: Path) -> dict[str, Tensor]:
    """`{name: (dtype, shape, bytes)}` of a safetensors file, from its header alone.

    Raises:
        ModelError: it is not one, or is cut off.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > LONGEST:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        wanted = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        for name, entry in header.items():
            if not all(isinstance(dimension, int) and dimension >= 0 for dimension in entry["shape"]):
                raise ValueError(f"{name} has the shape {entry['shape']}")
        tensors = {
            name: (entry["dtype"], entry["shape"], entry["data_offsets"][1] - entry["data_offsets"][0])
            for name, entry in header.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ModelError(f"{file}: not a safetensors file: {error}") from None
    if file.stat().st_size < wanted:
        raise ModelError(f"{file}: is cut off: {wanted} bytes wanted, {file.stat().st_size} found. Fetch it again.")
    return tensors
