"""Tell the time that `runs.time_estimate` predicts in sentences of the reader's language."""

from __future__ import annotations

from ..runs.plan import TrainingPlan
from ..runs.time_estimate import TimeEstimate, estimate
from ..runs.time_spent import PARTS
from ..translations import say
from .in_language import about, number


def planned_time(plan: TrainingPlan) -> str:
    """Return how long a planned run will be: "220 steps, about 4 min, 1 min of it checks"."""
    if plan.done:
        return say("complete: no step is left")
    return time_sentence(steps_left(plan), estimate(plan))


def steps_left(plan: TrainingPlan) -> int:
    """Return the steps that a planned run will make, from where it was saved last."""
    return max(0, plan.total_steps - (plan.run.status().get("step", 0) if plan.run.exists else 0))


def time_sentence(steps: int, estimated: TimeEstimate) -> str:
    """Return a number of steps and how long everything takes with them, as far as that is known."""
    counted = say("1 step") if steps == 1 else say("{count} steps", count=number(steps))
    if not estimated.known:
        return counted
    taken = time_in_words(estimated)
    if estimated.checks < 1:
        return say("{steps}, {time}", steps=counted, time=taken)
    return say("{steps}, {time}, {checks} of it checks", steps=counted, time=taken, checks=about(estimated.checks))


def time_in_words(estimated: TimeEstimate) -> str:
    """Return all of an estimate as one duration: "about 4 min", or "at least 4 min" if some part was never measured."""
    time = about(estimated.total)
    return say("at least {time}", time=time) if estimated.unknown else say("about {time}", time=time)


def parts_in_words(estimated: TimeEstimate) -> str:
    """Return what an estimate consists of: each part of half a second or more, and those that nobody measured."""
    known = {part: seconds for part, seconds in estimated.seconds.items() if seconds >= 0.5}
    words = [f"{say(PARTS[part])} {about(known[part])}" for part in PARTS if part in known]
    missing = [say(PARTS[part]) for part in PARTS if part in estimated.unknown]
    if missing:
        words.append(say("not measured yet: {parts}", parts=", ".join(missing)))
    return ", ".join(words)
