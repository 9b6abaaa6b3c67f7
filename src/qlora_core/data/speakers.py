"""Conversations that do not give each turn its role: rounds, texts in turn, and talks written as one text.

Knows nothing of files, and of a row only its turns.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .columns import column_roles
from .turns import ROLES, Noted
from .values import as_text

BOTH = ("user", "assistant")
_NAMES_OF = {role: [name for name, stands_for in ROLES.items() if stands_for == role] for role in BOTH}
_SPEAKERS = {"Human": "user", "Assistant": "assistant", "USER": "user", "ASSISTANT": "assistant",
             "FUNCTION RESPONSE": "tool"}  # fmt: skip
_TALKS = (
    re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):"),
    re.compile(r"(?:\A\s*|\n\n)(USER|ASSISTANT|FUNCTION RESPONSE):"),
)
TALK_BEGINS = ("\n\nHuman:", "Human:", "USER:")
_ROUND = re.compile(r"turn_\d+")
_BRACKETED = re.compile(r"\A\s*<\|(?:Human|Inner Thoughts|Commands|Results|MOSS)\|>:|<eo[htcrm]>\s*\Z")
_COMMAND = re.compile(r'(\w+)\("((?:[^"\\]|\\["\\/bfnrtu])*)"\)')
_GIVEN = {"Search": "query", "Calculate": "expression", "Solve": "equation", "Text2Image": "description"}
"""Name of the argument of each of MOSS's tools, as MOSS's own instruction has it."""

_KEYS = frozenset(("role", "from", "sender", "content", "value"))
_END = "<|endoftext|>"


def with_speakers(turns: Any, noted: Noted) -> Any:
    """Return turns with a role each; turns that have roles, or are no turns, come back unchanged.

    Args:
        turns: texts that take turns, rounds of a question and an answer, the numbered rounds of MOSS's files, or a
            whole talk as one text.
        noted: collects the assumptions that were made.
    """
    if isinstance(turns, str):
        return turns_of_text(turns) or turns
    if isinstance(turns, dict) and turns and all(_ROUND.fullmatch(str(name)) for name in turns):
        rounds = sorted(turns.items(), key=lambda item: int(item[0].rpartition("_")[2]))
        return [said for number, (_, turn) in enumerate(rounds, 1) for said in _moss(turn, number)]
    if (
        isinstance(turns, dict)
        and turns
        and all(isinstance(node, dict) and "parent" in node for node in turns.values())
    ):
        return _chatgpt(turns)
    if not isinstance(turns, list) or not turns or (isinstance(turns[0], dict) and not _KEYS.isdisjoint(turns[0])):
        return turns
    if len(turns) > 1 and all(isinstance(turn, str) for turn in turns):
        noted.guesses.append("texts without a speaker take turns, and the first is the user's")
        return [{"role": BOTH[place % 2], "content": text} for place, text in enumerate(turns)]
    if all(isinstance(turn, dict) and _KEYS.isdisjoint(turn) for turn in turns):
        rounds = [two_of(turn) for turn in turns]
        if all(as_text(text) is not None for both in rounds for text in both):
            return [
                said
                for turn, both in zip(turns, rounds, strict=True)
                for said in _said(both, {key: value for key, value in turn.items() if value not in both})
            ]
    return turns


def _said(both: list[Any], beside: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the two turns of a round; what else it holds stands beside the answer."""
    asked, answered = both
    return [{"role": "user", "content": asked}, {**beside, "role": "assistant", "content": answered}]


def _moss(turn: Any, number: int) -> list[dict[str, Any]]:
    """Return the turns of one round of MOSS: the question, perhaps a thought, calls and their results, the answer.

    Raises:
        ValueError: it is no such round, or a command is no call.
    """
    if not isinstance(turn, dict) or not all(isinstance(text, str) for text in turn.values()):
        raise ValueError(f'"turn_{number}" must be an object of texts: "Human", "Inner Thoughts", "Commands", "MOSS"')
    said = {name: _BRACKETED.sub("", text).strip() for name, text in turn.items()}
    asked, thought, commands, results, answer = (
        "" if said.get(name, "") == "None" and name not in ("Human", "MOSS") else said.get(name, "")
        for name in ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS")
    )
    speaks = {"role": "assistant", **({"reasoning_content": thought} if thought else {})}
    if not commands:
        return [{"role": "user", "content": asked}, {**speaks, "content": answer}]
    calls = [
        {"name": name, "arguments": {_GIVEN.get(name, "input"): json.loads(f'"{text}"', strict=False)}}
        for name, text in _COMMAND.findall(commands)
    ]
    if _COMMAND.sub("", commands).strip(" ,\n"):
        raise ValueError(f'a command of "turn_{number}" is no NAME("TEXT"): {commands[:60]!r}')
    return [
        {"role": "user", "content": asked},
        {**speaks, "content": "", "tool_calls": calls},
        {"role": "tool", "content": results},
        {"role": "assistant", "content": answer},
    ]


def _chatgpt(nodes: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the turns that lead to the last message of ChatGPT's export, a tree in which answers have variants.

    Raises:
        ValueError: one of them is no text.
    """
    sent = {name: (node.get("message") or {}).get("create_time") or 0 for name, node in nodes.items()}
    leaves = [name for name, node in nodes.items() if not node.get("children")]
    place, path = max(leaves, key=sent.__getitem__, default=None), []
    while place in nodes and place not in path:
        path.append(place)
        place = nodes[place].get("parent")
    turns: list[dict[str, Any]] = []
    for name in reversed(path):
        message = nodes[name].get("message") or {}
        content = message.get("content") or {}
        parts = [part for part in content.get("parts", [content.get("text")]) if part not in (None, "")]
        if not parts:
            continue
        if content.get("content_type") != "text" or message.get("recipient", "all") != "all":
            raise ValueError(
                f"a turn is {content.get('content_type')!r} to {message.get('recipient', 'all')!r}, no text"
            )
        turns.append({"role": (message.get("author") or {}).get("role"), "content": "\n".join(map(str, parts))})
    return turns


def two_of(item: Any) -> list[Any]:
    """Return a question and its answer from a pair or an object of two."""
    if isinstance(item, dict):
        roles = column_roles(tuple(item))
        if roles and roles.asked and roles.answered:
            return [item[roles.asked], item[roles.answered]]
        return [next((item[name] for name in _NAMES_OF[role] if name in item), None) for role in BOTH]
    return item if isinstance(item, list) else []


def turns_of_text(text: str) -> list[dict[str, Any]]:
    """Split a whole talk at `Human:`/`Assistant:` or `USER:`/`ASSISTANT:` into turns; none for other texts.

    A missing answer, as at the end of a prompt, is no turn.
    """
    talk = next((talk for talk in _TALKS if talk.match(text)), None)
    parts = talk.split(text) if talk else []
    if talk is None or len(parts) < 5 or "assistant" not in (speaker.casefold() for speaker in parts[1::2]):
        return []
    turns = [
        {"role": _SPEAKERS[speaker], "content": said.strip().removesuffix(_END).strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return turns if turns[-1]["content"] or turns[-1]["role"] != "assistant" else turns[:-1]
