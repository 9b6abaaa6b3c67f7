"""Units that are read in one go, and the parts of rows that come of them. Knows nothing of how a file is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from .columns import LONG
from .records import Record
from .report import DataReport
from .sources import TRAINING, VALIDATING, Source

SPLITS = ("", TRAINING, VALIDATING)  # test rows are dropped before this
# made once, since `json.dumps` makes one per call; tables hold dates and bytes, which JSON lacks
_ENCODE = json.JSONEncoder(ensure_ascii=False, default=lambda value: str(value)[:LONG]).encode


@dataclass(frozen=True)
class Unit:
    """A piece that is read in one go.

    Attributes:
        source: the file.
        piece: (start, stop, number of the first line).
        as_it_stands: rows that were prepared before, or that have a split of the user's own: nothing is joined; of the
            first, nothing is changed either.
        prepared: whether `qlora data` wrote it.
    """

    source: Source
    piece: tuple[int, int | None, int] = (0, None, 1)
    as_it_stands: bool = False
    prepared: bool = False


@dataclass
class Part:
    """Rows ready to be written, and what is known of them.

    Attributes:
        lines: lines of the prepared file, with their ends.
        digests: SHA-256 of each content, 32 bytes each, one after the other.
        bands: uint64, `(rows, duplicates.BANDS)`.
        groups: uint64, `(rows,)`: a hash of the document a row belongs to; 0: none.
        answers: bool, `(rows,)`: whether a prompt is answered, instead of text going on.
        splits: int8, `(rows,)`: the place in `SPLITS` of what a row says of its own split.
        prompts: uint64, `(rows,)`: a hash of what stands before the last answer; 0: nothing does.
        marks: the runs of words by which copies of the file are found (`copies.marks_of`).
        name: name of the file.
        kind: name that a folder's documents share; "" for a file of rows.
        report: counts and findings.
    """

    lines: list[bytes]
    digests: bytes
    bands: np.ndarray
    groups: np.ndarray
    answers: np.ndarray
    splits: np.ndarray
    prompts: np.ndarray
    marks: np.ndarray
    name: str
    kind: str
    report: DataReport


def encode_row(record: Record) -> tuple[bytes, bytes]:
    """Return the row's line in the prepared file, and the SHA-256 of its content."""
    content = _ENCODE(record.content).encode()
    rest = _ENCODE({"source": record.source, "metadata": record.metadata}).encode()
    return content[:-1] + b", " + rest[1:] + b"\n", hashlib.sha256(content).digest()


def prompt_hash(content: dict[str, Any]) -> int:
    """Return a hash of what is said before the last answer; 0 if there is nothing."""
    turns = content.get("messages", ())
    last = len(turns) - 1
    while last > 0 and turns[last]["role"] != "assistant":
        last -= 1
    if last < 1:
        return 0
    asked = "\0".join([turn.get("content") or "" for turn in turns[:last]])
    return int.from_bytes(hashlib.blake2b(asked.encode(), digest_size=8).digest(), "little") | 1


def hash_of(group: str) -> int:
    """Return the 64-bit hash of a group's name, never 0."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big") | 1
