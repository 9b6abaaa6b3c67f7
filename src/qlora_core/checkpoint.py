"""Checkpoints: everything a run needs to go on as if it had never stopped, or nothing.

A checkpoint is a directory that appears all at once: adapters, optimizer, counters, and a manifest with their hashes.
Batch order, dropout and learning rate are functions of (seed, step), so nothing else has to be saved.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .device import mx, nn, optim, tree_flatten, tree_unflatten
from .errors import CheckpointError, ModelError
from .model import load_adapters, read_tensors
from .storage import manifest_problem, publishing, write_json


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
        best_step: where that was.
        evaluations_since_best: for early stopping.
        last_val_step: step of the last validation, so that it is not made twice.
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
    """Write `directory/<step>` and remove the oldest beyond `keep`; returns the new checkpoint's path."""
    path = directory / f"{progress.step:06d}"
    with publishing(path) as temporary:
        mx.save_safetensors(str(temporary / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
        # sorted: a restored state comes in another order, and the file should not show it
        mx.save_safetensors(str(temporary / "optimizer.safetensors"), dict(sorted(tree_flatten(optimizer.state))))
        write_json(temporary / "state.json", asdict(progress))
    for old in checkpoints(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def checkpoints(directory: Path) -> list[Path]:
    """All checkpoints, oldest first; what a link leads to is none."""
    return sorted(path for path in directory.glob("[0-9]*") if path.is_dir() and not path.is_symlink())


def latest_checkpoint(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that agrees with its manifest, and what was wrong with newer ones."""
    problems = []
    for path in reversed(checkpoints(directory)):
        problem = manifest_problem(path)
        if problem is None:
            return path, problems
        problems.append(f"checkpoint {path.name} cannot be used: {problem}")
    return None, problems


def load_checkpoint(path: Path, model: nn.Module, optimizer: optim.Optimizer) -> Progress:
    """Put a checkpoint into a model with adapters attached and an initialised optimizer.

    Raises:
        CheckpointError: it does not fit.
    """
    try:
        load_adapters(model, path / "adapters.safetensors")
        state = read_tensors(path / "optimizer.safetensors")
        wanted = {name: value.shape for name, value in tree_flatten(optimizer.state)}
        if {name: value.shape for name, value in state.items()} != wanted:
            raise CheckpointError(f"{path}: its optimizer state does not fit the settings.")
        optimizer.state = tree_unflatten(list(state.items()))
        mx.eval(optimizer.state)
        return Progress(**json.loads((path / "state.json").read_text(encoding="utf-8")))
    except (ModelError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be resumed: {error}") from None
