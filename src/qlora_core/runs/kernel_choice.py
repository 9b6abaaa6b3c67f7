"""The kernels of a run, as a value that is recorded with it. Knows nothing of MLX; `engine.device` chooses one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from ..tokens.batching import AS_IT_IS, Rounding

ARITHMETIC = 2
"""Version of the arithmetic: counts the changes to this package that changed the last bits of results.

2: on a CPU sums in blocks, and denormal numbers treated as zero; on a GPU each token's loss in float32.
"""


@dataclass(frozen=True)
class Kernels:
    """The way a run computes, recorded and used again when it is resumed, since it decides the last bits.

    Attributes:
        device: `cpu`, `cuda` or `metal`.
        dtype: dtype of activations and of scales.
        linear: how weights are multiplied: `kept` (dequantised once), `dequantised` (for each use) or `quantised`
            (MLX's own kernel).
        streams: number of shares that rows are divided into, each computed on a stream (a core) of its own.
        blas: name of the BLAS on a CPU.
        fast_exp: use the polynomial `exp` in attention and SwiGLU.
        rounding: sizes that batches are padded to.
        compiled: compile a micro-batch to one graph, for each shape that occurs.
        sharing: compute layers with the same input together, and recompute norms and SwiGLU in the backward pass.
        at_once: tokens of packed rows that one stream computes at once, so that memory is reused; 0: as many as fit.
        trunk: compute the layers below all adapters only once for each row, if rows are trained more than once.
        prefix: compute a prefix that rows share once for the rows that are computed together.
        arithmetic: version of the package's arithmetic. It is not a choice: a resumed run takes the current version and
            says so.
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
        """Read what `dataclasses.asdict` wrote; fields that are missing get their defaults, `arithmetic` gets 1."""
        recorded = {"arithmetic": 1, **recorded}
        known = {field.name: recorded[field.name] for field in dataclasses.fields(cls) if field.name in recorded}
        rounding = known.get("rounding", {})
        return cls(**{**known, "rounding": Rounding(**{**rounding, "bins": tuple(rounding.get("bins", ()))})})
