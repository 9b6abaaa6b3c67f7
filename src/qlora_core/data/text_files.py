"""Bytes of files, unpacked, and lines of text whatever the encoding. Knows nothing of which files are read, or why."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import importlib
import io
import lzma
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .encoding import detect

LINE_LIMIT = 1 << 24  # 16 MB: a longer line is no row, and must not fill the memory
SAMPLE = 1 << 16  # bytes examined for compression, encoding and line ends


class BrokenOffError(ValueError):
    """An error for a file that became unreadable before its end; what was read until then is good.

    Attributes:
        unread: bytes behind that place, unpacked, as far as that is known.
    """

    def __init__(self, where: str, reason: str, unread: int = 0) -> None:
        super().__init__(f"breaks off {where} ({reason}); what comes before is used")
        self.unread = unread


class _Unpacking(io.RawIOBase):
    """Packed bytes being unpacked; every failure is an OSError, although each library has errors of its own."""

    def __init__(self, packed: BinaryIO) -> None:
        self.packed = packed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._try(self.packed.read1, len(buffer))  # `read` would lose the bytes before damage
        buffer[: len(content)] = content
        return len(content)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return self._try(self.packed.seek, place, whence)

    def close(self) -> None:
        self.packed.close()
        super().close()

    @staticmethod
    def _try(call: Callable[..., Any], *arguments: int) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            raise OSError(_reason(error)) from None


def opened(path: Path) -> BinaryIO:
    """Open a file's bytes, unpacked if they are packed, whatever its name says.

    Raises:
        ValueError: the library that unpacks it is not installed.
        OSError: it cannot be opened. Reading raises nothing else.
    """
    kind = packing_of(path)
    return io.BufferedReader(_Unpacking(_PACKINGS[kind].open(path, "rb"))) if kind else path.open("rb")


def _open_zstandard(path: Path, mode: str) -> BinaryIO:
    try:
        library = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError:
        raise ValueError("a .zst file needs the extra `formats`: uv sync --extra formats") from None
    return library.open(path, mode)


class _Packing(NamedTuple):
    """A way to pack a file: its first bytes, and what opens it."""

    magic: bytes
    open: Callable[..., Any]


_PACKINGS = {
    ".gz": _Packing(b"\x1f\x8b", gzip.open),
    ".bz2": _Packing(b"BZh", bz2.open),
    ".xz": _Packing(b"\xfd7zXZ\x00", lzma.open),
    ".zst": _Packing(b"\x28\xb5\x2f\xfd", _open_zstandard),
}
PACKED = tuple(_PACKINGS)
"""Suffixes of packed files."""


def read_whole(path: Path, most: int) -> bytes:
    """Return all bytes of a file, unpacked.

    Raises:
        ValueError: they are more than `most`.
        OSError: it cannot be read.
    """
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"is larger than {most >> 20} MB: split it")
    return content


def packing_of(path: Path) -> str:
    """Return how a file is packed, by its first bytes; "" if it is not."""
    with path.open("rb") as file:
        first = file.read(6)
    return next((suffix for suffix, packing in _PACKINGS.items() if first.startswith(packing.magic)), "")


def first_bytes(path: Path, count: int = SAMPLE) -> bytes:
    """Return the beginning of a file, unpacked; for a broken one, as much as can be read."""
    found = b""
    with contextlib.suppress(OSError, ValueError), opened(path) as file:
        while len(found) < count and (block := file.read1(count - len(found))):  # type: ignore[attr-defined]
            found += block
    return found


@dataclass(frozen=True)
class Lettering:
    """The encoding of a file's text, and whether lines end with a bare carriage return."""

    encoding: str
    bare_returns: bool

    @property
    def plain(self) -> bool:
        """Return whether the text is UTF-8 with line feeds, so that its bytes can be cut into lines directly."""
        return self.encoding in ("utf-8", "utf-8-sig") and not self.bare_returns


def lettering_of(path: Path) -> Lettering:
    """Detect the encoding and line ends from a file's first bytes."""
    sample = first_bytes(path)
    encoding = detect(sample)
    text = sample.decode(encoding, errors="replace")
    return Lettering(encoding, "\r" in text.removesuffix("\r") and "\n" not in text)


def text_of(path: Path, lettering: Lettering, newline: str | None = None) -> io.TextIOWrapper:
    """Return a file's text; a damaged byte becomes U+FFFD."""
    return io.TextIOWrapper(opened(path), encoding=lettering.encoding, errors="replace", newline=newline)  # type: ignore[arg-type]


def read_lines(path: Path, start: int = 0, stop: int | None = None, number: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their numbers, as UTF-8 without their ends; damaged UTF-8 is left as it is.

    Args:
        path: the file, packed or not.
        start: the byte to begin at, where a line begins (of a file that is neither packed nor in another encoding).
        stop: the byte to end at, where a line ends; None: all of it.
        number: number of the first line.

    Yields:
        The number and the line; of one longer than `LINE_LIMIT`, its first `LINE_LIMIT` + 1 bytes.

    Raises:
        BrokenOffError: the rest cannot be read.
    """
    lettering = lettering_of(path)
    last = number - 1
    try:
        with opened(path) if lettering.plain else text_of(path, lettering) as file:
            if start:
                file.seek(start)
            while (stop is None or start < stop) and (line := file.readline(LINE_LIMIT + 1)):
                raw = line if isinstance(line, bytes) else line.encode()
                start += len(raw)
                while len(line) > LINE_LIMIT and line[-1] not in (10, "\n"):
                    line = file.readline(LINE_LIMIT + 1)
                    start += len(line)
                last += 1
                yield last, raw.removeprefix(codecs.BOM_UTF8) if last == 1 else raw
    except OSError as error:
        where = f"after line {last}" if last else "at its beginning"
        raise BrokenOffError(where, _reason(error)) from None


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def pieces_of(path: Path, size: int) -> list[tuple[int, int | None, int]]:
    """Cut a file between lines into pieces of about `size` bytes: (start, stop, number of the first line)."""
    starts = [(0, 1)]
    position, line, wanted = 0, 1, size
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found = block.find(b"\n", max(0, wanted - position)) if position + len(block) > wanted else -1
            if found >= 0:
                starts.append((position + found + 1, line + block.count(b"\n", 0, found + 1)))
                wanted = position + found + 1 + size
            line += block.count(b"\n")
            position += len(block)
    stops = [start for start, _ in starts[1:]] + [None]
    return [(start, stop, number) for (start, number), stop in zip(starts, stops, strict=True)]
