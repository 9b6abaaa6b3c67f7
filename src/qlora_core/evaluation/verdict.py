"""Judge an evaluation: one verdict in words, what else was found, and one sentence of advice.

Reads what `verdict.json` holds; asks no model. The rules are told in docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RunError
from ..files.storage import remembered_sha256
from ..models.adapter_files import ADAPTER_FILE
from ..runs import schema
from ..runs.run import Run
from ..translations import Sentence
from .advice import advice_on
from .contest import CONTENDERS, NAMES, PAIRS, Measure, deciding, measures_of
from .findings import difference_words, findings_of, missing_from, value_words
from .ledger import LedgerEntry, ledger
from .questions import as_evaluated, recall


@dataclass(frozen=True)
class Verdict:
    """A verdict on whether training helped.

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
    findings: list[Sentence]
    missing: list[Sentence]
    advice: Sentence

    @property
    def contenders(self) -> list[str]:
        """Return those of `CONTENDERS` that something was measured of."""
        return [name for name in CONTENDERS if any(name in one.values for one in self.measures.values())]

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


def verdict_on(found: Mapping[str, Any], *, best_is_last: bool = False) -> Verdict:
    """Return what an evaluation means.

    Args:
        found: the contents of `verdict.json`.
        best_is_last: whether the validation loss was lowest at the end of training, so that more may help.
    """
    measures = measures_of(found)
    decided = deciding(measures, PAIRS[0])
    helped = decided.better(PAIRS[0]) if decided else None
    return Verdict(
        measures,
        helped,
        _sentence(decided, helped),
        findings_of(found, measures),
        missing_from(found, measures),
        advice_on(measures, helped, found, best_is_last),
    )


def judged_run(run: Run, found: Mapping[str, Any]) -> tuple[Verdict, list[LedgerEntry]]:
    """Return what a run's `verdict.json` means, and what became of each fact."""
    verdict = verdict_on(found, best_is_last=run.best_is_last)
    return verdict, ledger(run, list(as_evaluated(found["questions"])))


def made_of(run: Run) -> dict[str, Any]:
    """Return the state of a run that its answers depend on: adapters, rows and facts, by their hashes."""
    files = sorted((run.path / "data").glob("*.jsonl"))
    return {
        "adapters": run.adapters.name,
        "sha256": remembered_sha256(run.adapters / ADAPTER_FILE),
        "data": {path.name: remembered_sha256(path) for path in files},
    }


def outdated(run: Run, found: Mapping[str, Any]) -> Sentence | None:
    """Return why a `verdict.json` is not about the adapters, rows and facts that the run has now; None if it is."""
    kept = found["with"]
    if not kept.keys() >= {"sha256", "data"}:
        return Sentence("This verdict is of an earlier version, which did not note what it judged.")
    try:
        now = made_of(run)
    except (OSError, RunError):
        return Sentence("This verdict is about adapters that the run does not have any more.")
    if (kept["adapters"], kept["sha256"]) != (now["adapters"], now["sha256"]):
        return Sentence("This verdict is about other adapters than the run has now.")
    changed = sorted(name for name in {*kept["data"], *now["data"]} if kept["data"].get(name) != now["data"].get(name))
    if changed:
        return Sentence("Since this verdict the run's data changed: {files}.", files=", ".join(changed))
    return None


def is_whole(found: Mapping[str, Any]) -> bool:
    """Return whether a `verdict.json` has every part, rather than being interrupted."""
    return found.keys() >= schema.Verdict.__annotations__.keys() - {"questions_so_far"}


def told_whole(run: Run, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation as JSON tells it.

    Args:
        run: whose.
        found: the contents of its `verdict.json`.

    Returns:
        `adapters`, `recall` as in `evaluation.json`, `judged` (verdict, findings, advice, measures with intervals),
        `ledger` (what became of each fact), and what was found.
    """
    verdict, entries = judged_run(run, found)
    return {
        "adapters": found["with"]["adapters"],
        "recall": recall(as_evaluated(found["questions"])),
        "judged": verdict.as_dict(),
        "ledger": [entry.as_dict() for entry in entries],
        **found,
    }


def _sentence(decided: Measure | None, helped: bool | None) -> Sentence:
    if decided is None:
        return Sentence("There are too few questions and validation rows to tell whether training helped.")
    name = NAMES[decided.name]
    values = {
        "measure": Sentence(name),
        "tuned": value_words(decided, decided.values["tuned"].value),
        "base": value_words(decided, decided.values["base"].value),
        "difference": difference_words(decided, PAIRS[0]),
    }
    if helped is None:
        return Sentence(
            "No difference between tuned model and base was seen: {measure} {tuned} and {base} ({difference}).",
            **values,
        )
    if helped:
        return Sentence(
            "The tuned model is better than the base: {measure} {tuned} instead of {base} ({difference}).", **values
        )
    return Sentence(
        "The tuned model is worse than the base: {measure} {tuned} instead of {base} ({difference}).", **values
    )
