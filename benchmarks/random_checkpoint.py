"""A checkpoint of a known model's shape with random weights, for measuring: bfloat16, sharded, Hugging Face's layout.

uv run python benchmarks/random_checkpoint.py llama-1b DIRECTORY
uv run python benchmarks/random_checkpoint.py mistral-7b DIRECTORY     # 14.5 GB
"""

import argparse
from pathlib import Path

from qlora_core.bench.drawn import SHAPES, write_checkpoint

__all__ = ["SHAPES", "write_checkpoint"]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    print(write_checkpoint(arguments.shape, arguments.directory))
