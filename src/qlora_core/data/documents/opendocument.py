"""OpenDocument texts (.odt), as LibreOffice writes them, read into an `Outline`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from xml.etree import ElementTree

from ..records import Document
from .archive import open_archive
from .outline import Outline, UnreadableError, filled_lines, make_document, one_line, titled, without_emoji
from .raised import marked_raised, with_raised

_OUTLINED = {"list-item": "li", "list-header": "li", "table": "table", "table-row": "tr", "table-cell": "td"}
_LEFT_OUT = {"annotation": "a comment", "text-box": "a text box"}
_SILENT = {  # indexes, what was deleted with changes tracked, declarations, and descriptions of pictures
    "table-of-content", "alphabetical-index", "illustration-index", "table-index", "object-index", "user-index",
    "bibliography", "tracked-changes", "forms", "title", "desc", "covered-table-cell", "note-citation", "object",
}  # fmt: skip
_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:office:1.0}text"
_SIGNS = {"s": " ", "tab": " ", "line-break": "\n"}


def read_opendocument(content: bytes) -> Document:
    """Return paragraphs, lists and tables in order; notes stand behind the text of their section."""
    with open_archive(content) as archive:
        names = archive.namelist()
        if "META-INF/manifest.xml" in names and b"encryption-data" in archive.read("META-INF/manifest.xml"):
            raise UnreadableError("is locked with a password: save it without one")
        trees = [
            ElementTree.fromstring(archive.read(name)) if name in names else ElementTree.Element("none")
            for name in ("content.xml", "styles.xml", "meta.xml")
        ]
    body = next(trees[0].iter(_TEXT), None)
    if body is None:
        raise UnreadableError("cannot be read as .odt: it holds no text document")
    reader = _Reader(_styles(*trees[:2]), _numbered(*trees[:2]), *_looks(*trees[:2]))
    reader.tell(body)
    blocks = reader.outline.blocks()
    stated = {_name(each): one_line(each.text or "") for each in trees[2].iter()}
    author = stated.get("initial-creator") or stated.get("creator", "")
    metadata = {"author": author} if author else {}
    if reader.title:
        document = make_document(without_emoji(reader.title), blocks, metadata)
    else:
        document = titled(blocks, stated.get("title", ""), metadata)
    return replace(document, left_out=tuple(reader.left_out))


def _name(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _attribute(element: ElementTree.Element, name: str) -> str:
    return next((value for key, value in element.items() if key.rpartition("}")[2] == name), "")


def _styles(*trees: ElementTree.Element) -> Mapping[str, str]:
    """Return the style that each paragraph style is based on."""
    named = (each for tree in trees for each in tree.iter() if _name(each) == "style")
    return {_attribute(each, "name"): _attribute(each, "parent-style-name") for each in named}


def _looks(*trees: ElementTree.Element) -> tuple[frozenset[str], frozenset[str]]:
    """Return the text styles that raise text, and those that strike it out."""
    above, struck = set(), set()
    for style in (each for tree in trees for each in tree.iter() if _name(each) == "style"):
        for look in (each for each in style if _name(each) == "text-properties"):
            if re.match(r"super|[1-9]\d*%", _attribute(look, "text-position")):
                above.add(_attribute(style, "name"))
            if _attribute(look, "text-line-through-style") not in ("", "none"):
                struck.add(_attribute(style, "name"))
    return frozenset(above), frozenset(struck)


def _numbered(*trees: ElementTree.Element) -> set[tuple[str, str]]:
    """Return the numbered levels of list styles."""
    styles = (each for tree in trees for each in tree.iter() if _name(each) == "list-style")
    return {
        (_attribute(style, "name"), _attribute(level, "level"))
        for style in styles
        for level in style
        if _name(level) == "list-level-style-number" and _attribute(level, "num-format")
    }


@dataclass
class _Reader:
    parents: Mapping[str, str]
    numbered: set[tuple[str, str]]
    above: frozenset[str] = frozenset()
    struck: frozenset[str] = frozenset()
    outline: Outline = field(default_factory=Outline)
    title: str = ""
    left_out: list[tuple[str, str, str]] = field(default_factory=list)

    def tell(self, parent: ElementTree.Element, *, header: bool = False, lists: tuple[str, ...] = ()) -> None:
        """Read the content of `parent`, without the paragraph that is the title.

        Args:
            parent: an element that holds paragraphs.
            header: whether its cells name columns.
            lists: the styles of the lists that it stands in.
        """
        for child in parent:
            name = _name(child)
            if name in _SILENT:
                continue
            if name in ("p", "h"):
                self._paragraph(child, name)
                continue
            inside, tag = lists, _OUTLINED.get(name, "")
            if name == "list":
                inside = (*lists, _attribute(child, "style-name") or (lists[-1] if lists else ""))
                tag = "ol" if (inside[-1], str(len(inside))) in self.numbered else "ul"
            if name in ("list", "list-item") and any(_name(each) == "h" for each in child.iter()):
                tag = ""  # older programs number headings so
            if tag == "td" and header:
                tag = "th"
            self.outline.start(tag)
            self.tell(child, header=header or name == "table-header-rows", lists=inside)
            self.outline.end(tag)

    def _paragraph(self, element: ElementTree.Element, name: str) -> None:
        style = self._style(_attribute(element, "style-name"))
        level = _attribute(element, "outline-level") if name == "h" else style.removeprefix("Heading_20_")
        tag = f"h{min(int(level), 6)}" if re.fullmatch("[1-9]|10", level) else "p"
        notes: list[str] = []
        text = filled_lines(with_raised("".join(self._text(element, notes))))
        if style == "Title" and text and not self.title:
            self.title = text
        elif text:
            self.outline.start(tag)
            self.outline.text(text, "")
            self.outline.end(tag)
        for note in notes:
            self.outline.note(note)

    def _text(self, element: ElementTree.Element, notes: list[str]) -> Iterator[str]:
        """Yield the text of a paragraph; collect its notes in `notes`."""
        yield _plain(element.text)
        for child in element:
            name = _name(child)
            if name == "note":
                bodies = (each for each in child if _name(each) == "note-body")
                inner = ("".join(self._text(part, notes)) for body in bodies for part in body)
                notes.append(filled_lines("\n".join(inner)))
            elif name in _LEFT_OUT:
                said = (each for each in child.iter() if _name(each) == "p")
                text = " ".join(one_line("".join(each.itertext())) for each in said)
                self.left_out.append(("", _LEFT_OUT[name], text))
            elif name == "span" and _attribute(child, "style-name") in self.struck:
                self.left_out.append(("", "struck out", one_line("".join(child.itertext()))))
            elif name == "span" and _attribute(child, "style-name") in self.above:
                yield marked_raised("".join(self._text(child, notes)))
            elif name in _SIGNS:
                yield _SIGNS[name]
            elif name not in _SILENT:
                yield from self._text(child, notes)
            yield _plain(child.tail)

    def _style(self, name: str) -> str:
        """Return the style, or the one it is based on, that gives a paragraph its kind."""
        for _ in range(10):  # a damaged file may base them on one another
            if name == "Title" or re.fullmatch(r"Heading_20_(?:[1-9]|10)", name):
                return name
            name = self.parents.get(name, "")
        return ""


def _plain(text: str | None) -> str:
    """Return text in which, as in HTML, a line feed is a blank."""
    return re.sub(r"[ \t\r\n]+", " ", text or "")
