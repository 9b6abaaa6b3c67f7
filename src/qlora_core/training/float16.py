"""Numbers beyond the range of float16: noticing them, and going on in bfloat16."""

from __future__ import annotations

import gc

import numpy as np

from ..activity import doing
from ..engine import device
from ..runs.writer import RunWriter, record
from ..translations import Sentence
from .session import Session
from .steps import HalfOverflow, all_finite, prepare_to_train, sources_of, summed_gradient, validation_losses


def look_for_overflow(session: Session) -> None:
    """Compute the longest training and validation rows before the first step, to check float16 for overflow.

    Nothing of it is kept. This is not repeated when a run resumes: with the adapters trained so far, the outcome could
    differ from that of a run that was not interrupted.

    Raises:
        HalfOverflow: a result is not finite.
    """
    if session.kernels.dtype != "float16" or session.progress.step:
        return

    prepare_to_train(session)
    with doing("longest_rows"):
        some = session.batcher.longest(session.train_rows)
        if not all_finite(*summed_gradient(session, [some])).item():
            raise HalfOverflow(
                Sentence("the longest rows, before the first step"), sources_of(session.train_rows, [some])
            )
        some = session.batcher.longest(session.val_rows)
        if some and not np.isfinite(validation_losses(session, some)).all():
            sources = sources_of(session.val_rows, [some])
            raise HalfOverflow(Sentence("the longest validation rows, before the first step"), sources)


def use_bfloat16(writer: RunWriter, step: int, where: str, rows: list[str]) -> None:
    """Record that the run computes in bfloat16 from now on, for whoever opens it next, and log a warning."""
    record(writer.run, kernels=writer.run.environment()["kernels"] | {"dtype": "bfloat16"})
    message = Sentence(
        "{where}: loss or gradient is not finite in float16, which ends at 65,504; from step {step} on the run "
        "computes in bfloat16, which goes as far as float32 and takes an M1 or M2 longer",
        where=where, step=step + 1,
    )  # fmt: skip
    writer.log("warning", step=step, kind="float16", message=message, rows=rows)


def give_back_memory() -> None:
    """Free the arrays of a session that is gone: its parts refer to each other, so they need the garbage collector."""
    gc.collect()
    device.clear_cache()
