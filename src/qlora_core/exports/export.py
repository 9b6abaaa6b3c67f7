"""The export of a run: its result in one of the formats, with everything needed to use it.

`formats` says who writes what, `destination` where it may go, and `guides` holds the texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..activity import doing
from ..config import settings, to_flat
from ..errors import ConfigError, ExportError
from ..files.storage import publishing, write_json
from ..reports.charts import save_curves, thin
from ..runs.run import Run
from .card import data_facts, write_card
from .destination import METRICS_FILE, check_room, content_of, find_destination
from .facts import ExportFacts, gather_facts
from .formats import FORMATS, ExportChoices, ExportFormat, Target, check_choices
from .guides import write_guides, write_program, write_summary
from .source import ExportSource, open_source
from .verification import verify


def export_run(
    run: Run,
    out: Path,
    *,
    to: Target,
    choices: ExportChoices | None = None,
    checkpoint: str = "",
    force: bool = False,
    verified: bool = True,
) -> dict[str, Any]:
    """Write a run's result into a directory that appears all at once.

    Args:
        run: the run with trained adapters; it is only read.
        out: directory to write. An earlier export there is replaced, as long as nobody changed it.
        to: one of `FORMATS`.
        choices: what the format leaves to the user; by default the usual.
        checkpoint: `best`, `final`, or the step of a checkpoint; empty: the best, or the final ones if there was no
            validation.
        force: replace whatever is in `out`.
        verified: open it again in a fresh process, and compare it with the run's own model.

    Returns:
        `{"run", "to", "path", "bytes", "files": {name: bytes}, "fused", "gguf", "verification"}`: `fused` and `gguf`
        as those formats' writers give them, and the last as `verify` does; None where there is none.

    Raises:
        RunError: nothing was trained yet, or `out` holds something that may not be replaced.
        QLoraError: the base or the adapters are not what they were.
        StorageError: there is too little room, or nothing can be written there.
        ConfigError: a choice does not belong to the format.
        ExportError: it cannot be opened again; or it loses too much, and `strict` was chosen.
    """
    choices = choices or ExportChoices()
    check_choices(to, choices)
    if choices.strict and not verified and FORMATS[to].reader == "llama.cpp":
        raise ConfigError(
            f"--strict: what {to} loses, only the verification tells. Leave out --no-verify, or --strict."
        )
    source = open_source(run, checkpoint)
    out = find_destination(source, Path(out), force=force)
    form = FORMATS[to]
    check_room(out, wanted := form.bytes_to_write(run, choices))
    with publishing(out, wanted=wanted) as directory:
        written = form.write(source, directory, choices)
        verification = _verify(source, directory, form, written, choices) if verified else None
        facts = gather_facts(source, to, written, verification, curves=bool(save_curves(run, directory)))
        _describe(directory, source, facts)
    files = {path.name: path.stat().st_size for path in sorted(content_of(out))}
    return {
        "run": run.name,
        "to": to,
        "path": str(out),
        "bytes": sum(files.values()),
        "files": files,
        "fused": facts.fused,
        "gguf": facts.gguf,
        "verification": facts.verification,
    }


def _verify(
    source: ExportSource, directory: Path, form: ExportFormat, written: dict[str, Any] | None, choices: ExportChoices
) -> dict[str, Any]:
    """Verify an export; with `strict`, refuse one that loses too much."""
    if form.has_program:
        write_program(directory)
    files = {name: written[name] for name in ("model", "adapters")} if form.reader == "llama.cpp" and written else {}
    verification = verify(source, directory, form.reader, files, _safer(written, choices))
    if choices.strict and not verification["within"]:
        raise ExportError(f"{source.run.name}: {verification['verdict']}")
    return verification


def _safer(written: dict[str, Any] | None, choices: ExportChoices) -> str:
    """Return the flag with which an export would lose less; empty if it holds the run's own numbers, or nearly."""
    if written and "form" in written:
        return {"16": "", "8": "--bits 16"}.get(written["form"], "--bits 8")
    if choices.type.startswith("q"):
        return "--type f16" if choices.type == "q8_0" else "--type q8_0"
    return "--type f16" if written and not written["adapters"] and not choices.type else ""


def keep_result(run: Run) -> None:
    """Write a run's result where `qlora export` does by default.

    Raises:
        QLoraError: as `export_run` does.
    """
    with doing("exporting"):
        export_run(run, run.result, to="adapter", force=True, verified=False)


# What is beside the weights -------------------------------------------------------------------------------------


def _describe(directory: Path, source: ExportSource, facts: ExportFacts) -> None:
    """Write everything that stands beside the weights."""
    data = data_facts(source.run)
    write_json(directory / METRICS_FILE, _metrics(source, facts) | {"data": data})
    write_guides(directory, facts)
    write_card(directory, source, facts, data)
    write_summary(directory, source.run, source.spec, facts)


def _metrics(source: ExportSource, facts: ExportFacts) -> dict[str, Any]:
    """Return results, settings and curves, without texts of the data and paths of this machine."""
    run = source.run
    evaluation, environment, events = run.evaluation(), run.environment(), run.metrics()
    config = run.config()
    names = {each.name for each in settings() if each.group in ("lora", "train") and each.role in ("result", "length")}
    steps = [event for event in events if event["type"] == "step"]
    evals = [event for event in events if event["type"] == "eval"]
    return {
        "run": run.name,
        "exported_as": facts.to,
        "state": run.state,
        "adapters": source.checkpoint,
        "base": {key: value for key, value in environment["model"].items() if key != "path"}
        | {"repository": source.repository},
        "settings": {name: value for name, value in to_flat(config).items() if name in names},
        "summary": run.summary(),
        "recall": evaluation["recall"] if evaluation else None,
        "fused": facts.fused,
        "gguf": facts.gguf,
        "verification": facts.verification,
        "device": environment.get("device"),
        "versions": environment.get("versions"),
        "curves": {
            "train_loss": [[event["step"], event.get("train_loss")] for event in thin(steps)],
            "val_loss": [[event["step"], event.get("val_loss")] for event in evals],
        },
    }
