"""Attention over packed rows against attention of each row alone, and masks by hand."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from harness import compare, normal

from qlora_core.attention import PackedRows, fast_attention, packed_attention
from qlora_core.batching import AS_IT_IS, Rounding, make_batch
from qlora_core.device import mx
from qlora_core.tokens import TokenRow


def packed_rows(lengths: Sequence[int], rounding: Rounding = AS_IT_IS) -> PackedRows:
    """Rows of these lengths, end to end."""
    rows = [TokenRow(np.ones(length, np.int32), np.arange(length) > 0) for length in lengths]
    batch = make_batch(rows, packed=True, rounding=rounding)
    return PackedRows(mx.array(batch.unpack), mx.array(batch.pack), full=batch.plain)


def plain_attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Causal grouped-query attention as the formula has it."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = mx.repeat(keys, groups, axis=1), mx.repeat(values, groups, axis=1)
    scores = scale * queries @ keys.swapaxes(-1, -2)
    later = mx.triu(mx.ones(scores.shape[-2:]), k=1) > 0
    return mx.softmax(mx.where(later, -mx.inf, scores), axis=-1) @ values


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("length", [1, 13])
def test_fast_attention_is_causal_grouped_query_attention(heads: int, kv_heads: int, length: int) -> None:
    queries = normal(3, heads, length, 8, seed=1, size=3)
    keys, values = normal(3, kv_heads, length, 8, seed=2), normal(3, kv_heads, length, 8, seed=3)
    compare(
        lambda q, k, v: fast_attention(q, k, v, scale=0.4),
        lambda q, k, v: plain_attention(q, k, v, 0.4),
        queries,
        keys,
        values,
    )


def mlx_attention(queries: mx.array, keys: mx.array, values: mx.array, *, scale: float) -> mx.array:
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask="causal")


@pytest.mark.parametrize("attend", [fast_attention, mlx_attention])
@pytest.mark.parametrize("lengths", [[6], [5, 1, 9], [1, 1, 1], [3, 11, 4, 11]])
def test_packed_attention_is_attention_of_each_row_alone(attend: Callable[..., mx.array], lengths: list[int]) -> None:
    total = sum(lengths)
    cuts = np.cumsum(lengths)[:-1].tolist()

    def packed(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return packed_attention(q, k, v, packed_rows(lengths), lambda *qkv: attend(*qkv, scale=0.5))

    def alone(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        rows = zip(*(mx.split(x, cuts, axis=2) if cuts else [x] for x in (q, k, v)), strict=True)
        return mx.concatenate([plain_attention(*row, 0.5) for row in rows], axis=2)

    compare(
        packed, alone, normal(1, 4, total, 8, seed=4), normal(1, 2, total, 8, seed=5), normal(1, 2, total, 8, seed=6)
    )


def test_packed_rows_mask_by_hand() -> None:
    mask = np.array(packed_rows([2, 3]).make_mask(5)).astype(int)[0, 0]
    assert mask.tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_packed_rows_mask_with_a_window_by_hand() -> None:
    mask = np.array(packed_rows([1, 4]).make_mask(5, window_size=2)).astype(int)[0, 0]
    assert mask.tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]
