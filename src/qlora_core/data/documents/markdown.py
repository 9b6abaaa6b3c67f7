"""Markdown, with its lines, told to an outline."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..encoding import decode
from ..records import Block, Document
from .outline import BLOCK_TAGS, HEADINGS, LEADING_EMOJI, Outline, titled, without_emoji

_MATTER = re.compile(r"(?:\w[\w .-]*:(?:\s.*)?|[\s#\-\]}].*)?$")
_PAIR = re.compile(r"(\w[\w .-]*):\s+([^\s\[{|>&*!].*)")
_TAG = re.compile(
    r"(<!--.*?(?:-->|\Z)|<(?:script|style)\b.*?(?:</(?:script|style)\s*>|\Z)|</?[a-z][^<>]*>|<[!?][^<>]*>)",
    re.IGNORECASE | re.DOTALL,
)


def read_markdown(content: bytes) -> Document:
    """Each block with its line; front matter becomes metadata."""
    from markdown_it import MarkdownIt

    metadata, text = _front_matter(_without_fence(decode(content)[0]))
    # the preset stops at 20 and loses what is deeper
    tokens = MarkdownIt("commonmark", {"maxNesting": 100}).enable(["table", "strikethrough"]).parse(text)
    outline, line = Outline(), 1
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
    blocks = [replace(block, text=_without_stray_marks(block.text)) for block in outline.blocks()]
    if blocks and not any(block.level for block in blocks) and _begins_with_title(tokens, blocks[0]):
        blocks[0] = replace(blocks[0], text=without_emoji(blocks[0].text), level=1)
    return titled(blocks, metadata.get("title", ""), metadata)


_FENCE = re.compile(
    r"^(?P<fence>`{3,}|~{3,})(?:markdown|md)[ \t]*\n(?P<inside>.*?)\n(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL
)


def _without_fence(text: str) -> str:
    """The text of a file that is one fence of Markdown, as chat programs write it; its lines keep their numbers."""
    match = _FENCE.search(text.replace("\r\n", "\n"))
    if not match or 2 * len(match["inside"]) < len(text):
        return text
    text = match.string
    return f"{text[: match.start()]}\n{match['inside']}\n{text[match.end() :]}"


def _without_stray_marks(text: str) -> str:
    """Lines without two stars at an end that have no partner."""
    if "**" not in text:
        return text
    return "\n".join(
        re.sub(r"^\s*\*\*\s*|\s*\*\*\s*$", "", line) if line.count("**") == 1 else line for line in text.split("\n")
    )


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
        if child.type == "softbreak" or "\n" in text or (not depth and not LEADING_EMOJI.fullmatch(text)):
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


def _markup(outline: Outline, markup: str, line: int) -> None:
    """HTML inside Markdown, of which only paragraphs and headings count: its tags need not be closed."""
    for index, piece in enumerate(_TAG.split(markup)):
        if index % 2 == 0:
            for offset, text in enumerate(piece.split("\n")):
                outline.text(" " * bool(offset) + html.unescape(text).replace("\n", " "), str(line + offset))
        elif match := re.match(r"<(/?)(\w+)", piece):
            tag = match[2].lower()
            if tag == "br":
                outline.text("\n", str(line))
            elif tag in BLOCK_TAGS:
                (outline.end if match[1] else outline.start)(tag if tag in HEADINGS else "p")
        line += piece.count("\n")
