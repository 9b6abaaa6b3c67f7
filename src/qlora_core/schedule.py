"""The learning rate as a function of the step, so that a resumed run has the rate it would have had."""

from __future__ import annotations

import math

from .config import TrainConfig


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of optimizer update `step`, counted from 1.

    The rate rises linearly to its peak at `warmup_steps`. After that it falls to 0, reached one step after the last,
    along half a cosine (arXiv:1608.03983, without restarts) or a line; with `constant` it stays at the peak.
    """
    peak, warmup = config.learning_rate, min(config.warmup_steps, total_steps)
    if step <= warmup:
        return peak * step / warmup
    if config.schedule == "constant":
        return peak
    progress = (step - warmup) / (total_steps - warmup + 1)
    return peak * (1 - progress) if config.schedule == "linear" else peak * (1 + math.cos(math.pi * progress)) / 2


def suited_learning_rate(hidden_size: int) -> float:
    """Return a peak learning rate that suits a model of width `hidden_size`, to two digits; at most 1e-2.

    This is a power law through two points: 2e-3 for the built-in model (576 wide), which learns the sample's facts with
    it and forgets half as much as with 4e-3 (docs/evaluation.md), and 2e-4 for models of 7B parameters (4,096 wide;
    arXiv:2305.14314). It is where a search should start, not its result.
    """
    steepness = math.log(2e-3 / 2e-4) / math.log(4096 / 576)
    return float(f"{min(1e-2, 2e-3 * (576 / hidden_size) ** steepness):.1e}")
