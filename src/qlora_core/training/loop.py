"""The training loop: steps, epochs, validations, and what happens between them.

Everything is read from the run directory and written to it. Knows nothing of command lines, pages or how progress is
shown: listeners of the `RunWriter` do that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..activity import watching
from ..engine import device
from ..engine.model import load_adapters
from ..errors import DeviceError, QLoraError, StorageError
from ..files.storage import explain, write_json
from ..machine.crash_reasons import device_failure
from ..machine.memory import MemoryMonitor
from ..models.adapter_files import ADAPTER_FILE
from ..runs.checkpoints import checkpoints
from ..runs.hosts import hosts_of
from ..runs.run import EVALUATION, SUMMARY, Run
from ..runs.schema import State
from ..runs.writer import RunWriter
from ..translations import Sentence
from .evaluate import answer_samples, evaluate_run, forget_samples
from .float16 import give_back_memory, look_for_overflow, use_bfloat16
from .followers import Followers, Loading
from .hidden_state_cache import leave_trunk, remove_states
from .interruption import Interruption, PauseAsked, SkipAsked, hearing_requests
from .saving import (
    is_save_due,
    log_memory,
    raising_after,
    save_current_adapters,
    save_if_new,
    save_now,
    warn_of_little_room,
)
from .session import Session, open_session
from .share_workers import Setup, ShareWorkers, how_many
from .steps import HalfOverflow, mean_loss, prepare_to_train, step_numbers, timed_step, validate_model
from .watching import watch_memory, watch_numbers

TEST_SKIPPED = Sentence("The final test was skipped. `qlora evaluate` does it.")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of training, and its cause.

    Attributes:
        state: the run's state.
        by_ctrl_c: whether Ctrl+C ended it.
        at_once: whether it ended in the middle of a step or of loading, and nothing was saved.
    """

    state: State
    by_ctrl_c: bool = False
    at_once: bool = False


def train(
    writer: RunWriter, monitor: MemoryMonitor | None = None, *, began: float | None = None, failed: int = 1
) -> Outcome:
    """Train or resume the run that `writer` has open, until it is complete, paused or stopped.

    Args:
        writer: has the run open.
        monitor: measures memory; a new one by default.
        began: when this process began to work on the run, by `time.monotonic`; by default now.
        failed: exit status of this process if it waits for a lost device so that only its end helps.

    Raises:
        QLoraError: it cannot start, and is `failed`; or it cannot go on, and is `paused` as it was last saved.
    """
    monitor = monitor or MemoryMonitor()
    monitor.counters = device.memory_counters
    session, state = None, None
    with Interruption(writer.run, writer.listeners) as interruption, watching(writer.working):
        try:
            with _followers(writer, failed) as followers:
                while state is None:
                    if session:  # it goes on in another dtype
                        began, session, interruption.training = session.spent.counted, None, False
                        give_back_memory()
                    writer.set_status("preparing", message="")
                    session = open_session(writer, monitor, began)
                    interruption.training = True
                    join_devices(session, followers)
                    state = _train_in_one_dtype(session, writer, interruption)
        except (StorageError, DeviceError) as error:
            raise _pause_unsaved(writer, error) from None
        except RuntimeError as error:
            if failure := device_failure(error):
                raise _pause_unsaved(writer, failure) from None
            raise
        except QLoraError as error:
            writer.end("paused" if session else "failed", _step_reached(writer.run, session), str(error))
            raise
        except OSError as error:
            path = Path(os.fsdecode(error.filename)) if error.filename else writer.run.path
            raise _pause_unsaved(writer, explain(error, path, problem="cannot be read or written")) from None
        except KeyboardInterrupt:  # at once, with the last checkpoint as it is
            saved = checkpoints(writer.run.checkpoint_directory)
            kept = "the last checkpoint is intact" if saved else "nothing was saved yet"
            writer.end("paused", _step_reached(writer.run, session), f"interrupted at once; {kept}")
        finally:
            end_workers(session)
    return Outcome(state or "paused", interruption.signal == signal.SIGINT, interruption.at_once)


def _step_reached(run: Run, session: Session | None) -> int:
    return session.progress.step if session else run.status().get("step", 0)


@contextlib.contextmanager
def _followers(writer: RunWriter, failed: int) -> Iterator[Followers | None]:
    """Start processes for the run's other devices, and end them after the block; yield None if it has only one.

    A run that may restart by itself goes on without a machine that it has lost.
    """
    hosts = hosts_of(pace := writer.run.config().pace)
    devices = len(hosts.hosts) if hosts else pace.devices
    if devices == 1:
        yield None
        return

    def give_up(error: DeviceError) -> None:  # in another thread, while this one waits and writes nothing
        sys.stderr.write(f"error: {_pause_unsaved(writer, error)}\n")
        sys.stderr.flush()
        os._exit(failed)

    def spare(problem: str) -> None:
        writer.log("warning", kind="device", message=f"{problem} The run goes on without it.")

    may_spare = pace.restart > 0 and any(event["type"] == "start" for event in writer.run.metrics())
    followers = Followers(writer.run, devices, give_up, hosts, spare if may_spare else None)
    try:
        yield followers if followers.devices > 1 else None
    finally:
        followers.close()


def join_devices(session: Session, followers: Followers | None) -> None:
    """Let a session compute on all devices of its run.

    Raises:
        QLoraError: a device is lost, or something that must be the same there is not.
    """
    if followers is None:
        return
    loading = Loading(session.spec, session.config, session.kernels, session.objective.name)
    followers.load(loading, session.layout)
    session.followers, session.monitor.workers = followers, followers.memory


def _pause_unsaved(writer: RunWriter, error: StorageError | DeviceError) -> StorageError | DeviceError:
    """End the run as paused at the last checkpoint, since nothing can be saved; return the error to raise."""
    saved = checkpoints(writer.run.checkpoint_directory)
    step = int(saved[-1].name) if saved else 0
    kept = f"its last checkpoint, of step {step}, is as it was" if saved else "nothing was saved yet"
    message = f"{error} The run is paused: {kept}."
    ended = StorageError(message, error.errno) if isinstance(error, StorageError) else DeviceError(message)
    writer.end("paused", step, message)
    return ended


# Training -------------------------------------------------------------------------------------------------------


def _train_in_one_dtype(session: Session, writer: RunWriter, interruption: Interruption) -> State | None:
    """Train until the run ends. Return None if float16 overflows: the run must be opened again, in bfloat16."""
    try:
        return _train_to_end(session, writer, interruption)
    except HalfOverflow as overflow:
        if session.progress.step:
            save_if_new(session, writer)
        use_bfloat16(writer, session.progress.step, overflow.where, overflow.rows)
    return None


def _train_to_end(session: Session, writer: RunWriter, interruption: Interruption) -> State:
    look_for_overflow(session)
    progress, total = session.progress, session.total_steps
    writer.set_status(
        "running",
        step=progress.step,
        total_steps=total,
        steps_per_epoch=session.steps_per_epoch,
        best_val_loss=progress.best_val_loss,
    )
    writer.log(
        "start",
        step=progress.step,
        total_steps=total,
        steps_per_epoch=session.steps_per_epoch,
        epochs=math.ceil(total / session.steps_per_epoch),
        layout=session.layout,
        order=session.batcher.order,
        kernels=dataclasses.asdict(session.kernels),
        prefix_tokens=len(session.batcher.prefix),
        device=device.describe_device(),
        train_rows=len(session.train_rows),
        val_rows=len(session.val_rows),
        train_tokens=int(session.train_rows.lengths.sum()),
        val_tokens=int(session.val_rows.lengths.sum()),
    )
    if session.layout != "packed" and session.config.train.packing:
        message = Sentence("this model's rows cannot be packed; they are {layout} instead", layout=session.layout)
        writer.log("warning", kind="layout", message=message)
    warn_of_little_room(session, writer)
    if not session.followers:
        with _spared(writer, Sentence("the layers below the adapters are computed in every step")):
            leave_trunk(session, writer, lambda: bool(interruption.asked))
        start_workers(session, writer)
    session.spent.loaded()
    prepare_to_train(session)
    session.loop_state.saved_at = time.monotonic()
    with _spared(writer, Sentence("older samples could not be taken back")):
        forget_samples(session.run, progress.step)
    with _spared(writer, Sentence("older losses of validation rows could not be taken back")):
        writer.forget_row_losses(progress.step)
    session.loop_state.ask_base = not session.run.samples()
    try:
        with hearing_requests(writer, interruption):
            _validate_before(session, writer, interruption)
            over = _catch_up(session, writer, interruption)
            while progress.step < total and not (over or interruption.asked):
                epoch = progress.step // session.steps_per_epoch
                log_memory(session, writer, f"Epoch {epoch + 1} start")
                train_epoch(session, writer, epoch, interruption)
                over = _patience_is_over(session)
        if over:
            patience = session.config.train.patience
            message = Sentence("no better validation loss in {count} validations", count=patience)
            writer.log("warning", step=progress.step, kind="patience", message=message)
        return _finish(session, writer, interruption)
    except PauseAsked:
        save_if_new(session, writer)
        writer.end("paused", progress.step)
        return "paused"


def _catch_up(session: Session, writer: RunWriter, interruption: Interruption) -> bool:
    """Run the validation that a pause interrupted; return whether patience is over after it."""
    progress, every = session.progress, session.config.pace.eval_every or session.steps_per_epoch
    due = progress.step and (progress.step % every == 0 or progress.step == session.total_steps)
    if not (due and session.val_rows and progress.last_val_step != progress.step):
        return False
    _validate(session, writer, interruption)
    return _patience_is_over(session)


def start_workers(session: Session, writer: RunWriter) -> None:
    """Start processes that compute beside this one, if worthwhile; until they have loaded, it computes alone."""
    progress = session.progress
    left = sum(session.batcher.lengths) * (session.total_steps - progress.step) // session.steps_per_epoch
    count = how_many(
        session.kernels,
        session.estimate,
        session.spec.parameters * left,
        session.monitor.sample().available,
        separable=not (session.config.lora.dropout or session.trunk),  # dropout masks are drawn from one sequence
    )
    session.processes_beside = count
    if not count:
        return
    streams = -(-session.kernels.streams // (count + 1))
    setup = Setup(session.spec, session.config, session.kernels, session.layout, session.objective.name, streams)
    words = Sentence(
        "a process that computed beside this one is gone; the run goes on in one, with equal results but slower"
    )
    session.workers = ShareWorkers(
        setup, count, session.adapters, lambda: writer.log("warning", step=progress.step, message=words)
    )
    session.monitor.workers = session.workers.memory


def end_workers(session: Session | None) -> None:
    """End the processes beside this one."""
    if session and session.workers:
        session.workers.close()
        session.workers = None
    if session and session.followers:
        session.followers.close()
        session.followers = None


def train_epoch(session: Session, writer: RunWriter, epoch: int, interruption: Interruption) -> None:
    """Train the rest of an epoch (counted from 0): steps, validations and checkpoints when they are due."""
    progress = session.progress
    groups = session.batcher.steps(epoch)
    done = progress.step - epoch * session.steps_per_epoch
    if done == 0:
        progress.epoch_loss, progress.epoch_targets = 0.0, 0
    for number, group in enumerate(groups[done:], done + 1):
        step, memory, seconds = timed_step(session, group)
        writer.log("step", epoch=epoch + 1, **step_numbers(session, step, memory, seconds))
        writer.beat(step=progress.step, epoch=epoch + 1)
        trouble = watch_numbers(session, writer, group, step) or watch_memory(session, writer, memory)
        last = progress.step == session.total_steps
        with raising_after(trouble):
            _after_step(session, writer, epoch, interruption, end_of_epoch=number == len(groups), last=last)
            if trouble:
                save_if_new(session, writer)
        if last or interruption.asked or _patience_is_over(session):
            return


def _after_step(
    session: Session, writer: RunWriter, epoch: int, interruption: Interruption, *, end_of_epoch: bool, last: bool
) -> None:
    """Validate, save and answer the sample prompts when they are due."""
    pace, progress = session.config.pace, session.progress
    # the base answers the same now as before the first step, which need not wait for it
    if session.loop_state.ask_base and not interruption.asked:
        session.loop_state.ask_base = False
        _sample(session, writer, interruption, epoch=0)
    if end_of_epoch:
        average = progress.epoch_loss / max(progress.epoch_targets, 1)
        writer.log("epoch", epoch=epoch + 1, step=progress.step, avg_loss=average)
    due = end_of_epoch if pace.eval_every == 0 else progress.step % pace.eval_every == 0
    sampled = due or last
    if (due or last) and session.val_rows:
        _validate(session, writer, interruption)
    due = end_of_epoch if pace.save_every == 0 else progress.step % pace.save_every == 0
    if due or last or is_save_due(session):
        save_now(session, writer)
    if sampled and not interruption.asked:  # a pause need not wait for the samples
        _sample(session, writer, interruption, epoch + 1)
    if end_of_epoch:
        writer.tell("epoch_complete", epoch=epoch + 1)


# Validation and saving --------------------------------------------------------------------------------------------


def _validate_before(session: Session, writer: RunWriter, interruption: Interruption) -> None:
    """Validate what training begins with, once: new adapters change nothing, so that this is the base's loss."""
    if session.progress.step or not session.val_rows or interruption.asked:
        return
    if session.run.loss_before is not None:  # the run was interrupted before its first save
        return
    started = time.perf_counter()
    loss = _computed_validation(session, writer, interruption)
    if loss is not None and math.isfinite(loss):
        writer.log(
            "before", step=0, **session.objective.validation_numbers(loss), seconds=time.perf_counter() - started
        )


def _computed_validation(session: Session, writer: RunWriter, interruption: Interruption) -> float | None:
    """Return the validation loss, and keep that of each row; None if it was skipped."""
    losses, step = None, session.progress.step
    with _skippable(writer, interruption, "validation", step), session.spent.on("validation"):
        losses = validate_model(session)
    if losses is None:
        return None
    loss = mean_loss(session, losses)
    if math.isfinite(loss):
        writer.log_row_losses(step, losses.tolist(), session.val_rows.target_lengths.tolist())
    return loss


def _validate(session: Session, writer: RunWriter, interruption: Interruption) -> None:
    progress, started = session.progress, time.perf_counter()
    loss = _computed_validation(session, writer, interruption)
    progress.last_val_step = progress.step
    if loss is None:
        return
    finite = math.isfinite(loss)
    best = finite and (progress.best_val_loss is None or loss < progress.best_val_loss)
    if best:
        progress.best_val_loss, progress.best_step, progress.evaluations_since_best = loss, progress.step, 0
        save_current_adapters(session, session.run.best, val_loss=f"{loss:.6f}")
    else:
        progress.evaluations_since_best += 1
    writer.set_status("running", best_val_loss=progress.best_val_loss, best_step=progress.best_step)
    writer.log(
        "eval",
        step=progress.step,
        **session.objective.validation_numbers(loss if finite else None),
        seconds=time.perf_counter() - started,
        best=best,
    )


@contextlib.contextmanager
def _skippable(writer: RunWriter, interruption: Interruption, stage: str, step: int) -> Iterator[None]:
    """Leave the block when it is asked to be skipped, and record that it was."""
    try:
        yield
    except SkipAsked:
        interruption.skipped()
        writer.log("skipped", stage=stage, step=step)


def _sample(session: Session, writer: RunWriter, interruption: Interruption, epoch: int) -> None:
    """Answer the sample prompts, in epoch 0 with the base; training is not affected, and an error is only a warning."""
    pace, step = session.config.pace, session.progress.step if epoch else 0
    if not pace.samples:
        return
    problem = Sentence("step {step}: the sample prompts could not be answered", step=step)
    started, count = time.perf_counter(), None
    with (
        _skippable(writer, interruption, "samples", session.progress.step),
        session.spent.on("samples"),
        _spared(writer, problem, step=step),
        session.whole(),
    ):
        count = answer_samples(session.run, session.model, session.tokenizer, pace, step=step, epoch=epoch)
    if count is not None:
        writer.log("samples", step=step, answers=count, seconds=time.perf_counter() - started)
    prepare_to_train(session)


@contextlib.contextmanager
def _spared(writer: RunWriter, problem: str, *, trained: bool = False, **fields: int) -> Iterator[None]:
    """Turn any exception into a warning: an optional extra must not abort hours of training.

    A failure of the device is raised, since later results would be undefined, unless everything was `trained` and
    saved.
    """
    try:
        yield
    except Exception as error:
        failure = device_failure(error)
        if failure and not trained:
            raise failure from None
        reason = str(failure or str(error) or type(error).__name__)
        writer.log("warning", **fields, message=Sentence("{problem}: {reason}", problem=problem, reason=reason))


def _patience_is_over(session: Session) -> bool:
    patience = session.config.train.patience
    return bool(patience) and session.progress.evaluations_since_best >= patience


# Ending ---------------------------------------------------------------------------------------------------------


def _finish(session: Session, writer: RunWriter, interruption: Interruption) -> State:
    progress = session.progress
    save_if_new(session, writer)
    if interruption.asked == "pause" and progress.step < session.total_steps:
        writer.end("paused", progress.step)
        return "paused"
    save_current_adapters(session, session.run.final)
    end_workers(session)
    writer.tell("evaluating")
    # if a run that ended before its last step were paused here, resuming would train it further
    whole = progress.step == session.total_steps
    state: State = "stopped" if interruption.asked == "stop" and not whole else "completed"
    message = TEST_SKIPPED
    problem = Sentence("what it learnt could not be tested; `qlora evaluate` does it again")
    with _spared(writer, problem, trained=True):
        (session.run.path / EVALUATION).unlink(missing_ok=True)  # of fewer steps
        with (
            _skippable(writer, interruption, "evaluation", progress.step),
            session.spent.on("evaluation"),
            hearing_requests(writer, interruption, ending=not whole),
        ):
            evaluate_best(session)
            message = ""
    remove_states(session.run.path)
    with _spared(writer, Sentence("the summary could not be written")):
        write_json(session.run.path / SUMMARY, summarise(session))
    writer.end(state, progress.step, message)
    return state


def evaluate_best(session: Session) -> dict[str, Any]:
    """Evaluate the adapters that will be used: the best ones, else the final ones."""
    adapters = session.run.adapters
    load_adapters(session.model, adapters / ADAPTER_FILE)
    with session.whole():
        return evaluate_run(
            session.run,
            session.model,
            session.tokenizer,
            adapters=adapters.name,
            max_tokens=session.config.pace.max_answer_tokens,
        )


def summarise(session: Session) -> dict[str, Any]:
    """Return the numbers of a run, for its last lines and for comparing runs."""
    progress = session.progress
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "target_tokens": progress.target_tokens,
        "training_seconds": progress.seconds,
        **session.spent.as_summary(),
        "tokens_per_second": progress.tokens / progress.seconds if progress.seconds else 0.0,
        "peak_memory_bytes": max(progress.peak_memory_bytes, device.memory_counters()["peak"]),
        "predicted_memory_bytes": session.estimate.arrays + session.processes_beside * session.estimate.beside,
        "peak_process_bytes": session.monitor.sample().process_peak,
        "best_val_loss": progress.best_val_loss,
        "best_step": progress.best_step,
        "val_loss_before": session.run.loss_before,
    }


@contextlib.contextmanager
def listening(writer: RunWriter, listener: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Send every event inside the block to `listener`."""
    writer.listeners.append(listener)
    try:
        yield
    finally:
        writer.listeners.remove(listener)
