"""Texts of the page about a run whose trainer died without a word."""

from __future__ import annotations

from ..jobs import launch
from ..machine.crash_reasons import reason
from ..translations import say
from .watching import Snapshot


def crash_words(snapshot: Snapshot, saved: int) -> str:
    """Return what happened to a crashed run's trainer, and what to do.

    Args:
        snapshot: the run at this moment.
        saved: the step of its last checkpoint; 0 if there is none.
    """
    log = launch.last_words(snapshot.run) if snapshot.run else ""
    if saved:
        onward = say("Step {step} is saved: “Go on from step {step}” continues there.", step=saved)
    else:
        onward = say("Nothing was saved yet: it starts again from the first step.")
    return "\n".join([say("The trainer is gone."), reason(snapshot.exit_status, log), onward])
