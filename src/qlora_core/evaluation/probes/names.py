"""Proper names in English and Portuguese texts: where they stand and what they are names of.

They are told by their capital letters, and their kind by the words before them wherever they stand; no list of names is
needed but one of women's. Knows nothing of questions.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .written import Language

Kind = Literal["person", "family", "headed", "thing"]
"""A whole name of a person, a family name alone, a name with a word that says of what (`HEADS_PT`), another name."""
Gender = Literal["m", "f", "m2", "f2", ""]
"""Gender and number ("2": several) that an article before a name shows in Portuguese; empty if none does."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


LINKS = _set("de da do das dos of del della van von")
"""Words inside a name that have no capital letter."""
_BEFORE: dict[Gender, str] = {
    "m": "o do no ao pelo num dum deste desse neste nesse",
    "f": "a da na à pela numa duma desta dessa nesta nessa",
    "m2": "os dos nos aos pelos",
    "f2": "as das nas às pelas",
    "": "the",
}
ARTICLES: dict[str, Gender] = {word: gender for gender, words in _BEFORE.items() for word in words.split()}
"""Words before a name that are, or contain, an article."""
_IN = _set("in at near em from to")  # before a name without an article that is rather a place than a person

HEADS_PT = _set(
    """associação avenida bancada barragem bar biblioteca café câmara campo capela casa castelo centro cine-teatro
    cinema clube colégio companhia convento cooperativa dérbi editora empresa escola escolinha estádio estrada fábrica
    festa fundação grémio hospital hotel igreja ilha instituto jardim junta lago largo liceu liga livraria monte
    mosteiro museu palácio parque ponte porto praça praia prémio quinta rádio restaurante rio rua sala santuário serra
    sociedade taça teatro torneio torre travessa troféu união universidade vila"""
)
HEADS_EN = _set(
    """abbey academy avenue bay bridge bookshop castle cathedral church club college company cup foundation gallery
    garden gardens hall harbour hill hospital hotel house inn institute island lake lane league library market mill
    mount mountain museum palace park pier prize river road school society square station street theatre tower trophy
    united university valley village"""
)
_NO_NAMES = _set(
    """i monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
    september october november december english french german italian portuguese spanish european british american
    janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro
    mr mrs ms dr sr sra dra senhor senhora dom dona sir lady"""
)
_WOMEN = _set(
    """alice amy anne beatrice beatriz betty carmen carol celeste charlotte conceição daisy dorothy dulce edith eleanor
    elizabeth ellen emily ester esther eunice florence gertrude grace harriet helen inês irene isabel ivone jane janet
    joan joyce judite judith kate leonor lourdes lucy lurdes mabel margaret marie marlene mary matilde mercedes nancy
    noemi odete rachel raquel rosário rute ruth sally salomé sarah solange susan violet yvonne zoe"""
)
"""Women's first names that do not end in "a", as most do."""
_SMALL_PT = _set(
    """quem que qual quais quando quanto quantos quantas quanta onde como porque por o os a as do da dos das no na em ao
    à de é foi era são foram tem têm há um uma com para se não pelo pela"""
)
_SMALL_EN = _set(
    """who whom whose what which when where why how the is are was were did does do has have had of in on to for by with
    a an and it that"""
)
"""Frequent small words of each language, which tell it."""

_FEW_ARTICLES = 0.15  # share of articles before a person's name; before another name they are more
_WORD = re.compile(r"[^\W\d_][^\W_]*(?:-[^\W_]+)*(?:['’](?=[A-ZÀ-ÖØ-Þ])[^\W_]+)*")
_SENTENCE_START = re.compile(r"(?:^|[.!?…:\n])[\s«“\"'(¿¡-]*$")


def language_of_words(text: str) -> Language | None:
    """Return whether a text is rather Portuguese or English, by its small words; None if it has neither's."""
    words = text.lower().split()[:100]
    portuguese, english = sum(word in _SMALL_PT for word in words), sum(word in _SMALL_EN for word in words)
    return None if not portuguese + english else "pt" if portuguese >= english else "en"


@dataclass(frozen=True)
class Name:
    """A name in a text.

    Attributes:
        start: where it begins.
        end: where it ends.
        text: the name, without an article before it.
        before: the word right before it, in small letters; empty if there is none.
        opens: whether it begins a sentence, where any word has a capital letter.
    """

    start: int
    end: int
    text: str
    before: str
    opens: bool

    @property
    def is_likely(self) -> bool:
        """Return whether it can be a name: no weekday, no "I", no question word, no numeral or short acronym."""
        words = self.text.split()
        if all(word.lower() in _NO_NAMES | _SMALL_PT | _SMALL_EN | LINKS for word in words):
            return False
        return not all(len(word) <= 5 and word.isupper() for word in words)


def names_in(text: str) -> Iterator[Name]:
    """Yield the runs of words with capital letters, with the particles between them ("Campo da Nora Seca")."""
    words = list(_WORD.finditer(text))
    i = 0
    while i < len(words):
        if not words[i][0][0].isupper():
            i += 1
            continue
        last = _last_of(text, words, i)
        if found := _name(text, words, i, last):
            yield found
        i = last + 1


def _last_of(text: str, words: list[re.Match[str]], first: int) -> int:
    """Return the index of the last word of a name that begins with a word."""
    last = place = first
    while place + 1 < len(words) and text[words[place].end() : words[place + 1].start()] == " ":
        place += 1
        if words[place][0][0].isupper():
            last = place
        elif words[place][0] not in LINKS:
            break
    return last


def _name(text: str, words: list[re.Match[str]], first: int, last: int) -> Name | None:
    start, before = words[first].start(), ""
    opens = bool(_SENTENCE_START.search(text[max(0, start - 5) : start]))
    if words[first][0].lower() in ARTICLES:  # "O Candeeiro", or the article that begins a sentence
        before, first, opens = words[first][0].lower(), first + 1, False
        if first > last or not words[first][0][0].isupper():
            return None
    elif first and text[words[first - 1].end() : start] == " ":
        before = words[first - 1][0].lower()
    start, end = words[first].start(), words[last].end()
    return Name(start, end, text[start:end], before, opens)


def is_woman(name: str) -> bool:
    """Return whether a person's name begins like a woman's."""
    first = name.partition(" ")[0].lower()
    return first.endswith("a") or first in _WOMEN


@dataclass
class SeenNames:
    """Names that were found in texts, with the words before them.

    Attributes:
        articles: for each name, how often each of `ARTICLES` stood right before it.
        bare: how often none did, inside sentences.
        opening: how often it began a sentence.
        places: how often a word stood before it that a place follows.
        languages: for each name, in how many texts of each language it stood, inside sentences.
        small: words that also stand in small letters.
    """

    articles: dict[str, Counter[str]] = field(default_factory=dict)
    bare: Counter[str] = field(default_factory=Counter)
    opening: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    languages: dict[str, Counter[str]] = field(default_factory=dict)
    small: set[str] = field(default_factory=set)

    def read(self, text: str) -> None:
        """Take note of the names in a text."""
        language = language_of_words(text)
        self.small.update(word[0] for word in _WORD.finditer(text) if word[0].islower())
        for name in names_in(text):
            if name.opens:
                self.opening[name.text] += 1
                continue
            self.languages.setdefault(name.text, Counter())[language or ""] += 1
            if name.before in ARTICLES:
                self.articles.setdefault(name.text, Counter())[name.before] += 1
            else:
                self.bare[name.text] += 1
                self.places[name.text] += name.before in _IN

    def without_opening(self, name: Name) -> Name | None:
        """Return a name without the word that has a capital letter only because it begins the sentence.

        None if nothing is left. A word is part of the name if the whole name stands inside a sentence elsewhere, and
        the word nowhere in small letters.
        """
        first, _, rest = name.text.partition(" ")
        if not name.opens or (name.text in self.languages and first.lower() not in self.small):
            return name
        words = rest.split()
        while words and words[0] in LINKS:
            words = words[1:]
        rest = " ".join(words)
        return Name(name.end - len(rest), name.end, rest, first.lower(), False) if rest else None

    def kind(self, name: str) -> Kind:
        """Return what kind of name it is."""
        words = name.lower().split()
        if len(words) == 1:
            return "family" if name in self.families else "thing"
        if words[0] in HEADS_PT | HEADS_EN or words[-1] in HEADS_EN:
            return "headed"
        return "person" if self._is_person(name) else "thing"

    def _is_person(self, name: str) -> bool:
        articles = Counter(self.articles.get(name, {}))
        bare = self.bare[name] + self.opening[name]
        if not is_woman(name):
            bare += articles.pop("a", 0)  # "deram a João Vidal": here it means "to"
        with_article = sum(articles.values())
        return with_article <= _FEW_ARTICLES * (bare + with_article) and not self.places[name]

    @functools.cached_property
    def families(self) -> set[str]:
        """Return the family names of the persons among the names; read every text before."""
        several = [name for name in self.languages if " " in name]
        return {name.split()[-1] for name in several if self.kind(name) == "person"}

    def language(self, name: str) -> Language:
        """Return the language of the texts that a name mostly stands in."""
        found = self.languages.get(name, Counter())
        return "pt" if found["pt"] >= max(found["en"], 1) else "en"

    def gender(self, name: str) -> Gender:
        """Return the gender of the article that mostly stands before a name."""
        genders: Counter[Gender] = Counter()
        for article, count in self.articles.get(name, {}).items():
            genders[ARTICLES[article]] += count
        return max(genders, key=genders.__getitem__, default="")
