"""Word (.docx), read into an `Outline`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..records import Document
from .archive import open_archive
from .outline import Outline, UnreadableError, filled_lines, make_document, one_line, titled, without_emoji
from .raised import marked_raised, with_raised

_WORD_TAGS = {"p": "p", "tbl": "table", "tr": "tr", "tc": "td", "sdt": "", "sdtContent": "", "customXml": ""}
_ON = "[not(@w:val) or not(@w:val='0' or @w:val='false' or @w:val='none')]"
_STRUCK = f"w:rPr/w:strike{_ON} or w:rPr/w:dstrike{_ON}"
_WORD_TEXT = (  # python-docx leaves out what was inserted with changes tracked
    ".//w:r[not(ancestor::w:moveFrom or ancestor::w:txbxContent or ancestor::w:rt"
    f" or {_STRUCK} or w:rPr/w:vanish{_ON})]"
    "/*[self::w:t or self::w:tab or self::w:br or self::w:cr or self::w:noBreakHyphen]"
)
_NOTES = (
    ".//w:r[not(ancestor::w:moveFrom or ancestor::w:txbxContent or ancestor::w:del)]"
    "/*[self::w:footnoteReference or self::w:endnoteReference]"
)


@dataclass(frozen=True)
class _Style:
    """A paragraph style's effect: a heading, a list item, or neither."""

    name: str = ""
    level: int = 0
    depth: int = 0


def read_word(content: bytes) -> Document:
    """Return paragraphs, lists and tables in order, without tracked deletions.

    Notes stand behind the text of their section.
    """
    import docx

    if content.startswith(b"\xd0\xcf\x11\xe0"):  # the container of Word's old format, and of encrypted files
        raise UnreadableError("is locked with a password or an old .doc: save it as .docx without one")
    open_archive(content).close()
    document = docx.Document(io.BytesIO(content))
    styles = {style.style_id: _word_style(style) for style in document.styles if hasattr(style, "base_style")}
    body, outline = document.element.body, Outline()
    titles = (paragraph for paragraph in body.xpath(".//w:p") if _style(paragraph, styles).name == "Title")
    title = next(filter(_word_text, titles), None)
    _word(outline, body, styles, title, _notes_of(document.part))
    blocks, properties = outline.blocks(), document.core_properties
    author, stated = one_line(properties.author), one_line(properties.title)
    metadata = {"author": author} if author not in ("", "python-docx") else {}
    if title is not None:
        found = make_document(without_emoji(_word_text(title)), blocks, metadata)
    else:
        found = titled(blocks, "" if stated == "Word Document" else stated, metadata)
    return replace(found, left_out=tuple(_aside(document)))


def _notes_of(part: Any) -> dict[tuple[str, str], str]:
    """Return the texts of footnotes and endnotes by kind of reference and number."""
    from docx.oxml import parse_xml

    found: dict[tuple[str, str], str] = {}
    for relation in part.rels.values():
        kind = relation.reltype.rpartition("/")[2]
        if kind in ("footnotes", "endnotes") and not relation.is_external:
            for note in parse_xml(relation.target_part.blob).iterchildren("{*}*"):
                text = filled_lines("\n".join(_word_text(each) for each in note.iter("{*}p")))
                number = next((value for key, value in note.items() if key.endswith("}id")), "")
                found[f"{kind[:-1]}Reference", number] = text
    return found


def _aside(document: Any) -> Iterator[tuple[str, str, str]]:
    """Yield what is not the document's text: comments, boxes beside it (an old form repeats each), struck text."""
    for run in document.element.body.xpath(f".//w:r[{_STRUCK}]"):
        if text := one_line("".join(t.text or "" for t in run.iter("{*}t"))):
            yield "", "struck out", text
    for comment in document.comments:
        yield "", "a comment", comment.text
    for box in document.element.body.xpath(".//w:txbxContent[not(ancestor::*[local-name()='Fallback'])]"):
        paragraphs = (each for each in box.iter("{*}p"))
        if text := one_line(" ".join("".join(t.text or "" for t in each.iter("{*}t")) for each in paragraphs)):
            yield "", "a text box", text


def _style(paragraph: Any, styles: dict[str, _Style]) -> _Style:
    return styles.get(paragraph.style, _Style())


def _word_style(style: Any) -> _Style:
    """Return the style itself, or the one it is based on."""
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
    """Return the list depth of these properties; 0 outside any list, None if they do not say."""
    numbering = None if properties is None else properties.numPr
    if numbering is None:
        return None
    if numbering.numId is not None and numbering.numId.val == 0:
        return 0
    return 1 + (0 if numbering.ilvl is None else max(0, min(numbering.ilvl.val, 8)))


def _word_text(paragraph: Any) -> str:
    signs = {"tab": " ", "noBreakHyphen": "-"}
    found = ((_name(element), _said(element)) for element in paragraph.xpath(_WORD_TEXT))
    return filled_lines(with_raised("".join(text if name == "t" else signs.get(name, "\n") for name, text in found)))


def _said(element: Any) -> str:
    """Return the text of a part of a run, marked if it is raised."""
    above = element.getparent().find("{*}rPr/{*}vertAlign")
    text = element.text or ""
    return marked_raised(text) if above is not None and "superscript" in above.values() else text


def _name(element: Any) -> str:
    return element.tag.rpartition("}")[2]


def _gallery(control: Any) -> list[str]:
    """Return a content control's gallery, its kind of ready-made part."""
    gallery = control.find("{*}sdtPr/{*}docPartObj/{*}docPartGallery")
    return [] if gallery is None else gallery.values()


def _word(
    outline: Outline, parent: Any, styles: dict[str, _Style], title: Any, notes: dict[tuple[str, str], str]
) -> None:
    """Read the content of `parent`, without the title paragraph and a table of contents."""
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
            _word(outline, child, styles, title, notes)
        outline.end(tag)
        for mark in child.xpath(_NOTES) if text else ():
            outline.note(notes.get((_name(mark), mark.get(mark.tag.rpartition("}")[0] + "}id")), ""))
    for _ in range(depth):
        outline.end("ul")
