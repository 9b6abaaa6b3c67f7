"""The loop: one optimizer step, one epoch, one validation, and what happens between them.

Everything is read from the run directory and written to it. Knows nothing of command lines, pages or how progress is
shown: listeners of the `RunWriter` do that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import device, fit
from .activity import Activity, doing, watching
from .batching import AS_IT_IS, Batch, at_most, epoch_steps, in_rounds_of_sharing, make_batch, neighbours, share_out
from .checkpoint import checkpoints, latest_checkpoint, room_wanted, save_checkpoint
from .device import mx, tree_flatten, tree_map
from .endings import device_failure
from .errors import DeviceError, MemoryShortError, QLoraError, StorageError, TrainingError
from .evaluate import answer_samples, evaluate_run, forget_samples
from .hidden_states import leave_trunk, remove_states
from .memory import MemoryMonitor, MemorySample
from .model import adapter_parameters, load_adapters, save_adapters
from .prefix import begins_with
from .runs import Run, RunWriter, State
from .schedule import learning_rate
from .session import Session, open_session
from .share_workers import Computed, Request, Setup, ShareWorkers, compute_shares, how_many
from .storage import explain, write_json
from .sums import exact_norm
from .tokens import TokenRow, TokenRows

PAUSABLE = ("validation", "samples", "evaluation")  # stages that a pause cuts short
NON_FINITE_LIMIT = 3  # steps in a row without a finite update after which training pauses


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        state: of the run.
        by_ctrl_c: whether Ctrl+C asked for it.
        at_once: whether it ended in the middle of a step, or of loading, and nothing was saved.
    """

    state: State
    by_ctrl_c: bool = False
    at_once: bool = False


def train(writer: RunWriter, monitor: MemoryMonitor | None = None, *, began: float | None = None) -> Outcome:
    """Train, or resume, the run that `writer` has open, until it is complete, paused or stopped.

    Args:
        writer: has the run open.
        monitor: looks at the memory; a new one by default.
        began: when this process began to do something for the run, by `time.monotonic`; by default now.

    Raises:
        QLoraError: it cannot start, and is `failed`; or it cannot go on, and is `paused`, as it was saved last.
    """
    monitor = monitor or MemoryMonitor()
    monitor.counters = device.memory_counters
    session, state = None, None
    with Interruption(writer.run, writer.listeners) as interruption, watching(writer.working):
        try:
            while state is None:
                if session:  # it goes on in another dtype
                    began, session, interruption.training = session.spent.counted, None, False
                    _give_back_memory()
                writer.set_status("preparing", message="")
                session = open_session(writer, monitor, began)
                interruption.training = True
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
            saved = checkpoints(writer.run.path / "checkpoints")
            kept = "the last checkpoint is intact" if saved else "nothing was saved yet"
            writer.end("paused", _step_reached(writer.run, session), f"interrupted at once; {kept}")
        finally:
            end_workers(session)
    return Outcome(state or "paused", interruption.signal == signal.SIGINT, interruption.at_once)


def _step_reached(run: Run, session: Session | None) -> int:
    return session.progress.step if session else run.status().get("step", 0)


def _pause_unsaved(writer: RunWriter, error: StorageError | DeviceError) -> StorageError | DeviceError:
    """End as paused at the last checkpoint, since nothing can be saved, or may be; returns what to tell."""
    saved = checkpoints(writer.run.path / "checkpoints")
    step = int(saved[-1].name) if saved else 0
    kept = f"its last checkpoint, of step {step}, is as it was" if saved else "nothing was saved yet"
    told = f"{error} The run is paused: {kept}."
    ended = StorageError(told, error.errno) if isinstance(error, StorageError) else DeviceError(told)
    writer.end("paused", step, told)
    return ended


# Training -------------------------------------------------------------------------------------------------------


def _train_in_one_dtype(session: Session, writer: RunWriter, interruption: Interruption) -> State | None:
    """Train until the run ends; None if float16 is too narrow for it: opened again, it goes on in bfloat16."""
    try:
        return _train_to_end(session, writer, interruption)
    except HalfOverflow as overflow:
        if session.progress.step:
            _save_if_new(session, writer)
        _use_bfloat16(writer, session.progress.step, str(overflow), overflow.rows)
    return None


def _train_to_end(session: Session, writer: RunWriter, interruption: Interruption) -> State:
    _look_for_overflow(session)
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
        order=session.order,
        kernels=dataclasses.asdict(session.kernels),
        prefix_tokens=len(session.prefix),
        device=device.describe_device(),
        train_rows=len(session.train_rows),
        val_rows=len(session.val_rows),
    )
    if session.layout != "packed" and session.config.train.packing:
        writer.log("warning", message=f"this model's rows cannot be packed; they are {session.layout} instead")
    _warn_of_little_room(session, writer)
    with _spared(writer, "the layers below the adapters are computed in every step"):
        leave_trunk(session, writer, lambda: bool(interruption.asked))
    start_workers(session, writer)
    session.spent.loaded()
    prepare_to_train(session)
    session.watch.saved_at = time.monotonic()
    with _spared(writer, "older samples could not be taken back"):
        forget_samples(session.run, progress.step)
    session.watch.ask_base = not session.run.samples()
    try:
        with _hearing_pauses(writer, interruption):
            over = _catch_up(session, writer)
            while progress.step < total and not (over or interruption.asked):
                epoch = progress.step // session.steps_per_epoch
                _log_memory(session, writer, f"Epoch {epoch + 1} start")
                train_epoch(session, writer, epoch, interruption)
                over = _patience_is_over(session)
        if over:
            writer.log("warning", message=f"no better validation loss in {session.config.train.patience} validations")
        return _finish(session, writer, interruption)
    except _Pausing:
        _save_if_new(session, writer)
        writer.end("paused", progress.step)
        return "paused"


class _Pausing(BaseException):
    """What is computed is given up, since the run is to pause. No error: whoever passes errors over lets it through."""


@contextlib.contextmanager
def _hearing_pauses(writer: RunWriter, interruption: Interruption) -> Iterator[None]:
    """Inside the block a pause is heard between two batches, or tokens, of what may take minutes and changes nothing.

    Raises:
        _Pausing: it was asked for.
    """

    def watch(activity: Activity | None) -> None:
        writer.working(activity)
        if activity and activity.done and activity.stage in PAUSABLE and interruption.asked == "pause":
            raise _Pausing

    with watching(watch):
        yield


def _catch_up(session: Session, writer: RunWriter) -> bool:
    """Make the validation that a pause cut short, as if it had not; whether patience is over with it."""
    progress, every = session.progress, session.config.pace.eval_every or session.steps_per_epoch
    due = progress.step and (progress.step % every == 0 or progress.step == session.total_steps)
    if not (due and session.val_rows and progress.last_val_step != progress.step):
        return False
    _validate(session, writer)
    return _patience_is_over(session)


def start_workers(session: Session, writer: RunWriter) -> None:
    """Start processes that compute beside this one, where that is worth it; until they have loaded, it is alone."""
    progress = session.progress
    left = sum(session.lengths) * (session.total_steps - progress.step) // session.steps_per_epoch
    count = how_many(
        session.kernels,
        session.estimate,
        session.spec.parameters * left,
        session.monitor.sample().available,
        separable=not (session.config.lora.dropout or session.trunk),  # masks are drawn one after the other
    )
    if not count:
        return
    streams = -(-session.kernels.streams // (count + 1))
    setup = Setup(session.spec, session.config, session.kernels, session.layout, streams)
    words = "a process that computed beside this one is gone; the run goes on in one, with equal results but slower"
    session.workers = ShareWorkers(
        setup, count, session.adapters, lambda: writer.log("warning", step=progress.step, message=words)
    )
    session.monitor.workers = session.workers.memory


def end_workers(session: Session | None) -> None:
    """End the processes beside this one."""
    if session and session.workers:
        session.workers.close()
        session.workers = None


def prepare_to_train(session: Session) -> None:
    """Put the model into training mode and divide the cores over the streams."""
    session.model.train()
    _share_cores(session.kernels.streams)


def _share_cores(streams: int) -> None:
    """Divide the cores over so many streams; nothing may be computed meanwhile, whose last bits would depend on it."""
    device.set_blas_threads(max(1, device.cores() // streams))


def _share_cores_of_round(session: Session, shares: Sequence[Sequence[TokenRow]]) -> None:
    """Give a long row the cores of streams that have none; for short ones, threads that wait cost more than they do."""
    device.set_blas_threads(_threads_of_round(session, shares))


def _threads_of_round(session: Session, shares: Sequence[Sequence[TokenRow]]) -> int:
    long = any(sum(map(len, share)) > session.tokens_a_stream for share in shares)
    return max(1, device.cores() // (len(shares) if long else session.kernels.streams))


def train_epoch(session: Session, writer: RunWriter, epoch: int, interruption: Interruption) -> None:
    """Train the rest of an epoch (counted from 0): steps, validations and checkpoints where they are due."""
    config, progress = session.config, session.progress
    groups = epoch_steps(session.lengths, config.train, epoch=epoch, order=session.order)
    done = progress.step - epoch * session.steps_per_epoch
    if done == 0:
        progress.epoch_loss, progress.epoch_targets = 0.0, 0
    for number, group in enumerate(groups[done:], done + 1):
        step, memory, seconds = _timed_step(session, group)
        writer.log("step", epoch=epoch + 1, **_numbers(session, step, memory, seconds))
        writer.beat(step=progress.step, epoch=epoch + 1)
        trouble = _watch_numbers(session, writer, group, step) or _watch_memory(session, writer, memory)
        last = progress.step == session.total_steps
        with _raising_after(trouble):
            _after_step(session, writer, epoch, interruption, end_of_epoch=number == len(groups), last=last)
            if trouble:
                _save_if_new(session, writer)
        if last or interruption.asked or _patience_is_over(session):
            return


def _after_step(
    session: Session, writer: RunWriter, epoch: int, interruption: Interruption, *, end_of_epoch: bool, last: bool
) -> None:
    """Validate, save and answer the sample prompts where they are due."""
    pace, progress = session.config.pace, session.progress
    if session.watch.ask_base and not interruption.asked:  # it answers the same before the first step, which would wait
        session.watch.ask_base = False
        _sample(session, writer, epoch=0)
    if end_of_epoch:
        average = progress.epoch_loss / max(progress.epoch_targets, 1)
        writer.log("epoch", epoch=epoch + 1, step=progress.step, avg_loss=average)
    due = end_of_epoch if pace.eval_every == 0 else progress.step % pace.eval_every == 0
    sampled = due or last
    if (due or last) and session.val_rows:
        _validate(session, writer)
    due = end_of_epoch if pace.save_every == 0 else progress.step % pace.save_every == 0
    if due or last or _long_since_saved(session):
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
        updated: whether the weights were; they stay as they were where a number is not finite.
    """

    loss: float
    targets: int
    tokens: int
    norm: float
    rate: float
    updated: bool

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def _timed_step(session: Session, group: Sequence[Sequence[int]]) -> tuple[Step, MemorySample, float]:
    """One optimizer step, the memory after it, and how many seconds it took; counted in the progress.

    Raises:
        HalfOverflow: in float16 it is not finite. It changed nothing, and is not counted.
    """
    progress, started = session.progress, time.perf_counter()
    with contextlib.nullcontext() if session.watch.stepped else _first_step(session):
        step = train_step(session, group)
    session.watch.stepped = True
    if session.kernels.dtype == "float16" and not step.finite:
        raise HalfOverflow(f"step {progress.step + 1}", _sources(session.train_rows, group))
    seconds = time.perf_counter() - started
    memory = session.monitor.sample()
    progress.step += 1
    progress.tokens += step.tokens
    progress.target_tokens += step.targets
    progress.seconds += session.watch.pace.count(step.tokens, seconds)
    progress.peak_memory_bytes = max(progress.peak_memory_bytes, memory.peak)
    if step.updated:
        progress.epoch_loss += step.loss
        progress.epoch_targets += step.targets
    return step, memory, seconds


def _first_step(session: Session) -> contextlib.AbstractContextManager[Any]:
    """Say that a step is made which takes longer than the others."""
    return doing("first_step" if session.kernels.device == "cpu" else "compiling")


def _numbers(session: Session, step: Step, memory: MemorySample, seconds: float) -> dict[str, Any]:
    """A step as the `step` event holds it."""
    return {
        "step": session.progress.step,
        "train_loss": step.loss / step.targets if step.updated else None,
        "learning_rate": step.rate,
        "grad_norm": step.norm if step.updated else None,
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
    loss, gradient = _summed(session, group)
    gradient = gradient / targets
    norm, rate = exact_norm(gradient), learning_rate(number, session.total_steps, config)
    if config.max_grad_norm:
        gradient = gradient * mx.where(norm > config.max_grad_norm, config.max_grad_norm / norm, 1.0)
    updated = _update(session, gradient, mx.array(rate, mx.float32), mx.isfinite(loss) & mx.isfinite(norm))
    return Step(loss.item(), targets, tokens, norm.item(), rate, updated.item())


def _summed(session: Session, group: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array]:
    """Loss of the next step's rows and its gradient `(parameters,)`, summed over all target tokens."""
    mx.random.seed(_dropout_seed(session.config.train.seed, session.progress.step + 1))
    loss, gradient = mx.array(0.0), mx.array(0.0)
    if session.workers:
        session.workers.engage()
    for shares in _rounds(session, session.train_rows, group):
        part_loss, part_gradient = _micro_batch(session, shares)  # laid out while the one before is computed
        mx.eval(loss, gradient)  # one at a time is in memory
        _share_cores_of_round(session, shares)
        loss, gradient = loss + part_loss, gradient + part_gradient
        mx.async_eval(loss, gradient)
    return loss, gradient


def _update(session: Session, gradient: mx.array, rate: mx.array, finite: mx.array) -> mx.array:
    """Change adapters and moments by a gradient `(parameters,)` if it is `finite` and leaves them so; tells whether."""
    optimizer, ratio = session.optimizer, session.rate_ratio
    state = tree_map(lambda value: value, optimizer.state)  # arrays never change, so a copy of the tree holds them
    adapters = session.adapters.join(session.model.trainable_parameters())
    optimizer.learning_rate = rate if ratio is None else rate * ratio
    changed = optimizer.apply_gradients({"adapters": gradient}, {"adapters": adapters})["adapters"]
    optimizer.learning_rate = rate  # the state that is saved holds one number
    finite = finite & _finite(changed, optimizer.state["adapters"])
    optimizer.state = tree_map(lambda new, old: mx.where(finite, new, old), optimizer.state, state)
    session.model.update(session.adapters.part(mx.where(finite, changed, adapters)))
    mx.eval(finite, session.model.trainable_parameters(), optimizer.state)
    return finite


def _finite(*trees: Any) -> mx.array:
    """Whether every number is; a sum is finite only if all that it is made of are."""
    values = [value for _, value in tree_flatten(list(trees)) if mx.issubdtype(value.dtype, mx.floating)]
    return mx.isfinite(mx.stack([mx.sum(value) for value in values])).all()


def _rounds(
    session: Session, rows: Sequence[TokenRow], group: Iterable[Sequence[int]]
) -> Iterator[list[list[TokenRow]]]:
    """The rows of micro-batches in rounds that are computed one after the other; those of each stream.

    Packed rows go by their tokens, whatever micro-batch they are of: many short ones take no more memory than few long
    ones.
    """
    streams, packed = session.kernels.streams, session.layout == "packed"
    batches = [[i for batch in group for i in batch]] if packed else at_most(session.micro_batch, group)

    def divided(found: list[TokenRow]) -> list[list[list[int]]]:
        lengths = [len(row) for row in found]
        if not packed:
            return [share_out(lengths, streams)]
        size = len(session.prefix) if session.kernels.rounding == AS_IT_IS else 0  # in bins each has one
        shared = [size * begins_with(row, session.prefix) for row in found]
        limits = {"streams": streams, "share": session.tokens_a_stream, "at_once": session.tokens_at_once}
        return in_rounds_of_sharing(lengths, shared, **limits)

    for batch in batches:
        found = [rows[i] for i in batch]
        for shares in divided(found):
            yield [[found[i] for i in share] for share in shares]


def _micro_batch(session: Session, shares: Sequence[Sequence[TokenRow]]) -> tuple[mx.array, mx.array]:
    """Summed loss of some rows and its gradient `(parameters,)`, a share of the rows in each process or stream."""
    computed = _by_workers(session, shares, gradients=True)
    computed = computed or _on_streams(session, shares, session.passes.loss_and_gradient)
    losses, gradients = zip(*computed, strict=True)
    return sum(losses), sum(gradients[1:], gradients[0])


def _by_workers(
    session: Session, shares: Sequence[Sequence[TokenRow]], *, gradients: bool
) -> list[tuple[mx.array, mx.array | None]] | None:
    """Loss and gradient of each share, computed already, some of them in each process; None where that is not to be."""
    workers = session.workers
    if workers is None or not workers.engaged or len(shares) == 1:
        return None
    request = Request(list(map(list, shares)), gradients, session.prefix, _threads_of_round(session, shares))
    device.set_blas_threads(request.threads)

    def own(request: Request) -> list[Computed]:
        return compute_shares(session.passes, request, session.streams, session.kernels, session.layout)

    computed = workers.compute(request, session.model.trainable_parameters(), own)
    if computed is None:
        return None
    return [(mx.array(loss), None if gradient is None else mx.array(gradient)) for loss, gradient in computed]


def _on_streams(session: Session, shares: Sequence[Sequence[TokenRow]], compute: Callable[[Batch], Any]) -> list[Any]:
    """What `compute` makes of each share, on a stream of its own."""
    packed, rounding = session.layout == "packed", session.kernels.rounding
    results = []
    for share, stream in zip(shares, session.streams, strict=False):
        with mx.stream(stream):
            results.append(compute(make_batch(share, packed=packed, rounding=rounding, prefix=session.prefix)))
    return results


def _dropout_seed(seed: int, step: int) -> int:
    return (seed << 32) | step


# Watching -------------------------------------------------------------------------------------------------------


def _watch_numbers(
    session: Session, writer: RunWriter, group: Sequence[Sequence[int]], step: Step
) -> TrainingError | None:
    """Warn of an update that was not made, or of an unusual gradient, with the rows; what is wrong if that goes on."""
    extra, number = session.progress.extra, session.progress.step
    extra["non_finite"] = 0 if step.updated else extra.get("non_finite", 0) + 1
    sources = _sources(session.train_rows, group)
    if step.updated:
        if times := session.watch.norms.spike(step.norm):
            message = f"step {number}: the gradient is {times:.0f} times as large as usual"
            writer.log("warning", step=number, message=message, rows=sources)
        return None
    what = "the optimizer's state" if step.finite else "loss or gradient"
    message = f"step {number}: {what} is not finite; the weights stay"
    writer.log("warning", step=number, message=message, rows=sources)
    if extra["non_finite"] < NON_FINITE_LIMIT:
        return None
    extra["non_finite"] = 0  # who goes on in spite of it gets past these rows
    return TrainingError(
        f"{what} was not finite {NON_FINITE_LIMIT} steps in a row, last on {', '.join(sources[:4])}. "
        "The weights are those before. Look at these rows, or lower --learning-rate; both make another run. "
        "Going on with this one leaves these steps out."
    )


def _sources(rows: Sequence[TokenRow], group: Sequence[Sequence[int]]) -> list[str]:
    """Where the rows of some micro-batches come from."""
    return [rows[i].source for indices in group for i in indices]


def _watch_memory(session: Session, writer: RunWriter, memory: MemorySample) -> MemoryShortError | None:
    """Do what the guard says between two steps; what to tell where it says to pause."""
    decision = session.watch.memory.look(memory, time.monotonic())
    if decision is None:
        return None
    if decision.action == "pause":
        return MemoryShortError(
            f"{decision.message}. Paused before the machine ran out of it; going on starts with what is free then. "
            f"{fit.advice(session.config)}"
        )
    step = session.progress.step
    if decision.action == "clear":
        device.clear_cache()
        writer.log("warning", step=step, message=f"step {step}: {decision.message}; caches are cleared")
        return None
    writer.log("warning", step=step, message=f"step {step}: {decision.message}; saving")
    session.watch.save_next = True
    return None


# Float16 ----------------------------------------------------------------------------------------------------------


class HalfOverflow(Exception):
    """Loss or gradient is not finite in float16, which ends at 65,504; bfloat16 goes as far as float32.

    Args:
        where: in words.
        rows: sources of those that were computed.
    """

    def __init__(self, where: str, rows: list[str]) -> None:
        super().__init__(where)
        self.rows = rows


def _look_for_overflow(session: Session) -> None:
    """In float16, before the first step, compute the longest rows and keep nothing of it; validation rows as well.

    Not again when a run goes on: with what it learnt, this could end otherwise than in a run that was not cut.

    Raises:
        HalfOverflow: it is not finite.
    """
    if session.kernels.dtype != "float16" or session.progress.step:
        return

    def longest(rows: TokenRows) -> list[int]:
        return np.argsort(rows.lengths, kind="stable")[-session.micro_batch :].tolist()

    prepare_to_train(session)
    with doing("longest_rows"):
        some = longest(session.train_rows)
        if not _finite(*_summed(session, [some])).item():
            raise HalfOverflow("the longest rows, before the first step", _sources(session.train_rows, [some]))
        some = longest(session.val_rows)
        if some and not math.isfinite(_validation_loss(session, some)):
            sources = _sources(session.val_rows, [some])
            raise HalfOverflow("the longest validation rows, before the first step", sources)


def _use_bfloat16(writer: RunWriter, step: int, where: str, rows: list[str]) -> None:
    """Record that a run computes in bfloat16 from now on, for whoever opens it next; and say it."""
    environment = writer.run.environment()
    environment["kernels"]["dtype"] = "bfloat16"
    write_json(writer.run.path / "environment.json", environment)
    message = (
        f"{where}: loss or gradient is not finite in float16, which ends at 65,504; from step {step + 1} on the run "
        "computes in bfloat16, which goes as far as float32 and takes an M1 or M2 longer"
    )
    writer.log("warning", step=step, message=message, rows=rows)


def _give_back_memory() -> None:
    """Free the arrays of a session that is gone: its parts refer to each other, so they do not go by themselves."""
    gc.collect()
    device.clear_cache()


# Validation and saving --------------------------------------------------------------------------------------------


def validate_model(session: Session) -> float:
    """Mean loss over all target tokens of the validation rows, nats; the same rows in the same batches every time."""
    rows, total = session.val_rows, 0.0
    batches = list(neighbours(rows.lengths.tolist(), session.tokens_at_once))
    with doing("validation", len(batches)) as tick:
        for number, some in enumerate(batches):
            tick(number)
            total += _validation_loss(session, some)
    return total / int(rows.target_lengths.sum())


def _validation_loss(session: Session, some: Sequence[int]) -> float:
    """Of some validation rows, summed over their target tokens, nats."""
    session.model.eval()
    loss = 0.0
    if session.workers:
        session.workers.engage()
    for shares in _rounds(session, session.val_rows, [some]):
        _share_cores_of_round(session, shares)
        if computed := _by_workers(session, shares, gradients=False):
            losses = [one for one, _ in computed]
        else:
            losses = _on_streams(session, shares, session.passes.loss)
        loss += sum(losses).item()
    session.model.train()
    return loss


def _validate(session: Session, writer: RunWriter) -> None:
    progress, started = session.progress, time.perf_counter()
    with session.spent.on("validation"):
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
    """Answer the sample prompts, in epoch 0 as the base; training is as if it had not been. An error is a warning."""
    pace, step = session.config.pace, session.progress.step if epoch else 0
    if not pace.samples:
        return
    problem = f"step {step}: the sample prompts could not be answered"
    with session.spent.on("samples"), _spared(writer, problem, step=step), session.whole():
        answer_samples(session.run, session.model, session.tokenizer, pace, step=step, epoch=epoch)
    prepare_to_train(session)


@contextlib.contextmanager
def _spared(writer: RunWriter, problem: str, *, trained: bool = False, **fields: int) -> Iterator[None]:
    """Return what goes wrong inside the block is a warning: whatever it is, hours of training are worth more.

    But for a device that gave up, unless all was `trained` and saved: what comes after it would not be sound.
    """
    try:
        yield
    except Exception as error:
        failure = device_failure(error)
        if failure and not trained:
            raise failure from None
        writer.log("warning", **fields, message=f"{problem}: {failure or str(error) or type(error).__name__}")


def _patience_is_over(session: Session) -> bool:
    patience = session.config.train.patience
    return bool(patience) and session.progress.evaluations_since_best >= patience


def _save(session: Session, writer: RunWriter) -> None:
    """Write a checkpoint.

    Raises:
        TrainingError: a number is not finite; the older checkpoints stay.
    """
    _refuse_non_finite(session)
    started = time.perf_counter()
    directory = session.run.path / "checkpoints"
    keep = session.config.pace.keep_checkpoints
    writer.sync()  # the curves until here are worth as much
    session.spent.until_now()
    with session.spent.on("saving"), doing("saving"):
        path = save_checkpoint(directory, session.model, session.optimizer, session.progress, keep)
    session.watch.saved_at, session.watch.save_next = time.monotonic(), False
    size = sum(file.stat().st_size for file in path.iterdir())
    writer.log("checkpoint", step=session.progress.step, bytes=size, seconds=time.perf_counter() - started)


def _refuse_non_finite(session: Session) -> None:
    if not _finite(session.model.trainable_parameters(), session.optimizer.state).item():
        newest, _ = latest_checkpoint(session.run.path / "checkpoints")
        onward = f"checkpoint {newest.name}" if newest else "the start"
        raise TrainingError(
            f"step {session.progress.step}: adapters or optimizer state are not finite, so they are not saved. "
            f"Going on begins at {onward} again; if that ends here as well, lower --learning-rate in a new run."
        )


def _long_since_saved(session: Session) -> bool:
    """Whether a checkpoint is due by the clock, or by the memory guard's word."""
    minutes, watch = session.config.pace.save_minutes, session.watch
    return watch.save_next or (minutes > 0 and time.monotonic() - watch.saved_at >= 60 * minutes)


def _save_if_new(session: Session, writer: RunWriter) -> None:
    newest, _ = latest_checkpoint(session.run.path / "checkpoints")
    if newest is None or int(newest.name) != session.progress.step:
        _save(session, writer)


@contextlib.contextmanager
def _raising_after(trouble: QLoraError | None) -> Iterator[None]:
    """Raise `trouble` after the block, with what went wrong in it; if there is none, only that."""
    try:
        yield
    except QLoraError as error:
        if trouble is None:
            raise
        if isinstance(error, StorageError):  # whatever else is wrong, what could be saved is not
            raise StorageError(f"{trouble} {error}", error.errno) from None
        raise type(trouble)(f"{trouble} {error}") from None
    if trouble:
        raise trouble


def _warn_of_little_room(session: Session, writer: RunWriter) -> None:
    """Say at once what would pause the run hours later."""
    run, keep = session.run, session.config.pace.keep_checkpoints
    wanted, free = room_wanted(run.path / "checkpoints", session.model, keep), shutil.disk_usage(run.path).free
    if free < wanted:
        writer.log(
            "warning",
            message=f"{run.path}: {wanted:,} bytes wanted for what the run will save, {free:,} bytes free there. Make "
            "room, or use --keep-checkpoints 1; when the disk is full, the run is paused",
        )


def _save_adapters(session: Session, directory: Path, **metadata: str) -> None:
    _refuse_non_finite(session)
    config = adapter_parameters(session.spec, session.config.lora, session.kernels.dtype)
    save_adapters(session.model, directory, config, {"step": str(session.progress.step), **metadata})


def _log_memory(session: Session, writer: RunWriter, label: str) -> None:
    sample = session.monitor.sample()
    writer.log("memory", step=session.progress.step, label=label, **dataclasses.asdict(sample))


# Ending ---------------------------------------------------------------------------------------------------------


def _finish(session: Session, writer: RunWriter, interruption: Interruption) -> State:
    progress = session.progress
    _save_if_new(session, writer)
    if interruption.asked == "pause" and progress.step < session.total_steps:
        writer.end("paused", progress.step)
        return "paused"
    _save_adapters(session, session.run.final)
    end_workers(session)
    writer.tell("evaluating")
    with _spared(writer, "what it learnt could not be tested; `qlora evaluate` does it again", trained=True):
        (session.run.path / "evaluation.json").unlink(missing_ok=True)  # of fewer steps
        # one that ended before its last step would be trained further if it were paused here
        whole = progress.step == session.total_steps
        with (
            session.spent.on("evaluation"),
            _hearing_pauses(writer, interruption) if whole else contextlib.nullcontext(),
        ):
            evaluate_best(session)
    remove_states(session.run.path)
    state: State = "stopped" if interruption.asked == "stop" and progress.step < session.total_steps else "completed"
    with _spared(writer, "the summary could not be written"):
        write_json(session.run.path / "summary.json", summarise(session))
    writer.end(state, progress.step)
    return state


def evaluate_best(session: Session) -> dict[str, Any]:
    """Judge the adapters that will be used: the best ones, else the final ones."""
    adapters = session.run.adapters
    load_adapters(session.model, adapters / "adapters.safetensors")
    with session.whole():
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
        **session.spent.as_summary(),
        "tokens_per_second": progress.tokens / progress.seconds if progress.seconds else 0.0,
        "peak_memory_bytes": max(progress.peak_memory_bytes, device.memory_counters()["peak"]),
        "peak_process_bytes": session.monitor.sample().process_peak,
        "best_val_loss": progress.best_val_loss,
        "best_step": progress.best_step,
    }


class Interruption:
    """Notices that training should end: Ctrl+C, SIGTERM, a closed terminal (SIGHUP), or a word in the control file.

    While it trains, the current step is finished first, and a second Ctrl+C ends it at once. Before, there is nothing
    to save, and the first signal ends it at once. A context manager; signals are only caught in the main thread.

    Args:
        run: whose control file is read.
        listeners: are told at once that a signal was heard, which is long before the step ends.

    Attributes:
        signal: the number of the first one that came; 0 if none did.
        training: set when loading is done.
        at_once: whether a KeyboardInterrupt was raised; whatever else comes is ignored.
    """

    def __init__(self, run: Run, listeners: Iterable[Callable[[dict[str, Any]], None]] = ()) -> None:
        self.run, self.listeners = run, listeners
        self.signal = 0
        self.training = self.at_once = False
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> str:
        """`pause`, `stop`, or empty."""
        word = self.run.control()
        return word if word != "run" else "pause" if self.signal else ""

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _frame: object) -> None:
        if self.at_once:
            return
        self.at_once = not self.training or bool(self.signal and number == signal.SIGINT)
        first, self.signal = not self.signal, self.signal or number
        if self.at_once:
            raise KeyboardInterrupt
        # it may have come in the middle of writing a line, when another one is refused: then that is all there is
        with contextlib.suppress(OSError, RuntimeError):
            for listener in self.listeners if first else ():
                listener({"type": "asked"})


@contextlib.contextmanager
def listening(writer: RunWriter, listener: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Tell `listener` every event inside the block."""
    writer.listeners.append(listener)
    try:
        yield
    finally:
        writer.listeners.remove(listener)
