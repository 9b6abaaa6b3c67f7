"""Training as a process of its own: start it, and ask it to pause or stop.

The lock is taken here and handed to the child, so that between a click and the first line of the worker nobody else can
start the same run. The child lives in its own session: closing the page, or Ctrl+C in its terminal, leaves it alone.
Knows nothing of mlx.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time

from .errors import BusyError
from .runs import Run, TrainingPlan, TrainingTracker
from .storage import read_json, write_json

EXIT_FILE = "exit.json"  # how a worker's process ended that did not say so itself


def start(tracker: TrainingTracker, plan: TrainingPlan) -> int:
    """Start a worker for a planned run and return its process id.

    Raises:
        BusyError: this run, or another beside it, is being trained: two at once would share the memory of one.
    """
    if other := next((run for run in tracker.runs() if run.alive and run.path != plan.run.path), None):
        raise BusyError(f"{other.name} is being trained already. Pause or stop it first, or wait until it has ended.")
    with tracker.record(plan.run) as writer:  # leaving it closes our copy of the lock; the child keeps its own
        run, lock = tracker.create(plan), writer.lock.descriptor
        with (run.path / "worker.log").open("ab") as log:
            writer.set_status("preparing", message="")  # a worker that dies before its first word has crashed
            child = subprocess.Popen(
                [sys.executable, "-m", "qlora_core.worker", str(run.path), "--lock", str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
            )
    threading.Thread(target=_wait, args=(child, run), daemon=True).start()
    return child.pid


def _wait(child: subprocess.Popen[bytes], run: Run) -> None:
    """Wait for a worker, which would stay in the process table otherwise, and note how it ended if it cannot."""
    status = child.wait()
    with contextlib.suppress(OSError):
        if run.state == "crashed":
            write_json(run.path / EXIT_FILE, {"status": status, "time": round(time.time(), 3)})


def exit_status(run: Run) -> int | None:
    """How the process of a crashed run ended: its status, or minus the signal; None where nobody saw it."""
    noted = read_json(run.path / EXIT_FILE)
    return noted["status"] if noted and noted["time"] >= run.status().get("time", 0) else None


def last_words(run: Run, lines: int = 12) -> str:
    """The end of the worker's log, for a run that crashed."""
    try:
        return "\n".join((run.path / "worker.log").read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
