"""Questions about neighbours of the run's subjects: its own questions with an invented name in place of the real one.

A model that learned to answer everything in the style of its rows answers these, too. Names are told by their capital
letters, in English and Portuguese; what kind of name each is, by the words before it wherever it stands in the rows.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..measures import plain
from ..questions import fact_of
from .written import Language, Probe

Kind = Literal["person", "family", "headed", "thing"]
"""A whole name of a person, a family name alone, a name with a word that says what it is (`_HEADS`), another name."""

_MOST_READ = 1_000  # rows whose text is searched for names, spread evenly
_READ = 2_000  # characters of each
_FEW_ARTICLES = 0.15  # share of articles before a person's name; before another name they are more

_WORD = re.compile(r"[^\W\d_][^\W_]*(?:-[^\W_]+)*(?:['’](?=[A-ZÀ-ÖØ-Þ])[^\W_]+)*")
_LINKS = frozenset("de da do das dos of del della van von".split())
_SENTENCE_START = re.compile(r"(?:^|[.!?…:\n])[\s«“\"'(¿¡-]*$")

_GENDERS = {
    "m": "o do no ao pelo num dum deste desse neste nesse", "f": "a da na à pela numa duma desta dessa nesta nessa",
    "m2": "os dos nos aos pelos", "f2": "as das nas às pelas",
}  # fmt: skip
_ARTICLES = {word: gender for gender, words in _GENDERS.items() for word in words.split()} | {"the": ""}
"""Words before a name that are, or contain, an article, with its gender and number in Portuguese."""
_IN = frozenset("in at near em from to".split())
"""Words before a name without an article that is rather a place than a person."""

_HEADS_PT = frozenset(
    """associação avenida bancada barragem bar biblioteca café câmara campo capela casa castelo centro cine-teatro cinema clube
    colégio companhia convento cooperativa dérbi editora empresa escola escolinha estádio estrada fábrica festa fundação
    grémio hospital hotel igreja ilha instituto jardim junta lago largo liceu liga livraria monte mosteiro museu
    palácio parque ponte porto praça praia prémio quinta rádio restaurante rio rua sala santuário serra sociedade taça
    teatro torneio torre travessa troféu união universidade vila""".split()
)
_HEADS_EN = frozenset(
    """abbey academy avenue bay bridge bookshop castle cathedral church club college company cup foundation gallery
    garden gardens hall harbour hill hospital hotel house inn institute island lake lane league library market mill
    mount mountain museum palace park pier prize river road school society square station street theatre tower trophy
    united university valley village""".split()
)
_HEADS = _HEADS_PT | _HEADS_EN
_NO_NAMES = frozenset(
    """i monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
    september october november december english french german italian portuguese spanish european british american
    janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro
    mr mrs ms dr sr sra dra senhor senhora dom dona sir lady""".split()
)
_WOMEN = frozenset(
    """alice anne beatrice beatriz carmen carol celeste charlotte cleide conceição dulce elizabeth ester esther eunice
    gertrude grace helen inês irene isabel ivone jane joyce judite kate leonor lourdes lurdes madalene margaret marge
    marie marlene mary matilde mercedes noemi odete raquel rachel rosário rute ruth salomé sarah solange yvonne zoe
    """.split()
)
"""Women's first names that do not end in "a", as most do."""

_PEOPLE: dict[tuple[Language, str], tuple[str, ...]] = {
    ("pt", "m"): ("Adelino Valcorvo", "Hilário Brandoal", "Teotónio Pessarelo", "Gervásio Montelver"),
    ("pt", "f"): ("Albertina Cardovil", "Palmira Vidrelo", "Rosalina Tresmundo", "Eufémia Ribatorva"),
    ("en", "m"): ("Edgar Tarnwhistle", "Oswin Brundelow", "Leonard Quillmarsh", "Hubert Dunsarrow"),
    ("en", "f"): ("Harriet Wexholm", "Mabel Thistlecombe", "Agnes Ferrowby", "Edith Marlquist"),
}
_THINGS: dict[tuple[Language, str], tuple[str, ...]] = {
    ("pt", ""): ("Valmourinho", "Tresmonde", "Aldernel", "Gorvedal", "Pontarrel", "Murtoval"),
    ("pt", "m"): ("Valmourinho", "Tresmonde", "Aldernel", "Gorvedal", "Pontarrel", "Murtoval"),
    ("pt", "f"): ("Corvedeira", "Murtasela", "Felgarosa", "Brejoula", "Valdurina", "Tresmela"),
    ("pt", "m2"): ("Gorvedais", "Murtovais", "Pontarréis", "Aldernéis"),
    ("pt", "f2"): ("Corvedeiras", "Murtaselas", "Felgarosas", "Brejoulas"),
    ("en", ""): ("Quarnholt", "Brundelwick", "Thistlemere", "Wexmoorby", "Farrowdene", "Marlhaven"),
}


def neighbour_questions(
    facts: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], most: int
) -> list[Probe]:
    """Return questions of a run with one name replaced by an invented one of the same kind.

    The first name in a question that can be replaced is, wherever it stands in it; a name has the same invented one in
    all questions. A question without a name, or for whose name every invented one occurs in the rows, is left out. The
    first question of each fact comes before the second of any, and they are spread evenly if there are too many.

    Args:
        facts: the fact sheet; if it is empty, the first questions of the rows are taken.
        rows: training rows.
        most: how many questions, at most.
    """
    asked = list(_of_facts(facts) if facts else _of_rows(rows))
    seen = _Seen()
    for question, *_ in asked:
        seen.read(question)
    for i in range(count := min(_MOST_READ, len(rows))):
        seen.read(_text_of(rows[i * len(rows) // count])[:_READ])
    names = _Invented(_free(rows, [question for question, *_ in asked]))
    layers: dict[int, list[Probe]] = {}
    counts: Counter[int] = Counter()
    questions: set[str] = set()
    for question, answers, fact, place in asked:
        language, probe = _language(question), _replaced(question, seen, names)
        if language and probe and plain(probe[0]) not in questions:
            questions.add(plain(probe[0]))
            layers.setdefault(counts[place], []).append(Probe(language, *probe, question, answers, fact))
            counts[place] += 1
    chosen: list[Probe] = []
    for place in sorted(layers):
        chosen += _spread(layers[place], most - len(chosen))
    return chosen


# Names in a text ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Name:
    """A name in a text.

    Attributes:
        start, end: where it stands.
        text: the name, without an article before it.
        before: the word right before it, in small letters; empty if there is none.
        opens: whether it begins a sentence, where any word has a capital letter.
    """

    start: int
    end: int
    text: str
    before: str
    opens: bool


def _names(text: str) -> Iterator[_Name]:
    """Yield the runs of words with capital letters, with the particles between them ("Campo da Nora Seca")."""
    words = list(_WORD.finditer(text))
    i = 0
    while i < len(words):
        if not words[i][0][0].isupper():
            i += 1
            continue
        last = end = i
        while end + 1 < len(words) and text[words[end].end() : words[end + 1].start()] == " ":
            end += 1
            if words[end][0][0].isupper():
                last = end
            elif words[end][0] not in _LINKS:
                break
        first, opens = i, bool(_SENTENCE_START.search(text[max(0, words[i].start() - 5) : words[i].start()]))
        i = last + 1
        if words[first][0].lower() in _ARTICLES:  # "O Candeeiro", or the article that begins a sentence
            before, first, opens = words[first][0].lower(), first + 1, False
        elif first and text[words[first - 1].end() : words[first].start()] == " ":
            before = words[first - 1][0].lower()
        else:
            before = ""
        if first <= last and words[first][0][0].isupper():
            start, stop = words[first].start(), words[last].end()
            yield _Name(start, stop, text[start:stop], before, opens)


def _is_name(text: str) -> bool:
    """Return whether words with capital letters can be a name: no weekday, no "I", no numeral or short acronym."""
    words = text.split()
    if all(word.lower() in _NO_NAMES | _WORDS_PT | _WORDS_EN or word in _LINKS for word in words):
        return False
    return not all(len(word) <= 5 and word.isupper() for word in words)


@dataclass
class _Seen:
    """Names that were found in the run's texts, with the words before them.

    Attributes:
        articles: for each name, how often each article of `_ARTICLES` stood right before it.
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
        language = _language(text)
        self.small.update(word[0] for word in _WORD.finditer(text) if word[0].islower())
        for name in _names(text):
            if name.opens:
                self.opening[name.text] += 1
                continue
            self.languages.setdefault(name.text, Counter())[language or ""] += 1
            if name.before in _ARTICLES:
                self.articles.setdefault(name.text, Counter())[name.before] += 1
            else:
                self.bare[name.text] += 1
                self.places[name.text] += name.before in _IN

    def knows(self, name: str) -> bool:
        """Return whether a name stands inside a sentence somewhere, where only names have capital letters."""
        return name in self.languages

    def kind(self, name: str) -> Kind:
        """Return what kind of name it is."""
        words = name.lower().split()
        if len(words) == 1:
            return "family" if name in self.families else "thing"
        if words[0] in _HEADS or words[-1] in _HEADS_EN:
            return "headed"
        return "person" if self._is_person(name) else "thing"

    def _is_person(self, name: str) -> bool:
        articles = Counter(self.articles.get(name, {}))
        bare = self.bare[name] + self.opening[name]
        if not _is_woman(name):
            bare += articles.pop("a", 0)  # "deram a João Vidal": here it means "to"
        with_article = sum(articles.values())
        return with_article <= _FEW_ARTICLES * (bare + with_article) and not self.places[name]

    @functools.cached_property
    def families(self) -> set[str]:
        """Return the family names of the persons among the names."""
        several = [name for name in self.languages if " " in name]
        return {name.split()[-1] for name in several if self.kind(name) == "person"}

    def language(self, name: str) -> Language:
        """Return the language that a name mostly stands in."""
        found = self.languages.get(name, Counter())
        return "pt" if found["pt"] >= max(found["en"], 1) else "en"

    def gender(self, name: str) -> str:
        """Return the gender of the article that mostly stands before a name, as in `_GENDERS`; empty if none does."""
        genders: Counter[str] = Counter()
        for article, count in self.articles.get(name, {}).items():
            genders[_ARTICLES[article]] += count
        return max(genders, key=genders.__getitem__, default="")


def _is_woman(name: str) -> bool:
    first = name.partition(" ")[0].lower()
    return first.endswith("a") or first in _WOMEN


# Invented names -------------------------------------------------------------------------------------------------------


class _Invented:
    """Gives each name an invented one of its kind, one after the other, always the same one.

    Args:
        free: names that the rows do not have.
    """

    def __init__(self, free: set[str]) -> None:
        self._free = free
        self._given: dict[tuple[str, str], str] = {}
        self._counts: Counter[tuple[str, ...]] = Counter()

    def instead(self, name: _Name, seen: _Seen) -> str:
        """Return an invented name to stand in place of another; empty if there is none."""
        kind, language = seen.kind(name.text), seen.language(name.text)
        words = name.text.split()
        if kind == "person":
            return self._next(name.text, _PEOPLE[language, "f" if _is_woman(name.text) else "m"])
        if kind == "family":
            return self._next(name.text, _PEOPLE[language, "m"]).rpartition(" ")[2]
        if kind == "headed":
            if words[-1].lower() in _HEADS_EN and words[0].lower() not in _HEADS:
                return self._joined(self._next(name.text, _THINGS["en", ""]), words[-1])
            link = next((i for i, word in enumerate(words) if word in _LINKS), 0)
            tail = _THINGS[language, _ARTICLES.get(words[link], "") if link and language == "pt" else ""]
            return self._joined(*words[: link + 1], self._next(name.text, tail))
        gender = _ARTICLES.get(name.before) or seen.gender(name.text)
        return self._next(name.text, _THINGS[language, gender if language == "pt" else ""])

    def _next(self, name: str, names: tuple[str, ...]) -> str:
        if (name, names[0]) not in self._given:
            free = [one for one in names if one in self._free]
            self._given[name, names[0]] = free[self._counts[names] % len(free)] if free else ""
            self._counts[names] += 1
        return self._given[name, names[0]]

    @staticmethod
    def _joined(*words: str) -> str:
        return " ".join(words) if all(words) else ""


def _free(rows: Iterable[Mapping[str, Any]], questions: Iterable[str]) -> set[str]:
    """Return the invented names of which no word with a meaning of its own stands in rows or questions."""
    names = {name for lists in (*_PEOPLE.values(), *_THINGS.values()) for name in lists}
    for text in (*questions, *map(_text_of, rows)):
        small = text.casefold()
        names -= {name for name in names if name.split()[-1].casefold() in small}
    return names


# Questions ------------------------------------------------------------------------------------------------------------

_WORDS_PT = frozenset(
    """quem que qual quais quando quanto quantos quantas quanta onde como porque por o os a as do da dos das no na em ao
    à de é foi era são foram tem têm há um uma com para se não pelo pela""".split()
)
_WORDS_EN = frozenset(
    """who whom whose what which when where why how the is are was were did does do has have had of in on to for by with
    a an and it that""".split()
)


def _language(text: str) -> Language | None:
    """Return whether a text is rather Portuguese or English, by its small words; None if it has neither's."""
    words = text.lower().split()[:100]
    portuguese, english = sum(word in _WORDS_PT for word in words), sum(word in _WORDS_EN for word in words)
    return None if not portuguese + english else "pt" if portuguese >= english else "en"


def _of_facts(facts: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, tuple[str, ...], str, int]]:
    """Yield each question with its trained answers, its fact, and the place of that among the facts."""
    for place, fact in enumerate(facts):
        for question in fact["questions"]:
            yield question, tuple(fact["expected"]), str(fact.get("fact", "")), place


def _of_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, tuple[str, ...], str, int]]:
    for place, row in enumerate(rows):
        turns = [message for message in row.get("messages", ()) if message["role"] != "system"][:2]
        if [turn["role"] for turn in turns] == ["user", "assistant"] and all(turn.get("content") for turn in turns):
            yield turns[0]["content"], (turns[1]["content"],), fact_of(row), place


def _replaced(question: str, seen: _Seen, names: _Invented) -> tuple[str, str] | None:
    """Return a question with an invented name, and that name; None if there is no name that can be replaced."""
    for name in map(lambda found: _inside(found, seen), _names(question)):
        if name is None or not _is_name(name.text):
            continue
        invented = names.instead(name, seen)
        vowels = [text[0].lower() in "aeiou" for text in (name.text, invented) if text]
        if invented and not (name.before in ("a", "an") and _language(question) == "en" and len(set(vowels)) > 1):
            return re.sub(rf"\b{re.escape(name.text)}\b", invented, question), invented
    return None


def _inside(name: _Name, seen: _Seen) -> _Name | None:
    """Return a name without the word that only has a capital letter because it begins the sentence; None if no more."""
    first, _, rest = name.text.partition(" ")
    if not name.opens or (seen.knows(name.text) and first.lower() not in seen.small):
        return name
    words = rest.split()
    while words and words[0] in _LINKS:
        words = words[1:]
    rest = " ".join(words)
    return _Name(name.end - len(rest), name.end, rest, first.lower(), False) if rest else None


def _text_of(row: Mapping[str, Any]) -> str:
    return row.get("text") or "\n".join(str(message.get("content") or "") for message in row.get("messages", ()))


def _spread(probes: Sequence[Probe], most: int) -> list[Probe]:
    count = min(max(most, 0), len(probes))
    return [probes[i * len(probes) // count] for i in range(count)]
