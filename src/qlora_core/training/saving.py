"""Saving in the course of training: checkpoints and adapters when they are due, never numbers that are not finite."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ..activity import doing
from ..engine.model import save_adapters
from ..engine.weights import loaded_directory
from ..errors import QLoraError, StorageError, TrainingError
from ..machine.memory import MB
from ..models.adapter_files import adapter_parameters
from ..runs.checkpoints import latest_checkpoint
from ..runs.writer import RunWriter
from ..translations import Sentence
from .checkpoint import room_wanted, save_checkpoint
from .session import Session
from .steps import all_finite


def save_now(session: Session, writer: RunWriter) -> None:
    """Write a checkpoint.

    Raises:
        TrainingError: a number is not finite; the older checkpoints stay.
    """
    _refuse_non_finite(session)
    started = time.perf_counter()
    directory = session.run.checkpoint_directory
    keep = session.config.pace.keep_checkpoints
    writer.sync()  # the recorded metrics are worth as much as the checkpoint
    session.spent.until_now()
    with session.spent.on("saving"), doing("saving"):
        path = save_checkpoint(directory, session.model, session.optimizer, session.progress, keep)
    session.loop_state.saved_at, session.loop_state.save_next = time.monotonic(), False
    size = sum(file.stat().st_size for file in path.iterdir())
    writer.log("checkpoint", step=session.progress.step, bytes=size, seconds=time.perf_counter() - started)


def _refuse_non_finite(session: Session) -> None:
    if not all_finite(session.model.trainable_parameters(), session.optimizer.state).item():
        newest, _ = latest_checkpoint(session.run.checkpoint_directory)
        onward = f"checkpoint {newest.name}" if newest else "the start"
        raise TrainingError(
            f"step {session.progress.step}: adapters or optimizer state are not finite, so they are not saved. "
            f"Going on begins at {onward} again; if that ends here as well, lower --learning-rate in a new run."
        )


def is_save_due(session: Session) -> bool:
    """Return whether a checkpoint is due, by the clock or since the memory guard asked for one."""
    minutes, state = session.config.pace.save_minutes, session.loop_state
    return state.save_next or (minutes > 0 and time.monotonic() - state.saved_at >= 60 * minutes)


def save_if_new(session: Session, writer: RunWriter) -> None:
    """Write a checkpoint of this step, unless there is one already."""
    newest, _ = latest_checkpoint(session.run.checkpoint_directory)
    if newest is None or int(newest.name) != session.progress.step:
        save_now(session, writer)


@contextlib.contextmanager
def raising_after(trouble: QLoraError | None) -> Iterator[None]:
    """Raise `trouble` after the block, together with any error in the block; without trouble, only the latter."""
    try:
        yield
    except QLoraError as error:
        if trouble is None:
            raise
        if isinstance(error, StorageError):  # the more serious of the two: nothing could be saved
            raise StorageError(f"{trouble} {error}", error.errno) from None
        raise type(trouble)(f"{trouble} {error}") from None
    if trouble:
        raise trouble


def warn_of_little_room(session: Session, writer: RunWriter) -> None:
    """Warn now about too little disk space, which would otherwise pause the run hours later."""
    run, keep = session.run, session.config.pace.keep_checkpoints
    wanted, free = room_wanted(run.checkpoint_directory, session.model, keep), shutil.disk_usage(run.path).free
    if free < wanted:
        writer.log(
            "warning",
            kind="disk",
            message=Sentence(
                "{place}: {wanted} MB wanted for what the run will save, {free} MB free there. Make room, or use "
                "--keep-checkpoints 1; when the disk is full, the run is paused",
                place=str(run.path),
                wanted=-(-wanted // MB),
                free=free // MB,
            ),
        )


def save_current_adapters(session: Session, directory: Path, **metadata: str) -> None:
    """Write the current adapters to a directory.

    Raises:
        TrainingError: a number is not finite.
    """
    _refuse_non_finite(session)
    base = loaded_directory(session.spec, session.kernels.dtype)
    config = adapter_parameters(session.spec, session.config.lora, base)
    save_adapters(session.model, directory, config, {"step": str(session.progress.step), **metadata})


def log_memory(session: Session, writer: RunWriter, label: str) -> None:
    """Record how much memory is used at this point, named `label`."""
    sample = session.monitor.sample()
    writer.log("memory", step=session.progress.step, label=label, **dataclasses.asdict(sample))
