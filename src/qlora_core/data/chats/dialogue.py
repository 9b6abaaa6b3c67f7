"""A dialogue with a language model that was saved as text, with "User:" and "Assistant:" before the turns."""

from __future__ import annotations

import re

from .conversations import Chat, Message

_ASKS = ("user", "human", "you", "me", "utilizador", "usuário", "prompt")
_ANSWERS = ("assistant", "ai", "bot", "chatgpt", "gpt", "claude", "gemini", "model", "assistente")
_TURN = re.compile(
    rf"(?:\*\*|### )?(?P<who>{'|'.join((*_ASKS, *_ANSWERS))})(?:\*\*)?\s?:(?:\*\*)?\s?(?P<text>.*)", re.I
)


def is_dialogue(text: str) -> bool:
    """Return whether a text consists only of turns of somebody and an assistant."""
    first = text.lstrip("\ufeff\n ").split("\n", 1)[0]
    found = [match["who"].lower() for line in text.split("\n") if (match := _TURN.match(line))]
    asks, answers = (sum(who in names for who in found) for names in (_ASKS, _ANSWERS))
    return bool(_TURN.match(first)) and min(asks, answers) > 0 and abs(asks - answers) <= 1 + len(found) // 4


def read_dialogue(text: str, name: str) -> Chat:
    """Return the turns, each with all its lines."""
    turns: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if match := _TURN.match(line):
            turns.append((number, "assistant" if match["who"].lower() in _ANSWERS else "user", [match["text"]]))
        elif turns:
            turns[-1][2].append(line)
    said = ((number, who, "\n".join(lines).strip()) for number, who, lines in turns)
    messages = tuple(Message(str(number), None, who, text) for number, who, text in said if text)
    return Chat("a dialogue with an assistant", name, messages, "assistant")
