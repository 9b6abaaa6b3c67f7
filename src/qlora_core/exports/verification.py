"""Verification of an export: it is opened again in a fresh process and compared with the run.

Knows what is asked and how the reply reads; `training.verifying`, which loads models, runs as a program of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..activity import doing, run_program
from ..errors import ExportError
from ..files.storage import write_json
from ..files.untrusted_json import read_object
from ..reports.in_language import share, size
from ..translations import Figure, say
from .source import ExportSource

VERIFICATION_FILE = "verification.json"


def verified(directory: Path) -> dict[str, Any] | None:
    """Return what an export's verification found; None if it was not verified, or its record is damaged."""
    try:
        found = read_object(directory / VERIFICATION_FILE)
        verdict(found)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found


def verify(
    source: ExportSource, directory: Path, reader: str, files: dict[str, str], safer: str = ""
) -> dict[str, Any]:
    """Open an export with its format's own reader, and compare it with base and adapters.

    Args:
        source: what was exported.
        directory: the export; gets `verification.json`.
        reader: `program` (mlx-lm, through the export's own `inference.py`), `peft` or `llama.cpp`.
        files: for llama.cpp: the `model` and the `adapters` that it loads.
        safer: the choice that would lose less, as a flag; empty: there is none.

    Returns:
        `opened_with`: the reader, in words; `reader`: `own` where llama.cpp is not installed, so that this package
        reads its file; `rows`, `tokens`, `tuned_loss`, `fused_loss` (the export's), `lost`, `interval`, `kl` and
        `same_choice` as in `judging.Comparison.as_dict`; of `questions`, how many have the `same_answers`, and for
        how many the `same_ids` are asked; `within`: it lost at most `judging.MOST_LOST`; `sure`: so would nearly all
        choices of rows, for the interval ends there; and `verdict`, a sentence. If there was too little memory, or no
        row, `not_verified` says so and nothing was measured.

    Raises:
        ExportError: it cannot be opened again.
    """
    with doing("verifying"), tempfile.TemporaryDirectory() as name:
        asked, replied = Path(name) / "asked.json", Path(name) / "replied.json"
        about = {"run": source.run.path, "tuned": source.adapters, "directory": directory, "reader": reader}
        about |= {"base": source.loaded_base, "model": "", "adapters": "", **files}
        asked.write_text(json.dumps({key: str(value) for key, value in about.items()}), encoding="utf-8")
        command = [sys.executable, "-m", "qlora_core.training.verifying", str(asked), str(replied)]
        done = run_program(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        if not replied.is_file():
            last = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
            raise ExportError(f"{source.run.name}: the export cannot be opened again: {last}")
        result = json.loads(replied.read_text(encoding="utf-8"))
    if problem := result.get("problem"):
        raise ExportError(f"{source.run.name}: the export cannot be opened again: {problem}")
    result = {"not_verified": _why_not(result), "opened_with": _reader(result), "safer": safer} | result
    result["verdict"] = verdict(result)
    write_json(directory / VERIFICATION_FILE, result)
    return result


def verdict(found: dict[str, Any]) -> str:
    """Return a verification's result in a sentence or two, in the reader's language."""
    if found["not_verified"]:
        return say("Not verified: {why}.", why=_why_not(found))
    numbers = {
        "reader": _reader(found),
        "loss": Figure(found["fused_loss"], ".4f"),
        "tuned": Figure(found["tuned_loss"], ".4f"),
        "lost": Figure(found["lost"], "+.4f"),
        "tokens": found["tokens"],
        "share": share(round(1000 * found["same_choice"]), 1000),
    }
    sentences = [
        say(
            "Opened again with {reader}: the loss is {loss}, with base and adapters {tuned} ({lost} nats a token, on "
            "{tokens} tokens); {share} of the likeliest tokens are the same.",
            **numbers,
        )
    ]
    if asked := found["questions"]:
        sentences.append(say("{same} of {asked} answers are the run's own.", same=found["same_answers"], asked=asked))
    if others := asked - found["same_ids"]:
        sentences.append(say("{count} of the questions become other tokens.", count=others))
    if found["within"] and not found["interval"]:  # few rows have none
        sentences.append(say("{rows} rows are too few to say how sure that is.", rows=found["rows"]))
    elif found["within"] and not found.get("sure", True):
        most = Figure(found["interval"][1], "+.4f")
        sentences.append(say("Judged on {rows} rows alone, it could be up to {most}.", rows=found["rows"], most=most))
        sentences += [say("{choice} is safer.", choice=found["safer"])] if found["safer"] else []
    return " ".join(sentences)


def _why_not(found: dict[str, Any]) -> str:
    """Return why nothing was measured; empty if something was. Records of earlier versions have words alone."""
    if "why" not in found:
        return found["not_verified"]
    if found["why"] == "memory":
        return say(
            "{needed} of memory wanted, {free} available", needed=size(found["needed"]), free=size(found["free"])
        )
    return say("the run has no rows to compare them on") if found["why"] else ""


def _reader(found: dict[str, Any]) -> str:
    """Return the reader in words. Records of earlier versions have nothing else."""
    if "why" not in found or found["why"]:
        return found.get("opened_with", "")
    version = found["version"]
    if found["reader"] == "own":
        return say("this program's own reader, not llama.cpp itself")
    if found["reader"] == "peft":
        return say("this program's own reader of PEFT's files, and transformers {version}", version=version)
    return f"llama.cpp ({found['library']} {version})" if found["reader"] == "llama.cpp" else f"mlx-lm {version}"
