"""The cost of making a clean run crash-safe: the same steps with and without everything that guards them.

    uv run python benchmarks/cost_of_safety.py [--model NAME] [--data PATH …] [--steps 10] [--rounds 4] [--json]

One process, one loaded model, rounds of steps in turn: bare steps (forward, backward, update), and the trainer's own
with default settings, which look for numbers that are not finite, sample the memory, ask the guards, record each step
and keep the status. What both share is the same code, so the ratio is the cost of the rest; the least of the rounds
counts, since other programs only ever add. On a busy machine the ratio is noise: the two parts are timed by themselves
as well. A checkpoint (written, hashed, flushed to the disk) is timed by itself and counted once in five minutes, which
is how often one is written at least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time


def main() -> int:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", nargs="+", default=["data/sample/club"])
    parser.add_argument("--steps", type=int, default=10, help="steps of a round (default: 10)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each kind, in turn (default: 4)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"{arguments.rounds} rounds of {arguments.steps} steps of {arguments.model} on {result['device']}")
    bare, looking, finite, saving = (1000 * result[name] for name in ("bare", "looking", "finite", "checkpoint"))
    print(f"  a bare step         {bare:10.2f} ms")
    print(f"  a guarded step      {1000 * result['guarded']:10.2f} ms  {100 * (result['ratio'] - 1):+.2f}%")
    print(f"  between two steps   {looking:10.2f} ms  {100 * looking / bare:+.2f}%")
    print(f"  is all finite?      {finite:10.2f} ms  {100 * finite / bare:+.2f}%")
    print(f"  a checkpoint        {saving:10.2f} ms  {saving / 3000:+.3f}% of five minutes")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, float | str]:
    """Return the seconds of a step with and without guards, of the guards alone, and of a checkpoint."""
    from qlora_core.config import from_flat
    from qlora_core.engine import device
    from qlora_core.jobs.planning import plan_training
    from qlora_core.machine.memory import MemoryMonitor
    from qlora_core.training import saving, session, steps

    with tempfile.TemporaryDirectory() as directory:
        given = {"model": arguments.model, "data": arguments.data, "runs_dir": directory, "epochs": 1000}
        tracker, plan = plan_training(from_flat(given), lambda text: None)
        with tracker.record(tracker.create(plan)) as writer:
            opened = session.open_session(writer, MemoryMonitor(counters=device.memory_counters))
            writer.set_status("running")
            steps.prepare_to_train(opened)
            groups = opened.batcher.steps(0)[: arguments.steps]
            bare, guarded = Bare(opened), Guarded(opened, writer)
            for group in groups[:3]:  # warm up
                bare.step(group)
                guarded.step(group)
            times: dict[str, list[float]] = {"bare": [], "guarded": []}
            for number in range(arguments.rounds):
                kinds = [("bare", bare), ("guarded", guarded)]
                for name, kind in kinds if number % 2 == 0 else reversed(kinds):
                    times[name].append(seconds(lambda kind=kind: [kind.step(group) for group in groups]) / len(groups))
            last = guarded.last
            looking = seconds(lambda: [guarded.look(groups[0], last) for _ in range(200)]) / 200
            state = opened.adapters.join(opened.model.trainable_parameters()), opened.optimizer.state
            finite = seconds(lambda: [steps.all_finite(*state) for _ in range(20)]) / 20
            saved = [seconds(lambda: saving.save_now(opened, writer)) for _ in range(5)]
    found = {name: min(values) for name, values in times.items()}
    return {
        "device": device.describe_device(),
        **found,
        "ratio": found["guarded"] / found["bare"],
        "looking": looking,
        "finite": finite,
        "checkpoint": statistics.median(saved),
    }


class Bare:
    """Training steps without any protection."""

    def __init__(self, session) -> None:
        self.session = session

    def step(self, group) -> None:
        """Run forward, backward and update; evaluate the update without looking at it."""
        from qlora_core.engine.device import mx
        from qlora_core.training import steps

        real, always = steps.all_finite, mx.array(True)
        steps.all_finite = lambda *trees: always
        try:
            steps.train_step(self.session, group)
        finally:
            steps.all_finite = real
        self.session.progress.step += 1


class Guarded:
    """Training steps as the trainer makes them."""

    def __init__(self, session, writer) -> None:
        from qlora_core.training.interruption import Interruption

        self.session, self.writer = session, writer
        self.interruption = Interruption(writer.run)
        self.last = None

    def step(self, group) -> None:
        """Run a step and everything that is done between two steps."""
        from qlora_core.training.steps import timed_step

        self.last = timed_step(self.session, group)
        self.look(group, self.last)

    def look(self, group, made) -> None:
        """Do what is done between two steps."""
        from qlora_core.training.saving import is_save_due
        from qlora_core.training.steps import step_numbers
        from qlora_core.training.watching import watch_memory, watch_numbers

        step, memory, taken = made
        self.writer.log("step", epoch=1, **step_numbers(self.session, step, memory, taken))
        self.writer.beat(step=self.session.progress.step, epoch=1)
        watch_numbers(self.session, self.writer, group, step)
        watch_memory(self.session, self.writer, self.session.monitor.sample())
        is_save_due(self.session)
        assert not self.interruption.asked


def seconds(act) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
