"""Jupyter notebooks (.ipynb): their texts and their code, without what the code printed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ..records import Block, Document
from .markdown import read_markdown
from .outline import UnreadableError, titled, verbatim_lines


def read_notebook(content: bytes) -> Document:
    """Return the cells in order; code keeps its lines.

    Raises:
        UnreadableError: it is no notebook, or holds no text.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise UnreadableError("is no notebook: not JSON") from None
    cells = value.get("cells") if isinstance(value, dict) else None
    if not isinstance(cells, list):
        raise UnreadableError("is no notebook that is read: it has no cells (format 4 has)")
    blocks: list[Block] = []
    left_out: list[tuple[str, str, str]] = []
    for number, cell in enumerate(cells, 1):
        source = _source(cell)
        kind = cell.get("cell_type") if isinstance(cell, dict) else ""
        if kind == "markdown" and source.strip():
            blocks += _texts(source, f"cell {number}")
        elif source.strip():
            blocks.append(Block(verbatim_lines(source), 0, f"cell {number}", verbatim=True))
        if kind == "code" and cell.get("outputs"):
            left_out.append((f"cell {number}", "output of code", ""))
    if not blocks:
        raise UnreadableError("holds no text")
    return replace(titled(blocks, "", {}), left_out=tuple(left_out))


def _source(cell: Any) -> str:
    source = cell.get("source", "") if isinstance(cell, dict) else ""
    lines = source if isinstance(source, list) else [source]
    return "".join(line for line in lines if isinstance(line, str))


def _texts(source: str, place: str) -> list[Block]:
    try:
        document = read_markdown(source.encode())
    except UnreadableError:  # nothing but a heading
        name = source.lstrip("# ").strip()
        return [Block(name, len(source) - len(source.lstrip("#")) or 1, place)] if name else []
    title = [Block(document.title, 1, place)] if document.title else []
    return [*title, *(replace(block, place=place) for block in document.blocks)]
