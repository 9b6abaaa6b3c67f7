"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a directory that appears all at once: adapters, optimizer, counters, and a manifest with their hashes.
Batch order, dropout and learning rate are functions of (seed, step), so nothing else has to be saved.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..engine.device import mx, nn, optim, tree_flatten, tree_unflatten
from ..engine.model import load_adapters, read_tensors, save_tensors
from ..errors import CheckpointError, ModelError
from ..files.storage import clear_leftovers, discard, publishing, write_json
from ..machine.crash_reasons import device_failure
from ..models.adapter_files import ADAPTER_FILE
from ..runs.checkpoints import OPTIMIZER_FILE, STATE_FILE, checkpoints


@dataclass
class Progress:
    """Counters of a run, at the end of an optimizer step.

    Attributes:
        step: optimizer updates done.
        tokens: real tokens processed.
        target_tokens: trained tokens processed.
        seconds: time spent in steps.
        epoch_loss: sum of the loss over the current epoch's target tokens, nats.
        epoch_targets: those tokens.
        best_val_loss: lowest so far; None before the first validation.
        best_step: step of that validation.
        evaluations_since_best: validations since then, for early stopping.
        last_val_step: step of the last validation, so that it is not repeated.
    """

    step: int = 0
    tokens: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    epoch_loss: float = 0.0
    epoch_targets: int = 0
    best_val_loss: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    last_val_step: int = 0
    peak_memory_bytes: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    directory: Path, model: nn.Module, optimizer: optim.Optimizer, progress: Progress, keep: int
) -> Path:
    """Write `directory/<step>` and remove the oldest beyond `keep`; return the new checkpoint's path.

    Only the holder of the run's lock may do this.

    Raises:
        StorageError: it cannot be written; all others are as they were.
    """
    path = directory / f"{progress.step:06d}"
    adapters = dict(tree_flatten(model.trainable_parameters()))
    # sorted: a restored state comes in another order, and the file should not show it
    moments = dict(sorted(tree_flatten(optimizer.state)))
    clear_leftovers(directory, alone=True)
    size = sum(value.nbytes for value in (*adapters.values(), *moments.values()))
    with publishing(path, wanted=size) as temporary:
        save_tensors(temporary / ADAPTER_FILE, adapters)
        save_tensors(temporary / OPTIMIZER_FILE, moments)
        write_json(temporary / STATE_FILE, asdict(progress))
    for old in checkpoints(directory)[:-keep]:
        discard(old)
    return path


def room_wanted(directory: Path, model: nn.Module, keep: int) -> int:
    """Return the most bytes that training will still add to a run's directory.

    These are checkpoints up to `keep` and the one that is being written, best and final adapters, and the adapters to
    export.
    """
    adapters = sum(value.nbytes for _, value in tree_flatten(model.trainable_parameters()))
    missing = max(0, keep - len(checkpoints(directory))) + 1
    return adapters * (3 * missing + 4)  # a checkpoint has two moments as well; the fourth is a best one's successor


def load_checkpoint(path: Path, model: nn.Module, optimizer: optim.Optimizer) -> Progress:
    """Load a checkpoint into a model with adapters attached and an initialised optimizer.

    Raises:
        CheckpointError: it does not fit.
        OSError: it cannot be read.
    """
    try:
        load_adapters(model, path / ADAPTER_FILE)
        state = read_tensors(path / OPTIMIZER_FILE)
        wanted = {name: value.shape for name, value in tree_flatten(optimizer.state)}
        if {name: value.shape for name, value in state.items()} != wanted:
            raise CheckpointError(f"{path}: its optimizer state does not fit the settings.")
        optimizer.state = tree_unflatten(list(state.items()))
        mx.eval(optimizer.state)
        return Progress(**json.loads((path / STATE_FILE).read_text(encoding="utf-8")))
    except (ModelError, ValueError, TypeError, RuntimeError) as error:
        if failure := device_failure(error):
            raise failure from None
        raise CheckpointError(f"{path}: cannot be resumed: {error}") from None
