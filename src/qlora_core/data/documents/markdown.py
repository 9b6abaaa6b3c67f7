"""Markdown, with its line numbers, read into an `Outline`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..encoding import decode
from ..prose import joint, keep_their_lines, starts_of_turns, unwrapped
from ..records import Block, Document
from .dialect import extend, page_properties, without_hidden
from .outline import BLOCK_TAGS, HEADINGS, LEADING_EMOJI, Outline, titled, without_emoji
from .raised import raised

_MATTER = re.compile(r"(?:\w[\w .-]*:(?:\s.*)?|[\s#\-\]}].*)?$")
_PAIR = re.compile(r"(\w[\w .-]*):\s+([^\s\[{|>&*!].*)")
_TAG = re.compile(
    r"(<!--.*?(?:-->|\Z)|<(?:script|style)\b.*?(?:</(?:script|style)\s*>|\Z)|</?[a-z][^<>]*>|<!doctype[^<>]*>|<\?[^<>]*>)",
    re.IGNORECASE | re.DOTALL,
)
_NAME = re.compile(r"<(/?)([a-z][\w:-]*)([^<>]*)>", re.IGNORECASE)
_INLINE_TAGS = (
    "a abbr acronym applet area audio b base bdi bdo big blink br button canvas cite code col colgroup data datalist "
    "del dfn dialog dir em embed font form frame frameset hgroup i iframe img input ins kbd label legend link map mark "
    "marquee menu meta meter nav nobr noframes noscript object optgroup option output param picture progress q rp rt "
    "ruby s samp script search select slot small source span strike strong style sub sup svg template textarea time "
    "title track tt u var video wbr math"
)
_TAGS = BLOCK_TAGS | {*_INLINE_TAGS.split()}
_LONELY = ("br", "hr", "wbr")  # tags that are never closed
_STRUCK, _STRUCK_END = re.compile(r"<(?:del|s|strike)\b"), re.compile(r"</(?:del|s|strike)\s*>")
_SOFT = "\x0b"  # a line ends here that need not end


def read_markdown(content: bytes) -> Document:
    """Return each block with its line; front matter becomes metadata."""
    from markdown_it import MarkdownIt

    metadata, text = _front_matter(_without_fence(decode(content)[0]))
    properties, text = page_properties(text)
    metadata |= properties
    text, left_out = without_hidden(text)
    # the preset stops at 20 and loses what is deeper
    parser = MarkdownIt("commonmark", {"maxNesting": 100}).enable(["table", "strikethrough"])
    extend(parser, text)
    tokens = parser.parse(text)
    markup = _Markup.of(tokens)
    struck: list[tuple[str, str, str]] = []
    paragraphs = {id(token): markup.said(token.children) for token in tokens if token.type == "inline"}
    kept = _kept_lines(list(paragraphs.values()))
    outline, line = Outline(), 1
    for token in tokens:
        line = token.map[0] + 1 if token.map else line
        if token.type == "inline":
            said = paragraphs[id(token)]
            struck += [(str(line), "struck out", text) for text in markup.struck.get(id(token.children), ())]
            outline.text(kept.get(said) or _joined(said.split(_SOFT)), str(line))
        elif token.type in ("fence", "code_block"):
            outline.start("pre")
            outline.text(token.content, str(line + (token.type == "fence")))
            outline.end("pre")
        elif token.type == "html_block":
            markup.tell(outline, token.content, line)
        elif token.nesting > 0:
            number = int(token.info) if token.type == "list_item_open" and token.info.isdecimal() else None
            outline.start(token.tag, number if number is not None else token.attrs.get("start"))
        elif token.nesting:
            outline.end(token.tag)
    blocks = [replace(block, text=_without_stray_marks(block.text)) for block in outline.blocks()]
    if blocks and not any(block.level for block in blocks) and _begins_with_title(tokens, blocks[0]):
        blocks[0] = replace(blocks[0], text=without_emoji(blocks[0].text), level=1)
    return replace(titled(blocks, metadata.get("title", ""), metadata), left_out=(*left_out, *struck))


def _joined(lines: Sequence[str]) -> str:
    """Join a paragraph's lines, except those that begin with a time or a speaker."""
    parts = [lines[0]]
    for before, line, turn in zip(lines, lines[1:], starts_of_turns(lines)[1:], strict=False):
        parts += ["\n" if turn else joint(before.rstrip(), line.lstrip()), line]
    return "".join(parts)


def _kept_lines(paragraphs: Sequence[str]) -> dict[str, str]:
    """Return the paragraphs whose writer ended the lines, as in verse and addresses; two lines never suffice."""
    several = [said for said in paragraphs if said.count(_SOFT) > 1]
    groups = [[line.strip() or "-" for line in re.split(f"[{_SOFT}\n]", said)] for said in several]
    kept = zip(several, keep_their_lines(groups), strict=True)
    return {said: said.replace(_SOFT, "\n") for said, keep in kept if keep}


_FENCE = re.compile(
    r"^(?P<fence>`{3,}|~{3,})(?:markdown|md)[ \t]*\n(?P<inside>.*?)\n(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL
)


def _without_fence(text: str) -> str:
    """Return the text of a file that is a single Markdown fence, as chat programs write it; line numbers stay."""
    match = _FENCE.search(text.replace("\r\n", "\n"))
    if not match or 2 * len(match["inside"]) < len(text):
        return text
    text = match.string
    return f"{text[: match.start()]}\n{match['inside']}\n{text[match.end() :]}"


def _without_stray_marks(text: str) -> str:
    """Return lines without a final pair of stars that has no partner."""
    if "**" not in text:
        return text
    return "\n".join(
        re.sub(r"^\s*\*\*\s*|\s*\*\*\s*$", "", line) if line.count("**") == 1 else line for line in text.split("\n")
    )


def _inline(token: Any) -> str:
    if token.type in ("text", "code_inline"):
        return unwrapped(token.content)
    if token.type == "hardbreak" or (token.type == "html_inline" and re.match(r"<br\b", token.content, re.IGNORECASE)):
        return "\n"
    return _SOFT if token.type == "softbreak" else ""


class _Markup:
    """The tags of a file that are HTML, as opposed to text in angle brackets: List<Tide>, <port>, <Enter>."""

    def __init__(self, pieces: Iterable[str]) -> None:
        found = [match for piece in pieces for match in _NAME.finditer(piece)]
        self.struck: dict[int, list[str]] = {}  # what a line's tokens strike out
        self._opened = {match[2].lower() for match in found if not match[1]}
        self._closed = {match[2].lower() for match in found if match[1]}

    @classmethod
    def of(cls, tokens: Sequence[Any]) -> _Markup:
        """Collect the tags from a file's tokens."""
        inline = [child for token in tokens for child in token.children or ()]
        return cls(token.content for token in (*tokens, *inline) if token.type in ("html_block", "html_inline"))

    def is_tag(self, piece: str) -> bool:
        """Return whether a piece between angle brackets is an HTML tag or a comment."""
        match = _NAME.fullmatch(piece)
        if match is None:
            return piece.startswith(("<!--", "<!doctype", "<!DOCTYPE", "<?", "<script", "<style"))
        name = match[2].lower()
        if name not in _TAGS:
            return False
        if match[1]:
            return name in self._opened
        return name in _LONELY or name in self._closed or bool(re.search(r"[\w-]\s*=|/$", match[3]))

    def said(self, children: Sequence[Any]) -> str:
        """Return the text of a line's tokens; raised text is read by what precedes it."""
        texts, links = [""], False
        struck: list[str] = []  # the texts before what is struck out and not yet closed
        for child in children:
            tag = child.content.lower() if child.type == "html_inline" else ""
            if child.type == "s_open" or (_STRUCK.match(tag) and self.is_tag(tag)):
                struck.append(texts[-1])
                texts[-1] = ""
            elif (child.type == "s_close" or _STRUCK_END.match(tag)) and struck:
                self.struck.setdefault(id(children), []).append(texts[-1])
                texts[-1] = struck.pop()
            elif tag.startswith("<sup") and self.is_tag(tag):
                texts.append("")
                links = False
            elif tag == "</sup>" and len(texts) > 1:
                above = texts.pop()
                texts[-1] += raised(texts[-1], above, links=links)
            elif tag and not self.is_tag(child.content):
                texts[-1] += child.content
            else:
                links |= child.type == "link_open" or tag.startswith("<a ")
                texts[-1] += _inline(child)
        return "".join([*struck, *texts])

    def tell(self, outline: Outline, markup: str, line: int) -> None:
        """Read HTML inside Markdown, of which only paragraphs and headings count: its tags need not be closed."""
        for index, piece in enumerate(_TAG.split(markup)):
            match = _NAME.fullmatch(piece)
            block = match is not None and match[2].lower() in BLOCK_TAGS  # whose ends may be left out
            if index % 2 == 0 or not (block or self.is_tag(piece)):
                for offset, text in enumerate(piece.split("\n")):
                    outline.text(" " * bool(offset) + html.unescape(text).replace("\n", " "), str(line + offset))
            elif match:
                tag = match[2].lower()
                if tag == "br":
                    outline.text("\n", str(line))
                elif tag in BLOCK_TAGS:
                    (outline.end if match[1] else outline.start)(tag if tag in HEADINGS else "p")
            line += piece.count("\n")


def _begins_with_title(tokens: Sequence[Any], block: Block) -> bool:
    """Return whether the first block is one short bold line, possibly with emoji."""
    line = next((token for token in tokens if token.type == "inline"), None)
    if not line or line.level != 1 or block.place != str(line.map[0] + 1) or len(block.text) > 80:
        return False
    depth, bold = 0, False
    for child in line.children:
        depth += child.nesting if child.tag == "strong" else 0
        bold |= depth > 0
        text = _inline(child)
        if child.type == "softbreak" or "\n" in text or (not depth and not LEADING_EMOJI.fullmatch(text)):
            return False
    return bold


def _front_matter(text: str) -> tuple[dict[str, str], str]:
    """Return the front matter at the very top, if its YAML is simple, and the text with empty lines in its place."""
    lines = text.split("\n")
    end = next((number for number, line in enumerate(lines) if number and line.rstrip() in ("---", "...")), 0)
    if lines[0].rstrip() != "---" or not end or not all(map(_MATTER.match, lines[1:end])):
        return {}, text
    pairs = [pair for pair in map(_PAIR.match, lines[1:end]) if pair]
    values = {pair[1]: pair[2].strip().strip("\"'").strip() for pair in pairs}
    return {key: value for key, value in values.items() if value}, "\n".join([""] * (end + 1) + lines[end + 1 :])
