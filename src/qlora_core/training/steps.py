"""One optimizer step and one validation: loss and gradient of rows, on several streams or processes, and the update.

`batcher` decides which rows are computed together.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..activity import doing
from ..engine import device
from ..engine.device import mx, tree_flatten, tree_map
from ..engine.sums import exact_norm
from ..machine.memory import MemorySample
from ..schedule import learning_rate
from ..tokens.batching import Batch
from ..tokens.rows import TokenRow
from ..translations import Sentence
from .batcher import NumberedRound, Shares
from .followers import Round, Task
from .session import Session
from .share_workers import Computed, Request, compute_on_streams, compute_shares, losses_by_row

ODD = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: its multiples are far apart


class HalfOverflow(Exception):
    """Loss or gradient is not finite in float16, which ends at 65,504; bfloat16 has the range of float32.

    No user sees it: the trainer catches it, and goes on in bfloat16.

    Args:
        where: the step or rows, in words.
        rows: sources of the rows that were computed.
    """

    def __init__(self, where: str, rows: list[str]) -> None:
        super().__init__(where)
        self.where, self.rows = where, rows


def prepare_to_train(session: Session) -> None:
    """Put the model into training mode and divide the cores over the streams."""
    session.model.train()
    _share_cores(session, session.kernels.streams)


def _share_cores(session: Session, streams: int) -> None:
    """Divide the cores over the streams.

    Nothing may be computed meanwhile: the number of threads of a product decides its last bits.
    """
    device.set_blas_threads(_threads(session, streams))


def _threads(session: Session, streams: int) -> int:
    devices = session.followers.here if session.followers else 1
    return max(1, device.cores() // (streams * devices))


class Step(NamedTuple):
    """The numbers of one optimizer update.

    Attributes:
        loss: summed over the target tokens, in nats.
        targets: number of target tokens.
        tokens: number of tokens, without padding.
        norm: norm of the gradient of the mean loss, before clipping.
        rate: learning rate.
        updated: whether the weights were changed; if a number is not finite, they are not.
    """

    loss: float
    targets: int
    tokens: int
    norm: float
    rate: float
    updated: bool

    @property
    def finite(self) -> bool:
        """Return whether loss and gradient are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def timed_step(session: Session, group: Sequence[Sequence[int]]) -> tuple[Step, MemorySample, float]:
    """Make one optimizer step and count it; return it with the memory after it and its duration in seconds.

    Raises:
        HalfOverflow: it is not finite in float16. It changed nothing, and is not counted.
    """
    progress, started = session.progress, time.perf_counter()
    with contextlib.nullcontext() if session.loop_state.stepped else _first_step(session):
        step = train_step(session, group)
    session.loop_state.stepped = True
    if session.kernels.dtype == "float16" and not step.finite:
        raise HalfOverflow(Sentence("step {step}", step=progress.step + 1), sources_of(session.train_rows, group))
    seconds = time.perf_counter() - started
    memory = session.monitor.sample()
    progress.step += 1
    progress.tokens += step.tokens
    progress.target_tokens += step.targets
    progress.seconds += session.loop_state.throughput.count(step.tokens, seconds)
    progress.peak_memory_bytes = max(progress.peak_memory_bytes, memory.peak)
    if step.updated:
        progress.epoch_loss += step.loss
        progress.epoch_targets += step.targets
    return step, memory, seconds


def _first_step(session: Session) -> contextlib.AbstractContextManager[Any]:
    """Report that a step is being made which takes longer than the others."""
    return doing("first_step" if session.kernels.device == "cpu" else "compiling")


def step_numbers(session: Session, step: Step, memory: MemorySample, seconds: float) -> dict[str, Any]:
    """Return a step as the fields of a `step` event."""
    return {
        "step": session.progress.step,
        **session.objective.step_numbers(step.loss if step.updated else None, step.targets),
        "learning_rate": step.rate,
        "grad_norm": step.norm if step.updated else None,
        "tokens": step.tokens,
        "seconds": seconds,
        "tokens_per_second": step.tokens / seconds,
        "peak_memory_bytes": memory.peak,
        "available_memory_bytes": memory.available,
        "cpu_percent": session.loop_state.processors.percent(),
    }


def train_step(session: Session, group: Sequence[Sequence[int]]) -> Step:
    """Make one optimizer update from the micro-batches of `group`.

    The gradient is that of the mean loss over all target tokens of the step. Micro-batches are summed, not averaged, so
    4 micro-batches of 1 row equal 1 of 4. An update that is not finite leaves the weights as they were.
    """
    config = session.config.train
    rows, number = session.train_rows, session.progress.step + 1
    targets = sum(rows[i].target_tokens for indices in group for i in indices)
    tokens = sum(len(rows[i]) for indices in group for i in indices)
    loss, gradient = summed_gradient(session, group)  # (), (parameters,)
    gradient = gradient / targets
    norm, rate = exact_norm(gradient), learning_rate(number, session.total_steps, config)
    if config.max_grad_norm:
        gradient = gradient * mx.where(norm > config.max_grad_norm, config.max_grad_norm / norm, 1.0)
    updated = _update(session, gradient, mx.array(rate, mx.float32), mx.isfinite(loss) & mx.isfinite(norm))
    return Step(loss.item(), targets, tokens, norm.item(), rate, updated.item())


def summed_gradient(session: Session, group: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array]:
    """Return the loss of a step's rows and its gradient `(parameters,)`, summed over all target tokens."""
    loss, gradient = mx.array(0.0), mx.array(0.0)
    rounds = session.batcher.rounds(session.train_rows, group)
    if session.followers:
        rounds = (shares for _, shares in _give_out(session, session.train_rows, group))
        gradient = mx.zeros(session.adapters.size)  # there may be too few rows for this device
    mx.random.seed(_dropout_seed(session))
    if session.workers:
        session.workers.engage()
    for shares in rounds:
        if session.workers:  # they are given their threads at once
            mx.eval(loss, gradient)
        part_loss, part_gradient = _round_gradient(session, shares)  # builds the graph while the last round is computed
        mx.eval(loss, gradient)  # wait for it, so that only one round at a time is in memory
        _share_cores(session, session.batcher.streams_of(shares))
        loss, gradient = loss + part_loss, gradient + part_gradient
        mx.async_eval(loss, gradient)
    return session.followers.summed(loss, gradient) if session.followers else (loss, gradient)


def _give_out(
    session: Session, rows: Sequence[TokenRow], group: Iterable[Sequence[int]], losses_of: Sequence[int] = ()
) -> list[NumberedRound]:
    """Divide rows over all devices, have the others compute theirs, and return the rounds of this one.

    They compute loss and gradient, or with `losses_of` the losses of these rows, one by one.
    """
    batcher, followers = session.batcher, session.followers
    own, *others = batcher.divided(rows, group, followers.devices)
    place = {index: number for number, index in enumerate(losses_of)}

    def told(indices: list[list[int]], shares: Shares) -> Round:
        places = [[place[i] for i in some] for some in indices] if losses_of else []
        return Round(shares, _threads(session, batcher.streams_of(shares)), places)

    tasks = [
        Task([told(*one) for one in rounds], len(losses_of), batcher.prefix, _dropout_seed(session, number))
        for number, rounds in enumerate(others, 1)
    ]
    followers.ask(tasks, session.adapters, session.model.trainable_parameters())
    return own


def _update(session: Session, gradient: mx.array, rate: mx.array, finite: mx.array) -> mx.array:
    """Apply a gradient `(parameters,)` to adapters and moments if all of them stay finite; return whether they do."""
    optimizer, ratio = session.optimizer, session.rate_ratio
    state = tree_map(lambda value: value, optimizer.state)  # arrays are immutable, so a copy of the tree is enough
    adapters = session.adapters.join(session.model.trainable_parameters())
    optimizer.learning_rate = rate if ratio is None else rate * ratio
    changed = optimizer.apply_gradients({"adapters": gradient}, {"adapters": adapters})["adapters"]
    optimizer.learning_rate = rate  # the state that is saved holds a single number, without the ratio
    finite = finite & all_finite(changed, optimizer.state["adapters"])
    optimizer.state = tree_map(lambda new, old: mx.where(finite, new, old), optimizer.state, state)
    session.model.update(session.adapters.part(mx.where(finite, changed, adapters)))
    mx.eval(finite, session.model.trainable_parameters(), optimizer.state)
    return finite


def all_finite(*trees: Any) -> mx.array:
    """Return whether all numbers are finite.

    The sum of an array is checked: it is finite only if all of its terms are.
    """
    values = [value for _, value in tree_flatten(list(trees)) if mx.issubdtype(value.dtype, mx.floating)]
    return mx.isfinite(mx.stack([mx.sum(value) for value in values])).all()


def _round_gradient(session: Session, shares: Shares) -> tuple[mx.array, mx.array]:
    """Return the summed loss of some rows and its gradient `(parameters,)`.

    Each process or stream computes a share of the rows.
    """
    if computed := _by_workers(session, shares, gradients=True):
        computed = [(mx.array(loss), mx.array(gradient)) for loss, gradient in computed]
    else:
        computed = _on_streams(session, shares, session.passes.loss_and_gradient)
    losses, gradients = zip(*computed, strict=True)
    return sum(losses), sum(gradients[1:], gradients[0])


def _by_workers(session: Session, shares: Shares, *, gradients: bool) -> list[Computed] | None:
    """Compute shares, some in each process, as `Request` says; return None if workers are not to be used."""
    workers = session.workers
    if workers is None or not workers.engaged or len(shares) == 1:
        return None
    request = Request(shares, gradients, session.batcher.prefix, _threads(session, session.batcher.streams_of(shares)))
    device.set_blas_threads(request.threads)

    def own(request: Request) -> list[Computed]:
        return compute_shares(session.passes, request, session.streams, session.kernels, session.layout)

    return workers.compute(request, session.model.trainable_parameters(), own)


def _on_streams(session: Session, shares: Shares, compute: Callable[[Batch], Any]) -> list[Any]:
    """Return the result of `compute` for each share, on a stream of its own."""
    return compute_on_streams(shares, session.streams, lambda share: compute(session.batcher.batch(share)))


def _dropout_seed(session: Session, device: int = 0) -> int:
    """Return the seed of the next step; each device drops other numbers."""
    seed = (session.config.train.seed << 32) | (session.progress.step + 1)
    return (seed + device * ODD) % 2**64


def validate_model(session: Session) -> np.ndarray:
    """Return the loss of each validation row, in nats, summed over its target tokens: float64 `(rows,)`.

    It computes the same rows in the same batches every time.
    """
    rows = session.val_rows
    losses = np.zeros(len(rows))
    with doing("validation", len(rows)) as tick:
        for some in session.batcher.validation(rows.lengths.tolist()):
            tick(some.start)
            losses[some.start : some.stop] = validation_losses(session, some)
    return losses


def mean_loss(session: Session, losses: np.ndarray) -> float:
    """Return the mean loss over all target tokens of the validation rows, from the losses of the rows."""
    return float(losses.sum() / session.val_rows.target_lengths.sum())


def validation_losses(session: Session, some: Sequence[int]) -> np.ndarray:
    """Return the losses (nats) of the given validation rows, each summed over its target tokens."""
    session.model.eval()
    found: dict[int, float] = {}
    if session.workers:
        session.workers.engage()
    if session.followers:
        rounds: Iterable[NumberedRound] = _give_out(session, session.val_rows, [some], losses_of=some)
    else:
        rounds = session.batcher.numbered_rounds(session.val_rows, [some])
    for indices, shares in rounds:
        _share_cores(session, session.batcher.streams_of(shares))
        computed = _by_workers(session, shares, gradients=False)
        if computed is None:
            made = _on_streams(session, shares, lambda batch: (batch, session.passes.token_losses(batch)))
            computed = losses_by_row(made, shares)
        for numbers, losses in zip(indices, computed, strict=True):
            found.update(zip(numbers, losses.tolist(), strict=True))
    session.model.train()
    if session.followers:
        return session.followers.summed_losses(np.array([found.get(i, 0.0) for i in some]))
    return np.array([found[i] for i in some])


def sources_of(rows: Sequence[TokenRow], group: Sequence[Sequence[int]]) -> list[str]:
    """Return the sources of the rows of some micro-batches."""
    return [rows[i].source for indices in group for i in indices]
