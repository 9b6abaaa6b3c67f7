"""The files to read, and their split as their names and folders say. Knows nothing of rows."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError
from ..files.storage import finish_replacing, left_by_file_manager
from ..translations import Sentence
from .documents import CODE, SEVERAL, SUFFIXES
from .documents.outline import one_line
from .records import Findings, composed
from .text_files import PACKED

TRAIN_FILE, VAL_FILE, REPORT_FILE, FACTS_FILE = (
    "train_data.jsonl",
    "val_data.jsonl",
    "data_report.json",
    "facts.jsonl",
)
PAIRS = ((TRAIN_FILE, VAL_FILE), ("train.jsonl", "valid.jsonl"))
JSON_LINES = (".jsonl", ".ndjson")
SEPARATED = (".csv", ".tsv")
TABLES = (*JSON_LINES, ".json", *SEPARATED, ".parquet")
DOCUMENTS = (*SUFFIXES, *SEVERAL)
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz")
OF_PROGRAMS = frozenset(("node_modules", "bower_components", "__pycache__", "site-packages"))
"""Folders that programs fill."""


@dataclass(frozen=True)
class Source:
    """A file to be read.

    Attributes:
        path: its path; for a member of an archive, as if the archive were a folder.
        form: its suffix without that of a compression, ".jsonl" or ".md".
        archive: the file that it is a member of.
        member: its number there, and in an archive in that.
        unpacked: path of a member's bytes while it is read.
        within: for source code, its path within the folder that was named.
    """

    path: Path
    form: str
    archive: Path | None = None
    member: tuple[int, ...] = ()
    unpacked: Path | None = None
    within: str = ""

    @property
    def file(self) -> Path:
        """Return the file on disk that it comes from."""
        return self.archive or self.path

    @property
    def content(self) -> Path:
        """Return where its bytes lie."""
        return self.unpacked or self.path

    @property
    def is_document(self) -> bool:
        """Return whether it holds prose instead of rows."""
        return self.form in DOCUMENTS or self.is_code

    @property
    def is_code(self) -> bool:
        """Return whether it is source code."""
        return self.form in CODE


def find_sources(named: Sequence[str], skipped: Findings, output: Path | None = None) -> list[Source]:
    """Return every readable file that was named or lies in a named directory, in a stable order and once each.

    Args:
        named: files and directories. One that `qlora data` wrote gives what it wrote; inside another it is left out.
        skipped: collects files that are not read, with the reason.
        output: place where the rows will be written; earlier output there is no source.

    Raises:
        DataError: something named does not exist.
    """
    found: dict[Path, Source] = {}
    for name in named:
        root = Path(name).expanduser()
        if not root.exists():
            raise DataError(Sentence("{name}: no such file or directory (looked in {place}).",
                                     name=name, place=str(Path.cwd())))  # fmt: skip
        for path in _inside(root, skipped, output) if root.is_dir() else [root]:
            if reason := _reason_to_skip(path, in_directory=root.is_dir()):
                skipped.add(str(path), reason)
            else:
                found.setdefault(path.resolve(), Source(path, form_of(path)))
    return list(found.values())


def without_repeats(sources: Sequence[Source], skipped: Findings) -> list[Source]:
    """Return sources without those that repeat a better one beside them: signal-export writes each chat three times."""
    names = {source.path for source in sources}
    kept = []
    for source in sources:
        others = [source.path.parent / name for name in ("chat.md", "data.json")]
        if source.path.name in ("chat.md", "index.html") and names.issuperset(others):
            skipped.add(str(source.path), "is the chat that data.json beside it holds")
        else:
            kept.append(source)
    return kept


def with_code_apart(sources: Sequence[Source], named: Sequence[str], skipped: Findings) -> list[Source]:
    """Treat each folder as code or data: settings in a code folder are no rows, a script in a data folder no data.

    A folder or archive is one of code if most of its files are. Files that are named directly are read as they are.
    """
    kept: list[Source] = []
    roots = [Path(name).expanduser() for name in named]
    inside: dict[Path, list[Source]] = {}
    for source in sources:
        root = next((root for root in roots if source.path != root and source.path.is_relative_to(root)), None)
        if root is None:
            kept.append(source)
        else:
            inside.setdefault(root, []).append(source)
    for root, members in inside.items():
        of_code = 2 * sum(source.is_code for source in members) > len(members)
        for source in members:
            if source.is_code and not of_code:
                reason = f"a {source.form} file is not read where most files are no source code: name it itself"
                skipped.add(str(source.path), reason)
            elif of_code and source.form in TABLES:
                skipped.add(str(source.path), f"a {source.form} file in a folder of source code: name it itself")
            else:
                within = source.path.relative_to(root).as_posix() if source.is_code else ""
                kept.append(replace(source, within=within))
    order = {source.path: place for place, source in enumerate(sources)}
    return sorted(kept, key=lambda source: order[source.path])


def is_prepared(directory: Path) -> bool:
    """Return whether `qlora data` wrote this directory."""
    finish_replacing(directory)  # completes a write that was killed halfway
    return (directory / REPORT_FILE).is_file()


def _inside(root: Path, skipped: Findings, output: Path | None) -> list[Path]:
    """Return the visible files of a directory; for one that `qlora data` wrote, only those it wrote."""
    output = output.resolve() if output else None
    if is_prepared(root) and root.resolve() != output:
        return [path for name in (TRAIN_FILE, VAL_FILE, FACTS_FILE) if (path := root / name).is_file()]
    files: list[Path] = []
    seen: set[Path] = set()  # a link may lead back to a parent directory

    def complain(error: OSError) -> None:
        skipped.add(str(error.filename), f"cannot be read: {error.strerror}")

    for folder, folders, names in os.walk(root, followlinks=True, onerror=complain):
        here = Path(folder)
        written = {TRAIN_FILE, VAL_FILE, REPORT_FILE} if is_prepared(here) else set()
        if written and here.resolve() != output:
            skipped.add(folder, "was written by `qlora data`: name it itself to use it")
            folders.clear()
            continue
        for name in OF_PROGRAMS.intersection(folders):
            skipped.add(str(here / name), "holds what programs fetched or made: left out")
        named = (name for name in sorted(folders) if not name.startswith(".") and name not in OF_PROGRAMS)
        new = ((name, (here / name).resolve()) for name in named)
        folders[:] = [name for name, place in new if place not in seen and not seen.add(place)]
        visible = (name for name in names if not (name.startswith(".") or left_by_file_manager(name)))
        files += [here / name for name in visible if name not in written]
    return sorted(files)


def form_of(path: Path) -> str:
    """Return the suffix that says what a file holds: the one before a compression's, in lower case."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def title_of(path: Path) -> str:
    """Return the subject that a file name states: without known suffixes, composed, with blanks for underscores.

    A hyphen belongs to a name or date; but in a name without blanks, one before a small letter separates words.
    """
    if path.name in NAMELESS:
        path = path.parent
    name = composed(path.name)
    packed = next((suffix for suffix in PACKED if name.lower().endswith(suffix)), "")
    name = name[: len(name) - len(packed)]
    known = next((suffix for suffix in (*TABLES, *DOCUMENTS, *ARCHIVES) if name.lower().endswith(suffix)), "")
    name = _NOTION_ID.sub("", name[: len(name) - len(known)])
    if " " not in name:
        before_digits = r"|(?<!\d)-(?=\d)" if name == name.lower() else ""
        name = re.sub(rf"-(?=[^\W\d_A-ZÀ-Þ]|$){before_digits}", " ", name)
    return one_line(name.replace("_", " "))


NAMELESS = ("_chat.txt", "chat.md", "data.json")
"""Names of chat files that only their folder or archive distinguishes."""
_NOTION_ID = re.compile(r" [0-9a-f]{32}$")  # Notion appends this to every page name


def _reason_to_skip(path: Path, *, in_directory: bool) -> str:
    if not path.exists():
        return "a link to something that is not there"
    if not path.is_file():  # reading a pipe would never end
        return "not a regular file"
    if reason := reason_of_name(path, in_directory=in_directory):
        return reason
    if not os.access(path, os.R_OK):
        return "may not be read: no permission"
    return ""


def reason_of_name(path: Path, *, in_directory: bool) -> str:
    """Return why a file of this name is not read, or ""."""
    form = form_of(path)
    if form not in (*TABLES, *DOCUMENTS, *ARCHIVES, *CODE):
        packed = " Unpack it first." if form in (".7z", ".rar") else ""
        return f"a {form or 'nameless'} file is not read{'.' if packed else ''}{packed}"
    if re.search(r"\.(?:min|bundle)\.(?:js|css)$", path.name, re.IGNORECASE):
        return "is minified by its name"
    if path.name.lower() == "readme.md" and in_directory:
        return "a README describes data, it is not data"
    return ""


TRAINING, VALIDATING, TESTING = "train", "validation", "test"
_SPLITS = {
    **dict.fromkeys(("train", "training", "treino"), TRAINING),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation", "validação", "validacao"), VALIDATING),
    **dict.fromkeys(("test", "testing", "teste", "holdout", "heldout"), TESTING),
}
_ALSO_WORDS = ("valid", "dev")  # also first words of unrelated names such as valid_answers
_FILLERS = frozenset(
    (
        "of", "data", "set", "dataset", "split", "rows", "part", "full", "small", "clean", "final", "v", "sft", "prefs",
        "gen",
    )
)  # fmt: skip
"""Words that may precede the word for a split."""


def split_in(name: str) -> str:
    """Return the split that the name of a file, a key or in a column says: TRAINING, VALIDATING, TESTING or "".

    The split is the first or last word of the name: test-00000-of-00002, train_data, cities.val.
    """
    words = [word for word in re.split(r"[\W\d_]+", name.casefold()) if word]
    while len(words) > 1 and words[-1] in _FILLERS:
        words.pop()
    if not words:
        return ""
    first = _SPLITS.get(words[0], "") if len(words) == 1 or words[0] not in _ALSO_WORDS else ""
    return first or _SPLITS.get(words[-1], "")


@dataclass(frozen=True)
class OwnSplit:
    """Training and validation files, as their names and folders say.

    Attributes:
        train, validation: files that say so.
        loose: the others, which are still to be split.
    """

    train: list[Source]
    validation: list[Source]
    loose: list[Source]

    @property
    def complete(self) -> bool:
        """Return whether validation files were named."""
        return bool(self.validation)


def own_split(sources: Sequence[Source], named: Sequence[str], skipped: Findings, *, by_name: bool = True) -> OwnSplit:
    """Sort files by the split in their names or folders; test files are left out.

    In a directory with training and validation files side by side, nothing else is read unless named itself.

    Args:
        sources: files of rows and documents.
        named: sources as the user named them; a folder's name counts below it, its own only beside one for training.
        skipped: collects files that are left out, with the reason and what to do.
        by_name: False: only what `qlora data` wrote keeps its split.
    """
    roots = [Path(name).expanduser() for name in named]
    labels = _labels(sources, roots) if by_name else {}
    labels |= {s.path: split_in(s.path.stem) for s in sources if s.path.name in PAIRS[0] and is_prepared(s.path.parent)}
    _label_what_is_beside(sources, labels)
    train, validation = ([s for s in sources if labels.get(s.path) == kind] for kind in (TRAINING, VALIDATING))
    beside = {s.path.parent for s in validation}
    whole = [s.path for s in train if s.path.parent in beside]

    def shadows(train: Path, path: Path) -> bool:
        own = any(path == root or (path.is_relative_to(root) and not train.is_relative_to(root)) for root in roots)
        return path.is_relative_to(train.parent) and not own

    loose = []
    for source in sources:
        if labels.get(source.path) == TESTING:
            skipped.add(str(source.path), TEST_REASON)
        elif source.path in labels:
            continue
        elif first := next((path for path in whole if shadows(path, source.path)), None):
            skipped.add(str(source.path), f"{first} is used, with the validation file beside it")
        else:
            loose.append(source)
    return OwnSplit(train, validation, loose)


TEST_REASON = (
    "is for testing by its name, and neither trained nor validated on. If it is not: rename it, or --no-own-split"
)


def _labels(sources: Sequence[Source], roots: Sequence[Path]) -> dict[Path, str]:
    """Return the split of each file that has one. Unsure names count only if something is named as for training."""
    sure, unsure = {}, {}
    for source in sources:
        path = source.path
        stem = path.name[: path.name.lower().rindex(source.form)] if source.form else path.name
        root = next((root for root in roots if path != root and path.is_relative_to(root)), path.parent)
        folders = [
            _SPLITS.get(_folder_name(part), "") for part in path.relative_to(root).parts[:-1] if not source.is_code
        ]
        own = "" if source.is_document else split_in(stem)
        if found := _strictest([*folders, own]):
            sure[path] = found
        hints = [_SPLITS.get(_folder_name(root.resolve().name), ""), _SPLITS.get(stem.casefold(), "")]
        if hint := _strictest([*hints, found]):
            unsure[path] = hint
    return unsure if TRAINING in unsure.values() else sure


def _folder_name(name: str) -> str:
    """Return the name of a folder, or an archive's name without its suffix."""
    found = form_of(Path(name))
    name = name.casefold()
    return name[: name.rindex(found)] if found in ARCHIVES else name


def _strictest(labels: Sequence[str]) -> str:
    """Return the strictest split: test wins over everything; otherwise the last one said."""
    return TESTING if TESTING in labels else next((label for label in reversed(labels) if label), "")


def _label_what_is_beside(sources: Sequence[Source], labels: dict[Path, str]) -> None:
    """Label files of rows beside a validation file as for training if none there says that it is."""
    for folder in {path.parent for path, label in labels.items() if label == VALIDATING}:
        here = [s for s in sources if s.path.parent == folder and not s.is_document]
        if not any(labels.get(source.path) == TRAINING for source in here):
            labels |= {source.path: TRAINING for source in here if source.path not in labels}
