"""Training as a process of its own: start it, and ask it to pause or stop.

The lock is taken here and handed to the child, so that between a click and the first line of the worker nobody else can
start the same run. The child lives in its own session: closing the page, or Ctrl+C in its terminal, leaves it alone.
Knows nothing of mlx.
"""

from __future__ import annotations

import subprocess
import sys
import threading

from .runs import Run, TrainingPlan, TrainingTracker


def start(tracker: TrainingTracker, plan: TrainingPlan) -> int:
    """Start a worker for a planned run and return its process id.

    Raises:
        BusyError: the run is being trained already.
    """
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
    threading.Thread(target=child.wait, daemon=True).start()  # or it would stay in the process table once it ended
    return child.pid


def last_words(run: Run, lines: int = 12) -> str:
    """The end of the worker's log, for a run that crashed."""
    try:
        return "\n".join((run.path / "worker.log").read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
