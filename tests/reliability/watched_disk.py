"""A layer between this process and its files below a directory: each operation can be recorded, or made to fail.

Python's own functions are replaced (`open`, `os.rename`, `os.fsync` …), so that what is watched is what the program
does, whatever it does it with. Linux, and macOS in principle.
"""

import builtins
import contextlib
import dataclasses
import errno
import fcntl
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock


@dataclasses.dataclass(frozen=True)
class Operation:
    """One thing that is done to a file or directory.

    Attributes:
        kind: read or append (opened for it), create, truncate, write, fsync, rename, unlink, rmdir, mkdir.
        path: to what.
        target: new name.
        data: what is written.
        offset: where to.
    """

    kind: str
    path: Path
    target: Path | None = None
    data: bytes = b""
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.path}" + (f" to {self.target}" if self.target else "")


Watcher = Callable[[Operation], None]


@contextlib.contextmanager
def watched(root: Path, before: Watcher) -> Iterator[None]:
    """Inside the block `before` is called ahead of each operation below `root`; what it raises is what happens."""
    root = root.resolve()

    def inside(path: Any) -> Path | None:
        if isinstance(path, int):
            return None
        path = Path(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100 (resolving would follow the file itself)
        return path if path.is_relative_to(root) else None

    def opening(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        path = inside(file)
        if path is None:
            return real["open"](file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _File(path, mode.replace("t", "").replace("b", ""), before)
        if buffering == 0:
            return raw
        wrap = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
        return wrap(raw) if "b" in mode else io.TextIOWrapper(wrap(raw), encoding, errors, newline)

    def os_open(path, flags, mode=0o777, *, dir_fd=None):
        if dir_fd is None and (place := inside(path)):
            new = flags & os.O_CREAT and not place.exists()
            before(Operation("create" if new else "read", place))
        return real["os_open"](path, flags, mode, dir_fd=dir_fd)

    def os_fsync(descriptor):
        if place := inside(_path_of(descriptor)):
            before(Operation("fsync", place))
        return real["fsync"](descriptor)

    def renaming(name):
        def rename(source, target, **options):
            if place := inside(source):
                before(Operation("rename", place, inside(target)))
            return real[name](source, target, **options)

        return rename

    def single(name, kind):
        def act(path, *arguments, **options):
            if place := inside(path):
                if kind in ("unlink", "rmdir") and not os.path.lexists(path):
                    return real[name](path, *arguments, **options)  # which says so
                before(Operation(kind, place))
            return real[name](path, *arguments, **options)

        return act

    real = {"open": io.open, "os_open": os.open, "fsync": os.fsync, "rename": os.rename, "replace": os.replace,
            "unlink": os.unlink, "remove": os.remove, "rmdir": os.rmdir, "mkdir": os.mkdir}  # fmt: skip
    with contextlib.ExitStack() as stack:
        for owner, name, new in (
            (io, "open", opening), (builtins, "open", opening), (os, "open", os_open), (os, "fsync", os_fsync),
            (os, "rename", renaming("rename")), (os, "replace", renaming("replace")),
            (os, "unlink", single("unlink", "unlink")), (os, "remove", single("remove", "unlink")),
            (os, "rmdir", single("rmdir", "rmdir")), (os, "mkdir", single("mkdir", "mkdir")),
            (shutil, "_use_fd_functions", False), (shutil, "_USE_CP_SENDFILE", False),  # by names, in Python
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, new))
        yield


class _File(io.FileIO):
    def __init__(self, path: Path, mode: str, before: Watcher) -> None:
        kind = "read" if mode.startswith("r") else "truncate" if mode.startswith("w") else "append"
        before(Operation("create" if kind != "read" and not path.exists() else kind, path))
        super().__init__(path, mode)
        self._before = before
        self._path = path
        self._appends = mode.startswith("a")

    def write(self, data) -> int:
        content = bytes(data)
        offset = os.fstat(self.fileno()).st_size if self._appends else self.tell()
        try:
            self._before(Operation("write", self._path, data=content, offset=offset))
        except _Short:
            return super().write(content[: len(content) // 2])
        return super().write(content)


def _path_of(descriptor: int) -> str:
    if hasattr(fcntl, "F_GETPATH"):
        return os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 (what is open, not a link of the user's)


class _Short(Exception):
    """A write that ends half-way, as it does where the room ends; the next one fails."""


class Failing:
    """A watcher that makes the operation of a number fail, counted from 0: once, or that and all further ones.

    A write is cut short first, and its rest fails.

    Args:
        number: which operation.
        code: the error.
        persistent: whether all further ones fail as well.

    Attributes:
        count: operations seen.
        failed: the first that failed, None before.
    """

    def __init__(self, number: int, code: int, *, persistent: bool = False) -> None:
        self.number, self.code, self.persistent = number, code, persistent
        self.count, self.failed = 0, None
        self._rest = False

    def __call__(self, operation: Operation) -> None:
        number, self.count = self.count, self.count + 1
        if self._rest and operation.kind == "write":
            self._rest = False
        elif number < self.number or (number > self.number and not self.persistent):
            return
        elif number == self.number:
            self.failed = operation
            if operation.kind == "write" and len(operation.data) > 1:
                self._rest = True
                raise _Short
        raise OSError(self.code, os.strerror(self.code), str(operation.path))

    def __str__(self) -> str:
        how = "and all after it" if self.persistent else "once"
        return f"operation {self.number} ({self.failed}) with {errno.errorcode[self.code]} {how}"
