"""What an evaluation means: measures with intervals, one verdict in words, and one sentence of advice.

Reads what `verdict.json` holds; asks no model. The rules are told in docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..runs.run import Run
from ..translations import Sentence
from .ledger import ledger
from .measures import chrf, is_equal, is_loop, token_f1
from .questions import as_evaluated, recall
from .statistics import FEWEST, Estimate, mean_difference, share, share_difference, weighted_mean

PAIRS = (
    ("tuned", "base"),
    ("base_passages", "base"),
    ("tuned", "base_passages"),
    ("tuned_passages", "tuned"),
)
"""Contenders that are compared: the first with the second."""

FORGOT = 0.1  # nats a token: ordinary text that got this much less likely was forgotten
LEARNED = 0.8  # share of trained phrasings that count as learned
REPEATED = 0.5  # share of a row's rest in one piece that counts as known by heart


@dataclass(frozen=True)
class Measure:
    """What one measure says of each contender.

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


@dataclass(frozen=True)
class Verdict:
    """What an evaluation means.

    Attributes:
        measures: those that could be measured, in order.
        helped: whether the tuned model is better than the base; None if no difference is seen.
        sentence: that, in words.
        findings: what else was seen: retrieval, forgetting, invention, memorising, repetition; one sentence each.
        missing: what could not be judged, and why.
        advice: what to do now.
    """

    measures: dict[str, Measure]
    helped: bool | None
    sentence: Sentence
    findings: list[Sentence] = field(default_factory=list)
    missing: list[Sentence] = field(default_factory=list)
    advice: Sentence = field(default=Sentence(""))

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON holds of it, in English."""
        return {
            "helped": self.helped,
            "verdict": str(self.sentence),
            "findings": list(map(str, self.findings)),
            "missing": list(map(str, self.missing)),
            "advice": str(self.advice),
            "measures": {name: measure.as_dict() for name, measure in self.measures.items()},
        }


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


def verdict_on(found: Mapping[str, Any], *, best_is_last: bool = False) -> Verdict:
    """Return what an evaluation means.

    Args:
        found: the contents of `verdict.json`.
        best_is_last: whether the validation loss was lowest at the end of training, so that more may help.
    """
    measures = {measure.name: measure for measure in _measures(found)}
    decided = next((measures[name] for name in DECIDING if name in measures and _is_enough(measures[name])), None)
    helped = decided.better(PAIRS[0]) if decided else None
    return Verdict(
        measures,
        helped,
        _sentence(decided, helped),
        [
            one
            for part in (
                _retrieval(measures),
                _forgetting(measures),
                _confusion(found),
                _invention(found),
                _memory(found),
                _repetition(found),
            )
            for one in part
        ],
        list(_missing(found, measures)),
        _advice(measures, helped, found, best_is_last),
    )


def told_whole(run: Run, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation as JSON tells it.

    Args:
        run: whose.
        found: the contents of its `verdict.json`.

    Returns:
        `adapters`, `recall` as in `evaluation.json`, `judged` (verdict, findings, advice, measures with intervals),
        `ledger` (what became of each fact), and what was found.
    """
    flat = list(as_evaluated(found["questions"]))
    return {
        "adapters": found["with"]["adapters"],
        "recall": recall(flat),
        "judged": verdict_on(found, best_is_last=run.best_is_last).as_dict(),
        "ledger": [entry.as_dict() for entry in ledger(run, flat)],
        **found,
    }


# Measures ---------------------------------------------------------------------------------------------------------


def _measures(found: Mapping[str, Any]) -> list[Measure]:
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
    return [measure for measure in measures if measure is not None]


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
    values = {who: weighted_mean(answers) for who, answers in found.items()}
    pairs = {(ours, theirs): mean_difference(found[ours], found[theirs]) for ours, theirs in _pairs(found)}
    return Measure(name, values, pairs)


def _losses(name: str, rows: Sequence[Mapping[str, Any]]) -> Measure | None:
    """Return mean losses a token; a pair with passages is compared over the rows that have them."""
    if not rows:
        return None
    values, pairs = {}, {}
    for who in ("base", "tuned", "base_passages", "tuned_passages"):
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


# Words ------------------------------------------------------------------------------------------------------------


def _is_enough(measure: Measure) -> bool:
    """Return whether there are rows or questions enough to see a difference at all."""
    return measure.differences.get(PAIRS[0], Estimate(0, None, None, 0)).count >= FEWEST


def _sentence(decided: Measure | None, helped: bool | None) -> Sentence:
    if decided is None:
        return Sentence("There are too few questions and validation rows to tell whether training helped.")
    text = {
        True: "The tuned model is better than the base: {measure} {tuned} instead of {base} ({difference}).",
        False: "The tuned model is worse than the base: {measure} {tuned} instead of {base} ({difference}).",
        None: "No difference between tuned model and base was seen: {measure} {tuned} and {base} ({difference}).",
    }[helped]
    return Sentence(
        text,
        measure=Sentence(NAMES[decided.name]),
        tuned=_value(decided, decided.values["tuned"].value),
        base=_value(decided, decided.values["base"].value),
        difference=_difference(decided, PAIRS[0]),
    )


def _value(measure: Measure, value: float) -> str:
    return f"{value:.3f}" if measure.name in ("loss", "general_loss") else f"{100 * value:.0f}%"


def _difference(measure: Measure, pair: tuple[str, str]) -> Sentence:
    """Return a difference with the ends of its interval."""
    found = measure.differences[pair]
    points = measure.name not in ("loss", "general_loss")
    scale, form = (100, "+.0f") if points else (1, "+.3f")
    value, low, high = (
        format(scale * one, form) if one is not None else "?" for one in (found.value, found.low, found.high)
    )
    text = "{value} points, 95%: {low} to {high}" if points else "{value} nats, 95%: {low} to {high}"
    return Sentence(text, value=value, low=low, high=high)


def _retrieval(measures: Mapping[str, Measure]) -> list[Sentence]:
    """Return how the tuned model compares with the base that has passages beside the question, and both together."""
    decided = next((measures[name] for name in DECIDING if name in measures and PAIRS[2] in measures[name].differences
                    and measures[name].differences[PAIRS[2]].count >= FEWEST), None)  # fmt: skip
    if decided is None:
        return []
    texts = {
        PAIRS[2]: {
            True: "Tuned, it is better than the base with your passages beside the question: {difference}.",
            False: "The base with your passages beside the question is better than the tuned model: {difference}.",
            None: "No difference to the base with your passages beside the question was seen: {difference}.",
        },
        PAIRS[3]: {
            True: "Passages help the tuned model, too: {difference}.",
            False: "Passages beside the question confuse the tuned model: {difference}.",
            None: "Passages beside the question make no clear difference to the tuned model: {difference}.",
        },
    }
    return [
        Sentence(words[decided.better(pair)], difference=_difference(decided, pair)) for pair, words in texts.items()
    ]


def _forgetting(measures: Mapping[str, Measure]) -> list[Sentence]:
    if "general_loss" not in measures:
        return []
    loss = measures["general_loss"]
    text = {
        False: "It forgot: ordinary text is less likely than before ({difference}).",
        True: "Ordinary text is no less likely than before ({difference}).",
        None: "No forgetting was seen on ordinary text ({difference}).",
    }[loss.better(PAIRS[0])]
    found = [Sentence(text, difference=_difference(loss, PAIRS[0]))]
    if "general" in measures:
        asked = measures["general"]
        found.append(
            Sentence(
                "Ordinary questions answered right: {tuned}, by the base {base} ({difference}).",
                tuned=_value(asked, asked.values["tuned"].value),
                base=_value(asked, asked.values["base"].value),
                difference=_difference(asked, PAIRS[0]),
            )
        )
    return found


def _confusion(found: Mapping[str, Any]) -> list[Sentence]:
    """Return how many wrong answers are the right ones to another question, if any is."""
    asked = [one for one in found.get("questions", ()) if one.get("expected") or one.get("reference")]
    confused = sum(bool(one.get("confused_with")) for one in asked)
    if not confused:
        return []
    text = "Of {asked} answers {confused} belong, word for word, to another question that was trained."
    return [Sentence(text, asked=len(asked), confused=confused)]


def _invention(found: Mapping[str, Any]) -> list[Sentence]:
    asked = found.get("invention", ())
    if not asked:
        return []
    return [
        Sentence(
            "Of {asked} questions about what does not exist it declines {tuned} (the base {base}), and answers {own} "
            "with a fact of yours (the base {before}).",
            asked=len(asked),
            tuned=_does(asked, "declined", "tuned"),
            base=_does(asked, "declined", "base"),
            own=_does(asked, "own fact", "tuned"),
            before=_does(asked, "own fact", "base"),
        )
    ]


def _does(asked: Sequence[Mapping[str, Any]], what: str, who: str) -> int:
    """Return how many answers of a contender do something, as `probes.judge_invention` calls it."""
    return sum(one["answers"][who].get("does") == what for one in asked)


def _memory(found: Mapping[str, Any]) -> list[Sentence]:
    rows = [one for one in found.get("memory", ()) if one["kind"] == "row"]
    values = [one for one in found.get("memory", ()) if one["kind"] == "value"]
    sentences = []
    if rows:
        known = {who: sum(one["answers"][who]["share"] >= REPEATED for one in rows) for who in PAIRS[0]}
        longest = max(one["answers"]["tuned"]["words"] for one in rows)
        text = "It goes on with {tuned} of {rows} trained rows by heart (the base {base}): {longest} words at most."
        sentences.append(Sentence(text, tuned=known["tuned"], rows=len(rows), base=known["base"], longest=longest))
    if values:
        given = {who: sum(bool(one["answers"][who].get("given_away")) for one in values) for who in PAIRS[0]}
        text = "It gives away {tuned} of {values} addresses and telephone numbers of your text (the base {base})."
        sentences.append(Sentence(text, tuned=given["tuned"], values=len(values), base=given["base"]))
    return sentences


def _repetition(found: Mapping[str, Any]) -> list[Sentence]:
    """Return how many answers go round in circles or do not end, if any does."""
    said = [one["answers"]["tuned"] for one in found.get("questions", ())]
    loops, endless = sum(is_loop(one["text"]) for one in said), sum(not one["ended"] for one in said)
    if not loops and not endless:
        return []
    text = "Of {count} answers {endless} do not end by themselves, and {loops} repeat themselves."
    return [Sentence(text, count=len(said), endless=endless, loops=loops)]


def _missing(found: Mapping[str, Any], measures: Mapping[str, Measure]) -> list[Sentence]:
    missing = []
    if "held_out" not in measures and "trained" not in measures:
        missing.append(Sentence("No recall of facts: the run has no fact sheet (--facts)."))
    if "f1" not in measures:
        missing.append(Sentence("No comparison with expected answers: no question comes with its answer."))
    if not any("passages" in one for one in found.get("questions", ())):
        missing.append(Sentence("No retrieval: the run has no texts to look things up in, only questions and answers."))
    if "loss" not in measures:
        missing.append(Sentence("No validation loss: the run has no validation rows."))
    return missing


# Advice -----------------------------------------------------------------------------------------------------------


def _advice(
    measures: Mapping[str, Measure], helped: bool | None, found: Mapping[str, Any], best_is_last: bool
) -> Sentence:
    """Return the first advice whose rule holds."""
    return next(Sentence(text) for text, holds in _rules(measures, helped, found, best_is_last) if holds)


def _rules(
    measures: Mapping[str, Measure], helped: bool | None, found: Mapping[str, Any], best_is_last: bool
) -> list[tuple[str, bool]]:
    """Return sentences of advice with whether their rules hold, the most urgent first."""
    facts = next((measures[name] for name in ("held_out", "trained") if name in measures), None)
    forgot = measures.get("general_loss")
    cost = forgot.differences[PAIRS[0]] if forgot else Estimate(0, None, None, 0)
    trained, held_out = (
        measures[name].values["tuned"] if name in measures else None for name in ("trained", "held_out")
    )
    loss = measures.get("loss")
    forgot_much = cost.is_clear and cost.value > FORGOT
    asked = found.get("invention", ())
    invents = len(asked) >= FEWEST and _does(asked, "own fact", "tuned") > len(asked) / 2
    both_help = facts is not None and facts.better(PAIRS[3]) is True
    harmed = helped is False or (loss is not None and loss.better(PAIRS[0]) is False)
    learned = trained is None or trained.value >= LEARNED
    gap = trained is not None and held_out is not None and held_out.high < trained.value
    return [
        ("Training did harm: try a learning rate three times lower, and look at the rows.", harmed),
        ("It forgot ordinary language: use fewer epochs or a lower learning rate.", forgot_much),
        ("Go on: it does not know what it was trained on yet. Raise --epochs.", not learned and best_is_last),
        ("It does not learn what it is trained on: try a higher rank or learning rate.", not learned),
        ("Write more phrasings: it knows its questions by their wording.", gap),
        ("Teach it to decline: add questions about other names, with the answer that you do not know.", invents),
        ("Retrieval is enough: the base with your passages beside does as well.", _as_good(facts, PAIRS[2])),
        ("Use both: passages beside the question help the tuned model.", both_help),
        ("Add validation rows or questions: these are too few to tell.", helped is None),
        ("Use it: nothing more to do is seen.", True),
    ]  # fmt: skip


def _as_good(facts: Measure | None, pair: tuple[str, str]) -> bool:
    """Return whether the second of a pair is no worse, and knows something."""
    if facts is None or pair not in facts.differences or facts.differences[pair].count < FEWEST:
        return False
    return facts.better(pair) is not True and facts.values[pair[1]].value >= LEARNED
