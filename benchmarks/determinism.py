"""A check that training is equal to the bit when repeated and when resumed, and the size of any difference.

    uv run python benchmarks/determinism.py [--model NAME] [--data PATH …] [--steps 20] [--cut N]
        [--dropout 0.1] [--json]

Trains the same run twice from the start, and once cut in the middle and resumed, each in a process of its own, and
compares losses, adapters and optimizer state. On a CPU all of them are expected to be equal. On a GPU some kernels add
in an order that is not fixed: if the two uninterrupted runs differ, their difference is the noise that a resumed run
may show as well, and is printed beside it. Exit status 1 if a resumed run differs by more than two runs do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

FILES = ("adapters.safetensors", "optimizer.safetensors")


def main() -> int:
    """Train three times, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", nargs="+", default=["data/sample/club"])
    parser.add_argument("--steps", type=int, default=20, help="steps of each run (default: 20)")
    parser.add_argument("--cut", type=int, default=0, help="step after which the third is cut (default: half of them)")
    parser.add_argument("--dropout", type=float, default=0.1, help="0: rows share a beginning (default: 0.1)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.cut = arguments.cut or arguments.steps // 2
    if arguments.train:
        return train(arguments)
    with tempfile.TemporaryDirectory() as directory:
        runs = {name: Path(directory) / name for name in ("first", "again", "cut")}
        for name, path in runs.items():
            for part in ("to the cut", "to the end") if name == "cut" else ("to the end",):
                command = [sys.executable, __file__, *sys.argv[1:], "--train", json.dumps([str(path), part])]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        device = json.loads((runs["first"] / "environment.json").read_text(encoding="utf-8"))["device"]
        result = {
            "device": device,
            "model": arguments.model,
            "steps": arguments.steps,
            "run again": compare(runs["first"], runs["again"], arguments.steps),
            f"cut after step {arguments.cut}": compare(runs["first"], runs["cut"], arguments.steps),
        }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{arguments.steps} steps of {arguments.model} on {device}")
        for name in list(result)[3:]:
            print(f"  {name:<24} {in_words(result[name])}")
    noise, cut = list(result.values())[3:]
    return int(cut["adapters"] > 2 * noise["adapters"])


def train(arguments: argparse.Namespace) -> int:
    """Train one run up to its cut or its end, in this process."""
    from qlora_core.jobs.planning import plan_training
    from qlora_core.runs.plan import resolve_config
    from qlora_core.training import loop

    place, part = json.loads(arguments.train)
    settings = {"max_steps": arguments.steps, "epochs": 1000, "batch_size": 2, "grad_accumulation_steps": 2}
    settings |= {"dropout": arguments.dropout, "samples": 0, "max_answer_tokens": 1}
    settings |= {"eval_every": max(1, arguments.steps // 3)}
    given = {"model": arguments.model, "data": arguments.data, "runs_dir": str(Path(place).parent), **settings}
    tracker, plan = plan_training(resolve_config({**given, "run": Path(place).name}), say=lambda text: None)
    with tracker.record(plan.run) as writer:
        run = tracker.create(plan)

        def stop_there(event: dict) -> None:
            if part == "to the cut" and event["type"] == "step" and event["step"] == arguments.cut:
                run.request("pause")

        writer.listeners.append(stop_there)
        loop.train(writer)
    return 0


def compare(one: Path, other: Path, steps: int) -> dict[str, float | int | bool]:
    """Compare two runs: equal bytes, the first loss that differs, and the distance at the end."""
    from safetensors.numpy import load_file

    from qlora_core.runs.metrics import read_events

    losses = [
        [event["train_loss"] for event in read_events(path / "metrics.jsonl") if event["type"] == "step"]
        for path in (one, other)
    ]
    checkpoints = [path / "checkpoints" / f"{steps:06d}" for path in (one, other)]
    equal = all(len({hashlib.sha256((c / name).read_bytes()).digest() for c in checkpoints}) == 1 for name in FILES)
    ends = [load_file(checkpoint / FILES[0]) for checkpoint in checkpoints]
    gaps = [float(np.linalg.norm(ends[0][name] - ends[1][name])) for name in ends[0]]
    norm = float(np.sqrt(sum(np.linalg.norm(value) ** 2 for value in ends[0].values())))
    differing = [step for step, (a, b) in enumerate(zip(*losses, strict=True), 1) if a != b]
    return {
        "equal": equal and not differing,
        "first_step_that_differs": differing[0] if differing else 0,
        "loss": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        "adapters": float(np.sqrt(sum(gap**2 for gap in gaps))) / norm,
    }


def in_words(found: dict[str, float | int | bool]) -> str:
    """Return a comparison in one line of words."""
    if found["equal"]:
        return "equal to the bit: losses, adapters, optimizer state"
    step = found["first_step_that_differs"]
    return (
        f"losses differ from step {step}, by {found['loss']:.2g} at most; adapters by {found['adapters']:.2g} of their "
        "norm in the end"
    )


if __name__ == "__main__":
    sys.exit(main())
