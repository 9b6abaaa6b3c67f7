"""Processes beside the trainer that compute shares of its micro-batches on a CPU, equal to the bit.

MLX's evaluator holds about ten tasks over all streams of a process, so a second stream often waits for the first. A
separate process never waits. Workers keep no state: each request brings adapters and rows, and if a worker fails, the
trainer can compute the same shares itself. `python -m qlora_core.training.share_workers FD` runs one of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ..config import RunConfig
from ..engine import device
from ..engine.compiled_loss import Passes
from ..engine.device import mx
from ..engine.model import AdapterVector, LastSeen, Layout
from ..machine.memory import MemoryMonitor
from ..machine.process_pool import end_with, start_connected
from ..models.base_models import ModelSpec
from ..runs.kernel_choice import Kernels
from ..runs.memory_estimate import PROGRAM_BYTES, MemoryEstimate
from ..tokens.batching import Batch
from ..tokens.rows import TokenRow
from .adapted_model import load_adapted
from .batcher import Shares, lay_out
from .objective import OBJECTIVES

WORTHWHILE = 5e11  # parameters × tokens to train, from which on a process is worth the seconds that it takes to start
SHARE_OF_FREE_MEMORY = 0.5  # share of what is free beside the trainer's own needs, for all workers together


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that a worker needs to load the model as the trainer did.

    Attributes:
        spec: description of the base.
        config: all settings.
        kernels: how the run computes.
        layout: how batches are laid out.
        objective: name of what is learnt.
        streams: number of shares that it computes side by side.
    """

    spec: ModelSpec
    config: RunConfig
    kernels: Kernels
    layout: Layout
    objective: str
    streams: int


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to a worker to compute some shares.

    Attributes:
        shares: rows of each share.
        gradients: whether loss and gradient of each share are wanted, or the loss of each of its rows.
        prefix: int32, the prefix that rows share.
        threads: threads of the BLAS.
        adapters: float32 `(parameters,)`; None if unchanged since the request before.
    """

    shares: list[list[TokenRow]]
    gradients: bool
    prefix: np.ndarray
    threads: int
    adapters: np.ndarray | None = None


Computed = tuple[float, np.ndarray] | np.ndarray
"""Summed loss of a share in nats and its gradient, float32 `(parameters,)`; or the loss of each row, float64."""
Own = Callable[[Request], list[Computed]]
TOLD = ("active", "peak", "process", "process_peak")


def how_many(kernels: Kernels, estimate: MemoryEstimate, work: int, available: int, *, separable: bool) -> int:
    """Return how many workers are worth their start and their memory; 0 if streams of one process suffice.

    Args:
        kernels: their streams are divided over the processes.
        estimate: of the trainer's memory.
        work: parameters of the base times tokens left to train.
        available: free bytes, with the trainer's base in memory.
        separable: whether shares depend only on adapters and rows.
    """
    if kernels.device != "cpu" or not separable or work < WORTHWHILE:
        return 0
    one = estimate.beside + PROGRAM_BYTES
    room = SHARE_OF_FREE_MEMORY * (available - 1.5 * estimate.training)
    return max(0, min(kernels.streams - 1, int(room // one)))


class ShareWorkers:
    """The trainer's side: starts workers, distributes shares and collects results.

    If a worker is lost, all are ended, and the trainer goes on alone.

    Args:
        setup: passed to each of them.
        count: number of workers.
        adapters: of the trainer's model.
        lost: called when a worker is lost.

    Attributes:
        engaged: whether they compute; they do not before they have loaded, or after one was lost.
    """

    def __init__(self, setup: Setup, count: int, adapters: AdapterVector, lost: Callable[[], None]) -> None:
        self._adapters, self._lost = adapters, lost
        self.engaged = False
        self._workers = [start_connected("qlora_core.training.share_workers") for _ in range(count)]
        self._loading = list(self._workers)
        self._sent = LastSeen()
        self._memory: dict[Connection, dict[str, int]] = {}
        with self._noticing_loss():
            for connection, _ in self._workers:
                connection.send(setup)

    def __len__(self) -> int:
        """Return the number of living workers."""
        return len(self._workers)

    def are_ready(self, timeout: float = 0.0) -> bool:
        """Return whether all have loaded the model, waiting for each no longer than `timeout` seconds."""
        with self._noticing_loss():
            while self._loading and self._loading[0][0].poll(timeout):
                self._loading[0][0].recv()
                self._loading.pop(0)
        return bool(self._workers) and not self._loading

    def engage(self) -> None:
        """Let them compute if they are ready. Only between steps: within one, BLAS threads must not change."""
        self.engaged = self.are_ready()

    def compute(self, request: Request, trained: dict[str, Any], own: Own) -> list[Computed] | None:
        """Compute the shares of a request, some in each process at the same time.

        Args:
            request: without adapters.
            trained: the adapters' parameters.
            own: computes a request in this process.

        Returns:
            The result of each share; None if a worker was lost.
        """
        processes = len(self) + 1
        parts = [request.shares[place::processes] for place in range(processes)]
        vector = self._vector_to_send(trained)
        results: list[list[Computed]] = []
        with self._noticing_loss():
            for (connection, _), part in zip(self._workers, parts[1:], strict=True):
                connection.send(dataclasses.replace(request, shares=part, adapters=vector))
            results.append(own(dataclasses.replace(request, shares=parts[0])))
            for connection, _ in self._workers:
                computed, self._memory[connection] = connection.recv()
                results.append(computed)
        if not self._workers:
            return None
        return [results[place % processes][place // processes] for place in range(len(request.shares))]

    def _vector_to_send(self, trained: dict[str, Any]) -> np.ndarray | None:
        """Return the adapters, or None if all workers have them."""
        return np.array(self._adapters.join(trained)) if self._sent.differ(trained) else None

    def memory(self) -> dict[str, int]:
        """Return the memory that the workers last reported, summed, by the names of `MemorySample`."""
        return {name: sum(told[name] for told in self._memory.values()) for name in TOLD}

    def close(self) -> None:
        """End all workers, but keep their reported peaks."""
        for connection, process in self._workers:
            connection.close()
            process.kill()
            process.wait()
        self._workers.clear()
        self._loading.clear()
        self.engaged = False
        for told in self._memory.values():
            told.update(active=0, process=0)

    @contextlib.contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):  # the other end of a connection is gone
            self.close()
            self._lost()


# A worker ---------------------------------------------------------------------------------------------------------


class _Worker:
    """The worker's side: the model, and functions that compute with it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.model, layout = load_adapted(setup.spec, setup.config, setup.kernels)
        if layout != setup.layout:
            raise RuntimeError(f"the trainer lays rows {setup.layout}, this process {layout}")
        self.adapters = AdapterVector(self.model)
        self.passes = OBJECTIVES[setup.objective].passes(self.model, self.adapters, layout, setup.kernels)
        self.monitor = MemoryMonitor(counters=device.memory_counters)
        self.streams = [mx.default_stream(mx.cpu), *(mx.new_stream(mx.cpu) for _ in range(setup.streams - 1))]

    def answer(self, request: Request) -> tuple[list[Computed], dict[str, int]]:
        """Compute a request's shares, and return them with the memory in use."""
        device.set_blas_threads(request.threads)
        if request.adapters is not None:
            self.model.update(self.adapters.part(mx.array(request.adapters)))
        self.model.train(request.gradients)
        computed = compute_shares(self.passes, request, self.streams, self.setup.kernels, self.setup.layout)
        sample = self.monitor.sample()
        return computed, {name: getattr(sample, name) for name in TOLD}


def compute_shares(
    passes: Passes, request: Request, streams: Sequence[mx.Stream], kernels: Kernels, layout: Layout
) -> list[Computed]:
    """Compute a request's shares in this process, each on a stream of its own."""

    def compute(share: list[TokenRow]) -> Any:
        batch = lay_out(share, layout, kernels, request.prefix)
        return passes.loss_and_gradient(batch) if request.gradients else (batch, passes.token_losses(batch))

    made = compute_on_streams(request.shares, streams, compute)
    if not request.gradients:
        return losses_by_row(made, request.shares)
    mx.eval(made)
    return [(loss.item(), np.array(gradient)) for loss, gradient in made]


def losses_by_row(computed: Sequence[tuple[Batch, mx.array]], shares: Shares) -> list[np.ndarray]:
    """Return the loss of each row of each share, nats summed over its trained tokens.

    Args:
        computed: each share as it was laid out, and the losses of its trained tokens.
        shares: the rows.
    """
    mx.eval([losses for _, losses in computed])
    return [batch.by_row(np.array(losses), len(share)) for (batch, losses), share in zip(computed, shares, strict=True)]


def compute_on_streams(shares: Sequence[Any], streams: Sequence[mx.Stream], compute: Callable[[Any], Any]) -> list[Any]:
    """Return the result of `compute` for each share, on a stream of its own."""
    results = []
    for share, stream in zip(shares, streams[: len(shares)], strict=True):
        with mx.stream(stream):
            results.append(compute(share))
    return results


def main() -> int:
    """Answer requests until the trainer closes the connection or ends."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # the trainer receives them as well, and ends the workers if need be
    end_with(os.getppid())
    with contextlib.suppress(EOFError, OSError), Connection(int(sys.argv[1])) as connection:
        worker = _Worker(connection.recv())
        connection.send(None)  # it has loaded
        while True:
            connection.send(worker.answer(connection.recv()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
