"""Numbers, sizes, durations and dates as the reader's language writes them, for the page.

Files, JSON and the terminal's English take `plain_text` instead. In English the two agree.
"""

from __future__ import annotations

import time

from .. import translations
from . import plain_text

DATES = {"pt": "%d/%m/%Y %H:%M"}


def number(value: float, form: str = ",") -> str:
    """Return a number; `form` is a format of Python's: `,` for 9,298, `.4f`, `g`."""
    return numeral(format(value, form))


def numeral(written: str) -> str:
    """Return a number that is written as Python writes it, as the reader's language does."""
    return translations.numeral(written, translations.find_language())


def read_number(typed: str) -> str:
    """Return a number that somebody typed, as Python reads it: "0,05" in a language with a decimal comma is "0.05"."""
    signs = translations.SIGNS.get(translations.find_language(), {})
    return typed.replace("\u00a0", "").replace(" ", "").replace(signs.get(".", "."), ".")


def size(count: int) -> str:
    """Return bytes: 4.02 GB, 83 MB, 0.1 MB."""
    return numeral(plain_text.size(count))


def duration(seconds: float) -> str:
    """Return a duration: 1 h 02 min, 3 min 04 s, 5 s."""
    return plain_text.duration(seconds)


def about(seconds: float) -> str:
    """Return a duration as roughly as it is known: whole minutes from a minute on."""
    if round(seconds) < 60:
        return duration(max(1.0, seconds))
    return duration(60 * round(seconds / 60)).replace(" 00 s", "")


def percent(share: float, decimals: int = 0) -> str:
    """Return a share between 0 and 1 in percent."""
    return number(100 * share, f".{decimals}f") + "%"


def share(part: int, whole: int) -> str:
    """Return a share of a whole in percent, 0% of nothing."""
    return percent(part / whole) if whole else "0%"


def moment(seconds: float, *, date: bool = True) -> str:
    """Return a moment on this machine's clock: date and minute, or without `date` hour, minute and second.

    Args:
        seconds: since 1970.
        date: whether the day is told.
    """
    form = DATES.get(translations.find_language(), "%Y-%m-%d %H:%M") if date else "%H:%M:%S"
    return time.strftime(form, time.localtime(seconds))


def vega_locale() -> dict[str, object]:
    """Return the locale that Vega writes the numbers of a chart with, as its `config.locale` takes it."""
    signs = translations.SIGNS.get(translations.find_language(), {})
    return {
        "number": {
            "decimal": signs.get(".", "."),
            "thousands": signs.get(",", ","),
            "grouping": [3],
            "currency": ["", ""],
        }
    }
