"""Predict whether a run fits into memory, by arithmetic on a model's shape and the settings; nothing is loaded.

The formula for activations counts what the backward pass keeps in `kernels` and mlx-lm's layers; a test compares the
whole with a measured peak. Knows nothing of mlx.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import RunConfig
from ..errors import MemoryShortError
from ..machine.memory import GB
from ..machine.process_pool import cores
from ..models.base_models import ModelSpec, has_gpu
from ..tokens.rows import TokenRow, TokenRows
from ..translations import Sentence

PROGRAM_BYTES = 350_000_000  # Python and the libraries, once loaded
RESERVE_BYTES = 300_000_000  # left for the rest of the machine
SCORE_BUFFERS = 7  # arrays of a layer's attention scores alive at once in its backward pass (measured: 6 to 7)
PASSING_ARRAYS = 6  # arrays as wide as the MLP, alive at once in the layer that the backward pass is in
CPU_TOKENS = 768  # tokens that a core computes at once; with more, arrays need new pages (measured: a fifth slower)
KEPT_SCORES = 256  # on a CPU, rows up to this length keep attention probabilities, longer ones recompute them
SPAN = 64  # tokens of such a longer row whose attention is computed at once
LARGE_MODEL = 3_000_000_000  # parameters from which on `min_free_gb` applies


@dataclass(frozen=True)
class MemoryEstimate:
    """Predicted peak memory of a run, in bytes, by use.

    Attributes:
        weights: the base as loaded.
        dense: dequantised weights that are kept beside it.
        adapters: adapters, gradients and two moments, float32.
        activations: what a micro-batch of the longest rows keeps for its backward pass, and what that takes in one
            layer; on a CPU, only for the tokens that are computed at once.
        attention: attention scores in one layer, for the rows of that micro-batch whose attention is computed together:
            the square of a row's length; on a CPU, for a long row, those of one span.
        logits: logits of that micro-batch's trained tokens, with their gradient.
    """

    weights: int
    dense: int
    adapters: int
    activations: int
    attention: int
    logits: int

    @property
    def training(self) -> int:
        """Return what training takes on top of the loaded base."""
        return self.adapters + self.activations + self.attention + self.logits

    @property
    def beside(self) -> int:
        """Return what the arrays of a process take that computes beside the trainer, on a CPU with room for it."""
        return self.weights + self.dense + self.adapters

    @property
    def arrays(self) -> int:
        """Return the sum of all parts, which MLX's own count of its arrays reaches."""
        return self.weights + self.dense + self.training

    @property
    def total(self) -> int:
        """Return the sum of all parts, and the program itself."""
        return self.arrays + PROGRAM_BYTES


def keeps_dense_weights(dense_bytes: int, available: int) -> bool:
    """Return whether weights are kept dequantised: if they take less than a third of the free memory."""
    return dense_bytes < available / 3


def cpu_streams() -> int:
    """Return the number of shares of a micro-batch that a CPU computes side by side."""
    return min(cores(), 8)


def estimate_memory(
    spec: ModelSpec, config: RunConfig, rows: Sequence[TokenRow], *, keeps_dense: bool, on_gpu: bool
) -> MemoryEstimate:
    """Predict the peak memory of training on `rows`.

    Args:
        spec: the base.
        config: all settings.
        rows: the `batch_size` longest ones decide.
        keeps_dense: whether dequantised weights stay in memory.
        on_gpu: a number has 2 bytes on a GPU, 4 on a CPU.
    """
    rows = TokenRows.of(rows)
    longest = [rows[i] for i in np.argsort(rows.lengths, kind="stable")[-config.train.batch_size :]]
    tokens, targets = sum(map(len, longest)), sum(row.target_tokens for row in longest)
    most = max(map(len, longest))
    a_row_each = sum(map(len, longest[-cpu_streams() :]))
    at_once = 1.0 if on_gpu else min(1.0, max(CPU_TOKENS * cpu_streams(), a_row_each) / tokens)
    shape = spec.config
    hidden, inner = shape["hidden_size"], shape.get("intermediate_size", 4 * shape["hidden_size"])
    heads = shape.get("num_attention_heads", 1)
    head_size = shape.get("head_dim") or hidden // heads
    projected = (heads + 2 * (shape.get("num_key_value_heads") or heads)) * head_size
    number = 2 if on_gpu else 4
    layer = _kept_by_a_layer(spec, config, hidden, inner, projected)
    layers = len(spec.adapted_layers(config.lora))
    kept = layers * 2 * hidden + layer if config.train.grad_checkpoint else layers * layer
    kept += PASSING_ARRAYS * inner
    together = math.ceil(len(longest) * at_once)
    if config.train.packing and not on_gpu:
        together = min(together, cpu_streams())
    keeping = 0 if on_gpu else heads * (1 if config.train.grad_checkpoint else layers)
    lengths = rows.lengths.astype(np.int64)
    taken = np.sort(lengths * kept + np.where(lengths <= KEPT_SCORES, keeping * lengths**2, 0))
    by_parts = config.train.packing and not on_gpu and most > KEPT_SCORES
    scores = SPAN * most if by_parts else most**2
    return MemoryEstimate(
        weights=spec.loaded_bytes,
        dense=spec.parameters * number if keeps_dense else 0,
        adapters=16 * spec.trainable(config.lora),
        activations=int(taken[-config.train.batch_size :].sum() * at_once) * number,
        attention=SCORE_BUFFERS * heads * together * scores * number,
        logits=int(3 * 4 * targets * at_once) * shape.get("vocab_size", 0),
    )


def predict(spec: ModelSpec, config: RunConfig, rows: Sequence[TokenRow], available: int) -> MemoryEstimate:
    """Predict the peak memory of training on this machine, as the trainer does before it loads anything.

    Args:
        spec: the base.
        config: all settings.
        rows: those to train.
        available: free memory in bytes; a CPU keeps dequantised weights if there is much of it.
    """
    on_gpu = has_gpu()
    keeps_dense = not on_gpu and keeps_dense_weights(spec.dense_bytes, available)
    return estimate_memory(spec, config, rows, keeps_dense=keeps_dense, on_gpu=on_gpu)


def _kept_by_a_layer(spec: ModelSpec, config: RunConfig, hidden: int, inner: int, projected: int) -> int:
    """Return how many numbers a layer keeps for its backward pass, per token.

    If the outputs of norms and SwiGLU are recomputed (`fused_linear`), these are: inputs of two norms, the output of
    attention in two layouts, gate and up, q, k and v, and x A of every adapter. Measured on an H100: 3.4 MB a token of
    Mistral-7B's shape; by this formula, 3.3.
    """
    low = config.lora.rank * len(spec.adapted_shapes(config.lora)) // len(spec.adapted_layers(config.lora))
    shared = config.lora.adapter == "lora" and config.lora.dropout == 0
    if shared and spec.config.get("hidden_act", "silu") in ("silu", "swish"):
        return 4 * hidden + 2 * inner + projected + low
    return 8 * hidden + 7 * inner + 3 * projected + low


def check_before_loading(estimate: MemoryEstimate, available: int, config: RunConfig) -> None:
    """Refuse a run if its predicted peak and a reserve are not free.

    Raises:
        MemoryShortError: with what to change.
    """
    needed = estimate.total + RESERVE_BYTES
    if needed > available:
        raise MemoryShortError(
            Sentence(
                "not enough memory: {needed} GB wanted (base {base}, activations {activations}, adapters {adapters}, "
                "logits {logits}), {available} GB available. {advice}",
                needed=round(needed / GB, 1),
                base=round((estimate.weights + estimate.dense) / GB, 1),
                activations=round((estimate.activations + estimate.attention) / GB, 1),
                adapters=round(estimate.adapters / GB, 1),
                logits=round(estimate.logits / GB, 1),
                available=round(available / GB, 1),
                advice=advice(config),
            )
        )


def check_after_loading(estimate: MemoryEstimate, available: int, parameters: int, config: RunConfig) -> None:
    """Refuse to begin if too little memory is free.

    Required are `min_free_gb` for large models, else 1.5 times what training will take.

    Raises:
        MemoryShortError: with what to change.
    """
    large = parameters >= LARGE_MODEL
    needed = config.pace.min_free_gb * GB if large else 1.5 * estimate.training
    if available < needed:
        rule = "min_free_gb" if large else "1.5 times what training will take"
        raise MemoryShortError(
            f"not enough memory to train: {available / GB:.1f} GB available after loading, {needed / GB:.1f} GB wanted "
            f"({rule}). {advice(config)}"
        )


def advice(config: RunConfig) -> Sentence:
    """Return what makes a run need less memory, the least harmful first."""
    changes: list[str] = [Sentence("close other programs")]
    if config.train.batch_size > 1:
        half = config.train.batch_size // 2
        doubled = config.train.grad_accumulation_steps * 2
        flags = f"--batch-size {half} --grad-accumulation-steps {doubled}"
        changes.append(Sentence("{flags} (the same result)", flags=flags))
    if not config.train.grad_checkpoint:
        changes.append("--grad-checkpoint")
    if config.data.max_seq_length > 128:
        changes.append(f"--max-seq-length {config.data.max_seq_length // 2}")
    return Sentence("What helps: {changes}, or a smaller model.", changes=Sentence.of_parts(", ", changes))
