"""Commands of `qlora` that the page runs in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
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
from ..runs.run import Run
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


@dataclass(frozen=True)
class Progress:
    """The state of the command that a desk sent last, as somebody sees it who looks at a run.

    Attributes:
        running: what was sent about that run is under way.
        elsewhere: the run that a command is under way about, if it is another one.
        problem: why the last command about that run failed, else empty.
        working: what is being done.
        kind: what `Desk.send` was given with it.
    """

    running: bool = False
    elsewhere: str = ""
    problem: str = ""
    working: Working | None = None
    kind: str = ""


class Desk:
    """A desk that sends commands about runs, one at a time, for all pages of this process.

    Attributes:
        job: the last command; None before any.
        run: the run that it is about.
        kind: what `send` was given with it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.job: Job | None = None
        self.run: Path | None = None
        self.kind = ""

    def send(self, run: Run, arguments: Sequence[str], kind: str = "") -> bool:
        """Start a command about a run; return whether it was, rather than another one being under way."""
        with self._lock:
            if self.job is not None and self.job.running:
                return False
            self.job, self.run, self.kind = Job(arguments), run.path.absolute(), kind
        return True

    def look(self, run: Run) -> Progress:
        """Return how the last command is getting on."""
        with self._lock:
            job, about, kind = self.job, self.run, self.kind
        ours = about == run.path.absolute()
        if job is None:
            return Progress()
        if not job.running:
            return Progress(problem=_problem_of(job) if ours else "", kind=kind)
        now = job.working()
        working = (now.stage, now.done, now.total, now.left) if now else None
        return Progress(ours, "" if ours else about.name, working=working, kind=kind)


def _problem_of(job: Job) -> str:
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
