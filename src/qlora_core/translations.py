"""Texts in the reader's language. English texts are their own keys; `languages/*.po` hold translations.

Knows nothing of the reader: whoever shows texts to people sets `find_language`, which returns the language to use.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LANGUAGES = {"en": "English", "pt": "Português"}
CATALOGUES = Path(__file__).parent / "languages"

SIGNS = {"pt": {",": "\u00a0", ".": ","}}
"""Signs of a language in place of Python's `,` and `.`: European Portuguese with a no-break space and a
comma (Unicode CLDR, pt-PT), from four digits on."""

find_language: Callable[[], str] = lambda: "en"  # noqa: E731 - replaced by the page


def say(text: str, /, **values: object) -> str:
    """Return `text` in the reader's language, with `values` filled in for their names in braces, `{name}`.

    Numbers among them, and sentences, are told in that language too.
    """
    language = find_language()
    translated = catalogue(language).get(text, text)
    told_values = {name: _in_language(value, language) for name, value in values.items()}
    return translated.format(**told_values) if values else translated


class Numeral(str):
    """A number as the reader's language writes it: 1,659 may be a fraction now, and is not translated again."""


def numeral(written: str, language: str) -> Numeral:
    """Return a number that is written as Python writes it, as a language does."""
    signs = SIGNS.get(language)
    return Numeral(written.translate(str.maketrans(signs)) if signs else written)


class Figure(str):
    """A number as Python writes it, with its digits and sign; told with the signs of the language that it is told in.

    Args:
        value: the number.
        form: a format of Python's: `.4f`, `+.3f`, `.0%`.
    """

    def __new__(cls, value: float, form: str) -> Figure:
        """Return the number as English writes it."""
        return super().__new__(cls, format(value, form))


class Sentence(str):
    """English text that can be told in another language later, when it is known who reads it.

    Args:
        text: as in the catalogues, with names in braces.
        values: what is filled in for them; a sentence among them is translated, too, and a number is written as the
            language writes it, a fraction with the digits that it has: round it before, or give a `Figure`.
    """

    text: str
    values: dict[str, object]

    def __new__(cls, text: str, /, **values: object) -> Sentence:
        """Return the text in English, which remembers what it was made of."""
        made = super().__new__(cls, text.format(**values) if values else text)
        made.text, made.values = text, values
        return made

    @classmethod
    def of_parts(cls, separator: str, parts: Iterable[str]) -> Sentence:
        """Return sentences and other texts one after another, each to be told in the reader's language."""
        named = {f"part{number}": part for number, part in enumerate(parts)}
        return cls(separator.join(f"{{{name}}}" for name in named), **named)

    def within(self, language: str) -> str:
        """Return the text in a language."""
        values = {name: _in_language(value, language) for name, value in self.values.items()}
        translated = catalogue(language).get(self.text, self.text)
        return translated.format(**values) if values else translated

    def as_record(self) -> dict[str, Any]:
        """Return what JSON holds of it, to be told again by `from_record`."""
        return {"text": self.text, "values": {name: _record_of(value) for name, value in self.values.items()}}


def from_record(record: Any) -> Sentence | None:
    """Return a sentence that was recorded by `as_record`; None if that is damaged, or of another version."""
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return None
    values = record.get("values")
    try:
        return Sentence(record["text"], **{name: _recorded(value) for name, value in (values or {}).items()})
    except (AttributeError, LookupError, TypeError, ValueError):
        return None


def _record_of(value: object) -> object:
    if isinstance(value, Figure):
        return {"figure": str(value)}
    return value.as_record() if isinstance(value, Sentence) else value


def _recorded(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return str.__new__(Figure, value["figure"]) if isinstance(value.get("figure"), str) else from_record(value)


def _in_language(value: Any, language: str) -> Any:
    if isinstance(value, Numeral):
        return value
    if isinstance(value, Figure):
        return numeral(value, language)
    if isinstance(value, str):
        return numeral(value, language) if _GROUPED.fullmatch(value) else told(value, language)
    if language not in SIGNS or isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return numeral(f"{value:,}", language)


_GROUPED = re.compile(r"\d{1,3}(,\d{3})+")  # a number as English writes it, which cannot be anything else


def told(text: str, language: str) -> str:
    """Return a sentence in a language, and any other text as it is."""
    return text.within(language) if isinstance(text, Sentence) else text


def spoken(text: str) -> str:
    """Return a sentence in the reader's language, and any other text as it is."""
    return told(text, find_language())


@functools.cache
def catalogue(language: str) -> dict[str, str]:
    """Return the translations into a language, `{English text: translation}`."""
    path = CATALOGUES / f"{language}.po"
    if not path.is_file():
        return {}
    from babel.messages.pofile import read_po  # imported here since English does not need it

    with path.open("rb") as file:
        return {message.id: message.string for message in read_po(file) if message.id and message.string}
