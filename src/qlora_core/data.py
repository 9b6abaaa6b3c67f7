"""Files to validated records to splits, with a report of everything that was read, joined and refused.

Accepted rows: `{"messages": […]}`, `{"prompt", "completion"}`, `{"text"}`; a row with an empty prompt is running text.
Accepted files: `.jsonl`, Markdown and plain text. Bad input is reported with file and line, never raised, and the
sources are never written to. Knows nothing of tokens or models.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .config import DataConfig
from .errors import DataError
from .storage import write_json, write_text

TRAIN_FILE, VAL_FILE, REPORT_FILE, FACTS_FILE = (
    "train_data.jsonl",
    "val_data.jsonl",
    "data_report.json",
    "facts.jsonl",
)
PAIRS = ((TRAIN_FILE, VAL_FILE), ("train.jsonl", "valid.jsonl"))
DOCUMENTS = (".md", ".markdown", ".txt")
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
    """What became of the sources."""

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


@dataclass(frozen=True)
class PreparedData:
    """Rows ready to be encoded, as `train_data.jsonl` and `val_data.jsonl` hold them."""

    train: tuple[dict[str, Any], ...]
    validation: tuple[dict[str, Any], ...]
    facts: tuple[dict[str, Any], ...]
    report: DataReport

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
        """Write both files and the report; each takes its place only when it is complete."""
        write_rows(directory / TRAIN_FILE, self.train)
        write_rows(directory / VAL_FILE, self.validation)
        if self.facts:
            write_rows(directory / FACTS_FILE, self.facts)
        write_json(directory / REPORT_FILE, asdict(self.report))


def prepare(config: DataConfig) -> PreparedData:
    """Read, validate, join, deduplicate and split the sources.

    Raises:
        DataError: a source does not exist, or nothing usable was found (with the accepted shapes).
    """
    report = DataReport(sources=list(config.data))
    files = list(_files(config.data, report))
    facts = _read_facts(config, files, report)
    pair = _own_pair(files)
    if pair:
        train, validation = (_records([path], config, report, join=False) for path in pair)
        report.own_split = True
    else:
        records = _records([path for path in files if path.name != FACTS_FILE], config, report)
        train, validation = split(records, config.val_fraction)
    if not train:
        raise DataError(_nothing_usable(report))
    report.train, report.validation = len(train), len(validation)
    report.shapes = dict(Counter(next(iter(record.content)) for record in [*train, *validation]))
    return PreparedData(
        train=tuple(record.prepared() for record in train),
        validation=tuple(record.prepared() for record in validation),
        facts=tuple(facts),
        report=report,
    )


def split(records: Sequence[Record], val_fraction: float) -> tuple[list[Record], list[Record]]:
    """Split by a hash of each group: the same row falls on the same side whatever else is there.

    At least one group is kept for validation where there are two and `val_fraction` is above 0.
    """
    place = {record.group or record.digest: 0.0 for record in records}
    for group in place:
        place[group] = int(hashlib.sha256(group.encode()).hexdigest()[:13], 16) / 16**13
    chosen = {group for group, where in place.items() if where < val_fraction}
    if val_fraction > 0 and len(place) > 1 and not chosen:
        chosen = {min(place, key=place.__getitem__)}
    if len(chosen) == len(place):
        chosen.discard(max(place, key=place.__getitem__, default=""))
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        sides[(record.group or record.digest) in chosen].append(record)
    return sides


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace a JSONL file."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file that `write_rows` wrote.

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
        candidates = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        if path.is_dir() and (path / REPORT_FILE).is_file():  # prepared by us: taken as it stands
            candidates = [p for name in (TRAIN_FILE, VAL_FILE, FACTS_FILE) if (p := path / name).is_file()]
        for file in candidates:
            if file.resolve() in seen or file.name.startswith("."):
                continue
            seen.add(file.resolve())
            if file.suffix.lower() not in (".jsonl", *DOCUMENTS):
                report.skipped_files.append(Rejected(str(file), f"a {file.suffix or 'nameless'} file is not read"))
            elif file.name.lower() == "readme.md" and path.is_dir():
                report.skipped_files.append(Rejected(str(file), "a README describes data, it is not data"))
            elif not file.is_file():
                report.skipped_files.append(Rejected(str(file), "not a regular file"))
            else:
                report.files += file.name != FACTS_FILE
                yield file


def _own_pair(files: Sequence[Path]) -> tuple[Path, Path] | None:
    """A user's own train and validation files, side by side."""
    by_name = {path.name: path for path in files}
    for train, validation in PAIRS:
        if train in by_name and validation in by_name and by_name[train].parent == by_name[validation].parent:
            return by_name[train], by_name[validation]
    return None


def _records(files: Sequence[Path], config: DataConfig, report: DataReport, *, join: bool = True) -> list[Record]:
    records: dict[str, Record] = {}
    for path in files:
        if path.suffix.lower() in DOCUMENTS:
            found: Iterable[Record] = _read_document(path, config.passage_length, report)
        else:
            found = _join(_read_jsonl(path, report), config.passage_length if join else 0, report)
        for record in found:
            if record.digest in records:
                report.duplicates += 1
            records.setdefault(record.digest, record)
    return list(records.values())


def _nothing_usable(report: DataReport) -> str:
    reasons = [f"  {r.where}: {r.reason}" for r in (report.rejected + report.skipped_files)[:5]]
    found = f"{report.read} rows in {report.files} files, none usable"
    return "\n".join([f"{', '.join(report.sources)}: {found}.", *reasons, ACCEPTED])


# JSONL ----------------------------------------------------------------------------------------------------------


def _read_jsonl(path: Path, report: DataReport) -> Iterator[Record | Fragment]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip(b"\xef\xbb\xbf \t\r\n"):
                continue
            report.read += 1
            try:
                yield _parse_row(_decode_line(line, number), str(path), number)
            except ValueError as error:
                sample = line[:80].decode("utf-8", "replace").strip()
                report.rejected.append(Rejected(f"{path}:{number}", str(error), sample))


def _decode_line(line: bytes, number: int) -> Any:
    """One line's JSON value; every fault becomes a ValueError with a plain reason."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
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


def _parse_row(row: Any, path: str, number: int) -> Record | Fragment:
    """One JSON value as a record or a line of running text.

    Raises:
        ValueError: why it is neither.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, found {_kind(row)}")
    where = f"{path}:{number}"
    known = {"messages", "prompt", "completion", "text", "metadata", "source"}
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
            return Fragment(_clean(completion), path, number)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return Record({"messages": _messages(turns)}, where, metadata)
    if "text" in row:
        if not isinstance(row["text"], str):
            raise ValueError(f'"text" must be a text, found {_kind(row["text"])}')
        if not row["text"].strip():
            raise ValueError("the text is empty")
        return Record({"text": _clean(row["text"])}, str(row.get("source") or where), metadata)
    keys = ", ".join(map(repr, list(row)[:6])) or "none"
    raise ValueError(f'wanted "messages", "prompt" and "completion", or "text"; found the keys {keys}')


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValueError(f'"messages" must be a list of {{role, content}}, found {_kind(value)}')
    messages = []
    for turn, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f'turn {turn} of "messages" must be {{role, content}} with texts')
        if message.get("role") not in ROLES:
            raise ValueError(f"turn {turn} has the role {message.get('role')!r}, wanted one of {', '.join(ROLES)}")
        messages.append({"role": message["role"], "content": _clean(message["content"])})
    if not any(m["role"] == "assistant" and m["content"] for m in messages):
        raise ValueError("no assistant turn with an answer")
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
        report.rejected.append(Rejected(str(path), f"not UTF-8 at byte {error.start + 1}"))
        return
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


def _read_facts(config: DataConfig, files: Sequence[Path], report: DataReport) -> list[dict[str, Any]]:
    """The rows of every fact sheet, `{"fact", "expected": […], "questions": […]}`; never trained on."""
    paths = [Path(config.facts).expanduser()] if config.facts else [p for p in files if p.name == FACTS_FILE]
    facts = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such fact sheet.")
        report.fact_sheets.append(str(path))
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    facts.append(_parse_fact(_decode_line(line, number)))
                except ValueError as error:
                    report.rejected.append(Rejected(f"{path}:{number}", f"not a fact: {error}"))
    return facts


def _parse_fact(row: Any) -> dict[str, Any]:
    for name in ("expected", "questions"):
        value = row.get(name) if isinstance(row, dict) else None
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise ValueError(f'"{name}" must be a list of texts')
    return {"fact": str(row.get("fact", "")), "expected": row["expected"], "questions": row["questions"]}
