"""How tokens are drawn, as a value. Knows nothing of models; `generate` does the drawing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_tokens: longest answer.
        temperature: 0 takes the likeliest token every time; the rest then changes nothing but the penalty.
        top_p: only the likeliest tokens that together have this probability; 1: all.
        top_k: only this many of the likeliest; 0: all.
        min_p: only tokens with at least this share of the likeliest one's probability.
        repetition_penalty: above 1, tokens among the last 20 become less likely; 1: none.
        seed: decides the draws.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
