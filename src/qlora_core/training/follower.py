"""A device's process beside the trainer, which computes the rows that it is sent.

`python -m qlora_core.training.follower FD` runs one. It keeps the base and the adapters that it was last sent, writes
nothing but its log, and ends with the trainer. Knows nothing of runs, steps and optimizers; `followers` is the
trainer's side.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Protocol

import numpy as np

from ..engine import device
from ..engine.device import mx
from ..engine.model import AdapterVector
from ..errors import QLoraError, brief
from ..machine.memory import MemoryMonitor
from ..models.base_models import describe
from ..tokens.batching import Batch
from .adapted_model import load_adapted, streams_of_this_thread
from .batcher import lay_out
from .followers import BEREFT, Loading, Place, Ports, Round, Task, connect, facts, free_ports
from .objective import OBJECTIVES
from .share_workers import TOLD, compute_on_streams, losses_by_row

BEAT = 1.0  # seconds between two signs of life


class Follower:
    """The base on a device of its own, and what is computed with it."""

    def __init__(self) -> None:
        self._group: mx.distributed.Group | None = None

    def load(self, loading: Loading) -> dict[str, Any]:
        """Load the base; return what must be the same in every process."""
        self._kernels = loading.kernels
        self._model, self._layout = load_adapted(loading.spec, loading.config, loading.kernels)
        self._adapters = AdapterVector(self._model)
        objective = OBJECTIVES[loading.objective]
        self._passes = objective.passes(self._model, self._adapters, self._layout, loading.kernels)
        self._zeros = mx.zeros_like(self._adapters.join(self._model.trainable_parameters()))
        return facts(describe(loading.spec.path, loading.config.base), self._layout)

    def connect(self, place: Place) -> None:
        """Connect with the trainer and the other followers."""
        self._group = connect(place)

    def compute(self, task: Task) -> None:
        """Compute a task, and add the result to that of the others."""
        if task.adapters:
            self._model.update(self._adapters.part(self._sum(self._zeros)))
        self._model.train(not task.losses)
        mx.random.seed(task.seed)
        self._sum(self._losses(task) if task.losses else self._gradient_and_loss(task))

    def _gradient_and_loss(self, task: Task) -> mx.array:
        """Return the gradient of a task's rows with their loss behind it, `(parameters + 1,)`."""
        loss, gradient = mx.array(0.0), self._zeros
        for one in task.rounds:
            computed = self._on_streams(one, task, self._passes.loss_and_gradient)
            loss = loss + sum(each[0] for each in computed)
            gradient = gradient + sum((each[1] for each in computed[1:]), computed[0][1])
            mx.eval(loss, gradient)  # only one round at a time is in memory
        return mx.concatenate([gradient, loss.reshape(1)])

    def _losses(self, task: Task) -> mx.array:
        """Return the loss of each row, `(rows of all devices,)`: 0 for those of other devices."""
        losses = np.zeros(task.losses, np.float32)
        for one in task.rounds:
            computed = self._on_streams(one, task, lambda batch: (batch, self._passes.token_losses(batch)))
            for places, found in zip(one.places, losses_by_row(computed, one.shares), strict=True):
                losses[places] = found
        return mx.array(losses)

    def _on_streams(self, one: Round, task: Task, compute: Callable[[Batch], Any]) -> list[Any]:
        """Return the result of `compute` for each share of a round."""
        device.set_blas_threads(one.threads)
        return compute_on_streams(
            one.shares,
            streams_of_this_thread(self._kernels.streams),
            lambda share: compute(lay_out(share, self._layout, self._kernels, task.prefix)),
        )

    def _sum(self, vector: mx.array) -> mx.array:
        mx.eval(vector)
        total = mx.distributed.all_sum(vector, group=self._group)
        mx.eval(total)
        return total


class Talk(Protocol):
    """What a follower needs of a connection."""

    def recv(self) -> Any:
        """Wait for a message and return it."""

    def send(self, message: Any, /) -> None:
        """Send a message."""


class _Line:
    """The line to the trainer: signs of life in both directions, and everything else in order.

    When the trainer is gone, or has said nothing for too long, this process ends at once, whatever it is computing.

    Args:
        connection: to the trainer.
        patience: seconds without a word after which the trainer counts as gone.
    """

    def __init__(self, connection: Talk, patience: float) -> None:
        self._connection, self._sending, self._patience = connection, threading.Lock(), patience
        self._heard = time.monotonic()
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for work in (self._listen, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        """Send the trainer an answer."""
        with self._sending:
            self._connection.send(message)

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = self._connection.recv()
                self._heard = time.monotonic()
                if message is not None:
                    self.messages.put(message)
        os._exit(0)

    def _beat(self) -> None:
        """Tell the memory in use, until the trainer is gone."""
        monitor = MemoryMonitor(counters=device.memory_counters)
        with contextlib.suppress(OSError):
            while time.monotonic() - self._heard < self._patience:
                sample = monitor.sample()
                self.send({"memory": {name: getattr(sample, name) for name in TOLD}})
                time.sleep(BEAT)
        os._exit(0)


def _follow(line: _Line) -> NoReturn:
    follower = Follower()
    while True:
        message = line.messages.get()
        if isinstance(message, Loading):
            line.send(follower.load(message))
        elif isinstance(message, Ports):
            line.send({"ports": free_ports(message.count)})
        elif isinstance(message, Place):
            follower.connect(message)
        else:
            follower.compute(message)


def follow(connection: Talk, patience: float = math.inf) -> int:
    """Do what the trainer asks until it is gone; return the exit status of a failure.

    The last line of the log says why it could not go on.

    Args:
        connection: to the trainer, which ends with it.
        patience: seconds without a word after which the trainer counts as gone, where the connection may not tell.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # the trainer receives them as well, and ends this process if need be
    try:
        _follow(_Line(connection, patience))
    except QLoraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except RuntimeError as error:
        sys.stderr.write(f"{brief(error)}\n")
        return BEREFT if "[ring] connection to a peer" in str(error) else 1


if __name__ == "__main__":
    sys.exit(follow(Connection(int(sys.argv[1]))))
