"""Other ways to compute what mlx-lm's models compute, with equal results: see `tests/test_kernels.py`.

Frozen linear layers that dequantise, adapters that work in the activations' dtype, SwiGLU and attention for the CPU,
and attention over rows packed end to end. Knows nothing of data, batches or training.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .device import Kernels, mx, nn
from .later import imported_later

LN2 = 0.6931471805599453


def fast_exp(x: mx.array) -> mx.array:
    """Exponential of float32, to 4e-6 relative within ±5 and 8e-6 up to ±87: range reduction and a polynomial.

    MLX's own takes 16 to 18 ns an element on x86-64, these vectorised operations together about 4.
    """
    x = mx.clip(x, -87.0, 87.0)
    k = mx.round(x * (1 / LN2))
    r = x - k * LN2
    p = 1 + r * (1 + r * (0.5 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120)))))
    return p * ((k.astype(mx.int32) + 127) << 23).view(mx.float32)


@mx.custom_function
def fast_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) · up, saving nothing but its inputs for the backward pass."""
    return gate * up / (1 + fast_exp(-gate))


@fast_swiglu.vjp
def _fast_swiglu_vjp(primals, cotangent, _):
    gate, up = primals
    s = 1 / (1 + fast_exp(-gate))
    return cotangent * up * (s + gate * s * (1 - s)), cotangent * gate * s


@mx.custom_function
def fast_cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Sum of -log softmax(logits)[target] over rows; logits `(N, V)` float32, targets `(N,)`."""
    top = logits.max(-1, keepdims=True)
    total = fast_exp(logits - top).sum(-1)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)
    return (mx.log(total) + (top - chosen)[:, 0]).sum()


@fast_cross_entropy.vjp
def _fast_cross_entropy_vjp(primals, cotangent, _):
    logits, targets = primals
    e = fast_exp(logits - logits.max(-1, keepdims=True))
    p = e * (cotangent / e.sum(-1, keepdims=True))
    return p.at[mx.arange(len(targets)), targets].subtract(cotangent), mx.zeros_like(targets)


# Linear layers --------------------------------------------------------------------------------------------------


class FrozenLinear:
    """A linear layer of the base: `product` is its output without the bias."""

    def product(self, x: mx.array) -> mx.array:
        """Compute x Wᵀ for inputs `(…, inputs)`."""
        raise NotImplementedError

    def __call__(self, x: mx.array) -> mx.array:
        """Outputs of inputs `(…, inputs)`."""
        y = self.product(x)
        return y + self["bias"] if "bias" in self else y


class DequantisingLinear(FrozenLinear, nn.QuantizedLinear):
    """A frozen quantised linear layer that dequantises and multiplies, forwards and backwards.

    With `keep` the dequantised weights stay in memory; without, each use makes them anew (and nothing dequantised is
    saved for the backward pass). The parameters stay those of the quantised layer.
    """

    keep = False

    def product(self, x: mx.array) -> mx.array:
        """Compute x Wᵀ."""
        return _multiply(self, x)


class DequantisingEmbedding(nn.QuantizedEmbedding):
    """A frozen quantised embedding whose use as output layer dequantises and multiplies."""

    keep = False

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits of hidden states `(…, dims)`."""
        return _multiply(self, x)


def _multiply(layer: Any, x: mx.array) -> mx.array:
    """Compute x Wᵀ with W dequantised: once and kept, or for each use anew."""
    if layer.keep:
        if "_kept" not in layer.__dict__:
            kept = _dequantise(layer, layer.weight)
            mx.eval(kept)
            _keep(layer, kept)
        return x @ layer.__dict__["_kept"].T

    def dense(after: mx.array) -> mx.array:
        # tied to its use: otherwise all weights are ready at once and dequantised ahead of time
        return _dequantise(layer, mx.depends([layer.weight], [after])[0])

    @mx.custom_function
    def linear(x):
        return x @ dense(x).T

    @linear.vjp
    def _(x, cotangent, _):
        return cotangent @ dense(cotangent)

    return linear(x)


def _keep(layer: Any, dense: mx.array) -> None:
    object.__setattr__(layer, "_kept", dense)  # past nn.Module, for which it would be a parameter


class QuantisedLinear(FrozenLinear, nn.QuantizedLinear):
    """MLX's quantised layer, whose product is to be had without the bias."""

    def product(self, x: mx.array) -> mx.array:
        """Compute x Wᵀ."""
        return mx.quantized_matmul(
            x,
            self["weight"],
            scales=self["scales"],
            biases=self.get("biases"),
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )


class PlainLinear(FrozenLinear, nn.Linear):
    """MLX's linear layer, whose product is to be had without the bias."""

    def product(self, x: mx.array) -> mx.array:
        """Compute x Wᵀ."""
        return x @ self["weight"].T


class KeyedDropout(nn.Dropout):
    """Dropout that takes its mask from a key, if it has one: a layer that is recomputed drops the same numbers."""

    key: mx.array | None = None

    def use_key(self, key: mx.array | None) -> None:
        """Take masks from `key`; None: from the global state, as MLX does."""
        object.__setattr__(self, "key", key)  # past nn.Module, for which it would be a parameter

    def __call__(self, x: mx.array) -> mx.array:
        """`x` with some numbers dropped and the others scaled up, while training."""
        if self._p_1 == 1 or not self.training:
            return x
        return (mx.random.bernoulli(self._p_1, x.shape, key=self.key) * x) * (1 / self._p_1)


def draw_keys(count: int) -> list[mx.array]:
    """Random keys from the global state."""
    return list(mx.random.randint(0, 2**32 - 1, (count, 2), mx.uint32)) if count else []


_NOT_FOR_US = (
    "transformers", "transformers.tokenization_utils_base", "huggingface_hub",
    "mlx_lm.tuner.trainer", "mlx_lm.tuner.utils",
)  # fmt: skip
"""What mlx-lm imports to load tokenisers, fetch models and train, which are done here in other ways: a second."""


def _adapters_of_mlx_lm() -> tuple[type, type]:
    with imported_later(*_NOT_FOR_US):
        from mlx_lm.tuner.dora import DoRALinear  # not above: `device` comes before anything that imports mlx
        from mlx_lm.tuner.lora import LoRALinear

    return LoRALinear, DoRALinear


LoRALinear, DoRALinear = _adapters_of_mlx_lm()


class Adapter:
    """An adapter on a linear layer; `enabled` False gives the base model's answer, to the bit."""

    enabled = True

    @classmethod
    def wrap(cls, linear: nn.Module, rank: int, scale: float, dropout: float) -> nn.Module:
        """Put an adapter with B = 0 on a linear layer of the base."""
        made = cls.from_base(linear, r=rank, scale=scale, dropout=dropout)  # type: ignore[attr-defined]
        made.__class__ = cls
        made.dropout.__class__ = KeyedDropout
        return made

    def low_rank(self, x: mx.array) -> mx.array:
        """Compute scale · x A B, with A and B in float32 and the arithmetic in the dtype of `x`."""
        low = self.dropout(x) @ self.lora_a.astype(x.dtype)  # type: ignore[attr-defined]
        return low @ (self.scale * self.lora_b).astype(x.dtype)  # type: ignore[attr-defined]


class LoraAdapter(Adapter, LoRALinear):
    """LoRA (arXiv:2106.09685) as mlx-lm stores it."""

    def __call__(self, x: mx.array) -> mx.array:
        """Outputs of inputs `(…, inputs)`."""
        y = self.linear(x)
        return y + self.low_rank(x) if self.enabled else y


class DoraAdapter(Adapter, DoRALinear):
    """DoRA (arXiv:2402.09353) as mlx-lm stores it: magnitudes `m` of the outputs are learnt beside their directions.

    The norms of the rows of W + scale (A B)ᵀ, through which no gradient goes (4.3 there), are had without that sum:
    |w + s·b|² = |w|² + 2 s w·b + s²|b|², where w·b and b·b follow from W A and Aᵀ A, `rank` columns each.
    """

    @classmethod
    def wrap(cls, linear: nn.Module, rank: int, scale: float, dropout: float) -> nn.Module:
        """Put an adapter with B = 0, and the magnitudes that the base has, on a linear layer of the base."""
        made = super().wrap(linear, rank, scale, dropout)
        squares = made.m.square()
        mx.eval(made.m, squares)  # one layer at a time: each is dequantised for it
        object.__setattr__(made, "_squares", squares)  # past nn.Module, for which it would be a parameter
        return made

    def __call__(self, x: mx.array) -> mx.array:
        """Outputs of inputs `(…, inputs)`."""
        if not self.enabled:
            return self.linear(x)
        y = (self.m / self._norms(x.dtype)).astype(x.dtype) * (self.linear.product(x) + self.low_rank(x))
        return y + self.linear["bias"] if "bias" in self.linear else y

    def _norms(self, dtype: mx.Dtype) -> mx.array:
        a, b = mx.stop_gradient(self.lora_a), mx.stop_gradient(self.scale * self.lora_b)
        along = (self.linear.product(a.T.astype(dtype)).astype(mx.float32) * b).sum(0)
        own = (b * ((a.T @ a) @ b)).sum(0)
        return mx.stop_gradient(mx.sqrt(mx.maximum(self._squares + 2 * along + own, 1e-12)))


ADAPTERS = {"lora": LoraAdapter, "dora": DoraAdapter}


def _dequantise(layer: Any, weight: mx.array) -> mx.array:
    return mx.dequantize(
        weight, layer.scales, layer.get("biases"), group_size=layer.group_size, bits=layer.bits, mode=layer.mode
    )


# Attention ------------------------------------------------------------------------------------------------------


def fast_attention(queries: mx.array, keys: mx.array, values: mx.array, *, scale: float) -> mx.array:
    """Causal grouped-query attention for the CPU, saving nothing but its inputs.

    Args:
        queries: `(B, H, T, D)`.
        keys: `(B, K, T, D)`, K dividing H.
        values: `(B, K, T, D)`.
        scale: factor of the scores.
    """
    B, H, T, D = queries.shape
    K = keys.shape[1]
    G = H // K
    # added, since a selection by a boolean mask costs 20 times an addition here
    mask = mx.array(np.triu(np.full((T, T), -1e9, np.float32), 1))

    def probabilities(q: mx.array, k: mx.array) -> mx.array:
        scores = ((q.reshape(B, K, G * T, D) * scale) @ k.swapaxes(-1, -2)).reshape(B, K, G, T, T) + mask
        e = fast_exp(scores - scores.max(-1, keepdims=True))
        return (e / e.sum(-1, keepdims=True)).reshape(B, K, G * T, T)

    @mx.custom_function
    def attend(q, k, v):
        return (probabilities(q, k) @ v).reshape(B, H, T, D)

    @attend.vjp
    def _(primals, cotangent, _):
        q, k, v = primals
        p, c = probabilities(q, k), cotangent.reshape(B, K, G * T, D)
        dp = c @ v.swapaxes(-1, -2)
        ds = p * (dp - (dp * p).sum(-1, keepdims=True))
        dk = ds.swapaxes(-1, -2) @ (q.reshape(B, K, G * T, D) * scale)
        return ((ds @ k) * scale).reshape(q.shape), dk, p.swapaxes(-1, -2) @ c

    return attend(queries, keys, values)


class PackedRows:
    """Stands where a KV cache would: several rows lie end to end in one, and each sees only itself.

    mlx-lm's models ask a cache for the attention mask and hand it on to attention. Attention that knows this class
    (`packed_attention`) takes the rows apart, so that its cost is the square of a row, not of all of them; any other
    uses the block-diagonal mask. Rotary positions run on over the rows: only their differences count.

    Args:
        lengths: tokens of each row, in order; their sum is the length of the packed row.
    """

    offset = 0

    def __init__(self, lengths: list[int]) -> None:
        total, longest = sum(lengths), max(lengths)
        starts = np.cumsum([0, *lengths[:-1]])
        position = np.arange(longest)
        inside = position < np.asarray(lengths)[:, None]
        self.lengths = lengths
        # (rows, longest) -> place in the packed row (padding points at its row's first token); and back
        self.unpack = mx.array(np.where(inside, starts[:, None] + position, starts[:, None]).astype(np.int32))
        self.pack = mx.array(np.flatnonzero(inside.reshape(-1)).astype(np.int32))
        self.inside = mx.array(inside.astype(np.float32))[:, None, :, None]
        self._segment = mx.array(np.repeat(np.arange(len(lengths)), lengths))
        self._total = total
        self.causal: mx.array | None = None

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Boolean `(1, 1, N, N)`: causal, within the row, within the window."""
        i = mx.arange(self._total)
        mask = (i[:, None] >= i[None]) & (self._segment[:, None] == self._segment[None])
        if window_size is not None and window_size < max(self.lengths):
            return (mask & (i[:, None] < i[None] + window_size))[None, None]
        if self.causal is None:
            self.causal = mask[None, None]
        return self.causal

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Nothing is cached."""
        return keys, values


def packed_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    rows: PackedRows,
    attend: Callable[..., mx.array],
) -> mx.array:
    """Attention over packed rows `(1, H, N, D)`, computed on the same tokens as `(rows, H, longest, D)`.

    Gathers in both directions: the backward pass of taking apart is putting together.
    """

    @mx.custom_function
    def take_apart(x):  # (1, H, N, D) -> (R, H, L, D)
        return mx.take(x[0], rows.unpack, axis=1).swapaxes(0, 1)

    @mx.custom_function
    def put_together(x):  # (R, H, L, D) -> (1, H, N, D)
        R, H, L, D = x.shape
        return mx.take(x.swapaxes(0, 1).reshape(H, R * L, D), rows.pack, axis=1)[None]

    @take_apart.vjp
    def _(primal, cotangent, _):
        return put_together(cotangent)

    @put_together.vjp
    def _(primal, cotangent, _):
        return take_apart(cotangent) * rows.inside.astype(cotangent.dtype)

    return put_together(attend(take_apart(queries), take_apart(keys), take_apart(values)))


# Putting them into a model ----------------------------------------------------------------------------------------


def use_linear_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Make every linear layer and embedding of a model compute as `kernels` says, in place."""
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
    """Dequantise the linear layers that keep it, on all streams, and not one after the other at their first use."""
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

    Their `scaled_dot_product_attention` and, on a CPU, `swiglu` are replaced by ones that fall through to the
    originals for everything they do not know (a KV cache, a window, a mask of the model's own).
    """
    for name in {type(module).__module__ for module in model.modules()}:  # a family may borrow another one's layers
        module = sys.modules[name]
        if original := getattr(module, "scaled_dot_product_attention", None):
            module.scaled_dot_product_attention = _aware(getattr(original, "original", original), kernels)
        if hasattr(module, "swiglu"):
            original = getattr(module.swiglu, "original", module.swiglu)
            module.swiglu = _aware_swiglu(original) if kernels.fast_exp else original


def _aware(original: Callable[..., mx.array], kernels: Kernels) -> Callable[..., mx.array]:
    def attention(queries, keys, values, cache=None, scale=1.0, mask=None, **options):
        plain = not options or all(value is None for value in options.values())
        if isinstance(cache, PackedRows) and mask is cache.causal and plain:
            if kernels.fast_exp and queries.dtype == mx.float32:
                return packed_attention(queries, keys, values, cache, lambda *qkv: fast_attention(*qkv, scale=scale))
            return packed_attention(
                queries,
                keys,
                values,
                cache,
                lambda *qkv: mx.fast.scaled_dot_product_attention(*qkv, scale=scale, mask="causal"),
            )
        return original(queries, keys, values, cache=cache, scale=scale, mask=mask, **options)

    attention.original = original  # type: ignore[attr-defined]
    return attention


def _aware_swiglu(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def swiglu(gate, up):
        return fast_swiglu(gate, up) if gate.dtype == mx.float32 else original(gate, up)

    swiglu.original = original  # type: ignore[attr-defined]
    return swiglu
