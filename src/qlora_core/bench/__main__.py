"""`python -m qlora_core.bench CONTESTANT [flags]`: one trainer, measured in this process; its result as JSON.

`prepare` makes what trainers need of `--model` and tells where it lies, `prepare-dense` what PyTorch needs as well;
`evaluate` tells the validation loss of every adapter file in `--save-to`. `qlora bench` starts all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MemoryShortError, QLoraError, brief
from ..machine.denormals import flush_denormals
from ..machine.memory import peak_process_bytes
from . import works
from .catalogue import CONTESTANTS
from .job import Job, Stopwatch, add_job_arguments
from .machine import versions
from .mlxlm import with_pad_target
from .prepare import prepare, prepared
from .works import Rows

OUT_OF_MEMORY = ("out of memory", "unable to allocate", "can't allocate", "cannot allocate", "[malloc", "bad_alloc")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the requested job; return 1 if it failed, with the reason in the result."""
    parser = argparse.ArgumentParser(
        prog="python -m qlora_core.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contestant", choices=(*CONTESTANTS, "prepare", "prepare-dense", "evaluate"))
    add_job_arguments(parser)
    values = vars(parser.parse_args(argv))
    job = Job(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    with contextlib.redirect_stdout(sys.stderr):  # trainers print their progress
        result = measured(job)
    text = json.dumps(result, indent=2)
    if job.out:
        Path(job.out).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text + "\n")
    return 1 if "error" in result else 0


def measured(job: Job) -> dict[str, Any]:
    """Return a job's result; on failure it holds an `error` and `out_of_memory`."""
    flush_denormals()  # for every contestant, before its library starts threads
    try:
        with tempfile.TemporaryDirectory() as directory:
            return _done(job, Path(directory))
    except QLoraError as error:
        return {"error": brief(error), "out_of_memory": isinstance(error, MemoryShortError)}
    except Exception as error:  # of any of the libraries
        traceback.print_exc()
        return {"error": brief(error), "out_of_memory": is_out_of_memory(error)}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a library's failure means that memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


def _done(job: Job, directory: Path) -> dict[str, Any]:
    if job.contestant in ("prepare", "prepare-dense"):
        return dict(prepare(job))
    job, rows = complete(job, directory)
    if job.contestant == "evaluate":
        from .ours import evaluate

        return {"evaluations": evaluate(job, rows, Path(job.save_to))}
    if job.save_to:
        Path(job.save_to).mkdir(parents=True, exist_ok=True)
    stopwatch = Stopwatch(rows.train, job)
    trainer = importlib.import_module(f".{CONTESTANTS[job.contestant].module}", __package__)
    told = trainer.train(job, rows, stopwatch)
    return {
        "contestant": job.contestant,
        "batch_size": job.batch_size,
        **stopwatch.measures(),
        "process_peak_bytes": peak_process_bytes(),
        "versions": versions(),
        "rows_digest": rows.digest,
        **told,
        "steps": stopwatch.steps,
    }


def complete(job: Job, directory: Path) -> tuple[Job, Rows]:
    """Return the job with everything missing filled in, and its rows; `qlora bench` leaves nothing to fill in."""
    for_torch = job.contestant.startswith("peft")
    if not (job.rows and job.adapters and (job.dense or not for_torch)):
        how = "prepare-dense" if for_torch and not job.dense else "prepare"
        job = dataclasses.replace(job, **prepared(dataclasses.replace(job, contestant=how)))
        spec = works.describe_model(job.model, job.quantize)
    if not job.adapters:
        path = works.write_adapters(spec, directory / works.ADAPTERS, rank=job.rank, alpha=job.alpha, seed=job.seed)
        job = dataclasses.replace(job, adapters=str(path))
    if job.rows:
        rows = Rows.load(Path(job.rows))
    else:
        rows = works.make_rows(job.work, job.model, spec.config["vocab_size"], job.seed, job.data)
    if job.pad_target:
        rows = Rows(tuple(map(with_pad_target, rows.train)), rows.validation)
    return job, rows


if __name__ == "__main__":
    sys.exit(main())
