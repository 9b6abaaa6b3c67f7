"""The two files of prepared rows, made of all parts: without duplicates, split and checked. Knows no file formats.

Rows are on disk as soon as they are read; about a hundred bytes for each stay in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..translations import Sentence
from .copies import OVERLAP, RUN, find_copies, overlap, runs_of
from .decisions import COPY, Decisions, choice
from .duplicates import PATTERN, alike, components, members, near_duplicates, shared_across
from .prepared import Rows
from .records import LISTED, said_in
from .report import DataReport
from .sources import TRAINING, VALIDATING
from .splits import split
from .units import SPLITS, Part

TRAIN, VALIDATION, UNDECIDED, NOT_HELD_OUT = 0, 1, 2, 3
"""Sides of the split; a row of the last one was labelled for training, and is held out only if nothing else can be."""

_SIDE_SAID = {TRAINING: NOT_HELD_OUT, VALIDATING: VALIDATION}
NEARLY = 0.8  # share of common pieces; `near_duplicates = "drop"` drops texts above it
LARGE, ENOUGH = 0.2, 20  # share of all rows, and rows: a larger source without validation rows is reported


@dataclass
class Table:
    """Columns about every row, in reading order.

    Attributes:
        digests: uint64, `(rows, 4)`: SHA-256 of each content.
        bands: uint64, `(rows, duplicates.BANDS)`.
        groups: uint64, `(rows,)`: a hash of the row's document; 0: none.
        answers: bool, `(rows,)`: whether a prompt is answered.
        sides: int8, `(rows,)`: TRAIN, VALIDATION or UNDECIDED.
        prompts: uint64, `(rows,)`: a hash of what is asked; 0: nothing.
        sources: int, `(rows,)`: the place of the row's file among `names`.
        names: names of the files.
        kinds: for each file, the name that many small documents share (folder and suffix); "" for a file of rows.
        marks: for each file, the runs of words by which copies are found (`copies.marks_of`).
    """

    digests: np.ndarray
    bands: np.ndarray
    groups: np.ndarray
    answers: np.ndarray
    sides: np.ndarray
    prompts: np.ndarray
    sources: np.ndarray
    names: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    marks: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def spool(
        cls, parts: Iterable[tuple[int, Part]], path: Path, report: DataReport, progress: Callable[[int], None] | None
    ) -> Table:
        """Write the lines of all parts, of which there is at least one, to a file, and return the table about them."""
        columns: list[tuple[np.ndarray, ...]] = []
        places: dict[str, int] = {}
        kinds: list[str] = []
        marks: list[list[np.ndarray]] = []
        rows = 0
        with path.open("wb") as file:
            for side, part in parts:
                file.writelines(part.lines)
                report.add(part.report)
                if part.name not in places:
                    places[part.name] = len(places)
                    kinds.append(part.kind)
                    marks.append([])
                source = places[part.name]
                marks[source].append(part.marks)
                digests = np.frombuffer(part.digests, np.uint64).reshape(-1, 4)
                said = np.array([_SIDE_SAID.get(split, side) for split in SPLITS], np.int8)
                sides, sources = said[part.splits], np.full(len(digests), source, np.int64)
                columns.append((digests, part.bands, part.groups, part.answers, sides, part.prompts, sources))
                rows += len(digests)
                if progress:
                    progress(rows)
        joined = (np.concatenate(column) for column in zip(*columns, strict=True))
        made = cls(*joined, list(places), kinds, [np.unique(np.concatenate(each)) for each in marks])
        report.own_split |= bool((made.sides == VALIDATION).any())
        made.sides[made.sides == NOT_HELD_OUT] = TRAIN if report.own_split else UNDECIDED
        return made

    def __len__(self) -> int:
        return len(self.digests)

    def first_of_equals(self) -> np.ndarray:
        """Return bool, `(rows,)`: True if no earlier row and no validation row has the same content."""
        order = np.lexsort((np.arange(len(self)), self.sides != VALIDATION, *self.digests.T))
        ordered = self.digests[order]
        first = np.ones(len(self), bool)
        first[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
        return first

    def select(self, chosen: np.ndarray) -> Table:
        """Return some of the rows; information about files stays."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return Table(**{n: v[chosen] if isinstance(v, np.ndarray) else v for n, v in values.items()})

    @property
    def places(self) -> np.ndarray:
        """Return float, `(rows,)`, from 0 to 1: the position of each row's hash, or of its document's."""
        return np.where(self.groups > 0, self.groups, self.digests[:, 0]) / 2.0**64

    def pools(self, least: float) -> tuple[np.ndarray, list[str]]:
        """Group files as their collector sees them: a folder's documents of fewer than `least` rows each count as one.

        Returns:
            int, `(rows,)`: the place of the row's pool among the names; and the names.
        """
        sizes = np.bincount(self.sources, minlength=len(self.names))
        small = [bool(kind) and size < least for kind, size in zip(self.kinds, sizes, strict=True)]
        pooled = [k if s else n for n, k, s in zip(self.names, self.kinds, small, strict=True)]
        names = list(dict.fromkeys(pooled))
        known = {name: place for place, name in enumerate(names)}
        return np.array([known[name] for name in pooled], np.int64)[self.sources], names


def assemble(spool: Path, table: Table, config: DataConfig, report: DataReport, train: Path, validation: Path) -> None:
    """Leave out duplicates, decide each row's side, write the two files and report the counts."""
    kept = table.first_of_equals()
    report.duplicates = int((~kept).sum())
    stored = Rows(spool)
    _several_answers(stored, table, kept, config, report)
    near, patterned = near_duplicates(table.bands[kept])
    report.patterned = int(patterned.sum())
    table.bands[np.flatnonzero(kept)[patterned]] = 0
    alone = near == np.arange(len(near))
    report.near_duplicates = int((~alone).sum())
    if config.near_duplicates == "drop" and not alone.all():
        dropped = _nearly_the_same(stored, np.flatnonzero(kept), near)
        kept[dropped] = False
        report.near_duplicates_dropped = len(dropped)
    copies = [] if config.near_duplicates == "ignore" else find_copies(table.marks)
    _drop_copies(stored, table, kept, copies, config, report)
    held_out = np.zeros(len(table), bool)
    held_out[kept] = _sides(table.select(kept), config)
    known = _known_from_copies(stored, table, kept, held_out, copies)
    report.copies_left_out = len(known)
    kept[known] = False
    rows, side = table.select(kept), held_out[kept]
    _count(rows, side, report)
    _look_at_sources(rows, side, config, report)
    where = np.full(len(table), -1, np.int8)
    where[kept] = side
    with spool.open("rb") as lines, train.open("wb") as first, validation.open("wb") as second:
        outputs = (first, second)
        for line, place in zip(lines, where.tolist(), strict=True):
            if place >= 0:
                outputs[place].write(line)


def _count(rows: Table, held_out: np.ndarray, report: DataReport) -> None:
    """Report how many rows there are on each side, and how many stand on both."""
    report.train, report.validation = int((~held_out).sum()), int(held_out.sum())
    answers = int(rows.answers.sum())
    report.shapes = +Counter(messages=answers, text=len(rows) - answers)  # without shapes that have no rows
    report.leakage = {
        "equal": shared_across(rows.digests[:, :1], held_out),
        "nearly_equal": shared_across(rows.bands, held_out),
        "same_document": shared_across(rows.groups[:, None], held_out),
    }
    report.questions_on_both_sides = shared_across(rows.prompts[:, None], held_out)
    report.fingerprint = hashlib.sha256(
        rows.digests[~held_out].tobytes() + b"--" + rows.digests[held_out].tobytes()
    ).hexdigest()


# Questions with several answers ---------------------------------------------------------------------------------


def _several_answers(stored: Rows, table: Table, kept: np.ndarray, config: DataConfig, report: DataReport) -> None:
    """Name the questions with several answers, and treat them as the settings say."""
    places = np.flatnonzero(kept & (table.prompts > 0))
    values, counts = np.unique(table.prompts[places], return_counts=True)
    several = places[np.isin(table.prompts[places], values[counts > 1])]
    if not len(several):
        return
    _, begins, inverse = np.unique(table.prompts[several], return_index=True, return_inverse=True)
    several = several[np.lexsort((several, begins[inverse]))]  # grouped by question, in order of first appearance
    first = np.concatenate([[True], table.prompts[several][1:] != table.prompts[several][:-1]])
    report.several_answers, report.questions_with_several = len(several), int(first.sum())
    for place in several[:LISTED].tolist():
        row = stored[place]
        asked = next((m.get("content") for m in reversed(row["messages"]) if m["role"] == "user"), "") or ""
        report.conflicting.add(row["source"], (row["messages"][-1].get("content") or "a call")[:160], asked)
    report.conflicting.count = len(several)
    if config.several_answers != "keep":
        kept[several[~first] if config.several_answers == "first" else several] = False
        report.several_answers_dropped = int((~first).sum()) if config.several_answers == "first" else len(several)


# Rows and sources that say the same -----------------------------------------------------------------------------


def _nearly_the_same(rows: Rows, kept: np.ndarray, near: np.ndarray) -> list[int]:
    """Return rows of a component that really resemble its first one; shared bands alone only make it probable."""
    dropped = []
    for place in np.flatnonzero(near != np.arange(len(near))):
        first, row = rows[int(kept[near[place]])], rows[int(kept[place])]
        if alike(said_in(first), said_in(row)) >= NEARLY:
            dropped.append(int(kept[place]))
    return dropped


def _drop_copies(
    stored: Rows,
    table: Table,
    kept: np.ndarray,
    copies: list[tuple[int, int, float]],
    config: DataConfig,
    report: DataReport,
) -> None:
    """Ask which of two copies to keep, and leave out what the user chose or what `near_duplicates` says."""
    decisions = Decisions.read(config.decide)
    for one, other, share in copies:
        names = (table.names[one], table.names[other])
        answers = [decisions.find(COPY, name) for name in names]
        if any(answers):
            continue
        dropped = config.near_duplicates == "drop"
        done = (
            "what it repeats was left out"
            if dropped
            else "both are trained, but no row that says what a validation row of the other says"
        )
        keep = [choice(COPY, names[1], "keep")]
        drop = [choice(COPY, names[1], "drop"), choice(COPY, names[0], "drop"), ("near_duplicates", "drop")]
        report.doubts.add(
            names[1],
            f"holds the text of {names[0]}: of every 100 runs of {RUN} words in the shorter one, the other has "
            f"{round(100 * share)}; {done}",
            choices=keep if dropped else drop + keep,
        )
    named = [place for place, name in enumerate(table.names) if decisions.find(COPY, name) == "drop"]
    gone = kept & np.isin(table.sources, named)
    if config.near_duplicates == "drop":
        for one, other in {(one, other) for one, other, _ in copies if not {one, other} & set(named)}:
            if decisions.find(COPY, table.names[other]) != "keep":
                known = _runs_in(stored, np.flatnonzero(kept & ~gone & (table.sources == one)))
                gone[_covered(stored, np.flatnonzero(kept & (table.sources == other)), known, 0.5)] = True
    report.copies_dropped = int(gone.sum())
    kept[gone] = False


def _known_from_copies(
    stored: Rows, table: Table, kept: np.ndarray, held_out: np.ndarray, copies: list[tuple[int, int, float]]
) -> list[int]:
    """Return training rows that say what a validation row of a copy of their source says and none of its others do."""
    beside: dict[int, set[int]] = {}
    for one, other, _ in copies:
        beside.setdefault(one, set()).add(other)
        beside.setdefault(other, set()).add(one)
    runs = {}
    for source in beside:
        here = kept & (table.sources == source)
        runs[source] = np.setdiff1d(
            _runs_in(stored, np.flatnonzero(here & held_out)), _runs_in(stored, np.flatnonzero(here & ~held_out))
        )
    known = []
    for source, others in sorted(beside.items()):
        trained = kept & ~held_out & (table.sources == source) & (table.sides == UNDECIDED)
        held = np.unique(np.concatenate([runs[other] for other in sorted(others)]))
        known += _covered(stored, np.flatnonzero(trained), held, OVERLAP, RUN)
    return known


def _runs_in(stored: Rows, places: np.ndarray) -> np.ndarray:
    """Return the sorted runs of words of some rows."""
    found = [runs_of(said_in(stored[place])) for place in places.tolist()]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)


def _covered(stored: Rows, places: np.ndarray, known: np.ndarray, share: float, enough: float = np.inf) -> list[int]:
    """Return the rows of which at least a given share of the runs are known, or so many that it is no coincidence."""
    if not len(known):
        return []
    found = ((place, runs_of(said_in(stored[place]))) for place in places.tolist())
    return [p for p, runs in found if len(runs) and overlap(runs, known) >= min(share * len(runs), enough)]


# Sides ----------------------------------------------------------------------------------------------------------


def _sides(rows: Table, config: DataConfig) -> np.ndarray:
    """Return bool, `(rows,)`: True for validation. Near duplicates and rows of a document or question stay together."""
    held_out = rows.sides == VALIDATION
    undecided = rows.sides == UNDECIDED
    if not undecided.any():
        return held_out
    together = components(np.column_stack([rows.bands, rows.groups, _few(rows.prompts)]))
    places = rows.places
    if undecided.all() and not together.any():  # a lone document gives some of its passages
        together, places = components(rows.bands), rows.digests[:, 0] / 2.0**64
    held_out |= undecided & members(together, together[held_out])  # whatever validation holds must not be trained
    free = undecided & ~members(together, together[~undecided])
    if config.val_from == "replies":
        free &= ~members(together, together[~rows.answers])
    free = np.flatnonzero(free)
    first = np.zeros(len(rows), np.int64)  # first free row of each group
    first[together[free[::-1]]] = np.arange(len(free))[::-1]
    sources, _ = rows.pools(1 / config.val_fraction if config.val_fraction else np.inf)
    held_out[free] = split(
        places[free],
        first[together[free]],
        sources[free],
        val_fraction=config.val_fraction,
        val_rows=config.val_rows,
    )
    return held_out


def _few(prompts: np.ndarray) -> np.ndarray:
    """Return the question hashes, 0 for one that so many rows ask that it is an instruction ("Translate:")."""
    _, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    return np.where(counts[inverse] > max(PATTERN, len(prompts) / 100), 0, prompts).astype(np.uint64)


def _look_at_sources(rows: Table, held_out: np.ndarray, config: DataConfig, report: DataReport) -> None:
    """Count the rows of each source on both sides, and name large sources without validation rows."""
    pools, names = rows.pools(max(len(rows) * LARGE, 1))
    counts = np.bincount(pools, minlength=len(names))
    validated = np.bincount(pools[held_out], minlength=len(names))
    order = np.argsort(-counts, kind="stable")[:LISTED]
    order = order[counts[order] > 0]
    report.by_source = {names[place]: [int(counts[place]), int(validated[place])] for place in order.tolist()}
    if not report.validation or report.own_split or len(names) < 2:
        return
    for place in np.flatnonzero((counts > max(LARGE * len(rows), ENOUGH)) & (validated == 0)).tolist():
        report.unvalidated[names[place]] = _remedy(rows, pools == place, int(counts[place]), config)


def _remedy(rows: Table, here: np.ndarray, count: int, config: DataConfig) -> str:
    """Return how to give a source validation rows."""
    if config.val_from == "replies" and not rows.answers[here].any():
        return "--val-from all"
    groups = np.where(rows.groups[here] > 0, rows.groups[here], rows.digests[here, 0])
    sizes = np.unique(groups, return_counts=True)[1]
    if config.val_rows:
        return Sentence("--val-rows 0 --val-fraction 0.05 takes a row of every large source at least")
    alone = "--no-keep-documents" if (sizes <= count / 2).sum() == 0 else ""
    larger = f"--val-fraction {min(0.5, np.ceil(100 / count + 1) / 100):g}" if count * config.val_fraction < 1 else ""
    return f"{alone} {larger}".strip()
