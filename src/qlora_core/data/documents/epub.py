"""EPUB: the chapters of a book, each in HTML."""

from __future__ import annotations

import posixpath
import re
import urllib.parse
from dataclasses import replace
from typing import Any

from ..records import Document
from .archive import open_archive, stays_inside
from .outline import UnreadableError, make_document, one_line, without_emoji
from .web import blocks_of, soup_of


def read_epub(content: bytes) -> Document:
    """Read the archive directly: ebooklib, which could do it, is under the AGPL."""
    with open_archive(content) as archive:
        rootfile = soup_of(archive.read("META-INF/container.xml")).find(_called("rootfile"))
        if rootfile is None:
            raise UnreadableError("cannot be read as .epub: its container names no book")
        package = soup_of(archive.read(rootfile["full-path"]))
        chapters = _chapters(package, posixpath.dirname(rootfile["full-path"]))
        if "META-INF/encryption.xml" in archive.namelist():
            locked = soup_of(archive.read("META-INF/encryption.xml")).find_all(_called("cipherreference"))
            if any(urllib.parse.unquote(each.get("uri", "")) in chapters for each in locked):
                raise UnreadableError("is protected (DRM) and cannot be read")
        blocks = [block for chapter in chapters for block in blocks_of(soup_of(archive.read(chapter)))]
    texts = [[one_line(found.get_text()) for found in package.find_all(_called(name))] for name in ("title", "creator")]
    title, author = next(filter(None, texts[0]), ""), ", ".join(filter(None, texts[1]))
    # a line number means nothing without its chapter
    return make_document(
        without_emoji(title), (replace(block, place="") for block in blocks), {"author": author} if author else {}
    )


def _called(name: str) -> re.Pattern[str]:
    """Return the tags of this name in any namespace."""
    return re.compile(rf"^(?:[^:]*:)?{name}$")


def _chapters(package: Any, folder: str) -> list[str]:
    """Return the members that hold the text in reading order, without contents and cover."""

    def member(href: str) -> str:
        path = posixpath.normpath(posixpath.join(folder, urllib.parse.unquote(href.partition("#")[0])))
        return stays_inside(path)

    items = {item.get("id"): item for item in package.find_all(_called("item"))}
    aside = {
        member(reference.get("href", ""))
        for reference in package.find_all(_called("reference"))
        if reference.get("type", "").lower() in ("cover", "toc")
    }
    chapters = []
    for entry in package.find_all(_called("itemref")):
        item = items.get(entry.get("idref"))
        if item is None or "nav" in item.get("properties", "").split():
            continue
        if entry.get("linear", "").lower() == "no" and not re.search("note", item["href"], re.IGNORECASE):
            continue  # notes are read, though a reader does not come by them
        if "html" in item.get("media-type", "") and member(item["href"]) not in aside:
            chapters.append(member(item["href"]))
    return chapters
