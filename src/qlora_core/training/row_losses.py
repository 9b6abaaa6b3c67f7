"""The loss of a model over each of some rows, so that two models can be compared row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..activity import doing
from ..engine.device import blas_threads, cores, mx, nn
from ..tokens.rows import TokenRow
from .input_moments import padded_batches


def row_losses(model: nn.Module, rows: Sequence[TokenRow]) -> np.ndarray:
    """Return the loss of each row, summed over its trained tokens, in nats: float64 `(rows,)`.

    The model is left in the mode (training or evaluation) that it was in.
    """
    losses, done, training = np.zeros(len(rows)), 0, model.training
    model.eval()
    try:
        # half the cores, as answers do: on a busy machine, BLAS threads wait for each other
        with doing("judging", len(rows)) as tick, blas_threads(max(1, cores() // 2)):
            for indices, ids in padded_batches(rows):
                losses[indices] = _losses(model, [rows[i] for i in indices], ids)
                done += len(indices)
                tick(done)
    finally:
        model.train(training)
    return losses


def _losses(model: nn.Module, rows: Sequence[TokenRow], ids: mx.array) -> np.ndarray:
    trained = [np.flatnonzero(row.trained) for row in rows]
    line = np.repeat(np.arange(len(rows)), [len(each) for each in trained])
    column = np.concatenate(trained)
    logits = model(ids)[mx.array(line), mx.array(column - 1)].astype(mx.float32)
    targets = ids[mx.array(line), mx.array(column)]
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    each = np.array(mx.logsumexp(logits, axis=-1) - chosen).astype(np.float64)
    return np.bincount(line, each, len(rows))
