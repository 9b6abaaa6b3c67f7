"""The model directories that trainers need: quantised in MLX's layout, and dequantised for PyTorch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .job import Job
from .works import describe_model, find_model

if TYPE_CHECKING:
    from ..models.base_models import ModelSpec


def prepared(job: Job) -> dict[str, str]:
    """Run `prepare` in its own process, so that this one never loads MLX, and return its result.

    Raises:
        ModelError: it could not be made.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "prepared.json"
        wanted = dataclasses.replace(job, out=str(out))
        command = [sys.executable, "-m", __package__, job.contestant, *wanted.flags()]
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if not out.is_file():
            raise ModelError(f"{job.model}: could not be prepared: {(ended.stderr.strip() or '?').splitlines()[-1]}")
        result = json.loads(out.read_text(encoding="utf-8"))
    if "error" in result:
        raise ModelError(f"{job.model}: could not be prepared: {result['error']}")
    return result


def prepare(job: Job) -> dict[str, str]:
    """Return the model's directories: as trained (`model`) and, for `prepare-dense`, dequantised (`dense`).

    Raises:
        ModelError: it cannot be read, or there is no room to keep it.
    """
    spec = describe_model(find_model(job.model, Path(job.model_dir) if job.model_dir else None), job.quantize)
    made = {"model": str(_quantised(spec))}
    if job.contestant == "prepare-dense":
        made["dense"] = str(_dequantised(Path(made["model"]), spec))
    return made


def _quantised(spec: ModelSpec) -> Path:
    if spec.quantize_bits is None:
        return spec.path
    from ..engine.device import choose_kernels
    from ..engine.weights import load_weights, loaded_directory
    from ..machine.memory import available_bytes

    dtype = choose_kernels(spec.dtype, spec.dense_bytes, available_bytes()).dtype
    load_weights(spec, dtype, lambda message: None)
    kept = loaded_directory(spec, dtype)
    if kept == spec.path:
        raise ModelError(
            f"{spec.path}: quantised, it could not be kept in the cache, where all trainers would read it."
        )
    return kept


def _dequantised(source: Path, spec: ModelSpec) -> Path:
    """Return a copy in Hugging Face's layout: bfloat16 for CUDA, float32 elsewhere."""
    from ..engine.device import mx
    from ..engine.model import read_tensors
    from ..files.safetensors_headers import weight_files
    from ..files.storage import cache_directory

    dtype = "bfloat16" if mx.cuda.is_available() else "float32"
    directory = cache_directory() / "bench" / f"dense-{spec.short_name}-{spec.fingerprint[:16]}-{dtype}"
    if (directory / "config.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    quantization = settings.pop("quantization", {})
    settings.pop("quantization_config", None)
    places = {}
    for file in weight_files(source):
        dense = dequantise(read_tensors(file), quantization, getattr(mx, dtype))
        mx.save_safetensors(str(directory / file.name), dense, {"format": "pt"})
        places |= dict.fromkeys(dense, file.name)
    _write(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    _write(directory / "config.json", settings | {"dtype": dtype})
    return directory


def dequantise(tensors: dict[str, Any], quantization: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Dequantise MLX weights: turn packed words, scales and biases into matrices of `dtype`."""
    from ..engine.device import mx

    dense = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf in ("scales", "biases") and f"{module}.weight" in tensors:
            continue
        if f"{module}.scales" in tensors:
            own = quantization.get(module)
            how = own if isinstance(own, dict) else quantization
            parts = (tensors[f"{module}.{part}"] for part in ("scales", "biases"))
            value = mx.dequantize(value, *parts, group_size=how["group_size"], bits=how["bits"])
        dense[name] = value.astype(dtype)
    return dense


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
