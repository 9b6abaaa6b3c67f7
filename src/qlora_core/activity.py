"""Tell whoever is listening what is being done right now, where that may take some seconds.

A listener hears only of the work of its own thread, and nobody has to pass it down to the code that quantises a matrix.
A program that another one waits for notes it in a file, which the other one reads. This module knows neither the code
that does the work nor the code that shows it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    "validation": "Validating, row by row",
    "samples": "Answering the sample questions",
    "evaluation": "Answering the test questions",
    "losses": "Computing losses, row by row",
    "contest": "Asking base and tuned model the same questions",
    "saving": "Saving",
    "rounding": "Rounding the merged weights, matrix by matrix",
    "choosing": "Finding which matrices need more bits, one by one",
    "judging": "Comparing with the tuned model, row by row",
    "writing": "Writing the merged weights, matrix by matrix",
    "verifying": "Opening the result again, in a fresh process, to compare answers",
    "asking": "Asking it the run's questions",
    "llama_cpp": "Asking llama.cpp, question by question",
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

    @property
    def left(self) -> float | None:
        """Return about how many seconds the rest takes, as far as it went so far; None if that is not known."""
        known = self.total > 0 and 0 < self.done <= self.total
        return (time.monotonic() - self.began) * (self.total - self.done) / self.done if known else None


Listener = Callable[[Activity | None], None]
"""Called with the current activity whenever it changes or makes progress; None: nothing worth reporting."""


class _Here(threading.local):
    listener: Listener | None = None
    now: Activity | None = None

    def tell(self) -> None:
        if self.listener:
            self.listener(self.now)


_here = _Here()


@contextlib.contextmanager
def watching(listener: Listener) -> Iterator[None]:
    """Report what this thread does inside the block to `listener`, instead of to the listener of the outer block."""
    outer, _here.listener = _here.listener, listener
    try:
        yield
    finally:
        _here.listener = outer


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


# Between programs -----------------------------------------------------------------------------------------------

NOTE = "QLORA_WORKING"
"""Environment variable: the file in which a program notes what it is doing, for the one that started it."""
OFTEN = 0.2  # seconds between two notes of one activity


@dataclass
class Note:
    """A file that says what a program is doing.

    Attributes:
        path: the file.
    """

    path: Path
    _told: str = ""
    _when: float = 0.0

    def write(self, activity: Activity | None) -> None:
        """Note what is being done, unless much the same was noted a moment ago. Nothing fails if that cannot be."""
        stage, moment = activity.stage if activity else "", time.monotonic()
        if stage == self._told and moment - self._when < OFTEN:
            return
        self._told, self._when = stage, moment
        about = {}
        if activity:
            about = {"stage": stage, "total": activity.total, "done": activity.done, "age": moment - activity.began}
        part = self.path.with_suffix(".part")
        with contextlib.suppress(OSError):  # whoever wanted to know is gone
            part.write_text(json.dumps(about), encoding="utf-8")
            part.replace(self.path)

    def read(self) -> Activity | None:
        """Return what is being done; None if nothing is noted."""
        try:
            about = json.loads(self.path.read_text(encoding="utf-8"))
            began = time.monotonic() - about["age"]
            return Activity(about["stage"], about["total"], about["done"], began) if about["stage"] in STAGES else None
        except (OSError, ValueError, LookupError):
            return None


@contextlib.contextmanager
def noting() -> Iterator[None]:
    """Note what this thread does inside the block in the file of `NOTE`, if it is set, besides telling the listener."""
    wanted, outer = os.environ.pop(NOTE, ""), _here.listener  # programs started from here are asked on their own
    if not wanted:
        yield
        return
    note = Note(Path(wanted))

    def tell(activity: Activity | None) -> None:
        note.write(activity)
        if outer:
            outer(activity)

    with watching(tell):
        yield


def run_program(command: Sequence[str], *, seconds: float | None = None, **options: Any) -> subprocess.CompletedProcess:
    """Run a program that uses `noting`, as `subprocess.run` does, and report what it does as if this thread did it.

    Args:
        command: the program and its arguments.
        seconds: when to give up and end it; None: never.
        options: of `subprocess.Popen`.

    Raises:
        TimeoutExpired: it took longer.
    """
    outer, began = _here.now, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        note = Note(Path(place) / "working.json")
        environment = {**os.environ, NOTE: str(note.path)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, **options)
        try:
            while True:
                try:
                    output, errors = process.communicate(timeout=OFTEN)
                    return subprocess.CompletedProcess(command, process.returncode, output, errors)
                except subprocess.TimeoutExpired:
                    if seconds is not None and time.monotonic() - began > seconds:
                        raise
                _here.now = note.read() or outer
                _here.tell()
        finally:
            _here.now = outer
            if process.poll() is None:
                process.kill()
                process.communicate()
            _here.tell()
