"""Attention over rows packed end to end, computed on the same tokens side by side, and attention for a CPU.

Knows how rows lie; nothing of layers or weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..runs.memory_estimate import KEPT_SCORES, SPAN
from ..tokens.batching import SHARED, neighbours
from .device import mx
from .elementwise import fast_exp
from .sums import exact_sum

Attend = Callable[[mx.array, mx.array, mx.array], mx.array]
"""Causal attention of queries `(R, H, L, D)` to keys and values `(R, K, L, D)`, K dividing H."""


class Positions:
    """Stands where a KV cache has its offset: rows that share a beginning go on from its end, each by itself.

    What turns queries and keys by their positions asks for them (`each`); to count with this as with a number is an
    error.

    Args:
        positions: `(R, L)`, of each token in its row.
    """

    def __init__(self, positions: mx.array) -> None:
        self._positions = positions.reshape(-1)

    def each(self, rotate: Callable[..., mx.array], x: mx.array) -> mx.array:
        """`rotate(x, offset)` of `(R, H, L, D)`, each token by its own position."""
        R, H, L, D = x.shape
        alone = x.swapaxes(1, 2).reshape(R * L, H, 1, D)
        return rotate(alone, offset=self._positions).reshape(R, L, H, D).swapaxes(1, 2)


class Uncached:
    """Stands where a KV cache would, and keeps nothing.

    Args:
        position: `(R, L)`, of each token in its row; None: as they lie.
    """

    def __init__(self, position: mx.array | None = None) -> None:
        self.offset = 0 if position is None else Positions(position)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values as they are."""
        return keys, values


def _seen(row: mx.array, position: mx.array, window: int | None) -> mx.array:
    """Boolean `(R, L, L)`: whether a token sees another, by the rows `(R, L)` that they belong to."""
    i = mx.arange(row.shape[-1])
    of_query, of_key = row[:, :, None], row[:, None]
    seen = (i[:, None] >= i[None]) & ((of_query == of_key) | (of_key == SHARED))
    return seen if window is None else seen & (position[..., :, None] < position[..., None, :] + window)


class _EndToEnd(Uncached):
    """Stands where a KV cache would: several rows lie end to end in one, and each sees only itself.

    mlx-lm's models ask a cache for the attention mask and hand it on to attention. Attention that knows this class
    takes the rows apart, so that its cost is the square of a row, not of all of them; any other uses the block-diagonal
    mask. Unless rows share a beginning, positions run on over them: only their differences count.

    Args:
        row: `(N,)`, which row a token belongs to, -1 for what fills them up, `SHARED` for what those after it see.
        longest: tokens of the longest.
        position: `(1, N)`, of each token in its row; None: as they lie.
    """

    def __init__(self, row: mx.array, longest: int, position: mx.array | None = None) -> None:
        super().__init__(position)
        self._row, self.longest = row[None], longest
        self._position = mx.arange(len(row)) if position is None else position
        self.causal: mx.array | None = None

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Boolean `(1, 1, N, N)`: causal, within the row, within the window."""
        if window_size is not None and window_size < self.longest:
            return _seen(self._row, self._position, window_size)[None]
        if self.causal is None:
            self.causal = _seen(self._row, self._position, None)[None]
        return self.causal


class SlicedRows(_EndToEnd):
    """Rows end to end as they are: attention (`fast_attention`) looks at one span of them after the other.

    Args:
        lengths: tokens of each part, as `Batch` has them.
        prefix: which part is the beginning that all after it share.
        position: `(1, N)`, as `Batch` has it.
    """

    def __init__(self, lengths: Sequence[int], prefix: int | None = None, position: mx.array | None = None) -> None:
        row = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        longest = max(lengths)
        if prefix is not None:
            row[row == prefix] = SHARED
            longest = max([*lengths[:prefix], lengths[prefix] + max(lengths[prefix + 1 :])])
        super().__init__(mx.array(row), longest, position)
        self.spans = _spans(lengths, prefix)


class PackedRows(_EndToEnd):
    """Rows end to end and filled up: attention (`packed_attention`) lays them side by side, by arrays of places.

    Args:
        unpack: `(R, L)`, as `Batch` has it.
        pack: `(N,)`, as `Batch` has it.
        full: whether no row is shorter than L, and nothing fills them up.
    """

    def __init__(self, unpack: mx.array, pack: mx.array, *, full: bool) -> None:
        self.rows, longest = unpack.shape
        super().__init__(mx.where(pack >= 0, pack // longest, -1), longest)
        self.full = full
        self._unpack, self._pack = mx.maximum(unpack, 0), mx.maximum(pack, 0)
        self._inside, self._real = (unpack >= 0)[:, None, :, None], (pack >= 0)[None, None, :, None]

    def take_apart(self, x: mx.array) -> mx.array:
        """`(1, H, N, D)` to `(R, H, L, D)`; what a short row leaves empty holds copies of other tokens."""
        _, H, _, D = x.shape
        apart = x.reshape(H, self.rows, self.longest, D) if self.full else mx.take(x[0], self._unpack, axis=1)
        return apart.swapaxes(0, 1)

    def put_together(self, x: mx.array) -> mx.array:
        """`(R, H, L, D)` to `(1, H, N, D)`; tokens that only fill up hold copies of others."""
        R, H, L, D = x.shape
        together = x.swapaxes(0, 1).reshape(1, H, R * L, D)
        return together if self.full else mx.take(together, self._pack, axis=2)

    def without_copies(self, x: mx.array) -> mx.array:
        """What `take_apart` gave, with zeros for the copies."""
        return x if self.full else x * self._inside.astype(x.dtype)

    def without_filling(self, x: mx.array) -> mx.array:
        """What `put_together` gave, with zeros for the copies."""
        return x if self.full else x * self._real.astype(x.dtype)


class BinnedRows(Uncached):
    """The same for rows that lie in bins, each of which is a row to the model: only the mask is another.

    Args:
        row: `(R, L)`, as `Batch` has it.
        dtype: of the scores, which the mask is added to.
        plain: whether each bin holds one row.
        position: `(R, L)`, as `Batch` has it.
    """

    def __init__(self, row: mx.array, dtype: mx.Dtype, *, plain: bool, position: mx.array | None = None) -> None:
        super().__init__(position)
        self._row, self._dtype, self._plain = row, dtype, plain
        self._position = mx.arange(row.shape[-1]) if position is None else position
        self._masks: dict[int | None, mx.array] = {}

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array | str:
        """`(R, 1, L, L)`: 0 where a token sees another, else very low; `causal` where that says the same."""
        window = window_size if window_size is not None and window_size < N else None
        if self._plain and window is None and not return_array:
            return "causal"
        if window not in self._masks:
            seen = _seen(self._row, self._position, window)
            # a boolean mask would keep attention on CUDA from being fused; on Metal any array does, while it trains
            self._masks[window] = mx.where(seen, 0.0, -1e9).astype(self._dtype)[:, None]
        return self._masks[window]


def packed_attention(queries: mx.array, keys: mx.array, values: mx.array, rows: PackedRows, attend: Attend) -> mx.array:
    """Attention of rows packed as `(1, H, N, D)`.

    Keeps its inputs as they are packed, and not as they are taken apart, which may be twice as large: the backward pass
    attends once more. Gathers in both directions: that of taking apart is putting together.
    """

    @mx.custom_function
    def attention(*packed):
        return rows.put_together(attend(*map(rows.take_apart, packed)))

    @attention.vjp
    def _(primals, cotangent, _):
        apart = [rows.take_apart(x) for x in mx.depends(list(primals), [cotangent])]
        down = rows.without_copies(rows.take_apart(cotangent))
        _, gradients = mx.vjp(lambda *qkv: [attend(*qkv)], apart, [down])
        return tuple(rows.without_filling(rows.put_together(gradient)) for gradient in gradients)

    if rows.full:
        return rows.put_together(attend(*map(rows.take_apart, (queries, keys, values))))
    return attention(queries, keys, values)


NOTHING = range(0)


@dataclass(frozen=True)
class Span:
    """Tokens next to each other: short rows, or a part of a longer one.

    Attributes:
        start: the first.
        stop: the one after the last.
        seen: where those lie that they see: what their rows share, if anything, and their rows up to the last token.
        mask: `(T, S)` float32, of T tokens and the S that they see: 0 where one sees another, else very low. Added,
            since a selection by a boolean mask costs 20 times an addition on a CPU.
        kept: whether its probabilities are, for the backward pass; of others they are made again.
        readers: the spans that see it, by number, and the place of its first token in what each of them sees.
    """

    start: int
    stop: int
    seen: tuple[range, ...]
    mask: mx.array
    kept: bool
    readers: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start

    def own(self, x: mx.array) -> mx.array:
        """The span's part of `(B, H, N, D)`."""
        return x[:, :, self.start : self.stop]

    def all_seen(self, x: mx.array) -> mx.array:
        """What it sees of `(B, H, N, D)`."""
        parts = [x[:, :, part.start : part.stop] for part in self.seen]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)

    def place_of(self, other: Span) -> int | None:
        """Where another one's first token is in what this one sees, if it is."""
        before = 0
        for part in self.seen:
            if part.start <= other.start and other.stop <= part.stop:
                return before + other.start - part.start
            before += len(part)
        return None


def _spans(lengths: Sequence[int], prefix: int | None = None) -> list[Span]:
    """Spans of parts end to end; those after the prefix see it."""
    ends = [0, *itertools.accumulate(lengths)]
    if prefix is None:
        spans = _spans_of(lengths, 0)
    else:
        shared = range(ends[prefix], ends[prefix + 1])
        spans = [*_spans_of(lengths[:prefix], 0), *_spans_of([len(shared)], shared.start)]
        spans += _spans_of(lengths[prefix + 1 :], shared.stop, shared)
    places = [[(number, reader.place_of(span)) for number, reader in enumerate(spans)] for span in spans]
    return [
        dataclasses.replace(span, readers=tuple((number, place) for number, place in each if place is not None))
        for span, each in zip(spans, places, strict=True)
    ]


def _spans_of(lengths: Sequence[int], start: int, shared: range = NOTHING) -> list[Span]:
    """Those of rows that begin at `start` and see what lies at `shared`: several short rows, or a part of one."""
    spans = []
    for some in neighbours(lengths, SPAN):
        rows = lengths[some.start : some.stop]
        total = sum(rows)
        row, place = np.repeat(np.arange(len(rows)), rows), np.arange(total)
        kept = len(shared) + total <= KEPT_SCORES
        # by parts there are half as many scores, which stay in the cache; of short rows the calls would cost more
        cuts = np.linspace(0, total, 2 if kept else math.ceil(total / SPAN) + 1).astype(int).tolist()
        for begin, end in itertools.pairwise(cuts):
            inside = (place[begin:end, None] >= place[:end]) & (row[begin:end, None] == row[:end])
            inside = np.hstack([np.ones((end - begin, len(shared)), bool), inside])
            mask = mx.array(np.where(inside, 0, -1e9).astype(np.float32))
            seen = (*([shared] if shared else []), range(start, start + end))
            spans.append(Span(start + begin, start + end, seen, mask, kept))
        start += total
    return spans


@dataclass(frozen=True)
class _Heads:
    """Heads of queries, and the fewer of keys and values that they share.

    Attributes:
        shape: of the queries, `(B, H, N, D)`.
        shared: heads of keys and values, K.
        scale: factor of the scores.
    """

    shape: tuple[int, ...]
    shared: int
    scale: float

    def grouped(self, x: mx.array) -> mx.array:
        """Queries, or scores, of the heads that share keys and values, one after the other."""
        return x.reshape(self.shape[0], self.shared, -1, x.shape[-1])

    def scores(self, span: Span, q: mx.array, k: mx.array) -> mx.array:
        """`(B, H, T, S)`."""
        products = self.grouped(span.own(q) * self.scale) @ span.all_seen(k).swapaxes(-1, -2)
        return products.reshape(*self.shape[:2], *span.mask.shape) + span.mask

    def weighted(self, span: Span, weights: mx.array, v: mx.array) -> mx.array:
        """The values that a span sees, summed with these weights: `(B, H, T, D)`."""
        return (self.grouped(weights) @ span.all_seen(v)).reshape(*self.shape[:2], -1, self.shape[3])

    def gradients(
        self, span: Span, weights: mx.array, qkv: Sequence[mx.array], cotangent: mx.array, out: mx.array | None
    ) -> list[mx.array]:
        """Of one span; with `out`, what it gave, the sum over what is seen is had from that (arXiv:2205.14135)."""
        q, k, v = span.own(qkv[0]), span.all_seen(qkv[1]), span.all_seen(qkv[2])
        w, c = self.grouped(weights), self.grouped(cotangent)
        scaled = c * self.scale
        dp = scaled @ v.swapaxes(-1, -2)
        ds = w * (dp - (dp * w if out is None else scaled * self.grouped(out)).sum(-1, keepdims=True))
        return [(ds @ k).reshape(q.shape), ds.swapaxes(-1, -2) @ self.grouped(q), w.swapaxes(-1, -2) @ c]


def fast_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    spans: Sequence[Span] = (),
    exp: Callable[[mx.array], mx.array] = fast_exp,
) -> mx.array:
    """Causal grouped-query attention for the CPU.

    Args:
        queries: `(B, H, N, D)`.
        keys: `(B, K, N, D)`, K dividing H.
        values: `(B, K, N, D)`.
        scale: factor of the scores.
        spans: what lies in N, if not one row.
        exp: of the scores.
    """
    spans = spans or _spans([queries.shape[2]])
    heads = _Heads(queries.shape, keys.shape[1], scale)

    @mx.custom_function
    def attend(q, k, v):
        parts, saved = [], []
        for span in spans:
            if not span.kept:  # one after the other: what is made of a long row stays in the cache, and is used again
                q = mx.depends([q], parts[-1:])[0]
            scores = heads.scores(span, q, k)
            top = scores.max(-1, keepdims=True)
            e = exp(scores - top)
            total = exact_sum(e)[..., None]
            if span.kept:
                saved.append(e / total)
                parts.append(heads.weighted(span, saved[-1], v))
            else:
                saved += [top, total]
                parts.append(heads.weighted(span, e, v) / total)
        return mx.concatenate(parts, axis=2), *saved

    @attend.vjp
    def _(primals, cotangents, outputs):
        saved, parts = iter(outputs[1:]), [[]]
        for span in spans:
            c = span.own(cotangents[0])
            if span.kept:
                parts.append(heads.gradients(span, next(saved), primals, c, None))
            else:
                qkv = mx.depends(list(primals), parts[-1])
                e, c = exp(heads.scores(span, *qkv[:2]) - next(saved)), c / next(saved)
                parts.append(heads.gradients(span, e, qkv, c, span.own(outputs[0])))
        q, k, v = zip(*parts[1:], strict=True)
        return mx.concatenate(q, axis=2), _put_together(k, spans), _put_together(v, spans)

    return attend(queries, keys, values)[0]


def _put_together(seen: Sequence[mx.array], spans: Sequence[Span]) -> mx.array:
    """`(B, K, N, D)` from what each span makes of what it sees, `(B, K, S, D)`: of each, the sum over its readers."""
    parts = [[seen[number][:, :, at : at + len(span)] for number, at in span.readers] for span in spans]
    return mx.concatenate([sum(part[1:], part[0]) for part in parts], axis=2)
