"""Libraries that other people's code imports at once but that are hardly used here: imported when they are needed."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def imported_later(*modules: str) -> Iterator[None]:
    """Make `from MODULE import name` give a stand-in inside the block, which imports the real thing when it is used.

    Args:
        modules: modules of packages that are not imported yet; others are left alone.
    """
    standing_in = [name for name in modules if name.partition(".")[0] not in sys.modules]
    sys.modules.update({name: _Module(name) for name in standing_in})
    try:
        yield
    finally:
        for name in standing_in:  # whoever imports it from now on gets the real one
            del sys.modules[name]


class _Module(ModuleType):
    def __getattr__(self, name: str) -> _Later:
        if name.startswith("__"):  # what the import system asks for
            raise AttributeError(name)
        return _Later(name, (), {"_home": self.__name__})


class _Later(type):
    """Stand-in for a class or function. It is a class itself, since it may be used as an annotation or a base class."""

    def _real(cls) -> Any:
        return getattr(importlib.import_module(cls._home), cls.__name__)

    def __getattr__(cls, name: str) -> Any:
        if cls._home in sys.modules and isinstance(sys.modules[cls._home], _Module):
            return lambda *_, **__: None  # a module registers something with it while it is being imported
        return getattr(cls._real(), name)

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        return cls._real()(*arguments, **named)

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, cls._real())
