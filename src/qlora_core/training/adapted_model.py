"""A base with new adapters, ready to compute with a run's kernels, in the trainer or a process beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..activity import doing
from ..config import RunConfig
from ..engine import device
from ..engine.device import mx, nn
from ..engine.kernels import dequantise_kept
from ..engine.model import (
    Layout,
    attach_adapters,
    choose_layout,
    load_base,
    use_grad_checkpoint,
)
from ..models.base_models import ModelSpec
from ..runs.kernel_choice import Kernels

_made = threading.local()


def streams_of_this_thread(count: int) -> list[mx.Stream]:
    """Return the default stream and others, the same for every session of a thread: MLX never frees one."""
    if not hasattr(_made, "streams"):
        _made.streams = [mx.default_stream(mx.default_device())]
    while len(_made.streams) < count:
        _made.streams.append(mx.new_stream(mx.default_device()))
    return _made.streams[:count]


def load_adapted(
    spec: ModelSpec, config: RunConfig, kernels: Kernels, warn: Callable[[str], None] = lambda _: None
) -> tuple[nn.Module, Layout]:
    """Load a base with new adapters, ready to compute with `kernels`, and choose how batches are laid out for it.

    Raises:
        ModelError: the base cannot be loaded, or has no such layers.
    """
    model = load_base(spec, kernels, warn)
    attach_adapters(model, spec, config.lora, config.train.seed)
    with doing("dequantising"):
        dequantise_kept(model, streams_of_this_thread(kernels.streams))
    with doing("trying"), device.blas_threads(max(1, device.cores() // 2)):  # as when it answers: products are small
        vocabulary, packing = spec.config["vocab_size"], config.train.packing
        layout = choose_layout(model, vocabulary, packing=packing, rounding=kernels.rounding, sharing=kernels.sharing)
    if config.train.grad_checkpoint:
        use_grad_checkpoint(model)
    return model, layout
