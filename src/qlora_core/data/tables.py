"""Rows of files, one at a time: JSON, JSON lines, CSV, TSV and Parquet. Knows nothing of shapes."""

from __future__ import annotations

import collections
import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .json_values import DECODER, Row, decode, read_json, read_json_lines
from .records import UnusableError
from .sources import SEPARATED, Source
from .text_files import LINE_LIMIT, BrokenOffError, lettering_of, opened, read_lines, text_of

CheckColumns = Callable[[Iterable[str]], str]
"""Function that returns why rows with these column names are of no use, or ""."""


def read_rows(source: Source, check: CheckColumns, piece: tuple[int, int | None, int] = (0, None, 1)) -> Iterator[Row]:
    """Return the rows of a file in order.

    Args:
        source: the file.
        check: tells whether a table's columns can be used at all.
        piece: (start, stop, number of the first line) of a JSONL file that is read in pieces.

    Raises:
        ValueError: the file cannot be read at all, or not to its end (`BrokenOffError`).
    """
    first = _first_lines(source.content)[0] if piece[0] == 0 else b"{}"
    if first.startswith(b"PAR1"):
        return _parquet(source.content, check)
    if first.startswith((b"PK\x03\x04", b"%PDF")):
        raise ValueError(
            f"is not what its name says: the content is {'a PDF' if first[:1] == b'%' else 'a ZIP archive'}"
        )
    if source.form in SEPARATED:
        return _table(source.content, source.form, check)
    if source.form == ".parquet":
        raise ValueError("is not a Parquet file")
    if piece[0] == 0 and not are_lines(source):
        return read_json(source.content)
    return read_json_lines(source.content, piece)


def are_lines(source: Source) -> bool:
    """Return whether each line of a JSON file is a value, whatever its name says.

    It is not if the first line is only a bracket, or the beginning of a value whose second line is no value either;
    nor, in a file named `.json`, if there is no second line or the first begins with no object.
    """
    first, second = _first_lines(source.content)
    if first.strip() == b"[":
        return False
    if source.form == ".json":
        return second is not None and _is_value(first)
    begins = first[:1] in (b"{", b"[") and _breaks_off(first)
    return not (begins and second is not None and not _is_value(second)) and not first.startswith((b"//", b"/*"))


def _first_lines(path: Path) -> tuple[bytes, bytes | None]:
    """Return the first two non-blank lines, at most 64 KB of each."""
    filled = (line[: 1 << 16].lstrip() for _, line in read_lines(path) if not line.isspace())
    first = next(filled, b"")
    with contextlib.suppress(BrokenOffError):
        return first, next(filled, None)
    return first, None


def _is_value(line: bytes) -> bool:
    """Return whether a line is an object or a list of objects."""
    try:
        value = decode(line)
    except ValueError:
        return False
    return isinstance(value, dict) or (isinstance(value, list) and all(isinstance(item, dict) for item in value))


def _breaks_off(line: bytes) -> bool:
    """Return whether a line is the beginning of a JSON value that goes on."""
    text = line.decode("utf-8", "replace").rstrip()
    try:
        DECODER.decode(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        pass
    return False


class _Lines:
    """Table lines that can be given back, so that an unclosed quotation mark costs only its own row.

    Attributes:
        number: number of the next line.
        taken: the lines of the row at hand.
    """

    def __init__(self, file: Iterable[str], number: int, first: Iterable[str]) -> None:
        self.file, self.number = iter(file), number
        self.again: collections.deque[str] = collections.deque(filter(None, first))
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.again.popleft() if self.again else next(self.file)
        self.number += 1
        self.taken.append(line)
        return line

    def give_back(self) -> None:
        """Go back to the line behind the first one of the current row."""
        self.again.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1
        del self.taken[1:]

    def next_row(self) -> None:
        """Forget the lines of the previous row."""
        self.taken.clear()


@dataclass(frozen=True)
class _Style:
    """The writing of a table: the separator of its cells, and whether blanks may follow it."""

    delimiter: str
    spaced: bool = False

    def reader(self, lines: Iterable[str]) -> Any:
        """Return a reader that raises csv.Error at a misplaced quotation mark."""
        return csv.reader(lines, delimiter=self.delimiter, strict=True, skipinitialspace=self.spaced)

    def split(self, line: str) -> list[str]:
        """Return the cells of a line in which quotation marks mean nothing."""
        cells = line.rstrip("\r\n").split(self.delimiter)
        return [cell.lstrip() for cell in cells] if self.spaced else cells


def _style(form: str, head: str, second: str, stated: str) -> _Style:
    """Return how a table is written, by its first two lines and perhaps by what it states itself."""
    delimiter = stated or ("\t" if form == ".tsv" else max(",;\t|", key=head.count))
    between = head.count(delimiter)
    in_head = bool(between) and head.count(f"{delimiter} ") == between
    spaced = in_head or bool(re.search(rf'{re.escape(delimiter)} +"[^"]', second) and '"' not in head)
    return _Style(delimiter, delimiter != "\t" and spaced and not _has_it_within(second, delimiter))


def _has_it_within(line: str, delimiter: str) -> bool:
    """Return whether a line is well-formed as it is, with a blank and a mark behind a delimiter inside a cell."""
    try:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return False
    return any(f'{delimiter} "' in cell for cell in cells)


def _table(path: Path, form: str, check: CheckColumns) -> Iterator[Row]:
    csv.field_size_limit(LINE_LIMIT)
    with text_of(path, lettering_of(path), newline="") as file:
        head, first, stated = file.readline(LINE_LIMIT), 1, ""
        while head.isspace():
            head, first = file.readline(LINE_LIMIT), first + 1
        if head.startswith("sep="):  # Excel states its delimiter so
            stated, head, first = head[4:5], file.readline(LINE_LIMIT), first + 1
        second = ""
        with contextlib.suppress(OSError):  # which is raised again where the rows are read
            second = file.readline(LINE_LIMIT)
        style = _style(form, head, second, stated)
        lines = _Lines(file, first, (head, second))
        names = _header(style.reader(lines))
        if reason := check(names):
            raise ValueError(reason)
        yield from _table_rows(lines, names, style)


def _table_rows(lines: _Lines, names: list[str], style: _Style) -> Iterator[Row]:
    reader = style.reader(lines)
    while True:
        lines.next_row()
        number = lines.number
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.give_back()
            cells = _unquoted(lines.taken[0], names, style)
            if cells is None:
                yield number, UnusableError(_quotation(error, lines.taken[0]), lines.taken[0][:80].rstrip())
            reader = style.reader(lines)
        except OSError as error:
            raise BrokenOffError(f"after line {number - 1}", str(error)) from None
        else:
            if len(lines.taken) > 1 and _are_rows(lines.taken, names, style.delimiter):
                joined = len(lines.taken)
                lines.give_back()
                cells = _unquoted(lines.taken[0], names, style)
                if cells is None:
                    yield number, UnusableError(_joining(joined), lines.taken[0][:80].rstrip())
                reader = style.reader(lines)
        if cells and any(cells):
            yield number, _named(names, cells)


def _unquoted(line: str, names: list[str], style: _Style) -> list[str] | None:
    """Return the cells of a line whose quotation marks are only characters; None if they are not.

    With tabs they always are. In other tables, a mark that opens a cell and is never closed spoils the row.
    """
    cells = style.split(line)
    opens = style.delimiter != "\t" and any(cell.startswith('"') and cell.count('"') % 2 for cell in cells)
    return None if opens or len(cells) != len(names) or len(line) > csv.field_size_limit() else cells


def _are_rows(lines: list[str], names: list[str], delimiter: str) -> bool:
    """Return whether quotation marks held together lines that are each a row of the table, a mark opened by mistake.

    Each has as many delimiters as the header. Commas and the like also occur in texts, before a blank, between figures,
    or within brackets; lines with few of them are one text.
    """
    if len(names) < 2 or any(line.count(delimiter) != len(names) - 1 for line in lines):
        return False
    if delimiter == "\t" or len(names) > _CERTAIN:
        return True
    rows = [line.rstrip("\r\n").split(delimiter) for line in lines]
    cells = [cell for row in rows for cell in row]
    figures = any(re.search(rf"\d{re.escape(delimiter)}\d", line) for line in lines)
    balanced = all(cell.count(opening) == cell.count(end) for cell in cells for opening, end in ("()", "[]", "{}"))
    return balanced and not figures and all(cell and cell == cell.strip() for cell in cells)


_CERTAIN = 3  # columns: text with three commas in every line is rare


def _joining(lines: int) -> str:
    below = "in the next line" if lines == 2 else f"{lines - 1} lines below"
    return f"not a row of a table: a quotation mark is opened, and the next one stands {below}, in another row"


def _quotation(error: csv.Error, line: str) -> str:
    opened = "unexpected end of data" in str(error) and line.count('"') % 2
    return f"not a row of a table: {'a quotation mark is opened and never closed' if opened else error}"


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
        return UnusableError(f"{len(cells)} cells where the header names {len(names)} columns", " | ".join(cells)[:80])
    cells += [""] * (len(names) - len(cells))
    if [cell.strip() for cell in cells] == names and len(names) > 1:
        reason = "the names of the columns again, as in files that were joined"
        return UnusableError(reason, " | ".join(cells)[:80], damaged=False)
    return {name: None if cell in _NULLS else cell for name, cell in zip(names, cells, strict=True) if name}


_NULLS = frozenset((r"\N", "NULL", "NaN", "nan", "<NA>", "#N/A"))
"""How databases, pandas and spreadsheets write in a table that a value is missing."""


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
            if check(table.schema_arrow.names):
                within = [f"{f.name}.{inner.name}" for f in table.schema_arrow if pyarrow.types.is_struct(f.type)
                          for inner in f.type]  # fmt: skip
                plain = [f.name for f in table.schema_arrow if not pyarrow.types.is_struct(f.type)]
                raise ValueError(check([*plain, *within]) or check(table.schema_arrow.names))
            classes = _class_names(table.schema_arrow.metadata)
            calls = [field.name for field in table.schema_arrow if _may_hold_calls(field)]
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    for name, names in classes.items():
                        place = row.get(name)
                        if isinstance(place, int):
                            row[name] = names[place] if 0 <= place < len(names) else None
                    row |= {name: _without_absent(row[name], name in _CALLS) for name in calls}
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        if number:
            raise BrokenOffError(f"after row {number}", reason) from None
        raise ValueError(f"cannot be read as Parquet: {reason}") from None


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of each column of classes, which stand as numbers in a file of the library `datasets`.

    Such a file states its columns under the key `huggingface`; -1 is no class.
    """
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {name: names for name, names in found.items() if isinstance(names, list)}


_CALLS = frozenset(("tool_calls", "tool_call", "function_call", "tools", "functions"))


def _may_hold_calls(field: Any) -> bool:
    return "struct<" in str(field.type) and any(name in f"{field.name} {field.type}" for name in _CALLS)


def _without_absent(value: Any, called: bool) -> Any:
    """Return calls and tools without nulls: in Arrow every call has the arguments of all, and null means absent."""
    if isinstance(value, dict):
        return {
            key: _without_absent(inner, called or key in _CALLS)
            for key, inner in value.items()
            if inner is not None or not called
        }
    return [_without_absent(inner, called) for inner in value] if isinstance(value, list) else value
