"""Loss of a batch, and its gradient, as functions that are compiled where that is faster.

Knows nothing of rows, steps or streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..tokens.batching import Batch
from .device import mx, nn
from .model import AdapterVector, BatchForm, Layout, arrays_of, form_loss, form_token_losses

Compute = Callable[[nn.Module, dict[str, mx.array], BatchForm], mx.array]
"""Computes something of a batch's arrays, as `engine.model.form_loss` does; it can be compiled."""


class Passes:
    """Computes the loss of batches, and its gradient.

    Args:
        model: with adapters attached.
        adapters: the model's adapters as one vector.
        layout: how batches are laid out for the model.
        compiled: whether a function is compiled for each new shape, and kept.
        loss: returns the loss of a batch's arrays, summed.
        token_losses: returns the terms of that sum, `(T,)`.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: AdapterVector,
        layout: Layout,
        *,
        compiled: bool,
        loss: Compute = form_loss,
        token_losses: Compute = form_token_losses,
    ) -> None:
        self._model, self._adapters, self._layout = model, adapters, layout
        self._compiled, self._loss, self._token_losses = compiled, loss, token_losses
        self._functions: dict[BatchForm, Any] = {}

    def token_losses(self, batch: Batch) -> mx.array:
        """Return the loss of each trained token, in nats, `(T,)`."""
        return self._call(False, batch)

    def loss_and_gradient(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """Return the loss and its gradient `(parameters,)`, float32. Dropout masks come from MLX's global state."""
        return self._call(True, batch)

    def forget(self) -> None:
        """Drop the compiled functions, and with them all references to weights."""
        self._functions.clear()

    def _call(self, training: bool, batch: Batch) -> Any:
        form = BatchForm.of(batch, self._layout, training=training)
        function = self._functions.get(form) or self._made(form)
        if self._compiled:
            self._functions[form] = function
        trained = self._model.trainable_parameters()
        try:
            return function(trained, arrays_of(batch))
        finally:
            self._model.update(trained)  # tracing left placeholders in the model

    def _made(self, form: BatchForm) -> Any:
        """Make the function that computes batches of a form: for training loss and gradient, else each token's loss."""
        compute = self._loss if form.training else self._token_losses

        def forward(trained: dict[str, Any], arrays: dict[str, mx.array]) -> mx.array:
            self._model.update(trained)
            return compute(self._model, arrays, form)

        def both(trained: dict[str, Any], arrays: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
            # no loss scaling in float16: in a sum over tokens nothing underflows (measured: scaling is no closer to
            # the result in float32)
            loss, gradients = mx.value_and_grad(forward)(trained, arrays)
            return loss, self._adapters.join(gradients)

        function = both if form.training else forward
        if not self._compiled:
            return function
        return mx.compile(function, inputs=[mx.random.state], outputs=[mx.random.state])
