"""The beginning that rows share: found, laid once, and seen by each row as if it were its own."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import (
    FAST,
    assert_same,
    assert_same_training,
    at_step,
    create_run,
    events,
    load,
    loss_and_gradients,
    losses_by_row,
    random_rows,
    read_jsonl,
    set_adapters,
    textbook_loss,
    train,
    write_pair,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_families import LAYOUTS
from tiny import write_model

from qlora_core.config import LoraConfig
from qlora_core.engine import device
from qlora_core.engine.attention import BinnedRows, Positions, SlicedRows
from qlora_core.engine.device import mx
from qlora_core.engine.model import batch_loss, can_share_prefix, choose_layout, use_grad_checkpoint
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.runs.run import Run
from qlora_core.tokens import shared_prefix as prefix_module
from qlora_core.tokens.batching import AS_IT_IS, SHARED, Batch, Rounding, make_batch
from qlora_core.tokens.rows import TokenRow
from qlora_core.tokens.shared_prefix import NO_PREFIX, SHORTEST, begins_with, common_prefix
from qlora_core.training import batcher, steps

LORA = LoraConfig(rank=4)
VOCABULARY = 320
BINS = Rounding(32, 32, (64, 128))


def row(ids: Sequence[int], first_trained: int) -> TokenRow:
    """A row that is trained from one token on."""
    return TokenRow(np.array(ids, np.int32), np.arange(len(ids)) >= first_trained)


def sharing_rows(beginning: int = 21, rests: Sequence[int] = (7, 30, 3, 12), alone: Sequence[int] = (9, 25)) -> Any:
    """Rows with one beginning and rows without, in turn; and the beginning."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, VOCABULARY, beginning).astype(np.int32)
    made = [
        TokenRow(np.concatenate([ids, one.ids]), np.concatenate([np.zeros(beginning, bool), one.trained]))
        for one in random_rows(*rests)
    ]
    rows = random_rows(*alone, seed=5)
    for number, one in enumerate(made):
        rows.insert(2 * number, one)
    return rows, ids


# Finding it -------------------------------------------------------------------------------------------------------


def test_the_beginning_is_what_most_rows_have() -> None:
    system = list(range(100, 120))
    rows = [row([*system, 1, i, 7, 8], 22) for i in range(5)] + [row([i] * 30, 5) for i in range(4)]
    assert common_prefix(rows).tolist() == [*system, 1]
    assert common_prefix(rows).dtype == np.int32


def test_no_row_is_trained_on_the_beginning_nor_right_after_it() -> None:
    same = list(range(60))
    rows = [row(same, 50), row(same, 22), row(same, 55)]
    assert len(common_prefix(rows)) == 49  # the first and the third save more than all three could
    assert [begins_with(one, common_prefix(rows)) for one in rows] == [True, False, True]
    assert len(common_prefix([*rows, row(same, 22), row(same, 22)])) == 21


def test_what_is_short_or_had_by_one_row_is_not_shared() -> None:
    short = [row([*range(SHORTEST - 1), i, 3, 4], SHORTEST + 1) for i in range(50, 60)]
    assert common_prefix(short).tolist() == []
    assert common_prefix([row(range(40), 30)]).tolist() == []
    assert common_prefix([]).tolist() == []


def test_many_rows_are_looked_at_from_end_to_end() -> None:
    rows = [row([*range(30), i, 3, 4], 31) for i in range(5_000)]
    rows[:50] = [row([i] * 40, 30) for i in range(50)]
    assert common_prefix(rows).tolist() == list(range(30))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=8), st.integers(1, 8)), max_size=8))
def test_nothing_saves_more(drawn: list[tuple[list[int], int]]) -> None:
    rows = [row(ids, first) for ids, first in drawn]

    def saved(prefix: np.ndarray) -> int:
        return len(prefix) * (sum(begins_with(one, prefix) for one in rows) - 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_module, "SHORTEST", 1)
        found = common_prefix(rows)
    every = [one.ids[:size] for one in rows for size in range(1, len(one) + 1)]
    assert saved(found) == max([saved(prefix) for prefix in every if saved(prefix) > 0], default=0)


# Laying it --------------------------------------------------------------------------------------------------------


def test_end_to_end_it_lies_once_after_the_rows_without_it() -> None:
    rows = [row([1, 2, 3, 4, 5], 4), row([8, 9], 1), row([1, 2, 3, 6], 3), row([1, 2, 3, 7, 7, 7], 4)]
    batch = make_batch(rows, packed=True, prefix=np.array([1, 2, 3], np.int32))
    # the third is trained right after it
    assert batch.ids.tolist() == [[8, 9, 1, 2, 3, 6, 1, 2, 3, 4, 5, 7, 7, 7]]
    assert batch.position.tolist() == [[0, 1, 0, 1, 2, 3, 0, 1, 2, 3, 4, 3, 4, 5]]
    assert (batch.lengths, batch.prefix) == ((2, 4, 3, 2, 3), 2)
    assert [(int(batch.ids[0, s]), int(t)) for s, t in zip(batch.source, batch.target, strict=True)] == [
        (8, 9), (3, 6), (4, 5), (7, 7), (7, 7),
    ]  # fmt: skip


def test_in_bins_it_lies_once_in_each() -> None:
    rows, ids = sharing_rows()
    batch = make_batch(rows, packed=True, rounding=BINS, prefix=ids)
    assert batch.ids.shape[1] in BINS.bins
    for line, of, position in zip(batch.ids, batch.row, batch.position, strict=True):
        shared = of == SHARED
        if shared.any():
            assert line[shared].tolist() == ids.tolist()
            assert position[shared].tolist() == list(range(len(ids)))
        for number in np.unique(of[of >= 0]):
            mine, whole = of == number, rows[number]
            offset = len(ids) if begins_with(whole, ids) else 0
            assert line[mine].tolist() == whole.ids[offset:].tolist()
            assert position[mine].tolist() == list(range(offset, len(whole)))
            if offset:
                assert np.flatnonzero(shared)[-1] < np.flatnonzero(mine)[0]
            else:
                assert not shared.any() or np.flatnonzero(mine)[-1] < np.flatnonzero(shared)[0]
    pairs = sorted(
        (int(ids_), int(t))
        for ids_, t, w in zip(batch.ids.ravel()[batch.source], batch.target, batch.weight, strict=True)
        if w
    )
    assert pairs == sorted((int(r.ids[i - 1]), int(r.ids[i])) for r in rows for i in np.flatnonzero(r.trained))


@pytest.mark.parametrize("rounding", [AS_IT_IS, BINS, Rounding(32, 32)])
def test_a_batch_that_would_not_be_smaller_shares_nothing(rounding: Rounding) -> None:
    rows, ids = sharing_rows(rests=(7,))
    for given_rows, prefix in ((rows, ids), (sharing_rows()[0], NO_PREFIX)):
        batch = make_batch(given_rows, packed=True, rounding=rounding, prefix=prefix)
        assert batch.position is None
        assert batch.prefix is None
        assert batch.ids.tolist() == make_batch(given_rows, packed=True, rounding=rounding).ids.tolist()


def test_states_go_with_the_tokens() -> None:
    rows, ids = sharing_rows()
    rows = [
        TokenRow(r.ids, r.trained, states=np.random.default_rng(len(r)).random((len(r), 2), np.float32)) for r in rows
    ]
    batch = make_batch(rows, packed=True, prefix=ids)
    first = rows[0]
    start = int(batch.starts[batch.prefix])
    assert np.array_equal(batch.states[0, start : start + len(ids)], first.states[: len(ids)])
    assert np.array_equal(batch.states[0, start + len(ids) :][: len(first) - len(ids)], first.states[len(ids) :])


# Computing with it ------------------------------------------------------------------------------------------------

WAYS = {"end to end": AS_IT_IS, "in bins": BINS}
SCALED: dict[str, dict[str, Any]] = {
    "llama3": {"factor": 8.0, "original_max_position_embeddings": 32},
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family, layout in LAYOUTS.items() if layout == "packed"},
    "window": ("gemma3_text", {"sliding_window": 40}),
    **{name: ("llama", {"rope_scaling": {"rope_type": name, **scaling}}) for name, scaling in SCALED.items()},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_rows_that_share_have_the_loss_and_the_gradients_of_each_alone(tmp_path: Path, name: str, way: str) -> None:
    family, changes = MODELS[name]
    model, _ = load(write_model(tmp_path / "model", family, **changes), lora=LORA)
    set_adapters(model)
    rows, ids = sharing_rows()
    wanted = loss_and_gradients(model, lambda model: textbook_loss(model, rows))
    batch = make_batch(rows, packed=True, rounding=WAYS[way], prefix=ids)
    assert batch.position is not None
    assert_same(loss_and_gradients(model, lambda model: batch_loss(model, batch, "packed")), wanted)
    each = [textbook_loss(model, [row]).item() for row in rows]
    np.testing.assert_allclose(losses_by_row(model, batch, "packed", len(rows)), each, rtol=1e-4)
    assert can_share_prefix(model, VOCABULARY, WAYS[way])


def test_dtypes_of_a_gpu_agree(random_model: Callable[..., Path]) -> None:
    model, _ = load(random_model("llama"), Kernels("cpu", "bfloat16", "dequantised"), lora=LORA)
    set_adapters(model)
    rows, ids = sharing_rows()
    shared, apart = (
        batch_loss(model, make_batch(rows, packed=True, rounding=BINS, prefix=prefix), "packed").item()
        for prefix in (ids, NO_PREFIX)
    )
    assert shared == pytest.approx(apart, rel=1e-2)
    assert can_share_prefix(model, VOCABULARY, BINS)


def test_checkpointed_layers_and_dora_share_as_well(random_model: Callable[..., Path]) -> None:
    model, _ = load(random_model("qwen3"), lora=dataclasses.replace(LORA, adapter="dora"))
    set_adapters(model)
    rows, ids = sharing_rows()
    wanted = loss_and_gradients(model, lambda model: textbook_loss(model, rows))
    use_grad_checkpoint(model)
    batch = make_batch(rows, packed=True, prefix=ids)
    assert_same(loss_and_gradients(model, lambda model: batch_loss(model, batch, "packed")), wanted, 1e-4)


# Where it is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_model_whose_positions_are_not_turned_shares_nothing(tmp_path: Path, way: str) -> None:
    """One that makes them of numbers, as a scaling that depends on the length does; and one that has none."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    model, _ = load(write_model(tmp_path / "model", rope_scaling=dynamic, max_position_embeddings=256), lora=LORA)
    assert choose_layout(model, VOCABULARY, packing=True, rounding=WAYS[way]) == "packed"
    assert not can_share_prefix(model, VOCABULARY, WAYS[way])
    for layer in model.layers:
        layer.self_attn.rope = lambda x, offset: x
    assert not can_share_prefix(model, VOCABULARY, WAYS[way])


@pytest.mark.parametrize(("way", "rows"), [("end to end", SlicedRows), ("in bins", BinnedRows)])
def test_a_model_that_does_not_see_what_is_shared_shares_nothing(
    random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, way: str, rows: type
) -> None:
    model, _ = load(random_model("llama"), lora=LORA)
    real = rows.__init__
    assert can_share_prefix(model, VOCABULARY, WAYS[way])

    def forgetful(self: Any, *args: Any, position: Any = None, **options: Any) -> None:
        real(self, *args[:2], **options)  # positions run on

    monkeypatch.setattr(rows, "__init__", forgetful)
    assert not can_share_prefix(model, VOCABULARY, WAYS[way])


def test_positions_are_no_number() -> None:
    for wrong in (lambda p: p + 1, lambda p: 1 + p, lambda p: p > 0, lambda p: mx.arange(p), int):
        with pytest.raises(TypeError):
            wrong(Positions(mx.zeros((1, 3), mx.int32)))


# Training ---------------------------------------------------------------------------------------------------------

SYSTEM = "You know the club and its ground by the sea."
Create = Callable[..., Run]


@pytest.fixture
def create(tmp_path: Path, tiny_model: Path) -> Create:
    """Make a run on 24 rows, 20 of them with one system text."""
    sources = write_pair(tmp_path / "rows", train=24, validation=4)
    for name in ("train.jsonl", "valid.jsonl"):
        rows = read_jsonl(sources / name)
        for number, one in enumerate(rows):
            if number % 6:
                one["messages"].insert(0, {"role": "system", "content": SYSTEM})
        (sources / name).write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")

    def make(name: str = "run", **changes: Any) -> Run:
        common = {"batch_size": 6, "epochs": 2, "eval_every": 2, "save_every": 2, "learning_rate": 1e-2}
        return create_run(tmp_path, tiny_model, sources, run=name, **{**common, **changes})

    return make


@pytest.fixture
def laid(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Every batch that the trainer lays."""
    batches: list[Batch] = []
    monkeypatch.setattr(
        batcher, "make_batch", lambda rows, **how: batches.append(make_batch(rows, **how)) or batches[-1]
    )
    return batches


def choose(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    kernels = dataclasses.replace(FAST, **changes)
    monkeypatch.setattr(device, "choose_kernels", lambda *_: kernels)


KERNELS = {"end to end": {}, "in bins": {"rounding": Rounding(32, 32, (256,)), "streams": 1}}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("changes", [{}, {"num_layers": 1}, {"grad_checkpoint": True}], ids=str)
def test_a_run_learns_the_same_from_fewer_tokens(
    create: Create, monkeypatch: pytest.MonkeyPatch, laid: list[Batch], name: str, changes: dict[str, Any]
) -> None:
    def trained(prefix: bool) -> tuple[int, list[float], list[float], list[int]]:
        choose(monkeypatch, prefix=prefix, **KERNELS[name])
        laid.clear()
        run = create(str(prefix), **changes)
        train(run)
        assert any(batch.position is not None for batch in laid) == prefix
        assert (events(run, "start", "prefix_tokens")[0] > len(SYSTEM)) == prefix
        tokens = sum(batch.ids.size for batch in laid)
        return tokens, events(run, "step", "train_loss"), events(run, "eval", "val_loss"), events(run, "step", "tokens")

    (fewer, losses, validations, counted), (tokens, wanted, expected, real) = trained(True), trained(False)
    assert fewer < 0.75 * tokens
    assert losses == pytest.approx(wanted, rel=1e-5)
    assert validations == pytest.approx(expected, rel=1e-5)
    assert counted == real  # of the rows, not of what was computed


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_a_run_that_shares_resumes_to_the_byte(
    create: Create, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, name: str, compiled: bool
) -> None:
    if compiled:
        request.getfixturevalue("compiling")
    choose(monkeypatch, compiled=compiled, **KERNELS[name])
    whole, cut = create("whole"), create("cut")
    train(whole)
    for step in (3, 6):
        assert train(cut, at_step(step, lambda: cut.request("pause"))).state == "paused"
    assert train(cut).state == "completed"
    assert_same_training(cut, whole, 8)


def test_no_round_has_more_tokens_than_the_longest_micro_batch(
    create: Create, monkeypatch: pytest.MonkeyPatch, laid: list[Batch]
) -> None:
    """Those that fit, counted with the beginning in every share; so more rows go together."""
    rounds: list[int] = []
    real = steps._on_streams

    def counting(session: Any, shares: Any, compute: Any) -> Any:
        laid.clear()
        results = real(session, shares, compute)
        rounds.append(sum(batch.ids.size for batch in laid))
        assert rounds[-1] <= session.batcher.tokens_at_once
        return results

    def counted(prefix: bool) -> int:
        choose(monkeypatch, prefix=prefix, streams=1)
        rounds.clear()
        train(create(str(prefix), batch_size=2, grad_accumulation_steps=3))
        return len(rounds)

    monkeypatch.setattr(steps, "_on_streams", counting)
    assert 0 < counted(True) < counted(False)


def test_with_dropout_each_row_drops_its_own(create: Create, laid: list[Batch]) -> None:
    train(create(dropout=0.1))
    assert laid
    assert all(batch.position is None for batch in laid)
