"""Questions to a model in its own process, `chat_worker`, whose answers arrive piece by piece.

Nothing here waits: two threads carry lines to and from the process. Knows nothing of mlx or pages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from ..models.base_models import ModelSpec, has_gpu
from ..runs.memory_estimate import PROGRAM_BYTES, keeps_dense_weights

State = Literal["absent", "loading", "ready", "answering", "ended"]
SILENCE = 90.0  # seconds of silence after which a process ends; a hidden browser tab speaks once a minute


@dataclass(frozen=True)
class Answer:
    """An answer so far.

    Attributes:
        number: number of the question, from 1.
        base: whether the base gives it.
        text: the text so far.
        done: whether it is complete.
        cancelled: whether it ended because it was told to stop.
        error: why there is no more, if something went wrong.
        tokens: made so far.
        seconds: seconds that it took; 0 before the end.
    """

    number: int
    base: bool
    text: str = ""
    done: bool = False
    cancelled: bool = False
    error: str = ""
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Talk:
    """The chat process and its answers at one moment.

    Attributes:
        state: `absent` before the first question and once it was put away, `ended` when it ended by itself.
        reason: why it ended.
        answers: answers to all questions, in order.
        memory: bytes that the loaded model takes.
        tuned: whether it has adapters.
    """

    state: State = "absent"
    reason: str = ""
    answers: tuple[Answer, ...] = ()
    memory: int = 0
    tuned: bool = False


def needed_bytes(model: ModelSpec, available: int) -> int:
    """Return the memory that answering needs: weights, a CPU's dequantised copy if it fits, and the program."""
    kept = model.dense_bytes if not has_gpu() and keeps_dense_weights(model.dense_bytes, available) else 0
    return model.loaded_bytes + kept + PROGRAM_BYTES


class Talker:
    """A chat process that holds one model. It starts with the first question; usable from several threads.

    Args:
        arguments: arguments of `python -m qlora_core.jobs.chat_worker`: a run's directory, or `--model NAME`.
        silence: seconds without `poll` or another word after which the process ends, and its memory is free.
    """

    def __init__(self, arguments: Sequence[str | Path], silence: float = SILENCE) -> None:
        self.arguments = [*map(str, arguments), "--silence", str(silence)]
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._talk = Talk()
        self._answers: dict[int, Answer] = {}

    def ask(self, messages: Sequence[dict[str, str]], *, base: bool = False, **sampling: Any) -> int:
        """Ask, and return the number of the answer to come.

        Args:
            messages: the conversation up to the question.
            base: whether to answer without the adapters.
            sampling: fields of `Sampling`.
        """
        with self._lock:
            number = len(self._answers) + 1
            self._answers[number] = Answer(number, base)
            if self._process is None:
                self._talk = Talk("loading")
                self._process = _Process(self.arguments, self._hear, self._bury)
            elif self._talk.state == "ready":
                self._talk = dataclasses.replace(self._talk, state="answering")
            self._process.say({"id": number, "messages": list(messages), "base": base, "sampling": sampling})
            return number

    def cancel(self) -> None:
        """End the unfinished answers after the current token."""
        with self._lock:
            for answer in self._answers.values():
                if not answer.done and self._process:
                    self._process.say({"cancel": answer.number})

    def poll(self) -> Talk:
        """Return the current state. Asking for it keeps the process alive."""
        with self._lock:
            if self._process:
                self._process.say({"alive": True})
            return dataclasses.replace(self._talk, answers=tuple(self._answers.values()))

    def close(self, seconds: float = 2.0) -> None:
        """End the process, by force if it takes longer than that, so that its memory is free."""
        with self._lock:
            process, self._process = self._process, None
            self._talk = Talk()
            self._settle(cancelled=True)
        if process:
            process.end(seconds)

    def _hear(self, process: _Process, line: dict[str, Any]) -> None:
        with self._lock:
            if process is not self._process:
                return
            if "id" in line:
                self._hear_answer(line)
            elif line.get("ready"):
                self._talk = Talk("ready", memory=line["loaded_bytes"], tuned=line["tuned"])
            elif "error" in line:
                self._talk = dataclasses.replace(self._talk, reason=line["error"])
            if self._talk.state in ("ready", "answering"):
                waiting = any(not answer.done for answer in self._answers.values())
                self._talk = dataclasses.replace(self._talk, state="answering" if waiting else "ready")

    def _hear_answer(self, line: dict[str, Any]) -> None:
        answer = self._answers[line["id"]]
        if "piece" in line:
            answer = dataclasses.replace(answer, text=answer.text + line["piece"], tokens=line["tokens"])
        else:
            told = {name: line[name] for name in ("done", "cancelled", "tokens", "seconds", "error") if name in line}
            answer = dataclasses.replace(answer, **{**told, "done": True})
        self._answers[line["id"]] = answer

    def _bury(self, process: _Process, status: int, last_words: str) -> None:
        with self._lock:
            if process is not self._process:
                return
            self._process = None
            reason = self._talk.reason or words_for(status, last_words)
            self._talk = Talk("ended" if reason else "absent", reason)
            self._settle(error=reason)

    def _settle(self, **fields: Any) -> None:
        for number, answer in self._answers.items():
            if not answer.done:
                self._answers[number] = dataclasses.replace(answer, done=True, **fields)


def words_for(status: int, last_words: str) -> str:
    """Return why a process ended, for people; empty if it ended normally."""
    if status < 0:
        cause = ", usually for want of memory" if -status == signal.SIGKILL else ""
        return f"The process that answers was ended by the system (signal {-status}){cause}."
    return f"The process that answers ended by an error. Its last words: {last_words or 'none'}" if status else ""


class _Process:
    """A running chat process: one thread writes lines to it, another reads from it."""

    def __init__(self, arguments: Sequence[str], hear: Any, bury: Any) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._child = subprocess.Popen(
            [sys.executable, "-m", "qlora_core.jobs.chat_worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()
        threading.Thread(target=self._read, args=(hear, bury), daemon=True).start()

    def say(self, line: dict[str, Any]) -> None:
        """Queue a line to be written; a sign of life is dropped if something else waits."""
        if "alive" not in line or self._lines.empty():
            self._lines.put(line)

    def end(self, seconds: float) -> None:
        """End by closing the input, else by force."""
        self._lines.put(None)
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _write(self) -> None:
        pipe: Any = self._child.stdin
        with contextlib.suppress(OSError):  # the process is gone; `_read` reports it
            while (line := self._lines.get()) is not None:
                pipe.write(json.dumps(line).encode() + b"\n")
                pipe.flush()
        with contextlib.suppress(OSError):
            pipe.close()

    def _read(self, hear: Any, bury: Any) -> None:
        pipe: Any = self._child.stdout
        for raw in pipe:
            try:
                line = json.loads(raw)
            except ValueError:  # the line was cut off when the process ended
                continue
            hear(self, line)
        pipe.close()
        status = self._child.wait()
        self._lines.put(None)
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        self._errors.close()
        bury(self, status, lines[-1] if lines else "")
