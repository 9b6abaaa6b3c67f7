"""The directory of an export: where one may be written, what it may replace, and what counts as its content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..errors import RunError, StorageError
from ..files.storage import MANIFEST, left_by_file_manager, manifest_problem, nearest_existing
from ..files.untrusted_json import TABLE_BYTES, read_object
from ..reports.plain_text import size
from ..runs.run import ENVIRONMENT, Run
from .source import ExportSource

METRICS_FILE = "metrics.json"


def find_destination(source: ExportSource, out: Path, *, force: bool) -> Path:
    """Return where an export may be written.

    Args:
        source: what is exported.
        out: the directory that was asked for.
        force: replace whatever is there.

    Raises:
        RunError: it is a link, belongs to something else, or holds what may not be replaced.
    """
    out = out.expanduser()
    _refuse_links(source.run.path, out)
    out = out.resolve()
    _refuse(source, out, force=force)
    return out


def check_room(out: Path, wanted: int) -> None:
    """Refuse to begin an export that the disk has no room for.

    Args:
        out: where it will lie.
        wanted: bytes that will be written until it is complete.

    Raises:
        StorageError: there is less free.
    """
    free = shutil.disk_usage(nearest_existing(out)).free
    if free < wanted:
        raise StorageError(
            f"{out}: needs {size(wanted)} on the disk until it is complete, and {size(free)} are free. Make room, or "
            "give a place on another disk with --out."
        )


def _refuse_links(run: Path, out: Path) -> None:
    """Refuse an export path that is a link, or inside the run leads through one: its target would be deleted."""
    for path in (out, *out.parents):
        if path != out and not path.absolute().is_relative_to(run.absolute()):
            break
        if path.is_symlink():
            raise RunError(f"{path}: is a link to {path.readlink()}. Give the place itself with --out.")


def _refuse(source: ExportSource, out: Path, *, force: bool) -> None:
    """Refuse a directory that holds more than an export, and a user's files unless forced."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; wanted a directory to write. Give another with --out.")
    kept = {
        "the run": source.run.path,
        "the base model": source.spec.path,
        "the current directory": Path.cwd(),
        "home": Path.home(),
    }
    for what, path in kept.items():
        if path.resolve().is_relative_to(out):
            raise RunError(f"{out}: holds {what} and is never replaced. Give another directory with --out.")
    if Run(out).exists and (out / ENVIRONMENT).is_file():  # a fused model has a config.json, too
        raise RunError(f"{out}: is a run and is never replaced. Give another directory with --out.")
    sources = [
        Path(name).expanduser().resolve() for name in source.run.config().data.data if not name.startswith("hf:")
    ]
    if any(path.is_relative_to(out) for path in sources if path.exists()):
        raise RunError(f"{out}: holds the data of the run and is never replaced. Give another directory with --out.")
    inside = source.run.path.resolve()
    exports = inside / source.run.exports.name  # wherever a link of that name leads
    if out.is_relative_to(inside) and (out == exports or not out.is_relative_to(exports)):
        raise RunError(f"{out}: belongs to the run itself. Give a directory inside {exports}, or elsewhere.")
    if force or not out.exists() or not content_of(out):
        return
    if problem := export_problem(out):
        raise RunError(f"{out}: {problem}, so it is left as it is. --force replaces all of it; or give another --out.")


def export_problem(directory: Path) -> str:
    """Return why a directory is not an unchanged export, in a few words; empty if it is one."""
    try:
        exported = "exported_as" in read_object(directory / METRICS_FILE, TABLE_BYTES)
    except (OSError, ValueError, TypeError):
        exported = False
    if not exported or not (directory / MANIFEST).is_file():
        return "holds files that are not an export"
    if problem := manifest_problem(directory):
        return f"was changed since it was exported ({problem})"
    written = {*json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"], MANIFEST, "__pycache__"}
    added = sorted(path.name for path in content_of(directory) if path.name not in written)
    return f"holds more than was exported ({', '.join(added[:3])})" if added else ""


def content_of(directory: Path) -> list[Path]:
    """Return the content of a directory, without the files that file managers leave everywhere."""
    return [path for path in directory.iterdir() if not left_by_file_manager(path.name)]
