"""Models on the Hugging Face hub: short names for some of them, and fetching their files.

Knows the hub and its cache; nothing of mlx, and nothing of what is in the files. Only settings and safetensors are
fetched: never code, never pickles. Logging in is left to huggingface_hub.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..activity import doing
from ..errors import ModelError
from ..files.untrusted_json import TABLE_BYTES, read_object
from .hub_errors import explained

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True)
class Alias:
    """A short name for a model on the hub.

    Attributes:
        repository: OWNER/NAME on the hub.
        licence: licence of its weights.
        download_gb: approximate size of its weights in GB, only shown.
        gated: whether the licence must be accepted on the hub before anything can be fetched.
    """

    repository: str
    licence: str
    download_gb: float
    gated: bool = False


ALIASES = {
    "mistral-7b": Alias("mistralai/Mistral-7B-Instruct-v0.3", "Apache-2.0", 14.5, gated=True),
    "mistral-7b-4bit": Alias("mlx-community/Mistral-7B-Instruct-v0.3-4bit", "Apache-2.0", 4.1),
    "qwen3-0.6b": Alias("Qwen/Qwen3-0.6B", "Apache-2.0", 1.5),
    "qwen3-1.7b": Alias("Qwen/Qwen3-1.7B", "Apache-2.0", 4.1),
    "qwen3-4b": Alias("Qwen/Qwen3-4B", "Apache-2.0", 8.0),
    "qwen3-4b-4bit": Alias("mlx-community/Qwen3-4B-4bit", "Apache-2.0", 2.3),
    "qwen3-8b": Alias("Qwen/Qwen3-8B", "Apache-2.0", 16.4),
    "qwen3-8b-4bit": Alias("mlx-community/Qwen3-8B-4bit", "Apache-2.0", 4.6),
    "qwen2.5-0.5b": Alias("Qwen/Qwen2.5-0.5B-Instruct", "Apache-2.0", 1.0),
    "qwen2.5-1.5b": Alias("Qwen/Qwen2.5-1.5B-Instruct", "Apache-2.0", 3.1),
    "qwen2.5-7b": Alias("Qwen/Qwen2.5-7B-Instruct", "Apache-2.0", 15.2),
    "llama-3.2-1b": Alias("meta-llama/Llama-3.2-1B-Instruct", "Llama 3.2 Community", 2.5, gated=True),
    "llama-3.2-3b": Alias("meta-llama/Llama-3.2-3B-Instruct", "Llama 3.2 Community", 6.4, gated=True),
    "llama-3.2-3b-4bit": Alias("mlx-community/Llama-3.2-3B-Instruct-4bit", "Llama 3.2 Community", 1.8),
    "llama-3.1-8b": Alias("meta-llama/Llama-3.1-8B-Instruct", "Llama 3.1 Community", 16.1, gated=True),
    "llama-3.1-8b-4bit": Alias("mlx-community/Meta-Llama-3.1-8B-Instruct-4bit", "Llama 3.1 Community", 4.5),
    "gemma-3-1b": Alias("google/gemma-3-1b-it", "Gemma", 2.0, gated=True),
    "gemma-2-2b": Alias("google/gemma-2-2b-it", "Gemma", 5.2, gated=True),
    "smollm2-360m": Alias("HuggingFaceTB/SmolLM2-360M-Instruct", "Apache-2.0", 0.7),
    "smollm2-1.7b": Alias("HuggingFaceTB/SmolLM2-1.7B-Instruct", "Apache-2.0", 3.4),
    "smollm3-3b": Alias("HuggingFaceTB/SmolLM3-3B", "Apache-2.0", 6.2),
    "phi-4-mini": Alias("microsoft/Phi-4-mini-instruct", "MIT", 7.7),
}

SETTINGS = ["*.json", "*.jinja"]
# not *.safetensors: Mistral's repository contains its weights a second time, as consolidated.safetensors
WEIGHTS = "model*.safetensors"
INDEX = "model.safetensors.index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")

_KEPT = "What has arrived is kept: run the same command again and it goes on from there."
_NOT_WHOLE = "The repository is not whole: take another, or tell its owner."


MODEL, DATA = "model", "dataset"
"""Kinds of repositories, as the hub calls them."""


def known_models() -> list[dict[str, Any]]:
    """Return the aliases as rows of a table: name, repository, licence, download_gb (GB) and gated (bool)."""
    return [{"name": name, **asdict(alias)} for name, alias in ALIASES.items()]


def fetch(repository: str, *, weights: bool = True, say: Callable[[str], None] | None = None) -> Path:
    """Return the directory of a hub model's files, fetched on first use; an interrupted download is continued.

    Args:
        repository: OWNER/NAME, or OWNER/NAME@REVISION for a branch, a tag or a commit.
        weights: fetch the weights as well; without them, only a few megabytes of settings and tokeniser are fetched.
        say: called with one line instead of a progress bar if standard error is no terminal; by default the line is
            written to standard error.

    Returns:
        A directory of the hub's cache; do not write to its files.

    Raises:
        ModelError: there is no such model, access is refused, the hub cannot be reached, the disk has too little room,
            or the repository has no safetensors or not all of them.
    """
    name, _, revision = repository.partition("@")
    with quiet():
        path, refusal = _look_up(name, revision or None, "config.json")
        listed = _listed(name, path)
        wanted = _matching(listed, *SETTINGS)
        if weights:
            wanted += _matching(listed, WEIGHTS) or _no_safetensors(name, listed)
        missing = [file for file in wanted if not (path / file).exists()]
        if missing:
            kind = "weights" if _matching(missing[:1], WEIGHTS) else "settings"
            with explained(name, f"its {kind} are not all on this machine yet ({missing[0]} is missing)"):
                if refusal:
                    raise refusal
                _fetch_files(name, path, missing, say or _to_standard_error)
    for file in sorted(_indexed(path) if weights else []):
        if not (path / file).exists():
            raise ModelError(f"{name}: its {INDEX} names {file}, which it does not hold. {_NOT_WHOLE}")
    return path


def is_here(repository: str, *, weights: bool = True) -> bool:
    """Return whether everything that `fetch` would fetch is in the cache already; makes no request."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        path = Path(
            snapshot_download(name, revision=revision or None, allow_patterns="config.json", local_files_only=True)
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return False
    listed = _listed(name, path)
    wanted = _matching(listed, *SETTINGS)
    if weights:
        wanted += _matching(listed, WEIGHTS) or [WEIGHTS]
    return all((path / file).exists() for file in wanted)


def arrived_bytes(repository: str) -> int:
    """Return the bytes of a repository in the cache, including files that have arrived in part."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    name = repository.partition("@")[0]
    blobs = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "blobs"
    total = 0
    for path in blobs.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed a moment ago
            total += path.stat().st_size
    return total


def fetch_data(repository: str, wanted: Callable[[str], bool], say: Callable[[str], None] | None = None) -> Path:
    """Return the directory of a hub data set's files, fetched on first use; interrupted downloads are continued.

    Args:
        repository: OWNER/NAME, or OWNER/NAME@REVISION.
        wanted: returns, for a path in the repository, whether the file is fetched.
        say: called with one line instead of a progress bar, as in `fetch`.

    Returns:
        A directory of the hub's cache, with its README.md; do not write to its files.

    Raises:
        ModelError: there is no such data set, access is refused, the hub cannot be reached, or the disk is full.
    """
    name, _, revision = repository.partition("@")
    with quiet():
        path, refusal = _look_up(name, revision or None, "README.md", DATA)
        missing = [file for file in _listed(name, path, DATA) if wanted(file) and not (path / file).exists()]
        if missing:
            with explained(name, f"its files are not all on this machine yet ({missing[0]} is missing)", kind=DATA):
                if refusal:
                    raise refusal
                _fetch_files(name, path, missing, say or _to_standard_error, DATA)
    return path


def _look_up(name: str, revision: str | None, first: str, kind: str = MODEL) -> tuple[Path, Exception | None]:
    """Return the directory, with little more than the file `first`, and the hub's error, if any."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    refusal: Exception | None = None
    with explained(name, "not on this machine yet", kind=kind):
        try:  # asked first since snapshot_download has no time limit, and would wait for ever for a silent hub
            HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except (HTTPError, OSError, ValueError) as error:
            refusal = error  # does not matter if all files are here
        try:
            path = snapshot_download(
                name, repo_type=kind, revision=revision, allow_patterns=first, local_files_only=bool(refusal)
            )
        except LocalEntryNotFoundError:
            if refusal:
                raise refusal from None
            raise
    return Path(path), refusal


def _listed(name: str, path: Path, kind: str = MODEL) -> list[str]:
    """Return the files of the repository at the commit of `path`, as the hub listed them; else the likely ones."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(name, repo_type=kind, revision=path.name)]
    except CachedRepoTreeNotFoundError:  # no network, and the cache was written by an older huggingface_hub
        if kind == DATA:
            return [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
        return sorted(_indexed(path)) or [file.name for file in path.glob(WEIGHTS)] or ["model.safetensors"]


def _matching(files: Sequence[str], *patterns: str) -> list[str]:
    """Return the files that match a pattern, outside directories: these hold other models or formats."""
    return [file for file in files if "/" not in file and any(fnmatch.fnmatch(file, pattern) for pattern in patterns)]


def _indexed(path: Path) -> set[str]:
    """Return the weight files that the index names; none if there is no index."""
    try:
        return {str(file) for file in read_object(path / INDEX, TABLE_BYTES)["weight_map"].values()}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ModelError(f"{path / INDEX}: not an index of weights ({error}). {_NOT_WHOLE}") from None


def _no_safetensors(name: str, listed: Sequence[str]) -> NoReturn:
    reason = ": this repository holds no model that can be trained. `qlora models` lists some that can."
    if any(file.endswith((".bin", ".pt", ".pth")) for file in listed):
        reason = ", only pickled weights, which can run code and are not opened. Take another repository."
    elif any(file.endswith(".gguf") for file in listed):
        reason = ", only GGUF. Take the repository that it was made from; its page on the hub names it."
    raise ModelError(f"{name}: no {WEIGHTS}{reason}")


def _fetch_files(name: str, path: Path, missing: list[str], say: Callable[[str], None], kind: str = MODEL) -> None:
    """Fetch the files into the hub's cache and link them into `path`."""
    from huggingface_hub import HfApi, constants, hf_hub_download

    files = HfApi().get_paths_info(name, missing, repo_type=kind, revision=path.name)
    blobs = path.parents[1] / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    left = sum(file.size - _arrived(blobs, file) for file in files)
    if left > shutil.disk_usage(blobs).free:
        raise _no_room(name, blobs, left)
    if left and not sys.stderr.isatty():
        say(f"Fetching {name} ({_size(left)}) …")
    # in a terminal huggingface_hub draws progress bars
    saying = contextlib.nullcontext(lambda _: None) if sys.stderr.isatty() else doing("fetching", len(files))
    with saying as tick:
        for number, file in enumerate(sorted(files, key=lambda file: missing.index(file.path))):
            tick(number)
            with explained(name, f"{file.path} did not arrive whole", _KEPT, kind=kind):
                try:
                    # hf_hub_download fetches files that are too large for plain HTTP in another way
                    small = file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE
                    if small and file.lfs and _SHA256.fullmatch(file.lfs.sha256):
                        _fetch_file(name, path.name, file, blobs, kind)
                    hf_hub_download(name, file.path, repo_type=kind, revision=path.name)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    raise _no_room(name, blobs, sum(file.size - _arrived(blobs, file) for file in files)) from None


def _fetch_file(name: str, commit: str, file: RepoFile, blobs: Path, kind: str) -> None:
    """Fetch one file to where hf_hub_download looks for it.

    By itself, hf_hub_download discards interrupted downloads, and tries for minutes to reach a storage that does not
    answer.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    blob = blobs / file.lfs.sha256
    partial = blob.with_name(f"{blob.name}.incomplete")
    url = hf_hub_url(name, file.path, repo_type=kind, revision=commit)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # a Range must count bytes of the file itself
    locks = blobs.parents[1] / ".locks" / blobs.parent.name  # hf_hub_download uses the same locks
    locks.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(locks / f"{blob.name}.lock"):
        if blob.exists():
            return
        with partial.open("ab") as stream:
            while (before := stream.tell()) < file.size:
                try:
                    http_get(url, stream, resume_size=before, headers=headers, expected_size=file.size,
                             displayed_filename=file.path)  # fmt: skip
                except HTTPError:
                    if stream.tell() <= before:  # otherwise the connection is bad, but there is progress
                        raise
        with partial.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != blob.name:
            partial.unlink()
            raise ModelError(f"{name}: {file.path} arrived damaged and was thrown away. Run the same command again.")
        partial.replace(blob)


def _arrived(blobs: Path, file: RepoFile) -> int:
    """Return how many bytes of a file are in the cache already."""
    blob = blobs / (file.lfs.sha256 if file.lfs else file.blob_id)
    partial = blob.with_name(f"{blob.name}.incomplete")
    return next((min(path.stat().st_size, file.size) for path in (blob, partial) if path.exists()), 0)


def _no_room(name: str, directory: Path, wanted: int) -> ModelError:
    return ModelError(
        f"{name}: {_size(wanted)} more are wanted in {directory}, where {_size(shutil.disk_usage(directory).free)} are "
        "free. Free some, or set HF_HOME to a directory on another disk; a smaller or a 4-bit model needs less "
        f"(`qlora models`). {_KEPT}"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence huggingface_hub's warnings (signed addresses, misleading advice), and its bars without a terminal."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    # whoever sets HF_HUB_DISABLE_PROGRESS_BARS to 0 wants the bars everywhere
    bars = sys.stderr.isatty() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    try:
        with contextlib.nullcontext() if bars else disable_progress_bars():
            yield
    finally:
        logger.setLevel(level)


def _to_standard_error(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
