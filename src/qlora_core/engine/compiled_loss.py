"""Passes of batches through a model: forwards, or forwards and backwards; compiled where that is faster.

Knows nothing of rows, steps or streams.
"""

from __future__ import annotations

from typing import Any

from ..tokens.batching import Batch
from .device import mx, nn
from .model import AdapterVector, Form, Layout, arrays_of, form_loss


class Passes:
    """Loss, and gradient, of batches.

    Args:
        model: with adapters attached.
        adapters: of that model, as one vector.
        layout: how batches go through it.
        compiled: whether each shape is compiled when it first occurs, and kept.
    """

    def __init__(self, model: nn.Module, adapters: AdapterVector, layout: Layout, *, compiled: bool) -> None:
        self._model, self._adapters, self._layout = model, adapters, layout
        self._compiled = compiled
        self._functions: dict[Form, Any] = {}

    def loss(self, batch: Batch) -> mx.array:
        """Summed over the trained tokens, nats."""
        return self._call(False, batch)

    def loss_and_gradient(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """The same with its gradient, `(parameters,)` float32. Dropout masks come from MLX's global state."""
        return self._call(True, batch)

    def forget(self) -> None:
        """Let go of what was compiled, and with it of every weight that it holds."""
        self._functions.clear()

    def _call(self, training: bool, batch: Batch) -> Any:
        form = Form.of(batch, self._layout, training=training)
        function = self._functions.get(form) or self._made(form)
        if self._compiled:
            self._functions[form] = function
        trained = self._model.trainable_parameters()
        try:
            return function(trained, arrays_of(batch))
        finally:
            self._model.update(trained)  # inside, they were placeholders

    def _made(self, form: Form) -> Any:
        """What computes batches of a form: the loss, for training with its gradient."""

        def forward(trained: dict[str, Any], arrays: dict[str, mx.array]) -> mx.array:
            self._model.update(trained)
            return form_loss(self._model, arrays, form)

        def both(trained: dict[str, Any], arrays: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
            # not scaled for float16: of a sum over tokens nothing underflows (measured: as near float32 as if it were)
            loss, gradients = mx.value_and_grad(forward)(trained, arrays)
            return loss, self._adapters.join(gradients)

        function = both if form.training else forward
        if not self._compiled:
            return function
        return mx.compile(function, inputs=[mx.random.state], outputs=[mx.random.state])
