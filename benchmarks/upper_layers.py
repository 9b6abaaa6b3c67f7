"""The gain from training only upper layers, with the layers below them computed once for each row.

    uv run python benchmarks/upper_layers.py [--num-layers 8] [--epochs 3] [--repeats 3] [--model NAME] [--json]

Trains the same rows with and without, in turn, each in a process of its own. Printed are the ratio of the times of all
steps and validations, without and with what computing the layers once took, and the peaks of MLX's arrays while
training; the losses of all steps are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from typing import Any

CHILD = "--one"


def main() -> int:
    """Train in pairs, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", nargs="+", default=["data/sample/club"])
    parser.add_argument("--num-layers", type=int, default=8, help="layers that get adapters (default: 8)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="pairs (default: 3)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(CHILD, choices=("with", "without"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(train(arguments, trunk=arguments.one == "with")))
        return 0
    pairs = []
    for number in range(arguments.repeats):
        names = ("with", "without") if number % 2 == 0 else ("without", "with")
        pairs.append({name: in_a_process(name) for name in names})
    found = {
        "steps": [pair["without"]["seconds"] / pair["with"]["seconds"] for pair in pairs],
        "all": [pair["without"]["seconds"] / (pair["with"]["seconds"] + pair["with"]["once"]) for pair in pairs],
        "peak": [pair["with"]["peak"] / pair["without"]["peak"] for pair in pairs],
        "largest difference of a loss": [
            max(abs(a - b) for a, b in zip(pair["with"]["losses"], pair["without"]["losses"], strict=True))
            for pair in pairs
        ],
    }
    if arguments.json:
        print(json.dumps({"model": arguments.model, "found": found, "pairs": pairs}, indent=2))
        return 0
    print(f"{arguments.model}, adapters on the last {arguments.num_layers} layers, {arguments.epochs} epochs, median:")
    for name, values in found.items():
        print(f"  {name:<30}{statistics.median(values):10.3g}  ({min(values):.3g} to {max(values):.3g})")
    return 0


def in_a_process(name: str) -> dict[str, Any]:
    """Return the result of one training in its own process."""
    command = [sys.executable, __file__, *sys.argv[1:], CHILD, name]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def train(arguments: argparse.Namespace, *, trunk: bool) -> dict[str, Any]:
    """Train in this process; return step and validation seconds, those of the lower layers, the peak and losses."""
    from qlora_core.config import from_flat
    from qlora_core.engine import device
    from qlora_core.jobs.planning import plan_training
    from qlora_core.training import loop

    choose = device.choose_kernels
    device.choose_kernels = lambda *given: dataclasses.replace(choose(*given), trunk=trunk)
    with tempfile.TemporaryDirectory() as runs_dir:
        settings = {
            "model": arguments.model, "data": arguments.data, "runs_dir": runs_dir, "epochs": arguments.epochs,
            "num_layers": arguments.num_layers, "samples": 0, "save_minutes": 0.0,
            "max_answer_tokens": 1,
        }  # fmt: skip
        tracker, plan = plan_training(from_flat(settings), lambda text: None)
        run = tracker.create(plan)
        with tracker.record(run) as writer:
            loop.train(writer)
        events = list(run.metrics())
    steps = [event for event in events if event["type"] == "step"]
    return {
        "seconds": sum(event["seconds"] for event in events if event["type"] in ("step", "eval")),
        "once": sum(event["seconds"] for event in events if event["type"] == "trunk"),
        "peak": max(event["peak_memory_bytes"] for event in steps),
        "losses": [event["train_loss"] for event in steps],
    }


if __name__ == "__main__":
    sys.exit(main())
