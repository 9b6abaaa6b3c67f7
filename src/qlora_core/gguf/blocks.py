"""Numbers as GGUF stores them: the block type of each matrix, and its bytes. Knows numbers, nothing of models.

The simple blocks (32 weights with a scale, and a minimum in Q4_1 and Q5_1) are written by the `gguf` package. It reads
K-quants (256 weights, whose smaller groups have scales of few bits) but writes none, so Q4_K and Q6_K are made here:
for each group the scale, and for Q4_K the minimum, with the least weighted squared error is searched among a few.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, dequantize, quantize

from ..errors import ModelError
from .weights import Packed, Weight

Kind = Literal["as-stored", "f32", "f16", "bf16", "q8_0", "q6_k", "q4_k", "q4_1", "q4_0"]
Block = GGMLQuantizationType

KINDS: tuple[Kind, ...] = get_args(Kind)
SUPER = 256  # weights of a K-quant's block
LARGEST_F16 = 65504.0

_PLAIN = {"f32": Block.F32, "f16": Block.F16, "bf16": Block.BF16}
_QUANTISED = {"q8_0": Block.Q8_0, "q6_k": Block.Q6_K, "q4_k": Block.Q4_K, "q4_1": Block.Q4_1, "q4_0": Block.Q4_0}
_NARROW = {Block.Q6_K: Block.Q8_0, Block.Q4_K: Block.Q5_0}
"""What llama.cpp, too, takes instead of a K-quant for rows that are no multiple of 256."""
_AS_STORED = {2: Block.Q4_1, 3: Block.Q4_1, 4: Block.Q4_1, 5: Block.Q5_1, 8: Block.Q8_0}
_FILE_TYPES = {
    Block.F32: LlamaFileType.ALL_F32,
    Block.F16: LlamaFileType.MOSTLY_F16,
    Block.BF16: LlamaFileType.MOSTLY_BF16,
    Block.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Block.Q6_K: LlamaFileType.MOSTLY_Q6_K,
    Block.Q4_K: LlamaFileType.MOSTLY_Q4_K_M,
    Block.Q5_0: LlamaFileType.MOSTLY_Q5_0,
    Block.Q5_1: LlamaFileType.MOSTLY_Q5_1,
    Block.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    Block.Q4_0: LlamaFileType.MOSTLY_Q4_0,
}


def file_type(main: Block) -> int:
    """Return the value of `general.file_type` for a file whose matrices mostly have that block."""
    return int(_FILE_TYPES[main])


def choose_block(kind: Kind, name: str, weight: Weight, layers: int) -> Block:
    """Return the block for a tensor.

    Vectors stay float32. The 4-bit kinds keep embedding and output at 6 bits, and Q4_K also half of the values and
    `ffn_down`, as llama.cpp's Q4_K_M does: they lose most.

    Args:
        kind: what was asked for.
        name: the tensor's in GGUF, without `.weight`.
        weight: the tensor.
        layers: transformer layers of the model.
    """
    if len(weight.shape) == 1 or kind == "f32":
        return Block.F32
    if kind == "as-stored":
        return _AS_STORED.get(weight.bits, Block.F16)
    if kind in _PLAIN:
        return _PLAIN[kind]
    block = _QUANTISED[kind]
    if kind in ("q4_0", "q4_1", "q4_k") and (
        name in ("token_embd", "output") or (kind == "q4_k" and _deserves_more(name, layers))
    ):
        block = Block.Q6_K
    if block in _NARROW and weight.shape[-1] % SUPER:
        block = _NARROW[block]
    return block if weight.shape[-1] % GGML_QUANT_SIZES[block][0] == 0 else Block.F16


def _deserves_more(name: str, layers: int) -> bool:
    """Return whether a matrix is among those that Q4_K_M keeps at 6 bits."""
    _, _, place = name.partition("blk.")
    layer, _, part = place.partition(".")
    if part not in ("attn_v", "ffn_down"):
        return False
    i, eighth = int(layer), layers // 8
    return i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2


def row_bytes(block: Block, inputs: int) -> int:
    """Return the bytes of a row."""
    size, stored = GGML_QUANT_SIZES[block]
    return inputs // size * stored


def encode(values: np.ndarray, block: Block) -> np.ndarray:
    """Return float32 rows as bytes, uint8, `(rows, bytes)`.

    Raises:
        ModelError: a number is too large for float16, in which scales are stored, or is not finite.
    """
    largest = float(np.abs(values).max(initial=0.0))
    limit = {Block.F16: LARGEST_F16, Block.F32: np.inf, Block.BF16: np.inf}.get(block, LARGEST_F16)
    if not np.isfinite(largest) or largest > limit:
        raise ModelError(
            f"has the weight {largest:g}; at most {limit:g} can be stored as {block.name}. Try bf16 or f32."
        )
    made = {Block.Q4_K: _encode_q4_k, Block.Q6_K: _encode_q6_k}.get(block)
    if made is not None:
        return made(values.reshape(-1, SUPER)).reshape(len(values), -1)
    return np.ascontiguousarray(quantize(np.ascontiguousarray(values), block)).view(np.uint8).reshape(len(values), -1)


def decode(stored: np.ndarray, block: Block) -> np.ndarray:
    """Return rows of bytes as float32 numbers."""
    return dequantize(np.ascontiguousarray(stored), block)


# MLX's own numbers ----------------------------------------------------------------------------------------------


def encode_packed(packed: Packed, block: Block) -> tuple[np.ndarray, bool]:
    """Return a quantised matrix's own numbers in GGUF's blocks, and whether these hold exactly the same.

    Groups of 64 or 128 become several blocks with the same scale. Q4_1 and Q5_1 hold scale and bias in float16. Q8_0
    has no bias: `scale · (number - k)` with a whole `k` fits where every `number - k` is a signed byte; other groups
    are rounded anew.
    """
    if block is Block.Q8_0:
        return _encode_q8_0(packed)
    rows = len(packed.numbers)
    numbers = packed.numbers.reshape(rows, -1, 32)
    each = numbers.shape[1] // packed.scales.shape[1]
    parts, exact = [], True
    for part in (packed.scales, packed.biases):
        with np.errstate(over="ignore"):
            rounded = part.astype(np.float16)
        exact &= np.array_equal(rounded.astype(np.float32), part)
        parts.append(np.repeat(rounded, each, axis=1)[..., None].view(np.uint8))
    if not np.isfinite(np.concatenate(parts, -1).view(np.float16)).all():
        raise ModelError(f"has scales that are too large for {block.name}. Try q8_0 or bf16.")
    if block is Block.Q5_1:
        high = np.packbits(numbers >> 4, axis=-1, bitorder="little")
        parts.append(high)
        numbers = numbers & 15
    parts.append(numbers[..., :16] | (numbers[..., 16:] << 4))
    return np.concatenate(parts, -1).reshape(rows, -1), bool(exact)


def _encode_q8_0(packed: Packed) -> tuple[np.ndarray, bool]:
    rows, inputs = packed.numbers.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.nan_to_num(-packed.biases / packed.scales, posinf=0.0, neginf=0.0)
    shift = np.rint(zero).astype(np.int64)
    groups = packed.numbers.reshape(rows, packed.scales.shape[1], -1).astype(np.int64) - shift[..., None]
    scales = packed.scales.astype(np.float16)
    fits = (
        (packed.scales * shift == -packed.biases)
        & (scales.astype(np.float32) == packed.scales)
        & (groups.min(-1) >= -128)
        & (groups.max(-1) <= 127)
    )
    each = groups.shape[-1] // 32
    signed = groups.astype(np.int8).reshape(rows, -1, 32).view(np.uint8)
    stored = np.concatenate([np.repeat(scales, each, axis=1)[..., None].view(np.uint8), signed], -1)
    if fits.all():
        return stored.reshape(rows, -1), True
    other = encode(packed.values(), Block.Q8_0).reshape(rows, inputs // 32, -1)
    return np.where(np.repeat(fits, each, axis=1)[..., None], stored, other).reshape(rows, -1), False


# K-quants -------------------------------------------------------------------------------------------------------


def _whole(values: np.ndarray, least: int, most: int) -> np.ndarray:
    return np.clip(np.rint(values), least, most)


def _divided(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return a quotient, 0 where the divisor is 0."""
    return np.divide(values, by, out=np.zeros(np.broadcast(values, by).shape, np.float32), where=by != 0)


def _encode_q6_k(values: np.ndarray) -> np.ndarray:
    """Return blocks of 16 groups of 16 weights: weight = d · scale (int8) · number (6 bits, from -32 to 31)."""
    groups = values.reshape(len(values), 16, 16)
    scales = _search_scales(groups)
    peak = np.take_along_axis(scales, np.abs(scales).argmax(-1)[:, None], 1)
    d = (peak / -128).astype(np.float16)
    whole = _whole(_divided(scales, d.astype(np.float32)), -128, 127)
    steps = whole * d.astype(np.float32)
    numbers = _whole(_divided(groups, steps[..., None]), -32, 31).astype(np.int8).reshape(len(values), 2, 4, 32) + 32
    first, second, third, fourth = np.moveaxis(numbers.astype(np.uint8), 2, 0)
    low = np.concatenate([first & 15 | (third & 15) << 4, second & 15 | (fourth & 15) << 4], -1)
    high = first >> 4 | (second >> 4) << 2 | (third >> 4) << 4 | (fourth >> 4) << 6
    parts = [low, high, whole.astype(np.int8).view(np.uint8), d.view(np.uint8)]
    return np.concatenate([part.reshape(len(values), -1) for part in parts], -1)


def _search_scales(groups: np.ndarray) -> np.ndarray:
    """Return the scale of each group, among 19 near the largest weight / -32, with the least error weighted by x²."""
    peak = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)
    importance = groups**2
    best, scales = np.full(groups.shape[:2], -np.inf, np.float32), np.zeros(groups.shape[:2], np.float32)
    for offset in range(-9, 10):
        numbers = _whole(groups * _divided(np.float32(-32 - 0.1 * offset), peak), -32, 31)
        along = (importance * groups * numbers).sum(-1)
        size = (importance * numbers**2).sum(-1)
        gain = _divided(along**2, size)
        better = gain > best
        best, scales = np.where(better, gain, best), np.where(better, _divided(along, size), scales)
    return scales


def _encode_q4_k(values: np.ndarray) -> np.ndarray:
    """Return blocks of 8 groups of 32 weights: weight = d · scale · number (4 bits) - dmin · minimum, 6 bits each."""
    count = len(values)
    groups = values.reshape(count, 8, 32)
    scales, minima = _search_ranges(groups)
    d, dmin = ((part.max(-1, keepdims=True) / 63).astype(np.float16) for part in (scales, minima))
    scale, minimum = (
        _whole(_divided(part, unit.astype(np.float32)), 0, 63)
        for part, unit in ((scales, d), (minima, dmin))
    )  # fmt: skip
    steps, floor = scale * d.astype(np.float32), minimum * dmin.astype(np.float32)
    numbers = _whole(_divided(groups + floor[..., None], steps[..., None]), 0, 15).astype(np.uint8)
    scale, minimum = scale.astype(np.uint8), minimum.astype(np.uint8)
    packed = np.concatenate(
        [
            scale[:, :4] | (scale[:, 4:] >> 4) << 6,
            minimum[:, :4] | (minimum[:, 4:] >> 4) << 6,
            scale[:, 4:] & 15 | (minimum[:, 4:] & 15) << 4,
        ],
        -1,
    )
    pairs = numbers.reshape(count, 4, 2, 32)
    low = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(count, -1)
    return np.concatenate([d.view(np.uint8), dmin.view(np.uint8), packed, low], -1)


def _search_ranges(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and minimum (subtracted, not below 0) of each group, among 22 with the least weighted error.

    For each rounding the two are fitted by least squares, large weights counting more.
    """
    importance = np.sqrt((groups**2).mean(-1, keepdims=True)) + np.abs(groups)
    low = np.minimum(groups.min(-1, keepdims=True), 0)
    span = groups.max(-1, keepdims=True) - low
    best = np.full(groups.shape[:2], np.inf, np.float32)
    scales, minima = span[..., 0] / 15, -low[..., 0]  # for groups of equal weights, where no fit has one solution
    total, first = importance.sum(-1), (importance * groups).sum(-1)
    for offset in range(-1, 21):
        tried = 15.0 if offset < 0 else 14 + 0.1 * offset
        numbers = _whole((groups - low) * _divided(np.float32(tried), span), 0, 15)
        ones, squares = (importance * numbers).sum(-1), (importance * numbers**2).sum(-1)
        cross = (importance * numbers * groups).sum(-1)
        determinant = total * squares - ones**2
        scale = _divided(total * cross - first * ones, determinant)
        minimum = _divided(squares * first - ones * cross, determinant)
        above = minimum > 0
        scale, minimum = np.where(above, _divided(cross, squares), scale), np.where(above, 0, minimum)
        fitted = scale[..., None] * numbers + minimum[..., None]
        error = (importance * (fitted - groups) ** 2).sum(-1)
        better = (error < best) & (determinant > 0) & (scale >= 0)
        best = np.where(better, error, best)
        scales, minima = np.where(better, scale, scales), np.where(better, -minimum, minima)
    return scales, minima
