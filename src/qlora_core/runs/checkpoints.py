"""The checkpoints of a run, as a list: which there are, which can be used, and where a run goes on."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CheckpointError
from ..files.storage import explained, manifest_problem, remove
from ..models.adapter_files import ADAPTER_FILE
from .run import Run

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
FILES = {ADAPTER_FILE, OPTIMIZER_FILE, STATE_FILE}


def checkpoints(directory: Path) -> list[Path]:
    """Return all checkpoints, oldest first.

    Symlinks and copies such as `000200 copy` are ignored.
    """
    named = (path for path in directory.glob("[0-9]*") if re.fullmatch("[0-9]+", path.name))
    found = (path for path in named if path.is_dir() and not path.is_symlink())
    return sorted(found, key=lambda path: int(path.name))  # beyond a million, names are longer


def latest_checkpoint(directory: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that agrees with its manifest, and the problems of newer ones."""
    problems = []
    for path in reversed(checkpoints(directory)):
        problem = manifest_problem(path, FILES)
        if problem is None:
            return path, problems
        problems.append(f"checkpoint {path.name} cannot be used: {problem}")
    return None, problems


def usable_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints that are whole by their manifests and by the sizes of their files, newest first.

    Contents are compared when one is loaded: that takes long for a large model.
    """
    return [path for path in reversed(checkpoints(directory)) if not manifest_problem(path, FILES, contents=False)]


def checkpoint_to_resume(run: Run) -> tuple[Path | None, list[str]]:
    """Return the checkpoint to resume from, and messages about newer ones; None for a run without any.

    Newer, damaged checkpoints are renamed, so that they are neither counted among those kept nor overwritten.

    Raises:
        CheckpointError: the run had checkpoints, and none of them can be used: to begin again from nothing is for the
            user to decide.
        StorageError: a damaged one cannot be renamed.
    """
    directory = run.checkpoint_directory
    found = checkpoints(directory)
    path, problems = latest_checkpoint(directory)
    if path is None:
        _refuse_to_begin_again(run, problems)
        return None, []
    damaged = found[found.index(path) + 1 :]
    for place in damaged:
        kept = place.with_name(f"damaged-{place.name}")
        remove(kept)
        with explained(place, problem="is damaged and cannot be renamed"):
            place.rename(kept)
    if damaged:
        names = ", ".join(f"damaged-{place.name}" for place in damaged)
        problems.append(f"going on from checkpoint {path.name} instead; what is damaged is kept as {names}")
    return path, problems


def _refuse_to_begin_again(run: Run, problems: list[str]) -> None:
    saved = [event["step"] for event in run.metrics() if event["type"] == "checkpoint"]
    if not (problems or saved):
        return
    found = "; ".join(problems) or f"it saved step {max(saved)}, and there is no checkpoint any more"
    learnt = any((place / ADAPTER_FILE).is_file() for place in (run.best, run.final))
    kept = f"; with --init-adapter {run.name} that begins with what this one learnt" if learnt else ""
    raise CheckpointError(
        f"{run.path / 'checkpoints'}: the run cannot go on, and does not begin again by itself: {found}. Put a "
        f"checkpoint back from a copy, or use --fresh, which starts a new run beside it{kept}."
    )
