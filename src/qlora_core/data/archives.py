"""Archives (.zip, .tar and the packed ones) as folders: their members become sources like files of a folder.

No name in an archive decides where something is written: members are unpacked under numbers, into a directory that is
deleted after reading. Knows nothing of rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import re
import stat
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..files.storage import left_by_file_manager
from .documents.archive import DOCUMENT_LIMIT, leads_out
from .records import Findings, composed
from .sources import ARCHIVES, FACTS_FILE, OF_PROGRAMS, Source, form_of, reason_of_name
from .text_files import opened

MOST_MEMBERS = 100_000
MOST_BYTES = 8 << 30  # limit of what an archive's members unpack to
PLAIN_BYTES = DOCUMENT_LIMIT  # always allowed, however small the archive
RATIO = 200  # allowed ratio beyond that; text shrinks to a tenth, a bomb to a thousandth
DEEPEST = 2  # an archive in an archive, as Notion makes of a large export
_BLOCK = 1 << 20


@dataclass(frozen=True)
class _Member:
    """A file of an archive: its stored name, size, reason for not being read ("" if it may be), and its bytes."""

    name: str
    size: int
    reason: str
    open: Callable[[], Any]


def with_members(sources: Iterable[Source], skipped: Findings) -> list[Source]:
    """Return the sources with each archive replaced by its members.

    Args:
        sources: files, archives among them.
        skipped: collects members that are not read, with the reason.
    """
    found: list[Source] = []
    for source in sources:
        found += _listed(source, source.path, skipped) if source.form in ARCHIVES else [source]
    return found


@contextlib.contextmanager
def unpacked(sources: Sequence[Source], directory: Path, skipped: Findings) -> Iterator[dict[Path, Path]]:
    """Unpack members for the duration of the block and yield where the bytes of each lie, by name.

    Args:
        sources: files and members; of files nothing is done.
        directory: place for the bytes meanwhile.
        skipped: collects damaged members, which are left out.
    """
    wanted = {source.path: source for source in sources if source.archive}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".members") as place:
        numbers = itertools.count()
        there: dict[Path, Path] = {}
        for archive in dict.fromkeys(source.file for source in wanted.values()):
            with contextlib.suppress(ValueError):  # already reported while listing its members
                for path, key, member in _walk(archive, archive, Findings()):
                    if path not in wanted or wanted[path].member != key:
                        continue
                    target = Path(place) / f"{next(numbers)}"
                    if reason := _write(member, target):
                        skipped.add(str(path), reason)
                        del wanted[path]
                    else:
                        there[path] = target
        for path in sorted(wanted.keys() - there.keys()):
            skipped.add(str(path), "cannot be unpacked: its archive breaks off before it")
        yield there


# Which members are read -----------------------------------------------------------------------------------------


def _listed(source: Source, archive: Path, skipped: Findings) -> list[Source]:
    """Return the readable members of an archive; count the others by kind."""
    found: dict[Path, Source] = {}
    kinds: Counter[str] = Counter()
    total, count = 0, 0
    try:
        for path, key, member in _walk(archive, archive, skipped):
            count += 1
            if count > MOST_MEMBERS:
                raise ValueError(f"has more than {MOST_MEMBERS:,} files: unpack it, and name what is to be read")
            if made := OF_PROGRAMS.intersection(path.parts):
                kinds[f"in {min(made)}"] += 1
                continue
            reason = member.reason or reason_of_name(path, in_directory=True)
            if path.name == FACTS_FILE:
                reason = "a sheet of facts in an archive is not read: unpack it"
            if not member.reason and reason and path.name.lower() != "readme.md" and path.name != FACTS_FILE:
                kinds[form_of(path) or "without a suffix"] += 1
                continue
            if not reason and total + member.size > MOST_BYTES:
                reason = f"is left out: the archive unpacks to more than {MOST_BYTES >> 30} GB. Unpack it first"
            if reason:
                skipped.add(str(path), reason)
                continue
            if path in found:
                skipped.add(str(path), "stands in the archive twice: the later one is read")
            total += member.size
            found[path] = Source(path, form_of(path), archive=source.path, member=key)
    except ValueError as error:
        skipped.add(str(archive), str(error))
        if count > MOST_MEMBERS:
            return []
    else:
        if not count:
            skipped.add(str(archive), "holds no files")
    if kinds:
        named = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        skipped.add(str(archive), f"files in it of kinds that are not read: {named}")
    return [found[path] for path in sorted(found)]


def _walk(
    archive: Path, shown: Path, skipped: Findings, depth: int = 1, above: tuple[int, ...] = ()
) -> Iterator[tuple[Path, tuple[int, ...], _Member]]:
    """Yield every file of an archive and of nested archives: its display name, its numbers there, and its kind.

    Hidden files and the files of file managers are skipped, as in a folder.

    Raises:
        ValueError: the archive cannot be read, or not to its end.
    """
    for number, member in enumerate(_members(archive)):
        parts = composed(member.name).replace("\\", "/").removeprefix("./").split("/")
        if _is_unsafe(parts):
            skipped.add(str(shown), "a name in it leads out of the archive: left out", repr(member.name)[1:-1])
            continue
        if any(part.startswith(".") or part == "__MACOSX" or left_by_file_manager(part) for part in parts):
            continue
        path, key = shown.joinpath(*parts), (*above, number)
        if form_of(path) not in ARCHIVES or member.reason:
            yield path, key, member
        elif depth == DEEPEST:
            skipped.add(str(path), "is an archive in an archive in an archive: unpack it first")
        else:
            yield from _inner(path, key, member, skipped, depth)


def _inner(
    path: Path, key: tuple[int, ...], member: _Member, skipped: Findings, depth: int
) -> Iterator[tuple[Path, tuple[int, ...], _Member]]:
    """Yield the files of a nested archive, which is unpacked for that."""
    with tempfile.TemporaryDirectory() as place:
        inner = Path(place) / f"archive{form_of(path)}"
        reason = _write(member, inner) if member.size <= MOST_BYTES else "is too large: unpack it first"
        if reason:
            skipped.add(str(path), reason)
            return
        try:
            yield from _walk(inner, path, skipped, depth + 1, key)
        except ValueError as error:
            skipped.add(str(path), str(error))


def _is_unsafe(parts: Sequence[str]) -> bool:
    """Return whether a name leads out of its archive or is no valid file name."""
    return leads_out(parts) or any(part in ("", ".") or re.search(r"[\x00-\x1f]", part) for part in parts)


def _write(member: _Member, target: Path) -> str:
    """Unpack a member; return why it cannot be read, or ""."""
    with target.open("wb") as file:
        try:
            with member.open() as packed:
                while block := _read(packed):
                    file.write(block)
        except _DamagedError as error:
            return f"cannot be unpacked: {error}"
    return ""


class _DamagedError(ValueError):
    """A member that cannot be read."""


def _read(packed: Any) -> bytes:
    """Read some bytes of a member; damage makes the libraries raise anything, but a full disk is another matter."""
    try:
        return packed.read(_BLOCK)
    except Exception as error:
        raise _DamagedError(_in_words(error)) from None


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# Kinds of archives ----------------------------------------------------------------------------------------------


def _members(archive: Path) -> Iterator[_Member]:
    with archive.open("rb") as file:
        is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    if is_zip:
        return _of_zip(archive)
    if form_of(archive) == ".zip":
        raise ValueError("is no zip archive: it is damaged or only a part of one")
    return _of_tar(archive)


def _of_zip(archive: Path) -> Iterator[_Member]:
    try:
        opened_archive = zipfile.ZipFile(archive)
    except Exception as error:  # damage makes zipfile raise anything
        raise ValueError(f"cannot be read as a zip archive: {_in_words(error)}") from None
    with opened_archive:
        for info in opened_archive.infolist():
            if not info.is_dir():
                opening = functools.partial(_open_zipped, opened_archive, info)
                yield _Member(_name_of(info), info.file_size, _locked_or_odd(info), opening)


def _open_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    try:
        return archive.open(info)
    except Exception as error:
        raise _DamagedError(_in_words(error)) from None


def _locked_or_odd(info: zipfile.ZipInfo) -> str:
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link, which is not followed in an archive"
    if info.flag_bits & 1:
        return "is locked with a password: unpack it first"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        return f"is packed in a way that is not read (number {info.compress_type} of the zip format): unpack it first"
    if info.file_size > PLAIN_BYTES + RATIO * info.compress_size:
        return f"unpacks to more than {RATIO} times its size, as no text does: left out"
    return ""


def _name_of(info: zipfile.ZipInfo) -> str:
    """Return a member's name, decoding what Finder writes in unmarked UTF-8 and older Windows in a DOS code page."""
    if info.flag_bits & 0x800:
        return info.filename
    raw = info.filename.encode("cp437", "replace")
    return _decoded(raw, "cp850")


def _decoded(raw: bytes, old: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode(old, "replace")


class _Header(tarfile.TarInfo):
    """A member's header, since tarfile takes a damaged one behind the first for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(str(error)) from None


class _Guarded:
    """The bytes of a tar archive, limited to the size that a packed text file may have."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file, self.left = file, most

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f"unpacks to more than {RATIO} times its size, as no text does")
        return content


def _of_tar(archive: Path) -> Iterator[_Member]:
    last = ""
    try:
        with opened(archive) as file:
            guarded = _Guarded(file, PLAIN_BYTES + RATIO * archive.stat().st_size)
            with tarfile.open(fileobj=guarded, mode="r|", tarinfo=_Header) as tar:  # type: ignore[call-overload]
                for info in tar:
                    if info.isdir():
                        continue
                    last = _decoded(info.name.encode("utf-8", "surrogateescape"), "latin-1")
                    reason = "" if info.isreg() else "is a link or no regular file, which is not followed in an archive"
                    yield _Member(last, info.size, reason, functools.partial(_open_in_tar, tar, info))
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every member
    except Exception as error:
        where = f"breaks off behind {last}" if last else "cannot be read as a tar archive"
        raise ValueError(f"{where}: {_in_words(error)}") from None


def _open_in_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Any:
    try:
        return tar.extractfile(info)
    except Exception as error:
        raise _DamagedError(_in_words(error)) from None


def located(source: Source, there: dict[Path, Path]) -> Source:
    """Return a member with the location of its bytes; a file as it is."""
    return dataclasses.replace(source, unpacked=there[source.path]) if source.archive else source
