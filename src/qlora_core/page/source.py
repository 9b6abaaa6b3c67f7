"""The trainer's own source, for the cell of the notebook that shows it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import marimo as mo

from .look import folded, text_block


def source_of(*names: str) -> mo.Html:
    """Show the source of functions of this package, each folded away.

    It is read from files: importing them here would bring mlx.

    Args:
        names: dotted names below `qlora_core`, such as `training.loop.train_epoch`.
    """
    return mo.vstack([folded(name.rpartition(".")[2], text_block(_source(name))) for name in names], gap=0)


def _source(name: str) -> str:
    module, _, function = name.rpartition(".")
    found = importlib.util.find_spec(f"qlora_core.{module}")
    text = Path(found.origin).read_text(encoding="utf-8")  # type: ignore[union-attr,arg-type]
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    return ast.get_source_segment(text, functions[function]) or ""
