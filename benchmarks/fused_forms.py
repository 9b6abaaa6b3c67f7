"""Measure what each form of a fused model costs: size of the files, loss on rows of both kinds, answers, seconds.

    uv run python benchmarks/fused_forms.py RUN [--bits 16 8 6 5 4 mixed auto] [--out FILE]

RUN is a run's name under `checkpoints_qlora`, or its directory. Each form is written into a temporary directory, opened
again and compared with the base and its adapters on rows that calibrated nothing (`training.judging`). A form is made
in a process of its own, so that `peak` is its own; `processor` is the time that all cores worked, which other programs
on the machine change less than `seconds`.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qlora_core.config import RunConfig
from qlora_core.runs.plan import TrainingTracker

MB = 1e6


def main() -> None:
    """Make every form, or a single one in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--runs-dir", default=RunConfig().place.runs_dir)
    parser.add_argument("--bits", nargs="+", default=["16", "8", "6", "5", "4", "mixed", "auto"])
    parser.add_argument("--out", type=Path, help="write all numbers to this file, as JSON")
    parser.add_argument("--single", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.single:
        print(json.dumps(measured(arguments.run, arguments.runs_dir, arguments.single)))
        return
    found = []
    print(
        "| bits | stored as | files | training rows: loss, change | validation rows: loss, change | KL | same choice | "
        "seconds | processor | peak |\n|---|---|---:|---|---|---:|---:|---:|---:|---:|"
    )
    for bits in arguments.bits:
        command = [sys.executable, __file__, arguments.run, "--runs-dir", arguments.runs_dir, "--single", bits]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found.append(json.loads(done.stdout))
        print(line(found[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measured(name: str, runs_dir: str, bits: str) -> dict[str, Any]:
    """Write the run's fused model in one form, and return what was measured."""
    from qlora_core.training.fuse import fuse_run

    run = TrainingTracker(runs_dir).find(name)
    with tempfile.TemporaryDirectory() as directory:
        began, worked = time.monotonic(), time.process_time()
        made = fuse_run(run, Path(directory), bits=bits)
        size = sum(path.stat().st_size for path in Path(directory).glob("*.safetensors"))
    return {
        "asked": bits,
        **made,
        "bytes": size,
        "seconds": time.monotonic() - began,
        "processor": time.process_time() - worked,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def line(form: dict[str, Any]) -> str:
    """Return a row of the table."""
    kinds = [_change(form.get(kind)) for kind in ("training", "validation")]
    cells = [
        form["asked"],
        form["stored"],
        f"{form['bytes'] / MB:.1f} MB",
        *kinds,
        f"{form['kl']:.4f}",
        f"{form['same_choice']:.1%}",
        f"{form['seconds']:.0f}",
        f"{form['processor']:.0f}",
        f"{form['peak'] / MB:.0f} MB",
    ]
    return f"| {' | '.join(cells)} |"


def _change(part: dict[str, Any] | None) -> str:
    if part is None:
        return "none"
    low, high = part["interval"]
    return f"{part['fused_loss']:.4f}, {part['lost']:+.4f} ({low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    main()
