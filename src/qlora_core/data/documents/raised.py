"""Raised text in HTML and Markdown: a note's number, a power, or the end of 1st."""

from __future__ import annotations

import re

from .outline import one_line

_RAISED = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
_NUMBERS = re.compile(r"[\[(]?[-+−]?\d{1,4}(?:\s?[,;–-]\s?\d{1,4})*[\])]?")
_SIGN = re.compile(r"\[?[*†‡§]{1,3}\]?")
_AFTER_NOTED = re.compile(r"(?:(?<!\d)(?:1\d|20)\d\d|[^\W\d_]{4,}|[^\W\d_][.,;:!?]|[»”’\"'…]|[.!?])$")
_VARIABLE = re.compile(r"(?:^|[^\w])[^\W\d_]$|\d$|\)$")
_ENDINGS = ("st", "nd", "rd", "th", "a", "o", "e", "er", "re", "ème", "as", "os", "me", "lle", "ª", "º", "tm")


def raised(before: str, text: str, *, links: bool = False) -> str:
    """Return the words for raised text that follows the text before it.

    A note's number is dropped, since it would change a year before it. Other numbers become raised digits (10⁶, m²),
    other powers get ^, and the ends of words and ordinals stay as they are.

    Args:
        before: the text of the line so far.
        text: the raised text.
        links: whether it leads to somewhere.
    """
    text = one_line(text)
    if _SIGN.fullmatch(text) or (links and len(text) < 10 and re.search(r"[\d*†‡]|^\[?[a-z]\]?$", text)):
        return ""
    if _NUMBERS.fullmatch(text):
        return "" if text[0] in "[(" or _AFTER_NOTED.search(before) else text.translate(_RAISED)
    if not text or text.casefold().strip(".") in _ENDINGS or not _VARIABLE.search(before):
        return text
    if re.fullmatch(r"[-−+]?n", text):
        return text.translate(_RAISED)
    return f"^{text}" if len(text) == 1 else f"^({text})" if len(text) < 20 else text
