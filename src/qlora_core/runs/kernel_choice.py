"""How a run computes, as a value that is recorded with it. Knows nothing of MLX; `engine.device` chooses one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from ..tokens.batching import AS_IT_IS, Rounding

ARITHMETIC = 2
"""Counts the changes of the package that gave equal inputs other last bits.

2: on a CPU sums in blocks, and denormal numbers taken for zero; on a GPU each token's loss in float32.
"""


@dataclass(frozen=True)
class Kernels:
    """How a run computes; recorded with the run and used again when it is resumed, since it decides the last bits.

    Attributes:
        device: `cpu`, `cuda` or `metal`.
        dtype: of activations and of scales.
        linear: `kept` (weights dequantised once), `dequantised` (for each use), `quantised` (MLX's own kernel).
        streams: shares that rows are divided into, each computed on a stream (a core) of its own.
        blas: name of the BLAS on a CPU.
        fast_exp: polynomial `exp` in attention and SwiGLU.
        rounding: sizes that batches are filled up to.
        compiled: whether a micro-batch is compiled to one graph, for each shape that occurs.
        sharing: whether layers that multiply the same input are computed together, and norms and SwiGLU made again.
        at_once: tokens of packed rows that one stream computes at once, so that memory is used again; 0: all that fit.
        trunk: whether layers below all adapters are computed once for each row, where each is trained more than once.
        prefix: whether a beginning that rows share is computed once for those that are computed together.
        arithmetic: of the package that computed it; not a choice, a resume takes that of today and says so.
    """

    device: str
    dtype: Literal["float32", "float16", "bfloat16"]
    linear: Literal["kept", "dequantised", "quantised"]
    streams: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    blas: str = ""
    fast_exp: bool = False
    rounding: Rounding = AS_IT_IS
    compiled: bool = False
    sharing: bool = True
    at_once: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0
    trunk: bool = True
    prefix: bool = True
    arithmetic: Annotated[int, msgspec.Meta(ge=1, le=2**31)] = ARITHMETIC

    @classmethod
    def from_dict(cls, recorded: dict[str, Any]) -> Kernels:
        """Read what `dataclasses.asdict` made; what an older version did not know is as by default, but arithmetic."""
        recorded = {"arithmetic": 1, **recorded}
        known = {field.name: recorded[field.name] for field in dataclasses.fields(cls) if field.name in recorded}
        rounding = known.get("rounding", {})
        return cls(**{**known, "rounding": Rounding(**{**rounding, "bins": tuple(rounding.get("bins", ()))})})
