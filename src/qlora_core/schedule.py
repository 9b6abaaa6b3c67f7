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
