"""The first lines that a terminal shows of a training: at once, before anything that takes seconds to import.

Imports nothing but Python's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

WIDTH = 72


def header() -> str:
    """The first lines."""
    return f"{'═' * WIDTH}\n  QLoRA Notebook\n{'═' * WIDTH}"


def greet(argv: Sequence[str]) -> None:
    """Print the first lines, unless help is asked for; with `--json`, on standard error.

    Args:
        argv: the flags that were given.
    """
    if not {"-h", "--help"} & set(argv):
        print(header(), file=sys.stderr if "--json" in argv else sys.stdout, flush=True)
