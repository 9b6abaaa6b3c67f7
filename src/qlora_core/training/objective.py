"""The objective of a run: which tokens its rows become, the loss over them, and the numbers reported of it.

Another one, from pairs of a better and a worse answer say, is another `Objective` here and a setting that chooses it.
Optimizer, checkpoints, streams and processes do not ask which it is. What still takes cross-entropy a token for granted
is the mean over trained tokens in `steps`, and the logits in the estimate of memory (`runs.memory_estimate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..engine.compiled_loss import Compute, Passes
from ..engine.model import AdapterVector, Layout, form_loss, form_token_losses
from ..runs.kernel_choice import Kernels
from ..tokens.dataset import Datasets, make_datasets

if TYPE_CHECKING:
    from ..engine.device import nn


@dataclass(frozen=True)
class Objective:
    """The objective of a run.

    Attributes:
        name: by which processes beside the trainer find it.
        encode: turns the rows to train and to validate into token rows of at most so many tokens, as
            `tokens.dataset.make_datasets` does; it says which tokens of each row count.
        loss: returns the loss of a batch's arrays, summed over the tokens that count.
        token_losses: returns the terms of that sum, one for each of those tokens.
        step_numbers: returns what a `step` event tells of a summed loss (None: it is not finite) over so many tokens.
        validation_numbers: returns what an `eval` event tells of a mean loss (None: it is not finite).
    """

    name: str
    encode: Callable[..., Datasets]
    loss: Compute
    token_losses: Compute
    step_numbers: Callable[[float | None, int], dict[str, Any]]
    validation_numbers: Callable[[float | None], dict[str, Any]]

    def passes(self, model: nn.Module, adapters: AdapterVector, layout: Layout, kernels: Kernels) -> Passes:
        """Return its losses of this model as functions of batches, compiled where the kernels are."""
        return Passes(
            model, adapters, layout, compiled=kernels.compiled, loss=self.loss, token_losses=self.token_losses
        )


def _mean_loss(loss: float | None, targets: int) -> dict[str, Any]:
    return {"train_loss": None if loss is None else loss / targets, "target_tokens": targets}


def _with_perplexity(loss: float | None) -> dict[str, Any]:
    return {"val_loss": loss, "perplexity": None if loss is None else math.exp(min(loss, 700))}


SUPERVISED = Objective(
    "supervised",
    encode=make_datasets,
    loss=form_loss,
    token_losses=form_token_losses,
    step_numbers=_mean_loss,
    validation_numbers=_with_perplexity,
)
"""The next token of every reply or text: cross-entropy in nats."""

OBJECTIVES = {objective.name: objective for objective in (SUPERVISED,)}
