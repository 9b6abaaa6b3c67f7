"""When the best validation is better than others, and when only the choice of rows says so."""

import numpy as np
import pytest

from qlora_core.evaluation.best_choice import COMPARED, choose, kept_sentence
from qlora_core.runs.row_losses import RowLosses
from qlora_core.translations import from_record


def validations(*shifts, noise=0.0, rows=9, steps=None):
    """Validations at steps 10, 20, …: rows of unequal loss, to each of which a shift in nats a token is added.

    Args:
        shifts: of each validation.
        noise: how differently the rows move, alternately up and down.
        rows: of validation.
        steps: in place of 10, 20, …
    """
    base, sign = np.linspace(0.1, 3.0, rows), (-1) ** np.arange(rows)
    return [
        RowLosses(10 * (base + shift + noise * sign * number), np.full(rows, 10), step)
        for number, (shift, step) in enumerate(zip(shifts, steps or range(10, 10 * len(shifts) + 10, 10), strict=True))
    ]


def test_a_loss_that_falls_in_every_row_is_surely_better():
    """However unequal the rows are among themselves, with an interval of the mean from 1 to 2."""
    made = choose(validations(0.5, 0.2, 0.0, noise=0.01), 30)
    assert (made.alike, made.others, made.is_noise) == ([], 2, False)
    assert made.loss.high - made.loss.low > 1
    assert str(made.sentence) == "best at step 30 (1.5522); with 9 validation rows, better than the others"


def test_steps_around_it_that_only_some_rows_find_worse_are_named_as_a_stretch():
    made = choose(validations(2.0, 0.02, 0.0, 0.01, noise=0.2), 30)
    assert (made.alike, made.is_noise) == ([20, 40], True)
    assert str(made.sentence).endswith("; steps 20 to 40 cannot be told apart with 9 validation rows")


def test_where_one_between_is_clearly_worse_each_is_named():
    found = validations(0.02, 1.0, 0.0, noise=0.2)
    made = choose(found, 30)
    assert made.alike == [10]
    assert str(made.sentence).endswith("; it cannot be told from step 10 with 9 validation rows")
    many = choose(validations(*[0.001] * 3, 9.0, *[0.001] * 6, 0.0, noise=0.3), 110)
    assert many.alike == [10, 20, 30, 50, 60, 70, 80, 90, 100]
    assert "from step 10, 20, 30, 50, 60 and 4 more with" in many.sentence


def test_five_rows_tell_nothing_apart():
    made = choose(validations(2.0, 1.0, 0.0, rows=5), 30)
    assert made.alike == [10, 20]
    assert str(made.sentence).endswith("; 5 validation rows cannot tell one step from another: 6 are wanted at least")


def test_rows_count_by_their_tokens():
    """Eight short rows are worse and a long one better by more: which is best, nobody can say."""
    tokens = np.array([2] * 8 + [200])
    one, other = (
        RowLosses(2.0 * tokens, tokens, 10),
        RowLosses((2.0 + np.array([0.5] * 8 + [-0.1])) * tokens, tokens, 20),
    )
    assert choose([one, other], 20).alike == [10]


def test_the_loss_before_the_first_step_is_no_choice_but_is_compared():
    made = choose(validations(3.0, 0.1, 0.0, steps=[0, 10, 20]), 20)
    assert made.others == 1
    assert made.gained.value == pytest.approx(3.0)
    assert made.gained.is_clear
    assert choose(validations(0.1, 0.0), 20).gained is None


def test_the_best_is_the_trainers_choice_or_nothing():
    assert choose(validations(0.1, 0.0), 10).step == 10
    assert choose(validations(0.1, 0.0), 99) is None  # of which no losses were kept
    assert choose(validations(0.1, steps=[0]), 0) is None
    assert choose([], 0) is None


def test_one_validation_is_the_best_without_more_words():
    made = choose(validations(0.0), 10)
    assert str(made.sentence) == "best at step 10 (1.55)"
    assert kept_sentence({"best": made.as_dict()}) is None


def test_of_many_validations_the_lowest_and_the_last_are_compared():
    """The second of `COMPARED` + 3 is the worst, and the last no better than the next ones."""
    count = COMPARED + 3
    shifts = [0.0, 9.0, *[0.001 * i for i in range(count - 3)], 0.5]
    made = choose(validations(*shifts, noise=3.0), 10)
    assert made.others == count - 1
    assert made.alike[-1] == 10 * count
    assert 20 not in made.alike


def test_it_is_told_in_portuguese_as_well_from_the_file():
    made = choose(validations(2.0, 0.02, 0.0, 0.01, noise=0.2), 30)
    kept = kept_sentence({"best": made.as_dict()})
    assert kept == made.sentence
    assert from_record(made.as_dict()["said"]).within("pt") == (
        "melhor no passo 30 (1,5944); os passos 20 a 40 não se distinguem com 9 exemplos de validação"
    )
    assert kept_sentence(None) is kept_sentence({}) is kept_sentence({"best": None}) is None
