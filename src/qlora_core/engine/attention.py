"""Attention over rows packed end to end, computed side by side, and attention for a CPU.

Knows how rows are laid out; nothing of layers or weights. In shapes, R is rows, H heads of queries, K heads of keys and
values, L tokens of the longest row, N tokens of a batch, D the size of a head; of a span, T is its tokens and S those
that it attends to.
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
    """Stands in for a KV cache's `offset`: per-token positions, so each row goes on from the end of the shared prefix.

    Rotary embeddings that know this class call `each`. Any arithmetic on it, as on a number, is an error.

    Args:
        positions: `(R, L)`, position of each token in its row.
    """

    def __init__(self, positions: mx.array) -> None:
        self._positions = positions.reshape(-1)

    def each(self, rotate: Callable[..., mx.array], x: mx.array) -> mx.array:
        """Return `rotate(x, offset)` of `(R, H, L, D)`, with each token's own position as offset."""
        R, H, L, D = x.shape
        alone = x.swapaxes(1, 2).reshape(R * L, H, 1, D)  # each token is a row of its own, with one offset
        return rotate(alone, offset=self._positions).reshape(R, L, H, D).swapaxes(1, 2)


class Uncached:
    """Stands in for a KV cache, and keeps nothing.

    Args:
        position: `(R, L)`, position of each token in its row; None: counted from the beginning of its line.
    """

    def __init__(self, position: mx.array | None = None) -> None:
        self.offset = 0 if position is None else Positions(position)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Return keys and values unchanged."""
        return keys, values


def _seen(row: mx.array, position: mx.array, window: int | None) -> mx.array:
    """Return which tokens see which, boolean `(R, L, L)`, from the row `(R, L)` that each token belongs to."""
    i = mx.arange(row.shape[-1])
    of_query, of_key = row[:, :, None], row[:, None]  # (R, L, 1), (R, 1, L)
    # causal, and within the same row or in the prefix that rows share
    seen = (i[:, None] >= i[None]) & ((of_query == of_key) | (of_key == SHARED))  # (R, L, L)
    return seen if window is None else seen & (position[..., :, None] < position[..., None, :] + window)


class _EndToEnd(Uncached):
    """Stands in for a KV cache where several rows lie end to end in one, and each sees only itself.

    mlx-lm's models ask a cache for the attention mask and pass it on to attention. Attention that knows this class
    separates the rows, so that its cost is the square of each row's length and not of their sum. Any other attention
    uses the block-diagonal mask. Unless rows share a prefix, positions simply count on from row to row: attention
    depends only on their differences.

    Args:
        row: `(N,)`, the row that a token belongs to; -1 for padding, `SHARED` for the prefix that later rows see.
        longest: tokens of the longest row, with the prefix.
        position: `(1, N)`, position of each token in its row; None: counted from the beginning.
    """

    def __init__(self, row: mx.array, longest: int, position: mx.array | None = None) -> None:
        super().__init__(position)
        self._row, self.longest = row[None], longest
        self._position = mx.arange(len(row)) if position is None else position
        self.causal: mx.array | None = None

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Return the mask, boolean `(1, 1, N, N)`: causal, within the row, within the window."""
        if window_size is not None and window_size < self.longest:
            return _seen(self._row, self._position, window_size)[None]
        if self.causal is None:
            self.causal = _seen(self._row, self._position, None)[None]
        return self.causal


class SlicedRows(_EndToEnd):
    """Rows end to end, without padding: attention (`fast_attention`) computes one span of them after another.

    Args:
        lengths: tokens of each part, as in `Batch`.
        prefix: index of the part that all later parts share.
        position: `(1, N)`, as in `Batch`.
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
    """Rows end to end, then padding: attention (`packed_attention`) lays them side by side, by arrays of indices.

    Args:
        unpack: `(R, L)`, as in `Batch`.
        pack: `(N,)`, as in `Batch`.
        full: whether all rows have L tokens and there is no padding.
    """

    def __init__(self, unpack: mx.array, pack: mx.array, *, full: bool) -> None:
        self.rows, longest = unpack.shape
        super().__init__(mx.where(pack >= 0, pack // longest, -1), longest)
        self.full = full
        # padding (-1) becomes index 0, a copy of that token: harmless, since it comes last and gets no gradient
        self._unpack, self._pack = mx.maximum(unpack, 0), mx.maximum(pack, 0)
        self._inside = (unpack >= 0)[:, None, :, None]  # (R, 1, L, 1)
        self._real = (pack >= 0)[None, None, :, None]  # (1, 1, N, 1)

    def take_apart(self, x: mx.array) -> mx.array:
        """Lay packed rows side by side, `(1, H, N, D)` to `(R, H, L, D)`; padding holds copies of other tokens."""
        _, H, _, D = x.shape
        apart = x.reshape(H, self.rows, self.longest, D) if self.full else mx.take(x[0], self._unpack, axis=1)
        return apart.swapaxes(0, 1)

    def put_together(self, x: mx.array) -> mx.array:
        """Pack rows again, `(R, H, L, D)` to `(1, H, N, D)`; padding holds copies of other tokens."""
        R, H, L, D = x.shape
        together = x.swapaxes(0, 1).reshape(1, H, R * L, D)
        return together if self.full else mx.take(together, self._pack, axis=2)

    def without_copies(self, x: mx.array) -> mx.array:
        """Set the padding in the result of `take_apart` to zero."""
        return x if self.full else x * self._inside.astype(x.dtype)

    def without_padding(self, x: mx.array) -> mx.array:
        """Set the padding in the result of `put_together` to zero."""
        return x if self.full else x * self._real.astype(x.dtype)


class BinnedRows(Uncached):
    """Stands in for a KV cache where rows lie in bins, each of which is one row to the model: only the mask differs.

    Args:
        row: `(R, L)`, as in `Batch`.
        dtype: of the attention scores, to which the mask is added.
        plain: whether each bin holds one row.
        position: `(R, L)`, as in `Batch`.
    """

    def __init__(self, row: mx.array, dtype: mx.Dtype, *, plain: bool, position: mx.array | None = None) -> None:
        super().__init__(position)
        self._row, self._dtype, self._plain = row, dtype, plain
        self._position = mx.arange(row.shape[-1]) if position is None else position
        self._masks: dict[int | None, mx.array] = {}

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array | str:
        """Return the mask, `(R, 1, L, L)`: 0 where a token sees another, else very low; `causal` if that is equal."""
        window = window_size if window_size is not None and window_size < N else None
        if self._plain and window is None and not return_array:
            return "causal"
        if window not in self._masks:
            seen = _seen(self._row, self._position, window)
            # with a boolean mask attention is not fused on CUDA; on Metal no array is, in training
            self._masks[window] = mx.where(seen, 0.0, -1e9).astype(self._dtype)[:, None]
        return self._masks[window]


def packed_attention(queries: mx.array, keys: mx.array, values: mx.array, rows: PackedRows, attend: Attend) -> mx.array:
    """Compute attention of rows packed as `(1, H, N, D)`.

    For the backward pass it keeps its inputs packed, not side by side, which may be twice as large, and computes
    attention once more. Both directions are gathers: the gradient of taking rows apart is putting them together, and
    the reverse.
    """

    @mx.custom_function
    def attention(*packed):
        return rows.put_together(attend(*map(rows.take_apart, packed)))

    @attention.vjp
    def _(primals, cotangent, _):
        apart = [rows.take_apart(x) for x in mx.depends(list(primals), [cotangent])]  # each (R, H or K, L, D)
        down = rows.without_copies(rows.take_apart(cotangent))  # (R, H, L, D); padding gets no gradient
        _, gradients = mx.vjp(lambda *qkv: [attend(*qkv)], apart, [down])
        return tuple(rows.without_padding(rows.put_together(gradient)) for gradient in gradients)

    if rows.full:
        return rows.put_together(attend(*map(rows.take_apart, (queries, keys, values))))
    return attention(queries, keys, values)


NO_TOKENS = range(0)


@dataclass(frozen=True)
class Span:
    """Consecutive tokens that attention computes together: several short rows, or a part of a longer one.

    Attributes:
        start: index of its first token.
        stop: index after its last token.
        seen: ranges of the tokens that it attends to: the prefix that its rows share, if any, and its rows up to its
            last token.
        mask: `(T, S)` float32: 0 where a token sees another, else very low. It is added, since selecting by a boolean
            mask costs 20 times an addition on a CPU.
        kept: whether its probabilities are kept for the backward pass, or computed again there.
        readers: for each span that attends to this one, its number, and the place of this one's first token in what it
            sees.
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
        """Return the span's own part of `(B, H, N, D)`."""
        return x[:, :, self.start : self.stop]

    def all_seen(self, x: mx.array) -> mx.array:
        """Return the part of `(B, H, N, D)` that the span attends to, `(B, H, S, D)`."""
        parts = [x[:, :, part.start : part.stop] for part in self.seen]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)

    def place_of(self, other: Span) -> int | None:
        """Return where the first token of `other` is in what this span sees; None if it is not."""
        before = 0
        for part in self.seen:
            if part.start <= other.start and other.stop <= part.stop:
                return before + other.start - part.start
            before += len(part)
        return None


def _spans(lengths: Sequence[int], prefix: int | None = None) -> list[Span]:
    """Divide parts that lie end to end into spans; those after the prefix see it."""
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


def _spans_of(lengths: Sequence[int], start: int, shared: range = NO_TOKENS) -> list[Span]:
    """Return the spans of rows that begin at `start` and all see the tokens in the range `shared`."""
    spans = []
    for some in neighbours(lengths, SPAN):
        rows = lengths[some.start : some.stop]
        total = sum(rows)
        row, place = np.repeat(np.arange(len(rows)), rows), np.arange(total)
        kept = len(shared) + total <= KEPT_SCORES
        # a long row is cut into parts, which need half as many scores, and these stay in the processor's cache;
        # with short rows the additional calls would cost more than that saves
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
    """Heads of queries, and the fewer heads of keys and values that groups of them share.

    Attributes:
        shape: of the queries, `(B, H, N, D)`.
        shared: number of heads of keys and values, K.
        scale: factor of the scores.
    """

    shape: tuple[int, ...]
    shared: int
    scale: float

    def grouped(self, x: mx.array) -> mx.array:
        """Stack the queries, or scores, of the heads that share keys and values: `(B, K, H / K · T, …)`."""
        return x.reshape(self.shape[0], self.shared, -1, x.shape[-1])

    def scores(self, span: Span, q: mx.array, k: mx.array) -> mx.array:
        """Return the masked attention scores of a span, `(B, H, T, S)`."""
        products = self.grouped(span.own(q) * self.scale) @ span.all_seen(k).swapaxes(-1, -2)
        return products.reshape(*self.shape[:2], *span.mask.shape) + span.mask

    def weighted(self, span: Span, weights: mx.array, v: mx.array) -> mx.array:
        """Return the weighted sum of the values that a span sees, `(B, H, T, D)`."""
        return (self.grouped(weights) @ span.all_seen(v)).reshape(*self.shape[:2], -1, self.shape[3])

    def gradients(
        self, span: Span, weights: mx.array, qkv: Sequence[mx.array], cotangent: mx.array, out: mx.array | None
    ) -> list[mx.array]:
        """Return the gradients of q, k and v for one span.

        If its output `out` is given, the sums over each row of the softmax are recovered from it (arXiv:2205.14135).
        """
        # G = H / K · T: queries of all heads that share keys and values
        q, k, v = span.own(qkv[0]), span.all_seen(qkv[1]), span.all_seen(qkv[2])  # (B, H, T, D), (B, K, S, D) twice
        w, c = self.grouped(weights), self.grouped(cotangent)  # (B, K, G, S), (B, K, G, D)
        scaled = c * self.scale
        dp = scaled @ v.swapaxes(-1, -2)  # gradient of the probabilities, (B, K, G, S)
        # through the softmax: ds = p · (dp - Σ p · dp), where Σ p · dp = c · out
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
    """Compute causal grouped-query attention on a CPU.

    Args:
        queries: `(B, H, N, D)`.
        keys: `(B, K, N, D)`, K dividing H.
        values: `(B, K, N, D)`.
        scale: factor of the scores.
        spans: how N divides into spans; by default it is one row.
        exp: exponential function used for the scores.
    """
    spans = spans or _spans([queries.shape[2]])
    heads = _Heads(queries.shape, keys.shape[1], scale)

    @mx.custom_function
    def attend(q, k, v):
        parts, saved = [], []
        for span in spans:
            if not span.kept:  # one part of a long row after another, so that memory stays in the cache and is reused
                q = mx.depends([q], parts[-1:])[0]
            scores = heads.scores(span, q, k)  # (B, H, T, S)
            top = scores.max(-1, keepdims=True)  # (B, H, T, 1); subtracted so that no exponential overflows
            e = exp(scores - top)
            total = exact_sum(e)[..., None]  # (B, H, T, 1)
            if span.kept:
                saved.append(e / total)
                parts.append(heads.weighted(span, saved[-1], v))
            else:  # `top` and `total` suffice to compute the probabilities again
                saved += [top, total]
                parts.append(heads.weighted(span, e, v) / total)
        return mx.concatenate(parts, axis=2), *saved  # (B, H, N, D); the rest are outputs for the backward pass

    @attend.vjp
    def _(primals, cotangents, outputs):
        saved, parts = iter(outputs[1:]), [[]]
        for span in spans:
            c = span.own(cotangents[0])
            if span.kept:
                parts.append(heads.gradients(span, next(saved), primals, c, None))
            else:
                qkv = mx.depends(list(primals), parts[-1])
                # the probabilities are e / total; dividing `c`, which is smaller, gives the same gradients
                e, c = exp(heads.scores(span, *qkv[:2]) - next(saved)), c / next(saved)
                parts.append(heads.gradients(span, e, qkv, c, span.own(outputs[0])))
        q, k, v = zip(*parts[1:], strict=True)  # gradients of each span: (B, H, T, D), (B, K, S, D) twice
        return mx.concatenate(q, axis=2), _put_together(k, spans), _put_together(v, spans)

    return attend(queries, keys, values)[0]


def _put_together(seen: Sequence[mx.array], spans: Sequence[Span]) -> mx.array:
    """Add up the gradients `(B, K, S, D)` of each span from all of its readers; return `(B, K, N, D)`."""
    parts = [[seen[number][:, :, at : at + len(span)] for number, at in span.readers] for span in spans]
    return mx.concatenate([sum(part[1:], part[0]) for part in parts], axis=2)
