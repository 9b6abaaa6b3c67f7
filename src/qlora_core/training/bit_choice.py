"""The choice of bits for each unit of matrices: mixtures for the whole model, and the smallest that is good enough.

Knows sizes and numbers; nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MIXTURES = 32  # between the smallest and the largest

BitWidths = dict[str, int]
"""Bits by the path of a matrix, or the name of a unit of them."""


@dataclass(frozen=True)
class Option:
    """A unit rounded to some bits.

    Attributes:
        nbytes: its size.
        error: squared change of its outputs (or of its weights, for all options of a unit alike).
    """

    nbytes: int
    error: float


def total(options: Iterable[Mapping[int, Option]]) -> dict[int, Option]:
    """Return the options of several matrices that have the same bits."""
    every = list(options)
    return {
        bits: Option(sum(each[bits].nbytes for each in every), sum(each[bits].error for each in every))
        for bits in every[0]
    }


def mixtures(options: Mapping[str, Mapping[int, Option]], harm: Mapping[str, float]) -> list[BitWidths]:
    """Return choices of bits from the smallest to the largest model, each the least harmful of its size.

    A unit (one matrix, or several that have the same bits) at more bits than its lowest is taken to do harm in
    proportion to `Option.error`, and the harm of several units to add up. Then, for any price of harm in bytes, each
    unit has one best choice of its own.

    Args:
        options: `{unit: {bits: option}}`.
        harm: what each unit does if it alone has its lowest bits, by any measure that adds up.
    """
    expected = {path: _expected(choices, harm[path]) for path, choices in options.items()}
    prices = sorted(price for path in options for price in _prices(options[path], expected[path]))
    chosen = np.quantile(prices, np.linspace(0, 1, MIXTURES), method="nearest") if prices else []
    found: list[BitWidths] = []
    for price in (0.0, *chosen, np.inf):
        widths = {path: _cheapest(options[path], expected[path], price) for path in options}
        if widths not in found:
            found.append(widths)
    return sorted(found, key=lambda widths: size(options, widths))


def size(options: Mapping[str, Mapping[int, Option]], widths: BitWidths) -> int:
    """Return the bytes of all matrices with these bits."""
    return sum(options[path][bits].nbytes for path, bits in widths.items())


def smallest_that(fits: Callable[[BitWidths], bool], candidates: Sequence[BitWidths]) -> BitWidths | None:
    """Return the smallest candidate that fits, if a larger one always fits where a smaller one does; None if none does.

    Args:
        fits: is asked for about log2 of their number; the one returned did fit.
        candidates: from the smallest to the largest.
    """
    below, above, smallest = 0, len(candidates), None
    while below < above:
        middle = (below + above) // 2
        if fits(candidates[middle]):
            above, smallest = middle, candidates[middle]
        else:
            below = middle + 1
    return smallest


def _expected(choices: Mapping[int, Option], harm: float) -> dict[int, float]:
    lowest = choices[min(choices)].error
    return {bits: harm * option.error / lowest if lowest else 0.0 for bits, option in choices.items()}


def _prices(choices: Mapping[int, Option], expected: Mapping[int, float]) -> list[float]:
    """Return the prices of harm, in bytes, at which one choice of a matrix becomes better than another."""
    order = sorted(choices)
    pairs = [(low, high) for i, low in enumerate(order) for high in order[i + 1 :] if expected[low] > expected[high]]
    return [(choices[high].nbytes - choices[low].nbytes) / (expected[low] - expected[high]) for low, high in pairs]


def _cheapest(choices: Mapping[int, Option], expected: Mapping[int, float], price: float) -> int:
    if price == np.inf:
        return max(choices)
    return min(choices, key=lambda bits: (choices[bits].nbytes + price * expected[bits], bits))
