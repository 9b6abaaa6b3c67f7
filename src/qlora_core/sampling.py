"""The settings that decide how tokens are drawn. Knows nothing of models; `generate` does the drawing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Settings that decide how tokens are drawn.

    Attributes:
        max_tokens: longest answer, in tokens.
        temperature: 0 always takes the most likely token; of the other settings only the penalty then has an effect.
        top_p: draw only from the most likely tokens that together have this probability; 1: from all.
        top_k: draw only from this many of the most likely tokens; 0: from all.
        min_p: draw only from tokens with at least this fraction of the most likely token's probability.
        repetition_penalty: above 1, tokens that are among the last 20 become less likely; 1: no penalty.
        seed: seed of the random draws.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
