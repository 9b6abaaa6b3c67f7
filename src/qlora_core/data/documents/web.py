"""HTML, read into an `Outline`."""

from __future__ import annotations

import codecs
import contextlib
import re
from dataclasses import replace
from typing import Any

from ..encoding import decode
from ..prose import unwrapped
from ..records import Block, Document
from .outline import Outline, UnreadableError, make_document, one_line, without_emoji
from .raised import raised

STRUCK = ("del", "s", "strike")
"""Tags of text that its author struck out: <del>1930</del> 1931 says 1931."""

_DROPPED = {
    "aside", "button", "form", "iframe", "nav", "noscript", "rp", "rt", "script", "select", "style", "svg", "template",
    "textarea", "title", *STRUCK,
}  # fmt: skip


_NOTE = re.compile(r"(?:foot|end|rear)notes?$|doc-(?:foot|end)notes?$", re.IGNORECASE)
_NOTE_MARK = re.compile(r"noteref$|footnote-?ref$|fn-?ref$|doc-backlink$|footnote-?back(?:ref|link)?$", re.IGNORECASE)
_NOTE_PLACE = re.compile(r"#(?:[\w.-]*(?:note|ftn|fn|_ref|ref)[\w.-]*|n\d+)$", re.IGNORECASE)
_MARK = re.compile(r"[\[(]?(?:\d{1,4}|[a-z*†‡]{1,3})[\])]?|[↩↵↑⏎^\ufe0e\ufe0f]+")


def read_html(content: bytes) -> Document:
    """Return the main content of the page, without what surrounds it."""
    soup = soup_of(content)
    blocks = blocks_of(soup)
    heading = next((block for block in blocks if block.level == 1), None)
    author = soup.find("meta", {"name": re.compile("^author$", re.IGNORECASE), "content": True})
    metadata = {"author": one_line(author["content"])} if author and author["content"].strip() else {}
    elsewhere = soup.find_all("h1", limit=2)  # in a header, say
    named = heading.text if heading else without_emoji(soup.title.get_text()) if soup.title else ""
    if not named and len(elsewhere) == 1:
        named = without_emoji(elsewhere[0].get_text(" "))
    document = make_document(named, (block for block in blocks if block is not heading), metadata)
    struck = [(str(tag.sourceline or ""), "struck out", one_line(tag.get_text())) for tag in soup.find_all(STRUCK)]
    return replace(document, left_out=(*document.left_out, *struck))


def soup_of(content: bytes) -> Any:
    """Parse HTML in its declared encoding if it is not in Unicode."""
    begun, ended = content.count(b"<"), content.count(b">")
    if begun > 2000 and ended < begun / 10:  # Python's parser takes the square of the time to find that out
        raise UnreadableError("is no HTML: most of its tags never end")
    from bs4 import BeautifulSoup
    from bs4.dammit import EncodingDetector

    text, encoding = decode(content)
    declared = EncodingDetector.find_declared_encoding(content, is_html=True)
    if declared and not (encoding.startswith("utf") and "\ufffd" not in text):
        with contextlib.suppress(LookupError, UnicodeError):  # of a name that means nothing
            name = codecs.lookup(declared).name
            # what browsers take these for, and what Windows writes under their names
            name = "cp1252" if name in ("iso8859-1", "ascii") else name
            text = text if name.startswith("utf") else content.decode(name, errors="replace")
    return BeautifulSoup(text, "html.parser")


def blocks_of(soup: Any) -> list[Block]:
    """Return the blocks of the content: `main`, the only `article`, or all. A loop, since pages nest deeply."""
    from bs4 import CData, NavigableString, Tag

    articles = soup.find_all("article", limit=2)
    outline = Outline()
    pending: list[tuple[Any, bool, bool]] = [
        (soup.find("main") or (articles[0] if len(articles) == 1 else soup), False, False)
    ]
    while pending:
        node, content, verbatim = pending.pop()
        if type(node) is str:
            outline.end(node)
        elif type(node) in (NavigableString, CData):
            text = node if verbatim else re.sub(r"\s+", " ", unwrapped(node))
            outline.text(text, str(node.parent.sourceline or ""))
        elif isinstance(node, Tag) and node.name in ("sup", "math") and not verbatim:
            text = (
                _formula(node) if node.name == "math" else raised(outline.before(), node.get_text(), links=_links(node))
            )
            outline.text(text, str(node.sourceline or ""))
        elif isinstance(node, Tag) and not _is_dropped(node, content):
            if node.name == "br":
                outline.text("\n", "")
            number = node.get("value" if node.name == "li" else "start", "")
            outline.start(node.name, int(number) if re.fullmatch("[0-9]{1,9}", number) else None)
            content, verbatim = content or node.name in ("article", "main"), verbatim or node.name == "pre"
            pending.append((str(node.name), content, verbatim))
            pending += [(child, content, verbatim) for child in reversed(node.contents)]
    return outline.blocks()


def _links(raised: Any) -> bool:
    """Return whether raised text leads to a note, from inside a link or around one."""
    return raised.find("a") is not None or raised.find_parent("a") is not None or _is_named(raised, _NOTE_MARK)


def _formula(math: Any) -> str:
    """Return a MathML formula in its writer's notation, if it is stated; 2 with a raised n must not become 2n."""
    source = math.find("annotation", encoding=re.compile("tex", re.IGNORECASE))
    if source is not None or math.get("alttext"):
        return one_line(source.get_text() if source is not None else math["alttext"])
    for power in math.find_all("msup"):
        power.insert(1, "^")
    return "".join(math.get_text().split())


def _is_named(tag: Any, kind: re.Pattern[str]) -> bool:
    """Return whether a tag claims to be of a kind by its role, EPUB type or class."""
    said = (tag.get("epub:type", ""), tag.get("role", ""), tag.get("class", ""))
    return any(kind.search(word) for each in said for word in (each if isinstance(each, list) else str(each).split()))


def _is_note_mark(tag: Any) -> bool:
    """Return whether a link is a note's number, or leads from the note back."""
    if tag.name != "a" or not _MARK.fullmatch(text := one_line(tag.get_text())):
        return False
    if _is_named(tag, _NOTE_MARK):
        return True
    return bool(_NOTE_PLACE.search(tag.get("href", ""))) or (text[0] in "[↩↵↑⏎" and tag.get("href", "")[:1] == "#")


def _is_dropped(tag: Any, content: bool) -> bool:
    if tag.name == "aside" and _is_named(tag, _NOTE):
        return False
    return (
        tag.name in _DROPPED
        or _is_note_mark(tag)
        or (tag.name in ("header", "footer") and not content)
        or tag.has_attr("hidden")
        or tag.get("aria-hidden", "").strip().lower() == "true"
        or bool(re.search(r"display\s*:\s*none", tag.get("style", ""), re.IGNORECASE))
    )
