"""The grouping of rows that are computed together: in a step, in one of its rounds, and on one stream.

Everything follows from lengths, settings and kernels, so that a run that is resumed adds up the same numbers in the
same order. Knows no model, and computes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..config import TrainConfig
from ..runs.kernel_choice import Kernels
from ..tokens.batching import (
    AS_IT_IS,
    Batch,
    Order,
    at_most,
    epoch_steps,
    in_rounds_of_sharing,
    make_batch,
    neighbours,
    share_out,
)
from ..tokens.rows import TokenRow, TokenRows
from ..tokens.shared_prefix import NO_PREFIX, begins_with

if TYPE_CHECKING:
    from ..engine.model import Layout

Shares = list[list[TokenRow]]
"""A round: the rows of each stream, computed at the same time."""
NumberedRound = tuple[list[list[int]], Shares]
"""A round, as indices of the rows and as rows."""


@dataclass
class Batcher:
    """Groups the rows of a run into steps and rounds.

    Attributes:
        lengths: tokens of each training row.
        train: batch size, accumulation and seed.
        kernels: number of streams, rounding of sizes, and tokens that a stream computes at once.
        layout: how batches are laid out.
        micro_batch: rows that are computed at once: `batch_size`, or fewer after memory ran out.
        prefix: int32: token ids of the prefix that rows computed together share; empty if they share none.
    """

    lengths: Sequence[int]
    train: TrainConfig
    kernels: Kernels
    layout: Layout
    micro_batch: int
    prefix: np.ndarray = field(default_factory=lambda: NO_PREFIX)

    # An epoch ------------------------------------------------------------------------------------------------

    @property
    def order(self) -> Order:
        """Return how rows are grouped into batches."""
        if self.layout != "packed":
            return "alike"
        return "level" if self.kernels.rounding.bins else "drawn"

    def steps(self, epoch: int) -> list[list[list[int]]]:
        """Return the micro-batches, as indices of rows, of each step of an epoch counted from 0."""
        return epoch_steps(self.lengths, self.train, epoch=epoch, order=self.order)

    def longest(self, rows: TokenRows) -> list[int]:
        """Return the indices of the rows of the largest micro-batch, which needs the most memory."""
        return np.argsort(rows.lengths, kind="stable")[-self.micro_batch :].tolist()

    def validation(self, lengths: Sequence[int]) -> list[range]:
        """Return the batches of validation rows of these lengths: neighbours, the same every time."""
        return list(neighbours(lengths, self.tokens_at_once))

    # A step --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def tokens_at_once(self) -> int:
        """Return the token budget of a packed round.

        This is the sum of the `micro_batch` longest rows, for which memory was checked.
        """
        return sum(sorted(self.lengths)[-self.micro_batch :])

    @property
    def tokens_a_stream(self) -> int:
        """Return the most tokens of a packed round that one stream computes at once."""
        return self.kernels.at_once or self.tokens_at_once

    def rounds(self, rows: Sequence[TokenRow], group: Iterable[Sequence[int]]) -> Iterator[Shares]:
        """Yield the rounds of a step, computed one after another: see `numbered_rounds`."""
        for _, shares in self.numbered_rounds(rows, group):
            yield shares

    def numbered_rounds(self, rows: Sequence[TokenRow], group: Iterable[Sequence[int]]) -> Iterator[NumberedRound]:
        """Yield the rounds of a step, computed one after another.

        Packed rows are grouped by their tokens, whatever micro-batch they belong to: many short rows take no more
        memory than a few long ones. Padded rows stay in their micro-batches.

        Args:
            rows: all rows.
            group: the indices of the rows of each micro-batch.
        """
        packed = self.layout == "packed"
        batches = [[i for batch in group for i in batch]] if packed else at_most(self.micro_batch, group)
        for batch in batches:
            together = [rows[i] for i in batch]
            for shares in self._packed_rounds(together) if packed else [self._padded_round(together)]:
                yield (
                    [[batch[i] for i in share] for share in shares],
                    [[together[i] for i in share] for share in shares],
                )

    def divided(
        self, rows: Sequence[TokenRow], group: Iterable[Sequence[int]], devices: int
    ) -> list[list[NumberedRound]]:
        """Return the rounds of each device, which get about as many tokens each; a device may get none.

        Args:
            rows: all rows.
            group: the indices of the rows of each micro-batch.
            devices: number of devices.
        """
        batches = [[i for batch in group for i in batch]] if self.layout == "packed" else group
        parts: list[list[list[int]]] = [[] for _ in range(devices)]

        def tokens(batches: Iterable[Sequence[int]]) -> int:
            return sum(len(rows[i]) for batch in batches for i in batch)

        for batch in batches:
            shares = [[batch[i] for i in share] for share in share_out([len(rows[i]) for i in batch], devices)]
            shares.sort(key=lambda share: -tokens([share]))
            parts.sort(key=tokens)  # the largest share to whoever has least so far
            for part, share in zip(parts, shares, strict=False):
                part.append(share)
        parts.sort(key=lambda part: -len(part))  # the trainer, which is first, is never without rows
        return [list(self.numbered_rounds(rows, part)) if part else [] for part in parts]

    def _padded_round(self, rows: list[TokenRow]) -> list[list[int]]:
        """Return the indices of each stream's rows."""
        return share_out([len(row) for row in rows], self.kernels.streams)

    def _packed_rounds(self, rows: list[TokenRow]) -> list[list[list[int]]]:
        """Return the indices of each stream's rows in each round."""
        size = len(self.prefix) if self.kernels.rounding == AS_IT_IS else 0  # each bin has its own copy anyway
        shared = [size * begins_with(row, self.prefix) for row in rows]
        return in_rounds_of_sharing(
            [len(row) for row in rows],
            shared,
            streams=self.kernels.streams,
            share=self.tokens_a_stream,
            at_once=self.tokens_at_once,
        )

    def streams_of(self, shares: Shares) -> int:
        """Return the number of streams to divide the cores over.

        A long row gets the cores of idle streams; with short rows, waiting threads would cost more than they save.
        """
        long = any(sum(map(len, share)) > self.tokens_a_stream for share in shares)
        return len(shares) if long else self.kernels.streams

    def batch(self, share: Sequence[TokenRow]) -> Batch:
        """Lay out the rows of a stream."""
        return lay_out(share, self.layout, self.kernels, self.prefix)


def lay_out(share: Sequence[TokenRow], layout: Layout, kernels: Kernels, prefix: np.ndarray) -> Batch:
    """Lay out the rows of a stream, wherever they are computed."""
    return make_batch(share, packed=layout == "packed", rounding=kernels.rounding, prefix=prefix)
