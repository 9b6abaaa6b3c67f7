"""Layers that are computed together against mlx-lm's own, one by one; and who is seen to share an input with whom."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from harness import (
    CLOSE,
    FAST,
    PLAIN,
    assert_same,
    compare,
    difference,
    load,
    loss_and_gradients,
    normal,
    random_rows,
    set_adapters,
    textbook_loss,
)
from mlx_lm.tuner.lora import LoRALinear

from qlora_core.config import LoraConfig
from qlora_core.engine import fused_linear
from qlora_core.engine import model as model_module
from qlora_core.engine.device import mx, nn
from qlora_core.engine.elementwise import Swiglu
from qlora_core.engine.fused_linear import Cheap, Deferred, Norm, Plain, Same, made, multiply_together, watch_sharing
from qlora_core.engine.kernels import LoraAdapter, use_linear_kernels
from qlora_core.engine.model import batch_loss, choose_layout, use_grad_checkpoint
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.tokens.batching import make_batch

# Layers -----------------------------------------------------------------------------------------------------------

Layers = list[nn.Module]

SHAPES = {
    "adapters": [(24, 4), (8, 4), (8, 4)],
    "ranks": [(24, 4), (8, 1), (16, 6)],
    "some": [(24, 0), (8, 4), (8, 0), (16, 3)],
    "none": [(24, 0), (8, 0)],
    "one": [(24, 4)],
}
"""Outputs and rank of each layer; 0: no adapter."""


def layer_pairs(
    shapes: Sequence[tuple[int, int]], linear: str = "kept", *, bias: bool = False
) -> tuple[Layers, Layers]:
    """Our layers of 64 inputs, and mlx-lm's with the same numbers; `linear` as `Kernels` has it, or `plain`."""
    ours, theirs = [], []
    for seed, (outputs, rank) in enumerate(shapes):
        base = nn.Linear(64, outputs)
        base.weight, base.bias = normal(outputs, 64, seed=seed, size=0.2), normal(outputs, seed=seed)
        if not bias:
            del base.bias
        if linear != "plain":
            base = nn.QuantizedLinear.from_linear(base)
        own = copy.deepcopy(base)
        use_linear_kernels(own, Kernels("cpu", "float32", linear))
        if rank:
            own, base = LoraAdapter.wrap(own, rank, 2.5, 0.0), LoRALinear.from_base(base, r=rank, scale=2.5)
            for layer in (own, base):
                layer.lora_a, layer.lora_b = normal(64, rank, seed=seed), normal(rank, outputs, seed=seed)
        ours.append(own)
        theirs.append(base)
    return ours, theirs


def adapters(layers: Layers) -> list[mx.array]:
    """A and B of those that have one."""
    return [layer[name] for layer in layers if "lora_a" in layer for name in ("lora_a", "lora_b")]


def joined(layers: Layers, outputs: Callable[..., Sequence[mx.array]]) -> Callable[..., mx.array]:
    """`outputs` as a function of its inputs and of the adapters, whose result is one array."""
    adapted = [layer for layer in layers if "lora_a" in layer]

    def forward(*arrays: mx.array) -> mx.array:
        count = len(arrays) - 2 * len(adapted)
        for layer, a, b in zip(adapted, arrays[count::2], arrays[count + 1 :: 2], strict=True):
            layer.lora_a, layer.lora_b = a, b
        return mx.concatenate(outputs(*arrays[:count]), axis=-1)

    return forward


def together(layers: Layers, cheap: Cheap) -> Callable[..., mx.array]:
    """What our layers make of a cheap function's output, computed together."""
    return joined(layers, lambda *inputs: multiply_together(Deferred(cheap, *inputs), layers))


def one_by_one(layers: Layers, function: Callable[..., mx.array] = lambda x: x) -> Callable[..., mx.array]:
    """What mlx-lm's layers make of it."""
    return joined(layers, lambda *inputs: [layer(function(*inputs)) for layer in layers])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("linear", ["kept", "dequantised", "quantised", "plain"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_layers_together_are_mlx_lms_one_by_one(shapes: str, linear: str, bias: bool) -> None:
    ours, theirs = layer_pairs(SHAPES[shapes], linear, bias=bias)
    compare(together(ours, Same()), one_by_one(theirs), normal(2, 5, 64), *adapters(theirs))


def norm_of(kind: type[nn.Module]) -> nn.Module:
    """A norm with weights that are not 1."""
    norm = kind(64)
    norm.weight = 1 + normal(64, size=0.2)
    return norm


NORM, LAYER_NORM = norm_of(nn.RMSNorm), norm_of(nn.LayerNorm)
CHEAP: dict[str, tuple[Cheap, Callable[..., mx.array], int]] = {
    "swiglu": (Swiglu(), lambda gate, up: nn.silu(gate) * up, 2),
    "norm": (Norm(NORM), NORM, 1),
    "another norm": (Plain(LAYER_NORM), LAYER_NORM, 1),
}


@pytest.mark.parametrize("shapes", ["ranks", "some", "none"])
@pytest.mark.parametrize("cheap", CHEAP)
def test_gradients_go_through_what_is_made_again(cheap: str, shapes: str) -> None:
    ours, theirs = layer_pairs(SHAPES[shapes])
    function, plain, inputs = CHEAP[cheap]
    xs = [normal(2, 5, 64, seed=seed) for seed in range(inputs)]
    compare(together(ours, function), one_by_one(theirs, plain), *xs, *adapters(theirs))


def test_adapters_that_are_off_have_no_part_in_it() -> None:
    ours, theirs = layer_pairs(SHAPES["adapters"])
    ours[1].enabled, theirs[1].scale = False, 0.0
    compare(together(ours, Same()), one_by_one(theirs), normal(2, 5, 64), *adapters(theirs))


def test_half_precision_stays_so_and_gradients_of_adapters_are_float32() -> None:
    ours, theirs = layer_pairs(SHAPES["some"], "plain")
    for layer in (*ours, *theirs):
        base = layer.get("linear", layer)
        base.weight = base.weight.astype(mx.float16)
    x, values = normal(3, 64).astype(mx.float16), adapters(theirs)
    cotangent = mx.ones((3, 56), mx.float16)
    (found,), gradients = mx.vjp(lambda *xs: [together(ours, Same())(*xs)], [x, *values], [cotangent])
    (wanted,), expected = mx.vjp(lambda *xs: [one_by_one(theirs)(*xs)], [x, *values], [cotangent])
    assert [array.dtype for array in (found, *gradients)] == [mx.float16] * 2 + [mx.float32] * 4
    for one, other in zip((found, *gradients), (wanted, *expected), strict=True):
        assert difference(one, other) < 4e-3  # 11 bits


class Counted(Same):
    """Counts how often it is made, and made again."""

    def __init__(self) -> None:
        self.calls, self.repeats = 0, 0

    def __call__(self, x: mx.array) -> mx.array:
        self.calls += 1
        return super().__call__(x)

    def again(self, x: mx.array) -> tuple[mx.array, fused_linear.Pull]:
        self.repeats += 1
        return super().again(x)


def test_what_layers_share_is_made_once_each_way() -> None:
    layers, _ = layer_pairs(SHAPES["some"])
    x, maker, cheap = normal(2, 5, 64), SimpleNamespace(), Counted()
    assert watch_sharing(lambda: [layer(y) for y in [made(x, maker)] for layer in layers]) == [maker]

    def forward(x: mx.array) -> list[mx.array]:
        shared = Deferred(cheap, x)
        return [layer(shared) for layer in reversed(layers)]  # whoever asks first

    found, _ = mx.vjp(forward, [x], [mx.ones((2, 5, outputs)) for outputs, _ in reversed(SHAPES["some"])])
    assert (cheap.calls, cheap.repeats) == (1, 1)
    for layer, output in zip(reversed(layers), found, strict=True):
        assert difference(output, layer(x)) < CLOSE


# Models -----------------------------------------------------------------------------------------------------------

LORA = LoraConfig(rank=4)
ROWS = random_rows(13, 3, 21)

Find = Callable[..., Path]
MODELS = [
    ("llama", True, {}),
    ("llama", False, {"projections": "qv"}),  # layers without adapters that share what is not an array yet
    ("qwen3", True, {"projections": "mlp"}),
    ("qwen3", False, {}),
    ("mistral", True, {"num_layers": 1}),
    ("mistral", False, {}),
    ("gemma", True, {}),
    ("gemma", True, {"projections": "v_proj,down_proj"}),
]
"""Families, whether the head is the embedding, and which layers get adapters."""
QKV, MLP = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
DOWN = ("mlp.down_proj",)


def watch(model: nn.Module) -> list[object]:
    """Watch a model that is asked for a few tokens."""
    return watch_sharing(lambda: model(mx.array([[1, 2, 3]])))


@pytest.mark.parametrize(
    ("family", "groups"),
    [
        ("llama", {QKV, MLP, DOWN}),
        ("qwen3", {QKV, MLP, DOWN}),
        ("mistral", {QKV, MLP, DOWN}),
        ("gemma", {QKV, MLP}),  # its activation is another
    ],
)
@pytest.mark.parametrize("lora", [LORA, LoraConfig(rank=4, projections="qv", num_layers=1)], ids=["all", "few"])
def test_who_shares_an_input_is_seen(random_model: Find, family: str, groups: set, lora: LoraConfig) -> None:
    model, _ = load(random_model(family), lora=lora)
    watch(model)
    for layer in model.layers:
        names = {id(module): name for name, module in layer.named_modules()}
        noted = [getattr(module, "together", ()) for module in layer.modules()]
        assert {tuple(names[id(one)] for one in together) for together in noted if together} == groups


@pytest.mark.parametrize(
    "lora", [LoraConfig(rank=4, adapter="dora"), LoraConfig(rank=4, dropout=0.1)], ids=["dora", "dropout"]
)
def test_what_cannot_be_computed_together_is_refused(random_model: Find, lora: LoraConfig) -> None:
    model, _ = load(random_model("llama"), lora=lora)
    assert watch(model) == []
    assert not any(getattr(module, "is_shared", False) for module in model.modules())


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers were computed together each time."""
    found: list[int] = []

    def counted(x: Deferred, layers: Sequence[nn.Module]) -> list[mx.array]:
        found.append(len(layers))
        return multiply_together(x, layers)

    monkeypatch.setattr(fused_linear, "multiply_together", counted)
    return found


@pytest.mark.parametrize(("family", "tied", "lora"), MODELS)
def test_shared_is_not_shared_is_textbook(
    random_model: Find, monkeypatch: pytest.MonkeyPatch, sizes: list[int], family: str, tied: bool, lora: dict[str, Any]
) -> None:
    path, lora = random_model(family, tie_word_embeddings=tied), LoraConfig(rank=4, **lora)
    reference, _ = load(path, PLAIN, lora=lora)
    set_adapters(reference)
    wanted = loss_and_gradients(reference, lambda model: textbook_loss(model, ROWS))
    model, _ = load(path, FAST, lora=lora)
    set_adapters(model)

    def loss(model: nn.Module) -> mx.array:
        return batch_loss(model, make_batch(ROWS, packed=True), "packed")

    assert_same(loss_and_gradients(model, loss), wanted)
    assert not sizes
    assert choose_layout(model, 320, packing=True) == "packed"
    sizes.clear()
    shared = loss_and_gradients(model, loss)
    assert sizes == ([3, 2] if family == "gemma" else [3, 2, 1]) * 2
    assert_same(shared, wanted)
    monkeypatch.setattr(model_module, "deferring", contextlib.nullcontext)
    assert_same(shared, loss_and_gradients(model, loss))


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma"])
def test_with_dropout_it_is_what_it_was_to_the_bit(random_model: Find, monkeypatch, family: str) -> None:
    """Each layer drops other numbers of their input."""
    model, _ = load(random_model(family), lora=LoraConfig(rank=4, dropout=0.3))
    set_adapters(model)
    batch = make_batch(ROWS, packed=True)

    def loss(model: nn.Module) -> mx.array:
        mx.random.seed(3)
        return batch_loss(model, batch, "packed")

    choose_layout(model, 320, packing=True)
    still, moved = loss_and_gradients(model.eval(), loss), loss_and_gradients(model.train(), loss)
    assert moved[0] != still[0]
    monkeypatch.setattr(model_module, "deferring", contextlib.nullcontext)
    wanted = loss_and_gradients(model, loss)
    assert moved[0] == wanted[0]
    for name, gradient in wanted[1].items():
        np.testing.assert_array_equal(moved[1][name], gradient)


def test_what_is_recomputed_is_shared_as_well(random_model: Find, sizes: list[int]) -> None:
    model, _ = load(random_model("llama"), lora=LORA)
    set_adapters(model)
    choose_layout(model, 320, packing=True)
    batch, results = make_batch(ROWS, packed=True), []
    for _ in range(2):
        sizes.clear()
        results.append(loss_and_gradients(model, lambda model: batch_loss(model, batch, "packed")))
        use_grad_checkpoint(model)
    assert_same(*results)
    assert sizes == [3, 2, 1] * 4  # two layers, forwards and again


@pytest.mark.parametrize("direct", [lambda x: 0.1 * x, mx.sin, lambda x: x[..., ::-1]], ids=["times", "sin", "flipped"])
def test_layout_falls_back_where_something_else_uses_what_is_shared(
    random_model: Find, direct: Callable[[mx.array], mx.array]
) -> None:
    """A model whose attention adds something of its input, say."""

    def with_direct(kernels: Kernels) -> nn.Module:
        model, _ = load(random_model("llama"), kernels, lora=LORA)
        set_adapters(model)
        kind = type(model.layers[0].self_attn)
        call = lambda self, x, *args, **options: kind.__call__(self, x, *args, **options) + direct(x)  # noqa: E731
        other = type("Direct", (kind,), {"__call__": call})
        for layer in model.layers:
            layer.self_attn.__class__ = other
        return model

    wanted = loss_and_gradients(with_direct(PLAIN), lambda model: textbook_loss(model, ROWS))
    model = with_direct(FAST)
    assert choose_layout(model, 320, packing=True) == "packed"
    assert not any(getattr(module, "is_shared", False) for module in model.modules())
    batch = make_batch(ROWS, packed=True)
    assert_same(loss_and_gradients(model, lambda model: batch_loss(model, batch, "packed")), wanted)
