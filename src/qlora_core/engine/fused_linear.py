"""Layers that multiply one input by their weights, computed together and keeping little for the backward pass.

What a norm or an activation gives is as large as what it is made of, which is kept anyway: it is made again when the
backward pass comes to it. Which layers share an input is seen by watching a model once. Knows nothing of data or loss.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from .device import mx, nn

Pull = Callable[[mx.array], tuple[mx.array, ...]]
"""Takes the gradient of an output to those of its inputs."""


class Cheap(Protocol):
    """A function whose output costs little beside a product with a matrix."""

    def __call__(self, *inputs: mx.array) -> mx.array:
        """The output."""
        ...

    def again(self, *inputs: mx.array) -> tuple[mx.array, Pull]:
        """The output, and its vector-Jacobian product."""
        ...


class Same:
    """An input that nothing was done to."""

    def __call__(self, x: mx.array) -> mx.array:
        """`x`."""
        return x

    def again(self, x: mx.array) -> tuple[mx.array, Pull]:
        """`x`, and its gradient as it is."""
        return x, lambda cotangent: (cotangent,)


class Plain:
    """A cheap function that has no gradient of its own making.

    Args:
        function: of arrays.
    """

    def __init__(self, function: Callable[..., mx.array]) -> None:
        self._function = function

    def __call__(self, *inputs: mx.array) -> mx.array:
        """The output."""
        return self._function(*inputs)

    def again(self, *inputs: mx.array) -> tuple[mx.array, Pull]:
        """The output, and MLX's gradient."""

        def pull(cotangent: mx.array) -> tuple[mx.array, ...]:
            return tuple(mx.vjp(lambda *xs: [self._function(*xs)], list(inputs), [cotangent])[1])

        return self._function(*inputs), pull


class Norm:
    """Root-mean-square norm with a frozen weight (arXiv:1910.07467): no gradient is made for the weight.

    Args:
        module: whose weight and epsilon these are.
    """

    def __init__(self, module: nn.RMSNorm) -> None:
        self._weight, self._eps = module.weight, module.eps

    def __call__(self, x: mx.array) -> mx.array:
        """`x` over its root mean square, times the weight."""
        return mx.fast.rms_norm(x, self._weight, self._eps)

    def again(self, x: mx.array) -> tuple[mx.array, Pull]:
        """The same, and its gradient."""

        def bare(x: mx.array) -> list[mx.array]:
            return [mx.fast.rms_norm(x, None, self._eps)]

        def pull(cotangent: mx.array) -> tuple[mx.array, ...]:
            return tuple(mx.vjp(bare, [x], [cotangent * self._weight])[1])

        return self(x), pull


class Deferred:
    """What a cheap function makes of its inputs, on its way to the layers that multiply it.

    Has the shape that a model may ask for; anything else that is done with it is an error, and then `watch_sharing` was
    wrong about this model.

    Args:
        function: makes it.
        inputs: of the function; the first has its shape.
    """

    def __init__(self, function: Cheap, *inputs: mx.array) -> None:
        self.function, self.inputs = function, inputs
        self.shape, self.dtype, self.ndim = inputs[0].shape, inputs[0].dtype, inputs[0].ndim
        self._value: mx.array | None = None
        self._products: dict[int, mx.array] = {}

    @property
    def value(self) -> mx.array:
        """The array, made once."""
        if self._value is None:
            self._value = self.function(*self.inputs)
        return self._value

    def product(self, layer: Any) -> mx.array:
        """What `layer` makes of it: all layers that share it are computed when the first one asks."""
        if id(layer) not in self._products:
            together = layer.together or (layer,)
            outputs = multiply_together(self, together)
            self._products = {id(one): output for one, output in zip(together, outputs, strict=True)}
        return self._products[id(layer)]


def multiply_together(x: Deferred, layers: Sequence[Any]) -> list[mx.array]:
    """What each of some layers makes of one input: x Wᵀ + scale · x A B, and a bias where there is one.

    One function with its own gradient, which keeps the inputs of `x` and (for each adapter) x A, `rank` columns wide.
    The adapters' products with x are one product. Where a layer has no adapter, its part with A and B is left out.

    Args:
        x: `(…, inputs)`.
        layers: `kernels.FrozenLinear`, or `kernels.LoraAdapter` around one.
    """
    bases = [getattr(layer, "linear", layer) for layer in layers]
    adapted = [i for i, layer in enumerate(layers) if layer is not bases[i] and layer.enabled]
    ends = list(itertools.accumulate(layers[i].lora_a.shape[1] for i in adapted))
    count, value = len(x.inputs), _flat(mx.stop_gradient(x.value))

    def parts(primals: Sequence[mx.array]) -> tuple[list[mx.array], list[mx.array], list[mx.array]]:
        """Inputs, A and scale · B as they are multiplied."""
        arrays = list(primals)
        a, b = arrays[count : count + len(adapted)], arrays[count + len(adapted) :]
        scaled = [(layers[i].scale * one).astype(x.dtype) for i, one in zip(adapted, b, strict=True)]
        return arrays[:count], [one.astype(x.dtype) for one in a], scaled

    @mx.custom_function
    def forward(*primals):
        _, a, b = parts(primals)
        outputs = [base.forward(value) for base in bases]
        low = value @ _joined(a) if a else value[..., :0]
        for i, own, b_i in zip(adapted, _split(low, ends), b, strict=True):
            outputs[i] = mx.addmm(outputs[i], own, b_i)
        return *outputs, low

    @forward.vjp
    def _(primals, cotangents, outputs):
        gradients, low = list(cotangents[:-1]), outputs[-1]
        inputs, a, b = parts([primals] if isinstance(primals, mx.array) else primals)  # one alone comes as it is
        again, pull = x.function.again(*mx.depends(inputs, gradients))
        down = None
        for base, gradient in zip(bases, gradients, strict=True):
            down = base.backward(gradient, down)
        if not adapted:
            return pull(down.reshape(x.shape))
        joined = _joined([gradients[i] @ b_i.T for i, b_i in zip(adapted, b, strict=True)])
        down = mx.addmm(down, joined, _joined(a).T)
        of_a = _split(_flat(again).T @ joined, ends)
        of_b = [layers[i].scale * (own.T @ gradients[i]) for i, own in zip(adapted, _split(low, ends), strict=True)]
        return *pull(down.reshape(x.shape)), *(one.astype(mx.float32) for one in (*of_a, *of_b))

    outputs = forward(*x.inputs, *(layers[i].lora_a for i in adapted), *(layers[i].lora_b for i in adapted))
    biases = [base.get("bias") for base in bases]
    shaped = [y.reshape(*x.shape[:-1], y.shape[-1]) for y in outputs[:-1]]
    return [y if bias is None else y + bias for y, bias in zip(shaped, biases, strict=True)]


def _joined(parts: list[mx.array]) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


def _split(whole: mx.array, ends: list[int]) -> list[mx.array]:
    return mx.split(whole, ends[:-1], axis=-1) if len(ends) > 1 else [whole] if ends else []


def _flat(x: mx.array) -> mx.array:
    return x.reshape(-1, x.shape[-1])


def settled(x: mx.array | Deferred) -> mx.array:
    """The array, also of a `Deferred` that leaves the layers which share it."""
    return x.value if isinstance(x, Deferred) else x


# Seeing who shares what -------------------------------------------------------------------------------------------


class _State(threading.local):
    deferring = False
    watched: dict[int, tuple[mx.array, Any, list[Any]]] | None = None  # value, its maker, layers that multiply it


_state = _State()


@contextmanager
def deferring(on: bool = True) -> Iterator[None]:
    """Inside the block, cheap functions whose users are known hand on a `Deferred`."""
    before, _state.deferring = _state.deferring, on
    try:
        yield
    finally:
        _state.deferring = before


def is_deferring() -> bool:
    """Whether this is inside such a block."""
    return _state.deferring


def made(value: mx.array, maker: Any) -> mx.array:
    """Say that `maker` is a cheap function that made `value`; gives it back."""
    if _state.watched is not None:
        _state.watched[id(value)] = (value, maker, [])
    return value


def used(value: mx.array, layer: Any) -> None:
    """Say that `layer` multiplies `value`."""
    if _state.watched is not None and id(value) in _state.watched:
        _state.watched[id(value)][2].append(layer)


def watch_sharing(forward: Callable[[], Any]) -> list[Any]:
    """Run `forward` once, of which nothing is computed, and note in every layer with whom it shares its input.

    A function hands on `Deferred` from then on where all that it made was multiplied by layers that may be computed
    together. What else used it was not seen: compare a loss before and after, and `stop_sharing` if they differ.

    Returns:
        Those functions.
    """
    _state.watched = {}
    try:
        forward()
        watched = list(_state.watched.values())
    finally:
        _state.watched = None
    inner = {id(layer.linear) for _, _, layers in watched for layer in layers if hasattr(layer, "linear")}
    outer = [(maker, tuple(one for one in layers if id(one) not in inner)) for _, maker, layers in watched]
    refused = {id(maker) for maker, layers in outer if not layers or not all(layer.shares for layer in layers)}
    for maker, layers in outer:
        shared = id(maker) not in refused
        _note(maker, "is_shared", shared)
        for layer in layers:
            _note(layer, "together", layers if shared else ())
    return [maker for maker, _ in outer if id(maker) not in refused]


def stop_sharing(makers: list[Any]) -> None:
    """Let these functions hand on arrays again."""
    for maker in makers:
        _note(maker, "is_shared", False)


def _note(owner: Any, name: str, value: Any) -> None:
    object.__setattr__(owner, name, value)  # past nn.Module, for which it would be a parameter
