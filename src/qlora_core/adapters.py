"""Adapter files: where one lies, and whether it fits a base and the settings. Knows nothing of mlx."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .bases import ModelSpec
from .config import LoraConfig
from .errors import ModelError
from .headers import tensor_headers
from .projections import within_model

ADAPTER_FILE, ADAPTER_CONFIG = "adapters.safetensors", "adapter_config.json"

Shapes = Mapping[str, tuple[int, ...]]
SHOWN = 5  # misfits that a message names


def find_adapters(name: str, runs_dir: Path) -> Path:
    """The adapter file of that name: a file, a directory that holds one, or a run, whose best one it is.

    Raises:
        ModelError: there is none.
    """
    given = Path(name).expanduser()
    for place in (given, runs_dir / name):
        for path in (place, place / ADAPTER_FILE, place / "best" / ADAPTER_FILE, place / "final" / ADAPTER_FILE):
            if path.is_file():
                return path
    raise ModelError(
        f"init_adapter {name!r}: no such file, directory with {ADAPTER_FILE}, or run in {runs_dir}. "
        "`qlora runs` lists the runs."
    )


def adapter_settings(directory: Path) -> dict[str, Any]:
    """What `adapter_config.json` says, in mlx-lm's words.

    Raises:
        OSError: there is none.
        ValueError: it is not JSON.
    """
    return json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))


def check_adapters(path: Path, spec: ModelSpec, lora: LoraConfig) -> None:
    """Refuse an adapter file that does not fit, from its header alone.

    Raises:
        ModelError: it cannot be read, a tensor is missing, unknown or of another shape, or it was trained with another
            scale than the settings have.
    """
    found = {within_model(name): tuple(shape) for name, (_, shape, _) in tensor_headers(path).items()}
    wanted = {within_model(name): shape for name, shape in spec.adapter_shapes(lora).items()}
    refuse_misfits(path, found, wanted)
    scale = _scale(path.parent)
    if scale is not None and abs(scale - lora.scale) > 1e-6 * abs(scale):
        alpha = scale * lora.alpha / lora.scale if lora.scale else scale * lora.rank
        raise ModelError(
            f"{path}: was trained with scale {scale:g}, the settings have {lora.scale:g}, which would change what it "
            f"does. Use --alpha {alpha:g}."
        )


def refuse_misfits(path: Path, found: Shapes, wanted: Shapes) -> None:
    """Compare names and shapes of an adapter file with those that are wanted.

    Raises:
        ModelError: they differ; the first few differences are named.
    """
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is not an adapter of this model" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {found[name]}, wanted {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ModelError(f"{path}: does not fit: {'; '.join(problems[:SHOWN])}{more}.")


def _scale(directory: Path) -> float | None:
    """The scale that an `adapter_config.json` names, if there is one and it can be read."""
    try:
        return float(adapter_settings(directory)["lora_parameters"]["scale"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
