"""One run on several devices, of one machine or of several: a process for each, which MLX's own engine connects.

The trainer is the first of them and owns the run: settings, rows, optimizer, checkpoints. The others, its followers,
keep nothing but the base. For each step the trainer sends them rows and adapters, and the engine sums everybody's loss
and gradient; so the numbers are those of one device, summed in another order. `follower` is the other side.

The engine connects a process once in its life.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import importlib.metadata
import json
import os
import queue
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from ..config import RunConfig
from ..engine import device
from ..engine.device import mx
from ..engine.model import AdapterVector, LastSeen, Layout
from ..errors import DeviceError, RunError
from ..files.storage import make_directory
from ..machine.crash_reasons import DEVICE_GAVE_UP, reason
from ..machine.far_process import greeted, start_by_ssh
from ..machine.process_pool import start_connected
from ..models.base_models import ModelSpec
from ..runs.devices import visible_gpus
from ..runs.hosts import Host, Hosts
from ..runs.kernel_choice import ARITHMETIC, Kernels
from ..runs.run import Run
from .batcher import Shares

QUIET = 45.0  # seconds without a sign of life after which a follower counts as hung
STARTING = 300.0  # seconds that it may take longer until the first one: a cold disk, a busy machine
GRACE = 5.0  # seconds in which the engine should notice that a follower is gone
BEREFT = 4  # exit status of a follower that ended because another one did
GREETED = 60.0  # seconds within which a process on another machine should have begun
SSH_FAILED, NOT_FOUND = 255, 127  # exit statuses, of ssh and of a shell
TICK = 10.0  # seconds between two messages that say that the trainer lives
LOGS = "devices"
NEAR, FAR = "qlora_core.training.follower", "qlora_core.jobs.far_follower"
COMPARED = ("mlx", "mlx-lm", "qlora-notebook")

_connected = False


@dataclasses.dataclass(frozen=True)
class Loading:
    """Everything that a follower needs to load the base as the trainer did.

    Attributes:
        spec: description of the base.
        config: all settings.
        kernels: how each device computes.
        objective: name of what is learnt.
    """

    spec: ModelSpec
    config: RunConfig
    kernels: Kernels
    objective: str


@dataclasses.dataclass(frozen=True)
class Place:
    """A device's place among those that are connected.

    Attributes:
        backend: of MLX's engine: `ring`, `nccl`, `jaccl` or `jaccl-ring`.
        number: the trainer's is 0.
        addresses: where each of them listens.
        rdma: for each of them, the RDMA devices that lead to the others; only for `jaccl`.
    """

    backend: str
    number: int
    addresses: tuple[tuple[str, ...], ...]
    rdma: tuple[Any, ...] = ()

    def variables(self, directory: Path) -> dict[str, str]:
        """Return what the engine reads from the environment, having written the files in it.

        From `mlx.launch`, which sets the same.
        """
        hosts, rdma = directory / "hosts.json", directory / "rdma.json"
        hosts.write_text(json.dumps(self.addresses), encoding="utf-8")
        rdma.write_text(json.dumps(self.rdma), encoding="utf-8")
        first, port = self.addresses[0][0].split(":")
        said = {"MLX_RANK": str(self.number)}
        if self.backend == "ring":
            return said | {"MLX_HOSTFILE": str(hosts)}
        if self.backend == "nccl":
            return said | {"MLX_WORLD_SIZE": str(len(self.addresses)), "NCCL_HOST_IP": first, "NCCL_PORT": port}
        ring = {"MLX_JACCL_RING": "1"} if self.backend == "jaccl-ring" else {}
        return said | {"MLX_IBV_DEVICES": str(rdma), "MLX_JACCL_COORDINATOR": f"{first}:{port}"} | ring


@dataclasses.dataclass(frozen=True)
class Ports:
    """A question: which ports of your machine are free?

    Attributes:
        count: how many are wanted.
    """

    count: int


@dataclasses.dataclass(frozen=True)
class Round:
    """Rows that a device computes at the same time.

    Attributes:
        shares: rows of each of its streams.
        threads: threads of the BLAS.
        places: of these rows among those whose losses are wanted; none where the gradient is.
    """

    shares: Shares
    threads: int
    places: list[list[int]]


@dataclasses.dataclass(frozen=True)
class Task:
    """Rows to compute: their loss and its gradient, or the loss of each.

    Attributes:
        rounds: of rows, computed one after another; none if there are too few rows for every device.
        losses: number of rows, of all devices, whose losses are wanted; 0: loss and gradient are, summed.
        prefix: int32, the prefix that rows share.
        seed: of dropout.
        adapters: whether the engine sends adapters first.
    """

    rounds: list[Round]
    losses: int
    prefix: np.ndarray
    seed: int
    adapters: bool = False


def facts(spec: ModelSpec, layout: Layout) -> dict[str, Any]:
    """Return what has to be the same in every process of a run, by its name in words."""
    versions = {f"version of {name}": importlib.metadata.version(name) for name in COMPARED}
    return {
        **versions,
        "version of the arithmetic": ARITHMETIC,
        "matrix library": device.BLAS.name,
        "base model": spec.fingerprint,
        "layout of rows": layout,
    }


def refuse_difference(ours: dict[str, Any], theirs: dict[str, Any], who: str) -> None:
    """Compare the facts of the trainer with a follower's.

    Raises:
        RunError: one differs; it is named.
    """
    for what, wanted in ours.items():
        if (found := theirs.get(what)) != wanted:
            raise RunError(
                f"{who}: its {what} is {found}, that of the first device {wanted}. All devices of a run must have the "
                "same: was something installed or changed just now? Start it again."
            )


def connect(place: Place) -> mx.distributed.Group:
    """Connect this process with the others by MLX's engine."""
    with tempfile.TemporaryDirectory() as directory:
        said = place.variables(Path(directory))
        os.environ.update(said)
        # the engine waits for the others without letting any other thread run
        faulthandler.dump_traceback_later(QUIET, exit=True)
        try:
            return mx.distributed.init(strict=True, backend=place.backend.removesuffix("-ring"))
        finally:
            faulthandler.cancel_dump_traceback_later()
            for name in said:
                del os.environ[name]


@dataclasses.dataclass
class _Follower:
    """A follower as the trainer sees it.

    Attributes:
        number: from 1; people count devices from 1, so it is device `number + 1`.
        host: its machine, if a file names the machines.
        process: its process, or ssh, which talks with it.
        connection: to it.
        log: what it printed.
        heard: when it last gave a sign of life, or the latest time by which it should have started.
        answers: what it answered and nobody has read yet.
        memory: what it last reported, by the names of `MemorySample`.
    """

    number: int
    host: Host | None
    process: subprocess.Popen[bytes]
    connection: Connection
    log: Path
    sending: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    heard: float = dataclasses.field(default_factory=lambda: time.monotonic() + STARTING)
    answers: queue.SimpleQueue[dict[str, Any]] = dataclasses.field(default_factory=queue.SimpleQueue)
    memory: dict[str, int] = dataclasses.field(default_factory=dict)

    def send(self, message: object) -> None:
        """Send it a message; two threads do."""
        with self.sending:
            self.connection.send(message)

    def how_it_ended(self) -> str:
        """Return why its process ended, in words."""
        return reason(self.process.wait(), self.log.read_text(encoding="utf-8", errors="replace"))


class Followers:
    """The trainer's side: starts followers, sends them rows, and sums what they computed.

    A thread listens for their signs of life. If one is lost, all are ended, and whatever the trainer asks of them next,
    or is waiting for, raises an error.

    Args:
        run: gets a log of each follower.
        devices: number of devices, with the trainer's own.
        give_up: called with the error, in another thread, if the trainer waits for a lost follower and nothing wakes
            it; it must end the process.
        hosts: their machines; by default all are in this one.
        spare: called with the reason where a machine cannot be used, which is left out then.

    Raises:
        DeviceError: a machine cannot be used, and may not be left out.
    """

    def __init__(
        self,
        run: Run,
        devices: int,
        give_up: Callable[[DeviceError], None],
        hosts: Hosts | None = None,
        spare: Callable[[str], None] | None = None,
    ) -> None:
        self.devices, self.here = devices, hosts.here if hosts else devices
        self._hosts = hosts.hosts if hosts else ()
        self._backend = hosts.backend if hosts else ""
        self._give_up = give_up
        self._group: mx.distributed.Group | None = None
        self._lost: DeviceError | None = None
        self._closed, self._told = threading.Event(), threading.Event()
        self._leaving = threading.Lock()  # nobody leaves a wait that is being given up
        self._waits = False
        self._sent = LastSeen()
        logs = run.path / LOGS
        make_directory(logs)
        self._followers: list[_Follower] = []
        try:
            for number in range(1, devices):
                self._followers.append(_start(number, devices, logs / f"{number + 1}.log", run, hosts))
            self._greet(spare)
        except BaseException:
            self._end()
            raise
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def load(self, loading: Loading, layout: Layout) -> None:
        """Have all load the base, compare it with the trainer's, and connect them.

        Raises:
            RunError: something that must be the same differs, or this process was connected with others before.
            DeviceError: a follower is lost.
        """
        self._sent = LastSeen()
        self._send([loading] * len(self._followers))
        ours = facts(loading.spec, layout)
        for follower in self._followers:
            refuse_difference(ours, self._answer(follower), self._name(follower))
        if self._group is None:
            self._connect("nccl" if loading.kernels.device == "cuda" else "ring")

    def _connect(self, backend: str) -> None:
        global _connected
        if _connected:
            raise RunError("this process has trained on several devices already, which it can once: start another one.")
        _connected = True
        if self._hosts:
            place = Place(self._backend or backend, 0, self._addresses(), tuple(host.rdma for host in self._hosts))
        else:
            place = Place(backend, 0, tuple((f"127.0.0.1:{port}",) for port in free_ports(self.devices)))
        self._send([dataclasses.replace(place, number=follower.number) for follower in self._followers])
        with self._waiting():
            self._group = connect(place)

    def _addresses(self) -> tuple[tuple[str, ...], ...]:
        """Ask each for ports that are free on its machine."""
        counts = [len(host.ips) for host in self._hosts]
        self._send([Ports(count) for count in counts[1:]])
        ports = [free_ports(counts[0]), *(self._answer(follower)["ports"] for follower in self._followers)]
        return tuple(
            tuple(f"{ip}:{port}" for ip, port in zip(host.ips, found, strict=True))
            for host, found in zip(self._hosts, ports, strict=True)
        )

    def ask(self, tasks: Sequence[Task], adapters: AdapterVector, trained: dict[str, Any]) -> None:
        """Send each follower its rows, and the adapters if they have changed.

        Args:
            tasks: one for each follower, without adapters.
            adapters: joins them to a vector.
            trained: the adapters' parameters.

        Raises:
            DeviceError: a follower is lost.
        """
        changed = self._sent.differ(trained)
        self._send([dataclasses.replace(task, adapters=changed) for task in tasks])
        if changed:
            self._summed(adapters.join(trained))  # all others add zeros

    def summed(self, loss: mx.array, gradient: mx.array) -> tuple[mx.array, mx.array]:
        """Return loss and gradient `(parameters,)` summed over all devices.

        Raises:
            DeviceError: a follower is lost.
        """
        both = self._summed(mx.concatenate([gradient, loss.reshape(1)]))
        return both[-1], both[:-1]

    def summed_losses(self, losses: np.ndarray) -> np.ndarray:
        """Return the losses of rows, `(rows,)`, each computed on one device and 0 on the others.

        Raises:
            DeviceError: a follower is lost.
        """
        return np.array(self._summed(mx.array(losses.astype(np.float32)))).astype(np.float64)

    def _summed(self, vector: mx.array) -> mx.array:
        mx.eval(vector)
        with self._waiting():
            total = mx.distributed.all_sum(vector, group=self._group)
            mx.eval(total)
        return total

    def memory(self) -> dict[str, int]:
        """Return the memory that they last reported, summed, by the names of `MemorySample`."""
        names = {name for follower in self._followers for name in follower.memory}
        return {name: sum(follower.memory.get(name, 0) for follower in self._followers) for name in names}

    def close(self) -> None:
        """End all of them."""
        self._closed.set()
        self._told.set()
        self._watcher.join()
        self._end()
        for follower in self._followers:
            follower.connection.close()
            follower.memory.update(active=0, process=0)  # but not their peaks

    # Talking to them -----------------------------------------------------------------------------------------

    def _send(self, messages: Sequence[object]) -> None:
        with self._waiting():
            for follower, message in zip(self._followers, messages, strict=True):
                follower.send(message)

    def _greet(self, spare: Callable[[str], None] | None) -> None:
        """Wait until those on other machines are there, before anything is loaded."""
        for follower in list(self._followers):
            if self._near(follower) or greeted(follower.connection, GREETED):
                continue
            problem = f"{self._name(follower)} cannot be used: {_why_it_never_began(follower)}"
            if spare is None:
                raise DeviceError(problem)
            spare(problem)
            self._followers.remove(follower)
        # those that are left are numbered anew, also for the engine
        self._hosts = (*self._hosts[:1], *(follower.host for follower in self._followers if follower.host))
        self.devices = len(self._followers) + 1
        for number, follower in enumerate(self._followers, 1):
            follower.number = number

    def _near(self, follower: _Follower) -> bool:
        """Return whether a follower is on the trainer's own machine."""
        return follower.host is None or follower.host.ssh == self._hosts[0].ssh

    def _answer(self, follower: _Follower) -> dict[str, Any]:
        while True:
            with contextlib.suppress(queue.Empty):
                return follower.answers.get(timeout=0.2)
            self._refuse_loss()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Wait for followers inside the block; if one is lost, raise that, whatever else came of it."""
        self._refuse_loss()
        self._waits = True
        try:
            yield
        except (OSError, RuntimeError):
            if not self._told.wait(2 * GRACE):  # the watcher knows more
                raise
        finally:
            with self._leaving:
                self._waits = False
        self._refuse_loss()

    def _refuse_loss(self) -> None:
        if self._lost:
            raise self._lost

    def _name(self, follower: _Follower) -> str:
        where = f" ({follower.host.ssh})" if follower.host else ""
        return f"device {follower.number + 1} of {self.devices}{where}"

    # Watching them -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        connections = {follower.connection: follower for follower in self._followers}
        told = 0.0
        while not self._closed.is_set():
            if time.monotonic() - told > TICK:
                told = time.monotonic()
                self._tell_that_we_live()
            gone = [one for one in (connections[c] for c in wait(list(connections), 0.2)) if not self._hear(one)]
            hung = [one for one in self._followers if time.monotonic() - one.heard > QUIET]
            if gone or hung:
                self._lose(gone, hung)
                return

    def _tell_that_we_live(self) -> None:
        for follower in self._followers:
            if not follower.sending.locked():  # a message says so as well
                with contextlib.suppress(OSError):  # it is gone, which is noticed elsewhere
                    follower.send(None)

    def _hear(self, follower: _Follower) -> bool:
        """Read what a follower sent; return whether it is still there."""
        try:
            said = follower.connection.recv()
        except (EOFError, OSError):
            return False
        follower.heard = time.monotonic()
        if "memory" in said:
            follower.memory = said["memory"]
        else:
            follower.answers.put(said)
        return True

    def _lose(self, gone: list[_Follower], hung: list[_Follower]) -> None:
        """End all followers, and wake the trainer or end it."""
        why = self._why(gone, hung)
        self._end()
        self._lost = DeviceError(f"{DEVICE_GAVE_UP}: {why}")
        self._told.set()
        since = time.monotonic()
        while not self._closed.wait(0.1):
            with self._leaving:
                if not self._waits:
                    since = time.monotonic()
                elif time.monotonic() - since > GRACE:
                    self._give_up(self._lost)

    def _why(self, gone: list[_Follower], hung: list[_Follower]) -> str:
        if not gone:
            return f"{self._name(hung[0])} gave no sign of life for {QUIET:g} seconds; it was ended."
        time.sleep(0.3)  # others may have ended for the same reason, or because of it
        ended = [one for one in self._followers if one in gone or one.process.poll() is not None]
        first = min(ended, key=lambda one: one.process.wait() == BEREFT)
        return f"{self._name(first)} ended. {first.how_it_ended()}"

    def _end(self) -> None:
        for follower in self._followers:
            follower.process.kill()
        for follower in self._followers:
            follower.process.wait()


def _start(number: int, devices: int, log: Path, run: Run, hosts: Hosts | None) -> _Follower:
    """Start a follower; on a machine with several GPUs it sees one of its own."""
    host = hosts.hosts[number] if hosts else None
    with log.open("wb") as file:
        if hosts and host and host.ssh != hosts.hosts[0].ssh:
            before = sum(other.ssh == host.ssh for other in hosts.hosts[:number])
            try:
                connection, process = start_by_ssh(
                    host.ssh, FAR, [str(before), str(run.path.absolute())],
                    python=host.python, variables=hosts.envs, log=file,
                )  # fmt: skip
            except FileNotFoundError:
                raise DeviceError("ssh, which starts the processes on other machines, was not found here.") from None
        else:
            connection, process = start_connected(NEAR, log=file, environment=_seeing_one(number, devices))
    return _Follower(number, host, process, connection, log)


def _why_it_never_began(follower: _Follower) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        follower.process.wait(GRACE)
    follower.process.kill()
    said = follower.log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2].rstrip(".")
    status = follower.process.wait()
    if status == SSH_FAILED:
        return f"{said}. Does `ssh {follower.host.ssh}` work without a password?"
    if status == NOT_FOUND or "No module named" in said:
        return (
            f"{said}. The project has to be installed there as it is here, at the same path, or the file of machines "
            'names its Python: "python".'
        )
    return f"{said}." if said else f"it did not begin within {GREETED:g} seconds."


def _seeing_one(number: int, devices: int) -> dict[str, str]:
    """Return an environment with the GPU of this number alone, if there are enough for all."""
    gpus = visible_gpus()
    return {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpus[number]} if len(gpus) >= devices else {})}


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
