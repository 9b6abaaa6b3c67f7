"""Predict the time that a run takes, part by part: what there is to do, times what each unit of it took before.

The speed is measured: by the run itself as far as it went, else by the newest run of the same base among its
neighbours. What neither measured is not guessed but named as unknown. Knows nothing of MLX, nor of how it is told.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config import RunConfig
from ..errors import QLoraError
from .metrics import Columns, events_of
from .plan import TrainingPlan, TrainingTracker
from .run import Run
from .throughput import RECENT_STEPS, counted_seconds

ASKED_QUESTIONS = 6  # answered in the final test when there is no fact sheet
CHECKS = ("validation", "samples", "evaluation")
"""Parts of a run that only look at what was learnt."""
_ROWS_LOOKED_AT = 1_000  # for questions to ask

Amounts = Mapping[str, float]
"""Amounts of work for each part of `time_spent.PARTS`: processes to load; tokens to train; tokens to validate;
sample answers; checkpoints to save; answers of the final test."""
Rates = Mapping[str, float]
"""Seconds that a unit of each part takes, as far as it was measured."""


@dataclass(frozen=True)
class TimeEstimate:
    """The time that something will take, by part.

    Attributes:
        seconds: of each part that there is to do and whose speed is known.
        unknown: the parts that there are to do and nobody measured.
        measured_by: name of the earlier run that the speed is taken from; empty if there is none, or it is its own.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    measured_by: str = ""

    @property
    def known(self) -> bool:
        """Return whether there is a time to tell: the steps, which take the most, were measured, or none is left."""
        return "training" not in self.unknown

    @property
    def total(self) -> float:
        """Return the seconds of all parts that are known."""
        return sum(self.seconds.values())

    @property
    def checks(self) -> float:
        """Return the seconds of validations, sample answers and the final test, as far as they are known."""
        return sum(self.seconds.get(part, 0.0) for part in CHECKS)


def estimate(plan: TrainingPlan) -> TimeEstimate:
    """Return how long a planned run will take, from where it was saved last."""
    rates, measured_by = earlier_rates(plan.run, plan.identity["model"])
    return _multiplied(planned_amounts(plan), rates, measured_by)


def _multiplied(amounts: Amounts, rates: Rates, measured_by: str = "") -> TimeEstimate:
    wanted = {part: amount for part, amount in amounts.items() if amount}
    known = {part: amount * rates[part] for part, amount in wanted.items() if part in rates and np.isfinite(amount)}
    return TimeEstimate(known, frozenset(wanted.keys() - known.keys() - {"loading"}), measured_by)


# What there is to do --------------------------------------------------------------------------------------------


def planned_amounts(plan: TrainingPlan) -> Amounts:
    """Return what a planned run has to do, from where it was saved last; nothing of a complete one."""
    if plan.done:
        return {}
    total, config = plan.total_steps, plan.config
    done = min(plan.run.status().get("step", 0), total) if plan.run.exists else 0
    per_epoch = config.train.steps_per_epoch(plan.train_rows)
    questions = count_questions(plan.data.facts, itertools.chain(plan.data.validation, plan.data.train))
    checks = times_due(config.pace.eval_every or per_epoch, total, done)
    return {
        "loading": 1,
        "training": plan.tokens / per_epoch * (total - done),
        "validation": (checks + (done == 0)) * plan.validation_tokens,  # once before the first step
        "samples": (checks + (done == 0)) * samples_a_round(config, questions),
        "saving": times_due(config.pace.save_every or per_epoch, total, done),
        "evaluation": 2 * questions,
    }


def times_due(every: int, total: int, done: int) -> int:
    """Return how often something is due after `done` of `total` steps: every so many steps, and after the last."""
    return total // every - done // every + (total % every > 0) if done < total else 0


def count_questions(facts: Sequence[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]) -> int:
    """Return about how many questions the final test has: those of the fact sheet, else some conversations' first."""
    if facts:
        return sum(len(fact["questions"]) for fact in facts)
    talks = (row for row in itertools.islice(rows, _ROWS_LOOKED_AT) if row.get("messages"))
    return len(list(itertools.islice(talks, ASKED_QUESTIONS)))


def samples_a_round(config: RunConfig, questions: int) -> int:
    """Return how many sample prompts are answered at each validation, where the final test has so many questions."""
    if not config.pace.samples:
        return 0
    return len(set(config.pace.sample_prompts)) or min(config.pace.samples, questions)


# How fast it was ------------------------------------------------------------------------------------------------


def earlier_rates(run: Run, model: str) -> tuple[Rates, str]:
    """Return the rates of the newest run beside `run` that has the base with the fingerprint `model`, and its name.

    A run that goes on counts as its own neighbour. Without any, the rates are empty, and so is the name.
    """
    for other in TrainingTracker(run.path.parent).runs():
        try:
            if other.environment()["identity"].get("model") != model:
                continue
            rates = measured_rates(other)
        except (QLoraError, OSError):  # a damaged one says nothing of speed
            continue
        if "training" in rates:
            return rates, other.name
    return {}, ""


def measured_rates(run: Run) -> Rates:
    """Return the seconds that a unit of each part took in a run, of the parts that it came to.

    Raises:
        RunError: its summary or its evaluation is damaged.
    """
    found = run.metrics_file.stat() if run.metrics_file.is_file() else None
    recorded, starts = _recorded(run.metrics_file, found.st_size, found.st_mtime_ns) if found else ({}, 0)
    summary, evaluation, rates = run.summary() or {}, run.evaluation(), dict(recorded)
    if speed := summary.get("tokens_per_second"):
        rates["training"] = 1 / speed
    if (took := summary.get("loading_seconds")) and starts:
        rates["loading"] = took / starts
    if (took := summary.get("evaluation_seconds")) and evaluation and evaluation["questions"]:
        rates["evaluation"] = took / (2 * len(evaluation["questions"]))
    return rates


@functools.lru_cache(maxsize=16)
def _recorded(path: Path, size: int, changed: int) -> tuple[Rates, int]:
    """Return the rates that metrics of this size and age tell, and how many processes trained the run."""
    events = events_of(path, ("start", "before", "eval", "checkpoint", "samples"))
    steps = events_of(path, ("step",), last=RECENT_STEPS)
    columns = {name: np.array([step.get(name, np.nan) for step in steps], float) for name in ("tokens", "seconds")}
    validations = [event["seconds"] for event in events if event["type"] == "eval" and "seconds" in event]
    return recorded_rates(columns, validations, events), sum(event["type"] == "start" for event in events)


def recorded_rates(
    steps: Columns, validations: Sequence[float] | np.ndarray, events: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the rates that the records of a run tell.

    Args:
        steps: `tokens` and `seconds` of its steps, of which the most recent count.
        validations: seconds of each validation.
        events: other events; those of types that tell no time are passed over.
    """
    by_type: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        by_type.setdefault(event["type"], []).append(event)
    rates = {}
    tokens, seconds = steps["tokens"][-RECENT_STEPS:], steps["seconds"][-RECENT_STEPS:]
    if spent := float(np.nansum(counted_seconds(tokens, seconds))):
        rates["training"] = spent / float(np.nansum(tokens))
    validated = next((start["val_tokens"] for start in reversed(by_type.get("start", [])) if "val_tokens" in start), 0)
    before = [event["seconds"] for event in by_type.get("before", ()) if "seconds" in event]
    if (taken := [*validations, *before]) and validated:
        rates["validation"] = float(np.median(taken)) / validated
    if saved := [event["seconds"] for event in by_type.get("checkpoint", ()) if "seconds" in event]:
        rates["saving"] = float(np.median(saved))
    answered = [event["seconds"] / event["answers"] for event in by_type.get("samples", ()) if event.get("answers")]
    if answered:  # the final test asks in the same way, more questions at once
        rates["samples"] = rates["evaluation"] = float(np.median(answered))
    return rates


# Of a run under way ---------------------------------------------------------------------------------------------


def left(
    run: Run,
    status: Mapping[str, Any],
    steps: Columns,
    validations: Columns,
    events: Sequence[Mapping[str, Any]],
    *,
    stopping: bool = False,
) -> TimeEstimate:
    """Return how long a run under way will still take: the rest of what it is doing now, and all that follows.

    Args:
        run: has a trainer that is running.
        status: the trainer's last word.
        steps: its steps so far: `step`, `tokens` and `seconds`.
        validations: its validations so far: `step` and `seconds`.
        events: everything else that it recorded.
        stopping: it was asked to stop: after what it is doing now, only the final test follows.
    """
    amounts, one = _amounts_left(run, status, steps, validations, events, stopping=stopping)
    earlier, measured_by = _rates_before(run.path, next((e.get("time") for e in events if e["type"] == "start"), None))
    own = recorded_rates(steps, validations["seconds"], events)
    estimated = _multiplied(amounts, {**earlier, **own}, "" if "training" in own else measured_by)
    work = status.get("work") or {}
    stage = work.get("stage", "")
    rest = _rest(work, one.get(stage, 0.0) * {**earlier, **own}.get(stage, 0.0))
    if stage not in one or rest is None:
        return estimated
    others = max(0.0, amounts[stage] - one[stage])
    if others and stage in estimated.unknown:  # what is done now is all that was measured of it
        rest += others / one[stage] * (rest + work["seconds"])
    else:
        rest += estimated.seconds.get(stage, 0.0) * others / amounts[stage] if amounts[stage] else 0.0
    return TimeEstimate({**estimated.seconds, stage: rest}, estimated.unknown - {stage}, estimated.measured_by)


def _rest(work: Mapping[str, Any], usual: float) -> float | None:
    """Return about how many seconds what is being done now takes still; None if that is not known.

    Rows are validated at an even pace. Answers are not given so: many are written at once, and end together.

    Args:
        work: what is being done.
        usual: seconds that all of it usually takes; 0 if that is not known.
    """
    done, total, taken = work.get("done", 0), work.get("total", 0), work.get("seconds")
    if taken is None:
        return None
    if usual > taken and (not done or work["stage"] != "validation"):
        return usual - taken
    return taken * (total - done) / done if 0 < done <= total else None


def _amounts_left(
    run: Run,
    status: Mapping[str, Any],
    steps: Columns,
    validations: Columns,
    events: Sequence[Mapping[str, Any]],
    *,
    stopping: bool,
) -> tuple[Amounts, Amounts]:
    """Return how much of each part is left, with all of what is being done now, and how much is done of it at once."""
    config, questions = _about_run(run.path)
    begin = next((event for event in reversed(events) if event["type"] == "start"), {})
    total = status.get("total_steps", 0)
    step = min(max(status.get("step", 0), int(steps["step"][-1]) if len(steps["step"]) else 0), total)
    per_epoch = begin.get("steps_per_epoch") or max(1, total)

    def due(every: int, *kinds: str) -> int:
        """Return how often something is due still, which was done last at the newest event of these types."""
        last = max((event["step"] for event in events if event["type"] in kinds and "step" in event), default=0)
        if "eval" in kinds and len(validations["step"]):
            last = max(last, int(validations["step"][-1]))
        return times_due(every or per_epoch, total, min(step, max(last, step - 1)))

    skipped = [event.get("stage") for event in events if event["type"] == "skipped" and event.get("step") == step]
    begun = step > 0 or bool(begin.get("step")) or any(event["type"] == "before" for event in events)
    checks = due(config.pace.eval_every, "eval")
    checks += -("validation" in skipped) if begun else "validation" not in skipped  # one comes before the first step
    rounds = due(config.pace.eval_every, "samples") - ("samples" in skipped)
    first = not any(event["type"] == "samples" for event in events) and not begin.get("step")
    tokens = (
        float(np.nanmean(steps["tokens"])) if len(steps["tokens"]) else begin.get("train_tokens", np.nan) / per_epoch
    )
    one = {
        "validation": float(begin.get("val_tokens", 0)),
        "samples": float(samples_a_round(config, questions)),
        "saving": 1.0,
        "evaluation": 2.0 * questions,
    }
    amounts = {
        "training": tokens * (total - step) if step < total else 0.0,
        "validation": one["validation"] * checks,
        "samples": one["samples"] * (rounds + first),
        "saving": float(due(config.pace.save_every, "checkpoint")),
        "evaluation": one["evaluation"],
    }
    if stopping:
        now = (status.get("work") or {}).get("stage", "")
        amounts |= {part: one[part] if part == now else 0.0 for part in ("validation", "samples")}
        amounts |= {"training": 0.0, "saving": 1.0}
    return amounts, one


@functools.lru_cache(maxsize=8)
def _about_run(path: Path) -> tuple[RunConfig, int]:
    """Return the settings of a run and the questions of its final test, which stay while it is trained."""
    run, questions = Run(path), 0
    with contextlib.suppress(QLoraError, OSError):  # rows that cannot be read: nobody will be asked anything about them
        questions = count_questions(run.facts(), itertools.chain(run.validation_rows(), run.train_rows()))
    return run.config(), questions


@functools.lru_cache(maxsize=8)
def _rates_before(path: Path, began: float | None) -> tuple[Rates, str]:
    """Return the rates of an earlier run of the same base, looked for once for each time that a run began."""
    run = Run(path)
    try:
        return earlier_rates(run, run.environment()["identity"].get("model", ""))
    except QLoraError:
        return {}, ""
