"""JSON files from untrusted sources, read within limits. Knows nothing of what they mean."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SETTINGS_BYTES = 4_000_000  # longest file of settings that is read
TABLE_BYTES = 100_000_000  # longest file that also holds a vocabulary, or a line for each tensor


def read_text(path: Path, longest: int = SETTINGS_BYTES, errors: str = "strict") -> str:
    """Read the text of a file.

    Raises:
        OSError: it is not there, or may not be read.
        ValueError: it is no plain file, longer than that, or not UTF-8.
    """
    size = path.stat().st_size
    if not path.is_file():  # reading a named pipe would wait for ever
        raise ValueError("not a regular file")
    if size > longest:
        raise ValueError(f"{size} bytes; at most {longest} are read")
    return path.read_text(encoding="utf-8", errors=errors)


def read_object(path: Path, longest: int = SETTINGS_BYTES) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        OSError: it is not there, or may not be read.
        ValueError: it holds something else, or more than `longest` bytes.
    """
    try:
        value = json.loads(read_text(path, longest))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"wanted an object, found {_kind(value)}")
    return value


def is_whole(value: Any, least: int, most: int) -> bool:
    """Return whether a value is a whole number from `least` to `most`; booleans are not."""
    return type(value) is int and least <= value <= most


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number that is not too large to compute with."""
    return is_whole(value, -(2**53), 2**53) or (type(value) is float and math.isfinite(value))


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number or a truth value")
