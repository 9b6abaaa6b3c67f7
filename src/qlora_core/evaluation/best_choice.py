"""Tell whether a run's best validation is better than its others, or only luck with the validation rows.

Each validation has a loss a row, so that two are compared row by row. Knows files of runs; computes no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..runs.row_losses import RowLosses
from ..runs.run import Run
from ..translations import Sentence, from_record
from .statistics import FEWEST, Estimate, mean_difference, weighted_mean

COMPARED = 20  # validations at most, those with the lowest losses, and the last
NAMED = 5  # steps that are named one by one


@dataclass(frozen=True)
class BestChoice:
    """The best validation of a run, and which others are no worse as far as the validation rows can tell.

    Attributes:
        step: steps done then.
        loss: the loss a token, over other rows of the same kind.
        alike: steps of validations whose difference from it is not clear, in order.
        others: how many validations it was compared with.
        gained: by how much the loss fell since before the first step; None where that was not validated.
        stretch: whether no validation between the first and the last of `alike` and the best is clearly worse.
    """

    step: int
    loss: Estimate
    alike: Sequence[int]
    others: int
    gained: Estimate | None
    stretch: bool

    @property
    def is_noise(self) -> bool:
        """Return whether another validation could as well be the best."""
        return bool(self.alike)

    @property
    def sentence(self) -> Sentence:
        """Return the choice in words."""
        best = Sentence("best at step {step} ({loss})", step=self.step, loss=round(self.loss.value, 4))
        rows = self.loss.count
        if not self.others:
            return best
        if not self.alike:
            return Sentence("{best}; with {rows} validation rows, better than the others", best=best, rows=rows)
        if rows < FEWEST:
            return Sentence(
                "{best}; {rows} validation rows cannot tell one step from another: {wanted} are wanted at least",
                best=best, rows=rows, wanted=FEWEST,
            )  # fmt: skip
        if self.stretch and len(self.alike) > 1:
            ends = sorted((*self.alike, self.step))
            return Sentence(
                "{best}; steps {first} to {last} cannot be told apart with {rows} validation rows",
                best=best, first=ends[0], last=ends[-1], rows=rows,
            )  # fmt: skip
        named, more = ", ".join(f"{step}" for step in self.alike[:NAMED]), len(self.alike) - NAMED
        return Sentence(
            "{best}; it cannot be told from step {steps} with {rows} validation rows",
            best=best, steps=Sentence("{steps} and {more} more", steps=named, more=more) if more > 0 else named,
            rows=rows,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return {
            "step": self.step,
            "loss": self.loss.as_dict(),
            "alike": list(self.alike),
            "others": self.others,
            "gained": self.gained.as_dict() if self.gained else None,
            "sentence": str(self.sentence),
            "said": self.sentence.as_record(),
        }


def best_choice(run: Run) -> BestChoice | None:
    """Return how sure the choice of a run's best adapters is; None where the losses of its rows were not kept."""
    return choose(run.row_losses(), run.status().get("best_step", 0))


def choose(validations: Sequence[RowLosses], best_step: int) -> BestChoice | None:
    """Return which of a run's validations cannot be told from its best one; None if the losses of that are missing.

    The lowest of many losses is a little too low, so that a clear difference from it is not quite as sure as its
    interval says; one that is not clear is so all the more.

    Args:
        validations: of the same rows, by step; that before the first step is no choice.
        best_step: the step of the lowest loss.
    """
    made = [one for one in validations if one.step]
    best = next((one for one in made if one.step == best_step), None)
    if best is None:
        return None
    others = sorted((one for one in made if one is not best), key=lambda one: one.mean)
    compared = others[:COMPARED] + [one for one in others[COMPARED:] if one is made[-1]]
    alike = sorted(one.step for one in compared if not _difference(one, best).is_clear)
    ends = (min(alike[0], best_step), max(alike[-1], best_step)) if alike else (0, 0)
    between = [one.step for one in made if ends[0] <= one.step <= ends[1] and one is not best]
    before = next((one for one in validations if not one.step), None)
    return BestChoice(
        best_step,
        weighted_mean(best.losses, best.tokens),
        alike,
        len(others),
        _difference(before, best) if before else None,
        between == alike,
    )


def kept_sentence(evaluation: dict[str, Any] | None) -> Sentence | None:
    """Return the choice in words, as an `evaluation.json` has it; None where there was no choice, or none is kept."""
    best = (evaluation or {}).get("best") or {}
    return from_record(best.get("said")) if best.get("others") else None


def _difference(one: RowLosses, other: RowLosses) -> Estimate:
    """Return by how much the first's loss a token is higher, row by row."""
    return mean_difference(one.losses, other.losses, one.tokens)
