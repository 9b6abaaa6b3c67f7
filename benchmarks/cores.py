"""Step times of the default job on a Linux CPU: the cost of denormal numbers, of one process and of a busy core.

    uv run python benchmarks/cores.py [--batch-size 4] [--steps 12] [--repeats 2]

Each way is measured in a process of its own, in turn: `before` (denormal numbers as they are, all streams in one
process), `flushed` (denormal numbers are zero), `workers` (a process for each stream as well: the product), `busy`
(the same beside a program that keeps one core busy). Cores busy are those of the whole machine, so nothing else should
run.
"""

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

WAYS = ("before", "flushed", "workers", "busy")


def main() -> None:
    """Run every measurement, or a single one in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["data/sample/club"])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12, help="timed steps, after one that is not")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measured(arguments)))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            found[way].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    assert len({run["loss"] for runs in found.values() for run in runs}) <= 2  # with and without denormal numbers
    print("| way | tokens/s | of `workers` | cores busy | peak of all processes |\n|---|---:|---:|---:|---:|")
    usual = mean(found["workers"], "tokens_per_second")
    for way, runs in found.items():
        speed = mean(runs, "tokens_per_second")
        print(
            f"| `{way}` | {speed:.1f} | {speed / usual:.2f} | {mean(runs, 'cores'):.2f} | {mean(runs, 'gb'):.2f} GB |"
        )


def mean(runs: Sequence[dict[str, Any]], name: str) -> float:
    """Return the mean of one figure."""
    return sum(run[name] for run in runs) / len(runs)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train some steps in this process in one of the ways."""
    from qlora_core.machine import denormals

    if arguments.way == "before":
        denormals.flush_denormals = lambda on=True: False
    from qlora_core.config import from_flat
    from qlora_core.engine import device
    from qlora_core.jobs.planning import plan_training
    from qlora_core.machine.memory import MemoryMonitor
    from qlora_core.training import loop, share_workers, steps
    from qlora_core.training.session import open_session

    if arguments.way in ("before", "flushed"):
        share_workers.WORTHWHILE = math.inf
    with tempfile.TemporaryDirectory() as directory:
        settings = {"data": arguments.data, "runs_dir": directory, "batch_size": arguments.batch_size, "epochs": 1000}
        tracker, plan = plan_training(from_flat(settings), lambda text: None)
        with tracker.record(tracker.create(plan)) as writer:
            session = open_session(writer, MemoryMonitor(counters=device.memory_counters))
            loop.start_workers(session, writer)
            steps.prepare_to_train(session)
            if session.workers:
                session.workers.are_ready(60)
            groups = session.batcher.steps(0)
            groups = (groups * (1 + (arguments.steps + 1) // len(groups)))[: arguments.steps + 1]
            steps.train_step(session, groups[0])
            with beside(arguments.way == "busy"):
                began, before, tokens = time.perf_counter(), psutil.cpu_times(), 0
                for group in groups[1:]:
                    session.progress.step += 1
                    step = steps.train_step(session, group)
                    tokens += step.tokens
                seconds, after = time.perf_counter() - began, psutil.cpu_times()
            peak = session.monitor.sample().process_peak
            loop.end_workers(session)
    used = _computed(after) - _computed(before)
    return {"tokens_per_second": tokens / seconds, "cores": used / seconds, "gb": peak / 1e9, "loss": step.loss}


def _computed(times: Any) -> float:
    """Return the seconds that cores were busy, counting every program at any priority."""
    return sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)


@contextlib.contextmanager
def beside(busy: bool) -> Iterator[None]:
    """Keep one core busy inside the block if asked to."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if other:
            other.kill()
            other.wait()


if __name__ == "__main__":
    main()
