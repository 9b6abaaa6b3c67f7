"""Running heads inside lines, as scanning leaves them. Knows texts, nothing of files."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Sequence

from .prose import begins_low, ends_sentence

OFTEN = 4  # occurrences of a head inside lines
USED = 0.3  # share of its places: a text that prose uses more often is a name
ALIKE = 0.8  # share of equal letters in a misread head
_CONFUSED = ("o0ó", "l1iíI|!", "e3éc", "s5", "b8", "gq9", "aáàâã", "uúv", "çc", "nñ")
_WORKS = re.compile(
    r"\b(?:livros?|obras?|t[íi]tulo|edição|revista|jornal|filme|intitulad[oa]|chamad[oa]|book|title|work|called)\s*[:,]?$",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"[«“\"'‘(]$")


def bare(text: str) -> str:
    """Return the letters and digits of a text without accents and case, used to compare broken forms."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())


def nearly(one: str, other: str) -> bool:
    """Return whether two texts made by `bare` are the same except for a few letters."""
    if one == other:
        return True
    if not one or not other or abs(len(one) - len(other)) > 0.25 * max(len(one), len(other)):
        return False
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    return matcher.quick_ratio() >= ALIKE and matcher.ratio() >= ALIKE


def without_heads(
    lines: Sequence[str], heads: Sequence[str], little: Callable[[str], bool]
) -> dict[int, tuple[str, str]]:
    """Return lines inside which a running head stands: position, remaining text, and what was removed.

    A head interrupts a sentence that goes on behind it. Where prose names the head often, only occurrences with an
    attached page number or stray letter are removed.

    Args:
        lines: lines of text.
        heads: heads as they stand on lines of their own.
        little: whether a text ends with a word that asks for the next.
    """
    found: dict[int, tuple[str, str]] = {}
    for head in sorted(set(heads), key=len, reverse=True):
        if len(bare(head)) < 8 or " " not in head:
            continue
        pattern = _tolerant(head)
        longer = ((at, line) for at, line in enumerate(lines) if len(line) > len(head))
        places = [(at, match) for at, line in longer for match in pattern.finditer(line)]
        used = [_is_used(lines[at], match, little) for at, match in places]
        named = sum(used) > USED * len(places)
        for (at, match), is_name in zip(places, used, strict=True):
            sticks = bool(match["before"] or match["after"] or match["letter"])
            if at in found or (is_name and not sticks) or ((named or len(places) < OFTEN) and not sticks):
                continue
            if _interrupts(lines, at, match):
                line = lines[at]
                left = f"{line[: match.start()].rstrip()} {line[match.end() :].lstrip()}".strip()
                found[at] = (left, match[0].strip())
    return found


def _tolerant(head: str) -> re.Pattern[str]:
    """Return a pattern for a head that allows misread letters, lost spaces, and an attached page number or letter."""
    parts = []
    for char in head:
        if char.isspace():
            parts.append(r"\s*")
            continue
        group = next((chars for chars in _CONFUSED if char.casefold() in chars), "")
        forms = "".join(sorted({char, char.casefold(), char.upper(), *group, *group.upper()}))
        parts.append(f"[{re.escape(forms)}]")
    return re.compile(
        rf"(?:(?<=\s)|^)(?P<before>\d{{1,3}}\s+)?{''.join(parts)}(?P<letter>[^\W\d_])?"
        r"(?P<after>\s+\d{1,3}(?=\s|$))?(?=\s|$|[,;.])"
    )


def _is_used(line: str, match: re.Match[str], little: Callable[[str], bool]) -> bool:
    """Return whether the words belong to the sentence: named, quoted, or required by the word before them."""
    before, after = line[: match.start()].rstrip(), line[match.end() :].lstrip()
    if after[:1] in ",.;:!?»”\"')" and after:
        return True
    return bool(before) and bool(_QUOTED.search(before) or _WORKS.search(before) or little(before))


def _interrupts(lines: Sequence[str], at: int, match: re.Match[str]) -> bool:
    """Return whether the sentence before the words goes on behind them."""
    line = lines[at]
    before = line[: match.start()].rstrip() or (lines[at - 1] if at else "")
    after = line[match.end() :].lstrip() or (lines[at + 1] if at + 1 < len(lines) else "")
    sticks = match["before"] or match["after"] or match["letter"]
    goes_on = begins_low(after) or after[:1].isdigit() or bool(sticks)
    return bool(before) and not ends_sentence(before) and goes_on
