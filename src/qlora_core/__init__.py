"""Fine-tune language models with QLoRA on MLX.

The functions in `__all__` are the library (see `api`); `docs/architecture.md` is the map of the packages.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = [  # noqa: F822 -- made when asked for
    "card",
    "compare",
    "evaluate",
    "export",
    "generate",
    "import_adapters",
    "load_run",
    "plan",
    "prepare",
    "push",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the library when it is first used: the command line greets before anything that takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
