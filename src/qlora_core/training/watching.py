"""Checks after each step: numbers that are not finite, gradients that are far too large, and memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..engine import device
from ..errors import MemoryShortError, TrainingError
from ..machine.memory import MemorySample
from ..runs import memory_estimate
from ..runs.writer import RunWriter
from ..translations import Sentence
from .session import Session
from .steps import Step, sources_of

NON_FINITE_LIMIT = 3  # steps in a row without a finite update after which training pauses


def watch_numbers(
    session: Session, writer: RunWriter, group: Sequence[Sequence[int]], step: Step
) -> TrainingError | None:
    """Warn about skipped updates and gradient spikes. Return an error after several skipped updates in a row."""
    extra, number = session.progress.extra, session.progress.step
    extra["non_finite"] = 0 if step.updated else extra.get("non_finite", 0) + 1
    sources = sources_of(session.train_rows, group)
    if step.updated:
        if times := session.loop_state.norms.spike(step.norm):
            message = Sentence("step {step}: the gradient is {times} times as large as usual", step=number,
                               times=round(times))  # fmt: skip
            writer.log("warning", step=number, kind="spike", message=message, rows=sources)
        return None
    what = Sentence("the optimizer's state") if step.finite else Sentence("loss or gradient")
    message = Sentence("step {step}: {what} is not finite; the weights stay", step=number, what=what)
    writer.log("warning", step=number, kind="not_finite", message=message, rows=sources)
    if extra["non_finite"] < NON_FINITE_LIMIT:
        return None
    extra["non_finite"] = 0  # so that a run that is resumed in spite of this gets past these rows
    return TrainingError(
        f"{what} was not finite {NON_FINITE_LIMIT} steps in a row, last on {', '.join(sources[:4])}. "
        "The weights are those before. Look at these rows, or lower --learning-rate; both make another run. "
        "Going on with this one leaves these steps out."
    )


def watch_memory(session: Session, writer: RunWriter, memory: MemorySample) -> MemoryShortError | None:
    """Do what the memory guard decides after a step; return an error if it decides to pause."""
    decision = session.loop_state.memory_guard.look(memory, time.monotonic())
    if decision is None:
        return None
    if decision.action == "pause":
        return MemoryShortError(
            f"{decision.message}. Paused before the machine ran out of it; going on starts with what is free then. "
            f"{memory_estimate.advice(session.config)}"
        )
    step = session.progress.step
    if decision.action == "clear":
        device.clear_cache()
        message = Sentence("step {step}: {reason}; caches are cleared", step=step, reason=decision.message)
        writer.log("warning", step=step, kind="memory", message=message)
        return None
    message = Sentence("step {step}: {reason}; saving", step=step, reason=decision.message)
    writer.log("warning", step=step, kind="memory", message=message)
    session.loop_state.save_next = True
    return None
