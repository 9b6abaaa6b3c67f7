"""Preparation of sources: which file is read as what, in which process, and what the cache already holds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..activity import doing
from ..config import DataConfig
from ..errors import ConfigError, DataError
from ..files.storage import cache_directory, publishing
from ..machine.process_pool import in_processes
from ..tokens.tokenizer import ChatTokenizer
from ..translations import Sentence
from .archives import located, unpacked, with_members
from .assembly import TRAIN, UNDECIDED, VALIDATION, Table, assemble
from .decisions import Decisions
from .facts import read_facts
from .from_hub import Named, fetched
from .passages import check_template
from .prepared import PreparedData, json_lines
from .reading import Reading, can_be_cut
from .records import Findings, writable
from .report import DataReport
from .shapes import ACCEPTED, columns_of
from .sources import (
    FACTS_FILE,
    JSON_LINES,
    REPORT_FILE,
    TRAIN_FILE,
    VAL_FILE,
    OwnSplit,
    Source,
    find_sources,
    is_prepared,
    own_split,
    with_code_apart,
    without_repeats,
)
from .text_files import lettering_of, packing_of, pieces_of
from .units import Part, Unit

PIECE = 8 << 20  # bytes of a JSONL file that are read in one go
WORTH_PROCESSES = 32 << 20  # bytes; below, starting processes takes longer than reading
KEPT = 6  # preparations kept in the cache
ABANDONED = 24 * 3600.0  # seconds; an unfinished preparation this old was left by a killed process
SETTLED = 2.0  # seconds; a file changed more recently may change again within its time's resolution

_publishing = threading.Lock()  # the page's threads share the process's temporary names


def prepare(
    config: DataConfig,
    tokenizer: ChatTokenizer,
    *,
    output: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> PreparedData:
    """Read, validate, repair, join, deduplicate and split the sources.

    Data prepared before from the same files with the same settings are taken from the cache, which recognises them by
    every file's size and time of change.

    Args:
        config: the settings of the data.
        tokenizer: measures passages.
        output: place where the rows will be saved; earlier output there is no source.
        progress: called after each part with the number of rows so far.

    Raises:
        DataError: a source does not exist, or nothing usable was found (with the accepted shapes).
        ConfigError: a column or a question is not written as it must be.
    """
    columns_of(config.columns)
    Decisions.read(config.decide)
    if config.question:
        try:
            check_template(config.question)
        except ValueError as error:
            raise ConfigError(f"question: {error}") from None
    began = time.time()
    origin = fetched(config.data)
    config = replace(config, data=origin.sources)
    plan = _Plan.of(config, output)
    state = _state(plan, config, tokenizer)
    place = cache_directory() / "data"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(changed / 1e9 > began - SETTLED for _, _, changed, _ in state["files"]):
        with tempfile.TemporaryDirectory(dir=place, prefix=".") as fresh:  # rows stay readable after its removal
            _write(plan, config, tokenizer, Path(fresh), progress, origin)
            return PreparedData(Path(fresh), plan.files)
    directory = place / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
    with _publishing:
        known = (directory / REPORT_FILE).is_file()
        if not known:
            with publishing(directory) as fresh:
                _write(plan, config, tokenizer, fresh, progress, origin)
        with contextlib.suppress(OSError):  # another process may be clearing up too
            directory.touch()
            _forget_oldest(place)
        return PreparedData(directory, plan.files, reused=known)


@dataclass(frozen=True)
class _Plan:
    """The files of a preparation, by the way they are read."""

    own: OwnSplit
    sheets: list[Path]
    skipped: Findings = field(default_factory=Findings)

    @classmethod
    def of(cls, config: DataConfig, output: Path | None) -> _Plan:
        skipped = Findings()
        sources = with_members(find_sources(config.data, skipped, output), skipped)
        sources = with_code_apart(without_repeats(sources, skipped), config.data, skipped)
        named = [Path(config.facts).expanduser()] if config.facts else []
        sheets = named or [source.path for source in sources if source.path.name == FACTS_FILE]
        rows = [s for s in sources if s.path.name != FACTS_FILE and s.path not in sheets]
        return cls(own_split(rows, config.data, skipped, by_name=config.own_split), sheets, skipped)

    @property
    def sources(self) -> list[Source]:
        """Return every file of rows and documents, validation first, so that none of its rows is trained."""
        return [*self.own.validation, *self.own.train, *self.own.loose]

    @property
    def files(self) -> tuple[Path, ...]:
        """Return every file that is read."""
        return tuple(dict.fromkeys((*(source.file for source in self.sources), *self.sheets)))

    @property
    def names(self) -> list[Path]:
        """Return the names of all sources, members of archives included."""
        return [*(source.path for source in self.sources), *self.sheets]

    def located(self, there: dict[Path, Path]) -> _Plan:
        """Return the sources with the locations of members' bytes, without members that could not be unpacked."""

        def known(sources: list[Source]) -> list[Source]:
            return [located(source, there) for source in sources if not source.archive or source.path in there]

        own = OwnSplit(known(self.own.train), known(self.own.validation), known(self.own.loose))
        return replace(self, own=own)

    def units(self) -> Iterator[tuple[int, Unit]]:
        """Yield everything to be read, with the side it belongs to."""
        whole = self.own.complete
        sides = [(VALIDATION, source) for source in self.own.validation]
        sides += [(TRAIN if whole else UNDECIDED, source) for source in self.own.train]
        for side, source in sides:
            prepared = _is_ours(source, TRAIN_FILE, VAL_FILE)
            yield from ((side, unit) for unit in _units(source, as_it_stands=whole, prepared=prepared))
        for source in self.own.loose:
            yield from ((UNDECIDED, unit) for unit in _units(source))


def _is_ours(source: Source, *names: str) -> bool:
    """Return whether `qlora data` wrote this file under one of these names."""
    return source.path.name in names and is_prepared(source.path.parent)


def _units(source: Source, **options: bool) -> Iterator[Unit]:
    whole = source.form not in JSON_LINES or source.content.stat().st_size < 2 * PIECE
    if whole or packing_of(source.content) or not lettering_of(source.content).plain or not can_be_cut(source):
        yield Unit(source, **options)
    else:
        yield from (Unit(source, piece, **options) for piece in pieces_of(source.content, PIECE))


def _state(plan: _Plan, config: DataConfig, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Return everything that the prepared rows depend on."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    files = [
        (os.fsencode(path.absolute()).hex(), s.st_size, s.st_mtime_ns, s.st_ino)
        for path in plan.files
        if (s := _stat(path))
    ]
    return {
        "settings": asdict(config),
        "tokenizer": tokenizer.fingerprint,
        "code": code.hexdigest(),
        "files": files,
        "skipped": [(found.where, found.reason) for found in plan.skipped],
        "prepared": [is_prepared(path.parent) for path in plan.files],
    }


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError:
        return None


def _forget_oldest(directory: Path) -> None:
    """Keep the newest preparations; one in use stays readable until its user ends."""
    entries = sorted(filter(Path.is_dir, directory.iterdir()), key=lambda path: path.stat().st_mtime)
    whole = [path for path in entries if path.name[0] != "."]
    left = [path for path in entries if path.name[0] == "." and path.stat().st_mtime < time.time() - ABANDONED]
    for entry in (*whole[:-KEPT], *left):
        shutil.rmtree(entry, ignore_errors=True)


# Putting it together --------------------------------------------------------------------------------------------


def _write(
    plan: _Plan,
    config: DataConfig,
    tokenizer: ChatTokenizer,
    directory: Path,
    progress: Callable[[int], None] | None,
    origin: Named,
) -> None:
    """Fill a directory with prepared files."""
    named, licences = list(map(writable, origin.named)), list(map(writable, origin.licences))
    report = DataReport(sources=named, licences=licences, own_split=plan.own.complete)
    report.skipped_files.extend(plan.skipped)
    for text in Decisions.read(config.decide).unknown(plan.names):
        report.doubts.add(f"--decide {text}", "is about none of the files that are read")
    facts = read_facts(plan.sheets, report)
    spool = directory / "rows.jsonl"
    report.bytes = sum(found.st_size for path in plan.files if (found := _stat(path)))
    if not plan.sources:
        raise DataError(_nothing_usable(report))
    unreadable = Findings()
    with unpacked(plan.sources, directory, unreadable) as there, doing("reading") as tick:
        report.skipped_files.extend(unreadable)
        plan = plan.located(there)
        if not plan.sources:
            raise DataError(_nothing_usable(report))
        parts = _parts(plan, Reading(config, tokenizer.directory))
        table = Table.spool(parts, spool, report, progress or tick)
        assemble(spool, table, config, report, directory / TRAIN_FILE, directory / VAL_FILE)
    spool.unlink()
    if not report.train:
        raise DataError(_nothing_usable(report))
    report.look_again(config)
    if facts:
        (directory / FACTS_FILE).write_text(json_lines(facts), encoding="utf-8", newline="\n")
    report.write(directory / REPORT_FILE)


def _parts(plan: _Plan, reading: Reading) -> Iterator[tuple[int, Part]]:
    """Yield every part in order, reading in several processes where there is much to read.

    Large files that cannot be cut are read here, a part at a time: as a whole they might not fit into memory.
    """
    units = list(plan.units())
    elsewhere = [unit for _, unit in units if _size(unit) <= 2 * PIECE]
    if sum(map(_size, elsewhere)) < WORTH_PROCESSES:
        yield from ((side, part) for side, unit in units for part in reading.parts(unit))
        return
    with contextlib.closing(in_processes(reading, elsewhere)) as results:
        for side, unit in units:
            parts = next(results) if _size(unit) <= 2 * PIECE else reading.parts(unit)
            yield from ((side, part) for part in parts)


def _size(unit: Unit) -> int:
    """Return the bytes that a unit reads; a packed file counts as often as it may grow."""
    start, stop, _ = unit.piece
    size = unit.source.content.stat().st_size
    return (size if stop is None else stop) - start if not packing_of(unit.source.content) else 20 * size


def _nothing_usable(report: DataReport) -> Sentence:
    refused = [*report.rejected, *report.skipped_files, *report.marked]
    reasons: list[str] = [Sentence.of_parts("", [f"  {r.where}: ", r.reason]) for r in refused[:5]]
    if report.test_rows:
        reasons.append(
            Sentence("  {count} rows are for testing, as they say themselves. If not: --no-own-split",
                     count=report.test_rows)
        )  # fmt: skip
    if report.validation:
        reasons.append(
            Sentence("  {count} rows are for validation by their name. If not: --no-own-split", count=report.validation)
        )
    found = Sentence("{sources}: {rows} rows in {files} files, none usable.",
                     sources=", ".join(report.sources), rows=report.read, files=report.files)  # fmt: skip
    return Sentence.of_parts("\n", [found, *reasons, ACCEPTED])
