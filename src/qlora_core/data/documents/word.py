"""Word (.docx), told to an outline."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

from ..records import Document
from .archive import open_archive
from .outline import Outline, UnreadableError, filled_lines, make_document, one_line, titled, without_emoji

_WORD_TAGS = {"p": "p", "tbl": "table", "tr": "tr", "tc": "td", "sdt": "", "sdtContent": "", "customXml": ""}
_WORD_TEXT = (  # python-docx leaves out what was inserted with changes tracked
    ".//w:r[not(ancestor::w:moveFrom or ancestor::w:txbxContent or ancestor::w:rt)]"
    "/*[self::w:t or self::w:tab or self::w:br or self::w:cr or self::w:noBreakHyphen]"
)


@dataclass(frozen=True)
class _Style:
    """What a paragraph style makes of a paragraph: a heading, an item of a list, or neither."""

    name: str = ""
    level: int = 0
    depth: int = 0


def read_word(content: bytes) -> Document:
    """Paragraphs, lists and tables in their order; what was deleted with changes tracked is left out."""
    import docx

    if content.startswith(b"\xd0\xcf\x11\xe0"):  # the container of Word's old format, and of encrypted files
        raise UnreadableError("is locked with a password or an old .doc: save it as .docx without one")
    open_archive(content).close()
    document = docx.Document(io.BytesIO(content))
    styles = {style.style_id: _word_style(style) for style in document.styles if hasattr(style, "base_style")}
    body, outline = document.element.body, Outline()
    titles = (paragraph for paragraph in body.xpath(".//w:p") if _style(paragraph, styles).name == "Title")
    title = next(filter(_word_text, titles), None)
    _word(outline, body, styles, title)
    blocks, properties = outline.blocks(), document.core_properties
    author, stated = one_line(properties.author), one_line(properties.title)
    metadata = {"author": author} if author not in ("", "python-docx") else {}
    if title is not None:
        return make_document(without_emoji(_word_text(title)), blocks, metadata)
    return titled(blocks, "" if stated == "Word Document" else stated, metadata)


def _style(paragraph: Any, styles: dict[str, _Style]) -> _Style:
    return styles.get(paragraph.style, _Style())


def _word_style(style: Any) -> _Style:
    """Of the style itself, or of the one it is based on."""
    for _ in range(10):  # a damaged file may base them on one another
        name = style.name or ""
        if name == "Title" or (heading := re.fullmatch(r"Heading ([1-9])", name)):
            return _Style(name, 1 if name == "Title" else min(int(heading[1]), 6))
        if listed := re.fullmatch(r"List (?:Bullet|Number)(?: (\d))?", name):
            return _Style(name, depth=int(listed[1] or 1))
        if numbered := _numbering(style.element.pPr):
            return _Style(name, depth=numbered)
        if style.base_style is None:
            break
        style = style.base_style
    return _Style(name)


def _numbering(properties: Any) -> int | None:
    """How deep in a list these properties put a paragraph; 0 for out of it, None when they do not say."""
    numbering = None if properties is None else properties.numPr
    if numbering is None:
        return None
    if numbering.numId is not None and numbering.numId.val == 0:
        return 0
    return 1 + (0 if numbering.ilvl is None else max(0, min(numbering.ilvl.val, 8)))


def _word_text(paragraph: Any) -> str:
    signs = {"tab": " ", "noBreakHyphen": "-"}
    found = ((_name(element), element.text) for element in paragraph.xpath(_WORD_TEXT))
    return filled_lines("".join((text or "") if name == "t" else signs.get(name, "\n") for name, text in found))


def _name(element: Any) -> str:
    return element.tag.rpartition("}")[2]


def _gallery(control: Any) -> list[str]:
    """What kind of ready-made part a content control is."""
    gallery = control.find("{*}sdtPr/{*}docPartObj/{*}docPartGallery")
    return [] if gallery is None else gallery.values()


def _word(outline: Outline, parent: Any, styles: dict[str, _Style], title: Any) -> None:
    """Tell what stands in `parent`, but for the paragraph that is the title and a table of contents."""
    depth = 0
    for child in parent.iterchildren("{*}*"):
        wanted, text, tag = 0, "", _WORD_TAGS.get(_name(child))
        if tag == "p":
            style, text, own = _style(child, styles), _word_text(child), _numbering(child.pPr)
            if child is title or style.name.lower().startswith("toc ") or not text:
                continue
            wanted = 0 if style.level else style.depth if own is None else own
            tag = f"h{style.level}" if style.level else "li" if wanted else "p"
        elif tag is None or "Table of Contents" in _gallery(child):
            continue
        for _ in range(wanted - depth):
            outline.start("ul")
        for _ in range(depth - wanted):
            outline.end("ul")
        depth = wanted
        outline.start(tag)
        if text:
            outline.text(text, "")
        else:
            _word(outline, child, styles, title)
        outline.end(tag)
    for _ in range(depth):
        outline.end("ul")
