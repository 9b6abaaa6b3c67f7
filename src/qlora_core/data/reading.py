"""One file, or a piece of one, to prepared rows: the part of preparation that can run in any process.

A file of rows is recognised, cleaned and checked row by row; running text and documents become passages. What comes
out is compact: lines ready to be written, with the few numbers about each that duplicates and the split are found by.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..config import DataConfig
from ..tokens import ChatTokenizer
from .chats import Chat, conversations, whose_answers
from .cleaning import clean, language_of, personal_data
from .documents import SEVERAL, read_document
from .duplicates import BANDS, signatures
from .encoding import detect
from .passages import make_passages, question_rows
from .recognised import Format, read_items, recognise
from .records import (
    Block,
    Document,
    Fragment,
    Record,
    UnusableError,
    composed,
    place_range,
    said_in,
    texts_of,
    writable,
)
from .report import DataReport
from .shapes import columns_of, shape, unknown_columns
from .sources import BrokenOffError, Source, first_bytes, read_whole, title_of
from .structure import find_structure
from .tables import read_rows

DOCUMENT_LIMIT = 1 << 28  # 256 MB
BOOK = 20  # passages; a document of more is split by its sections, and no longer kept on one side as a whole
LINES_AT_ONCE = 100_000  # of running text
ROWS_A_PART = 20_000
WRITTEN = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".md", ".markdown", ".html", ".htm", ".xhtml")

HALF_PAIR = "half of a surrogate pair: the text was cut inside a character"
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # made once: `json.dumps` makes one for every call
Piece = TypeVar("Piece", Fragment, Block)


@dataclass(frozen=True)
class Unit:
    """What is read in one go.

    Attributes:
        source: the file.
        piece: (start, stop, number of the first line).
        as_it_stands: rows that were prepared before, or that have a split of the user's own: nothing is joined; of the
            first, nothing is changed either.
        prepared: whether `qlora data` wrote it.
    """

    source: Source
    piece: tuple[int, int | None, int] = (0, None, 1)
    as_it_stands: bool = False
    prepared: bool = False


@dataclass
class Part:
    """Rows ready to be written, and what is known of them.

    Attributes:
        lines: of the prepared file, with their ends.
        digests: SHA-256 of each content, 32 bytes each, one after the other.
        bands: uint64, `(rows, duplicates.BANDS)`.
        groups: uint64, `(rows,)`: a hash of the document a row belongs to; 0: none.
        answers: bool, `(rows,)`: whether a prompt is answered, instead of text going on.
        report: counts and findings.
    """

    lines: list[bytes]
    digests: bytes
    bands: np.ndarray
    groups: np.ndarray
    answers: np.ndarray
    report: DataReport


@dataclass(frozen=True)
class Reading:
    """How to read: the settings, and where the tokeniser that measures passages lies."""

    config: DataConfig
    tokenizer: Path

    def parts(self, unit: Unit) -> Iterator[Part]:
        """Read one unit, handing over some thousand rows at a time; whatever is wrong with it is in their reports."""
        return _Reader(unit, self.config, self.tokenizer).parts()

    def __call__(self, unit: Unit) -> list[Part]:
        """Read one unit as a whole, for another process."""
        return list(self.parts(unit))


@functools.lru_cache(maxsize=1)
def _counter(directory: Path) -> Callable[[str], int]:
    return ChatTokenizer(directory).count


@dataclass
class _Reader:
    unit: Unit
    config: DataConfig
    tokenizer: Path
    report: DataReport = field(default_factory=DataReport)

    def __post_init__(self) -> None:
        self.path = self.unit.source.path
        self.name = writable(str(self.path))
        self.columns = columns_of(self.config.columns)
        self.kinds: list[str] = []  # repairs of the row at hand

    def parts(self) -> Iterator[Part]:
        """The unit's rows, `ROWS_A_PART` at a time; the last part may be empty, but its report counts."""
        records = self._records()
        taken = ROWS_A_PART
        while taken == ROWS_A_PART:
            part, taken = self._part(itertools.islice(records, ROWS_A_PART))
            yield part

    def _part(self, records: Iterable[Record]) -> tuple[Part, int]:
        """Rows as lines and numbers, and how many records they were.

        The records themselves are not kept, which spares the memory and its collector.
        """
        compared = self.config.near_duplicates != "ignore"
        lines, digests, texts, groups, answers = [], [], [], [], []
        taken = 0
        for record in records:
            taken += 1
            try:
                line, digest = _encode(record)
            except UnicodeEncodeError:
                self.report.rejected.add(record.source, HALF_PAIR)  # in its metadata
                continue
            lines.append(line)
            digests.append(digest)
            groups.append(_hash(record.group) if record.group else 0)
            answers.append(record.answers)
            if compared:
                texts.append(said_in(record.content))
        report, self.report = self.report, DataReport()
        part = Part(
            lines=lines,
            digests=b"".join(digests),
            bands=signatures(texts) if compared else np.zeros((len(lines), BANDS), np.uint64),
            groups=np.array(groups, np.uint64),
            answers=np.array(answers, bool),
            report=report,
        )
        return part, taken

    # Rows

    def _records(self) -> Iterator[Record]:
        if self.unit.piece[0] == 0:
            self.report.files += 1
        try:
            yield from filter(self._wanted, self._in_order())
        except (ValueError, OSError) as error:
            self.report.skipped_files.add(self.name, str(error))

    def _wanted(self, record: Record) -> bool:
        """Look at a finished row: its language, and personal data in it."""
        if self.unit.prepared:
            return True
        text = "\n".join(texts_of(record.content))
        if self.config.language and (other := language_of(text)) not in ("", self.config.language):
            self.report.rejected.add(record.source, f"its language is {other!r}, wanted {self.config.language!r}", text)
            return False
        if kinds := personal_data(text):
            self.report.personal_data.add(record.source, ", ".join(kinds), text)
        return True

    def _rows(self) -> Iterator[Record]:
        self._note_encoding()
        check = functools.partial(unknown_columns, columns=self.columns)
        running: list[Fragment] = []
        try:
            for number, row in read_rows(self.unit.source, check, self.unit.piece):
                self.report.read += 1
                record, is_line = self._recognised(row, f"{self.name}:{number}")
                if record and is_line and not self.unit.as_it_stands:
                    running.append(Fragment(record.content["text"], str(number)))
                elif record:
                    yield record
                if len(running) >= LINES_AT_ONCE:
                    yield from self._running(running)
                    running = []
        except (BrokenOffError, OSError) as error:
            self.report.skipped_files.add(self.name, str(error))
        yield from self._running(running)

    def _recognised(self, row: Any, where: str) -> tuple[Record | None, bool]:
        """The record of a row, and whether it is a line of running text; None when it is rejected."""
        try:
            if isinstance(row, UnusableError):
                raise row
            if self.unit.prepared and isinstance(row, dict):
                where = str(row.pop("source", where))
            shaped = shape(row, self.columns, str if self.unit.prepared else self._clean)
        except ValueError as error:
            self.kinds = []
            self.report.rejected.add(where, str(error), getattr(error, "sample", "") or _sample(row))
            return None, False
        record = Record(shaped.content, where, shaped.metadata)
        self._note_repairs(where, texts_of(record.content)[-1])
        return record, shaped.running

    def _clean(self, text: str) -> str:
        cleaned, kinds = clean(text, self.config.repair)
        self.kinds += kinds
        try:
            cleaned.encode()
        except UnicodeEncodeError:
            raise UnusableError(HALF_PAIR) from None
        return cleaned

    def _note_repairs(self, where: str, sample: str) -> None:
        """Count the repairs made since the last call."""
        if self.kinds:
            self.report.mended.update(self.kinds)
            self.report.mended_rows.add(where, ", ".join(dict.fromkeys(self.kinds)), sample)
            self.kinds = []

    def _note_encoding(self) -> None:
        if self.unit.piece[0] or self.unit.source.form not in WRITTEN:
            return
        sample = first_bytes(self.path)
        encoding = "utf-8" if sample.startswith(b"PAR1") else detect(sample)
        if encoding not in ("utf-8", "utf-8-sig"):
            self.report.encodings[encoding] += 1

    def _in_order(self) -> Iterator[Record]:
        """The records of the unit, by what its file is."""
        form, mapped = self.unit.source.form, bool(self.columns)
        whole = self.unit.piece == (0, None, 1) and not self.unit.prepared and (form in SEVERAL or not mapped)
        kind = recognise(form, first_bytes(self.path)) if whole else None
        if kind:
            return self._items(kind)
        return self._document() if self.unit.source.is_document else self._rows()

    # Chats, cards, and files of several documents

    def _items(self, kind: Format) -> Iterator[Record]:
        self._note_encoding()
        how = ""
        for item in read_items(kind, read_whole(self.path, DOCUMENT_LIMIT), title_of(self.path)):
            if isinstance(item, Chat):
                yield from self._chat(item)
                continue
            how = how or f"read as {kind.name}"
            if isinstance(item, Document):
                self.report.documents += 1
                yield from self._passages(item, title=item.title or title_of(self.path), part=item.title)
                continue
            place, row = item
            self.report.read += 1
            record, _ = self._recognised(row, f"{self.name}:{place}")
            if record:
                yield record
        if how:
            self.report.recognised.add(self.name, how)

    def _chat(self, chat: Chat) -> Iterator[Record]:
        """A chat's conversations; those in which nobody is answered are counted among the rejected rows."""
        for place, reason, sample in chat.left_out:
            self.report.debris.add(f"{self.name}:{place}", reason, sample)
        if not chat.messages:
            self.report.skipped_files.add(self.name, f"{chat.title or chat.kind}: holds no messages")
            return
        answers = whose_answers(chat, self.config.answers_of)
        people = ", ".join(chat.people[:6])
        how = f"read as {chat.kind} of {people}: what {answers} wrote is trained; --answers-of NAME for another"
        self.report.recognised.add(self.name, how, chat.title)
        room = self.config.max_seq_length * 4 // 5
        for found in conversations(chat, answers, _counter(self.tokenizer), room):
            self.report.read += 1
            where = f"{self.name}:{place_range(found.first, found.last)}"
            if not found.is_answered:
                self.report.rejected.add(where, "nobody is answered in it", found.turns[0][1])
                continue
            turns = [{"role": role, "content": text} for role, text in found.turns]
            record, _ = self._recognised({"messages": turns, "title": chat.title or title_of(self.path)}, where)
            if record:
                yield record

    # Running text and documents

    def _running(self, lines: Sequence[Fragment]) -> Iterator[Record]:
        if lines:
            self.report.joined_lines += len(lines)
            yield from self._passages(Document(lines=tuple(lines)), title="")

    def _document(self) -> Iterator[Record]:
        self.report.documents += 1
        self._note_encoding()
        document = read_document(self.unit.source.form, read_whole(self.path, DOCUMENT_LIMIT))
        records = list(self._passages(document, title=title_of(self.path)))
        if not records:
            raise ValueError("holds no text")
        yield from records

    def _passages(self, document: Document, title: str, part: str = "") -> Iterator[Record]:
        """The passages of a document, or of running text, which has no title of its own.

        `part` tells the documents of one file apart.

        A document is a group of the split; a book is split by its sections, and running text passage by passage.
        """
        found, blocks = document.title, list(document.blocks)
        for place, reason, sample in document.left_out:
            self.report.debris.add(f"{self.name}:{place}" if place else self.name, reason, sample)
        if document.lines:
            lines, where = self._cleaned(document.lines), self.name
            within, blocks = find_structure(lines, self.report.debris, where, drop_debris=self.config.drop_debris)
            found = found or within
        limit = min(self.config.passage_tokens, self.config.max_seq_length - 2)  # begin and end of text
        blocks = self._cleaned(blocks)
        head = self._clean(found) or self._clean(title)
        passages = list(make_passages(head, blocks, _counter(self.tokenizer), limit))
        self._note_repairs(self.name, passages[0].body if passages else "")
        group = (
            composed(self.path.name) + f"\0{part}" * bool(part) if title else ""
        )  # where the file lies must not decide the split
        for passage in passages:
            section = passage.section if len(passages) > BOOK else ""
            self.report.passages += 1
            yield Record(
                content={"text": passage.text},
                source=f"{self.name}:{place_range(passage.first, passage.last)}" if passage.first else self.name,
                metadata=document.metadata | {k: v for k in ("title", "section") if (v := getattr(passage, k))},
                group=group and f"{group}\0{section}",
            )
        if self.config.question and title:
            for row in question_rows(passages, self.config.question):
                self.report.questions += 1
                yield Record(row, self.name, document.metadata | {"title": passages[0].title}, group=f"{group}\0")

    def _cleaned(self, pieces: Iterable[Piece]) -> list[Piece]:
        return [dataclasses.replace(piece, text=self._clean(piece.text)) for piece in pieces]


def _encode(record: Record) -> tuple[bytes, bytes]:
    """The row's line in the prepared file, and the SHA-256 of its content."""
    content = _ENCODE(record.content).encode()
    rest = _ENCODE({"source": record.source, "metadata": record.metadata}).encode()
    return content[:-1] + b", " + rest[1:] + b"\n", hashlib.sha256(content).digest()


def _hash(group: str) -> int:
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big") | 1


def _sample(row: Any) -> str:
    try:
        return json.dumps(row, ensure_ascii=False)[:80]
    except (ValueError, TypeError, RecursionError):
        return repr(row)[:80]
