"""Float16 ends at 65,504: a run that goes beyond it goes on in bfloat16, and nothing of what it learnt is lost.

What overflows by itself is a base whose hidden states are too large; in the middle of a run it is put there. A CPU
computes in float16 here because it is told to.
"""

import gc
import json
import math
import weakref
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
from safetensors.numpy import load_file, save_file
from tiny import write_model

from qlora_core.engine import device
from qlora_core.engine.device import mx
from qlora_core.errors import TrainingError
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.runs.run import Run
from qlora_core.tokens.batching import Rounding
from qlora_core.training import adapted_model, float16, loop, session
from qlora_core.training import steps as training_steps

STEPS = 10
SETTINGS = {"batch_size": 2, "epochs": 2, "dropout": 0.1, "samples": 0, "save_every": 4, "keep_checkpoints": 100}
HALF = Kernels("cpu", "float16", "dequantised")

Create = Callable[..., Run]


@pytest.fixture(autouse=True)
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs compute in float16."""
    monkeypatch.setattr(device, "choose_kernels", lambda *_: HALF)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 rows to train, two of them a step."""
    return write_pair(tmp_path_factory.mktemp("rows"), train=10, validation=2)


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose weights float16 holds, and whose hidden states it does not."""
    path = write_model(tmp_path_factory.mktemp("models") / "large")
    file = path / "model.safetensors"
    weights = load_file(file)
    for name in ("up_proj", "down_proj"):
        weights[f"model.layers.0.mlp.{name}.weight"] *= 3000
    assert all(np.abs(value).max() < 65_504 for value in weights.values())
    save_file(weights, file, {"format": "pt"})
    return path


@pytest.fixture
def create(tmp_path: Path, tiny_model: Path, sources: Path) -> Create:
    """Make a run of 10 steps; other settings by name."""

    def make(name: str = "run", model: Path = tiny_model, **settings: Any) -> Run:
        return create_run(tmp_path, model, sources, run=name, **{**SETTINGS, **settings})

    return make


def put_infinite(patch: pytest.MonkeyPatch, steps: Iterable[int], dtypes: Iterable[str] = ("float16",)) -> None:
    """Let the gradient of some steps be infinite in these dtypes."""
    real = training_steps._round_gradient

    def micro_batch(session, shares):
        loss, gradient = real(session, shares)
        hit = session.progress.step + 1 in steps and session.kernels.dtype in dtypes
        return loss, gradient + math.inf if hit else gradient

    patch.setattr(training_steps, "_round_gradient", micro_batch)


@pytest.fixture
def overflow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the gradient of some steps be infinite, in place of those before."""
    real = training_steps._round_gradient

    def do(*given: Iterable[Any]) -> None:
        monkeypatch.setattr(training_steps, "_round_gradient", real)
        put_infinite(monkeypatch, *given)

    return do


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, sources: Path) -> Run:
    """A run that overflows at step 7 and that nobody cut; only for reading."""
    run = create_run(tmp_path_factory.mktemp("whole"), tiny_model, sources, run="whole", **SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "choose_kernels", lambda *_: HALF)
        put_infinite(patch, {7})
        train(run)
    assert started(run) == [(0, "float16"), (6, "bfloat16")]
    return run


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Dtype and number of rows of every micro-batch whose gradient is computed."""
    found, real = [], training_steps._round_gradient

    def micro_batch(session, shares):
        found.append((session.kernels.dtype, sum(map(len, shares))))
        return real(session, shares)

    monkeypatch.setattr(training_steps, "_round_gradient", micro_batch)
    return found


def recorded(run: Run) -> str:
    return run.environment()["kernels"]["dtype"]


def started(run: Run) -> list[tuple[int, str]]:
    """The steps that it was opened at, and in which dtype."""
    return [(event["step"], event["kernels"]["dtype"]) for event in events(run, "start")]


# Before the first step --------------------------------------------------------------------------------------------


def test_a_base_too_large_for_float16_is_trained_in_bfloat16_from_the_first_step(
    create: Create, large_model: Path, computed: list[tuple[str, int]]
) -> None:
    run, noted = create(model=large_model), []
    assert train(run, at_step(1, lambda: noted.append(recorded(run)))).state == "completed"
    assert noted == ["bfloat16"]
    assert started(run) == [(0, "bfloat16")]
    assert computed == [("float16", 2)] + [("bfloat16", 2)] * STEPS
    (warning,) = events(run, "warning")
    wanted = "the longest rows, before the first step: loss or gradient is not finite in float16, which ends at 65,504"
    assert warning["message"].startswith(f"{wanted}; from step 1 on the run computes in bfloat16")
    lengths = {row["source"]: len(json.dumps(row["messages"])) for row in run.train_rows()}
    assert {lengths[row] for row in warning["rows"]} == set(sorted(lengths.values())[-2:])
    assert None not in events(run, "step", "train_loss")


def test_one_that_float16_holds_stays_there(create: Create, computed: list[tuple[str, int]]) -> None:
    """The rows are looked at once: not again when it goes on."""
    run = create()
    assert train(run, at_step(3, lambda: run.request("pause"))).state == "paused"
    assert train(run).state == "completed"
    assert started(run) == [(0, "float16"), (3, "float16")]
    assert computed == [("float16", 2)] * (1 + STEPS)
    assert events(run, "warning") == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes_compute_nothing_more(
    create: Create, monkeypatch: pytest.MonkeyPatch, computed: list[tuple[str, int]], dtype: str
) -> None:
    monkeypatch.setattr(device, "choose_kernels", lambda *_: Kernels("cpu", dtype, "dequantised"))
    run = create()
    assert train(run).state == "completed"
    assert computed == [(dtype, 2)] * STEPS


@pytest.mark.parametrize("compiled", [False, True])
def test_two_bases_are_never_in_memory_together(
    create: Create,
    large_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    compiled: bool,
) -> None:
    if compiled:
        request.getfixturevalue("compiling")
        kernels = Kernels("cpu", "float16", "kept", rounding=Rounding(32, 32, (64, 128)), compiled=True)
        monkeypatch.setattr(device, "choose_kernels", lambda *_: kernels)
    real, models, held = adapted_model.load_base, [], []

    def load_base(*given):
        held.append((mx.get_active_memory(), [model() for model in models]))
        models.append(weakref.ref(loaded := real(*given)))
        return loaded

    monkeypatch.setattr(adapted_model, "load_base", load_base)
    gc.collect()
    train(create(model=large_model, max_steps=1))
    (before, _), (after, old) = held
    assert old == [None]
    assert after - before < 100_000  # of 400,000


def test_validation_rows_that_overflow_are_found_before_the_first_step(
    create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where no row to train does: a validation that is not finite would never be the best."""
    real = training_steps.validation_losses

    def validation_losses(session: Any, some: Any) -> np.ndarray:
        return real(session, some) * (math.inf if session.kernels.dtype == "float16" else 1)

    monkeypatch.setattr(float16, "validation_losses", validation_losses)
    run = create()
    assert train(run).state == "completed"
    assert started(run) == [(0, "bfloat16")]
    assert None not in events(run, "eval", "val_loss")
    (warning,) = events(run, "warning")
    assert warning["message"].startswith("the longest validation rows, before the first step: ")
    assert all("valid.jsonl" in source for source in warning["rows"])


# While it trains --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 4, 6, STEPS])
def test_the_step_that_overflows_is_made_in_bfloat16_and_so_are_those_after_it(
    create: Create, overflow: Callable[..., None], step: int
) -> None:
    """To the byte what a run gets that was paused there and told to compute in bfloat16."""
    wanted, run = create("wanted"), create()
    assert train(wanted, at_step(step - 1, lambda: wanted.request("pause"))).state == "paused"
    environment = wanted.environment()
    environment["kernels"]["dtype"] = "bfloat16"
    (wanted.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    assert train(wanted).state == "completed"
    overflow({step})
    assert train(run).state == "completed"
    assert recorded(run) == "bfloat16"
    assert_same_training(run, wanted, STEPS)
    assert None not in events(run, "step", "train_loss")
    (warning,) = events(run, "warning")
    assert f"from step {step} on the run computes in bfloat16" in warning["message"]
    assert (warning["step"], len(warning["rows"])) == (step - 1, 2)


@pytest.mark.parametrize(("cut", "how"), [(2, "pause"), (5, "kill"), (6, "pause"), (8, "kill"), (9, "pause")])
def test_cut_before_or_after_it_ends_the_same(
    create: Create, overflow: Callable[..., None], whole: Run, cut: int, how: str
) -> None:
    overflow({7})
    run = create("cut")
    if how == "pause":
        assert train(run, at_step(cut, lambda: run.request("pause"))).state == "paused"
    else:
        with pytest.raises(Killed):
            train(run, at_step(cut, kill))
    assert recorded(run) == ("float16" if cut < 7 else "bfloat16")
    assert train(run).state == "completed"
    assert started(run)[-1][1] == "bfloat16"
    assert_same_training(run, whole, STEPS)


@pytest.mark.parametrize("place", ["save_if_new", "use_bfloat16"])
def test_killed_while_it_changes_it_ends_the_same(
    create: Create, overflow: Callable[..., None], whole: Run, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    overflow({7})
    run = create("cut")
    with monkeypatch.context() as patch:
        patch.setattr(loop, place, lambda *_: kill())
        with pytest.raises(Killed):
            train(run)
    assert checkpoint(run, 6).is_dir() == (place == "use_bfloat16")
    assert train(run).state == "completed"
    assert_same_training(run, whole, STEPS)


def test_what_is_not_finite_in_bfloat16_either_is_left_out(create: Create, overflow: Callable[..., None]) -> None:
    """As in every other run: the step is skipped, three in a row pause it."""
    overflow({5}, ("float16", "bfloat16"))
    run = create(save_every=1)
    assert train(run).state == "completed"
    assert [event["step"] for event in events(run, "step") if event["train_loss"] is None] == [5]
    assert trained_state(run, 5) == trained_state(run, 4)
    assert started(run) == [(0, "float16"), (4, "bfloat16")]
    overflow({2, 3, 4}, ("float16", "bfloat16"))
    run = create("three")
    with pytest.raises(TrainingError, match="3 steps in a row"):
        train(run)
    assert (run.state, run.status()["step"]) == ("paused", 4)


def test_answers_are_computed_as_it_was_trained(
    create: Create, overflow: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    overflow({2})
    run, real, used = create(), session.load_base, []
    train(run)
    monkeypatch.setattr(session, "load_base", lambda spec, kernels: used.append(kernels) or real(spec, kernels))
    session.load_for_answers(run)
    assert [kernels.dtype for kernels in used] == ["bfloat16"]
