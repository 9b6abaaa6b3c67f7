"""The layers below the first that has adapters, and what stands in for them while they are out of memory.

Knows layers and the hidden states between them; nothing of rows, files or steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .device import mx, nn
from .fused_linear import settled


class Passage:
    """Where hidden states go from the layers below to those above.

    Attributes:
        given: those that were made before, `(R, L, hidden)`; None where what comes is handed on.
        seen: what came last.
    """

    given: mx.array | None = None
    seen: mx.array | None = None


class StandIn(nn.Module):
    """Stands where a layer was and computes nothing.

    Args:
        layer: that was there; a model may ask for its plain attributes (whether it looks at a window, say).
        passage: of all stand-ins of a model.
    """

    def __init__(self, layer: nn.Module, passage: Passage) -> None:
        super().__init__()
        self.__dict__.update(layer.__dict__)
        self.passage = passage

    def __call__(self, x: mx.array, *_: Any, **__: Any) -> mx.array:
        """What was given, else what came."""
        if self.passage.given is not None:
            return self.passage.given
        self.passage.seen = settled(x)
        return x


class Trunk:
    """The lower layers of a model.

    Args:
        model: on which layers are replaced in place.
        depth: how many of its layers are below the first that has adapters.
        load: those layers anew, when they have been let go.
    """

    def __init__(self, model: nn.Module, depth: int, load: Callable[[], Sequence[nn.Module]]) -> None:
        self.depth, self._load = depth, load
        self._passage = Passage()
        self._layers = language_model(model).model.layers
        self._stand_ins = [StandIn(layer, self._passage) for layer in self._layers]

    def take_out(self) -> list[nn.Module]:
        """Stand in for the lower layers from now on, and give them back; what is computed needs states made before."""
        below = self._layers[: self.depth]
        self._layers[: self.depth] = self._stand_ins[: self.depth]
        return below

    def put_back(self, layers: Sequence[nn.Module]) -> None:
        """Have these lower layers again."""
        self._layers[: self.depth] = layers

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block the model has all of its layers, loaded anew."""
        self.put_back(self._load())
        try:
            yield
        finally:
            self.take_out()
            mx.clear_cache()

    @contextlib.contextmanager
    def alone(self) -> Iterator[Passage]:
        """Inside the block only they compute; what they made last is seen in the passage."""
        above = self._layers[self.depth :]
        self._layers[self.depth :] = self._stand_ins[self.depth :]
        try:
            yield self._passage
        finally:
            self._layers[self.depth :] = above
            self._passage.seen = None


@contextlib.contextmanager
def giving(model: nn.Module, states: mx.array | None) -> Iterator[None]:
    """Inside the block the layers above get these states from the stand-ins below; None: the layers below compute."""
    if states is None:
        yield
        return
    passage = language_model(model).model.layers[0].passage
    passage.given = states
    try:
        yield
    finally:
        passage.given = None


def language_model(model: nn.Module) -> nn.Module:
    """That of a model that sees or hears as well, else itself."""
    return model.language_model if "language_model" in model else model
