"""Processor cores, and work spread over several processes: results in order, few of them in flight.

Knows nothing of the work.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, TypeVar

import psutil

from ..errors import DataError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Task = TypeVar("Task")
Result = TypeVar("Result")
MOST = 8  # processes; each takes some 100 MB


def logical_cores() -> int:
    """Return the logical cores (hardware threads) that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> int:
    """Return the physical cores that this process may use."""
    return max(1, min(logical_cores(), psutil.cpu_count(logical=False) or logical_cores()))


def processes() -> int:
    """Return how many processes share work: one for each usable core, up to a limit."""
    return min(logical_cores(), MOST)


def start_connected(
    module: str, *, log: IO[bytes] | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Connection, subprocess.Popen[bytes]]:
    """Start a module as a process that this one talks with.

    Args:
        module: its name; its only argument is the number of a descriptor, which it makes a `Connection` of.
        log: where it prints; by default only its errors are seen, where this process's are.
        environment: by default this process's.
    """
    from multiprocessing.connection import Connection

    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=log or subprocess.DEVNULL,
            stderr=log,
            env=environment,
            pass_fds=[theirs.fileno()],
        )
    return Connection(ours.detach()), process


def in_processes(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """Do `work` on each task in another process, and yield the results in order.

    The processes end with the iterator, however it ends; close it to end them early.

    Args:
        work: a function that can be pickled.
        tasks: read as they are needed, a few ahead of the results.

    Raises:
        DataError: a process was killed.
    """
    from loky import BrokenProcessPool, ProcessPoolExecutor  # only here: small data needs no processes

    count = processes()
    pool = ProcessPoolExecutor(
        count,
        initializer=end_with,
        initargs=(os.getpid(),),
        env={"TOKENIZERS_PARALLELISM": "false"},  # with all cores busy, threads would only compete for them
    )
    waiting: collections.deque = collections.deque()
    tasks = iter(tasks)
    try:
        while True:
            with _interrupts_held():
                waiting.extend(pool.submit(work, task) for task in itertools.islice(tasks, 2 * count - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError("a process that prepares data was killed; is there enough memory?") from None
    finally:
        pool.shutdown(kill_workers=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl+C inside the block: a process started meanwhile never receives it, so it prints no traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # every process needs it; starting it later would unblock Ctrl+C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with(parent: int) -> None:
    """End this process when its parent does, which may be killed before it can say so, and ignore Ctrl+C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
