"""JSON in files: a value a line, or a list of rows that is read block by block and past damaged places.

Knows nothing of sources, and of rows only where one begins and ends.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .columns import column_roles
from .records import UnusableError, Written
from .text_files import LINE_LIMIT, BrokenOffError, lettering_of, read_lines, text_of

Row = tuple[int, Any]
"""Number of a row's first line (of the row in a Parquet file), and its value or an UnusableError."""


class Listed(dict):  # type: ignore[type-arg]
    """A row in a list that belongs to a file's single object.

    Attributes:
        key: the list's name, which may be that of a split.
    """

    def __init__(self, row: dict[str, Any], key: str) -> None:
        super().__init__(row)
        self.key = key


_BLOCK = 1 << 20


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


# NaN is no JSON, but pandas writes it for a missing value
DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=Written, parse_constant=lambda _: None)


def decode(line: bytes) -> Any:
    """Decode the JSON value of one line.

    Raises:
        ValueError: a plain reason, whatever is wrong with it.
    """
    if len(line) > LINE_LIMIT:
        raise ValueError(f"a line of more than {LINE_LIMIT >> 20} MB")
    try:
        return DECODER.decode(line.decode())
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
_TOKENS = re.compile(f"{_STRING}?|{_COMMENT}|[\\[\\]{{}}]")  # an unclosed string ends at its line's end
_SKIPPED = re.compile(f"(?:[ \\t\\r\\n,\ufeff]|{_COMMENT})+")
_LIST_WITHIN = re.compile(r'\{?\s*"([^"\\\n]+)"\s*:\s*\[\s*(?=\{(?!\s*"(?:role|from|content|value)"))')
_FIRST_KEY = re.compile(r'\{\s*"([^"\\\n]+)"\s*:')
_CLOSING = {"}": "{", "]": "["}
_LONGEST_TOKEN = 16  # characters of a number, a word or an escape that a block's end may have cut


def _tidied_value(text: str) -> Any:
    """Return the value of a text without its comments and trailing commas; None if it has none."""
    without = _COMMENTS.sub(lambda found: found[0] if found[0][0] == '"' else " ", text)
    try:
        return DECODER.decode(_COMMAS.sub(lambda found: found[0] if found[0][0] == '"' else "", without))
    except (ValueError, RecursionError):
        return None


def read_json(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSON array, or of the arrays in a file's single object, one at a time.

    Comments, and commas before a closing bracket, are skipped. A row with other damage is an UnusableError, and reading
    goes on behind it.

    Raises:
        BrokenOffError: the rest cannot be read.
    """
    with text_of(path, lettering_of(path)) as file:
        yield from _Values(file).rows()


class _Values:
    """The values of a JSON text that is read block by block.

    Attributes:
        buffer, place: the text that was read, and the place in it where the next value is sought.
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
                value, end = DECODER.raw_decode(self.buffer, self.place)
            except json.JSONDecodeError as error:
                if not (self._may_be_cut(error) and self._read_on()):
                    yield from self._damaged(error)
                continue
            except (ValueError, RecursionError) as error:
                yield from self._damaged(error)
                continue
            if end == len(self.buffer) and self._read_on():  # the value may continue in the next block
                continue
            yield from self._rows_of(value, self.line)
            self._go_to(end)

    def _rows_of(self, value: Any, line: int) -> Iterator[Row]:
        """Yield the rows in a value, with the name of their list."""
        rows = _rows_of_list(value, line) if isinstance(value, list) else _rows_within(value, line, not self.in_list)
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


_HOLDERS = ("data", "rows", "examples", "items", "records", "entries", "samples")
"""Keys of the rows in a file's object that also says what they are: `{"version": …, "data": […]}`."""


def _rows_beside(value: Any) -> tuple[str, list[Any]]:
    """Return the key and the rows of an object that also holds a description of them; ("", []) if it is a row."""
    if not isinstance(value, dict) or column_roles(tuple(value)):
        return "", []
    for key in _HOLDERS:
        rows = value.get(key)
        if isinstance(rows, list) and rows and all(isinstance(row, dict) and not _is_turn(row) for row in rows):
            inner = [
                row["row"] if isinstance(row.get("row"), dict) else row for row in rows
            ]  # as the hub's API answers
            return (key, inner) if column_roles(tuple(inner[0])) else ("", [])
    return "", []


def _rows_within(value: Any, line: int, alone: bool = True) -> Iterator[Row]:
    """Yield a row, or the rows of an object of nothing but lists of them, `{"data": […]}`, or of rows by number.

    `alone`: whether it is all that a file holds, so that its rows may stand beside what describes them.
    """
    lists = {key: item for key, item in value.items() if isinstance(item, list)} if isinstance(value, dict) else {}
    if (
        any(lists.values())
        and len(lists) == len(value)
        and all(isinstance(row, dict) and not _is_turn(row) for item in lists.values() for row in item)
    ):
        yield from ((line, Listed(row, key)) for key, item in lists.items() for row in item)
    elif alone and (beside := _rows_beside(value))[1]:
        key, rows = beside
        about = {name: said for name, said in value.items() if name != key}
        yield from ((line, Listed({**about, **row} if not number else row, key)) for number, row in enumerate(rows))
    elif isinstance(value, dict) and _numbers_rows(value):
        yield from ((line, row) for row in value.values())
    else:
        yield line, value
