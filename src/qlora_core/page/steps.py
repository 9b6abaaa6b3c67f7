"""Steps and folds: which part of a notebook is seen at once on a served page.

A notebook is one column of cells, read from top to bottom; `marimo edit` shows all of it. On a served page, rules of
CSS hide the cells outside the chosen step and those under the heading of a closed fold, unless something went wrong
there. The cells know nothing of it: they are drawn all the same, so that another step is there at once. Which cells lie
under which heading is read from the notebook's file.
"""

from __future__ import annotations

import ast
import functools
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import marimo as mo
from markupsafe import Markup

from ..translations import say
from .look import html_of, joined, put, shown

STEPS = {"prepare": "Prepare", "train": "Train", "result": "Result", "runs": "Runs"}
"""Names of the steps and their headings, in the order in which the notebook has them."""

HIDDEN = "visibility: hidden; height: 0; overflow: hidden"
"""Keeps the width, unlike `display: none`: a chart that is drawn meanwhile takes the width of its place."""


# What the notebook shows ------------------------------------------------------------------------------------------


def step(name: str) -> mo.Html:
    """Return the heading that begins a step.

    Args:
        name: a key of `STEPS`.
    """
    return shown(put('<div class="q-step"><h2>{}</h2></div>', say(STEPS[name])))


def fold(title: str, text: str = "", *, open: bool = False) -> mo.Html:
    """Return the heading of a fold: a click on it shows and hides the cells that follow, up to the next heading."""
    lead = put('<p class="q-lead">{}</p>', say(text)) if text else ""
    opened = Markup(" open") if open else ""
    heading = '<details class="q-fold" id="{}"{}><summary><h3>{}</h3></summary>{}</details>'
    return shown(put(heading, identifier(title), opened, say(title), lead))


def chooser(notebook: str, chosen: str, *beside: Any) -> mo.Html:
    """Return the choice among the steps, a row of tabs, with the rules that follow it; where it is edited, neither.

    Args:
        notebook: file of the notebook.
        chosen: the step to begin with. The row is made anew when this is another one, so that the reader sees what
            happens now; otherwise it keeps the reader's own choice.
        beside: what else stands in the row; None is left out.
    """
    beside = joined(html_of(part) for part in beside if part is not None)
    if mo.app_meta().mode == "edit":
        return shown(put('<div class="q-bar">{}</div>', beside))  # all is seen; and the rules cost a browser minutes
    tabs = joined(
        put('<input type="radio" name="q-step" id="{}"{}><label for="{}">{}</label>', _choice(name),
            Markup(" checked") if name == chosen else "", _choice(name), say(heading))
        for name, heading in STEPS.items()
    )  # fmt: skip
    element = Markup("div" if list(STEPS).index(chosen) % 2 else "section")  # another element forgets the choice
    steps = put('<{} class="q-steps" role="radiogroup" aria-label="{}">{}</{}>', element, say("Steps"), tabs, element)
    row = put('<div class="q-bar">{}{}</div>', steps, beside)
    rules = Markup("\n".join(_rules(read_outline(Path(notebook)))))  # of this module's words and names of functions
    return shown(row + put("<style>{}</style>", rules))


# Which cells they are ---------------------------------------------------------------------------------------------


@dataclass
class Outline:
    """The cells under each heading of a notebook, by name; those above the first step are under none.

    Attributes:
        steps: `{step: cells}`, cells of folds included.
        folds: `{id of the heading: its own cell, and those that follow}`.
    """

    steps: dict[str, list[str]] = field(default_factory=dict)
    folds: dict[str, tuple[str, list[str]]] = field(default_factory=dict)


@functools.cache
def read_outline(notebook: Path) -> Outline:
    """Return the outline of a notebook's file, as marimo writes it: a function a cell, in order."""
    outline = Outline()
    in_step: list[str] = []
    in_fold: list[str] = []
    for cell in ast.parse(notebook.read_text(encoding="utf-8")).body:
        if not isinstance(cell, ast.FunctionDef):
            continue
        kind, name = _heading(cell)
        if kind == "step":
            in_step, in_fold = outline.steps.setdefault(name, []), []
        elif kind == "fold":
            in_step.append(cell.name)
            in_fold = []
            outline.folds[identifier(name)] = cell.name, in_fold
        elif cell.name != "_":  # cells without a name cannot be told apart, and are shown always
            in_step.append(cell.name)
            in_fold.append(cell.name)
    return outline


def _heading(cell: ast.FunctionDef) -> tuple[str, str]:
    """Return `step` or `fold` and its first argument if the cell calls one of them, else empty texts."""
    for call in ast.walk(cell):
        match call:
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(attr="steps"), attr=("step" | "fold") as kind),
                args=[ast.Constant(value=str(name)), *_],
            ):
                return kind, name
    return "", ""


def _rules(outline: Outline) -> Iterator[str]:
    """Yield rules of CSS: for each step, also one without content; each closed fold, and each that draws nothing."""
    for name, own in outline.steps.items():
        others = [cell for other, cells in outline.steps.items() if other != name for cell in cells]
        yield f"body:has(#{_choice(name)}:checked) {_cells(others)} {{ {HIDDEN} }}"
        yield f"body:has({_cells(own)} .q-alone) {_cells(own)}:not(:has(.q-alone)) {{ {HIDDEN} }}"
    for name, (heading, cells) in outline.folds.items():
        yield f"body:has(#{name}:not([open])) {_cells(cells)}:not(:has(.q-danger)) {{ {HIDDEN} }}"
        yield f"body:has(#{name}:not([open])) {_cells(cells)} .q-form > :not(.q-danger) {{ display: none }}"
        yield f"body:not(:has({_cells(cells)}:not(:empty))) {_cells([heading])} {{ display: none }}"


def _cells(names: Iterable[str]) -> str:
    """Return the selector of cells on a served page."""
    return f".published:is({', '.join(f'[data-cell-name={name}]' for name in names)})"


def _choice(name: str) -> str:
    return f"q-step-{name}"


def identifier(title: str) -> str:
    """Return a title as the id of an element: small letters of ASCII, digits and hyphens."""
    letters = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return "q-fold-" + "".join(letter if letter.isalnum() else "-" for letter in letters)
