"""Rows that say nearly the same hang together, and others do not."""

import random

import numpy as np
import pytest

from qlora_core.data.duplicates import BANDS, SHORT, alike, components, members, shared_across, signatures

WORDS = ["nogueira", "domingo", "baliza", "chuva", "eira", "moinho", "capote", "sino", "golo", "padre", "vila", "rio"]


def sentence(rng: random.Random, words: int = 40) -> str:
    return " ".join(rng.choice(WORDS) + str(rng.randrange(50)) for _ in range(words))


def share_a_band(one: str, other: str) -> bool:
    first, second = signatures([one, other])
    return bool(((first == second) & (first > 0)).any())


def test_equal_texts_share_every_band_whatever_their_capitals():
    text = sentence(random.Random(1))
    assert (np.diff(signatures([text, text.upper()]), axis=0) == 0).all()


def test_signatures_do_not_depend_on_what_else_is_there():
    rng = random.Random(2)
    texts = [sentence(rng, n) for n in (40, 1, 0, 7, 40)]
    together = signatures(texts)
    alone = np.concatenate([signatures([text]) for text in texts])
    assert together.shape == (5, BANDS)
    assert (together == alone).all()


def test_short_texts_are_not_compared():
    assert not signatures(["", "sim", "x" * (SHORT - 1)]).any()
    assert signatures(["x" * SHORT, "ção" * 9]).all()
    assert signatures([]).shape == (0, BANDS)


@pytest.mark.parametrize(("changed", "least", "most"), [(1, 0.9, 1.0), (20, 0.0, 0.05)])
def test_a_word_changed_is_found_and_half_of_them_is_not(changed, least, most):
    rng = random.Random(3)
    found = 0
    for _ in range(200):
        words = sentence(rng).split()
        other = list(words)
        for place in rng.sample(range(len(words)), changed):
            other[place] = "outra"
        found += share_a_band(" ".join(words), " ".join(other))
    assert least <= found / 200 <= most


def test_alike_is_the_share_of_common_pieces():
    assert alike("abcdefg", "ABCDEFG") == 1
    assert alike("abcdef", "xbcdef") == pytest.approx(1 / 3)  # abcde, bcdef; xbcde, bcdef
    assert alike("abc", "abc") == 0  # too short to have a piece
    assert alike("ab\ud800cdef", "") == 0


def slow_components(keys: np.ndarray) -> list[int]:
    """The same by repeated search."""
    labels = list(range(len(keys)))
    changed = True
    while changed:
        changed = False
        for i in range(len(keys)):
            for j in range(i):
                if ((keys[i] == keys[j]) & (keys[i] > 0)).any() and labels[i] != labels[j]:
                    labels[i] = labels[j] = min(labels[i], labels[j])
                    changed = True
    return labels


@pytest.mark.parametrize("seed", range(30))
def test_components_are_those_of_a_search(seed):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 25, (rng.integers(0, 40), 3)).astype(np.uint64)
    assert components(keys).tolist() == slow_components(keys)


def test_a_chain_hangs_together():
    keys = np.array([[1, 2], [9, 9], [2, 2], [2, 3], [4, 3], [0, 0], [0, 0]], np.uint64)
    assert components(keys).tolist() == [0, 1, 0, 0, 0, 5, 6]


def test_rows_of_both_sides_that_have_something_in_common_are_counted():
    keys = np.array([[1, 5], [2, 6], [3, 0], [1, 7], [8, 6], [9, 0]], np.uint64)
    held_out = np.array([False, False, False, True, True, True])
    assert shared_across(keys, held_out) == 2  # 1 in the first column, 6 in the second; 0 is nothing
    assert shared_across(keys, ~held_out) == 2
    assert shared_across(keys, np.zeros(6, bool)) == 0
    assert shared_across(keys, np.ones(6, bool)) == 0


def test_members_are_the_rows_of_the_chosen_groups():
    assert members(np.array([0, 0, 2, 3, 2]), np.array([2])).tolist() == [False, False, True, False, True]
