"""Denormal numbers, below 1.2e-38 in float32: have the processor take them for zero.

A product with one of them costs an Intel core over 100 cycles, and small gradients are full of them. The setting
belongs to a thread, and a thread takes it over from the one that starts it: whoever computes sets it before MLX and the
BLAS start theirs. Knows nothing of mlx.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

SMALLEST_NORMAL = sys.float_info.min  # of float64; the setting holds for all sizes

# By processor: where the control register lies in glibc's `fenv_t`, and the bits that flush. On x86-64
# MXCSR's flush-to-zero and denormals-are-zero (Intel's manual, volume 1, 10.2.3), on arm64 FPCR's FZ (Arm's, C5.2.8).
_REGISTERS = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}


def flush_denormals(on: bool = True) -> bool:
    """Take denormal numbers for zero in this thread and in all that it starts from now on; tell whether that holds.

    Returns:
        False on a processor or a system where nobody knows how: nothing has changed. Not yet run on arm64.
    """
    if sys.platform != "linux" or platform.machine() not in _REGISTERS:
        return False
    offset, bits = _REGISTERS[platform.machine()]
    try:
        libm = ctypes.CDLL("libm.so.6")
        environment = ctypes.create_string_buffer(64)
        if libm.fegetenv(environment):
            return False
        register = struct.unpack_from("<I", environment, offset)[0]
        struct.pack_into("<I", environment, offset, register | bits if on else register & ~bits)
        libm.fesetenv(environment)
    except (OSError, AttributeError):  # a libc without that name
        return False
    return are_flushed() == on


def are_flushed() -> bool:
    """Return whether this thread takes denormal numbers for zero, by computing one."""
    return SMALLEST_NORMAL / 2 == 0.0
