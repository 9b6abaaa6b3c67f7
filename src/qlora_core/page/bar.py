"""The line that stays in view: the run, its state, how far it is, its loss and the time that is left."""

from __future__ import annotations

import marimo as mo

from ..reports.in_language import number
from ..translations import say
from .look import joined, put, shown
from .training import stage_words, state_words, time_left
from .watching import Snapshot


def line(snapshot: Snapshot) -> mo.Html:
    """Return one line about a run, with a thread that grows with the steps done."""
    if snapshot.run is None or snapshot.state == "new":
        return shown(put('<p class="q-line">{}</p>', say("Not trained yet with these settings.")))
    total, loss = int(snapshot.status.get("total_steps", 0)), snapshot.last("train_loss")
    done = min(snapshot.step, total)
    word, tone = state_words(snapshot)
    left = time_left(snapshot)
    facts = [
        stage_words(snapshot),
        say("step {done} of {total}", done=number(done), total=number(total)) if total else "",
        say("loss {loss}", loss=number(loss, ".3f")) if loss is not None else "",
        say("{time} left", time=left) if left else "",
    ]
    dot = put('<span class="q-dot q-tone-{}{}" aria-hidden="true"></span>', tone, " q-live" if snapshot.alive else "")
    name = put('<strong>{}</strong> <span class="q-run-state">{}</span>', snapshot.run.name, word)
    told = joined(put("<span>{}</span>", fact) for fact in facts if fact)
    share = f"{100 * done / total:.2f}" if total else "0"
    return shown(put('<div class="q-line">{}{}{}</div><div class="q-thread" aria-hidden="true">'
                     '<div style="width:{}%"></div></div>', dot, name, told, share))  # fmt: skip
