"""The same row falls on the same side whatever else is there."""

import hashlib

import numpy as np
import pytest

from qlora_core.data import split


def places(count: int, start: int = 0) -> np.ndarray:
    """Where some rows' hashes fall."""
    digests = (hashlib.sha256(f"row {i}".encode()).hexdigest() for i in range(start, start + count))
    return np.array([int(digest[:13], 16) / 16**13 for digest in digests])


def held_out(where: np.ndarray, fraction: float = 0.1, **options) -> np.ndarray:
    """All rows are of one source, and each is alone in its group, unless said otherwise."""
    options = {"groups": np.arange(len(where)), "sources": np.zeros(len(where), int), **options}
    return split(where, options.pop("groups"), options.pop("sources"), val_fraction=fraction, **options)


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


def test_every_source_of_a_row_or_more_to_validate_gives_one():
    """Fifty rows of which none falls low enough: the lowest is taken; of a source of nine none is."""
    sources = np.repeat([0, 1, 2], [400, 50, 9])
    where = np.where(sources == 0, places(459), 0.5 + places(459) / 2)
    chosen = held_out(where, 0.1, sources=sources)
    assert [chosen[sources == source].sum() for source in (1, 2)] == [1, 0]
    assert chosen[np.argmin(np.where(sources == 1, where, 1))]


def test_a_source_keeps_its_sides_when_others_come():
    for first in (0, 500):
        alone = held_out(places(60, first), 0.05)
        sources = np.repeat([0, 1], [60, 300])
        both = held_out(np.concatenate([places(60, first), places(300, 9000)]), 0.05, sources=sources)
        assert (alone == both[:60]).all()
        assert alone.any()


def test_a_large_group_of_a_source_is_not_held_out_for_it():
    """A chapter of thirty of forty rows stays to train, although it falls lower than the others."""
    groups = np.concatenate([np.zeros(30, int), np.arange(30, 40), np.arange(40, 240)])
    sources = np.repeat([0, 1], [40, 200])
    where = np.concatenate([np.full(30, 0.3), np.linspace(0.5, 0.9, 10), places(200)])
    chosen = held_out(where, 0.1, groups=groups, sources=sources)
    assert np.flatnonzero(chosen[:40]).tolist() == [30]


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
