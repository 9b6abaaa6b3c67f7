"""Warnings before training about settings that are allowed but rarely intended. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import translations
from ..data.enough_rows import ENOUGH, SPREAD, WORTH_A_WORD, uncertainty
from ..translations import numeral, say
from .plan import TrainingPlan, TrainingTracker

MANY_PASSES = 20
HIGHEST_USUAL_RATE = 1e-2  # for adapters; full fine-tuning uses a tenth or less
LOWEST_USUAL_RATE = 1e-6
HIGHEST_USUAL_SCALE = 8.0


@dataclass(frozen=True)
class Advice:
    """A warning about one setting.

    Attributes:
        setting: its name in `config`.
        message: what is unusual about it, and what to do.
    """

    setting: str
    message: str


def advise(plan: TrainingPlan) -> list[Advice]:
    """Return everything in a plan that deserves a look."""
    return [*_about_steps(plan), *_about_rates(plan), *_about_validation(plan)]


def _about_steps(plan: TrainingPlan) -> Iterator[Advice]:
    train, rows, total = plan.config.train, plan.train_rows, plan.total_steps
    wanted = train.batch_size * train.grad_accumulation_steps
    if wanted > rows:
        text = say("A step wants {wanted} rows and there are {rows}: each epoch is one step.", wanted=wanted, rows=rows)
        yield Advice("batch_size", text)
    if train.warmup_steps >= total:
        text = say("Warm-up lasts {warmup} of {total} steps: the rate never comes to its peak.",
                   warmup=train.warmup_steps, total=total)  # fmt: skip
        yield Advice("warmup_steps", text)
    if train.max_steps and train.max_steps < train.steps_per_epoch(rows):
        text = say("Training ends before every row was seen once: an epoch has {steps} steps.",
                   steps=train.steps_per_epoch(rows))  # fmt: skip
        yield Advice("max_steps", text)
    elif not train.max_steps and train.epochs > MANY_PASSES:
        text = say("{epochs} passes over the same rows: a validation loss that rises again means learning by heart.",
                   epochs=train.epochs)  # fmt: skip
        yield Advice("epochs", text)


def _short(value: float) -> str:
    return numeral(f"{value:g}", translations.find_language())


def _about_rates(plan: TrainingPlan) -> Iterator[Advice]:
    rate, scale = plan.config.train.learning_rate, plan.config.lora.scale
    if rate > HIGHEST_USUAL_RATE:
        yield Advice("learning_rate", say("{rate} is high for adapters: the loss may not fall.", rate=_short(rate)))
    if rate < LOWEST_USUAL_RATE:
        yield Advice("learning_rate", say("{rate} is low: hardly anything will be learned.", rate=_short(rate)))
    if scale > HIGHEST_USUAL_SCALE:
        text = say("The update counts {scale} times (alpha over rank): usual are 1 to 2.", scale=_short(scale))
        yield Advice("alpha", text)


def _about_validation(plan: TrainingPlan) -> Iterator[Advice]:
    rows = len(plan.data.validation)
    if not rows:
        yield Advice("val_fraction", say("No row is kept for validation: no best adapters can be chosen."))
    elif rows < ENOUGH:
        yield Advice("val_fraction", _about_few_rows(plan, rows))
    if plan.config.pace.eval_every > plan.total_steps:
        text = say("There are only {total} steps: the loss is validated once, at the end.", total=plan.total_steps)
        yield Advice("eval_every", text)
    if plan.config.pace.save_every > plan.total_steps:
        text = say("There are only {total} steps: nothing is saved before the end.", total=plan.total_steps)
        yield Advice("save_every", text)


def _about_few_rows(plan: TrainingPlan, rows: int) -> str:
    """Return how much the validation loss may be off, as the rows of an earlier run differ or as rows usually do."""
    spread, name = _measured_spread(plan)
    percent = round(100 * uncertainty(rows, spread))
    if not name:
        return say("The validation loss is that of {rows} rows, and on others may be {percent}% off: it cannot tell "
                   "close steps apart.", rows=rows, percent=percent)  # fmt: skip
    return say("The validation loss is that of {rows} rows, and on others may be {percent}% off, as those of {run} "
               "differ: it cannot tell close steps apart.", rows=rows, run=name, percent=percent)  # fmt: skip


def _measured_spread(plan: TrainingPlan) -> tuple[float, str]:
    """Return how much the losses of rows differed in the newest run that kept some, and its name; else the usual."""
    for run in TrainingTracker(plan.run.path.parent).runs():
        validations = [one for one in run.row_losses() if one.step and len(one.tokens) >= WORTH_A_WORD]
        if validations:
            return min(validations, key=lambda one: one.mean).spread, run.name
    return SPREAD, ""
