"""One sentence of advice: the first rule that holds, as docs/evaluation.md lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..translations import Sentence
from .contest import PAIRS, Measure
from .findings import count_that
from .statistics import FEWEST, Estimate

FORGOT = 0.1  # nats a token: ordinary text that got this much less likely was forgotten
LEARNED = 0.8  # share of trained phrasings that count as learned


def advice_on(
    measures: Mapping[str, Measure], helped: bool | None, found: Mapping[str, Any], best_is_last: bool
) -> Sentence:
    """Return the first advice whose rule holds."""
    return next(text for text, holds in _rules(measures, helped, found, best_is_last) if holds)


def _rules(
    measures: Mapping[str, Measure], helped: bool | None, found: Mapping[str, Any], best_is_last: bool
) -> list[tuple[Sentence, bool]]:
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
    invents = len(asked) >= FEWEST and count_that(asked, "own fact", "tuned") > len(asked) / 2
    both_help = facts is not None and facts.better(PAIRS[3]) is True
    harmed = helped is False
    narrower = loss is not None and loss.better(PAIRS[0]) is False
    learned = trained is None or trained.value >= LEARNED
    gap = trained is not None and held_out is not None and held_out.high < trained.value
    return [
        (Sentence("Training did harm: try a learning rate three times lower, and look at the rows."), harmed),
        (Sentence("Rows that it was not trained on became less likely: fewer --epochs, or a lower rate."), narrower),
        (Sentence("It forgot ordinary language: lower the learning rate, and add ordinary questions."), forgot_much),
        (Sentence("Go on: it does not know what it was trained on yet. Raise --epochs."), not learned and best_is_last),
        (Sentence("It does not learn what it is trained on: try a higher rank or learning rate."), not learned),
        (Sentence("Write more phrasings: it knows its questions by their wording."), gap),
        (Sentence("Teach it to decline: add questions about other names, and answer that you do not know."), invents),
        (Sentence("Retrieval is enough: the base with your passages beside does as well."), _as_good(facts, PAIRS[2])),
        (Sentence("Use both: passages beside the question help the tuned model."), both_help),
        (Sentence("Add validation rows or questions: these are too few to tell."), helped is None),
        (Sentence("It helped, and no weakness was found: use it as it is."), True),
    ]  # fmt: skip


def _as_good(facts: Measure | None, pair: tuple[str, str]) -> bool:
    """Return whether the second of a pair is no worse, and knows something."""
    if facts is None or pair not in facts.differences or facts.differences[pair].count < FEWEST:
        return False
    return facts.better(pair) is not True and facts.values[pair[1]].value >= LEARNED
