"""Cross-entropy from hidden states, which applies the output head to some of the trained tokens at a time.

The gradient is computed together with the loss. Knows nothing of models beyond a function from hidden states to logits.
"""

from __future__ import annotations

from collections.abc import Callable

from .device import mx
from .elementwise import fast_cross_entropy, fast_token_losses

PART_BYTES = 2**27  # size of the logits of one part, in float32; several arrays of that size are alive at once


def cross_entropy(logits: mx.array, target: mx.array, weight: mx.array) -> mx.array:
    """Return the sum of -weight · log softmax(logits)[target], float32.

    Args:
        logits: `(T, V)`.
        target: `(T,)`.
        weight: `(T,)`, float32.
    """
    if mx.default_device() == mx.cpu:
        return fast_cross_entropy(logits.astype(mx.float32), target, weight)
    # unlike `nn.losses`, which returns the dtype of the logits, this computes each token's loss in float32
    return (mx.fast.cross_entropy(logits, target) * weight).sum()


def token_losses(logits: mx.array, target: mx.array) -> mx.array:
    """Return -log softmax(logits)[target] of each token, float32 `(T,)`, for logits `(T, V)`; without gradient."""
    if mx.default_device() == mx.cpu:
        return fast_token_losses(logits.astype(mx.float32), target)
    return mx.fast.cross_entropy(logits, target)


def head_token_losses(project: Callable[[mx.array], mx.array], hidden: mx.array, target: mx.array) -> mx.array:
    """Return the loss of each token from hidden states `(T, hidden)`, `(T,)`, with little memory as `head_loss`."""
    step, losses = _part_size(project, hidden), list[mx.array]()
    for i in range(0, len(target), step):
        part = mx.depends([hidden[i : i + step]], losses[-1:])[0]  # one after the other
        losses.append(token_losses(project(part), target[i : i + step]))
    return mx.concatenate(losses)


def _part_size(project: Callable[[mx.array], mx.array], hidden: mx.array) -> int:
    """Return how many tokens' logits may exist at once."""
    width = project(hidden[:1]).shape[-1]  # the vocabulary's size; MLX is lazy, so only the shape is worked out
    return max(1, PART_BYTES // (4 * width))


def head_loss(
    project: Callable[[mx.array], mx.array], hidden: mx.array, target: mx.array, weight: mx.array, *, gradients: bool
) -> mx.array:
    """Return the cross-entropy of hidden states `(T, hidden)`, summed as `cross_entropy` does.

    At most `PART_BYTES` of logits exist at once. With `gradients`, the gradient of the hidden states is computed
    together with the loss, so that no logits have to be kept for the backward pass.
    """

    def part_loss(part: mx.array, target: mx.array, weight: mx.array) -> mx.array:
        return cross_entropy(project(part), target, weight)

    def parts(hidden: mx.array) -> list[tuple[mx.array, mx.array, mx.array]]:
        step = _part_size(project, hidden)
        return [(hidden[i : i + step], target[i : i + step], weight[i : i + step]) for i in range(0, len(target), step)]

    if not gradients:
        return sum((part_loss(*part) for part in parts(hidden)), mx.array(0.0))

    @mx.custom_function
    def forward(hidden):
        loss, gradients = mx.array(0.0), []
        for part, *rest in parts(hidden):  # part: (t, hidden), t ≤ T
            if gradients:  # one part after the other: together their logits would be in memory at once
                part = mx.depends([part], gradients[-1:])[0]
            value, gradient = mx.value_and_grad(part_loss)(part, *rest)
            loss, gradients = loss + value, [*gradients, gradient]
        return loss, mx.concatenate(gradients)  # (), (T, hidden)

    @forward.vjp
    def _(_, cotangents, outputs):
        return (outputs[1] * cotangents[0]).astype(hidden.dtype)  # the second output already is the gradient

    return forward(hidden)[0]
