"""Whether training helped: `qlora evaluate` in its own process, its verdict, measures and facts.

Finds an evaluation on disk, whoever made it, and has one made at a time. Knows nothing of mlx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import marimo as mo
from markupsafe import Markup

from ..errors import BusyError, QLoraError, RunError
from ..evaluation.contest import CONTENDERS, NAMES, Measure
from ..evaluation.ledger import LedgerEntry
from ..evaluation.statistics import Estimate
from ..evaluation.verdict import Verdict, is_whole, judged_run, outdated
from ..reports.in_language import number, percent
from ..reports.verdict_text import LEGEND
from ..runs.run import VERDICT, VERDICT_BEGUN, Run
from ..translations import say, spoken
from .asking import training_holds_the_memory
from .commands import Desk, Working, what_it_does
from .language import read_only
from .look import empty, folded, joined, note, put, row_table, shown, small
from .problems import failure
from .results import saved_something

KINDS = {True: "success", False: "danger", None: "info"}
"""The kind of note for whether training helped."""


@dataclass(frozen=True)
class Judged:
    """A run's evaluation at one moment.

    Attributes:
        run: the run; None before there is any.
        made: when its `verdict.json` was written last, in seconds since 1970; 0: there is none.
        training: a run is being trained, which needs the memory.
        running: it is being evaluated.
        elsewhere: the run that is being evaluated, if it is another one.
        problem: why the last evaluation of this run failed.
        working: what is being done.
    """

    run: Run | None = None
    made: float = 0.0
    training: bool = False
    running: bool = False
    elsewhere: str = ""
    problem: str = ""
    working: Working | None = None

    @property
    def version(self) -> tuple[Any, ...]:
        """Return a mark that changes with everything that is worth drawing again."""
        name = str(self.run.path) if self.run else ""
        return (name, self.made, self.training, self.running, self.elsewhere, self.problem)

    @property
    def progress(self) -> tuple[Any, ...]:
        """Return a mark that changes also with what is being done."""
        return (*self.version, self.working)


_desk = Desk()
"""Sends evaluations, one at a time."""


def look(run: Run | None, active: Run | None) -> Judged:
    """Read what is there, and how the evaluation under way is getting on.

    Args:
        run: the run that is looked at.
        active: the run that may be trained.
    """
    if not saved_something(run):
        return Judged()
    try:
        made = (run.path / VERDICT).stat().st_mtime
    except OSError:
        made = 0.0
    training = active is not None and active.alive
    now = _desk.look(run)
    return Judged(run, made, training, now.running, now.elsewhere, now.problem, now.working)


def start(run: Run | None) -> None:
    """Start an evaluation, or go on with one that was interrupted.

    Raises:
        QLoraError: there is no run.
        BusyError: another evaluation is under way.
    """
    if run is None:
        raise QLoraError(say("Train a run first."))
    again = ["--again"] if _is_whole(run) else []
    if not _desk.send(run, ["evaluate", run.name, "--runs-dir", str(run.path.parent), *again]):
        raise BusyError(say("An evaluation is under way already: wait for it."))


def _is_whole(run: Run) -> bool:
    """Return whether nothing is left to ask, unless all of it is asked again."""
    try:
        found = run.verdict()
    except RunError:
        return False
    begun = (run.path / VERDICT_BEGUN).exists()
    return found is not None and is_whole(found) and not begun and outdated(run, found) is None


# What is shown ----------------------------------------------------------------------------------------------------


def button(judged: Judged) -> mo.ui.run_button:
    """Return the button that has the questions asked."""
    ready = judged.run is not None and not (judged.training or judged.running or judged.elsewhere)
    label = say("Ask everything again") if judged.run is not None and _is_whole(judged.run) else say("Find out")
    return mo.ui.run_button(label=label, disabled=not ready or read_only())


def progress(judged: Judged) -> mo.Html | None:
    """Return what is being asked, why nothing can be, or why the last try failed."""
    if judged.run is None:
        return None
    if judged.running:
        told = [note(say("Asking … You can close this page."))]
        return mo.vstack([*told, *what_it_does(judged.working)], gap=0.5)
    if judged.elsewhere:
        return note(say("{run} is being evaluated. One at a time: wait for it.", run=judged.elsewhere))
    if judged.problem:
        return failure(judged.problem)
    if judged.training:
        return small(training_holds_the_memory())
    if not judged.made:
        return empty(say("Nothing was asked yet. It takes some minutes, and goes on where it was interrupted."))
    return None


def result(judged: Judged) -> mo.Html | None:
    """Return the verdict, its measures, what else was found, and what became of each fact."""
    run = judged.run
    if run is None or not judged.made:
        return None
    try:
        found = run.verdict() or {}
    except RunError as error:
        return note(say("{problem} Ask again to have it made anew.", problem=str(error)), "warn")
    if "questions" not in found:
        return None
    if reason := outdated(run, found):
        return note(say("{problem} Ask again.", problem=reason), "warn")
    verdict, entries = judged_run(run, found)
    parts = [note(spoken(verdict.sentence), KINDS[verdict.helped]), small(spoken(verdict.advice)), measures(verdict)]
    told = [*map(spoken, verdict.findings), *(say("Not judged: {what}", what=one) for one in verdict.missing)]
    if told:
        parts.append(shown(put("<ul>{}</ul>", joined(put("<li>{}</li>", one) for one in told))))
    if not is_whole(found) and not judged.running:
        parts.append(small(say("This evaluation was interrupted: some of it is missing.")))
    if entries:
        parts.append(folded(say("What became of each fact"), facts(entries)))
    parts.append(folded(say("All questions and answers"), answers(found["questions"])))
    return mo.vstack(parts, gap=0.75)


def measures(verdict: Verdict) -> mo.Html:
    """Return a line a measure, a column a contender; below each value its interval."""
    names = verdict.contenders
    rows = []
    for measure in verdict.measures.values():
        name = NAMES[measure.name]
        row: dict[str, Any] = {say("Measure"): say(name)}
        for who in names:
            title = CONTENDERS[who]
            row[say(title)] = _value(measure, measure.values.get(who))
        rows.append(row)
    return mo.vstack([row_table(rows, numbers=list(rows[0])[1:] if rows else []), small(spoken(LEGEND))], gap=0.25)


def _value(measure: Measure, found: Estimate | None) -> Markup | str:
    """Return a value with its interval in small type."""
    if found is None:
        return "–"
    written = [
        number(one, ".3f") if measure.lower_is_better else percent(one)
        for one in (found.value, found.low, found.high)
        if one is not None
    ]
    value, *ends = written
    sure = (
        say("{low} to {high}, of {count}", low=ends[0], high=ends[1], count=found.count)
        if ends
        else say("of {count} alone", count=found.count)
    )
    return put('{}<br><span class="q-limits">{}</span>', value, sure)


def facts(entries: Sequence[LedgerEntry]) -> mo.Html:
    """Return what became of each fact, those that do not hold first."""
    rows = [
        {
            say("Fact"): entry.fact or (entry.phrasings[0].question if entry.phrasings else "–"),
            say("Known before"): f"{len(entry.known_before)}/{len(entry.phrasings)}",
            say("Known now"): f"{len(entry.holds)}/{len(entry.holds) + len(entry.fails)}",
            say("Trained in"): say("{count} wordings", count=entry.taught_phrasings),
            say("Learned at step"): _steps(entry),
            say("What to do"): spoken(entry.advice) if entry.advice else "–",
        }
        for entry in sorted(entries, key=lambda entry: not entry.fails)
    ]
    return row_table(rows)


def _steps(entry: LedgerEntry) -> str:
    steps = [step for one in entry.phrasings if one.learned_at != "unknown" for step in one.learned_at]
    return number(min(steps)) if steps else "–"


def answers(questions: Sequence[Mapping[str, Any]]) -> mo.Html:
    """Return every question with the answers of all contenders."""
    marks = {True: " ✓", False: " ✗", None: ""}
    rows = []
    for one in questions:
        row = {say("Question"): one["question"]}
        for who, title in CONTENDERS.items():
            if who in one["answers"]:
                row[say(title)] = one["answers"][who]["text"] + marks[one["answers"][who].get("right")]
        rows.append(row)
    return row_table(rows)
