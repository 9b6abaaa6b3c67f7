"""The second moments of what linear layers are given, on some rows: what calibrated rounding (`gptq`) wants to know.

Knows a model's linear layers and rows of tokens; nothing of rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..engine.device import mx, nn, tree_unflatten
from ..tokens.rows import TokenRow

TOKENS_AT_ONCE = 512  # in one pass through the model, or one row if that is longer


def padded_batches(rows: Sequence[TokenRow]) -> Iterator[tuple[list[int], mx.array]]:
    """Yield the indices of rows and their ids, int32 `(R, L)`, padded at the end; rows of like length come together."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(rows[index]) > TOKENS_AT_ONCE:
            yield batch, _padded([rows[i] for i in batch])
            batch = []
        batch.append(index)
    if batch:
        yield batch, _padded([rows[i] for i in batch])


def _padded(rows: list[TokenRow]) -> mx.array:
    longest = max(map(len, rows))
    return mx.array(np.stack([np.pad(row.ids, (0, longest - len(row))) for row in rows]))


class Moments:
    """Sums x xᵀ for groups of layers that are given the same x.

    Attributes:
        sums: float32 `(inputs, inputs)` for each group.
        group_of: `{layer: its group}`.
    """

    def __init__(self) -> None:
        self.sums: list[mx.array] = []
        self.group_of: dict[str, int] = {}
        self._last: list[mx.array | None] = []  # what each group was given in this pass
        self.real = mx.array([0])  # indices of the tokens that are no padding, in the flattened batch

    def begin(self, real: np.ndarray) -> None:
        """Begin a pass whose tokens `real` are no padding."""
        self.real = mx.array(real)
        self._last = [None] * len(self.sums)

    def add(self, name: str, x: mx.array) -> None:
        """Add what a layer is given, `(R, L, inputs)`; layers of one group must be given the same array."""
        if name not in self.group_of:
            same = next((group for group, last in enumerate(self._last) if last is x), None)
            if same is None:
                same = len(self.sums)
                self.sums.append(mx.zeros((x.shape[-1], x.shape[-1])))
                self._last.append(None)
            self.group_of[name] = same
        group = self.group_of[name]
        if self._last[group] is None:
            self._last[group] = x
            inputs = x.reshape(-1, x.shape[-1])[self.real].astype(mx.float32)
            self.sums[group] = mx.addmm(self.sums[group], inputs.T, inputs)


class _Watched(nn.Module):
    """Stands before a layer and notes what it is given."""

    def __init__(self, layer: nn.Module, name: str, moments: Moments) -> None:
        super().__init__()
        self.layer = layer
        object.__setattr__(self, "_note", lambda x: moments.add(name, x))  # bypasses nn.Module: no parameter

    def __call__(self, x: mx.array) -> mx.array:
        """Return what the layer returns."""
        self._note(x)
        return self.layer(x)


@contextmanager
def replaced(model: nn.Module, modules: dict[str, Any]) -> Iterator[None]:
    """Put other modules in the place of some of a model's, by their paths, inside the block."""
    own = dict(model.named_modules())
    before = [(path, own[path]) for path in modules]
    model.update_modules(tree_unflatten(list(modules.items())))
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(before))


def input_moments(model: nn.Module, paths: Sequence[str], rows: Sequence[TokenRow]) -> Moments:
    """Return the summed second moments of what the layers at `paths` are given on some rows.

    The model computes as it does anyway, so layers are calibrated on the inputs they have while the others are as they
    were. Memory: `(inputs, inputs)` in float32 for each group of layers with a common input.
    """
    moments, own = Moments(), dict(model.named_modules())
    with replaced(model, {path: _Watched(own[path], path, moments) for path in paths}):
        for indices, ids in padded_batches(rows):
            lengths = np.array([len(rows[i]) for i in indices])
            moments.begin(np.flatnonzero(np.arange(ids.shape[1]) < lengths[:, None]))
            model(ids)  # only what the sums depend on is computed: not the layers above, nor the head
            mx.eval(moments.sums)
    return moments
