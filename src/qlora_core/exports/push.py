"""Take an export to the hub: what of it goes there, what has to be changed for that, and what forbids it.

Files that name places of this machine stay here (`summary.md`, which also quotes rows, and the guides: the model card
says on the hub what they say here) or go as a copy that names the base by its address (`adapter_config.json` and its
like); the manifest is written anew for what goes. `models.hub_upload` talks to the hub.
"""

from __future__ import annotations

import getpass
import re
import shlex
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from ..errors import ConfigError, ExportError, RunError
from ..files.storage import MANIFEST, describe_file, write_json
from ..files.untrusted_json import TABLE_BYTES, read_object
from ..models.adapter_files import ADAPTER_CONFIG, ADAPTER_FILE
from ..models.hub_upload import check_repository, upload
from ..runs.plan import TrainingTracker
from ..runs.run import Run
from ..runs.schema import problem
from .card import CARD
from .destination import METRICS_FILE, content_of, export_problem
from .export import export_run
from .formats import Target
from .guides import GUIDES, printable

LEFT_HERE = frozenset({"summary.md", *GUIDES})
"""Files of an export that name places of this machine or quote rows, and are not sent."""

WORD_LISTS = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"})
"""The base's own lists of words, in which a single word may look like the beginning of a path."""

HEAD_LINES = 24  # of the card that a dry run shows
_LOOKED_AT = 8192  # bytes by which a file is taken for text or not
_NAMES_THE_BASE = ("model", "base_model", "base_model_name_or_path")
_LOCAL = ("local_base",)  # says where the base lies on this machine
_NAMES_AN_ORIGIN = ("_name_or_path", "name_or_path")  # transformers writes them


def find_export(given: str, runs_dir: str, to: Target | None) -> Path:
    """Return the export that is meant: a directory as it is, or that of a run, which is written if need be.

    Args:
        given: an export's directory, or a run's name or path.
        runs_dir: directory of all runs.
        to: format of a run's export; None: `adapter`, or whatever the directory is.

    Raises:
        RunError: it is neither, or is not an unchanged export.
        ConfigError: the directory is an export in another format than `to`.
        QLoraError: the run cannot be exported.
    """
    directory = Path(given).expanduser()
    if not (directory / METRICS_FILE).is_file() and not (directory / MANIFEST).is_file():
        tracker = TrainingTracker(runs_dir)
        try:
            return _export_of(tracker.find(given), to or "adapter")
        except RunError:
            if not directory.is_dir() or Run(directory).exists:
                raise
    if wrong := export_problem(directory):
        raise RunError(f"{directory}: {wrong}, so it is not sent. Export it again: qlora export RUN --to …")
    made = read_object(directory / METRICS_FILE, TABLE_BYTES)["exported_as"]
    if to and made != to:
        raise ConfigError(f"{directory}: was exported as {made}. Leave out --to {to}, or name the run.")
    return directory


def _export_of(run: Run, to: Target) -> Path:
    """Return a run's export, written anew if it is missing, older than the adapters, or has no card."""
    out = run.exports / to
    if out.is_dir() and content_of(out) and (wrong := export_problem(out)):
        again = f"qlora export {shlex.quote(run.name)} --to {to} --force"
        raise RunError(f"{out}: {wrong}, so it is not sent. To write it anew: {again}")
    written = out / METRICS_FILE
    adapters = run.adapters / ADAPTER_FILE
    current = written.is_file() and written.stat().st_mtime >= adapters.stat().st_mtime and (out / CARD).is_file()
    if current and (which := read_object(written, TABLE_BYTES).get("adapters")) != run.adapters.name:
        raise RunError(
            f"{out}: holds the adapters {which}, not the run's {run.adapters.name}. To send it as it is, give its path "
            f"in place of the run; to write it anew: qlora export {shlex.quote(run.name)} --to {to}"
        )
    if not current:
        export_run(run, out, to=to)
    return out


def push(
    directory: Path,
    repository: str,
    *,
    runs_dir: Path,
    public: bool = False,
    force: bool = False,
    with_personal_data: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Send an unchanged export to the hub.

    Args:
        directory: the export; it is only read.
        repository: OWNER/NAME on the hub.
        runs_dir: directory of all runs, which must not be named in what is sent.
        public: let everybody see it.
        force: replace other files that the repository holds.
        with_personal_data: send it although its rows seem to hold personal data.
        dry_run: send nothing, and ask the hub nothing.

    Returns:
        `{"repository", "private", "path", "exported_as", "stored": how its numbers are, in words, "bytes", "files":
        {name: bytes}, "left_here": [name], "card": the card's head, "dry_run", "url", "commit", "created"}`; the last
        three are None in a dry run.

    Raises:
        ExportError: the rows seem to hold personal data, a file names a place of this machine, or the export has no
            card.
        ModelError: the hub or the network refuses.
    """
    check_repository(repository)
    metrics = _read_metrics(directory)
    if not with_personal_data:
        _refuse_personal_data(directory, metrics["data"])
    with tempfile.TemporaryDirectory(prefix="qlora-push-") as work:
        files = _outgoing(directory, metrics["base"], Path(work))
        _refuse_places(
            directory, files, (Path.home(), runs_dir.expanduser().absolute(), runs_dir.expanduser().resolve())
        )
        outcome = {
            "repository": repository,
            "private": not public,
            "path": str(directory),
            "exported_as": metrics["exported_as"],
            "stored": _stored(metrics),
            "files": {name: path.stat().st_size for name, path in files.items()},
            "left_here": sorted(path.name for path in directory.iterdir() if path.name in LEFT_HERE),
            "card": "\n".join(files[CARD].read_text(encoding="utf-8").splitlines()[:HEAD_LINES]),
            "dry_run": dry_run,
        }
        outcome |= {"bytes": sum(outcome["files"].values()), "url": None, "commit": None, "created": None}
        if not dry_run:
            message = f"{metrics['run']}, exported as {metrics['exported_as']}"
            message += f" ({outcome['stored']})" if outcome["stored"] else ""
            outcome |= vars(upload(repository, files, private=not public, force=force, message=message))
    return outcome


class _Data(TypedDict):
    personal_data: dict[str, int]
    personal_rows: int


class _Base(TypedDict):
    name: str
    repository: str


class _Metrics(TypedDict):
    """The part of `metrics.json` that is read here."""

    run: str
    exported_as: str
    base: _Base
    data: _Data | None


def _read_metrics(directory: Path) -> dict[str, Any]:
    metrics = read_object(directory / METRICS_FILE, TABLE_BYTES)
    if not (directory / CARD).is_file() or "data" not in metrics:
        raise ExportError(f"{directory}: was exported by an earlier version and has no model card. Export it again.")
    if wrong := problem(metrics, _Metrics):
        raise ExportError(f"{directory / METRICS_FILE}: is damaged: {wrong}. Export it again.")
    return metrics


def _stored(metrics: Mapping[str, Any]) -> str:
    """Return how an export's numbers are stored, in words; empty for adapters as they are."""
    made = metrics.get("fused") or metrics.get("gguf")
    words = made.get("stored") if isinstance(made, dict) else ""
    return printable(words, 200) if isinstance(words, str) else ""


# What goes ------------------------------------------------------------------------------------------------------


def _outgoing(directory: Path, base: Mapping[str, Any], work: Path) -> dict[str, Path]:
    """Return what is sent, by name; what has to be changed for that is written into `work`."""
    listed = read_object(directory / MANIFEST, TABLE_BYTES)["files"]
    known = {name: expected for name, expected in listed.items() if name not in LEFT_HERE}
    if strange := next((name for name in known if Path(name).name != name), ""):
        raise ExportError(f"{directory / MANIFEST}: names {strange!r}, which does not lie in the export.")
    files = {name: directory / name for name in sorted(known)}
    address = base.get("repository") or f"./{base['name']}"
    for name, path in files.items():
        if name.endswith("config.json") and (portable := _portable(name, path, address)):
            files[name] = work / name
            write_json(files[name], portable, lasting=False)
            known[name] = describe_file(files[name])
    files[MANIFEST] = work / MANIFEST
    write_json(files[MANIFEST], {"files": known}, lasting=False)
    return files


def _portable(name: str, path: Path, address: str) -> dict[str, Any] | None:
    """Return settings that name the base by its address; None if they name no place of this machine."""
    settings = read_object(path, TABLE_BYTES)
    changed = {key: address for key in _NAMES_THE_BASE if name == ADAPTER_CONFIG and key in settings}
    changed |= {key: address for key in _NAMES_AN_ORIGIN if Path(str(settings.get(key, ""))).is_absolute()}
    gone = [key for key in _LOCAL if name == ADAPTER_CONFIG and key in settings]
    kept = {key: value for key, value in settings.items() if key not in gone}
    return kept | changed if changed or gone else None


# What forbids it ------------------------------------------------------------------------------------------------


def _refuse_personal_data(directory: Path, data: Mapping[str, Any] | None) -> None:
    if data is None:
        raise ExportError(
            f"{directory}: its run has no report on its data, so that nobody knows whether the rows hold personal "
            "data. If they hold none, or it may become known: --with-personal-data."
        )
    if data["personal_rows"]:
        kinds = ", ".join(f"{kind} in {count}" for kind, count in data["personal_data"].items())
        raise ExportError(
            f"{directory}: {data['personal_rows']} of the rows that it was trained on seem to hold personal data "
            f"({kinds}), which it may repeat. Clean the rows and train again (data_report.json in the run says which), "
            "or --with-personal-data if it may become known."
        )


def _refuse_places(directory: Path, files: Mapping[str, Path], places: Iterable[Path]) -> None:
    """Refuse text that names a directory of this user.

    Raises:
        ExportError: there is one; file and line are named.
    """
    anywhere, inside_words = _places_pattern(places, after=r"(?![\w.-])"), _places_pattern(places, after=r"/\w")
    for name, path in files.items():
        pattern = inside_words if name in WORD_LISTS else anywhere
        for number, line in enumerate(_lines(path), 1):
            if found := pattern.search(line):
                raise ExportError(
                    f"{directory / name}:{number}: names a place of this machine ({found[0]}), which the hub would "
                    "show. Export again; if it comes from the base's own files, mend it there first."
                )


def _places_pattern(places: Iterable[Path], *, after: str) -> re.Pattern[str]:
    """Return what finds one of these directories, or an absolute path with the user's name as a part."""
    named = [rf"(?<![\w.]){re.escape(str(place))}{after}" for place in places if len(place.parts) > 1]
    user = _user()
    if user:  # neither the address of a page, nor a part of a relative path
        named.append(rf"(?<![\w.:/~])/(?:[^\s/\"'`<>|]+/)*{re.escape(user)}{after}")
    return re.compile("|".join(named) or r"(?!)")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user number without a name
        return ""


def _lines(path: Path) -> list[str]:
    """Return the lines of a text, none of anything else: weights hold names and numbers of the model alone."""
    with path.open("rb") as file:
        if b"\0" in file.read(_LOOKED_AT):
            return []
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []
