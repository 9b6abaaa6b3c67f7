"""Data sets of the hub, named as `hf:OWNER/NAME[@REVISION][:SPLIT]`.

Knows file names and what a data set states about itself; `hub` makes the requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, ModelError
from ..models.hub import fetch_data
from .sources import TABLES, TESTING, form_of, split_in

PREFIX = "hf:"
_NO_ROWS = ("dataset_infos.json", "dataset_dict.json", "dataset_info.json", "state.json", "config.json")
_LICENCE = re.compile(r"^licen[sc]e:[ \t]*(\S[^\n]*|(?:\n[ \t]*-[^\n]+)+)", re.MULTILINE)


@dataclass(frozen=True)
class Named:
    """Sources as local files and directories.

    Attributes:
        named: sources as the user named them.
        sources: the same, with data sets replaced by their files.
        licences: licence that each data set states.
    """

    named: tuple[str, ...]
    sources: tuple[str, ...]
    licences: tuple[str, ...]


def fetched(named: Sequence[str], say: Callable[[str], None] | None = None) -> Named:
    """Fetch the data sets among the sources; those in the hub's cache are not fetched again.

    Args:
        named: files, directories, and data sets.
        say: called with the line that stands for a progress bar.

    Raises:
        DataError: a data set is not there, cannot be fetched, or has no file of rows, or not that split.
    """
    sources: list[str] = []
    licences: list[str] = []
    for name in named:
        if not name.startswith(PREFIX):
            sources.append(name)
            continue
        repository, _, split = name.removeprefix(PREFIX).partition(":")
        try:
            path = fetch_data(repository, lambda file, split=split: is_wanted(file, split), say)
        except ModelError as error:
            raise DataError(str(error)) from None
        files = [file for file in sorted(path.rglob("*")) if is_wanted(str(file.relative_to(path)), split)]
        if not files:
            which = f"no split {split!r} of rows" if split else "no file of rows"
            raise DataError(
                f"{repository}: holds {which} ({', '.join(TABLES)}). Scripts of data sets are not run. Its page on the "
                f"hub shows its files: {PREFIX}{repository}:SPLIT takes those of one split or folder."
            )
        sources += map(str, files)
        licences.append(f"{repository}: {_licence(path)}")
    return Named(tuple(named), tuple(sources), tuple(licences))


def is_wanted(file: str, split: str) -> bool:
    """Return whether a file of a data set, by its path, holds rows of the split; without one, of any but the test."""
    path = Path(file)
    if form_of(path) not in TABLES or path.name in _NO_ROWS or any(part.startswith(".") for part in path.parts):
        return False
    stem = path.name[: path.name.lower().rindex(form_of(path))]
    said = [split_in(stem), *(split_in(part) for part in path.parts[:-1])]
    if not split:
        return TESTING not in said
    return (
        split in path.parts[:-1]
        or stem == split
        or re.match(rf"{re.escape(split)}[-.]", stem) is not None
        or (split in said)
    )


def _licence(path: Path) -> str:
    """Return the licence stated in a data set's README."""
    try:
        text = (path / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "no licence is named"
    front = text.partition("---")[2].partition("\n---")[0] if text.startswith("---") else ""
    found = _LICENCE.search(front)
    return " ".join(found[1].replace("-\n", " ").split())[:80] if found else "no licence is named"
