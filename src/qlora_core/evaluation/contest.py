"""Measures by which contenders are compared, with intervals, from what `verdict.json` holds: answers and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .measures import chrf, is_equal, token_f1
from .statistics import Estimate, mean_difference, mean_score, share, share_difference, weighted_mean

CONTENDERS = {
    "base": "Base",
    "tuned": "Tuned",
    "base_passages": "Base + passages",
    "tuned_passages": "Tuned + passages",
}
"""Names of the contenders, in the order in which they are asked and shown."""

PAIRS = (
    ("tuned", "base"),
    ("base_passages", "base"),
    ("tuned", "base_passages"),
    ("tuned_passages", "tuned"),
)
"""Contenders that are compared: the first with the second."""

NAMES = {
    "held_out": "Facts recalled, new wording",
    "trained": "Facts recalled, trained wording",
    "loss": "Loss of validation rows",
    "exact": "Exact answers",
    "f1": "Words in common (F1)",
    "chrf": "Characters in common (chrF)",
    "general_loss": "Loss of ordinary text",
    "general": "Ordinary questions answered right",
}
"""Names of measures; those that decide come first, in the order in which they do."""

DECIDING = "held_out", "trained", "f1", "loss"


@dataclass(frozen=True)
class Measure:
    """A measure of each contender.

    Attributes:
        name: a key of `NAMES`.
        values: by contender.
        differences: by pair of `PAIRS`, as far as both were asked.
        lower_is_better: as for a loss.
    """

    name: str
    values: dict[str, Estimate]
    differences: dict[tuple[str, str], Estimate]
    lower_is_better: bool = False

    def better(self, pair: tuple[str, str]) -> bool | None:
        """Return whether the first of a pair is better than the second; None if no difference is seen."""
        found = self.differences.get(pair)
        if found is None or not found.is_clear:
            return None
        return (found.value < 0) == self.lower_is_better

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return {
            "values": {name: value.as_dict() for name, value in self.values.items()},
            "differences": {
                f"{ours} - {theirs}": found.as_dict() for (ours, theirs), found in self.differences.items()
            },
        }


def measures_of(found: Mapping[str, Any]) -> dict[str, Measure]:
    """Return by its name what could be measured, in the order of `NAMES`."""
    questions = found.get("questions", ())
    facts = {kind: [one for one in questions if one.get("expected") and one["phrasing"] == kind]
             for kind in ("held_out", "trained")}  # fmt: skip
    referenced = [one for one in questions if one.get("reference")]
    measures = [
        _shares("held_out", facts["held_out"], _is_right),
        _shares("trained", facts["trained"], _is_right),
        _losses("loss", found.get("losses", ())),
        _shares("exact", referenced, lambda one, said: is_equal(said["text"], [one["reference"]])),
        _means("f1", referenced, lambda one, said: token_f1(said["text"], [one["reference"]])),
        _means("chrf", referenced, lambda one, said: chrf(said["text"], [one["reference"]])),
        _losses("general_loss", found.get("general_texts", ())),
        _shares("general", found.get("general_questions", ()), _is_right),
    ]
    return {measure.name: measure for measure in measures if measure is not None}


def deciding(measures: Mapping[str, Measure], pair: tuple[str, str]) -> Measure | None:
    """Return the first of `DECIDING` with rows or questions enough to see a difference of a pair; None if none has."""
    known = (measures[name] for name in DECIDING if name in measures)
    return next((one for one in known if pair in one.differences and one.differences[pair].can_tell), None)


def _is_right(_: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    return bool(said.get("right"))


Judged = Callable[[Mapping[str, Any], Mapping[str, Any]], float]
"""Judges an answer to a question."""


def _shares(name: str, questions: Sequence[Mapping[str, Any]], right: Judged) -> Measure | None:
    if not questions:
        return None
    found = {who: [bool(right(one, one["answers"][who])) for one in questions] for who in _asked(questions)}
    values = {who: share(sum(answers), len(answers)) for who, answers in found.items()}
    pairs = {(ours, theirs): share_difference(found[ours], found[theirs]) for ours, theirs in _pairs(found)}
    return Measure(name, values, pairs)


def _means(name: str, questions: Sequence[Mapping[str, Any]], good: Judged) -> Measure | None:
    if not questions:
        return None
    found = {who: [good(one, one["answers"][who]) for one in questions] for who in _asked(questions)}
    values = {who: mean_score(answers) for who, answers in found.items()}
    pairs = {(ours, theirs): share_difference(found[ours], found[theirs]) for ours, theirs in _pairs(found)}
    return Measure(name, values, pairs)


def _losses(name: str, rows: Sequence[Mapping[str, Any]]) -> Measure | None:
    """Return mean losses a token; a pair with passages is compared over the rows that have them."""
    if not rows:
        return None
    values, pairs = {}, {}
    for who in CONTENDERS:
        if some := [row for row in rows if who in row]:
            values[who] = weighted_mean([row[who] for row in some], [row["tokens"] for row in some])
    for ours, theirs in _pairs(values):
        some = [row for row in rows if ours in row and theirs in row]
        weights = [row["tokens"] for row in some]
        pairs[ours, theirs] = mean_difference([row[ours] for row in some], [row[theirs] for row in some], weights)
    return Measure(name, values, pairs, lower_is_better=True)


def _asked(questions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the contenders that were asked all questions."""
    return [who for who in questions[0]["answers"] if all(who in one["answers"] for one in questions)]


def _pairs(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [pair for pair in PAIRS if pair[0] in found and pair[1] in found]
