"""What a model says to the trained tokens of rows, and its loss on each row.

Knows a loaded model and rows of tokens; nothing of runs, nor of what is made of the losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..activity import doing
from ..engine.device import ON_CPU, blas_threads, cores, mx, nn
from ..tokens.rows import TokenRow
from .adapted_model import streams_of_this_thread
from .input_moments import padded_batches
from .share_workers import compute_on_streams

SIDE_BY_SIDE = 2  # batches, on a CPU: one stream keeps one core busy outside products


def row_losses(model: nn.Module, rows: Sequence[TokenRow]) -> np.ndarray:
    """Return the cross-entropy of each row, summed over its trained tokens: nats, float64, `(rows,)`.

    Logits become float32 before their logarithms are taken, as in `judging`; a row without a trained token has 0.
    Divided by `target_tokens`, it is the row's loss a token.

    Args:
        model: answers with whatever adapters it has; is left in the state `eval`.
        rows: as a run is trained on them.
    """
    losses, done = np.zeros(len(rows)), 0
    # no more threads than half of the cores, as answers do: on a busy machine, BLAS threads wait for each other
    with doing("losses", len(rows)) as tick, blas_threads(max(1, cores() // (2 * SIDE_BY_SIDE))):
        for indices, target, logs in answered_batches(model, rows):
            owner = np.repeat(indices, [rows[i].target_tokens for i in indices])
            losses += np.bincount(owner, -chosen(logs, target).astype(np.float64), len(rows))
            done += len(indices)
            tick(done)
    return losses


def answered_batches(model: nn.Module, rows: Sequence[TokenRow]) -> Iterator[tuple[list[int], mx.array, mx.array]]:
    """Yield indices of some rows, their trained tokens `(T,)` one row after another, and the log-probabilities there.

    These are float32 `(T, V)`, computed from the logits at the position before each token. On a CPU, batches are
    computed side by side, each on a stream of its own.
    """
    model.eval()
    batches = list(padded_batches(rows))
    streams = streams_of_this_thread(SIDE_BY_SIDE if ON_CPU else 1)
    for place in range(0, len(batches), len(streams)):
        some = batches[place : place + len(streams)]
        answered = compute_on_streams(some, streams, lambda batch: _answered(model, rows, *batch))
        mx.eval(answered)
        for (indices, _), (target, logs) in zip(some, answered, strict=True):
            yield indices, target, logs


def _answered(
    model: nn.Module, rows: Sequence[TokenRow], indices: list[int], ids: mx.array
) -> tuple[mx.array, mx.array]:
    """Return the trained tokens of a batch of rows, `(T,)`, and the log-probabilities there, `(T, V)`."""
    trained = [np.flatnonzero(rows[i].trained) for i in indices]
    line = mx.array(np.repeat(np.arange(len(indices)), [len(each) for each in trained]))
    column = mx.array(np.concatenate(trained))
    logits = model(ids)[line, column - 1].astype(mx.float32)
    return ids[line, column], logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def chosen(logs: mx.array, target: mx.array) -> np.ndarray:
    """Return the log-probability of each target, `(T,)`."""
    return np.array(mx.take_along_axis(logs, target[:, None], axis=-1)[:, 0])
