"""Matrices rounded to a few bits a weight, as `mx.quantize` stores them: to the nearest step, or calibrated (GPTQ).

mlx-lm has a GPTQ too, which rounds a whole model to 2, 4 or 8 bits at once and holds what it gathered of every layer in
memory. This one rounds a matrix at a time to any number of bits that MLX packs, onto scales that already have the
precision they are stored in. Knows matrices; nothing of models, rows or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..engine.device import mx
from ..engine.weights import BLOCK

DAMPING = (0.01, 0.1, 1.0)  # of the mean diagonal, added to the diagonal until the matrix can be inverted


@dataclass(frozen=True)
class Packed:
    """A matrix of `(outputs, inputs)` as MLX stores it quantised.

    Attributes:
        weight: uint32, `(outputs, inputs · bits / 32)`: the codes as one stream of bits, the lowest bit first.
        scales: `(outputs, inputs / group_size)`, the step between two codes of a group.
        biases: the same shape, the value of code 0.
        bits: bits of a code.
        group_size: weights of a row that share a scale.
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int

    @property
    def nbytes(self) -> int:
        """Return the size of codes, scales and biases in bytes."""
        return self.weight.nbytes + self.scales.nbytes + self.biases.nbytes

    def rows(self, start: int, stop: int) -> Packed:
        """Return some of the outputs."""
        parts = (each[start:stop] for each in (self.weight, self.scales, self.biases))
        return Packed(*parts, self.bits, self.group_size)

    def dense(self) -> mx.array:
        """Return what the codes stand for, float32 `(outputs, inputs)`."""
        scales, biases = (each.astype(mx.float32) for each in (self.scales, self.biases))
        return mx.dequantize(self.weight, scales, biases, group_size=self.group_size, bits=self.bits)


def packed_bytes(shape: tuple[int, int], bits: int, group_size: int) -> int:
    """Return the size of a matrix of this shape in `bits`, with scales and biases of 16 bits."""
    size = shape[0] * shape[1]
    return size * bits // 8 + 4 * size // group_size


def round_to_nearest(weight: mx.array, bits: int, group_size: int, dtype: mx.Dtype) -> Packed:
    """Round each weight to the nearest step of its group, between steps as `mx.quantize` lays them.

    Args:
        weight: float32, `(outputs, inputs)`; `inputs` must be a multiple of `group_size`.
        bits: 2, 3, 4, 5, 6 or 8.
        group_size: 32, 64 or 128.
        dtype: of scales and biases.
    """
    parts = []
    for rows in _blocks(weight):
        _, scales, biases = mx.quantize(rows, group_size=group_size, bits=bits)
        scales, biases = scales.astype(dtype), biases.astype(dtype)
        grouped = mx.unflatten(rows, -1, (-1, group_size))
        codes = _codes(grouped, scales[..., None], biases[..., None], bits).reshape(rows.shape)
        parts.append((_packed(codes, bits), scales, biases))
        mx.eval(parts[-1])
    return Packed(*(mx.concatenate(part) for part in zip(*parts, strict=True)), bits, group_size)


def round_calibrated(weight: mx.array, factor: np.ndarray, bits: int, group_size: int, dtype: mx.Dtype) -> Packed:
    """Round a matrix so that its outputs change least on the inputs it was calibrated with (GPTQ, arXiv:2210.17323).

    Column by column; the error of each is made up for by the columns to its right that are not rounded yet. A group's
    steps are laid when its first column is reached. In numpy, since columns come one after the other: starting MLX's
    operations took thirty times as long as computing them.

    Args:
        weight: float32, `(outputs, inputs)`.
        factor: `inverse_factor` of the inputs' second moments, `(inputs, inputs)`.
        bits: see `round_to_nearest`.
        group_size: see `round_to_nearest`.
        dtype: of scales and biases.
    """
    left = np.array(weight.T, order="C")  # (inputs, outputs); the columns of the weight are rows here
    codes, scales, biases = np.empty(left.shape, np.uint8), [], []
    errors = np.empty((group_size, left.shape[1]), np.float32)
    for start in range(0, len(left), group_size):
        group = slice(start, start + group_size)
        _, scale, bias = mx.quantize(mx.array(left[group].T), group_size=group_size, bits=bits)
        scales.append(scale.astype(dtype))
        biases.append(bias.astype(dtype))
        step, zero = (np.array(each[-1].astype(mx.float32))[:, 0] for each in (scales, biases))
        per_step = 1 / np.where(step == 0, 1, step)
        for k, column in enumerate(left[group]):
            row = factor[group, start + k]
            column -= row[:k] @ errors[:k]
            code = np.clip(np.rint((column - zero) * per_step), 0, 2**bits - 1)
            codes[start + k] = code
            errors[k] = (column - (code * step + zero)) / row[k]
        left[group.stop :] -= factor[group, group.stop :].T @ errors
    stored = mx.concatenate(scales, axis=1), mx.concatenate(biases, axis=1)
    return Packed(_packed(mx.array(codes).T, bits), *stored, bits, group_size)


def inverse_factor(moments: np.ndarray) -> np.ndarray | None:
    """Return the upper Cholesky factor U of the damped inverse, UᵀU = (H + d·1)⁻¹, float32; None if there is none.

    Args:
        moments: H, the sum of x xᵀ over the inputs x, `(inputs, inputs)`.
    """
    moments = moments.astype(np.float64)
    mean = float(np.diagonal(moments).mean())
    for damping in DAMPING:
        try:
            inverse = np.linalg.inv(moments + damping * mean * np.eye(len(moments)))
            factor = np.linalg.cholesky(inverse).T
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(factor).all():
            return np.ascontiguousarray(factor, np.float32)
    return None


def output_error(weight: mx.array, rounded: Packed, moments: mx.array | None) -> float:
    """Return the summed squared change of the outputs, tr(D H Dᵀ) with D the change of the weights.

    Args:
        weight: float32, `(outputs, inputs)`.
        rounded: the same matrix, rounded.
        moments: H, the sum of x xᵀ over the inputs; None: the identity, so that the weights' own change is summed.
    """
    change = weight - rounded.dense()
    return float((change * (change if moments is None else change @ moments)).sum())


def _codes(values: mx.array, scales: mx.array, biases: mx.array, bits: int) -> mx.array:
    """Return the nearest codes, float32; scales and biases broadcast to the values."""
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    steps = mx.round((values - biases) / mx.where(scales == 0, 1.0, scales))
    return mx.clip(steps, 0, 2**bits - 1)


def _packed(codes: mx.array, bits: int) -> mx.array:
    """Return codes `(outputs, inputs)` as uint32 `(outputs, inputs · bits / 32)`."""
    parts = []
    for rows in _blocks(codes):
        single = np.unpackbits(np.array(rows.astype(mx.uint8))[..., None], axis=-1, count=bits, bitorder="little")
        joined = np.packbits(single.reshape(len(single), -1), axis=-1, bitorder="little")
        parts.append(mx.array(joined.view(np.uint32)))
    return mx.concatenate(parts)


def _blocks(matrix: mx.array) -> Iterator[mx.array]:
    rows = max(1, BLOCK // matrix.shape[1])
    for start in range(0, matrix.shape[0], rows):
        yield matrix[start : start + rows]
