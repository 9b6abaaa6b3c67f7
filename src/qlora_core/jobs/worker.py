"""The process that trains a run for somebody else: `python -m qlora_core.jobs.worker RUN --lock N`.

Its output is the run's `worker.log`; all else is written to the run directory. With the setting `restart` it supervises
a child that runs this module again and trains.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..activity import doing, watching
from ..machine.keep_awake import kept_awake
from ..machine.memory import MemoryMonitor
from ..runs.run import Run
from ..runs.time_spent import process_age
from ..runs.writer import RunLock, RunWriter
from .device_lock import DeviceLock, further_devices, wait_for_device
from .exit_status import DEVICE_FAILED, DONE, ERROR, INTERRUPTED, PAUSED

if TYPE_CHECKING:
    from ..training.loop import Outcome


def train_here(
    writer: RunWriter,
    listener: Callable[[dict[str, Any]], None],
    *,
    device: DeviceLock | None = None,
    monitor: MemoryMonitor | None = None,
    failed: int = ERROR,
) -> Outcome:
    """Train the run in this process, on a device of its own, with the machine kept awake.

    Args:
        writer: writer of the opened run.
        listener: called with every event.
        device: the device, where it was taken already; else it is waited for.
        monitor: looks at the memory; a new one by default.
        failed: exit status where the process must be ended since one of several devices is lost.

    Raises:
        QLoraError: as `loop.train` raises it.
        KeyboardInterrupt: while it waited for the device, or while modules were being imported.
    """
    writer.listeners.append(listener)
    before = process_age()
    with contextlib.ExitStack() as held:
        if taken := device or wait_for_device(writer):
            held.enter_context(taken) if device is None else None
            held.enter_context(further_devices(writer))
            held.enter_context(kept_awake(writer.run.config().pace.keep_awake))
        began = time.monotonic() - before  # leaves out the time that it waited
        with watching(writer.working), doing("importing"):
            from ..training import loop  # only here: mlx takes a second, and memory

        return loop.train(writer, monitor, began=began, failed=failed) if taken else loop.Outcome("paused")


def train_and_keep(writer: RunWriter, listener: Callable[[dict[str, Any]], None], **how: Any) -> tuple[Outcome, str]:
    """Train the run as `train_here` does and keep its result; return why it could not be kept, too, or "".

    Raises:
        QLoraError: as `train_here` does.
        KeyboardInterrupt: likewise.
    """
    from ..exports.export import keep_result
    from ..exports.run_card import write_run_card

    outcome = train_here(writer, listener, **how)
    if outcome.state == "paused":
        return outcome, ""
    run, problems = writer.run, []
    kept = {
        "the run's result was not exported": lambda: keep_result(run),
        "the run card was not written": lambda: write_run_card(run, run.path),
    }
    with watching(writer.working):
        for problem, keep in kept.items():
            try:
                keep()
            except Exception as error:  # training is over and must not fail because of, say, a drawing
                problems.append(f"{problem}: {error or type(error).__name__}")
    return outcome, " ".join(problems)


def exit_status(outcome: Outcome) -> int:
    """Return the exit status of a process that trained."""
    if outcome.state == "completed":
        return DONE
    return INTERRUPTED if outcome.state == "paused" and outcome.by_ctrl_c else PAUSED


def main() -> int:
    """Train the run, and return what `qlora train` would: 0 complete, 3 paused or stopped, 130 Ctrl+C, 1 error."""
    parser = argparse.ArgumentParser(prog="qlora_core.jobs.worker")
    parser.add_argument("run", type=Path)
    parser.add_argument("--lock", type=int, required=True, help="descriptor of the run's lock, taken by the parent")
    parser.add_argument("--device-lock", type=int, help="descriptor of the device's lock, if the parent took it")
    parser.add_argument("--supervised", action="store_true", help="the parent looks after this process")
    arguments = parser.parse_args()

    from ..errors import DeviceError, QLoraError
    from ..files.storage import keep_private
    from ..reports.live_output import TrainingReporter
    from .supervisor import restarts, supervise

    keep_private()
    run, reporter = Run(arguments.run), TrainingReporter()
    failed = DEVICE_FAILED if arguments.supervised else ERROR
    try:
        with RunWriter(run, RunLock(run.path, arguments.lock)) as writer:
            device = None if arguments.device_lock is None else DeviceLock(run.path, arguments.device_lock)
            if restarts(run.config()) and not arguments.supervised:
                return supervise(writer, reporter, device)
            outcome, problem = train_and_keep(writer, reporter, device=device, failed=failed)
            if problem:
                sys.stderr.write(f"warning: {problem}\n")
            return exit_status(outcome)
    except QLoraError as error:
        sys.stderr.write(f"error: {error}\n")
        return failed if isinstance(error, DeviceError) else ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
