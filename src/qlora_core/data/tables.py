"""Files of rows to rows: JSON, JSON lines, CSV, TSV and Parquet, one row at a time. Knows nothing of shapes."""

from __future__ import annotations

import collections
import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .records import UnusableError, Written
from .sources import LINE_LIMIT, BrokenOffError, Source, lettering_of, opened, read_lines, text_of

Row = tuple[int, Any]
"""The number of a row's first line (in a Parquet file: of the row), and its value or an UnusableError."""


class Listed(dict):  # type: ignore[type-arg]
    """A row in a list that belongs to a file's single object.

    Attributes:
        key: the list's name, which may be that of a split.
    """

    def __init__(self, row: dict[str, Any], key: str) -> None:
        super().__init__(row)
        self.key = key


CheckColumns = Callable[[Iterable[str]], str]
"""Why rows with these column names are of no use, or ""."""

_BLOCK = 1 << 20


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
    if source.form in (".csv", ".tsv"):
        return _table(source.content, source.form, check)
    if source.form == ".parquet":
        raise ValueError("is not a Parquet file")
    if piece[0] == 0 and not are_lines(source):
        return read_json(source.content)
    return read_json_lines(source.content, piece)


def are_lines(source: Source) -> bool:
    """Return whether each line of a JSON file is a value, whatever its name says.

    It is not where its first line is a bracket alone, or only the beginning of a value whose second line is none
    either; and in a file of the name `.json`, where it has no second line, or does not begin with an object.
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
        _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        pass
    return False


# JSON -----------------------------------------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


# NaN is no JSON, but pandas writes it for a missing value
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=Written, parse_constant=lambda _: None)


def decode(line: bytes) -> Any:
    """Decode the JSON value of one line.

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
    """Yield the values of a JSONL file; blank lines are skipped.

    Raises:
        BrokenOffError: the rest cannot be read.
    """
    for number, line in read_lines(path, *piece):
        if line.isspace():
            continue
        try:
            value = decode(line.rstrip(b"\r\n"))
            if type(value) is list and value:
                yield from _rows_of_list(value, number)
            else:
                yield number, value
        except ValueError as error:
            value = _tidied_line(line)
            if isinstance(value, dict):
                yield number, value
            else:
                yield number, UnusableError(str(error), line[:80].decode("utf-8", "replace").strip())


_STRING = r'"(?:[^"\\\n]|\\.)*"'
_COMMENT = r"//[^\n]*|/\*[\s\S]*?\*/"
_COMMENTS = re.compile(f"{_STRING}|{_COMMENT}")
_COMMAS = re.compile(f"{_STRING}|,(?=\\s*[}}\\]])")
_TOKENS = re.compile(f"{_STRING}?|{_COMMENT}|[\\[\\]{{}}]")  # a text that is not closed ends with its line
_SKIPPED = re.compile(f"(?:[ \\t\\r\\n,\ufeff]|{_COMMENT})+")
_LIST_WITHIN = re.compile(r'\{?\s*"([^"\\\n]+)"\s*:\s*\[\s*(?=\{(?!\s*"(?:role|from|content|value)"))')
_FIRST_KEY = re.compile(r'\{\s*"([^"\\\n]+)"\s*:')
_CLOSING = {"}": "{", "]": "["}
_LONGEST_TOKEN = 16  # characters of a number or a word, or of an escape, that the end of a block may have cut


def _tidied_value(text: str) -> Any:
    """Return the value of a text without its comments and trailing commas; None if it has none."""
    without = _COMMENTS.sub(lambda found: found[0] if found[0][0] == '"' else " ", text)
    try:
        return _DECODER.decode(_COMMAS.sub(lambda found: found[0] if found[0][0] == '"' else "", without))
    except (ValueError, RecursionError):
        return None


def read_json(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSON array, or of the arrays in a file's single object, one at a time.

    Comments, and commas before a closing bracket, are passed over. A row that is damaged otherwise is an UnusableError;
    reading goes on behind it.

    Raises:
        BrokenOffError: the rest cannot be read.
    """
    with text_of(path, lettering_of(path)) as file:
        yield from _Values(file).rows()


class _Values:
    """The values of a JSON text that is read block by block.

    Attributes:
        buffer, place: what was read, and where in it the next value is looked for.
        line: the number of the line there.
        ended: whether all was read.
        in_list: whether the values are those of a list.
        key: the name of that list, where its object is damaged, so that it is read list by list.
    """

    def __init__(self, file: io.TextIOWrapper) -> None:
        self.file = file
        self.buffer, self.place, self.line = "", 0, 1
        self.ended = self.in_list = False
        self.key = ""

    def rows(self) -> Iterator[Row]:
        """Yield each row with the number of its first line."""
        while self._at_value():
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.place)
            except json.JSONDecodeError as error:
                if not (self._may_be_cut(error) and self._read_on()):
                    yield from self._damaged(error)
                continue
            except (ValueError, RecursionError) as error:
                yield from self._damaged(error)
                continue
            if end == len(self.buffer) and self._read_on():  # it may go on
                continue
            yield from self._rows_of(value, self.line)
            self._go_to(end)

    def _rows_of(self, value: Any, line: int) -> Iterator[Row]:
        """Yield the rows in a value, with the name of their list."""
        rows = _rows_of_list(value, line) if isinstance(value, list) else _rows_within(value, line)
        yield from ((place, Listed(row, self.key)) if self.key else (place, row) for place, row in rows)

    def _at_value(self) -> bool:
        """Move to the next value; return False at the end."""
        while True:
            if found := _SKIPPED.match(self.buffer, self.place):
                self._go_to(found.end())
            if self.place >= len(self.buffer) - 1 and self._read_on():
                continue
            if self.place == len(self.buffer):
                return False
            letter = self.buffer[self.place]
            if letter == "[" and not self.in_list:
                self.in_list = True
            elif letter == "]":
                self.in_list = False
            elif letter == "}" and self.key:
                self.key = ""
            elif self.key and not self.in_list and (found := _LIST_WITHIN.match(self.buffer, self.place)):
                self.key, self.in_list = found[1], True
                self._go_to(found.end())
                continue
            else:
                return True
            self._go_to(self.place + 1)

    def _go_to(self, place: int) -> None:
        self.line += self.buffer.count("\n", self.place, place)
        self.place = place

    def _read_on(self) -> bool:
        """Read another block, twice as large as the current text; return False at the end."""
        if self.ended:
            return False
        if len(self.buffer) - self.place > 16 * LINE_LIMIT:
            raise self._broken_off(f"one row of more than {LINE_LIMIT >> 16} MB")
        try:
            block = self.file.read(max(_BLOCK, len(self.buffer) - self.place))
        except OSError as error:
            raise self._broken_off(str(error)) from None
        self.ended = not block
        if block:
            self.buffer, self.place = self.buffer[self.place :] + block, 0
        return bool(block)

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.pos >= len(self.buffer) - _LONGEST_TOKEN or error.msg.startswith("Unterminated string")

    def _damaged(self, error: Exception) -> Iterator[Row]:
        """Recover what can be recovered of a damaged value, and go on behind it."""
        if not self.in_list and not self.key and (within := _LIST_WITHIN.match(self.buffer, self.place)):
            self.key, self.in_list = within[1], True
            self._go_to(within.end())
            return
        end = self._end_of_value()
        if end < 0 and (self.in_list or self.key):
            end = self._next_row()
        if end < 0 and self._read_on():
            return
        if end < 0:
            raise self._broken_off(_reason(error))
        line, text = self.line, self.buffer[self.place : end].rstrip(", \t\r\n")
        self._go_to(end)
        tidied = _tidied_value(text) if isinstance(error, json.JSONDecodeError) else None
        if tidied is None:
            last = line + text.count("\n")
            lines = f" (lines {line}-{last})" if last > line else ""
            yield line, UnusableError(f"{_reason(error)}{lines}", text[:80].strip())
        else:
            yield from self._rows_of(tidied, line)

    def _end_of_value(self) -> int:
        """Return where the damaged value ends by its brackets; -1 if they do not tell."""
        if self.buffer[self.place] not in "[{":
            found = re.compile(r"[^,\[\]{}\n]*").match(self.buffer, self.place)
            return found.end() if self.in_list and found and found.end() > self.place else -1
        opened: list[str] = []
        for token in _TOKENS.finditer(self.buffer, self.place):
            if token[0] in ("[", "{"):
                opened.append(token[0])
            elif token[0] in _CLOSING:
                if opened.pop() != _CLOSING[token[0]]:
                    return -1
                if not opened:
                    behind = self.buffer[token.end() : token.end() + 1 << 10].lstrip()[:1]
                    return token.end() if behind in ("", ",", "]", "}", "{", "/") else -1
        return -1

    def _next_row(self) -> int:
        """Return where the next object with the same first key as the damaged one begins; -1 if none does."""
        first = _FIRST_KEY.match(self.buffer, self.place)
        if not first:
            return -1
        same = re.compile(rf'\{{\s*"{re.escape(first[1])}"\s*:').search(self.buffer, first.end())
        return same.start() if same else -1

    def _broken_off(self, reason: str) -> BrokenOffError:
        left = len(self.buffer[self.place :].encode("utf-8", "replace"))
        with contextlib.suppress(OSError):
            while block := self.file.read(_BLOCK):
                left += len(block.encode("utf-8", "replace"))
        return BrokenOffError(f"at line {self.line}", reason, left)


def _tidied_line(line: bytes) -> Any:
    """Return the value of a line without its comments and extra commas; None if there is none."""
    try:
        return _tidied_value(line.decode().strip().rstrip(",")) if len(line) <= LINE_LIMIT else None
    except UnicodeDecodeError:
        return None


def _rows_of_list(value: list[Any], line: int) -> Iterator[Row]:
    """Yield the rows of a list of objects; a list of turns, or of anything else, is one value."""
    if all(isinstance(row, dict) and not _is_turn(row) for row in value):
        yield from ((line, row) for row in value)
    else:
        yield line, value


def _is_turn(row: dict[str, Any]) -> bool:
    return "role" in row or "from" in row


def _numbers_rows(value: dict[str, Any]) -> bool:
    """Return whether an object holds rows by their numbers, `{"0": {…}, "1": {…}}`."""
    return bool(value) and all(key.isdecimal() and isinstance(row, dict) for key, row in value.items())


def _rows_within(value: Any, line: int) -> Iterator[Row]:
    """Yield a row, or the rows of an object of nothing but lists of them, `{"data": […]}`, or of rows by number."""
    lists = {key: item for key, item in value.items() if isinstance(item, list)} if isinstance(value, dict) else {}
    if (
        any(lists.values())
        and len(lists) == len(value)
        and all(isinstance(row, dict) and not _is_turn(row) for item in lists.values() for row in item)
    ):
        yield from ((line, Listed(row, key)) for key, item in lists.items() for row in item)
    elif isinstance(value, dict) and _numbers_rows(value):
        yield from ((line, row) for row in value.values())
    else:
        yield line, value


# Tables ---------------------------------------------------------------------------------------------------------


class _Lines:
    """Table lines that can be given back, so that an unclosed quotation mark costs only its own row.

    Attributes:
        number: of the line that comes next.
        taken: the lines of the row at hand.
    """

    def __init__(self, file: Iterable[str], number: int, first: str) -> None:
        self.file, self.number = iter(file), number
        self.again: collections.deque[str] = collections.deque([first] if first else [])
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


def _table(path: Path, form: str, check: CheckColumns) -> Iterator[Row]:
    csv.field_size_limit(LINE_LIMIT)
    with text_of(path, lettering_of(path), newline="") as file:
        head, first = file.readline(LINE_LIMIT), 1
        if head.startswith("sep="):  # what Excel writes to tell its own delimiter
            delimiter, head, first = head[4:5], file.readline(LINE_LIMIT), 2
        else:
            delimiter = "\t" if form == ".tsv" else max(",;\t|", key=head.count)
        lines = _Lines(file, first, head)
        names = _header(csv.reader(lines, delimiter=delimiter, strict=True))
        if reason := check(names):
            raise ValueError(reason)
        yield from _table_rows(lines, names, delimiter)


def _table_rows(lines: _Lines, names: list[str], delimiter: str) -> Iterator[Row]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.next_row()
        number = lines.number
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.give_back()
            cells = _unquoted(lines.taken[0], names, delimiter)
            if cells is None:
                yield number, UnusableError(_quotation(error, lines.taken[0]), lines.taken[0][:80].rstrip())
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
        except OSError as error:
            raise BrokenOffError(f"after line {number - 1}", str(error)) from None
        else:
            if len(lines.taken) > 1 and _are_rows(lines.taken, names, delimiter):
                joined = len(lines.taken)
                lines.give_back()
                cells = _unquoted(lines.taken[0], names, delimiter)
                if cells is None:
                    yield number, UnusableError(_joining(joined), lines.taken[0][:80].rstrip())
                reader = csv.reader(lines, delimiter=delimiter, strict=True)
        if cells and any(cells):
            yield number, _named(names, cells)


def _unquoted(line: str, names: list[str], delimiter: str) -> list[str] | None:
    """Return the cells of a line whose quotation marks are only characters; None if they are not.

    Between tabs they always are. In other tables a mark that opens a cell and is closed nowhere spoils the row.
    """
    cells = line.rstrip("\r\n").split(delimiter)
    opens = delimiter != "\t" and any(cell.startswith('"') and cell.count('"') % 2 for cell in cells)
    return None if opens or len(cells) != len(names) or len(line) > csv.field_size_limit() else cells


def _are_rows(lines: list[str], names: list[str], delimiter: str) -> bool:
    """Return whether quotation marks held together lines that are each a row of the table, a mark opened by mistake.

    Each has as many delimiters as the header. Commas and the like also stand in texts, with a blank behind them,
    between figures, or within brackets; where they are few, such lines are one text.
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


_CERTAIN = 3  # columns: a text with three commas in each of its lines is rare


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
            if check(table.schema_arrow.names):
                within = [f"{f.name}.{inner.name}" for f in table.schema_arrow if pyarrow.types.is_struct(f.type)
                          for inner in f.type]  # fmt: skip
                plain = [f.name for f in table.schema_arrow if not pyarrow.types.is_struct(f.type)]
                raise ValueError(check([*plain, *within]) or check(table.schema_arrow.names))
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        if number:
            raise BrokenOffError(f"after row {number}", reason) from None
        raise ValueError(f"cannot be read as Parquet: {reason}") from None
