"""Encode many rows, in several processes if there are many, and report rows that cannot be used."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..activity import doing
from ..config import Reasoning
from ..errors import DataError
from ..machine.process_pool import in_processes, processes
from .conversations import Note, is_target
from .rows import TokenRow, TokenRows
from .tokenizer import ChatTokenizer

PARALLEL_ROWS = 20_000  # with fewer rows, one process finishes before worker processes have started
CHUNK_ROWS = 2_000  # rows in a task of a worker process: a tenth of a second


@dataclass(frozen=True)
class TokenDataset:
    """Rows that are ready to train, and those that could not be used.

    Attributes:
        rows: in the order of the prepared file; any sequence of rows is accepted and made compact.
        skipped: (source, reason) of each row with nothing to train, or of each such part of a row that became several.
        skipped_places: index of each of those among the prepared rows.
        several: (index, rows) of each prepared row that is used but did not become exactly one row.
        notes: (note, number of prepared rows, source of the first) for everything done that the author should know.
        conversations: number of prepared rows that are conversations.
        thinks: whether the model is to be asked for answers that begin with reasoning, as most answers do or do not;
            None if no request depends on it.
    """

    rows: TokenRows
    skipped: tuple[tuple[str, str], ...] = ()
    skipped_places: tuple[int, ...] = ()
    several: tuple[tuple[int, int], ...] = ()
    notes: tuple[tuple[Note, int, str], ...] = ()
    conversations: int = 0
    thinks: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", TokenRows.of(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Return the number of tokens, without padding."""
        return len(self.rows.ids)

    @property
    def target_tokens(self) -> int:
        """Return the number of trained tokens."""
        return int(np.count_nonzero(self.rows.trained))

    @property
    def truncated(self) -> int:
        """Return the number of rows that lost tokens at their end."""
        return int(np.count_nonzero(self.rows.cut))

    def origins(self, prepared: int) -> np.ndarray:
        """Return, for each row, the index of the prepared row that it was made from, int64, `(rows,)`."""
        counts = np.ones(prepared, np.int64)
        counts[list(self.skipped_places)] = 0
        for place, count in self.several:
            counts[place] = count
        return np.repeat(np.arange(prepared), counts)

    @property
    def longest(self) -> int:
        """Return the tokens of the longest row."""
        return int(self.rows.lengths.max(initial=0))


def make_dataset(
    rows: Iterable[dict[str, Any]],
    tokenizer: ChatTokenizer,
    max_seq_length: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> TokenDataset:
    """Encode prepared rows; rows whose prompt fills `max_seq_length`, or that the template refuses, are reported.

    From `PARALLEL_ROWS` rows on, several processes share the work; the result is the same to the bit. Afterwards the
    tokeniser asks for answers with or without reasoning, as most of these rows have it, unless it was told otherwise.

    Args:
        rows: the prepared rows. If they have a method `lines(start, stop)` that returns rows as JSON in bytes, the
            processes receive those.
        tokenizer: the model's; worker processes load it from its directory again.
        max_seq_length: most tokens in a row.
        progress: called now and then with the number of rows done.

    Raises:
        DataError: a process was killed.
    """
    rows = rows if isinstance(rows, Sequence) else list(rows)
    chunks = [(start, min(start + CHUNK_ROWS, len(rows))) for start in range(0, len(rows), CHUNK_ROWS)]
    if len(rows) >= PARALLEL_ROWS and processes() > 1:
        lines = getattr(rows, "lines", None) or (lambda start, stop: list(_part(rows, start, stop)))
        source = (tokenizer.directory, tokenizer.template, tokenizer.reasoning)
        work = functools.partial(_encode_lines, source=source, max_seq_length=max_seq_length)
        results = in_processes(work, (lines(*chunk) for chunk in chunks))
    else:
        results = (_encode_chunk(_part(rows, *chunk), tokenizer, max_seq_length) for chunk in chunks)
    parts: list[TokenRows] = []
    others: list[TokenDataset] = []
    with contextlib.closing(results), doing("encoding", len(rows)) as tick:
        for (start, done), result in zip(chunks, results, strict=True):
            parts.append(result.rows)
            others.append(_moved(result, start))
            tick(done)
            if progress:
                progress(done)
    made = _joined(parts, others, tokenizer)
    if made.conversations:
        tokenizer.follow(made.thinks)
    return made


class Datasets(NamedTuple):
    """Both sides of a split, encoded.

    Attributes:
        train: rows to train.
        validation: rows to validate on.
    """

    train: TokenDataset
    validation: TokenDataset


def make_datasets(
    train: Iterable[dict[str, Any]],
    validation: Iterable[dict[str, Any]],
    tokenizer: ChatTokenizer,
    max_seq_length: int,
) -> Datasets:
    """Encode both sides of a split, as `make_dataset` does.

    Afterwards the tokeniser asks for answers with or without reasoning as most of the rows to train have it.

    Raises:
        DataError: a process was killed.
    """
    made = Datasets(*(make_dataset(rows, tokenizer, max_seq_length) for rows in (train, validation)))
    if made.train.conversations:
        tokenizer.follow(made.train.thinks)
    return made


def _moved(part: TokenDataset, start: int) -> TokenDataset:
    """Return everything but the rows of a dataset, with indices that count from `start`."""
    places = tuple(start + place for place in part.skipped_places)
    several = tuple((start + place, count) for place, count in part.several)
    return dataclasses.replace(part, rows=TokenRows.of([]), skipped_places=places, several=several)


def gathered(notes: Iterable[Iterable[tuple[Note, int, str]]]) -> dict[Note, tuple[int, str]]:
    """Return, for each note of several datasets, how many rows it is about and where the first came from."""
    found: dict[Note, tuple[int, str]] = {}
    for what, count, source in itertools.chain.from_iterable(notes):
        known, first = found.get(what, (0, source))
        found[what] = (known + count, first)
    return found


def _joined(rows: list[TokenRows], parts: Sequence[TokenDataset], tokenizer: ChatTokenizer) -> TokenDataset:
    notes = gathered(part.notes for part in parts)
    conversations = sum(part.conversations for part in parts)
    thinks = None
    if conversations and tokenizer.can_think:
        thinks = 2 * notes.get("reasoning", (0, ""))[0] > conversations
    return TokenDataset(
        TokenRows.joined(rows),
        tuple(itertools.chain.from_iterable(part.skipped for part in parts)),
        tuple(itertools.chain.from_iterable(part.skipped_places for part in parts)),
        tuple(itertools.chain.from_iterable(part.several for part in parts)),
        tuple((what, count, source) for what, (count, source) in notes.items()),
        conversations,
        thinks,
    )


def tokens_wanted(reason: str) -> int | None:
    """Return the tokens of a row that was skipped for this reason, if the reason is the length of its prompt."""
    found = re.match(r"nothing to train: the prompt fills .* \(the row has (\d+) tokens\)$", reason)
    return int(found[1]) if found else None


def _encode_chunk(rows: Iterable[dict[str, Any]], tokenizer: ChatTokenizer, max_seq_length: int) -> TokenDataset:
    usable: list[TokenRow] = []
    skipped, places, several = [], [], []
    notes: list[list[tuple[Note, int, str]]] = []
    conversations = 0
    for place, row in enumerate(rows):
        source = row.get("source", "")
        conversations += "messages" in row
        try:
            made, said = tokenizer.encode_rows(row, max_seq_length)
        except DataError as error:
            skipped.append((source, str(error)))
            places.append(place)
            continue
        kept = [encoded for encoded in made if encoded.trained.any()]
        for encoded in made:
            if not encoded.trained.any():
                skipped.append((source, _why_nothing(row, encoded, max_seq_length)))
                places.append(place)
        usable += kept
        if kept and len(kept) + len(made) != 2:
            several.append((place, len(kept)))
        if kept and said:
            notes.append([(what, 1, source) for what in sorted(said)])
    found = tuple((what, *counted) for what, counted in gathered(notes).items())
    return TokenDataset(TokenRows.of(usable), tuple(skipped), tuple(places), tuple(several), found, conversations)


def _why_nothing(row: dict[str, Any], encoded: TokenRow, max_seq_length: int) -> str:
    """Return why a row has no trained token."""
    if encoded.cut:
        total = len(encoded) + encoded.cut
        return f"nothing to train: the prompt fills max_seq_length {max_seq_length} (the row has {total} tokens)"
    answers = [message for message in row.get("messages", ()) if message["role"] == "assistant"]
    if not answers:
        return "nothing to train: no answer"
    if not any(map(is_target, answers)):
        return "nothing to train: every answer is marked as not to be trained"
    return "nothing to train: the model's chat template marks no part of an answer with {% generation %}"


def _part(rows: Sequence[dict[str, Any]], start: int, stop: int) -> Iterator[dict[str, Any]]:
    return (rows[i] for i in range(start, stop))


def _encode_lines(
    lines: Sequence[bytes | dict[str, Any]], *, source: tuple[Path, str, Reasoning], max_seq_length: int
) -> TokenDataset:
    """Encode rows, given as JSON or decoded, in a worker process."""
    rows = (json.loads(line) if isinstance(line, bytes) else line for line in lines)
    return _encode_chunk(rows, _tokenizer_here(*source), max_seq_length)


@functools.lru_cache(maxsize=1)
def _tokenizer_here(directory: Path, template: str, reasoning: Reasoning) -> ChatTokenizer:
    """Return the tokeniser of this worker process, loaded at first use so that errors can be reported."""
    return ChatTokenizer(directory, template, reasoning)
