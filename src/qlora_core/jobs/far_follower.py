"""A device's process on another machine than the trainer's, started there by ssh.

`python -m qlora_core.jobs.far_follower NUMBER RUN` runs one; the machine's processes of a run are numbered from 0, and
each has the GPU of its number, or all share the cores. It holds the device's lock, so that no other run trains beside.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from ..errors import QLoraError
from ..files.storage import keep_private
from ..machine.far_process import StandardStreams
from ..runs.devices import visible_gpus
from .device_lock import DeviceLock

FORSAKEN = 120.0  # seconds without a word of the trainer, whose machine may be gone or asleep


def main() -> int:
    """Follow the trainer; the last line on the standard error says why it could not go on."""
    number, run = int(sys.argv[1]), Path(sys.argv[2])
    keep_private()
    gpus = visible_gpus()
    if number < len(gpus):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number]  # before the GPUs are looked for
    try:
        with DeviceLock(run) if gpus or number == 0 else contextlib.nullcontext():
            connection = StandardStreams()
            from ..training.follower import follow  # only here: mlx takes a second, and a GPU

            return follow(connection, FORSAKEN)
    except QLoraError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
