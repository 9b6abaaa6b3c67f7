"""Files of rows to rows: JSON, JSON lines, CSV, TSV and Parquet, one row at a time. Knows nothing of shapes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .records import UnusableError
from .sources import LINE_LIMIT, BrokenOffError, Source, lettering_of, opened, read_lines, text_of

Row = tuple[int, Any]
"""The number of a row's first line (in a Parquet file: of the row), and its value or an UnusableError."""

CheckColumns = Callable[[Iterable[str]], str]
"""Why rows with these column names are of no use, or ""."""

_BLOCK = 1 << 20


def read_rows(source: Source, check: CheckColumns, piece: tuple[int, int | None, int] = (0, None, 1)) -> Iterator[Row]:
    """The rows of a file, in order.

    Args:
        source: the file.
        check: tells whether a table's columns can be used at all.
        piece: (start, stop, number of the first line) of a JSONL file that is read in pieces.

    Raises:
        ValueError: the file cannot be read at all, or not to its end (`BrokenOffError`).
    """
    first, more = _first_line(source.path) if piece[0] == 0 else (b"{}", True)
    if first.startswith(b"PAR1"):
        return _parquet(source.path, check)
    if first.startswith((b"PK\x03\x04", b"%PDF")):
        raise ValueError(
            f"is not what its name says: the content is {'a PDF' if first[:1] == b'%' else 'a ZIP archive'}"
        )
    if source.form in (".csv", ".tsv"):
        return _table(source.path, source.form, check)
    if source.form == ".parquet":
        raise ValueError("is not a Parquet file")
    if first.strip() == b"[" or (source.form == ".json" and not (more and _is_object(first))):
        return _json(source.path)
    return read_json_lines(source.path, piece)


def _first_line(path: Path) -> tuple[bytes, bool]:
    """The first line that is not blank, at most 64 KB of it, and whether another one follows."""
    filled = (line[: 1 << 16].lstrip() for _, line in read_lines(path) if not line.isspace())
    first = next(filled, b"")
    with contextlib.suppress(BrokenOffError):
        return first, next(filled, None) is not None
    return first, False


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(decode(line), dict)
    except ValueError:
        return False


# JSON -----------------------------------------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


# NaN is no JSON, but pandas writes it for a missing value
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=lambda _: None)


def decode(line: bytes) -> Any:
    """One line's JSON value.

    Raises:
        ValueError: a plain reason, whatever is wrong with it.
    """
    if len(line) > LINE_LIMIT:
        raise ValueError(f"a line of more than {LINE_LIMIT >> 20} MB")
    try:
        return _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1} of the line") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "brackets nested too deeply"
    # Python's own limit, the only other one
    return "a number of more than 4300 digits" if "integer string conversion" in str(error) else str(error)


def read_json_lines(path: Path, piece: tuple[int, int | None, int] = (0, None, 1)) -> Iterator[Row]:
    """The values of a JSONL file; blank lines are none.

    Raises:
        BrokenOffError: the rest cannot be read.
    """
    for number, line in read_lines(path, *piece):
        if line.isspace():
            continue
        try:
            yield number, decode(line.rstrip(b"\r\n"))
        except ValueError as error:
            yield number, UnusableError(str(error), line[:80].decode("utf-8", "replace").strip())


def _json(path: Path) -> Iterator[Row]:
    """The objects of a JSON array, one at a time; or of the arrays in the one object that a file is."""
    with text_of(path, lettering_of(path)) as file:
        buffer, place, line, ended = "", 0, 1, False
        while True:
            while place < len(buffer) and buffer[place] in " \t\r\n,[]\ufeff":
                line += buffer[place] == "\n"
                place += 1
            failure = None
            try:
                value, end = _DECODER.raw_decode(buffer, place) if place < len(buffer) else (None, len(buffer))
            except json.JSONDecodeError as error:
                end, failure = len(buffer), error
            except (ValueError, RecursionError) as error:
                raise BrokenOffError(f"at line {line}", _reason(error)) from None
            if end == len(buffer) and not ended:  # the value may go on beyond what was read so far
                if len(buffer) - place > 16 * LINE_LIMIT:
                    raise BrokenOffError(f"at line {line}", f"one row of more than {LINE_LIMIT >> 16} MB")
                block = file.read(max(_BLOCK, len(buffer) - place))
                buffer, place, ended = buffer[place:] + block, 0, not block
            elif failure:
                raise BrokenOffError(f"at line {line}", _reason(failure))
            elif place == len(buffer):
                return
            else:
                yield from _rows_within(value, line)
                line += buffer.count("\n", place, end)
                place = end


def _rows_within(value: Any, line: int) -> Iterator[Row]:
    """A row; or the rows of an object that holds nothing but lists of them, `{"data": […]}`."""
    lists = [item for item in value.values() if isinstance(item, list)] if isinstance(value, dict) else []
    rows = [row for item in lists for row in item]
    if (
        rows
        and len(lists) == len(value)
        and all(isinstance(row, dict) and "role" not in row and "from" not in row for row in rows)
    ):
        yield from ((line, row) for row in rows)
    else:
        yield line, value


# Tables ---------------------------------------------------------------------------------------------------------


def _table(path: Path, form: str, check: CheckColumns) -> Iterator[Row]:
    csv.field_size_limit(LINE_LIMIT)
    with text_of(path, lettering_of(path), newline="") as file:
        head, skipped = file.readline(LINE_LIMIT), 0
        if head.startswith("sep="):  # what Excel writes to tell its own delimiter
            delimiter, head, skipped = head[4:5], file.readline(LINE_LIMIT), 1
        else:
            delimiter = "\t" if form == ".tsv" else max(",;\t|", key=head.count)
        reader = csv.reader(_chain(head, file), delimiter=delimiter, strict=True)
        names = _header(reader)
        if reason := check(names):
            raise ValueError(reason)
        while True:
            number = skipped + reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, UnusableError(f"not a row of a table: {error}")
                continue
            except OSError as error:
                raise BrokenOffError(f"after line {number - 1}", str(error)) from None
            if any(cells):
                yield number, _named(names, cells)


def _chain(head: str, file: io.TextIOWrapper) -> Iterator[str]:
    yield head
    yield from file


def _header(reader: Any) -> list[str]:
    try:
        names = [name.strip().lstrip("\ufeff") for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"its first line is no header: {error}") from None
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise ValueError(f"two of its columns are named {twice!r}")
    return names


def _named(names: list[str], cells: list[str]) -> Any:
    if len(cells) > len(names):
        return UnusableError(f"{len(cells)} cells where the header names {len(names)} columns")
    cells += [""] * (len(names) - len(cells))
    return {name: cell for name, cell in zip(names, cells, strict=True) if name}


def _parquet(path: Path, check: CheckColumns) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("a .parquet file needs the extra `formats`: uv sync --extra formats") from None
    number = 0
    try:
        with opened(path) as file:
            table = pyarrow.parquet.ParquetFile(file)
            if reason := check(table.schema_arrow.names):
                raise ValueError(reason)
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        if number:
            raise BrokenOffError(f"after row {number}", reason) from None
        raise ValueError(f"cannot be read as Parquet: {reason}") from None
