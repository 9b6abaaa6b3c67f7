"""Whether a planned run fits: its memory, the disk that it will take, and its time, before anything is loaded.

Puts together what `memory_estimate` and `time_estimate` predict; knows nothing of mlx, nor of how it is told.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..files.storage import nearest_existing
from ..machine.memory import GB
from ..models.base_models import has_gpu
from .memory_estimate import LARGE_MODEL, PROGRAM_BYTES, RESERVE_BYTES, MemoryEstimate, cpu_streams
from .plan import TrainingPlan
from .time_estimate import TimeEstimate, estimate

TIGHT = 0.85  # share of the free memory from which on a run would crowd other programs
KEPT_COPIES = 3  # of the adapters beside the checkpoints: the best, the last, and those to take away

Verdict = Literal["fits", "tight", "close programs", "too large"]


@dataclass(frozen=True)
class Fit:
    """What a run needs, and what there is.

    Attributes:
        memory: predicted peak, by part.
        free: memory that is free now, in bytes.
        machine: all memory of the machine.
        needed: free memory that the trainer will want: the peak and a reserve, or more after loading a large model.
        disk: bytes that the run will write.
        disk_free: bytes that are free where it will lie.
        time: how long it will take, as far as earlier runs tell.
        beside: bytes of each process that a CPU may compute in beside the trainer, if there is room; 0: none.
    """

    memory: MemoryEstimate
    free: int
    machine: int
    needed: int
    disk: int
    disk_free: int
    time: TimeEstimate
    beside: int = 0

    @property
    def verdict(self) -> Verdict:
        """Return whether the run fits into memory: now, only just, once other programs are closed, or never."""
        if self.needed > self.machine:
            return "too large"
        if self.needed > self.free:
            return "close programs"
        return "tight" if self.needed > TIGHT * self.free else "fits"

    @property
    def disk_suffices(self) -> bool:
        """Return whether what will be written has room."""
        return self.disk < self.disk_free

    def as_dict(self) -> Mapping[str, Any]:
        """Return what JSON holds of it, in bytes and seconds."""
        return {
            "verdict": self.verdict,
            "memory_bytes": {**vars(self.memory), "program": PROGRAM_BYTES, "peak": self.memory.total},
            "beside_bytes": self.beside,
            "needed_bytes": self.needed,
            "free_bytes": self.free,
            "machine_bytes": self.machine,
            "disk_bytes": self.disk,
            "disk_free_bytes": self.disk_free,
            "seconds": dict(self.time.seconds),
            "unknown": sorted(self.time.unknown),
            "measured_by": self.time.measured_by,
        }


def fit(plan: TrainingPlan, free: int, machine: int) -> Fit:
    """Return whether a planned run fits.

    Args:
        plan: with rows to train.
        free: free memory in bytes.
        machine: all memory of the machine.

    Raises:
        ValueError: the plan has no rows.
    """
    if plan.memory is None:
        raise ValueError("a plan without rows")
    needed = plan.memory.total + RESERVE_BYTES
    if plan.model.parameters >= LARGE_MODEL:  # the trainer wants this much after loading
        loaded = plan.memory.weights + plan.memory.dense + PROGRAM_BYTES
        needed = max(needed, loaded + int(plan.config.pace.min_free_gb * GB))
    disk_free = shutil.disk_usage(nearest_existing(plan.run.path)).free
    several = not has_gpu() and cpu_streams() > 1 and not plan.config.lora.dropout
    beside = plan.memory.beside + PROGRAM_BYTES if several else 0
    return Fit(plan.memory, free, machine, needed, disk_bytes(plan), disk_free, estimate(plan), beside)


def disk_bytes(plan: TrainingPlan) -> int:
    """Return about how much a run writes: checkpoints with the optimizer's two moments, and copies of the adapters.

    Logs and rows are left out: some megabytes.
    """
    adapters = 4 * plan.model.trainable(plan.config.lora)
    return (3 * plan.config.pace.keep_checkpoints + KEPT_COPIES) * adapters
