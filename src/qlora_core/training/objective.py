"""What a run learns from its rows: their tokens, the loss over them, and the numbers that tell of a step.

Another one, from pairs of a better and a worse answer say, is another `Objective` here and a setting that chooses it.
Optimizer, checkpoints, streams and processes do not ask which it is. What still takes cross-entropy a token for granted
is the mean over tokens in `steps` and `loop`, perplexity, and the estimate of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..engine.model import BatchForm, form_loss
from ..tokens.dataset import Datasets, make_datasets

if TYPE_CHECKING:
    from ..engine.device import mx, nn


@dataclass(frozen=True)
class Objective:
    """What a run learns.

    Attributes:
        name: by which processes beside the trainer find it.
        encode: turns the rows to train and to validate into token rows of at most so many tokens, as
            `tokens.dataset.make_datasets` does; it says which tokens of each row count.
        loss: returns the loss of a batch's arrays, summed over the tokens that count, as `engine.model.form_loss` does;
            it can be compiled.
        numbers: returns what a `step` event tells of a summed loss (None: it is not finite) over so many tokens.
    """

    name: str
    encode: Callable[..., Datasets]
    loss: Callable[[nn.Module, dict[str, mx.array], BatchForm], mx.array]
    numbers: Callable[[float | None, int], dict[str, Any]]


def _mean_loss(loss: float | None, targets: int) -> dict[str, Any]:
    return {"train_loss": None if loss is None else loss / targets, "target_tokens": targets}


SUPERVISED = Objective("supervised", encode=make_datasets, loss=form_loss, numbers=_mean_loss)
"""The next token of every reply or text: cross-entropy in nats."""

OBJECTIVES = {objective.name: objective for objective in (SUPERVISED,)}
