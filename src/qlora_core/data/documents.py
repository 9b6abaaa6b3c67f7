"""Files of prose to documents: a title, and blocks or lines. Knows nothing of rows or passages.

Markdown, HTML, EPUB and Word are told to an `_Outline` in HTML's names for things; plain text and PDF only have lines.
"""

from __future__ import annotations

import codecs
import contextlib
import html
import io
import itertools
import logging
import posixpath
import re
import urllib.parse
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .encoding import decode
from .records import Block, Document, Fragment

LARGEST = 256 * 2**20  # bytes that an archive may unpack to
DEEPEST = 12  # lists and tables inside one another; below, their text stays and their shape goes


class _Unreadable(ValueError):
    """A reason in words of ours, to be told from a library's."""


def read_document(suffix: str, content: bytes) -> Document:
    """The document that a file of `suffix` (one of `SUFFIXES`, in either case) holds.

    Raises:
        ValueError: why there is none, in one plain line: it holds no text, is locked, damaged, …
    """
    suffix = suffix.lower()
    if suffix not in _READERS:
        raise ValueError(f"{suffix or 'a file without a suffix'} is none of {', '.join(SUFFIXES)}")
    try:
        with _quiet():
            return _READERS[suffix](content)
    except _Unreadable as error:
        raise ValueError(_line(str(error))) from None
    except ImportError:
        raise ValueError(f"a {suffix} file needs the extra `formats`: uv sync --extra formats") from None
    except RecursionError:
        raise ValueError(f"cannot be read as {suffix}: it is nested too deeply") from None
    except MemoryError:
        raise ValueError(f"cannot be read as {suffix}: it needs more memory than there is") from None
    except Exception as error:  # damage makes the libraries raise anything
        reason = re.sub(r"'?<[^<>]* at 0x\w+>'?", "it", _line(str(error)).strip("'\"")) or type(error).__name__
        raise ValueError(f"cannot be read as {suffix}: {reason[:200]}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what bs4 warns of and pypdf logs."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# Text ----------------------------------------------------------------------------------------------------------------

# Pictures and what modifies or joins them; no letters, and no signs such as © and №. Keycaps begin with a digit.
_PICTURE = (
    r"[\s\u200d\ufe0e\ufe0f\u2300-\u23ff\u25a0-\u27bf\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
    r"\U000e0020-\U000e007f]"
)
_LEADING = re.compile(rf"(?:[#*\d]\ufe0f?\u20e3|{_PICTURE})*")
_TRAILING = re.compile(rf"(?:\u20e3\ufe0f?[#*\d]|{_PICTURE})*")  # of a text that is read backwards


def _line(text: str) -> str:
    """One line, with single spaces."""
    return " ".join(text.split())


def _lines(text: str) -> str:
    """Lines without white space around them, and none that is empty."""
    return "\n".join(line for line in map(_line, text.split("\n")) if line)


def _bare(text: str) -> str:
    """A heading on one line without the emoji around it, unless it has nothing else."""
    text = _line(text)
    start = _LEADING.match(text).end()
    end = len(text) - _TRAILING.match(text[::-1]).end()
    return text[start:end] or text


def _document(title: str, blocks: Iterable[Block], metadata: dict[str, Any]) -> Document:
    blocks = tuple(blocks)
    if not blocks:
        raise _Unreadable("holds no text")
    return Document(title=title, blocks=blocks, metadata=metadata)


def _titled(blocks: Sequence[Block], stated: str, metadata: dict[str, Any]) -> Document:
    """With the title that a heading gives, or else the one that the file states.

    The heading is the first one, if no text comes before it or no other is of level 1. A heading of a section gives
    way to a stated title.
    """
    first = next((block for block in blocks if block.level), None)
    leads = first and (first is blocks[0] or [block.level for block in blocks].count(1) == first.level == 1)
    if first and leads and (first.level == 1 or not stated):
        return _document(first.text, (block for block in blocks if block is not first), metadata)
    return _document(_bare(stated), blocks, metadata)


# Blocks --------------------------------------------------------------------------------------------------------------

_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_LISTS = ("ul", "ol")
_BLOCK_TAGS = {
    *_HEADINGS, *_LISTS, "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details",
    "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "head", "header", "hr", "html", "li", "main", "p",
    "pre", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr",
}  # fmt: skip


@dataclass
class _Open:
    """A list or table that has begun, or the document itself: blocks in cells in rows; an item is a row."""

    tag: str = ""
    first: int = 1
    rows: list[list[list[Block]]] = field(default_factory=list)
    layout: bool = False

    def blocks(self) -> list[Block]:
        """One block; or what is inside, where a list or table only arranges text with headings of its own."""
        inside = [block for row in self.rows for cell in row for block in cell]
        box = self.tag == "table" and [len(row) for row in self.rows] == [1]
        if not inside or not self.tag or self.layout or box or any(block.level for block in inside):
            return inside
        return [Block("\n".join(self._table() if self.tag == "table" else self._items()), place=inside[0].place)]

    def _items(self) -> Iterator[str]:
        for number, row in enumerate(self.rows, self.first):
            lines = "\n".join(block.text for cell in row for block in cell)
            lines = re.sub(r"^\[[ xX]\]\s+", "", lines)  # the box of a task list
            marks = itertools.chain([f"{number}. " if self.tag == "ol" else "- "], itertools.repeat("  "))
            yield from (mark + line for mark, line in zip(marks, lines.split("\n") if lines else (), strict=False))

    def _table(self) -> Iterator[str]:
        rows = [[_line(" ".join(block.text for block in cell)) for cell in row] for row in self.rows]
        pairs = max(map(len, rows)) == 2
        for row in filter(any, rows):
            yield ": ".join(filter(None, row)).replace(":: ", ": ") if pairs else _line(" | ".join(row))


class _Outline:
    """Blocks of a document that is told as HTML's tags and the text between them."""

    def __init__(self) -> None:
        self._stack = [_Open()]
        self._deeper = 0
        self._text: list[str] = []
        self._place, self._level = "", 0

    def start(self, tag: str, first: int = 1) -> None:
        """A tag opens; `first` is the number of an ordered list's first item. Tags inside a line say nothing."""
        if tag not in _BLOCK_TAGS:
            return
        self._flush()
        last = self._stack[-1]
        if tag in _HEADINGS:
            self._level = int(tag[1])
        elif tag in _LISTS or tag == "table":
            if len(self._stack) <= DEEPEST:
                self._stack.append(_Open(tag, first))
            else:
                self._deeper += 1
        elif (tag == "li" and last.tag in _LISTS) or (tag == "tr" and last.tag == "table"):
            last.rows.append([])
        elif tag in ("td", "th") and last.tag == "table":
            last.rows = last.rows or [[]]
            last.rows[-1].append([])

    def text(self, text: str, place: str) -> None:
        """Text, in which a line feed ends a line."""
        if not self._text:
            self._place = place
        if self._text or text.strip():
            self._text.append(text)

    def end(self, tag: str) -> None:
        """A tag closes; for every list and table that was opened, this must be called."""
        if tag not in _BLOCK_TAGS:
            return
        self._flush()
        if tag in _HEADINGS:
            self._level = 0
        elif tag in _LISTS or tag == "table":
            if self._deeper:
                self._deeper -= 1
                return
            closed = self._stack.pop()
            self._stack[-1].layout |= closed.tag == self._stack[-1].tag == "table"
            for block in closed.blocks():
                self._add(block)

    def blocks(self) -> list[Block]:
        """All of them, once the text has ended."""
        self._flush()
        return self._stack[0].blocks()

    def _flush(self) -> None:
        text, self._text = _lines("".join(self._text)), []
        if text:
            self._add(Block(_bare(text) if self._level else text, self._level, self._place))
            self._level = 0  # a heading that nobody closed ends with its first paragraph

    def _add(self, block: Block) -> None:
        rows = self._stack[-1].rows
        if not rows:
            rows.append([])
        if not rows[-1]:
            rows[-1].append([])
        rows[-1][-1].append(block)


# Markdown ------------------------------------------------------------------------------------------------------------

_MATTER = re.compile(r"(?:\w[\w .-]*:(?:\s.*)?|[\s#\-\]}].*)?$")
_PAIR = re.compile(r"(\w[\w .-]*):\s+([^\s\[{|>&*!].*)")
_TAG = re.compile(
    r"(<!--.*?(?:-->|\Z)|<(?:script|style)\b.*?(?:</(?:script|style)\s*>|\Z)|</?[a-z][^<>]*>|<[!?][^<>]*>)",
    re.IGNORECASE | re.DOTALL,
)


def _markdown(content: bytes) -> Document:
    from markdown_it import MarkdownIt

    metadata, text = _front_matter(decode(content)[0])
    # the preset stops at 20 and loses what is deeper
    tokens = MarkdownIt("commonmark", {"maxNesting": 100}).enable(["table", "strikethrough"]).parse(text)
    outline, line = _Outline(), 1
    for token in tokens:
        line = token.map[0] + 1 if token.map else line
        if token.type == "inline":
            for child in token.children:
                outline.text(_inline(child), str(line))
        elif token.type in ("fence", "code_block"):
            outline.start("pre")
            outline.text(token.content, str(line + (token.type == "fence")))
            outline.end("pre")
        elif token.type == "html_block":
            _markup(outline, token.content, line)
        elif token.nesting:
            if token.nesting > 0:
                outline.start(token.tag, int(token.attrs.get("start", 1)))
            else:
                outline.end(token.tag)
    blocks = outline.blocks()
    if blocks and not any(block.level for block in blocks) and _begins_with_title(tokens, blocks[0]):
        blocks[0] = replace(blocks[0], text=_bare(blocks[0].text), level=1)
    return _titled(blocks, metadata.get("title", ""), metadata)


def _inline(token: Any) -> str:
    if token.type in ("text", "code_inline"):
        return token.content.replace("\n", " ")
    if token.type == "hardbreak" or (token.type == "html_inline" and re.match(r"<br\b", token.content, re.IGNORECASE)):
        return "\n"
    return " " if token.type == "softbreak" else ""


def _begins_with_title(tokens: Sequence[Any], block: Block) -> bool:
    """Whether the first block is a paragraph of one short bold line, with nothing but emoji beside it."""
    line = next((token for token in tokens if token.type == "inline"), None)
    if not line or line.level != 1 or block.place != str(line.map[0] + 1) or len(block.text) > 80:
        return False
    depth, bold = 0, False
    for child in line.children:
        depth += child.nesting if child.tag == "strong" else 0
        bold |= depth > 0
        text = _inline(child)
        if child.type == "softbreak" or "\n" in text or (not depth and not _LEADING.fullmatch(text)):
            return False
    return bold


def _front_matter(text: str) -> tuple[dict[str, str], str]:
    """YAML at the very top as far as it is simple, and the text with empty lines in its place."""
    lines = text.split("\n")
    end = next((number for number, line in enumerate(lines) if number and line.rstrip() in ("---", "...")), 0)
    if lines[0].rstrip() != "---" or not end or not all(map(_MATTER.match, lines[1:end])):
        return {}, text
    pairs = [pair for pair in map(_PAIR.match, lines[1:end]) if pair]
    values = {pair[1]: pair[2].strip().strip("\"'").strip() for pair in pairs}
    return {key: value for key, value in values.items() if value}, "\n".join([""] * (end + 1) + lines[end + 1 :])


def _markup(outline: _Outline, markup: str, line: int) -> None:
    """HTML inside Markdown, of which only paragraphs and headings count: its tags need not be closed."""
    for index, piece in enumerate(_TAG.split(markup)):
        if index % 2 == 0:
            for offset, text in enumerate(piece.split("\n")):
                outline.text(" " * bool(offset) + html.unescape(text).replace("\n", " "), str(line + offset))
        elif match := re.match(r"<(/?)(\w+)", piece):
            tag = match[2].lower()
            if tag == "br":
                outline.text("\n", str(line))
            elif tag in _BLOCK_TAGS:
                (outline.end if match[1] else outline.start)(tag if tag in _HEADINGS else "p")
        line += piece.count("\n")


# HTML ----------------------------------------------------------------------------------------------------------------

_DROPPED = {
    "aside", "button", "form", "iframe", "nav", "noscript", "script", "select", "style", "svg", "template", "textarea",
    "title",
}  # fmt: skip


def _html(content: bytes) -> Document:
    soup = _soup(content)
    blocks = _html_blocks(soup)
    heading = next((block for block in blocks if block.level == 1), None)
    author = soup.find("meta", {"name": re.compile("^author$", re.IGNORECASE), "content": True})
    metadata = {"author": _line(author["content"])} if author and author["content"].strip() else {}
    elsewhere = soup.find_all("h1", limit=2)  # in a header, say
    named = heading.text if heading else _bare(soup.title.get_text()) if soup.title else ""
    if not named and len(elsewhere) == 1:
        named = _bare(elsewhere[0].get_text(" "))
    return _document(named, (block for block in blocks if block is not heading), metadata)


def _soup(content: bytes) -> Any:
    """Parsed, in the encoding that the file declares if it is not in Unicode."""
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


def _html_blocks(soup: Any) -> list[Block]:
    """What the page is about: its `main`, its only `article`, or all of it; a loop, as pages nest without end."""
    from bs4 import CData, NavigableString, Tag

    articles = soup.find_all("article", limit=2)
    outline = _Outline()
    pending: list[tuple[Any, bool, bool]] = [
        (soup.find("main") or (articles[0] if len(articles) == 1 else soup), False, False)
    ]
    while pending:
        node, content, verbatim = pending.pop()
        if type(node) is str:
            outline.end(node)
        elif type(node) in (NavigableString, CData):
            text = node if verbatim else re.sub(r"\s+", " ", node)
            outline.text(text, str(node.parent.sourceline or ""))
        elif isinstance(node, Tag) and not _is_dropped(node, content):
            if node.name == "br":
                outline.text("\n", "")
            first = node.get("start", "")
            outline.start(node.name, int(first) if re.fullmatch("[0-9]{1,9}", first) else 1)
            content, verbatim = content or node.name in ("article", "main"), verbatim or node.name == "pre"
            pending.append((str(node.name), content, verbatim))
            pending += [(child, content, verbatim) for child in reversed(node.contents)]
    return outline.blocks()


def _is_dropped(tag: Any, content: bool) -> bool:
    return (
        tag.name in _DROPPED
        or (tag.name in ("header", "footer") and not content)
        or tag.has_attr("hidden")
        or tag.get("aria-hidden", "").strip().lower() == "true"
        or bool(re.search(r"display\s*:\s*none", tag.get("style", ""), re.IGNORECASE))
    )


# EPUB ----------------------------------------------------------------------------------------------------------------


def _epub(content: bytes) -> Document:
    """Read from the archive itself: ebooklib, which would do it, is under the AGPL."""
    with _archive(content) as archive:
        rootfile = _soup(archive.read("META-INF/container.xml")).find(_called("rootfile"))
        if rootfile is None:
            raise _Unreadable("cannot be read as .epub: its container names no book")
        package = _soup(archive.read(rootfile["full-path"]))
        chapters = _chapters(package, posixpath.dirname(rootfile["full-path"]))
        if "META-INF/encryption.xml" in archive.namelist():
            locked = _soup(archive.read("META-INF/encryption.xml")).find_all(_called("cipherreference"))
            if any(urllib.parse.unquote(each.get("uri", "")) in chapters for each in locked):
                raise _Unreadable("is protected (DRM) and cannot be read")
        blocks = [block for chapter in chapters for block in _html_blocks(_soup(archive.read(chapter)))]
    texts = [[_line(found.get_text()) for found in package.find_all(_called(name))] for name in ("title", "creator")]
    title, author = next(filter(None, texts[0]), ""), ", ".join(filter(None, texts[1]))
    # a line number means nothing without its chapter
    return _document(_bare(title), (replace(block, place="") for block in blocks), {"author": author} if author else {})


def _called(name: str) -> re.Pattern[str]:
    """Tags of this name in whatever namespace."""
    return re.compile(rf"^(?:[^:]*:)?{name}$")


def _chapters(package: Any, folder: str) -> list[str]:
    """Members that hold the text, in reading order; without contents and cover."""

    def member(href: str) -> str:
        path = posixpath.normpath(posixpath.join(folder, urllib.parse.unquote(href.partition("#")[0])))
        return _inside(path)

    items = {item.get("id"): item for item in package.find_all(_called("item"))}
    aside = {
        member(reference.get("href", ""))
        for reference in package.find_all(_called("reference"))
        if reference.get("type", "").lower() in ("cover", "toc")
    }
    chapters = []
    for entry in package.find_all(_called("itemref")):
        item = items.get(entry.get("idref"))
        if item is None or entry.get("linear", "").lower() == "no" or "nav" in item.get("properties", "").split():
            continue
        if "html" in item.get("media-type", "") and member(item["href"]) not in aside:
            chapters.append(member(item["href"]))
    return chapters


def _inside(name: str) -> str:
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or re.fullmatch("[A-Za-z]:", parts[0]):
        raise _Unreadable(f"names a file outside of itself: {name[:80]}")
    return name


def _archive(content: bytes) -> zipfile.ZipFile:
    """A zip archive that is safe to read: zipfile reads no more of a member than the size that it declares."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    if sum(member.file_size for member in archive.infolist()) > LARGEST:
        raise _Unreadable("unpacks to more than 256 MB")
    for name in archive.namelist():
        _inside(name)
    return archive


# Word ----------------------------------------------------------------------------------------------------------------

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


def _docx(content: bytes) -> Document:
    import docx

    if content.startswith(b"\xd0\xcf\x11\xe0"):  # the container of Word's old format, and of encrypted files
        raise _Unreadable("is locked with a password or an old .doc: save it as .docx without one")
    _archive(content).close()
    document = docx.Document(io.BytesIO(content))
    styles = {style.style_id: _word_style(style) for style in document.styles if hasattr(style, "base_style")}
    body, outline = document.element.body, _Outline()
    titles = (paragraph for paragraph in body.xpath(".//w:p") if _style(paragraph, styles).name == "Title")
    title = next(filter(_word_text, titles), None)
    _word(outline, body, styles, title)
    blocks, properties = outline.blocks(), document.core_properties
    author, stated = _line(properties.author), _line(properties.title)
    metadata = {"author": author} if author not in ("", "python-docx") else {}
    if title is not None:
        return _document(_bare(_word_text(title)), blocks, metadata)
    return _titled(blocks, "" if stated == "Word Document" else stated, metadata)


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
    return _lines("".join((text or "") if name == "t" else signs.get(name, "\n") for name, text in found))


def _name(element: Any) -> str:
    return element.tag.rpartition("}")[2]


def _gallery(control: Any) -> list[str]:
    """What kind of ready-made part a content control is."""
    gallery = control.find("{*}sdtPr/{*}docPartObj/{*}docPartGallery")
    return [] if gallery is None else gallery.values()


def _word(outline: _Outline, parent: Any, styles: dict[str, _Style], title: Any) -> None:
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


# Lines ---------------------------------------------------------------------------------------------------------------

_NO_TITLE = re.compile(  # a file name, what programs put there, or nothing that is a word
    r"\.(?:docx?|dvi|html?|indd|md|odt|pages|pdf|pptx?|ps|pub|qxd|rtf|tex|txt|wpd|xlsx?)$"
    r"|^microsoft (?:word|powerpoint|excel) - |^(?:untitled|sem t[ií]tulo|documento?)[ \d]*$|^[\W\d_]*$",
    re.IGNORECASE,
)
_BROKEN = re.compile(r"[^\W\d_][-\u2010\u00ad]$")


def _fragments(lines: Iterable[tuple[str, str]]) -> list[Fragment]:
    """Lines with their places; several empty ones are one, and none is first or last."""
    fragments: list[Fragment] = []
    for text, place in lines:
        if _line(text) or (fragments and fragments[-1].text):
            fragments.append(Fragment(_line(text), place))
    if fragments and not fragments[-1].text:
        fragments.pop()
    if not fragments:
        raise _Unreadable("holds no text")
    return fragments


def _txt(content: bytes) -> Document:
    lines = enumerate(decode(content)[0].split("\n"), 1)
    return Document(lines=tuple(_fragments((text, str(number)) for number, text in lines)))


def _pdf(content: bytes) -> Document:
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise _Unreadable("is locked with a password: save it without one")
        pages = [_whole(page.extract_text()).strip() for page in reader.pages]
        said = reader.metadata or {}
        said = {key: said[key] for key in said}  # which looks up what is stored elsewhere
    except pypdf.errors.DependencyError:  # AES, which pypdf only reads with another library
        raise _Unreadable("is locked with a password: save it without one") from None
    if pages and not any(pages):
        count = f"its {len(pages)} pages hold" if len(pages) > 1 else "its only page holds"
        raise _Unreadable(f"{count} no text, only pictures: run OCR on it first")
    lines = ((line, f"page {number}") for number, page in enumerate(pages, 1) if page for line in page.split("\n"))
    found = (said.get(key) for key in ("/Title", "/Author"))
    title, author = (_line(_whole(each)) if isinstance(each, str) else "" for each in found)
    title = "" if _NO_TITLE.search(title) else _bare(title)
    return Document(title, (), tuple(_rejoined(_fragments(lines))), {"author": author} if author else {})


def _whole(text: str) -> str:
    """Without halves of surrogate pairs, which fonts may map to and no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _rejoined(lines: Iterable[Fragment]) -> list[Fragment]:
    """Words that were broken where a line ends, on that line; a hyphen that the next line repeats is the word's own."""
    joined: list[Fragment] = []
    for line in lines:
        if joined and _BROKEN.search(joined[-1].text) and line.text.removeprefix("-")[:1].islower():
            word, _, rest = line.text.partition(" ")
            joined[-1] = replace(joined[-1], text=joined[-1].text[:-1] + word)
            if not rest:
                continue
            line = replace(line, text=rest)
        joined.append(line)
    return [replace(line, text=line.text.replace("\u00ad", "")) for line in joined]


_READERS: dict[str, Callable[[bytes], Document]] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".txt": _txt,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".docx": _docx,
    ".pdf": _pdf,
    ".epub": _epub,
}
SUFFIXES = tuple(_READERS)
