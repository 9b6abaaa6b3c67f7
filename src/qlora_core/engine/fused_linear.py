"""Linear layers that share an input, computed together and keeping little for the backward pass.

A norm's output is as large as its input, which is kept anyway; the same holds for an activation. So the output is
recomputed in the backward pass instead of being kept. Which layers share an input is found by watching a model once.
Knows nothing of data or loss.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from .device import mx, nn

Pull = Callable[[mx.array], tuple[mx.array, ...]]
"""Maps the gradient of an output to those of its inputs."""


class Cheap(Protocol):
    """A function that costs little compared with a matrix product."""

    def __call__(self, *inputs: mx.array) -> mx.array:
        """Return the output."""
        ...

    def again(self, *inputs: mx.array) -> tuple[mx.array, Pull]:
        """Return the output, and its vector-Jacobian product."""
        ...


class Same:
    """The identity, for an input that is used as it is."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return `x`."""
        return x

    def again(self, x: mx.array) -> tuple[mx.array, Pull]:
        """Return `x`, and a function that passes its gradient on."""
        return x, lambda cotangent: (cotangent,)


class Plain:
    """A cheap function that uses MLX's gradient.

    Args:
        function: a function of arrays.
    """

    def __init__(self, function: Callable[..., mx.array]) -> None:
        self._function = function

    def __call__(self, *inputs: mx.array) -> mx.array:
        """Return the output."""
        return self._function(*inputs)

    def again(self, *inputs: mx.array) -> tuple[mx.array, Pull]:
        """Return the output, and MLX's gradient of it."""

        def pull(cotangent: mx.array) -> tuple[mx.array, ...]:
            return tuple(mx.vjp(lambda *xs: [self._function(*xs)], list(inputs), [cotangent])[1])

        return self._function(*inputs), pull


class Norm:
    """Root-mean-square norm with a frozen weight (arXiv:1910.07467): no gradient is computed for the weight.

    Args:
        module: the norm whose weight and epsilon are used.
    """

    def __init__(self, module: nn.RMSNorm) -> None:
        self._weight, self._eps = module.weight, module.eps

    def __call__(self, x: mx.array) -> mx.array:
        """Return `x` divided by its root mean square, times the weight."""
        return mx.fast.rms_norm(x, self._weight, self._eps)

    def again(self, x: mx.array) -> tuple[mx.array, Pull]:
        """Return the same, and its gradient."""

        def bare(x: mx.array) -> list[mx.array]:
            return [mx.fast.rms_norm(x, None, self._eps)]

        def pull(cotangent: mx.array) -> tuple[mx.array, ...]:
            return tuple(mx.vjp(bare, [x], [cotangent * self._weight])[1])

        return self(x), pull


class Deferred:
    """The output of a cheap function, not yet computed, on its way to the layers that multiply it.

    It has a shape, which a model may ask for. Any other use of it is an error, which means that `watch_sharing` was
    wrong about this model.

    Args:
        function: computes the output.
        inputs: of the function; the output has the shape of the first.
    """

    def __init__(self, function: Cheap, *inputs: mx.array) -> None:
        self.function, self.inputs = function, inputs
        self.shape, self.dtype, self.ndim = inputs[0].shape, inputs[0].dtype, inputs[0].ndim
        self._value: mx.array | None = None
        self._products: dict[int, mx.array] = {}

    @property
    def value(self) -> mx.array:
        """Return the output as an array, computed once."""
        if self._value is None:
            self._value = self.function(*self.inputs)
        return self._value

    def product(self, layer: Any) -> mx.array:
        """Return the output of `layer`; when the first layer asks, all layers that share this input are computed."""
        if id(layer) not in self._products:
            together = layer.together or (layer,)
            outputs = multiply_together(self, together)
            self._products = {id(one): output for one, output in zip(together, outputs, strict=True)}
        return self._products[id(layer)]


def multiply_together(x: Deferred, layers: Sequence[Any]) -> list[mx.array]:
    """Return the outputs of layers with a common input: x Wᵀ + scale · x A B, plus a bias if there is one.

    They are one function with its own gradient. For the backward pass it keeps the inputs of `x` and, for each adapter,
    x A, which has only `rank` columns. The products of x with all matrices A are one product. A layer without an
    adapter has no terms with A and B.

    Args:
        x: `(…, inputs)`.
        layers: `kernels.FrozenLinear`, or `kernels.LoraAdapter` around one.
    """
    # Shapes: N tokens, `inputs` columns of x, `outputs` rows of each W; r is the sum of the ranks of all adapters.
    bases = [getattr(layer, "linear", layer) for layer in layers]
    adapted = [i for i, layer in enumerate(layers) if layer is not bases[i] and layer.enabled]
    ends = list(itertools.accumulate(layers[i].lora_a.shape[1] for i in adapted))  # where each adapter ends in r
    count, value = len(x.inputs), _flat(mx.stop_gradient(x.value))  # (N, inputs); gradients go by the function's inputs

    def parts(primals: Sequence[mx.array]) -> tuple[list[mx.array], list[mx.array], list[mx.array]]:
        """Split the arguments into inputs, matrices A and matrices scale · B, in the dtype of the product."""
        arrays = list(primals)
        a, b = arrays[count : count + len(adapted)], arrays[count + len(adapted) :]
        scaled = [(layers[i].scale * one).astype(x.dtype) for i, one in zip(adapted, b, strict=True)]
        return arrays[:count], [one.astype(x.dtype) for one in a], scaled

    @mx.custom_function
    def forward(*primals):
        _, a, b = parts(primals)
        outputs = [base.forward(value) for base in bases]  # each (N, outputs)
        low = value @ _joined(a) if a else value[..., :0]  # x A of all adapters, (N, r)
        for i, own, b_i in zip(adapted, _split(low, ends), b, strict=True):
            outputs[i] = mx.addmm(outputs[i], own, b_i)
        return *outputs, low  # `low` is an output so that the backward pass has it

    @forward.vjp
    def _(primals, cotangents, outputs):
        gradients, low = list(cotangents[:-1]), outputs[-1]
        inputs, a, b = parts([primals] if isinstance(primals, mx.array) else primals)  # a single one is not in a tuple
        # `depends`: recompute x only when its gradient is due; MLX could otherwise do so for many layers at once
        again, pull = x.function.again(*mx.depends(inputs, gradients))
        down = None  # gradient of x, (N, inputs)
        for base, gradient in zip(bases, gradients, strict=True):
            down = base.backward(gradient, down)
        if not adapted:
            return pull(down.reshape(x.shape))
        joined = _joined([gradients[i] @ b_i.T for i, b_i in zip(adapted, b, strict=True)])  # gradient of x A, (N, r)
        down = mx.addmm(down, joined, _joined(a).T)
        of_a = _split(_flat(again).T @ joined, ends)  # each (inputs, rank)
        # each (rank, outputs)
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
    """Return the array of a `Deferred` that leaves the layers which share it, or an array as it is."""
    return x.value if isinstance(x, Deferred) else x


# Finding out which layers share an input --------------------------------------------------------------------------


class _State(threading.local):
    deferring = False
    # by the id of an array: the array, the function that made it, the layers that multiply it; None: not watching
    watched: dict[int, tuple[mx.array, Any, list[Any]]] | None = None


_state = _State()


@contextmanager
def deferring(on: bool = True) -> Iterator[None]:
    """Make cheap functions with known users return a `Deferred` inside the block."""
    before, _state.deferring = _state.deferring, on
    try:
        yield
    finally:
        _state.deferring = before


def is_deferring() -> bool:
    """Return whether this runs inside a block of `deferring`."""
    return _state.deferring


def made(value: mx.array, maker: Any) -> mx.array:
    """Note that the cheap function `maker` made `value`; return `value`."""
    if _state.watched is not None:
        _state.watched[id(value)] = (value, maker, [])
    return value


def used(value: mx.array, layer: Any) -> None:
    """Note that `layer` multiplies `value`."""
    if _state.watched is not None and id(value) in _state.watched:
        _state.watched[id(value)][2].append(layer)


def watch_sharing(forward: Callable[[], Any]) -> list[Any]:
    """Trace `forward` once, without computing anything, and note for every layer which others share its input.

    From then on a function returns a `Deferred` if all of its outputs were multiplied by layers that may be computed
    together. Other uses of an output cannot be seen: compare a loss before and after, and call `stop_sharing` if they
    differ.

    Returns:
        The functions that return a `Deferred` from now on.
    """
    _state.watched = {}
    try:
        forward()
        watched = list(_state.watched.values())
    finally:
        _state.watched = None
    # an adapter calls the linear layer inside it with the same input: only the adapter counts
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
    """Make these functions return arrays again."""
    for maker in makers:
        _note(maker, "is_shared", False)


def _note(owner: Any, name: str, value: Any) -> None:
    object.__setattr__(owner, name, value)  # bypasses nn.Module, which would take it for a parameter or a submodule
