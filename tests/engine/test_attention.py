"""Attention over packed rows against attention of each row alone, and masks by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import assert_same, compare, load, loss_and_gradients, normal, random_rows, set_adapters

from qlora_core.config import LoraConfig
from qlora_core.engine.attention import SPAN, BinnedRows, PackedRows, SlicedRows, fast_attention, packed_attention
from qlora_core.engine.device import mx
from qlora_core.engine.elementwise import fast_exp
from qlora_core.engine.model import batch_loss
from qlora_core.tokens.batching import AS_IT_IS, Batch, Rounding, make_batch
from qlora_core.tokens.rows import TokenRow

END_TO_END = Rounding(bins=(4096,))  # which would stay empty


def packed_rows(lengths: Sequence[int]) -> PackedRows:
    """Rows of these lengths, end to end."""
    rows = [TokenRow(np.ones(length, np.int32), np.arange(length) > 0) for length in lengths]
    batch = make_batch(rows, packed=True, rounding=END_TO_END)
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
    def packed(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return packed_attention(q, k, v, packed_rows(lengths), lambda *qkv: attend(*qkv, scale=0.5))

    assert_each_row_alone(packed, lengths)


def assert_each_row_alone(attend: Callable[..., mx.array], lengths: list[int]) -> None:
    """Of rows end to end, with its gradients, what plain attention gives for each."""
    total = sum(lengths)
    cuts = np.cumsum(lengths)[:-1].tolist()

    def alone(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        rows = zip(*(mx.split(x, cuts, axis=2) if cuts else [x] for x in (q, k, v)), strict=True)
        return mx.concatenate([plain_attention(*row, 0.5) for row in rows], axis=2)

    compare(
        attend, alone, normal(1, 4, total, 8, seed=4), normal(1, 2, total, 8, seed=5), normal(1, 2, total, 8, seed=6)
    )


@pytest.mark.parametrize("exp", [fast_exp, mx.exp])
@pytest.mark.parametrize(
    "lengths", [[6], [70, 9, 1, 3], [3, 70, 9], [1] * 5, [257, 256, 40, 40, 8], [30, 34, 1], [400]], ids=str
)
def test_sliced_rows_attend_each_to_itself(exp: Callable[[mx.array], mx.array], lengths: list[int]) -> None:
    """Of lengths whose probabilities are kept and of one whose are made again."""
    spans = SlicedRows(lengths).spans
    assert_each_row_alone(lambda *qkv: fast_attention(*qkv, scale=0.5, spans=spans, exp=exp), lengths)


@pytest.mark.parametrize(
    ("lengths", "ends"),
    [
        ([256, 100], [256, 356]),
        ([257, 100], [51, 102, 154, 205, 257, 357]),
        ([SPAN], [SPAN]),
        ([80, 40, 20, 5], [80, 140, 145]),
        ([80, 40, 20, 4], [80, 144]),
        ([2, 3, 80], [5, 85]),
        ([1] * 70, [64, 70]),
    ],
)
def test_short_rows_share_a_span_and_long_ones_have_several(lengths: list[int], ends: list[int]) -> None:
    spans = SlicedRows(lengths).spans
    assert [span.stop for span in spans] == ends
    assert [span.start for span in spans] == [0, *ends[:-1]]


def test_a_span_of_two_rows_by_hand() -> None:
    (span,) = SlicedRows([2, 3]).spans
    assert (np.array(span.mask) == 0).astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    assert np.array(span.mask).min() < -1e8


@pytest.mark.parametrize("rows", [packed_rows, SlicedRows])
def test_packed_rows_mask_by_hand(rows: Callable[..., Any]) -> None:
    mask = np.array(rows([2, 3]).make_mask(5)).astype(int)[0, 0]
    assert mask.tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize("rows", [packed_rows, SlicedRows])
def test_packed_rows_mask_with_a_window_by_hand(rows: Callable[..., Any]) -> None:
    mask = np.array(rows([1, 4]).make_mask(5, window_size=2)).astype(int)[0, 0]
    assert mask.tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]


# Bins -------------------------------------------------------------------------------------------------------------

ROW = mx.array([[0, 0, 0, 1, -1], [2, 2, 2, 2, 2]])


def seen(rows: BinnedRows, **options: Any) -> list[list[list[int]]]:
    """What each token of each bin sees, as 1."""
    mask = np.array(rows.make_mask(5, **options))
    assert mask.shape == (2, 1, 5, 5)
    assert np.all((mask == 0) | (mask < -1e8))
    return (mask[:, 0] == 0).astype(int).tolist()


def test_binned_rows_mask_by_hand() -> None:
    assert seen(BinnedRows(ROW, mx.float32, plain=False)) == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]],
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    ]


@pytest.mark.parametrize("plain", [True, False])
def test_binned_rows_mask_with_a_window_by_hand(plain: bool) -> None:
    assert seen(BinnedRows(ROW, mx.float32, plain=plain), window_size=2) == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]],
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]],
    ]


def test_binned_rows_need_no_mask_where_each_bin_holds_one() -> None:
    rows = BinnedRows(mx.array([[0, 0, 0, 0, 0], [1, 1, 1, 1, -1]]), mx.float16, plain=True)
    assert rows.make_mask(5) == rows.make_mask(5, window_size=5) == rows.make_mask(5, window_size=9) == "causal"
    assert rows.make_mask(5, return_array=True).dtype == rows.make_mask(5, window_size=2).dtype == mx.float16


def test_binned_rows_make_each_mask_once() -> None:
    rows = BinnedRows(ROW, mx.float32, plain=False)
    assert rows.make_mask(5) is rows.make_mask(5, window_size=7) is not rows.make_mask(5, window_size=2)


# Models -----------------------------------------------------------------------------------------------------------

WAYS = {
    "bins": (True, Rounding(bins=(40,))),
    "bins, filled up": (True, Rounding(32, 32, (40,))),
    "end to end": (True, END_TO_END),
    "end to end, sliced": (True, AS_IT_IS),
    "end to end, filled up": (True, Rounding(32, 32)),
    "side by side, filled up": (False, Rounding(32)),
}


@pytest.mark.parametrize("lengths", [(23, 3, 40, 11), (33, 40, 36)], ids=["several a bin", "one a bin"])
@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("gemma3_text", {"sliding_window": 6})])
def test_however_rows_lie_a_model_gives_the_same_loss_and_gradients(
    random_model: Callable[..., Path], family: str, changes: dict[str, int], lengths: tuple[int, ...]
) -> None:
    model, _ = load(random_model(family, **changes), lora=LoraConfig(rank=4))
    set_adapters(model)
    rows = random_rows(*lengths)

    def found(batch: Batch, *, packed: bool) -> tuple[float, dict[str, np.ndarray]]:
        return loss_and_gradients(model, lambda model: batch_loss(model, batch, "packed" if packed else "padded"))

    wanted = found(make_batch(rows, packed=False), packed=False)
    for name, (packed, rounding) in WAYS.items():
        batch = make_batch(rows, packed=packed, rounding=rounding)
        assert (batch.row is not None) == name.startswith("bins"), name
        assert (batch.weight.min() == 0) == name.endswith("filled up"), name
        assert_same(found(batch, packed=packed), wanted)
