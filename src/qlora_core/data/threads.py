"""Conversations from messages that stand one a row, or in a tree of replies. Knows rows, nothing of files.

OpenAssistant's files are the known example: each message names the one that it answers, so a question may have several
answers. Every path from a first message to a last one is a conversation; an answer shared by several is trained in the
first of them only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .columns import CONVERSATIONS
from .turns import CALLING, ROLES

_IDS = ("message_id", "id")
_PARENTS = ("parent_id", "parent_message_id", "parent")
_TALKS = ("conversation_id", "thread_id", "dialog_id", "dialogue_id", "session_id", "chat_id", "conv_id")
_ORDERS = ("turn", "turn_id", "turn_index", "turn_idx", "position", "order", "index")
_LEFT_OUT = frozenset((*_IDS, *_PARENTS, *_TALKS, *_ORDERS, "replies", "labels", "emojis", "message_tree_id"))


@dataclass(frozen=True)
class Thread:
    """One conversation.

    Attributes:
        turns: turns in the form that a row holds.
        places: positions of their rows, in order.
        given: number of first turns that an earlier conversation holds too.
        root: tells the tree, or the talk, that it is one of.
    """

    turns: list[dict[str, Any]]
    places: list[int]
    given: int
    root: str


def is_one_message(row: Any) -> bool:
    """Return whether a row is one message of a conversation and names which."""
    if not isinstance(row, dict) or not speaks(row):
        return False
    return bool(_first(row, _IDS) and any(key in row for key in _PARENTS)) or _first(row, _TALKS) is not None


def speaks(row: dict[str, Any]) -> bool:
    """Return whether a row states speaker and text, and holds no conversation of its own."""
    role = row.get("role")
    known = isinstance(role, str) and role.strip().casefold() in (*ROLES, *CALLING)
    text = row.get("text", row.get("content"))
    return known and isinstance(text, str) and not any(name in row for name in CONVERSATIONS)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


@dataclass
class _Message:
    turn: dict[str, Any]
    place: int
    parent: int = -1
    root: str = ""
    children: list[int] = field(default_factory=list)


def _turn_of(row: dict[str, Any]) -> dict[str, Any]:
    left = {key: value for key, value in row.items() if key not in (*_LEFT_OUT, "role", "text", "content")}
    return {"role": row["role"], "content": row.get("text", row.get("content")), **left}


class Messages:
    """The messages of a file, gathered one by one.

    Attributes:
        unanswered: places of messages that no conversation holds, with why; filled by `threads`.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.unanswered: list[tuple[int, str]] = []

    def add(self, place: int, row: dict[str, Any]) -> None:
        """Add one message."""
        self.rows.append((place, row))

    def threads(self) -> Iterator[Thread]:
        """Yield the conversations of the messages, ordered by their last messages."""
        replies = [(place, row) for place, row in self.rows if any(key in row for key in _PARENTS)]
        talks: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for place, row in self.rows:
            if not any(key in row for key in _PARENTS):
                talks.setdefault(str(_first(row, _TALKS)), []).append((place, row))
        yield from self._paths(self._tree(replies))
        for name, said in talks.items():
            yield from self._paths(_chain(said, name))

    def _tree(self, rows: list[tuple[int, dict[str, Any]]]) -> list[_Message]:
        """Return the messages with their replies; one whose question is missing is noted as unanswered, as they are."""
        found: list[_Message] = []
        where: dict[Any, int] = {}
        for place, row in rows:
            name = str(_first(row, _IDS))
            if name in where:
                self.unanswered.append((place, f"its message_id {name!r} stands twice"))
                continue
            where[name] = len(found)
            found.append(_Message(_turn_of(row), place, root=str(_first(row, _PARENTS) or "")))
        for number, message in enumerate(found):
            if message.root:
                message.parent = where.get(message.root, -2)
                if message.parent >= 0:
                    found[message.parent].children.append(number)
                else:
                    self.unanswered.append((message.place, f"the message {message.root!r} that it answers is not here"))
        return found

    def _paths(self, messages: list[_Message]) -> Iterator[Thread]:
        given: set[int] = set()
        told: set[int] = {place for place, _ in self.unanswered}
        reached: set[int] = set()
        open_ends: list[int] = []
        for leaf in (number for number, message in enumerate(messages) if not message.children):
            path = _path(messages, leaf)
            reached.update(path)
            if messages[path[0]].parent == -2:  # the beginning is not there
                self._tell(messages, path[1:], told, "the beginning of its conversation is not here")
                continue
            while path and not _answers(messages[path[-1]]):
                open_ends.append(path.pop())
            if not path or path[-1] in given:
                continue
            before = sum(number in given for number in path)
            given.update(path)
            turns = [messages[number].turn for number in path]
            places = [messages[number].place for number in path]
            yield Thread(turns, places, before, messages[path[0]].root or str(messages[path[0]].place))
        self._tell(messages, [number for number in open_ends if number not in given], told, "nobody answers it")
        round_about = [number for number in range(len(messages)) if number not in reached]
        self._tell(messages, round_about, told, "its messages answer each other in a circle")

    def _tell(self, messages: list[_Message], numbers: list[int], told: set[int], reason: str) -> None:
        for number in numbers:
            if messages[number].place not in told:
                told.add(messages[number].place)
                self.unanswered.append((messages[number].place, reason))


def _answers(message: _Message) -> bool:
    role = str(message.turn["role"]).strip().casefold()
    return ROLES.get(role) == "assistant" or role in CALLING


def _path(messages: list[_Message], leaf: int) -> list[int]:
    path = [leaf]
    while messages[path[-1]].parent >= 0:
        path.append(messages[path[-1]].parent)
    return path[::-1]


def _chain(said: list[tuple[int, dict[str, Any]]], name: str) -> list[_Message]:
    """Return the messages of one talk, one after the other."""
    order = next((key for key in _ORDERS if all(isinstance(row.get(key), int | float) for _, row in said)), "")
    said = sorted(said, key=lambda entry: entry[1][order]) if order else said
    messages = [_Message(_turn_of(row), place, number - 1, name) for number, (place, row) in enumerate(said)]
    for number, message in enumerate(messages[:-1]):
        message.children = [number + 1]
    return messages


# Trees ----------------------------------------------------------------------------------------------------------


def root_of(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first message of a row that is a tree of replies; None if it is none."""
    for root in (row.get("prompt"), row):
        if isinstance(root, dict) and isinstance(root.get("replies"), list) and speaks(root):
            return root
    return None


def tree_threads(root: dict[str, Any], place: int) -> Iterator[Thread]:
    """Return the conversations of a tree of replies.

    Raises:
        ValueError: a reply does not say who speaks, or nobody answers.
    """
    messages = [_Message(_turn_of(root), place)]
    open_nodes = [(0, root)]
    while open_nodes:
        number, node = open_nodes.pop()
        for reply in node.get("replies") or []:
            if not isinstance(reply, dict) or not speaks(reply):
                raise ValueError("one of its replies is not {role, text}")
            messages[number].children.append(len(messages))
            open_nodes.append((len(messages), reply))
            messages.append(_Message(_turn_of(reply), place, number))
    found = list(Messages()._paths(messages))
    if not found:
        raise ValueError("nobody answers: nothing would be trained")
    return iter(found)
