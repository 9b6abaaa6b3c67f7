"""The formats of an export, as one table: what each is for, what it needs, and who writes it.

The command line, the page, the guides and the docs read it. Knows no mlx: whoever needs it imports it on demand.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError
from ..files.storage import write_json
from ..models.adapter_files import ADAPTER_CONFIG, ADAPTER_FILE
from ..runs.run import Run
from ..tokens.tokenizer_files import write_template, write_tokenizer
from ..translations import say
from .peft import convert_adapters
from .source import Source

Target = Literal["adapter", "peft", "fused", "fused-float16"]


@dataclass(frozen=True)
class Choices:
    """What a user may choose about an export, beyond its format.

    Attributes:
        bits: of a fused model's weights, as `fuse.fuse_run` knows them.
        strict: refuse an export that loses more than a hundredth of a nat a token.
    """

    bits: str = "auto"
    strict: bool = False

    def given(self) -> list[str]:
        """Return the names of the choices that differ from the usual ones."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]


@dataclass(frozen=True)
class ExportFormat:
    """A way to take a run's result elsewhere.

    Attributes:
        title: name on the page.
        purpose: what it is for, in a sentence.
        write: writes what only this format has into an empty directory, and returns what became of the weights (None:
            they are the run's own adapters, only written differently).
        predicted_bytes: size of the result, from what a run knows; None if that is not known.
        use: returns commands, or lines of Python, that use an export in a directory, to be copied.
        reader: who opens it again to verify it, as `verification.verify` knows them.
        takes: the names of the choices that it understands.
        needs_base: it holds adapters, which need the base model beside them.
        loads_model: writing it needs the memory of the whole model.
        has_program: `inference.py` and the guides go with it: mlx-lm reads it.
    """

    title: str
    purpose: str
    write: Callable[[Source, Path, Choices], dict[str, Any] | None]
    predicted_bytes: Callable[[Run], int | None]
    use: Callable[[Run, Path], list[str]]
    reader: str = "program"
    takes: frozenset[str] = frozenset()
    needs_base: bool = False
    loads_model: bool = False
    has_program: bool = False


def check_choices(to: Target, choices: Choices) -> None:
    """Refuse choices that a format does not understand.

    Raises:
        ConfigError: there is one, named.
    """
    for name in choices.given():
        if name not in FORMATS[to].takes:
            able = ", ".join(each for each, form in FORMATS.items() if name in form.takes)
            raise ConfigError(f"--{name} says nothing about the format {to}; it belongs to {able}.")


# Writers --------------------------------------------------------------------------------------------------------


def _write_adapter(source: Source, directory: Path, choices: Choices) -> None:
    shutil.copyfile(source.adapter_file, directory / ADAPTER_FILE)
    write_json(directory / ADAPTER_CONFIG, source.settings)
    write_template(source.tokenizer, directory)


def _write_peft(source: Source, directory: Path, choices: Choices) -> None:
    convert_adapters(source.adapter_file, source.settings, directory, source.public_base, source.spec.num_layers)
    write_tokenizer(source.tokenizer, directory)


def _write_fused(source: Source, directory: Path, choices: Choices) -> dict[str, Any]:
    from ..training.fuse import fuse_run  # only here: it brings mlx

    return fuse_run(source.run, directory, bits=choices.bits, strict=choices.strict, adapters=source.adapters)


def _write_float16(source: Source, directory: Path, choices: Choices) -> dict[str, Any]:
    return _write_fused(source, directory, replace(choices, bits="16"))


# Sizes ----------------------------------------------------------------------------------------------------------


def _adapter_bytes(run: Run) -> int:
    return sum(path.stat().st_size for path in run.adapters.glob("*.safetensors"))


def _base_bytes(run: Run) -> int | None:
    return run.environment()["model"].get("loaded_bytes")


def _float16_bytes(run: Run) -> int | None:
    parameters = run.environment()["model"].get("parameters")
    return 2 * parameters if parameters else None


# Use ------------------------------------------------------------------------------------------------------------


def _use_adapter(run: Run, directory: Path) -> list[str]:
    base = shlex.quote(run.environment()["model"]["path"])
    return _use_in_mlx_lm(directory, f"--model {base} --adapter-path {shlex.quote(str(directory))}")


def _use_model(run: Run, directory: Path) -> list[str]:
    return _use_in_mlx_lm(directory, f"--model {shlex.quote(str(directory))}")


def _use_in_mlx_lm(directory: Path, model: str) -> list[str]:
    question, program = shlex.quote(say("What do you know?")), shlex.quote(str(directory / "inference.py"))
    return [f"python {program} {question}", f"mlx_lm.generate {model} --prompt {question}"]


def _use_peft(run: Run, directory: Path) -> list[str]:
    return [
        "from peft import AutoPeftModelForCausalLM",
        f"model = AutoPeftModelForCausalLM.from_pretrained({str(directory)!r})",
    ]


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
}
"""Every format by its name, which is also that of its directory in a run."""
