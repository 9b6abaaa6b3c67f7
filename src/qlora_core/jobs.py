"""Training as a process of its own: start it, and ask it to pause or stop.

The lock is taken here and handed to the child, so that between a click and the first line of the worker nobody else can
start the same run. The child lives in its own session: closing the page, or Ctrl+C in its terminal, leaves it alone.
Knows nothing of mlx.
"""

from __future__ import annotations

import os
import subprocess
import sys

from .runs import Run, RunLock, TrainingPlan, TrainingTracker


def start(tracker: TrainingTracker, plan: TrainingPlan) -> int:
    """Start a worker for a planned run and return its process id.

    Raises:
        BusyError: the run is being trained already.
    """
    plan.run.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = RunLock(plan.run.path)
    try:
        run = tracker.create(plan)
        with (run.path / "worker.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "qlora_core.worker", str(run.path), "--lock", str(lock.descriptor)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock.descriptor,),
                start_new_session=True,
            )
    finally:
        os.close(lock.descriptor)  # the child keeps the lock through its own copy
    return child.pid


def last_words(run: Run, lines: int = 12) -> str:
    """The end of the worker's log, for a run that crashed."""
    try:
        return "\n".join((run.path / "worker.log").read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
