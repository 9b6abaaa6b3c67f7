"""Cross-entropy of hidden states: the head a part of the trained tokens at a time, with the gradient made on the way.

Knows nothing of models beyond a function from hidden states to logits.
"""

from __future__ import annotations

from collections.abc import Callable

from .device import mx
from .elementwise import fast_cross_entropy

PART_BYTES = 2**27  # of the logits of one part; several arrays of that size are alive at once


def cross_entropy(logits: mx.array, target: mx.array, weight: mx.array) -> mx.array:
    """Sum of -weight · log softmax(logits)[target], float32.

    Args:
        logits: `(T, V)`.
        target: `(T,)`.
        weight: `(T,)`, float32.
    """
    if mx.default_device() == mx.cpu:
        return fast_cross_entropy(logits.astype(mx.float32), target, weight)
    return (mx.fast.cross_entropy(logits, target) * weight).sum()  # float32, where `nn.losses` gives the logits' dtype


def head_loss(
    project: Callable[[mx.array], mx.array], hidden: mx.array, target: mx.array, weight: mx.array, *, gradients: bool
) -> mx.array:
    """Cross-entropy of hidden states `(T, hidden)`, as `cross_entropy` gives it for all their logits.

    Logits of no more than `PART_BYTES` exist at once. With `gradients` that of the hidden states is made with the loss,
    so that no logits wait for the backward pass.
    """

    def part_loss(part: mx.array, target: mx.array, weight: mx.array) -> mx.array:
        return cross_entropy(project(part), target, weight)

    def parts(hidden: mx.array) -> list[tuple[mx.array, mx.array, mx.array]]:
        width = project(hidden[:1]).shape[-1]  # nothing is computed for this
        step = max(1, PART_BYTES // (4 * width))
        return [(hidden[i : i + step], target[i : i + step], weight[i : i + step]) for i in range(0, len(target), step)]

    if not gradients:
        return sum((part_loss(*part) for part in parts(hidden)), mx.array(0.0))

    @mx.custom_function
    def forward(hidden):
        loss, made = mx.array(0.0), []
        for part, *rest in parts(hidden):
            if made:  # one after the other
                part = mx.depends([part], made[-1:])[0]
            value, gradient = mx.value_and_grad(part_loss)(part, *rest)
            loss, made = loss + value, [*made, gradient]
        return loss, mx.concatenate(made)

    @forward.vjp
    def _(_, cotangents, outputs):
        return (outputs[1] * cotangents[0]).astype(hidden.dtype)

    return forward(hidden)[0]
