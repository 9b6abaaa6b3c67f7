"""Peak memory of quantising a checkpoint while loading it, against its size, and against mlx-lm's converter.

    uv run python benchmarks/quantise_while_loading.py [llama-1b] [--bits 4] [--directory DIRECTORY]

Each in a fresh process, on a random checkpoint of that shape (2.5 GB in bfloat16), made in a temporary directory if
none is given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from random_checkpoint import SHAPES, write_checkpoint

GB = 1e9
LOAD = """
import json, resource, sys, time
from pathlib import Path
from qlora_core.engine import weights
from qlora_core.models.base_models import describe
from qlora_core.config import BaseConfig
from qlora_core.engine.device import mx
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
spec = describe(Path(sys.argv[1]), BaseConfig(model=sys.argv[1], quantize=sys.argv[2]))
spec.fingerprint
started = time.perf_counter()
dtype = "bfloat16" if mx.cuda.is_available() or mx.metal.is_available() else "float32"
model = weights.load_weights(spec, dtype, print)
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak": mx.get_peak_memory(), "active": mx.get_active_memory(), "program": before * 1024,
                  "process": rss * 1024, "seconds": time.perf_counter() - started}))
"""
CONVERT = """
import json, resource, sys, tempfile, time
import qlora_core.engine.device
from mlx_lm import convert
import mlx.core as mx
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
with tempfile.TemporaryDirectory() as directory:
    convert(sys.argv[1], directory + "/made", quantize=True, q_bits=int(sys.argv[2]))
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak": mx.get_peak_memory(), "active": mx.get_active_memory(), "program": before * 1024,
                  "process": rss * 1024, "seconds": time.perf_counter() - started}))
"""


def measure(script: str, directory: Path, bits: str, cache: str) -> dict[str, float]:
    """Run a script in its own process and return the JSON of its last line."""
    command = [sys.executable, "-c", script, str(directory), bits]
    done = subprocess.run(
        command, env={**os.environ, "QLORA_CACHE": cache}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def report(directory: Path, bits: str) -> None:
    """Measure and print."""
    full = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    with tempfile.TemporaryDirectory() as cache:
        rows = {
            "quantised while loading": measure(LOAD, directory, bits, cache),
            "read from the cache": measure(LOAD, directory, bits, cache),
            "mlx_lm.convert": measure(CONVERT, directory, bits, cache),
        }
    print(f"checkpoint {full / GB:.2f} GB in bfloat16, to {bits} bits")
    print(f"{'':<26}{'arrays after':>13}{'peak':>8}{'ratio':>7}{'process':>9}{'time':>8}")
    for name, row in rows.items():
        ratio = row["peak"] / rows["read from the cache"]["active"]
        print(
            f"{name:<26}{row['active'] / GB:>10.2f} GB{row['peak'] / GB:>8.2f}{ratio:>7.2f}"
            f"{row['process'] / GB:>9.2f}{row['seconds']:>6.0f} s"
        )
    print("ratio: peak of arrays over the quantised model; process: peak, with about 0.2 GB of program")


def main() -> None:
    """Make the checkpoint and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", nargs="?", choices=SHAPES, default="llama-1b")
    parser.add_argument("--bits", choices=("4", "8"), default="4")
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        report(write_checkpoint(arguments.shape, arguments.directory or Path(temporary) / "model"), arguments.bits)


if __name__ == "__main__":
    main()
