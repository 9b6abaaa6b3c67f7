"""Sums of many float32 numbers, the loss and the gradient's norm, against float64."""

import numpy as np
import pytest
from harness import CLOSE, compare, normal

from qlora_core.engine.device import mx
from qlora_core.engine.loss import cross_entropy
from qlora_core.engine.sums import exact_norm, exact_sum

VOCABULARIES = [320, 32_000, 49_152, 50_257, 151_936, 256_000]  # 50,257 has no divisor that is a block
PARAMETERS = [1, 1_000, 2_442_240, 2_442_241, 42_000_000]


def peaked(vocabulary: int, rows: int = 4) -> np.ndarray:
    """Logits of a model that is nearly sure, in float32: one probability beside very many small ones."""
    logits = np.random.default_rng(vocabulary).normal(0, 3, (rows, vocabulary)).astype(np.float32)
    logits[:, 0] += 20
    return logits


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_small_terms_beside_a_large_one_are_not_lost(vocabulary: int) -> None:
    powers = np.exp(peaked(vocabulary) - 20)
    wanted = powers.sum(-1, dtype=np.float64)
    found = np.array(exact_sum(mx.array(powers)), np.float64)
    assert np.max(np.abs(found / wanted - 1)) < 4e-6


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_loss_is_that_of_float64(vocabulary: int) -> None:
    logits = peaked(vocabulary)
    target, weight = np.array([0, 1, 2, 0]), np.array([1.0, 1.0, 0.0, 0.5])
    wide = logits.astype(np.float64)
    log_total = np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1)) + wide.max(-1)
    wanted = weight @ (log_total - wide[np.arange(4), target])
    found = cross_entropy(mx.array(logits), mx.array(target), mx.array(weight.astype(np.float32)))
    assert found.item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("size", PARAMETERS)
def test_a_norm_is_that_of_float64(size: int) -> None:
    rng = np.random.default_rng(size)
    gradient = rng.standard_normal(size, np.float32)
    gradient *= np.exp(rng.standard_normal(size, np.float32))  # most numbers are small beside some
    wanted = np.sqrt(np.square(gradient, dtype=np.float64).sum())
    assert exact_norm(mx.array(gradient)).item() == pytest.approx(wanted, rel=1e-6)


def test_a_loss_of_many_tokens_is_that_of_float64() -> None:
    losses = np.random.default_rng(0).exponential(3, (2, 30_000)).astype(np.float32)
    found = np.array(exact_sum(mx.array(losses)), np.float64)
    assert np.max(np.abs(found / losses.sum(-1, dtype=np.float64) - 1)) < 1e-6


@pytest.mark.parametrize("shape", [(7,), (3, 64), (3, 513), (2, 5, 700), (1, 2_049)])
@pytest.mark.parametrize("device", [mx.cpu, mx.gpu], ids=["as on a CPU", "as on a GPU"])
def test_it_is_a_sum_with_a_gradient(
    monkeypatch: pytest.MonkeyPatch, device: mx.DeviceType, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))
    compare(exact_sum, lambda x: x.sum(-1), mx.abs(normal(*shape)))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not_hidden(value: float) -> None:
    x = np.ones(1_000, np.float32)
    x[123] = value
    assert not np.isfinite(exact_sum(mx.array(x)).item())
    assert not np.isfinite(exact_norm(mx.array(x)).item())


def test_half_precision_is_summed_in_float32() -> None:
    x = mx.full(100_000, 3.0, mx.float16)
    assert exact_sum(x).item() == pytest.approx(300_000, rel=CLOSE)
    assert exact_norm(x).item() == pytest.approx(np.sqrt(900_000), rel=CLOSE)
