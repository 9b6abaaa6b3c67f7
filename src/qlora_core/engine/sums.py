"""Sums of many numbers in float32 that lose nothing on a CPU.

MLX adds on a CPU one number after the other to one float32: beside a total of 1, what is below 6e-8 changes nothing.
Knows nothing of what is summed.
"""

from __future__ import annotations

import math

from .device import mx

BLOCK = 32  # numbers added to one total; measured: 32 to 256 take the same time, and 32 loses least
LEAST, MOST = BLOCK // 2, 2 * BLOCK  # also taken, where they divide the size
FEW = 512  # numbers of which MLX's own sum loses less than 1e-6, sooner


def exact_sum(x: mx.array) -> mx.array:
    """Sum over the last axis, float32, to about 1e-6 relative where no signs cancel.

    On a CPU in blocks, and the sums of blocks in blocks again; in less time than MLX's own sum, since the totals of
    many blocks are added to at once (`benchmarks/sums.py` measures both). A GPU adds in many threads, and as exactly:
    measured on CUDA, not yet on Metal.
    """
    x = x.astype(mx.float32)
    if mx.default_device() == mx.cpu and x.shape[-1] > FEW:
        while x.shape[-1] > MOST:
            x = _sums_of_blocks(x)
    return x.sum(-1)


def exact_norm(x: mx.array) -> mx.array:
    """Square root of the sum of squares over the last axis, as `exact_sum`."""
    return mx.sqrt(exact_sum(mx.square(x.astype(mx.float32))))


def _sums_of_blocks(x: mx.array) -> mx.array:
    """`(…, N)` to `(…, N / block)`: block i is every (N / block)th number from i on."""
    size = x.shape[-1]
    block = next((block for block in range(MOST, LEAST - 1, -1) if size % block == 0), None)
    if block is None:  # a copy, filled up with nothing
        block, filled = BLOCK, math.ceil(size / BLOCK) * BLOCK
        x = mx.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, filled - size)])
    return x.reshape(*x.shape[:-1], block, -1).sum(-2)
