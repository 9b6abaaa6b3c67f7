"""How good an answer is, compared with what was expected: whole, by words, by characters.

Case, accents and punctuation do not count, but for chrF, which sees every character.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any


def says(text: str, expected: Sequence[str]) -> bool:
    """Return whether `text` contains one of the expected texts as whole words."""
    padded = f" {plain(text)} "
    return any(f" {value} " in padded for value in map(plain, expected) if value)


def is_equal(answer: str, references: Sequence[str]) -> bool:
    """Return whether an answer is one of the references, word for word ("exact match")."""
    return plain(answer) in map(plain, references)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the best F1 of the words of an answer and those of a reference, from 0 to 1.

    It is SQuAD's measure (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250) without leaving out articles, which
    are English there.
    """
    return max((_f1(plain(answer).split(), plain(one).split()) for one in references), default=0.0)


def chrf(answer: str, references: Sequence[str]) -> float:
    """Return the best chrF of an answer and a reference, from 0 to 1: F2 of up to 6 characters (Popović 2015)."""
    measure = _chrf()
    return max((measure.sentence_score(answer, [one]).score / 100 for one in references), default=0.0)


def plain(text: str) -> str:
    """Return the words of a text in small letters without accents and punctuation, with a blank between them."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(c if c.isalnum() else " " for c in letters if not unicodedata.combining(c))
    return " ".join(kept.split())


def longest_shared(text: str, other: str) -> list[str]:
    """Return the longest run of words that two texts share."""
    ours, theirs = plain(text).split(), plain(other).split()
    best, end, before = 0, 0, [0] * (len(theirs) + 1)
    for i, word in enumerate(ours, 1):
        now = [0] * (len(theirs) + 1)
        for j, another in enumerate(theirs, 1):
            if word == another:
                now[j] = before[j - 1] + 1
                if now[j] > best:
                    best, end = now[j], i
        before = now
    return ours[end - best : end]


def is_loop(text: str) -> bool:
    """Return whether a text says the same again and again: its last words are three times or more the same ones.

    One word repeated three times is speech ("no, no, no"); it takes five to be a loop.
    """
    words = plain(text).split()
    for length in range(1, len(words) // 3 + 1):
        times = 5 if length == 1 else 3
        if len(words) >= times * length and words[-length:] * times == words[-times * length :]:
            return True
    return False


def _f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF  # imported here since only evaluations need it

    return CHRF()
