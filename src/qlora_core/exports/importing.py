"""The way back: adapters that another program wrote become a run, to ask, evaluate, compare, train on and export.

The run is one that has not taken a step: it begins with these adapters, and they are its best so far.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import Keys
from safetensors.numpy import save_file

from ..config import RunConfig, from_flat
from ..data import no_data, prepare
from ..errors import ConfigError, shown
from ..files.checksums import CHECKSUM, checksum
from ..files.storage import explained, write_json
from ..gguf.adapters import read_adapters
from ..gguf.reading import GgufFile
from ..models.adapter_files import ADAPTER_CONFIG, ADAPTER_FILE, adapter_parameters
from ..models.base_models import BUILT_IN, ModelSpec, find_base
from ..models.foreign_adapters import ForeignAdapters, fit_adapters, read_foreign, settings_for, within_limits
from ..runs.plan import TrainingPlan, TrainingTracker
from ..runs.run import Run
from ..runs.writer import record
from ..tokens.dataset import make_datasets
from ..tokens.tokenizer import open_tokenizer
from .source import BUILT_IN_ORIGIN

_BITSANDBYTES = re.compile(r"(-unsloth)?-bnb-[48]bit$", re.IGNORECASE)
"""End of the names of bases in a format of bitsandbytes, as Unsloth publishes them for training."""
HUB = "https://huggingface.co/"


def import_adapters(path: Path, given: dict[str, Any]) -> Run:
    """Make a run of adapters in PEFT's, mlx-lm's or llama.cpp's format.

    Args:
        path: their directory or file; only read.
        given: settings by name: `model` (by default the base that the adapters name), `data` and `facts` (by default
            none: it can then be asked and exported, but neither evaluated nor trained), `run`, `runs_dir` and others.
            What the adapters decide – kind, rank, scale, layers – is taken from them.

    Raises:
        ModelError: they cannot be read, or do not belong to the base.
        ConfigError: a setting is given that the adapters decide, or they name no base.
        RunError: there is such a run already.
    """
    found = within_limits(read_foreign(path, functools.partial(_read_gguf, model=given.get("model", ""))))
    decided = ("adapter", "rank", "alpha", "rslora", "dropout", "num_layers", "projections", "init_adapter")
    if wrong := [name for name in decided if name in given]:
        raise ConfigError(f"--{wrong[0].replace('_', '-')}: the adapters decide this themselves. Leave it out.")
    given = {**given, "model": given.get("model") or _named_base(found)}
    spec = find_base(from_flat(given).base)
    config = from_flat({**given, **settings_for(found, spec)})
    tensors = fit_adapters(found, spec, spec.adapter_shapes(config.lora))
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(temporary) / "adapters"
        _write(kept, tensors, adapter_parameters(spec, config.lora, spec.path))
        plan, tracker = _plan(from_flat({"init_adapter": str(kept)}, config), spec, "data" in given, Path(temporary))
        run = tracker.create(plan)
        with tracker.record(run) as writer:
            shutil.copytree(kept, run.best, dirs_exist_ok=True)
            record(run, imported={"form": found.form, "version": importlib.metadata.version("qlora-notebook")})
            writer.end("completed", 0, f"imported from {found.form}")
    return run


def _named_base(found: ForeignAdapters) -> str:
    """Return the base that adapters name.

    Raises:
        ConfigError: they name none, or a copy of it that MLX cannot read.
    """
    if not found.base:
        raise ConfigError(f"{found.path}: does not name the base model that it belongs to. Give it with --model.")
    if copy := _BITSANDBYTES.search(found.base):
        original = found.base[: copy.start()]
        raise ConfigError(
            f"{found.path}: was trained on {shown(found.base)}, a copy that bitsandbytes quantised and MLX cannot "
            f"read. Name the model that the copy was made of: --model {shown(original)} if it is that one; with "
            "--quantize 4 it has few bits here, too."
        )
    return BUILT_IN if found.base == BUILT_IN_ORIGIN else found.base


def _plan(config: RunConfig, spec: ModelSpec, with_data: bool, temporary: Path) -> tuple[TrainingPlan, TrainingTracker]:
    tokenizer = open_tokenizer(config.base)
    prepared = prepare(config.data, tokenizer) if with_data else no_data(temporary / "data")
    datasets = make_datasets(prepared.train, prepared.validation, tokenizer, config.data.max_seq_length)
    tracker = TrainingTracker(config.place.runs_dir)
    return tracker.plan(config, spec, tokenizer, prepared, *datasets, imported=True), tracker


def _write(directory: Path, tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
    """Write adapters in mlx-lm's format, with the checksum of their numbers."""
    directory.mkdir(parents=True)
    digest = checksum((name, value.shape, value.tobytes()) for name, value in tensors.items())
    with explained(directory):
        save_file(tensors, directory / ADAPTER_FILE, {CHECKSUM: digest})
        write_json(directory / ADAPTER_CONFIG, settings)


def _read_gguf(path: Path, model: str) -> ForeignAdapters:
    """Read a GGUF LoRA; its names and orientation depend on the base, `model`, or the one that the file names.

    Raises:
        ModelError: it is none, or does not fit the base.
        ConfigError: it names no base.
    """
    if not model:
        address = GgufFile(path).metadata.get(Keys.General.BASE_MODEL_REPO_URL.format(id=0))
        repository = address.removeprefix(HUB) if isinstance(address, str) and address.startswith(HUB) else ""
        model = _named_base(ForeignAdapters(path, "GGUF", "lora", 1.0, 0.0, repository, {}, {}))
    base = find_base(from_flat({"model": model}).base)
    found = read_adapters(path, base.path)
    return ForeignAdapters(path, "GGUF", "lora", found.scale, 0.0, model, found.tensors, {})
