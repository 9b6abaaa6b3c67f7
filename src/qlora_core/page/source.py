"""The trainer's own source, for the cell of the notebook that shows it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import marimo as mo

from .look import folded, text_block


def source_of(module: str, *names: str) -> mo.Html:
    """Return the source of functions of a core module, read from its file: importing it here would load mlx."""
    found = importlib.util.find_spec(f"qlora_core.{module}")
    text = Path(found.origin).read_text(encoding="utf-8")  # type: ignore[union-attr,arg-type]
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    return mo.vstack(
        [folded(name, text_block(ast.get_source_segment(text, functions[name]) or "")) for name in names], gap=0
    )
