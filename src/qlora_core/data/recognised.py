"""Files that are something else than their suffix says, or hold several documents: chats, cards, clippings, mail."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .chats import Chat, read_dialogue, read_log, read_telegram
from .chats.dialogue import is_dialogue
from .chats.telegram import is_telegram
from .chats.whatsapp import is_log
from .documents.cards import has_head, is_deck, read_deck
from .documents.clippings import is_clippings, read_clippings
from .documents.mail import read_mail
from .documents.subtitles import is_subtitles, read_subtitles
from .encoding import decode, detect
from .records import Document

Item = Chat | Document | tuple[str, dict[str, Any]]
"""A chat, a document, or a row with its line."""

TEXTS = (".txt", ".md", ".markdown")


@dataclass(frozen=True)
class Format:
    """What a file is, and how it is read.

    Attributes:
        name: in words, "Anki's notes".
        forms: suffixes of files that may be it.
        is_it: looks at the beginning of the file's text.
        read: all of it, given the file's content and what its name says.
    """

    name: str
    forms: tuple[str, ...]
    is_it: Callable[[str], bool]
    read: Callable[[bytes, str], Iterator[Item]]


def recognise(form: str, sample: bytes) -> Format | None:
    """What a file with this suffix is, by its beginning; None: what its suffix says."""
    candidates = [kind for kind in FORMATS if form in kind.forms]
    text = sample.decode(detect(sample), errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return next((kind for kind in candidates if kind.is_it(text)), None)


def read_items(kind: Format, content: bytes, name: str) -> list[Item]:
    """What a file of this format holds.

    Raises:
        ValueError: why it cannot be read, in one plain line.
    """
    try:
        return list(kind.read(content, name))
    except ImportError:
        raise ValueError(f"{kind.name} in HTML need the extra `formats`: uv sync --extra formats") from None
    except (ValueError, RecursionError, csv.Error, LookupError, AttributeError, TypeError) as error:  # damage
        raise ValueError(f"cannot be read as {kind.name}: {' '.join(str(error).split())[:200]}") from None


def _telegram(content: bytes, _: str) -> Iterator[Item]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is a broken export of Telegram: {error}") from None
    yield from read_telegram(value)


def _text(content: bytes) -> str:
    return decode(content)[0].lstrip("\ufeff")


FORMATS = (
    Format("e-mail", (".eml", ".mbox"), lambda _: True, lambda content, _: iter(read_mail(content))),
    Format("Telegram's export", (".json",), is_telegram, _telegram),
    Format("Anki's notes", (".txt",), is_deck, lambda content, _: iter(read_deck(_text(content)))),
    Format("Anki's notes", (".tsv", ".csv"), has_head, lambda content, _: iter(read_deck(_text(content)))),
    Format("Kindle's clippings", (".txt",), is_clippings, lambda content, _: iter(read_clippings(_text(content)))),
    Format("subtitles", (".txt",), is_subtitles, lambda content, _: iter([read_subtitles(_text(content))])),
    Format("a chat", TEXTS, is_log, lambda content, name: iter([read_log(_text(content), name)])),
    Format("a dialogue", TEXTS, is_dialogue, lambda content, name: iter([read_dialogue(_text(content), name)])),
)
OPEN_FORMS = frozenset(form for kind in FORMATS for form in kind.forms)
"""Suffixes of files that may be something else, so that it is worth to look how they begin."""
