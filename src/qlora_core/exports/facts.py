"""The facts about an export that its texts tell: guides, card and summary. Knows no words and writes no file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import Any

from ..models.base_models import has_gpu
from .formats import FORMATS, ExportFormat, Target
from .source import ExportSource, from_home


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """Facts about an export; each is a name in the files of `templates/`.

    Attributes:
        name: of the run.
        to: name of the format.
        format: the format.
        purposes: what each format is for, by its name.
        base: name of the base model.
        public_base: the base as other programs find it.
        public_base_differs: whether it has other numbers there.
        base_bits: of the base's weights; None: not quantised.
        quantized_on_load: whether the base was quantised while it was loaded.
        base_as_stored: whether training loaded the base from the directory where it lies.
        other_template: whether the model is asked with another chat template than the base's own.
        rank: of the adapters.
        adapters: which were exported: `best`, `final`, or a step.
        imported: the format that the adapters were imported from; empty: they were trained here.
        recall: right answers to the fact sheet, by kind of phrasing; empty if it was not measured.
        questions: questions with their answers.
        python: the Python that wrote the export.
        ollama_name: name of the model for Ollama.
        system: system text that all rows share; empty if they share none.
        without_gpu: whether this machine has none that MLX knows.
        curves: whether a drawing of the curves stands beside.
        fused: what merging did, as `training.fuse.fuse_run` tells; None for adapters and llama.cpp's formats.
        gguf: files for llama.cpp, as `llama_cpp_formats.write_one_file` tells; None for other formats.
        verification: as `verification.verify` tells; None if it was not verified.
    """

    name: str
    to: Target
    format: ExportFormat
    purposes: dict[Target, str]
    base: str
    public_base: str
    public_base_differs: bool
    base_bits: int | None
    quantized_on_load: bool
    base_as_stored: bool
    other_template: bool
    rank: int
    adapters: str
    imported: str
    recall: dict[str, Any]
    questions: list[dict[str, Any]]
    python: str
    ollama_name: str
    system: str
    without_gpu: bool
    curves: bool
    fused: dict[str, Any] | None
    gguf: dict[str, Any] | None
    verification: dict[str, Any] | None

    @property
    def stored(self) -> str:
        """Return how the weights are stored, in words; empty if they are the run's own adapters."""
        written = self.fused or self.gguf
        return written["stored"] if written else ""

    @property
    def model_file(self) -> str:
        """Return the name of the model's file for llama.cpp; empty if there is none."""
        return self.gguf["model"] if self.gguf else ""

    @property
    def adapter_file(self) -> str:
        """Return the name of the adapters' file for llama.cpp; empty if there is none."""
        return self.gguf["adapters"] if self.gguf else ""

    @property
    def notes(self) -> list[str]:
        """Return what llama.cpp does otherwise than this package."""
        return self.gguf["notes"] if self.gguf else []

    def by_name(self) -> dict[str, Any]:
        """Return every fact by its name in a template."""
        return {name: getattr(self, name) for name in (*(field.name for field in fields(self)), *_DERIVED)}


_DERIVED = ("stored", "model_file", "adapter_file", "notes")


def gather_facts(
    source: ExportSource,
    to: Target,
    written: dict[str, Any] | None,
    verification: dict[str, Any] | None,
    *,
    curves: bool,
) -> ExportFacts:
    """Gather the facts about an export.

    Args:
        source: what was exported.
        to: name of the format.
        written: as the format's writer returned it.
        verification: what verifying it found; None if it was not verified.
        curves: whether a drawing of the curves stands beside.
    """
    run, spec, tokenizer, form = source.run, source.spec, source.tokenizer, FORMATS[to]
    evaluation = run.evaluation()
    for_llama_cpp = form.reader == "llama.cpp"
    return ExportFacts(
        name=run.name,
        to=to,
        format=form,
        purposes={name: each.purpose for name, each in FORMATS.items()},
        base=spec.name,
        public_base=source.public_base,
        public_base_differs=source.public_base_differs,
        base_bits=spec.bits,
        quantized_on_load=bool(spec.quantize_bits),
        base_as_stored=source.loaded_base == spec.path.resolve(),
        other_template=tokenizer.asking_template != tokenizer.own_template,
        rank=run.config().lora.rank,
        adapters=source.checkpoint,
        imported=run.environment().get("imported", {}).get("form", ""),
        recall=evaluation["recall"] if evaluation else {},
        questions=evaluation["questions"] if evaluation else [],
        python=from_home(sys.executable),
        ollama_name=run.name.lower(),
        system=run.shared_system(),
        without_gpu=not has_gpu(),
        curves=curves,
        fused=None if for_llama_cpp else written,
        gguf=written if for_llama_cpp else None,
        verification=verification,
    )
