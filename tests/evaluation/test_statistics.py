"""Intervals and the sign test: numbers counted by hand, published ones, and how often they cover what is true."""

import math

import numpy as np
import pytest

from qlora_core.evaluation import statistics
from qlora_core.evaluation.statistics import (
    FEWEST,
    Estimate,
    mean_difference,
    mean_of_few,
    mean_score,
    share,
    share_difference,
    sign_test,
    weighted_mean,
)


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Right answers of two models, by how many of the four kinds of pairs there are."""
    ours = [True] * both + [True] * gained + [False] * lost + [False] * neither
    theirs = [True] * both + [False] * gained + [True] * lost + [False] * neither
    return ours, theirs


# Shares ---------------------------------------------------------------------------------------------------------


def test_wilson_of_19_of_42():
    """By hand: z² = 3.8415; middle (0.452381 + 0.045732) / 1.091464, half 1.96 · √(0.0058983 + 0.0005444) / 1.0915."""
    found = share(19, 42)
    assert found.value == pytest.approx(0.452381, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((0.312236, 0.600513), abs=2e-4)
    assert (round(found.low, 2), round(found.high, 2), found.count) == (0.31, 0.60, 42)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.277533),  # z² / (n + z²)
        (10, 10, 0.722467, 1.0),
        (81, 263, 0.255245, 0.366185),  # Newcombe 1998, Statistics in Medicine 17, 857: table I, method 3
        (15, 148, 0.062386, 0.160527),  # 0.0624 to 0.1605 there
        (1, 29, 0.006113, 0.171755),  # 0.0061 to 0.1718 there
    ],
)
def test_wilson_of_published_examples(right, total, low, high):
    found = share(right, total)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_a_difference_of_shares_by_agresti_and_min():
    """By hand, 40 questions, 9 gained, 2 lost: (9.5 - 2.5) / 42, ± 1.96 · √(12 - 49 / 42) / 42."""
    found = share_difference(*pairs(10, 9, 2, 19))
    assert found.value == pytest.approx(7 / 40)
    half = 1.959964 * math.sqrt(12 - 49 / 42) / 42
    assert (found.low, found.high) == pytest.approx((7 / 42 - half, 7 / 42 + half), abs=1e-6)
    assert found.is_clear
    swapped = share_difference(*reversed(pairs(10, 9, 2, 19)))
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_where_all_pairs_are_alike_a_difference_still_has_a_width():
    """A bootstrap would say that it is exactly zero: 1.96 · √1 / 12 on 10 questions."""
    for both, neither in ((10, 0), (0, 10)):
        found = share_difference(*pairs(both, 0, 0, neither))
        assert (found.value, found.low, found.high) == pytest.approx((0, -0.16333, 0.16333), abs=1e-5)
        assert not found.is_clear


def test_a_share_stays_within_its_bounds():
    found = share_difference([True] * 2, [False] * 2)
    assert (found.value, found.high) == (1.0, 1.0)
    assert -1 <= found.low < 1


# The sign test --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gained", "lost", "chance"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 0.0625),  # 2 / 32
        (6, 0, 0.03125),  # 2 / 64
        (8, 1, 20 / 512),  # 2 · (1 + 9) / 2⁹
        (9, 2, 2 * (1 + 11 + 55) / 2048),
        (3, 3, 1.0),
    ],
)
def test_the_sign_test_counted_by_hand(gained, lost, chance):
    assert sign_test(gained, lost) == pytest.approx(chance, abs=1e-12)
    assert sign_test(lost, gained) == sign_test(gained, lost)


def test_fewest_is_where_the_sign_test_first_comes_below_five_percent():
    assert sign_test(FEWEST - 1, 0) > 0.05 > sign_test(FEWEST, 0)


# Means ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "wanted"),  # two-sided 5%: Abramowitz and Stegun, table 26.10
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (20, 2.086), (60, 2.000), (120, 1.980)],
)
def test_quantiles_of_student(freedom, wanted):
    assert statistics._student(freedom) == pytest.approx(wanted, rel=1e-3, abs=6e-4)


def test_a_mean_is_weighted_by_the_tokens_of_each_row():
    """10 nats on 2 tokens and 2 on 8 are 1.2 a token, not the mean of 5 and 0.25."""
    found = weighted_mean([10.0, 2.0], [2, 8])
    assert (found.value, found.count) == (pytest.approx(1.2), 2)
    assert weighted_mean([1.0, 2.0, 6.0]).value == pytest.approx(3.0)


def test_rows_that_all_say_the_same_leave_no_doubt():
    found = weighted_mean(np.full(20, 1.5) * np.arange(1, 21), np.arange(1, 21))
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_differences_are_paired():
    """Rows differ by 100 nats among each other, and by 0.1 between the two models: that is seen all the same."""
    rng = np.random.default_rng(5)
    theirs = rng.uniform(0, 100, 40)
    ours = theirs + 0.1 + rng.normal(0, 0.05, 40)
    found = mean_difference(ours, theirs)
    assert found.is_clear
    assert 0.05 < found.low < 0.1 < found.high < 0.15
    unpaired = weighted_mean(rng.permutation(ours) - theirs)
    assert not unpaired.is_clear
    assert unpaired.high - unpaired.low > 100 * (found.high - found.low)


def test_the_same_numbers_give_the_same_interval():
    values = np.random.default_rng(0).normal(size=30)
    assert weighted_mean(values) == weighted_mean(values)


@pytest.mark.parametrize("rows", [6, 9, 16, 64])
@pytest.mark.parametrize("kind", ["alike", "unequal", "skewed", "unequal and skewed"])
def test_a_mean_is_covered_as_often_as_is_said(rows, kind):
    """1,000 samples from a population whose mean is known: 95% less what chance allows, also for few unequal rows.

    Two standard deviations of a count at 95% of 1,000 are 1.4 points, and skewed differences may lack 1.6 more.
    """
    rng, covered = np.random.default_rng([7, rows]), 0
    for _ in range(1000):
        tokens = np.ceil(20 * np.exp(rng.normal(0, 0.9, rows))) if "unequal" in kind else np.full(rows, 20.0)
        noise = rng.exponential(1.0, rows) - 1 if "skewed" in kind else rng.normal(0, 1, rows)
        found = weighted_mean(tokens * (0.02 + noise), tokens)
        covered += found.low <= 0.02 <= found.high
    assert (0.92 if "skewed" in kind else 0.936) <= covered / 1000 <= 0.99


@pytest.mark.parametrize("rows", [6, 16])
@pytest.mark.parametrize("full", [0.5, 0.95])
def test_a_score_is_covered_as_often_as_is_said(rows, full):
    """A share of the scores is 1, the others lie anywhere: as of answers that are mostly right."""
    rng, covered = np.random.default_rng([8, rows]), 0
    for _ in range(1000):
        found = mean_score(np.where(rng.random(rows) < full, 1.0, rng.random(rows)))
        covered += found.low <= full + (1 - full) / 2 <= found.high
    assert covered / 1000 >= 0.936


@pytest.mark.parametrize("rows", [6, 16])
def test_a_difference_of_scores_is_covered_as_often_as_is_said(rows):
    """The same answers, some of them a little better: 40% gain about half of what they lack."""
    rng, covered = np.random.default_rng([9, rows]), 0
    for _ in range(1000):
        theirs = rng.random(rows)
        ours = np.where(rng.random(rows) < 0.4, theirs + rng.random(rows) * (1 - theirs), theirs)
        found = share_difference(ours, theirs)
        covered += found.low <= 0.1 <= found.high
    assert covered / 1000 >= 0.936


def test_scores_that_are_all_full_leave_a_doubt():
    """By hand: (6 + 2) of (6 + 4), ± 1.96 · √(8 - 64 / 10) / 10."""
    found = mean_score([1.0] * 6)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.8 - 1.959964 * math.sqrt(1.6) / 10, abs=1e-6)


@pytest.mark.parametrize(("total", "probability"), [(10, 0.1), (42, 0.45), (200, 0.97)])
def test_a_share_is_covered_as_often_as_is_said(total, probability):
    """Wilson's interval, summed over all outcomes: exact, no simulation; it is 95% on average and 92% at least here."""
    chances = [math.comb(total, k) * probability**k * (1 - probability) ** (total - k) for k in range(total + 1)]
    inside = [share(k, total).low <= probability <= share(k, total).high for k in range(total + 1)]
    assert 0.92 <= sum(chance for chance, within in zip(chances, inside, strict=True) if within) <= 0.99


def test_a_difference_of_shares_is_covered_as_often_as_is_said():
    """1,000 samples of 40 questions of which 25% are gained and 10% lost."""
    rng = np.random.default_rng(11)
    covered = 0
    for both, gained, lost, neither in rng.multinomial(40, [0.3, 0.25, 0.1, 0.35], 1000):
        found = share_difference(*pairs(both, gained, lost, neither))
        covered += found.low <= 0.15 <= found.high
    assert 0.929 <= covered / 1000 <= 0.98


# What can be said of it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "count", "clear"),
    [
        (0.1, 0.2, 10, True),
        (-0.2, -0.1, 10, True),
        (-0.1, 0.2, 10, False),
        (0.0, 0.2, 10, False),
        (0.1, 0.2, FEWEST - 1, False),
        (None, None, 10, False),
    ],
)
def test_a_difference_is_clear_where_zero_lies_outside_and_there_are_enough_pairs(low, high, count, clear):
    assert Estimate(0.15, low, high, count).is_clear is clear


def test_few_rows_say_nothing_of_how_sure_they_are():
    assert weighted_mean([3.0], [2]).as_dict() == {"value": 1.5, "low": None, "high": None, "count": 1}
    assert weighted_mean(range(FEWEST - 1)).low is None
    assert weighted_mean(range(FEWEST)).low is not None


def test_pairs_that_stay_alike_do_not_make_a_difference_surer():
    """2 of 40 that changed cannot tell, whatever the interval; 6 can, by the sign test."""
    found = share_difference(*pairs(0, 5, 0, 35))
    assert found.low > 0
    assert (found.changed, found.is_clear) == (5, False)
    assert share_difference(*pairs(0, 6, 0, 34)).is_clear
    losses = mean_difference([1.0] * 5 + [0.0] * 35, [0.0] * 40)
    assert (losses.count, losses.changed, losses.is_clear) == (40, 5, False)


@pytest.mark.parametrize(
    ("gained", "alike", "can"), [(5, 2, False), (6, 0, True), (2, 38, True), (0, 8, True), (0, 5, False)]
)
def test_what_changed_and_what_did_not_can_tell(gained, alike, can):
    """5 of 7 that changed are too few for what they suggest; 8 that stayed alike say that no difference is seen."""
    assert share_difference(*pairs(0, gained, 0, alike)).can_tell is can


@pytest.mark.parametrize(
    "of_nothing", [lambda: share(0, 0), lambda: share_difference([], []), lambda: weighted_mean([])]
)
def test_of_nothing_nothing_is_said(of_nothing):
    with pytest.raises(ValueError, match="of nothing"):
        of_nothing()


def test_the_mean_of_a_few_has_students_interval():
    """By hand, for 1, 2, 4: mean 7/3, deviation √(7/3), t of 2 degrees 4.303."""
    found = mean_of_few([1.0, 2.0, 4.0])
    half = 4.303 * math.sqrt(7 / 3) / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half), abs=1e-3)
    assert mean_of_few([1.0]) == Estimate(1.0, None, None, 1)
