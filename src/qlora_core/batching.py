"""Token rows to batches, as pure functions of (lengths, settings, seed, epoch).

Packed: rows end to end, no padding. Padded: rows of similar length side by side. Both hold the same rows and the same
targets. Knows nothing of models or text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .config import TrainConfig
from .tokens import TokenRow


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes.

    Attributes:
        ids: int32, `(1, N)` packed or `(B, L)` padded.
        lengths: tokens of each row, in order.
        packed: whether rows lie end to end.
        source: int32, `(T,)`: flat positions whose next token is trained.
        target: int32, `(T,)`: those next tokens.
    """

    ids: np.ndarray
    lengths: tuple[int, ...]
    packed: bool
    source: np.ndarray
    target: np.ndarray

    @property
    def tokens(self) -> int:
        """Real tokens; padding is never counted."""
        return sum(self.lengths)


def make_batch(rows: Sequence[TokenRow], *, packed: bool) -> Batch:
    """Lay rows end to end or side by side."""
    lengths = tuple(map(len, rows))
    width = max(lengths)
    starts = np.cumsum([0, *lengths[:-1]]) if packed else np.arange(len(rows)) * width
    ids = np.zeros(sum(lengths) if packed else len(rows) * width, np.int32)
    source, target = [], []
    for start, row in zip(starts, rows, strict=True):
        ids[start : start + len(row)] = row.ids
        trained = np.flatnonzero(row.trained)
        source.append(start + trained - 1)
        target.append(row.ids[trained])
    return Batch(
        ids=ids.reshape(1, -1) if packed else ids.reshape(len(rows), width),
        lengths=lengths,
        packed=packed,
        source=np.concatenate(source).astype(np.int32),
        target=np.concatenate(target).astype(np.int32),
    )


def epoch_batches(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, sort: bool) -> list[list[int]]:
    """Indices of the rows of every micro-batch of one epoch; each row occurs once.

    Args:
        lengths: tokens of each row.
        batch_size: rows a micro-batch; the last one may be smaller.
        seed: with `epoch`, decides the order alone: a resumed run sees the batches it would have seen.
        epoch: counted from 0.
        sort: bring rows of similar length together, within windows of 16 batches, for layouts that pad.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    if not sort:
        return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    window = 16 * batch_size
    batches = []
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window].tolist(), key=lambda i: lengths[i])
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def epoch_steps(lengths: Sequence[int], train: TrainConfig, *, epoch: int, sort: bool) -> list[list[list[int]]]:
    """The micro-batches of each step of an epoch, as `epoch_batches` makes them."""
    batches = epoch_batches(lengths, train.batch_size, seed=train.seed, epoch=epoch, sort=sort)
    size = train.grad_accumulation_steps
    return [batches[i : i + size] for i in range(0, len(batches), size)]


def at_most(rows: int, batches: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
    """The same rows in the same order, no more than `rows` at once."""
    return (batch[i : i + rows] for batch in batches for i in range(0, len(batch), rows))


def fixed_batches(count: int, batch_size: int) -> list[list[int]]:
    """Indices in their own order, for validation: the same rows, the same way, every time."""
    return [list(range(i, min(i + batch_size, count))) for i in range(0, count, batch_size)]


def share_out(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Divide rows over at most `parts` streams so that each has about as many tokens; indices of the rows of each."""
    shares: list[list[int]] = [[] for _ in range(min(parts, len(lengths)))]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        min(shares, key=lambda share: (sum(lengths[i] for i in share), len(share))).append(index)
    return shares
