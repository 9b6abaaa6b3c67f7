"""Adapters in the format of the PEFT library, made from mlx-lm's.

Knows names, shapes and numbers of adapter files; nothing of models, runs, mlx or PEFT itself, which is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ..errors import ModelError
from ..files.storage import write_json
from ..models.adapter_files import adapter_headers
from ..models.target_modules import place

# how mlx-lm names a tensor of an adapter, and PEFT; matrices lie the other way round there
_NAMES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}


def convert_adapters(source: Path, settings: dict[str, Any], directory: Path, base: str, num_layers: int) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` in PEFT's format.

    Args:
        source: a file of adapters as mlx-lm stores them, LoRA or DoRA.
        settings: theirs, as `adapter_config.json` has them.
        directory: existing destination of both files.
        base: directory or hub id of the base model, for PEFT to load.
        num_layers: transformer layers of the base.

    Raises:
        ModelError: a file cannot be read, or holds something that PEFT has no name for.
    """
    adapter_headers(source)
    try:
        found = load_file(source)
    except Exception as error:  # safetensors raises exceptions of its own
        raise ModelError(f"{source}: its adapters cannot be read: {error}") from None
    tensors, modules = {}, []
    for name, value in found.items():
        module, _, leaf = name.rpartition(".")
        if leaf not in _NAMES:
            raise ModelError(f"{source}: {name} cannot be expressed in PEFT's format; wanted LoRA or DoRA adapters.")
        modules.append(module)
        tensors[f"base_model.model.{module}.{_NAMES[leaf]}"] = np.ascontiguousarray(value.T)
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    config = _config(settings, dict.fromkeys(modules), base, num_layers)
    write_json(directory / "adapter_config.json", config)


def _config(settings: dict[str, Any], modules: Iterable[str], base: str, num_layers: int) -> dict[str, Any]:
    lora = settings["lora_parameters"]
    layers = sorted({at[0] for module in modules if (at := place(module))})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora["rank"],
        "lora_alpha": lora["scale"] * lora["rank"],
        "lora_dropout": lora["dropout"],
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "layers_to_transform": None if layers == list(range(num_layers)) else layers,
        "use_dora": settings.get("fine_tune_type") == "dora",
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
