"""Fit a prepared conversation for a chat template: reasoning, tools, calls, and which answers are trained.

Knows messages, and what a template can write; nothing of a template's text or of tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..config import Reasoning

Message = Mapping[str, Any]


class Beginning(str):
    """The beginning of a text that a model shall go on with, not a question to it."""


Prompt = str | Sequence[Message]
"""A question, or the messages before the answer; or a `Beginning`."""
Note = Literal["system", "tools", "reasoning", "dropped", "altered", "unmarked", "apart"]
"""Something that was done with a conversation and that its author should know, see `report`."""

PASSED = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "tools")
"""Fields of a message that are passed to a template."""
CALL_ID = 9  # letters and digits in the id of a call: Mistral's templates accept no other length

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_THOUGHT_OR_REST = re.compile(r"(.*?)</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class Abilities:
    """The parts of a conversation that a template can write besides questions and answers.

    Attributes:
        system: a system text.
        tools: the tools that may be called: passed to it apart, passed with the system text, or not at all.
        reasoning: an answer's reasoning, given apart from the answer.
        thinks: whether a request depends on whether the answer should begin with reasoning.
    """

    system: bool = True
    tools: Literal["apart", "system", ""] = ""
    reasoning: bool = False
    thinks: bool = False


@dataclass(frozen=True)
class Conversation:
    """Messages as a template takes them.

    Attributes:
        messages: only with fields that are passed to the template.
        tools: for the template's variable of that name; None where there are none.
        targets: indices of the answers that are trained.
        thinks: for each answer, by its index, whether it begins with reasoning; None if no request depends on it.
        unsaid: indices of the answers whose reasoning is read but not trained.
        notes: what was done and its author should know.
        before: number of the author's turns that are gone from the beginning, such as a system text that was moved.
    """

    messages: Sequence[Message]
    tools: Sequence[Any] | None = None
    targets: tuple[int, ...] = ()
    thinks: Mapping[int, bool | None] = field(default_factory=dict)
    unsaid: frozenset[int] = frozenset()
    notes: frozenset[Note] = frozenset()
    before: int = 0

    def number(self, place: int) -> int:
        """Return the number of a turn as its author counts, from 1."""
        return place + 1 + self.before

    def up_to(self, place: int) -> Conversation:
        """Return the conversation before a message."""
        return Conversation(self.messages[:place], self.tools, thinks=self.thinks)


def fit(
    messages: Sequence[Message],
    tools: Sequence[Any] | str | None,
    abilities: Abilities,
    reasoning: Reasoning = "train",
    *,
    move_system: bool = False,
) -> Conversation:
    """Fit a conversation for a template.

    Args:
        messages: of a prepared row: `role`, `content` and, if present, `reasoning_content`, `tool_calls`,
            `tool_call_id`, `name`, and `train` (False) for an answer that is only context.
        tools: tools that may be called, as in the row.
        abilities: what the template can write.
        reasoning: how an answer's reasoning is used.
        move_system: move a system text into the question after it even if the template can write one.
    """
    if not tools and not move_system and (places := _plain_answers(messages, abilities)) is not None:
        return Conversation(messages, None, places, dict.fromkeys(places, False if abilities.thinks else None))
    notes: set[Note] = set()
    turns, tools = len(messages), _listed(tools)
    if any(message["role"] == "system" for message in messages) and (move_system or not abilities.system):
        if any(message["role"] == "system" and (message.get("content") or "").strip() for message in messages):
            notes.add("system")
        messages = _with_system_moved(messages)
    if tools and not abilities.tools:
        notes.add("tools")
    if tools and abilities.tools == "system":
        messages = _with_tools_told(messages, tools)
    ids = _CallIds()
    fitted: list[Message] = []
    thinks: dict[int, bool | None] = {}
    targets, unsaid = [], []
    for place, message in enumerate(messages):
        role = message["role"]
        if role == "assistant":
            if is_target(message):
                targets.append(place)
            message, thought = _with_reasoning(message, abilities, reasoning, notes)
            thinks[place] = thought if abilities.thinks else None
            if thought and reasoning == "keep":
                unsaid.append(place)
        if len(message) > 2 or role == "tool" or message.get("content") is None:
            message = ids.given({"content": "", **{key: message[key] for key in PASSED if _is_there(message, key)}})
        fitted.append(message)
    passed = tools if tools and abilities.tools == "apart" else None
    before = turns - len(fitted)
    return Conversation(fitted, passed, tuple(targets), thinks, frozenset(unsaid), frozenset(notes), before)


def _plain_answers(messages: Sequence[Message], abilities: Abilities) -> tuple[int, ...] | None:
    """Return the indices of the answers if all messages are plain texts, as in nearly every row; else None."""
    places = []
    for place, message in enumerate(messages):
        role, content = message["role"], message.get("content")
        if len(message) != 2 or content is None or role == "tool" or (role == "system" and not abilities.system):
            return None
        if role == "assistant":
            if "</think>" in content:
                return None
            places.append(place)
    return tuple(places)


def is_target(message: Message) -> bool:
    """Return whether a turn is an answer that is trained, that is, not marked as context."""
    return message["role"] == "assistant" and message.get("train") not in (False, 0)


def _is_there(message: Message, key: str) -> bool:
    return message.get(key) is not None and message[key] != []


def _listed(tools: Any) -> list[Any]:
    """Return tools as a list, even if given as JSON text."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            tools = [tools] if tools.strip() else []
    return list(tools) if isinstance(tools, list | tuple) else [tools] if tools else []


def _with_system_moved(messages: Sequence[Message]) -> list[Message]:
    """Move each system text into the question after it and drop empty ones; one without a question stays."""
    moved: list[Message] = []
    waiting: list[Message] = []
    for message in messages:
        if message["role"] == "system":
            waiting += [message] if (message.get("content") or "").strip() else []
        elif message["role"] == "user" and waiting:
            texts = [*(system["content"] for system in waiting), message.get("content") or ""]
            moved.append({**message, "content": "\n\n".join(texts)})
            waiting = []
        else:
            moved.append(message)
    return [*waiting, *moved]


def _with_tools_told(messages: Sequence[Message], tools: Sequence[Any]) -> list[Message]:
    """Add the tools as JSON to the system message, where Phi's templates look for them."""
    told = {"tools": json.dumps(tools, ensure_ascii=False)}
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], **told}, *messages[1:]]
    return [{"role": "system", "content": "", **told}, *messages]


def _with_reasoning(
    message: Message, abilities: Abilities, reasoning: Reasoning, notes: set[Note]
) -> tuple[Message, bool]:
    """Return an answer with its reasoning where the template writes it, and whether there is any."""
    content = message.get("content") or ""
    thought = message.get("reasoning_content") or ""
    inline = _THOUGHT.match(content) if "</think>" in content else None
    if not thought.strip() and not inline:
        return message, False
    said = content
    if inline and not thought.strip():
        thought, said = inline[1].strip("\n"), content[inline.end() :]
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    if not thought.strip():  # an empty thought counts as none; a template that writes no reasoning gets it unchanged
        return ({**rest, "content": said} if abilities.reasoning or abilities.thinks else message), False
    if reasoning == "drop":
        notes.add("dropped")
        return {**rest, "content": said}, False
    notes.add("reasoning")
    if abilities.reasoning:
        return {**rest, "content": said, "reasoning_content": thought}, True
    if said is content:
        content = f"<think>\n{thought}\n</think>\n\n{said}"
    return {**rest, "content": content}, True


def after_reasoning(said: str) -> int:
    """Return where an answer's reasoning ends, which the request may have opened; 0 if there is none."""
    found = _THOUGHT_OR_REST.match(said)
    return found.end() if found else 0


def calls_of(message: Message) -> Iterator[Mapping[str, Any]]:
    """Yield the calls of an answer, each `{"name", "arguments"}`."""
    for call in message.get("tool_calls") or ():
        yield call.get("function") or call


class _CallIds:
    """Gives calls and their results ids that every template accepts."""

    def __init__(self) -> None:
        self._own: dict[str, str] = {}
        self._open: list[str] = []
        self._count = 0

    def given(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the message with such ids, if it has calls or is a result."""
        if message.get("tool_calls"):
            return {**message, "tool_calls": [self._called(call) for call in message["tool_calls"]]}
        if message["role"] == "tool":
            own = message.get("tool_call_id")
            known = self._own.get(own) if isinstance(own, str) else None
            made = known or (self._open[0] if self._open else _call_id(own or self._count))
            self._open = [other for other in self._open if other != made]
            return {**message, "tool_call_id": made}
        return message

    def _called(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = dict(call.get("function") or {key: call[key] for key in ("name", "arguments") if key in call})
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments)
            except (ValueError, RecursionError):
                parsed = None
            function["arguments"] = parsed if isinstance(parsed, dict) else arguments
        self._count += 1
        made = _call_id(call.get("id") or [self._count, function])
        if isinstance(call.get("id"), str):
            self._own[call["id"]] = made
        self._open.append(made)
        return {"type": "function", "id": made, "function": function}


def _call_id(own: Any) -> str:
    """Return the row's own id if it is suitable, else one derived from what it stands for."""
    if isinstance(own, str) and len(own) == CALL_ID and own.isalnum():
        return own
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()[:CALL_ID]
