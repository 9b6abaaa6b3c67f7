"""Texts in the reader's language. English texts are their own keys; `languages/*.po` hold translations.

Knows nothing of the reader: whoever shows texts to people sets `find_language`, which returns the language to use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

LANGUAGES = {"en": "English", "pt": "Português"}
CATALOGUES = Path(__file__).parent / "languages"

find_language: Callable[[], str] = lambda: "en"  # noqa: E731 - replaced by the page


def say(text: str, /, **values: object) -> str:
    """Return `text` in the reader's language, with `values` filled in for their names in braces, `{name}`."""
    spoken = catalogue(find_language()).get(text, text)
    return spoken.format(**values) if values else spoken


class Sentence(str):
    """English text that can be told in another language later, when it is known who reads it.

    Args:
        text: as in the catalogues, with names in braces.
        values: what is filled in for them; a sentence among them is translated, too.
    """

    text: str
    values: dict[str, object]

    def __new__(cls, text: str, /, **values: object) -> Sentence:
        """Return the text in English, which remembers what it was made of."""
        made = super().__new__(cls, text.format(**values) if values else text)
        made.text, made.values = text, values
        return made

    def within(self, language: str) -> str:
        """Return the text in a language."""
        values = {name: told(value, language) if isinstance(value, str) else value for name, value in
                  self.values.items()}  # fmt: skip
        spoken = catalogue(language).get(self.text, self.text)
        return spoken.format(**values) if values else spoken


def told(text: str, language: str) -> str:
    """Return a sentence in a language, and any other text as it is."""
    return text.within(language) if isinstance(text, Sentence) else text


@functools.cache
def catalogue(language: str) -> dict[str, str]:
    """Return the translations into a language, `{English text: translation}`."""
    path = CATALOGUES / f"{language}.po"
    if not path.is_file():
        return {}
    from babel.messages.pofile import read_po  # imported here since English does not need it

    with path.open("rb") as file:
        return {message.id: message.string for message in read_po(file) if message.id and message.string}
