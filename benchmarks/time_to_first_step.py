"""The time from the command to the first training step, by phase.

    uv run python benchmarks/time_to_first_step.py [--model NAME] [--data PATH …] [--repeats 5] [--json]

Starts `python apps/train.py` in a process of its own with an empty directory for its run, as often as asked, and ends
it after its second step. Lines that it prints and events of its `metrics.jsonl` tell when each phase ended; printed are
the median and the range. One more start, which is not counted, fills the caches of the system and of this project. The
second step is timed as well, since the base answers the sample questions before it. What `uv run` takes before Python
begins is timed by itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parents[1] / "apps" / "train.py"
HEADER, PLANNED = "QLoRA Notebook", "── Training"  # the first line that says something, and the last before it loads
PHASES = ("imports", "data, plan", "loading", "before the step", "first step", "in all", "second step after")


def main() -> int:
    """Start it again and again, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", nargs="+", default=["data/sample/club"])
    parser.add_argument("--repeats", type=int, default=5, help="starts that count (default: 5)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    flags = ["--model", arguments.model, "--data", *arguments.data]
    starts = [dict(zip(PHASES, start(flags), strict=True)) for _ in range(arguments.repeats + 1)][1:]
    found = {phase: [taken[phase] for taken in starts] for phase in PHASES}
    if shutil.which("uv"):
        found["uv run"] = [uv_run() for _ in starts]
    if arguments.json:
        print(json.dumps({"model": arguments.model, "seconds": found}, indent=2))
        return 0
    print(f"seconds of {arguments.repeats} starts with {arguments.model}: median (range)")
    for phase, seconds in found.items():
        print(f"  {phase:<18}{statistics.median(seconds):6.2f}  ({min(seconds):.2f} to {max(seconds):.2f})")
    return 0


def start(flags: list[str]) -> list[float]:
    """Train for two steps and return the seconds of each phase."""
    with tempfile.TemporaryDirectory() as runs_dir:
        command, begun = [sys.executable, str(TRAIN), "--runs-dir", runs_dir, *flags], time.time()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            try:
                printed = [when_printed(child, text) for text in (HEADER, PLANNED)]
                first, second = steps(child, Path(runs_dir))
            finally:
                child.kill()
        events = read_events(Path(runs_dir))
    told = {event["type"]: event["time"] for event in reversed(events)}  # the first of each type
    moments = [begun, *printed, told["start"], first["time"] - first["seconds"], first["time"]]
    phases = [after - before for before, after in itertools.pairwise(moments)]
    return [*phases, first["time"] - begun, second["time"] - first["time"]]


def when_printed(child: subprocess.Popen[str], text: str) -> float:
    """Return when the child printed a line that contains `text`."""
    for line in child.stdout:
        if text in line:
            return time.time()
    raise SystemExit(f"it ended before it printed {text!r}")


def steps(child: subprocess.Popen[str], runs_dir: Path) -> list[dict[str, Any]]:
    """Return the events of the first two steps once there are two."""
    while child.poll() is None:
        found = [event for event in read_events(runs_dir) if event["type"] == "step"]
        if len(found) > 1:
            return found[:2]
        time.sleep(0.1)
    raise SystemExit("it ended before its second step")


def read_events(runs_dir: Path) -> list[dict[str, Any]]:
    """Return the events that the only run has recorded so far."""
    from qlora_core.runs.metrics import read_events

    return [event for path in runs_dir.glob("*/metrics.jsonl") for event in read_events(path)]


def uv_run() -> float:
    """Return the seconds that `uv run` takes before it starts a program."""
    begun = time.perf_counter()
    subprocess.run(["uv", "run", "true"], check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
