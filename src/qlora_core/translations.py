"""What the page says, in the reader's language. An English text is its own name; `languages/*.po` hold the others.

Knows nothing of who reads: whoever shows texts to people tells by `find_language` how that is found out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

LANGUAGES = {"en": "English", "pt": "Português"}
CATALOGUES = Path(__file__).parent / "languages"

find_language: Callable[[], str] = lambda: "en"  # noqa: E731 - replaced by the page


def say(text: str, /, **values: object) -> str:
    """`text` in the reader's language, with values in the places of their names, `{name}`."""
    spoken = catalogue(find_language()).get(text, text)
    return spoken.format(**values) if values else spoken


@functools.cache
def catalogue(language: str) -> dict[str, str]:
    """English texts and what they are in another language."""
    path = CATALOGUES / f"{language}.po"
    if not path.is_file():
        return {}
    from babel.messages.pofile import read_po  # only here: English needs none

    with path.open("rb") as file:
        return {message.id: message.string for message in read_po(file) if message.id and message.string}
