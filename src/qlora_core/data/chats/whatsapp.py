"""Logs of a message a line: WhatsApp's exports from Android and iOS in any language, and those of signal-export."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from .conversations import Chat, Message

_MARKS = "\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
_HEAD = re.compile(
    rf"[{_MARKS}]*(?P<bracket>\[)?(?P<date>\d{{1,4}}[./-] ?\d{{1,2}}[./-] ?\d{{1,4}})\.?,?\s+(?:\w{{1,3}}\s)?"
    rf"(?P<time>\d{{1,2}}[:.]\d\d(?:[:.]\d\d)?)(?P<half>\s?[ap]\.?\s?m\.?)?(?(bracket)\]|\s[-–])\s?(?P<rest>.*)",
    re.IGNORECASE,
)
_SAID = re.compile(rf"[~{_MARKS}\s]*(?P<who>[^:\n]{{1,60}}?):(?:\s(?P<text>.*)|$)", re.DOTALL)
_OMITTED = re.compile(
    r"<[^<>\n]{4,60}>|null|\S+\.(?:jpe?g|png|webp|gif|mp4|mov|3gp|opus|ogg|m4a|mp3|aac|pdf|vcf|docx?)\s\([^()\n]{4,40}\)"
    r"|(?:this message was deleted|you deleted this message|(?:esta )?mensagem (?:foi )?apagada|apagou esta mensagem|"
    r"se eliminó este mensaje|eliminaste este mensaje|ce message a été supprimé|diese nachricht wurde gelöscht)\.?",
    re.IGNORECASE,
)
_EDITED = re.compile(r"\s*<[^<>\n]*(?:edited|editada|editado|modifié|bearbeitet)[^<>\n]*>$", re.IGNORECASE)
_ENCRYPTED = re.compile(
    r"end-to-end|ponta[ -]a[ -]ponta|extremo[ -]a[ -]extremo|bout[ -]en[ -]bout|ende-zu-ende|端到端|端對端",
    re.IGNORECASE,
)
_EXPORT = re.compile(r"^(?:whatsapp chat (?:with|-)|conversa do whatsapp com|chat de whatsapp con) ?", re.IGNORECASE)
_SAMPLE = 40  # lines that tell what a file is


def is_log(text: str) -> bool:
    """Return whether a text begins as a log of messages, each with time and writer."""
    heads = [match for line in text.split("\n")[:_SAMPLE] if (match := _HEAD.match(line))]
    said = [match for match in heads if _SAID.match(match["rest"])]
    filled = sum(bool(line.strip()) for line in text.split("\n")[:_SAMPLE])
    return len(said) > 1 and 3 * len(heads) >= filled and bool(_HEAD.match(text.lstrip("\n")))


def read_log(text: str, name: str) -> Chat:
    """Return the messages of a log, each with all its lines; `name` is the file's."""
    entries: list[tuple[int, re.Match[str], list[str]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if match := _HEAD.match(line):
            entries.append((number, match, [match["rest"]]))
        elif entries:
            entries[-1][2].append(line)
    day_first, messages, left_out = _day_first([match for _, match, _ in entries]), [], []
    for number, match, lines in entries:
        said = _SAID.match("\n".join(lines))
        raw = (said["text"] or "").strip() if said else ""
        shown = re.sub(f"[{_MARKS}]", "", raw)
        kept = _EDITED.sub("", "\n".join(part for part in shown.split("\n") if not _OMITTED.fullmatch(part.strip())))
        marked = raw.startswith("\u200e") and "\n" not in raw  # as iOS marks its own messages
        notice = marked and (len(raw) < 60 or bool(_ENCRYPTED.search(raw)))
        if said is None or not kept.strip() or notice:
            left_out.append((str(number), "no message: a picture, a call or a notice", shown or " ".join(lines)))
        else:
            who = re.sub(f"[{_MARKS}]", "", said["who"]).strip("~ \u202f\xa0")
            messages.append(Message(str(number), _seconds(match, day_first), who, kept.strip()))
    title = _EXPORT.sub("", name)
    others = {message.who for message in messages} - {title}
    owner = others.pop() if title != name and len(others) == 1 else ""
    return Chat("a chat", title, tuple(messages), owner, tuple(left_out))


def _day_first(heads: list[re.Match[str]]) -> bool:
    """Return whether the day stands before the month: any number beyond 12 tells, and by default it does."""
    numbers = [[int(number) for number in re.findall(r"\d+", match["date"])] for match in heads]
    return not any(second > 12 for first, second, _ in numbers if first <= 12)


def _seconds(head: re.Match[str], day_first: bool) -> float | None:
    first, second, third = (int(number) for number in re.findall(r"\d+", head["date"]))
    if first > 31:
        year, month, day = first, second, third
    else:
        day, month, year = (first, second, third) if day_first else (second, first, third)
    hour, minute = (int(number) for number in re.findall(r"\d+", head["time"])[:2])
    if head["half"]:
        hour = hour % 12 + 12 * (head["half"].strip()[0] in "pP")
    try:
        return datetime(year + 2000 * (year < 100), month, day, hour, minute, tzinfo=UTC).timestamp()
    except ValueError:
        return None
