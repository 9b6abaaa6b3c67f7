"""The loop: one optimizer step, one epoch, one validation, and what happens between them.

Everything is read from the run directory and written to it. Knows nothing of command lines, pages or how progress is
shown: listeners of the `RunWriter` do that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import device
from .batching import Batch, at_most, epoch_steps, fixed_batches, make_batch, share_out
from .checkpoint import latest_checkpoint, save_checkpoint
from .device import mx, nn
from .errors import QLoraError, TrainingError
from .evaluate import answer_samples, evaluate_run, forget_samples
from .memory import MemoryMonitor
from .model import adapter_parameters, batch_loss, load_adapters, save_adapters
from .runs import Run, RunWriter, State
from .schedule import learning_rate
from .session import Session, open_session
from .storage import write_json
from .tokens import TokenRow

NON_FINITE_LIMIT = 3  # steps in a row without a finite loss after which training pauses


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How training ended: the run's state, and whether Ctrl+C or a signal asked for it."""

    state: State
    by_signal: bool = False


def train(writer: RunWriter, monitor: MemoryMonitor | None = None) -> Outcome:
    """Train, or resume, the run that `writer` has open, until it is complete, paused or stopped.

    Raises:
        QLoraError: it cannot start or go on; the run is then `failed`, or `paused` where it can be resumed.
    """
    monitor = monitor or MemoryMonitor()
    monitor.counters = device.memory_counters
    interruption = Interruption(writer.run)
    writer.set_status("preparing", message="")
    session = None
    try:
        with interruption:
            session = open_session(writer, monitor)
            return Outcome(_train_to_end(session, writer, interruption), interruption.by_signal)
    except QLoraError as error:
        paused = isinstance(error, TrainingError) and session is not None
        writer.end("paused" if paused else "failed", _step_reached(writer.run, session), str(error))
        raise
    except KeyboardInterrupt:  # a second Ctrl+C: at once, with the last checkpoint as it is
        writer.end("paused", _step_reached(writer.run, session), "interrupted twice")
        raise


def _step_reached(run: Run, session: Session | None) -> int:
    return session.progress.step if session else run.status().get("step", 0)


# Training -------------------------------------------------------------------------------------------------------


def _train_to_end(session: Session, writer: RunWriter, interruption: Interruption) -> State:
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
        kernels=dataclasses.asdict(session.kernels),
        device=device.describe_device(),
        train_rows=len(session.train_rows),
        val_rows=len(session.val_rows),
    )
    prepare_to_train(session)
    forget_samples(session.run, progress.step)
    if progress.step == 0 and not session.run.samples():
        _sample(session, writer, epoch=0)
    while progress.step < total and not interruption.asked:
        epoch = progress.step // session.steps_per_epoch
        _log_memory(session, writer, f"Epoch {epoch + 1} start")
        train_epoch(session, writer, epoch, interruption)
        if _patience_is_over(session):
            writer.log("warning", message=f"no better validation loss in {session.config.train.patience} validations")
            break
    return _finish(session, writer, interruption)


def prepare_to_train(session: Session) -> None:
    """Put the model into training mode and divide the cores over the streams."""
    session.model.train()
    device.set_blas_threads(max(1, device.cores() // session.kernels.streams))


def train_epoch(session: Session, writer: RunWriter, epoch: int, interruption: Interruption) -> None:
    """Train the rest of an epoch (counted from 0): steps, validations and checkpoints where they are due."""
    config, progress = session.config, session.progress
    groups = epoch_steps(session.lengths, config.train, epoch=epoch, sort=session.layout != "packed")
    done = progress.step - epoch * session.steps_per_epoch
    if done == 0:
        progress.epoch_loss, progress.epoch_targets = 0.0, 0
    for number, group in enumerate(groups[done:], done + 1):
        writer.log("step", epoch=epoch + 1, **_timed_step(session, writer, group))
        writer.beat(step=progress.step, epoch=epoch + 1)
        last = progress.step == session.total_steps
        _after_step(session, writer, epoch, interruption, end_of_epoch=number == len(groups), last=last)
        if last or interruption.asked or _patience_is_over(session):
            return


def _after_step(
    session: Session, writer: RunWriter, epoch: int, interruption: Interruption, *, end_of_epoch: bool, last: bool
) -> None:
    """Validate, save and answer the sample prompts where they are due."""
    pace, progress = session.config.pace, session.progress
    if end_of_epoch:
        average = progress.epoch_loss / max(progress.epoch_targets, 1)
        writer.log("epoch", epoch=epoch + 1, step=progress.step, avg_loss=average)
    due = end_of_epoch if pace.eval_every == 0 else progress.step % pace.eval_every == 0
    sampled = due or last
    if (due or last) and session.val_rows:
        _validate(session, writer)
    due = end_of_epoch if pace.save_every == 0 else progress.step % pace.save_every == 0
    if due or last:
        _save(session, writer)
    if sampled and not interruption.asked:  # a pause need not wait for them; the batch itself is not cut short
        _sample(session, writer, epoch + 1)
    if end_of_epoch:
        writer.tell("epoch_complete", epoch=epoch + 1)


class Step(NamedTuple):
    """What one optimizer update saw.

    Attributes:
        loss: summed over the target tokens, nats.
        targets: target tokens.
        tokens: real tokens.
        norm: of the gradient of the mean loss, before clipping.
        rate: learning rate.
    """

    loss: float
    targets: int
    tokens: int
    norm: float
    rate: float

    @property
    def finite(self) -> bool:
        """Whether the weights were updated."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def _timed_step(session: Session, writer: RunWriter, group: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One optimizer step and its numbers, as the `step` event holds them."""
    progress, started = session.progress, time.perf_counter()
    step = train_step(session, group)
    seconds = time.perf_counter() - started
    progress.step += 1
    progress.tokens += step.tokens
    progress.target_tokens += step.targets
    progress.seconds += seconds
    _watch_non_finite(session, writer, group, step.finite)
    if step.finite:
        progress.epoch_loss += step.loss
        progress.epoch_targets += step.targets
    memory = session.monitor.sample()
    progress.peak_memory_bytes = max(progress.peak_memory_bytes, memory.peak)
    return {
        "step": progress.step,
        "train_loss": step.loss / step.targets if step.finite else None,
        "learning_rate": step.rate,
        "grad_norm": step.norm if step.finite else None,
        "tokens": step.tokens,
        "target_tokens": step.targets,
        "seconds": seconds,
        "tokens_per_second": step.tokens / seconds,
        "peak_memory_bytes": memory.peak,
        "available_memory_bytes": memory.available,
    }


def train_step(session: Session, group: Sequence[Sequence[int]]) -> Step:
    """One optimizer update from the micro-batches of `group`.

    The gradient is that of the mean loss over all target tokens of the step: micro-batches are summed, not averaged,
    so accumulating 4 of 1 row equals 1 of 4. An update that is not finite leaves the weights as they were.
    """
    config = session.config.train
    rows, number = session.train_rows, session.progress.step + 1
    targets = sum(rows[i].target_tokens for indices in group for i in indices)
    tokens = sum(len(rows[i]) for indices in group for i in indices)
    mx.random.seed(_dropout_seed(config.seed, number))
    loss, gradient = mx.array(0.0), mx.array(0.0)
    for indices in at_most(session.micro_batch, group):
        part_loss, part_gradient = _micro_batch(session, [rows[i] for i in indices])
        loss, gradient = loss + part_loss, gradient + part_gradient
        mx.eval(loss, gradient)
    gradient = gradient / targets
    norm = mx.linalg.norm(gradient)
    step = Step(loss.item(), targets, tokens, norm.item(), learning_rate(number, session.total_steps, config))
    if step.finite:
        if config.max_grad_norm and step.norm > config.max_grad_norm:
            gradient = gradient * (config.max_grad_norm / step.norm)
        _update(session, gradient, mx.array(step.rate, mx.float32))
    return step


def _update(session: Session, gradient: mx.array, rate: mx.array) -> None:
    """Change adapters and moments by a gradient `(parameters,)`."""
    optimizer, ratio = session.optimizer, session.rate_ratio
    optimizer.learning_rate = rate if ratio is None else rate * ratio
    adapters = session.adapters.join(session.model.trainable_parameters())
    updated = optimizer.apply_gradients({"adapters": gradient}, {"adapters": adapters})
    optimizer.learning_rate = rate  # the state that is saved holds one number
    session.model.update(session.adapters.part(updated["adapters"]))
    mx.eval(session.model.trainable_parameters(), optimizer.state)


def _micro_batch(session: Session, rows: Sequence[TokenRow]) -> tuple[mx.array, mx.array]:
    """Summed loss of some rows and its gradient `(parameters,)`, a part of the rows on each stream."""
    value_and_grad = nn.value_and_grad(session.model, batch_loss)

    def compute(batch: Batch) -> tuple[mx.array, mx.array]:
        loss, gradients = value_and_grad(session.model, batch, session.layout)
        return loss, session.adapters.join(gradients)

    losses, gradients = zip(*_on_streams(session, rows, compute), strict=True)
    return sum(losses), sum(gradients[1:], gradients[0])


def _on_streams(session: Session, rows: Sequence[TokenRow], compute: Callable[[Batch], Any]) -> list[Any]:
    """What `compute` makes of the rows, shared out over the streams as equal parts."""
    shares = share_out([len(row) for row in rows], session.kernels.streams)
    results = []
    for share, stream in zip(shares, session.streams, strict=False):
        with mx.stream(stream):
            results.append(compute(make_batch([rows[i] for i in share], packed=session.layout == "packed")))
    return results


def _dropout_seed(seed: int, step: int) -> int:
    return (seed << 32) | step


def _watch_non_finite(session: Session, writer: RunWriter, group: Sequence[Sequence[int]], finite: bool) -> None:
    extra = session.progress.extra
    extra["non_finite"] = 0 if finite else extra.get("non_finite", 0) + 1
    if finite:
        return
    sources = [session.train_rows[i].source for indices in group for i in indices]
    step = session.progress.step
    writer.log(
        "warning", step=step, message=f"step {step}: loss or gradient is not finite; the weights stay", rows=sources
    )
    if extra["non_finite"] >= NON_FINITE_LIMIT:
        raise TrainingError(
            f"loss or gradient was not finite {NON_FINITE_LIMIT} steps in a row, last on {', '.join(sources[:4])}. "
            "The weights are those before. Look at these rows, or lower --learning-rate."
        )


# Validation and saving --------------------------------------------------------------------------------------------


def validate_model(session: Session) -> float:
    """Mean loss over all target tokens of the validation rows, nats; the same rows in the same batches every time."""
    session.model.eval()
    total = 0.0
    for indices in fixed_batches(len(session.val_rows), session.micro_batch):
        rows = [session.val_rows[i] for i in indices]
        total += sum(_on_streams(session, rows, lambda batch: batch_loss(session.model, batch, session.layout))).item()
    session.model.train()
    return total / int(session.val_rows.target_lengths.sum())


def _validate(session: Session, writer: RunWriter) -> None:
    progress, started = session.progress, time.perf_counter()
    loss = validate_model(session)
    progress.last_val_step = progress.step
    finite = math.isfinite(loss)
    best = finite and (progress.best_val_loss is None or loss < progress.best_val_loss)
    if best:
        progress.best_val_loss, progress.best_step, progress.evaluations_since_best = loss, progress.step, 0
        _save_adapters(session, session.run.best, val_loss=f"{loss:.6f}")
    else:
        progress.evaluations_since_best += 1
    writer.set_status("running", best_val_loss=progress.best_val_loss, best_step=progress.best_step)
    writer.log(
        "eval",
        step=progress.step,
        val_loss=loss if finite else None,
        perplexity=math.exp(min(loss, 700)) if finite else None,
        seconds=time.perf_counter() - started,
        best=best,
    )


def _sample(session: Session, writer: RunWriter, epoch: int) -> None:
    """Answer the sample prompts; training is as if it had not been. What goes wrong is a warning."""
    pace, step = session.config.pace, session.progress.step
    if not pace.samples:
        return
    try:
        answer_samples(session.run, session.model, session.tokenizer, pace, step=step, epoch=epoch)
    except Exception as error:  # whatever it is, hours of training are worth more
        writer.log("warning", step=step, message=f"step {step}: the sample prompts could not be answered: {error}")
    prepare_to_train(session)


def _patience_is_over(session: Session) -> bool:
    patience = session.config.train.patience
    return bool(patience) and session.progress.evaluations_since_best >= patience


def _save(session: Session, writer: RunWriter) -> None:
    started = time.perf_counter()
    directory = session.run.path / "checkpoints"
    keep = session.config.pace.keep_checkpoints
    path = save_checkpoint(directory, session.model, session.optimizer, session.progress, keep)
    size = sum(file.stat().st_size for file in path.iterdir())
    writer.log("checkpoint", step=session.progress.step, bytes=size, seconds=time.perf_counter() - started)


def _save_adapters(session: Session, directory: Path, **metadata: str) -> None:
    config = adapter_parameters(session.spec, session.config.lora, session.kernels.dtype)
    save_adapters(session.model, directory, config, {"step": str(session.progress.step), **metadata})


def _log_memory(session: Session, writer: RunWriter, label: str) -> None:
    sample = session.monitor.sample()
    writer.log("memory", step=session.progress.step, label=label, **dataclasses.asdict(sample))


# Ending ---------------------------------------------------------------------------------------------------------


def _finish(session: Session, writer: RunWriter, interruption: Interruption) -> State:
    progress = session.progress
    newest, _ = latest_checkpoint(session.run.path / "checkpoints")
    if newest is None or int(newest.name) != progress.step:
        _save(session, writer)
    if interruption.asked == "pause" and progress.step < session.total_steps:
        writer.end("paused", progress.step)
        return "paused"
    _save_adapters(session, session.run.final)
    writer.tell("evaluating")
    evaluate_best(session)
    state: State = "stopped" if interruption.asked == "stop" and progress.step < session.total_steps else "completed"
    summary = summarise(session)
    write_json(session.run.path / "summary.json", summary)
    writer.end(state, progress.step)
    return state


def evaluate_best(session: Session) -> dict[str, Any]:
    """Judge the adapters that will be used: the best ones, else the final ones."""
    adapters = session.run.adapters
    load_adapters(session.model, adapters / "adapters.safetensors")
    return evaluate_run(
        session.run,
        session.model,
        session.tokenizer,
        adapters=adapters.name,
        max_tokens=session.config.pace.max_answer_tokens,
    )


def summarise(session: Session) -> dict[str, Any]:
    """The numbers of a run, for its last lines and for comparing runs."""
    progress = session.progress
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "target_tokens": progress.target_tokens,
        "training_seconds": progress.seconds,
        "tokens_per_second": progress.tokens / progress.seconds if progress.seconds else 0.0,
        "peak_memory_bytes": max(progress.peak_memory_bytes, device.memory_counters()["peak"]),
        "peak_process_bytes": session.monitor.sample().process_peak,
        "best_val_loss": progress.best_val_loss,
        "best_step": progress.best_step,
    }


class Interruption:
    """Notices that training should end after the current step: Ctrl+C, SIGTERM, or a word in the run's control file.

    A second Ctrl+C ends the process at once. A context manager; signals are only caught in the main thread.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.by_signal = False
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> str:
        """`pause`, `stop`, or empty."""
        word = self.run.control()
        return word if word != "run" else "pause" if self.by_signal else ""

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _frame: object) -> None:
        if self.by_signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.by_signal = True


@contextlib.contextmanager
def listening(writer: RunWriter, listener: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Tell `listener` every event inside the block."""
    writer.listeners.append(listener)
    try:
        yield
    finally:
        writer.listeners.remove(listener)
