"""One measurement: the task of a trainer, the stopwatch that times it, and the result.

A job travels as command line flags, a result as JSON; the trainer runs in a process of its own.
"""

from __future__ import annotations

import argparse
import time
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..tokens.rows import TokenRow


def option(default: Any, help: str) -> Any:
    """Return a dataclass field of `Job` with its flag's help."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trainer's task; each field but the first is a flag of `python -m qlora_core.bench CONTESTANT`."""

    contestant: str
    model: str = option("smollm2-135m", "model: a name, a directory, or random-SHAPE, whose weights are drawn")
    model_dir: str = option("", "where models with drawn weights lie; default: the cache")
    quantize: str = option("4", "bits to quantise to, where the model is not quantised")
    dense: str = option("", "the same model with its weights dequantised, for PyTorch; default: made in the cache")
    work: str = option("short-qa", "rows to train")
    data: tuple[str, ...] = option((), "files and directories to train on instead of the work's rows")
    rows: str = option("", "file of rows instead; default: made by --work and --seed")
    adapters: str = option("", "adapters to start from; default: drawn by --seed")
    rank: int = option(8, "rank of the adapters")
    alpha: float = option(16.0, "the update is scaled by alpha / rank")
    batch_size: int = option(8, "rows a step")
    learning_rate: float = option(1e-4, "constant learning rate of AdamW")
    steps: int = option(20, "most steps that are timed")
    warm_up: int = option(2, "steps before those")
    seconds: float = option(0.0, "stop earlier, after so many seconds of timed steps; 0: never")
    seed: int = option(0, "decides rows, adapters and the order of batches")
    batches: str = option("own", "own: the trainer's own order; fixed: the rows' order, the same for all")
    pad_target: bool = option(False, "train an id 0 after each row, as mlx-lm does")
    without: tuple[str, ...] = option((), "techniques of ours to switch off: FIELD or FIELD=VALUE")
    memory_gb: float = option(0.0, "memory that our kernels are chosen for; 0: what is free")
    save_every: int = option(0, "steps between adapters saved in --save-to; 0: none")
    save_to: str = option("", "directory for them")
    started: float = option(0.0, "when the process was started (seconds since 1970); default: now")
    out: str = option("", "file for the result; default: standard output")

    @property
    def scale(self) -> float:
        """Return the scale of the adapters' product."""
        return self.alpha / self.rank

    def flags(self) -> list[str]:
        """Return the command line that describes this job."""
        words = []
        for entry in fields(self)[1:]:
            value, flag = getattr(self, entry.name), "--" + entry.name.replace("_", "-")
            if value == entry.default:
                continue
            if value is True:
                words.append(flag)
            else:
                words += [flag, *map(str, value if isinstance(value, tuple) else [value])]
        return words


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag to a parser for every field of `Job` but the contestant."""
    kinds = typing.get_type_hints(Job)
    for entry in fields(Job)[1:]:
        flag, kind = "--" + entry.name.replace("_", "-"), kinds[entry.name]
        shown = "" if entry.default in ("", (), False) else f" (default: {entry.default})"
        options: dict[str, Any] = {"default": entry.default, "help": entry.metadata["help"] + shown}
        if kind is bool:
            options["action"] = "store_true"
        elif kind in (str, int, float):
            options |= {"type": kind, "metavar": {str: "TEXT", int: "N", float: "X"}[kind]}
        else:
            options |= {"nargs": "+", "metavar": "TEXT"}
        parser.add_argument(flag, **options)


class Stopwatch:
    """Times the steps of a trainer and counts what they trained, from the rows.

    Args:
        rows: the rows to train.
        job: when the process started, and how many steps and seconds it may take.
        clock: seconds since 1970, or a stand-in.
    """

    def __init__(self, rows: Sequence[TokenRow], job: Job, clock: Callable[[], float] = time.time) -> None:
        self.rows, self.job, self.clock = rows, job, clock
        self.started = job.started or clock()
        self.steps: list[dict[str, Any]] = []
        self._begun = 0.0
        self._counted: list[int] = []
        self.loaded = 0.0

    def begin(self, indices: Iterable[int]) -> bool:
        """Start timing a step with these rows; return False, without starting it, once there were enough."""
        if self.enough:
            return False
        self._counted = [int(i) for i in indices]
        self._begun = self.clock()
        if not self.steps:
            self.loaded = self._begun - self.started
        return True

    def end(self, loss: float | None = None) -> None:
        """Stop timing the step; `loss` is its mean in nats per trained token."""
        seconds = self.clock() - self._begun
        tokens, targets = count_tokens(self.rows[i] for i in self._counted)
        self.steps.append(
            {"rows": len(self._counted), "tokens": tokens, "targets": targets, "seconds": seconds, "loss": loss}
        )

    @property
    def timed(self) -> list[dict[str, Any]]:
        """Return the steps after the warm-up."""
        return self.steps[self.job.warm_up :]

    @property
    def enough(self) -> bool:
        """Return whether no more steps should follow."""
        if len(self.timed) >= self.job.steps:
            return True
        return bool(self.job.seconds and self.timed) and _total(self.timed, "seconds") >= self.job.seconds

    def due(self) -> bool:
        """Return whether adapters should be saved now, between two steps; this includes the start."""
        return bool(self.job.save_every) and len(self.steps) % self.job.save_every == 0

    def measures(self) -> dict[str, Any]:
        """Return speeds and times.

        `tokens_per_second` covers the timed steps. `tokens_per_second_whole` covers all steps and all time since the
        process started, imports, loading and compiling included, but not work between two steps.
        """
        if not self.timed:
            return {}
        whole = self.loaded + _total(self.steps, "seconds")
        return {
            "tokens_per_second": _total(self.timed, "tokens") / _total(self.timed, "seconds"),
            "tokens_per_second_whole": _total(self.steps, "tokens") / whole,
            "seconds_to_first_step": self.loaded + self.steps[0]["seconds"],
            "seconds_loading": self.loaded,
            "timed_steps": len(self.timed),
            "timed_seconds": _total(self.timed, "seconds"),
        }


def _total(steps: Iterable[dict[str, Any]], name: str) -> float:
    return sum(step[name] for step in steps)


def count_tokens(rows: Iterable[TokenRow]) -> tuple[int, int]:
    """Return the number of real tokens in rows (prompt and reply) and of trained ones, without padding."""
    rows = list(rows)
    return sum(map(len, rows)), sum(row.target_tokens for row in rows)
