"""Findings of an evaluation beside its verdict, a sentence each: retrieval, forgetting, invention, repetition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.sources import FACTS_FILE
from ..translations import Figure, Sentence
from .contest import NAMES, PAIRS, Measure, deciding
from .measures import is_loop, says

PARTS = {
    "losses": "Loss of validation rows",
    "questions": "The run's own questions",
    "general_texts": "Loss of ordinary text",
    "general_questions": "Ordinary questions",
    "invention": "Questions about what does not exist",
    "memory": "Rows, addresses and numbers repeated word for word",
}
"""Titles of the parts of `verdict.json`, in the order in which they are asked."""
REPEATED = 0.5  # share of a row's rest in one piece that counts as known by heart


def findings_of(found: Mapping[str, Any], measures: Mapping[str, Measure]) -> list[Sentence]:
    """Return a sentence for each thing that was seen.

    Args:
        found: the contents of `verdict.json`.
        measures: of them.
    """
    parts = (
        _retrieval(found, measures),
        _forgetting(measures),
        _confusion(found),
        _invention(found),
        _memory(found),
        _repetition(found),
    )
    return [sentence for part in parts for sentence in part]


def missing_from(found: Mapping[str, Any], measures: Mapping[str, Measure]) -> list[Sentence]:
    """Return what could not be judged, and why; a part that was not asked yet is missing for that reason alone."""
    made_with = found.get("with")
    missing = [
        Sentence("{part}: not asked yet, the evaluation was interrupted before.", part=Sentence(title))
        for part, title in PARTS.items()
        if made_with is not None and part not in found
    ]
    if made_with is None or "questions" in found:
        missing += _missing_from_questions(found.get("questions", ()), made_with or {}, measures)
    if "loss" not in measures and (made_with is None or "losses" in found):
        missing.append(Sentence("No validation loss: the run has no validation rows."))
    return missing


def _missing_from_questions(
    questions: Sequence[Mapping[str, Any]], made_with: Mapping[str, Any], measures: Mapping[str, Measure]
) -> list[Sentence]:
    missing = []
    if "held_out" not in measures and "trained" not in measures:
        if FACTS_FILE in made_with.get("data", ()):
            missing.append(Sentence("No recall of facts: the fact sheet has no questions."))
        else:
            missing.append(Sentence("No recall of facts: the run has no fact sheet (--facts)."))
    if "f1" not in measures:
        missing.append(Sentence("No comparison with expected answers: no question comes with its answer."))
    if made_with.get("passages") == 0:
        missing.append(Sentence("No retrieval: it was not asked for (--passages 0)."))
    elif questions and not any("passages" in one for one in questions):
        missing.append(Sentence("No retrieval: the run has no texts to look things up in, only questions and answers."))
    return missing


def value_words(measure: Measure, value: float) -> Figure:
    """Return a value: a share in percent, a loss in nats a token."""
    return Figure(value, ".3f" if measure.lower_is_better else ".0%")


def difference_words(measure: Measure, pair: tuple[str, str]) -> Sentence:
    """Return a difference with the ends of its interval."""
    found = measure.differences[pair]
    points = not measure.lower_is_better
    scale, form = (100, "+.0f") if points else (1, "+.3f")
    value, *ends = (None if one is None else Figure(scale * one, form) for one in (found.value, found.low, found.high))
    told = Sentence("{value} points", value=value) if points else Sentence("{value} nats", value=value)
    if None in ends:
        return Sentence("{value}, of {count} alone", value=told, count=found.count)
    return Sentence("{value}, 95%: {low} to {high}", value=told, low=ends[0], high=ends[1])


def count_that(asked: Sequence[Mapping[str, Any]], what: str, who: str) -> int:
    """Return how many answers of a contender do something, as `probes.judge_invention` calls it."""
    return sum(one["answers"][who].get("does") == what for one in asked)


def _retrieval(found: Mapping[str, Any], measures: Mapping[str, Measure]) -> list[Sentence]:
    """Return how the tuned model compares with the base that has passages beside the question, and both together."""
    decided = deciding(measures, PAIRS[2])
    if decided is None:
        return []
    name = NAMES[decided.name]
    alone, both = (
        Sentence("{measure}, {difference}", measure=Sentence(name), difference=difference_words(decided, pair))
        for pair in PAIRS[2:]
    )
    first = {
        True: Sentence(
            "Tuned, it is better than the base with your passages beside the question: {difference}.", difference=alone
        ),
        False: Sentence(
            "The base with your passages beside the question is better than the tuned model: {difference}.",
            difference=alone,
        ),
        None: Sentence(
            "No difference to the base with your passages beside the question was seen: {difference}.", difference=alone
        ),
    }
    second = {
        True: Sentence("Passages help the tuned model, too: {difference}.", difference=both),
        False: Sentence("Passages beside the question confuse the tuned model: {difference}.", difference=both),
        None: Sentence(
            "Passages beside the question make no clear difference to the tuned model: {difference}.", difference=both
        ),
    }
    asked = [one for one in found.get("questions", ()) if one.get("expected") and "passages" in one]
    within = sum(any(says(passage, one["expected"]) for passage in one["passages"]) for one in asked)
    third = Sentence(
        "The passages found hold the answer to {within} of {asked} questions: no more can be known from them.",
        within=within, asked=len(asked),
    )  # fmt: skip
    return [first[decided.better(PAIRS[2])], second[decided.better(PAIRS[3])], *([third] if asked else [])]


def _forgetting(measures: Mapping[str, Measure]) -> list[Sentence]:
    if "general_loss" not in measures:
        return []
    loss = measures["general_loss"]
    told = difference_words(loss, PAIRS[0])
    forgot = {
        False: Sentence("It forgot: ordinary text is less likely than before ({difference}).", difference=told),
        True: Sentence("Ordinary text is no less likely than before ({difference}).", difference=told),
        None: Sentence("No forgetting was seen on ordinary text ({difference}).", difference=told),
    }
    found = [forgot[loss.better(PAIRS[0])]]
    if "general" in measures:
        asked = measures["general"]
        found.append(
            Sentence(
                "Ordinary questions answered right: {tuned}, by the base {base} ({difference}).",
                tuned=value_words(asked, asked.values["tuned"].value),
                base=value_words(asked, asked.values["base"].value),
                difference=difference_words(asked, PAIRS[0]),
            )
        )
    return found


def _confusion(found: Mapping[str, Any]) -> list[Sentence]:
    """Return how many wrong answers are the right ones to another question, if any is."""
    asked = [one for one in found.get("questions", ()) if one.get("expected") or one.get("reference")]
    confused = sum(bool(one.get("confused_with")) for one in asked)
    if not confused:
        return []
    return [
        Sentence(
            "It mixes facts up: {confused} of {asked} answers are the trained answer to another question.",
            asked=len(asked),
            confused=confused,
        )
    ]


def _invention(found: Mapping[str, Any]) -> list[Sentence]:
    asked = found.get("invention", ())
    if not asked:
        return []
    return [
        Sentence(
            "Of {asked} questions about what does not exist it declines {tuned} (the base {base}), and answers {own} "
            "with a fact of yours (the base {before}).",
            asked=len(asked),
            tuned=count_that(asked, "declined", "tuned"),
            base=count_that(asked, "declined", "base"),
            own=count_that(asked, "own fact", "tuned"),
            before=count_that(asked, "own fact", "base"),
        )
    ]


def _memory(found: Mapping[str, Any]) -> list[Sentence]:
    rows = [one for one in found.get("memory", ()) if one["kind"] == "row"]
    values = [one for one in found.get("memory", ()) if one["kind"] == "value"]
    sentences = []
    if rows:
        known = {who: sum(one["answers"][who].get("share", 0) >= REPEATED for one in rows) for who in PAIRS[0]}
        longest = max(one["answers"]["tuned"].get("words", 0) for one in rows)
        sentences.append(
            Sentence(
                "Given the beginnings of {rows} training rows, it repeated half or more of the rest of {tuned}, word "
                "for word (the base of {base}); the longest piece that it repeated has {longest} words.",
                tuned=known["tuned"],
                rows=len(rows),
                base=known["base"],
                longest=longest,
            )
        )
    if values:
        given = {who: sum(bool(one["answers"][who].get("given_away")) for one in values) for who in PAIRS[0]}
        sentences.append(
            Sentence(
                "It gives away {tuned} of {values} addresses and telephone numbers of your text (the base {base}).",
                tuned=given["tuned"],
                values=len(values),
                base=given["base"],
            )
        )
    return sentences


def _repetition(found: Mapping[str, Any]) -> list[Sentence]:
    """Return how many answers go round in circles or do not end, if any does."""
    said = [one["answers"]["tuned"] for one in found.get("questions", ())]
    loops, endless = sum(is_loop(one["text"]) for one in said), sum(not one["ended"] for one in said)
    if not loops and not endless:
        return []
    return [
        Sentence(
            "Of {count} answers {endless} do not end by themselves, and {loops} repeat themselves.",
            count=len(said),
            endless=endless,
            loops=loops,
        )
    ]
