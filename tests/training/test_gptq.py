"""Rounding to a few bits: MLX's own layout to the bit, and GPTQ against its formulas written out in float64."""

import itertools

import numpy as np
import pytest
from harness import normal

from qlora_core.engine.device import mx
from qlora_core.training.bit_choice import Option, mixtures, size, smallest_that, total
from qlora_core.training.gptq import (
    inverse_factor,
    output_error,
    packed_bytes,
    round_calibrated,
    round_to_nearest,
)

BITS = (2, 3, 4, 5, 6, 8)


def inputs_with_habits(tokens: int, width: int) -> np.ndarray:
    """Inputs whose numbers depend on each other and differ in size, as a model's do: `(tokens, width)`."""
    rng = np.random.default_rng(1)
    mixed = rng.normal(size=(tokens, width // 4)) @ rng.normal(size=(width // 4, width))
    return ((mixed + 0.1 * rng.normal(size=mixed.shape)) * rng.lognormal(size=width)).astype(np.float32)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", BITS)
def test_to_the_nearest_step_it_is_what_mlx_stores(bits, group_size):
    weight = normal(24, 256)
    found = round_to_nearest(weight, bits, group_size, mx.float32)
    wanted = mx.quantize(weight, group_size=group_size, bits=bits)
    for ours, theirs in zip((found.weight, found.scales, found.biases), wanted, strict=True):
        assert np.array_equal(np.array(ours), np.array(theirs))
    assert found.nbytes == packed_bytes((24, 256), bits, group_size) + 4 * 24 * 256 // group_size  # float32 here


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_codes_are_chosen_for_the_scales_that_are_stored(dtype):
    """Rounded scales under codes that were chosen for the exact ones would be further off."""
    weight = 3 + normal(16, 64)
    found = round_to_nearest(weight, 8, 64, dtype)
    assert (found.scales.dtype, found.biases.dtype) == (dtype, dtype)
    packed, scales, biases = mx.quantize(weight, group_size=64, bits=8)
    scales, biases = (each.astype(dtype).astype(mx.float32) for each in (scales, biases))
    careless = mx.dequantize(packed, scales, biases, group_size=64, bits=8)
    assert mx.abs(found.dense() - weight).mean() < mx.abs(careless - weight).mean()


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_for_independent_inputs_calibrated_is_nearest(bits):
    weight = normal(20, 128)
    factor = inverse_factor(np.eye(128))
    found = round_calibrated(weight, factor, bits, 64, mx.float16)
    assert np.array_equal(np.array(found.weight), np.array(round_to_nearest(weight, bits, 64, mx.float16).weight))


def by_the_book(weight: np.ndarray, moments: np.ndarray, step: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    """GPTQ's codes with the inverse of what is left computed anew for each column (equations 1 to 3 of the paper)."""
    left, codes = weight.astype(np.float64), np.zeros(weight.shape, np.int64)
    for k in range(weight.shape[1]):
        inverse = np.linalg.inv(moments[k:, k:])
        codes[:, k] = np.clip(np.rint((left[:, k] - zero) / step), 0, 2**bits - 1)
        error = (left[:, k] - (codes[:, k] * step + zero)) / inverse[0, 0]
        left[:, k:] -= np.outer(error, inverse[0])
    return codes


def test_calibrated_is_what_the_paper_says():
    """One group, so that its steps are known before any column is rounded."""
    weight, x = normal(12, 64), inputs_with_habits(300, 64)
    moments = (x.T @ x).astype(np.float64)
    damped = moments + 0.01 * np.diagonal(moments).mean() * np.eye(64)
    found = round_calibrated(weight, inverse_factor(moments), 4, 64, mx.float16)
    step, zero = (np.array(each.astype(mx.float32))[:, 0] for each in (found.scales, found.biases))
    wanted = by_the_book(np.array(weight), damped, step, zero, 4)
    codes = np.rint((np.array(found.dense()) - zero[:, None]) / step[:, None]).astype(np.int64)
    assert (codes == wanted).mean() > 0.99  # float32 may fall on the other side of a tie


@pytest.mark.parametrize("bits", [4, 6])
def test_calibrated_changes_outputs_less_also_on_inputs_it_never_saw(bits):
    weight, x = normal(40, 128), inputs_with_habits(2_000, 128)
    seen, unseen = (mx.array(half.T @ half) for half in np.split(x, 2))
    calibrated = round_calibrated(weight, inverse_factor(np.array(seen)), bits, 64, mx.float16)
    nearest = round_to_nearest(weight, bits, 64, mx.float16)
    for moments in (seen, unseen):
        assert output_error(weight, calibrated, moments) < 0.5 * output_error(weight, nearest, moments)
    assert output_error(weight, calibrated, None) > output_error(weight, nearest, None)


def test_inputs_that_are_always_zero_do_no_harm():
    x = inputs_with_habits(100, 64)
    x[:, 5] = 0
    weight = normal(8, 64)
    found = round_calibrated(weight, inverse_factor(x.T @ x), 4, 64, mx.float16)
    assert mx.isfinite(found.dense()).all()
    assert inverse_factor(np.full((4, 4), np.nan)) is None


def test_a_group_of_zeros_stays_zero():
    weight = mx.concatenate([mx.zeros((4, 64)), normal(4, 64)], axis=1)
    for found in (
        round_to_nearest(weight, 4, 64, mx.float16),
        round_calibrated(weight, inverse_factor(np.eye(128)), 4, 64, mx.float16),
    ):
        assert not found.dense()[:, :64].any()


# Which unit gets how many bits ------------------------------------------------------------------------------------

OPTIONS = {
    "a": {4: Option(100, 8.0), 5: Option(120, 2.0), 8: Option(190, 0.1)},
    "b": {4: Option(10, 3.0), 5: Option(12, 1.0), 8: Option(19, 0.1)},
    "c": {4: Option(50, 1.0), 5: Option(60, 0.3), 8: Option(95, 0.0)},
}
HARM = {"a": 0.02, "b": 0.05, "c": 0.001}


def expected_harm(widths: dict[str, int]) -> float:
    return sum(HARM[unit] * OPTIONS[unit][bits].error / OPTIONS[unit][4].error for unit, bits in widths.items())


def test_each_mixture_does_least_harm_for_its_size():
    found = mixtures(OPTIONS, HARM)
    assert found[0] == dict.fromkeys(OPTIONS, 4)
    assert found[-1] == dict.fromkeys(OPTIONS, 8)
    sizes = [size(OPTIONS, widths) for widths in found]
    assert sizes == sorted(set(sizes))
    assert found[1] == {"a": 4, "b": 5, "c": 4}  # two bytes that avoid most of the harm
    for widths in found:
        for bits in itertools.product((4, 5, 8), repeat=3):
            other = dict(zip(OPTIONS, bits, strict=True))
            if size(OPTIONS, other) <= size(OPTIONS, widths):
                assert expected_harm(other) >= expected_harm(widths) - 1e-12


def test_units_without_harm_stay_small():
    assert all(widths["c"] == 4 for widths in mixtures(OPTIONS, HARM | {"c": 0.0})[:-1])


@pytest.mark.parametrize("first", range(9))
def test_the_smallest_form_that_fits_is_found_with_few_questions(first):
    candidates, asked = [{"a": number} for number in range(8)], []

    def fits(widths: dict[str, int]) -> bool:
        asked.append(widths["a"])
        return widths["a"] >= first

    assert smallest_that(fits, candidates) == ({"a": first} if first < 8 else None)
    assert len(asked) <= 4


def test_options_of_several_matrices_add_up():
    assert total([OPTIONS["a"], OPTIONS["b"]])[5] == Option(132, 3.0)
