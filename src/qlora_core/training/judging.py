"""Compare a model that was made of a tuned one with that one, on rows of the run, and say how sure that is.

Knows models as functions from ids to logits, and rows; nothing of how the other model was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..activity import doing
from ..engine.device import mx, nn
from ..evaluation.statistics import mean_difference
from ..runs.run import Run
from ..tokens.dataset import make_datasets
from ..tokens.rows import TokenRow
from ..tokens.tokenizer import ChatTokenizer
from .row_losses import answered_batches, chosen

JUDGED_SHARE = 5  # one training row in so many is judged, the others calibrate
JUDGED_ROWS = 64  # at most, of training and of validation rows each
JUDGED_BYTES = 1_000_000_000  # at most, for the tuned model's log-probabilities, which lie in a file
CALIBRATION_TOKENS = (
    16_384  # about, if there are so many; with more, gathering takes longer and rounding hardly gets better
)
SHOWN = "training", "validation"
MOST_LOST = 0.01
"""Nats a token: a model whose mean loss over all judged rows' trained tokens is no higher counts as the tuned one.

How far that difference depends on the choice of rows, its interval says: where the upper end is above this, other rows
of the same kind might have found more, and a verdict says so. The mean decides all the same: over few rows an interval
is wide, however little a form really loses.
"""
NO_ROWS = "the run has no rows to compare them on"


Answers = Iterator[tuple[np.ndarray, mx.array, mx.array]]
"""Places among all trained tokens, the tokens there `(T,)`, and the log-probabilities `(T, V)`, again and again."""


@dataclass(frozen=True)
class DividedRows:
    """The rows of a run, by what they are used for.

    Attributes:
        judged: rows that models are compared on, none of them among the next.
        trained: bool, `(judged rows,)`: whether the row was trained on; the others are validation rows.
        calibrating: training rows whose inputs calibrate the rounding.
    """

    judged: list[TokenRow]
    trained: np.ndarray
    calibrating: list[TokenRow]


def divide_rows(run: Run, tokenizer: ChatTokenizer, vocabulary: int) -> DividedRows:
    """Divide a run's rows into those that judge a model and those that calibrate its rounding.

    Every fifth training row judges, and validation rows do; both are spread evenly, at most `JUDGED_ROWS` of each, and
    fewer where `JUDGED_BYTES` would not hold their log-probabilities. Of the other training rows, but for any that is
    equal to a judged one, as many calibrate as have about `CALIBRATION_TOKENS` tokens together.

    A run that was made of somebody's adapters may have no rows at all.
    """
    some = spread_evenly(run.train_rows(), 40 * JUDGED_ROWS), spread_evenly(run.validation_rows(), JUDGED_ROWS)
    datasets = make_datasets(*some, tokenizer, run.config().data.max_seq_length)
    train, validation = (list(dataset.rows) for dataset in datasets)
    most = JUDGED_BYTES // (2 * vocabulary)  # trained tokens, in float16
    of_training = _within(spread_evenly(train[::JUDGED_SHARE], JUDGED_ROWS), most // 2 if validation else most)
    of_validation = _within(validation, most - sum(row.target_tokens for row in of_training))
    judged = [*of_training, *of_validation]
    known = {row.ids.tobytes() for row in judged}
    others = [row for row in train if row.ids.tobytes() not in known]
    calibrating = with_tokens(others, CALIBRATION_TOKENS)
    trained = np.arange(len(judged)) < len(of_training)
    return DividedRows(judged, trained, calibrating)


def spread_evenly(rows: Any, most: int) -> list[Any]:
    """Return at most so many rows, spread evenly."""
    count = len(rows)
    return [rows[int(place)] for place in np.linspace(0, count - 1, min(most, count)).astype(int)] if count else []


def with_tokens(rows: Sequence[TokenRow], tokens: int) -> list[TokenRow]:
    """Return rows, spread evenly, that have about so many tokens together: one at least, all if they have fewer."""
    return spread_evenly(rows, max(1, round(tokens * len(rows) / max(1, sum(map(len, rows))))))


def _within(rows: Sequence[TokenRow], most: int) -> list[TokenRow]:
    """Return rows, spread evenly, with at most so many trained tokens together; but one at least."""
    count = len(rows)
    while count > 1 and sum(row.target_tokens for row in spread_evenly(rows, count)) > most:
        count -= 1
    return spread_evenly(rows, count)


class Judge:
    """Keeps what the tuned model says to some rows, and compares other models with it.

    Args:
        rows: at least one.
        trained: bool, `(rows,)`: which of them were trained on; the others are validation rows.
        file: where the tuned model's log-probabilities are kept, 2 bytes for each trained token and word of the
            vocabulary.
        told: report how far a comparison is; not where it is a small part of something that is reported.
    """

    def __init__(self, rows: Sequence[TokenRow], trained: np.ndarray, file: Path, *, told: bool = True) -> None:
        self.rows, self.trained, self._file, self._told = rows, trained, file, told
        self.lengths = np.array([row.target_tokens for row in rows])
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._kept: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        """Return the number of trained tokens in all rows."""
        return int(self.lengths.sum())

    def hear_tuned(self, model: nn.Module) -> None:
        """Keep what the tuned model says."""
        self._losses, self._choices = np.zeros(self.tokens), np.zeros(self.tokens, np.int64)
        for places, target, logs in self._answers(model):
            if self._kept is None:
                self._kept = np.memmap(self._file, np.float16, "w+", shape=(self.tokens, logs.shape[-1]))
            self._losses[places] = -chosen(logs, target)
            self._choices[places] = np.array(logs.argmax(-1))
            self._kept[places] = np.array(mx.maximum(logs, -65_000).astype(mx.float16))

    def tuned_means(self) -> dict[str, Any]:
        """Return `rows`, `tokens` and the tuned model's mean loss, `tuned_loss`, in nats a token."""
        return {"rows": len(self.rows), "tokens": self.tokens, "tuned_loss": float(self._losses.mean())}

    def compare(self, model: nn.Module) -> Comparison:
        """Return how another model's answers differ from the tuned one's."""
        return self._compare(self._answers(model))

    def compare_said(self, said: Sequence[np.ndarray]) -> Comparison:
        """Compare with what another program said: log-probabilities of each row's trained tokens, `(tokens, V)`.

        That program may have fewer or more tokens at the end of its vocabulary, which none of the rows has.
        """
        size = self._kept.shape[-1]

        def answers() -> Answers:
            for index, (row, logs) in enumerate(zip(self.rows, said, strict=True)):
                places = self._places(index)
                fitting = np.full((len(logs), size), -65_000, np.float32)
                fitting[:, : logs.shape[-1]] = logs[:, :size]
                yield places, mx.array(row.ids[row.trained]), mx.array(fitting)

        return self._compare(answers())

    def _compare(self, answers: Answers) -> Comparison:
        losses, same, divergence = np.zeros(self.tokens), np.zeros(self.tokens, bool), np.zeros(self.tokens)
        for places, target, logs in answers:
            losses[places] = -chosen(logs, target)
            same[places] = np.array(logs.argmax(-1)) == self._choices[places]
            tuned = mx.array(self._kept[places]).astype(mx.float32)
            tuned = tuned - mx.logsumexp(tuned, axis=-1, keepdims=True)  # rounding: they are probabilities again
            divergence[places] = np.array((mx.exp(tuned) * (tuned - logs)).sum(-1))
        return Comparison(*map(self._by_row, (self._losses, losses, divergence, same)), self.lengths, self.trained)

    def _answers(self, model: nn.Module) -> Answers:
        """Yield places among all trained tokens, the tokens there and the log-probabilities, `(T, V)`, float32."""
        done, telling = 0, doing("judging", len(self.rows)) if self._told else nullcontext(lambda _: None)
        with telling as tick:
            for indices, target, logs in answered_batches(model, self.rows):
                yield np.concatenate([self._places(i) for i in indices]), target, logs
                done += len(indices)
                tick(done)

    def _places(self, index: int) -> np.ndarray:
        """Return the places of a row's tokens among all trained tokens."""
        return np.arange(self._starts[index], self._starts[index + 1])

    def _by_row(self, values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values.astype(np.float64), self._starts[:-1])


@dataclass(frozen=True)
class Comparison:
    """The differences between another model and the tuned one on some rows, summed over each row's trained tokens.

    Attributes:
        tuned: losses of the tuned model, in nats, `(rows,)`.
        other: losses of the other model.
        divergence: Kullback-Leibler divergence of the other from the tuned, in nats.
        same: tokens for which both find the same one likeliest.
        lengths: trained tokens.
        trained: bool; which rows were trained on; the others are validation rows.
    """

    tuned: np.ndarray
    other: np.ndarray
    divergence: np.ndarray
    same: np.ndarray
    lengths: np.ndarray
    trained: np.ndarray

    @property
    def lost(self) -> float:
        """Return by how much the mean loss a token is higher than the tuned model's, in nats."""
        return float((self.other - self.tuned).sum() / self.lengths.sum())

    @property
    def kl(self) -> float:
        """Return the mean divergence a token, in nats."""
        return float(self.divergence.sum() / self.lengths.sum())

    def as_dict(self) -> dict[str, Any]:
        """Return means over all rows, and the same for the rows of each kind there are.

        Each has `rows`, `tokens`, `tuned_loss`, `fused_loss`, their difference `lost` with its `interval`, `kl`, and
        the share `same_choice`; losses and divergences are nats a token. `interval` is the pair of ends of the 95%
        interval by `evaluation.statistics.mean_difference`, paired: a row brings both of its losses. It tells how much
        the difference depends on which rows were judged, and does not cover other kinds of text than the run's. One row
        has none (None).
        """
        kinds = {name: np.flatnonzero(self.trained == flag) for name, flag in zip(SHOWN, (True, False), strict=True)}
        parts = {name: self._means(chosen) for name, chosen in kinds.items() if len(chosen)}
        return self._means(np.arange(len(self.lengths))) | parts

    def _means(self, chosen: np.ndarray) -> dict[str, Any]:
        lengths = self.lengths[chosen]
        tokens = lengths.sum()
        lost = mean_difference(self.other[chosen], self.tuned[chosen], lengths)
        return {
            "rows": len(chosen),
            "tokens": int(tokens),
            "tuned_loss": float(self.tuned[chosen].sum() / tokens),
            "fused_loss": float(self.other[chosen].sum() / tokens),
            "lost": lost.value,
            "interval": None if lost.low is None else [lost.low, lost.high],
            "kl": float(self.divergence[chosen].sum() / tokens),
            "same_choice": float(self.same[chosen].sum() / tokens),
        }
