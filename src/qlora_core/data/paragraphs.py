"""Lines to paragraphs: which lines a margin broke, and which their writer ended. Knows no words of headings."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from .book_lines import SHORT, Line, ends_little
from .prose import SPEECH, begins_low, columns, ends_sentence, is_unspaced, joint, keep_their_lines, starts_of_turns
from .records import Block, place_range

SHORT_LINE = 0.8  # of a full line: a sentence that ends earlier ends its paragraph
FULL_LINE = 0.8  # of the usual width: a full line, in a script without small letters
MARGIN = 20  # columns: narrower text is no running text
CLITIC = re.compile("[mts]e|lhes?|[nv]os|l?[ao]s?|n[ao]s?|lh[ao]|ia|iam|ei|á|ão")
HALF_WORD = re.compile("guarda|ex|vice|recém|pré|pós|segunda|terça|quarta|quinta|sexta|meia")  # guarda-redes
QUOTES = "«“„"
_CAPTION = re.compile(
    r"\[?(?:foto|fotografia|legenda|imagem|figura|fig\.|na foto|photo|picture)\b[^.]{0,20}[:–—]", re.IGNORECASE
)
_ITEM = re.compile(r"[-•▪*·]\s|\d{1,2}[.)]\s")


def is_in_sentence(lines: Sequence[Line], start: int, stop: int) -> bool:
    """Return whether lines that look like a heading are part of a sentence."""
    if stop < len(lines) and begins_low(lines[stop].text):
        return True
    before = lines[start - 1] if start else None
    if before is None or before.level or before.reason or lines[start].gap:
        return False
    return before.text[-1] == "," or ends_little(before.text)


def blocks_of(lines: list[Line]) -> Iterator[Block]:
    """Yield headings and paragraphs, joining the lines of each."""
    _mark_own_lines([line for line in lines if not line.level])
    texts = [line.text for line in lines if not line.level]
    ended = sum(map(ends_sentence, texts))
    wrapped = 5 * sum(map(begins_low, texts)) >= 2 * len(texts) and usual_width([*map(len, texts)]) > SHORT // 3
    prose = 12 * ended >= len(texts) or wrapped
    words = Counter(word.casefold() for text in texts for word in re.findall(r"\w+(?:-\w+)*", text))
    for level, group in itertools.groupby(lines, key=lambda line: line.level):
        members = list(group)
        if level:
            yield from (Block(line.text, level, place_range(line.place, line.last)) for line in members)
        else:
            yield from _paragraphs(members, prose, words)


def _mark_own_lines(lines: list[Line]) -> None:
    """Mark the lines that do not continue the one before them, whatever they begin with."""
    groups: list[list[Line]] = []
    for line, turn in zip(lines, starts_of_turns([line.text for line in lines]), strict=True):
        line.own |= turn
        if line.gap or not groups:
            groups.append([])
        groups[-1].append(line)
    for group, kept in zip(groups, keep_their_lines([[line.text for line in group] for group in groups]), strict=True):
        for line in group if kept else ():
            line.own = True


def _paragraphs(lines: list[Line], prose: bool, words: Counter[str]) -> Iterator[Block]:
    """Join lines; a word that was hyphenated at its line's end is whole again."""
    parts: list[str] = []
    first = lines[0]
    for before, line, mark in zip([first, *lines], lines, _breaks(lines, prose), strict=False):
        if mark == "\n\n" and parts:
            yield Block("".join(parts), 0, place_range(first.place, before.place))
            parts, first = [], line
        elif parts:
            hyphen = re.search(r"(\w+)-$", before.text[-SHORT:])
            if hyphen and re.match(r"-?[^\W\d_]", line.text) and mark == " " and line.text.lstrip("-")[0].islower():
                mark = ""
                rest = re.match(r"-?(\w+)", line.text)[1].casefold()  # type: ignore[index]
                if line.text[0] == "-" or not _keeps_hyphen(hyphen[1].casefold(), rest, words):
                    parts[-1] = parts[-1][:-1]
            parts.append(mark)
        parts.append(line.text)
    yield Block("".join(parts), 0, place_range(first.place, lines[-1].place))


def _keeps_hyphen(start: str, rest: str, words: Counter[str]) -> bool:
    """Return whether a hyphen at the end of a line belongs to its word, as far as the rest of the file tells."""
    whole, hyphenated = words[start + rest], words[f"{start}-{rest}"]
    if whole or hyphenated:
        return hyphenated > whole
    return bool(HALF_WORD.fullmatch(start) or (CLITIC.fullmatch(rest) and words[start] and len(start) > 3))


def _breaks(lines: list[Line], prose: bool) -> Iterator[str]:
    """Yield the separator between each line and the one before it: a blank, a line feed, or a paragraph break."""
    ended, low, size = ([f(line.text) for line in lines] for f in (ends_sentence, begins_low, columns))
    listed = [*_listed(lines, ended, low), False]
    usual = usual_width(size)
    speech = bool(SPEECH.match(lines[0].text))
    yield "\n\n"
    for index in range(1, len(lines)):
        before, line = lines[index - 1], lines[index]
        width = max(usual_width(size[max(index - 6, 0) : index + 5]), 0.9 * usual)
        spoken = SPEECH.match(line.text) and (ended[index - 1] or line.text[0] == "—" or before.text[-1] == ":")
        mark = " "
        if line.gap:
            goes_on = low[index] and not ended[index - 1] and prose and not (line.own or _ITEM.match(before.text))
            mark = " " if goes_on else "\n\n"
        elif line.own:
            mark = "\n"
        elif _caseless(line.text) and size[index - 1] >= FULL_LINE * width > MARGIN and not all(ended[:-1]):
            mark = joint(before.text, line.text)
        elif is_unspaced(line.text):
            mark = "\n\n" if ended[index - 1] else "\n"
        elif not prose or (_ITEM.match(line.text) and (_ITEM.match(before.text) or before.text[-1] == ":")):
            mark = "\n"
        elif spoken:
            mark = "\n\n"
        elif low[index]:
            pass
        elif ended[index - 1]:
            near = ended[max(index - 9, 0) : index + 8]
            whole = speech or 5 * sum(near) >= 4 * len(near)  # the speech is over, or every line is a sentence
            alone = line.text[0] in QUOTES or _CAPTION.match(line.text) or _CAPTION.match(before.text)
            mark = "\n" if listed[index] else "\n\n" if whole or alone or size[index - 1] < SHORT_LINE * width else " "
        elif listed[index]:
            prose_below = index + 1 < len(lines) and (low[index + 1] or size[index] > 1.3 * size[index - 1])
            mark = "\n\n" if prose_below and not listed[index + 1] else "\n"
        elif before.text[-1] not in ",;-–" and not ends_little(before.text) and size[index - 1] < width / 2:
            mark = "\n"
        if mark == "\n\n":
            speech = bool(spoken) or line.text[0] in QUOTES
        yield mark


def _listed(lines: list[Line], ended: list[bool], low: list[bool]) -> list[bool]:
    """Return for each line whether it and the one before it are lines of a list or of a poem."""
    found = [False] * len(lines)
    for long, fits in (
        (2, lambda i: not low[i] and not lines[i].gap and not ended[i - 1] and not _open(lines[i - 1].text)),
        (5, lambda i: not low[i] and not lines[i].gap and not ends_little(lines[i - 1].text)),
    ):
        start = 1
        for index in range(1, len(lines) + 1):
            if index < len(lines) and fits(index):
                continue
            run = index - start
            if run >= long and 2 * sum(not end for end in ended[start - 1 : index - 1]) >= run:
                found[start:index] = [True] * run
            start = index + 1
    return found


def _caseless(text: str) -> bool:
    """Return whether a line begins in a script without small letters, so that case cannot show a continuation."""
    first = next(filter(str.isalpha, text), "")
    return first.lower() == first.upper() and bool(first)


def _open(text: str) -> bool:
    return text[-1] == "," or ends_little(text)


def usual_width(sizes: Sequence[int]) -> int:
    """Return the length of a line that was broken because it was full."""
    return sorted(sizes)[len(sizes) * 4 // 5] if sizes else 0
