"""The learning rate, by hand."""

import itertools
import math

import pytest

from qlora_core.config import TrainConfig
from qlora_core.schedule import learning_rate, suited_learning_rate

HALF = math.sqrt(0.5) / 2


def rates(total: int, **settings: object) -> list[float]:
    """The rate of every step of a run whose peak is 2."""
    config = TrainConfig(learning_rate=2.0, **settings)
    return [learning_rate(step, total, config) for step in range(1, total + 1)]


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("linear", [1.0, 2.0, 1.5, 1.0, 0.5]),
        ("cosine", [1.0, 2.0, 1 + 2 * HALF, 1.0, 1 - 2 * HALF]),
        ("constant", [1.0, 2.0, 2.0, 2.0, 2.0]),
    ],
)
def test_two_steps_of_warm_up_and_three_of_decay(schedule: str, wanted: list[float]) -> None:
    assert rates(5, schedule=schedule, warmup_steps=2) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [("linear", [1.5, 1.0, 0.5]), ("cosine", [1 + 2 * HALF, 1.0, 1 - 2 * HALF]), ("constant", [2.0, 2.0, 2.0])],
)
def test_without_warm_up(schedule: str, wanted: list[float]) -> None:
    assert rates(3, schedule=schedule, warmup_steps=0) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [4, 9])
def test_a_warm_up_as_long_as_the_run_ends_at_the_peak(schedule: str, warmup: int) -> None:
    assert rates(4, schedule=schedule, warmup_steps=warmup) == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_falls_at_every_step_and_no_step_is_wasted(schedule: str) -> None:
    found = rates(50, schedule=schedule, warmup_steps=5)
    assert found[4] == max(found) == 2.0
    assert all(later < earlier for earlier, later in itertools.pairwise(found[4:]))
    assert found[-1] > 0


def test_a_run_of_one_step_has_a_rate() -> None:
    assert rates(1, schedule="cosine", warmup_steps=5) == [2.0]


@pytest.mark.parametrize(("hidden_size", "wanted"), [(576, 2e-3), (4096, 2e-4), (64, 1e-2), (2048, 4.5e-4)])
def test_the_rate_that_suits_a_width(hidden_size: int, wanted: float) -> None:
    assert suited_learning_rate(hidden_size) == pytest.approx(wanted)
