"""Zip archives, which Word and EPUB files are."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence

from .outline import UnreadableError

DOCUMENT_LIMIT = 1 << 28  # bytes of a document, as it lies in its file and unpacked
TOO_LARGE = f"unpacks to more than {DOCUMENT_LIMIT >> 20} MB"


def leads_out(parts: Sequence[str]) -> bool:
    """Return whether a member's name, in its parts, leads out of its archive: up, to the root, or to a drive."""
    return ".." in parts or not parts[0] or bool(re.fullmatch("[A-Za-z]:", parts[0]))


def stays_inside(name: str) -> str:
    """Check that a member's name stays inside the archive, and return it."""
    if leads_out(name.replace("\\", "/").split("/")):
        raise UnreadableError(f"names a file outside of itself: {name[:80]}")
    return name


def open_archive(content: bytes) -> zipfile.ZipFile:
    """Open a zip archive safely: zipfile reads no more of a member than its declared size."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    if sum(member.file_size for member in archive.infolist()) > DOCUMENT_LIMIT:
        raise UnreadableError(TOO_LARGE)
    for name in archive.namelist():
        stays_inside(name)
    return archive
