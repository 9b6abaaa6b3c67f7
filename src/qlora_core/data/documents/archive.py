"""Zip archives, which Word and EPUB files are."""

from __future__ import annotations

import io
import re
import zipfile

from .outline import UnreadableError

LARGEST = 256 * 2**20  # bytes that an archive may unpack to


def stays_inside(name: str) -> str:
    """Check that a member's name stays inside the archive, and return it."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or re.fullmatch("[A-Za-z]:", parts[0]):
        raise UnreadableError(f"names a file outside of itself: {name[:80]}")
    return name


def open_archive(content: bytes) -> zipfile.ZipFile:
    """Open a zip archive safely: zipfile reads no more of a member than its declared size."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    if sum(member.file_size for member in archive.infolist()) > LARGEST:
        raise UnreadableError("unpacks to more than 256 MB")
    for name in archive.namelist():
        stays_inside(name)
    return archive
