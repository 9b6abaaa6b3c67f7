"""Adapter files: where one is, and whether it fits a base and the settings. Knows nothing of mlx."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import LoraConfig
from ..errors import ModelError, shown
from ..files.safetensors_headers import Tensor, tensor_headers
from ..files.untrusted_json import is_number, is_whole, read_object
from .base_models import ModelSpec
from .target_modules import place, within_model

ADAPTER_FILE, ADAPTER_CONFIG = "adapters.safetensors", "adapter_config.json"

Shapes = Mapping[str, tuple[int, ...]]
SHOWN = 5  # most misfits that a message names
LONGEST_CONFIG, LONGEST_HEADER = 64_000, 1_000_000  # bytes that are read
MOST_RANK, MOST_LAYERS, MOST_SCALE = 512, 1024, 1e6


def find_adapters(name: str, runs_dir: Path) -> Path:
    """Find the adapter file of that name: a file, a directory with one, or a run, of which it is the best.

    Raises:
        ModelError: there is none.
    """
    given = Path(name).expanduser()
    for directory in (given, runs_dir / name):
        inside = [directory / name / ADAPTER_FILE for name in ("", "best", "final")]
        for path in (directory, *inside):
            if path.is_file():
                return path
    raise ModelError(
        f"init_adapter {name!r}: no such file, directory with {ADAPTER_FILE}, or run in {runs_dir}. "
        "`qlora runs` lists the runs."
    )


def adapter_settings(directory: Path) -> dict[str, Any]:
    """Read `adapter_config.json`, in mlx-lm's format.

    Raises:
        ModelError: there is none, or one of its values is impossible.
    """
    path = directory / ADAPTER_CONFIG
    try:
        settings = read_object(path, LONGEST_CONFIG)
        _refuse_impossible(settings)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not the settings of an adapter: {error}") from None
    return settings


def adapter_base(directory: Path) -> Path:
    """Return the base that adapters were trained on, as their settings name it.

    Raises:
        ModelError: they name none.
    """
    name = adapter_settings(directory).get("model")
    if not name:
        raise ModelError(f"{directory / ADAPTER_CONFIG}: names no model that the adapters belong to.")
    return Path(name)


def adapter_keys(spec: ModelSpec, lora: LoraConfig) -> list[str]:
    """Return the linear layers that get adapters, by their names within a transformer layer."""
    return list(dict.fromkeys(place(path)[1] for path in spec.adapted_shapes(lora)))  # type: ignore[index]


def adapter_parameters(spec: ModelSpec, lora: LoraConfig, base: Path) -> dict[str, Any]:
    """Return the contents of `adapter_config.json`, in mlx-lm's terms, for a base as it was loaded from `base`."""
    return {
        "fine_tune_type": lora.adapter,
        "num_layers": len(spec.adapted_layers(lora)),
        "lora_parameters": {
            "rank": lora.rank,
            "scale": lora.scale,
            "dropout": lora.dropout,
            "keys": adapter_keys(spec, lora),
        },
        "model": str(base.resolve()),
    }


def _refuse_impossible(settings: dict[str, Any]) -> None:
    lora = settings.get("lora_parameters")
    if not isinstance(lora, dict):
        raise ValueError("no lora_parameters")
    keys = lora.get("keys", [])
    fit = {
        "rank": is_whole(lora.get("rank"), 1, MOST_RANK),
        "scale": is_number(lora.get("scale")) and abs(lora["scale"]) <= MOST_SCALE,
        "dropout": is_number(lora.get("dropout", 0.0)) and 0 <= lora.get("dropout", 0.0) < 1,
        "keys": keys is None or (isinstance(keys, list) and all(isinstance(key, str) for key in keys)),
    }
    if wrong := [name for name, fits in fit.items() if not fits]:
        raise ValueError(f"{wrong[0]} is {shown(lora.get(wrong[0]))}")
    lora.setdefault("dropout", 0.0)
    if not is_whole(settings.get("num_layers", 0), -1, MOST_LAYERS):
        raise ValueError(f"num_layers is {shown(settings['num_layers'])}")
    for name in ("fine_tune_type", "model"):
        if not isinstance(settings.get(name, ""), str):
            raise ValueError(f"{name} is {shown(settings[name])}")


def adapter_headers(path: Path) -> dict[str, Tensor]:
    """Return `{name: (dtype, shape, bytes)}` of an adapter file, from its header alone.

    Raises:
        ModelError: it is none.
    """
    return tensor_headers(path, LONGEST_HEADER)


def check_adapters(path: Path, spec: ModelSpec, lora: LoraConfig) -> None:
    """Refuse an adapter file that does not fit, by its header alone.

    Raises:
        ModelError: it cannot be read; a tensor is missing, unknown or of another shape; or it was trained with a
            different scale.
    """
    found = {within_model(name): tuple(shape) for name, (_, shape, _) in adapter_headers(path).items()}
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
    """Compare names and shapes of an adapter file with those that are expected.

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
    """Return the scale in an `adapter_config.json` of mlx-lm's format; None if there is no such file."""
    if not (directory / ADAPTER_CONFIG).is_file():
        return None
    return float(adapter_settings(directory)["lora_parameters"]["scale"])
