"""Recognition of a row's shape, among the known ones, from its columns. Knows nothing of files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .columns import (
    MAPPED,
    OPTIONS,
    PAIRS,
    TELLING,
    ColumnRoles,
    Columns,
    column_roles,
    columns_of,
    content_length,
    has_column,
    is_truth,
    listed,
    says_no,
    says_yes,
    unknown_columns,
    which_columns,
)
from .known_row import Clean, KnownRow, Shaped, are_turns, other_shape, whole_text
from .records import MarkedError
from .speakers import TALK_BEGINS, with_speakers
from .threads import speaks
from .turns import ROLES, Noted
from .values import as_text, kind, unpacked

__all__ = ["ACCEPTED", "MAPPED", "PAIRS", "ROLES", "ColumnRoles", "Columns", "Shaped", "column_roles", "columns_of",
           "kind", "shape", "unknown_columns"]  # fmt: skip

ACCEPTED = """accepted rows, one JSON object a line in a .jsonl file, or a row of a .json, .csv, .tsv or .parquet file:
  {"messages": [{"role": "user", "content": "Who founded the club?"}, {"role": "assistant", "content": "…"}]}
  {"conversations": [{"from": "human", "value": "Who founded the club?"}, {"from": "gpt", "value": "…"}]}
  {"prompt": "Who founded the club?", "completion": "…"}
  {"instruction": "Answer briefly.", "input": "Who founded the club?", "output": "…"}
  {"question": "Who founded the club?", "answer": "…"}        also {"pergunta": "…", "resposta": "…"}
  {"text": "The club was founded by …"}        also {"prompt": "", "completion": "…"}: running text
beside them: system, context, history, options, reasoning, tools; of chosen and rejected, chosen is the answer,
  and of response_a and response_b the one that winner, preferred or better_response_id names
other names for columns: --columns prompt=YOUR_NAME completion=YOUR_NAME, or of what is in one: translation.en
and documents: .md, .txt, .html, .docx, .odt, .rtf, .pdf, .epub, .tex, .ipynb, .srt, .vtt, .eml, .mbox
and exports: chats of WhatsApp, Telegram and Signal, Anki's notes and decks, Kindle's clippings
and folders of source code, and archives (.zip, .tar) of all of these"""


def shape(row: Any, columns: Columns, clean: Clean) -> Shaped:
    """Recognise the shape of a row.

    Args:
        row: a JSON value, or a row of a table; a null is as good as absent.
        columns: names that would not be recognised, as `columns_of` gives them.
        clean: applied to every text.

    Raises:
        MarkedError: its author marked it as not to be trained.
        ValueError: what is wrong with it, in words for whoever wrote it.
    """
    if are_turns(row):
        row = {"messages": row}
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, found {kind(row)}")
    if type(row.get("question")) is dict:
        row = _with_stem(row)
    if columns:
        row = _opened(row, columns)
    if None in row.values():
        row = _without_nulls(row, columns)
    roles = column_roles(tuple(row), columns) or _talk_of(row, columns)
    if roles is None:
        raise ValueError(_unrecognised(row))
    if roles.published:
        plain, guess = roles.published.plain(row)
        found = shape(plain, columns, clean)
        return replace(found, guesses=(*found.guesses, guess)) if guess else found
    if roles.rivals:
        roles = column_roles(tuple(row), columns, roles.rivals.better(row)) or roles
    if (roles.chosen and is_truth(row[roles.chosen])) or (roles.rejected and is_truth(row[roles.rejected])):
        return shape(_judged(row, roles), columns, clean)
    if roles.messages and not row[roles.messages] and (other := other_shape(row, roles, columns)):
        return shape(other, columns, clean)
    if len(row) == 1 and roles.text:  # the fast path for nearly all texts
        return Shaped({"text": whole_text(row, roles, clean)})
    if roles.text and (speaks(row) or ("user" in row and "ts" in row)):  # the latter is Slack's
        raise ValueError(_ALONE)
    if len(row) == 2 and roles.plain and (turns := _question(row, roles, clean)):  # nearly all questions
        return Shaped({"messages": turns})
    shaped = KnownRow(row, roles, columns, clean).shaped()
    return shaped or shape(other_shape(row, roles, columns), columns, clean)


def _with_stem(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose question is an object of a stem and choices, as in ARC's first files, with both beside it."""
    question = row["question"]
    if "stem" not in question or "choices" not in question:
        return row
    others = {key: value for key, value in question.items() if key != "stem" and key not in row}
    return {**row, **others, "question": question["stem"]}


def _talk_of(row: dict[str, Any], columns: Columns) -> ColumnRoles | None:
    """Return the roles of the columns of a row that has no known ones, but one that holds a conversation."""
    if "mapping" in row and "current_node" in row:
        return column_roles(tuple(row), (*columns, ("messages", "mapping")))
    for key in row:
        if key.strip().casefold() in _TALKS and are_turns(with_speakers(unpacked(row[key]), Noted())):
            return column_roles(tuple(row), (*columns, ("messages", key)))
    return None


_TALKS = ("chat", "dialog", "dialogue", "data", "turns", "contents", "chat_messages")


def _unrecognised(row: dict[str, Any]) -> str:
    if speaks(row):
        return _ALONE
    found = f'wanted "messages", "prompt" and "completion", or "text"; found the keys {listed(row)}'
    if "input_ids" in row:
        return f"{found}. Tokens belong to the tokenizer that made them: give the texts"
    texts = _texts_within(row)
    return f"{found}. {which_columns(texts)}" if texts else found


def _texts_within(value: Any, path: str = "") -> list[str]:
    """Return the names of the row's texts, including those within its objects: `translation.en`."""
    if isinstance(value, dict):
        return [name for key, inner in value.items() for name in _texts_within(inner, f"{path}.{key}" if path else key)]
    return [path] if isinstance(value, str) and content_length(path.rpartition(".")[2], value) else []


def _opened(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Return the row with objects expanded into columns that `columns` names: `translation.en`."""
    for _, theirs in columns:
        parts = theirs.split(".")
        for count in range(1, len(parts)):
            if has_column(row, theirs):
                break
            path = ".".join(parts[:count]).strip().casefold()
            key = next((key for key in row if key.strip().casefold() == path), None)
            inner = unpacked(row[key]) if key is not None else None
            if isinstance(inner, dict):
                others = {name: value for name, value in row.items() if name != key}
                row = others | {f"{key}.{name}": value for name, value in inner.items()}
    return row


def _without_nulls(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    filled = {key: v for key, v in row.items() if v is not None or key.strip().casefold() not in _ABSENT_IF_NULL}
    if not column_roles(tuple(filled), columns) and (roles := column_roles(tuple(row), columns)):
        if roles.published:  # which says that its answer is hidden
            return row
        name = next(key for key in (roles.messages, roles.answered, roles.chosen, roles.text, "the answer") if key)
        wanted = "a list of {role, content}" if roles.messages else "a text"
        raise ValueError(f'"{name}" must be {wanted}, found null')
    return filled


def _judged(row: dict[str, Any], roles: ColumnRoles) -> dict[str, Any]:
    """Return a row without `chosen` and `rejected` where these only say that its answer is a good one.

    Raises:
        MarkedError: it is not.
    """
    for key, against in ((roles.chosen, says_no), (roles.rejected, says_yes)):
        if key and is_truth(row[key]) and against(row[key]):
            raise MarkedError(f"marked as not to be trained: {key} {as_text(row[key])}")
    return {key: value for key, value in row.items() if not (key in (roles.chosen, roles.rejected) and is_truth(value))}


def _question(row: dict[str, Any], roles: ColumnRoles, clean: Clean) -> list[dict[str, Any]]:
    """Return the turns of a plain question and its answer; empty if more needs to be said of them."""
    asked, answered = row[roles.asked], row[roles.answered]
    if type(asked) is not str or type(answered) is not str or "<" in asked or asked[:1] in ("[", "{"):
        return []
    if asked.startswith(TALK_BEGINS) or (answered[:1] in ("[", "{") and roles.answered.casefold() == "answers"):
        return []
    asked, answered = clean(asked), clean(answered)
    if not asked or not answered:
        return []
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


_ALONE = (
    "is one message of a conversation, and nothing says which: join the messages to rows, or give each a "
    '"message_id" and a "parent_id", or a "conversation_id"'
)
_ABSENT_IF_NULL = TELLING - frozenset(OPTIONS)  # multiple choice without options cannot be answered
