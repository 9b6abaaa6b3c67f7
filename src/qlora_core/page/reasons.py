"""Why something in the data was left out, repaired or guessed, in the reader's language.

The report holds these reasons in English, with what was found in them, since it may be read years later. Here the
frequent ones are recognised by their words. A rare one stays English, and is marked so for screen readers.
"""

from __future__ import annotations

import functools
import re

from markupsafe import Markup

from .. import translations
from ..translations import say
from .look import put

REASONS = (
    # debris
    "page number",
    "running head",
    "front matter",
    "contents",
    "legal notice",
    "contact details",
    "end mark",
    "instruction to a chat program",
    "words of a chat program",
    "no message: a picture, a call or a notice",
    # repairs and personal data
    "encoding",
    "Unicode form",
    "control characters",
    "lost characters",
    "e-mail address",
    "telephone number",
    # rows
    "the {field} is empty",
    "the text is empty",
    "the {field} is empty, and most rows of the file have one",
    "{field} must be a text, found {found}",
    "{field} must be a list of turns, found {found}",
    "a row must be a JSON object, found {found}",
    'wanted "messages", "prompt" and "completion", or "text"; found the keys {keys}',
    "not JSON: {problem}",
    "not UTF-8 at byte {place} of the line",
    "the key {key} stands twice",
    "brackets nested too deeply",
    "a number of more than {count} digits",
    "{cells} cells where the header names {columns} columns",
    "no assistant turn: nothing would be trained",
    "nobody answers: nothing would be trained",
    "nobody is answered in it",
    "turn {number} is an assistant turn without an answer",
    "turn {number} has the role {role}, wanted one of {roles}",
    "turn {number} holds something that is not text: {what}",
    "half of a surrogate pair: the text was cut inside a character",
    "not a row of a table: a quotation mark is opened and never closed",
    "marked as not to be trained: {mark}",
    "its language is {other}, wanted {language}",
    "nothing to train: {why}",
    # files
    "a {kind} file is not read",
    "cannot be read: {why}",
    "cannot be read as {kind}: {why}",
    "a {kind} file needs the extra `formats`: uv sync --extra formats",
    "files in it of kinds that are not read: {kinds}",
    "breaks off at line {line} ({why}); what comes before is used",
    "breaks off after line {line} ({why}); what comes before is used",
    "is locked with a password: save it without one",
    "two of its columns are named {name}",
    "none of its columns is known: {columns}. Say which is asked and which answers: {flags}",
    "is not what its name says: the content is a {kind}",
    "a README describes data, it is not data",
    "holds no files",
    "holds no text",
    "it holds no messages",
    "was written by `qlora data`: name it itself to use it",
    "holds what programs fetched or made: left out",
    # documents and guesses
    "it has no title to ask about: say it with --decide title:FILE=TEXT",
    "it has no prose that could be an answer",
    "no title was found: its passages stand under their sections alone",
    "its title was taken to be “{title}”, since it comes again as others do",
    "“{name}” was taken for a {kind}, and asked about as one",
    "“{word}” may be “{parts}”, and was left",
    "the number of chapter {number} was not found: its text is filed under {place}",
    "“{head}” would hold {lines} of {all} lines; it was taken to end before line {place}",
    "“{head}” would hold {lines} of {all} lines; as you say, it does",
    "holds the text of {other}: of every {all} runs of {words} words in the shorter one, the other has {shared}; "
    "{rest}",
    "read as {kind}",
    # what was found in the place of a text
    "null",
    "a list",
    "an empty list",
    "a text",
    "a number",
    "an object",
    # what a document is about
    "person",
    "thing",
)
"""Reasons as the report has them; names in braces stand for what was found."""


def told(reason: str) -> str:
    """Return a reason in the reader's language, unchanged where it is not known."""
    if translations.find_language() == "en":
        return reason
    reason = reason.replace("{role, content}", "turns")
    parts = reason.split(", ")
    if len(parts) > 1 and all(part in REASONS for part in parts):
        return ", ".join(say(part) for part in parts)
    if reason in REASONS:
        return say(reason)
    for pattern, text in _patterns():
        if found := pattern.fullmatch(reason):
            return say(text, **{name: told(value) for name, value in found.groupdict().items()})
    return reason


def cell(reason: str) -> Markup | str:
    """Return a reason for a table: in the reader's language or, marked as such, in English."""
    text = told(reason)
    unknown = text == reason and translations.find_language() != "en"
    return put('<span lang="en">{}</span>', reason) if unknown else text


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return a pattern for each reason with names in it, those with most words first."""
    named = [text for text in REASONS if re.search(r"{\w+}", text)]
    parts = {text: re.split(r"{(\w+)}", text) for text in named}
    return tuple(
        (
            re.compile("".join(f"(?P<{part}>.+)" if i % 2 else re.escape(part) for i, part in enumerate(parts[text]))),
            text,
        )
        for text in sorted(named, key=len, reverse=True)
    )
