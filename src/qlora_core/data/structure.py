"""Lines to blocks: the headings and paragraphs of a text that only has lines, and what is no text at all.

What belongs to the page, and not to the text, is left out: page numbers, running heads, title page, contents. What the
page broke is mended. Knows nothing of files or models.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from .decisions import SECTION, choice
from .decisions import TITLE as TITLE_OF
from .heads import bare, nearly, without_heads
from .numerals import ROMAN, chapters_among, longest_growing, numeral_in, written
from .prose import (
    SPEECH,
    begins_low,
    columns,
    ends_sentence,
    is_abbreviated,
    is_unspaced,
    joint,
    keep_their_lines,
    starts_of_turns,
)
from .records import Block, Findings, Fragment, place_range

SHORT = 80  # characters: what is longer is no heading and no running head
REPEATED = 4  # times a running head is seen at least
APART = 6  # lines between running heads; a refrain comes back sooner
SHORT_LINE = 0.8  # of a full line: a sentence that ends before it ends a paragraph
FULL_LINE = 0.8  # of the usual width: a line that was broken because it was full, in a script without small letters
MARGIN = 20  # columns: what is narrower is no running text
FRONT_LINES = 80  # a title page and an imprint are no longer
LONG_SECTION = 150  # lines: thanks, a dedication or a preface that seem longer have ended without a sign

CHAPTER_WORDS = "cap[íi]tulo|chapter|chapitre|kapitel"
PART_WORDS = "parte|part|partie|teil|livro|book|libro|livre|buch"
ORDINALS = (
    r"primeir[oa]|segund[oa]|terceir[oa]|quart[oa]|quint[oa]|sext[oa]|sétim[oa]|oitav[oa]|non[oa]|décim[oa]|última|"
    r"first|second|third|fourth|fifth|last|primer[oa]|tercer[oa]|premi(?:er|ère)|deuxième|troisième|erster|zweiter"
)
NUMBERS = (
    r"(?-i:[IVXLC]+)|\d{1,3}|um|dois|duas|três|quatro|cinco|seis|sete|oito|nove|dez|onze|doze|"
    r"one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|uno|dos|tres|un|deux|trois|eins|zwei|drei"
)
SECTIONS = re.compile(
    "prólogo|epílogo|prefácio|posfácio|introdução|conclusão|agradecimentos|dedicatória|cronologia|bibliografia|"
    "apêndice|anexos?|nota (?:prévia|final|d[oa] (?:autora?|editora?))|palavras prévias|índice|sumário|prologue|"
    "epilogue|preface|foreword|afterword|introduction|conclusion|acknowledge?ments|appendix|chronology|bibliography|"
    "prefacio|introducción|conclusión|agradecimientos|préface|avant-propos|postface|remerciements|vorwort|nachwort|"
    "einleitung|danksagung|anhang"
)
CONTENTS_HEADS = re.compile("índice(?: geral)?|sumário|(?:table of )?contents|sommaire|inhalt|indice")
END_MARKS = re.compile("FIM|FIN|THE END|ENDE")
LITTLE = re.compile(
    "a|o|as|os|uma?|e|d[aeo]s?|em|n[ao]s?|por|pel[ao]s?|aos?|às?|com|que|se|sem|sob|para|the|of|and|in|on|at|to|for|"
    "with|an|by|or|el|l[ao]s|del|y|le|les|du|des|et|der|die|das|und|von",
    re.IGNORECASE,
)
BY = ("por", "de", "by", "par", "von")
ARTICLE = re.compile("(?:[AO]S?|UMA?|THE|AN|EL|L[AE]S?|LOS|DER|DIE|DAS) ")
CLITIC = re.compile("[mts]e|lhes?|[nv]os|l?[ao]s?|n[ao]s?|lh[ao]|ia|iam|ei|á|ão")
HALF_WORD = re.compile("guarda|ex|vice|recém|pré|pós|segunda|terça|quarta|quinta|sexta|meia")  # guarda-redes


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

TITLE, NAME = "title", "name"  # lines that became a title, or a part of a heading
PAGE, HEAD, FRONT, CONTENTS, LEGAL, CONTACT, END, SOURCES, RULE, TIME = (
    "page number",
    "running head",
    "front matter",
    "contents",
    "legal notice",
    "contact details",
    "end mark",
    "bibliography or index",
    "rule",
    "time of a subtitle",
)

# "Primeira parte" is the half of a match, PRIMEIRA PARTE that of a book
_CHAPTER = re.compile(
    rf"(?P<first>(?=(?-i:[A-Z]))(?:{CHAPTER_WORDS}|{PART_WORDS})\s+(?:{NUMBERS}|{ORDINALS})|"
    rf"(?-i:(?=[^a-zà-ÿ]+$))(?:{ORDINALS})\s+(?:{PART_WORDS}))\b\.?(?P<mark>\s*[:.–—-]\s*|\s+|$)(?P<name>.*)",
    re.IGNORECASE,
)
_PART = re.compile(rf"(?:(?:{ORDINALS})\s+)?(?:{PART_WORDS})\b", re.IGNORECASE)
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
_STATED = re.compile(
    r"(?P<label>t[íi]tulo(?: original)?|title|autor(?:es|as?)?|author|textos?(?: de)?)\s*:\s*(?P<value>\S.*)",
    re.IGNORECASE,
)
_OWNER = re.compile(r"(?:©|\(c\)|copyright)[\s\d,©–-]*(?P<value>[^\W\d].*)", re.IGNORECASE)
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
_IMPRINT = re.compile(
    r"\d+\s?[.ªaº]+\s*edição|(?:primeira|segunda|terceira|first|second) edi|edição\b|edições\b|editora?\b|tiragem\b|"
    r"impress(?:o|ão|a)\b|acab(?:ou|ado) de (?:se )?imprimir|composto e|composição|paginação|tipografia|gráfica\b|"
    r"capa\b|revisão\b|fotografias?:|printed\b|published\b|edition\b|título:|autora?:|"
    r"(?:rua|avenida|av\.|largo|praça)\s.*\d",
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
_QUOTES = "«“„"
_CAPTION = re.compile(
    r"\[?(?:foto|fotografia|legenda|imagem|figura|fig\.|na foto|photo|picture)\b[^.]{0,20}[:–—]", re.IGNORECASE
)
_ITEM = re.compile(r"[-•▪*·]\s|\d{1,2}[.)]\s")
_RULE = re.compile(r"([=_~#-])\1{4,}")
_TIME = re.compile(r"(?:\d{1,3}:)?\d{1,2}:\d\d[.,]\d{1,3}\s*-->\s*(?:\d{1,3}:)?\d{1,2}:\d\d[.,]\d{1,3}(?:\s+\w+:\S+)*")


# Lines to blocks ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Line:
    """A non-empty line; `reason` says why it is debris, `level` that it is a heading."""

    text: str
    place: str
    gap: bool  # an empty line or a rule stands before it
    key: str  # what running heads and headings are compared by
    reason: str = ""
    level: int = 0
    last: str = ""
    ends: bool = False  # the section before it ends here, although no heading says so
    own: bool = False  # its writer began it, and no margin did
    number: int = 0  # of the chapter that begins with this line, which is a figure


@dataclass
class Hints:
    """Facts and answers about a text beyond its lines.

    Attributes:
        title: as the user says it.
        section: the user's answer where a section seems to have ended: "end", "go on", or "".
        doubts: takes what was guessed.
    """

    title: str = ""
    section: str = ""
    doubts: Findings = field(default_factory=Findings)


@dataclass
class _Contents:
    """The entries of a table of contents.

    Attributes:
        labels: keys of the chapters' names.
        names: of the chapters that have a number there.
        forms: the names as `bare` makes them, for those that were read wrongly.
    """

    labels: set[str] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)
    forms: list[str] = field(default_factory=list)


def find_structure(
    lines: Sequence[Fragment], debris: Findings, where: str, *, drop_debris: bool = True, hints: Hints | None = None
) -> tuple[str, list[Block]]:
    """Return title and blocks of a text that has only lines: a book saved line by line, a text file, a PDF.

    Args:
        lines: the lines in order; an empty one ends a paragraph.
        debris: takes what belongs to the page, not to the text: page numbers, running heads, title page, contents.
        where: the file's name, for `debris`.
        drop_debris: whether debris is left out; else it is text, and nothing is reported.
        hints: what the user says of it, and where doubts go.
    """
    hints = hints or Hints()
    found = list(_read(lines))
    contents = _mark_contents(found)
    _mark_notices(found)
    _mark_page_numbers(found)
    _mark_running_heads(found, contents.labels)
    _mark_chapters([line for line in found if not line.reason], contents, where, hints)
    _mark_lesser_running_heads(found)
    title = _mark_front(found, where, hints)
    _mark_back(found)
    if drop_debris:
        _mark_broken_heads(found, title, debris, where)
    _end_sections(found, where, hints)
    for line in found if drop_debris else ():
        if line.reason not in ("", TITLE, NAME):
            debris.add(f"{where}:{line.place}", line.reason, line.text)
    body = [line for line in found if not line.reason or not (drop_debris or line.reason in (TITLE, NAME))]
    _mark_capitals(body)
    text: list[_Line] = []
    for line in body:
        text += [_Line("", line.place, True, "", level=1)] * line.ends + [line] * (line.reason != NAME)
    return title, list(_blocks(text))


def _read(lines: Iterable[Fragment]) -> Iterator[_Line]:
    gap = ruled = False
    for fragment in lines:
        for text in map(str.strip, fragment.text.split("\n")):
            reason = RULE if _RULE.fullmatch(text) else TIME if _TIME.fullmatch(text) else ""
            if text:
                yield _Line(text, fragment.place, gap, _key(text), reason, fragment.level, fragment.place, own=ruled)
            ruled = reason == RULE or (ruled and not text)
            gap = bool(reason) or ruled or not text


def _key(text: str) -> str:
    """Return a short line without its case and without digits and punctuation at its ends."""
    if len(text) > SHORT:
        return ""
    if match := _CHAPTER.fullmatch(text):  # the number of a chapter is no page number
        return " ".join(filter(None, (match["first"], match["name"].strip()))).casefold()
    return re.sub(r"^[\W\d_]+|[\W\d_]+$", "", text).casefold()


def _little(text: str) -> bool:
    """Return whether a line ends with a word that requires another."""
    return bool(LITTLE.fullmatch(text[-8:].rsplit(None, 1)[-1])) or text[-1] in "ºª" or is_abbreviated(text)


def _capitals(text: str) -> bool:
    return text.isupper() and len(text) <= SHORT and sum(map(str.isalpha, text)) > 2


# Debris ---------------------------------------------------------------------------------------------------------


def _mark_contents(lines: Sequence[_Line]) -> _Contents:
    """Mark the table of contents, before the text or behind it, and return its entries."""
    names = [_name_key(line.text) for line in lines]
    last = {key: index for index, line in enumerate(lines) for key in (line.key, names[index]) if key}
    first: dict[str, int] = {}
    for index, line in enumerate(lines):
        first.setdefault(line.key, index)
        first.setdefault(names[index], index)
    entries: dict[int, str] = {}
    for run in _entry_runs(lines):
        start, stop = run[0][0], run[-1][0]
        keys = [{_key(label), _name_key(label)} - {""} for _, label in run]
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


def _listed_in(entries: Sequence[str]) -> _Contents:
    """Return the chapter names in a table of contents and their numbers, which may stand on lines of their own."""
    contents = _Contents({key for label in entries for key in (_key(label), _name_key(label)) if len(key) > 2})
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


def _entry_runs(lines: Sequence[_Line]) -> Iterator[list[tuple[int, str]]]:
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


def _name_key(label: str) -> str:
    """Return the key of a chapter's name without its number."""
    if len(label) <= SHORT and (match := _CHAPTER.fullmatch(label)):
        return _key(match["name"]) if match["name"] else _key(label)
    return _key(re.sub(r"^(?:[IVXLC]+|\d+)\s*[.):–—-]+\s*", "", label))


def _mark_notices(lines: Sequence[_Line]) -> None:
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
            line.reason = CONTACT if more_below or not _within(lines, index, index + 1) else ""
        elif END_MARKS.fullmatch(line.text):
            line.reason = END
    _mark_colophon(lines)
    notices = [index for index, line in enumerate(lines) if line.reason == LEGAL]
    before = None
    for index in sorted({near for at in notices for near in range(max(at - 3, 0), min(at + 4, len(lines)))}):
        line = lines[index]
        goes_on = before and before.reason == FRONT and not ends_sentence(before.text) and begins_low(line.text)
        if not line.reason and len(line.text) <= SHORT and (_IMPRINT.match(line.text) or goes_on):
            line.reason = FRONT
        before = line


def _mark_colophon(lines: Sequence[_Line]) -> None:
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


def _mark_page_numbers(lines: Sequence[_Line]) -> None:
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
        elif line.text.isdecimal() and len(line.text) < 4:  # of four digits are years
            arabic.append((index, int(line.text)))
        elif line.text in ROMAN:
            roman.append((index, ROMAN[line.text]))
    chapters = _numbered_chapters(lines, arabic)
    for index, value in chapters:
        lines[index].number = value
    arabic = [number for number in arabic if number not in chapters]
    for index in [*_growing(arabic), *_growing(roman)]:
        lines[index].reason = PAGE


def _numbered_chapters(lines: Sequence[_Line], numbers: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the numbers that count chapters: 1, 2, 3 …, each between two sentences, with its own name below."""
    found: list[tuple[int, int]] = []
    names = set[str]()
    for index, value in numbers:
        if value != len(found) + 1 or index + 2 >= len(lines):
            continue
        before, name, text = lines[index - 1] if index else None, lines[index + 1], lines[index + 2]
        anew = before is None or before.reason or ends_sentence(before.text)
        named = len(name.text) <= SHORT // 2 and name.text[0].isupper() and not ends_sentence(name.text)
        if anew and named and not begins_low(text.text) and name.key not in names and not _little(name.text):
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


def _mark_running_heads(lines: Sequence[_Line], labels: set[str], *, paragraphs: bool = False) -> None:
    """Mark lines or whole paragraphs that recur beside page numbers or inside sentences."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, line in enumerate(lines):
        if not line.reason and len(line.key) > 2 and not ends_sentence(line.text) and line.text[-1] not in ",;:":
            if begins_low(line.text) or SPEECH.match(line.text) or line.text[0] in _QUOTES:
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
        heading = first < 8 or bool(_CHAPTER.fullmatch(lines[first].text)) or (key in labels and not beside[0])
        heading = heading or (not beside[0] and not inside[0] and (lines[first].text.isupper() or _named(lines, first)))
        for index in where[heading:]:
            lines[index].reason = HEAD


def _mark_lesser_running_heads(lines: Sequence[_Line]) -> None:
    """Mark text that is a heading elsewhere, or stands twice in capitals, and interrupts a page or sentence here."""
    times = Counter(line.key for line in lines)
    headings = {key for line in lines if line.level for key in (line.key, _name_key(line.text))}
    headings |= {line.key for line in lines if line.reason == HEAD}
    for index, line in enumerate(lines):
        if line.reason or line.level or len(line.key) < 3 or ends_sentence(line.text) or line.text[0].islower():
            continue
        elsewhere = line.key in headings or (times[line.key] > 1 and _capitals(line.text))
        if elsewhere and (_beside_page(lines, index) or _inside(*_text_around(lines, index))):
            line.reason = HEAD
    for index, line in enumerate(lines):
        if line.text.isdecimal() and any(near.reason == HEAD for near in lines[max(index - 1, 0) : index + 2]):
            line.reason = line.reason or PAGE


def _mark_broken_heads(lines: list[_Line], title: str, debris: Findings, where: str) -> None:
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
    for place, (left, head) in without_heads([line.text for line in body], heads, _little).items():
        if left:
            body[place].text = left
            debris.add(f"{where}:{body[place].place}", HEAD, head)


def _mark_back(lines: list[_Line]) -> None:
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


def _end_sections(lines: list[_Line], where: str, hints: Hints) -> None:
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


def _end_of(lines: list[_Line], inside: list[int]) -> int:
    """Return where a section ends: where a page or a paragraph begins anew, some lines below its heading."""
    for before, index in itertools.pairwise(inside):
        page = any(line.reason in (PAGE, HEAD) for line in lines[before + 1 : index])
        if ends_sentence(lines[before].text) and (page or lines[index].gap) and index - inside[0] > 2:
            return index
    later = (index for before, index in itertools.pairwise(inside[20:]) if ends_sentence(lines[before].text))
    return next(later, inside[-1])


def _beside_page(lines: Sequence[_Line], index: int) -> bool:
    near = lines[max(index - 1, 0) : index + 2]
    return any(line.reason == PAGE for line in near) or bool(re.search(r"^\d+\s|\s\d+$", lines[index].text))


def _named(lines: Sequence[_Line], index: int) -> bool:
    """Return whether the line above is a chapter's number, so that this one is its name."""
    match = _CHAPTER.fullmatch(lines[index - 1].text) if index else None
    return bool(match and not match["name"])


def _text_around(lines: Sequence[_Line], index: int) -> tuple[_Line | None, _Line | None]:
    """Return the nearby lines before and after that are not debris."""
    before = next((line for line in reversed(lines[max(index - 4, 0) : index]) if not line.reason), None)
    return before, next((line for line in lines[index + 1 : index + 5] if not line.reason), None)


def _inside(before: _Line | None, after: _Line | None) -> bool:
    """Return whether the line between two others interrupts a sentence instead of being part of it."""
    if not before or not after or before.level or ends_sentence(before.text) or not begins_low(after.text):
        return False
    return not _little(before.text)


def _starts_anew(before: _Line | None, after: _Line | None) -> bool:
    return not before or not after or before.level > 0 or ends_sentence(before.text)


def saved_as_lines(blocks: Sequence[Block]) -> list[Fragment]:
    """Return the lines of a document in which each paragraph is a line of a book, as in a scan; none for any other."""
    texts = [block.text for block in blocks if not block.level and "\n" not in block.text and not block.table]
    low = sum(map(begins_low, texts))
    if len(texts) < LONG_SECTION // 3 or 10 * low < 3 * len(texts) or 2 * len(texts) < len(blocks):
        return []
    places = (block.place or f"paragraph {number}" for number, block in enumerate(blocks, 1))
    return [Fragment(block.text, place, block.level) for block, place in zip(blocks, places, strict=True)]


def without_page_debris(blocks: Sequence[Block], debris: Findings, where: str) -> list[Block]:
    """Return paragraphs without the running heads and page numbers that a scan left between or inside them.

    A sentence that one of them interrupted is whole again.
    """
    lines = [_Line(block.text, block.place, True, _key(block.text), level=block.level) for block in blocks]
    if len(lines) < LONG_SECTION // 3:
        return list(blocks)
    _mark_page_numbers(lines)
    _mark_running_heads(lines, set(), paragraphs=True)
    _mark_broken_heads(lines, "", debris, where)
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


# Title and headings ---------------------------------------------------------------------------------------------


def _mark_front(lines: list[_Line], where: str, hints: Hints) -> str:
    """Mark the lines of the title page and return a plausible title, if there is one.

    What the imprint calls the title is it; the author's name is not, though it may stand at the head of every page.
    """
    if not any(line.level or line.reason in (PAGE, HEAD, LEGAL, CONTENTS) for line in lines):
        return hints.title or _title_alone(lines[:2])
    front = _front(lines)
    for line in front:
        line.reason = FRONT
    stated, authors = _stated(lines)
    names = [line for line in front if sum(map(str.isalpha, line.text)) > 2]
    names = [line for line in names if not _IMPRINT.match(line.text) and not _is_author(line.text)][:8]
    names = [line for line in names if not any(nearly(bare(line.text), author) for author in authors)]
    title = hints.title or stated
    if title:
        chosen = next((line for line in names if nearly(bare(line.text), bare(title))), None)
        if not chosen or hints.title:
            return title
    elif not names:
        if len(lines) > 5 * FRONT_LINES and not hints.title:
            hints.doubts.add(
                where,
                "no title was found: its passages stand under their sections alone",
                choices=[choice(TITLE_OF, where, PurePath(where).name.partition(".")[0])],
            )
        return ""
    else:
        chosen = _chosen(names, lines, where, hints)
    whole: list[str] = []
    for line in front[front.index(chosen) :]:
        if whole and not _little(whole[-1]):
            break
        line.reason = TITLE
        whole.append(line.text)
    return " ".join(whole)


def _stated(lines: Sequence[_Line]) -> tuple[str, list[str]]:
    """Return the title that an imprint states, or "", and the authors, as `bare` makes them."""
    title, authors = "", []
    ends = [*lines[:FRONT_LINES], *lines[max(len(lines) - FRONT_LINES // 2, FRONT_LINES) :]]
    for line, after in itertools.zip_longest(ends, ends[1:]):
        match = _STATED.fullmatch(line.text) if len(line.text) < 2 * SHORT else None
        if match and match["label"][0] in "tT" and match["label"][:4].casefold() != "text":
            wraps = after is not None and _little(match["value"]) and len(after.text) <= SHORT
            title = title or (f"{match['value']} {after.text}" if wraps else match["value"])
        elif match or (match := _OWNER.match(line.text)):
            authors += [bare(name) for name in re.split(r",| e | and |&", match["value"]) if " " in name.strip()]
        elif _is_author(line.text):
            authors.append(bare(line.text.split(None, 1)[1]))
    return title.strip(' «»“”".'), [author for author in authors if author]


def _chosen(names: list[_Line], lines: list[_Line], where: str, hints: Hints) -> _Line:
    """Return the title page's most probable title line: one that comes again and is no person's name."""
    times = Counter(line.key for line in lines)
    again = list({line.key: line for line in reversed(names) if times[line.key] > 1}.values())[::-1]
    if len(again) > 1:
        stem = bare(PurePath(where).stem)
        again.sort(key=lambda line: (bare(line.text) not in stem, _is_person(line.text)))
        hints.doubts.add(
            where,
            f"its title was taken to be “{again[0].text}”, since it comes again as others do",
            again[0].text,
            [choice(TITLE_OF, where, line.text) for line in again],
        )
    chosen = again[0] if again else names[0]
    by, title_below = ARTICLE.match(names[0].text), len(names) > 1 and names[1].text.isupper()
    if chosen is names[0] and names[0].text.isupper() and not by and title_below and ARTICLE.match(names[1].text):
        return names[1]  # the first is the author
    return chosen


def _is_person(text: str) -> bool:
    """Return whether a short line may be a person's name: some capitalised words, no figures and no article."""
    words = text.split()
    named = all(word[0].isupper() or word.casefold() in ("de", "da", "do", "das", "dos", "e") for word in words)
    return 1 < len(words) < 6 and named and not ARTICLE.match(text.upper()) and not re.search(r"\d", text)


def _title_alone(lines: list[_Line]) -> str:
    """Return the title of a text that is no book: a short line, then an empty one, then a longer one."""
    if len(lines) < 2 or not lines[1].gap or not len(lines[0].text) <= min(SHORT, len(lines[1].text)):
        return ""
    if ends_sentence(lines[0].text) or begins_low(lines[0].text) or lines[0].text[-1] in ",;:":
        return ""
    lines[0].reason = TITLE
    return lines[0].text


def _front(lines: list[_Line]) -> list[_Line]:
    """Return the short lines before the first heading or prose that are no part of a sentence."""
    first = lines[:FRONT_LINES]
    notice = max((index for index, line in enumerate(first) if line.reason in (LEGAL, CONTENTS)), default=-1)
    front: list[_Line] = []
    prose = 0
    for index, line in enumerate(first):
        if line.reason:
            continue
        if line.level:
            return front if len(front) <= 12 or notice >= 0 else []
        after = next((line for line in lines[index + 1 : index + 5] if not line.reason), None)
        wraps = after is not None and not after.level and _goes_on(after.text)
        sentence = (ends_sentence(line.text) and not _IMPRINT.match(line.text)) or len(line.text) > SHORT
        prose = prose + 1 if wraps or sentence or (index and _goes_on(line.text)) else 0
        if prose > 2 or (prose and index > notice):  # before the imprint a line or two are a dedication
            return front
        if not prose:
            front.append(line)
    return []


def _goes_on(text: str) -> bool:
    return begins_low(text) and not _is_author(text)


def _is_author(text: str) -> bool:
    first, *names = text[:SHORT].split()
    return first.casefold() in BY and bool(names) and all(name[0].isupper() or _little(name) for name in names)


def _mark_chapters(lines: list[_Line], contents: _Contents, where: str, hints: Hints) -> None:
    """Mark headings that say what they are or that the contents list; a chapter's name joins its number."""
    numerals = [(index, value) for index, line in enumerate(lines) if (value := line.number or numeral_in(line.text))]
    numerals = [(index, value) for index, value in numerals if not _within(lines, index, index + 1)]
    chapters = dict(chapters_among(numerals))
    _ask_for_missing(list(chapters.values()), lines, where, hints)
    labels = contents.labels
    width = _width([len(line.text) for line in lines])
    seen = set[str]()
    in_part, parts = False, set[int]()
    for index, line in enumerate(lines):
        if line.level or len(line.text) > SHORT or line.reason or _within(lines, index, index + 1):
            continue
        match = _CHAPTER.fullmatch(line.text)
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
        seen |= {line.key, _key(name), _name_key(line.text)}
        if in_part and (index in chapters or re.match(CHAPTER_WORDS, line.text, re.IGNORECASE)):
            parts.add(index)
    for index in parts:  # chapters lie below the parts
        lines[index].level += 1


def _numeral(line: _Line, number: int) -> str:
    """Return the number of a chapter in its proper form; for another heading, its text."""
    return line.text if line.number or not number else written(number)


def _ask_for_missing(numbers: list[int], lines: list[_Line], where: str, hints: Hints) -> None:
    """Name the chapters whose numbers were not found: their text stands under the one before."""
    for before, after in itertools.pairwise(numbers):
        if after - before > 1:
            lost = ", ".join(map(written, range(before + 1, after)))
            hints.doubts.add(
                where, f"the number of chapter {lost} was not found: its text is filed under {written(before)}"
            )


def _within(lines: Sequence[_Line], start: int, stop: int) -> bool:
    """Return whether lines that look like a heading are part of a sentence."""
    if stop < len(lines) and begins_low(lines[stop].text):
        return True
    before = lines[start - 1] if start else None
    if before is None or before.level or before.reason or lines[start].gap:
        return False
    return before.text[-1] == "," or _little(before.text)


def _name_below(after: list[_Line], width: int, contents: _Contents) -> list[_Line]:
    """Return the lines below a chapter's number that are its name."""
    for count in range(len(after), 0, -1):  # as the contents list it, be it over lines and with letters read wrongly
        form = bare("".join(line.text for line in after[:count]))
        if len(form) > 3 and any(nearly(form, known) for known in contents.forms):
            return after[:count]
    if not after or ends_sentence(after[0].text) or len(after[0].text) > SHORT or after[0].text[-1] in ",;:":
        return []
    first = after[0]
    if begins_low(first.text) or SPEECH.match(first.text) or first.text.isdecimal() or _CHAPTER.fullmatch(first.text):
        return []
    if _capitals(first.text):
        return list(itertools.takewhile(lambda line: _capitals(line.text) and not ends_sentence(line.text), after))
    prose = len(after) < 2 or begins_low(after[1].text) or _little(first.text)
    return [] if prose or not (after[1].gap or len(first.text) <= 0.75 * width) else [first]


def _proper(text: str) -> str:
    """Return the capitalised word for a chapter as it is written elsewhere: Capítulo IV."""
    first, *others = (word if word.casefold() in ROMAN else word.lower() for word in text.split())
    return " ".join([first[:1].upper() + first[1:], *others]) if text.isupper() else text


def _mark_capitals(lines: list[_Line]) -> None:
    """Mark short lines in capitals that end no sentence, if they are few."""
    capitals = [_capitals(line.text) and not line.level and not line.reason for line in lines]
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
            or _little(lines[index - 1].text)
            or _within(lines, start, index)
        ):
            continue
        for line in lines[start + 1 : index]:
            line.reason = NAME
        first, last = lines[start], lines[index - 1]
        first.text = " ".join(line.text for line in lines[start:index])
        first.level, first.last = level, last.place


# Lines to paragraphs --------------------------------------------------------------------------------------------


def _blocks(lines: list[_Line]) -> Iterator[Block]:
    _mark_own_lines([line for line in lines if not line.level])
    texts = [line.text for line in lines if not line.level]
    ended = sum(map(ends_sentence, texts))
    wrapped = 5 * sum(map(begins_low, texts)) >= 2 * len(texts) and _width([*map(len, texts)]) > SHORT // 3
    prose = 12 * ended >= len(texts) or wrapped
    words = Counter(word.casefold() for text in texts for word in re.findall(r"\w+(?:-\w+)*", text))
    for level, group in itertools.groupby(lines, key=lambda line: line.level):
        members = list(group)
        if level:
            yield from (Block(line.text, level, place_range(line.place, line.last)) for line in members)
        else:
            yield from _paragraphs(members, prose, words)


def _mark_own_lines(lines: list[_Line]) -> None:
    """Mark the lines that do not continue the one before them, whatever they begin with."""
    groups: list[list[_Line]] = []
    for line, turn in zip(lines, starts_of_turns([line.text for line in lines]), strict=True):
        line.own |= turn
        if line.gap or not groups:
            groups.append([])
        groups[-1].append(line)
    for group, kept in zip(groups, keep_their_lines([[line.text for line in group] for group in groups]), strict=True):
        for line in group if kept else ():
            line.own = True


def _paragraphs(lines: list[_Line], prose: bool, words: Counter[str]) -> Iterator[Block]:
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


def _breaks(lines: list[_Line], prose: bool) -> Iterator[str]:
    """Yield the separator between each line and the one before it: a blank, a line feed, or a paragraph break."""
    ended, low, size = ([f(line.text) for line in lines] for f in (ends_sentence, begins_low, columns))
    listed = [*_listed(lines, ended, low), False]
    usual = _width(size)
    speech = bool(SPEECH.match(lines[0].text))
    yield "\n\n"
    for index in range(1, len(lines)):
        before, line = lines[index - 1], lines[index]
        width = max(_width(size[max(index - 6, 0) : index + 5]), 0.9 * usual)
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
            whole = speech or 5 * sum(near) >= 4 * len(near)  # what was said is over, or every line is a sentence
            alone = line.text[0] in _QUOTES or _CAPTION.match(line.text) or _CAPTION.match(before.text)
            mark = "\n" if listed[index] else "\n\n" if whole or alone or size[index - 1] < SHORT_LINE * width else " "
        elif listed[index]:
            prose_below = index + 1 < len(lines) and (low[index + 1] or size[index] > 1.3 * size[index - 1])
            mark = "\n\n" if prose_below and not listed[index + 1] else "\n"
        elif before.text[-1] not in ",;-–" and not _little(before.text) and size[index - 1] < width / 2:
            mark = "\n"
        if mark == "\n\n":
            speech = bool(spoken) or line.text[0] in _QUOTES
        yield mark


def _listed(lines: list[_Line], ended: list[bool], low: list[bool]) -> list[bool]:
    """Return for each line whether it and the one before it are lines of a list or of a poem."""
    found = [False] * len(lines)
    for long, fits in (
        (2, lambda i: not low[i] and not lines[i].gap and not ended[i - 1] and not _open(lines[i - 1].text)),
        (5, lambda i: not low[i] and not lines[i].gap and not _little(lines[i - 1].text)),
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
    return text[-1] == "," or _little(text)


def _width(sizes: Sequence[int]) -> int:
    """Return the length of a line that was broken because it was full."""
    return sorted(sizes)[len(sizes) * 4 // 5] if sizes else 0
