"""Prepared rows from one file, or a piece of one: the part of preparation that can run in any process.

A file of rows is recognised, cleaned and checked row by row; running text and documents become passages. The result is
compact: lines ready to be written, and a few numbers about each, by which duplicates and the split are found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

from ..config import DataConfig
from ..tokens.tokenizer import ChatTokenizer
from .book_lines import Hints
from .chats import Chat, conversations, whose_answers
from .chatter import chatter_in
from .cleaning import clean, language_of, personal_data
from .columns import column_roles, reaches
from .copies import marks_of
from .decisions import SECTION, SUBJECT, TITLE, Decisions, choice
from .documents import HTML, SEVERAL, read_document
from .documents.archive import DOCUMENT_LIMIT
from .duplicates import BANDS, signatures
from .encoding import detect
from .json_values import Listed
from .known_row import Shaped
from .nested import NESTS, Nested, nested_rows
from .page_debris import without_page_debris
from .passages import TEMPLATES, Asked, Passage, ask, make_passages
from .recognised import OPEN_FORMS, TEXTS, Format, LeftOut, read_items, recognise
from .records import (
    Block,
    Document,
    Fragment,
    MarkedError,
    Record,
    UnusableError,
    composed,
    place_range,
    said_in,
    texts_of,
    writable,
)
from .report import DataReport
from .scans import SPECK, mend_scan, report_scan
from .shapes import columns_of, shape, unknown_columns
from .sources import JSON_LINES, SEPARATED, TESTING, Source, split_in, title_of
from .structure import find_structure, saved_as_lines
from .subjects import NONE, PERSON, THING, find_subject
from .tables import are_lines, read_rows
from .tabular import tables_in, with_sentences
from .text_files import BrokenOffError, first_bytes, read_whole
from .threads import Messages, Thread, is_one_message, root_of, tree_threads
from .units import SPLITS, Part, Unit, encode_row, hash_of, prompt_hash

BOOK = 20  # passages; a longer document is split by sections instead of staying on one side
LINES_AT_ONCE = 100_000  # of running text
ROWS_A_PART = 20_000
TEXT_FORMS = (*JSON_LINES, ".json", *SEPARATED, *TEXTS, *HTML)  # of files that are text, which has an encoding

PEEK = 1000  # rows examined to tell questions from running text
FEW = 5  # in running text, at most one row in this many has a question

HALF_PAIR = "half of a surrogate pair: the text was cut inside a character"

FragmentOrBlock = TypeVar("FragmentOrBlock", Fragment, Block)


def _may_be_a_message(row: dict[str, Any]) -> bool:
    """Take a quick look that nearly all rows fail."""
    return "role" in row or "replies" in row or type(row.get("prompt")) is dict


def can_be_cut(source: Source) -> bool:
    """Return whether a file can be read in pieces: each line is a row, and none belongs to another."""
    if source.form in OPEN_FORMS and recognise(source.form, first_bytes(source.content)):
        return False
    with contextlib.suppress(ValueError, OSError):
        return are_lines(source) and not is_one_message(next(read_rows(source, lambda _: ""), (0, None))[1])
    return False


@dataclass(frozen=True)
class Reading:
    """Instructions for reading: the settings, and where the tokeniser that measures passages lies."""

    config: DataConfig
    tokenizer: Path

    def parts(self, unit: Unit) -> Iterator[Part]:
        """Read one unit, handing over some thousand rows at a time; everything wrong with it is in their reports."""
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
        self.decisions = Decisions.read(self.config.decide)
        self.kinds: list[str] = []  # repairs of the current row

    def parts(self) -> Iterator[Part]:
        """Yield the unit's rows, `ROWS_A_PART` at a time; the last part may be empty, but its report counts."""
        records = self._records()
        taken, first = ROWS_A_PART, self.unit.piece[0] == 0
        while taken == ROWS_A_PART:
            part, taken = self._part(itertools.islice(records, ROWS_A_PART), first)
            first = False
            yield part

    def _part(self, records: Iterable[Record], first: bool) -> tuple[Part, int]:
        """Return rows as lines and numbers, and how many records they were; copies are found by a file's first part.

        The records themselves are dropped, which spares memory and the garbage collector.
        """
        compared = self.config.near_duplicates != "ignore"
        lines, digests, texts, groups, answers = [], [], [], [], []
        splits, prompts, marked = [], [], []
        taken = 0
        for record in records:
            taken += 1
            try:
                line, digest = encode_row(record)
            except UnicodeEncodeError:
                self.report.rejected.add(record.source, HALF_PAIR)  # in its metadata
                continue
            lines.append(line)
            digests.append(digest)
            groups.append(hash_of(record.group) if record.group else 0)
            answers.append(record.answers)
            splits.append(SPLITS.index(record.split) if record.split else 0)
            prompts.append(prompt_hash(record.content))
            if compared:
                texts.append(said_in(record.content))
                if first and not record.answers:
                    marked.append(texts[-1])
        report, self.report = self.report, DataReport()
        part = Part(
            lines=lines,
            digests=b"".join(digests),
            bands=signatures(texts) if compared else np.zeros((len(lines), BANDS), np.uint64),
            groups=np.array(groups, np.uint64),
            answers=np.array(answers, bool),
            splits=np.array(splits, np.int8),
            prompts=np.array(prompts, np.uint64),
            marks=marks_of(marked),
            name=self.name,
            kind=folder_of(self.name) if self.unit.source.is_document else "",
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
        """Return whether a finished row is wanted, by its language, and note its personal data."""
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
        messages = Messages()
        try:
            for number, row in read_rows(self.unit.source, check, self.unit.piece):
                self.report.read += 1
                if self.columns and isinstance(row, dict):
                    self.report.columns.update(theirs for _, theirs in self.columns if reaches(row, theirs))
                if type(row) is dict and _may_be_a_message(row) and not self.unit.prepared:
                    if is_one_message(row):
                        messages.add(number, row)
                        continue
                    if root := root_of(row):
                        yield from self._tree(root, number)
                        continue
                if type(row) in (dict, Listed) and not NESTS.isdisjoint(row) and (within := nested_rows(row)):
                    yield from self._nested(within, number, row)
                    continue
                record, is_line = self._recognised(row, f"{self.name}:{number}")
                if record and is_line and not self.unit.as_it_stands:
                    running.append(Fragment(record.content["text"], str(number)))
                elif record:
                    yield record
                if len(running) >= LINES_AT_ONCE:
                    yield from self._running(running)
                    running = []
        except BrokenOffError as error:
            self.report.unread += error.unread
            self.report.skipped_files.add(self.name, str(error))
        except OSError as error:
            self.report.skipped_files.add(self.name, str(error))
        yield from self._running(running)
        yield from self._threads(messages)

    def _recognised(self, row: Any, where: str) -> tuple[Record | None, bool]:
        """Return the record of a row, and whether it is a line of running text; None if it is not used."""
        try:
            if isinstance(row, UnusableError):
                self.report.unreadable += row.damaged
                raise row
            if self.unit.prepared and isinstance(row, dict):
                where = str(row.pop("source", where))
            shaped = shape(row, self.columns, str if self.unit.prepared else self._clean)
            if shaped.blank and self._mostly_questions:
                raise ValueError(f"the {shaped.blank} is empty, and most rows of the file have one")
        except MarkedError as error:
            self.kinds = []
            self.report.marked.add(where, str(error), _sample(row))
            return None, False
        except ValueError as error:
            self.kinds = []
            self.report.rejected.add(where, str(error), getattr(error, "sample", "") or _sample(row))
            return None, False
        if not self.unit.prepared and (shaped.unused or shaped.marks or shaped.guesses):
            self._note_what_is_beside(shaped)
        split = self._split_of(row, shaped)
        if split == TESTING:
            self.kinds = []
            self.report.test_rows += 1
            return None, False
        record = Record(shaped.content, where, shaped.metadata, split=split)
        self._note_repairs(where, texts_of(record.content)[-1])
        return record, shaped.running

    def _note_what_is_beside(self, shaped: Shaped) -> None:
        """Count unused content and parts marked as not to be trained."""
        for name, longer in shaped.unused:
            self.report.unused[f"{shaped.beside} {name}"] += 1
            self.report.unused_longer[f"{shaped.beside} {name}"] += longer
        self.report.marks.update(shaped.marks)
        self.report.guesses.update(shaped.guesses)

    def _split_of(self, row: Any, shaped: Shaped) -> str:
        if not self.config.own_split or self.unit.prepared:
            return ""
        if not shaped.splits:
            return split_in(row.key) if isinstance(row, Listed) else ""
        said = [split for word in shaped.splits if (split := split_in(word))]
        return TESTING if TESTING in said else next(iter(said), "")

    @functools.cached_property
    def _mostly_questions(self) -> bool:
        """Return whether the file is of questions, so that a row without one has a gap and is no running text."""
        asked = blank = 0
        with contextlib.suppress(ValueError, OSError):
            for _, row in itertools.islice(read_rows(self.unit.source, lambda _: ""), PEEK):
                roles = column_roles(tuple(row), self.columns) if isinstance(row, dict) else None
                if roles and roles.asked and not roles.messages:
                    filled = bool(str(row[roles.asked] or "").strip())
                    asked, blank = asked + filled, blank + (not filled)
        return asked * FEW > asked + blank

    # Several rows in one value, conversations that stand in several rows, or in a tree

    def _nested(self, within: Iterable[Nested], number: int, value: dict[str, Any]) -> Iterator[Record]:
        """Yield the rows of a value that holds several; the place of each is the value's line and its own name."""
        self.report.read -= 1
        for each in within:
            self.report.read += 1
            row = Listed(each.row, value.key) if isinstance(value, Listed) else each.row
            record, _ = self._recognised(row, f"{self.name}:{number} ({each.place})")
            if record:
                group = f"{composed(self.path.name)}\0{each.group}" if each.group else ""
                yield dataclasses.replace(record, group=group)

    def _threads(self, messages: Messages) -> Iterator[Record]:
        """Yield the conversations of messages that stand one in a row."""
        for thread in messages.threads():
            self.report.joined_messages += len(thread.turns) - thread.given
            yield from self._thread(thread)
        for place, reason in messages.unanswered:
            self.report.rejected.add(f"{self.name}:{place}", reason)

    def _tree(self, root: dict[str, Any], number: int) -> Iterator[Record]:
        """Yield the conversations of a row that is a tree of replies."""
        try:
            threads = list(tree_threads(root, number))
        except ValueError as error:
            self.report.rejected.add(f"{self.name}:{number}", str(error), _sample(root))
            return
        self.report.joined_messages += 1
        for thread in threads:
            yield from self._thread(thread)

    def _thread(self, thread: Thread) -> Iterator[Record]:
        self.report.conversations += 1
        where = f"{self.name}:{place_range(str(thread.places[0]), str(thread.places[-1]))}"
        record, _ = self._recognised({"messages": thread.turns}, where)
        if record:
            for message in record.content["messages"][: thread.given]:
                if message["role"] == "assistant":  # already trained in an earlier conversation
                    message["train"] = False
            yield dataclasses.replace(record, group=f"{composed(self.path.name)}\0{thread.root}")

    def _clean(self, text: str) -> str:
        cleaned, kinds = clean(text, self.config.repair)
        self.kinds += kinds
        try:
            cleaned.encode()
        except UnicodeEncodeError:
            raise UnusableError(HALF_PAIR) from None
        return cleaned

    def _note_repairs(self, where: str, sample: str) -> None:
        """Count the repairs since the last call."""
        if self.kinds:
            self.report.mended.update(self.kinds)
            self.report.mended_rows.add(where, ", ".join(dict.fromkeys(self.kinds)), sample)
            self.kinds = []

    def _note_encoding(self) -> None:
        if self.unit.piece[0] or self.unit.source.form not in TEXT_FORMS:
            return
        sample = first_bytes(self.unit.source.content)
        encoding = "utf-8" if sample.startswith(b"PAR1") else detect(sample)
        if encoding not in ("utf-8", "utf-8-sig"):
            self.report.encodings[encoding] += 1

    def _in_order(self) -> Iterator[Record]:
        """Return the records of the unit, read as the kind of file it is."""
        form, mapped = self.unit.source.form, bool(self.columns)
        whole = self.unit.piece == (0, None, 1) and not self.unit.prepared and (form in SEVERAL or not mapped)
        kind = recognise(form, first_bytes(self.unit.source.content)) if whole and form in OPEN_FORMS else None
        if kind:
            return self._items(kind)
        return self._document() if self.unit.source.is_document else self._rows()

    # Chats, cards, and files of several documents

    def _items(self, kind: Format) -> Iterator[Record]:
        self._note_encoding()
        how = ""
        for item in read_items(kind, read_whole(self.unit.source.content, DOCUMENT_LIMIT), title_of(self.path)):
            if isinstance(item, Chat):
                yield from self._chat(item)
                continue
            if isinstance(item, LeftOut):
                self._leave_out([(item.place, item.reason, item.sample)])
                continue
            how = how or f"read as {kind.name}{kind.hint}"
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
        """Yield a chat's conversations; those without any answer count among the rejected rows."""
        self._leave_out(chat.left_out)
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

    def _leave_out(self, found: Iterable[tuple[str, str, str]]) -> None:
        """List what is not the file's own text: place, reason and beginning of each."""
        for place, reason, sample in found:
            self.report.debris.add(f"{self.name}:{place}" if place else self.name, reason, sample)

    def _running(self, lines: Sequence[Fragment]) -> Iterator[Record]:
        if lines:
            self.report.joined_lines += len(lines)
            yield from self._passages(Document(lines=tuple(lines)), title="")

    def _document(self) -> Iterator[Record]:
        self.report.documents += 1
        self._note_encoding()
        document = read_document(self.unit.source.form, read_whole(self.unit.source.content, DOCUMENT_LIMIT))
        records = list(self._passages(document, title=self._title))
        if not records:
            raise ValueError("holds no text")
        yield from records

    @property
    def _title(self) -> str:
        """Return the title from the file's name; source code is known by its path."""
        source = self.unit.source
        return (source.within or composed(self.path.name)) if source.is_code else title_of(self.path)

    def _passages(self, document: Document, title: str, part: str = "") -> Iterator[Record]:
        """Yield the passages of a document, or of untitled running text, and questions about them.

        `part` distinguishes the documents of one file.
        """
        self._leave_out(document.left_out)
        found, blocks = self._structured(document)
        limit = min(self.config.passage_tokens, self.config.max_seq_length - 2)  # room for the begin and end tokens
        head = self._clean(found) or self._clean(title)
        passages = list(make_passages(head, blocks, _counter(self.tokenizer), limit))
        self._note_repairs(self.name, passages[0].body if passages else "")
        asked = self._asked(passages, is_document=bool(title))
        answered = {id(each.passage) for each in asked if each.whole}
        self.report.answered_passages += len(answered)
        groups = self._groups(passages, part, is_document=bool(title), asked=bool(asked))
        for passage, group in zip(passages, groups, strict=True):
            if id(passage) in answered and self.config.asked_passages == "drop":
                continue
            self.report.passages += 1
            yield Record(
                content={"text": passage.text},
                source=f"{self.name}:{place_range(passage.first, passage.last)}" if passage.first else self.name,
                metadata=document.metadata | {k: v for k in ("title", "section") if (v := getattr(passage, k))},
                group=group,
            )
        group_of = {id(passage): group for passage, group in zip(passages, groups, strict=True)}
        for each in asked:
            self.report.questions += 1
            yield Record(
                each.row, self.name, document.metadata | {"title": each.passage.title}, group_of[id(each.passage)]
            )

    def _structured(self, document: Document) -> tuple[str, list[Block]]:
        """Return title and blocks of a document, without parts that belong to a page, a scan or a chat program."""
        decided = self.decisions.find(TITLE, self.name)
        title = decided or document.title
        if self.unit.source.is_code:
            return title, list(document.blocks)
        dropping = self.config.drop_debris
        sentences = self.config.tables == "sentences"
        if dropping and title and (reason := chatter_in([title, ""]).get(0)):
            self.report.debris.add(self.name, reason, title)
            title = ""
        lines = self._cleaned(document.lines)
        if not lines:
            blocks = [with_sentences(block) if sentences else block for block in document.blocks]
            blocks = self._cleaned(blocks)
            lines = saved_as_lines(blocks) if dropping else []
        if not lines:
            if dropping:
                blocks = self._without_chatter(blocks)
                blocks = without_page_debris(blocks, self.report.debris, self.name)
            return title, blocks
        if dropping:
            lines = self._without_chatter(lines)
        lines = tables_in(lines, sentences)
        scan = mend_scan(lines, self.config.scans)
        report_scan(scan, self.name, self.report.mended, self.report.mended_rows, self.report.doubts)
        self._leave_out((speck.place, SPECK, speck.text) for speck in scan.specks)
        hints = Hints(decided, self.decisions.find(SECTION, self.name), self.report.doubts)
        within, blocks = find_structure(scan.lines, self.report.debris, self.name, drop_debris=dropping, hints=hints)
        return title or within, blocks

    def _without_chatter(self, pieces: Sequence[FragmentOrBlock]) -> list[FragmentOrBlock]:
        """Return the text without remarks to or by a chat program before and behind it."""
        paragraphs = [
            list(run) for filled, run in itertools.groupby(pieces, key=lambda piece: bool(piece.text)) if filled
        ]
        if len(paragraphs) == 1:  # without empty lines, each line or block is a paragraph
            paragraphs = [[piece] for piece in pieces]
        found = chatter_in([" ".join(piece.text for piece in each) for each in paragraphs])
        gone = {id(piece) for place in found for piece in paragraphs[place]}
        said = ((piece, reason) for place, reason in sorted(found.items()) for piece in paragraphs[place])
        self._leave_out((piece.place, reason, piece.text) for piece, reason in said)
        return [piece for piece in pieces if id(piece) not in gone]

    def _asked(self, passages: Sequence[Passage], *, is_document: bool) -> list[Asked]:
        """Return the questions of the setting `question`; report what is asked about nothing."""
        template = self.config.question
        if not template or not passages:
            return []

        def tell(about: str, reason: str) -> None:
            self.report.unasked.add(self.name, reason, about)

        if not passages[0].title:
            tell("", "it has no title to ask about: say it with --decide title:FILE=TEXT")
            return []
        kind = self.decisions.find(SUBJECT, self.name) or ("" if is_document else THING)
        subject = find_subject(passages[0].title, "\n".join(passage.body for passage in passages[:3]))
        if not kind and not subject.sure and template in TEMPLATES:
            others = [each for each in (PERSON, THING, NONE) if each != subject.kind]
            self.report.doubts.add(
                self.name,
                f"“{subject.name}” was taken for a {subject.kind}, and asked about as one",
                passages[0].title,
                [choice(SUBJECT, self.name, each) for each in others],
            )
        return list(ask(passages, template, kind=kind, about_all=is_document and len(passages) <= BOOK, unasked=tell))

    def _groups(self, passages: Sequence[Passage], part: str, *, is_document: bool, asked: bool) -> list[str]:
        """Return the group of each passage: its document; in a book its section; in a long section the passage alone.

        Running text is split passage by passage. The file's location must not decide the split, its name may.
        """
        name = composed(self.path.name) + (f"\0{part}" if part else "")
        sizes = Counter(passage.section for passage in passages)
        groups = []
        for passage in passages:
            section = passage.section if len(passages) > BOOK else ""
            alone = not self.config.keep_documents or ((section or len(passages) > BOOK) and sizes[section] > BOOK)
            if not is_document:
                groups.append(f"\0{passage.text}" if asked else "")
            else:
                groups.append(f"{name}\0{section}\0{passage.body}" if alone else f"{name}\0{section}")
        return groups

    def _cleaned(self, pieces: Iterable[FragmentOrBlock]) -> list[FragmentOrBlock]:
        return [dataclasses.replace(piece, text=self._clean(piece.text)) for piece in pieces]


def folder_of(name: str) -> str:
    """Return the name that documents of a folder share: the folder and their suffix."""
    path = PurePath(name)
    return str(path.parent / f"*{path.suffix}")


def _sample(row: Any) -> str:
    try:
        return json.dumps(row, ensure_ascii=False)[:80]
    except (ValueError, TypeError, RecursionError):
        return repr(row)[:80]
