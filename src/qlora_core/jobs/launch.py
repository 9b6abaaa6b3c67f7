"""Training as a process of its own: start it, and ask it to pause or stop.

The locks of run and device are taken here and handed to the child, so that nobody else can start between a click and
the worker's first line. The child lives in its own session: closing the page, or Ctrl+C in its terminal, does not stop
it. Knows nothing of mlx.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from ..files.locks import LifeLock
from ..files.storage import read_json, write_json
from ..runs.plan import TrainingPlan, TrainingTracker
from ..runs.run import EXIT, WORKER_LOG, Run
from ..runs.writer import RunWriter
from .device_lock import DeviceLock


@contextlib.contextmanager
def beginning(tracker: TrainingTracker, plan: TrainingPlan) -> Iterator[tuple[RunWriter, DeviceLock | None]]:
    """Take a planned run, and the device unless it may wait, and write the run's directory.

    Raises:
        BusyError: this run is being trained, or another on the same device. Nothing was changed.
    """
    with contextlib.ExitStack() as held:
        device = None if plan.config.pace.queue else held.enter_context(DeviceLock(plan.run.path))
        writer = held.enter_context(tracker.record(plan.run))
        tracker.create(plan)
        writer.set_status("preparing", message="")  # a trainer that dies before its first report counts as crashed
        yield writer, device


def worker_command(run: Run, lock: LifeLock, device: LifeLock | None, *flags: str) -> tuple[list[str], Sequence[int]]:
    """Return the command of a process that trains a run, and the descriptors of the locks handed to it."""
    command = [sys.executable, "-m", "qlora_core.jobs.worker", str(run.path), "--lock", str(lock.descriptor), *flags]
    if device is None:
        return command, (lock.descriptor,)
    return [*command, "--device-lock", str(device.descriptor)], (lock.descriptor, device.descriptor)


def start(tracker: TrainingTracker, plan: TrainingPlan) -> int:
    """Start a worker for a planned run and return its process id.

    Raises:
        BusyError: this run is being trained, or another on the same device.
    """
    run = plan.run
    with beginning(tracker, plan) as (writer, device):  # leaving closes our copies of the locks, not the child's
        command, descriptors = worker_command(run, writer.lock, device)
        with (run.path / WORKER_LOG).open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
                start_new_session=True,
            )
    threading.Thread(target=_wait, args=(child, run), daemon=True).start()
    return child.pid


def _wait(child: subprocess.Popen[bytes], run: Run) -> None:
    """Wait for a worker, which would otherwise stay in the process table, and note its end if it cannot itself."""
    status = child.wait()
    with contextlib.suppress(OSError):
        if run.state == "crashed":
            said = run.status().get("time")  # links the two records, even if the clock changed
            write_json(run.path / EXIT, {"status": status, "after": said})


def exit_status(run: Run) -> int | None:
    """Return how the process of a crashed run ended: its status, or minus the signal; None if nobody saw it."""
    noted = read_json(run.path / EXIT)
    return noted["status"] if noted and noted.get("after") == run.status().get("time") else None


def last_words(run: Run, lines: int = 12) -> str:
    """Return the end of the worker's log for a run that crashed."""
    try:
        return "\n".join((run.path / WORKER_LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
