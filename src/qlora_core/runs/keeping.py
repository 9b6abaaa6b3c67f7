"""Rename, annotate and delete runs that nobody is training.

Knows run directories; knows nothing of what is in their files.
"""

from __future__ import annotations

from ..errors import RunError
from ..files.storage import discard, explained, flush_directory, write_text
from ..files.untrusted_json import TABLE_BYTES, read_text
from .run import Run, check_name, refuse_links
from .writer import RunLock

NOTE = "note.txt"
LONGEST_NOTE = 2000  # characters


def bytes_of(run: Run) -> int:
    """Return how many bytes a run's files hold."""
    return sum(path.lstat().st_size for path in run.path.rglob("*") if not path.is_dir())


def rename(run: Run, name: str) -> Run:
    """Give a run another name, which is that of its directory; return the run under it.

    Guides of its exports still tell the old path; exporting again renews them.

    Raises:
        RunError: the run does not exist or holds a link; the name is not valid, or taken.
        BusyError: it is being trained.
        StorageError: the directory cannot be renamed.
    """
    check_name(name)
    place = run.path.with_name(name)
    if place == run.path:
        return run
    if place.exists() and not (place.name.lower() == run.name.lower() and place.samefile(run.path)):
        raise RunError(f"{place}: exists already. Choose another name for {run.name}, or delete that one first.")
    with _held(run), explained(run.path, problem="cannot be renamed"):
        run.path.rename(place)
        flush_directory(place.parent)
    return Run(place)


def delete(run: Run) -> int:
    """Delete a run with everything in its directory; return how many bytes that frees.

    Raises:
        RunError: the run does not exist, holds a link, or cannot be deleted.
        BusyError: it is being trained.
    """
    with _held(run):
        freed = bytes_of(run)
        discard(run.path)
        if run.path.exists():
            raise RunError(f"{run.path}: cannot be deleted. See whose it is, and whether its disk may be written.")
    return freed


def read_note(run: Run) -> str:
    """Return what was noted about a run; empty if nothing was.

    Raises:
        RunError: the note cannot be read.
    """
    path = run.path / NOTE
    try:
        return read_text(path, TABLE_BYTES).strip() if path.is_file() else ""
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def write_note(run: Run, text: str) -> None:
    """Note something about a run, in the place of what was noted before; an empty text takes the note away.

    Raises:
        RunError: the run does not exist or holds a link, or the text is too long.
        StorageError: it cannot be written.
    """
    _must_exist(run)
    refuse_links(run.path)
    if len(text) > LONGEST_NOTE:
        raise RunError(f"{run.name}: a note has at most {LONGEST_NOTE:,} characters; this one has {len(text):,}.")
    write_text(run.path / NOTE, text.strip() + "\n" if text.strip() else "")


def _held(run: Run) -> RunLock:
    """Take the lock of a run, so that nobody begins to train it meanwhile."""
    _must_exist(run)
    refuse_links(run.path)
    return RunLock(run.path)


def _must_exist(run: Run) -> None:
    if not run.exists:
        raise RunError(f"{run.path}: there is no such run. `qlora runs` lists those that there are.")
