"""What a sentence is: where it ends, and how one does not begin. Knows words, nothing of lines or documents."""

from __future__ import annotations

import re

ABBREVIATION = re.compile(
    r"sr|srs|sr\.?ª|sra|dr|drs|dra|prof|profa|eng|arq|exmos?|exma|st[oa]?|av|tel|telef|ex|etc|págs?|pp?|vol|fig|séc|"
    r"cf|vs|n|nº|nr|r|d|mrs?|ms|jr|mme|mlle|bzw|usw|\w\.\w",
    re.IGNORECASE,
)
ENDED = re.compile(r"[.!?…。！？؟।۔][»”’\"')\]]*$")
SPEECH = re.compile(r"[—–-]\s*(?=[«“\"¿¡]*[^\W\d_a-zà-öø-ÿ])")
STOP = re.compile(r"\n\s*|[.!?…][»”’\"')\]]*\s+|[。！？]\s*")


def ends_sentence(text: str) -> bool:
    """Whether a line ends a sentence."""
    return bool(ENDED.search(text[-8:])) and not is_abbreviated(text)


def is_abbreviated(text: str) -> bool:
    """Whether the dot at the end of a text is that of an abbreviation or an initial."""
    last = text[-16:].rsplit(None, 1)[-1].lstrip("(«“\"'[—")
    if not last.endswith("."):
        return False
    word = last[:-1]
    return bool(ABBREVIATION.fullmatch(word)) or (len(word) == 1 and word.isupper())


def begins_low(text: str) -> bool:
    """Whether a line goes on with what the line before it began."""
    return text.lstrip("—–-«“\"'([ ")[:1].islower()
