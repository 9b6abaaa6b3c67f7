"""The formats that llama.cpp reads: one file, adapters for it, and what Ollama and LM Studio want beside them.

Knows runs, and which file of `gguf` goes where. MLX is only imported where adapters have to be merged into the base.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from gguf import Keys

from ..activity import doing
from ..errors import ExportError
from ..gguf.adapters import write_adapters
from ..gguf.families import recognise_model
from ..gguf.model import About, Written, write_model
from ..gguf.reading import GgufFile
from .modelfile import write_modelfile
from .source import ExportSource

BASE_FILE, LORA_FILE = "base.gguf", "adapter.gguf"
OWN_BITS = "as-stored"  # the base's own numbers, where GGUF has blocks that hold them
ONE_FILE = "q8_0"  # the smallest kind of one file that lost nothing worth speaking of


def write_one_file(source: ExportSource, directory: Path, kind: str) -> dict[str, Any]:
    """Write base and adapters merged into one GGUF file.

    Args:
        source: what is exported.
        directory: gets the file, which is named after run and kind.
        kind: how its numbers are stored, as `gguf.model.write_model` knows it.

    Returns:
        `model`: the file's name; `adapters`: empty; `stored`: how, in words; `notes`: what llama.cpp does otherwise.

    Raises:
        ModelError: llama.cpp knows no such model.
    """
    from ..training.fuse import fuse_run  # only here: it brings mlx

    recognise_model(source.spec.path)  # before a model is merged in vain
    name = f"{source.run.name}-{kind.upper()}.gguf"
    with tempfile.TemporaryDirectory(prefix=".work-", dir=directory) as work:
        merged = Path(work) / "model"
        merged.mkdir()
        fuse_run(source.run, merged, bits="16", adapters=source.adapters)
        with doing("writing"):
            written = write_model(merged, directory / name, kind, _about(source))  # type: ignore[arg-type]
    return _facts(name, "", f"{kind.upper()}, the adapters merged into it", written.notes)


def write_lora(source: ExportSource, directory: Path, *, with_base: bool) -> dict[str, Any]:
    """Write the adapters as a GGUF file, and beside it the base with its own bits if wanted.

    Args:
        source: what is exported.
        directory: gets `adapter.gguf`, and `base.gguf`.
        with_base: write the base, too.

    Returns:
        As `write_one_file`; `model` is empty without the base.

    Raises:
        ModelError: llama.cpp knows no such model.
        ExportError: the adapters are DoRA.
    """
    recognise_model(source.spec.path)
    if source.run.config().lora.adapter != "lora":
        raise ExportError(f"{source.run.name}: llama.cpp knows DoRA adapters only merged into the base: use --to gguf.")
    with tempfile.TemporaryDirectory() as name, doing("writing"):
        adapters = Path(name)
        source.copy_adapters(adapters)  # a checkpoint has no settings beside it
        write_adapters(adapters, source.spec.path, directory / LORA_FILE, "f16", _about(source))
    written = write_base(source, directory / BASE_FILE) if with_base else Written()
    stored = "the base with its own bits, and adapters in float16" if with_base else "adapters in float16"
    return _facts(BASE_FILE if with_base else "", LORA_FILE, stored, written.notes)


def write_base(source: ExportSource, out: Path) -> Written:
    """Write the base as training loaded it, its numbers as they are."""
    with doing("writing"):
        return write_model(source.loaded_base, out, OWN_BITS, _about(source))


def write_ollama(source: ExportSource, directory: Path, kind: str) -> dict[str, Any]:
    """Write a directory for `ollama create`: base and adapters, or one file, and the Modelfile.

    Args:
        source: what is exported.
        directory: gets the files.
        kind: of one file; empty: base and adapters, or one file if the adapters can only be merged.

    Returns:
        As `write_one_file`.
    """
    if kind or source.run.config().lora.adapter != "lora":
        files = write_one_file(source, directory, kind or ONE_FILE)
    else:
        files = write_lora(source, directory, with_base=True)
    differences = write_modelfile(
        directory,
        source.tokenizer,
        source.run.config(),
        base=files["model"],
        adapter=files["adapters"],
        adds_bos=bool(GgufFile(directory / files["model"]).metadata.get(Keys.Tokenizer.ADD_BOS)),
        system=source.run.shared_system(),
        licence=source.spec.licence,
    )
    files["notes"] += differences
    return files


def _facts(model: str, adapters: str, stored: str, notes: list[str]) -> dict[str, Any]:
    return {"model": model, "adapters": adapters, "stored": stored, "notes": list(notes)}


def _about(source: ExportSource) -> About:
    return About.asked_by(
        source.tokenizer,
        name=source.run.name,
        base=source.spec.name,
        repository=source.repository,
        licence=source.spec.licence,
    )
