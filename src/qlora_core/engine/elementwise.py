"""Elementwise functions that are slow on a CPU, and cross-entropy; they save little for the backward pass.

MLX's `exp` takes 9 to 18 ns an element on x86-64, `fast_exp` takes 2. Knows nothing of layers or models.
"""

from __future__ import annotations

from typing import Any

from .device import mx
from .sums import exact_sum

LOG2_E = 1.4426950408889634
# Coefficients of a polynomial for 2^f, f within ±0.5, to 1e-7 relative; fitted by least squares that are reweighted
# until the error is equally large everywhere (Lawson, 1961).
POWER = (1.0, 0.6931469670643614, 0.24022119723882324, 0.05550713274150644, 0.009675541332747048,
         0.0013276471781351919)  # fmt: skip
ROUNDING = 1.5 * 2.0**23  # adding this to a float32 rounds it: the sum has no bits below 1, and ends in a whole number


def fast_exp(x: mx.array) -> mx.array:
    """Return the exponential of a float32 array, to 6e-7 relative within ±5 and 5e-6 up to ±87.

    Uses range reduction, exp(x) = 2^n · 2^f, and a polynomial for 2^f, all in operations that MLX vectorises
    everywhere: `round`, `clip` and conversions between types would be slower than what is used instead.
    """
    x = mx.minimum(mx.maximum(x, -87.0), 87.0)
    power = x * LOG2_E  # exp(x) = 2^power
    shifted = power + ROUNDING  # its last bits hold n, the whole number nearest to `power`
    rest = power - (shifted - ROUNDING)  # f, within ±0.5
    p = rest * POWER[-1] + POWER[-2]
    for coefficient in POWER[-3::-1]:
        p = p * rest + coefficient
    # multiply by 2^n: add n to the exponent of `p`, which begins at bit 23
    return (p.view(mx.int32) + (shifted.view(mx.int32) << 23)).view(mx.float32)


def _exp(x: mx.array) -> mx.array:
    return fast_exp(x) if mx.default_device() == mx.cpu else mx.exp(x)


class Swiglu:
    """silu(gate) · up, computed in float32, as a cheap function (`fused_linear.Cheap`)."""

    def __call__(self, gate: mx.array, up: mx.array) -> mx.array:
        """Return silu(gate) · up of two arrays of one shape, in their dtype."""
        return (self._silu(gate)[1] * up.astype(mx.float32)).astype(gate.dtype)

    def again(self, gate: mx.array, up: mx.array) -> tuple[mx.array, Any]:
        """Return the same, and a function from its gradient to those of `gate` and `up`.

        On a CPU both use the same exponential.
        """
        s, silu = self._silu(gate)

        def pull(cotangent: mx.array) -> tuple[mx.array, mx.array]:
            factors, inner = (s, silu), up
            if mx.default_device() != mx.cpu:
                # recompute them: passed from one fused kernel to the next, they would be float32 arrays in memory
                outer, inner = mx.depends([gate, up], [cotangent])
                factors = self._silu(outer)
            return self._gradients(cotangent.astype(mx.float32), *factors, inner)

        return (silu * up.astype(mx.float32)).astype(gate.dtype), pull

    @staticmethod
    def _gradients(above: mx.array, s: mx.array, silu: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
        below = above * up.astype(mx.float32) * (s + silu * (1 - s))  # d silu(x) / dx = s + x · s · (1 - s)
        return below.astype(up.dtype), (above * silu).astype(up.dtype)

    @staticmethod
    def _silu(gate: mx.array) -> tuple[mx.array, mx.array]:
        wide = gate.astype(mx.float32)
        s = 1 / (1 + _exp(-wide))  # sigmoid
        return s, wide * s


_swiglu = Swiglu()


@mx.custom_function
def fast_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """Compute silu(gate) · up, saving nothing but its inputs for the backward pass."""
    return _swiglu(gate, up)


@fast_swiglu.vjp
def _fast_swiglu_vjp(primals, cotangent, _):
    return _swiglu.again(*primals)[1](cotangent)


@mx.custom_function
def _cross_entropy(logits: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    losses, powers, total = _token_losses(logits, targets)
    # `powers` and `total` are outputs so that the backward pass need not compute the exponentials again
    return exact_sum(weights * losses), powers, total


def _token_losses(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    top = logits.max(-1, keepdims=True)  # (N, 1); subtracted so that no exponential overflows
    powers = fast_exp(logits - top)  # (N, V)
    total = exact_sum(powers)[:, None]  # (N, 1)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)  # (N, 1)
    return (mx.log(total) + top - chosen)[:, 0], powers, total


@_cross_entropy.vjp
def _cross_entropy_vjp(primals, cotangents, outputs):
    _, targets, weights = primals
    _, powers, total = outputs
    weights = weights * cotangents[0]
    gradient = powers * (weights[:, None] / total)  # weight · softmax(logits), (N, V)
    return (
        gradient.at[mx.arange(len(targets)), targets].subtract(weights),
        mx.zeros_like(targets),
        mx.zeros_like(weights),
    )


def fast_cross_entropy(logits: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
    """Return the sum of -weight · log softmax(logits)[target] over all rows; made for a CPU.

    Args:
        logits: `(N, V)` float32.
        targets: `(N,)`, from 0 to V - 1.
        weights: `(N,)` float32; they get no gradient.
    """
    return _cross_entropy(logits, targets, weights)[0]


def fast_token_losses(logits: mx.array, targets: mx.array) -> mx.array:
    """Return -log softmax(logits)[target] of each row, `(N,)`, as `fast_cross_entropy` sums them; without gradient."""
    return _token_losses(logits, targets)[0]
