"""Load a base model, quantise it on the way, attach adapters, and compute its loss.

Uses mlx-lm's model definitions and adapter format with the kernels of this package. Knows nothing of steps, runs or the
files of a run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..config import LoraConfig
from ..errors import ModelError
from ..files.checksums import CHECKSUM, checksum, refuse_damage
from ..files.safetensors_headers import tensor_headers
from ..files.storage import replacing, write_json
from ..machine.crash_reasons import device_failure
from ..models.adapter_files import ADAPTER_CONFIG, ADAPTER_FILE, adapter_keys, refuse_misfits
from ..models.base_models import ModelSpec
from ..runs.kernel_choice import Kernels
from ..tokens.batching import AS_IT_IS, Batch, Rounding, make_batch
from ..tokens.rows import TokenRow
from .attention import BinnedRows, PackedRows, SlicedRows
from .device import mx, nn, tree_flatten, tree_unflatten
from .frozen_layers import giving, language_model
from .fused_linear import deferring, is_deferring, settled, stop_sharing, watch_sharing
from .kernels import (
    ADAPTERS,
    Adapter,
    FrozenLinear,
    KeyedDropout,
    RotatingEach,
    draw_keys,
    use_attention_kernels,
    use_linear_kernels,
    use_positions,
    use_shared_norms,
    wrong_products,
)
from .loss import cross_entropy, head_loss, head_token_losses, token_losses
from .weights import load_weights

Layout = Literal["packed", "padded", "whole"]
"""How batches are laid out: rows end to end; side by side; or side by side with logits at every position."""

OTHER_PARTS = (AttributeError, TypeError, ValueError, IndexError)
"""Errors that a model raises if it does not have the parts that it is asked for."""


def load_base(spec: ModelSpec, kernels: Kernels, warn: Callable[[str], None] = lambda _: None) -> nn.Module:
    """Load a base model with frozen weights in `kernels.dtype`, quantised while loading if `spec` says so.

    Raises:
        ModelError: mlx-lm does not know the architecture, or the weights do not fit it.
    """
    model = load_weights(spec, kernels.dtype, warn)
    model.freeze()
    kernels = _with_right_products(model, kernels, warn)
    use_linear_kernels(model, kernels)
    use_attention_kernels(model, kernels)
    use_shared_norms(model)
    use_positions(model)
    return model


def load_lower_layers(spec: ModelSpec, kernels: Kernels, count: int) -> list[nn.Module]:
    """Load only the lowest `count` layers, frozen, for a model that `load_base` loaded before.

    Raises:
        ModelError: the weights are not what they were.
    """
    model = load_weights(spec, kernels.dtype, lambda _: None, lowest=count)
    model.freeze()
    use_linear_kernels(model, _with_right_products(model, kernels))
    return language_model(model).model.layers[:count]


def _with_right_products(model: nn.Module, kernels: Kernels, warn: Callable[[str], None] = lambda _: None) -> Kernels:
    """Return kernels that dequantise weights before use if MLX's own products with them are wrong on this device."""
    if kernels.linear != "quantised" or not (wrong := wrong_products(model, kernels.dtype)):
        return kernels
    warn(
        f"MLX {mx.__version__} multiplies weights of {', '.join(wrong)} wrongly on this device; they are dequantised "
        "for each use instead, which is right and may be slower. A newer MLX may do better"
    )
    return dataclasses.replace(kernels, linear="dequantised")


def attach_adapters(model: nn.Module, spec: ModelSpec, lora: LoraConfig, seed: int) -> None:
    """Put adapters on the chosen layers; with B = 0 the model's answers do not change (arXiv:2106.09685, 4.1).

    Raises:
        ModelError: the model has no such layers.
    """
    mx.random.seed(seed)
    kind, keys = ADAPTERS[lora.adapter], adapter_keys(spec, lora)
    for layer in model.layers[len(model.layers) - len(spec.adapted_layers(lora)) :]:
        wrapped = [
            (name, kind.wrap(module, lora.rank, lora.scale, lora.dropout))
            for name, module in layer.named_modules()
            if name in keys and isinstance(module, FrozenLinear)
        ]
        layer.update_modules(tree_unflatten(wrapped))
    if not model.trainable_parameters():
        raise ModelError(f"{spec.path}: {', '.join(keys)} are no linear layers of this model.")
    mx.eval(model.trainable_parameters())


def save_tensors(path: Path, tensors: dict[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Opening the file in Python gives the system's reason if that fails; MLX's own writing gives none.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        mx.save_safetensors(file, tensors, metadata)


def save_adapters(model: nn.Module, directory: Path, config: dict[str, Any], metadata: dict[str, str]) -> None:
    """Write `adapters.safetensors` and `adapter_config.json` in mlx-lm's format; the weights are replaced atomically.

    Raises:
        StorageError: they cannot be written; the weights are as they were.
    """
    tensors = dict(tree_flatten(model.trainable_parameters()))
    checked = {CHECKSUM: checksum((name, value.shape, np.array(value).tobytes()) for name, value in tensors.items())}
    write_json(directory / ADAPTER_CONFIG, config)
    with replacing(directory / ADAPTER_FILE, wanted=sum(value.nbytes for value in tensors.values())) as temporary:
        save_tensors(temporary, tensors, metadata | checked)


def load_adapters(model: nn.Module, path: Path) -> None:
    """Load an adapter file into attached adapters, after checking every name, every shape and the checksum.

    Raises:
        ModelError: the file cannot be read or is damaged, or a tensor is missing, unknown or of another shape.
    """
    wanted = {name: tuple(value.shape) for name, value in tree_flatten(model.trainable_parameters())}
    tensors = read_tensors(path)
    refuse_damage(path)
    refuse_misfits(path, {name: tuple(value.shape) for name, value in tensors.items()}, wanted)
    model.load_weights([(name, value.astype(mx.float32)) for name, value in tensors.items()], strict=False)
    mx.eval(model.trainable_parameters())


def read_tensors(path: Path) -> dict[str, mx.array]:
    """Read the tensors of a safetensors file.

    This is the only place where MLX opens a file by a name that it is given. MLX is written in C++, so it only gets
    files that were checked before.

    Raises:
        ModelError: it is not one.
    """
    tensor_headers(path)
    try:
        return mx.load(str(path), format="safetensors")
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None


class AdapterVector:
    """The adapters of a model as one vector, in the order of their names.

    It makes one optimizer update and one norm out of hundreds of small ones; these are elementwise, so the numbers are
    the same.

    Args:
        model: with adapters attached.
    """

    def __init__(self, model: nn.Module) -> None:
        named = tree_flatten(model.trainable_parameters())
        self.names = [name for name, _ in named]
        self.shapes = [value.shape for _, value in named]
        self._cuts = np.cumsum([value.size for _, value in named])[:-1].tolist()

    @property
    def size(self) -> int:
        """Return the number of parameters."""
        return sum(map(math.prod, self.shapes))

    def spread(self, values: Callable[[str], float]) -> mx.array | None:
        """Return `values(name)` for each number of each adapter, `(parameters,)`; None if all are 1."""
        numbers = [values(name) for name in self.names]
        if set(numbers) == {1.0}:
            return None
        return mx.concatenate([mx.full(math.prod(s), x) for s, x in zip(self.shapes, numbers, strict=True)])

    def join(self, tree: dict[str, Any]) -> mx.array:
        """Join adapters, or gradients of them, to one vector `(parameters,)`, float32."""
        return mx.concatenate([value.reshape(-1) for _, value in tree_flatten(tree)])

    def part(self, vector: mx.array) -> dict[str, Any]:
        """Split a vector into the adapters that `join` joined."""
        values = [part.reshape(shape) for part, shape in zip(mx.split(vector, self._cuts), self.shapes, strict=True)]
        return dict(tree_unflatten(list(zip(self.names, values, strict=True))))


class LastSeen:
    """The parameters that were last looked at, by identity: arrays never change, and an update makes new ones."""

    def __init__(self) -> None:
        self._values: list[mx.array] = []

    def differ(self, trained: dict[str, Any]) -> bool:
        """Return whether some of these are others than the last time, and remember them."""
        values, before = [value for _, value in tree_flatten(trained)], self._values
        self._values = values
        return len(values) != len(before) or any(a is not b for a, b in zip(values, before, strict=True))


@contextmanager
def base_only(model: nn.Module) -> Iterator[None]:
    """Switch the adapters off inside the block, so that the model answers as the base does."""
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.enabled = True


def use_grad_checkpoint(model: nn.Module) -> None:
    """Recompute each transformer layer in the backward pass instead of keeping its activations.

    `mx.checkpoint` does not do: it draws new dropout masks when it recomputes, and leaves MLX free to recompute all
    layers at once, which takes more memory than keeping them.
    """
    made: dict[type, type] = {}
    for layer in model.layers:
        layer.__class__ = made.setdefault(type(layer), _checkpointed(type(layer)))


def _checkpointed(cls: type) -> type:
    def call(self, x, *args, **options):
        named = tree_flatten(self.trainable_parameters())
        dropouts = [module for module in self.modules() if isinstance(module, KeyedDropout)]
        keys = draw_keys(len(dropouts)) if self.training else [None] * len(dropouts)
        sharing = is_deferring()

        def forward(x, *values):
            self.update(tree_unflatten([(name, value) for (name, _), value in zip(named, values, strict=True)]))
            for dropout, key in zip(dropouts, keys, strict=True):
                dropout.use_key(key)
            with deferring(sharing):  # the backward pass runs outside the block that was active in the forward pass
                return cls.__call__(self, x, *args, **options)

        layer = mx.custom_function(forward)

        @layer.vjp
        def _(primals, cotangent, _):
            # recompute only when the layers above are done, and finish this layer's adapters before those below begin
            inputs = mx.depends(list(primals), [cotangent])
            _, (down, *gradients) = mx.vjp(lambda *inputs: [forward(*inputs)], inputs, [cotangent])
            return (mx.depends([down], gradients)[0] if gradients else down, *gradients)

        return layer(x, *(value for _, value in named))

    return type(f"Checkpointed{cls.__name__}", (cls,), {"__call__": call})


# Loss -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BatchForm:
    """The static arguments of a compiled loss: equal for all batches that one compiled function can compute.

    Attributes:
        layout: how rows are laid out.
        plain: whether packed rows need no mask but the causal one.
        lengths: tokens of each part, for parts end to end that attention divides into spans; otherwise empty.
        prefix: index of the part that all later ones share.
        training: whether gradients will be asked for.
    """

    layout: Layout
    plain: bool = False
    lengths: tuple[int, ...] = ()
    prefix: int | None = None
    training: bool = True

    @classmethod
    def of(cls, batch: Batch, layout: Layout, *, training: bool) -> BatchForm:
        """Return the form of a batch in this layout."""
        sliced = layout == "packed" and batch.pack is None and batch.row is None
        return cls(layout, batch.plain, batch.lengths if sliced else (), batch.prefix, training)


def arrays_of(batch: Batch) -> dict[str, mx.array]:
    """Return the arrays of a batch, as `form_loss` takes them."""
    names = ("ids", "source", "target", "weight", "states", "unpack", "pack", "row", "position")
    arrays = {name: mx.array(getattr(batch, name)) for name in names if getattr(batch, name) is not None}
    if batch.states is not None and batch.states.dtype == np.uint16:
        arrays["states"] = arrays["states"].view(mx.bfloat16)
    return arrays


def batch_loss(model: nn.Module, batch: Batch, layout: Layout) -> mx.array:
    """Return the cross-entropy summed over the trained tokens of a batch, in nats, float32."""
    return form_loss(model, arrays_of(batch), BatchForm.of(batch, layout, training=model.training))


def form_loss(model: nn.Module, arrays: dict[str, mx.array], form: BatchForm) -> mx.array:
    """Return the cross-entropy of a batch, like `batch_loss`, as a function of arrays that can be compiled.

    What is computed depends only on the shapes of the arrays and on `form`.
    """
    target, weight = arrays["target"], arrays["weight"]
    if form.layout == "whole":
        return cross_entropy(_trained_logits(model, arrays), target, weight)
    hidden, project = _trained_hidden(model, arrays, form)
    return head_loss(project, hidden, target, weight, gradients=form.training)


def form_token_losses(model: nn.Module, arrays: dict[str, mx.array], form: BatchForm) -> mx.array:
    """Return the losses of the trained tokens of a batch, which `form_loss` sums, `(T,)`; they have no gradient."""
    if form.layout == "whole":
        return token_losses(_trained_logits(model, arrays), arrays["target"])
    hidden, project = _trained_hidden(model, arrays, form)
    return head_token_losses(project, hidden, arrays["target"])


def _trained_logits(model: nn.Module, arrays: dict[str, mx.array]) -> mx.array:
    """Return the logits `(T, V)` where the next token is trained."""
    logits = model(arrays["ids"])  # (R, L, V)
    return logits.reshape(-1, logits.shape[-1])[arrays["source"]]


def _trained_hidden(
    model: nn.Module, arrays: dict[str, mx.array], form: BatchForm
) -> tuple[mx.array, Callable[[mx.array], mx.array]]:
    """Return the hidden states `(T, hidden)` where the next token is trained, and the head that makes logits."""
    model = language_model(model)
    with giving(model, arrays.get("states")):
        hidden = form_hidden(model, arrays, form)  # (R, L, hidden)
    return hidden.reshape(-1, hidden.shape[-1])[arrays["source"]], lambda part: _project(model, part)


def form_hidden(model: nn.Module, arrays: dict[str, mx.array], form: BatchForm) -> mx.array:
    """Return the hidden states below the head, `(R, L, hidden)`, laid out like the ids; not for the layout `whole`."""
    model = language_model(model)
    cache = [_rows(model, arrays, form)] * len(model.layers) if form.layout == "packed" else None
    with deferring():
        return settled(model.model(arrays["ids"], cache))  # the last norm may return a `Deferred`, used by the head


def _rows(model: nn.Module, arrays: dict[str, mx.array], form: BatchForm) -> SlicedRows | PackedRows | BinnedRows:
    if form.lengths:
        return SlicedRows(form.lengths, form.prefix, arrays.get("position"))
    if "row" in arrays:
        return BinnedRows(arrays["row"], _dtype(model), plain=form.plain, position=arrays.get("position"))
    return PackedRows(arrays["unpack"], arrays["pack"], full=form.plain)


def _project(model: nn.Module, hidden: mx.array) -> mx.array:
    return model.lm_head(hidden) if "lm_head" in model else model.model.embed_tokens.as_linear(hidden)


def few_rows(vocabulary: int) -> list[TokenRow]:
    """Draw a few rows of unequal length: enough to tell whether two ways to compute agree."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, vocabulary, length).astype(np.int32) for length in (7, 12, 4)]
    return [TokenRow(ids, np.arange(len(ids)) > len(ids) // 2) for ids in drawn]


def same_loss(model: nn.Module, found: float, wanted: float) -> bool:
    """Return whether two losses are equal up to rounding: 1e-4 relative in float32, 2e-2 in half precision."""
    return abs(found - wanted) <= (1e-4 if _dtype(model) == mx.float32 else 2e-2) * abs(wanted)


def _head_alone_gives_logits(model: nn.Module, ids: mx.array) -> bool:
    """Return whether the logits are the output of the head, with nothing such as a soft cap after it.

    A small change by such a step would be lost in the rounding of half precision, so this compares almost exactly.
    """
    try:
        inner = language_model(model)
        return mx.allclose(_project(inner, inner.model(ids, None)), model(ids), rtol=1e-6, atol=0).item()
    except OTHER_PARTS:
        return False


def choose_layout(
    model: nn.Module, vocabulary: int, *, packing: bool, rounding: Rounding = AS_IT_IS, sharing: bool = True
) -> Layout:
    """Return the first layout that gives this model the same loss as its rows one by one.

    Whether packed rows, the head on trained positions only, and layers that share their input work depends on how a
    model is written; a few tokens show it. Models with soft caps, learned positions or recurrent states get a layout
    that is right for them.
    """
    rows = few_rows(vocabulary)
    if not _head_alone_gives_logits(model, mx.array(rows[0].ids)[None]):
        return "whole"
    batches = [make_batch([row], packed=False) for row in rows]
    expected = sum(batch_loss(model, batch, "whole").item() for batch in batches)
    # so few tokens would leave the bins too empty to be used, so smaller bins are tried as well
    roundings = (rounding, dataclasses.replace(rounding, bins=(16,))) if rounding.bins else (rounding,)

    def agrees(layout: Layout) -> bool:
        laid = [make_batch(rows, packed=layout == "packed", rounding=each) for each in roundings]
        try:
            losses = [batch_loss(model, batch, layout).item() for batch in laid]
        except OTHER_PARTS:
            return False
        return all(same_loss(model, loss, expected) for loss in losses)

    layouts: tuple[Layout, ...] = ("packed", "padded") if packing else ("padded",)
    makers = watch_sharing(lambda: model(mx.array(batches[0].ids))) if sharing else []
    if makers:
        if found := next(filter(agrees, layouts), None):
            return found
        stop_sharing(makers)
    return next(filter(agrees, layouts), "whole")


def can_share_prefix(model: nn.Module, vocabulary: int, rounding: Rounding = AS_IT_IS) -> bool:
    """Return whether packed rows give this model the same loss with a shared prefix as without sharing it."""
    if not any(isinstance(module, RotatingEach) for module in model.modules()):
        return False  # the model has no rotary embeddings that take positions
    rows = few_rows(vocabulary)
    beginning = rows[0].ids
    rows = [TokenRow(np.concatenate([beginning, row.ids]), np.pad(row.trained, (len(beginning), 0))) for row in rows]
    # so few tokens would leave the bins too empty to be used
    rounding = dataclasses.replace(rounding, bins=(32,)) if rounding.bins else rounding
    apart = make_batch(rows, packed=True, rounding=rounding)
    shared = make_batch(rows, packed=True, rounding=rounding, prefix=beginning)
    try:
        losses = [batch_loss(model, batch, "packed").item() for batch in (shared, apart)]
    except (*OTHER_PARTS, RuntimeError) as error:  # MLX may have no kernel for it, as for heads of size 16 on CUDA
        if failure := device_failure(error):
            raise failure from None
        return False
    return same_loss(model, *losses)


def _dtype(model: nn.Module) -> mx.Dtype:
    """Return the dtype the base model computes in."""
    adapters = dict(tree_flatten(model.trainable_parameters()))
    values = (value for name, value in tree_flatten(model.parameters()) if name not in adapters)
    return next(value.dtype for value in values if mx.issubdtype(value.dtype, mx.floating))
