"""Kindle's My Clippings.txt: highlights and notes, one book after the other."""

from __future__ import annotations

import re

from ..records import Block, Document

_RULE = re.compile(r"^={10}[^\S\n]*$", re.MULTILINE)
_META = re.compile(r"^-\s.*\d", re.MULTILINE)


def is_clippings(text: str) -> bool:
    """Return whether a text begins like a clipping: a title, a line of place and time, and a rule at the end."""
    first = text.lstrip("\ufeff\n").split("\n", 3)
    return len(first) > 2 and bool(_META.match(first[1])) and bool(_RULE.search(text))


def read_clippings(text: str) -> list[Document]:
    """Return one document per book, without places and times; list marks that have no text."""
    books: dict[str, list[Block]] = {}
    left_out: dict[str, list[tuple[str, str, str]]] = {}
    line = 1
    for entry in _RULE.split(text):
        rows = entry.split("\n")
        filled = [(at, row.strip("\ufeff \t")) for at, row in enumerate(rows) if row.strip("\ufeff \t")]
        start, line = line, line + len(rows) - 1
        if len(filled) < 2:
            continue
        title, place = filled[0][1], filled[1][1]
        books.setdefault(title, [])
        said = "\n".join(row for _, row in filled[2:])
        if said and said not in (block.text for block in books[title]):
            books[title].append(Block(said, 0, str(start + filled[2][0])))
        else:
            reason = "marked before" if said else "a bookmark without a text"
            left_out.setdefault(title, []).append((str(start + filled[1][0]), reason, said or place))
    return [_book(title, blocks, left_out.get(title, [])) for title, blocks in books.items() if blocks]


def _book(title: str, blocks: list[Block], left_out: list[tuple[str, str, str]]) -> Document:
    match = re.fullmatch(r"(.+?)\s*\(([^()]+)\)", title)
    metadata = {"author": match[2]} if match else {}
    return Document(match[1] if match else title, tuple(blocks), (), metadata, tuple(left_out))
