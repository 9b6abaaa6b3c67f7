"""The person or thing that a document is about, from its title and words. Knows texts, nothing of files or models."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

PERSON, THING, NONE = "person", "thing", "none"
LONGEST = 300  # characters of a title that are examined
OPENING = 600  # characters of a document that show what it is about

_LITTLE = (
    "de", "da", "do", "das", "dos", "e", "del", "la", "las", "los", "el", "van", "von", "der", "den", "di", "y", "of",
    "the", "du", "des", "le",
)  # fmt: skip
_NO_NAME = ("o", "a", "os", "as", "um", "uma", "the", "an", "el", "da", "do", "de", "na", "no", "em", "from", "in")
_SEPARATOR = re.compile(r"\s*(?::\s|\s[–—|-]\s|\s•\s|[:]$)\s*")
_BRACKET = re.compile(r"\s*[(\[][^)\]]*[)\]]\s*$")
_MARKUP = re.compile(r"[*_`#~]+(?=\s|$|\W)|(?<!\w)[*_`#~]+")
_NUMBERED = re.compile(r"^\d{1,4}\s*[.)–—-]\s*(?=\D)")
_LEAD = re.compile(
    r"(?:(?:a\s+)?(?:biografia|vida|história de vida|perfil|retrato|biography|life|profile|portrait)\s+"
    r"(?:de|do|da|dos|das|of)|(?:biografia|perfil|biography|profile|nome|name)\s*[:–—-])\s+",
    re.IGNORECASE,
)
_PAGE = re.compile(
    r"(?:p[áa]g(?:ina|\.)?|page|folha|ficheiro|file|documento?|document|untitled|sem t[íi]tulo|img|scan|digitaliza\w*|"
    r"cap[íi]tulo|chapter|parte|part|anexo|tabela|table|slide|foto\w*)\W*(?:n\.?[ºo°]\W*)?[\divxlc]*\W*$|^\W*\d[\d\W]*$|"
    r"\.(?:docx?|pdf|md|txt|html?|jsonl?|odt|epub|csv)$|^[\w-]*_[\w-]*$",
    re.IGNORECASE,
)
_THING = re.compile(
    r"\b(?:clubes?|associação|federação|uni[ãa]o|est[áa]dios?|campos?|taças?|campeonatos?|ligas?|torneios?|jogos?|finais|final|"
    r"equipas?|plantel|[ée]pocas?|hist[óo]ria|cr[óo]nicas?|estatutos|hinos?|emblemas?|sede|vila|aldeia|cidade|ribeir[ãa]o|"
    r"rua|largo|praça|igreja|capela|museu|monumento|biblioteca|escola|direção|assembleia|regulamento|calend[áa]rio|"
    r"classificaç(?:ão|ões)|resultados?|presidentes|treinadores|jogadores|palmar[ée]s|anos|temporada|festa|lista|guia|"
    r"manual|relat[óo]rio|notas?|reuni[ãa]o|club|association|federation|stadium|ground|cups?|championships?|leagues?|"
    r"tournaments?|match(?:es)?|games?|teams?|seasons?|history|statutes|village|town|city|street|square|church|museum|"
    r"school|library|results|standings|presidents|coaches|players|list|guide|report|notes|meeting)\b",
    re.IGNORECASE,
)
_LIFE = re.compile(
    r"\b(?:nasceu|nascid[oa]|faleceu|morreu|casou|estreou-se|was born|born (?:in|on)|died|nació|née? (?:à|en|le)|"
    r"geboren|jogou|treinou|trabalhou|(?:filh|net|irm)[oaã]o? d[eo]|conhecid[oa] (?:como|por)|chamavam-lhe|he|she|"
    r"(?:son|daughter|brother|sister) of)\b|(?:^\W*|\b(?:foi|era|é|was|is) (?:um |uma |o |a |an |the )?)"
    r"(?:jogador|avançad|médi[oa]|defesa|extremo|guarda-redes|treinador|dirigente|presidente|capit|roupeir|carteir|"
    r"fundador|s[óo]ci[oa]|professor|operári|pescador|sapateir|goalkeeper|striker|defender|midfielder|coach|teacher|"
    r"founder|[^\W\d_]{4,}ista)\w*\b",
    re.IGNORECASE,
)
_FOUNDED = re.compile(
    r"\b(?:foi (?:fundad|inaugurad|construíd|criad|disputad|erguid)[oa]s?|founded|inaugurated|was built|opened in|"
    r"wurde gegründet|fut fondée?|fue fundad[oa])\b|"
    r"^\W*(?:(?:é|foi|era|was|is) )?(?:uma? |o |a |an |the )?(?:pequen[oa] |small )?"
    r"(?:aldeia|vila|cidade|clube|campo|rio|ribeira|capela|freguesia|village|town|club|river|ground)\b",
    re.IGNORECASE,
)


class Subject(NamedTuple):
    """The subject of a document.

    Attributes:
        name: the name as a question writes it.
        kind: PERSON, THING or NONE (a page mark, a file's name).
        sure: whether the words tell it; else it was guessed by the form of the name.
    """

    name: str
    kind: str
    sure: bool


def find_subject(title: str, text: str) -> Subject:
    """Find the person or thing that a document is about.

    Args:
        title: the whole of it, with its headline.
        text: the beginning of the document.
    """
    plain = _NUMBERED.sub("", plain_title(title[:LONGEST]))
    if not plain or _PAGE.search(plain):
        return Subject(plain, NONE, True)
    name = _named(_LEAD.sub("", plain))
    thing, life, founded = _THING.search(name), _LIFE.search(text[:OPENING]), _FOUNDED.search(text[:OPENING])
    if thing and not thing.start():  # Campo da Eira, Presidentes do Grémio
        return Subject(name, THING, True)
    if not _is_name(name.title() if name.islower() else name) or (thing and not life):  # a file's name is low
        return Subject(name, THING, bool(thing or not _capitals(name)))
    if bool(founded) != bool(life):
        return Subject(name, PERSON if life else THING, True)
    return Subject(name, THING if thing else PERSON, False)


def plain_title(text: str) -> str:
    """Return a heading without emoji and Markdown marks, as a question writes it."""
    marks = ("So", "Sk", "Cf", "Mn") if not text.isascii() else ()
    kept = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) not in marks)
    return " ".join(_MARKUP.sub("", kept).split())


def _named(title: str) -> str:
    """Return the name in a title: the part before its headline, or behind it."""
    parts = [part for part in _SEPARATOR.split(title) if part]
    names = [part for part in map(_tidy, parts) if _is_name(part)]
    whole = _tidy(title)
    if len(parts) > 1:
        return next((name for name in names if len(name.split()) > 1), names[0] if names else whole)
    head, comma, rest = whole.partition(", ")
    if comma and _is_name(head) and len(head.split()) > 1 and not _is_name(rest):
        return head
    return whole


def _tidy(text: str) -> str:
    """Return a name without the years behind it and the marks at its end."""
    text = _BRACKET.sub("", text.strip())
    return text.strip(" ,;:–—-|").rstrip("!?…").strip("\"“”«»' ") if not re.search(r"\b(?:Jr|Sr)\.$", text) else text


def _is_name(text: str) -> bool:
    """Return whether words are written like a name: few, capitalised, no sentence."""
    words = text.split()
    if not words or len(words) > 8 or re.search(r"[!?…;]|\d", text):
        return False
    first = words[0].casefold().strip("\"“«'")
    if first in _NO_NAME:
        return False
    return all(word.casefold() in _LITTLE or _capital(word) for word in words) and _capital(words[0])


def _capital(word: str) -> bool:
    letter = next((char for char in re.sub("^d['’]", "", word) if char.isalpha()), "")
    return not letter or letter.isupper() or not (letter.isupper() or letter.islower())


def _capitals(text: str) -> bool:
    """Return whether all words but the little ones have capitals."""
    return all(word.casefold() in _LITTLE or _capital(word) for word in text.split())


# Sections -------------------------------------------------------------------------------------------------------

_SLOGAN = re.compile(
    r"[!?…:;«»“”\"]|\b(?:que|porque|quando|como|nunca|sempre|which|who|that|when|never|always)\b", re.IGNORECASE
)
_GENERAL = re.compile(
    r"(?:em )?(?:agradecimentos|dedicatória|prefácio|posfácio|prólogo|epílogo|acknowledge?ments|preface|foreword|"
    r"números?|frases?|curiosidades|conclusão|resumo|introdução|notas?|fontes?|referências|galeria|imagens|"
    r"sumário|ficha(?: técnica)?|dados|factos|números|legenda|ligações|bibliografia|extras?|mais|outros|diversos|"
    r"(?:in )?(?:numbers|figures)|quotes?|trivia|conclusion|summary|introduction|notes?|sources?|references|gallery|"
    r"images|facts|links|bibliography|misc|others?|more)",
    re.IGNORECASE,
)


def is_topic(section: str) -> bool:
    """Return whether a heading names something that can be asked about, rather than a slogan or a box of figures."""
    words = section.split()
    last = section.rpartition(" – ")[2]
    if not words or len(last.split()) > 6 or _SLOGAN.search(last) or _GENERAL.fullmatch(last.strip(" .()")):
        return False
    if _PAGE.search(last) or re.fullmatch("[IVXLC]+|\\d+", last):
        return False
    return last.split()[0].casefold() not in ("em", "de", "da", "do", "das", "dos", "na", "no", "in", "from", "of")
