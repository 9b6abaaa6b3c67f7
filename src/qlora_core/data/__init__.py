"""Files to validated records to splits, with a report of everything that was read, joined and refused.

Accepted rows: `{"messages": […]}`, `{"prompt", "completion"}`, `{"text"}`; a row with an empty prompt is running text.
Accepted files: `.jsonl`, Markdown and plain text. Bad input is reported with file and line, never raised, and the
sources are never written to. Knows nothing of tokens or models.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..errors import DataError
from ..storage import replacing

TRAIN_FILE, VAL_FILE, REPORT_FILE, FACTS_FILE = (
    "train_data.jsonl",
    "val_data.jsonl",
    "data_report.json",
    "facts.jsonl",
)
PAIRS = ((TRAIN_FILE, VAL_FILE), ("train.jsonl", "valid.jsonl"))
DOCUMENTS = (".md", ".markdown", ".txt")
ENOUGH_REPLIES = 20  # rows with a prompt and a reply from which validation is drawn from them alone
ROLES = ("system", "user", "assistant", "tool")

ACCEPTED = """accepted rows, one JSON object a line in a .jsonl file:
  {"messages": [{"role": "user", "content": "Who founded the club?"}, {"role": "assistant", "content": "…"}]}
  {"prompt": "Who founded the club?", "completion": "…"}
  {"text": "The club was founded by …"}        also {"prompt": "", "completion": "…"}: running text
and documents: .md, .txt"""


@dataclass(frozen=True)
class Record:
    """One training row.

    Attributes:
        content: `{"messages": […]}` or `{"text": …}`, as the prepared file holds it.
        source: file:line, or file:first-last of joined lines.
        metadata: what else the row carried.
        group: rows of one group stay on one side of the split (the passages of one document).
    """

    content: dict[str, Any]
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)
    group: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the content alone."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def prepared(self) -> dict[str, Any]:
        """The row as `train_data.jsonl` holds it."""
        return {**self.content, "source": self.source, "metadata": self.metadata}


@dataclass(frozen=True)
class Fragment:
    """A line of running text, to be joined with its neighbours."""

    text: str
    path: str
    line: int


@dataclass(frozen=True)
class Rejected:
    """A row that could not be used: where, why, and how it begins."""

    where: str
    reason: str
    sample: str = ""


@dataclass
class DataReport:
    """What became of the sources: read + passages = train + validation + duplicates + rejected + joined_lines."""

    sources: list[str] = field(default_factory=list)
    files: int = 0
    documents: int = 0
    read: int = 0
    joined_lines: int = 0
    passages: int = 0
    duplicates: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    skipped_files: list[Rejected] = field(default_factory=list)
    shapes: dict[str, int] = field(default_factory=dict)
    train: int = 0
    validation: int = 0
    own_split: bool = False
    fact_sheets: list[str] = field(default_factory=list)
    rejected_facts: list[Rejected] = field(default_factory=list)


@dataclass(frozen=True)
class PreparedData:
    """Rows ready to be encoded, as `train_data.jsonl` and `val_data.jsonl` hold them, and the files they came from."""

    train: tuple[dict[str, Any], ...]
    validation: tuple[dict[str, Any], ...]
    facts: tuple[dict[str, Any], ...]
    report: DataReport
    files: tuple[Path, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the rows' contents in order; where they came from does not count."""
        digest = hashlib.sha256()
        for rows in (self.train, self.validation):
            for row in rows:
                content = {key: row[key] for key in ("messages", "text") if key in row}
                digest.update(json.dumps(content, sort_keys=True, ensure_ascii=False).encode() + b"\n")
            digest.update(b"--\n")
        return digest.hexdigest()

    def save(self, directory: Path) -> None:
        """Write the rows and the report; the first file takes its place when all of them are complete.

        Raises:
            DataError: a file to be written is one of the sources.
        """
        texts = {
            REPORT_FILE: json.dumps(asdict(self.report), indent=2, ensure_ascii=False) + "\n",
            TRAIN_FILE: _lines(self.train),
            VAL_FILE: _lines(self.validation),
        }
        if self.facts:
            texts[FACTS_FILE] = _lines(self.facts)
        sources = {path.resolve() for path in self.files}
        for name in texts:
            if (directory / name).resolve() in sources:
                raise DataError(
                    f"{directory / name}: is a source, which is never written over. Choose another directory."
                )
        stale = not self.facts and bool(_old_report(directory).get("fact_sheets"))
        with contextlib.ExitStack() as stack:  # it ends in reverse order: the report comes last
            for name, text in texts.items():
                temporary = stack.enter_context(replacing(directory / name))
                temporary.write_text(text, encoding="utf-8", newline="\n")
        if stale:  # ours, of a preparation that had a fact sheet
            (directory / FACTS_FILE).unlink(missing_ok=True)


def prepare(config: DataConfig) -> PreparedData:
    """Read, validate, join, deduplicate and split the sources.

    Raises:
        DataError: a source does not exist, or nothing usable was found (with the accepted shapes).
    """
    report = DataReport(sources=list(config.data))
    files = list(_files(config.data, report))
    sheets = [Path(config.facts).expanduser()] if config.facts else [p for p in files if p.name == FACTS_FILE]
    facts = _read_facts(sheets, report)
    pairs, loose = _own_pairs([p for p in files if p.name != FACTS_FILE and p not in sheets], config.data, report)
    report.files, report.own_split = 2 * len(pairs) + len(loose), bool(pairs)
    seen: set[str] = set()  # validation comes first: a row that stands in both files of a pair is not trained
    validation = _records([path for _, path in pairs], config, report, seen, join=False)
    train = _records([path for path, _ in pairs], config, report, seen, join=False)
    more_train, more_validation = split(_records(loose, config, report, seen), config.val_fraction)
    train, validation = train + more_train, validation + more_validation
    if not train:
        raise DataError(_nothing_usable(report))
    report.train, report.validation = len(train), len(validation)
    report.shapes = dict(Counter(next(iter(record.content)) for record in [*train, *validation]))
    return PreparedData(
        train=tuple(record.prepared() for record in train),
        validation=tuple(record.prepared() for record in validation),
        facts=tuple(facts),
        report=report,
        files=(*itertools.chain(*pairs), *loose, *sheets),
    )


def split(records: Sequence[Record], val_fraction: float) -> tuple[list[Record], list[Record]]:
    """Split by a hash of each group: the same row falls on the same side whatever else is there.

    Validation is drawn from the rows that answer a prompt, where there are `ENOUGH_REPLIES` of them: a passage of a
    book or a document holds what no other row says, so without it that would be lost, and the loss on it would tell
    how surprising it is, not how well the model answers. Else it is drawn from all rows; where there are two groups
    and `val_fraction` is above 0, both sides get one, if need be that nearest to them.
    """
    replies = [record for record in records if "messages" in record.content]
    drawn_from = replies if len(replies) >= ENOUGH_REPLIES else records
    place = {record.group or record.digest: 0.0 for record in drawn_from}
    for group in place:
        place[group] = int(hashlib.sha256(group.encode()).hexdigest()[:13], 16) / 16**13
    chosen = {group for group, where in place.items() if where < val_fraction}
    if val_fraction > 0 and len(place) > 1 and not chosen:
        chosen = {min(place, key=place.__getitem__)}
    if len(chosen) == len(place) and len(drawn_from) == len(records):
        chosen.discard(max(place, key=place.__getitem__, default=""))
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        sides[(record.group or record.digest) in chosen].append(record)
    return sides


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _old_report(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / REPORT_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file that `PreparedData.save` wrote.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


# Files ----------------------------------------------------------------------------------------------------------


def _files(sources: Sequence[str], report: DataReport) -> Iterator[Path]:
    seen: set[Path] = set()
    for source in sources:
        path = Path(source).expanduser()
        if not path.exists():
            raise DataError(f"{source}: no such file or directory (looked in {Path.cwd()}).")
        inside = (p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        candidates = sorted(inside) if path.is_dir() else [path]
        if path.is_dir() and (path / REPORT_FILE).is_file():  # prepared by us: taken as it stands
            candidates = [p for name in (TRAIN_FILE, VAL_FILE, FACTS_FILE) if (p := path / name).is_file()]
        for file in candidates:
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            if file.suffix.lower() not in (".jsonl", *DOCUMENTS):
                report.skipped_files.append(Rejected(str(file), f"a {file.suffix or 'nameless'} file is not read"))
            elif file.name.lower() == "readme.md" and path.is_dir():
                report.skipped_files.append(Rejected(str(file), "a README describes data, it is not data"))
            elif not file.is_file():
                report.skipped_files.append(Rejected(str(file), "not a regular file"))
            elif not os.access(file, os.R_OK):
                report.skipped_files.append(Rejected(str(file), "may not be read: no permission"))
            else:
                yield file


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _own_pairs(
    files: Sequence[Path], sources: Sequence[str], report: DataReport
) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Train and validation files that lie side by side, which keep their split, and the files that are still to be.

    In a directory that was named for its pair nothing else is read: a `test.jsonl` there must not be trained.
    """
    pairs = [
        (path, path.with_name(validation))
        for train, validation in PAIRS
        for path in files
        if path.name == train and path.with_name(validation) in files
    ]
    roots = [Path(source).expanduser() for source in sources]

    def shadows(train: Path, path: Path) -> bool:
        own = any(path == root or (path.is_relative_to(root) and not train.is_relative_to(root)) for root in roots)
        return path.is_relative_to(train.parent) and not own

    loose = []
    for path in (path for path in files if path not in itertools.chain(*pairs)):
        if train := next((train for train, _ in pairs if shadows(train, path)), None):
            report.skipped_files.append(Rejected(str(path), f"{train} is used, with the validation file beside it"))
        else:
            loose.append(path)
    return pairs, loose


def _records(
    files: Sequence[Path], config: DataConfig, report: DataReport, seen: set[str], *, join: bool = True
) -> list[Record]:
    """The records of some files whose digests were not seen yet."""
    records = []
    for path in files:
        if path.suffix.lower() in DOCUMENTS:
            found: Iterable[Record] = _read_document(path, config.passage_length, report)
        else:
            found = _join(_read_jsonl(path, report), config.passage_length if join else 0, report)
        for record in found:
            if record.digest in seen:
                report.duplicates += 1
            else:
                seen.add(record.digest)
                records.append(record)
    return records


def _nothing_usable(report: DataReport) -> str:
    reasons = [f"  {r.where}: {r.reason}" for r in (report.rejected + report.skipped_files)[:5]]
    found = f"{report.read} rows in {report.files} files, none usable"
    return "\n".join([f"{', '.join(report.sources)}: {found}.", *reasons, ACCEPTED])


# JSONL ----------------------------------------------------------------------------------------------------------


def _read_jsonl(path: Path, report: DataReport) -> Iterator[Record | Fragment]:
    prepared = path.name in (TRAIN_FILE, VAL_FILE) and (path.parent / REPORT_FILE).is_file()
    for number, line in _filled_lines(path):
        report.read += 1
        try:
            yield _parse_row(_decode_line(line, number), path, number, prepared=prepared)
        except ValueError as error:
            sample = line[:80].decode("utf-8", "replace").strip()
            report.rejected.append(Rejected(f"{path}:{number}", str(error), sample))


def _filled_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    with path.open("rb") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip(b"\xef\xbb\xbf \t\r\n"))


def _decode_line(line: bytes, number: int) -> Any:
    """One line's JSON value; every fault becomes a ValueError with a plain reason."""
    try:
        text = line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1} of the line") from None
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be encoded
        return value
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair: the text was cut inside a character") from None
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None
    except ValueError:  # Python's own limit
        raise ValueError("a number of more than 4300 digits") from None


def _parse_row(row: Any, path: Path, number: int, *, prepared: bool) -> Record | Fragment:
    """One JSON value as a record or a line of running text; a prepared row says itself where it came from.

    Raises:
        ValueError: why it is neither.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, found {_kind(row)}")
    where = f"{path}:{number}"
    if prepared and isinstance(row.get("source"), str):
        where = row.pop("source")
    known = {"messages", "prompt", "completion", "text", "metadata"}
    metadata = {key: value for key, value in row.items() if key not in known}
    if isinstance(row.get("metadata"), dict):
        metadata = {**row["metadata"], **metadata}
    if "messages" in row:
        return Record({"messages": _messages(row["messages"])}, where, metadata)
    if "completion" in row:
        prompt, completion = row.get("prompt", ""), row["completion"]
        for name, value in (("prompt", prompt), ("completion", completion)):
            if not isinstance(value, str):
                raise ValueError(f'"{name}" must be a text, found {_kind(value)}')
        if not completion.strip():
            raise ValueError("the completion is empty")
        if not prompt.strip():
            return Fragment(_clean(completion), str(path), number)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return Record({"messages": _messages(turns)}, where, metadata)
    if "text" in row:
        if not isinstance(row["text"], str):
            raise ValueError(f'"text" must be a text, found {_kind(row["text"])}')
        if not row["text"].strip():
            raise ValueError("the text is empty")
        return Record({"text": _clean(row["text"])}, where, metadata)
    keys = ", ".join(map(repr, list(row)[:6])) or "none"
    raise ValueError(f'wanted "messages", "prompt" and "completion", or "text"; found the keys {keys}')


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else _kind(value)
        raise ValueError(f'"messages" must be a list of {{role, content}}, found {found}')
    messages = []
    for turn, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f'turn {turn} of "messages" must be {{role, content}} with texts')
        if message.get("role") not in ROLES:
            raise ValueError(f"turn {turn} has the role {message.get('role')!r}, wanted one of {', '.join(ROLES)}")
        messages.append({"role": message["role"], "content": _clean(message["content"])})
        if message["role"] == "assistant" and not messages[-1]["content"]:
            raise ValueError(f"turn {turn} is an assistant turn without an answer")
    if all(message["role"] != "assistant" for message in messages):
        raise ValueError("no assistant turn: nothing would be trained")
    return messages


def _clean(text: str) -> str:
    """Unicode NFC, line feeds only, no NUL and no white space around."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")).strip()


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


# Running text and documents -------------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"[.!?…:»”\"][)\]]*$")


def _join(items: Iterable[Record | Fragment], limit: int, report: DataReport) -> Iterator[Record]:
    """Join neighbouring lines of running text, in file order, to passages of at most about `limit` characters."""
    pending: list[Fragment] = []
    for item in items:
        if isinstance(item, Record):
            yield item
            continue
        length = sum(len(fragment.text) + 1 for fragment in pending)
        ended = pending and _SENTENCE_END.search(pending[-1].text)
        if pending and (length + len(item.text) > limit and (ended or length > limit)):
            yield _passage(pending, report)
            pending = []
        pending.append(item)
    if pending:
        yield _passage(pending, report)


def _passage(lines: Sequence[Fragment], report: DataReport) -> Record:
    text = lines[0].text
    for before, line in itertools.pairwise(lines):
        # a line that ended a sentence was a paragraph; another was broken where the book's line ended
        text += ("\n" if _SENTENCE_END.search(before.text) or not line.text[:1].islower() else " ") + line.text
    report.joined_lines += len(lines)
    report.passages += 1
    where = f"{lines[0].path}:{lines[0].line}" + (f"-{lines[-1].line}" if len(lines) > 1 else "")
    return Record({"text": text}, where)


def _read_document(path: Path, limit: int, report: DataReport) -> Iterator[Record]:
    """Passages of a Markdown or text file, each under its title and section."""
    report.documents += 1
    try:
        text = _clean(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        report.skipped_files.append(Rejected(str(path), f"not UTF-8 at byte {error.start + 1}"))
        return
    before = report.passages
    title, section, paragraphs = path.stem.replace("-", " "), "", []
    titled = False
    for block in (*re.split(r"\n\s*\n|\n(?=#)|(?<=\n)(?=#)", text), None):
        heading = re.match(r"(#{1,6})\s+(.+?)\s*#*(?:\n|$)", block or "")
        if block is None or heading:
            yield from _passages(title, section, paragraphs, limit, path, report)
            paragraphs = []
        if heading:
            if not titled:
                title, titled = heading[2], True
            else:
                section = heading[2]
            block = (block or "")[heading.end() :]
        if block and block.strip():
            paragraphs.append(block.strip())
    if report.passages == before:
        report.skipped_files.append(Rejected(str(path), "holds no text"))


def _passages(
    title: str, section: str, paragraphs: Sequence[str], limit: int, path: Path, report: DataReport
) -> Iterator[Record]:
    head = f"{title}: {section}" if section else title
    body = ""
    for part in [piece for paragraph in paragraphs for piece in _pieces(paragraph, limit)]:
        if body and len(body) + len(part) > limit:
            yield _document_record(head, body, path, report)
            body = ""
        body = f"{body}\n{part}" if body else part
    if body:
        yield _document_record(head, body, path, report)


def _pieces(paragraph: str, limit: int) -> Iterator[str]:
    """A paragraph, cut between sentences when it is longer than `limit`."""
    piece = ""
    for sentence in re.split(r"(?<=[.!?…])\s+", paragraph) if len(paragraph) > limit else [paragraph]:
        if piece and len(piece) + len(sentence) > limit:
            yield piece
            piece = ""
        piece = f"{piece} {sentence}" if piece else sentence
    if piece:
        yield piece


def _document_record(head: str, body: str, path: Path, report: DataReport) -> Record:
    report.passages += 1
    return Record({"text": f"{head}\n{body}"}, str(path), group=path.stem)


# Fact sheets ----------------------------------------------------------------------------------------------------


def _read_facts(sheets: Sequence[Path], report: DataReport) -> list[dict[str, Any]]:
    """The rows of every fact sheet, `{"fact", "expected": […], "questions": […]}`; never trained on."""
    facts = []
    for path in sheets:
        if not path.is_file():
            raise DataError(f"{path}: no such fact sheet (looked in {Path.cwd()}).")
        report.fact_sheets.append(str(path))
        for number, line in _filled_lines(path):
            try:
                facts.append(_parse_fact(_decode_line(line, number)))
            except ValueError as error:
                report.rejected_facts.append(Rejected(f"{path}:{number}", f"not a fact: {error}"))
    return facts


def _parse_fact(row: Any) -> dict[str, Any]:
    for name in ("expected", "questions"):
        value = row.get(name) if isinstance(row, dict) else None
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise ValueError(f'"{name}" must be a list of texts')
    return {"fact": str(row.get("fact", "")), "expected": row["expected"], "questions": row["questions"]}
