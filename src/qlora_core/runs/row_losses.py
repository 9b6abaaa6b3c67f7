"""The loss of each validation row at each validation of a run: `row_losses.jsonl`, a line a validation.

Knows only the file. What may be concluded from the losses is for `evaluation.best_choice`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files.storage import write_text
from ..files.untrusted_json import TABLE_BYTES, read_text
from .schema import RowLosses as Line
from .schema import problem

DIGITS = 6  # after the point, of nats


@dataclass(frozen=True)
class RowLosses:
    """The losses of a run's validation rows, in their order.

    Attributes:
        losses: nats, summed over each row's trained tokens, float64 `(rows,)`.
        tokens: trained tokens of each row, `(rows,)`.
        step: steps done at that validation; 0: before the first one, or not about a validation of the training.
    """

    losses: np.ndarray
    tokens: np.ndarray
    step: int = 0

    @property
    def mean(self) -> float:
        """Return the loss a token."""
        return float(self.losses.sum() / self.tokens.sum())

    @property
    def spread(self) -> float:
        """Return the standard deviation of the rows' losses a token, over their mean."""
        each = self.losses / np.maximum(self.tokens, 1)
        return float(each.std(ddof=1) / each.mean()) if len(each) > 1 and each.mean() else 0.0


def as_line(step: int, losses: Sequence[float], tokens: Sequence[int]) -> str:
    """Return a validation as a line of the file."""
    return json.dumps({"step": step, "losses": [round(loss, DIGITS) for loss in losses], "tokens": list(tokens)})


def read_row_losses(path: Path) -> list[RowLosses]:
    """Return the validations in a file, by step; none where it is missing or cannot be read.

    A line that a crash has torn is passed over, and so is one about other rows than the last line.
    """
    found = {line["step"]: line for line in _lines(path)}
    tokens = list(found.values())[-1]["tokens"] if found else []
    return [
        RowLosses(np.array(line["losses"], np.float64), np.array(tokens), step)
        for step, line in sorted(found.items())
        if line["tokens"] == tokens
    ]


def forget_row_losses(path: Path, step: int) -> None:
    """Remove validations of steps after `step`, when a run resumes from an older checkpoint, and any torn line."""
    kept = "".join(as_line(line["step"], line["losses"], line["tokens"]) + "\n" for line in _lines(path)
                   if line["step"] <= step)  # fmt: skip
    if path.is_file() and path.read_bytes() != kept.encode():
        write_text(path, kept)


def _lines(path: Path) -> Iterator[Line]:
    try:
        lines = read_text(path, TABLE_BYTES, errors="replace").splitlines()
    except (OSError, ValueError):
        return
    for text in lines:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # torn by a crash
            continue
        if not problem(line, Line) and len(line["losses"]) == len(line["tokens"]) > 0 < sum(line["tokens"]):
            yield line
