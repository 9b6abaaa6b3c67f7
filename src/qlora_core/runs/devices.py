"""How many devices this machine has for one run. Knows nothing of mlx."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError
from ..machine.process_pool import cores
from ..models.base_models import has_gpu, has_metal
from ..translations import Sentence

_DRIVER = Path("/dev")


def visible_gpus() -> list[str]:
    """Return the names of NVIDIA's GPUs that MLX may use here, as CUDA_VISIBLE_DEVICES has them."""
    if not has_gpu() or has_metal():
        return []
    if (told := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in told.split(",")]
        return [name for name in names if name not in ("", "-1")]
    return [str(number) for number in range(len(list(_DRIVER.glob("nvidia[0-9]*"))))]


def refuse_too_many(devices: int) -> None:
    """Compare the number of devices that a run is to have with what this machine has.

    Raises:
        ConfigError: it has fewer.
    """
    gpus = visible_gpus()
    if has_metal():
        have, found = 1, Sentence("one GPU")
    elif gpus:
        have, found = len(gpus), Sentence("{count} of NVIDIA's GPUs", count=len(gpus))
    else:
        have = cores()
        found = Sentence("{count} cores", count=have) if have > 1 else Sentence("one core")
    if devices > have:
        raise ConfigError(
            Sentence(
                "--devices {devices}: this machine has {found}. Choose --devices {have} or fewer.",
                devices=devices, found=found, have=have,
            )
        )  # fmt: skip
