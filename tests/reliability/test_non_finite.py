"""Numbers that are not finite: the step is left out, nothing of them is ever saved, three in a row pause the run.

They are put where they would arise: into the loss, one number of the gradient, the optimizer's moments.
`--injections N` does so at N steps, and at half as many for the moments.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import (
    Killed,
    assert_same_training,
    at_step,
    checkpoint,
    create_run,
    events,
    kill,
    train,
    trained_state,
    write_pair,
)
from safetensors.numpy import load_file

from qlora_core.engine.device import mx, tree_flatten
from qlora_core.errors import TrainingError
from qlora_core.machine.memory_guard import FEWEST_NORMS, NormWatch
from qlora_core.runs.run import Run
from qlora_core.training import loop
from qlora_core.training import steps as training_steps

STEPS = 10
SETTINGS = {"batch_size": 2, "epochs": 2, "dropout": 0.1, "samples": 0, "save_every": 1, "keep_checkpoints": 100}
VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

Create = Callable[..., Run]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 rows to train, two of them a step."""
    return write_pair(tmp_path_factory.mktemp("rows"), train=10, validation=2)


@pytest.fixture
def create(tmp_path: Path, tiny_model: Path, sources: Path) -> Create:
    """Make a run of 10 steps that saves each; other settings by name."""

    def make(name: str = "run", **settings: Any) -> Run:
        return create_run(tmp_path, tiny_model, sources, run=name, **{**SETTINGS, **settings})

    return make


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change what the first micro-batch of some steps gives: `change(loss, gradient)`, both arrays."""
    real = training_steps._round_gradient

    def do(steps: Iterable[int], change: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        def micro_batch(session, shares):
            loss, gradient = real(session, shares)
            return change(loss, gradient) if session.progress.step + 1 in steps else (loss, gradient)

        monkeypatch.setattr(training_steps, "_round_gradient", micro_batch)

    return do


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change the session before some steps: `change(session)`."""
    real = training_steps.train_step

    def do(steps: Iterable[int], change: Callable[[Any], None]) -> None:
        def train_step(session, group):
            if session.progress.step + 1 in steps:
                change(session)
            return real(session, group)

        monkeypatch.setattr(training_steps, "train_step", train_step)

    return do


def in_loss(value: float) -> Callable[[Any, Any], tuple[Any, Any]]:
    return lambda loss, gradient: (loss + value, gradient)


def in_one_number(value: float, place: int) -> Callable[[Any, Any], tuple[Any, Any]]:
    def change(loss, gradient):
        return loss, mx.where(mx.arange(gradient.size) == place % gradient.size, value, gradient)

    return change


def in_moment(name: str, value: float) -> Callable[[Any], None]:
    def change(session):
        moments = session.optimizer.state["adapters"]
        moments[name] = mx.where(mx.arange(moments[name].size) == 7, value, moments[name])

    return change


def times(factor: float) -> Callable[[Any, Any], tuple[Any, Any]]:
    return lambda loss, gradient: (loss * factor, gradient * factor)


def all_finite(run: Run) -> bool:
    """Whether every number in every tensor file of a run is."""
    files = list(run.path.rglob("*.safetensors"))
    assert files
    return all(np.isfinite(value).all() for file in files for value in load_file(file).values())


@pytest.fixture
def spots(request: pytest.FixtureRequest) -> list[tuple[int, str, float]]:
    """Step, place and value of each injection, spread over the steps."""
    draw = np.random.default_rng(0)
    count = request.config.getoption("--injections")
    places = ("loss", "gradient")
    return [(1 + int(draw.integers(STEPS)), places[i % 2], list(VALUES.values())[i // 2 % 3]) for i in range(count)]


def test_a_step_that_is_not_finite_leaves_weights_and_moments_as_they_were(
    create: Create, inject: Callable[..., None], spots: list[tuple[int, str, float]], sources: Path
) -> None:
    for i, (step, place, value) in enumerate(spots):
        run, told = create(f"run-{i}"), (step, place, value)
        inject({step}, in_loss(value) if place == "loss" else in_one_number(value, 101 * i))
        assert train(run).state == "completed", told
        if step > 1:
            assert trained_state(run, step) == trained_state(run, step - 1), told
        if step < STEPS:
            assert trained_state(run, step) != trained_state(run, step + 1), told  # and it learns on
        losses = events(run, "step", "train_loss")
        assert [number for number, loss in enumerate(losses, 1) if loss is None] == [step], told
        (warning,) = events(run, "warning")
        assert (warning["step"], len(warning["rows"])) == (step, 2), told
        assert all(row.startswith(str(sources / "train.jsonl")) for row in warning["rows"]), told
        assert all_finite(run), told
        assert math.isfinite(run.summary()["best_val_loss"]), told


@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_micro_batch_is_enough(create: Create, inject: Callable[..., None], accumulation: int) -> None:
    run = create(grad_accumulation_steps=accumulation)
    inject({2}, in_one_number(math.nan, 3))
    train(run)
    assert trained_state(run, 2) == trained_state(run, 1)


def test_moments_that_are_not_finite_change_no_weight_and_are_not_saved(
    create: Create, poison: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    """The run pauses, and goes on from the checkpoint before."""
    wanted, draw = create("wanted"), np.random.default_rng(0)
    train(wanted)
    for i in range(request.config.getoption("--injections") // 2):
        moment, value, step = "mv"[i % 2], [*VALUES.values()][i % 3], int(draw.integers(2, STEPS + 1))
        run, told = create(f"run-{i}"), (step, moment, value)
        poison({step}, in_moment(moment, value))
        with pytest.raises(TrainingError) as error:
            train(run)
        begun = f"step {step}: adapters or optimizer state are not finite, so they are not saved. "
        assert str(error.value).startswith(f"{begun}Going on begins at checkpoint {step - 1:06d} again"), told
        assert (run.state, run.status()["message"]) == ("paused", str(error.value)), told
        assert not checkpoint(run, step).exists(), told
        assert all_finite(run), told
        poison((), lambda session: None)
        assert train(run).state == "completed", told
        assert_same_training(run, wanted, STEPS)


def test_moments_that_are_not_finite_end_it_though_nothing_is_saved_for_long(
    create: Create, poison: Callable[..., None]
) -> None:
    run = create(save_every=8)
    poison({6}, in_moment("v", math.nan))
    with pytest.raises(TrainingError) as error:
        train(run)
    wanted = r"the optimizer's state was not finite 3 steps in a row, .*train\.jsonl:\d+.* at the start again"
    assert re.match(wanted, str(error.value))  # and why nothing was saved
    assert run.state == "paused"
    assert [event["step"] for event in events(run, "warning")] == [6, 7, 8]
    assert not (run.path / "checkpoints").exists()


@pytest.mark.parametrize("step", [4, STEPS])
def test_weights_that_are_not_finite_are_written_nowhere(
    create: Create, poison: Callable[..., None], step: int
) -> None:
    """Whatever put them there, a fault of the memory say."""

    def change(session):
        name, value = tree_flatten(session.model.trainable_parameters())[0]
        session.model.load_weights([(name, value * math.nan)], strict=False)

    run = create()
    poison({step}, change)
    with pytest.raises(TrainingError, match="not finite"):
        train(run)
    assert run.state == "paused"
    assert not checkpoint(run, step).exists()
    assert not run.final.exists()
    assert all_finite(run)


# Three in a row ---------------------------------------------------------------------------------------------------


def test_three_in_a_row_pause_the_run_with_everything_saved_and_name_the_rows(
    create: Create, inject: Callable[..., None], sources: Path
) -> None:
    run = create(save_every=0)
    inject({2, 4, 5, 6}, in_loss(math.nan))  # a good one in between, and it counts anew
    with pytest.raises(TrainingError) as error:
        train(run)
    named = events(run, "warning")[-1]["rows"]
    assert str(error.value).startswith("loss or gradient was not finite 3 steps in a row, last on ")
    assert all(row in str(error.value) for row in named)
    assert run.state == "paused"
    assert run.status()["message"] == str(error.value)
    assert (run.status()["step"], checkpoint(run, 6).is_dir()) == (6, True)
    assert train(run).state == "completed"  # going on leaves these three out
    assert [event["step"] for event in events(run, "step") if event["train_loss"] is None] == [2, 4, 5, 6]
    assert all_finite(run)


def test_the_last_three_steps_pause_it_too(create: Create, inject: Callable[..., None]) -> None:
    run = create()
    inject({8, 9, 10}, in_loss(math.inf))
    with pytest.raises(TrainingError, match="3 steps in a row"):
        train(run)
    assert run.state == "paused"
    assert train(run).state == "completed"
    assert all_finite(run)


@pytest.mark.parametrize(("cut", "how"), [(4, "pause"), (5, "kill")])
def test_a_cut_among_them_changes_nothing(create: Create, inject: Callable[..., None], cut: int, how: str) -> None:
    """How many there were in a row is part of a checkpoint."""
    inject({4, 5}, in_loss(math.nan))
    whole, run = create("whole"), create("cut")
    train(whole)
    if how == "pause":
        train(run, at_step(cut, lambda: run.request("pause")))
    else:
        with pytest.raises(Killed):
            train(run, at_step(cut, kill))
    state = json.loads((checkpoint(run, cut - (how == "kill")) / "state.json").read_text(encoding="utf-8"))
    assert state["extra"]["non_finite"] == cut - (how == "kill") - 3
    assert train(run).state == "completed"
    assert_same_training(run, whole, STEPS)


# Spikes -----------------------------------------------------------------------------------------------------------


def test_a_spike_is_told_with_its_rows_and_bounded(create: Create, inject: Callable[..., None]) -> None:
    run = create(epochs=3)
    inject({12}, times(1e4))
    train(run)
    (warning,) = events(run, "warning")
    assert warning["step"] == 12
    assert "times as large as usual" in warning["message"]
    assert len(warning["rows"]) == 2
    norms = events(run, "step", "grad_norm")
    assert norms[11] > 1e3 * np.median(norms[:11])
    before, after = (load_file(checkpoint(run, step) / "optimizer.safetensors") for step in (11, 12))
    change = after["adapters.m"] - 0.9 * before["adapters.m"]
    assert np.linalg.norm(change) == pytest.approx(0.1, rel=1e-3)  # a tenth of a gradient that was cut to 1
    assert all_finite(run)


def test_without_clipping_a_spike_is_told_as_well(create: Create, inject: Callable[..., None]) -> None:
    run = create(epochs=3, max_grad_norm=0.0)
    inject({12}, times(1e4))
    train(run)
    assert events(run, "warning", "step")[0] == 12


@pytest.mark.parametrize(
    ("before", "norm", "found"),
    [
        ([1.0] * FEWEST_NORMS, 9.9, 0.0),
        ([1.0] * FEWEST_NORMS, 11.0, 11.0),
        ([1.0] * (FEWEST_NORMS - 1), 1e9, 0.0),  # too few to know
        ([*[1.0] * 30, *[20.0] * 30], 30.0, 0.0),  # the larger ones are usual by now
        ([0.0] * FEWEST_NORMS, 5.0, 0.0),  # nothing to compare with
        ([*[1.0] * 20, 1e6], 20.0, 20.0),  # one spike does not hide the next
    ],
)
def test_what_a_spike_is(before: list[float], norm: float, found: float) -> None:
    watch = NormWatch()
    for value in before:
        watch.spike(value)
    assert watch.spike(norm) == found


# A clean run ------------------------------------------------------------------------------------------------------


def test_looking_for_them_changes_no_bit(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, blind = create("watched"), create("blind", pause_below_gb=0.0)
    train(watched)
    monkeypatch.setattr(training_steps, "all_finite", lambda *trees: mx.array(True))
    monkeypatch.setattr(loop, "watch_numbers", lambda *_: None)
    monkeypatch.setattr(loop, "watch_memory", lambda *_: None)
    train(blind)
    assert events(watched, "warning") == []
    assert_same_training(watched, blind, STEPS)
