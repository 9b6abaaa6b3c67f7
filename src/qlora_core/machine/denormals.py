"""Make the processor treat denormal numbers (below 1.2e-38 in float32) as zero.

A product with one of them costs an Intel core over 100 cycles, and small gradients are full of them. The setting
belongs to a thread, and a new thread inherits it from the one that starts it, so it has to be set before MLX and the
BLAS start their threads. Knows nothing of mlx.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

SMALLEST_NORMAL = sys.float_info.min  # smallest normal float64; the setting applies to floats of all sizes

# For each processor: the offset of the control register in glibc's `fenv_t`, and the bits to set. On x86-64 these are
# MXCSR's flush-to-zero and denormals-are-zero (Intel's manual, volume 1, 10.2.3), on arm64 FPCR's FZ (Arm's, C5.2.8).
_REGISTERS = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}


def flush_denormals(on: bool = True) -> bool:
    """Treat denormal numbers as zero in this thread and all it starts from now on; return whether that worked.

    Returns:
        False on a processor or system where it is not known how; nothing has changed then. Not yet run on arm64.
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
    """Return whether this thread treats denormal numbers as zero, by computing one."""
    return SMALLEST_NORMAL / 2 == 0.0
