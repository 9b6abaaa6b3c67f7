"""Parts to the two files of prepared rows: duplicates left out, split, checked. Knows nothing of sources.

The rows are on disk from the moment they are read; what stays in memory is a hundred bytes for each.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import DataConfig
from .duplicates import alike, components, members, near_duplicates, shared_across
from .prepared import Rows
from .reading import SPLITS, Part
from .records import said_in
from .report import DataReport
from .sources import TRAINING, VALIDATING
from .splits import split

TRAIN, VALIDATION, UNDECIDED, NOT_HELD_OUT = 0, 1, 2, 3
"""Sides; the last one is that of a row that says it is for training: it may be held out where nothing else is."""

_SIDE_SAID = {TRAINING: NOT_HELD_OUT, VALIDATING: VALIDATION}
NEARLY = 0.8  # share of two texts' pieces; `near_duplicates = "drop"` takes what is more alike for one


@dataclass
class Table:
    """What is known of each row, in the order of reading.

    Attributes:
        digests: uint64, `(rows, 4)`: SHA-256 of each content.
        bands: uint64, `(rows, duplicates.BANDS)`.
        groups: uint64, `(rows,)`: a hash of the row's document; 0: none.
        answers: bool, `(rows,)`: whether a prompt is answered.
        sides: int8, `(rows,)`: TRAIN, VALIDATION or UNDECIDED.
    """

    digests: np.ndarray
    bands: np.ndarray
    groups: np.ndarray
    answers: np.ndarray
    sides: np.ndarray

    @classmethod
    def spool(
        cls, parts: Iterable[tuple[int, Part]], path: Path, report: DataReport, progress: Callable[[int], None] | None
    ) -> Table:
        """Write the lines of all parts, of which there is at least one, to a file, and keep what is known of them."""
        columns: list[tuple[np.ndarray, ...]] = []
        rows = 0
        with path.open("wb") as file:
            for side, part in parts:
                file.writelines(part.lines)
                report.add(part.report)
                digests = np.frombuffer(part.digests, np.uint64).reshape(-1, 4)
                said = np.array([_SIDE_SAID.get(split, side) for split in SPLITS], np.int8)
                sides = said[part.splits]
                columns.append((digests, part.bands, part.groups, part.answers, sides))
                rows += len(digests)
                if progress:
                    progress(rows)
        made = cls(*(np.concatenate(column) for column in zip(*columns, strict=True)))
        report.own_split |= bool((made.sides == VALIDATION).any())
        made.sides[made.sides == NOT_HELD_OUT] = TRAIN if report.own_split else UNDECIDED
        return made

    def __len__(self) -> int:
        return len(self.digests)

    def first_of_equals(self) -> np.ndarray:
        """bool, `(rows,)`: True for a row whose content stands nowhere before it, nor among those to validate on."""
        order = np.lexsort((np.arange(len(self)), self.sides != VALIDATION, *self.digests.T))
        ordered = self.digests[order]
        first = np.ones(len(self), bool)
        first[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
        return first

    def select(self, chosen: np.ndarray) -> Table:
        """Some of the rows."""
        return Table(*(column[chosen] for column in vars(self).values()))

    @property
    def places(self) -> np.ndarray:
        """float, `(rows,)`, from 0 to 1: where a row's hash falls, or its document's."""
        return np.where(self.groups > 0, self.groups, self.digests[:, 0]) / 2.0**64


def assemble(spool: Path, table: Table, config: DataConfig, report: DataReport, train: Path, validation: Path) -> None:
    """Leave out duplicates, decide each row's side and write the two files; the counts go to the report."""
    kept = table.first_of_equals()
    report.duplicates = int((~kept).sum())
    near, patterned = near_duplicates(table.bands[kept])
    report.patterned = int(patterned.sum())
    table.bands[np.flatnonzero(kept)[patterned]] = 0
    alone = near == np.arange(len(near))
    report.near_duplicates = int((~alone).sum())
    if config.near_duplicates == "drop" and not alone.all():
        dropped = _nearly_the_same(Rows(spool), np.flatnonzero(kept), near)
        kept[dropped] = False
        report.near_duplicates_dropped = len(dropped)
    rows = table.select(kept)
    held_out = _sides(rows, config)
    report.train, report.validation = int((~held_out).sum()), int(held_out.sum())
    answers = int(rows.answers.sum())
    report.shapes = +Counter(messages=answers, text=len(rows) - answers)  # without those of which there are none
    report.leakage = {
        "equal": shared_across(rows.digests[:, :1], held_out),
        "nearly_equal": shared_across(rows.bands, held_out),
        "same_document": shared_across(rows.groups[:, None], held_out),
    }
    report.fingerprint = hashlib.sha256(
        rows.digests[~held_out].tobytes() + b"--" + rows.digests[held_out].tobytes()
    ).hexdigest()
    where = np.full(len(table), -1, np.int8)
    where[kept] = held_out
    with spool.open("rb") as lines, train.open("wb") as first, validation.open("wb") as second:
        outputs = (first, second)
        for line, side in zip(lines, where.tolist(), strict=True):
            if side >= 0:
                outputs[side].write(line)


def _nearly_the_same(rows: Rows, kept: np.ndarray, near: np.ndarray) -> list[int]:
    """Rows of a component that really are like its first one; bands alone are only probable."""
    dropped = []
    for place in np.flatnonzero(near != np.arange(len(near))):
        first, row = rows[int(kept[near[place]])], rows[int(kept[place])]
        if alike(said_in(first), said_in(row)) >= NEARLY:
            dropped.append(int(kept[place]))
    return dropped


def _sides(rows: Table, config: DataConfig) -> np.ndarray:
    """bool, `(rows,)`: True for validation. Near duplicates and rows of one document stay together."""
    held_out = rows.sides == VALIDATION
    undecided = rows.sides == UNDECIDED
    if not undecided.any():
        return held_out
    together = components(np.column_stack([rows.bands, rows.groups]))
    places = rows.places
    if undecided.all() and not together.any():  # a document that is all there is gives some of its passages
        together, places = components(rows.bands), rows.digests[:, 0] / 2.0**64
    held_out |= undecided & members(together, together[held_out])  # what validation knows is not to be trained
    free = np.flatnonzero(undecided & ~members(together, together[~undecided]))
    first = np.zeros(len(rows), np.int64)  # among the free rows, where a group begins
    first[together[free[::-1]]] = np.arange(len(free))[::-1]
    held_out[free] = split(
        places[free],
        first[together[free]],
        (rows.answers & (rows.groups == 0))[free],
        val_fraction=config.val_fraction,
        val_rows=config.val_rows,
    )
    return held_out
