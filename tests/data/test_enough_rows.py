"""Too few validation rows for what they decide: when it is said, with which remedy."""

import pytest

from qlora_core.config import DataConfig
from qlora_core.data.enough_rows import ENOUGH, rows_to_hold_out, uncertainty
from qlora_core.data.report import DataReport


def warned(train: int, validation: int, *, own_split: bool = False, **settings) -> list[str]:
    """Return what a report of so many rows says about them."""
    report = DataReport(train=train, validation=validation, own_split=own_split)
    report.look_again(DataConfig(**settings))
    return [warning for warning in report.warnings if "validate, and so decide" in warning]


def test_few_rows_are_told_with_the_number_to_hold_out():
    (told,) = warned(74, 2)
    assert told == (
        "2 of 76 rows validate, and so decide which step is best: the loss on others of their kind may be 100% higher "
        "or lower. --val-rows 15 holds out more."
    )
    assert warned(600, 25)[0].endswith(f"--val-rows {ENOUGH} holds out more.")
    assert warned(600, 25, own_split=True)[0].endswith("Put more rows into your validation file.")


@pytest.mark.parametrize(("train", "validation"), [(600, ENOUGH), (61, 15), (20, 2), (74, 0)])
def test_nothing_is_said_where_it_is_enough_or_no_more_could_be_had(train, validation):
    assert warned(train, validation) == []


def test_whoever_chose_a_number_is_not_told():
    assert warned(74, 8, val_rows=8) == []


def test_with_four_times_the_rows_a_loss_is_twice_as_sure():
    assert uncertainty(40) == pytest.approx(uncertainty(10) / 2)
    assert uncertainty(1) == 1
    assert [rows_to_hold_out(rows) for rows in (29, 30, 76, 150, 10_000)] == [0, 6, 15, ENOUGH, ENOUGH]
