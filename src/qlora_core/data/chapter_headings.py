"""Headings among lines: chapters that say what they are or that the contents list, and lines in capitals.

Knows nothing of page debris.
"""

from __future__ import annotations

import itertools
import re

from .book_lines import (
    CHAPTER,
    CHAPTER_WORDS,
    NAME,
    ORDINALS,
    PART_WORDS,
    SHORT,
    Contents,
    Hints,
    Line,
    ends_little,
    in_capitals,
    key_of,
    name_key,
)
from .heads import bare, nearly
from .numerals import ROMAN, chapters_among, numeral_in, written
from .paragraphs import is_in_sentence, usual_width
from .prose import SPEECH, begins_low, ends_sentence

SECTIONS = re.compile(
    "prólogo|epílogo|prefácio|posfácio|introdução|conclusão|agradecimentos|dedicatória|cronologia|bibliografia|"
    "apêndice|anexos?|nota (?:prévia|final|d[oa] (?:autora?|editora?))|palavras prévias|índice|sumário|prologue|"
    "epilogue|preface|foreword|afterword|introduction|conclusion|acknowledge?ments|appendix|chronology|bibliography|"
    "prefacio|introducción|conclusión|agradecimientos|préface|avant-propos|postface|remerciements|vorwort|nachwort|"
    "einleitung|danksagung|anhang"
)
_PART = re.compile(rf"(?:(?:{ORDINALS})\s+)?(?:{PART_WORDS})\b", re.IGNORECASE)


def mark_chapters(lines: list[Line], contents: Contents, where: str, hints: Hints) -> None:
    """Mark headings that say what they are or that the contents list; a chapter's name joins its number."""
    numerals = [(index, value) for index, line in enumerate(lines) if (value := line.number or numeral_in(line.text))]
    numerals = [(index, value) for index, value in numerals if not is_in_sentence(lines, index, index + 1)]
    chapters = dict(chapters_among(numerals))
    _ask_for_missing(list(chapters.values()), lines, where, hints)
    labels = contents.labels
    width = usual_width([len(line.text) for line in lines])
    seen = set[str]()
    in_part, parts = False, set[int]()
    for index, line in enumerate(lines):
        if line.level or len(line.text) > SHORT or line.reason or is_in_sentence(lines, index, index + 1):
            continue
        match = CHAPTER.fullmatch(line.text)
        name = match["name"] if match else ""
        bare_number = index in chapters or (match is not None and not name)
        named = (
            match is not None
            and bool(name)
            and not ends_sentence(name)
            and (match["mark"].strip() or name[0].isupper())
        )
        section = SECTIONS.fullmatch(line.key)
        alone = section or (line.key in labels and len(line.key) > 2)
        fresh = line.key not in seen and not begins_low(line.text) and not ends_sentence(line.text)
        if not (bare_number or named or (alone and fresh)):
            continue
        line.level = 1
        below = _name_below(lines[index + 1 : index + 4], width, contents) if bare_number else []
        for part in below:
            part.reason, line.last = NAME, part.place
        name = name or " ".join(part.text for part in below) or contents.names.get(chapters.get(index, 0), "")
        number = match["first"] if match else _numeral(line, chapters.get(index, 0))
        number = _proper(number) if bare_number or named or section else number
        in_part = bool(match and _PART.match(line.text)) or (in_part and not section)
        line.text = " – ".join(filter(None, (number, name)))
        seen |= {line.key, key_of(name), name_key(line.text)}
        if in_part and (index in chapters or re.match(CHAPTER_WORDS, line.text, re.IGNORECASE)):
            parts.add(index)
    for index in parts:  # chapters lie below the parts
        lines[index].level += 1


def _numeral(line: Line, number: int) -> str:
    """Return the number of a chapter in its proper form; for another heading, its text."""
    return line.text if line.number or not number else written(number)


def _ask_for_missing(numbers: list[int], lines: list[Line], where: str, hints: Hints) -> None:
    """Name the chapters whose numbers were not found: their text stands under the one before."""
    for before, after in itertools.pairwise(numbers):
        if after - before > 1:
            lost = ", ".join(map(written, range(before + 1, after)))
            hints.doubts.add(
                where, f"the number of chapter {lost} was not found: its text is filed under {written(before)}"
            )


def _name_below(after: list[Line], width: int, contents: Contents) -> list[Line]:
    """Return the lines below a chapter's number that are its name."""
    for count in range(len(after), 0, -1):  # in the form of the contents, even across lines and with misread letters
        form = bare("".join(line.text for line in after[:count]))
        if len(form) > 3 and any(nearly(form, known) for known in contents.forms):
            return after[:count]
    if not after or ends_sentence(after[0].text) or len(after[0].text) > SHORT or after[0].text[-1] in ",;:":
        return []
    first = after[0]
    if begins_low(first.text) or SPEECH.match(first.text) or first.text.isdecimal() or CHAPTER.fullmatch(first.text):
        return []
    if in_capitals(first.text):
        return list(itertools.takewhile(lambda line: in_capitals(line.text) and not ends_sentence(line.text), after))
    prose = len(after) < 2 or begins_low(after[1].text) or ends_little(first.text)
    return [] if prose or not (after[1].gap or len(first.text) <= 0.75 * width) else [first]


def _proper(text: str) -> str:
    """Return the capitalised word for a chapter as it is written elsewhere: Capítulo IV."""
    first, *others = (word if word.casefold() in ROMAN else word.lower() for word in text.split())
    return " ".join([first[:1].upper() + first[1:], *others]) if text.isupper() else text


def mark_capitals(lines: list[Line]) -> None:
    """Mark short lines in capitals that end no sentence, if they are few."""
    capitals = [in_capitals(line.text) and not line.level and not line.reason for line in lines]
    if 5 * sum(capitals) > len(lines):
        return
    level = max([1, *(line.level for line in lines)]) + 1
    index = 0
    for is_capitals, run in itertools.groupby(capitals):
        start, index = index, index + len(list(run))
        few = index - start <= 3 and index < len(lines)
        if (
            not is_capitals
            or not few
            or ends_sentence(lines[index - 1].text)
            or ends_little(lines[index - 1].text)
            or is_in_sentence(lines, start, index)
        ):
            continue
        for line in lines[start + 1 : index]:
            line.reason = NAME
        first, last = lines[start], lines[index - 1]
        first.text = " ".join(line.text for line in lines[start:index])
        first.level, first.last = level, last.place
