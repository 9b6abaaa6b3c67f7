"""Training speed on the same rows: this package, and mlx-lm's own LoRA trainer.

    uv run python benchmarks/tokens_per_second.py [--steps 6] [--model NAME] [--data PATH …]

Every variant runs in a process of its own, trains the same adapters on the same encoded rows, four a step, and counts
real tokens, never padding; its first step, which compiles and warms up, is not counted. On Linux without a GPU mlx-lm
is measured twice: with the reference BLAS that comes with MLX, and with the optimised one that this package loads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

BATCH = 4
VARIANTS = {
    "mlx-lm": "mlx-lm's trainer as installed",
    "mlx-lm-blas": "mlx-lm's trainer with this package's BLAS",
    "qlora": "this package",
}


def main() -> int:
    """Run every variant, or one of them, and print tokens/s and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of this package (default: 6)")
    parser.add_argument("--peer-steps", type=int, default=1, help="timed steps of mlx-lm (default: 1)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", nargs="+", default=["data/sample/club"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments)))
        return 0
    results = {name: run_variant(name) for name in _variants()}
    if arguments.json:
        print(json.dumps(results, indent=2))
        return 0
    base = results["mlx-lm"].get("tokens_per_second")
    for name, result in results.items():
        rate = result.get("tokens_per_second")
        ratio = f"{rate / base:8.1f} ×" if rate and base else ""
        print(f"{VARIANTS[name]:<46}", f"{rate:8.1f} tokens/s {ratio}" if rate else f"failed: {result['error']}")
    return 0


def _variants() -> list[str]:
    from qlora_core.bases import has_gpu

    return [name for name in VARIANTS if name != "mlx-lm-blas" or not has_gpu()]


def run_variant(name: str) -> dict[str, float | str]:
    """Measure one variant in a fresh process, with this one's arguments."""
    command = [sys.executable, __file__, *sys.argv[1:], "--variant", name]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        return {"error": (ended.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(ended.stdout.strip().splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Real tokens and seconds of one variant's timed steps."""
    from qlora_core import bases, data, tokens
    from qlora_core.config import from_flat

    config = from_flat({"model": arguments.model, "data": arguments.data, "batch_size": BATCH, "learning_rate": 1e-4})
    spec = bases.find_base(config.base)
    tokenizer = tokens.ChatTokenizer(spec.path)
    rows = tokens.make_dataset(data.prepare(config.data, tokenizer).train, tokenizer, config.data.max_seq_length).rows
    if arguments.variant == "qlora":
        counts, seconds = measure_qlora(config, arguments.steps)
    else:
        if arguments.variant == "mlx-lm-blas":
            import qlora_core.device  # noqa: F401
        counts, seconds = measure_mlx_lm(config, spec, rows, arguments.peer_steps)
    return {"tokens": sum(counts), "seconds": sum(seconds), "tokens_per_second": sum(counts) / sum(seconds)}


def measure_qlora(config, steps: int) -> tuple[list[int], list[float]]:
    """Tokens and seconds of each step, as the metrics of a run have them."""
    from qlora_core import cli, session, trainer
    from qlora_core.batching import epoch_batches
    from qlora_core.device import memory_counters
    from qlora_core.memory import MemoryMonitor

    with tempfile.TemporaryDirectory() as directory:
        from qlora_core.config import from_flat

        tracker, plan = cli.plan_training(from_flat({"runs_dir": directory}, base=config), lambda text: None)
        with tracker.record(tracker.create(plan)) as writer:
            opened = session.open_session(writer, MemoryMonitor(counters=memory_counters))
            trainer.prepare_to_train(opened)
            batches = epoch_batches(opened.lengths, BATCH, seed=0, epoch=0, sort=opened.layout != "packed")
            counts, seconds = [], []
            for batch in batches[: steps + 1]:
                started = time.perf_counter()
                counts.append(trainer.train_step(opened, [batch]).tokens)
                seconds.append(time.perf_counter() - started)
    return counts[1:], seconds[1:]


def measure_mlx_lm(config, spec, rows, steps: int) -> tuple[list[int], list[float]]:
    """Tokens and seconds of each step of mlx-lm's trainer, with the same adapters and the same loss mask."""
    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx_lm import load
    from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    from qlora_core.bases import PROJECTIONS

    if not (mx.metal.is_available() or mx.cuda.is_available()):
        mx.set_default_device(mx.cpu)
    model, _ = load(str(spec.path))
    model.freeze()
    lora = {"rank": config.lora.rank, "scale": config.lora.scale, "dropout": 0.0, "keys": [*PROJECTIONS["all"]]}
    linear_to_lora_layers(model, -1, lora)
    encoded = [(row.ids.tolist(), int(row.trained.argmax())) for row in rows]
    times, counts = [], []

    def counted(**options):
        for batch, lengths in iterate_batches(**options):
            times.append(time.perf_counter())
            counts.append(int(lengths[:, 1].sum()))
            yield batch, lengths

    with tempfile.TemporaryDirectory() as directory:
        settings = TrainingArgs(
            batch_size=BATCH,
            iters=steps + 2,  # the last one is begun and not timed
            steps_per_report=1,
            max_seq_length=config.data.max_seq_length,
            adapter_file=str(Path(directory) / "adapters.safetensors"),
        )
        optimizer = optim.AdamW(learning_rate=config.train.learning_rate)
        train(model, optimizer, encoded, args=settings, iterate_batches=counted)
    return counts[1:-1], [after - before for before, after in pairwise(times[1:])]


if __name__ == "__main__":
    sys.exit(main())
