"""Passes that are compiled against passes that are not, and against themselves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import CLOSE, adapters_of, difference, load, random_rows, set_adapters

from qlora_core.config import LoraConfig
from qlora_core.engine.compiled_loss import Passes
from qlora_core.engine.device import mx, nn, tree_flatten
from qlora_core.engine.frozen_layers import Trunk
from qlora_core.engine.model import (
    AdapterVector,
    BatchForm,
    choose_layout,
    form_loss,
    form_token_losses,
    use_grad_checkpoint,
)
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.tokens.batching import Batch, Rounding, make_batch
from qlora_core.training.hidden_state_cache import Maker

ROUNDING = Rounding(32, 32, (40,))
FIRST, SECOND, OTHER = (
    make_batch(random_rows(*lengths, seed=seed), packed=True, rounding=ROUNDING)
    for seed, lengths in enumerate([(23, 3, 40, 11), (37, 3, 24, 12), (33, 40, 36, 7)])
)
"""Two of one shape, in bins and filled up, and one of another."""

Make = Callable[..., tuple[nn.Module, Passes]]
Numbers = tuple[float, np.ndarray]


@pytest.fixture
def make(random_model: Callable[..., Path], compiling: None) -> Make:
    """A model in training, half of whose layers share their inputs while the others have dropout, and its passes."""

    def made(*, compiled: bool = True, checkpointed: bool = False, **computing: Callable) -> tuple[nn.Module, Passes]:
        model, _ = load(random_model("llama", layers=1), Kernels("cpu", "float32", "kept"), lora=LoraConfig(rank=4))
        set_adapters(model)
        layer = model.layers[0]
        for adapter in (layer.self_attn.o_proj, layer.mlp.down_proj):
            adapter.dropout._p_1 = 0.7
        layout = choose_layout(model.eval(), 320, packing=True, rounding=ROUNDING)
        assert [len(one.together) for one in (layer.self_attn.q_proj, layer.mlp.up_proj)] == [3, 2]
        if checkpointed:
            use_grad_checkpoint(model)
        return model.train(), Passes(model, AdapterVector(model), layout, compiled=compiled, **computing)

    return made


def numbers(passes: Passes, batch: Batch = FIRST, seed: int = 3) -> Numbers:
    """Loss and gradient, with masks from this seed."""
    mx.random.seed(seed)
    loss, gradient = passes.loss_and_gradient(batch)
    return loss.item(), np.array(gradient)


def assert_same_bits(found: Numbers, wanted: Numbers) -> None:
    """To the last."""
    assert found[0] == wanted[0]
    np.testing.assert_array_equal(found[1], wanted[1])


@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_is_not_compiled(make: Make, checkpointed: bool) -> None:
    _, compiled = make(checkpointed=checkpointed)
    _, plain = make(checkpointed=checkpointed, compiled=False)
    for batch in (FIRST, SECOND, OTHER):
        found, wanted = numbers(compiled, batch), numbers(plain, batch)
        assert found[0] == pytest.approx(wanted[0], rel=1e-6)
        assert difference(found[1], wanted[1]) < CLOSE
        mx.random.seed(3)
        losses = np.array(compiled.token_losses(batch)) * batch.weight
        assert losses.sum() == pytest.approx(wanted[0], rel=1e-6)
        mx.random.seed(3)
        np.testing.assert_allclose(losses, np.array(plain.token_losses(batch)) * batch.weight, rtol=1e-5)


def test_states_made_before_are_no_part_of_what_is_compiled(random_model: Callable[..., Path], compiling: None) -> None:
    model, _ = load(random_model("llama", layers=3), lora=LoraConfig(rank=4, num_layers=1))
    set_adapters(model)
    trunk = Trunk(model, 2, list)
    maker = Maker(model, trunk, "packed", ROUNDING)
    batches, given = [FIRST, SECOND], []
    for seed, lengths in enumerate([(23, 3, 40, 11), (37, 3, 24, 12)]):
        rows = random_rows(*lengths, seed=seed)
        rows = [replace(row, states=each) for row, each in zip(rows, maker.states_of(rows), strict=True)]
        given.append(make_batch(rows, packed=True, rounding=ROUNDING))
    adapters = AdapterVector(model)
    whole = Passes(model, adapters, "packed", compiled=False)
    wanted = [numbers(whole, batch) for batch in batches]
    trunk.take_out()
    above = Passes(model, adapters, "packed", compiled=True)
    for batch, (loss, gradient) in zip([*given, given[0]], [*wanted, wanted[0]], strict=True):
        found = numbers(above, batch)
        assert found[0] == pytest.approx(loss, rel=1e-5)
        assert difference(found[1], gradient) < CLOSE


@pytest.mark.parametrize("compiled", [True, False])
def test_a_shape_is_compiled_once_each_way(make: Make, compiled: bool) -> None:
    """And no more looked at: what is the same for two batches is in their shapes and in `BatchForm`."""
    looks = []

    def counted(compute: Callable) -> Callable:
        def look(model: nn.Module, arrays: dict, form: BatchForm) -> mx.array:
            looks.append(form.training)
            return compute(model, arrays, form)

        return look

    model, passes = make(compiled=compiled, loss=counted(form_loss), token_losses=counted(form_token_losses))
    for batch in (FIRST, SECOND, FIRST, OTHER, SECOND):
        set_adapters(model, seed=len(looks))
        numbers(passes, batch)
        passes.token_losses(batch)
    assert looks == [True, False] * (2 if compiled else 5)


def test_adapters_and_batches_are_no_part_of_what_is_compiled(make: Make) -> None:
    model, passes = make()
    first, second = numbers(passes), numbers(passes, SECOND)
    assert abs(first[0] - second[0]) > 1
    set_adapters(model, seed=7)
    moved = numbers(passes)
    assert moved[0] != first[0]
    other, afresh = make()
    set_adapters(other, seed=7)
    assert_same_bits(moved, numbers(afresh))
    set_adapters(model)
    assert_same_bits(numbers(passes), first)


@pytest.mark.parametrize("compiled", [True, False])
def test_masks_follow_the_seed_and_go_on_from_there(make: Make, compiled: bool) -> None:
    _, passes = make(compiled=compiled)
    mx.random.seed(3)
    found = [passes.loss_and_gradient(FIRST)[0].item() for _ in range(3)]
    assert len(set(found)) == 3  # other masks for each batch
    assert [numbers(passes, seed=seed)[0] for seed in (3, 4, 3)] == [found[0], numbers(passes, seed=4)[0], found[0]]
    assert numbers(passes, seed=4)[0] != found[0]


@pytest.mark.parametrize("compiled", [True, False])
def test_the_same_is_the_same_to_the_bit(make: Make, compiled: bool) -> None:
    _, passes = make(compiled=compiled)
    _, afresh = make(compiled=compiled)
    wanted = numbers(passes)
    numbers(passes, OTHER)
    assert_same_bits(numbers(passes), wanted)
    assert_same_bits(numbers(afresh), wanted)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_models_numbers_are_its_own_after_a_pass(make: Make, compiled: bool) -> None:
    fails = []

    def losses(*given: Any) -> mx.array:
        return 1 / 0 if fails else form_token_losses(*given)

    model, passes = make(compiled=compiled, token_losses=losses)
    before = adapters_of(model)
    for call in (passes.loss_and_gradient, passes.token_losses):
        call(FIRST)  # of which nothing is computed yet
        for name, value in adapters_of(model).items():
            np.testing.assert_array_equal(value, before[name])
    fails.append(True)
    with pytest.raises(ZeroDivisionError):
        passes.token_losses(make_batch(random_rows(9), packed=True))
    assert all(np.isfinite(np.array(value)).all() for _, value in tree_flatten(model.parameters()))
