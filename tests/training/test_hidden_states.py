"""Layers below the adapters that are computed once: the same numbers as computing them in every step."""

import dataclasses
import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import (
    FAST,
    Killed,
    assert_same,
    at_step,
    checkpoint,
    create_run,
    difference,
    events,
    kill,
    load,
    loss_and_gradients,
    random_rows,
    set_adapters,
    train,
    trained_state,
    write_pair,
)
from safetensors.numpy import load_file

from qlora_core.config import LoraConfig
from qlora_core.engine import device
from qlora_core.engine.device import mx, nn, tree_flatten
from qlora_core.engine.frozen_layers import StandIn, Trunk
from qlora_core.engine.model import Layout, batch_loss, choose_layout, load_lower_layers
from qlora_core.errors import StorageError
from qlora_core.reports import live_output, plain_text
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.runs.run import Run
from qlora_core.tokens.batching import AS_IT_IS, Rounding, make_batch
from qlora_core.tokens.rows import TokenRow, TokenRows
from qlora_core.training import hidden_state_cache, loop, session
from qlora_core.training.hidden_state_cache import FILE, RECORD, Maker, RowsAbove, read_states, write_states

UPPER = LoraConfig(rank=4, num_layers=1)
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 6},
}


def made(path: Path, kernels: Kernels = FAST) -> tuple[nn.Module, Trunk]:
    """A model of four layers, of which the last has adapters."""
    model, spec = load(path, kernels, lora=UPPER)
    set_adapters(model)
    depth = spec.num_layers - 1
    return model, Trunk(model, depth, lambda: load_lower_layers(spec, kernels, depth))


# Layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("layout", "rounding"),
    [("packed", AS_IT_IS), ("packed", Rounding(32, 32)), ("packed", Rounding(32, 32, (40,))), ("padded", AS_IT_IS)],
    ids=["sliced", "filled up", "bins", "padded"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_states_made_before_give_the_same_loss_and_gradients(
    random_model: Callable[..., Path], family: str, layout: Layout, rounding: Rounding, dtype: str
) -> None:
    kernels = FAST if dtype == "float32" else Kernels("cpu", dtype, "dequantised")
    model, trunk = made(random_model(family, layers=4, **FAMILIES[family]), kernels)
    rows = random_rows(23, 3, 40, 11)

    def found(rows: list[TokenRow]) -> tuple[float, dict[str, np.ndarray]]:
        batch = make_batch(rows, packed=layout == "packed", rounding=rounding)
        return loss_and_gradients(model, lambda model: batch_loss(model, batch, layout))

    wanted = found(rows)
    states = Maker(model, trunk, layout, rounding).states_of(rows)
    assert [len(each) for each in states] == [23, 3, 40, 11]
    trunk.take_out()
    # however rows come together in other batches
    rows = [dataclasses.replace(row, states=each) for row, each in zip(rows, states, strict=True)]
    assert_same(found(rows), wanted, 1e-5 if dtype == "float32" else 2e-2)


def test_a_trunk_comes_and_goes(random_model: Callable[..., Path]) -> None:
    model, trunk = made(random_model("llama", layers=4))
    ids = mx.array([[5, 6, 7]])
    wanted = np.array(model(ids))
    trunk.take_out()
    assert [isinstance(layer, StandIn) for layer in model.layers] == [True, True, True, False]
    with trunk.whole():
        np.testing.assert_allclose(np.array(model(ids)), wanted, rtol=1e-5, atol=1e-6)
    assert isinstance(model.layers[2], StandIn)


def test_layers_that_are_out_are_out_of_memory(random_model: Callable[..., Path]) -> None:
    model, trunk = made(random_model("llama", layers=8))
    mx.eval(model(mx.array([[5, 6, 7]])))
    before = mx.get_active_memory()
    below = trunk.take_out()
    weights = sum(value.nbytes for layer in below for _, value in device.tree_flatten(layer.parameters()))
    del below
    assert before - mx.get_active_memory() >= weights > 0


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_model_that_hands_on_more_is_seen(random_model: Callable[..., Path], layout: Layout) -> None:
    model, trunk = made(random_model("llama", layers=4))
    maker = Maker(model, trunk, layout, AS_IT_IS)
    assert maker.agrees(320)
    assert not any(isinstance(layer, StandIn) for layer in model.layers)  # they are as they were
    last, kind = model.layers[3], type(model.layers[3])

    class Remembering(kind):
        def __call__(self, x: mx.array, *args: Any, **options: Any) -> mx.array:
            first = model.model.layers[0]
            return super().__call__(x, *args, **options) + (0 if isinstance(first, StandIn) else first(x))

    last.__class__ = Remembering
    assert not maker.agrees(320)


# Files ------------------------------------------------------------------------------------------------------------


def test_rows_have_their_states() -> None:
    rows = TokenRows.of(random_rows(4, 1, 3))
    states = np.arange(16).reshape(8, 2)
    above = RowsAbove(rows, states)
    assert len(above) == 3
    assert [above[i].states.tolist() for i in range(3)] == [states[:4].tolist(), [[8, 9]], states[5:].tolist()]
    assert [row == wanted for row, wanted in zip(above, rows, strict=True)] == [True] * 3
    assert above.lengths.tolist() == [4, 1, 3]
    assert above.target_lengths.tolist() == rows.target_lengths.tolist()


def test_states_come_back_as_they_were_written(tmp_path: Path) -> None:
    parts = [np.arange(6, dtype=np.float16).reshape(3, 2), np.ones((1, 2), np.float16)]
    write_states(tmp_path, {"of": "this"}, iter(parts), 16)
    found = read_states(tmp_path, {"of": "this"}, "float16")
    np.testing.assert_array_equal(found.reshape(4, 2), np.concatenate(parts))
    assert read_states(tmp_path, {"of": "that"}, "float16") is None


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "no seal", "torn seal"])
def test_damaged_states_are_not_used(tmp_path: Path, damage: str) -> None:
    write_states(tmp_path, {}, [np.ones((3, 2), np.float32)], 24)
    file, seal = tmp_path / FILE, tmp_path / RECORD
    content = file.read_bytes()
    {
        "changed": lambda: file.write_bytes(content[:-1] + b"\1"),
        "cut": lambda: file.write_bytes(content[:-4]),
        "gone": file.unlink,
        "no seal": seal.unlink,
        "torn seal": lambda: seal.write_text(seal.read_text(encoding="utf-8")[:-5], encoding="utf-8"),
    }[damage]()
    assert read_states(tmp_path, {}, "float32") is None


# Runs -------------------------------------------------------------------------------------------------------------

Create = Callable[..., Run]


@pytest.fixture
def create(tmp_path: Path, random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Create:
    """Make a run on 12 rows whose model has adapters on the last of four layers, the others left or not."""
    sources, choose = write_pair(tmp_path / "data"), device.choose_kernels
    model = random_model("llama", layers=4)

    def make(name: str = "run", *, trunk: bool = True, **settings: Any) -> Run:
        monkeypatch.setattr(device, "choose_kernels", lambda *given: dataclasses.replace(choose(*given), trunk=trunk))
        return create_run(tmp_path / "runs", model, sources, run=name, **{"num_layers": 1, "samples": 2, **settings})

    return make


def numbers(run: Run) -> dict[str, Any]:
    """What a run came to."""
    moments = load_file(checkpoint(run, 6) / "optimizer.safetensors")
    return {
        "losses": events(run, "step", "train_loss") + events(run, "eval", "val_loss"),
        "answers": [sample["answer"] for sample in run.samples()],
        "moments": np.concatenate([moments[name].ravel() for name in sorted(moments)]),
    }


def test_a_run_learns_what_it_would_without(create: Create) -> None:
    with_trunk = create("with", max_answer_tokens=3)
    assert train(with_trunk).state == "completed"
    without = create("without", trunk=False, max_answer_tokens=3)
    assert train(without).state == "completed"
    found, wanted = numbers(with_trunk), numbers(without)
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
    assert len(found["answers"]) == 6
    assert found["answers"] == wanted["answers"]
    assert difference(found["moments"], wanted["moments"]) < 1e-4
    (told,) = events(with_trunk, "trunk")
    tokens = sum(map(len, _rows(with_trunk)))
    assert (told["layers"], told["bytes"]) == (3, 4 * 64 * tokens)
    line = live_output.event_line(told | {"seconds": 1.26})
    kept = f"({plain_text.size(told['bytes'])} in 1.3 s)"
    assert line == f"  ✓ 3 layers were computed once for each row {kept}, and are out of memory"
    assert events(without, "trunk") == events(with_trunk, "warning") == []
    assert not (with_trunk.path / FILE).exists()  # nobody needs it any more
    assert not (with_trunk.path / RECORD).exists()
    assert json.loads((with_trunk.path / "evaluation.json").read_text(encoding="utf-8"))


def _rows(run: Run) -> list[Any]:
    from test_trainer import encoded

    model = run.base().path
    return [*encoded(run, model), *encoded(run, model, validation=True)]


@pytest.mark.parametrize("settings", [{"epochs": 1}, {"num_layers": 0}, {"num_layers": 4}, {"max_steps": 3}], ids=str)
def test_where_nothing_is_gained_all_layers_stay(create: Create, settings: dict[str, int]) -> None:
    run = create(**settings)
    assert train(run).state == "completed"
    assert events(run, "trunk") == []


@pytest.mark.parametrize("then", ["kept", "damaged", "gone"])
def test_cut_and_resumed_is_uninterrupted_to_the_byte(create: Create, then: str) -> None:
    whole, cut = create("whole", dropout=0.3), create("cut", dropout=0.3)
    train(whole)
    train(cut, at_step(4, lambda: cut.request("pause")))
    file = cut.path / FILE
    before = file.stat().st_mtime_ns
    if then == "damaged":
        file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    elif then == "gone":
        file.unlink()
    written = []
    train(cut, lambda event: written.append(file.stat().st_mtime_ns) if event["type"] == "trunk" else None)
    assert (written == [before]) == (then == "kept")
    assert trained_state(cut, 6) == trained_state(whole, 6)


def test_a_disk_without_room_is_told_and_training_goes_on(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageError("no room here.")

    monkeypatch.setattr(hidden_state_cache, "write_states", full)
    run = create()
    assert train(run).state == "completed"
    (message,) = events(run, "warning", "message")
    assert message == "the layers below the adapters are computed in every step: no room here."
    assert len(events(run, "step")) == 6


def test_a_pause_need_not_wait_for_all_states(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create()
    monkeypatch.setattr(hidden_state_cache, "TOKENS", 1)
    real, batches = Maker.states_of, []

    def states_of(self: Maker, *rows: Any, **options: Any) -> Any:
        batches.append(len(rows))
        if len(batches) == 3:
            run.request("pause")
            loop.time.sleep(1.5)  # it is looked for once a second
        return real(self, *rows, **options)

    monkeypatch.setattr(Maker, "states_of", states_of)
    assert train(run).state == "paused"
    assert len(batches) < 8
    assert not (run.path / FILE).exists()
    assert list(run.path.glob("*.tmp*")) == []
    monkeypatch.setattr(Maker, "states_of", real)
    assert train(run).state == "completed"
    assert len(events(run, "trunk")) == 1


def test_what_was_compiled_does_not_keep_the_layers_that_go(
    tmp_path: Path, random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, compiling: None
) -> None:
    """In float16 all layers are compiled before they go: the longest rows are looked at for overflow.

    Compiled is a function of all weights that takes a compiler little time.
    """
    kernels = Kernels("cpu", "float16", "dequantised", rounding=Rounding(32, 32, (64, 128)), compiled=True)
    monkeypatch.setattr(device, "choose_kernels", lambda *_: kernels)
    real, held = Trunk.take_out, list[tuple[int, int]]()

    def take_out(trunk: Trunk) -> list[nn.Module]:
        gc.collect()
        before, below = mx.get_active_memory(), real(trunk)
        held.append((before, sum(value.nbytes for layer in below for _, value in tree_flatten(layer.parameters()))))
        return below

    def stop(event: dict[str, Any]) -> None:
        if event["type"] == "memory":  # the first epoch begins
            held.append((mx.get_active_memory(), 0))
            kill()

    def of_all_weights(model: nn.Module, *_: Any) -> mx.array:
        return mx.stack([value.astype(mx.float32).sum() for _, value in tree_flatten(model.parameters())]).sum()

    def of_each_token(model: nn.Module, arrays: dict[str, mx.array], *_: Any) -> mx.array:
        return of_all_weights(model) * mx.ones_like(arrays["weight"])

    monkeypatch.setattr(Trunk, "take_out", take_out)
    monkeypatch.setattr(loop, "_validate_before", lambda *_: None)  # it compiles anew, before memory is looked at
    losses = {"loss": of_all_weights, "token_losses": of_each_token}
    monkeypatch.setattr(session, "SUPERVISED", dataclasses.replace(session.SUPERVISED, **losses))
    model = random_model("llama", layers=3)
    run = create_run(tmp_path / "runs", model, write_pair(tmp_path / "data"), num_layers=1, samples=0)
    with pytest.raises(Killed):
        train(run, stop)
    (before, gone), (after, _) = held[-2:]
    assert gone > 30_000
    assert before - after >= gone


def test_layouts_are_chosen_as_before(random_model: Callable[..., Path]) -> None:
    """Stand-ins are there only after the layout was."""
    model, trunk = made(random_model("llama", layers=4))
    assert choose_layout(model, 320, packing=True) == "packed"
    trunk.take_out()
    assert len(model.layers) == 4


def test_the_disk_is_not_filled_with_states(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wants is told before anything is computed, and training goes on with all layers."""
    usage = shutil.disk_usage
    free = hidden_state_cache.RESERVE_BYTES + 1000
    monkeypatch.setattr(hidden_state_cache.shutil, "disk_usage", lambda path: usage(path)._replace(free=free))
    monkeypatch.setattr(Maker, "states_of", lambda *_, **__: pytest.fail("states were made"))
    monkeypatch.setattr(Maker, "agrees", lambda *_: True)
    run = create()
    stale = run.path / FILE
    stale.write_bytes(b"of other rows")
    assert train(run).state == "completed"
    assert not stale.exists()  # it holds room, and nobody can use it
    assert events(run, "trunk") == []
    message = next(message for message in events(run, "warning", "message") if "every step" in message)
    assert message == (
        f"the layers below the adapters are computed in every step: {run.path}: 2.0 GB wanted (0.0 for their output, "
        "the rest for what the run saves and for other programs), 2.0 GB free there. It is tried again when the run "
        "goes on after a pause"
    )
    assert len(events(run, "step")) == 6
