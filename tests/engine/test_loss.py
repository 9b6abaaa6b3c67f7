"""The head's loss a part at a time against the cross-entropy of all logits at once."""

from collections.abc import Callable

import numpy as np
import pytest
from harness import compare, difference, normal

from qlora_core.engine import loss
from qlora_core.engine.device import mx, nn
from qlora_core.engine.loss import cross_entropy, head_loss

ROWS, WIDTH, VOCABULARY = 10, 16, 50
HIDDEN, MATRIX = normal(ROWS, WIDTH), normal(VOCABULARY, WIDTH)
TARGET = mx.array(np.random.default_rng(3).integers(0, VOCABULARY, ROWS).astype(np.int32))
WEIGHT = mx.array([1.0] * 6 + [0.0, 0.5, 1.0, 0.0])

Project = Callable[[mx.array], mx.array]


class Head:
    """A head that notes of how many rows it makes logits, and how often a gradient comes back."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.backwards = 0

    def __call__(self, hidden: mx.array) -> mx.array:
        self.rows.append(len(hidden))

        @mx.custom_function
        def project(hidden):
            return hidden @ MATRIX.T.astype(hidden.dtype)

        @project.vjp
        def _(_, cotangent, __):
            self.backwards += 1
            return cotangent @ MATRIX.astype(cotangent.dtype)

        return project(hidden)


def loss_of_all(hidden: mx.array) -> mx.array:
    """Of all logits at once, by MLX alone."""
    return (WEIGHT * nn.losses.cross_entropy(hidden @ MATRIX.T, TARGET)).sum()


PARTS = {1: [10], 2: [5, 5], 4: [3, 3, 3, 1], 5: [2] * 5, 10: [1] * 10}


@pytest.fixture(params=PARTS)
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each part has, with room for so many parts."""
    rows = PARTS[request.param]
    monkeypatch.setattr(loss, "PART_BYTES", 4 * VOCABULARY * rows[0])
    return rows


@pytest.mark.parametrize("gradients", [True, False])
def test_in_parts_it_is_the_loss_of_all_logits(parts: list[int], gradients: bool) -> None:
    """With its gradient, also where that was not asked for beforehand."""
    head = Head()
    compare(lambda hidden: head_loss(head, hidden, TARGET, WEIGHT, gradients=gradients), loss_of_all, HIDDEN)
    assert head.rows == [1, *parts]  # the first to see how wide logits are


def test_a_gradient_is_made_where_one_is_asked_for(parts: list[int]) -> None:
    for gradients, backwards in ((False, 0), (True, len(parts))):
        head = Head()
        value = head_loss(head, HIDDEN, TARGET, WEIGHT, gradients=gradients)
        assert difference(value, loss_of_all(HIDDEN)) < 1e-6
        assert head.backwards == backwards


def test_a_row_wider_than_a_part_is_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PART_BYTES", 1)
    compare(lambda hidden: head_loss(Head(), hidden, TARGET, WEIGHT, gradients=True), loss_of_all, HIDDEN)


@pytest.mark.parametrize("gradients", [True, False])
def test_rows_of_weight_0_count_nothing(parts: list[int], gradients: bool) -> None:
    filled = WEIGHT != 0

    def loss_and_gradient(hidden: mx.array, target: mx.array) -> tuple[mx.array, mx.array]:
        return mx.value_and_grad(lambda hidden: head_loss(Head(), hidden, target, WEIGHT, gradients=gradients))(hidden)

    value, gradient = loss_and_gradient(HIDDEN, TARGET)
    assert not np.any(np.array(gradient)[~np.array(filled)])
    other, same = loss_and_gradient(mx.where(filled[:, None], HIDDEN, 0.0), mx.where(filled, TARGET, 0))
    assert (value.item(), np.array(gradient).tolist()) == (other.item(), np.array(same).tolist())


def test_half_precision_has_a_float32_loss_and_a_gradient_of_its_own(parts: list[int]) -> None:
    hidden = HIDDEN.astype(mx.float16)
    value, gradient = mx.value_and_grad(lambda x: head_loss(Head(), x, TARGET, WEIGHT, gradients=True))(hidden)
    wanted, expected = mx.value_and_grad(loss_of_all)(hidden.astype(mx.float32))
    assert (value.dtype, gradient.dtype) == (mx.float32, mx.float16)
    assert difference(value, wanted) < 1e-3  # 11 bits
    assert difference(gradient, expected) < 2e-3


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_on_a_gpu_no_tokens_loss_is_rounded_to_half_precision(monkeypatch: pytest.MonkeyPatch, dtype: mx.Dtype) -> None:
    """MLX's kernel there sums in float32, which is stood in for here."""
    kernel = mx.fast.cross_entropy
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    monkeypatch.setattr(mx.fast, "cross_entropy", lambda logits, targets: kernel(logits.astype(mx.float32), targets))
    logits, target = normal(ROWS, VOCABULARY, size=3).astype(dtype), np.array(TARGET)
    found = cross_entropy(logits, TARGET, WEIGHT)
    exact = np.array(logits.astype(mx.float32)).astype(np.float64)
    losses = np.log(np.exp(exact).sum(-1)) - exact[np.arange(ROWS), target]
    assert found.dtype == mx.float32
    assert found.item() == pytest.approx((losses * np.array(WEIGHT)).sum(), rel=1e-6)
