"""An evaluation as text: the verdict, what each contender did, and what became of each fact."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.contest import CONTENDERS, NAMES, Measure
from ..evaluation.findings import value_words
from ..evaluation.ledger import LedgerEntry
from ..evaluation.statistics import Estimate
from ..evaluation.verdict import Verdict
from ..translations import Sentence
from .plain_text import one_line, section

COLUMNS = 100
SHOWN_FACTS = 20
LEGEND = Sentence(
    "Below each value: the range in which it very likely lies (95 in 100), and how many questions or rows were judged: "
    "the fewer, the wider."
)
"""What stands below the values of a table of measures."""


def verdict_lines(verdict: Verdict, found: Mapping[str, Any], entries: Sequence[LedgerEntry]) -> str:
    """Return an evaluation as a terminal shows it.

    Args:
        verdict: of `evaluation.verdict.verdict_on`.
        found: the contents of `verdict.json` that it was made of.
        entries: of the fact ledger; empty if there is no fact sheet.
    """
    parts = [section("Did it help?"), *_wrapped([str(verdict.sentence)]), "", *measure_table(verdict)]
    parts += ["", *_wrapped([f"· {finding}" for finding in verdict.findings])] if verdict.findings else []
    parts += _wrapped([f"· Not judged: {one}" for one in verdict.missing])
    if wrong := _confused(found):
        parts += [section("Facts taken for others"), *wrong]
    if entries:
        parts += [section("What became of each fact"), *ledger_lines(entries)]
    return "\n".join([*parts, section("Advice"), *_wrapped([str(verdict.advice)])])


def measure_table(verdict: Verdict) -> list[str]:
    """Return a line a measure: its values by contender, and the interval below each."""
    names = verdict.contenders
    lines = [_line("", [CONTENDERS[name] for name in names])]
    for measure in verdict.measures.values():
        found = [measure.values.get(name) for name in names]
        lines.append(_line(NAMES[measure.name], [value_text(measure, one) for one in found]))
        lines.append(_line("", [interval_text(measure, one) for one in found]))
    return [*lines, *_wrapped([str(LEGEND)])]


def value_text(measure: Measure, found: Estimate | None) -> str:
    """Return a value as the table shows it: a share in percent, a loss in nats a token."""
    return "–" if found is None else value_words(measure, found.value)


def interval_text(measure: Measure, found: Estimate | None) -> str:
    """Return the ends of an interval, and over how many questions or rows it is."""
    if found is None:
        return ""
    if found.low is None:
        return f"of {found.count} alone"
    ends = (found.low, found.high) if measure.lower_is_better else (100 * found.low, 100 * found.high)
    form = ".3f" if measure.lower_is_better else ".0f"
    return f"{ends[0]:{form}} to {ends[1]:{form}} of {found.count}"


def ledger_lines(entries: Sequence[LedgerEntry]) -> list[str]:
    """Return a line for each fact, and what to add; those that do not hold come first."""
    ordered = sorted(entries, key=lambda entry: not entry.fails)
    lines = []
    for entry in ordered[:SHOWN_FACTS]:
        asked = len(entry.holds) + len(entry.fails)
        before = f" ({len(entry.known_before)} by the base)" if entry.known_before else ""
        name = one_line(entry.fact or (entry.phrasings[0].question if entry.phrasings else ""), 34)
        told = f"{len(entry.holds)} of {asked} questions right{before}; trained in {entry.taught_phrasings} wordings"
        lines.append(f"  {name:<35} {told}")
        if entry.advice:
            lines += textwrap.wrap(str(entry.advice), COLUMNS, initial_indent="    → ", subsequent_indent="      ")
    left = len(ordered) - SHOWN_FACTS
    return [*lines, f"  … and {left} more in verdict.json"] if left > 0 else lines


def _confused(found: Mapping[str, Any]) -> list[str]:
    return [
        f"  {one_line(one['question'], 60)}: {one_line(one['answers']['tuned']['text'], 40)} ({one_line(of, 40)})"
        for one in found.get("questions", ())
        if (of := one.get("confused_with"))
    ]


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:<36}" + "".join(f"{cell:<21}" for cell in cells).rstrip()


def _wrapped(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(text, COLUMNS, subsequent_indent="  ")]
