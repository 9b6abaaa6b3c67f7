"""Our kernels against plain ones: the same values and the same gradients."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import CLOSE, FAST, compare, difference, load, normal, random_rows

from qlora_core.engine.device import mx, nn, tree_flatten
from qlora_core.engine.kernels import (
    ADAPTERS,
    DequantisingEmbedding,
    DequantisingLinear,
    QuantisedLinear,
    dequantise_kept,
    quantised_products_are_right,
    use_linear_kernels,
)
from qlora_core.engine.model import batch_loss, load_base
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.tokens.batching import make_batch

# Linear layers ----------------------------------------------------------------------------------------------------


def kernels(linear: str) -> Kernels:
    return Kernels("cpu", "float32", linear)


@pytest.mark.parametrize("linear", ["kept", "dequantised", "quantised"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_kernels_are_the_quantised_layer(linear: str, bits: int, bias: bool) -> None:
    dense = nn.Linear(64, 24, bias=bias)
    dense.weight = normal(24, 64)
    plain, ours = (nn.QuantizedLinear.from_linear(dense, 32, bits) for _ in range(2))
    use_linear_kernels(ours, kernels(linear))
    compare(ours, plain, normal(2, 5, 64, seed=1))
    compare(ours, plain, normal(2, 5, 64, seed=2))  # once more: what was kept is still right


@pytest.mark.parametrize("linear", ["kept", "dequantised", "quantised"])
@pytest.mark.parametrize("bits", [4, 8])
def test_embedding_kernels_are_the_quantised_embedding(linear: str, bits: int) -> None:
    dense = nn.Embedding(40, 64)
    plain, ours = (nn.QuantizedEmbedding.from_embedding(dense, 32, bits) for _ in range(2))
    use_linear_kernels(ours, kernels(linear))
    compare(ours.as_linear, plain.as_linear, normal(2, 5, 64))
    assert mx.array_equal(ours(mx.array([0, 39, 7])), plain(mx.array([0, 39, 7])))


@pytest.mark.parametrize("linear", ["kept", "dequantised"])
def test_dequantised_weights_are_no_parameters(linear: str) -> None:
    """Otherwise they would be saved, counted and trained."""
    layer = nn.QuantizedLinear(64, 24)
    before = {name: value.shape for name, value in tree_flatten(layer.parameters())}
    use_linear_kernels(layer, kernels(linear))
    mx.eval(layer(normal(3, 64)))
    assert {name: value.shape for name, value in tree_flatten(layer.parameters())} == before


def test_what_several_streams_dequantise_is_what_the_first_use_would() -> None:
    ahead, first_use = nn.Sequential(*(nn.QuantizedLinear(64, 64) for _ in range(3))), []
    use_linear_kernels(ahead, kernels("kept"))
    dequantise_kept(ahead, [mx.default_stream(mx.cpu), mx.new_stream(mx.cpu)])
    for layer in ahead.layers:
        found = layer.__dict__.pop("_kept")
        layer(normal(3, 64))
        first_use.append(mx.array_equal(found, layer.__dict__["_kept"]).item())
    assert first_use == [True] * 3


BASES = {
    "plain": lambda bias: nn.Linear(64, 24, bias=bias),
    "quantised": lambda bias: nn.QuantizedLinear.from_linear(nn.Linear(64, 24, bias=bias)),
}


def adapter_pair(base: nn.Module, kind: str = "lora", rank: int = 4) -> tuple[nn.Module, nn.Module]:
    """Our adapter on our kernel and mlx-lm's on its own, with the same numbers."""
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear

    outputs, inputs = base.weight.shape[0], 64
    theirs = {"lora": LoRALinear, "dora": DoRALinear}[kind].from_base(base, r=rank, scale=2.5, dropout=0.3)
    mx.eval(theirs.parameters())  # of the layer as it is, before it changes its class
    use_linear_kernels(base, FAST)
    ours = ADAPTERS[kind].wrap(base, rank, 2.5, 0.3)
    for layer in (ours, theirs):
        layer.lora_a, layer.lora_b = normal(inputs, rank, seed=1), normal(rank, outputs, seed=2)
        if kind == "dora":
            layer.m = mx.abs(normal(outputs, seed=4)) + 0.5
        layer.eval()
    return ours, theirs


def with_adapter(layer: nn.Module, *names: str) -> Callable[..., mx.array]:
    """The layer as a function of its input and of some of its parameters."""

    def forward(x: mx.array, *values: mx.array) -> mx.array:
        for name, value in zip(names, values, strict=True):
            setattr(layer, name, value)
        return layer(x)

    return forward


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapter_is_mlx_lms_layer(kind: str, base: str, bias: bool) -> None:
    ours, theirs = adapter_pair(BASES[base](bias), kind)
    names = ("lora_a", "lora_b", *(("m",) if kind == "dora" else ()))
    values = [ours[name] for name in names]
    compare(with_adapter(ours, *names), with_adapter(theirs, *names), normal(2, 5, 64, seed=3), *values)


def test_adapter_takes_the_dropout_that_mlx_lms_takes() -> None:
    ours, theirs = adapter_pair(nn.Linear(64, 24))
    results = []
    for layer in (ours, theirs):
        layer.train()
        mx.random.seed(5)
        results.append(np.array(layer(normal(9, 64))))
    assert difference(*results) < CLOSE
    ours.eval()
    assert difference(np.array(ours(normal(9, 64))), results[1]) > 0.01


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapter_computes_in_the_dtype_of_the_activations_and_stays_float32(kind: str) -> None:
    base = nn.Linear(64, 24)
    base.set_dtype(mx.float16)
    ours, theirs = adapter_pair(base, kind)
    x = normal(5, 64, size=0.1).astype(mx.float16)
    assert ours(x).dtype == mx.float16
    assert ours.lora_a.dtype == ours.lora_b.dtype == mx.float32
    assert difference(ours(x), theirs(x)) < 2e-3  # half precision has 11 bits


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapter_that_is_off_gives_the_base_to_the_bit(kind: str) -> None:
    base = nn.QuantizedLinear(64, 24)
    ours, _ = adapter_pair(base, kind)
    x = normal(5, 64)
    assert not mx.array_equal(ours(x), base(x))
    ours.enabled = False
    assert mx.array_equal(ours(x), base(x))


def test_a_new_lora_adapter_changes_no_bit() -> None:
    base = nn.QuantizedLinear(64, 24)
    use_linear_kernels(base, FAST)
    x = normal(5, 64)
    assert mx.array_equal(ADAPTERS["lora"].wrap(base, 4, 2.0, 0.5)(x), base(x))


def test_a_new_dora_adapter_has_the_magnitudes_of_its_base() -> None:
    base = nn.QuantizedLinear(64, 24)
    use_linear_kernels(base, FAST)
    x = normal(5, 64)
    made = ADAPTERS["dora"].wrap(base, 4, 2.0, 0.0)
    dense = mx.dequantize(base.weight, base.scales, base.biases, base.group_size, base.bits)
    assert difference(made.m, np.linalg.norm(np.array(dense), axis=1)) < CLOSE
    assert difference(made(x), base(x)) < CLOSE


# Whether MLX's own are right --------------------------------------------------------------------------------------


@pytest.fixture
def tried_anew() -> Iterator[None]:
    """What was found of MLX's products before the test, and in it, is forgotten."""
    quantised_products_are_right.cache_clear()
    yield
    quantised_products_are_right.cache_clear()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_quantised_products_are_right_here(dtype: str, bits: int, group_size: int) -> None:
    assert quantised_products_are_right(dtype, bits=bits, group_size=group_size)


@pytest.mark.parametrize("wrong", ["backwards", "many rows", "not a number"])
def test_a_wrong_product_is_noticed_and_its_weights_are_dequantised_instead(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tried_anew: None, wrong: str
) -> None:
    """Each kernel may be wrong alone: loss and layout would not show it."""
    batch = make_batch(random_rows(9, 5), packed=False)
    model, spec = load(tiny_model, kernels("quantised"))
    assert type(model.layers[0].mlp.up_proj) is QuantisedLinear
    wanted, real, warnings = batch_loss(model, batch, "padded").item(), mx.quantized_matmul, list[str]()

    def quantized_matmul(x: mx.array, *given: Any, transpose: bool = True, **how: Any) -> mx.array:
        product = real(x, *given, transpose=transpose, **how)
        spoilt = transpose == (wrong != "backwards") and (wrong != "many rows" or len(x) > 3)
        return product * (mx.nan if wrong == "not a number" else 1.1) if spoilt else product

    quantised_products_are_right.cache_clear()
    monkeypatch.setattr(mx, "quantized_matmul", quantized_matmul)
    model = load_base(spec, kernels("quantised"), warnings.append)
    assert type(model.layers[0].mlp.up_proj) is DequantisingLinear
    assert type(model.model.embed_tokens) is DequantisingEmbedding
    assert batch_loss(model, batch, "padded").item() == pytest.approx(wanted, rel=1e-5)
    (warning,) = warnings
    assert "multiplies weights of 4 bits in groups of 64 (affine) wrongly on this device" in warning
