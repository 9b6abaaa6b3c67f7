"""Turn token rows into batches, as pure functions of (lengths, settings, seed, epoch).

Packed: rows end to end, without padding. Padded: rows of similar length side by side. Both hold the same rows and the
same targets. Knows nothing of models or text.
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
    """Sizes that batches are padded to, so that few shapes occur: a GPU compiles kernels when it first sees a shape.

    Attributes:
        tokens: pad the tokens of a packed batch to a multiple of this, and of a sixteenth of the next power of two; pad
            its trained tokens to a multiple of this, and of an eighth of it. 1: no padding.
        longest: pad the longest row to a multiple of this, where attention lays rows side by side.
        bins: sizes of bins that rows are packed into, if that leaves little of them empty; empty: one row, end to end.
        flat_cost: cost of a token end to end in one row, where attention lays rows side by side and packs them again,
            relative to one in bins: a quarter more on an H100 (measured).
    """

    tokens: int = 1
    longest: int = 1
    bins: tuple[int, ...] = ()
    flat_cost: float = 1.25

    def total(self, count: int) -> int:
        """Return the padded size of a batch of `count` tokens: at most an eighth more, from `tokens` on."""
        return self._up(count, 4)

    def trained(self, count: int) -> int:
        """Return the padded number of trained tokens: at most a quarter more than `count`, from `tokens` on."""
        return self._up(count, 3)

    def _up(self, count: int, bits: int) -> int:
        return count if self.tokens == 1 else _up(count, max(self.tokens, 1 << max(0, (count - 1).bit_length() - bits)))


AS_IT_IS = Rounding()
SHARED = -2  # stands in place of a row's number: a token of the prefix, which all later rows see


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


@dataclass(frozen=True)
class Batch:
    """The arrays that one forward pass takes.

    Rows lie end to end in one row (`pack`), end to end in several bins (`row`), or each in a line of its own with
    padding. A prefix that rows share comes before them, once, or once in each bin that has such rows; the rows follow
    without it. Each row or rest of a row and each copy of the prefix is a part.

    Attributes:
        ids: int32: token ids, `(1, N)` end to end, `(R, L)` in bins or padded.
        lengths: tokens of each part, in order.
        source: int32, `(T,)`: flat positions of the tokens whose next token is trained.
        target: int32, `(T,)`: those next tokens.
        weight: float32, `(T,)`: 1, or 0 for padding.
        owner: int64, `(T,)`: the row that each of those tokens belongs to, as an index of the rows laid out.
        starts: int64, `(parts,)`: flat position of the first token of each part.
        states: `(…, hidden)`, laid out like `ids`: hidden states of the rows, if they have any.
        unpack: int32, `(R, L)`, if rows lie end to end with padding: the flat position of each token of each row; -1
            beyond its end.
        pack: int32, `(N,)`, if rows lie end to end with padding: the index of each token in the flattened `unpack`; -1
            for padding.
        row: int32, `(R, L)`, if rows lie in bins: the part that a token belongs to; -1 for padding, `SHARED` for a
            prefix that later rows share.
        position: int32, laid out like `ids`: position of each token within its row, if rows share a prefix.
        prefix: index of the part that all later parts share, if rows lie end to end and share one.
    """

    ids: np.ndarray
    lengths: tuple[int, ...]
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    owner: np.ndarray
    starts: np.ndarray
    states: np.ndarray | None = None
    unpack: np.ndarray | None = None
    pack: np.ndarray | None = None
    row: np.ndarray | None = None
    position: np.ndarray | None = None
    prefix: int | None = None

    @property
    def plain(self) -> bool:
        """Return whether causal attention alone is right: no line that attention sees holds two rows."""
        if self.row is not None:
            return len(self.lengths) == len(self.row)  # no bin is empty or holds only a prefix, so each has one row
        return self.unpack is not None and self.unpack.size == self.ids.size == self.tokens

    @property
    def tokens(self) -> int:
        """Return the number of real tokens, without padding."""
        return sum(self.lengths)

    def by_row(self, losses: np.ndarray, count: int) -> np.ndarray:
        """Return the losses of trained tokens `(T,)`, summed for each of `count` rows, float64."""
        real = self.weight > 0
        return np.bincount(self.owner[real], losses[real].astype(np.float64), count)


def make_batch(
    rows: Sequence[TokenRow], *, packed: bool, rounding: Rounding = AS_IT_IS, prefix: np.ndarray = NO_PREFIX
) -> Batch:
    """Lay out rows: end to end in one row or in bins, or side by side.

    Args:
        rows: at least one.
        packed: end to end; otherwise side by side.
        rounding: sizes that the batch is padded to.
        prefix: int32, a prefix for rows that begin with it to share, if packed and if that makes the batch smaller.
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
    position = np.arange(_up(int(lengths.max()), rounding.longest))  # (L,)
    inside = position < lengths[:, None]  # (R, L)
    pack = np.full(total, -1, np.int32)
    pack[: lengths.sum()] = np.flatnonzero(inside)
    unpack = np.where(inside, starts[:, None] + position, -1).astype(np.int32)
    return dataclasses.replace(_laid(rows, lengths, starts, (1, total), rounding), unpack=unpack, pack=pack)


def _in_bins(
    rows: Sequence[TokenRow], size: int, bins: Sequence[Sequence[int]], rounding: Rounding, beginning: int = -1
) -> Batch:
    """Lay out rows in bins of this size; row number `beginning` is the prefix that later rows of its bin share."""
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
    """Lay out rows end to end: those without the prefix, the prefix of `size` tokens, and the rests of the others."""
    order = np.argsort(sharing, kind="stable")  # rows in the order of their parts, those with the prefix last
    alone = [rows[i] for i in order if not sharing[i]]
    rests = [part(rows[i], size) for i in order if sharing[i]]
    parts = [*alone, _beginning(rows, sharing, size), *rests]
    lengths = np.fromiter(map(len, parts), np.int64)
    batch = _laid(parts, lengths, np.cumsum(lengths) - lengths, (1, int(lengths.sum())), rounding)
    position = _positions(batch, [0] * (len(alone) + 1) + [size] * len(rests))
    owner = np.insert(order, len(alone), 0)[batch.owner]  # nothing of the prefix is trained
    return dataclasses.replace(batch, position=position, prefix=len(alone), owner=owner)


def _sharing_in_bins(rows: Sequence[TokenRow], sharing: Sequence[bool], size: int, rounding: Rounding) -> Batch:
    """Lay out rows in bins, with a copy of the prefix in each bin that has rows which share it."""
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
    """Return the position of each token within its row, int32, shaped like `ids`; part i starts at `elsewhere[i]`."""
    position = np.zeros(batch.ids.size, np.int32)
    for start, length, before in zip(batch.starts, batch.lengths, elsewhere, strict=True):
        position[start : start + length] = np.arange(before, before + length)
    return position.reshape(batch.ids.shape)


def _laid(
    rows: Sequence[TokenRow], lengths: np.ndarray, starts: np.ndarray, shape: tuple[int, int], rounding: Rounding
) -> Batch:
    """Build a batch of this shape from rows that start at these flat positions."""
    ids = np.zeros(shape[0] * shape[1], np.int32)
    source, target = [], []
    for start, row in zip(starts.tolist(), rows, strict=True):
        ids[start : start + len(row)] = row.ids
        trained = np.flatnonzero(row.trained)  # never the first token of a row, so its predecessor is in the row
        source.append(start + trained - 1)
        target.append(row.ids[trained])
    states = None
    if rows[0].states is not None:
        states = np.zeros((len(ids), rows[0].states.shape[1]), rows[0].states.dtype)
        for start, row in zip(starts.tolist(), rows, strict=True):
            states[start : start + len(row)] = row.states
        states = states.reshape(*shape, -1)
    each = list(map(len, target))
    count = sum(each)
    filling = (0, rounding.trained(count) - count)
    return Batch(
        ids=ids.reshape(shape),
        lengths=tuple(lengths.tolist()),
        source=np.pad(np.concatenate(source), filling).astype(np.int32),
        target=np.pad(np.concatenate(target), filling).astype(np.int32),
        weight=np.pad(np.ones(count, np.float32), filling),
        owner=np.pad(np.repeat(np.arange(len(each)), each), filling),
        starts=starts,
        states=states,
    )


def fill_bins(
    lengths: Sequence[int], sizes: Sequence[int], before: Sequence[int] | None = None
) -> tuple[int, list[list[int]]]:
    """Pack rows into bins of the size that leaves least empty.

    Each row, the longest first, goes into the first bin that has room (first-fit decreasing).

    Args:
        lengths: tokens of each row.
        sizes: sizes to try; one too small for the longest row counts as the length of that row, rounded up to a
            multiple of the smallest size.
        before: tokens of the prefix that a row shares, which its bin needs once; 0 for a row that shares none.

    Returns:
        The size of the bins, and the indices of the rows in each; no bins if there are no sizes.
    """
    before = before or [0] * len(lengths)
    alone = [length + more for length, more in zip(lengths, before, strict=True)]
    best: tuple[int, list[list[int]]] = (0, [])
    for size in sorted({max(size, _up(max(alone), min(sizes))) for size in sizes}):
        bins: list[list[int]] = []
        room: list[int] = []
        has: list[bool] = []  # whether a bin holds the prefix already
        for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            taken = (alone[index], lengths[index])  # tokens that the row takes in a bin without the prefix, and with it
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
"""How rows are grouped into an epoch's batches: as drawn; by similar length; or so that batches are equally large.

`alike` suits layouts that pad. With `level`, each batch has short and long rows and nearly the same number of tokens:
there are few shapes, and bins are well filled.
"""

WINDOW = 16  # batches whose rows are drawn together before they are sorted


def epoch_batches(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, order: Order) -> list[list[int]]:
    """Return the indices of the rows of every micro-batch of one epoch; each row occurs once.

    Args:
        lengths: tokens of each row.
        batch_size: rows a micro-batch; the last one may be smaller, with `level` the last few.
        seed: decides the order, together with `epoch` alone: a resumed run gets the batches it would have got.
        epoch: counted from 0.
        order: how rows are grouped.
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
    """Deal out rows, sorted by length, to batches in turns: first to last, then last to first."""
    count = math.ceil(len(rows) / size)
    piles: list[list[int]] = [[] for _ in range(count)]
    for number, row in enumerate(rows):
        turn, place = divmod(number, count)
        piles[place if turn % 2 == 0 else count - 1 - place].append(row)
    return piles


def epoch_steps(lengths: Sequence[int], train: TrainConfig, *, epoch: int, order: Order) -> list[list[list[int]]]:
    """Return the micro-batches of each step of an epoch, as `epoch_batches` makes them."""
    batches = epoch_batches(lengths, train.batch_size, seed=train.seed, epoch=epoch, order=order)
    return _cut(batches, train.grad_accumulation_steps)


def at_most(rows: int, batches: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
    """Split batches into ones of at most `rows` rows, in the same order."""
    return (batch[i : i + rows] for batch in batches for i in range(0, len(batch), rows))


def neighbours(lengths: Iterable[int], tokens: int) -> Iterator[range]:
    """Yield ranges of consecutive rows that have at most `tokens` tokens together, or are a single row."""
    begin = total = end = 0
    for end, length in enumerate(lengths, 1):
        if total and total + length > tokens:
            yield range(begin, end - 1)
            begin, total = end - 1, 0
        total += length
    if end:
        yield range(begin, end)


def share_out(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Divide rows over at most `parts` streams with about as many tokens each; return the indices for each stream."""
    shares: list[list[int]] = [[] for _ in range(min(parts, len(lengths)))]
    tokens = [0] * len(shares)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):  # the longest first, to the least loaded
        place = min(range(len(shares)), key=lambda place: (tokens[place], len(shares[place])))
        shares[place].append(index)
        tokens[place] += lengths[index]
    return shares


def in_rounds(lengths: Sequence[int], *, streams: int, share: int, at_once: int) -> list[list[list[int]]]:
    """Divide rows into rounds, computed one after another, each of them on several streams at the same time.

    Args:
        lengths: tokens of each row.
        streams: most shares in a round.
        share: most tokens in a share, unless it is a single, longer row.
        at_once: most tokens in a round, unless it is a single, longer row.

    Returns:
        The indices of the rows of each share of each round. There are as few rounds as possible, and shares have about
        as many tokens each.
    """
    share = min(share, at_once)
    count = streams * math.ceil(sum(lengths) / min(streams * share, at_once))  # the least that could be enough
    while True:  # add a round of shares until none is too large
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
    """Divide rows that share a prefix, stored once per share, into rounds as `in_rounds` does.

    Fewer streams mean fewer copies of the prefix: this tries each number of streams and returns the fastest plan.

    Args:
        lengths: tokens of each row.
        shared: tokens of each row that belong to the prefix; 0 for a row that shares none.
        streams: most shares in a round.
        share: most tokens in a share; at least half of this is left for rows beside the prefix.
        at_once: most tokens in a round, unless it is a single, longer row.
    """
    size = max(shared)
    ways = [in_rounds(lengths, streams=streams, share=share, at_once=at_once)]
    rests = [length - less for length, less in zip(lengths, shared, strict=True)]
    for count in range(1, streams + 1 if size else 1):
        if (room := at_once - count * size) > 0:
            ways.append(in_rounds(rests, streams=count, share=max(share - size, share // 2, 1), at_once=room))

    def tokens(rows: Sequence[int]) -> int:
        return sum(rests[i] for i in rows) + max(shared[i] for i in rows)

    # a round takes as long as its largest share
    return min(ways, key=lambda rounds: sum(max(map(tokens, shares)) for shares in rounds))
