"""The learning rate as a function of the step, so that a resumed run has the rate it would have had."""

from __future__ import annotations

import math

from .config import TrainConfig


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Rate of optimizer update `step`, counted from 1.

    Rises linearly to the peak at `warmup_steps`, then falls to 0 after the last step: as half a cosine
    (arXiv:1608.03983, without restarts) or a line, or stays (`constant`).
    """
    peak, warmup = config.learning_rate, min(config.warmup_steps, total_steps)
    if step <= warmup:
        return peak * step / warmup
    if config.schedule == "constant":
        return peak
    progress = (step - warmup) / (total_steps - warmup + 1)
    return peak * (1 - progress) if config.schedule == "linear" else peak * (1 + math.cos(math.pi * progress)) / 2


def suited_learning_rate(hidden_size: int) -> float:
    """A peak rate for a base `hidden_size` wide, to two digits; at most 1e-2.

    A power law through two points: 4e-3 for the built-in model (576 wide), where recall of the sample's facts was best,
    and 2e-4 for models of 7B parameters (4,096 wide; arXiv:2305.14314). A start for a search, not its result.
    """
    steepness = math.log(4e-3 / 2e-4) / math.log(4096 / 576)
    return float(f"{min(1e-2, 4e-3 * (576 / hidden_size) ** steepness):.1e}")
