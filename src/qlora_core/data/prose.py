"""Sentences and their lines: where one ends, how none begins. Knows nothing of documents."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

ABBREVIATION = re.compile(
    r"sr|srs|sr\.?ª|sra|dr|drs|dra|prof|profa|eng|arq|exmos?|exma|st[oa]?|av|tel|telef|ex|etc|págs?|pp?|vol|fig|séc|"
    r"cf|vs|n|nº|nr|r|d|mrs?|ms|jr|mme|mlle|bzw|usw|\w\.\w",
    re.IGNORECASE,
)
ENDED = re.compile(r"[.!?…。！？؟।۔][»”’\"')\]]*$")
SPEECH = re.compile(r"[—–-]\s*(?=[«“\"¿¡]*[^\W\d_a-zà-öø-ÿ])")
STOP = re.compile(r"\n\s*|[.!?…][»”’\"')\]]*\s+|[。！？]\s*")


def ends_sentence(text: str) -> bool:
    """Return whether a line ends a sentence."""
    return bool(ENDED.search(text[-8:])) and not is_abbreviated(text)


def is_abbreviated(text: str) -> bool:
    """Return whether the dot at the end of a text belongs to an abbreviation or an initial."""
    last = text[-16:].rsplit(None, 1)[-1].lstrip("(«“\"'[—")
    if not last.endswith("."):
        return False
    word = last[:-1]
    return bool(ABBREVIATION.fullmatch(word)) or (len(word) == 1 and word.isupper())


def begins_low(text: str) -> bool:
    """Return whether a line continues the line before it."""
    return text.lstrip("—–-«“\"'([ ")[:1].islower()


# Lines ----------------------------------------------------------------------------------------------------------

# Han, kana, bopomofo, Yi, Thai, Lao, Tibetan, Burmese and Khmer write no blanks between words; and their punctuation.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u2e80-\u2fff\u3001-\u312f\u31a0-\u9fff"
    "\ua000-\ua4cf\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_BROKEN_WORD = re.compile(rf"(?<=[{_UNSPACED}])[^\S\n]*\n[^\S\n]*(?=[{_UNSPACED}])")
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED}]")
_UNUSUAL_WIDTH = re.compile("[\u0300-\u036f\u0590-\u09ff\u0e00-\u0fff\u1000-\u11ff\u1780-\u17ff\u2e80-\U0003ffff]")
VERSE_WIDTH = 60  # columns: lines of verse are no longer
_TIMED = re.compile(r"\[?(?:\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}-\d\d-\d\d|\d{1,2}:\d\d(?::\d\d)?)\b")
_LABELLED = re.compile(r"(?:[-–—*•]\s)?(?P<name>[^\W\d_][\w .'’()-]{0,29}?)\s?[:：](?=\s|[^\W\d_])")


def is_unspaced(text: str) -> bool:
    """Return whether a text is in a script without blanks between words."""
    return not text.isascii() and 2 * len(_UNSPACED_LETTER.findall(text)) > len(text)


def joint(before: str, after: str) -> str:
    """Return the separator of two joined lines: a blank, or nothing in Chinese, Japanese or Thai."""
    both = _UNSPACED_LETTER.match(before[-1:]) and _UNSPACED_LETTER.match(after[:1])
    return "" if both else " "


def unwrapped(text: str) -> str:
    """Return a text on one line, for texts whose line feeds mean nothing."""
    return (text if text.isascii() else _BROKEN_WORD.sub("", text)).replace("\n", " ")


def columns(text: str) -> int:
    """Return a text's width in typewriter columns: Chinese characters count two, combining marks none."""
    if text.isascii() or not _UNUSUAL_WIDTH.search(text):
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.category(letter) == "Mn" for letter in text)


def starts_of_turns(lines: Sequence[str]) -> list[bool]:
    """Return for each line whether it begins like its neighbours, with a time or a speaker: a log, a chat, a play."""
    timed = [bool(_TIMED.match(line)) for line in lines]
    names = [match["name"] if (match := _LABELLED.match(line)) else "" for line in lines]
    times = Counter(names)
    labelled = [
        times[name] > 1 and (name[0].upper() == name[0] or name in ("user", "assistant")) if name else False
        for name in names
    ]
    return [
        (time and 2 * sum(timed) >= len(lines)) or (label and 5 * sum(labelled) >= len(lines) and sum(labelled) > 2)
        for time, label in zip(timed, labelled, strict=True)
    ]


def keep_their_lines(groups: Sequence[Sequence[str]]) -> list[bool]:
    """Return for each group of lines whether its writer ended them, not a margin: stanzas, addresses, lists.

    A margin ends a line where the next word no longer fits, wherever the sentence is. Short lines that end earlier, or
    with punctuation, are verse.

    Args:
        groups: neighbouring lines without an empty one between them, of one text.
    """
    several = [[columns(line) for line in group] for group in groups if len(group) > 1]
    sizes = sorted(size for group in several for size in group)
    if not sizes:
        return [False] * len(groups)
    width = sizes[int(0.95 * (len(sizes) - 1))]
    early, marked = [], 0  # width of each line with the next word added; sentences may end anywhere
    for group in groups:
        inside = [(line, after) for line, after in itertools.pairwise(group) if not ends_sentence(line)]
        early.append([columns(line) + 1 + columns(after.split(None, 1)[0]) for line, after in inside])
        marked += sum(line[-1] in ",;:—–" for line, _ in inside)
    breaks = [size for group in early for size in group]
    fitting = sum(size <= width for size in breaks)
    verse = (
        width <= VERSE_WIDTH
        and len(breaks) > 2
        and max(map(len, groups)) <= (40 if len(several) > 1 else 20)
        and fitting + marked >= (0.6 if len(several) > 1 else 0.75) * len(breaks)
        and 5 * fitting >= len(breaks)
    )
    return [
        not is_unspaced(group[0]) and (verse or (len(of) > 1 and max(of) <= 0.7 * width))
        for group, of in zip(groups, early, strict=True)
    ]
