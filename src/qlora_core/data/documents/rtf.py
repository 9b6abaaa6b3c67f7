"""Rich text (.rtf), as Word, LibreOffice and TextEdit write it, read into an `Outline`.

Existing libraries return lines alone; here headings, lists, tables and notes keep their structure.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field, replace

from ..records import Block, Document
from .outline import Outline, UnreadableError, filled_lines, make_document, one_line, titled, without_emoji
from .raised import marked_raised, with_raised

_TOKEN = re.compile(
    r"\\([a-zA-Z]{1,32})(-?\d{1,10})?[ ]?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z])|([{}])|[\r\n\0]+|([^\\{}\r\n\0]+)",
    re.DOTALL,
)
_SIGNS = {
    "tab": " ", "line": "\n", "emdash": "—", "endash": "–", "emspace": " ", "enspace": " ", "qmspace": " ",
    "bullet": "•", "lquote": "‘", "rquote": "’", "ldblquote": "“", "rdblquote": "”", "nestcell": "\n",
}  # fmt: skip
_SIGN_CHARACTERS = {"~": " ", "_": "-", "-": "", "{": "{", "}": "}", "\\": "\\"}
_LOST = {  # what holds no text of the document
    "colortbl", "pict", "object", "header", "headerl", "headerr", "headerf", "footer", "footerl", "footerr", "footerf",
    "ftnsep", "ftnsepc", "ftncn", "aftnsep", "aftnsepc", "aftncn", "listtable", "listoverridetable", "revtbl", "xe",
    "tc", "fldinst", "filetbl", "template", "operator", "company", "category", "keywords", "subject", "doccomm",
    "comment", "creatim", "revtim", "printim", "buptim", "hlinkbase", "manager", "pn", "atnid", "atnauthor", "atnref",
    "sp",
}  # fmt: skip
_KEPT = {"footnote": "note", "listtext": "mark", "pntext": "mark", "annotation": "comment", "shptxt": "box",
         "fonttbl": "fonts", "stylesheet": "styles", "title": "title", "author": "author"}  # fmt: skip
_THROUGH = (*_KEPT, "shpinst")  # after \* too, what is inside is looked at
_CHARSETS = {  # of fonts
    77: "mac_roman", 128: "cp932", 129: "cp949", 130: "johab", 134: "gbk", 136: "cp950", 161: "cp1253", 162: "cp1254",
    163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874", 238: "cp1250",
    254: "cp437", 255: "cp850",
}  # fmt: skip
_PAGES = {"mac": "mac_roman", "pc": "cp437", "pca": "cp850"}
_LEFT_OUT = {"comment": "a comment", "box": "a text box"}


def read_rtf(content: bytes) -> Document:
    """Return paragraphs, lists and tables in order; notes stand behind the text of their section."""
    if not content.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{\\rtf"):
        raise UnreadableError("cannot be read as .rtf: it does not begin as one")
    reader = _Reader()
    reader.read(content.decode("latin-1"))
    blocks = reader.finished()
    metadata = {"author": reader.author} if reader.author else {}
    if reader.title:
        document = make_document(without_emoji(reader.title), blocks, metadata)
    else:
        document = titled(blocks, reader.stated, metadata)
    return replace(document, left_out=tuple(reader.left_out))


@dataclass
class _Group:
    """The state that holds until a brace closes.

    Attributes:
        into: destination of its text: "body", "lost", or one of the values of `_KEPT`.
        unicode_skip: characters that stand behind one in Unicode, for readers that do not know it.
        font: its number.
        hidden: whether its text is not shown, or was deleted with changes tracked.
        struck, above: whether it is struck out, or raised.
    """

    into: str = "body"
    unicode_skip: int = 1
    font: str = ""
    hidden: bool = False
    struck: bool = False
    above: bool = False


@dataclass
class _Paragraph:
    style: str = ""
    level: int = 0
    depth: int = 0
    in_table: bool = False


@dataclass
class _Reader:
    outline: Outline = field(default_factory=Outline)
    stack: list[_Group] = field(default_factory=lambda: [_Group()])
    texts: dict[str, list[str]] = field(default_factory=dict)  # what is gathered, by where it goes
    paragraph: _Paragraph = field(default_factory=_Paragraph)
    encoding: str = "cp1252"
    fonts: dict[str, str] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)  # of the styles that are headings
    names: dict[str, str] = field(default_factory=dict)
    raw: bytearray = field(default_factory=bytearray)  # bytes that are not decoded yet
    skip: int = 0
    notes: list[str] = field(default_factory=list)  # of the paragraph at hand
    lists: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)
    rows: list[tuple[bool, list[str]]] = field(default_factory=list)
    header: bool = False
    title: str = ""
    stated: str = ""
    author: str = ""
    left_out: list[tuple[str, str, str]] = field(default_factory=list)

    def read(self, text: str) -> None:
        """Read the whole file."""
        place, starred = text.index("{"), False
        while place < len(text) and (match := _TOKEN.match(text, place)):
            place = match.end()
            word, number, byte, character, brace, plain = match.groups()
            if byte is None and not (plain and not plain.isascii()):
                self._decode()
            if brace == "{":
                self.stack.append(replace(self.stack[-1]))
                self.skip = 0
            elif brace:
                self._close()
                if len(self.stack) == 1:
                    break
            elif word == "bin":
                place += max(int(number or 0), 0)
            elif word:
                self._word(word, number, starred)
            elif byte:
                self._byte(int(byte, 16))
            elif character:
                self._character(character)
            elif plain:
                self._plain(plain)
            starred = character == "*"
        self._decode()
        if len(self.stack) > 1:
            self.left_out.append(("", "breaks off before its end", self._so_far()[-60:]))

    def finished(self) -> list[Block]:
        """Return the blocks once everything is read."""
        if self.cells or "cell" in self.texts:  # it breaks off in a table
            self._end_paragraph("cell")
            self._end_paragraph("row")
        self._end_paragraph()
        self._end_table()
        self._lists_to(0, "ul")
        return self.outline.blocks()

    # Characters

    def _add(self, text: str) -> None:
        group = self.stack[-1]
        if group.into == "lost" or group.hidden:
            return
        if group.struck:
            self.left_out.append(("", "struck out", one_line(text)))
        else:
            self.texts.setdefault(group.into, []).append(marked_raised(text) if group.above else text)

    def _byte(self, value: int) -> None:
        if self.skip:
            self.skip -= 1
        else:
            self.raw.append(value)

    def _plain(self, text: str) -> None:
        dropped, self.skip = text[: self.skip], max(self.skip - len(text), 0)
        text = text[len(dropped) :]
        if text.isascii():
            self._add(text)
        else:  # bytes that should have been escaped
            self.raw += text.encode("latin-1")
            self._decode()

    def _decode(self) -> None:
        if self.raw:
            encoding = self.fonts.get(self.stack[-1].font, "") or self.encoding
            self._add(self.raw.decode(encoding, "replace"))
            self.raw.clear()

    def _character(self, character: str) -> None:
        if character in "\r\n":  # TextEdit's way to end a paragraph
            self._end_paragraph()
        else:
            self._add(_SIGN_CHARACTERS.get(character, ""))

    # Words

    def _word(self, word: str, number: str | None, starred: bool) -> None:
        group, value = self.stack[-1], int(number) if number else None
        if word in _KEPT and (group.into == "body" or word in ("title", "author")) and len(self.stack) > 2:
            group.into = _KEPT[word]
        elif word in _LOST or (starred and word not in _THROUGH):
            group.into = "lost"
        elif word == "u" and value is not None:
            self._add(chr(value % 0x10000))
            self.skip = group.unicode_skip
        elif word == "uc":
            group.unicode_skip = max(value or 0, 0)
        elif word in _SIGNS:
            self._add(_SIGNS[word])
        elif word in _PAGES or word == "ansicpg":
            self.encoding = _known(_PAGES.get(word, f"cp{value}"))
        elif word in ("v", "deleted"):
            group.hidden = value != 0
        elif word in ("strike", "striked"):
            group.struck = value != 0
        elif word in ("super", "up", "sub", "dn", "nosupersub"):
            group.above = word == "super" or (word == "up" and value != 0)
        elif word == "plain":
            group.hidden, group.struck, group.above, group.font = False, False, False, ""
        elif word == "f":
            group.font = number or ""
        elif word == "fcharset" and group.into == "fonts":
            self.fonts[group.font] = _CHARSETS.get(value or 0, "")
        elif group.into == "styles":
            self._of_style(word, value)
        elif group.into == "body":
            self._of_paragraph(word, value)
        elif word in ("par", "sect"):
            self._add("\n")

    def _of_style(self, word: str, value: int | None) -> None:
        if word == "s":
            self.paragraph = _Paragraph(style=str(value))
        elif word == "outlinelevel" and value is not None and value < 9:
            self.levels[self.paragraph.style] = min(value + 1, 6)

    def _of_paragraph(self, word: str, value: int | None) -> None:
        here = self.paragraph
        if word in ("par", "sect", "page", "cell", "row"):
            self._end_paragraph(word)
        elif word == "pard":
            self.paragraph = _Paragraph()
        elif word == "s":
            here.style = str(value)
        elif word == "outlinelevel" and value is not None:
            here.level = min(value + 1, 6) if value < 9 else 0
        elif word == "ilvl":
            here.depth = min(max(value or 0, 0), 8)
        elif word == "intbl":
            here.in_table = True
        elif word == "trowd":
            self.header = False
        elif word == "trhdr":
            self.header = True

    def _close(self) -> None:
        group = self.stack.pop() if len(self.stack) > 1 else self.stack[-1]
        outer = self.stack[-1].into
        if group.into == "styles":
            self._name_style()
        if group.into == outer or group.into in ("lost", "body", "fonts", "styles", "mark"):
            return
        text = filled_lines(self._taken(group.into))
        if group.into == "note":
            self.notes.append(text)
        elif group.into in _LEFT_OUT:
            self.left_out += [("", _LEFT_OUT[group.into], text)] if text else []
        elif group.into == "title":
            self.stated = one_line(text)
        else:
            self.author = one_line(text)

    def _name_style(self) -> None:
        name = self._taken("styles").strip().rstrip(";")
        style = self.paragraph.style
        self.names.setdefault(style, name)
        if heading := re.fullmatch(r"heading (\d)", name, re.IGNORECASE):
            self.levels[style] = min(max(int(heading[1]), 1), 6)
        self.paragraph = _Paragraph()

    def _taken(self, into: str) -> str:
        """Return the collected text and start anew, joining surrogate pairs."""
        text = with_raised("".join(self.texts.pop(into, [])))
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _so_far(self) -> str:
        return one_line("".join(self.texts.get("body", [])).encode("utf-8", "replace").decode())

    # Paragraphs

    def _end_paragraph(self, how: str = "par") -> None:
        text, mark, here = filled_lines(self._taken("body")), self._taken("mark").strip(), self.paragraph
        if how == "cell":
            self.cells.append("\n".join(filter(None, (self._taken("cell"), text))))
        elif how == "row":
            self.rows.append((self.header, self.cells))
            self.cells = []
        elif here.in_table:
            self.texts.setdefault("cell", []).append(text + "\n")
        else:
            self._end_table()
            self._tell(text, mark, here)
        if not here.in_table or how == "row":
            for note in self.notes:
                self.outline.note(note)
            self.notes = []

    def _tell(self, text: str, mark: str, here: _Paragraph) -> None:
        name = self.names.get(here.style, "").lower()
        if not text or re.match(r"(?:toc|contents) ", name):
            return
        if name == "title" and not self.title:
            self.title = text
            return
        level = here.level or self.levels.get(here.style, 0)
        item = bool(mark) and not level
        self._lists_to(here.depth + 1 if item else 0, "ol" if re.match(r"\(?\w{1,4}[.)]", mark) else "ul")
        tag = f"h{level}" if level else "li" if item else "p"
        self.outline.start(tag)
        self.outline.text(text, "")
        self.outline.end(tag)

    def _lists_to(self, depth: int, kind: str) -> None:
        """Open and close lists until they are `depth` deep."""
        while len(self.lists) > depth or (self.lists and len(self.lists) == depth and self.lists[-1] != kind):
            self.outline.end(self.lists.pop())
        while len(self.lists) < depth:
            self.lists.append(kind)
            self.outline.start(kind)

    def _end_table(self) -> None:
        rows, self.rows, self.cells = self.rows, [], []
        if rows:
            self._lists_to(0, "ul")
            self.outline.start("table")
            for header, cells in rows:
                self.outline.start("tr")
                for cell in cells:
                    self.outline.start("th" if header else "td")
                    self.outline.text(cell, "")
                    self.outline.end("td")
                self.outline.end("tr")
            self.outline.end("table")


def _known(encoding: str) -> str:
    """Return an encoding known to Python; an unknown name means Western Windows."""
    name = {"cp65001": "utf-8", "cp10000": "mac_roman"}.get(encoding, encoding)
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "cp1252"
