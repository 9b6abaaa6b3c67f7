"""The numbers of a safetensors file, in numpy. Knows nothing of models."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from ..errors import ModelError
from .safetensors_headers import LONGEST, tensor_headers
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
    headers = tensor_headers(file, longest)
    found = {}
    with explained(file, problem="cannot be read"), file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        places = json.loads(stream.read(length))
        for name, (dtype, shape, size) in headers.items():
            if dtype not in _TYPES:
                raise ModelError(f"{file}: {name} holds {dtype}; wanted floating-point numbers.")
            stream.seek(8 + length + places[name]["data_offsets"][0])
            values = np.frombuffer(stream.read(size), _TYPES[dtype])
            if dtype == "BF16":  # the upper half of a float32
                values = (values.astype("<u4") << 16).view("<f4")
            found[name] = values.reshape(shape)
    return found
