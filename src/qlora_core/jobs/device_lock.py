"""The lock that lets one run at a time train on a device, in any directory, since two would share its memory.

The lock lies in the cache, which the runs of a user share. Knows nothing of mlx.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import BusyError
from ..files.locks import Held, LifeLock, holder, holder_in_words
from ..files.storage import cache_directory, make_directory
from ..models.base_models import has_gpu
from ..runs.devices import visible_gpus
from ..runs.hosts import devices_of
from ..runs.run import Run
from ..runs.writer import RunWriter, being_trained
from ..translations import Sentence

START_ID = Path("/proc/sys/kernel/random/boot_id")
POLL = 0.5  # seconds between two looks whether the device is free
GOING = 10.0  # seconds that a trainer may take to exit after giving its run back, on a busy machine


def device_name() -> str:
    """Return the device that MLX trains on here: `CPU`, `GPU 0`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    return f"GPU {visible}" if has_gpu() and visible not in ("", "-1") else "CPU"


def lock_file(device: str = "") -> Path:
    """Return the path of a device's lock, by default the first one's.

    A cache may be shared by machines, their devices are not.
    """
    name = re.sub(r"[^\w.-]+", "-", f"{_machine()}-{device or device_name()}".lower())
    return cache_directory() / "training" / f"{name}.lock"


def _machine() -> str:
    """Return an identifier of this machine while a process lives; its name only if nothing else identifies it.

    macOS changes a machine's name with its network. Linux draws an id at each boot, which all containers on the machine
    see; the id in /etc/machine-id may be the same on machines cloned from one image.
    """
    found = _hardware_uuid() if sys.platform == "darwin" else _start_id()
    return found or platform.node()


def _start_id() -> str:
    """Return the id that Linux drew when it started; empty if there is none."""
    with contextlib.suppress(OSError, ValueError):
        return str(uuid.UUID(START_ID.read_text(encoding="ascii").strip()))
    return ""


def _hardware_uuid() -> str:
    """Return the hardware id of a Mac, that of `IOPlatformUUID`; empty if it is not told.

    Written from the manual of gethostuuid(2), not yet run: it fills in 16 bytes, and may wait a second for them.
    """
    found = (ctypes.c_ubyte * 16)()
    wait = (ctypes.c_long * 2)(1, 0)  # a `struct timespec`
    with contextlib.suppress(AttributeError, OSError):
        if ctypes.CDLL(None).gethostuuid(found, ctypes.byref(wait)) == 0 and any(found):
            return str(uuid.UUID(bytes=bytes(found)))
    return ""


class DeviceLock(LifeLock):
    """The right to train on this machine's device.

    Args:
        run: the directory of the run that will be trained.
        descriptor: a lock already taken by the process that started this one.
        device: its name; by default the first one's.

    Raises:
        BusyError: a run is being trained there; it is named.
    """

    def __init__(self, run: Path, descriptor: int | None = None, device: str = "") -> None:
        path = lock_file(device)
        make_directory(path.parent)
        end = time.monotonic() + GOING
        while True:
            try:
                super().__init__(path, descriptor, run=str(run.absolute()))
                return
            except Held:
                if Run(Path(holder(path).get("run", "."))).alive or time.monotonic() > end:
                    break
                time.sleep(0.02)
        if holder(path).get("run") == str(run.absolute()):
            raise being_trained(run, path)
        raise BusyError(
            Sentence(
                "{in_use}. Pause or stop that run, wait until it has ended, or let this one wait with --queue.",
                in_use=in_use(path, device),
            )
        )


def in_use(path: Path, device: str = "") -> Sentence:
    """Return the run that has a device, by default the first, in words."""
    run, who = holder(path).get("run") or Sentence("another run"), holder_in_words(path)
    process = Sentence(" (process {who})", who=who) if who else ""
    return Sentence(
        "{run} is being trained already on this machine's {device}{process}",
        run=run,
        device=device or device_name(),
        process=process,
    )


def wait_for_device(writer: RunWriter) -> DeviceLock | None:
    """Wait until the device is free, and take it. Return None if the run was asked to pause or stop before.

    Raises:
        KeyboardInterrupt: by a signal; the run is paused.
    """
    run, told = writer.run, ""
    try:
        with _signals_interrupt():
            while run.control() == "run":
                with contextlib.suppress(BusyError):
                    lock = DeviceLock(run.path)
                    writer.set_status("preparing", message="")
                    return lock
                if (message := f"Waiting: {in_use(lock_file())}.") != told:
                    told = message
                    writer.set_status("preparing", message=message)
                    writer.tell("waiting", message=message)
                time.sleep(POLL)
    except KeyboardInterrupt:
        _end_waiting(writer)
        raise
    _end_waiting(writer)
    return None


@contextlib.contextmanager
def further_devices(writer: RunWriter) -> Iterator[None]:
    """Hold the locks of a run's other GPUs inside the block; cores of a CPU have none of their own.

    Raises:
        BusyError: another run is being trained on one of them; this one is paused.
    """
    run = writer.run
    with contextlib.ExitStack() as held:
        try:
            for name in visible_gpus()[1 : devices_of(run.config().pace)[1]]:
                held.enter_context(DeviceLock(run.path, device=f"GPU {name}"))
        except BusyError as error:
            writer.end("paused", int(run.status().get("step", 0)), str(error))
            raise
        yield


def _end_waiting(writer: RunWriter) -> None:
    writer.end("paused", int(writer.run.status().get("step", 0)))


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let every signal that asks a program to end raise `KeyboardInterrupt`; in the main thread only."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before: dict[int, Callable[..., Any] | int | None] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
