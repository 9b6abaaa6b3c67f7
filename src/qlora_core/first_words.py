"""The first lines that a terminal shows when training starts, printed before anything that takes seconds to import.

Imports nothing but the standard library.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

WIDTH = 72


def header() -> str:
    """Return the first lines."""
    return f"{'═' * WIDTH}\n  QLoRA Notebook\n{'═' * WIDTH}"


def greet(argv: Sequence[str]) -> None:
    """Print the first lines, unless help is asked for; with `--json`, to standard error.

    Args:
        argv: command-line arguments.
    """
    if not {"-h", "--help"} & set(argv):
        print(header(), file=sys.stderr if "--json" in argv else sys.stdout, flush=True)
