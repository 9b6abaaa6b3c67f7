"""Adapter files that carry a hash of their own numbers, so that a damaged file is recognised wherever it is.

Safetensors has no checksum of its data: most files with a wrong byte load without an error. The checksum here is an
entry in the file's metadata, which other programs ignore; files of other programs have none. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import ModelError

CHECKSUM = "sha256"


def checksum(tensors: Iterable[tuple[str, Sequence[int], bytes]]) -> str:
    """Return an order-independent SHA-256 of tensor names, shapes and values."""
    digest = hashlib.sha256()
    for name, shape, content in sorted(tensors):
        digest.update(f"{name} {tuple(shape)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def refuse_damage(file: Path) -> None:
    """Compare a safetensors file with the checksum in its metadata, if it has one.

    Raises:
        ModelError: it is missing, not what was saved, or not such a file.
        OSError: it cannot be read.
    """
    try:
        content = memoryview(file.read_bytes())
        (length,) = struct.unpack("<Q", content[:8])
        entries, data = json.loads(bytes(content[8 : 8 + length])), content[8 + length :]
        expected = (entries.pop("__metadata__", None) or {}).get(CHECKSUM)
        spans = {name: (entry["shape"], slice(*entry["data_offsets"])) for name, entry in entries.items()}
        found = checksum((name, shape, bytes(data[span])) for name, (shape, span) in spans.items())
    except FileNotFoundError:
        raise ModelError(f"{file}: is missing.") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ModelError(f"{file}: not a safetensors file: {error}") from None
    if expected not in (None, found):
        raise ModelError(
            f"{file}: is damaged: its numbers are not those that were saved (SHA-256 {found[:12]}, wanted "
            f"{expected[:12]}). Put it back from a copy; a run has others in best/, final/ and export/adapter/."
        )
