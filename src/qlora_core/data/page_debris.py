"""Lines that belong to the page and not to the text: contents, notices, page numbers, running heads, back matter.

Marks lines, and takes debris out of paragraphs. Knows nothing of how a title or a chapter is found.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .book_lines import (
    CHAPTER,
    CHAPTER_WORDS,
    CONTACT,
    CONTENTS,
    END,
    FRONT,
    FRONT_LINES,
    HEAD,
    IMPRINT,
    LEGAL,
    PAGE,
    SHORT,
    SOURCES,
    Contents,
    Hints,
    Line,
    ends_little,
    in_capitals,
    key_of,
    name_key,
)
from .decisions import SECTION, choice
from .heads import bare, nearly, without_heads
from .numerals import ROMAN, longest_growing, numeral_in
from .paragraphs import QUOTES, is_in_sentence
from .prose import SPEECH, begins_low, ends_sentence
from .records import Block, Findings

REPEATED = 4  # repetitions that make a running head
APART = 6  # lines between running heads; a refrain returns sooner
LONG_SECTION = 150  # lines: longer thanks, dedications and prefaces ended without a visible sign
CONTENTS_HEADS = re.compile("índice(?: geral)?|sumário|(?:table of )?contents|sommaire|inhalt|indice")
END_MARKS = re.compile("FIM|FIN|THE END|ENDE")
# Sections that stand before or behind the text itself, and are short
BESIDE = re.compile(
    "agradecimentos|dedicatória|prefácio|posfácio|palavras prévias|nota (?:prévia|final|d[oa] (?:autora?|editora?))|"
    "acknowledge?ments|dedication|preface|foreword|afterword|prefacio|agradecimientos|préface|avant-propos|postface|"
    "remerciements|vorwort|nachwort|danksagung"
)
BACK = re.compile(
    "bibliografia|referências(?: bibliográficas)?|fontes(?: e bibliografia)?|índice (?:onomástico|remissivo|de nomes)|"
    "bibliography|references|works cited|index(?: of names)?"
)
_PAGE = re.compile(
    r"(?:[-–—]\s*\d{1,4}\s*[-–—]|(?:página|pág\.|page|p\.|seite|pagina)\s*\d{1,4}(?:\s*(?:de|of|/|sur|von)\s*\d{1,4})?)",
    re.IGNORECASE,
)
_BARRED = re.compile(r"\d{1,4}\s*\|\s*(?P<after>[^|\d][^|]*)|(?P<before>[^|]*[^|\d\s])\s*\|\s*\d{1,4}")
_LEADERS = re.compile(
    r"(?P<label>.*?)\s*(?:(?:\.\s?){4,}|…{2,}|(?:…\s?){2,}|_{4,}|(?:[.,·•…_-]\s?){6,})\s*(?:[\dOIl]{1,4}|[ivxlc]{1,6})"
)
_NUMBERED = re.compile(
    rf"(?:(?i:{CHAPTER_WORDS})\s+)?(?P<number>\d{{1,2}}|[IVXLl1|!]+)(?:\s*[.):–—-]+\s*|\s+)(?P<name>[^\d\s].*)"
)
_REFERENCE = re.compile(r"\b1[5-9]\d\d\b|\b20\d\d\b|\bpp?\.\s?\d|\bed\.|(?:,\s*\d{1,3})+$")
_COLOPHON = re.compile(
    r"(?:t[íi]tulo(?: original)?|autor(?:es|as?)?|editor(?:es|as?)?|edição|capa|design|paginação|composição|revisão|"
    r"coordenação|fotografias?|impressão(?: e acabamento)?|execução gráfica|tiragem|data(?: de edição)?|local|"
    r"distribuição|title|author|publisher|cover|edition|printed(?: by)?|print run)\s*:",
    re.IGNORECASE,
)
_ENTRY = re.compile(r"(?P<label>\D.*?[^\d\s])[\s,–—-]+(?P<page>\d{1,3})")
_LEGAL = re.compile(
    r"(?:[\w ]{1,20}:\s*)?ISBN\b|©|\(c\)\s*\d{4}|copyright\b.*(?:©|\d{4})|dep[óo]sito legal\b\W*(?:n\W*[.ºo°]*\W*)?\d|"
    r"(?:todos os direitos reservados|reservados todos os direitos|all rights reserved)\W*$|"
    r"(?P<wraps>nenhuma parte dest|(?:é )?proibida a reprodução|no part of this (?:book|publication))",
    re.IGNORECASE,
)
_LABEL = (
    r"(?:tel(?:ef(?:one)?)?|tlm|telemóvel|phone|fax|e-?mail|correio eletrónico|web|site|sítio|contactos?|contacts?)\b"
)
_CONTACT = re.compile(
    rf"(?P<label>{_LABEL})|[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?:https?://|www\.)\S+|\+\d[\d ().-]{{7,18}}\d|"
    r"(?<![\d-])\(?\d{2,3}\)?[ .]?\d{3}[ .]?\d{3,4}(?![\d-])",
    re.IGNORECASE,
)


def mark_contents(lines: Sequence[Line]) -> Contents:
    """Mark the table of contents, before the text or behind it, and return its entries."""
    names = [name_key(line.text) for line in lines]
    last = {key: index for index, line in enumerate(lines) for key in (line.key, names[index]) if key}
    first: dict[str, int] = {}
    for index, line in enumerate(lines):
        first.setdefault(line.key, index)
        first.setdefault(names[index], index)
    entries: dict[int, str] = {}
    for run in _entry_runs(lines):
        start, stop = run[0][0], run[-1][0]
        keys = [{key_of(label), name_key(label)} - {""} for _, label in run]
        again = sum(any(last.get(key, -1) > stop or first.get(key, start) < start for key in each) for each in keys)
        if start < FRONT_LINES // 2 or 2 * again >= len(run):
            entries.update(run)
    for index, line in enumerate(lines):
        if len(line.text) < 2 * SHORT and (match := _LEADERS.fullmatch(line.text)):
            entries[index] = match["label"]
    for start in [index for index, line in enumerate(lines) if CONTENTS_HEADS.fullmatch(line.key)]:
        listed: set[str] = set()
        for index in range(start + 1, min(start + FRONT_LINES, len(lines))):
            text, key, name = lines[index].text, lines[index].key, names[index]
            number = text.isdecimal() and bool(listed)
            elsewhere = max(last.get(key, 0), last.get(name, 0)) > index or (
                len(name) > 3 and first.get(name, start) < start
            )
            comes_again = not ends_sentence(text) and key not in listed and elsewhere
            if index not in entries and not number and not comes_again:
                break
            entries.setdefault(index, text)
            entries[start] = ""
            listed.add(key)
    for index in range(1, len(lines) - 1):  # an entry of two lines
        if {index - 1, index + 1} <= entries.keys() and not ends_sentence(lines[index].text):
            entries.setdefault(index, "")
    for index in entries:
        lines[index].reason = CONTENTS
    return _listed_in([entries[index] for index in sorted(entries)])


def _listed_in(entries: Sequence[str]) -> Contents:
    """Return the chapter names in a table of contents and their numbers, which may stand on lines of their own."""
    contents = Contents({key for label in entries for key in (key_of(label), name_key(label)) if len(key) > 2})
    pending = 0
    for label in entries:
        number = numeral_in(label)
        match = _NUMBERED.fullmatch(label)
        if match:
            pending = int(match["number"]) if match["number"].isdecimal() else numeral_in(match["number"])
        name = match["name"] if match else "" if number else label
        if pending and name:
            contents.names.setdefault(pending, name.strip())
        pending = number
        if len(form := bare(name)) > 3:
            contents.forms.append(form)
    return contents


def _entry_runs(lines: Sequence[Line]) -> Iterator[list[tuple[int, str]]]:
    """Yield runs of three or more neighbouring lines that end in a growing page number."""
    run: list[tuple[int, str]] = []
    page = 0
    for index, line in enumerate([*lines, None]):
        match = _ENTRY.fullmatch(line.text) if line and len(line.text) <= SHORT else None
        if not (match and int(match["page"]) > page and run):
            if len(run) > 2:
                yield run
            run = []
        if match:
            run.append((index, match["label"]))
            page = int(match["page"])


def mark_notices(lines: Sequence[Line]) -> None:
    """Mark legal notices, the imprint beside them, and lines that are only an address to write to or call."""
    wrapped = 0
    for index, line in enumerate(lines):
        match = _LEGAL.match(line.text) if len(line.text) < 4 * SHORT else None
        if match and match["wraps"] and FRONT_LINES < index < len(lines) - 20:
            match = None
        if line.reason:
            continue
        if match or wrapped:
            line.reason = LEGAL
            going_on = not ends_sentence(line.text) and wrapped < 4 and (wrapped or match["wraps"])
            wrapped = wrapped + 1 if going_on else 0
        elif _is_contact(line.text):
            more_below = index + 1 < len(lines) and _is_contact(lines[index + 1].text)
            line.reason = CONTACT if more_below or not is_in_sentence(lines, index, index + 1) else ""
        elif END_MARKS.fullmatch(line.text):
            line.reason = END
    _mark_colophon(lines)
    notices = [index for index, line in enumerate(lines) if line.reason == LEGAL]
    before = None
    for index in sorted({near for at in notices for near in range(max(at - 3, 0), min(at + 4, len(lines)))}):
        line = lines[index]
        goes_on = before and before.reason == FRONT and not ends_sentence(before.text) and begins_low(line.text)
        if not line.reason and len(line.text) <= SHORT and (IMPRINT.match(line.text) or goes_on):
            line.reason = FRONT
        before = line


def _mark_colophon(lines: Sequence[Line]) -> None:
    """Mark three or more neighbouring lines at either end of a text that say who made the book."""
    ends = {*range(min(FRONT_LINES, len(lines))), *range(max(len(lines) - FRONT_LINES // 2, 0), len(lines))}
    told = [index in ends and not line.reason and bool(_COLOPHON.match(line.text)) for index, line in enumerate(lines)]
    index = 0
    for is_told, run in itertools.groupby(told):
        start, index = index, index + len(list(run))
        if is_told and index - start > 2:
            for line in lines[start:index]:
                line.reason = FRONT


def _is_contact(text: str) -> bool:
    """Return whether a line is only a telephone number, e-mail or web address, with its label."""
    if len(text) > 2 * SHORT or not re.search(r"\d{3}|@|www\.|https?:", text):
        return False
    found = list(_CONTACT.finditer(text))
    labelled = any(match["label"] for match in found) and len(re.findall(r"\d", text)) > 5
    return (labelled or any(not match["label"] for match in found)) and not re.search(
        r"\w", re.sub(r"[\d\s().+/-]+" if labelled else r"[\s.]+", "", _CONTACT.sub("", text))
    )


def mark_page_numbers(lines: Sequence[Line]) -> None:
    """Mark the lines that are page numbers, alone or beside a running head."""
    times = Counter(line.key for line in lines)
    arabic: list[tuple[int, int]] = []
    roman: list[tuple[int, int]] = []
    for index, line in enumerate(lines):
        if line.reason or len(line.text) > SHORT:
            continue
        if _PAGE.fullmatch(line.text):
            line.reason = PAGE
        elif match := _BARRED.fullmatch(line.text):
            if (match["after"] or match["before"]).isupper() or times[line.key] > 1:
                line.reason = PAGE
        elif line.text.isdecimal() and len(line.text) < 4:  # four digits are a year
            arabic.append((index, int(line.text)))
        elif line.text in ROMAN:
            roman.append((index, ROMAN[line.text]))
    chapters = _numbered_chapters(lines, arabic)
    for index, value in chapters:
        lines[index].number = value
    arabic = [number for number in arabic if number not in chapters]
    for index in [*_growing(arabic), *_growing(roman)]:
        lines[index].reason = PAGE


def _numbered_chapters(lines: Sequence[Line], numbers: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the numbers that count chapters: 1, 2, 3 …, each between two sentences, with its own name below."""
    found: list[tuple[int, int]] = []
    names = set[str]()
    for index, value in numbers:
        if value != len(found) + 1 or index + 2 >= len(lines):
            continue
        before, name, text = lines[index - 1] if index else None, lines[index + 1], lines[index + 2]
        anew = before is None or before.reason or ends_sentence(before.text)
        named = len(name.text) <= SHORT // 2 and name.text[0].isupper() and not ends_sentence(name.text)
        if anew and named and not begins_low(text.text) and name.key not in names and not ends_little(name.text):
            found.append((index, value))
            names.add(name.key)
    return found if len(found) > 2 else []


def _growing(numbers: list[tuple[int, int]]) -> Iterator[int]:
    """Yield the indexes of numbers that grow through the file and are spaced like the ends of pages."""
    while len(numbers) > 1:
        chain = longest_growing(numbers)
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(chain)]
        apart = sorted(step[0] for step in steps)[len(steps) // 2] if steps else 0
        enough = len(chain) > 2 or (len(chain) == len(numbers) and steps[0][1] <= 4)
        if apart < 3 or not enough or 2 * len(chain) < len(numbers):
            return
        yield from (index for index, _ in chain)
        taken = set(chain)
        numbers = [number for number in numbers if number not in taken]


def mark_running_heads(lines: Sequence[Line], labels: set[str], *, paragraphs: bool = False) -> None:
    """Mark lines or whole paragraphs that recur beside page numbers or inside sentences."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, line in enumerate(lines):
        if not line.reason and len(line.key) > 2 and not ends_sentence(line.text) and line.text[-1] not in ",;:":
            if begins_low(line.text) or SPEECH.match(line.text) or line.text[0] in QUOTES:
                continue
            places[line.key].append(index)
    known = labels if paragraphs else labels | {line.key for line in lines[:8]}
    for key, where in places.items():
        steps = sorted(b - a for a, b in itertools.pairwise(where))
        if len(where) < REPEATED or steps[len(steps) // 2] < (2 if paragraphs else APART):
            continue
        beside = [_beside_page(lines, index) for index in where]
        inside = [_inside(*_text_around(lines, index)) for index in where]
        apart = all(now or _starts_anew(*_text_around(lines, index)) for now, index in zip(inside, where, strict=True))
        if 2 * sum(beside) < len(where) and key not in known and not (" " in key and any(inside) and apart):
            continue
        first = where[0]
        heading = first < 8 or bool(CHAPTER.fullmatch(lines[first].text)) or (key in labels and not beside[0])
        heading = heading or (not beside[0] and not inside[0] and (lines[first].text.isupper() or _named(lines, first)))
        for index in where[heading:]:
            lines[index].reason = HEAD


def mark_lesser_running_heads(lines: Sequence[Line]) -> None:
    """Mark text that is a heading elsewhere, or stands twice in capitals, and interrupts a page or sentence here."""
    times = Counter(line.key for line in lines)
    headings = {key for line in lines if line.level for key in (line.key, name_key(line.text))}
    headings |= {line.key for line in lines if line.reason == HEAD}
    for index, line in enumerate(lines):
        if line.reason or line.level or len(line.key) < 3 or ends_sentence(line.text) or line.text[0].islower():
            continue
        elsewhere = line.key in headings or (times[line.key] > 1 and in_capitals(line.text))
        if elsewhere and (_beside_page(lines, index) or _inside(*_text_around(lines, index))):
            line.reason = HEAD
    for index, line in enumerate(lines):
        if line.text.isdecimal() and any(near.reason == HEAD for near in lines[max(index - 1, 0) : index + 2]):
            line.reason = line.reason or PAGE


def mark_broken_heads(lines: list[Line], title: str, debris: Findings, where: str) -> None:
    """Mark running heads that were misread, and remove those inside lines."""
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        if line.reason == HEAD:
            forms[line.key][line.text] += 1
    heads = [max(texts, key=lambda text: (texts[text], -len(text))) for texts in forms.values()]
    heads += [title] if len(title) <= SHORT and " " in title else []
    if not heads:
        return
    known = [(bare(head), len(head)) for head in heads]
    for index, line in enumerate(lines):
        if line.reason or line.level or len(line.text) > SHORT or ends_sentence(line.text):
            continue
        if not any(abs(len(line.text) - size) < max(4, size / 4) for _, size in known):
            continue
        breaks = _beside_page(lines, index) or _inside(*_text_around(lines, index))
        if breaks and any(nearly(bare(line.text), form) for form, _ in known if len(form) > 7):
            line.reason = HEAD
    body = [line for line in lines if not line.reason and not line.level]
    for place, (left, head) in without_heads([line.text for line in body], heads, ends_little).items():
        if left:
            body[place].text = left
            debris.add(f"{where}:{body[place].place}", HEAD, head)


def mark_back_matter(lines: list[Line]) -> None:
    """Mark a bibliography and an index of names as far as most of their lines look like one."""
    body = [line for line in lines if not line.reason]
    start = None
    for index, line in enumerate([*body, None]):
        if start is not None and (line is None or line.level):
            under = body[start + 1 : index]
            if under and 2 * sum(bool(_REFERENCE.search(each.text)) for each in under) >= len(under):
                for each in body[start:index]:
                    each.reason = SOURCES
            start = None
        if line is not None and line.level and BACK.fullmatch(line.key):
            start = index


def end_sections(lines: list[Line], where: str, hints: Hints) -> None:
    """End thanks or a preface that seem to hold most of a book: the text after them had no heading to find."""
    body = [index for index, line in enumerate(lines) if not line.reason]
    heads = [index for index in body if lines[index].level]
    for head, after in itertools.pairwise([*heads, len(lines)]):
        inside = [index for index in body if head < index < after]
        if not BESIDE.fullmatch(lines[head].key) or len(inside) < max(LONG_SECTION, len(body) // 4):
            continue
        stop = _end_of(lines, inside)
        ends = hints.section != "go on"
        hints.doubts.add(
            f"{where}:{lines[head].place}",
            f"“{lines[head].text}” would hold {len(inside)} of {len(body)} lines; "
            + (f"it was taken to end before line {lines[stop].place}" if ends else "as you say, it does"),
            lines[stop].text,
            [choice(SECTION, where, "end"), choice(SECTION, where, "go on")],
        )
        lines[stop].ends = ends


def _end_of(lines: list[Line], inside: list[int]) -> int:
    """Return where a section ends: where a page or a paragraph begins anew, some lines below its heading."""
    for before, index in itertools.pairwise(inside):
        page = any(line.reason in (PAGE, HEAD) for line in lines[before + 1 : index])
        if ends_sentence(lines[before].text) and (page or lines[index].gap) and index - inside[0] > 2:
            return index
    later = (index for before, index in itertools.pairwise(inside[20:]) if ends_sentence(lines[before].text))
    return next(later, inside[-1])


def _beside_page(lines: Sequence[Line], index: int) -> bool:
    near = lines[max(index - 1, 0) : index + 2]
    return any(line.reason == PAGE for line in near) or bool(re.search(r"^\d+\s|\s\d+$", lines[index].text))


def _named(lines: Sequence[Line], index: int) -> bool:
    """Return whether the line above is a chapter's number, so that this one is its name."""
    match = CHAPTER.fullmatch(lines[index - 1].text) if index else None
    return bool(match and not match["name"])


def _text_around(lines: Sequence[Line], index: int) -> tuple[Line | None, Line | None]:
    """Return the nearby lines before and after that are not debris."""
    before = next((line for line in reversed(lines[max(index - 4, 0) : index]) if not line.reason), None)
    return before, next((line for line in lines[index + 1 : index + 5] if not line.reason), None)


def _inside(before: Line | None, after: Line | None) -> bool:
    """Return whether the line between two others interrupts a sentence instead of being part of it."""
    if not before or not after or before.level or ends_sentence(before.text) or not begins_low(after.text):
        return False
    return not ends_little(before.text)


def _starts_anew(before: Line | None, after: Line | None) -> bool:
    return not before or not after or before.level > 0 or ends_sentence(before.text)


def without_page_debris(blocks: Sequence[Block], debris: Findings, where: str) -> list[Block]:
    """Return paragraphs without the running heads and page numbers that a scan left between or inside them.

    A sentence that one of them interrupted is whole again.
    """
    lines = [Line(block.text, block.place, True, key_of(block.text), level=block.level) for block in blocks]
    if len(lines) < LONG_SECTION // 3:
        return list(blocks)
    mark_page_numbers(lines)
    mark_running_heads(lines, set(), paragraphs=True)
    mark_broken_heads(lines, "", debris, where)
    kept: list[Block] = []
    broken = False
    for line, block in zip(lines, blocks, strict=True):
        if line.reason:
            debris.add(f"{where}:{line.place}" if line.place else where, line.reason, line.text)
            broken = True
            continue
        goes_on = broken and kept and not kept[-1].level and not block.level and begins_low(line.text)
        if goes_on and not ends_sentence(kept[-1].text):
            kept[-1] = replace(kept[-1], text=f"{kept[-1].text} {line.text}")
        else:
            kept.append(replace(block, text=line.text) if line.text != block.text else block)
        broken = False
    return kept
