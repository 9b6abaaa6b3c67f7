"""Plain text and PDF, which have only lines."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..encoding import decode
from ..records import Document, Fragment
from ..tabular import barred
from .columns import ENOUGH_LINES, read_columns
from .outline import UnreadableError, one_line, without_emoji

COLUMNS_LETTERS = 150  # of a page that may have columns
_NO_TITLE = re.compile(  # a file name, what programs put there, or nothing that is a word
    r"\.(?:docx?|dvi|html?|indd|md|odt|pages|pdf|pptx?|ps|pub|qxd|rtf|tex|txt|wpd|xlsx?)$"
    r"|^microsoft (?:word|powerpoint|excel) - |^(?:untitled|sem t[ií]tulo|documento?)[ \d]*$|^[\W\d_]*$",
    re.IGNORECASE,
)
_BROKEN = re.compile(r"[^\W\d_][-\u2010\u00ad]$")


def _fragments(lines: Iterable[tuple[str, str]]) -> list[Fragment]:
    """Return lines with their places; several empty ones count as one, and none is first or last."""
    fragments: list[Fragment] = []
    for text, place in lines:
        if one_line(text) or (fragments and fragments[-1].text):
            fragments.append(Fragment(one_line(text), place))
    if fragments and not fragments[-1].text:
        fragments.pop()
    if not fragments:
        raise UnreadableError("holds no text")
    return fragments


def read_text(content: bytes) -> Document:
    """Return every line with its number."""
    lines = enumerate(barred(decode(content)[0].split("\n")), 1)
    return Document(lines=tuple(_fragments((text, str(number)) for number, text in lines)))


def read_pdf(content: bytes) -> Document:
    """Return every line with its page."""
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("is locked with a password: save it without one")
        pages = [_whole(_text_of(page)).strip() for page in reader.pages]
        said = reader.metadata or {}
        said = {key: said[key] for key in said}  # which looks up what is stored elsewhere
    except pypdf.errors.DependencyError:  # AES, which pypdf only reads with another library
        raise UnreadableError("is locked with a password: save it without one") from None
    if pages and not any(pages):
        count = f"its {len(pages)} pages hold" if len(pages) > 1 else "its only page holds"
        raise UnreadableError(f"{count} no text, only pictures: run OCR on it first")
    lines = ((line, f"page {number}") for number, page in enumerate(pages, 1) if page for line in page.split("\n"))
    found = (said.get(key) for key in ("/Title", "/Author"))
    title, author = (one_line(_whole(each)) if isinstance(each, str) else "" for each in found)
    title = "" if _NO_TITLE.search(title) else without_emoji(title)
    return Document(title, (), tuple(_rejoined(_fragments(lines))), {"author": author} if author else {})


def _text_of(page: Any) -> str:
    """Return a page's text, column by column if it has columns, whatever order they were drawn in."""
    text = page.extract_text()
    if text.count("\n") + 1 < ENOUGH_LINES or len(text) < COLUMNS_LETTERS:
        return text
    try:
        placed = page.extract_text(extraction_mode="layout", space_vertically=True)
    except Exception:  # fonts that say nothing of their widths make it raise anything; the text itself is there
        return text
    found = read_columns(placed)
    return "\n".join(found) if found and _same_letters("".join(found), text) else text


def _same_letters(one: str, other: str) -> bool:
    """Return whether two readings of a page have the same letters, except for one in a hundred."""
    counts = [Counter(letter for letter in text if letter.isalnum()) for text in (one, other)]
    return sum(((counts[0] - counts[1]) + (counts[1] - counts[0])).values()) <= len(other) / 100


def _whole(text: str) -> str:
    """Return text without lone surrogates, which fonts may produce and no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _rejoined(lines: Iterable[Fragment]) -> list[Fragment]:
    """Rejoin words that were broken at line ends; a hyphen that the next line repeats is the word's own."""
    joined: list[Fragment] = []
    for line in lines:
        if joined and _BROKEN.search(joined[-1].text) and line.text.removeprefix("-")[:1].islower():
            word, _, rest = line.text.partition(" ")
            joined[-1] = replace(joined[-1], text=joined[-1].text[:-1] + word)
            if not rest:
                continue
            line = replace(line, text=rest)
        joined.append(line)
    return [replace(line, text=line.text.replace("\u00ad", "")) for line in joined]
