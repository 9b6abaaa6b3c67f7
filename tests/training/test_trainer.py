"""Training as its run directory shows it: what is learnt, when it stops, and that a cut leaves no trace."""

import functools
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import (
    PLAIN,
    Killed,
    adapters_of,
    assert_same_training,
    at_step,
    checkpoint,
    create_run,
    difference,
    events,
    kill,
    load,
    row_losses,
    textbook_loss,
    train,
    trained_state,
    write_pair,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny import write_model, write_rows

from qlora_core.engine import device
from qlora_core.engine.model import load_adapters
from qlora_core.errors import MemoryShortError, RunError, TrainingError
from qlora_core.machine.memory import MemoryMonitor, MemorySample
from qlora_core.runs.kernel_choice import ARITHMETIC
from qlora_core.runs.run import Run
from qlora_core.tokens.dataset import make_dataset
from qlora_core.tokens.rows import TokenRow
from qlora_core.tokens.tokenizer import ChatTokenizer
from qlora_core.training import loop, steps

pytestmark = pytest.mark.usefixtures("float32_on_a_cpu")  # losses are compared with those of plain float32
STEPS = 6  # of a run on 12 rows with the harness's settings: 2 epochs of 3

Create = Callable[..., Run]


@pytest.fixture
def create(tmp_path: Path, tiny_model: Path) -> Create:
    """Make a run on 12 rows, with 3 to validate on; settings by name."""
    sources = write_pair(tmp_path / "data")

    def make(name: str = "run", **settings: Any) -> Run:
        return create_run(
            tmp_path / "runs", settings.pop("model", tiny_model), settings.pop("rows", sources), run=name, **settings
        )

    return make


def encoded(run: Run, model: Path, *, validation: bool = False) -> tuple[TokenRow, ...]:
    """A run's rows as tokens."""
    rows = run.validation_rows() if validation else run.train_rows()
    return make_dataset(rows, ChatTokenizer(model), run.config().data.max_seq_length).rows


def metadata(directory: Path) -> dict[str, str]:
    """What an adapter file says of itself."""
    with safe_open(directory / "adapters.safetensors", "numpy") as file:
        return file.metadata()


def add_rows(path: Path, *prompts: str, answer: str = "ab") -> None:
    """Append a question row for each prompt."""
    with path.open("a", encoding="utf-8") as file:
        for prompt in prompts:
            row = {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
            file.write(json.dumps(row) + "\n")


# What is trained ------------------------------------------------------------------------------------------------


def test_the_loss_falls(create: Create) -> None:
    run = create(epochs=5)
    assert train(run).state == run.state == "completed"
    losses = events(run, "step", "train_loss")
    assert losses[0] > 5  # about log(320): nothing is known yet
    assert losses[-1] < losses[0] / 4
    assert events(run, "eval", "val_loss")[-1] < losses[0] / 4


def test_every_row_is_trained_in_every_epoch(create: Create, tmp_path: Path, tiny_model: Path) -> None:
    run = create(rows=write_pair(tmp_path / "odd", train=13), batch_size=3, grad_accumulation_steps=2, epochs=2)
    train(run)
    rows = encoded(run, tiny_model)
    assert len(rows) == 13
    for epoch in (1, 2):
        steps = [event for event in events(run, "step") if event["epoch"] == epoch]
        assert [len(rows[:6]), len(rows[6:12]), len(rows[12:])] == [6, 6, 1]
        assert len(steps) == 3
        assert sum(event["tokens"] for event in steps) == sum(map(len, rows))
        assert sum(event["target_tokens"] for event in steps) == sum(row.target_tokens for row in rows)


def test_rows_that_are_padded_lie_beside_rows_of_their_length(create: Create, tiny_model: Path) -> None:
    run = create(packing=False, epochs=1)
    train(run)
    lengths = sorted(len(row) for row in encoded(run, tiny_model))
    wanted = [sum(lengths[i : i + 4]) for i in range(0, 12, 4)]
    assert sorted(events(run, "step", "tokens")) == wanted


@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_is_the_mean_over_target_tokens(
    create: Create, tmp_path: Path, tiny_model: Path, packing: bool
) -> None:
    """Not the mean of the rows' means, nor of the micro-batches' means."""
    run = create(
        rows=write_pair(tmp_path / "four", train=4), packing=packing, batch_size=1, grad_accumulation_steps=4, epochs=1
    )
    train(run)
    rows = encoded(run, tiny_model)
    base, _ = load(tiny_model, PLAIN)
    losses = [textbook_loss(base, [row]).item() for row in rows]
    targets = [row.target_tokens for row in rows]
    (found,) = events(run, "step", "train_loss")  # adapters change nothing before the first update
    assert found == pytest.approx(sum(losses) / sum(targets), rel=1e-5)
    of_means = sum(loss / count for loss, count in zip(losses, targets, strict=True)) / len(rows)
    assert found != pytest.approx(of_means, rel=1e-4)


def test_what_a_core_computes_at_once_changes_rounding_alone(
    create: Create, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and validation of a micro-batch, whole and in parts."""
    settings = {"rows": write_pair(tmp_path / "unequal", train=12), "batch_size": 6, "max_steps": 2, "save_every": 1}
    real, counted = steps._on_streams, []

    def counting(session: Any, shares: Any, compute: Any) -> Any:
        counted.append(sum(map(len, shares)))
        return real(session, shares, compute)

    def trained(name: str, tokens: int) -> tuple[int, list[float], np.ndarray]:
        monkeypatch.setattr(device, "CPU_TOKENS", tokens)
        counted.clear()
        run = create(name, **settings)
        train(run)
        return max(counted), events(run, "eval", "val_loss"), flat(checkpoint(run, 1) / "optimizer.safetensors")

    monkeypatch.setattr(steps, "_on_streams", counting)
    (few, losses, moments), (all_rows, wanted, whole) = trained("parts", 16), trained("whole", 10**6)
    assert few < all_rows == 6
    assert difference(moments, whole) < 1e-6
    assert losses == pytest.approx(wanted, rel=1e-6)
    assert losses


def test_short_rows_of_several_micro_batches_are_computed_together(
    create: Create, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as have the tokens of a long one, which fits; where they are padded they would take more."""
    sources = write_pair(tmp_path / "data", train=11)
    add_rows(sources / "train.jsonl", "long", answer="ab" * 60)
    settings = {"rows": sources, "batch_size": 1, "grad_accumulation_steps": 4, "epochs": 1}
    real, counted = steps._round_gradient, []

    def counting(session: Any, shares: Any) -> Any:
        counted.append([len(row) for share in shares for row in share])
        return real(session, shares)

    monkeypatch.setattr(steps, "_round_gradient", counting)
    run = create(**settings)
    train(run)
    longest = max(map(max, counted))
    assert 4 <= len(counted) < 9  # of three steps
    assert all(sum(lengths) <= longest for lengths in counted)
    counted.clear()
    padded = create("padded", packing=False, **settings)
    train(padded)
    assert [len(lengths) for lengths in counted] == [1] * 12
    assert events(run, "step", "target_tokens") != []


def test_the_average_of_an_epoch_weighs_tokens(create: Create) -> None:
    run = create()
    train(run, at_step(5, lambda: run.request("pause")))
    train(run)  # the average of a cut epoch is that of all of it
    for average, epoch in zip(events(run, "epoch", "avg_loss"), (1, 2), strict=True):
        steps = [event for event in events(run, "step") if event["epoch"] == epoch]
        total = sum(event["train_loss"] * event["target_tokens"] for event in steps)
        assert average == pytest.approx(total / sum(event["target_tokens"] for event in steps), rel=1e-9)


@pytest.mark.parametrize(("packing", "rows"), [(True, 12), (False, 4)])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 4), (2, 2)])
def test_accumulating_is_a_larger_batch(
    create: Create, tmp_path: Path, packing: bool, rows: int, batch_size: int, accumulation: int
) -> None:
    """Rows are of unequal length. Padding sorts rows by length, so its steps hold the same rows only if all do."""
    sources = write_pair(tmp_path / "unequal", train=rows)
    settings = {"rows": sources, "packing": packing, "max_steps": 2, "save_every": 1}
    whole, parts = (
        create(name, batch_size=size, grad_accumulation_steps=count, **settings)
        for name, size, count in (("whole", 4, 1), ("parts", batch_size, accumulation))
    )
    for run in (whole, parts):
        train(run)
    # Adam's first moment is the gradient, its second the square; what Adam makes of a gradient near 0 is its sign
    for step, file, tolerance in (
        (1, "optimizer.safetensors", 1e-6),
        (1, "adapters.safetensors", 1e-4),
        (2, "optimizer.safetensors", 1e-4),
        (2, "adapters.safetensors", 1e-4),
    ):
        found, wanted = (flat(checkpoint(run, step) / file) for run in (parts, whole))
        assert difference(found, wanted) < tolerance, (step, file)
    assert events(parts, "step", "tokens") == events(whole, "step", "tokens")
    assert events(parts, "step", "grad_norm") == pytest.approx(events(whole, "step", "grad_norm"), rel=1e-6)


def flat(file: Path) -> np.ndarray:
    """All tensors of a file end to end."""
    return np.concatenate([value.ravel() for _, value in sorted(load_file(file).items()) if value.dtype == np.float32])


# The optimizer --------------------------------------------------------------------------------------------------


def first_moment(run: Run, step: int) -> float:
    """Norm of Adam's first moment; after one step it is a tenth of the gradient that was applied."""
    state = load_file(checkpoint(run, step) / "optimizer.safetensors")
    parts = [value.ravel() for name, value in state.items() if name.rpartition(".")[2] == "m"]
    return float(np.linalg.norm(np.concatenate(parts).astype(np.float64)))


@pytest.mark.parametrize(("limit", "clipped"), [(0.01, True), (1000.0, False), (0.0, False)])
def test_gradients_are_scaled_down_to_the_limit(create: Create, limit: float, clipped: bool) -> None:
    run = create(max_grad_norm=limit, max_steps=1)
    train(run)
    (norm,) = events(run, "step", "grad_norm")
    assert norm > 1  # told as it was before clipping
    assert first_moment(run, 1) == pytest.approx(0.1 * (limit if clipped else norm), rel=1e-4)


@pytest.mark.parametrize(("optimizer", "decay"), [("adamw", 0.0), ("adamw", 0.5), ("adam", 0.5)])
def test_the_first_update_by_hand(create: Create, tiny_model: Path, optimizer: str, decay: float) -> None:
    """Adam moves by the learning rate at first, its moments corrected; AdamW also shrinks what it finds."""
    run = create(optimizer=optimizer, weight_decay=decay, learning_rate=1e-3, max_steps=1)
    train(run)
    before = adapters_of(load(tiny_model, lora=run.config().lora, seed=run.config().train.seed)[0])
    after = load_file(checkpoint(run, 1) / "adapters.safetensors")
    shrink = 1 - 1e-3 * (decay if optimizer == "adamw" else 0.0)
    for name, value in after.items():
        if name.endswith("lora_a"):  # without a gradient while B is 0
            np.testing.assert_allclose(value, before[name] * shrink, rtol=1e-6)
        else:
            assert np.median(np.abs(value)) == pytest.approx(1e-3, rel=1e-3)


def test_lora_plus_moves_b_faster(create: Create) -> None:
    plain, plus = create("plain", max_steps=1), create("plus", max_steps=1, lora_plus=4.0)
    train(plain)
    train(plus)
    slow, fast = (load_file(checkpoint(run, 1) / "adapters.safetensors") for run in (plain, plus))
    for name, value in slow.items():
        np.testing.assert_allclose(fast[name], value * (4 if name.endswith("lora_b") else 1), rtol=1e-5)
    assert events(plus, "step", "learning_rate") == events(plain, "step", "learning_rate")


def test_the_rate_of_each_step_is_told(create: Create) -> None:
    run = create(schedule="linear", warmup_steps=2, learning_rate=0.01)
    train(run)
    assert events(run, "step", "learning_rate") == pytest.approx([0.005, 0.01, 0.008, 0.006, 0.004, 0.002])


# Cut and resumed ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.3},
    "padded": {"packing": False, "dropout": 0.3},
    "accumulated": {"batch_size": 2, "grad_accumulation_steps": 2, "dropout": 0.3},
    "recomputed": {"grad_checkpoint": True, "dropout": 0.3},
    "evaluated": {"eval_every": 1, "save_every": 2, "dropout": 0.3, "optimizer": "adam"},
    "saved": {"save_every": 2, "dropout": 0.3},
    "dora": {"adapter": "dora", "dropout": 0.3},
    "lora_plus": {"lora_plus": 4.0, "rslora": True},
    "upper": {"num_layers": 1, "dropout": 0.3},
    "upper_padded": {"num_layers": 1, "packing": False},
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Callable[[str], Run]:
    """The run of a variant that nobody cut, trained when it is first asked for."""
    root = tmp_path_factory.mktemp("uninterrupted")
    sources = write_pair(root / "data")

    @functools.cache
    def run(variant: str) -> Run:
        made = create_run(root, tiny_model, sources, run=variant, **VARIANTS[variant])
        assert train(made).state == "completed"
        return made

    return run


@pytest.mark.parametrize(
    ("variant", "cuts"),
    [
        ("plain", (1,)),
        ("plain", (2,)),
        ("plain", (3,)),  # the end of an epoch
        ("plain", (4,)),
        ("plain", (5,)),
        ("plain", (1, 2, 3, 4, 5)),
        *((variant, (2, 4)) for variant in VARIANTS if variant != "plain"),
    ],
)
def test_cut_and_resumed_is_uninterrupted_to_the_byte(
    create: Create, uninterrupted: Callable[[str], Run], variant: str, cuts: tuple[int, ...]
) -> None:
    cut = create(**VARIANTS[variant])
    for step in cuts:
        outcome = train(cut, at_step(step, lambda: cut.request("pause")))
        assert outcome.state == cut.state == "paused"
        assert (cut.status()["step"], outcome.by_ctrl_c) == (step, False)
        assert not cut.final.exists()
    assert train(cut).state == "completed"
    assert_same_training(cut, uninterrupted(variant), STEPS)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_pause_cuts_a_validation_short_and_it_is_made_again(create: Create, steps: int) -> None:
    cut = create("cut", batch_size=1, grad_accumulation_steps=4)

    def pause(event: dict[str, Any]) -> None:
        if event["type"] == "working" and event["stage"] == "validation" and len(events(cut, "step")) == steps:
            cut.request("pause")

    assert train(cut, pause).state == cut.state == "paused"
    assert (cut.status()["step"], events(cut, "eval"), len(events(cut, "before"))) == (steps, [], steps > 0)
    assert train(cut).state == "completed"
    whole = create("whole", batch_size=1, grad_accumulation_steps=4)
    train(whole)
    assert_same_training(cut, whole, STEPS)


@pytest.mark.parametrize("stage", ["samples", "evaluation"])
def test_a_pause_is_heard_while_it_answers(create: Create, stage: str) -> None:
    cut, asked = create(max_answer_tokens=4), list[str]()

    def pause(event: dict[str, Any]) -> None:
        if event["type"] == "working" and event["stage"] == stage and not asked:
            asked.append(stage)
            cut.request("pause")

    assert train(cut, pause).state == cut.state == "paused"
    assert cut.evaluation() is None
    assert train(cut).state == "completed"
    assert cut.evaluation() is not None


@pytest.mark.parametrize(("stage", "steps"), [("validation", 0), ("validation", 3), ("samples", 1), ("evaluation", 6)])
def test_what_is_skipped_is_left_out_and_training_goes_on(create: Create, stage: str, steps: int) -> None:
    run, asked = create(max_answer_tokens=4, batch_size=1, grad_accumulation_steps=4), list[str]()

    def skip(event: dict[str, Any]) -> None:
        here = event["type"] == "working" and event["stage"] == stage and len(events(run, "step")) == steps
        if here and not asked:
            asked.append(stage)
            run.request("skip")

    assert train(run, skip).state == run.state == "completed"
    assert [event["stage"] for event in events(run, "skipped")] == [stage]
    assert run.control() == "run"  # it was for one thing
    validated = {0, 3, 6} - ({steps} if stage == "validation" else set())
    assert {*events(run, "before", "step"), *events(run, "eval", "step")} == validated
    assert row_losses(run).keys() == validated
    assert (run.summary()["val_loss_before"] is None) == (0 not in validated)
    assert len(events(run, "samples")) == (2 if stage == "samples" else 3)
    assert (run.evaluation() is None) == (stage == "evaluation")
    assert ("skipped" in run.status()["message"]) == (stage == "evaluation")
    assert run.summary()["steps"] == run.status()["total_steps"]


def test_stop_in_the_final_test_skips_it_and_an_earlier_one_does_not(create: Create) -> None:
    late, early = create("late", max_answer_tokens=4), create("early", max_answer_tokens=4)

    def stop(event: dict[str, Any]) -> None:
        if event["type"] == "working" and event["stage"] == "evaluation":
            late.request("stop")

    assert train(late, stop).state == "completed"
    assert late.evaluation() is None
    last = early.config().train.total_steps(len(early.train_rows()))
    assert train(early, at_step(last, lambda: early.request("stop"))).state == "completed"
    assert early.evaluation() is not None


def test_ctrl_c_in_the_test_of_a_stopped_run_skips_it(create: Create) -> None:
    run, asked = create(max_answer_tokens=4), list[str]()

    def interrupt(event: dict[str, Any]) -> None:
        if event["type"] == "step" and event["step"] == 2:
            run.request("stop")
        if event["type"] == "working" and event["stage"] == "evaluation" and not asked:
            asked.append("once")
            signal.raise_signal(signal.SIGINT)

    assert train(run, interrupt).state == run.state == "stopped"
    assert run.evaluation() is None
    assert run.final.is_dir()


@pytest.mark.parametrize("step", [1, 4, 5])
def test_killed_between_checkpoints_it_goes_on_from_the_last(
    create: Create, uninterrupted: Callable[[str], Run], step: int
) -> None:
    killed = create(**VARIANTS["saved"])
    with pytest.raises(Killed):
        train(killed, at_step(step, kill))
    assert killed.state == "crashed"
    assert train(killed).state == "completed"
    assert events(killed, "start", "step")[-1] == (step - 1) // 2 * 2
    assert_same_training(killed, uninterrupted("saved"), STEPS)


def test_a_higher_limit_goes_on_from_where_it_ended(create: Create) -> None:
    settings = {"schedule": "constant", "save_every": 1}
    whole, longer = create("whole", max_steps=5, **settings), create("longer", max_steps=2, **settings)
    train(whole)
    train(longer)
    assert longer.state == "completed"
    assert events(longer, "step", "step") == [1, 2]
    create("longer", max_steps=5, **settings)
    assert train(longer).state == "completed"
    assert events(longer, "step", "step") == [1, 2, 3, 4, 5]
    assert trained_state(longer, 5) == trained_state(whole, 5)


def test_a_resumed_run_computes_as_it_did(create: Create) -> None:
    """Another choice (less memory is free today, say) would change the last bits."""
    run = create()
    train(run, at_step(1, lambda: run.request("pause")))
    environment = run.environment()
    assert environment["kernels"] == events(run, "start", "kernels")[0]
    environment["kernels"] |= {"linear": "dequantised", "streams": 1}
    (run.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    train(run)
    assert events(run, "start", "kernels")[-1] == environment["kernels"]
    assert events(run, "warning") == []


def test_a_run_of_another_machine_goes_on_with_a_warning(create: Create) -> None:
    run = create()
    train(run, at_step(1, lambda: run.request("pause")))
    environment = run.environment()
    environment["kernels"] |= {"blas": "another"}
    (run.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    assert train(run).state == "completed"
    (message,) = events(run, "warning", "message")
    assert "another" in message
    assert "not equal to the bit" in message


@pytest.mark.parametrize(("arithmetic", "whose"), [(None, "an older"), (ARITHMETIC + 1, "a newer")])
def test_a_run_of_another_version_goes_on_with_one_warning(create: Create, arithmetic: int | None, whose: str) -> None:
    """None: runs recorded none before there was a second."""
    run = create()
    train(run, at_step(1, lambda: run.request("pause")))
    environment = run.environment()
    assert environment["kernels"].pop("arithmetic") == ARITHMETIC
    environment["kernels"] |= {"linear": "dequantised"}
    if arithmetic:
        environment["kernels"]["arithmetic"] = arithmetic
    (run.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    train(run, at_step(2, lambda: run.request("pause")))
    assert run.environment()["kernels"] == environment["kernels"] | {"arithmetic": ARITHMETIC}
    assert train(run).state == "completed"
    (message,) = events(run, "warning", "message")
    assert f"{whose} version" in message
    assert "not equal to the bit" in message


def with_environment(run: Run, **changes: Any) -> None:
    """Write what a run records; None leaves an entry out."""
    merged = {**run.environment(), **changes}
    kept = {name: value for name, value in merged.items() if value is not None}
    (run.path / "environment.json").write_text(json.dumps(kept), encoding="utf-8")


def test_a_run_that_recorded_no_tokens_goes_on_with_one_warning(create: Create) -> None:
    """As those of the version before."""
    run = create()
    train(run, at_step(1, lambda: run.request("pause")))
    recorded = run.environment()["rows"]
    with_environment(run, rows=None)
    train(run, at_step(2, lambda: run.request("pause")))
    assert run.environment()["rows"] == recorded
    assert train(run).state == "completed"
    (message,) = events(run, "warning", "message")
    assert message.startswith("the run was begun by an older version, which made other tokens of some conversations")


def test_a_run_that_trained_another_number_of_rows_is_refused(create: Create) -> None:
    run = create()
    train(run, at_step(1, lambda: run.request("pause")))
    with_environment(run, rows=None)
    path = run.path / "metrics.jsonl"
    count = events(run, "start", "train_rows")[-1]
    path.write_text(
        path.read_text(encoding="utf-8").replace(f'"train_rows": {count}', '"train_rows": 3'), encoding="utf-8"
    )
    with pytest.raises(
        RunError, match=rf"an older version, which trained 3 rows where this one trains {count}: .*--fresh"
    ):
        train(run)


def test_a_run_whose_rows_are_other_tokens_now_is_refused(create: Create) -> None:
    run = create()
    train(run, at_step(1, lambda: run.request("pause")))
    with_environment(run, rows={"tokens": "0" * 64, "thinks": None})
    with pytest.raises(RunError, match=r"makes other tokens of its rows than the one it began with.*--fresh"):
        train(run)


def test_a_base_that_changed_is_refused(create: Create, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    run = create(model=model)
    train(run, at_step(1, lambda: run.request("pause")))
    write_model(model, seed=1)
    with pytest.raises(RunError, match="its model changed since the run began"):
        train(run)
    assert run.state == "failed"


# Ending ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_steps", [1, 3, 4])
def test_max_steps_ends_a_run(create: Create, max_steps: int) -> None:
    run = create(max_steps=max_steps)
    assert train(run).state == run.state == "completed"
    assert events(run, "step", "step") == list(range(1, max_steps + 1))
    assert events(run, "eval", "step")[-1] == max_steps
    assert metadata(run.final)["step"] == str(max_steps)
    assert run.summary()["steps"] == max_steps


def test_stop_means_use_what_there_is(create: Create) -> None:
    run = create()
    assert train(run, at_step(2, lambda: run.request("stop"))).state == run.state == "stopped"
    assert metadata(run.final)["step"] == "2"
    np.testing.assert_array_equal(*(flat(path / "adapters.safetensors") for path in (run.final, checkpoint(run, 2))))
    assert run.evaluation() is not None


def test_ctrl_c_finishes_the_step_and_pauses(create: Create) -> None:
    run = create()
    before = signal.getsignal(signal.SIGINT)
    told: list[str] = []
    interrupt = at_step(2, lambda: signal.raise_signal(signal.SIGINT))
    outcome = train(run, interrupt, lambda event: told.append(event["type"]))
    assert (outcome.state, outcome.by_ctrl_c) == ("paused", True)
    assert told.count("asked") == 1
    assert told.index("asked") < told.index("checkpoint")  # it is said before the step is over
    assert run.state == "paused"
    assert checkpoint(run, 2).is_dir()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_ends_at_once(create: Create) -> None:
    run = create(save_every=1)

    def twice() -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    outcome = train(run, at_step(2, twice))
    assert (outcome.state, outcome.by_ctrl_c, outcome.at_once) == ("paused", True, True)
    assert run.state == "paused"
    assert checkpoint(run, 1).is_dir()
    assert not checkpoint(run, 2).exists()


@pytest.fixture
def contrary(tmp_path: Path) -> Path:
    """Rows to validate on that get worse with all that is learnt from those to train."""
    sources = write_pair(tmp_path / "contrary")
    (sources / "valid.jsonl").write_text("", encoding="utf-8")
    add_rows(sources / "valid.jsonl", "0?", "1?", answer="XYXYXY")
    return sources


def test_patience_ends_a_run_that_gets_no_better(create: Create, contrary: Path) -> None:
    run = create(rows=contrary, epochs=10, patience=2)
    assert train(run).state == "completed"
    losses = events(run, "eval", "val_loss")
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 10
    assert run.status()["step"] == len(losses) * 3
    assert "no better validation loss in 2 validations" in events(run, "warning", "message")[0]


def test_without_patience_it_goes_on(create: Create, contrary: Path) -> None:
    run = create(rows=contrary, epochs=5)
    train(run)
    losses = events(run, "eval", "val_loss")
    assert len(losses) == 5
    assert losses.index(min(losses)) < 3  # patience would have ended it


# Validation and the best adapters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False])
def test_validation_is_the_textbook_loss_of_the_adapters(create: Create, tiny_model: Path, packing: bool) -> None:
    """Over all validation rows, without dropout."""
    run = create(dropout=0.5, eval_every=1, save_every=1, packing=packing, batch_size=2, max_steps=3)
    train(run)
    rows = encoded(run, tiny_model, validation=True)
    model, _ = load(tiny_model, PLAIN, lora=run.config().lora)
    model.eval()
    for event in events(run, "eval"):
        load_adapters(model, checkpoint(run, event["step"]) / "adapters.safetensors")
        wanted = textbook_loss(model, rows).item() / sum(row.target_tokens for row in rows)
        assert event["val_loss"] == pytest.approx(wanted, rel=1e-5)
        assert event["perplexity"] == pytest.approx(math.exp(wanted), rel=1e-4)
        each = [textbook_loss(model, [row]).item() for row in rows]
        assert row_losses(run)[event["step"]] == pytest.approx(each, rel=1e-4)


def test_before_the_first_step_it_is_the_base_that_is_validated_and_training_is_not_affected(
    create: Create, tiny_model: Path
) -> None:
    run, rows = create(eval_every=2), list[TokenRow]()
    train(run)
    rows = encoded(run, tiny_model, validation=True)
    base, _ = load(tiny_model, PLAIN)
    wanted = textbook_loss(base.eval(), rows).item() / sum(row.target_tokens for row in rows)
    assert run.loss_before == run.summary()["val_loss_before"] == pytest.approx(wanted, rel=1e-5)
    assert events(run, "before", "step") == [0]
    assert row_losses(run).keys() == {0, *events(run, "eval", "step")}
    assert run.summary()["best_step"] > 0


def test_without_the_validation_before_it_training_is_the_same(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it, without = create("with", dropout=0.5), create("without", dropout=0.5)
    train(with_it)
    monkeypatch.setattr(loop, "_validate_before", lambda *_: None)
    train(without)
    assert without.loss_before is None
    assert trained_state(without, STEPS) == trained_state(with_it, STEPS)
    assert events(without, "eval", "val_loss") == events(with_it, "eval", "val_loss")


def test_how_sure_the_best_is_stands_in_the_evaluation(create: Create) -> None:
    """Of three validation rows nobody can say."""
    run = create(eval_every=2)
    train(run)
    found = run.evaluation()["best"]
    assert found["step"] == run.summary()["best_step"]
    assert found["loss"]["value"] == pytest.approx(run.summary()["best_val_loss"], abs=1e-5)
    assert sorted([*found["alike"], found["step"]]) == events(run, "eval", "step")
    assert found["gained"]["value"] == pytest.approx(run.loss_before - run.summary()["best_val_loss"], abs=1e-5)
    assert "3 validation rows cannot tell one step from another" in found["sentence"]


def test_losses_that_cannot_be_kept_do_not_end_a_run(create: Create) -> None:
    run = create()
    (run.path / "row_losses.jsonl").mkdir()
    assert train(run).state == "completed"
    assert any("row_losses.jsonl" in message for message in events(run, "warning", "message"))
    assert run.evaluation()["best"] is None


def test_validation_is_the_same_every_time(create: Create) -> None:
    """With next to no learning the model stays as it is; the training around it must not show."""
    run = create(learning_rate=1e-30, dropout=0.5, eval_every=1)
    train(run)
    losses = events(run, "eval", "val_loss")
    assert len(losses) == STEPS
    assert set(losses) == {losses[0]}


def test_best_is_the_lowest_validation(create: Create) -> None:
    run = create(epochs=5, learning_rate=0.5, schedule="constant", save_every=1, eval_every=1, keep_checkpoints=100)
    train(run)
    evaluations = events(run, "eval")
    best = min(evaluations, key=lambda event: event["val_loss"])
    assert best["step"] < evaluations[-1]["step"]  # otherwise the last would do
    assert run.status()["best_step"] == run.summary()["best_step"] == best["step"]
    assert run.status()["best_val_loss"] == best["val_loss"]
    assert metadata(run.best).items() >= {"step": str(best["step"]), "val_loss": f"{best['val_loss']:.6f}"}.items()
    for directory, step in ((run.best, best["step"]), (run.final, evaluations[-1]["step"])):
        wanted = load_file(checkpoint(run, step) / "adapters.safetensors")
        found = load_file(directory / "adapters.safetensors")
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)
    assert run.adapters == run.best


def test_a_validation_that_is_not_finite_is_never_the_best(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, math.nan, 2.0, math.inf])
    monkeypatch.setattr(
        loop, "validate_model", lambda session: next(losses) * session.val_rows.target_lengths.astype(float)
    )
    run = create(epochs=3)
    train(run)
    assert events(run, "eval", "val_loss") == [None, 2.0, None]
    assert row_losses(run).keys() == {0, events(run, "eval", "step")[1]}
    assert events(run, "eval", "best") == [False, True, False]
    assert run.summary()["best_val_loss"] == 2.0


def test_without_validation_rows_the_final_adapters_are_used(create: Create, tiny_rows: Path) -> None:
    run = create(rows=tiny_rows, val_fraction=0.0)
    assert train(run).state == "completed"
    assert events(run, "eval") == []
    assert run.adapters == run.final


# Trouble --------------------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A model that knows every letter but Z, whose embedding is not a number."""
    path = write_model(tmp_path / "poisoned", "mistral")
    weights = load_file(path / "model.safetensors")
    (token,) = set(ChatTokenizer(path).encode_prompt("Z")) - set(ChatTokenizer(path).encode_prompt("0"))
    weights["model.embed_tokens.weight"][token] = np.nan
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def test_a_loss_that_is_not_finite_leaves_everything_as_it_was(create: Create, tmp_path: Path, poisoned: Path) -> None:
    sources = write_pair(tmp_path / "one")
    add_rows(sources / "train.jsonl", "Z")
    run = create(model=poisoned, rows=sources, quantize="none", save_every=1, keep_checkpoints=100)
    assert train(run).state == "completed"
    steps = events(run, "step")
    bad = [event["step"] for event in steps if event["train_loss"] is None]
    assert len(bad) == 2  # once an epoch
    assert all(math.isfinite(event["train_loss"]) for event in steps if event["step"] not in bad)
    assert max(bad) > 1
    for step in bad:
        if step > 1:
            assert trained_state(run, step) == trained_state(run, step - 1)
    warnings = events(run, "warning")
    assert [event["step"] for event in warnings] == bad
    assert all(any(source.endswith("train.jsonl:13") for source in event["rows"]) for event in warnings)


def test_three_steps_that_are_not_finite_end_it(create: Create, tmp_path: Path, poisoned: Path) -> None:
    sources = write_pair(tmp_path / "all")
    (sources / "train.jsonl").write_text("", encoding="utf-8")
    add_rows(sources / "train.jsonl", *(f"Z{i}" for i in range(20)))
    run = create(model=poisoned, rows=sources, quantize="none", save_every=1)
    with pytest.raises(TrainingError, match=r"not finite 3 steps in a row, last on .*train\.jsonl:\d+"):
        train(run)
    assert run.state == "paused"
    assert "not finite" in run.status()["message"]
    weights = load_file(checkpoint(run, 2) / "adapters.safetensors")
    assert all(not value.any() for name, value in weights.items() if name.endswith("lora_b"))


class Shortage(MemoryMonitor):
    """A machine with little memory left."""

    def sample(self) -> MemorySample:
        return MemorySample(available=1_000_000, process=0, process_peak=0)


def test_a_run_that_does_not_fit_is_refused_before_anything_is_loaded(create: Create, monkeypatch) -> None:
    run = create()
    monkeypatch.setattr(
        "qlora_core.training.adapted_model.load_base", lambda *_: pytest.fail("the weights were loaded")
    )
    with pytest.raises(MemoryShortError, match="not enough memory"):
        train(run, monitor=Shortage())
    assert run.state == "failed"
    assert "not enough memory" in run.status()["message"]


def test_memory_is_reported_at_the_start_of_each_epoch(create: Create) -> None:
    run = create()
    train(run)
    assert events(run, "memory", "label") == ["Epoch 1 start", "Epoch 2 start"]
    for event in events(run, "memory"):
        assert event["available"] > event["active"] > 0
        assert event["process_peak"] >= event["peak"] > 0


def test_a_model_that_cannot_be_packed_says_so_and_learns(create: Create, tmp_path: Path) -> None:
    run = create(model=write_model(tmp_path / "gemma2", "gemma2"), epochs=4)
    assert train(run).state == "completed"
    assert events(run, "start", "layout") == ["whole"]
    assert "cannot be packed" in events(run, "warning", "message")[0]
    losses = events(run, "step", "train_loss")
    assert losses[-1] < losses[0] / 2


def test_rows_file_is_what_was_prepared(create: Create, tiny_rows: Path) -> None:
    """A run trains on its own copy: what becomes of the source later does not count."""
    run = create(rows=tiny_rows)
    write_rows(tiny_rows, 3)
    train(run)
    assert events(run, "start", "train_rows")[0] + events(run, "start", "val_rows")[0] == 12
