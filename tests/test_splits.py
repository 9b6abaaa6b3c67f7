"""The same row falls on the same side whatever else is there."""

import hashlib

import numpy as np
import pytest

from qlora_core.data import ENOUGH_REPLIES, split


def places(count: int, start: int = 0) -> np.ndarray:
    """Where some rows' hashes fall."""
    digests = (hashlib.sha256(f"row {i}".encode()).hexdigest() for i in range(start, start + count))
    return np.array([int(digest[:13], 16) / 16**13 for digest in digests])


def held_out(where: np.ndarray, fraction: float = 0.1, **options) -> np.ndarray:
    """All rows are replies, and each is alone in its group, unless said otherwise."""
    options = {"groups": np.arange(len(where)), "replies": np.ones(len(where), bool), **options}
    return split(where, options.pop("groups"), options.pop("replies"), val_fraction=fraction, **options)


def test_a_row_stays_on_its_side_whatever_the_order():
    where = places(200)
    order = np.random.default_rng(1).permutation(200)
    assert (held_out(where)[order] == held_out(where[order])).all()
    assert held_out(where).any()


def test_a_row_stays_on_its_side_when_others_come():
    assert (held_out(places(200)) == held_out(places(400))[:200]).all()


def test_the_share_is_about_what_was_asked_for():
    assert 160 <= held_out(places(2000)).sum() <= 240  # 200, three deviations


@pytest.mark.parametrize(
    ("count", "fraction", "validated"),
    [(0, 0.5, 0), (1, 0.5, 0), (2, 0.0001, 1), (30, 0.0001, 1), (200, 0.0, 0)],
)
def test_neither_side_is_empty_where_that_is_possible(count, fraction, validated):
    assert held_out(places(count), fraction).sum() == validated


def test_two_rows_are_one_and_one_although_both_fall_to_validation():
    assert all(held_out(places(2, 2 * i), 0.5).sum() == 1 for i in range(200))


@pytest.mark.parametrize(("replies", "only_replies"), [(ENOUGH_REPLIES, True), (ENOUGH_REPLIES - 1, False)])
def test_passages_are_held_out_only_where_replies_are_few(replies, only_replies):
    answered = np.arange(200 + replies) >= 200
    chosen = held_out(places(200 + replies), 0.2, replies=answered)
    assert chosen[answered].any()
    assert chosen[~answered].any() != only_replies


def test_a_group_is_on_one_side():
    groups = np.arange(300) // 3 * 3
    chosen = held_out(places(300), 0.2, groups=groups)
    assert 0 < chosen.sum() < 300
    assert (chosen == chosen[groups]).all()


@pytest.mark.parametrize("options", [{"fraction": 0.3}, {"fraction": 0.0001}, {"val_rows": 3}])
def test_a_book_beside_some_letters_is_not_held_out(options):
    groups = np.where(np.arange(40) < 30, 0, np.arange(40))
    where = np.where(groups == 0, 0.0, places(40))
    chosen = held_out(where, options.pop("fraction", 0.1), groups=groups, **options)
    assert chosen.any()
    assert not chosen[:30].any()


@pytest.mark.parametrize("wanted", [1, 7, 50])
def test_a_number_of_rows_instead_of_a_share(wanted):
    where = places(200)
    assert held_out(where, 0.5, val_rows=wanted).sum() == wanted
    assert held_out(where, 0.0, val_rows=wanted).sum() == wanted
    few, more = held_out(where, val_rows=wanted), held_out(where, val_rows=wanted + 20)
    assert (more | ~few).all()  # those that were held out still are


def test_a_number_of_rows_is_reached_with_whole_groups_and_leaves_something_to_train():
    groups = np.arange(300) // 3 * 3
    assert held_out(places(300), val_rows=10, groups=groups).sum() == 12
    assert 0 < held_out(places(5), val_rows=1000).sum() == 4
