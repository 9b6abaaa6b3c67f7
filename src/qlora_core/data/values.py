"""Values of a row: as texts, as lists and objects that a table holds as text, and in words. Knows no columns."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from .records import Written

_LITERAL = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_BESIDE = re.compile(rf"({_LITERAL})(?=\s+['\"])")
_ITEMS_BESIDE = re.compile(rf"{_LITERAL}|\}}(?=\s+\{{)")
_ARRAY = re.compile(rf"{_LITERAL}|\barray\(|,\s*dtype=\w+\)|\)")
_LONGEST_LITERAL = 1 << 20  # characters


def as_text(value: Any) -> str | None:
    """Return a text, or a number or truth value as the file writes it; None for everything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Written):
        return value.text
    return str(value) if isinstance(value, int | float) or type(value).__name__ == "Decimal" else None


def whole_number(text: str) -> int | None:
    """Return the whole number that a text writes, also as "1.0"; None for any other text."""
    found = re.fullmatch(r"\s*(-?\d{1,9})(?:\.0+)?\s*", text)
    return int(found[1]) if found else None


def unpacked(value: Any) -> Any:
    """Return the list or object that a text writes, in JSON or as Python prints it; else the value itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            found = _printed(value)
            return value if found is None else found
    return value


def _printed(text: str) -> Any:
    """Return the list or object that Python or NumPy printed into a cell, as pandas writes tables; None if none."""
    if len(text) > _LONGEST_LITERAL or not re.match(r"\s*[\[{]\s*(?:[\[{'\"\]}]|\Z)", text):
        return None
    text = _ARRAY.sub(lambda found: found[0] if found[0][0] in "'\"" else "", text)
    text = _BESIDE.sub(r"\1,", text)  # NumPy puts no commas between the items of a list
    text = _ITEMS_BESIDE.sub(lambda found: "}," if found[0] == "}" else found[0], text)
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def kind(value: Any) -> str:
    """Return the kind of a JSON value in words."""
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        Written: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
