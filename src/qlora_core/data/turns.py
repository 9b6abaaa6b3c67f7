"""Turns of a prepared row from turns in any known format: roles, parts, calls, marks.

Knows nothing of files, and of a row only its turns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .columns import JUDGING, REASONING, content_length, is_truth, listed, says_no, says_yes, turn_mark
from .records import MarkedError
from .values import as_text, kind, unpacked

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "claude": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "ipython": "tool",
}
"""Role of each speaker name."""

CALLING = ("function_call", "tool_call", "tool_calls")
"""Speaker names whose text is a tool call by the assistant."""

_CALL_PARTS = ("tool_use", "tool_call", "function_call")
_RESULT_PARTS = ("tool_result", "tool_response", "function_call_output", "observation")
_THOUGHT_PARTS = ("reasoning", "thinking", "thought")
_NO_TEXT = ("image", "audio", "video", "file", "document", "media")
_SPEAKERS = ("role", "from", "sender")
_SAID = {"role": ("content", "value", "text", "parts"), "from": ("value", "content"), "sender": ("content", "text")}
"""Keys that name a turn's speaker, and keys of what is said beside each, in order of preference."""

_CALL_KEYS = frozenset(("toolcalls", "toolcall", "functioncalls", "functioncall", "tooluses", "tooluse"))
_RESULT_KEYS = frozenset(("toolresult", "functionresponse", "toolresponse"))
"""Keys of calls and of their results, however they are spelled: `tool_calls`, `toolCalls`."""

Clean = Callable[[str], str]


@dataclass
class Noted:
    """Notes about a row for the report.

    Attributes:
        unused: names of what holds content and is used for nothing, with the characters it has.
        marks: parts that its author marked as not to be trained, in words.
        guesses: assumptions that were made, in words.
    """

    unused: dict[str, int] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)

    def leave(self, name: str, key: str, value: Any) -> None:
        """Note an unused value if it holds content."""
        if length := content_length(key, value):
            self.unused[name] = self.unused.get(name, 0) + length


def conversation(turns: Any, name: str, clean: Clean, noted: Noted) -> list[dict[str, Any]]:
    """Return the messages of a conversation.

    Args:
        turns: a list of `{role, content}` or `{from, value}`, also as the text of a JSON list, as tables hold it.
        name: name of the key that holds it.
        clean: applied to every text.
        noted: collects unused content, and parts marked as not to be trained.

    Raises:
        ValueError: what is wrong with it.
    """
    turns = unpacked(turns)
    if isinstance(turns, dict) and turns and all(isinstance(one, list) for one in turns.values()):
        turns = _by_turn(turns)
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else kind(turns)
        raise ValueError(f'"{name}" must be a list of {{role, content}}, found {found}')
    mask: str | None = None  # meaning of these turns' masks, found when one has more than a role and a text
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, 1):
        if isinstance(turn, dict) and len(turn) == 2:  # the fast path for nearly all turns
            speaker, content = turn.get("role"), turn.get("content")
            if speaker is None:
                speaker, content = turn.get("from"), turn.get("value")
            if type(content) is str and type(speaker) is str and (role := ROLES.get(speaker)):
                messages.append({"role": role, "content": clean(content)})
                if role == "assistant" and not messages[-1]["content"]:
                    raise ValueError(f"turn {number} is an assistant turn without an answer")
                continue
        if isinstance(turn, dict) and "mask" in turn:
            mask = mask or _kind_of_mask(turns)
            turn = {mask if key == "mask" else key: value for key, value in turn.items()}
        for message in _Turn(turn, number, name, clean, noted).messages():
            _put(messages, message)
    return messages


def _by_turn(lists: dict[str, list[Any]]) -> Any:
    """Return turns from a list of roles and a list of contents; the lists themselves if they differ in length."""
    same = len({len(one) for one in lists.values()}) == 1
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)] if same else lists


def _kind_of_mask(turns: list[Any]) -> str:
    """Return `loss_mask` if masks are 0 for questions and 1 for answers, so that 1 means trained; else `mask`."""
    masks = [(turn.get("role", turn.get("from")), turn.get("mask")) for turn in turns if isinstance(turn, dict)]
    asked = {mask for role, mask in masks if ROLES.get(str(role)) != "assistant" and mask is not None}
    answered = {mask for role, mask in masks if ROLES.get(str(role)) == "assistant"}
    trains = asked == {0} and 1 in answered and not any(isinstance(mask, bool) for _, mask in masks)
    return "loss_mask" if trains else "mask"


def check_answers(messages: Iterable[dict[str, Any]], noted: Noted) -> None:
    """Check that something of a conversation is trained.

    Raises:
        MarkedError: all its answers are marked as not to be trained.
        ValueError: nobody answers.
    """
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise ValueError("no assistant turn: nothing would be trained")
    if all(message.get("train") is False for message in answers):
        raise MarkedError(f"every answer is marked as not to be trained: {', '.join(dict.fromkeys(noted.marks))}")


def _put(messages: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Append a message; a call in a turn of its own belongs to the assistant's turn before it."""
    last = messages[-1] if messages else {}
    if (
        message.pop("continues", False)
        and last.get("role") == "assistant"
        and last.get("train") == message.get("train")
    ):
        last["tool_calls"] = [*last.get("tool_calls", []), *message["tool_calls"]]
    else:
        messages.append(message)


class _Turn:
    """One turn that has more than a role and a text."""

    def __init__(self, turn: Any, number: int, name: str, clean: Clean, noted: Noted) -> None:
        self.turn, self.number, self.name, self.clean, self.noted = turn, number, name, clean, noted
        self.thoughts: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []

    def messages(self) -> list[dict[str, Any]]:
        """Return the message, or several: tool results among its parts come before it."""
        turn, number = self.turn, self.number
        speaker = next((key for key in ("from", "role", "sender") if isinstance(turn, dict) and key in turn), "role")
        names = _SAID[speaker]
        wrong = ValueError(f'turn {number} of "{self.name}" must be {{{speaker}, {names[0]}}} with texts')
        if not isinstance(turn, dict):
            raise wrong
        said = next((key for key in names if turn.get(key)), names[0])
        marks = [key for key in turn if turn_mark(key)]
        used = {speaker, said, *marks, *(key for key in turn if squeezed(key) in _CALL_KEYS)}
        self._take_calls()
        content = turn.get(said)
        text = self._parts(content) if isinstance(content, list) else as_text(content)
        if text is None and content is None and self.calls:
            text = ""
        if text is None:
            raise wrong
        role = self._role(turn.get(speaker))
        if role in CALLING:
            message = {"role": "assistant", "content": "", "tool_calls": _calls_in(text, number), "continues": True}
            role = "assistant"
        else:
            message = {"role": role, "content": self.clean(text)}
        if role == "assistant":
            self._add_reasoning(message, used)
            self._add_calls(message)
        elif self.calls or self.thoughts:
            self.noted.leave(f"{self.name}[].tool_calls", "tools", self.calls)
            self.noted.leave(f"{self.name}[].content[].thinking", "thinking", "\n".join(self.thoughts))
        if role == "tool":
            message |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
            used |= {"name", "tool_call_id"}
        self._add_mark(message)
        for key, value in turn.items():
            if key not in used:
                self.noted.leave(f"{self.name}[].{key}", key, value)
        whole = bool(message["content"]) or not self.results
        return [*self.results, *([message] if whole else [])]

    def _role(self, speaker: Any) -> str:
        plain = speaker.strip().casefold() if isinstance(speaker, str) else None
        if plain in CALLING:
            return plain
        role = ROLES.get(plain) if plain else None
        if role is None:
            raise ValueError(
                f"turn {self.number} has the role {speaker!r}, wanted one of system, user, assistant, tool"
            )
        return role

    def _take_calls(self) -> None:
        for key, value in self.turn.items():
            if squeezed(key) in _CALL_KEYS and (found := unpacked(value)):
                self.calls += [call_of(call, self.number) for call in (found if isinstance(found, list) else [found])]

    def _parts(self, parts: list[Any]) -> str:
        return "\n".join(text for part in parts if (text := self._part(part)) is not None)

    def _part(self, part: Any) -> str | None:
        """Return the text of a part; None for a thought, call or result, which are kept apart."""
        if isinstance(part, str):
            return part
        sort = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict) and not sort:
            for key, value in part.items():
                if squeezed(key) in _CALL_KEYS:
                    self.calls.append(call_of(value, self.number))
                    return None
                if squeezed(key) in _RESULT_KEYS and isinstance(value, dict):
                    self.results.append(self._result(value))
                    return None
        if sort in _CALL_PARTS:
            self.calls.append(call_of(part.get("value", part), self.number))
            return None
        if sort in _RESULT_PARTS:
            self.results.append(self._result(part))
            return None
        names = (*_THOUGHT_PARTS, "value", "text") if sort in _THOUGHT_PARTS else ("text", "value", "content")
        said = next((n for n in names if isinstance(part, dict) and isinstance(part.get(n), str)), "")
        if not said or any(word in str(sort) for word in _NO_TEXT):
            what = kind(part)
            if isinstance(part, dict):
                what = f"a part of the type {sort!r}" if sort else f"a part with the keys {listed(part)}"
            raise ValueError(f"turn {self.number} holds something that is not text: {what}"[:200])
        for key, value in part.items():
            if key not in (said, "type"):
                self.noted.leave(f"{self.name}[].content[].{key}", key, value)
        if sort not in _THOUGHT_PARTS:
            return part[said]
        self.thoughts.append(part[said])
        return None

    def _result(self, part: dict[str, Any]) -> dict[str, Any]:
        content = next((part[name] for name in ("content", "value", "output", "text", "response") if name in part), "")
        text = self._parts(content) if isinstance(content, list) else as_text(content)
        text = json.dumps(content, ensure_ascii=False) if text is None else text
        place = next((part[name] for name in ("tool_use_id", "tool_call_id") if isinstance(part.get(name), str)), "")
        return {"role": "tool", "content": self.clean(text), **({"tool_call_id": place} if place else {})}

    def _add_reasoning(self, message: dict[str, Any], used: set[str]) -> None:
        for key in REASONING:
            if not self.thoughts and isinstance(self.turn.get(key), str) and self.turn[key].strip():
                self.thoughts.append(self.turn[key])
                used.add(key)
        if thought := self.clean("\n".join(self.thoughts)):
            message["reasoning_content"] = thought

    def _add_calls(self, message: dict[str, Any]) -> None:
        if self.calls:
            message["tool_calls"] = [*message.get("tool_calls", []), *self.calls]
        if not message["content"] and "tool_calls" not in message and not self.results:
            raise ValueError(f"turn {self.number} is an assistant turn without an answer")

    def _add_mark(self, message: dict[str, Any]) -> None:
        for key, value in self.turn.items():
            if value is None or not turn_mark(key):
                continue
            answers = message["role"] == "assistant"
            if answers and (mark := _mark(key, value)):
                message["train"] = False
                self.noted.marks.append(mark)
            elif _is_unclear(key, value):
                self.noted.leave(f"{self.name}[].{key}", "text", value)
            elif not answers and turn_mark(key) > 0 and value is True:
                self.noted.marks.append(f"{key} true of a {message['role']} turn, which is never trained")


def _is_unclear(key: str, value: Any) -> bool:
    """Return whether a mark says neither yes nor no: a list, a word, a number between them, or a class."""
    if key == "train_detail":
        return False
    share = isinstance(value, float | int) and value > 0 and value != 1
    return share or (key in JUDGING and not is_truth(value)) or not (says_yes(value) or says_no(value))


def _mark(key: str, value: Any) -> str:
    """Return how a mark excludes a turn from training; "" if it does not."""
    if key == "train_detail":
        parts = value if isinstance(value, list) else []
        off = any(isinstance(part, dict) and says_no(part.get("train")) for part in parts)
        return "train_detail with a part that is not trained" if off else ""
    if key in JUDGING and not is_truth(value):
        return ""
    off = says_yes(value) if turn_mark(key) < 0 else says_no(value)
    return f"{key} {as_text(value)}" if off else ""


def squeezed(key: str) -> str:
    """Return a key in small letters without its underscores: `tool_calls` and `toolCalls` are one."""
    return key.replace("_", "").casefold()


# Calls ----------------------------------------------------------------------------------------------------------


def _calls_in(text: str, number: int) -> list[dict[str, Any]]:
    """Return the calls in a turn's text."""
    found = unpacked(text.strip())
    return [call_of(call, number) for call in (found if isinstance(found, list) and found else [found])]


def call_of(call: Any, number: int) -> dict[str, Any]:
    """Return one tool call, `{"type": "function", "function": {"name", "arguments"}}`.

    Raises:
        ValueError: it names no function, or its arguments are no JSON object.
    """
    call = unpacked(call)
    inner = unpacked(call.get("function", call)) if isinstance(call, dict) else None
    names = ("name", "toolName", "tool_name") if isinstance(inner, dict) else ()
    name = next((inner[key] for key in names if key in inner), None)
    if not isinstance(name, str) or not name:
        raise ValueError(f'turn {number} has a call of a tool that is not {{"name", "arguments"}}')
    given = next((inner[key] for key in ("arguments", "parameters", "input", "args") if key in inner), None)
    arguments = {} if given is None or (isinstance(given, str) and not given.strip()) else unpacked(given)
    if not isinstance(arguments, dict):
        raise ValueError(f"turn {number} has a call of {name} whose arguments are not a JSON object")
    place = call.get("id")
    return {
        **({"id": place} if isinstance(place, str) and place else {}),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def tools_of(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the functions that a row offers, each `{"type": "function", "function": {…}}`.

    Raises:
        ValueError: they are not a list of objects, or the text of one.
    """
    tools = unpacked(value)
    tools = [tools] if isinstance(tools, dict) else tools
    if tools is None or tools == [] or (isinstance(tools, str) and not tools.strip()):
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f'"{name}" must be a list of tools, or its JSON; found {kind(tools)}')
    return [tool if "function" in tool or "type" in tool else {"type": "function", "function": tool} for tool in tools]
