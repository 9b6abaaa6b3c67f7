"""Repair of what scanning breaks in the lines of a book: specks, figures read as letters, words run together.

Only a text with such signs is touched. A word is parted if its second part alone is frequent in the text and the whole
never occurs; merely likely repairs are reported, and made only with the setting `scans`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from .records import Findings, Fragment

SPECK, FIGURE, ORDINAL, GLUED = "specks", "letters in numbers", "ordinals", "words run together"
SIGNS = 3  # lines with specks, figures or ordinals that mark a text as scanned
LONGEST = 1000  # characters: a longer line is no line of a page
FREQUENT = 3  # occurrences of a word's second part alone

_MARKS = r"/\\|~^_¬¦`´■□¤"
_BEFORE = re.compile(rf"^(?:[{_MARKS}]+|['’‘.,;:°]+(?=\s))(?:\s+(?:[{_MARKS}'’‘.,;:°]+(?=\s)))*\s+(?=\S)")
_AFTER = re.compile(rf"(?:\s+[{_MARKS}'’‘]+)+$")
_NOTHING = re.compile(rf"[\s{_MARKS}'’‘.,;:°]*[{_MARKS}][\s{_MARKS}'’‘.,;:°]*")
_FIGURE = re.compile(r"(?<![^\W_])(?=\d+[Ool])\d(?:[\dO]|[ol](?=[\dO]))*(?![^\W_])")  # 10l are litres, 1o is an ordinal
_ORDINAL = re.compile(r"(?<![\d.,])(\d{1,3})\.[0oO](?=\s+(?:de\s+)?[^\W\d_])")
_DECIMAL = re.compile(r"(?<![\d.,])\d+\.[1-9]\d?(?![\d.])")
_WORD = re.compile(r"[^\W\d_]+")
_TAB = re.compile(r"\s*\t\s*")
# Articles and prepositions that stand before a noun; those that begin many words of their own are only likely.
_SURE = (
    "da", "do", "das", "dos", "na", "nas", "nos", "ao", "aos", "à", "às", "pela", "pelo", "pelas", "pelos", "uma",
    "the", "of", "del",
)  # fmt: skip
_LIKELY = (
    "a", "o", "e", "as", "os", "de", "em", "no", "um", "com", "por", "para", "que", "se", "and", "in", "el", "la",
)  # fmt: skip
_WHOLE = ("oeste", "aonde", "ainda", "comum", "demais", "decerto", "depois", "debaixo", "devida", "defeito")
_VOWELS = "aeiouáéíóúâêôãõ"


@dataclass
class Scan:
    """Lines as they are after mending, and what was done.

    Attributes:
        lines: the lines without those that were only specks.
        mended: repairs by kind.
        where: the places of mended lines, with the kinds and how the line begins.
        specks: lines that were nothing else: place and text.
        likely: words that are probably two, each with its place and how it would be parted.
    """

    lines: list[Fragment]
    mended: Counter[str] = field(default_factory=Counter)
    where: list[tuple[str, str, str]] = field(default_factory=list)
    specks: list[Fragment] = field(default_factory=list)
    likely: list[tuple[str, str, str]] = field(default_factory=list)


def mend_scan(lines: Sequence[Fragment], scans: str = "sure") -> Scan:
    """Repair the lines of a scanned text; other text stays unchanged.

    Args:
        lines: the lines in order.
        scans: the setting: "sure", "all" (also words that are only probably two) or "keep".
    """
    if scans == "keep" or not _is_scanned(lines):
        return Scan(list(lines))
    ordinals = not any(_DECIMAL.search(line.text) for line in lines)
    words = Counter(word for line in lines for word in map(str.casefold, _WORD.findall(line.text)))
    scan = Scan([])
    for line in lines:
        if _is_speck(line.text):
            scan.specks.append(line)
            continue
        text, kinds = _mended(line.text, ordinals)
        text = _parted(text, words, scans == "all", kinds, lambda *word, at=line.place: scan.likely.append((at, *word)))
        scan.lines.append(replace(line, text=text))
        if kinds:
            scan.mended.update(kinds)
            scan.where.append((line.place, ", ".join(dict.fromkeys(kinds)), line.text))
    return scan


def report_scan(scan: Scan, name: str, mended: Counter[str], rows: Findings, doubts: Findings) -> None:
    """Count and name the repairs, and ask about those that are only likely."""
    mended.update(scan.mended)
    for place, kinds, text in scan.where:
        rows.add(f"{name}:{place}", kinds, text)
    for place, word, parts in scan.likely:
        doubts.add(f"{name}:{place}", f"“{word}” may be “{parts}”, and was left", word, [("scans", "all")])


def _is_scanned(lines: Sequence[Fragment]) -> bool:
    found = 0
    for line in lines:
        text = line.text
        found += bool(_is_speck(text) or _BEFORE.match(text) or _FIGURE.search(text) or _ORDINAL.search(text))
        if found >= SIGNS:
            return True
    return False


def _is_speck(text: str) -> bool:
    return len(text) < 40 and bool(_NOTHING.fullmatch(text))


def _mended(text: str, ordinals: bool) -> tuple[str, list[str]]:
    """Return a line without specks at its ends and with figures as figures, and the kinds of repair."""
    kinds = []
    steps = [(SPECK, _without_specks), (FIGURE, lambda line: _FIGURE.sub(_figures, line))]
    if ordinals:
        steps.append((ORDINAL, lambda line: _ORDINAL.sub(r"\1.º", line)))
    for kind, mend in steps:
        if (changed := mend(text)) != text:
            text, kinds = changed, [*kinds, kind]
    return text, kinds


def _without_specks(text: str) -> str:
    if len(text) > LONGEST:
        return text
    return _AFTER.sub("", _BEFORE.sub("", _TAB.sub(" ", text))).strip()


def _figures(found: re.Match[str]) -> str:
    """Return a match with digits for the letters among its digits."""
    return found[0].translate(str.maketrans("Ool", "001"))


def _parted(
    text: str, words: Counter[str], likely_too: bool, kinds: list[str], tell: Callable[[str, str], None]
) -> str:
    """Return a line in which words that were run together are parted."""

    def part(found: re.Match[str]) -> str:
        word = found[0]
        head, sure = _head_of(word, words)
        if not head:
            return word
        parts = f"{word[: len(head)]} {word[len(head) :]}"
        if not sure and not likely_too:
            tell(word, parts)
            return word
        kinds.append(GLUED)
        return parts

    return _WORD.sub(part, text)


def _head_of(word: str, words: Counter[str]) -> tuple[str, bool]:
    """Return the little word that a word wrongly begins with, and whether that is sure; "" if it is whole."""
    low = word.casefold()
    if len(low) < 5 or words[low] > 1 or low in _WHOLE or not word[1:].islower():
        return "", False
    for heads, sure in ((_SURE, True), (_LIKELY, False)):
        for head in heads:
            rest = low.removeprefix(head)
            if len(rest) == len(low) or len(rest) < 4 or words[rest] < FREQUENT:
                continue
            meeting = len(head) == 1 and rest[0] in _VOWELS  # aequipa, oárbitro: no word begins so
            return head, (sure and len(rest) > 4) or meeting
    return "", False
