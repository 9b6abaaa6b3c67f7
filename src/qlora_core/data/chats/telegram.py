"""Telegram's result.json: one chat, or all of an account."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from .conversations import Chat, Message


def is_telegram(text: str) -> bool:
    """Return whether a JSON file begins like Telegram's exports."""
    return '"from_id"' in text and '"messages"' in text and ('"type"' in text or '"date_unixtime"' in text)


def read_telegram(value: Any) -> list[Chat]:
    """Return the chats of a parsed export.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, dict):
        raise ValueError("is no export of Telegram: it has no messages")
    account = value.get("personal_information")
    owner = f"user{account.get('user_id')}" if isinstance(account, dict) else ""
    listed = value["chats"].get("list") if isinstance(value.get("chats"), dict) else [value]
    chats = [each for each in listed or () if isinstance(each, dict) and isinstance(each.get("messages"), list)]
    if not chats:
        raise ValueError("is no export of Telegram: it has no messages")
    return [_chat(chat, owner) for chat in chats]


def _chat(chat: dict[str, Any], owner_id: str) -> Chat:
    messages: list[Message] = []
    left_out: list[tuple[str, str, str]] = []
    ids: dict[str, str] = {}
    for number, message in enumerate(chat["messages"], 1):
        message = message if isinstance(message, dict) else {}
        place, text, who = f"message {message.get('id', number)}", _text(message.get("text")), message.get("from")
        if not text.strip() or not isinstance(who, str) or message.get("type", "message") != "message":
            left_out.append((place, "no message: a picture, a call or a notice", text))
            continue
        ids.setdefault(str(message.get("from_id")), who)
        messages.append(Message(place, _sent(message), who, text.strip()))
    title = chat["name"] if isinstance(chat.get("name"), str) else ""
    people = {message.who for message in messages}
    owner = ids.get(owner_id, "")
    if not owner and chat.get("type") == "personal_chat" and title in people and len(people) == 2:
        owner = (people - {title}).pop()  # the chat is named after the other person
    return Chat("a Telegram chat", title, tuple(messages), owner, tuple(left_out))


def _text(text: Any) -> str:
    """Return a message's text, whose formatted parts are objects."""
    if isinstance(text, str):
        return text
    parts = text if isinstance(text, list) else []
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "".join(each for each in texts if isinstance(each, str))


def _sent(message: dict[str, Any]) -> float | None:
    try:
        return float(message["date_unixtime"])
    except (KeyError, TypeError, ValueError):
        pass
    try:
        return datetime.fromisoformat(message["date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
