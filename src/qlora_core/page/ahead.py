"""Imports what the notebooks need while the browser still loads marimo's own program, which takes it seconds.

Kernels are threads of the server's process, so that they find there what was imported before them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import marimo as mo

from ..jobs.server import NOTEBOOKS, notebooks
from . import PARTS


@functools.cache
def import_ahead() -> threading.Thread:
    """Begin to import, once in a process; a notebook that comes to the same import meanwhile waits for it."""
    thread = threading.Thread(target=_import_all, name="imports ahead", daemon=True)
    thread.start()
    return thread


def _import_all() -> None:
    with contextlib.suppress(Exception):  # the notebook meets the same error, where it can be shown
        mo.md("")  # the first text takes marimo a quarter of a second
        for part in PARTS:
            importlib.import_module(f".{part}", __package__)
        importlib.import_module("tokenizers")


@contextlib.asynccontextmanager
async def lifespan(_: Any) -> AsyncIterator[None]:
    """Import ahead if `marimo run` serves one of our notebooks; marimo calls this when any server starts."""
    ours = {notebooks() / name for name in NOTEBOOKS.values()}
    if "run" in sys.argv and any(Path(word).resolve() in ours for word in sys.argv):
        import_ahead()
    yield
