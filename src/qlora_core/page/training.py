"""Training as the page shows it: buttons, figures, curves and the log of a run.

A run is trained by a worker process; here its directory is read, and a word left for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marimo as mo

from .. import console, jobs
from ..charts import loss_chart
from ..charts import rate_chart as rate_chart  # shown by the notebook
from ..console import size
from ..runs import TrainingPlan, TrainingTracker
from .look import empty, figures, folded, note, small, text_block
from .problems import Problem, attempt, failure
from .watching import RunWatcher, Snapshot

LOG_LINES = 200


def controls(plan: TrainingPlan | Problem, watcher: RunWatcher) -> tuple[Any, Any, Any, mo.Html]:
    """Buttons to start, pause and stop, each enabled when it can do something, and the row that shows them."""
    busy = watcher.run is not None and watcher.run.alive
    label, note = "Start", ""
    if busy:
        note = f"{watcher.run.name} is being trained in a process of its own; this page may be closed."
    elif isinstance(plan, Problem):
        note = f"Not ready: {plan.message.splitlines()[0]}"
    elif plan.done:
        note = "Complete. More epochs train it further; “fresh” starts a new run beside it."
    elif plan.run.exists:
        label, note = "Go on", f"{plan.run.name} goes on from its last checkpoint."
    ready = not busy and isinstance(plan, TrainingPlan) and not plan.done
    asked = watcher.run.control() if busy else "run"
    begin = mo.ui.run_button(label=label, kind="success", disabled=not ready)
    pause = mo.ui.run_button(label="Pause", disabled=not busy or asked != "run", tooltip="Save and end the process")
    tooltip = "Save, and use what there is"
    stop = mo.ui.run_button(label="Stop", kind="danger", disabled=not busy or asked == "stop", tooltip=tooltip)
    row = mo.hstack([begin, pause, stop, small(note)], justify="start", align="center", gap=0.75)
    return begin, pause, stop, row


def start(tracker: TrainingTracker, plan: TrainingPlan) -> mo.Html:
    """Start a worker process; whether that worked, in words."""
    outcome = attempt(jobs.start, tracker, plan)
    if isinstance(outcome, Problem):
        return failure(outcome.message)
    return note(f"Started (process {outcome}).", "success")


def run_panel(snapshot: Snapshot) -> mo.Html:
    """State, progress and speed of a run, and what went wrong if anything did."""
    if snapshot.run is None or snapshot.state == "new":
        return empty("Nothing trained yet with these settings. Start begins.")
    parts: list[Any] = [small(f"Run {snapshot.run.name}"), _figures(snapshot)]
    if snapshot.state == "failed":
        parts.append(failure(str(snapshot.status.get("message") or "Training failed.")))
    elif snapshot.state == "crashed":
        parts.append(failure("The trainer is gone. Its last words:\n" + jobs.last_words(snapshot.run)))
    elif snapshot.status.get("message"):
        parts.append(note(str(snapshot.status["message"]), "warn"))
    return mo.vstack(parts, gap=0.5)


def _figures(snapshot: Snapshot) -> mo.Html:
    steps, evals, status = snapshot.of_type("step"), snapshot.of_type("eval"), snapshot.status
    start = next(iter(reversed(snapshot.of_type("start"))), {})
    last: Mapping[str, Any] = steps[-1] if steps else {}
    done = max(status.get("step", 0), last.get("step", 0))
    total = status.get("total_steps", 0)
    recent = steps[-20:]
    seconds = sum(e["seconds"] for e in recent)
    left = console.duration((total - done) * seconds / len(recent)) if recent and snapshot.alive else "–"
    loss, val = last.get("train_loss"), evals[-1]["val_loss"] if evals else None
    asked = {"pause": "pausing", "stop": "stopping"}.get(snapshot.asked, snapshot.state)
    return figures(
        {
            "State": asked,
            "Step": f"{done} / {total}" if total else "–",
            "Epoch": f"{last['epoch']} / {start.get('epochs', '–')}" if last else "–",
            "Training loss": f"{loss:.3f}" if loss is not None else "–",
            "Validation loss": f"{val:.3f}" if val is not None else "–",
            "Tokens/s": f"{sum(e['tokens'] for e in recent) / seconds:,.0f}" if seconds else "–",
            "Time left": left,
            "Memory": f"{size(last['available_memory_bytes'])} free" if last else "–",
        }
    )


def run_chart(snapshot: Snapshot) -> Any:
    """The loss so far, once there is any."""
    steps = snapshot.of_type("step")
    return loss_chart(steps, snapshot.of_type("eval")) if steps else None


def run_log(snapshot: Snapshot) -> mo.Html | None:
    """What a terminal would show of the run."""
    lines = [line for event in snapshot.events if (line := console.event_line(event))]
    return folded("Log", text_block("\n".join(lines[-LOG_LINES:]))) if lines else None


def diagnosis(snapshot: Snapshot) -> mo.Html:
    """What the trainer warned of, and how a run that failed ended."""
    words = [event["message"] for event in snapshot.of_type("warning")]
    if snapshot.state == "failed":
        words.append(str(snapshot.status.get("message", "")))
    if snapshot.state == "crashed" and snapshot.run:
        words.append(jobs.last_words(snapshot.run))
    return note("\n".join(words), "warn") if words else small("The trainer had no complaints.")
