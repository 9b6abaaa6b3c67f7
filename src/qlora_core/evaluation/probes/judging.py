"""What an answer does: say that it does not know, say one of the run's facts, or take one fact for another.

It is told by words alone, in English and Portuguese. What no rule here knows counts as an answer.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..measures import plain, says
from ..questions import fact_of
from .written import Probe

Invention = Literal["declined", "own fact", "other"]

_QUOTED = re.compile(r"«[^»]*»|“[^”]*”|\"[^\"]*\"")
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|\n+")
_IS = re.compile(r"\bé\b", re.IGNORECASE)  # `plain` would make "e" of it, which means "and"
_APOLOGY = re.compile(
    r"(?:peco )?desculp|lament|infelizmente|perdao|(?:i m |i am )?(?:so |very )?sorry|i apologi|unfort"
)

_PT = r"(?:informac(?:ao|oes)|dados?|registos?|registros?|conhecimentos?|noticias?|referencias?|detalhes|resposta)"
_EN = r"(?:information|records?|data|knowledge|evidence|mentions?|details?|references?|answer|idea)"
_FIND_PT = r"(?:responder|encontrar|identificar|confirmar|dizer|indicar|fornecer|ajudar|determinar|saber)"
_FIND_EN = r"(?:find|answer|say|tell|confirm|identify|verify|provide|determine|help|recogni[sz]e)"
_I = r"\b(?:i|we) (?:really |honestly |simply |just )?"
_DECLINING = (
    # Portuguese: "não sei", but not "não sei nadar"; "is" stands for "é"
    r"\bnao (?:o |lhe |te )?sei (?:dizer|responder|informar|precisar)\b",
    r"\bnao (?:o |lhe |te )?sei\b(?! \w+[aei]r\b)(?! ao certo\b.* mas\b)",
    r"\bnao se sabe\b",
    r"\bnao tenho (?:a )?certeza\b(?!.* mas\b)",
    r"\bnao (?:tenho|temos|disponho de|possuo|ha|existem?|encontro|encontrei|constam?|foram? encontrad[oa]s?)"
    rf" (?:\w+ ){{0,2}}{_PT}\b",
    rf"\bsem (?:mais |qualquer )?{_PT} (?:sobre|acerca|a respeito)\b",
    r"\bnao (?:conheco|reconheco)\b",
    r"\b(?:desconheco|ignoro)\b",
    rf"\bnao (?:consigo|posso|sou capaz de) (?:te |lhe )?{_FIND_PT}\b",
    rf"\bnao (?:is|foi) possivel {_FIND_PT}\b",
    r"\bnunca ouvi falar\b",
    r"\b(?:is|continua|permanece) desconhecid[oa]s?$",
    r"\bnao (?:is|sao) conhecid[oa]s?$",
    r"\bnao exist(?:e|em|iu|ia|iram)$",
    r"\bnao exist(?:e|em|iu|ia) (?:tal|nenhuma?|qualquer)\b",
    r"\bnao (?:ha|existem?) (?:\w+ ){1,4}(?:com (?:esse|este|tal) (?:nome|titulo)|chamad[oa]s?)\b",
    # English; `plain` makes "don t" of "don't"
    rf"{_I}(?:do not|don t|dont) (?:really |actually )?know\b",
    rf"{_I}(?:have|ve) (?:got )?no (?:\w+ )?{_EN}\b",
    rf"{_I}(?:do not|don t|dont) have (?:\w+ ){{0,3}}{_EN}\b",
    r"\b(?:i m|i am|we re|we are) (?:not (?:\w+ )?(?:sure|certain)\b(?!.* but\b)|not (?:\w+ )?(?:aware|familiar)\b)",
    r"\b(?:i m|i am|we re|we are) (?:unaware|unfamiliar)\b",
    rf"\b(?:i m|i am|i was) (?:unable|not able) to {_FIND_EN}\b",
    rf"{_I}(?:cannot|can not|can t|cant|could not|couldn t) {_FIND_EN}\b",
    rf"{_I}(?:did not|didn t|do not|don t) (?:find|recogni[sz]e)\b",
    rf"{_I}(?:have |ve )?never heard of\b",
    rf"\bno {_EN} (?:is |are |was |were |could be )?(?:of|about|on|for|available|found|that|exists?)\b",
    rf"\bno (?:\w+ )?{_EN}$",
    r"\bthere (?:is|s|are|was|were) no (?:such|known)\b",
    r"\bthere (?:is|s|are|was|were) no (?:\w+ ){1,3}(?:called|named|by that name|of that name|with that name)\b",
    r"\b(?:does not|doesn t|do not|don t|did not|didn t) (?:seem to |appear to |actually |really )?exist\b",
    r"\b(?:is|are|remains?|it s) (?:not known|unknown|unclear)\b(?! (?:to|in|outside|for)\b)",
    r"^unknown$|^desconhecid[oa]$",
)
_DECLINES = re.compile("|".join(_DECLINING))
_BOASTS = re.compile(
    r"\b(?:maior|melhor|pior|igual|iguais|semelhante|outr[oa]s?|duvidas?|doubts?|better|greater|bigger|best|another)\b"
)
"""Words of a sentence that boasts in the same form: "não existe tal paixão em nenhum outro clube"."""


def declines(text: str) -> bool:
    """Return whether an answer begins by saying that it does not know, or that there is no such thing.

    Only its first sentence counts, or the second behind an apology: who adds a doubt to an invented answer has given
    the answer. What stands between quotation marks was said by somebody else, unless nothing else is said.
    """
    unquoted = _QUOTED.sub(" ", text)
    parts = _SENTENCE_END.split(unquoted if plain(unquoted) else text)
    sentences = [words for part in parts if (words := _words(part))]
    if not sentences:
        return False
    opening = sentences[: 2 if _APOLOGY.match(sentences[0]) else 1]
    return any(_DECLINES.search(words) and not _BOASTS.search(words) for words in opening)


def _words(sentence: str) -> str:
    return plain(_IS.sub("is", unicodedata.normalize("NFC", sentence)))


def judge_invention(answer: str, probe: Probe, trained_answers: Iterable[str] = ()) -> Invention:
    """Return what an answer to a question about something invented does.

    Args:
        answer: of a model.
        probe: what it was asked.
        trained_answers: answers of all facts of the run. Those that the question itself says do not count.

    Returns:
        "declined" if it says that it does not know, "own fact" if it says one of the run's trained answers word for
        word, else "other".
    """
    if declines(answer):
        return "declined"
    own = [one for one in (*probe.trained_answers, *trained_answers) if not says(probe.question, [one])]
    return "own fact" if says(answer, own) else "other"


@dataclass(frozen=True)
class Confusion:
    """The fact or the trained question that a wrong answer belongs to.

    Attributes:
        fact: as the fact sheet, or the row's metadata, calls it; empty if it has no name.
        question: its question, the first if it has several.
        answer: its trained answer that was said.
    """

    fact: str
    question: str
    answer: str


def confusion(
    answer: str, question: str, facts_or_rows: Iterable[Mapping[str, Any]], expected: Sequence[str] = ()
) -> Confusion | None:
    """Return what a wrong answer was trained for; see `Confusions`, which is faster for many answers."""
    return Confusions(facts_or_rows).of(answer, question, expected)


class Confusions:
    """Finds the other fact, or trained question, that a wrong answer belongs to.

    Args:
        facts_or_rows: rows of a fact sheet, prepared rows, or both.
    """

    def __init__(self, facts_or_rows: Iterable[Mapping[str, Any]]) -> None:
        self._facts: list[_Fact] = []
        self._replies: dict[str, list[Confusion]] = {}
        self._own_replies: dict[str, set[str]] = {}
        for one in facts_or_rows:
            if questions := one.get("questions"):
                asked = frozenset(map(plain, questions))
                self._facts.append(_Fact(str(one.get("fact", "")), questions[0], asked, tuple(one["expected"])))
            else:
                self._add_row(one)

    def of(self, answer: str, question: str, expected: Sequence[str] = ()) -> Confusion | None:
        """Return what a wrong answer was trained for; None if for nothing, or if it is right.

        A trained reply must be the answer, word for word; an expected answer of a fact must be said in it, and the
        longest counts. The question's own fact and replies do not count, nor what the question says itself.

        Args:
            answer: of a model.
            question: it was the answer to.
            expected: right answers to it, if they are known apart from facts and rows.
        """
        asked, said = plain(question), plain(answer)
        mine = [fact for fact in self._facts if asked in fact.asked]
        own = [*expected, *(value for fact in mine for value in fact.expected)]
        if says(answer, own) or said in self._own_replies.get(asked, ()):
            return None
        for found in self._replies.get(said, ()):
            if plain(found.question) != asked:
                return found
        found = [
            Confusion(fact.name, fact.question, value)
            for fact in self._facts
            if fact not in mine
            for value in fact.expected
            if says(answer, [value]) and not says(question, [value])
        ]
        return max(found, key=lambda one: len(plain(one.answer)), default=None)  # the first of the longest

    def _add_row(self, row: Mapping[str, Any]) -> None:
        name, messages = fact_of(row), row.get("messages", ())
        for before, message in itertools.pairwise(messages):
            question, reply = before.get("content") or "", message.get("content") or ""
            if before["role"] == "user" and message["role"] == "assistant" and plain(reply):
                self._replies.setdefault(plain(reply), []).append(Confusion(name, question, reply))
                self._own_replies.setdefault(plain(question), set()).add(plain(reply))


@dataclass(frozen=True)
class _Fact:
    name: str
    question: str
    asked: frozenset[str]  # all its questions, plain
    expected: tuple[str, ...]
