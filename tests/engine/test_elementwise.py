"""What replaces MLX's exponential on a CPU, against float64 and against MLX's own functions and gradients."""

import numpy as np
import pytest
from harness import compare, normal

from qlora_core.engine.device import mx, nn
from qlora_core.engine.elementwise import fast_cross_entropy, fast_exp, fast_swiglu


@pytest.mark.parametrize(("limit", "error"), [(5.0, 6e-7), (86.9, 5e-6)])
def test_fast_exp_is_as_exact_as_it_says(limit: float, error: float) -> None:
    x = np.linspace(-limit, limit, 200_001).astype(np.float32)
    wanted = np.exp(x.astype(np.float64))
    assert np.max(np.abs(np.array(fast_exp(mx.array(x))) - wanted) / wanted) < error


def test_fast_exp_of_zero_is_one() -> None:
    assert fast_exp(mx.array(0.0)).item() == 1.0


def test_fast_exp_of_masked_scores_is_nothing_beside_one() -> None:
    assert np.all(np.array(fast_exp(mx.array([-1e9, -np.inf, -200.0]))) < 1e-37)


def test_fast_exp_does_not_hide_nan() -> None:
    assert np.isnan(fast_exp(mx.array(np.nan)).item())


@pytest.mark.parametrize("device", [mx.cpu, mx.gpu], ids=["as on a CPU", "as on a GPU"])
def test_fast_swiglu_is_silu_times_up(monkeypatch: pytest.MonkeyPatch, device: mx.DeviceType) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))
    gate, up = normal(7, 33, size=4), normal(7, 33, seed=1)
    compare(fast_swiglu, lambda gate, up: nn.silu(gate) * up, gate, up)


def test_fast_swiglu_far_from_zero() -> None:
    gate = mx.array([-1000.0, -80.0, 80.0, 1000.0])
    found = np.array(fast_swiglu(gate, mx.full(4, 2.0)))
    np.testing.assert_allclose(found, [0.0, 0.0, 160.0, 2000.0], atol=1e-30)


@pytest.mark.parametrize("size", [1.0, 200.0])
def test_fast_cross_entropy_is_cross_entropy(size: float) -> None:
    targets = mx.array(np.random.default_rng(3).integers(0, 50, 11).astype(np.int32))
    weights = mx.array([1.0] * 8 + [0.0, 0.5, 1.0])

    def plain(logits: mx.array) -> mx.array:
        return (weights * nn.losses.cross_entropy(logits, targets)).sum()

    compare(lambda logits: fast_cross_entropy(logits, targets, weights), plain, normal(11, 50, size=size))
