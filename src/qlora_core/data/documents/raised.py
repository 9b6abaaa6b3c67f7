"""Raised text: a note's number, a power, or the end of 1st."""

from __future__ import annotations

import re

from .outline import one_line

_RAISED = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
_NUMBERS = re.compile(r"[\[(]?[-+−]?\d{1,4}(?:\s?[,;–-]\s?\d{1,4})*[\])]?")
_SIGN = re.compile(r"\[?[*†‡§]{1,3}\]?")
_AFTER_NOTED = re.compile(r"(?:(?<!\d)(?:1\d|20)\d\d|[^\W\d_]{4,}|[^\W\d_][.,;:!?]|[»”’\"'…]|[.!?])$")
_VARIABLE = re.compile(r"(?:^|[^\w])[^\W\d_]$|\d$|\)$")
_ENDINGS = ("st", "nd", "rd", "th", "a", "o", "e", "er", "re", "ème", "as", "os", "me", "lle", "ª", "º", "tm")


_BEGIN, _END = "\ue000", "\ue001"  # of raised text within a paragraph that is still being read
_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}")


def marked_raised(text: str) -> str:
    """Return text marked as raised, for `with_raised`."""
    return f"{_BEGIN}{text}{_END}"


def with_raised(text: str) -> str:
    """Return a paragraph whose marked text is read by what precedes it."""
    if _BEGIN not in text:
        return text
    text, done, place = text.replace(_END + _BEGIN, ""), "", 0
    for match in _MARKED.finditer(text):
        done += text[place : match.start()]
        done += raised(done, match[1]) if match[1].strip() else match[1]
        place = match.end()
    return (done + text[place:]).replace(_BEGIN, "").replace(_END, "")


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
