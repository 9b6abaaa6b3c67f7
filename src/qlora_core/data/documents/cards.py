"""Anki's notes in plain text: a note a line, its fields parted by tabs or by what the file's head says."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator
from typing import Any

from ..columns import column_roles

_SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "colon": ":", "space": " "}
_HEAD = re.compile(r"#([a-z ]+):(.*)")
_CLOZE = re.compile(r"\{\{c\d+::(.+?)(?:::[^{}]*)?\}\}", re.DOTALL)
_FIGURE = re.compile(r"\W*\d[\d\s.,:;/–—+%€-]*\W*")
FEWEST = 3  # lines with the same fields, which are no accident
_NO_FIELD = ("deck column", "notetype column", "guid column", "tags column")


def has_head(text: str) -> bool:
    """Return whether a text begins like Anki's exports."""
    return bool(re.match(r"\ufeff?#(?:separator|html|columns|notetype|deck|tags)\b[a-z ]*:", text))


def is_deck(text: str) -> bool:
    """Return whether a text is an Anki export, or has two fields and one tab in every line."""
    if has_head(text):
        return True
    lines = [line for line in text.split("\n")[:-1] or [text] if line.strip()][:200]
    return len(lines) > 1 and all(line.count("\t") == 1 and all(map(str.strip, line.split("\t"))) for line in lines)


def is_wider_deck(text: str) -> bool:
    """Return whether all lines have the same three fields or more, the first two of words: cards without Anki's head.

    A column of figures makes it a table, which is read as one.
    """
    lines = [line for line in text.split("\n")[:-1] or [text] if line.strip()][:200]
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines]
    alike = len({len(row) for row in rows}) == 1 and len(rows) >= FEWEST and len(rows[0]) > 2
    if not alike or not all(row[0] and row[1] for row in rows):
        return False
    return not any(2 * sum(bool(_FIGURE.fullmatch(row[at])) for row in rows) >= len(rows) for at in range(len(rows[0])))


def read_wider_deck(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line's number and row, named by the first line if it has known names."""
    lines = text.lstrip("\ufeff").split("\n")
    names = [cell.strip() for cell in lines[0].split("\t")]
    roles = column_roles(tuple(names), ())
    if not roles or not roles.asked or len(set(names)) < len(names):
        yield from read_deck(text)
        return
    for number, line in enumerate(lines[1:], 2):
        if line.strip():
            yield str(number), dict(zip(names, (cell.strip() for cell in line.split("\t")), strict=False))


def read_deck(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each note's line and its row: a question and answer, or a text if it has a cloze or a single field."""
    lines = text.lstrip("\ufeff").split("\n")
    head: dict[str, str] = {}
    start = 0
    while start < len(lines) and (match := _HEAD.fullmatch(lines[start].rstrip("\r"))):
        head[match[1].strip()] = match[2]
        start += 1
    mark = head.get("separator", "tab")
    mark = _SEPARATORS.get(mark.lower(), mark[:1] or "\t")
    names = head.get("columns", "").split(mark) if "columns" in head else []
    aside = {int(head[name]) - 1: name.split()[0] for name in _NO_FIELD if head.get(name, "").isdecimal()}
    body = io.StringIO("\n".join(lines[start:]), newline="")
    reader = csv.reader(body, delimiter=mark) if start else csv.reader(body, delimiter=mark, quoting=csv.QUOTE_NONE)
    marked = head.get("html", "").strip().lower() == "true"
    before = start
    for cells in reader:
        place, before = before + 1, start + reader.line_num
        fields = [(at, plain_field(cell, marked=marked)) for at, cell in enumerate(cells) if at not in aside]
        others = {name: cells[at].strip() for at, name in aside.items() if at < len(cells) and cells[at].strip()}
        if any(field for _, field in fields):
            yield str(place), row_of(fields, names) | others


def row_of(fields: list[tuple[int, str]], names: list[str]) -> dict[str, Any]:
    """Return the row of a note's fields, each with its position in `names`; at least one must be filled."""
    filled = [(at, field) for at, field in fields if field]
    cloze = next((field for _, field in filled if _CLOZE.search(field)), "")
    if cloze or len(filled) == 1:
        return {"text": _CLOZE.sub(r"\1", cloze or filled[0][1])}
    (_, asked), (_, answered), *more = filled
    rest = {(names[at] if at < len(names) else f"field {at + 1}"): field for at, field in more}
    return {"prompt": asked, "completion": answered, **rest}


def plain_field(field: str, *, marked: bool) -> str:
    """Return a field without sounds and, if it is HTML, without pictures and tags."""
    field = re.sub(r"\[sound:[^\]]*\]", "", field)
    if marked:
        field = re.sub(r"<br\s*/?>|</(?:div|p|li|tr)>", "\n", field, flags=re.IGNORECASE)
        field = html.unescape(re.sub(r"</?[a-zA-Z][^<>]*>|<!--.*?-->", "", field))
    return "\n".join(line for line in map(str.strip, field.replace("\xa0", " ").split("\n")) if line)
