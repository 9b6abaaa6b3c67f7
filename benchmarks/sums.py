"""Accuracy and cost of summing many float32 numbers on this machine, by MLX and by this package.

    uv run python benchmarks/sums.py

Errors are against float64, the largest of the rows; the time is that of the package's sum over MLX's.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np

from qlora_core.engine.device import mx
from qlora_core.engine.sums import exact_norm, exact_sum

VOCABULARIES = {49_152: "SmolLM2", 50_257: "GPT-2", 151_936: "Qwen", 256_000: "Gemma"}
PARAMETERS = (2_442_240, 42_000_000, 160_000_000)
KEYS = (256, 2_048, 8_192, 32_768)
REPEATS = 7


def cases() -> Iterator[tuple[str, np.ndarray, Callable, Callable, bool]]:
    """Yield a name, numbers, MLX's function and ours, and whether the function is a norm."""
    rng = np.random.default_rng(0)
    for size, name in VOCABULARIES.items():
        logits = rng.normal(0, 3, (16, size)).astype(np.float32)
        logits[:, 0] += 20
        yield f"softmax over {size:,} tokens ({name})", np.exp(logits - 20), _sum, exact_sum, False
    for size in KEYS:
        scores = rng.normal(0, 2, (64, size)).astype(np.float32)
        yield f"softmax over {size:,} keys", np.exp(scores), _sum, exact_sum, False
    for size in PARAMETERS:
        gradient = rng.standard_normal(size, np.float32)
        gradient *= np.exp(rng.standard_normal(size, np.float32))
        yield f"norm of {size:,} numbers", gradient, mx.linalg.norm, exact_norm, True


def _sum(x: mx.array) -> mx.array:
    return x.sum(-1)


def seconds(function: Callable, x: mx.array) -> float:
    """Return the time of the fastest of several calls."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        mx.eval(function(x))
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    """Print a table."""
    print("| | error of MLX's | of the package's | time |\n|---|---:|---:|---:|")
    for name, numbers, plain, ours, norm in cases():
        x = mx.array(numbers)
        wanted = np.sqrt(np.square(numbers, dtype=np.float64).sum()) if norm else numbers.sum(-1, dtype=np.float64)
        errors = [np.max(np.abs(np.array(f(x), np.float64) / wanted - 1)) for f in (plain, ours)]
        ratio = seconds(ours, x) / seconds(plain, x)
        print(f"| {name} | {errors[0]:.1e} | {errors[1]:.1e} | {ratio:.2f} × |", flush=True)


if __name__ == "__main__":
    main()
