"""Runs on the page: their names and notes, deleting one; and the settings of a run to take along.

Knows which runs there are; changes only one that nobody is training.
"""

from __future__ import annotations

from typing import Any

import marimo as mo

from ..config import RunConfig
from ..reports.in_language import size
from ..runs import keeping, recipes
from ..runs.plan import TrainingTracker
from ..runs.run import Run
from ..translations import say
from .composing import plain_label
from .language import read_only
from .look import copyable, folded, note, small
from .problems import Problem, attempt, failure, scripted


def to_take_along(config: RunConfig) -> mo.Html:
    """Return the settings as a command, a file and a program, to be copied."""
    toml = recipes.to_toml(config)
    download = mo.download(toml.encode(), filename="settings.toml", label=say("Save as a file"))
    parts = [
        small(say("As a command")),
        copyable(recipes.to_command(config)),
        small(say("As a file, for `qlora train --config settings.toml`")),
        copyable(toml),
        download,
        small(say("As Python")),
        copyable(recipes.to_python(config)),
    ]
    return folded(say("These settings as a command, a file or a program"), mo.vstack(parts, gap=0.4))


def choice(tracker: TrainingTracker) -> mo.ui.dropdown | None:
    """Return a choice of the run to change; None if there is none, or nothing may be changed."""
    if read_only() or scripted():
        return None
    names = [run.name for run in tracker.runs()]
    if not names:
        return None
    return mo.ui.dropdown(names, value=names[0], label=say("Run to change"), allow_select_none=False, full_width=True)


def form(tracker: TrainingTracker, name: str | None) -> Any:
    """Return the fields for a run's name and note, sent by a button; None without a run."""
    run = attempt(tracker.find, name) if name else None
    if not isinstance(run, Run):
        return None
    written = attempt(keeping.read_note, run)
    fields = {
        "name": mo.ui.text(run.name, label=say("Name"), full_width=True),
        "note": mo.ui.text_area("" if isinstance(written, Problem) else written, label=say("Note"), rows=2,
                                full_width=True),
    }  # fmt: skip
    form = mo.Html('<div class="q-ask">{name}{note}</div>').batch(**fields)
    return form.form(submit_button_label=say("Save"), bordered=False)


def deletion(tracker: TrainingTracker, name: str | None) -> tuple[Any, Any]:
    """Return a box to confirm with and the button that deletes a run, with the room this makes; else None twice."""
    run = attempt(tracker.find, name) if name else None
    if not isinstance(run, Run):
        return None, None
    sure = mo.ui.checkbox(label=plain_label(say("Delete {run} with its checkpoints and exports", run=run.name)))
    freed = size(keeping.bytes_of(run))
    return sure, mo.ui.run_button(label=say("Delete, and free {size}", size=freed), kind="danger")


def change(tracker: TrainingTracker, name: str | None, asked: dict[str, str] | None) -> mo.Html | None:
    """Rename and annotate a run as the form asks, and return what came of it.

    Args:
        tracker: the tracker of all runs.
        name: the run.
        asked: its new name and note; None while nothing was sent.
    """
    if not name or not asked or read_only():
        return None

    def apply() -> str:
        run = keeping.rename(tracker.find(name), asked["name"].strip())
        keeping.write_note(run, asked["note"])
        return run.name

    done = attempt(apply)
    if isinstance(done, Problem):
        return failure(done.message)
    renamed = say("Saved as {run}. Guides in its exports name its old folder until you export again.", run=done)
    return note(renamed if done != name else say("Saved."), "success")


def delete(tracker: TrainingTracker, name: str | None, sure: bool) -> mo.Html | None:
    """Delete a run that was confirmed, and return what came of it."""
    if not name or read_only():
        return None
    if not sure:
        return note(say("Tick the box first, to say that you mean it."), "warn")
    freed = attempt(lambda: keeping.delete(tracker.find(name)))
    if isinstance(freed, Problem):
        return failure(freed.message)
    return note(say("{run} is deleted; {size} are free again.", run=name, size=size(freed)), "success")


def shown_form(form: Any, sure: Any, button: Any) -> mo.Html | None:
    """Return the form with the box and button to delete below it; None without a run."""
    if form is None:
        return None
    below = mo.hstack([sure, button], justify="start", align="center", gap=0.75, wrap=True)
    return mo.vstack([form, below], gap=0.75)
