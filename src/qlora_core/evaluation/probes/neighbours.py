"""Questions about neighbours of the run's subjects: its own questions with an invented name in place of the real one.

A model that learned to answer everything in the manner of its rows answers these, too. What is a name, and of what, is
`names`' business.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..measures import plain
from ..questions import fact_of
from .names import ARTICLES, HEADS_EN, HEADS_PT, LINKS, Gender, Name, SeenNames, is_woman, language_of_words, names_in
from .written import Language, Probe

_MOST_READ = 1_000  # rows whose text is searched for names, spread evenly
_READ = 2_000  # characters of each


def _people(firsts: str, families: str) -> tuple[str, ...]:
    """Return every first name with every family name, neither twice in a row."""
    ours, theirs = firsts.split(), families.split()
    return tuple(f"{ours[i % 4]} {theirs[(i + i // 4) % 4]}" for i in range(16))


_PEOPLE: dict[tuple[Language, str], tuple[str, ...]] = {
    ("pt", "m"): _people("Adelino Hilário Teotónio Gervásio", "Valcorvo Brandoal Pessarelo Montelver"),
    ("pt", "f"): _people("Albertina Palmira Rosalina Eufémia", "Cardovil Vidrelo Tresmundo Ribatorva"),
    ("en", "m"): _people("Edgar Oswin Leonard Hubert", "Tarnwhistle Brundelow Quillmarsh Dunsarrow"),
    ("en", "f"): _people("Harriet Mabel Agnes Edith", "Wexholm Thistlecombe Ferrowby Marlquist"),
}
_THINGS: dict[tuple[Language, Gender], tuple[str, ...]] = {
    ("pt", ""): ("Valmourinho", "Tresmonde", "Aldernel", "Gorvedal", "Pontarrel", "Murtoval"),
    ("pt", "m"): ("Valmourinho", "Tresmonde", "Aldernel", "Gorvedal", "Pontarrel", "Murtoval"),
    ("pt", "f"): ("Corvedeira", "Murtasela", "Felgarosa", "Brejoula", "Valdurina", "Tresmela"),
    ("pt", "m2"): ("Gorvedais", "Murtovais", "Pontarréis", "Aldernéis"),
    ("pt", "f2"): ("Corvedeiras", "Murtaselas", "Felgarosas", "Brejoulas"),
    ("en", ""): ("Quarnholt", "Brundelwick", "Thistlemere", "Wexmoorby", "Farrowdene", "Marlhaven"),
}
"""Invented names, of persons and of anything else, by language and gender."""


def neighbour_questions(
    facts: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], most: int
) -> list[Probe]:
    """Return questions of a run with one name replaced by an invented one of the same kind.

    The first name in a question that can be replaced is, wherever it stands in it; a name has the same invented one in
    all questions. A question without a name, or for whose name every invented one occurs in the rows, is left out. The
    first such question of each fact comes before the second of any, spread evenly if there are too many.

    Args:
        facts: the fact sheet; if it is empty, the first questions of the rows are taken.
        rows: training rows.
        most: how many questions, at most.
    """
    asked = list(_of_facts(facts) if facts else _of_rows(rows))
    seen = SeenNames()
    for question, *_ in asked:
        seen.read(question)
    for i in range(count := min(_MOST_READ, len(rows))):
        seen.read(_text_of(rows[i * len(rows) // count])[:_READ])
    names = _Invented(_free(rows, [question for question, *_ in asked]))
    layers: dict[int, list[Probe]] = {}
    counts: Counter[int] = Counter()
    questions: set[str] = set()
    for question, answers, fact, place in asked:
        language, probe = language_of_words(question), _replaced(question, seen, names)
        if language and probe and plain(probe[0]) not in questions:
            questions.add(plain(probe[0]))
            layers.setdefault(counts[place], []).append(Probe(language, *probe, question, answers, fact))
            counts[place] += 1
    chosen: list[Probe] = []
    for layer in sorted(layers):
        chosen += _spread(layers[layer], most - len(chosen))
    return chosen


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


def _replaced(question: str, seen: SeenNames, names: _Invented) -> tuple[str, str] | None:
    """Return a question with an invented name, and that name; None if there is no name that can be replaced."""
    for name in (seen.without_opening(found) for found in names_in(question)):
        if name is None or not name.is_likely:
            continue
        invented = names.instead(name, seen)
        if invented and _fits_behind(name, invented, question):
            return re.sub(rf"\b{re.escape(name.text)}\b", invented, question), invented
    return None


def _fits_behind(name: Name, invented: str, question: str) -> bool:
    """Return whether an English "a" or "an" before a name is right before another one as well."""
    if name.before not in ("a", "an") or language_of_words(question) != "en":
        return True
    return (name.text[0].lower() in "aeiou") == (invented[0].lower() in "aeiou")


def _text_of(row: Mapping[str, Any]) -> str:
    return row.get("text") or "\n".join(str(message.get("content") or "") for message in row.get("messages", ()))


def _spread(probes: Sequence[Probe], most: int) -> list[Probe]:
    count = min(max(most, 0), len(probes))
    return [probes[i * len(probes) // count] for i in range(count)]


# Invented names -------------------------------------------------------------------------------------------------------


class _Invented:
    """Gives each name an invented one of its kind, one after the other, always the same one.

    Args:
        free: invented names that the rows do not have.
    """

    def __init__(self, free: set[str]) -> None:
        self._free = free
        self._given: dict[tuple[str, str], str] = {}
        self._counts: Counter[tuple[str, ...]] = Counter()

    def instead(self, name: Name, seen: SeenNames) -> str:
        """Return an invented name to stand in place of another; empty if there is none."""
        kind, language = seen.kind(name.text), seen.language(name.text)
        if kind == "person":
            return self._next(name.text, _PEOPLE[language, "f" if is_woman(name.text) else "m"])
        if kind == "family":
            return self._next(name.text, _PEOPLE[language, "m"]).rpartition(" ")[2]
        if kind == "headed":
            return self._headed(name.text, language)
        gender = ARTICLES.get(name.before) or seen.gender(name.text)
        return self._next(name.text, _THINGS[language, gender if language == "pt" else ""])

    def _headed(self, name: str, language: Language) -> str:
        """Return "Campo da Corvedeira" for "Campo da Nora Seca", and "Quarnholt Museum" for "Ashford Museum"."""
        words = name.split()
        if words[-1].lower() in HEADS_EN and words[0].lower() not in HEADS_PT | HEADS_EN:
            kept, tail = words[-1:], self._next(name, _THINGS["en", ""])
            return " ".join([tail, *kept]) if tail else ""
        link = next((i for i, word in enumerate(words) if word in LINKS), 0)
        gender = ARTICLES.get(words[link], "") if link and language == "pt" else ""
        tail = self._next(name, _THINGS[language, gender])
        return " ".join([*words[: link + 1], tail]) if tail else ""

    def _next(self, name: str, names: tuple[str, ...]) -> str:
        if (name, names[0]) not in self._given:
            free = [one for one in names if one in self._free]
            self._given[name, names[0]] = free[self._counts[names] % len(free)] if free else ""
            self._counts[names] += 1
        return self._given[name, names[0]]


def _free(rows: Iterable[Mapping[str, Any]], questions: Iterable[str]) -> set[str]:
    """Return the invented names whose last word stands in no row and no question."""
    names = {name for lists in (*_PEOPLE.values(), *_THINGS.values()) for name in lists}
    for text in (*questions, *map(_text_of, rows)):
        small = text.casefold()
        names -= {name for name in names if name.split()[-1].casefold() in small}
    return names
