"""Signal: the export of Signal itself (main.jsonl), and that of signal-export (data.json)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from .conversations import Chat, Message

_NOTICE = "no message: a picture, a call or a notice"
_NAMES = (("nickname", "given", "family"), ("", "systemGivenName", "systemFamilyName"),
          ("", "profileGivenName", "profileFamilyName"), ("", "username", ""), ("", "e164", ""))  # fmt: skip


def is_signal(text: str) -> bool:
    """Return whether lines of JSON begin like Signal's own export."""
    frames = set(re.findall(r'^\{\s*"(account|recipient|chat|chatItem|version|backupTimeMs)"', text, re.MULTILINE))
    return "recipient" in frames and len(frames) > 1


def read_signal(content: bytes) -> list[Chat]:
    """Return the chats of an export.

    Raises:
        ValueError: it has none.
    """
    names: dict[str, str] = {}
    chats: dict[str, str] = {}
    messages: dict[str, list[Message]] = {}
    left_out: dict[str, list[tuple[str, str, str]]] = {}
    owner, first, own_id = "", "", ""
    for number, frame in _frames(content):
        if not isinstance(frame, dict):
            left_out.setdefault(first, []).append((str(number), "a line that cannot be read", str(frame)))
            continue
        account, recipient, chat, item = (_object(frame, key) for key in ("account", "recipient", "chat", "chatItem"))
        owner = owner or " ".join(filter(None, (_text(account, "givenName"), _text(account, "familyName"))))
        if recipient:
            own_id = str(recipient.get("id")) if "self" in recipient else own_id
            names[str(recipient.get("id"))] = _name(recipient)
        elif chat:
            chats[str(chat.get("id"))] = str(chat.get("recipientId"))
        elif item:
            key = str(item.get("chatId"))
            first = first or key
            text = _text(_object(_object(item, "standardMessage"), "text"), "body").strip()
            if text:
                sent = _seconds(item.get("dateSent"))
                messages.setdefault(key, []).append(Message(str(number), sent, str(item.get("authorId")), text))
            else:
                left_out.setdefault(key, []).append((str(number), _NOTICE, ""))
    names[own_id] = owner or "Me"
    found = []
    for key in dict.fromkeys([*messages, *left_out]):
        said = (Message(m.place, m.sent, names.get(m.who) or "No name", m.text) for m in messages.get(key, ()))
        ordered = sorted(said, key=lambda message: message.sent or 0.0)
        title = names.get(chats.get(key, ""), "")
        found.append(Chat("a Signal chat", title, tuple(ordered), names[own_id], tuple(left_out.get(key, ()))))
    if not messages:
        raise ValueError("it holds no messages")
    return found


def _frames(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield every line's number and value; for a broken line its text."""
    for number, line in enumerate(content.decode("utf-8-sig", "replace").split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, line


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    return found if isinstance(found, str) else ""


def _name(recipient: dict[str, Any]) -> str:
    """Return somebody's name, preferably the owner's name for them; a group's title."""
    contact = _object(recipient, "contact")
    for inside, given, family in _NAMES:
        place = _object(contact, inside) if inside else contact
        if found := " ".join(filter(None, (_text(place, given), _text(place, family)))):
            return found
    return _text(_object(_object(_object(recipient, "group"), "snapshot"), "title"), "title")


def _seconds(sent: Any) -> float | None:
    """Return the seconds of a time that is written as text in milliseconds."""
    try:
        return int(sent) / 1000
    except (TypeError, ValueError, OverflowError):
        return None


# signal-export ---------------------------------------------------------------------------------------------------


def is_signal_export(text: str) -> bool:
    """Return whether a file begins with a message as signal-export writes it, one a line."""
    first = text.lstrip().split("\n", 1)[0]
    return first.startswith('{"date": "') and all(f'"{key}": ' in first for key in ("sender", "body", "reactions"))


def read_signal_export(content: bytes, name: str) -> Chat:
    """Return the messages of one chat; `name` is that of its folder."""
    messages: list[Message] = []
    left_out: list[tuple[str, str, str]] = []
    for number, frame in _frames(content):
        if not isinstance(frame, dict):
            left_out.append((str(number), "a line that cannot be read", str(frame)))
            continue
        text, who = _text(frame, "body").strip(), _text(frame, "sender")
        if not text or not who or frame.get("call") or frame.get("deleted"):
            left_out.append((str(number), _NOTICE, text))
            continue
        try:
            sent = datetime.fromisoformat(_text(frame, "date")).timestamp()
        except (ValueError, OverflowError, OSError):
            sent = None
        messages.append(Message(str(number), sent, who, text))
    return Chat("a Signal chat", name, tuple(messages), "Me", tuple(left_out))
