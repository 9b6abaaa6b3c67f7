"""mlx-lm's LoRA trainer as a contestant: its model, loss, layers and loop, our rows, and a stopwatch at its batches.

`mlx-lm` is what `mlx_lm.lora` runs. `mlx-lm-strong` is the same with its bottlenecks repaired from outside: rows are
really sorted by length, freed memory is kept between steps, and on a Linux CPU it gets an optimised BLAS and products
with dequantised weights, since MLX's quantised product runs at 3 GFLOP/s there.
"""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..tokens.rows import TokenRow
from .job import Job, Stopwatch
from .works import ADAPTERS, PROJECTIONS, Rows, first_trained, fixed_groups

NEVER = 1 << 62  # bytes of cache beyond which mlx-lm would clear it: never
PAD_TO = 32  # tokens

Encoded = tuple[list[int], int]
"""Ids of a row and the position of its first trained token; mlx-lm trains all after it."""


def train(job: Job, rows: Rows, stopwatch: Stopwatch) -> dict[str, Any]:
    """Train with `mlx_lm.tuner.trainer.train`."""
    strong = job.contestant == "mlx-lm-strong"
    mx, on_cpu = _device(strong)
    import mlx.optimizers as optim
    from mlx_lm.tuner.trainer import TrainingArgs
    from mlx_lm.tuner.trainer import train as train_by_mlx_lm

    model = _model(job)
    longest = max(map(len, rows.train))
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArgs(
            batch_size=job.batch_size,
            iters=job.warm_up + job.steps + 1,  # the stopwatch ends it earlier, at the batch after the last
            steps_per_report=1 if job.batches == "fixed" else 10,  # 10 is usual; every report costs a little time
            steps_per_save=NEVER,
            max_seq_length=longest + 2 * PAD_TO,  # no row is truncated or loses its padding
            adapter_file=str(Path(directory) / ADAPTERS),
            clear_cache_threshold=NEVER if strong else 0,
        )
        optimizer = optim.AdamW(job.learning_rate, weight_decay=0.0, bias_correction=True)
        losses = Losses()
        train_by_mlx_lm(
            model,
            optimizer,
            _dataset(rows.train, sorts=strong),
            args=arguments,
            iterate_batches=functools.partial(_watched_batches, job, rows.train, stopwatch, losses, model),
            training_callback=losses,
        )
    return {
        "peak_bytes": mx.get_peak_memory(),
        "kernels": {"compiled": not (on_cpu and (strong or not _has_compiler())), "dequantised": on_cpu and strong},
    }


class Losses:
    """Losses that mlx-lm's loop reports by calling the first two methods."""

    last: float | None = None

    def on_train_loss_report(self, report: dict[str, Any]) -> None:
        """Keep the loss of the step."""
        self.last = report["train_loss"]

    def on_val_loss_report(self, report: dict[str, Any]) -> None:
        """Ignore validation losses: nothing is validated here."""


def _device(strong: bool) -> tuple[Any, bool]:
    """Return MLX and whether it computes on a CPU; the strong variant first gets the BLAS that this package uses."""
    if strong:
        from ..engine.device import cores as physical_cores
        from ..engine.device import mx, set_blas_threads

        set_blas_threads(physical_cores())
    else:
        import mlx.core as mx
    on_cpu = not (mx.metal.is_available() or mx.cuda.is_available())
    if on_cpu:
        mx.set_default_device(mx.cpu)
    if on_cpu and strong and sys.platform == "linux":
        mx.quantized_matmul = functools.partial(_dequantised_product, mx)
    if on_cpu and not _has_compiler():
        mx.disable_compile()  # MLX would call one
    return mx, on_cpu


def _has_compiler() -> bool:
    return shutil.which("g++") is not None


def _dequantised_product(mx: Any, x: Any, w: Any, scales: Any, biases: Any = None, transpose: bool = True,
                         group_size: int = 64, bits: int = 4, mode: str = "affine", **_: Any) -> Any:  # fmt: skip
    dense = mx.dequantize(w, scales, biases, group_size=group_size, bits=bits, mode=mode)
    return x @ (dense.swapaxes(-1, -2) if transpose else dense)


def _model(job: Job) -> Any:
    """Return mlx-lm's model with LoRA layers that hold the shared initial adapters."""
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(job.model))
    model.freeze()
    lora = {"rank": job.rank, "scale": job.scale, "dropout": 0.0, "keys": list(PROJECTIONS)}
    linear_to_lora_layers(model, len(model.layers), lora)
    model.load_weights(job.adapters, strict=False)
    return model


def _dataset(rows: Sequence[TokenRow], *, sorts: bool) -> Any:
    """Return rows in the form mlx-lm's batches take; in its `CacheDataset` each has length 1, so none is sorted."""
    from mlx_lm.tuner.datasets import CacheDataset

    encoded = [encode(row) for row in rows]
    return encoded if sorts else CacheDataset(_Conversations(encoded))


def encode(row: TokenRow) -> Encoded:
    """Return a row in mlx-lm's form."""
    return row.ids.tolist(), first_trained(row)


class _Conversations:
    """A stand-in for mlx-lm's `ChatDataset`: an item is an object with one key, and `process` gives its tokens."""

    def __init__(self, encoded: Sequence[Encoded]) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"messages": index}

    def process(self, item: dict[str, int]) -> Encoded:
        return self.encoded[item["messages"]]


def _watched_batches(
    job: Job, rows: Sequence[TokenRow], stopwatch: Stopwatch, losses: Losses, model: Any, **options: Any
) -> Iterator[Any]:
    """Yield mlx-lm's batches or the fixed ones, timing each until the next is requested; stop after enough steps."""
    places = {row.ids.tobytes(): i for i, row in enumerate(rows)}
    np.random.seed(job.seed)  # mlx-lm orders its batches by numpy's global generator
    for batch, lengths in _fixed_batches(job, rows) if job.batches == "fixed" else _own_batches(**options):
        if stopwatch.due():
            _save_adapters(model, Path(job.save_to) / f"{len(stopwatch.steps):06d}.safetensors")
        if not stopwatch.begin(_recognised(places, np.array(batch), np.array(lengths))):
            return
        yield batch, lengths
        stopwatch.end(losses.last if job.batches == "fixed" else None)


def _own_batches(**options: Any) -> Iterator[Any]:
    from mlx_lm.tuner.trainer import iterate_batches

    return iterate_batches(**options)


def _recognised(places: dict[bytes, int], batch: np.ndarray, lengths: np.ndarray) -> list[int]:
    """Return the rows of a batch, found by their ids, to verify that they were the rows handed over."""
    return [places[line[:length].astype(np.int32).tobytes()] for line, (_, length) in zip(batch, lengths, strict=True)]


def _fixed_batches(job: Job, rows: Sequence[TokenRow]) -> Iterator[Any]:
    import mlx.core as mx

    for group in fixed_groups(len(rows), job.batch_size, job.warm_up + job.steps):
        batch, lengths = padded([rows[i] for i in group])
        yield mx.array(batch), mx.array(lengths)


def padded(rows: Sequence[TokenRow]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows padded as mlx-lm does it.

    Returns:
        int32 ids `(rows, 1 + a multiple of 32)`, and `(rows, 2)`: place of the first trained token, and length.
    """
    width = 1 + PAD_TO * -(-max(map(len, rows)) // PAD_TO)
    batch = np.zeros((len(rows), width), np.int32)
    for line, row in zip(batch, rows, strict=True):
        line[: len(row)] = row.ids
    return batch, np.array([(first_trained(row), len(row)) for row in rows], np.int32)


def with_pad_target(row: TokenRow) -> TokenRow:
    """Return the row with the padded id 0 that mlx-lm trains beyond its end: its mask includes one padded place."""
    return TokenRow(np.append(row.ids, np.int32(0)), np.append(row.trained, True), row.source)


def _save_adapters(model: Any, path: Path) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    mx.save_safetensors(str(path), dict(tree_flatten(model.trainable_parameters())))
