"""The numbers of a safetensors file, in numpy. Knows nothing of models."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import ModelError
from .safetensors_headers import LONGEST, tensor_places
from .storage import explained

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_floats(file: Path, longest: int = LONGEST) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file, bfloat16 as the float32 numbers that they are.

    Args:
        file: its path.
        longest: most bytes that its header may have.

    Raises:
        ModelError: it is not such a file, or holds other numbers than these.
        StorageError: the device does not let it be read.
    """
    places = tensor_places(file, longest)
    found = {}
    with explained(file, problem="cannot be read"), file.open("rb") as stream:
        for name, ((dtype, shape, size), begin) in places.items():
            if dtype not in _TYPES:
                raise ModelError(f"{file}: {name} holds {dtype}; wanted floating-point numbers.")
            stream.seek(begin)
            values = np.frombuffer(stream.read(size), _TYPES[dtype])
            found[name] = (widen_bfloat16(values) if dtype == "BF16" else values).reshape(shape)
    return found


def widen_bfloat16(stored: np.ndarray) -> np.ndarray:
    """Return numbers stored as bfloat16, which are uint16 to numpy, as float32: they are its upper halves."""
    return (stored.astype(np.uint32) << 16).view(np.float32)
