"""Check whether the device computes rightly, and how fast: MLX's kernels against plain arithmetic in numpy's float64.

In both directions and in the dtypes that training uses there. On Metal it also checks whether sustained work survives a
display in use, which macOS may give priority.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..engine import device
from ..engine.device import mx
from ..engine.loss import cross_entropy
from ..files.storage import flush_directory, flush_to_disk
from ..machine.memory import MB, MemoryMonitor
from .checks import Finding
from .machine import best_time

Checked = tuple[str, Callable[[], Finding]]
"""Name and function of a check."""

LIMITS = {"float16": 5e-3, "bfloat16": 5e-2, "float32": 1e-4 if device.ON_CPU else 2e-3}  # CUDA multiplies in TF32
WORSE = 4  # factor on that limit for more than one product

LONGEST = 0.2  # longest product to compare or measure, in seconds
PATIENCE = 10  # seconds for the products of one dtype: CUDA compiles several kernels for each, seconds apiece
HELD = 256_000_000  # bytes of the array that memory readers should notice
SUSTAINED = 60 if mx.metal.is_available() else 5  # seconds
WRONG = "this kernel is wrong on this device: look for a newer MLX, and report it to its authors"


def device_checks() -> Iterator[Checked]:
    """Yield the checks of whether this device computes correctly, and how fast it is."""
    yield "memory readers", memory_readers
    yield "disk: made durable", durable_writes
    for dtype in dtypes():
        yield f"quantised products, {dtype}", lambda dtype=dtype: quantised_products(dtype)
        yield f"attention, {dtype}", lambda dtype=dtype: attention(dtype)
        yield f"norm, rotation, loss, {dtype}", lambda dtype=dtype: small_kernels(dtype)
    for dtype in dtypes()[:2]:
        for rows in (128, 512, 1024) if mx.metal.is_available() else (128,) if device.ON_CPU else (512,):
            yield f"speed, {dtype}, {rows} rows", lambda dtype=dtype, rows=rows: speed(dtype, rows)
    if not device.ON_CPU:
        yield f"sustained work, {SUSTAINED} s", sustained_work


def dtypes() -> Sequence[str]:
    """Check the dtypes that training computes in here."""
    return ("float32",) if device.ON_CPU else ("float16", "bfloat16", "float32")


# Readers ----------------------------------------------------------------------------------------------------------


def memory_readers() -> Finding:
    """Check that the readings of this process's memory grow by an array that it allocates."""
    monitor = MemoryMonitor(counters=device.memory_counters)
    device.clear_cache()
    before = monitor.sample()
    held = mx.zeros(HELD // 4) + 1
    mx.eval(held)
    after = monitor.sample()
    arrays, process = after.active - before.active, after.process - before.process
    del held
    device.clear_cache()
    value = (
        f"an array of {HELD // MB} MB adds {arrays // MB} MB to arrays, {process // MB} MB to the process; "
        f"pressure {before.pressure}"
    )
    own = mx.cuda.is_available()  # memory separate from the process's
    if arrays < HELD or (not own and process < HELD // 2):
        return Finding("warning", value, "watch the memory by the system's own means: these readers miss a part of it")
    return Finding("ok", value)


def durable_writes() -> Finding:
    """Measure how long a file takes to reach the device, as each checkpoint must wait for it."""
    with tempfile.TemporaryDirectory(prefix="qlora-doctor-") as place:
        path, took = Path(place) / "file", []
        for _ in range(3):
            with path.open("wb") as file:
                file.write(bytes(MB))
                file.flush()
                started = time.perf_counter()
                flush_to_disk(file.fileno())
            flush_directory(path.parent)
            took.append(time.perf_counter() - started)
    return Finding("ok", f"{1e3 * min(took):.1f} ms for a file of 1 MB and its directory (temporary directory)")


# Right? -----------------------------------------------------------------------------------------------------------


class Product(NamedTuple):
    """A product with a quantised matrix.

    Attributes:
        rows: rows of the input.
        outputs: rows of the matrix.
        inputs: columns of the matrix.
        group: weights that share a scale.
        bits: bits of a weight.
    """

    rows: int
    outputs: int
    inputs: int
    group: int
    bits: int


PRODUCTS = (
    Product(7, 576, 576, 32, 4), Product(33, 192, 576, 64, 4), Product(9, 1024, 256, 32, 8),
    Product(200, 1024, 4096, 64, 4), Product(513, 4096, 1024, 64, 4), Product(40, 14336, 4096, 64, 4),
    Product(96, 49152, 576, 32, 8),
)  # fmt: skip
"""Shapes of the built-in model and of Mistral-7B, heads included, with row counts that exercise each kernel."""


class Differences(NamedTuple):
    """The errors of products against plain arithmetic, relative to its norm; infinite if a number is not finite.

    Attributes:
        forward: error of MLX's own product, x Wᵀ.
        backward: error of MLX's own product, gradient · W.
        dequantised: the worse of both, where the matrix is dequantised first.
    """

    forward: float
    backward: float
    dequantised: float


def product_differences(product: Product, dtype: str) -> Differences:
    """Multiply by a random matrix in both directions and both ways, and compare with numpy."""
    rng, kind = np.random.default_rng(0), getattr(mx, dtype)
    options = {"group_size": product.group, "bits": product.bits}
    weight = mx.array(0.05 * rng.standard_normal((product.outputs, product.inputs), np.float32)).astype(kind)
    quantised = mx.quantize(weight, **options)
    plain, dense = _unpacked(*quantised, product), mx.dequantize(*quantised, **options)
    x, gradient = (
        mx.array(rng.standard_normal((product.rows, size), np.float32)).astype(kind)
        for size in (product.inputs, product.outputs)
    )
    forward, backward = _wide(x) @ plain.T, _wide(gradient) @ plain
    return Differences(
        difference(mx.quantized_matmul(x, *quantised, transpose=True, **options), forward),
        difference(mx.quantized_matmul(gradient, *quantised, transpose=False, **options), backward),
        max(difference(x @ dense.T, forward), difference(gradient @ dense, backward)),
    )


def _unpacked(words: mx.array, scales: mx.array, biases: mx.array, product: Product) -> np.ndarray:
    """Return the matrix of packed words, `(outputs, inputs)`: scale · level + bias."""
    shifts = np.arange(0, 32, product.bits, dtype=np.uint32)
    levels = np.array(words)[..., None] >> shifts & ((1 << product.bits) - 1)
    grouped = levels.reshape(product.outputs, -1, product.group).astype(np.float64)
    return (grouped * _wide(scales)[..., None] + _wide(biases)[..., None]).reshape(product.outputs, product.inputs)


def difference(found: mx.array, wanted: np.ndarray) -> float:
    """Return the norm of the difference of two arrays relative to the norm of `wanted`."""
    values = _wide(found)
    if not np.isfinite(values).all():
        return math.inf
    return float(np.linalg.norm(values - wanted) / np.linalg.norm(wanted))


def _wide(values: mx.array) -> np.ndarray:
    return np.array(values.astype(mx.float32)).astype(np.float64)


def quantised_products(dtype: str) -> Finding:
    """Check MLX's quantised product and the exact path that dequantises first, for as many products as time allows."""
    limit, wrong, worst, exact, tried = LIMITS[dtype], [], 0.0, 0.0, 0
    started = time.monotonic()
    for product in PRODUCTS:
        if tried and (time.monotonic() - started > PATIENCE or _takes_long(product, dtype)):
            break
        found, tried = product_differences(product, dtype), tried + 1
        worst, exact = max(worst, found.forward, found.backward), max(exact, found.dequantised)
        wrong += [
            f"{direction} product of {product.rows} rows with {product.outputs} x {product.inputs} at {product.bits} "
            f"bits, group {product.group}, is off by {off:.1e}"
            for direction, off in (("forward", found.forward), ("backward", found.backward))
            if not off < limit
        ]
    if not exact < limit:
        return Finding("failed", f"dequantised products are off by {exact:.1e}, {limit:.0e} allowed", WRONG)
    if not wrong:
        return Finding(
            "ok", f"{tried} of {len(PRODUCTS)} shapes, both directions: within {worst:.0e}, dequantised {exact:.0e}"
        )
    value = f"{wrong[0]}{f' ({len(wrong)} such)' if len(wrong) > 1 else ''}; dequantised ones are right ({exact:.0e})"
    if device.choose_kernels(dtype, 0, 0).linear == "quantised":
        return Finding("failed", value, WRONG)
    return Finding("warning", value, "nothing to do: training dequantises here, and does not use this kernel")


def _takes_long(product: Product, dtype: str) -> bool:
    """Return whether a quantised product takes longer than `LONGEST`, judging by one of at most a 64th of its size."""
    if mx.cuda.is_available():  # none does, and to find out would take two more kernels
        return False
    rows, outputs, inputs = product[:3]
    parts = Product(
        rows, max(64, outputs // 8 // 64 * 64), max(64, inputs // 8 // 64 * 64), product.group, product.bits
    )
    return _timed(parts, dtype) * outputs * inputs / (parts.outputs * parts.inputs) > LONGEST


def _timed(product: Product, dtype: str) -> float:
    weights, x, _ = _drawn(product, dtype)
    options = {"group_size": product.group, "bits": product.bits}
    return best_time(lambda: mx.quantized_matmul(x, *weights, transpose=True, **options), 2)


def _drawn(product: Product, dtype: str) -> tuple[tuple[mx.array, ...], mx.array, mx.array]:
    """Return a random quantised matrix, an input and a gradient, in memory."""
    kind, shapes = getattr(mx, dtype), ((product.rows, product.inputs), (product.rows, product.outputs))
    weight = (0.02 * mx.random.normal((product.outputs, product.inputs))).astype(kind)
    weights = mx.quantize(weight, group_size=product.group, bits=product.bits)
    x, gradient = (mx.random.normal(shape).astype(kind) for shape in shapes)
    mx.eval(weights, x, gradient)
    return weights, x, gradient


def attention(dtype: str) -> Finding:
    """Check causal grouped-head attention and its three gradients."""
    rng, kind = np.random.default_rng(1), getattr(mx, dtype)
    rows, heads, shared, length, size = 2, 8, 2, 160, 128
    shapes = [(rows, count, length, size) for count in (heads, shared, shared, heads)]
    *inputs, down = (mx.array(rng.standard_normal(shape, np.float32)).astype(kind) for shape in shapes)

    def attend(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        return [mx.fast.scaled_dot_product_attention(q, k, v, scale=size**-0.5, mask="causal")]

    (found,), gradients = mx.vjp(attend, inputs, [down])
    wanted = _attention(*map(_wide, (*inputs, down)), scale=size**-0.5)
    parts = zip(("output", "gradient of queries", "of keys", "of values"), (found, *gradients), wanted, strict=True)
    return _judged({name: difference(one, other) for name, one, other in parts}, dtype)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, down: np.ndarray, *, scale: float) -> list[np.ndarray]:
    """Return output and gradients of queries, keys and values."""
    group, length = q.shape[1] // k.shape[1], q.shape[2]
    wide_k, wide_v = (np.repeat(part, group, 1) for part in (k, v))
    scores = np.where(np.tri(length, dtype=bool), scale * q @ wide_k.swapaxes(-1, -2), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    upstream = down @ wide_v.swapaxes(-1, -2)
    inner = scale * weights * (upstream - (upstream * weights).sum(-1, keepdims=True))

    def gathered(gradient: np.ndarray) -> np.ndarray:
        return gradient.reshape(len(q), -1, group, *gradient.shape[2:]).sum(2)

    by_key, by_value = gathered(inner.swapaxes(-1, -2) @ q), gathered(weights.swapaxes(-1, -2) @ down)
    return [weights @ wide_v, inner @ wide_k, by_key, by_value]


def small_kernels(dtype: str) -> Finding:
    """Check the norm without a weight and its gradient, rotation by positions, and cross-entropy with its gradient."""
    rng, kind = np.random.default_rng(2), getattr(mx, dtype)

    def drawn(*shape: int, width: float = 1.0) -> mx.array:
        return mx.array(width * rng.standard_normal(shape, np.float32)).astype(kind)

    x, down, eps = drawn(64, 1024), drawn(64, 1024), 1e-5
    (norm,), (norm_gradient,) = mx.vjp(lambda a: [mx.fast.rms_norm(a, None, eps)], [x], [down])
    scale = 1 / np.sqrt((_wide(x) ** 2).mean(-1, keepdims=True) + eps)
    plain = _wide(x) * scale
    plain_gradient = scale * (_wide(down) - plain * (_wide(down) * plain).mean(-1, keepdims=True))
    turned, places = drawn(50, 9, 1, 64), rng.integers(0, 400, 50).astype(np.int32)
    rotated = mx.fast.rope(turned, 64, traditional=False, base=1e4, scale=1.0, offset=mx.array(places))
    logits, target = drawn(70, 3001, width=3.0), rng.integers(0, 3001, 70).astype(np.int32)
    weight = mx.ones(70)
    loss, loss_gradient = mx.value_and_grad(lambda a: cross_entropy(a, mx.array(target), weight))(logits)
    log_p = _wide(logits) - np.log(np.exp(_wide(logits)).sum(-1, keepdims=True))
    found = {
        "norm": difference(norm, plain),
        "norm's gradient": difference(norm_gradient, plain_gradient),
        "rotation": difference(rotated, _rotated(_wide(turned), places)),
        "loss": difference(loss, -log_p[np.arange(70), target].sum()),
        "loss's gradient": difference(loss_gradient, np.exp(log_p) - np.eye(3001)[target]),
    }
    return _judged(found, dtype)


def _rotated(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    angles = places[:, None, None, None] * 1e4 ** (-np.arange(half) / half)
    low, high = x[..., :half], x[..., half:]
    turned = (low * np.cos(angles) - high * np.sin(angles), low * np.sin(angles) + high * np.cos(angles))
    return np.concatenate(turned, -1)


def _judged(found: dict[str, float], dtype: str) -> Finding:
    limit = WORSE * LIMITS[dtype]
    wrong = [f"{name} is off by {off:.1e}" for name, off in found.items() if not off < limit]
    if wrong:
        return Finding("failed", f"{', '.join(wrong)}; {limit:.0e} allowed", WRONG)
    return Finding("ok", f"{', '.join(found)}: within {max(found.values()):.0e}")


# Fast? ------------------------------------------------------------------------------------------------------------


def _largest(rows: int, dtype: str) -> Product | None:
    """Return the largest of some products that takes no longer than `LONGEST`: a 7B model's on a fast device."""
    found = None
    for size in ((256, 256), (1024, 1024), (14336, 4096)):
        product = Product(rows, *size, 64, 4)
        if found and _timed(found, dtype) * math.prod(product[:3]) / math.prod(found[:3]) > LONGEST:
            return found
        if not found and _timed(product, dtype) > LONGEST:
            return None
        found = product
    return found


def speed(dtype: str, rows: int) -> Finding:
    """Measure the speed of products in both directions and both ways."""
    product = _largest(rows, dtype)
    if product is None:
        return Finding("ok", "not measured: even small products take long")
    weights, x, gradient = _drawn(product, dtype)
    options = {"group_size": product.group, "bits": product.bits}
    ways = (
        lambda: mx.quantized_matmul(x, *weights, transpose=True, **options),
        lambda: mx.quantized_matmul(gradient, *weights, transpose=False, **options),
        lambda: x @ mx.dequantize(*weights, **options).T,
        lambda: gradient @ mx.dequantize(*weights, **options),
    )
    rates = [2 * rows * product.outputs * product.inputs / best_time(way, 3) for way in ways]
    unit, size = ("TFLOP/s", 1e12) if max(rates) > 1e12 else ("GFLOP/s", 1e9)
    forward, backward, dense, dense_backward = (f"{rate / size:.3g}" for rate in rates)
    return Finding(
        "ok",
        f"{product.outputs} x {product.inputs}: quantised {forward} forward, {backward} backward; "
        f"dequantised first {dense}, {dense_backward} {unit}",
    )


def sustained_work() -> Finding:
    """Multiply without a pause, as training does, long enough for heat and a system watchdog to show."""
    found = (_largest(rows, "float16") for rows in (1024, 128, 8))
    product = next(filter(None, found), Product(8, 256, 256, 64, 4))
    weights, x, _ = _drawn(product, "float16")
    options = {"group_size": product.group, "bits": product.bits}
    took, end = [], time.perf_counter() + SUSTAINED
    try:
        while time.perf_counter() < end:
            started, y = time.perf_counter(), x
            for _ in range(10):
                y = mx.quantized_matmul(y, *weights, transpose=True, **options)
                y = mx.quantized_matmul(y, *weights, transpose=False, **options)
                y = y / mx.sqrt(mx.square(y.astype(mx.float32)).mean()).astype(y.dtype)
            mx.eval(y)
            took.append(time.perf_counter() - started)
    except RuntimeError as error:
        remedy = "let the display sleep while it trains; training pauses at its last checkpoint when this happens"
        return Finding("failed", f"the system ended it after {len(took)} rounds: {error}", remedy)
    tenth = max(1, len(took) // 10)
    pace = sum(took[:tenth]) / sum(took[-tenth:])
    value = f"{len(took)} rounds, the last ones at {100 * pace:.0f}% of the first ones' speed"
    if pace < 0.8:
        return Finding("warning", value, "it grows hot, or is shared: give it air, and close other programs")
    return Finding("ok", value)
