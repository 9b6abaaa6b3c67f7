"""The fact ledger: for each fact of the sheet what the base knew, what holds now, which rows teach it, what to add.

Reads a run and the questions that an evaluation judged. Asks no model, and changes no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..runs.run import Run
from ..tokens.conversations import is_target
from ..translations import Sentence
from .measures import plain, says
from .questions import fact_of

ENOUGH_PHRASINGS = 5
"""Phrasings below which a fact counts as taught in few ways: most often it then fails in another one."""


@dataclass(frozen=True)
class Phrasing:
    """A question of a fact, and how its answer went.

    Attributes:
        question: as the fact sheet asks.
        phrasing: "trained" or "held_out"; "unknown" if it was not judged.
        base_right: whether the base was right; None if it was not judged.
        tuned_right: whether the tuned model is.
        learned_at: steps at which its answer became right during training, from samples; "unknown" if it was not asked.
        lost_at: steps at which it became wrong again; "unknown" if it was not asked.
    """

    question: str
    phrasing: str
    base_right: bool | None
    tuned_right: bool | None
    learned_at: tuple[int, ...] | Literal["unknown"]
    lost_at: tuple[int, ...] | Literal["unknown"]


@dataclass(frozen=True)
class Teaching:
    """A training row that teaches a fact.

    Attributes:
        source: where it comes from, as the row says: file and line.
        question: the question before the reply; empty for a text.
        said: the reply, or the text.
        names_fact: whether its metadata names the fact; else its words alone say so.
    """

    source: str
    question: str
    said: str
    names_fact: bool


@dataclass(frozen=True)
class LedgerEntry:
    """The history of a fact in a run.

    Attributes:
        fact: as the fact sheet calls it; may be empty.
        expected: answers that are right.
        phrasings: its questions.
        rows: training rows that teach it.
        contradictions: rows that answer one of its questions, and say none of the expected answers.
        advice: what to add or change; None if all judged phrasings hold, or none was judged.
        row: a prepared row to add, `{"messages", "metadata"}`; None if the advice is another one.
    """

    fact: str
    expected: tuple[str, ...]
    phrasings: tuple[Phrasing, ...]
    rows: tuple[Teaching, ...] = ()
    contradictions: tuple[Teaching, ...] = ()
    advice: Sentence | None = None
    row: dict[str, Any] | None = field(default=None, hash=False)

    @property
    def known_before(self) -> tuple[str, ...]:
        """Return the questions that the base answered right."""
        return tuple(one.question for one in self.phrasings if one.base_right)

    @property
    def holds(self) -> tuple[str, ...]:
        """Return the questions that the tuned model answers right."""
        return tuple(one.question for one in self.phrasings if one.tuned_right)

    @property
    def fails(self) -> tuple[str, ...]:
        """Return the questions that the tuned model answers wrong."""
        return tuple(one.question for one in self.phrasings if one.tuned_right is False)

    @property
    def taught_phrasings(self) -> int:
        """Return in how many ways it is taught: different questions, and different texts."""
        return len({plain(row.question or row.said) for row in self.rows})

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON holds of it; `advice` as a record of its sentence, see `translations.from_record`."""
        found = {"known_before": self.known_before, "holds": self.holds, "fails": self.fails}
        advice = self.advice.as_record() if self.advice is not None else None
        return {**asdict(self), **found, "taught_phrasings": self.taught_phrasings, "advice": advice}


def ledger(run: Run, judged_questions: Sequence[Mapping[str, Any]]) -> list[LedgerEntry]:
    """Return an entry for each fact of a run's sheet, in order; empty if it has none.

    Args:
        run: its fact sheet, samples and training rows are read.
        judged_questions: `questions` of its `evaluation.json`; empty if it was not evaluated.
    """
    facts = run.facts()
    if not facts:
        return []
    samples = run.samples()
    lessons = [lesson for row in run.train_rows() for lesson in _lessons(row)]
    return [_entry(fact, judged_questions, samples, lessons) for fact in facts]


def _entry(
    fact: Mapping[str, Any],
    judged: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    lessons: Sequence[_Lesson],
) -> LedgerEntry:
    name, expected = str(fact.get("fact") or ""), tuple(fact["expected"])
    wanted = [f" {value} " for value in map(plain, expected) if value]
    mine = [one for one in lessons if not (one.fact and name) or one.fact == name]
    teaching = [one for one in mine if any(value in one.words for value in wanted)]
    asked = {plain(question) for question in fact["questions"]} | {plain(one.question) for one in teaching}
    against = [one for one in mine if one.opens and plain(one.question) in asked and one not in teaching]
    phrasings = tuple(_phrasing(question, name, expected, judged, samples) for question in fact["questions"])
    entry = LedgerEntry(name, expected, phrasings, _told(teaching, name), _told(against, name))
    advice, row = _advice(entry)
    return LedgerEntry(name, expected, phrasings, entry.rows, entry.contradictions, advice, row)


def _phrasing(
    question: str,
    name: str,
    expected: Sequence[str],
    judged: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
) -> Phrasing:
    found: Mapping[str, Any] = next(
        (one for one in judged if one["question"] == question and one.get("fact", name) == name), {}
    )
    right = [(sample["step"], says(sample["answer"], expected)) for sample in samples if sample["question"] == question]
    learned, lost = [], []
    before = False
    for step, is_right in right:
        if is_right != before:
            (learned if is_right else lost).append(step)
        before = is_right
    return Phrasing(
        question,
        found.get("phrasing", "unknown"),
        found.get("base_right"),
        found.get("tuned_right"),
        tuple(learned) if right else "unknown",
        tuple(lost) if right else "unknown",
    )


# Rows -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lesson:
    """A trained reply, or a text, of a row.

    `words` is what it says, plain and between blanks; `opens`: whether it answers the first question of a conversation.
    """

    source: str
    question: str
    said: str
    fact: str
    words: str
    opens: bool


def _lessons(row: Mapping[str, Any]) -> Iterable[_Lesson]:
    source, fact = str(row.get("source", "")), fact_of(row)
    if text := row.get("text"):
        yield _Lesson(source, "", text, fact, f" {plain(text)} ", False)
    messages = row.get("messages") or []
    first = next((place for place, message in enumerate(messages) if message["role"] == "assistant"), None)
    for place, message in enumerate(messages):
        reply = message.get("content") or ""
        if is_target(message) and reply:
            before = messages[place - 1] if place else {}
            question = (before.get("content") or "") if before.get("role") == "user" else ""
            yield _Lesson(source, question, reply, fact, f" {plain(reply)} ", place == first and bool(question))


def _told(lessons: Iterable[_Lesson], name: str) -> tuple[Teaching, ...]:
    return tuple(Teaching(one.source, one.question, one.said, bool(name) and one.fact == name) for one in lessons)


# Advice ---------------------------------------------------------------------------------------------------------------


def _advice(entry: LedgerEntry) -> tuple[Sentence | None, dict[str, Any] | None]:
    """Return what to add or change, and a row to add if that is it."""
    if not entry.fails:
        return None, None
    held_out = [one.question for one in entry.phrasings if one.phrasing == "held_out" and one.tuned_right is False]
    suggested = (held_out or list(entry.fails))[0]
    if entry.contradictions:
        sources = ", ".join(dict.fromkeys(row.source for row in entry.contradictions if row.source)) or "?"
        return Sentence(
            "Rows that answer the same question differently: {count} ({sources}). Mend them or take them out.",
            count=len(entry.contradictions), sources=sources,
        ), None  # fmt: skip
    if not entry.rows:
        advice = Sentence("No training row says {answer}: add one.", answer=entry.expected[0])
        return advice, _row(entry, suggested)
    ways = entry.taught_phrasings
    if held_out and ways < ENOUGH_PHRASINGS:
        advice = Sentence(
            "Asked in other words it fails, and the ways in which it is taught are few: {count}. Add the row below; "
            "its question is no test any more then.", count=ways,
        )  # fmt: skip
        return advice, _row(entry, suggested)
    return Sentence(
        "Training says it in {count} wordings and nothing contradicts it, yet answers are wrong: see the advice on the "
        "whole run.", count=ways,
    ), None  # fmt: skip


def _row(entry: LedgerEntry, question: str) -> dict[str, Any]:
    """Return a row that teaches a fact by another question, with a reply of its rows, else the expected answer.

    Of several replies the one whose question shares most words with this one is taken: it is likely in its language.
    """
    words = set(plain(question).split())
    replies = [row for row in entry.rows if row.question]
    nearest = max(replies, key=lambda row: len(words & set(plain(row.question).split())), default=None)
    reply = nearest.said if nearest else entry.expected[0]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "metadata": {"fact": entry.fact} if entry.fact else {}}
