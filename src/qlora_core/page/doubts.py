"""Guesses that were made while reading the data, each with what shows its rows and what decides it.

Knows reports and settings; what stands in them is shown as text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import marimo as mo
from markupsafe import Markup

from ..config import RunConfig, from_flat
from ..data import DataReport, PreparedData, Rejected, flag
from ..reports.in_language import number
from ..translations import say
from . import reasons
from .look import folded, put, row_table, shown, small

Choice = tuple[str, str]
"""A setting and its value; for `decide`, one of its texts."""

Change = Callable[[tuple[Choice, ...]], tuple[Choice, ...]]
"""Function from the choices so far to the new ones."""

SHOWN, MANY = 10, 200  # guesses with buttons, and those that a click lists


def with_choices(config: RunConfig, chosen: Sequence[Choice]) -> RunConfig:
    """Return the settings with the choices made here.

    Raises:
        ConfigError: a choice is none of its setting's.
    """
    decided = (*config.data.decide, *(value for name, value in chosen if name == "decide"))
    columns = (*config.data.columns, *(value for name, value in chosen if name == "columns"))
    others = {name: value for name, value in chosen if name not in ("decide", "columns")}
    named = {value.partition("=")[0]: value for value in columns}  # a choice here replaces another
    several = {"decide": tuple(dict.fromkeys(decided)), "columns": tuple(named.values())}
    return from_flat({**others, **several}, base=config)


def guesses(report: DataReport) -> list[Rejected]:
    """Return everything that can be decided: guesses, unused columns, and questions with several answers."""
    several = [("several_answers", "first"), ("several_answers", "drop")]
    asked: dict[str, list[Rejected]] = {}
    for found in report.conflicting:
        asked.setdefault(found.sample, []).append(found)
    conflicts = [
        Rejected(
            rows[0].where,
            say("A question with several answers: {answers}", answers=" / ".join(row.reason for row in rows)),
            question,
            tuple(several),
        )
        for question, rows in asked.items()
    ]
    columns = [
        Rejected(
            "",
            say("The column {name} holds text and is used for nothing.", name=f"“{column.column}”"),
            "",
            (column.choice,),
        )
        for column in report.unused_columns
        if column.choice
    ]
    return [*report.doubts, *columns, *(conflicts if not report.several_answers_dropped else ())]


def buttons(prepared: PreparedData, choose: Callable[[Change], Any], show: Callable[[str], Any]) -> mo.ui.dictionary:
    """Return buttons for the first guesses: one shows rows, one per answer decides, and one forgets all answers.

    Args:
        prepared: the rows, with their report.
        choose: called with a change of the choices.
        show: called with a text that the rows in question contain.
    """
    forget = mo.ui.button(label=say("Forget what was chosen"), on_click=_calling(choose, lambda _: ()))
    elements: dict[str, Any] = {"forget": forget}
    for place, found in enumerate(guesses(prepared.report)[:SHOWN]):
        if found.where:  # a column stands in many rows
            elements[f"show {place}"] = mo.ui.button(label=say("Show"), on_click=_calling(show, sought(found)))
        for index, choice in enumerate(map(tuple, found.choices)):  # lists if the report was read from a file
            label = say("Use: {answer}", answer=answer(choice))
            elements[f"use {place} {index}"] = mo.ui.button(label=label, on_click=_calling(choose, _adding(choice)))
    return mo.ui.dictionary(elements)


def _calling(function: Callable[[Any], Any], value: Any) -> Callable[[Any], Any]:
    return lambda _: function(value)


def _adding(choice: Choice) -> Change:
    """Return the choices and one more, replacing another answer to the same question."""
    return lambda chosen: (*(one for one in chosen if _about(one) != _about(choice)), choice)


def _about(choice: Choice) -> str:
    """Return what a choice decides: a setting, what a column is, or the kind and file of a decision."""
    setting, value = choice
    if setting == "columns":
        return value.partition("=")[0]
    if setting != "decide":
        return setting
    return value.partition("=")[0] if value.startswith("title:") else value.rpartition("=")[0]


def sought(found: Rejected) -> str:
    """Return a text in the rows of a guess: the word or the question, else the name of their file."""
    about_file = any(setting in ("decide", "near_duplicates") for setting, _ in found.choices)
    file = found.where.rpartition(":")[0] if found.where.rpartition(":")[2][:1].isdigit() else found.where
    return file if about_file or not found.sample else found.sample


def answer(choice: Choice) -> str:
    """Return a choice in a few words; as a flag if there are none for it."""
    setting, value = choice
    if setting == "columns":
        ours, _, name = value.partition("=")
        said = {
            "prompt": say("{name} as the question", name=name),
            "completion": say("{name} as the answer", name=name),
            "context": say("{name} as what the question is about", name=name),
        }
        return said.get(ours, flag(choice))
    kind, _, rest = value.partition(":")
    if setting != "decide":
        return {
            ("several_answers", "first"): say("the first answer alone"),
            ("several_answers", "drop"): say("none of these rows"),
            ("near_duplicates", "drop"): say("nothing twice"),
            ("scans", "all"): say("such words as they may be"),
        }.get(choice, flag(choice))
    if kind == "title":
        return rest.partition("=")[2]
    file, _, said = rest.rpartition("=")
    if kind == "copy":
        return say("leave out {file}", file=file) if said == "drop" else say("keep {file}", file=file)
    return {
        "person": say("a person"), "thing": say("a thing"), "none": say("ask nothing"),
        "end": say("it ends there"), "go on": say("it goes on"),
    }.get(said, said)  # fmt: skip


def panel(prepared: PreparedData, elements: mo.ui.dictionary, chosen: Sequence[Choice]) -> mo.Html | None:
    """Return each guess with its buttons; those without room stand in a table below."""
    found = guesses(prepared.report)
    if not found and not chosen:
        return None
    parts: list[Any] = []
    if found:
        parts.append(small(say("Guesses that you may decide: {count}", count=number(len(found)))))
    for place, each in enumerate(found[:SHOWN]):
        where = put("<code>{}</code> ", each.where) if each.where else ""
        text = put('<p>{}{} <span class="q-small">{}</span></p>', where, reasons.cell(each.reason), each.sample)
        row = [element for name, element in elements.elements.items() if name.split()[1:2] == [str(place)]]
        flags = Markup(", ").join(put("<code>{}</code>", flag((setting, value))) for setting, value in each.choices)
        typed = shown(put('<p class="q-small">{} {}</p>', say("In a terminal:"), flags)) if flags else None
        hold = [shown(text), mo.hstack(row, justify="start", gap=0.5, wrap=True), typed]
        parts.append(mo.vstack([part for part in hold if part is not None], gap=0.25))
    if rest := found[SHOWN:MANY]:
        rows = [
            {say("Where"): each.where, say("Why"): reasons.cell(each.reason), say("Begins with"): each.sample}
            for each in rest
        ]
        parts.append(folded(say("{count} more", count=number(len(found) - SHOWN)), row_table(rows)))
    if chosen:
        said = say("Chosen: {answers}", answers="; ".join(map(answer, chosen)))
        parts.append(mo.hstack([small(said), elements["forget"]], justify="start", align="center", gap=0.75, wrap=True))
    return mo.vstack(parts, gap=0.75)
