"""Locks that a process holds as long as it lives, and loses however it ends.

The lock is the kernel's (`flock`), never a process id in a file: that id may belong to another program by now. What the
file says about the holder is only for people. Knows nothing of what a lock guards.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 10.0  # seconds to wait for a reader to let go; it holds the lock for an instant, but may be suspended then


class Held(Exception):
    """Another process holds the lock."""


class LifeLock:
    """A lock held as long as its descriptor is open, here or in a process that inherited it. A context manager.

    Args:
        path: the file to lock; created if missing.
        descriptor: a lock already taken by the process that started this one.
        about: extra fields shown, with process id and start time, to a process that finds the lock taken.

    Raises:
        Held: another process holds it, even if it is suspended.
    """

    def __init__(self, path: Path, descriptor: int | None = None, **about: Any) -> None:
        self.path = path
        self.inherited = descriptor is not None
        if descriptor is None:
            descriptor = _take(path)
        else:
            os.set_inheritable(descriptor, False)  # children of the trainer must not keep it alive
        self.descriptor = descriptor
        self._sign({"pid": os.getpid(), "since": round(time.time(), 3), **about})

    def __enter__(self) -> LifeLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock."""
        os.close(self.descriptor)

    def _sign(self, about: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the disk may be full; the lock is held all the same
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(about).encode(), 0)


def _take(path: Path) -> int:
    """Open and lock a file.

    A reader (`is_held`) takes the shared lock for an instant. To tell readers from a holder, this tries the shared lock
    as well: it is granted beside readers, but refused beside a holder.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    end = time.monotonic() + PATIENCE
    try:
        while not _locked(descriptor, fcntl.LOCK_EX):
            if not _locked(descriptor, fcntl.LOCK_SH) or time.monotonic() > end:
                raise Held
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            time.sleep(random.uniform(0, 0.002))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # there is no such file, or it is nothing that can be locked
        return False
    try:
        return not _locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def holder(path: Path) -> dict[str, Any]:
    """Return what the last holder of a lock wrote about itself (`pid`, `since` and more); empty if nothing."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def holder_in_words(path: Path) -> str:
    """Return who holds a lock, as its process id and since when; empty if that is not certain."""
    said = holder(path)
    try:
        process = psutil.Process(said["pid"])
        if process.create_time() > said["since"] + 1:  # the process id now belongs to another program
            return ""
        suspended = process.status() == psutil.STATUS_STOPPED
    except (KeyError, TypeError, ValueError, psutil.Error):
        return ""
    since = time.localtime(said["since"])
    today = since[:3] == time.localtime()[:3]
    words = [str(said["pid"]), f"since {time.strftime('%H:%M' if today else '%Y-%m-%d %H:%M', since)}"]
    if suspended:
        words.append(f"suspended: `kill -CONT {said['pid']}` lets it go on")
    return ", ".join(words)
