"""The line that stays in view: the run, its state, how far it is, its loss and the time that is left."""

from __future__ import annotations

import marimo as mo

from ..machine.memory import available_bytes
from ..reports.plain_text import size
from ..translations import say
from .look import joined, put, shown
from .training import about, seconds_left, state_words
from .watching import Snapshot


def line(snapshot: Snapshot) -> mo.Html:
    """Return one line about a run, with a bar for the steps done."""
    if snapshot.run is None or snapshot.state == "new":
        return shown(put('<p class="q-line">{}</p>', say("Nothing trained yet with these settings.")))
    total = int(snapshot.status.get("total_steps", 0))
    done, loss, left = min(snapshot.step, total), snapshot.last("train_loss"), seconds_left(snapshot)
    word, tone = state_words(snapshot)
    facts = [
        say("step {done} of {total}", done=f"{done:,}", total=f"{total:,}") if total else "",
        say("loss {loss}", loss=f"{loss:.3f}") if loss is not None else "",
        say("{time} left", time=about(left)) if left and snapshot.alive else "",
        say("{size} free", size=size(available_bytes())) if snapshot.alive else "",
    ]
    dot = put('<span class="q-dot q-tone-{}{}" aria-hidden="true"></span>', tone, " q-live" if snapshot.alive else "")
    name = put('<strong>{}</strong> <span class="q-run-state">{}</span>', snapshot.run.name, word)
    told = joined(put("<span>{}</span>", fact) for fact in facts if fact)
    share = f"{100 * done / total:.2f}" if total else "0"
    return shown(put('<div class="q-line">{}{}{}</div><div class="q-thread" aria-hidden="true">'
                     '<div style="width:{}%"></div></div>', dot, name, told, share))  # fmt: skip
