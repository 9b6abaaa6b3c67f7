"""Settings that fit a machine: for models like Mistral-7B, and for smaller ones.

Micro-batch and length follow from the arithmetic of `memory_estimate`: the largest power of two of rows, each as long
as `max_seq_length` allows, whose predicted peak is within the machine's budget. A test repeats that arithmetic. Eight
rows make a step, whatever the micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import BaseConfig
from ..errors import ConfigError
from ..models.base_models import about_parameters
from .memory_estimate import LARGE_MODEL


@dataclass(frozen=True)
class Choice:
    """A setting's value in a preset, and why."""

    value: Any
    why: str


@dataclass(frozen=True)
class Preset:
    """Settings for a machine.

    Attributes:
        machine: which machine.
        budget_gb: most memory that a run may take, in GB.
        large: `{setting: choice}` for models of 3B parameters and more, intended for Mistral-7B.
        small: `{setting: choice}` for smaller models, intended for 1.7B.
    """

    machine: str
    budget_gb: float
    large: Mapping[str, Choice]
    small: Mapping[str, Choice]


FOUR_BITS = Choice("4", "a quarter of the base's size in half precision, and less to read for each step")


def _batch(size: int) -> dict[str, Choice]:
    fit = f"{size} rows of full length fit" if size > 1 else "1 row of full length fits"
    return {
        "batch_size": Choice(size, f"no more than {fit} at once"),
        "grad_accumulation_steps": Choice(8 // size, f"{8 // size} × {size} = 8 rows per step"),
    }


PRESETS = {
    "m1-16gb": Preset(
        "Apple silicon, 16 GB",
        8.6,  # half of the memory; the system and a browser take the rest. The GPU may have two thirds: 11.45
        large={
            "quantize": FOUR_BITS,
            "max_seq_length": Choice(512, "a question with a long answer, or a page of a book"),
            **_batch(1),
            "min_free_gb": Choice(3.0, "with less after loading, macOS begins to swap"),
        },
        small={
            "quantize": FOUR_BITS,
            "max_seq_length": Choice(512, "a question with a long answer, or a page of a book"),
            **_batch(4),
        },
    ),
    "m1-8gb": Preset(
        "Apple silicon, 8 GB",
        5.2,  # the GPU may have two thirds: 5.73. The base alone takes 4
        large={
            "quantize": FOUR_BITS,
            "max_seq_length": Choice(256, "half the length is half the memory for a row"),
            "passage_tokens": Choice(192, "with its title, a passage is then within the length"),
            "num_layers": Choice(8, "adapters on the last quarter of the layers: nothing is kept of those below"),
            **_batch(1),
            "min_free_gb": Choice(1.0, "the base alone takes 4 of the 8 GB: close everything else"),
        },
        small={
            "quantize": FOUR_BITS,
            "max_seq_length": Choice(512, "a question with a long answer, or a page of a book"),
            **_batch(2),
        },
    ),
    "cpu": Preset(
        "a laptop without a GPU, 16 GB",
        11.0,
        large={
            "quantize": FOUR_BITS,
            "max_seq_length": Choice(256, "a processor takes minutes for a page: short rows, or patience"),
            "passage_tokens": Choice(192, "with its title, a passage is then within the length"),
            "num_layers": Choice(16, "adapters on the upper half: no gradient goes through the lower one"),
            **_batch(4),
            "min_free_gb": Choice(2.0, "what the rest of the machine needs"),
        },
        small={
            "quantize": FOUR_BITS,
            "max_seq_length": Choice(512, "a question with a long answer, or a page of a book"),
            **_batch(2),
        },
    ),
    "h100": Preset(
        "NVIDIA H100, 80 GB",
        76.0,
        large={
            "quantize": FOUR_BITS,
            "max_seq_length": Choice(512, "a question with a long answer, or a page of a book"),
            **_batch(8),
        },
        small={
            "quantize": Choice("none", "there is room: a base in half precision loses nothing and is no slower"),
            "max_seq_length": Choice(1024, "two pages of a book"),
            **_batch(8),
        },
    ),
}


def preset_choices(name: str, base: BaseConfig) -> Mapping[str, Choice]:
    """Return the settings of a preset for a base.

    Raises:
        ConfigError: there is no such preset.
        ModelError: there is no such base.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r}: wanted one of {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    return preset.large if about_parameters(base) >= LARGE_MODEL else preset.small
