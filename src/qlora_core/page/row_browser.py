"""A browser of single rows, each with its tokens as training sees them.

Knows prepared rows, datasets and pieces. No text of a row is HTML: texts are escaped, and invisible characters are
named.
"""

from __future__ import annotations

import itertools
import json
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import marimo as mo
import numpy as np
from markupsafe import Markup

from ..config import RunConfig
from ..data import PreparedData, Rows, texts_of
from ..errors import DataError
from ..reports.in_language import number
from ..tokens.dataset import TokenDataset, make_dataset
from ..tokens.pieces import Piece, parts
from ..tokens.tokenizer import ChatTokenizer
from ..translations import say
from . import reasons
from .look import empty, field, fields, folded, joined, note, put, shown, small

SEARCHED = 200_000  # rows
PATIENCE = 0.8  # seconds that a search may take
BLOCK = 2_000  # rows that are looked through together
SHOWN = 600  # tokens of a row at once
CUT_SHOWN = 200  # of those, truncated tokens
BEFORE = 100  # tokens shown before the requested part
TURNS, LETTERS = 20, 1_000  # of a row as it was read, and of each turn


# Which rows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Rows to look at.

    Attributes:
        rows: all rows of one side.
        dataset: the same rows as tokens.
        places: positions of the requested rows among them, int64.
        asked: number of rows to be searched for a text.
        searched: number of rows that were searched; None without a text.
    """

    rows: Rows
    dataset: TokenDataset
    places: Sequence[int]
    asked: int = 0
    searched: int | None = None


def row_form(text: str = "") -> mo.ui.dictionary:
    """Return a form that selects rows; `text` is the initial search text."""
    sides = {say("Rows to train"): "train", say("Rows to validate"): "validation"}
    only = {say("All"): "all", say("Only cut"): "cut", say("Only unusable"): "skipped"}
    return mo.ui.dictionary(
        {
            "side": mo.ui.dropdown(sides, value=next(iter(sides)), label=say("Rows"), full_width=True),
            "only": mo.ui.dropdown(only, value=next(iter(only)), label=say("Which"), full_width=True),
            "text": mo.ui.text(text, label=say("Search their text"), full_width=True),
        }
    )


def part_form() -> mo.ui.dropdown:
    """Return a form for the part of a row that is too long to be shown whole."""
    parts = {
        say("The beginning"): "first",
        say("Where training begins"): "trained",
        say("Where it is cut"): "cut",
        say("The end"): "last",
    }
    return mo.ui.dropdown(parts, value=next(iter(parts)), label=say("For long rows, show"), full_width=True)


def find(prepared: PreparedData, train: TokenDataset, validation: TokenDataset, wanted: Mapping[str, Any]) -> Found:
    """Return the rows that the form asks for."""
    training = wanted["side"] != "validation"
    rows, dataset = (prepared.train, train) if training else (prepared.validation, validation)
    places: Sequence[int] = range(len(rows))
    if wanted["only"] == "skipped":
        places = tuple(dict.fromkeys(dataset.skipped_places))
    elif wanted["only"] == "cut":
        places = np.unique(dataset.origins(len(rows))[np.flatnonzero(dataset.rows.cut)]).tolist()
    if not wanted["text"].strip():
        return Found(rows, dataset, places, len(places))
    matching, searched = search(rows, places, wanted["text"].strip())
    return Found(rows, dataset, matching, len(places), searched)


def search(rows: Rows, places: Sequence[int], text: str, seconds: float = PATIENCE) -> tuple[list[int], int]:
    """Return the rows among `places` that contain a text, ignoring case and accents, and how many were searched.

    The search ends after `SEARCHED` rows, or when its time is over, but not before one block is done.
    """
    sought = plain(text)
    written = plain(json.dumps(text, ensure_ascii=False)[1:-1])  # as the file encodes it
    deadline, found, done = time.monotonic() + seconds, [], 0
    while done < min(len(places), SEARCHED) and (not done or time.monotonic() < deadline):
        some = places[done : min(done + BLOCK, SEARCHED)]
        lines = _lines(rows, some)
        if written in plain(b"".join(lines).decode("utf-8", "replace")):
            found += [place for place, line in zip(some, lines, strict=True) if _holds(line, written, sought)]
        done += len(some)
    return found, done


def plain(text: str) -> str:
    """Return a text without case and accents, for comparing."""
    if not text.isascii():
        text = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return text.casefold()


_ACCENTS = re.compile("[\u0300-\u036f]+")


def _lines(rows: Rows, places: Sequence[int]) -> list[bytes]:
    if isinstance(places, range):
        return rows.lines(places.start, places.stop)
    return [rows.lines(place, place + 1)[0] for place in places]


def _holds(line: bytes, written: str, sought: str) -> bool:
    """Return whether a row's texts or source contain the search text, rather than only its field names."""
    if written not in plain(line.decode("utf-8", "replace")):
        return False
    row = json.loads(line)
    texts = texts_of(row) if "messages" in row or "text" in row else []
    return any(sought in plain(text) for text in (*texts, row.get("source", "")))


# One row --------------------------------------------------------------------------------------------------------


def row_panel(found: Found, form: mo.ui.dictionary, part: mo.ui.dropdown) -> mo.Html:
    """Return the form, and how many rows it finds."""
    return mo.vstack([fields([field(element) for element in (*form.elements.values(), part)]), _found(found)], gap=0.5)


def _found(found: Found) -> mo.Html:
    """Return how many rows there are to look at, and how far the search came."""
    count, searched, asked = number(len(found.places)), found.searched, found.asked
    if searched is not None and searched < asked:
        far = {"searched": number(searched), "asked": number(asked)}
        text = say(
            "Rows found: {count}, in the first {searched} of {asked}. The others were not searched.", count=count, **far
        )
        return note(text, "warn")
    if not len(found.rows):
        return empty(say("There are no such rows. A higher share kept for validation makes some."))
    return small(say("Rows to look at: {count}", count=count)) if found.places else empty(say("No row is like this."))


def movers(found: Found, move: Callable[[Callable[[int], int]], Any]) -> tuple[Any, Any, Any]:
    """Return buttons to the previous and next row, and a field for a row's number; they stay while one moves.

    Args:
        found: the rows.
        move: called with a function from the old position to the new one.
    """
    last = max(0, len(found.places) - 1)
    none = not found.places

    def jump(text: str) -> None:
        if text.strip().isdecimal():
            move(lambda _: min(max(int(text) - 1, 0), last))

    before = mo.ui.button(label=say("Previous"), on_click=lambda _: move(lambda i: max(i - 1, 0)), disabled=none)
    behind = mo.ui.button(label=say("Next"), on_click=lambda _: move(lambda i: min(i + 1, last)), disabled=none)
    return before, behind, mo.ui.text(label=say("Go to number"), on_change=jump, disabled=none)


def movers_row(found: Found, elements: tuple[Any, Any, Any]) -> mo.Html | None:
    """Return the buttons and the field side by side, if there is a row."""
    return mo.hstack(elements, justify="start", align="center", gap=0.75, wrap=True) if found.places else None


def row_view(found: Found, place: int, tokenizer: ChatTokenizer, config: RunConfig, part: str) -> mo.Html | None:
    """Return one row: where it came from, its turns as a person reads them, and folded away its tokens.

    Args:
        found: the rows.
        place: position of the row among them.
        tokenizer: the model's tokeniser.
        config: says how long a row may be.
        part: the part shown of a long row: first, trained, cut or last.
    """
    if not found.places:
        return None
    place = min(place, len(found.places) - 1)
    row, most = found.rows[found.places[place]], config.data.max_seq_length
    notes = [
        note(say("Not trained: {reason}", reason=reasons.told(why)), "warn")
        for _, why in _skipped(row, tokenizer, most)
    ]
    try:
        found_parts = parts(row, tokenizer, most)
    except DataError:  # reported among the reasons
        found_parts = []
    tokens = [
        part_of
        for number, pieces in enumerate(found_parts, 1)
        for part_of in (_part_heading(number, len(found_parts)), token_boxes(pieces, part))
        if part_of is not None
    ]
    counted = say("Row {number} of {count}", number=number(place + 1), count=number(len(found.places)))
    heading = put('<h3 class="q-row">{} <code>{}</code></h3>', counted, row.get("source", ""))
    as_tokens = [folded(say("As tokens"), mo.vstack(tokens, gap=0.5))] if tokens else []
    return mo.vstack([shown(heading), *notes, _turns(row), *as_tokens], gap=0.5)


def _part_heading(place: int, count: int) -> mo.Html | None:
    """Return which of a conversation's training texts this is, if there are several."""
    if count == 1:
        return None
    return small(say("Learned as {count} rows; this is number {number}", count=number(count), number=number(place)))


def _skipped(row: Mapping[str, Any], tokenizer: ChatTokenizer, most: int) -> tuple[tuple[str, str], ...]:
    return make_dataset([dict(row)], tokenizer, most).skipped


def _turns(row: Mapping[str, Any]) -> mo.Html:
    """Return who says what, as it was prepared."""
    turns = row.get("messages") or [{"role": say("text"), "content": row["text"]}]
    lines = [
        put('<div><dt>{}</dt><dd dir="auto">{}</dd></div>', heading, _shortened(text))
        for turn in turns[:TURNS]
        for heading, text in _said(turn)
    ]
    parts = [shown(put('<dl class="q-turns">{}</dl>', joined(lines)))]
    if len(turns) > TURNS:
        parts.append(small(say("{count} more turns", count=number(len(turns) - TURNS))))
    return mo.vstack(parts, gap=0.25)


def _said(turn: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a turn thinks, says and calls, each with who and how."""
    role = turn["role"] if turn.get("train", True) else say("{role}, not trained", role=turn["role"])
    thought = turn.get("reasoning_content")
    calls = turn.get("tool_calls", ())
    said = [(say("{role}, thinking", role=role), thought)] if thought else []
    said += [(role, turn["content"])] if turn["content"] or not (thought or calls) else []
    written = (json.dumps(call["function"], ensure_ascii=False) for call in calls)
    return [*said, *((say("{role}, calling a tool", role=role), call) for call in written)]


def _shortened(text: str) -> str:
    if len(text) <= LETTERS:
        return text
    return text[:LETTERS] + " … " + say("({count} characters more)", count=number(len(text) - LETTERS))


# Its tokens -----------------------------------------------------------------------------------------------------


def token_boxes(found: Sequence[Piece], part: str = "first") -> mo.Html:
    """Return tokens as boxes, at most `SHOWN` of them, with the boxes' meaning and number."""
    start, stop = window(found, part)
    runs = itertools.groupby(range(start, stop), key=lambda place: found[place].kind)
    boxes = joined(_run(kind, places, found) for kind, places in runs)
    trained, cut = (sum(piece.kind == kind for piece in found) for kind in ("trained", "cut"))
    counts = {"all": number(len(found)), "trained": number(trained), "cut": number(cut)}
    counted = say("Tokens: {all}; trained: {trained}; cut off: {cut}", **counts)
    before = (
        put('<p class="q-small">{}</p>', say("… {count} tokens before these", count=number(start))) if start else ""
    )
    left = len(found) - stop
    behind = put('<p class="q-small">{}</p>', say("… {count} more tokens", count=number(left))) if left else ""
    region = put('<div class="q-tokens" role="group" aria-label="{}" tabindex="0">{}</div>', say("Tokens"), boxes)
    whole = put('<p class="q-small">{}</p>{}{}{}{}', counted, legend(), before, region, behind)
    return shown(put('<div class="q-token-view">{}</div>', whole))


def window(found: Sequence[Piece], part: str) -> tuple[int, int]:
    """Return which tokens are shown: the start and the stop."""
    cut = next((i for i, piece in enumerate(found) if piece.kind == "cut"), len(found))
    trained = next((i for i, piece in enumerate(found) if piece.kind == "trained"), 0)
    last = len(found) - SHOWN
    wanted = {"first": 0, "trained": trained - BEFORE, "cut": cut + CUT_SHOWN - SHOWN, "last": last}[part]
    start = max(0, min(wanted, last))
    stop = min(start + SHOWN, len(found))
    if part != "last":
        return start, min(stop, cut + CUT_SHOWN)
    return (stop - CUT_SHOWN if stop - max(start, cut) > CUT_SHOWN else start), stop


def legend() -> Markup:
    """Return the meaning of boxes and signs, in words."""
    kinds = [("trained", say("trained")), ("context", say("read, not trained")), ("cut", say("cut off"))]
    boxes = [put('<span class="q-run q-{}"><span class="q-token">{}</span></span>', *kind) for kind in kinds]
    boxes.append(put('<span class="q-token q-special">{}</span>', say("control token")))
    signs = [
        (_SPACE, say("space")),
        (_LINE, say("line feed")),
        (_REST, say("continues the previous character")),
    ]
    boxes += [put("<span>{} {}</span>", sign, words) for sign, words in signs]
    return put('<p class="q-legend">{}</p>', Markup(" ").join(boxes))


def _run(kind: str, places: Iterable[int], found: Sequence[Piece]) -> Markup:
    """Return tokens of one kind that stand together; a screen reader is told the kind once."""
    words = {"trained": say("trained"), "context": say("read, not trained"), "cut": say("cut off")}[kind]
    boxes = joined(_box(place, found) for place in places)
    return put('<span class="q-run q-{}"><span class="q-unseen">[{}:] </span>{}</span>', kind, words, boxes)


def _box(place: int, found: Sequence[Piece]) -> Markup:
    piece = found[place]
    where = say("id {id}, token {place} of the row", id=piece.id, place=place + 1)
    kind = Markup(" q-special") if piece.special else ""
    return put('<span class="q-token{}" title="{}">{}</span><wbr>', kind, where, visible(piece.text))


_SIGN = '<i class="q-sign">{}</i>'
_SPACE, _LINE, _TAB, _REST = (put(_SIGN, sign) for sign in "·↵⇥◂")


def visible(text: str) -> Markup:
    """Return a token's text with invisible characters made visible; for a token without text, that it goes on."""
    if not text:
        return _REST
    left = len(text) - LETTERS
    letters = itertools.chain(map(_letter, text[:LETTERS]), [put("… +{}", left)] if left > 0 else [])
    alone = Markup("◌") if unicodedata.combining(text[0]) else Markup("")
    return alone + joined(letters)


def _letter(letter: str) -> Markup:
    known = {" ": _SPACE, "\n": _LINE + Markup("<br>"), "\t": _TAB}.get(letter)
    if known is not None:
        return known
    # controls, joiners, what turns the direction of writing, other spaces, and what cannot be encoded
    if unicodedata.category(letter) in _UNSEEN or letter == "\u00ad":
        return put(_SIGN, f"U+{ord(letter):04X}")
    return put("{}", letter)


_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp")
