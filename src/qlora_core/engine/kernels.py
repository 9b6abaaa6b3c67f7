"""Alternative kernels for what mlx-lm's models compute, with equal results (see the tests of this module).

Frozen linear layers that dequantise, adapters that compute in the dtype of the activations, and changes that make
attention, norms and SwiGLU aware of packed rows and shared inputs. Knows nothing of data, batches or training.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..runs.kernel_choice import Kernels
from .attention import PackedRows, Positions, SlicedRows, fast_attention, packed_attention
from .device import ON_CPU, mx, nn
from .elementwise import Swiglu, fast_exp, fast_swiglu
from .fused_linear import Deferred, Norm, Plain, Same, is_deferring, made, multiply_together, used
from .lazy_import import imported_later

# Linear layers --------------------------------------------------------------------------------------------------


class FrozenLinear:
    """A linear layer of the base model, which defines its product in each direction.

    Attributes:
        together: layers that share its input, including itself; empty if unknown.
        shares: whether it may be computed together with others.
    """

    together: tuple[Any, ...] = ()
    shares = True

    def forward(self, x: mx.array) -> mx.array:
        """Compute x Wᵀ of `(…, inputs)`, without a gradient."""
        raise NotImplementedError

    def backward(self, gradient: mx.array, onto: mx.array | None = None) -> mx.array:
        """Compute gradient · W of `(…, outputs)`, added to `onto`."""
        raise NotImplementedError

    def product(self, x: mx.array) -> mx.array:
        """Compute x Wᵀ of `(…, inputs)`, without the bias; nothing is kept for the gradient."""

        @mx.custom_function
        def linear(x):
            return self.forward(x)

        @linear.vjp
        def _(_, cotangent, __):
            return self.backward(cotangent)

        return linear(x)

    def __call__(self, x: mx.array | Deferred) -> mx.array:
        """Return the outputs `(…, outputs)` of inputs `(…, inputs)`."""
        if isinstance(x, Deferred):
            return x.product(self)
        used(x, self)
        y = self.product(x)
        return y + self["bias"] if "bias" in self else y


def _product(a: mx.array, b: mx.array, onto: mx.array | None) -> mx.array:
    return a @ b if onto is None else mx.addmm(onto, a, b)


class Dequantising:
    """A frozen quantised matrix that is dequantised before it is multiplied.

    With `keep`, the dequantised matrix stays in memory; without, each use computes it anew, and nothing is saved for
    the backward pass. The parameters remain those of the quantised layer.
    """

    keep = False

    def _dense(self, after: mx.array) -> mx.array:
        """Return W, `(outputs, inputs)`, which is computed after `after` if it is not kept."""
        if not self.keep:
            # depends on the other operand: otherwise MLX could dequantise all weights of the model ahead of time
            return _dequantise(self, mx.depends([self.weight], [after])[0])
        if "_kept" not in self.__dict__:
            kept = _dequantise(self, self.weight)
            if ON_CPU:  # column-major: with few rows up to twice as fast, with many as fast, and equal to the bit
                kept = mx.contiguous(kept.T).T
            mx.eval(kept)
            _keep(self, kept)
        return self.__dict__["_kept"]

    def forward(self, x: mx.array) -> mx.array:
        """Compute x Wᵀ."""
        return x @ self._dense(x).T

    def backward(self, gradient: mx.array, onto: mx.array | None = None) -> mx.array:
        """Compute gradient · W, added to `onto`."""
        return _product(gradient, self._dense(gradient), onto)


class DequantisingLinear(Dequantising, FrozenLinear, nn.QuantizedLinear):
    """A frozen quantised linear layer that dequantises its weight for every product, forwards and backwards."""


class DequantisingEmbedding(Dequantising, nn.QuantizedEmbedding):
    """A frozen quantised embedding that dequantises its weight when it is used as the output layer."""

    product = FrozenLinear.product

    def as_linear(self, x: mx.array) -> mx.array:
        """Return the logits of hidden states `(…, dims)`."""
        return self.product(x)


def _keep(layer: Any, dense: mx.array) -> None:
    object.__setattr__(layer, "_kept", dense)  # bypasses nn.Module, which would take it for a parameter


class QuantisedLinear(FrozenLinear, nn.QuantizedLinear):
    """MLX's quantised linear layer, frozen."""

    def forward(self, x: mx.array) -> mx.array:
        """Compute x Wᵀ."""
        return self._multiply(x, transpose=True)

    def backward(self, gradient: mx.array, onto: mx.array | None = None) -> mx.array:
        """Compute gradient · W, added to `onto`."""
        product = self._multiply(gradient, transpose=False)
        return product if onto is None else product + onto

    def _multiply(self, x: mx.array, *, transpose: bool) -> mx.array:
        return mx.quantized_matmul(
            x,
            self["weight"],
            scales=self["scales"],
            biases=self.get("biases"),
            transpose=transpose,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )


class PlainLinear(FrozenLinear, nn.Linear):
    """MLX's linear layer, frozen."""

    def forward(self, x: mx.array) -> mx.array:
        """Compute x Wᵀ."""
        return x @ self["weight"].T

    def backward(self, gradient: mx.array, onto: mx.array | None = None) -> mx.array:
        """Compute gradient · W, added to `onto`."""
        return _product(gradient, self["weight"], onto)


class KeyedDropout(nn.Dropout):
    """Dropout that draws its mask from a key, if it has one: a layer that is recomputed drops the same numbers."""

    key: mx.array | None = None

    def use_key(self, key: mx.array | None) -> None:
        """Draw masks from `key`; None: from the global state, as MLX does."""
        object.__setattr__(self, "key", key)  # bypasses nn.Module, which would take it for a parameter

    def __call__(self, x: mx.array) -> mx.array:
        """Drop some numbers of `x` and scale up the others, while training."""
        if self._p_1 == 1 or not self.training:
            return x
        return (mx.random.bernoulli(self._p_1, x.shape, key=self.key) * x) * (1 / self._p_1)


def draw_keys(count: int) -> list[mx.array]:
    """Draw random keys from the global state."""
    return list(mx.random.randint(0, 2**32 - 1, (count, 2), mx.uint32)) if count else []


_NOT_FOR_US = (
    "transformers", "transformers.tokenization_utils_base", "huggingface_hub",
    "mlx_lm.tuner.trainer", "mlx_lm.tuner.utils",
)  # fmt: skip
"""Imports of mlx-lm for loading tokenisers, fetching models and training, none of which it does here: one second."""


def _adapters_of_mlx_lm() -> tuple[type, type]:
    with imported_later(*_NOT_FOR_US):
        from mlx_lm.tuner.dora import DoRALinear  # imported here since `device` must come before any import of mlx
        from mlx_lm.tuner.lora import LoRALinear

    return LoRALinear, DoRALinear


LoRALinear, DoRALinear = _adapters_of_mlx_lm()


class Adapter:
    """An adapter on a linear layer; with `enabled` False it computes what the base model does, to the bit."""

    enabled = True
    together: tuple[Any, ...] = ()

    @classmethod
    def wrap(cls, linear: nn.Module, rank: int, scale: float, dropout: float) -> nn.Module:
        """Put an adapter with B = 0 on a linear layer of the base."""
        made = cls.from_base(linear, r=rank, scale=scale, dropout=dropout)  # type: ignore[attr-defined]
        made.__class__ = cls
        made.dropout.__class__ = KeyedDropout
        return made

    def low_rank(self, x: mx.array) -> mx.array:
        """Compute scale · x A B, with A and B in float32 and the arithmetic in the dtype of `x`."""
        low = self.dropout(x) @ self.lora_a.astype(x.dtype)  # type: ignore[attr-defined] # (…, rank)
        return low @ (self.scale * self.lora_b).astype(x.dtype)  # type: ignore[attr-defined] # (…, outputs)


class LoraAdapter(Adapter, LoRALinear):
    """LoRA (arXiv:2106.09685), in mlx-lm's format."""

    @property
    def shares(self) -> bool:
        """Return whether it may be computed with others: with dropout each one has a different input."""
        return self.dropout._p_1 == 1

    def __call__(self, x: mx.array | Deferred) -> mx.array:
        """Return the outputs `(…, outputs)` of inputs `(…, inputs)`."""
        if isinstance(x, Deferred):
            return x.product(self)
        used(x, self)
        if is_deferring() and self.shares:
            return multiply_together(Deferred(Same(), x), (self,))[0]
        y = self.linear(x)
        return y + self.low_rank(x) if self.enabled else y


class DoraAdapter(Adapter, DoRALinear):
    """DoRA (arXiv:2402.09353), in mlx-lm's format: the outputs' magnitudes `m` are learnt apart from their directions.

    No gradient goes through the norms of the rows of W + scale (A B)ᵀ (section 4.3 there). They are computed without
    that sum: |w + s·b|² = |w|² + 2 s w·b + s²|b|², where w·b and b·b follow from W A and Aᵀ A, which have `rank`
    columns.
    """

    shares = False

    @classmethod
    def wrap(cls, linear: nn.Module, rank: int, scale: float, dropout: float) -> nn.Module:
        """Put an adapter with B = 0, and with the magnitudes of the base, on a linear layer of the base."""
        made = super().wrap(linear, rank, scale, dropout)
        squares = made.m.square()
        mx.eval(made.m, squares)  # one layer at a time, since each is dequantised for this
        object.__setattr__(made, "_squares", squares)  # bypasses nn.Module, which would take it for a parameter
        return made

    def __call__(self, x: mx.array) -> mx.array:
        """Return the outputs `(…, outputs)` of inputs `(…, inputs)`."""
        used(x, self)
        if not self.enabled:
            return self.linear(x)
        y = (self.m / self._norms(x.dtype)).astype(x.dtype) * (self.linear.product(x) + self.low_rank(x))
        return y + self.linear["bias"] if "bias" in self.linear else y

    def _norms(self, dtype: mx.Dtype) -> mx.array:
        a, b = mx.stop_gradient(self.lora_a), mx.stop_gradient(self.scale * self.lora_b)
        along = (self.linear.product(a.T.astype(dtype)).astype(mx.float32) * b).sum(0)  # s w·b, (outputs,)
        own = (b * ((a.T @ a) @ b)).sum(0)  # s² |b|², (outputs,)
        return mx.stop_gradient(mx.sqrt(mx.maximum(self._squares + 2 * along + own, 1e-12)))


ADAPTERS = {"lora": LoraAdapter, "dora": DoraAdapter}


def _dequantise(layer: Any, weight: mx.array) -> mx.array:
    return mx.dequantize(
        weight, layer.scales, layer.get("biases"), group_size=layer.group_size, bits=layer.bits, mode=layer.mode
    )


# Checking MLX's own products ----------------------------------------------------------------------------------------

TOLERANCE = {"float16": 5e-3, "bfloat16": 3e-2, "float32": 2e-3}  # relative; a wrong product is off by far more


@functools.cache
def quantised_products_are_right(dtype: str, *, bits: int, group_size: int, mode: str = "affine") -> bool:
    """Return whether MLX's products with quantised weights are right here, forwards and backwards.

    Tried with few rows and with many, which use different kernels. The product of the backward pass was wrong on an M5
    before MLX 0.32.1, without any error. Not yet run on Metal.
    """
    rng, kind = np.random.default_rng(0), getattr(mx, dtype)
    drawn = mx.array(rng.normal(0, 0.05, (128, 256)).astype(np.float32)).astype(kind)
    how = {"group_size": group_size, "bits": bits, "mode": mode}
    packed, *scales = mx.quantize(drawn, **how)
    dense = np.array(mx.dequantize(packed, *scales, **how).astype(mx.float32))
    for rows, transpose in itertools.product((3, 40), (True, False)):
        weight = dense.T if transpose else dense
        x = mx.array(rng.normal(size=(rows, len(weight))).astype(np.float32)).astype(kind)
        wanted = np.array(x.astype(mx.float32)) @ weight
        found = np.array(mx.quantized_matmul(x, packed, *scales, transpose=transpose, **how).astype(mx.float32))
        if not np.linalg.norm(found - wanted) <= TOLERANCE[dtype] * np.linalg.norm(wanted):  # `not`: NaN is wrong too
            return False
    return True


def wrong_products(model: nn.Module, dtype: str) -> list[str]:
    """Return the kinds of quantised weights in a model that MLX's own product is wrong for, in words."""
    layers = [module for module in model.modules() if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)]
    kinds = sorted({(layer.bits, layer.group_size, layer.mode) for layer in layers})
    return [
        f"{bits} bits in groups of {size} ({mode})"
        for bits, size, mode in kinds
        if not quantised_products_are_right(dtype, bits=bits, group_size=size, mode=mode)
    ]


# Using the kernels in a model -------------------------------------------------------------------------------------


def use_linear_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Make every linear layer and embedding of a model use `kernels`, in place."""
    dequantise = kernels.linear != "quantised"
    chosen = {
        nn.QuantizedLinear: DequantisingLinear if dequantise else QuantisedLinear,
        nn.QuantizedEmbedding: DequantisingEmbedding if dequantise else nn.QuantizedEmbedding,
        nn.Linear: PlainLinear,
    }
    for module in model.modules():
        if replacement := chosen.get(type(module)):
            module.__class__ = replacement
            if dequantise and replacement is not PlainLinear:
                object.__setattr__(module, "keep", kernels.linear == "kept")


def dequantise_kept(model: nn.Module, streams: Sequence[mx.Stream]) -> None:
    """Dequantise all weights that are kept dequantised, on all streams at once instead of one by one at first use."""
    layers = [module for module in model.modules() if isinstance(module, DequantisingLinear) and module.keep]
    made = []
    for layer, stream in zip(layers, itertools.cycle(streams)):
        with mx.stream(stream):
            made.append(_dequantise(layer, layer.weight))
    mx.eval(made)
    for layer, kept in zip(layers, made, strict=True):
        _keep(layer, kept)


def use_attention_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Make the functions that a model's modules call aware of packed rows and of the device.

    Their `scaled_dot_product_attention` and `swiglu` are replaced by functions that call the originals for everything
    that they do not know (a KV cache, a window, a mask of the model's own).
    """
    for name in {type(module).__module__ for module in model.modules()}:  # a model may use layers of another family
        module = sys.modules[name]
        for function, aware in (("scaled_dot_product_attention", _aware_attention), ("swiglu", _aware_swiglu)):
            if original := getattr(module, function, None):
                setattr(module, function, aware(getattr(original, "original", original), kernels))


def use_shared_norms(model: nn.Module) -> None:
    """Let norms pass their input on to the layers that are known to multiply their output (`watch_sharing`)."""
    aware: dict[type, type] = {}
    for module in model.modules():
        kind = type(module)
        if kind.__name__.endswith("Norm") and not hasattr(module, "is_shared"):
            module.__class__ = aware.setdefault(kind, _aware_norm(kind))


def _aware_norm(kind: type) -> type:
    def call(self, x, *args):
        if self.is_shared and is_deferring():
            return Deferred(Norm(self) if kind is nn.RMSNorm else Plain(lambda x: kind.__call__(self, x)), x)
        return made(kind.__call__(self, x, *args), self)

    return type(kind.__name__, (kind,), {"__call__": call, "is_shared": False})


def use_positions(model: nn.Module) -> None:
    """Let rotary embeddings (arXiv:2104.09864) rotate each token by its own position, for rows that share a prefix."""
    aware: dict[type, type] = {}
    for module in model.modules():
        kind = type(module)
        if kind.__name__.endswith("RoPE") and not issubclass(kind, RotatingEach):
            module.__class__ = aware.setdefault(kind, type(kind.__name__, (RotatingEach, kind), {}))


class RotatingEach:
    """A rotary embedding that accepts `Positions`."""

    def __call__(self, x: mx.array, offset: int | Positions = 0, **options: Any) -> mx.array:
        """Rotate queries or keys `(R, H, L, D)` by their positions."""
        rotate = functools.partial(super().__call__, **options)  # type: ignore[misc]
        return offset.each(rotate, x) if isinstance(offset, Positions) else rotate(x, offset=offset)


def _aware_attention(original: Callable[..., mx.array], kernels: Kernels) -> Callable[..., mx.array]:
    def attention(queries, keys, values, cache=None, scale=1.0, mask=None, **options):
        # plain: no options such as sinks and no mask but the rows' own causal one
        plain = not options or all(value is None for value in options.values())
        plain = plain and cache is not None and mask is getattr(cache, "causal", None)
        if plain and isinstance(cache, SlicedRows) and queries.dtype == mx.float32:
            exp = fast_exp if kernels.fast_exp else mx.exp
            return fast_attention(queries, keys, values, scale=scale, spans=cache.spans, exp=exp)
        if plain and isinstance(cache, PackedRows):
            attend = functools.partial(mx.fast.scaled_dot_product_attention, scale=scale, mask="causal")
            return packed_attention(queries, keys, values, cache, attend)
        return original(queries, keys, values, cache=cache, scale=scale, mask=mask, **options)

    attention.original = original  # type: ignore[attr-defined]
    return attention


def _aware_swiglu(original: Callable[..., mx.array], kernels: Kernels) -> Callable[..., mx.array]:
    cheap = Swiglu()

    def swiglu(gate, up):
        if swiglu.is_shared and is_deferring():
            return Deferred(cheap, gate, up)
        if kernels.fast_exp and gate.dtype == mx.float32:
            return made(fast_swiglu(gate, up), swiglu)
        return made(original(gate, up), swiglu)

    swiglu.original = original  # type: ignore[attr-defined]
    swiglu.is_shared = False  # type: ignore[attr-defined]
    return swiglu
