"""Anki's decks (.apkg) and collections (.colpkg): a zip archive with a database of notes."""

from __future__ import annotations

import contextlib
import html
import importlib
import io
import json
import re
import sqlite3
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

from .archive import DOCUMENT_LIMIT, TOO_LARGE
from .cards import plain_field, row_of
from .outline import UnreadableError, one_line

_DATABASES = (
    "collection.anki21b",
    "collection.anki21",
    "collection.anki2",
)  # the newest first: the others may be empty
_MEDIA = re.compile(
    r"\[sound:([^\]]*)\]|<(?:img|audio|video|object|embed)\b[^>]*?(?:src|data)\s*=\s*[\"']?([^\"'>\s]+)"
)
Note = tuple[str, "dict[str, Any] | None", str]
"""A note's number, its row (None: it has no text to ask or to answer), and its pictures and sounds."""


def read_package(content: bytes) -> Iterator[Note]:
    """Yield each note as a question and answer, or as a text if it has a cloze or a single field.

    Raises:
        UnreadableError: it is no deck, or holds no notes.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        try:
            database.deserialize(_database(content))
            database.create_collation("unicase", lambda one, other: (one > other) - (one < other))
            names, decks = _fields(database), _decks(database)
            notes = database.execute(
                "select n.mid, n.flds, n.tags, (select c.did from cards c where c.nid = n.id limit 1) "
                "from notes n order by n.id"
            ).fetchall()
        except (UnreadableError, ImportError):
            raise
        except Exception as error:  # damage makes the libraries raise anything
            raise UnreadableError(f"cannot be read as a deck of Anki: {one_line(str(error))[:150]}") from None
    if not notes:
        raise UnreadableError("holds no notes")
    for number, (kind, fields, tags, deck) in enumerate(notes, 1):
        cells = str(fields).split("\x1f")
        media = ", ".join(html.unescape(a or b) for cell in cells for a, b in _MEDIA.findall(cell))
        filled = [(at, plain_field(cell, marked=True)) for at, cell in enumerate(cells)]
        said = {"tags": one_line(str(tags or "")), "deck": decks.get(deck, "")}
        lost = any(_MEDIA.search(cells[at]) and not text for at, text in filled[:2])
        row = row_of(filled, names.get(kind, [])) if any(text for _, text in filled) and not lost else None
        yield f"note {number}", row and row | {key: value for key, value in said.items() if value}, media


def _database(content: bytes) -> bytes:
    """Return the unpacked database of an archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = next((name for name in _DATABASES if name in archive.namelist()), "")
        if not name:
            raise UnreadableError("cannot be read as a deck of Anki: it holds no collection")
        found = archive.read(name) if archive.getinfo(name).file_size <= DOCUMENT_LIMIT else None
    if found is not None and name.endswith("b"):
        library = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
        with library.open(io.BytesIO(found)) as file:
            found = file.read(DOCUMENT_LIMIT + 1)
    if found is None or len(found) > DOCUMENT_LIMIT:
        raise UnreadableError(TOO_LARGE)
    return found[:18] + b"\x01\x01" + found[20:]  # not to look for a log of changes beside it


def _fields(database: sqlite3.Connection) -> dict[int, list[str]]:
    """Return the field names of each note type."""
    found: dict[int, list[str]] = {}
    if _has(database, "fields"):
        for kind, name in database.execute("select ntid, name from fields order by ntid, ord"):
            found.setdefault(kind, []).append(name)
        return found
    for kind, model in json.loads(database.execute("select models from col").fetchone()[0] or "{}").items():
        found[int(kind)] = [str(field["name"]) for field in model["flds"]]
    return found


def _decks(database: sqlite3.Connection) -> dict[int, str]:
    if _has(database, "decks"):
        return {number: name.replace("\x1f", "::") for number, name in database.execute("select id, name from decks")}
    decks = json.loads(database.execute("select decks from col").fetchone()[0] or "{}")
    return {int(number): str(deck["name"]) for number, deck in decks.items()}


def _has(database: sqlite3.Connection, table: str) -> bool:
    return bool(database.execute("select 1 from sqlite_master where type='table' and name=?", (table,)).fetchone())
