"""Gather the warnings of a run's trainer by kind, each with advice. Knows events, not who wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import marimo as mo
import numpy as np

from ..reports.in_language import number
from ..translations import from_record, say, spoken
from .crashes import crash_words
from .look import note
from .watching import Snapshot

SHOWN_STEPS = 8
AFTERWARDS = 10  # steps after a gradient spike whose mean loss tells whether it did harm
HARM = 1.05  # so many times the loss before is worse


def warnings(snapshot: Snapshot) -> list[str]:
    """Return a run's warnings as sentences with what to do, those of one kind together, in the order they came."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for event in snapshot.of_type("warning"):
        groups.setdefault(str(event.get("kind") or message_of(event)), []).append(event)
    return [_sentence(kind, events, snapshot) for kind, events in groups.items()]


def message_of(event: Mapping[str, Any]) -> str:
    """Return what an event says, in the reader's language if it was recorded for that."""
    said = from_record(event.get("said"))
    return spoken(said) if said is not None else str(event.get("message") or "")


def diagnosis(snapshot: Snapshot, saved: int) -> mo.Html | None:
    """Return all warnings, and how a run that failed ended; None if all went well.

    Args:
        snapshot: the run.
        saved: step of its last checkpoint; 0 if there is none.
    """
    words = warnings(snapshot)
    if snapshot.state == "failed":
        words.append(message_of(snapshot.status))
    if snapshot.state == "crashed" and snapshot.run:
        words.append(crash_words(snapshot, saved))
    if not words:
        return None
    return mo.vstack([note(sentence, "warn") for sentence in words], gap=0.35)


def _sentence(kind: str, events: Sequence[Mapping[str, Any]], snapshot: Snapshot) -> str:
    """Return one kind of warning in a sentence or two."""
    if kind == "spike":
        return f"{_counted_spikes(events)} {_after_spikes(events, snapshot)}"
    if kind == "restart":
        told = say("The trainer was gone and was started again from what was saved ({steps}).", steps=_steps(events))
        return f"{told} {say('If that happens often: close other programs, or choose fewer rows per micro-batch.')}"
    said = _capitalised(message_of(events[-1]))
    often = f" ({say('{count} times', count=number(len(events)))})" if len(events) > 1 else ""
    return " ".join(part for part in (f"{said.rstrip('.')}{often}.", _advice(kind)) if part)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _steps(events: Sequence[Mapping[str, Any]]) -> str:
    """Return the steps of events: "steps 121, 131, 203", at most `SHOWN_STEPS` of them."""
    steps = [number(step) for step in _places(events)]
    listed = ", ".join(steps[:SHOWN_STEPS]) + (" …" if len(steps) > SHOWN_STEPS else "")
    return say("step {steps}", steps=listed) if len(steps) == 1 else say("steps {steps}", steps=listed)


def _places(events: Sequence[Mapping[str, Any]]) -> list[int]:
    return [int(event.get("step", 0)) for event in events]


def _counted_spikes(events: Sequence[Mapping[str, Any]]) -> str:
    if len(events) == 1:
        return say("A gradient spike ({steps}).", steps=_steps(events))
    return say("{count} gradient spikes ({steps}).", count=number(len(events)), steps=_steps(events))


def _after_spikes(events: Sequence[Mapping[str, Any]], snapshot: Snapshot) -> str:
    """Return what became of the loss after the spikes, and what to do."""
    outcomes = list(_losses_around(_places(events), snapshot))
    if not outcomes:
        return say("If the loss rises from here on: halve the learning rate in a new run.")
    if all(after <= HARM * before for before, after in outcomes):
        return say("The loss did not rise: nothing to do. If it had: halve the learning rate.")
    return say("The loss rose after it: halve the learning rate in a new run, and look at the rows of these steps.")


def _losses_around(places: Sequence[int], snapshot: Snapshot) -> Iterator[tuple[float, float]]:
    """Yield the mean training loss before and after each step that has enough steps behind it."""
    steps, losses = snapshot.steps["step"], snapshot.steps["train_loss"]
    for place in places:
        before = losses[(steps >= place - AFTERWARDS) & (steps < place)]
        after = losses[(steps > place) & (steps <= place + AFTERWARDS)]
        if np.isfinite(before).any() and np.count_nonzero(np.isfinite(after)) >= AFTERWARDS // 2:
            yield float(np.nanmean(before)), float(np.nanmean(after))


def _advice(kind: str) -> str:
    """Return what to do about a kind of warning; empty where the warning says it."""
    return {
        "not_finite": say("That step changed nothing. If it happens again: halve the learning rate."),
        "memory": say("Close other programs, or choose fewer rows per micro-batch or shorter rows."),
        "patience": say("Training ended early, as asked: the best adapters are kept. Nothing to do."),
        "layout": say("Nothing to do: it takes somewhat longer."),
        "machine": say("Nothing to do: the result is as good, but not the same to the last digit."),
        "version": say("Nothing to do: the result is as good, but not the same to the last digit."),
        "float16": say("Nothing to do: it goes on by itself."),
    }.get(kind, "")
