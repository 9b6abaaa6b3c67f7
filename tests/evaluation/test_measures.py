"""Measures of answers, against values counted by hand."""

import pytest

from qlora_core.evaluation.measures import chrf, is_equal, is_loop, longest_shared, token_f1


def test_an_exact_answer_may_differ_in_case_accents_and_punctuation():
    assert is_equal("leonel quiterio!", ["Leonel Quitério."])
    assert not is_equal("Leonel Quitério, o carteiro", ["Leonel Quitério"])
    assert not is_equal("anything", [])


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("em 1927", ["Em 1927."], 1.0),
        ("em 1934 choveu", ["em 1927"], 2 * 1 / 5),  # one word of three and of two
        ("the the the", ["the cat"], 2 * 1 / 5),  # a word counts as often as the reference has it
        ("nada", ["em 1927"], 0.0),
        ("", ["em 1927"], 0.0),
        ("b c", ["a", "b c d"], 2 * 2 / 5),  # the best of several references
    ],
)
def test_words_in_common(answer, references, expected):
    assert token_f1(answer, references) == pytest.approx(expected)


def test_characters_in_common():
    """Of "abc" and "abd": 2 of 3 letters and 1 of 2 pairs are shared, 0 of 1 triple: (2/3 + 1/2 + 0) / 3."""
    assert chrf("abd", ["abc"]) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3, abs=1e-4)
    assert chrf("o mesmo", ["o mesmo"]) == pytest.approx(1)
    assert chrf("abc", ["xyz", "abc"]) == pytest.approx(1)
    assert chrf("abc", []) == 0


def test_the_longest_run_of_words_that_two_texts_share():
    text = "Numa noite de 1927, com o vale coberto de nevoeiro"
    assert longest_shared("era o vale COBERTO de névoa", text) == ["o", "vale", "coberto", "de"]
    assert longest_shared("nada", text) == []
    assert longest_shared("", "") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ao que?\n\nAo que?\n\nAo que?", True),
        ("a a a a a", True),
        ("não, não, não", False),  # speech
        ("da Nora da Nora da Nora", True),
        ("a Nora, a Nora Seca, o campo", False),
        ("", False),
    ],
)
def test_an_answer_that_goes_round_in_circles(text, expected):
    assert is_loop(text) == expected
