"""A checkpoint of a known model's shape with random weights, for measuring: bfloat16, sharded, Hugging Face's layout.

uv run python benchmarks/random_checkpoint.py llama-1b DIRECTORY
uv run python benchmarks/random_checkpoint.py mistral-7b DIRECTORY     # 14.5 GB
"""

import sys
from pathlib import Path

from qlora_core.bench.drawn import SHAPES, write_checkpoint

__all__ = ["SHAPES", "write_checkpoint"]

if __name__ == "__main__":
    print(write_checkpoint(sys.argv[1], Path(sys.argv[2])))
