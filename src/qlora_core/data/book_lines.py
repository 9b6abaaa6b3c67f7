"""Lines of a text whose structure is being recovered: what is known of each, and the words that books use.

Knows one line at a time, nothing of its neighbours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .prose import is_abbreviated
from .records import Findings

SHORT = 80  # characters: longer lines are neither headings nor running heads
FRONT_LINES = 80  # a title page and an imprint are no longer

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
LITTLE = re.compile(
    "a|o|as|os|uma?|e|d[aeo]s?|em|n[ao]s?|por|pel[ao]s?|aos?|às?|com|que|se|sem|sob|para|the|of|and|in|on|at|to|for|"
    "with|an|by|or|el|l[ao]s|del|y|le|les|du|des|et|der|die|das|und|von",
    re.IGNORECASE,
)

ARTICLE = re.compile("(?:[AO]S?|UMA?|THE|AN|EL|L[AE]S?|LOS|DER|DIE|DAS) ")
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
CHAPTER = re.compile(
    rf"(?P<first>(?=(?-i:[A-Z]))(?:{CHAPTER_WORDS}|{PART_WORDS})\s+(?:{NUMBERS}|{ORDINALS})|"
    rf"(?-i:(?=[^a-zà-ÿ]+$))(?:{ORDINALS})\s+(?:{PART_WORDS}))\b\.?(?P<mark>\s*[:.–—-]\s*|\s+|$)(?P<name>.*)",
    re.IGNORECASE,
)
IMPRINT = re.compile(
    r"\d+\s?[.ªaº]+\s*edição|(?:primeira|segunda|terceira|first|second) edi|edição\b|edições\b|editora?\b|tiragem\b|"
    r"impress(?:o|ão|a)\b|acab(?:ou|ado) de (?:se )?imprimir|composto e|composição|paginação|tipografia|gráfica\b|"
    r"capa\b|revisão\b|fotografias?:|printed\b|published\b|edition\b|título:|autora?:|"
    r"(?:rua|avenida|av\.|largo|praça)\s.*\d",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Line:
    """A non-empty line; `reason` says why it is debris, `level` that it is a heading."""

    text: str
    place: str
    gap: bool  # an empty line or a rule stands before it
    key: str  # compared to recognise running heads and headings
    reason: str = ""
    level: int = 0
    last: str = ""
    ends: bool = False  # the section before ends here without a heading
    own: bool = False  # started by the writer, not by a margin
    number: int = 0  # of the chapter that this line, a figure, begins


@dataclass
class Hints:
    """Facts and answers about a text beyond its lines.

    Attributes:
        title: the title that the user gave.
        section: the user's answer where a section seems to have ended: "end", "go on", or "".
        doubts: collects what was guessed.
    """

    title: str = ""
    section: str = ""
    doubts: Findings = field(default_factory=Findings)


@dataclass
class Contents:
    """The entries of a table of contents.

    Attributes:
        labels: keys of the chapters' names.
        names: names of the chapters that have a number there, by number.
        forms: the names as `bare` makes them, for those that were read wrongly.
    """

    labels: set[str] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)
    forms: list[str] = field(default_factory=list)


def key_of(text: str) -> str:
    """Return a short line without its case and without digits and punctuation at its ends."""
    if len(text) > SHORT:
        return ""
    if match := CHAPTER.fullmatch(text):  # the number of a chapter is no page number
        return " ".join(filter(None, (match["first"], match["name"].strip()))).casefold()
    return re.sub(r"^[\W\d_]+|[\W\d_]+$", "", text).casefold()


def ends_little(text: str) -> bool:
    """Return whether a line ends with a word that requires another."""
    return bool(LITTLE.fullmatch(text[-8:].rsplit(None, 1)[-1])) or text[-1] in "ºª" or is_abbreviated(text)


def in_capitals(text: str) -> bool:
    """Return whether a short line has capitals only, and enough of them."""
    return text.isupper() and len(text) <= SHORT and sum(map(str.isalpha, text)) > 2


def name_key(label: str) -> str:
    """Return the key of a chapter's name without its number."""
    if len(label) <= SHORT and (match := CHAPTER.fullmatch(label)):
        return key_of(match["name"]) if match["name"] else key_of(label)
    return key_of(re.sub(r"^(?:[IVXLC]+|\d+)\s*[.):–—-]+\s*", "", label))


def is_person(text: str) -> bool:
    """Return whether a short line may be a person's name: some capitalised words, no figures and no article."""
    words = text.split()
    named = all(word[0].isupper() or word.casefold() in ("de", "da", "do", "das", "dos", "e") for word in words)
    return 1 < len(words) < 6 and named and not ARTICLE.match(text.upper()) and not re.search(r"\d", text)
