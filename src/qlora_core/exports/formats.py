"""The formats of an export, as one table: what each is for, what it needs, and who writes it.

The command line, the page, the guides and the docs read it. Knows no mlx: whoever needs it imports it on demand.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError
from ..runs.run import Run
from ..tokens.tokenizer_files import write_template, write_tokenizer
from ..translations import say
from .llama_cpp_formats import BASE_FILE, LORA_FILE, ONE_FILE, write_lora, write_ollama, write_one_file
from .peft import convert_adapters
from .source import ExportSource

Target = Literal["adapter", "peft", "fused", "fused-float16", "gguf", "gguf-lora", "ollama", "lmstudio"]


@dataclass(frozen=True)
class ExportChoices:
    """Options of an export, beside its format.

    Attributes:
        bits: of a fused model's weights, as `fuse.fuse_run` knows them.
        type: how one file for llama.cpp stores its numbers, as `gguf.model.write_model` knows it; empty: the usual.
        with_base: write the base beside adapters for llama.cpp.
        strict: refuse an export that loses more than a hundredth of a nat a token.
    """

    bits: str = "auto"
    type: str = ""
    with_base: bool = False
    strict: bool = False

    def given(self) -> list[str]:
        """Return the names of the choices that differ from the usual ones."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]


@dataclass(frozen=True)
class ExportPlace:
    """An export as its commands name it: by its absolute path on this machine, or as `.`, wherever it is copied.

    Attributes:
        run: name of the run.
        directory: of the export.
        base: directory or hub id of the base model.
        files: names of the files in the export.
    """

    run: str
    directory: Path
    base: str
    files: frozenset[str]

    @property
    def one_file(self) -> Path:
        """Return the GGUF file of an export that has one."""
        return self.directory / min((n for n in self.files if n.endswith(".gguf")), default=f"{self.run}.gguf")


def place_here(run: Run, directory: Path) -> ExportPlace:
    """Return where an export of a run lies on this machine; it may still have to be written."""
    files = frozenset(path.name for path in directory.iterdir()) if directory.is_dir() else frozenset()
    return ExportPlace(run.name, directory, run.environment()["model"]["path"], files)


@dataclass(frozen=True)
class ExportFormat:
    """A way to take a run's result elsewhere.

    Attributes:
        title: name on the page.
        purpose: what it is for, in a sentence.
        write: writes what only this format has into an empty directory, and returns what became of the weights (None:
            they are the run's own adapters, only written differently).
        predicted_bytes: size of the result, from what a run knows; None if that is not known.
        use: returns commands, or lines of Python, that use an export, to be copied.
        reader: who opens it again to verify it, as `verification.verify` knows them.
        takes: the names of the choices that it understands.
        needs_base: it holds adapters, which need the base model beside them.
        more_bytes: returns what its choices add to that size, and what lies on the disk only until it is complete.
        loads_model: writing it needs the memory of the whole model.
        has_program: `inference.py` goes with it: mlx-lm reads it.
    """

    title: str
    purpose: str
    write: Callable[[ExportSource, Path, ExportChoices], dict[str, Any] | None]
    predicted_bytes: Callable[[Run], int | None]
    use: Callable[[ExportPlace], list[str]]
    reader: str = "program"
    takes: frozenset[str] = frozenset()
    more_bytes: Callable[[Run, ExportChoices], int] = lambda run, choices: 0
    needs_base: bool = False
    loads_model: bool = False
    has_program: bool = False

    def bytes_to_write(self, run: Run, choices: ExportChoices) -> int:
        """Return about how many bytes the disk needs until it is complete."""
        return (self.predicted_bytes(run) or 0) + self.more_bytes(run, choices)


def check_choices(to: Target, choices: ExportChoices) -> None:
    """Refuse choices that a format does not understand.

    Raises:
        ConfigError: there is one, named.
    """
    for name in choices.given():
        if name not in FORMATS[to].takes:
            able = ", ".join(each for each, form in FORMATS.items() if name in form.takes)
            raise ConfigError(f"--{name.replace('_', '-')} says nothing about the format {to}; it belongs to {able}.")


# Writers --------------------------------------------------------------------------------------------------------


def _write_adapter(source: ExportSource, directory: Path, choices: ExportChoices) -> None:
    source.copy_adapters(directory)
    write_template(source.tokenizer, directory)


def _write_peft(source: ExportSource, directory: Path, choices: ExportChoices) -> None:
    convert_adapters(source.adapter_file, source.settings, directory, source.public_base, source.spec.num_layers)
    write_tokenizer(source.tokenizer, directory)


def _write_fused(source: ExportSource, directory: Path, choices: ExportChoices) -> dict[str, Any]:
    from ..training.fuse import fuse_run  # only here: it brings mlx

    return fuse_run(source.run, directory, bits=choices.bits, strict=choices.strict, adapters=source.adapters)


def _write_float16(source: ExportSource, directory: Path, choices: ExportChoices) -> dict[str, Any]:
    return _write_fused(source, directory, replace(choices, bits="16"))


def _write_gguf(source: ExportSource, directory: Path, choices: ExportChoices) -> dict[str, Any]:
    return write_one_file(source, directory, choices.type or ONE_FILE)


def _write_gguf_lora(source: ExportSource, directory: Path, choices: ExportChoices) -> dict[str, Any]:
    return write_lora(source, directory, with_base=choices.with_base)


def _write_ollama(source: ExportSource, directory: Path, choices: ExportChoices) -> dict[str, Any]:
    return write_ollama(source, directory, choices.type)


# Sizes ----------------------------------------------------------------------------------------------------------


def _adapter_bytes(run: Run) -> int:
    return sum(path.stat().st_size for path in run.adapters.glob("*.safetensors"))


def _base_bytes(run: Run) -> int | None:
    return run.environment()["model"].get("loaded_bytes")


def _weights(run: Run) -> int | None:
    return run.environment()["model"].get("parameters")


def _float16_bytes(run: Run) -> int | None:
    return 2 * weights if (weights := _weights(run)) else None


def _q8_0_bytes(run: Run) -> int | None:
    return weights * 34 // 32 if (weights := _weights(run)) else None  # blocks of 32 bytes and a scale


def _both_bytes(run: Run) -> int | None:
    base = _base_bytes(run)
    return base + _adapter_bytes(run) // 2 if base else None


def _roundings(run: Run, choices: ExportChoices) -> int:
    """Return the bytes of what `fuse_run` keeps while it chooses; of 16 bits, what they are more than the base."""
    return (_weights(run) or 0) * {"auto": 3, "mixed": 3, "16": 2}.get(choices.bits, 1)


def _merged(run: Run, choices: ExportChoices) -> int:
    """Return the bytes of the unquantised model that lies there meanwhile, and of numbers stored wider than usual."""
    return (_weights(run) or 0) * (2 + {"f32": 3, "f16": 1, "bf16": 1}.get(choices.type, 0))


def _beside_ollama(run: Run, choices: ExportChoices) -> int:
    return _merged(run, choices) if choices.type else 0  # else the base as it is, and the adapters


def _base_beside(run: Run, choices: ExportChoices) -> int:
    return (_base_bytes(run) or 0) if choices.with_base else 0


# Use ------------------------------------------------------------------------------------------------------------


def _use_adapter(place: ExportPlace) -> list[str]:
    return _use_in_mlx_lm(place, f"--model {shlex.quote(place.base)} --adapter-path {_quoted(place.directory)}")


def _use_model(place: ExportPlace) -> list[str]:
    return _use_in_mlx_lm(place, f"--model {_quoted(place.directory)}")


def _use_in_mlx_lm(place: ExportPlace, model: str) -> list[str]:
    question, program = shlex.quote(say("What do you know?")), _quoted(place.directory / "inference.py")
    return [f"python {program} {question}", f"mlx_lm.generate {model} --prompt {question}"]


def _use_peft(place: ExportPlace) -> list[str]:
    return [
        "from peft import AutoPeftModelForCausalLM",
        f"model = AutoPeftModelForCausalLM.from_pretrained({str(place.directory)!r})",
    ]


def _use_gguf(place: ExportPlace) -> list[str]:
    return [f"llama-server --jinja -m {_quoted(place.one_file)}"]


def _use_gguf_lora(place: ExportPlace) -> list[str]:
    model = _quoted(place.directory / BASE_FILE) if BASE_FILE in place.files else "BASE.gguf"
    return [f"llama-server --jinja -m {model} --lora {_quoted(place.directory / LORA_FILE)}"]


def _use_ollama(place: ExportPlace) -> list[str]:
    name = shlex.quote(place.run.lower())
    return [f"ollama create {name} -f {_quoted(place.directory / 'Modelfile')}", f"ollama run {name}"]


def _use_lmstudio(place: ExportPlace) -> list[str]:
    return [f"lms import {_quoted(place.one_file)}"]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


FORMATS: dict[Target, ExportFormat] = {
    "adapter": ExportFormat(
        title="Adapter",
        purpose="For mlx-lm and for programs on this computer; needs the base beside it.",
        write=_write_adapter,
        predicted_bytes=_adapter_bytes,
        use=_use_adapter,
        needs_base=True,
        has_program=True,
    ),
    "peft": ExportFormat(
        title="Adapter for PEFT",
        purpose="For PyTorch with the PEFT library; needs the base from the hub.",
        write=_write_peft,
        predicted_bytes=_adapter_bytes,
        use=_use_peft,
        reader="peft",
        needs_base=True,
    ),
    "fused": ExportFormat(
        title="One model",
        purpose="Stands alone, as small as it can be without losing what was learnt.",
        write=_write_fused,
        predicted_bytes=_base_bytes,
        use=_use_model,
        more_bytes=_roundings,
        takes=frozenset({"bits", "strict"}),
        loads_model=True,
        has_program=True,
    ),
    "fused-float16": ExportFormat(
        title="One model in float16",
        purpose="Stands alone and loses nothing; the largest.",
        write=_write_float16,
        predicted_bytes=_float16_bytes,
        use=_use_model,
        takes=frozenset({"strict"}),
        loads_model=True,
        has_program=True,
    ),
    "gguf": ExportFormat(
        title="One file for llama.cpp",
        purpose="For llama.cpp and all that is built on it; stands alone.",
        write=_write_gguf,
        predicted_bytes=_q8_0_bytes,
        use=_use_gguf,
        reader="llama.cpp",
        more_bytes=_merged,
        takes=frozenset({"type", "strict"}),
        loads_model=True,
    ),
    "gguf-lora": ExportFormat(
        title="Adapter for llama.cpp",
        purpose="For llama.cpp with a base that it has already; the smallest.",
        write=_write_gguf_lora,
        predicted_bytes=lambda run: _adapter_bytes(run) // 2,
        use=_use_gguf_lora,
        reader="llama.cpp",
        more_bytes=_base_beside,
        takes=frozenset({"with_base", "strict"}),
        needs_base=True,
    ),
    "ollama": ExportFormat(
        title="For Ollama",
        purpose="A folder for Ollama: the base as it is, the adapters, and the Modelfile.",
        write=_write_ollama,
        predicted_bytes=_both_bytes,
        use=_use_ollama,
        reader="llama.cpp",
        more_bytes=_beside_ollama,
        takes=frozenset({"type", "strict"}),
    ),
    "lmstudio": ExportFormat(
        title="For LM Studio",
        purpose="A folder with one file, as LM Studio keeps its models.",
        write=_write_gguf,
        predicted_bytes=_q8_0_bytes,
        use=_use_lmstudio,
        reader="llama.cpp",
        more_bytes=_merged,
        takes=frozenset({"type", "strict"}),
        loads_model=True,
    ),
}
"""Every format by its name, which is also that of its directory in a run."""
