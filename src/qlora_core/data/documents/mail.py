"""E-mail (.eml, .mbox): the text of each writer, without quotations and signatures."""

from __future__ import annotations

import email
import email.policy
import itertools
import re
from email.message import EmailMessage

from ..records import Document, Fragment
from .outline import UnreadableError, one_line
from .web import read_html

_QUOTING = re.compile(  # "On Monday Ana wrote:" in several languages, and Outlook's heads
    r"(?:on|em|a|el|le|am|il)\b.{6,160}(?:wrote|escreveu|escribió|a écrit|schrieb|ha scritto)\s?:|"
    r"-{2,}\s?(?:original message|mensagem original|mensaje original|message d'origine|ursprüngliche nachricht|"
    r"forwarded message|mensagem reencaminhada).{0,20}|_{20,}",
    re.IGNORECASE,
)
_REPLY = re.compile(r"^(?:(?:re|fwd?|res|enc|rv|aw|wg|tr|sv)\s?:\s*)+", re.IGNORECASE)
_SENDER = re.compile(rb"^From \S+.*\d{4}\r?$", re.MULTILINE)


def read_mail(content: bytes) -> list[Document]:
    """Return one document per e-mail.

    Raises:
        UnreadableError: there is no text in any.
    """
    starts = [match.start() for match in _SENDER.finditer(content)] if content.startswith(b"From ") else []
    pieces = [content[start:stop] for start, stop in itertools.pairwise([*starts, None])] or [content]
    found = [document for number, piece in enumerate(pieces, 1) if (document := _mail(piece, number))]
    if not found:
        raise UnreadableError("holds no text")
    return found


def _mail(content: bytes, number: int) -> Document | None:
    message = email.message_from_bytes(
        content.split(b"\n", 1)[-1] if content.startswith(b"From ") else content, policy=email.policy.default
    )
    place = f"mail {number}"
    text = _body(message)  # type: ignore[arg-type]
    lines, left_out = _own_lines(text.replace("\r\n", "\n").split("\n"), place)
    left_out += [(place, "attachment", str(part.get_filename())) for part in message.walk() if part.get_filename()]
    while lines and not lines[-1]:
        lines.pop()
    if not any(lines):
        return None
    names = {"author": one_line(str(message.get("From", ""))), "date": one_line(str(message.get("Date", "")))}
    title = _REPLY.sub("", one_line(str(message.get("Subject", ""))))
    fragments = tuple(Fragment(line, place) for line in lines)
    return Document(title, (), fragments, {key: value for key, value in names.items() if value}, tuple(left_out))


def _body(message: EmailMessage) -> str:
    part = message.get_body(("plain", "html"))
    if part is None:
        return ""
    try:
        text = part.get_content()
    except (LookupError, ValueError):  # a charset that does not exist
        text = (part.get_payload(decode=True) or b"").decode("utf-8", "replace")  # type: ignore[union-attr]
    if part.get_content_type() != "text/html":
        return text
    text = re.sub(r"(?is)<blockquote.*?</blockquote>", "", text)
    document = read_html(text.encode())
    return "\n\n".join([*([document.title] if document.title else []), *(block.text for block in document.blocks)])


def _own_lines(lines: list[str], place: str) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Return the lines that the writer wrote, and what was left out."""
    kept: list[str] = []
    left_out: list[tuple[str, str, str]] = []
    for at, line in enumerate(lines):
        both = f"{line.strip()} {lines[at + 1].strip() if at + 1 < len(lines) else ''}"
        if line.rstrip("\n") in ("-- ", "--"):
            left_out.append((place, "signature", " ".join(lines[at + 1 : at + 3])))
            break
        if line.startswith(">"):
            left_out.append((place, "quoted", line))
        elif _QUOTING.fullmatch(line.strip()) or (line.strip() and _QUOTING.fullmatch(both) and at + 2 < len(lines)):
            rest = lines[at + 1 :]
            left_out.append((place, "quoted", line))
            if not any(each.startswith(">") for each in rest):  # all that follows is, without a sign
                break
        else:
            kept.append(one_line(line))
    return kept, left_out
