"""Supervision of a trainer in a child process, which is restarted when it dies without a word.

The locks are held here and handed down, so that nobody else can take the run or the device between two children. A run
that ended for a reason (paused, stopped, complete, an error for people) is not restarted. Knows nothing of mlx.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ..config import RunConfig
from ..errors import QLoraError
from ..machine.crash_reasons import DEVICE_GAVE_UP, out_of_memory, reason
from ..models.base_models import has_metal
from ..reports.console import resume_line
from ..reports.live_output import TrainingReporter
from ..runs.metrics import parse
from ..runs.run import WORKER_LOG, Run
from ..runs.writer import RunLock, RunWriter, record
from ..tokens.batching import epoch_steps
from ..tokens.dataset import make_dataset
from .device_lock import DeviceLock, wait_for_device
from .exit_status import DEVICE_FAILED, DONE, ERROR, INTERRUPTED, PAUSED
from .launch import worker_command

ON_METAL = 3  # default restarts where macOS may end GPU work that the display needs
ALIKE = 2  # deaths at one step, with nothing changed, after which it stops and asks
SHOWN_ROWS = 4


@dataclass(frozen=True)
class Death:
    """The end of a trainer that did not report it, or whose device failed.

    Attributes:
        after: the last step that it made, or began from; None before it had loaded.
        micro_batch: rows that it computed at once.
        memory: whether memory ran out.
        reason: the cause in plain words.
        by_device: whether the device gave up, and the trainer ended as paused.
    """

    after: int | None
    micro_batch: int
    memory: bool
    reason: str
    by_device: bool = False

    @property
    def what(self) -> str:
        """Return who failed, in words."""
        return DEVICE_GAVE_UP if self.by_device else "the trainer died"

    @property
    def place(self) -> str:
        """Return where it happened, in words."""
        return "while it loaded" if self.after is None else f"after step {self.after}"


def restarts(config: RunConfig) -> int:
    """Return how often a run's training restarts by itself; with 0 nobody looks after it."""
    asked = config.pace.restart
    return asked if asked >= 0 else ON_METAL if has_metal() else 0


def supervise(writer: RunWriter, reporter: TrainingReporter, device: DeviceLock | None) -> int:
    """Train a run in child processes until it ends, by itself or after too many deaths.

    Args:
        writer: writer of the opened run; children write it while they live.
        reporter: shows what is said between them; they show theirs on the same stream.
        device: the device, where it was taken already; else it is waited for.

    Returns:
        What `qlora train` would: 0 complete, 3 paused or stopped, 130 by a signal, 1 error.

    Raises:
        KeyboardInterrupt: by a signal, while it waited for the device.
    """
    writer.listeners.append(reporter)
    taken = device or wait_for_device(writer)
    if taken is None:
        return PAUSED
    with contextlib.nullcontext() if device else taken, Forwarding() as signals:
        return _look_after(writer, taken, reporter, signals)


def _look_after(writer: RunWriter, device: DeviceLock, reporter: TrainingReporter, signals: Forwarding) -> int:
    run, deaths = writer.run, list[Death]()
    most = restarts(run.config())
    while True:
        read = _size(run.metrics_file)
        status, log = _train_in_child(run, writer, device, reporter, signals)
        if status != DEVICE_FAILED and run.status().get("state") not in ("preparing", "running"):
            return status if status in (DONE, PAUSED, INTERRUPTED) else ERROR
        events = list(_events_since(run.metrics_file, read))
        deaths.append(_how_it_died(run, events, status, log))
        with _own_writer(writer) as own:
            step = run.status().get("step", 0) if deaths[-1].by_device else _last_step(own)
            if signals.asked:
                own.end("paused", step, f"the trainer was gone before it could save. {deaths[-1].reason}")
                return INTERRUPTED
            if problem := _why_it_stops(run, deaths, most, events):
                own.end("paused" if deaths[-1].by_device else "failed", step, problem)
                sys.stderr.write(f"error: {problem}\n")
                return ERROR
            words = _prepare_another(run, deaths[-1], f"Restart {len(deaths)} of {most}")
            own.log("warning", step=step, kind="restart", message=words)
            own.set_status("preparing", message=words)


def _train_in_child(
    run: Run, writer: RunWriter, device: DeviceLock, reporter: TrainingReporter, signals: Forwarding
) -> tuple[int, str]:
    """Train in a child process; return its exit status, or minus the signal, and what it added to the worker's log."""
    path = run.path / WORKER_LOG
    before = _size(path)
    command, descriptors = worker_command(run, writer.lock, device, "--supervised")
    reporter.stream.flush()
    with path.open("ab") as log:
        # its own process group: Ctrl+C reaches only this process, and is forwarded once
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=reporter.stream, stderr=log, pass_fds=descriptors, process_group=0
        )
        status = signals.wait_for(child)
        ours = os.path.samestat(os.fstat(log.fileno()), os.fstat(sys.stderr.fileno()))
    with path.open("rb") as log:
        log.seek(before)
        words = log.read().decode("utf-8", errors="replace")
    if not ours and status != DEVICE_FAILED:  # in a terminal; what the device did is told with what follows from it
        sys.stderr.write(words)
        sys.stderr.flush()
    return status, words


@contextlib.contextmanager
def _own_writer(writer: RunWriter) -> Iterator[RunWriter]:
    """Write between two children, using what the last one left and a copy of the lock that may be given back."""
    lock = RunLock(writer.run.path, os.dup(writer.lock.descriptor))
    with RunWriter(writer.run, lock) as own:
        own.listeners += writer.listeners
        yield own


def _last_step(writer: RunWriter) -> int:
    steps = (event["step"] for event in reversed(writer.run.metrics()) if event["type"] in ("start", "step"))
    return next(steps, 0)


# Deaths ---------------------------------------------------------------------------------------------------------


def _how_it_died(run: Run, events: list[dict[str, Any]], status: int, log: str) -> Death:
    steps = [event["step"] for event in events if event.get("type") in ("start", "step")]
    after = steps[-1] if steps else None
    memory = out_of_memory(status, log)
    if status == DEVICE_FAILED:
        told = str(run.status().get("message")).removeprefix(f"{DEVICE_GAVE_UP}: ")
        return Death(after, run.micro_batch, memory, told, by_device=True)
    return Death(after, run.micro_batch, memory, reason(status, log))


def _why_it_stops(run: Run, deaths: list[Death], restarts: int, events: list[dict[str, Any]]) -> str:
    """Return why a person must look before it goes on; empty if it may be tried again."""
    last = deaths[-1]
    alike = sum((death.after, death.micro_batch) == (last.after, last.micro_batch) for death in deaths)
    if alike >= ALIKE:
        often = f"{'twice' if alike == 2 else f'{alike} times'} {last.place}"
    elif len(deaths) > restarts:
        often = f"{len(deaths)} times, last {last.place}"
    else:
        return ""
    rows = _rows_after(run, last.after, events)
    shown = f"{', '.join(rows[:SHOWN_ROWS])}{' …' if len(rows) > SHOWN_ROWS else ''}"
    named = f" The rows of step {last.after + 1}: {shown}." if rows and last.after is not None else ""
    return f"{last.what} {often}, so it is not started again. {last.reason}{named} {resume_line(run)}"


def _rows_after(run: Run, step: int | None, events: list[dict[str, Any]]) -> list[str]:
    """Return where the rows of the next step come from; empty if that is unknown."""
    order = next((event.get("order") for event in reversed(events) if event.get("type") == "start"), None)
    if step is None or order is None:
        return []
    try:
        config = run.config()
        rows = make_dataset(run.train_rows(), run.tokenizer(), config.data.max_seq_length).rows
        epoch, number = divmod(step, config.train.steps_per_epoch(len(rows)))
        steps = epoch_steps(rows.lengths.tolist(), config.train, epoch=epoch, order=order)
        return [rows[i].source for indices in steps[number] for i in indices] if epoch < config.train.epochs else []
    except (QLoraError, OSError):
        return []


def _prepare_another(run: Run, death: Death, which: str) -> str:
    """Change what may help for the next try, permanently, and report it."""
    words = f"{death.what} {death.place}. {death.reason} {which}"
    if not death.memory or death.micro_batch == 1:
        return f"{words}."
    half, train = death.micro_batch // 2, run.config().train
    record(run, micro_batch=half)
    return (
        f"{words}, with {half} rows at once instead of {death.micro_batch} and twice as many micro-batches: "
        f"{train.batch_size * train.grad_accumulation_steps} rows a step, as before."
    )


def _events_since(path: Path, offset: int) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.read()
    return parse(lines[: lines.rfind(b"\n") + 1])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# Signals --------------------------------------------------------------------------------------------------------


class Forwarding:
    """Context manager that forwards the signals that ask a program to end, or to wait, to the child.

    Signals are only caught in the main thread.

    Attributes:
        asked: whether the child was asked to end.
    """

    def __init__(self) -> None:
        self.asked = False
        self._signal = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Forwarding:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                self._before[number] = signal.signal(number, self._end)
        self._before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        # children take it over: they write to the terminal from a group that is not in front
        self._before[signal.SIGTTOU] = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait_for(self, child: subprocess.Popen[bytes]) -> int:
        """Wait for a child, which gets signals that come meanwhile or came just before it started."""
        self._child = child
        if self.asked:
            child.send_signal(self._signal)
        status = child.wait()
        self._child = None
        return status

    def _end(self, number: int, _frame: FrameType | None) -> None:
        self.asked, self._signal = True, number
        if self._child is not None:
            self._child.send_signal(number)

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        """Suspend on Ctrl+Z: the child first, then this process; when this process resumes, so does the child."""
        if self._child is not None:
            self._child.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        if self._child is not None:
            self._child.send_signal(signal.SIGCONT)
