"""Batches as pure functions: which rows, in which order, and which tokens of them are targets."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_core.tokens.batching import (
    AS_IT_IS,
    Rounding,
    epoch_batches,
    fill_bins,
    in_rounds,
    in_rounds_of_sharing,
    make_batch,
    neighbours,
    share_out,
)
from qlora_core.tokens.rows import TokenRow


def lengths_of(count: int) -> list[int]:
    """Unequal lengths, some of them equal."""
    return np.random.default_rng(0).integers(3, 60, count).tolist()


def row(ids: list[int], trained: list[int]) -> TokenRow:
    """A row of these ids, trained at these places."""
    return TokenRow(np.asarray(ids, np.int32), np.isin(np.arange(len(ids)), trained))


ROWS = [row([10, 11, 12, 13], [2, 3]), row([20, 21], [1]), row([30, 31, 32, 33, 34, 35], [1, 4])]


# Order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["drawn", "alike", "level"])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 300])
@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_every_row_occurs_once_in_every_epoch(order: str, count: int, batch_size: int) -> None:
    for epoch in range(3):
        batches = epoch_batches(lengths_of(count), batch_size, seed=1, epoch=epoch, order=order)
        assert Counter(index for batch in batches for index in batch) == Counter(range(count))
        sizes = sorted(map(len, batches))
        if order == "level":  # what is missing from a full batch is shared by the last ones
            assert len(batches) == -(-count // batch_size)
            assert sizes[-1] <= batch_size
            continue
        assert sizes[1:] == [batch_size] * (len(batches) - 1)
        assert sizes[0] == (count % batch_size or min(batch_size, count))


@pytest.mark.parametrize("how", ["drawn", "alike", "level"])
def test_the_order_is_a_function_of_seed_and_epoch(how: str) -> None:
    lengths = lengths_of(50)

    def order(seed: int, epoch: int) -> list[list[int]]:
        return epoch_batches(lengths, 4, seed=seed, epoch=epoch, order=how)

    np.random.seed(0)
    first = order(7, 3)
    np.random.seed(1)  # nobody else's dice count
    order(8, 0)
    assert order(7, 3) == first
    assert order(7, 4) != first
    assert order(8, 3) != first


def test_the_order_of_an_epoch_stays_as_it_is() -> None:
    """Pinned: another order would make a run resumed after an update another run."""
    assert epoch_batches([1] * 8, 3, seed=42, epoch=0, order="drawn") == [[3, 4, 2], [7, 6, 1], [5, 0]]


def test_rows_are_shuffled_and_not_sorted_where_nothing_is_padded() -> None:
    lengths = list(range(1, 41))
    batches = epoch_batches(lengths, 4, seed=0, epoch=0, order="drawn")
    assert max(max(batch) - min(batch) for batch in batches) > 10


def test_sorting_brings_rows_of_like_length_together_in_random_order() -> None:
    lengths = np.random.default_rng(3).permutation(np.arange(1, 65)).tolist()
    batches = epoch_batches(lengths, 4, seed=0, epoch=0, order="alike")
    found = [sorted(lengths[i] for i in batch) for batch in batches]
    assert sorted(found) == [[n, n + 1, n + 2, n + 3] for n in range(1, 65, 4)]
    assert found != sorted(found)


def test_level_batches_have_nearly_the_same_tokens_and_rows_of_all_lengths() -> None:
    lengths = np.random.default_rng(3).integers(20, 200, 512).tolist()
    batches = epoch_batches(lengths, 32, seed=0, epoch=0, order="level")
    totals = [sum(lengths[i] for i in batch) for batch in batches]
    drawn = [sum(lengths[i] for i in batch) for batch in epoch_batches(lengths, 32, seed=0, epoch=0, order="drawn")]
    assert np.ptp(totals) < 0.1 * np.ptp(drawn)
    assert all(np.ptp([lengths[i] for i in batch]) > 150 for batch in batches)


def test_sorting_stays_within_windows_so_that_epochs_differ() -> None:
    lengths = list(range(1, 129))  # two windows of 16 batches of 4
    batches = [epoch_batches(lengths, 4, seed=0, epoch=epoch, order="alike") for epoch in (0, 1)]
    assert {frozenset(batch) for batch in batches[0]} != {frozenset(batch) for batch in batches[1]}


@pytest.mark.parametrize(
    ("lengths", "pieces"),
    [
        ([], []),
        ([5], [[0]]),
        ([2000, 3, 4], [[0], [1, 2]]),
        ([500, 12, 1, 511, 1], [[0, 1], [2, 3], [4]]),
        ([3, 2000], [[0], [1]]),
    ],
)
def test_neighbours_are_the_rows_in_their_order(lengths: list[int], pieces: list[list[int]]) -> None:
    assert [list(piece) for piece in neighbours(lengths, 512)] == pieces


# Shares ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "parts", "shares"),
    [
        ([9, 5, 4], 2, [[0], [1, 2]]),
        ([1, 1, 1, 1], 2, [[0, 2], [1, 3]]),
        ([3, 8, 3, 2], 2, [[1], [0, 2, 3]]),
        ([7, 7], 4, [[0], [1]]),
        ([5], 3, [[0]]),
        ([4, 6], 1, [[1, 0]]),
    ],
)
def test_shares_have_about_as_many_tokens(lengths: list[int], parts: int, shares: list[list[int]]) -> None:
    assert share_out(lengths, parts) == shares


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_no_row_is_lost_in_sharing_out(parts: int) -> None:
    lengths = lengths_of(20)
    shares = share_out(lengths, parts)
    assert sorted(index for share in shares for index in share) == list(range(20))
    tokens = [sum(lengths[i] for i in share) for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths)


# Rounds ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 300), st.integers(1, 300)
)
def test_rounds_hold_every_row_once_and_no_more_tokens_than_allowed(
    lengths: list[int], streams: int, share: int, at_once: int
) -> None:
    rounds = in_rounds(lengths, streams=streams, share=share, at_once=at_once)
    assert sorted(index for shares in rounds for each in shares for index in each) == list(range(len(lengths)))
    for shares in rounds:
        assert 1 <= len(shares) <= streams
        tokens = [sum(lengths[i] for i in each) for each in shares]
        assert all(len(each) == 1 or total <= share for each, total in zip(shares, tokens, strict=True))
        assert sum(tokens) <= at_once or (len(shares) == len(shares[0]) == 1)


@pytest.mark.parametrize(
    ("lengths", "share", "at_once", "rounds"),
    [
        ([4, 4, 4, 4], 8, 16, [[[0, 2], [1, 3]]]),  # one round
        ([4, 4, 4, 4], 4, 16, [[[0], [1]], [[2], [3]]]),  # no more in a share
        ([4, 4, 4, 4], 8, 8, [[[0], [1]], [[2], [3]]]),  # no more in a round
        ([9, 9, 9], 4, 30, [[[0], [1]], [[2]]]),  # each is too long for a share
        ([9, 2, 2, 2], 9, 9, [[[0]], [[1], [2]], [[3]]]),  # the long one alone
        ([5], 1, 1, [[[0]]]),
    ],
)
def test_rounds_of_two_streams_by_hand(lengths: list[int], share: int, at_once: int, rounds: list) -> None:
    assert in_rounds(lengths, streams=2, share=share, at_once=at_once) == rounds


# Few shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "sizes", "size", "bins"),
    [
        ([5, 1, 9], (16,), 16, [[2, 0, 1]]),
        ([60, 60, 60], (64, 128), 64, [[0], [1], [2]]),  # 192 and not 256
        ([30, 34, 60, 4], (64, 128), 64, [[2, 3], [1, 0]]),  # as many as one of 128
        ([40, 40, 40], (64, 128), 128, [[0, 1, 2]]),
        ([100, 20, 30, 40], (64, 128), 128, [[0, 1], [3, 2]]),  # 64 is too small for the longest
        ([300], (64, 128), 320, [[0]]),  # so are both
        ([7, 7, 7], (7,), 7, [[0], [1], [2]]),
        ([1, 2], (), 0, []),
    ],
)
def test_bins_are_filled_the_longest_row_first(
    lengths: list[int], sizes: tuple[int, ...], size: int, bins: list[list[int]]
) -> None:
    assert fill_bins(lengths, sizes) == (size, bins)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=40),
    st.sets(st.sampled_from([16, 64, 100, 128, 256]), min_size=1),
)
def test_every_row_lies_in_one_bin_that_has_room_for_it(lengths: list[int], sizes: set[int]) -> None:
    size, bins = fill_bins(lengths, tuple(sizes))
    assert Counter(index for indices in bins for index in indices) == Counter(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in indices) <= size for indices in bins)
    assert size in sizes or (size - max(lengths) < min(sizes) and size % min(sizes) == 0)
    assert fill_bins(lengths, tuple(sorted(sizes, reverse=True))) == (size, bins)


@pytest.mark.parametrize("tokens", [2, 32, 100])
def test_a_total_is_rounded_up_by_little_to_few_sizes(tokens: int) -> None:
    totals = [Rounding(tokens=tokens).total(count) for count in range(1, 4097)]
    for count, total in enumerate(totals, 1):
        assert count <= total <= count + max(tokens - 1, count / 8)
    assert totals == sorted(totals)
    assert len(set(totals)) <= 8 * 12  # eight between a power of two and the next
    assert Rounding(tokens=tokens).total(0) == 0


def test_a_total_is_left_as_it_is_where_nothing_is_rounded() -> None:
    assert [AS_IT_IS.total(count) for count in range(3000)] == list(range(3000))


# Layout ---------------------------------------------------------------------------------------------------------


def test_packed_by_hand() -> None:
    batch = make_batch(ROWS, packed=True)
    assert batch.ids.tolist() == [[10, 11, 12, 13, 20, 21, 30, 31, 32, 33, 34, 35]]
    assert batch.source.tolist() == [1, 2, 4, 6, 9]
    assert batch.target.tolist() == [12, 13, 21, 31, 34]
    assert (batch.lengths, batch.tokens) == ((4, 2, 6), 12)
    assert (batch.row, batch.unpack, batch.pack) == (None, None, None)  # the lengths say where they begin


def test_padded_by_hand() -> None:
    batch = make_batch(ROWS, packed=False)
    assert batch.ids.tolist() == [[10, 11, 12, 13, 0, 0], [20, 21, 0, 0, 0, 0], [30, 31, 32, 33, 34, 35]]
    assert batch.source.tolist() == [1, 2, 6, 12, 15]
    assert batch.target.tolist() == [12, 13, 21, 31, 34]
    assert (batch.lengths, batch.tokens) == ((4, 2, 6), 12)  # padding is never counted


BINS = Rounding(bins=(7,))


def test_bins_by_hand() -> None:
    batch = make_batch(ROWS, packed=True, rounding=BINS)
    assert batch.ids.tolist() == [[30, 31, 32, 33, 34, 35, 0], [10, 11, 12, 13, 20, 21, 0]]
    assert batch.row.tolist() == [[2, 2, 2, 2, 2, 2, -1], [0, 0, 0, 0, 1, 1, -1]]
    assert batch.source.tolist() == [8, 9, 11, 0, 3]
    assert batch.target.tolist() == [12, 13, 21, 31, 34]
    assert batch.weight.tolist() == [1, 1, 1, 1, 1]
    assert (batch.unpack, batch.pack) == (None, None)
    assert (batch.lengths, batch.tokens, batch.plain) == ((4, 2, 6), 12, False)


def test_filled_up_by_hand() -> None:
    """Tokens to 16, targets to 8, and the longest row to 8 where attention takes the rows apart."""
    batch = make_batch(ROWS, packed=True, rounding=Rounding(tokens=8, longest=8))
    assert batch.ids.tolist() == [[10, 11, 12, 13, 20, 21, 30, 31, 32, 33, 34, 35, 0, 0, 0, 0]]
    assert batch.unpack.tolist() == [
        [0, 1, 2, 3, -1, -1, -1, -1],
        [4, 5, -1, -1, -1, -1, -1, -1],
        [6, 7, 8, 9, 10, 11, -1, -1],
    ]
    assert batch.pack.tolist() == [0, 1, 2, 3, 8, 9, 16, 17, 18, 19, 20, 21, -1, -1, -1, -1]
    assert batch.source.tolist() == [1, 2, 4, 6, 9, 0, 0, 0]
    assert batch.target.tolist() == [12, 13, 21, 31, 34, 0, 0, 0]
    assert batch.weight.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert (batch.tokens, batch.plain) == (12, False)


@pytest.mark.parametrize(
    ("rounding", "binned"),
    [
        (Rounding(bins=(7,)), True),  # 14 of 12 tokens
        (Rounding(bins=(7,), flat_cost=1.05), False),  # where arithmetic is dear
        (Rounding(bins=(6,), flat_cost=1.05), True),
        (Rounding(bins=(8,)), False),  # 16, more than a quarter above 12
        (Rounding(tokens=8, bins=(8,)), True),  # which end to end would be 16 as well
        (Rounding(bins=(12,)), True),
        (Rounding(bins=(128, 12)), True),
        (Rounding(bins=(128,)), False),
    ],
)
def test_rows_lie_in_bins_where_that_leaves_little_empty(rounding: Rounding, binned: bool) -> None:
    batch = make_batch(ROWS, packed=True, rounding=rounding)
    assert (batch.row is not None, batch.pack is None) == (binned, binned)
    assert batch.tokens == 12


@pytest.mark.parametrize(
    ("lengths", "plain"), [((6, 6, 6), True), ((5, 6, 6), True), ((6,), True), ((3, 6, 3), False), ((2, 4), False)]
)
def test_bins_are_plain_where_each_holds_one_row(lengths: tuple[int, ...], plain: bool) -> None:
    """In whichever order: rows are put into bins the longest first."""
    rows = [row([1] * length, [1]) for length in lengths]
    batch = make_batch(rows, packed=True, rounding=Rounding(bins=(6,)))
    assert batch.row is not None
    assert batch.plain == plain


@pytest.mark.parametrize(
    ("packed", "rounding"),
    [
        (True, AS_IT_IS),
        (False, AS_IT_IS),
        (True, Rounding(32, 32)),
        (False, Rounding(32, 32)),
        (True, Rounding(32, 32, (64, 128))),
    ],
    ids=str,
)
def test_every_target_follows_its_source_within_its_row(packed: bool, rounding: Rounding) -> None:
    rng = np.random.default_rng(2)
    rows = []
    for length in lengths_of(9):
        trained = rng.random(length) < 0.5
        trained[0] = False
        rows.append(TokenRow(rng.integers(1, 1000, length).astype(np.int32), trained))
    batch = make_batch(rows, packed=packed, rounding=rounding)
    assert (batch.row is not None) == bool(rounding.bins)
    count = sum(r.target_tokens for r in rows)
    assert batch.weight.tolist() == [1.0] * count + [0.0] * (rounding.total(count) - count)
    assert len(batch.source) == len(batch.target) == len(batch.weight)
    pairs = list(zip(batch.ids.reshape(-1)[batch.source].tolist(), batch.target.tolist(), strict=True))[:count]
    assert pairs == [(int(r.ids[i - 1]), int(r.ids[i])) for r in rows for i in np.flatnonzero(r.trained)]
    assert batch.tokens == sum(map(len, rows))
    assert {batch.ids.dtype, batch.source.dtype, batch.target.dtype} == {np.dtype(np.int32)}


# Rows that share a beginning ---------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 50),
    st.lists(st.integers(16, 128), min_size=1, max_size=3, unique=True),
)
def test_bins_have_room_for_what_their_rows_share(drawn: list[tuple[int, bool]], size: int, sizes: list[int]) -> None:
    lengths, before = [length for length, _ in drawn], [size * shares for _, shares in drawn]
    width, bins = fill_bins(lengths, sizes, before)
    assert sorted(i for rows in bins for i in rows) == list(range(len(drawn)))
    assert all(sum(lengths[i] for i in rows) + max(before[i] for i in rows) <= width for rows in bins)
    assert width % min(sizes) == 0 or width in sizes


def test_a_row_that_shares_goes_where_it_lies_already() -> None:
    assert fill_bins([40, 30, 20, 10], (100,), [30, 0, 30, 30]) == (100, [[0, 1], [2, 3]])
    assert fill_bins([40, 30, 20, 10], (100,), [30, 30, 0, 30]) == (100, [[0, 1], [2, 3]])
    assert fill_bins([40, 20, 10], (100,), [30, 30, 30]) == (100, [[0, 1, 2]])


@given(
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=20),
    st.integers(0, 50),
    st.integers(1, 4),
    st.integers(1, 300),
    st.integers(1, 300),
)
def test_rounds_of_rows_that_share_hold_each_once_within_the_limits(
    drawn: list[tuple[int, bool]], size: int, streams: int, share: int, at_once: int
) -> None:
    shared = [size * shares for _, shares in drawn]
    lengths = [rest + of_it for (rest, _), of_it in zip(drawn, shared, strict=True)]
    rounds = in_rounds_of_sharing(lengths, shared, streams=streams, share=share, at_once=at_once)
    assert sorted(i for shares in rounds for rows in shares for i in rows) == list(range(len(drawn)))

    def tokens(rows: list[int]) -> int:
        return sum(lengths[i] - shared[i] for i in rows) + max(shared[i] for i in rows)

    for shares in rounds:
        assert len(shares) <= streams
        several = any(len(rows) > 1 for rows in shares) or len(shares) > 1
        assert not several or sum(map(tokens, shares)) <= at_once
        assert all(len(rows) == 1 or tokens(rows) <= max(share, size + share // 2) for rows in shares)
    if not any(shared):
        assert rounds == in_rounds(lengths, streams=streams, share=share, at_once=at_once)


def test_few_streams_that_share_are_chosen_over_many_that_cannot() -> None:
    lengths, shared = [120] * 6, [100] * 6
    limits = {"streams": 6, "share": 1000, "at_once": 240}
    # two at once without sharing, on six streams not even one; on one all of them
    assert in_rounds_of_sharing(lengths, shared, **limits) == [[[0, 1, 2, 3, 4, 5]]]
    assert len(in_rounds(lengths, **limits)) == 3
    limits["at_once"] = 720
    assert in_rounds_of_sharing(lengths, shared, **limits) == [[[i] for i in range(6)]]
