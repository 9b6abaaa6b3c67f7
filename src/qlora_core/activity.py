"""Tell whoever is listening what is being done right now, where that may take some seconds.

A listener hears only of the work of its own thread, and nobody has to pass it down to the code that quantises a matrix.
This module knows neither the code that does the work nor the code that shows it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

STAGES = {
    "importing": "Importing MLX",
    "reading": "Reading the data: rows so far",
    "encoding": "Turning rows into tokens",
    "describing": "Looking at the tokens",
    "fetching": "Fetching the base model, file by file",
    "converting": "Unpacking the built-in model",
    "hashing": "Checking the base model, file by file",
    "checking": "Checking that the run is as it was",
    "loading": "Loading the base model, matrix by matrix",
    "quantising": "Quantising the base model, matrix by matrix",
    "keeping": "Keeping the quantised base model for the next time",
    "dequantising": "Preparing the weights for this processor",
    "trying": "Trying how this model computes fastest",
    "longest_rows": "Trying the longest rows",
    "lower_layers": "Computing the layers below the adapters once for each row",
    "step": "Training, step by step",
    "first_step": "Making the first step",
    "compiling": "Making the first step, for which this GPU’s kernels are compiled",
    "validation": "Validating, batch by batch",
    "samples": "Answering the sample questions",
    "evaluation": "Answering the test questions",
    "saving": "Saving",
    "rounding": "Rounding the merged weights, matrix by matrix",
    "choosing": "Finding which matrices need more bits, one by one",
    "judging": "Comparing with the tuned model",
    "writing": "Writing the merged weights, matrix by matrix",
    "verifying": "Opening the result again, in a fresh process, to compare answers",
    "uploading": "Sending files to the hub, one by one",
    "exporting": "Writing the result to take away",
}
"""Text shown for each stage of work that is worth reporting."""


@dataclass
class Activity:
    """Something that is being done.

    Attributes:
        stage: one of `STAGES`.
        total: how much there is to do; 0 if unknown.
        done: how much of it is done.
        began: when it began, in seconds of a monotonic clock.
    """

    stage: str
    total: int = 0
    done: int = 0
    began: float = field(default_factory=time.monotonic)


Watch = Callable[[Activity | None], None]
"""Called with the current activity whenever it changes or makes progress; None: nothing worth reporting."""


class _Here(threading.local):
    watch: Watch | None = None
    now: Activity | None = None

    def tell(self) -> None:
        if self.watch:
            self.watch(self.now)


_here = _Here()


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Report what this thread does inside the block to `watch`, instead of to the listener of the outer block."""
    outer, _here.watch = _here.watch, watch
    try:
        yield
    finally:
        _here.watch = outer


@contextlib.contextmanager
def doing(stage: str, total: int = 0) -> Iterator[Callable[[int], None]]:
    """Report an activity inside the block; yield a function that takes how much of it is done."""
    outer, activity = _here.now, Activity(stage, total)

    def tick(done: int) -> None:
        activity.done = done
        _here.tell()

    try:
        _here.now = activity
        _here.tell()  # a listener may raise: to interrupt the work, say
        yield tick
    finally:
        _here.now = outer
        _here.tell()
