"""Adapter files that carry the hash of their own numbers, so that a damaged one is recognised wherever it lies.

Safetensors has no check of its data: most files with a wrong byte load. A seal is an entry of the file's metadata,
which other programs pass over; files of other programs have none. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import ModelError
from .headers import tensor_headers

SEAL = "sha256"


def seal(tensors: Iterable[tuple[str, Sequence[int], bytes]]) -> str:
    """Hash of names, shapes and numbers, whatever order they come in."""
    digest = hashlib.sha256()
    for name, shape, content in sorted(tensors):
        digest.update(f"{name} {tuple(shape)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def refuse_damage(file: Path) -> None:
    """Compare a safetensors file with its seal, if it has one.

    Raises:
        ModelError: it is not what was saved, or not such a file.
    """
    headers = tensor_headers(file)
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entries = json.loads(stream.read(length))
        expected = (entries.pop("__metadata__", None) or {}).get(SEAL)
        if expected is None:
            return
        data = memoryview(stream.read())
    spans = {name: entry["data_offsets"] for name, entry in entries.items()}
    found = seal((name, shape, bytes(data[slice(*spans[name])])) for name, (_, shape, _) in headers.items())
    if found != expected:
        raise ModelError(
            f"{file}: is damaged: its numbers are not those that were saved (SHA-256 {found[:12]}, wanted "
            f"{expected[:12]}). Put it back from a copy; a run has others in best/, final/ and export/adapter/."
        )
