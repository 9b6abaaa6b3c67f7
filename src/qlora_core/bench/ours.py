"""This package's trainer as a contestant, and its validation of adapters that any contestant saved."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, TrainingError
from ..runs.kernel_choice import Kernels
from ..tokens.rows import TokenRows
from .job import Job, Stopwatch
from .works import Rows, fixed_groups

PLACEHOLDER = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]}

OFF: dict[str, Any] = {
    "linear": "quantised", "streams": 1, "blas": "reference", "packing": False, "at_once": 0,
    "rounding": {"tokens": 1, "longest": 1, "bins": []},
}  # fmt: skip
"""Value of a technique that is switched off, by its field's name; boolean fields become false."""
SWITCHES = {"packing": True}
"""Techniques that are settings of a run, and their usual values; all others are fields of `Kernels`."""
OF_NO_TECHNIQUE = ("device", "dtype", "trunk", "arithmetic")  # no work for a trunk here: all layers have adapters


def ablations(kernels: Mapping[str, Any], prefix_tokens: int = 0) -> list[str]:
    """Return the techniques of these kernels that can be switched off, each as `FIELD=VALUE` for `--without`.

    Args:
        kernels: fields of `runs.kernel_choice.Kernels`.
        prefix_tokens: tokens of the beginning that all rows share; with none, sharing cannot be switched off.
    """
    found = []
    for name, value in {**json.loads(json.dumps(kernels)), **SWITCHES}.items():
        off = OFF.get(name, False if value is True else value)
        idle = name in OF_NO_TECHNIQUE or (name == "prefix" and not prefix_tokens)
        if not idle and value not in ("", off):
            shown = "off" if isinstance(off, dict) else str(off).lower() if isinstance(off, bool) else off
            found.append(f"{name}={shown}")
        if (name, value) == ("linear", "kept"):
            found.append("linear=dequantised")
    return found


def switched_off(words: Sequence[str], kernels: Mapping[str, Any]) -> dict[str, Any]:
    """Parse `FIELD` or `FIELD=VALUE` into a value of the field's type.

    Raises:
        ConfigError: there is no such field.
    """
    values, known = {}, {**kernels, **SWITCHES}
    for word in words:
        name, given, text = word.partition("=")
        if name not in known or name in OF_NO_TECHNIQUE:
            names = ", ".join(name for name in known if name not in OF_NO_TECHNIQUE)
            raise ConfigError(f"--without {word!r}: no such technique. Known: {names}.")
        if not given or text == "off":
            values[name] = OFF.get(name, False)
        elif isinstance(known[name], bool):
            values[name] = text.lower() in ("true", "yes", "1")
        else:
            values[name] = type(known[name])(text)
    return values


def train(job: Job, rows: Rows, stopwatch: Stopwatch) -> dict[str, Any]:
    """Train as `qlora train` does, with rows given as token ids."""
    if any(word.partition("=")[0] == "blas" for word in job.without):
        import mlx.core  # noqa: F401 - MLX that was imported first stays with its own BLAS
    from ..engine.device import mx, tree_flatten
    from ..training import steps

    with _opened(job, TokenRows.of(rows.train)) as session:
        steps.prepare_to_train(session)
        for indices in _batches(job, session):
            if stopwatch.due():
                path = Path(job.save_to) / f"{len(stopwatch.steps):06d}.safetensors"
                mx.save_safetensors(str(path), dict(tree_flatten(session.model.trainable_parameters())))
            if not stopwatch.begin(indices):
                break
            step = steps.train_step(session, [indices])
            stopwatch.end(step.loss / step.targets)
            session.progress.step += 1
            if step.tokens != stopwatch.steps[-1]["tokens"]:
                raise TrainingError(
                    f"a step saw {step.tokens} tokens of rows that have {stopwatch.steps[-1]['tokens']}."
                )
        memory = session.monitor.sample()
        return {
            "kernels": dataclasses.asdict(session.kernels),
            "layout": session.layout,
            "prefix_tokens": len(session.batcher.prefix),
            "peak_bytes": memory.peak,
            "process_peak_bytes": memory.process_peak,  # includes the processes beside this one
        }


def _batches(job: Job, session: Any) -> Iterator[list[int]]:
    """Yield the rows of each step without end, in the trainer's order or that of the rows."""
    if job.batches == "fixed":
        yield from fixed_groups(len(session.train_rows), job.batch_size, job.warm_up + job.steps)
        return
    for epoch in itertools.count():
        for (indices,) in session.batcher.steps(epoch):  # one micro-batch a step
            yield indices


def evaluate(job: Job, rows: Rows, saved: Path) -> list[dict[str, Any]]:
    """Return the validation loss of every adapter file in a directory, computed over all rows by this package."""
    from ..engine.model import load_adapters
    from ..training import steps

    found = []
    with _opened(job, TokenRows.of(rows.train)) as session:
        session.val_rows = TokenRows.of(rows.validation)
        steps.prepare_to_train(session)
        for path in sorted(saved.glob("*.safetensors")):
            load_adapters(session.model, path)
            found.append({"step": int(path.stem), "val_loss": steps.mean_loss(session, steps.validate_model(session))})
    return found


@contextlib.contextmanager
def _opened(job: Job, rows: TokenRows) -> Iterator[Any]:
    """Open a session of a run in a temporary directory, with these rows instead of the planned ones."""
    from ..config import from_flat
    from ..engine import device
    from ..jobs.planning import plan_training
    from ..machine.memory import MemoryMonitor
    from ..training import loop
    from ..training.session import open_session

    with tempfile.TemporaryDirectory() as directory, _chosen(device, job) as switches:
        placeholder = Path(directory) / "rows.jsonl"
        placeholder.write_text((json.dumps(PLACEHOLDER) + "\n") * 2, encoding="utf-8")
        settings = {
            "model": job.model, "quantize": job.quantize, "data": [str(placeholder)], "near_duplicates": "ignore",
            "runs_dir": directory, "epochs": 10_000, "batch_size": job.batch_size, "rank": job.rank,
            "alpha": job.alpha, "init_adapter": job.adapters, "learning_rate": job.learning_rate,
            "schedule": "constant", "warmup_steps": 0, "max_grad_norm": 0.0, "seed": job.seed, **switches,
        }  # fmt: skip
        tracker, plan = plan_training(from_flat(settings), lambda text: None)
        with tracker.record(tracker.create(plan)) as writer:
            writer.listeners.append(_tell)
            session = open_session(writer, MemoryMonitor(counters=device.memory_counters))
            session.train_rows = rows
            session.batcher = dataclasses.replace(session.batcher, lengths=rows.lengths.tolist())
            session.share_prefix()
            loop.start_workers(session, writer)
            _refuse_without_effect(job.without, json.loads(json.dumps(dataclasses.asdict(session.kernels))))
            try:
                yield session
            finally:
                loop.end_workers(session)


@contextlib.contextmanager
def _chosen(device: Any, job: Job) -> Iterator[dict[str, Any]]:
    """Make `device.choose_kernels` leave out some techniques inside the block, and count only the job's memory.

    Yields:
        The techniques that are settings of a run.
    """
    choose = device.choose_kernels
    settings = switched_off([word for word in job.without if word.partition("=")[0] in SWITCHES], {})

    def fewer(model_dtype: str, dense_bytes: int, available: int) -> Any:
        chosen = choose(model_dtype, dense_bytes, min(available, int(job.memory_gb * 1e9) or available))
        values = switched_off(job.without, dataclasses.asdict(chosen))
        fields = {name: value for name, value in values.items() if name not in (*SWITCHES, "blas")}
        return Kernels.from_dict(dataclasses.asdict(chosen) | fields)

    device.choose_kernels = fewer
    try:
        yield settings
    finally:
        device.choose_kernels = choose


def _refuse_without_effect(without: Sequence[str], kernels: dict[str, Any]) -> None:
    """Raise an error if switching off a technique would change nothing."""
    for name, value in switched_off(without, kernels).items():
        if name not in SWITCHES and kernels[name] != value:
            raise ConfigError(f"--without {name}={value}: the trainer computes with {kernels[name]} all the same.")


def _tell(event: dict[str, Any]) -> None:
    if event["type"] == "warning":
        sys.stderr.write(f"{event['message']}\n")
