"""What several devices would give, on paper: from one device's measured speed, and the bytes that a step sends.

    uv run python benchmarks/scaling.py

The rows of each step are divided as the trainer divides them, by tokens, and all wait for the device that has most.
Then adapters and gradient are summed over all devices, in a ring: each sends 2 (n - 1) / n of them to its neighbour, in
2 (n - 1) turns (Patarasuk and Yuan 2009, J. Parallel Distrib. Comput. 69, 117). The tables of docs/scaling.md are its
output. Nothing is computed on any device.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qlora_core.tokens.batching import share_out

DEVICES = (1, 2, 4, 8, 16, 32, 64)
STEPS = 100
MEDIAN, SPREAD = 180, 0.6  # of rows: tokens, and of their logarithm; a mean of about 215
SUMS = 2  # a step: the adapters that the trainer sends, and everybody's gradient


@dataclass(frozen=True)
class Link:
    """What connects two devices: bytes a second, and the seconds of a turn."""

    name: str
    rate: float
    turn: float

    def seconds(self, size: float, devices: int) -> float:
        """Return how long the sum of so many bytes takes."""
        turns = 2 * (devices - 1)
        return turns * (self.turn + size / devices / self.rate) if turns else 0.0


# the first fits what MLX's sum took between two H200s: 1 MB 0.14 ms, 29 MB 0.29 ms, 256 MB 1.31 ms
NVLINK = Link("NVLink", 218e9, 0.07e-3)
LINKS = (NVLINK, Link("Thunderbolt 4", 3e9, 0.1e-3), Link("10 GbE", 1.1e9, 0.1e-3), Link("1 GbE", 0.11e9, 0.2e-3))


@dataclass(frozen=True)
class Work:
    """A training.

    Attributes:
        name: for the table.
        speed: of one device, in tokens a second.
        trained: numbers that are trained.
        rows: of a step, for each device.
        more: seconds that a step took on two devices beyond half of one's, as measured; what it holds is not known.
    """

    name: str
    speed: float
    trained: int
    rows: int
    more: float = 0.0


RANK_8 = 20_971_520  # trained numbers of Mistral-7B's shape, all projections
H200 = Work("Mistral-7B on H200s, 64 rows each", 12_518, RANK_8, 64)
AS_MEASURED = Work("the same, with the time that two lost", 12_518, RANK_8, 64, more=0.07)
MAC = Work("Mistral-7B on Macs, 8 rows each", 150, RANK_8, 8)


def step_lengths(rows: int, rng: np.random.Generator) -> list[int]:
    """Return the tokens of a step's rows, drawn from a skewed distribution as rows of text have."""
    return np.clip(rng.lognormal(np.log(MEDIAN), SPREAD, rows), 8, 2_048).astype(int).tolist()


def times_as_fast(work: Work, link: Link, devices: int) -> float:
    """Return the speed of so many devices over that of one, at as many rows for each."""
    rng, tokens, seconds = np.random.default_rng(0), 0, 0.0
    for _ in range(STEPS):
        lengths = step_lengths(work.rows * devices, rng)
        most = max(sum(lengths[i] for i in share) for share in share_out(lengths, devices))
        tokens += sum(lengths)
        seconds += most / work.speed + SUMS * link.seconds(4 * work.trained, devices) + work.more * (devices > 1)
    return tokens / seconds / work.speed


def unequal(speeds: Sequence[float], rows: int) -> tuple[float, float]:
    """Return the speed over that of the fastest alone: with equal shares of tokens, and with shares by speed."""
    rng, tokens, equal, by_speed = np.random.default_rng(0), 0, 0.0, 0.0
    for _ in range(STEPS):
        lengths = step_lengths(rows * len(speeds), rng)
        loads = sorted((sum(lengths[i] for i in share) for share in share_out(lengths, len(speeds))), reverse=True)
        tokens += sum(lengths)
        equal += max(load / speed for load, speed in zip(loads, sorted(speeds, reverse=True), strict=True))
        by_speed += sum(lengths) / sum(speeds)  # at best: rows cannot be cut
    return tokens / equal / max(speeds), tokens / by_speed / max(speeds)


def table(work: Work, links: Sequence[Link]) -> list[str]:
    """Return lines of a table: devices, and how many times as fast over each link."""
    lines = [f"| {work.name}: devices | {' | '.join(link.name for link in links)} |", f"|---|{'---:|' * len(links)}"]
    for devices in DEVICES:
        found = (times_as_fast(work, link, devices) for link in links)
        lines.append(f"| {devices} | {' | '.join(f'{one:.2f}' for one in found)} |")
    return lines


def main() -> None:
    """Print the tables."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print("\n".join([*table(H200, LINKS[:1]), "", *table(AS_MEASURED, LINKS[:1]), "", *table(MAC, LINKS[1:]), ""]))
    print("| machines | shares of equal tokens | shares by speed, at best |\n|---|---:|---:|")
    for name, speeds in (("two alike", (1, 1)), ("one 2.5 times as fast", (2.5, 1)), ("four alike, one half as fast",
                         (1, 1, 1, 1, 0.5))):  # fmt: skip
        equal, by_speed = unequal(speeds, MAC.rows)
        print(f"| {name} | {equal:.2f} | {by_speed:.2f} |")


if __name__ == "__main__":
    main()
