"""The model card of an export, as the hub shows it: what it is, how it is used, what it was trained on, its limits.

It stands in `README.md` and is true wherever the files are: it names no path of this machine and quotes no row. What it
says about the data is also kept in `metrics.json`, where `push` reads it. Knows values and words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from ..data import REPORT_FILE, DataReport
from ..evaluation.best_choice import kept_sentence
from ..files.untrusted_json import TABLE_BYTES, read_object
from ..reports.plain_text import share
from ..runs.run import Run
from .facts import ExportFacts
from .formats import ExportPlace
from .guides import fill, printable
from .licences import LICENCES, for_hub, licence_of, notice
from .source import ExportSource

CARD, NOTICE = "README.md", "NOTICE"
MOST_SOURCES = 20  # files that the card lists
FULL_BITS = 16  # of a weight that was not quantised
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_LIBRARIES = {"program": "mlx", "peft": "peft", "llama.cpp": "gguf"}
"""The library that reads an export, as the hub calls it, by the format's reader."""


# The data -------------------------------------------------------------------------------------------------------


def data_facts(run: Run) -> dict[str, Any] | None:
    """Return what the run's data report says that may leave this machine: names and counts, no texts and no paths.

    Returns:
        `sources`: `{file name: rows}` of the first `MOST_SOURCES`, and `other_sources`, how many more; `datasets` of
        the hub; `train`, `validation`: rows; `left_out`: rows that were read and are not trained; `personal_data`:
        `{kind: rows}`, counted among the rows that the report lists, and `personal_rows`, how many there are in all.
        None if the report is missing or damaged, or the adapters were trained elsewhere.
    """
    if "imported" in run.environment():  # nobody here knows what they were trained on
        return None
    try:
        report = DataReport.from_dict(read_object(run.path / "data" / REPORT_FILE, TABLE_BYTES))
        return _facts_of(report)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _facts_of(report: DataReport) -> dict[str, Any]:
    rows: Counter[str] = Counter()
    for name, (count, _) in report.by_source.items():
        rows[_file_name(name)] += int(count)
    kinds = Counter(kind for found in report.personal_data for kind in found.reason.split(", "))
    left_out = (
        report.duplicates + report.near_duplicates_dropped + report.several_answers_dropped
        + report.left_out_as_copies + report.rejected.count + report.marked.count + report.test_rows
    )  # fmt: skip
    return {
        "sources": dict(rows.most_common(MOST_SOURCES)),
        "other_sources": max(0, len(rows) - MOST_SOURCES),
        "datasets": [str(name).removeprefix("hf:") for name in report.sources if str(name).startswith("hf:")],
        "train": int(report.train),
        "validation": int(report.validation),
        "left_out": int(left_out),
        "personal_data": dict(kinds.most_common()),
        "personal_rows": int(report.personal_data.count),
    }


def _file_name(name: str) -> str:
    """Return the last part of a path, printable and short."""
    return printable(PurePath(str(name).replace("\\", "/")).name or str(name), 80)


# The card -------------------------------------------------------------------------------------------------------


def write_card(directory: Path, source: ExportSource, facts: ExportFacts, data: dict[str, Any] | None) -> None:
    """Write `README.md`, and `NOTICE` where the base's licence is known.

    Args:
        directory: the export, with its weights.
        source: what was exported.
        facts: what its texts tell.
        data: as `data_facts` returns it.
    """
    form, base, repository = facts.format, source.spec.name, source.repository
    licence = licence_of(source.spec.licence, repository)
    files = frozenset(path.name for path in directory.iterdir())
    place = ExportPlace(source.run.name, Path(), repository or "BASE", files)
    known = LICENCES.get(licence)
    text = fill(
        "README.md.jinja",
        facts.by_name(),
        metadata=_metadata(source, facts, licence),
        repository=repository,
        use=form.use(place),
        use_language="python" if form.reader == "peft" else "bash",
        beside=_beside(facts),
        data=data,
        settings=_settings(source),
        losses=_losses(source.run),
        recalls=_recalls(facts.recall),
        licence=licence,
        licence_url=known.url if known else "",
        asks=known.asks if known else "",
    )
    (directory / CARD).write_text(text, encoding="utf-8", newline="\n")
    if licence:
        (directory / NOTICE).write_text(
            notice(printable(base, 200), repository, printable(licence, 200)), encoding="utf-8", newline="\n"
        )


def _metadata(source: ExportSource, facts: ExportFacts, licence: str) -> str:
    """Return the front matter in YAML, as https://huggingface.co/docs/hub/model-cards describes it."""
    from huggingface_hub import ModelCardData  # only here: it takes a while to import

    form, language = facts.format, source.run.config().data.language
    library = _LIBRARIES[form.reader]
    bits = source.spec.bits if _beside(facts) else _stored_bits(facts)
    tags = [library, "qlora", source.run.config().lora.adapter]
    tags += ["llama.cpp"] if form.reader == "llama.cpp" else []
    tags += [f"{bits}-bit"] if isinstance(bits, int) and bits < FULL_BITS else []
    return ModelCardData(
        language=language if _LANGUAGE.fullmatch(language) else None,
        **for_hub(licence, source.repository),
        base_model=source.repository or None,
        base_model_relation=_relation(facts) if source.repository else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=tags,
        ignore_metadata_errors=True,
    ).to_yaml()


def _beside(facts: ExportFacts) -> bool:
    """Return whether the adapters stand beside a base rather than being merged into it."""
    return facts.format.needs_base or bool(facts.adapter_file)


def _stored_bits(facts: ExportFacts) -> int | float | None:
    """Return the bits of a merged model's weights, a mean if they differ; None if they are not quantised."""
    if facts.fused:
        return facts.fused["bits"]
    match = re.match(r"I?Q(\d)", facts.stored)
    return int(match[1]) if match else None


def _relation(facts: ExportFacts) -> str:
    """Return how the export descends from its base, in the hub's words.

    The hub lists a model of fewer bits among the base's quantised ones even if it was also tuned.
    """
    if _beside(facts):
        return "adapter"
    return "quantized" if (_stored_bits(facts) or FULL_BITS) < FULL_BITS else "finetune"


def _settings(source: ExportSource) -> dict[str, str]:
    config, spec = source.run.config(), source.spec
    lora, train = config.lora, config.train
    rows = train.batch_size * train.grad_accumulation_steps
    return {
        "Base": f"{spec.parameters / 1e6:,.1f} M parameters, "
        + (f"{spec.bits} bits" if spec.bits else "not quantised")
        + (" (quantised while loading)" if spec.quantize_bits else ""),
        "Adapters": f"{'DoRA' if lora.adapter == 'dora' else 'LoRA'}, rank {lora.rank}, alpha {lora.alpha:g}, dropout "
        f"{lora.dropout:g}, on {len(spec.adapted_layers(lora))} of {spec.num_layers} layers",
        "Training": f"learning rate {train.learning_rate:g} ({train.schedule}), {rows} rows a step, "
        f"at most {config.data.max_seq_length} tokens a row, seed {train.seed}",
    }


def _losses(run: Run) -> dict[str, str]:
    """Return losses in nats a token: validation at its best, training at the end."""
    found, numbers = {}, run.summary() or {}
    if (best := numbers.get("best_val_loss")) is not None:
        found["Validation loss, at its best"] = f"{best:.4f} (step {numbers.get('best_step')})"
    if (before := numbers.get("val_loss_before")) is not None:
        found["Validation loss, before training"] = f"{before:.4f}"
    if sure := kept_sentence(run.evaluation()):
        found["How sure the best is"] = str(sure)
    losses = [event["train_loss"] for event in run.metrics() if event["type"] == "step" and event.get("train_loss")]
    if losses:
        found["Training loss, last step"] = f"{losses[-1]:.4f}"
    return found


def _recalls(recall: Mapping[str, Any]) -> dict[str, str]:
    """Return how many answers to the questions of the fact sheet were right, before and after training."""
    kinds = {"trained": "Right answers, phrasings that were trained", "held_out": "Right answers, other phrasings"}
    return {
        words: f"{count['tuned']} of {count['questions']} ({share(count['tuned'], count['questions'])}); the base "
        f"model {count['base']}"
        for kind, words in kinds.items()
        if (count := recall.get(kind))
    }
