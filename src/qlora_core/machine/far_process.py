"""A process on another machine that this one talks with, by ssh: nothing else listens, and nothing is unencrypted.

Knows nothing of the work.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

OPTIONS = {
    "BatchMode": "yes",  # a question would wait for ever
    "ConnectTimeout": "10",
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
}
GREETING = b"\x00qlora-notebook: talking\x00"


def start_by_ssh(
    host: str, module: str, arguments: Iterable[str], *, python: str = "", variables: Iterable[str] = (), log: IO[bytes]
) -> tuple[Connection, subprocess.Popen[bytes]]:
    """Start a Python module on another machine, in the directory of the same path if it has one.

    Args:
        host: name by which `ssh` reaches it, without a password.
        module: its name; it talks through its standard input and output, as `StandardStreams` does.
        arguments: its arguments.
        python: the Python there; by default at the path of this one.
        variables: `KEY=VALUE`, added to its environment.
        log: what it prints, and what ssh says.

    Raises:
        FileNotFoundError: this machine has no ssh.
    """
    command = shlex.join(["env", *variables, python or sys.executable, "-m", module, *arguments])
    script = f"cd {shlex.quote(str(Path.cwd()))} 2>/dev/null; exec {command}"
    options = [f"-o{name}={value}" for name, value in OPTIONS.items()]
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            ["ssh", "-T", *options, "--", host, shlex.join(["sh", "-c", script])],
            stdin=theirs,
            stdout=theirs,
            stderr=log,
        )
    return Connection(ours.detach()), process


def greeted(connection: Connection, seconds: float) -> bool:
    """Wait until the other end is there, and skip what a shell may have printed before; return whether it is.

    Args:
        connection: as `start_by_ssh` returns it.
        seconds: how long to wait at most.
    """
    end, read = time.monotonic() + seconds, b""
    while not read.endswith(GREETING):
        if not wait([connection], max(0.0, end - time.monotonic())):
            return False
        if not (byte := os.read(connection.fileno(), 1)):
            return False
        read = (read + byte)[-len(GREETING) :]
    return True


class StandardStreams:
    """The other end, in the process that was started: a connection over its standard input and output.

    What else is printed goes to the standard error from here on.
    """

    def __init__(self) -> None:
        os.write(1, GREETING)
        self._from = Connection(os.dup(0), writable=False)
        self._to = Connection(os.dup(1), readable=False)
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)

    def recv(self) -> Any:
        """Wait for a message and return it."""
        return self._from.recv()

    def send(self, message: object) -> None:
        """Send a message."""
        self._to.send(message)
