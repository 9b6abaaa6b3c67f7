"""Training as the page shows it: buttons, figures, curves, checkpoints and the log of a run.

A worker process trains the run; this module reads its directory and leaves requests there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import marimo as mo
import numpy as np
from markupsafe import Markup

from ..activity import STAGES
from ..jobs import launch
from ..reports import charts, live_output
from ..reports.charts import rate_chart as rate_chart  # shown by the notebook
from ..reports.in_language import duration, moment, number, size
from ..reports.time_words import planned_time, steps_left, time_in_words
from ..runs.checkpoints import usable_checkpoints
from ..runs.metrics import loss_before
from ..runs.plan import TrainingPlan, TrainingTracker
from ..runs.run import Run
from ..runs.throughput import RECENT_STEPS, counted_seconds
from ..translations import say
from .crashes import crash_words
from .diagnosis import diagnosis as all_warnings
from .diagnosis import message_of
from .language import read_only
from .look import empty, figures, folded, html_of, joined, note, put, row_table, shown, small
from .problems import Problem, attempt, failure
from .watching import RunWatcher, Snapshot

HEIGHT, LOW = 280, 150  # pixels of the charts
NOTHING = "–"


# Buttons --------------------------------------------------------------------------------------------------------


def run_menu(tracker: TrainingTracker, watcher: RunWatcher) -> mo.ui.dropdown:
    """Return a choice of the run to look at: the active one or another; its value is a name, or empty."""
    options = {say("current"): "", **{run.name: run.name for run in tracker.runs()}}
    chosen = watcher.chosen if watcher.chosen in options else next(iter(options))
    return mo.ui.dropdown(options, value=chosen, label=say("Show run"), allow_select_none=False, full_width=True)


def ticker() -> mo.ui.refresh:
    """Return a ticker that has the run looked at every second."""
    return mo.ui.refresh(options=["1s"], default_interval="1s")


def controls(plan: TrainingPlan | Problem, watcher: RunWatcher) -> tuple[Any, Any, Any]:
    """Return buttons to start, pause and stop, each enabled when it can do something.

    Args:
        plan: the run that Start would train.
        watcher: knows what is being trained.
    """
    active = watcher.active
    busy = active is not None and active.alive
    asked = active.control() if busy and active else "run"
    over = busy and active is not None and active.state in ("completed", "stopped")  # it is writing its result
    test = busy and active is not None and stage_of(active.status()) == "evaluation"
    ready = isinstance(plan, TrainingPlan) and not plan.done and (not busy or _may_wait(plan))
    begin = mo.ui.run_button(label=_begin_label(plan), kind="success", disabled=not ready)
    tooltip = say("Save and end the process; its memory is free then")
    pause = mo.ui.run_button(label=say("Pause"), disabled=not busy or over or asked != "run", tooltip=tooltip)
    tooltip = say("Leave out the test questions") if test else say("Save, and use what there is")
    label = say("Skip the test") if test else say("Stop")
    asked_already = asked == "skip" if test else asked == "stop"
    stop = mo.ui.run_button(label=label, kind="danger", disabled=not busy or over or asked_already, tooltip=tooltip)
    return begin, pause, stop


def start_row(plan: TrainingPlan | Problem, watcher: RunWatcher, begin: Any) -> mo.Html:
    """Return the button that starts training, with what it will do, or why it cannot."""
    if read_only():
        return small(say("This page was opened to look at: nothing on it starts or ends training."))
    busy = watcher.active if watcher.active is not None and watcher.active.alive else None
    words = small(_about_start(plan, busy, busy.control() if busy else "run"))
    return mo.hstack([begin, words], justify="start", align="center", gap=0.75, wrap=True)


def bar_buttons(watcher: RunWatcher, begin: Any, pause: Any, stop: Any) -> mo.Html | None:
    """Return the buttons that stay in view: for a run that is trained to pause and stop, for a paused one to go on."""
    active = watcher.active
    if read_only() or active is None:
        return None
    shown_now = [pause, stop] if active.alive else [begin] if active.state in ("paused", "crashed") else []
    return mo.hstack(shown_now, justify="end", gap=0.5) if shown_now else None


def suggested_step(snapshot: Snapshot) -> str:
    """Return the step of the page that shows what happens now, as `steps.STEPS` names it."""
    if snapshot.run is None or snapshot.state == "new":
        return "prepare"
    return "result" if snapshot.state in ("completed", "stopped") and not snapshot.alive else "train"


def _may_wait(plan: TrainingPlan) -> bool:
    """Return whether a run may be started beside the one that is trained, to come after it."""
    return plan.config.pace.queue and not plan.run.alive


def _begin_label(plan: TrainingPlan | Problem) -> str:
    """Return what the first button says: a new run starts; a crashed one tells where it goes on from."""
    if isinstance(plan, Problem) or not plan.run.exists or plan.run.state == "new" or plan.run.alive:
        return say("Start")
    step = last_checkpoint(plan.run)
    if plan.run.state == "crashed":
        return say("Go on from step {step}", step=step) if step else say("Start again")
    return say("Start") if plan.done else say("Go on")


def _about_start(plan: TrainingPlan | Problem, busy: Run | None, asked: str) -> str:
    """Return what is going on, or what Start will do."""
    if busy is not None:
        if busy.state in ("completed", "stopped"):
            return say("{run} is trained; its result is being written.", run=busy.name)
        goes_on = say("{run} is training in the background. You can close this page.", run=busy.name)
        return _asked_words(asked, stage_of(busy.status()), busy) if asked != "run" else goes_on
    if isinstance(plan, Problem):
        if plan.told_above:
            return say("Not ready: {problem}", problem=plan.message)
        return say("Not ready: first put right what is marked in red.")
    if plan.done:
        return say("{run} is complete. Raise Epochs to continue, or start a new run.", run=plan.run.name)
    if steps_left(plan) < plan.total_steps:
        return say("{run} goes on where it was saved last. Left: {time}.", run=plan.run.name, time=planned_time(plan))
    return say(
        "{run} will take {time}. It is kept in {place}.",
        run=plan.run.name, time=planned_time(plan), place=str(plan.run.path),
    )  # fmt: skip


def _asked_words(asked: str, stage: str, run: Run) -> str:
    """Return what the trainer does about a request, which depends on what it is doing."""
    status = run.status()
    whole = 0 < status.get("total_steps", 0) <= status.get("step", 0)
    if asked == "skip":
        return say("Skipping what it is doing now.")
    if asked == "stop":
        if stage == "evaluation":
            return say("Stopping: the test questions are asked still, unless you skip them.")
        if stage == "validation":
            return say("Stopping: it finishes this validation, saves, and answers the test questions.")
        return say("Stopping: it saves after the current step, and answers the test questions.")
    if stage == "validation":
        return say("Pausing now. This validation is done again when the run goes on.")
    if stage == "samples":
        return say("Pausing now. These sample answers are left out.")
    if stage == "evaluation":
        if whole:
            return say("Pausing now. The test questions are asked when the run goes on.")
        return say("Skipping the test questions: the run was ended before its last step.")
    return say("Pausing: it saves after the current step, and goes on from there later.")


def start(tracker: TrainingTracker, plan: TrainingPlan) -> mo.Html:
    """Start a worker process and return whether that worked, in words."""
    if read_only():
        return failure(say("This page was opened to look at: nothing on it starts or ends training."))
    outcome = attempt(launch.start, tracker, plan)
    if isinstance(outcome, Problem):
        return failure(outcome.message)
    return note(say("Started (process {number}).", number=outcome), "success")


# Figures --------------------------------------------------------------------------------------------------------


def run_panel(snapshot: Snapshot) -> mo.Html:
    """Return state, progress and speed of a run, and what went wrong if anything did."""
    if snapshot.run is None or snapshot.state == "new":
        return empty(say("Press Start in “Prepare”, or choose an earlier run above."))
    parts = [_state_line(snapshot), *_work_line(snapshot), _progress_bar(snapshot), _figures(snapshot)]
    message = message_of(snapshot.status)
    if snapshot.state == "failed":
        fallback = message or say("Training failed.")
        parts.append(failure(f"{fallback}\n{say('Change what it names, and begin again: what was saved is kept.')}"))
    elif snapshot.state == "crashed":
        parts.append(failure(crash_words(snapshot, last_checkpoint(snapshot.run))))
        parts.append(folded(say("The trainer’s last lines"), _log_block(launch.last_words(snapshot.run))))
    elif message:
        parts.append(note(message, "warn"))
    elif snapshot.alive and any(
        str(event.get("device", "")).startswith("Metal") for event in snapshot.of_type("start")
    ):
        parts.append(
            small(say("Let the display sleep in a long run: while it is on, macOS may end what keeps the GPU busy."))
        )
    return mo.vstack(parts, gap=0.6)


def state_words(snapshot: Snapshot) -> tuple[str, str]:
    """Return the state as a word, and the tone of its dot."""
    finishing = snapshot.alive and 0 < int(snapshot.status.get("total_steps", 0)) <= snapshot.step
    state = {"pause": "pausing", "stop": "stopping"}.get(snapshot.asked, "finishing" if finishing else snapshot.state)
    words = {
        "preparing": (say("preparing"), "info"),
        "running": (say("running"), "info"),
        "finishing": (say("finishing"), "info"),
        "pausing": (say("pausing"), "care"),
        "stopping": (say("stopping"), "care"),
        "paused": (say("paused"), "care"),
        "stopped": (say("stopped"), "good"),
        "completed": (say("completed"), "good"),
        "failed": (say("failed"), "bad"),
        "crashed": (say("crashed"), "bad"),
        "new": (say("new"), "info"),
    }
    return words.get(state, (state, "info"))


def _state_line(snapshot: Snapshot) -> mo.Html:
    word, tone = state_words(snapshot)
    live = Markup(" q-live") if snapshot.alive else ""
    return shown(
        put(
            '<p class="q-state" role="status" aria-live="polite"><span class="q-dot q-tone-{}{}" aria-hidden="true">'
            '</span><strong>{}</strong> <span class="q-run-name">{}</span></p>',
            tone,
            live,
            word,
            snapshot.run.name if snapshot.run else "",
        )
    )


def stage_of(status: Mapping[str, Any]) -> str:
    """Return the stage of work that a trainer is in; empty while it makes steps, or if a later version knows it."""
    stage = (status.get("work") or {}).get("stage", "")
    return stage if stage in STAGES else ""


def stage_words(snapshot: Snapshot) -> str:
    """Return what the trainer is doing and how far it is: "validating 61 of 148 rows"; empty while it makes steps."""
    stage = stage_of(snapshot.status) if snapshot.alive else ""
    if not stage:
        return ""
    work = snapshot.status["work"]
    done, total = number(work["done"]), number(work["total"])
    if not work["total"]:
        return live_output.working_words(say(STAGES[stage]), 0, 0)
    told = {
        "validation": say("validating {done} of {total} rows", done=done, total=total),
        "samples": say("answering sample questions, {done} of {total}", done=done, total=total),
        "evaluation": say("answering the test questions, {done} of {total}", done=done, total=total),
    }
    return told.get(stage) or f"{say(STAGES[stage])} … {done} / {total}"


def time_left(snapshot: Snapshot) -> str:
    """Return how long everything that is to come takes: "about 5 min"; empty if nothing is, or nobody knows."""
    if snapshot.state not in ("preparing", "running", "paused", "crashed"):
        return ""
    estimated = snapshot.time_left
    return time_in_words(estimated) if estimated and estimated.known and estimated.total >= 1 else ""


def _work_line(snapshot: Snapshot) -> list[mo.Html]:
    """Return what the trainer is doing, if it is no step and takes long enough to be seen."""
    words = stage_words(snapshot)
    return [small(words[0].upper() + words[1:])] if words else []


def _progress_bar(snapshot: Snapshot) -> mo.Html:
    total = int(snapshot.status.get("total_steps", 0))
    done = min(snapshot.step, total)
    return shown(
        put(
            '<div class="q-progress" role="progressbar" aria-label="{}" aria-valuemin="0" aria-valuemax="{}" '
            'aria-valuenow="{}"><div style="width:{}%"></div></div>',
            say("Steps done"),
            total,
            done,
            f"{100 * done / total:.2f}" if total else "0",
        )
    )


def _figures(snapshot: Snapshot) -> mo.Html:
    status, loss = snapshot.status, snapshot.last("train_loss")
    total = int(status.get("total_steps", 0))
    begin = next(iter(reversed(snapshot.of_type("start"))), {})
    epoch, peak = snapshot.last("epoch"), snapshot.last("peak_memory_bytes")
    free, summary = snapshot.last("available_memory_bytes"), _summary(snapshot)
    speed = summary.get("tokens_per_second") or _tokens_per_second(snapshot)
    counted = min(RECENT_STEPS, len(snapshot.steps["step"]))
    over = "" if summary else say("the last {count} steps", count=counted) if counted > 1 else say("the last step")
    trained = summary.get("training_seconds") or seconds_trained(snapshot)
    values: dict[str, str | tuple[str, str]] = {
        say("Step"): f"{number(snapshot.step)} / {number(total)}" if total else NOTHING,
        say("Epoch"): f"{epoch:.0f} / {begin.get('epochs', NOTHING)}" if epoch else NOTHING,
        say("Training loss"): number(loss, ".3f") if loss is not None else NOTHING,
        say("Validation loss"): _validation(snapshot),
        say("Speed"): (say("{speed} tokens/s", speed=number(speed, ",.0f")), over) if speed else NOTHING,
        say("Time left"): time_left(snapshot) or NOTHING,
        say("Training time"): (duration(trained), _checked(snapshot)) if epoch else NOTHING,
        say("Memory free"): (size(int(free)), _peak(peak)) if free else NOTHING,
    }
    return shown(put('<div class="q-four">{}</div>', Markup(figures(values).text)))


def _validation(snapshot: Snapshot) -> str | tuple[str, str]:
    losses, steps = snapshot.evals["val_loss"], snapshot.evals["step"]
    if not len(losses):
        return NOTHING
    last = number(losses[-1], ".3f") if np.isfinite(losses[-1]) else say("not finite")
    if not np.isfinite(losses).any():
        return last
    best = int(np.nanargmin(losses))
    told = say("best {loss} at step {step}", loss=number(losses[best], ".3f"), step=number(steps[best], ",.0f"))
    before = loss_before(snapshot.events)
    return last, told if before is None else f"{told}; {say('before training {loss}', loss=number(before, '.3f'))}"


def _summary(snapshot: Snapshot) -> Mapping[str, Any]:
    """Return the final numbers of a run that ended, so that they are the same everywhere; empty before that."""
    if snapshot.run is None or snapshot.state not in ("completed", "stopped"):
        return {}
    summary = attempt(snapshot.run.summary)
    return summary if isinstance(summary, Mapping) else {}


def _checked(snapshot: Snapshot) -> str:
    """Return how long checks and saving took besides the steps."""
    seconds = _seconds_between_steps(snapshot)
    return say("and {time} of checks", time=duration(seconds)) if seconds >= 1 else ""


def _peak(peak: float | None) -> str:
    return say("peak of the arrays: {size}", size=size(int(peak))) if peak else ""


def _tokens_per_second(snapshot: Snapshot) -> float:
    """Return the speed of the last steps; 0 if nothing was trained yet."""
    seconds = float(np.nansum(_recent_seconds(snapshot)))
    return float(np.nansum(snapshot.steps["tokens"][-RECENT_STEPS:])) / seconds if seconds else 0.0


def _recent_seconds(snapshot: Snapshot) -> np.ndarray:
    steps = snapshot.steps
    return counted_seconds(steps["tokens"][-RECENT_STEPS:], steps["seconds"][-RECENT_STEPS:])


def seconds_trained(snapshot: Snapshot) -> float:
    """Return the seconds of all steps, without checks, gaps between trainers, and while the machine slept."""
    steps = snapshot.steps
    return float(np.nansum(counted_seconds(steps["tokens"], steps["seconds"])))


def _seconds_between_steps(snapshot: Snapshot) -> float:
    """Return the seconds of validations, sample answers and saving."""
    timed = [np.array([e.get("seconds", 0.0) for e in snapshot.of_type(kind)]) for kind in ("checkpoint", "samples")]
    each = (counted_seconds(np.ones(len(seconds)), seconds) for seconds in (snapshot.evals["seconds"], *timed))
    return float(sum(np.nansum(seconds) for seconds in each))


# Curves, checkpoints, log ---------------------------------------------------------------------------------------


def chart_settings() -> mo.ui.dictionary:
    """Return what can be chosen about the charts: see `charts.View`."""
    strengths = {say("none"): 0.0, say("as usual"): 1.0, say("strong"): 5.0}
    return mo.ui.dictionary(
        {
            "range": mo.ui.range_slider(0, 100, 1, value=[0, 100], label=say("Part of the run (%)"), show_value=True),
            "smoothing": mo.ui.dropdown(strengths, value=say("as usual"), label=say("Smoothing"),
                                        allow_select_none=False),
            "logarithmic": mo.ui.checkbox(label=say("Logarithmic loss")),
        }
    )  # fmt: skip


def chart_settings_row(snapshot: Snapshot, settings: mo.ui.dictionary) -> mo.Html | None:
    """Return them in one line, if there is a run to draw."""
    if snapshot.run is None or snapshot.state == "new":
        return None
    parts = joined(html_of(element) for element in settings.elements.values())
    return shown(put('<div class="q-chart-settings">{}</div>', parts))


def chosen_view(settings: Mapping[str, Any]) -> charts.View:
    """Return what was chosen about the charts."""
    first, last = settings["range"]
    return charts.View(settings["logarithmic"], settings["smoothing"], first / 100, last / 100)


def run_charts(snapshot: Snapshot, view: charts.View = charts.ALL) -> mo.Html | None:
    """Return charts of loss; rate and gradient norm; speed, memory and CPU: as far as there are steps."""
    if not len(snapshot.steps["step"]):
        return None
    drawn = []
    for panel in charts.panels(snapshot.steps, snapshot.evals, view, loss_before(snapshot.events)):
        high = panel.name == "loss"
        html = Markup(mo.as_html(charts.chart(panel, HEIGHT if high else LOW)).text)
        kind = Markup("q-chart q-chart-wide") if high else Markup("q-chart")
        drawn.append(put('<figure class="{}" role="img" aria-label="{}">{}</figure>', kind, panel.about, html))
    return shown(put('<div class="q-charts">{}</div>', joined(drawn)))


def last_checkpoint(run: Run) -> int:
    """Return the step that a run would resume from; 0 if nothing was saved."""
    return max((step for step, _ in _saved(run)), default=0)


def _saved(run: Run) -> list[tuple[int, Path]]:
    return [(int(path.name), path) for path in usable_checkpoints(run.checkpoint_directory)]


def checkpoints(snapshot: Snapshot) -> mo.Html | None:
    """Return the run's saved checkpoints, newest first, folded away."""
    if snapshot.run is None or not (saved := _saved(snapshot.run)):
        return None
    names = say("step"), say("saved at"), say("size"), say("validation loss"), say("remark")
    losses = dict(zip(snapshot.evals["step"].tolist(), snapshot.evals["val_loss"].tolist(), strict=True))
    finite = [loss for loss in losses.values() if np.isfinite(loss)]
    known = {int(event["step"]): event for event in snapshot.of_type("checkpoint")}
    rows = []
    for step, path in saved:
        loss, event = losses.get(float(step)), known.get(step, {})
        best = loss is not None and bool(finite) and loss == min(finite)
        lost = moment(event["time"]) if "time" in event else NOTHING
        bytes_ = event.get("bytes") or sum(file.stat().st_size for file in path.iterdir())
        told = number(loss, ".4f") if loss is not None and np.isfinite(loss) else NOTHING
        rows.append(
            dict(zip(names, (number(step), lost, size(bytes_), told, say("best") if best else ""), strict=True))
        )
    title = say("Checkpoints ({count})", count=len(rows))
    return folded(title, row_table(rows, numbers=(names[0], names[2], names[3])))


def run_log(snapshot: Snapshot) -> mo.Html | None:
    """Return the terminal's output of the run, each line with its time; the newest is in view."""
    lines = [(event, line) for event in snapshot.recent if (line := live_output.event_line(dict(event)))]
    text = "\n".join(f"{moment(event.get('time', 0), date=False)}  {line.strip()}" for event, line in lines)
    return folded(say("Log"), _log_block(text)) if text else None


def _log_block(text: str) -> mo.Html:
    return shown(put('<div class="q-log" tabindex="0"><pre class="q-log-text">{}</pre></div>', text))


def diagnosis(snapshot: Snapshot) -> mo.Html | None:
    """Return the trainer's warnings with what to do, and how a run that failed ended."""
    return all_warnings(snapshot, last_checkpoint(snapshot.run) if snapshot.run else 0)
