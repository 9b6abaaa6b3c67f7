"""Files that are either wholly there or not there at all.

Everything that must survive a crash is written through here: to a temporary name, flushed to the device, renamed.
Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
LARGE_FILE = 16_000_000  # bytes from which a file's hash is worth remembering
QUIET_SECONDS = 2.0  # since a file's last change
REMEMBERED = 500  # hashes


def flush_to_disk(descriptor: int) -> None:
    """Make the kernel hand a file's data to the device; on macOS also the device's own cache (`F_FULLFSYNC`)."""
    if sys.platform == "darwin":  # not yet run here
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def flush_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends without error it takes the place of `path`."""
    make_private(path.parent)
    # safetensors writers insist on their suffix, so the temporary name keeps it
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            flush_to_disk(file.fileno())
        temporary.replace(path)
        flush_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


_PENDING = ".replacing.json"


@contextlib.contextmanager
def replacing_all(directory: Path, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Yield a temporary path for each name; when the block ends without error, all take their places together.

    A list of what is to be renamed is written first, so that `finish_replacing` makes good a kill in between.
    """
    make_private(directory)
    finish_replacing(directory)
    for stale in (path for name in names for path in directory.glob(f".{name}.*.tmp")):  # of one that was killed
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
    """Finish what `replacing_all` began there, if it was killed between one file and the next."""
    pending = directory / _PENDING
    if not pending.is_file():
        return
    for temporary, name in json.loads(pending.read_text(encoding="utf-8")).items():
        path = directory / Path(temporary).name  # inside the directory, whatever the list says
        if path.exists():
            path.replace(directory / Path(name).name)
    flush_directory(directory)
    pending.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, UTF-8, atomically and durably."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, atomically and durably."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def publishing(directory: Path) -> Iterator[Path]:
    """Yield an empty temporary directory; when the block ends without error it appears as `directory`, all at once.

    A manifest with size and SHA-256 of each file is written last. An existing `directory` is moved aside for it.
    """
    make_private(directory.parent)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    aside = temporary.with_suffix(".old")
    for leftover in (temporary, aside):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        files = sorted(path for path in temporary.iterdir() if path.is_file())
        for path in files:
            with path.open("rb") as file:
                flush_to_disk(file.fileno())
        write_json(temporary / MANIFEST, {"files": {path.name: describe_file(path) for path in files}})
        if directory.exists():
            directory.rename(aside)
        temporary.rename(directory)
        flush_directory(directory.parent)
    finally:
        if aside.exists() and not directory.exists():
            aside.rename(directory)
        for leftover in (temporary, aside):
            shutil.rmtree(leftover, ignore_errors=True)


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def manifest_problem(directory: Path, *, contents: bool = True) -> str | None:
    """What is wrong with a published directory by its manifest, in a few words; None when nothing is.

    Args:
        directory: as `publishing` left it.
        contents: compare hashes; else sizes alone, for files that would take long to read.
    """
    try:
        wanted = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in wanted.items():
            path = directory / name
            same = describe_file(path) == expected if contents else path.stat().st_size == expected["bytes"]
            if not same:
                return f"{name} differs from its manifest"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except IsADirectoryError as error:
        return f"{Path(error.filename).name} is a directory"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside the block no other process is in one for the same path; a file beside it holds the lock."""
    make_private(path.parent)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remembered_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex digits; that of a large file is remembered until the file changes.

    It has changed when its place on the disk, its size or one of its times has. One that changed a moment ago is
    not remembered: it could change again within the clock's resolution.
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
    """An object from a file that can be done without: empty where it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def cache_directory() -> Path:
    """Where converted models and libraries are kept; `QLORA_CACHE` overrides the system's own place."""
    from platformdirs import user_cache_path

    override = os.environ.get("QLORA_CACHE")
    return Path(override).expanduser() if override else user_cache_path("qlora-notebook")


def make_private(path: Path) -> None:
    """Make a directory, and those above it that are missing, for this user only; what exists stays as it is."""
    for directory in reversed([path, *path.parents]):
        if not directory.exists():
            directory.mkdir(mode=0o700, exist_ok=True)


def keep_private() -> None:
    """Let whatever this process makes from now on be readable by this user only."""
    os.umask(0o077)
