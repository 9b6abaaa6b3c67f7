"""Sums of many numbers in float32 that lose no precision on a CPU.

On a CPU, MLX adds one number after another to a single float32: once the total is 1, a term below 6e-8 changes nothing.
Knows nothing of what is summed.
"""

from __future__ import annotations

import math

from .device import mx

BLOCK = 32  # numbers added to one total; measured: 32 to 256 take the same time, and 32 loses least
LEAST, MOST = BLOCK // 2, 2 * BLOCK  # block sizes in this range are used if they divide the number of terms
FEW = 512  # up to so many numbers MLX's own sum loses less than 1e-6, and is faster


def exact_sum(x: mx.array) -> mx.array:
    """Sum over the last axis in float32, to about 1e-6 relative unless terms of both signs cancel.

    On a CPU this sums blocks, and then blocks of their sums. It takes less time than MLX's own sum, since the totals of
    many blocks are added to at once (`benchmarks/sums.py` measures both). A GPU adds in many threads and is as exact:
    measured on CUDA, not yet on Metal.
    """
    x = x.astype(mx.float32)
    if mx.default_device() == mx.cpu and x.shape[-1] > FEW:
        while x.shape[-1] > MOST:
            x = _sums_of_blocks(x)
    return x.sum(-1)


def exact_norm(x: mx.array) -> mx.array:
    """Return the square root of the sum of squares over the last axis, as exact as `exact_sum`."""
    return mx.sqrt(exact_sum(mx.square(x.astype(mx.float32))))


def _sums_of_blocks(x: mx.array) -> mx.array:
    """Sum blocks, `(…, N)` to `(…, N / block)`: block i consists of every (N / block)th number from i on."""
    size = x.shape[-1]
    block = next((block for block in range(MOST, LEAST - 1, -1) if size % block == 0), None)
    if block is None:  # no size divides it: pad a copy with zeros
        block, filled = BLOCK, math.ceil(size / BLOCK) * BLOCK
        x = mx.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, filled - size)])
    return x.reshape(*x.shape[:-1], block, -1).sum(-2)
