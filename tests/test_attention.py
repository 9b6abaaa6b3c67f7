"""Attention over packed rows against attention of each row alone, and masks by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import assert_same, compare, load, loss_and_gradients, normal, random_rows, set_adapters

from qlora_core.attention import BinnedRows, PackedRows, fast_attention, packed_attention
from qlora_core.batching import AS_IT_IS, Batch, Rounding, make_batch
from qlora_core.config import LoraConfig
from qlora_core.device import mx
from qlora_core.model import batch_loss
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
    "end to end": (True, AS_IT_IS),
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

    def found(batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
        layout = "packed" if batch.packed else "padded"
        return loss_and_gradients(model, lambda model: batch_loss(model, batch, layout))

    wanted = found(make_batch(rows, packed=False))
    for name, (packed, rounding) in WAYS.items():
        batch = make_batch(rows, packed=packed, rounding=rounding)
        assert (batch.row is not None) == name.startswith("bins"), name
        assert (batch.weight.min() == 0) == name.endswith("filled up"), name
        assert_same(found(batch), wanted)
