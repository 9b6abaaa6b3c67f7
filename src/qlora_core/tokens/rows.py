"""Encoded rows: one at a time, or a million in a few arrays. Knows only numbers."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import overload

import numpy as np

_BLOCK = 2_000  # rows that are summed at once


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One row as the model is trained on it.

    Attributes:
        ids: int32, `(length,)`.
        trained: bool, `(length,)`; True where the token is a target of the loss. The first token never is.
        source: where the row came from (file:line).
        cut: number of tokens lost beyond `max_seq_length`.
        armed: whether its text contained a control token of the model, which was broken up.
        states: `(length, hidden)`: its hidden states above the frozen layers, if they were computed earlier; bfloat16,
            which numpy lacks, is stored as uint16.
    """

    ids: np.ndarray
    trained: np.ndarray
    source: str = ""
    cut: int = 0
    armed: bool = False
    states: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenRow):
            return NotImplemented
        same = (self.source, self.cut, self.armed) == (other.source, other.cut, other.armed)
        return same and np.array_equal(self.ids, other.ids) and np.array_equal(self.trained, other.trained)

    __hash__ = None  # arrays have none

    @property
    def target_tokens(self) -> int:
        """Return the number of trained tokens."""
        return int(self.trained.sum())


@dataclass(frozen=True, eq=False, repr=False)
class TokenRows(Sequence[TokenRow]):
    """Many rows end to end in a few read-only arrays; each row is a view.

    Attributes:
        ids: int32, `(tokens,)`.
        trained: bool, `(tokens,)`.
        offsets: int64, `(rows + 1,)`: index in `ids` where each row begins, and where the last one ends.
        cut: int32, `(rows,)`.
        armed: bool, `(rows,)`.
        source_bytes: uint8: the sources end to end, in UTF-8.
        source_offsets: int64, `(rows + 1,)`: index in `source_bytes` where each begins, and where the last one ends.
    """

    ids: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray
    cut: np.ndarray
    armed: np.ndarray
    source_bytes: np.ndarray
    source_offsets: np.ndarray

    def __post_init__(self) -> None:
        for name, array in zip(_names(TokenRows), self._arrays(), strict=True):
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @classmethod
    def of(cls, rows: Iterable[TokenRow]) -> TokenRows:
        """Return the same rows in compact form; rows that already are compact are returned as they are."""
        if isinstance(rows, TokenRows):
            return rows
        rows = list(rows)
        # a file's name may not be valid Unicode
        sources = [row.source.encode("utf-8", "surrogatepass") for row in rows]
        return cls(
            ids=np.concatenate([np.zeros(0, np.int32), *(row.ids for row in rows)], dtype=np.int32),
            trained=np.concatenate([np.zeros(0, bool), *(row.trained for row in rows)], dtype=bool),
            offsets=_offsets([len(row) for row in rows]),
            cut=np.asarray([row.cut for row in rows], np.int32),
            armed=np.asarray([row.armed for row in rows], bool),
            source_bytes=np.frombuffer(b"".join(sources), np.uint8),
            source_offsets=_offsets([len(source) for source in sources]),
        )

    @classmethod
    def joined(cls, parts: list[TokenRows]) -> TokenRows:
        """Return the rows of all parts in order.

        Consumes `parts`: each is freed once it is copied, so memory is not doubled.
        """
        lengths = [np.concatenate([np.zeros(0, np.int64), *(np.diff(p.offsets) for p in parts)])]
        lengths += [np.concatenate([np.zeros(0, np.int64), *(np.diff(p.source_offsets) for p in parts)])]
        tokens, sources = _offsets(lengths[0]), _offsets(lengths[1])
        count = len(lengths[0])
        whole = (
            np.empty(tokens[-1], np.int32), np.empty(tokens[-1], bool), tokens, np.empty(count, np.int32),
            np.empty(count, bool), np.empty(sources[-1], np.uint8), sources,
        )  # fmt: skip
        filled = [0] * len(whole)
        parts.reverse()
        while parts:
            for i, array in enumerate(parts.pop()._arrays()):
                if whole[i] is not tokens and whole[i] is not sources:
                    whole[i][filled[i] : filled[i] + len(array)] = array
                    filled[i] += len(array)
        return cls(*whole)

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(getattr(self, name) for name in _names(TokenRows))

    def __reduce__(self) -> tuple[type[TokenRows], tuple[np.ndarray, ...]]:
        return TokenRows, self._arrays()  # goes through `__post_init__`, since unpickled arrays are writeable

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...

    @overload
    def __getitem__(self, index: slice) -> TokenRows: ...

    def __getitem__(self, index: int | slice) -> TokenRow | TokenRows:
        if isinstance(index, slice):
            return self._slice(*index.indices(len(self)))
        i = operator.index(index)
        i += len(self) if i < 0 else 0
        if not 0 <= i < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        here = slice(self.offsets[i], self.offsets[i + 1])
        source = self.source_bytes[self.source_offsets[i] : self.source_offsets[i + 1]]
        return TokenRow(
            self.ids[here],
            self.trained[here],
            source.tobytes().decode("utf-8", "surrogatepass"),
            int(self.cut[i]),
            bool(self.armed[i]),
        )

    def _slice(self, start: int, stop: int, step: int) -> TokenRows:
        if step != 1:
            return TokenRows.of(self[i] for i in range(start, stop, step))
        stop = max(start, stop)
        tokens, sources = self.offsets[start : stop + 1], self.source_offsets[start : stop + 1]
        return TokenRows(
            self.ids[tokens[0] : tokens[-1]],
            self.trained[tokens[0] : tokens[-1]],
            tokens - tokens[0],
            self.cut[start:stop],
            self.armed[start:stop],
            self.source_bytes[sources[0] : sources[-1]],
            sources - sources[0],
        )

    def __iter__(self) -> Iterator[TokenRow]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenRows):
            return NotImplemented
        return all(map(np.array_equal, self._arrays(), other._arrays()))

    __hash__ = None

    def __repr__(self) -> str:
        return f"TokenRows({len(self)} rows, {len(self.ids)} tokens)"

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Return the tokens of each row, int64, `(rows,)`."""
        return np.diff(self.offsets)

    def digest(self) -> str:
        """Return the SHA-256 of the ids of all rows and of which are trained."""
        found = hashlib.sha256()
        for array in (self.ids, self.trained, self.offsets):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    @functools.cached_property
    def target_lengths(self) -> np.ndarray:
        """Return the trained tokens of each row, int64, `(rows,)`."""
        counts = np.zeros(len(self), np.int64)
        filled = np.flatnonzero(self.lengths)  # for an empty row, `reduceat` would return its neighbour's first token
        for start in range(0, len(filled), _BLOCK):  # in blocks, since it makes a copy eight times as large
            part = filled[start : start + _BLOCK]
            first, last = self.offsets[part[0]], self.offsets[part[-1] + 1]
            counts[part] = np.add.reduceat(self.trained[first:last], self.offsets[part] - first, dtype=np.int64)
        return counts


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the offsets of parts with these lengths, int64, `(rows + 1,)`; the last one is their sum."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
