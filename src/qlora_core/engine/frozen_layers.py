"""The layers below the first one with adapters, and what replaces them while they are out of memory.

Knows layers and the hidden states between them; nothing of rows, files or steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .device import mx, nn
from .fused_linear import settled


class HiddenStateRelay:
    """Carries hidden states from the layers below to those above.

    Attributes:
        given: hidden states computed earlier, `(R, L, hidden)`; None: pass on what the layers below compute.
        seen: the hidden states that arrived last.
    """

    given: mx.array | None = None
    seen: mx.array | None = None


class StandIn(nn.Module):
    """Takes the place of a layer, and computes nothing.

    Args:
        layer: the layer that is replaced; a model may still read its plain attributes, such as whether it uses a
            window.
        relay: shared by all stand-ins of a model.
    """

    def __init__(self, layer: nn.Module, relay: HiddenStateRelay) -> None:
        super().__init__()
        self.__dict__.update(layer.__dict__)
        self.relay = relay

    def __call__(self, x: mx.array, *_: Any, **__: Any) -> mx.array:
        """Return the given hidden states if there are any, else `x`."""
        if self.relay.given is not None:
            return self.relay.given
        self.relay.seen = settled(x)
        return x


class Trunk:
    """The lower layers of a model.

    Args:
        model: its layers are replaced in place.
        depth: number of layers below the first one with adapters.
        load: loads those layers again after they have been released.
    """

    def __init__(self, model: nn.Module, depth: int, load: Callable[[], Sequence[nn.Module]]) -> None:
        self.depth, self._load = depth, load
        self._relay = HiddenStateRelay()
        self._layers = language_model(model).model.layers
        self._stand_ins = [StandIn(layer, self._relay) for layer in self._layers]

    def take_out(self) -> list[nn.Module]:
        """Replace the lower layers by stand-ins and return them; the model then needs hidden states made earlier."""
        below = self._layers[: self.depth]
        self._layers[: self.depth] = self._stand_ins[: self.depth]
        return below

    def put_back(self, layers: Sequence[nn.Module]) -> None:
        """Restore the lower layers."""
        self._layers[: self.depth] = layers

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Load the lower layers again, so that the model has all of its layers inside the block."""
        self.put_back(self._load())
        try:
            yield
        finally:
            self.take_out()
            mx.clear_cache()

    @contextlib.contextmanager
    def alone(self) -> Iterator[HiddenStateRelay]:
        """Run only the lower layers inside the block; the yielded relay holds their last output."""
        above = self._layers[self.depth :]
        self._layers[self.depth :] = self._stand_ins[self.depth :]
        try:
            yield self._relay
        finally:
            self._layers[self.depth :] = above
            self._relay.seen = None


@contextlib.contextmanager
def giving(model: nn.Module, states: mx.array | None) -> Iterator[None]:
    """Give the layers above these hidden states inside the block; with None, the layers below compute them."""
    if states is None:
        yield
        return
    relay = language_model(model).model.layers[0].relay
    relay.given = states
    try:
        yield
    finally:
        relay.given = None


def language_model(model: nn.Module) -> nn.Module:
    """Return the language model inside a multimodal model, or the model itself."""
    return model.language_model if "language_model" in model else model
