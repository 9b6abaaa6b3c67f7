"""Files that are not what their suffix says, or hold several documents: chats, cards, clippings, mail."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .chats import Chat, read_dialogue, read_log, read_signal, read_signal_export, read_telegram
from .chats.dialogue import is_dialogue
from .chats.signal import is_signal, is_signal_export
from .chats.telegram import is_telegram
from .chats.whatsapp import is_log
from .documents import MARKDOWN
from .documents.anki import read_package
from .documents.cards import has_head, is_deck, is_wider_deck, read_deck, read_wider_deck
from .documents.clippings import is_clippings, read_clippings
from .documents.mail import read_mail
from .documents.outline import UnreadableError
from .documents.subtitles import is_subtitles, read_subtitles
from .encoding import decode, detect
from .records import Document
from .sources import SEPARATED


@dataclass(frozen=True)
class LeftOut:
    """Something of a file that is not used: where it stands, why, and what it is."""

    place: str
    reason: str
    sample: str


Item = Chat | Document | LeftOut | tuple[str, dict[str, Any]]
"""A chat, a document, a row with its line, or something that is left out."""

TEXTS = (".txt", *MARKDOWN)


@dataclass(frozen=True)
class Format:
    """A file format: how it is recognised and read.

    Attributes:
        name: description in words: "Anki's notes".
        forms: suffixes of files that may be it.
        is_it: looks at the beginning of the file's text.
        read: returns all of it, given the file's content and the title in its name.
        hint: note in the report on how it is read.
    """

    name: str
    forms: tuple[str, ...]
    is_it: Callable[[str], bool]
    read: Callable[[bytes, str], Iterator[Item]]
    hint: str = ""


def recognise(form: str, sample: bytes) -> Format | None:
    """Return the format of a file with this suffix, by its beginning; None if it is what its suffix says."""
    candidates = [kind for kind in FORMATS if form in kind.forms]
    text = sample.decode(detect(sample), errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return next((kind for kind in candidates if kind.is_it(text)), None)


def read_items(kind: Format, content: bytes, name: str) -> list[Item]:
    """Return the content of a file of this format.

    Raises:
        ValueError: why it cannot be read, in one plain line.
    """
    try:
        return list(kind.read(content, name))
    except ImportError:
        raise ValueError(f"reading {kind.name} needs the extra `formats`: uv sync --extra formats") from None
    except UnreadableError as error:
        raise ValueError(str(error)) from None
    except (ValueError, RecursionError, csv.Error, LookupError, AttributeError, TypeError) as error:  # damage
        raise ValueError(f"cannot be read as {kind.name}: {' '.join(str(error).split())[:200]}") from None


def _telegram(content: bytes, _: str) -> Iterator[Item]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is a broken export of Telegram: {error}") from None
    yield from read_telegram(value)


def _package(content: bytes, _: str) -> Iterator[Item]:
    for place, row, media in read_package(content):
        if row is None:
            yield LeftOut(place, "a note whose question or answer is only a picture or a sound", media)
            continue
        if media:
            yield LeftOut(place, "pictures and sounds of a note", media)
        yield place, row


def _text(content: bytes) -> str:
    return decode(content)[0].lstrip("\ufeff")


WIDER = (
    ": without names of columns the first asks and the second answers. If they do not: a first line of names "
    "(prompt, completion), or spaces for the tabs of what is no table"
)
FORMATS = (
    Format("e-mail", (".eml", ".mbox"), lambda _: True, lambda content, _: iter(read_mail(content))),
    Format("Telegram's export", (".json",), is_telegram, _telegram),
    Format("a deck of Anki", (".apkg", ".colpkg"), lambda _: True, _package),
    Format("Signal's export", (".jsonl",), is_signal, lambda content, _: iter(read_signal(content))),
    Format(
        "a chat of signal-export",
        (".json", ".jsonl"),
        is_signal_export,
        lambda content, name: iter([read_signal_export(content, name)]),
    ),
    Format("Anki's notes", (".txt",), is_deck, lambda content, _: iter(read_deck(_text(content)))),
    Format("cards", (".txt",), is_wider_deck, lambda content, _: iter(read_wider_deck(_text(content))), WIDER),
    Format("Anki's notes", SEPARATED, has_head, lambda content, _: iter(read_deck(_text(content)))),
    Format("Kindle's clippings", (".txt",), is_clippings, lambda content, _: iter(read_clippings(_text(content)))),
    Format("subtitles", (".txt",), is_subtitles, lambda content, _: iter([read_subtitles(_text(content))])),
    Format("a chat", TEXTS, is_log, lambda content, name: iter([read_log(_text(content), name)])),
    Format("a dialogue", TEXTS, is_dialogue, lambda content, name: iter([read_dialogue(_text(content), name)])),
)
OPEN_FORMS = frozenset(form for kind in FORMATS for form in kind.forms)
"""Suffixes of files that may be something else, whose beginning is therefore examined."""
