"""Commands of `qlora` that the page runs in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import marimo as mo

from ..activity import NOTE, STAGES, Activity, Note
from ..errors import QLoraError
from ..reports.in_language import about
from ..reports.live_output import working_words
from ..translations import say
from .look import small


class Job:
    """A `qlora` command that runs beside the page, which polls for its end.

    It lives in its own session: closing the page, or Ctrl+C in its terminal, does not stop it.

    Args:
        arguments: the command and its flags, without `--json`.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = tuple(arguments)
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - read later
        self._printed: tuple[str, str] | None = None
        place = Path(tempfile.mkdtemp(prefix="qlora-job-"))
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        self._note = Note(place / "working.json")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qlora_core", *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
            start_new_session=True,
            env={**os.environ, NOTE: str(self._note.path)},
        )

    @property
    def running(self) -> bool:
        """Return whether it is still running."""
        return self._process.poll() is None

    def working(self) -> Activity | None:
        """Return what it is doing, if that is worth reporting."""
        return self._note.read() if self.running else None

    def result(self) -> dict[str, Any]:
        """Return the JSON object that it printed, waiting for its end.

        Raises:
            QLoraError: it printed none; with its error line.
        """
        if self._printed is None:
            self._process.wait()
            with self._output, self._errors:
                self._printed = _read(self._output), _read(self._errors)
        output, errors = self._printed
        try:
            return json.loads(output)
        except ValueError:
            last = (errors.strip().splitlines() or [f"exit status {self._process.returncode}"])[-1]
            raise QLoraError(last.removeprefix("error: ")) from None


Working = tuple[str, int, int, float | None]
"""A stage of `activity.STAGES`, how much of it is done, of how much, and about how many seconds it takes still."""


def working_of(job: Job) -> Working | None:
    """Return what a command is doing, as a value that can be compared."""
    now = job.working()
    return (now.stage, now.done, now.total, now.left) if now else None


def problem_of(job: Job) -> str:
    """Return why a command that has ended failed; empty if it did not."""
    try:
        job.result()
    except QLoraError as error:
        return str(error)
    return ""


def what_it_does(working: Working | None) -> list[mo.Html]:
    """Return what a command is doing, and how long that takes still, as far as it is known."""
    if working is None:
        return []
    stage, done, total, left = working
    told = working_words(say(STAGES[stage]), done, total)
    return [small(f"{told} – {say('about {time} left', time=about(left))}" if left else told)]


def _read(file: Any) -> str:
    file.seek(0)
    return file.read().decode("utf-8", errors="replace")


@dataclass(frozen=True)
class News:
    """The state of an errand.

    Attributes:
        running: whether the command is still running.
        result: the command's output, once it has ended well.
        problem: why it failed, else empty.
    """

    running: bool = False
    result: dict[str, Any] | None = None
    problem: str = ""


class Errand:
    """A command sent by a button and watched by the page's ticker, one at a time."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._news = News()

    def send(self, *arguments: str) -> None:
        """Start the command unless one is under way."""
        if not self.look().running:
            self._job, self._news = Job(arguments), News(running=True)

    def look(self) -> News:
        """Return the current state; equal states are equal values."""
        if self._news.running and self._job is not None and not self._job.running:
            try:
                self._news = News(result=self._job.result())
            except QLoraError as error:
                self._news = News(problem=str(error))
        return self._news
