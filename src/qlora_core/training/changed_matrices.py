"""The matrices of a tuned model that a fused model stores anew, and their roundings, kept in files until they are used.

Knows a loaded model and its adapters; nothing of runs, nor of which rounding is chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..activity import doing
from ..engine.device import mx, nn
from ..engine.kernels import Adapter, DoraAdapter, use_linear_kernels
from ..engine.model import read_tensors, save_tensors
from ..runs.kernel_choice import Kernels
from ..tokens.rows import TokenRow
from .bit_choice import BitWidths, Option
from .gptq import Packed, inverse_factor, output_error, round_calibrated, round_to_nearest
from .input_moments import Moments, input_moments

SMALLEST_GROUP = 32  # of weights that share a scale in MLX
PLAIN_FROM = 8  # bits, from which on rounding to the nearest step costs next to nothing


@dataclass(frozen=True)
class ChangedMatrix:
    """A matrix that a fused model stores anew.

    Attributes:
        path: of its layer within the model.
        module: the layer, with its adapter if it has one.
    """

    path: str
    module: nn.Module

    @property
    def layer(self) -> int:
        """Return the number of its transformer layer; -1 outside of all."""
        return next((int(part) for part in self.path.split(".") if part.isdigit()), -1)

    @property
    def base(self) -> nn.Module:
        """Return the layer of the base, without the adapter."""
        return getattr(self.module, "linear", self.module)

    @property
    def fits(self) -> bool:
        """Return whether its rows divide into groups, so that it can be quantised."""
        return self.inputs % SMALLEST_GROUP == 0

    @property
    def calibrated(self) -> bool:
        """Return whether its rounding can be calibrated: it is a linear layer in a transformer layer."""
        return self.layer >= 0 and isinstance(self.base, nn.Linear | nn.QuantizedLinear)

    @property
    def inputs(self) -> int:
        """Return the number of columns."""
        columns = self.base.weight.shape[-1]
        return columns * 32 // self.base.bits if self.base.weight.dtype == mx.uint32 else columns

    @property
    def outputs(self) -> int:
        """Return the number of rows, those of all experts together."""
        return math.prod(self.base.weight.shape[:-1])


def find_changed_matrices(model: nn.Module, *, quantise: bool) -> list[ChangedMatrix]:
    """Return what a fused model stores anew: layers with adapters, and whatever is not stored as wanted.

    Args:
        model: with adapters attached.
        quantise: whether the fused model is quantised. Then layers that are unquantised in the base count, except
            those that the model's definition leaves out; otherwise, those that are quantised do. Quantised layers
            without adapters stay as they are in a quantised model, to the bit.
    """
    allowed = getattr(model, "quant_predicate", None) or (lambda path, module: True)
    adapted = {path for path, module in model.named_modules() if isinstance(module, Adapter)}
    changed = []
    for path, module in model.named_modules():
        if path.removesuffix(".linear") in adapted and path not in adapted:
            continue  # the layer inside an adapter
        is_quantised, may_be = "scales" in module, hasattr(module, "to_quantized") and bool(allowed(path, module))
        if path in adapted or (may_be if quantise else is_quantised):
            changed.append(ChangedMatrix(path, module))
    return sorted(changed, key=lambda matrix: matrix.layer)


def dense_weight(module: nn.Module) -> mx.array:
    """Return the weights of a layer with its adapter merged, float32; not yet computed.

    LoRA: W + scale · (A B)ᵀ (arXiv:2106.09685, section 4.1). DoRA: the same with its rows brought to the learnt
    lengths m (arXiv:2402.09353, section 4.1). All in float32, whatever the base was loaded in.
    """
    layer = getattr(module, "linear", module)
    weight = layer.weight
    if weight.dtype == mx.uint32:
        scales, biases = (None if v is None else v.astype(mx.float32) for v in (layer.scales, layer.get("biases")))
        if layer.mode != "affine":  # scales of these are no numbers
            scales, biases = layer.scales, layer.get("biases")
        weight = mx.dequantize(weight, scales, biases, group_size=layer.group_size, bits=layer.bits, mode=layer.mode)
    weight = weight.astype(mx.float32)
    if not isinstance(module, Adapter):
        return weight
    weight = weight + module.scale * (module.lora_a.astype(mx.float32) @ module.lora_b.astype(mx.float32)).T
    if isinstance(module, DoraAdapter):
        weight = weight * (module.m / mx.linalg.norm(weight, axis=1))[:, None]
    return weight


class Roundings:
    """Roundings of matrices to several bits, in a directory, so that each is made once and none need be in memory.

    Args:
        directory: exists.
        group_sizes: the group size for each number of bits, where rows divide by it.
        dtype: of scales and biases.
    """

    def __init__(self, directory: Path, group_sizes: dict[int, int], dtype: mx.Dtype) -> None:
        self._directory, self._group_sizes, self._dtype = directory, group_sizes, dtype
        self.options: dict[str, dict[int, Option]] = {}
        self.calibrated = 0
        """Number of matrices whose rounding was calibrated."""
        self._shapes: dict[str, tuple[int, ...]] = {}

    def group_size(self, bits: int, inputs: int) -> int:
        """Return the group size for so many bits in rows of so many weights."""
        wanted = self._group_sizes[bits]
        return wanted if inputs % wanted == 0 else SMALLEST_GROUP

    def make(
        self,
        model: nn.Module,
        matrices: Sequence[ChangedMatrix],
        bits: Sequence[int],
        rows: Sequence[TokenRow],
        memory: int,
    ) -> None:
        """Round each matrix to each of some bits.

        Pieces are calibrated on the inputs that the tuned model gives them; where there are fewer tokens than inputs,
        and from `PLAIN_FROM` bits on, they are rounded to the nearest step.

        Args:
            model: that has the matrices.
            matrices: to round.
            bits: as in `gptq.round_to_nearest`.
            rows: to calibrate on.
            memory: bytes that second moments may take; the model runs once for each part that fits in.
        """
        tokens = sum(map(len, rows))
        wanted = any(each < PLAIN_FROM for each in bits)
        with doing("rounding", len(matrices)) as tick:
            done = 0
            for part in _parts(matrices, memory):
                paths = [matrix.path for matrix in part if wanted and matrix.calibrated and tokens >= matrix.inputs]
                moments = input_moments(model, paths, rows) if paths else Moments()
                for together, group in _together(part, moments):
                    of_inputs = None if group is None else moments.sums[group]
                    if group is not None:
                        moments.sums[group] = mx.zeros(())  # freed when this is done
                    self._round(together, bits, of_inputs)
                    done += len(together)
                    tick(done)

    def _round(self, matrices: Sequence[ChangedMatrix], bits: Sequence[int], moments: mx.array | None) -> None:
        """Round matrices with a common input to each of some bits, and keep the results."""
        dense = [dense_weight(matrix.module) for matrix in matrices]
        for matrix, weight in zip(matrices, dense, strict=True):
            self._shapes[matrix.path] = weight.shape
        dense = [weight.reshape(-1, weight.shape[-1]) for weight in dense]
        joined = dense[0] if len(dense) == 1 else mx.concatenate(dense)
        mx.eval(joined)
        factor = None if moments is None else inverse_factor(np.array(moments))
        self.calibrated += len(matrices) if factor is not None else 0
        for each in bits:
            how = each, self.group_size(each, joined.shape[1]), self._dtype
            exact = factor is None or each >= PLAIN_FROM
            rounded = round_to_nearest(joined, *how) if exact else round_calibrated(joined, factor, *how)
            start = 0
            for matrix, weight in zip(matrices, dense, strict=True):
                own = rounded.rows(start, start + len(weight))
                start += len(weight)
                error = output_error(weight, own, None if factor is None else moments)
                self._keep(matrix.path, own, error)
        mx.clear_cache()

    def _file(self, path: str, bits: int) -> Path:
        return self._directory / f"{path}.{bits}.safetensors"

    def _keep(self, path: str, rounded: Packed, error: float) -> None:
        arrays = {"weight": rounded.weight, "scales": rounded.scales, "biases": rounded.biases}
        save_tensors(self._file(path, rounded.bits), arrays)
        self.options.setdefault(path, {})[rounded.bits] = Option(rounded.nbytes, error)

    def arrays(self, path: str, bits: int) -> dict[str, mx.array]:
        """Return `weight`, `scales` and `biases` of a matrix, which are read from the file when they are computed."""
        leading = self._shapes[path][:-1]
        tensors = read_tensors(self._file(path, bits))
        return {name: value.reshape(*leading, -1) for name, value in tensors.items()}

    def stored(self, path: str, bits: int) -> dict[str, Any]:
        """Return how a matrix is stored, as `config.json` says it."""
        return {"group_size": self.group_size(bits, self._shapes[path][-1]), "bits": bits}

    def layers(self, matrices: Sequence[ChangedMatrix], widths: BitWidths, kernels: Kernels) -> dict[str, nn.Module]:
        """Return layers of rounded matrices that can stand in the model's place, computing in `kernels.dtype`."""
        made = {}
        for matrix in matrices:
            layer = _quantised_layer(matrix, **self.stored(matrix.path, widths[matrix.path]))
            arrays = self.arrays(matrix.path, widths[matrix.path])
            for name, value in arrays.items():
                layer[name] = value if name == "weight" else value.astype(getattr(mx, kernels.dtype))
            if (bias := matrix.base.get("bias")) is not None:
                layer["bias"] = bias
            layer.freeze()
            use_linear_kernels(layer, kernels)
            made[matrix.path] = layer
        return made


def _quantised_layer(matrix: ChangedMatrix, group_size: int, bits: int) -> nn.Module:
    """Return a layer of the right kind and sizes; its arrays are not computed, and are to be replaced."""
    layer = matrix.base
    if hasattr(layer, "to_quantized"):
        return layer.to_quantized(group_size=group_size, bits=bits)
    if isinstance(layer, nn.QuantizedLinear):
        return nn.QuantizedLinear(matrix.inputs, layer.weight.shape[0], "bias" in layer, group_size, bits)
    raise TypeError(f"{matrix.path}: a {type(layer).__name__} with an adapter")


def _parts(matrices: Sequence[ChangedMatrix], memory: int) -> Iterator[list[ChangedMatrix]]:
    """Yield matrices in parts whose second moments take so much memory together; a transformer layer stays whole."""
    part: list[ChangedMatrix] = []
    for _, layer in itertools.groupby(matrices, lambda matrix: matrix.layer):
        layer = list(layer)
        if part and sum(4 * matrix.inputs**2 for matrix in (*part, *layer) if matrix.calibrated) > memory:
            yield part
            part = []
        part += layer
    if part:
        yield part


def _together(matrices: Sequence[ChangedMatrix], moments: Moments) -> Iterator[tuple[list[ChangedMatrix], int | None]]:
    """Yield matrices that have an input in common with the group of their moments, or a single one and None."""
    groups: dict[int, list[ChangedMatrix]] = {}
    for matrix in matrices:
        if matrix.path in moments.group_of:
            groups.setdefault(moments.group_of[matrix.path], []).append(matrix)
        else:
            yield [matrix], None
    for group, members in groups.items():
        yield members, group
