"""Token rows to batches, as pure functions of (lengths, settings, seed, epoch).

Packed: rows end to end, no padding. Padded: rows of similar length side by side. Both hold the same rows and the same
targets. Knows nothing of models or text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..config import TrainConfig
from .rows import TokenRow
from .shared_prefix import NO_PREFIX, begins_with, part


@dataclass(frozen=True)
class Rounding:
    """Sizes that batches are filled up to, so that few shapes occur: a GPU prepares for each when it first sees it.

    Attributes:
        tokens: of a packed batch: to a multiple of this and of a sixteenth of the power of two above; and of its
            trained tokens, to one of this and of an eighth. 1: as they are.
        longest: of its longest row, where attention takes the rows apart: to a multiple of this.
        bins: sizes of bins that rows are packed into, where that leaves little empty; none: end to end in one row.
        flat_cost: what a token end to end in one row costs, where attention takes the rows apart and puts them
            together, in tokens in bins: a quarter more on an H100 (measured).
    """

    tokens: int = 1
    longest: int = 1
    bins: tuple[int, ...] = ()
    flat_cost: float = 1.25

    def total(self, count: int) -> int:
        """Of a batch with `count` tokens: at most an eighth more where that is no less than `tokens`."""
        return self._up(count, 4)

    def trained(self, count: int) -> int:
        """Of a batch with `count` trained tokens: at most a quarter more where that is no less than `tokens`."""
        return self._up(count, 3)

    def _up(self, count: int, bits: int) -> int:
        return count if self.tokens == 1 else _up(count, max(self.tokens, 1 << max(0, (count - 1).bit_length() - bits)))


AS_IT_IS = Rounding()
SHARED = -2  # instead of a row's number: a token that all rows after it see


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes.

    Rows lie end to end in one (`pack`), end to end in several bins (`row`), or each in its own, padded. The beginning
    that rows share lies before them once, in bins once in each, and they without it: each of these is a part.

    Attributes:
        ids: int32, `(1, N)` end to end, `(R, L)` in bins or padded.
        lengths: tokens of each part, in order.
        source: int32, `(T,)`: flat positions whose next token is trained.
        target: int32, `(T,)`: those next tokens.
        weight: float32, `(T,)`: 1, or 0 for what fills the batch up.
        starts: int64, `(parts,)`: flat position of the first token of each part.
        states: `(…, hidden)`, as `ids` is laid out: those of the rows, if they have any.
        unpack: int32, `(R, L)`: end to end and filled up, the place of each token of each row, -1 beyond its end.
        pack: int32, `(N,)`: end to end and filled up, the place in the flattened `unpack` of each token, -1 for what
            fills it up.
        row: int32, `(R, L)`: in bins, which part a token belongs to, -1 for what fills a bin up, `SHARED` for what rows
            after it share.
        position: int32, as `ids`: of each token in its row, if rows share a beginning.
        prefix: end to end, which part is the beginning that all after it share.
    """

    ids: np.ndarray
    lengths: tuple[int, ...]
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    starts: np.ndarray
    states: np.ndarray | None = None
    unpack: np.ndarray | None = None
    pack: np.ndarray | None = None
    row: np.ndarray | None = None
    position: np.ndarray | None = None
    prefix: int | None = None

    @property
    def plain(self) -> bool:
        """Whether attention may go from each token to all before it: no two rows lie in one line of what it sees."""
        if self.row is not None:
            return len(self.lengths) == len(self.row)  # no bin is empty, nor has it only what rows share
        return self.unpack is not None and self.unpack.size == self.ids.size == self.tokens

    @property
    def tokens(self) -> int:
        """Real tokens; padding is never counted."""
        return sum(self.lengths)


def make_batch(
    rows: Sequence[TokenRow], *, packed: bool, rounding: Rounding = AS_IT_IS, prefix: np.ndarray = NO_PREFIX
) -> Batch:
    """Lay rows end to end, in one or in bins, or side by side.

    Args:
        rows: to lay.
        packed: whether end to end.
        rounding: sizes that the batch is filled up to.
        prefix: int32, a beginning that rows which have it share, where packed that makes the batch smaller.
    """
    lengths = np.fromiter(map(len, rows), np.int64)
    if not packed:
        return _laid(rows, lengths, np.arange(len(rows)) * lengths.max(), (len(rows), int(lengths.max())), rounding)
    sharing = [begins_with(row, prefix) for row in rows]
    several = sum(sharing) > 1
    if several and rounding == AS_IT_IS:
        return _sharing_end_to_end(rows, sharing, len(prefix), rounding)
    batch = _packed(rows, lengths, rounding)
    if several and rounding.bins:
        return min(batch, _sharing_in_bins(rows, sharing, len(prefix), rounding), key=lambda batch: batch.ids.size)
    return batch


def _packed(rows: Sequence[TokenRow], lengths: np.ndarray, rounding: Rounding) -> Batch:
    total = rounding.total(int(lengths.sum()))
    size, bins = fill_bins(lengths.tolist(), rounding.bins)
    if bins and size * len(bins) <= rounding.flat_cost * total:
        return _in_bins(rows, size, bins, rounding)
    starts = np.cumsum(lengths) - lengths
    if rounding == AS_IT_IS:
        return _laid(rows, lengths, starts, (1, total), rounding)
    position = np.arange(_up(int(lengths.max()), rounding.longest))
    inside = position < lengths[:, None]
    pack = np.full(total, -1, np.int32)
    pack[: lengths.sum()] = np.flatnonzero(inside)
    unpack = np.where(inside, starts[:, None] + position, -1).astype(np.int32)
    return dataclasses.replace(_laid(rows, lengths, starts, (1, total), rounding), unpack=unpack, pack=pack)


def _in_bins(
    rows: Sequence[TokenRow], size: int, bins: Sequence[Sequence[int]], rounding: Rounding, beginning: int = -1
) -> Batch:
    """Rows in bins of this size; `beginning` is the one that those after it in its bin share."""
    placed, row = [], np.full((len(bins), size), -1, np.int32)
    for number, indices in enumerate(bins):
        place = 0
        for index in indices:
            placed.append((index, number * size + place))
            row[number, place : place + len(rows[index])] = SHARED if index == beginning else index
            place += len(rows[index])
    parts, starts = zip(*((rows[index], start) for index, start in sorted(placed)), strict=True)
    batch = _laid(parts, np.fromiter(map(len, parts), np.int64), np.array(starts), row.shape, rounding)
    return dataclasses.replace(batch, row=row)


def _sharing_end_to_end(rows: Sequence[TokenRow], sharing: Sequence[bool], size: int, rounding: Rounding) -> Batch:
    """Rows that share nothing, the beginning of `size` tokens, and what the others have beyond it."""
    alone = [row for row, shares in zip(rows, sharing, strict=True) if not shares]
    rests = [part(row, size) for row, shares in zip(rows, sharing, strict=True) if shares]
    parts = [*alone, _beginning(rows, sharing, size), *rests]
    lengths = np.fromiter(map(len, parts), np.int64)
    batch = _laid(parts, lengths, np.cumsum(lengths) - lengths, (1, int(lengths.sum())), rounding)
    position = _positions(batch, [0] * (len(alone) + 1) + [size] * len(rests))
    return dataclasses.replace(batch, position=position, prefix=len(alone))


def _sharing_in_bins(rows: Sequence[TokenRow], sharing: Sequence[bool], size: int, rounding: Rounding) -> Batch:
    """The same in each bin that has rows which share it."""
    parts = [part(row, size) if shares else row for row, shares in zip(rows, sharing, strict=True)]
    elsewhere = [size * shares for shares in sharing]
    width, bins = fill_bins([len(row) for row in parts], rounding.bins, elsewhere)
    beginning, ordered = len(rows), []
    for indices in bins:
        alone = [index for index in indices if not sharing[index]]
        rests = [index for index in indices if sharing[index]]
        ordered.append([*alone, beginning, *rests] if rests else alone)
    batch = _in_bins([*parts, _beginning(rows, sharing, size)], width, ordered, rounding, beginning)
    copies = len(batch.lengths) - len(rows)
    return dataclasses.replace(batch, position=_positions(batch, [*elsewhere, *[0] * copies]))


def _beginning(rows: Sequence[TokenRow], sharing: Sequence[bool], size: int) -> TokenRow:
    return part(rows[sharing.index(True)], 0, size)


def _positions(batch: Batch, elsewhere: Sequence[int]) -> np.ndarray:
    """Of each token in its row, int32, as the ids lie, where so many tokens before each part lie elsewhere."""
    position = np.zeros(batch.ids.size, np.int32)
    for start, length, before in zip(batch.starts, batch.lengths, elsewhere, strict=True):
        position[start : start + length] = np.arange(before, before + length)
    return position.reshape(batch.ids.shape)


def _laid(
    rows: Sequence[TokenRow], lengths: np.ndarray, starts: np.ndarray, shape: tuple[int, int], rounding: Rounding
) -> Batch:
    """Rows that start at these flat positions of a batch of this shape."""
    ids = np.zeros(shape[0] * shape[1], np.int32)
    source, target = [], []
    for start, row in zip(starts.tolist(), rows, strict=True):
        ids[start : start + len(row)] = row.ids
        trained = np.flatnonzero(row.trained)
        source.append(start + trained - 1)
        target.append(row.ids[trained])
    states = None
    if rows[0].states is not None:
        states = np.zeros((len(ids), rows[0].states.shape[1]), rows[0].states.dtype)
        for start, row in zip(starts.tolist(), rows, strict=True):
            states[start : start + len(row)] = row.states
        states = states.reshape(*shape, -1)
    count = sum(map(len, target))
    filling = (0, rounding.trained(count) - count)
    return Batch(
        ids=ids.reshape(shape),
        lengths=tuple(lengths.tolist()),
        source=np.pad(np.concatenate(source), filling).astype(np.int32),
        target=np.pad(np.concatenate(target), filling).astype(np.int32),
        weight=np.pad(np.ones(count, np.float32), filling),
        starts=starts,
        states=states,
    )


def fill_bins(
    lengths: Sequence[int], sizes: Sequence[int], before: Sequence[int] | None = None
) -> tuple[int, list[list[int]]]:
    """Rows in bins of the size that leaves least empty: each, the longest first, in the first one that has room.

    Args:
        lengths: of the rows.
        sizes: those too small for the longest row count as its length, rounded up to a multiple of the smallest.
        before: tokens that lie in a bin before the rows that share them; 0 for a row that does not.

    Returns:
        The size, and the indices of the rows in each bin; no bins if there are no sizes.
    """
    before = before or [0] * len(lengths)
    alone = [length + more for length, more in zip(lengths, before, strict=True)]
    best: tuple[int, list[list[int]]] = (0, [])
    for size in sorted({max(size, _up(max(alone), min(sizes))) for size in sizes}):
        bins: list[list[int]] = []
        room: list[int] = []
        has: list[bool] = []  # what its rows share
        for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            taken = (alone[index], lengths[index])  # where it lies there not yet, and where it does
            place = next((i for i, left in enumerate(room) if left >= taken[has[i]]), len(bins))
            if place == len(bins):
                bins.append([])
                room.append(size)
                has.append(False)
            bins[place].append(index)
            room[place] -= taken[has[place]]
            has[place] |= before[index] > 0
        if not best[1] or size * len(bins) < best[0] * len(best[1]):
            best = (size, bins)
    return best


Order = Literal["drawn", "alike", "level"]
"""How rows come together in an epoch's batches: as they are drawn; rows of similar length; so that batches are level.

`alike` suits layouts that pad. With `level`, each batch has short and long rows and nearly the same number of tokens:
few shapes, and bins that are filled well.
"""

WINDOW = 16  # batches whose rows are drawn together before they are put in order


def epoch_batches(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, order: Order) -> list[list[int]]:
    """Indices of the rows of every micro-batch of one epoch; each row occurs once.

    Args:
        lengths: tokens of each row.
        batch_size: rows a micro-batch; the last one may be smaller, and of level ones the last few.
        seed: with `epoch`, decides the order alone: a resumed run sees the batches it would have seen.
        epoch: counted from 0.
        order: how rows come together.
    """
    rng = np.random.default_rng([seed, epoch])
    drawn = rng.permutation(len(lengths)).tolist()
    if order == "drawn":
        return _cut(drawn, batch_size)
    arranged = _cut if order == "alike" else _dealt
    batches = []
    for window in _cut(drawn, WINDOW * batch_size):
        batches += arranged(sorted(window, key=lambda i: lengths[i]), batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _dealt(rows: list[int], size: int) -> list[list[int]]:
    """Rows that are sorted by length, dealt out to and fro."""
    count = math.ceil(len(rows) / size)
    piles: list[list[int]] = [[] for _ in range(count)]
    for number, row in enumerate(rows):
        turn, place = divmod(number, count)
        piles[place if turn % 2 == 0 else count - 1 - place].append(row)
    return piles


def epoch_steps(lengths: Sequence[int], train: TrainConfig, *, epoch: int, order: Order) -> list[list[list[int]]]:
    """The micro-batches of each step of an epoch, as `epoch_batches` makes them."""
    batches = epoch_batches(lengths, train.batch_size, seed=train.seed, epoch=epoch, order=order)
    return _cut(batches, train.grad_accumulation_steps)


def at_most(rows: int, batches: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
    """The same rows in the same order, no more than `rows` at once."""
    return (batch[i : i + rows] for batch in batches for i in range(0, len(batch), rows))


def neighbours(lengths: Iterable[int], tokens: int) -> Iterator[range]:
    """Indices next to each other, of together no more than so many tokens, or of one row."""
    begin = total = end = 0
    for end, length in enumerate(lengths, 1):
        if total and total + length > tokens:
            yield range(begin, end - 1)
            begin, total = end - 1, 0
        total += length
    if end:
        yield range(begin, end)


def share_out(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Divide rows over at most `parts` streams so that each has about as many tokens; indices of the rows of each."""
    shares: list[list[int]] = [[] for _ in range(min(parts, len(lengths)))]
    tokens = [0] * len(shares)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = min(range(len(shares)), key=lambda place: (tokens[place], len(shares[place])))
        shares[place].append(index)
        tokens[place] += lengths[index]
    return shares


def in_rounds(lengths: Sequence[int], *, streams: int, share: int, at_once: int) -> list[list[list[int]]]:
    """Divide rows into rounds that are computed one after the other, each on several streams at the same time.

    Args:
        lengths: of the rows.
        streams: shares of a round, at most.
        share: tokens of one, at most; a row that is longer is one.
        at_once: tokens of a round, at most; a row that is longer is one.

    Returns:
        As few rounds as do, of shares of about as many tokens each; indices of the rows of each share.
    """
    share = min(share, at_once)
    count = streams * math.ceil(sum(lengths) / min(streams * share, at_once))
    while True:
        shares = share_out(lengths, count)
        tokens = [sum(lengths[i] for i in each) for each in shares]
        if all(len(each) == 1 or total <= share for each, total in zip(shares, tokens, strict=True)):
            break
        count += streams
    rounds: list[list[list[int]]] = []
    room = 0
    for each, total in zip(shares, tokens, strict=True):
        if not rounds or len(rounds[-1]) == streams or total > room:
            rounds.append([])
            room = at_once
        rounds[-1].append(each)
        room -= total
    return rounds


def in_rounds_of_sharing(
    lengths: Sequence[int], shared: Sequence[int], *, streams: int, share: int, at_once: int
) -> list[list[list[int]]]:
    """As `in_rounds`, where rows share a beginning, which lies once in each of their shares: as is done soonest.

    With fewer streams there are fewer of it.

    Args:
        lengths: of the rows.
        shared: tokens of each that belong to the beginning; 0 for a row that shares none.
        streams: shares of a round, at most.
        share: tokens of one, at most, unless half of them are more than it holds beside the beginning.
        at_once: tokens of a round, at most; a row that is longer is one.
    """
    size = max(shared)
    ways = [in_rounds(lengths, streams=streams, share=share, at_once=at_once)]
    rests = [length - less for length, less in zip(lengths, shared, strict=True)]
    for count in range(1, streams + 1 if size else 1):
        if (room := at_once - count * size) > 0:
            ways.append(in_rounds(rests, streams=count, share=max(share - size, share // 2, 1), at_once=room))

    def tokens(rows: Sequence[int]) -> int:
        return sum(rests[i] for i in rows) + max(shared[i] for i in rows)

    return min(ways, key=lambda rounds: sum(max(map(tokens, shares)) for shares in rounds))
