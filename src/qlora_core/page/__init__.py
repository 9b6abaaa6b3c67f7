"""The page: what the notebooks in `apps/` show, one module a part of it.

Knows marimo and nothing of mlx: whatever needs it is a worker or a command in a process of its own.

    language   whose words; how the page was opened
    steps      which part of a notebook is seen at once
    look       headings, tables, cards, notes: where text becomes HTML
    problems   what went wrong, shown once and handed on
    forms      flags and settings
    rows       the data: where it comes from, what became of it, its tokens in numbers
    doubts     what was guessed in it, and the answers
    row_browser  one row after another, as its tokens
    machine    what it is trained on
    model      the base, and what the settings come to
    watching   a run at one moment
    training   buttons, figures, curves, the log
    composing  writing a question
    asking     questions to base and tuned model
    results    what a run that ended leaves
    verdict    whether training helped
    exporting  taking it elsewhere
    keeping    names and notes of runs; settings to take along
    comparing  runs side by side
    navigation from one notebook to the others

A part is imported when it is first named, so that the heading of a page does not wait for all of them.
"""

import importlib
from types import ModuleType

from . import language as language  # texts are spoken in the reader's language from here on
from . import steps as steps
from .look import remark as remark
from .look import section as section
from .look import title as title
from .problems import attempt as attempt
from .problems import complain as complain
from .problems import scripted as scripted
from .problems import view as view

PARTS = ("asking", "bar", "commands", "comparing", "composing", "doubts", "exporting", "forms", "keeping", "look",
         "machine", "model", "navigation", "problems", "results", "row_browser", "rows", "source", "training",
         "verdict", "watching")  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    """Import a part (PEP 562)."""
    if name not in PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)
