"""Rows that are ready to be encoded, in the files of a directory. Knows nothing of where they came from."""

from __future__ import annotations

import itertools
import json
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..errors import DataError
from ..files.storage import replacing_all
from .report import DataReport
from .sources import FACTS_FILE, PAIRS, REPORT_FILE, TRAIN_FILE, VAL_FILE

_BLOCK = 1 << 23


class Rows(Sequence[dict[str, Any]]):
    """The rows of a JSONL file, decoded when they are looked at: a million of them take 8 MB.

    Args:
        path: a file that `prepare` or `PreparedData.save` wrote. It may be replaced or deleted meanwhile.

    Raises:
        DataError: it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():  # opening a named pipe would block for ever
            raise DataError(f"{path}: cannot be read: not a regular file")
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        weakref.finalize(self, os.close, self._file)
        self._starts = _line_starts(self.blocks())

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        try:
            return dict(json.loads(self._between(place, place + 1)))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{self.path}: cannot be read at line {place + 1}: {error}") from None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def lines(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """Return rows as lines of the file, with their ends."""
        stop = len(self) if stop is None else min(stop, len(self))
        content = self._between(start, stop)
        bounds = (self._starts[start : stop + 1] - self._starts[start]).tolist()
        return [content[a:b] for a, b in itertools.pairwise(bounds)]

    def blocks(self) -> Iterator[bytes]:
        """Yield the whole file, a few megabytes at a time."""
        place = 0
        while block := os.pread(self._file, _BLOCK, place):
            yield block
            place += len(block)

    def _between(self, start: int, stop: int) -> bytes:
        """Return the bytes of some rows; read, not memory-mapped, because a mapping would count as our memory."""
        first, last = int(self._starts[start]), int(self._starts[stop])
        found = b""
        while len(found) < last - first and (
            more := os.pread(self._file, last - first - len(found), first + len(found))
        ):
            found += more
        return found


def _line_starts(blocks: Iterable[bytes]) -> np.ndarray:
    """Return where each line begins, and where the last ends: int64, `(lines + 1,)`."""
    found, place = [np.zeros(1, np.int64)], 0
    for block in blocks:
        found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + place + 1)
        place += len(block)
    starts = np.concatenate(found)
    return starts if starts[-1] == place else np.append(starts, place)


class PreparedData:
    """Rows ready to be encoded, and what became of the sources they were made of.

    Args:
        directory: directory of `train_data.jsonl`, `val_data.jsonl`, `data_report.json` and perhaps `facts.jsonl`.
        files: source files of the rows; never written over.
        reused: whether they were prepared before, and not read again.

    Raises:
        DataError: a file is missing or damaged.

    Attributes:
        train: rows to train on.
        validation: rows to validate on.
        facts: rows of the fact sheets, which are asked and never trained.
        report: the result of reading the sources.
    """

    def __init__(self, directory: Path, files: Sequence[Path] = (), *, reused: bool = False) -> None:
        self.files, self.reused = tuple(files), reused
        self.train, self.validation = Rows(directory / TRAIN_FILE), Rows(directory / VAL_FILE)
        self.facts = tuple(Rows(directory / FACTS_FILE)) if (directory / FACTS_FILE).is_file() else ()
        self.report = DataReport.from_dict(_report(directory))

    @property
    def fingerprint(self) -> str:
        """Return SHA-256 over the contents of all rows in order, ignoring where they came from."""
        return self.report.fingerprint

    def save(self, directory: Path) -> None:
        """Write rows and report; they replace older ones together once all are complete.

        Raises:
            DataError: a file to be written is one of the sources.
        """
        sources = {path.resolve() for path in self.files}
        own_sheet = (directory / FACTS_FILE).resolve() in sources and len(self.report.fact_sheets) == 1
        facts = [FACTS_FILE] if self.facts and not own_sheet else []
        names = [TRAIN_FILE, VAL_FILE, REPORT_FILE, *facts]
        for name in names:
            if (directory / name).resolve() in sources:
                raise DataError(
                    f"{directory / name}: is a source, which is never written over. Choose another directory."
                )
        with replacing_all(directory, names) as paths:
            stale = not self.facts and not own_sheet and bool(_report(directory).get("fact_sheets"))
            for name, rows in ((TRAIN_FILE, self.train), (VAL_FILE, self.validation)):
                with paths[name].open("wb") as file:
                    file.writelines(rows.blocks())
            if facts:
                paths[FACTS_FILE].write_text(json_lines(self.facts), encoding="utf-8", newline="\n")
            self.report.write(paths[REPORT_FILE])
        if stale:  # left by an earlier preparation that had a fact sheet
            (directory / FACTS_FILE).unlink(missing_ok=True)


def no_data(directory: Path) -> PreparedData:
    """Write the files of prepared data without any row into a new directory, and open them."""
    directory.mkdir(parents=True)
    for name in (TRAIN_FILE, VAL_FILE):
        (directory / name).touch()
    DataReport().write(directory / REPORT_FILE)
    return PreparedData(directory)


def save_rendered(prepared: PreparedData, directory: Path, render: Callable[[dict[str, Any]], Iterable[str]]) -> int:
    """Write the rows in the form that mlx-lm's own trainer reads: `{"text": …}`, in `train.jsonl` and `valid.jsonl`.

    That trainer trains all of a text, so rows with an answer excluded from training are left out.

    Args:
        prepared: the rows.
        directory: destination.
        render: a row as the texts that a model learns it from, nearly always one.

    Returns:
        How many rows were left out.
    """
    left_out = 0
    sides = dict(zip(PAIRS[1], (prepared.train, prepared.validation), strict=True))
    with replacing_all(directory, list(sides)) as paths:
        for name, rows in sides.items():
            with paths[name].open("w", encoding="utf-8", newline="\n") as file:
                for row in rows:
                    if any(message.get("train") is False for message in row.get("messages", ())):
                        left_out += 1
                    else:
                        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in render(row))
    return left_out


def json_lines(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as the text of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _report(directory: Path) -> dict[str, Any]:
    """Return the report in a directory; empty if none can be read."""
    try:
        return dict(json.loads((directory / REPORT_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
