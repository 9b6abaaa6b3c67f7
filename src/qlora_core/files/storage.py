"""Files that are either completely there or not there at all.

Everything that must survive a crash is written through here: to a temporary name, flushed to the device, renamed. If
something cannot be written, the error says where, how much room was needed, and what to do. Knows nothing of what is
written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import StorageError

MANIFEST = "manifest.json"
LARGE_FILE = 16_000_000  # bytes from which a file's hash is worth remembering
QUIET_SECONDS = 2.0  # a file's hash is remembered only if its last change is at least this long ago
REMEMBERED = 500  # hashes that are remembered
MOST_WAITING = 4_000_000  # bytes of lines that wait to be written: ten thousand steps

_OF_FILE_MANAGERS = re.compile(r"(?is)\._.*|\.DS_Store|\.localized|Icon\r|Thumbs\.db|desktop\.ini")


# Why it failed --------------------------------------------------------------------------------------------------

_REMEDIES = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Delete something of yours there, or have your quota raised",
    errno.EFBIG: "Raise the limit on the size of files (`ulimit -f`)",
    errno.EIO: "Look at the disk, its cable, or the network that it is on",
    errno.EROFS: "Have it mounted for writing",
    errno.EACCES: "Change its permissions",
    errno.EPERM: "Change its permissions",
    errno.ESTALE: "Look at the network drive",
    errno.ENODEV: "Connect the disk again",
    errno.ENXIO: "Connect the disk again",
}
"""Errors of the device, and what to do about each; all others, such as a missing file, are passed on unchanged."""


def nearest_existing(path: Path) -> Path:
    """Return a path if it exists, else the nearest directory above it that does: where it would be made."""
    return next((place for place in (path, *path.parents) if place.exists()), Path("/"))


def explain(error: OSError, path: Path, wanted: int = 0, *, problem: str = "cannot be written") -> StorageError:
    """Return an error for the user that explains what the system reported.

    Args:
        error: the system's error.
        path: what was being written.
        wanted: bytes that were to be written, if known.
        problem: what could not be done.
    """
    if isinstance(error, StorageError):
        return error
    name = errno.errorcode.get(error.errno or 0)
    reason = (error.strerror or str(error) or type(error).__name__) + (f" ({name})" if name else "")
    sizes = [f"{wanted:,} bytes wanted"] if wanted else []
    with contextlib.suppress(OSError):
        sizes.append(f"{shutil.disk_usage(nearest_existing(path)).free:,} bytes free there")
    remedy = f" {_REMEDIES[error.errno]}, then go on." if error.errno in _REMEDIES else ""
    return StorageError(f"{path}: {problem}: {reason}; {', '.join(sizes)}.{remedy}", error.errno)


@contextlib.contextmanager
def explained(path: Path, wanted: int = 0, *, problem: str = "cannot be written") -> Iterator[None]:
    """Turn errors of the device inside the block, while `path` is written, into those that `explain` makes.

    Raises:
        StorageError: as said.
    """
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(path.parent)
        if isinstance(error, StorageError) or elsewhere or error.errno not in _REMEDIES:
            raise
        raise explain(error, path, wanted, problem=problem) from None


# Made durable ---------------------------------------------------------------------------------------------------


def flush_to_disk(descriptor: int) -> None:
    """Make the kernel write a file's data to the device; on macOS also flush the device's own cache (`F_FULLFSYNC`)."""
    if sys.platform == "darwin":  # not yet run here
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in _NOT_KNOWN:  # network drives do not support it, only fsync
                raise
    os.fsync(descriptor)


_NOT_KNOWN = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY)


def flush_directory(path: Path) -> None:
    """Make all changes to the entries of `path` durable: files created, renamed or deleted there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush_to_disk(descriptor)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:  # some network drives cannot flush directories
            raise
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and its missing parents, readable by this user only; what exists stays as it is.

    The new directories survive a power loss.
    """
    missing = list(itertools.takewhile(lambda place: not place.is_dir(), (path, *path.parents)))
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)
        flush_directory(place.parent)


@contextlib.contextmanager
def replacing(path: Path, *, wanted: int = 0, lasting: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends without error, it replaces `path`.

    Args:
        path: the file.
        wanted: bytes that will be written, for the message if they cannot be.
        lasting: wait until the device has stored it; otherwise a power cut may leave an empty file.

    Raises:
        StorageError: it cannot be written; `path` is as it was.
    """
    with explained(path, wanted):
        make_directory(path.parent)
        # programs that write safetensors insist on that suffix, so the temporary name keeps it
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        try:
            yield temporary
            if lasting:
                with temporary.open("rb") as file:
                    flush_to_disk(file.fileno())
            temporary.replace(path)
            if lasting:
                flush_directory(path.parent)
        finally:
            remove(temporary)


_PENDING = ".replacing.json"


@contextlib.contextmanager
def replacing_all(directory: Path, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Yield a temporary path for each name; when the block ends without error, all are renamed together.

    A list of the renames is written first, so that `finish_replacing` can complete them after a kill in between.
    """
    make_directory(directory)
    finish_replacing(directory)
    for stale in (path for name in names for path in directory.glob(f".{name}.*.tmp")):  # of a process that was killed
        stale.unlink(missing_ok=True)
    temporary = {name: directory / f".{name}.{os.getpid()}.tmp" for name in names}
    try:
        yield temporary
        for path in temporary.values():
            with path.open("rb") as file:
                flush_to_disk(file.fileno())
        write_json(directory / _PENDING, {path.name: name for name, path in temporary.items()})
    except BaseException:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise
    finish_replacing(directory)


def finish_replacing(directory: Path) -> None:
    """Finish the renames that `replacing_all` began in `directory`, if it was killed in between."""
    pending = directory / _PENDING
    if not pending.is_file():
        return
    for temporary, name in json.loads(pending.read_text(encoding="utf-8")).items():
        path = directory / Path(temporary).name  # inside the directory, whatever the list says
        if path.exists():
            path.replace(directory / Path(name).name)
    flush_directory(directory)
    pending.unlink()


def write_text(path: Path, text: str, *, lasting: bool = True) -> None:
    """Replace `path` by `text`, UTF-8, atomically and, if `lasting`, durably."""
    content = text.encode()
    with replacing(path, wanted=len(content), lasting=lasting) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any, *, lasting: bool = True) -> None:
    """Replace `path` by `value` as JSON, atomically and, if `lasting`, durably."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", lasting=lasting)


@contextlib.contextmanager
def publishing(directory: Path, *, wanted: int = 0) -> Iterator[Path]:
    """Yield an empty temporary directory; when the block ends without error, it appears as `directory`, all at once.

    A manifest with size and SHA-256 of each file is written last. An existing `directory` is moved aside first, and its
    files left by file managers are copied into the new one.

    Args:
        directory: the directory.
        wanted: bytes that will be written, for the message if they cannot be.

    Raises:
        StorageError: it cannot be written; `directory` is as it was.
    """
    with explained(directory, wanted):
        make_directory(directory.parent)
        temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
        aside = temporary.with_suffix(".old")
        for leftover in (temporary, aside):
            remove(leftover)
        temporary.mkdir(mode=0o700)
        try:
            yield temporary
            written = (path for path in temporary.iterdir() if path.is_file())
            files = sorted(path for path in written if not left_by_file_manager(path.name))
            for path in files:
                with path.open("rb") as file:
                    flush_to_disk(file.fileno())
            # this also flushes the directory, and with it the names of the files
            write_json(temporary / MANIFEST, {"files": {path.name: describe_file(path) for path in files}})
            if directory.exists():
                _bring_along(directory, temporary)
                directory.rename(aside)
            temporary.rename(directory)
            flush_directory(directory.parent)
        finally:
            if aside.exists() and not directory.exists():
                aside.rename(directory)
            for leftover in (temporary, aside):
                remove(leftover)


def left_by_file_manager(name: str) -> bool:
    """Return whether Finder or Explorer leaves files of that name in directories that somebody opens."""
    return bool(_OF_FILE_MANAGERS.fullmatch(name))


def _bring_along(source: Path, directory: Path) -> None:
    """Copy files left by file managers."""
    for path in source.iterdir():
        if left_by_file_manager(path.name) and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):  # Finder may have removed it, and writes a new one anyway
                shutil.copy2(path, directory / path.name)


# Taken away -----------------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    """Delete a file, or a directory with everything in it, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def discard(directory: Path) -> None:
    """Delete a directory that others may read: it disappears all at once, never in part."""
    doomed = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    remove(doomed)
    with contextlib.suppress(OSError):  # if that fails, it stays and is complete
        directory.rename(doomed)
    remove(doomed)


_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>tmp|old)(\.\w+)?")


def clear_leftovers(directory: Path, *, alone: bool = False) -> None:
    """Clean up after processes that were killed while they wrote something in `directory`.

    What they were writing is deleted; what they had moved aside and not yet replaced is moved back.

    Args:
        directory: cleaned up itself, but not its subdirectories; may be missing.
        alone: nobody else writes there, so a living process with the writer's id is a different program.
    """
    for path in directory.glob(".*"):
        match = _LEFTOVER.fullmatch(path.name)
        if not match or not (alone or _gone(int(match["pid"]))):
            continue
        if match["kind"] == "old" and not (directory / match["name"]).exists():
            path.rename(directory / match["name"])
            flush_directory(directory)
        else:
            remove(path)


def _gone(pid: int) -> bool:
    """Return whether no process has that id, or only this one, which writes nothing while it cleans up."""
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it is another user's process
        return False
    return False


# Appended to ----------------------------------------------------------------------------------------------------


class LineFile:
    """Appends lines to a file. Lines that cannot be written wait until writing works again.

    Each line is written whole in one call, but a reader may still see half of the last one. A line torn by a crash is
    ended first, so that the next one stands alone.

    Args:
        path: the file; created if missing.

    Attributes:
        lost: number of lines given up because too many were waiting.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self._file: io.FileIO | None = None
        self._waiting = b""
        self._begun = False

    def append(self, line: str) -> None:
        """Write a line, after those that are waiting.

        Raises:
            OSError: it cannot be written now; it waits.
        """
        self._waiting += line.encode() + b"\n"
        if len(self._waiting) > MOST_WAITING:
            self._forget_oldest()
        self.flush()

    def flush(self) -> None:
        """Write the lines that are waiting.

        Raises:
            OSError: it cannot be written now.
        """
        try:
            if self._file is None:
                self._open()
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError:
            self._close()  # the next attempt opens the file anew: the drive may have been disconnected
            raise

    def sync(self) -> None:
        """Write the lines that are waiting, and wait until the device has stored them.

        Raises:
            OSError: it cannot be written now.
        """
        self.flush()
        flush_to_disk(self._file.fileno())

    def close(self) -> None:
        """Write the lines that are waiting, if possible, and close the file."""
        with contextlib.suppress(OSError):
            self.flush()
        self._close()

    def _open(self) -> None:
        self._file = self.path.open("ab", buffering=0)
        if not self._begun and _is_torn(self.path):
            self._waiting = b"\n" + self._waiting
        self._begun = True

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None

    def _forget_oldest(self) -> None:
        first = self._waiting.index(b"\n") + 1  # keep the first line: half of it may be in the file already
        rest = self._waiting.index(b"\n", len(self._waiting) - MOST_WAITING // 2) + 1
        self.lost += self._waiting.count(b"\n", first, rest)
        self._waiting = self._waiting[:first] + self._waiting[rest:]


def _is_torn(path: Path) -> bool:
    """Return whether a file does not end with a line break."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


# Recognised -----------------------------------------------------------------------------------------------------


def describe_file(path: Path) -> dict[str, Any]:
    """Return the size in bytes and the SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def manifest_problem(directory: Path, names: Collection[str] | None = None, *, contents: bool = True) -> str | None:
    """Return what is wrong with a published directory by its manifest, in a few words; None if nothing.

    Args:
        directory: made by `publishing`.
        names: the files that the manifest must list, and no others; None: whatever it lists.
        contents: compare hashes; if False, only sizes, for files that would take long to read.
    """
    try:
        wanted = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
        listed = set(wanted.keys())
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name in sorted(set(names or listed) - listed):
        return f"{MANIFEST} does not list {name}"
    for name in sorted(listed - set(names or listed)):
        return f"{MANIFEST} lists {name}, which does not belong there"
    for name, expected in wanted.items():
        try:
            problem = file_problem(directory / name, expected, contents=contents)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"cannot be read ({error})"
        if problem:
            return f"{name} {problem}"
    return None


def file_problem(path: Path, expected: Any, *, contents: bool = True) -> str | None:
    """Return how a file differs from what `describe_file` recorded, in a few words; None if it does not.

    Raises:
        OSError: it cannot be read.
    """
    try:
        same = describe_file(path) == expected if contents else path.stat().st_size == expected["bytes"]
    except FileNotFoundError:
        return "is missing"
    except IsADirectoryError:
        return "is a directory"
    return None if same else "differs from its manifest"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of the block for the same path, by a lock file beside it."""
    make_directory(path.parent)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remembered_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex digits; that of a large file is remembered until it changes.

    A file has changed when its inode, its size or one of its times has. The hash of a file that changed a moment ago is
    not remembered: it could change again within the resolution of the clock.
    """
    state = path.stat()
    key = "-".join(map(str, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)))
    quiet = time.time() - max(state.st_mtime, state.st_ctime) > QUIET_SECONDS
    memory = cache_directory() / "hashes.json"
    if state.st_size < LARGE_FILE or not quiet:
        return describe_file(path)["sha256"]
    with locked(memory):
        known = read_json(memory)
        if key not in known:
            known[key] = describe_file(path)["sha256"]
            write_json(memory, dict(list(known.items())[-REMEMBERED:]))
    return known[key]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file that is not essential: empty if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def cache_directory() -> Path:
    """Return where converted models and libraries are kept; `QLORA_CACHE` overrides the system's own place."""
    from platformdirs import user_cache_path

    override = os.environ.get("QLORA_CACHE")
    return Path(override).expanduser() if override else user_cache_path("qlora-notebook")


def keep_private() -> None:
    """Make everything that this process creates from now on readable by this user only."""
    os.umask(0o077)
