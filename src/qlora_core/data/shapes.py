"""A row as somebody wrote it to a row as it is trained: which of the known shapes it has. Knows nothing of files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

CONVERSATIONS = ("messages", "conversations", "conversation")
PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("pergunta", "resposta"),
    ("instruction", "output"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("question", "response"),
    ("input", "output"),
)
"""Names of what is asked and what is answered; the first pair of which a row has the answer's name is taken."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""The role that each name for a speaker stands for."""

MAPPED = ("messages", "system", "prompt", "completion", "text")

Columns = tuple[tuple[str, str], ...]
"""`(ours, theirs)` for each name that would not be recognised; ours are those of `MAPPED`."""

ACCEPTED = """accepted rows, one JSON object a line in a .jsonl file, or a row of a .json, .csv, .tsv or .parquet file:
  {"messages": [{"role": "user", "content": "Who founded the club?"}, {"role": "assistant", "content": "…"}]}
  {"conversations": [{"from": "human", "value": "Who founded the club?"}, {"from": "gpt", "value": "…"}]}
  {"prompt": "Who founded the club?", "completion": "…"}
  {"instruction": "Answer briefly.", "input": "Who founded the club?", "output": "…"}
  {"question": "Who founded the club?", "answer": "…"}        also {"pergunta": "…", "resposta": "…"}
  {"text": "The club was founded by …"}        also {"prompt": "", "completion": "…"}: running text
other names for columns: --columns prompt=YOUR_NAME completion=YOUR_NAME
and documents: .md, .txt, .html, .docx, .pdf, .epub, .ipynb, .srt, .vtt, .eml, .mbox
and exports: chats of WhatsApp and Telegram, Anki's notes as text, Kindle's clippings"""


@dataclass(frozen=True)
class Shaped:
    """A row whose shape is known.

    Attributes:
        content: `{"messages": […]}` or `{"text": …}`.
        metadata: everything else that the row carried.
        running: whether its text is a line of running text, to be joined with its neighbours.
    """

    content: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    running: bool = False


@dataclass(frozen=True)
class Layout:
    """Which keys of a row hold what; "" for what it has not."""

    messages: str = ""
    system: str = ""
    asked: str = ""
    given: str = ""
    answered: str = ""
    text: str = ""

    @functools.cached_property
    def used(self) -> frozenset[str]:
        """The keys that are not metadata."""
        return frozenset((self.messages, self.system, self.asked, self.given, self.answered, self.text, "metadata"))


@functools.lru_cache(maxsize=4096)  # nearly all rows of a file have the same keys
def layout_of(keys: tuple[str, ...], columns: Columns = ()) -> Layout | None:
    """The shape of rows with these keys, or None; capitals and white space around a name do not matter."""
    names: dict[str, str] = {}
    for key in keys:
        names.setdefault(key.strip().casefold(), key)
    mapped = {ours: theirs for ours, theirs in columns if theirs in keys}
    if mapped:  # what the user says holds alone, whatever other names would mean
        names = {key: names[key] for key in names if key == "system"} | mapped
    for name in CONVERSATIONS:
        if name in names:
            return Layout(messages=names[name])
    for asked, answered in PAIRS:
        if answered in names and (asked in names or answered == "completion"):
            given = names.get("input", "") if asked == "instruction" else ""
            return Layout(
                system=names.get("system", ""), asked=names.get(asked, ""), given=given, answered=names[answered]
            )
    return Layout(text=names["text"]) if "text" in names else None


def columns_of(given: Sequence[str]) -> Columns:
    """The setting `columns`, texts like "prompt=Frage".

    Raises:
        ConfigError: one of them is not `ours=theirs`.
    """
    pairs = [tuple(text.split("=", 1)) for text in given]
    for text, pair in zip(given, pairs, strict=True):
        if len(pair) != 2 or pair[0] not in MAPPED or not pair[1]:
            raise ConfigError(f"columns: wanted OURS=YOURS with OURS one of {', '.join(MAPPED)}; found {text!r}")
    return tuple(pairs)  # type: ignore[arg-type]


def unknown_columns(keys: Iterable[str], columns: Columns) -> str:
    """Why rows of a table with these columns cannot be recognised; "" if they can."""
    keys = tuple(keys)
    if layout_of(keys, columns):
        return ""
    return f"none of its columns is known: {_listed(keys)}. Say which they are: --columns prompt=NAME completion=NAME"


def shape(row: Any, columns: Columns, clean: Callable[[str], str]) -> Shaped:
    """Recognise a row.

    Args:
        row: a JSON value, or a row of a table.
        columns: names that would not be recognised, as `columns_of` gives them.
        clean: what every text goes through.

    Raises:
        ValueError: what is wrong with it, in words for whoever wrote it.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, found {kind(row)}")
    layout = layout_of(tuple(row), columns)
    if layout is None:
        raise ValueError(f'wanted "messages", "prompt" and "completion", or "text"; found the keys {_listed(row)}')
    metadata = {key: value for key, value in row.items() if key not in layout.used}
    if own := row.get("metadata"):
        metadata = {**own, **metadata} if isinstance(own, dict) else {"metadata": own, **metadata}
    if layout.messages:
        return Shaped({"messages": _messages(row[layout.messages], layout.messages, clean)}, metadata)
    if layout.answered:
        return _pair(row, layout, metadata, clean)
    text = clean(_text(row, layout.text))
    if not text:
        raise ValueError("the text is empty")
    return Shaped({"text": text}, metadata)


def _pair(row: dict[str, Any], layout: Layout, metadata: dict[str, Any], clean: Callable[[str], str]) -> Shaped:
    asked, given, system = (
        clean(_text(row, key)) if key else "" for key in (layout.asked, layout.given, layout.system)
    )
    answer = clean(_text(row, layout.answered))
    if not answer:
        raise ValueError(f"the {layout.answered} is empty")
    prompt = f"{asked}\n\n{given}" if asked and given else asked or given
    if not prompt:
        return Shaped({"text": answer}, metadata, running=True)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    return Shaped({"messages": turns}, metadata)


def _text(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise ValueError(f'"{name}" must be a text, found {kind(value)}')
    return value


def _messages(turns: Any, name: str, clean: Callable[[str], str]) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else kind(turns)
        raise ValueError(f'"{name}" must be a list of {{role, content}}, found {found}')
    messages = []
    for number, turn in enumerate(turns, 1):
        role, content = _turn(turn, number, name)
        messages.append({"role": role, "content": clean(content)})
        if role == "assistant" and not messages[-1]["content"]:
            raise ValueError(f"turn {number} is an assistant turn without an answer")
    if all(message["role"] != "assistant" for message in messages):
        raise ValueError("no assistant turn: nothing would be trained")
    return messages


def _turn(turn: Any, number: int, name: str) -> tuple[str, str]:
    keys = ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")
    speaker, content = (turn.get(key) for key in keys) if isinstance(turn, dict) else (None, None)
    if isinstance(content, list):  # parts, as in the interfaces of hosted models
        content = _parts(content, number)
    if isinstance(turn, dict) and content is None and turn.get("tool_calls"):
        raise ValueError(f"turn {number} calls a tool and says nothing: calls of tools are not trained")
    if not isinstance(content, str):
        raise ValueError(f'turn {number} of "{name}" must be {{{keys[0]}, {keys[1]}}} with texts')
    role = ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise ValueError(f"turn {number} has the role {speaker!r}, wanted one of system, user, assistant, tool")
    return role, content


def _parts(parts: list[Any], number: int) -> str:
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"turn {number} holds something that is not text")
    return "\n".join(texts)


def _listed(names: Iterable[Any]) -> str:
    listed = [repr(name) for name in names]
    return (", ".join(listed[:6]) + (" …" if len(listed) > 6 else "")) or "none"


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
