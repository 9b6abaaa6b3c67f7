"""Models on the Hugging Face hub: short names for some of them, and how their files come here.

Knows the hub, its cache and its failures. Knows nothing of mlx and nothing of what is inside the files.
Only settings and safetensors are fetched: never code, never pickles. Logging in is left to huggingface_hub.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True)
class Alias:
    """A short name for a model on the hub.

    Attributes:
        repository: its OWNER/NAME there.
        licence: of its weights.
        download_gb: size of its weights in GB; approximate and only shown.
        gated: whether its owner wants the licence to be accepted on the hub before anything can be fetched.
    """

    repository: str
    licence: str
    download_gb: float
    gated: bool = False


ALIASES = {
    "mistral-7b": Alias("mistralai/Mistral-7B-Instruct-v0.3", "Apache-2.0", 14.5),
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
# not *.safetensors: Mistral's repository holds its weights a second time, as consolidated.safetensors
WEIGHTS = "model*.safetensors"
INDEX = "model.safetensors.index.json"

_AGAIN = "run the same command again and it goes on from there."
_OFFLINE = (
    "Go online once and run the same command again; without a network, give a directory or take the built-in model."
)


def known_models() -> list[dict[str, Any]]:
    """The aliases as rows of a table: name, repository, licence, download_gb (GB) and gated (true or false)."""
    return [{"name": name, **asdict(alias)} for name, alias in ALIASES.items()]


def fetch(repository: str, *, weights: bool = True, say: Callable[[str], None] | None = None) -> Path:
    """Directory of a hub model's files, fetched on first use; what broke off goes on where it was.

    Args:
        repository: OWNER/NAME, or OWNER/NAME@REVISION for a branch, a tag or a commit.
        weights: also the weights; without them a few megabytes of settings and tokeniser come.
        say: takes the one line that stands for a progress bar where standard error is no terminal; by default it is
            written to standard error.

    Returns:
        A directory of the hub's cache; its files are not to be written to.

    Raises:
        ModelError: there is no such model, it may not be had, the hub cannot be reached, the disk has too little room,
            or the repository has no safetensors or not all of them.
    """
    name, _, revision = repository.partition("@")
    with _quiet():
        path, refusal = _settings(name, revision or None)
        if not weights:
            return path
        listed = _listed(name, path)
        wanted = [file for file in listed if fnmatch.fnmatch(file, WEIGHTS) and "/" not in file]
        if not wanted:
            raise ModelError(f"{name}: {_without_safetensors(listed)}")
        missing = [file for file in wanted if not (path / file).exists()]
        if missing:
            with _explained(name, f"its weights are not on this machine yet ({missing[0]} is missing)"):
                if refusal:
                    raise refusal
                _fetch_weights(name, path, missing, say or _to_standard_error)
    for file in sorted(_indexed(path)):
        if not (path / file).exists():
            reason = f"its {INDEX} names {file}, which it does not hold"
            raise ModelError(f"{name}: {reason}. The repository is not whole: take another, or tell its owner.")
    return path


def _settings(name: str, revision: str | None) -> tuple[Path, Exception | None]:
    """The directory with settings and tokeniser, and what the hub had against being asked, if it did."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    refusal: Exception | None = None
    with _explained(name, "not on this machine yet"):
        try:  # snapshot_download asks without a limit of time, and would wait for ever for a hub that is silent
            HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except (HTTPError, OSError, ValueError) as error:
            refusal = error  # no matter if all is here
        try:
            path = snapshot_download(name, revision=revision, allow_patterns=SETTINGS, local_files_only=bool(refusal))
        except LocalEntryNotFoundError as error:
            raise (refusal or error.__cause__ or error) from None
    return Path(path), refusal


def _listed(name: str, path: Path) -> list[str]:
    """Files of the repository at the commit of `path`, as the hub told when it was asked; else what they must be."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(name, revision=path.name)]
    except CachedRepoTreeNotFoundError:  # a cache that an older huggingface_hub wrote, and no network
        return [*_indexed(path)] or [file.name for file in path.glob(WEIGHTS)] or ["model.safetensors"]


def _indexed(path: Path) -> set[str]:
    """The weight files that the index names; none where there is no index."""
    try:
        return set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ModelError(f"{path / INDEX}: not an index of weights: {error}") from None


def _without_safetensors(listed: Sequence[str]) -> str:
    """What is to be said of a repository without weights that are opened."""
    if any(file.endswith((".bin", ".pt", ".pth")) for file in listed):
        return f"no {WEIGHTS}, only pickled weights, which can run code and are not opened. Take another repository."
    if any(file.endswith(".gguf") for file in listed):
        return f"no {WEIGHTS}, only GGUF. Take the repository that it was made from; its page on the hub names it."
    return f"no {WEIGHTS}: this repository holds no model that can be trained. `qlora models` lists some that can."


def _fetch_weights(name: str, path: Path, missing: list[str], say: Callable[[str], None]) -> None:
    """Fetch the files into the hub's cache and link them into `path`."""
    from huggingface_hub import HfApi, constants, snapshot_download

    files = HfApi().get_paths_info(name, missing, revision=path.name)
    blobs = path.parents[1] / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    left = sum(file.size - _arrived(blobs, file) for file in files)
    if left > shutil.disk_usage(blobs).free:
        raise _no_room(name, blobs, left)
    if left and not sys.stderr.isatty():
        say(f"Fetching {name} ({_size(left)}) …")
    for file in files:
        if file.lfs and file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE:  # the rest only snapshot_download can
            with _explained(name, f"{file.path} came only in part", f"What has arrived is kept: {_AGAIN}"):
                try:
                    _fetch_file(name, path.name, file, blobs)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    raise _no_room(name, blobs, sum(file.size - _arrived(blobs, file) for file in files)) from None
    snapshot_download(name, revision=path.name, allow_patterns=missing)


def _fetch_file(name: str, commit: str, file: RepoFile, blobs: Path) -> None:
    """Fetch one file to where snapshot_download looks for it, which by itself throws away what broke off."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    blob = blobs / file.lfs.sha256
    partial = blob.with_name(f"{blob.name}.incomplete")
    url = hf_hub_url(name, file.path, revision=commit)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # a Range counts the bytes of the file itself
    locks = blobs.parents[1] / ".locks" / blobs.parent.name  # those of snapshot_download
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
                    if stream.tell() <= before:  # else the line is only bad
                        raise
        with partial.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != blob.name:
            partial.unlink()
            raise ModelError(f"{name}: {file.path} arrived damaged and was thrown away. Run the same command again.")
        partial.replace(blob)


def _arrived(blobs: Path, file: RepoFile) -> int:
    """Bytes of a file that are in the cache already."""
    blob = blobs / (file.lfs.sha256 if file.lfs else file.blob_id)
    partial = blob.with_name(f"{blob.name}.incomplete")
    return next((min(path.stat().st_size, file.size) for path in (blob, partial) if path.exists()), 0)


def _no_room(name: str, directory: Path, wanted: int) -> ModelError:
    return ModelError(
        f"{name}: {_size(wanted)} more are wanted in {directory}, where {_size(shutil.disk_usage(directory).free)} are "
        "free. Free some, or set HF_HOME to a directory on another disk; a smaller or a 4-bit model needs less "
        f"(`qlora models`). What has arrived is kept: {_AGAIN}"
    )


@contextlib.contextmanager
def _explained(name: str, state: str, remedy: str = _OFFLINE) -> Iterator[None]:
    """Make a ModelError of what goes wrong inside; `state` says what is here and what is not, `remedy` what to do.

    Nothing of the error's own text is repeated: it may hold signed addresses.
    """
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        raise ModelError(f"{name}: {_refused(error) or f'{state}; {_broken(error)}. {remedy}'}") from None


def _refused(error: Exception) -> str | None:
    """What the hub, or the disk, has against it, and what to do; None when it is the network or the hub that fails."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HFValidationError):
        return "not a model on the hub: wanted OWNER/NAME, in letters, digits, - _ and dots."
    if isinstance(error, errors.GatedRepoError):
        return "its owner wants a licence to be accepted first. Accept it on the model's page, then `hf auth login`."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model. Misspelt, or private (`hf auth login`)? `qlora models` lists known ones."
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub has the model, but not that revision. Leave out what follows the @, or correct it."
    if isinstance(error, errors.HfHubHTTPError):
        if error.response.status_code in (401, 403):
            return (
                f"the hub refuses your login ({error.response.status_code}). `hf auth login` anew, or unset HF_TOKEN."
            )
        return None
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        cache = constants.HF_HUB_CACHE
        return f"cannot be kept in {cache} ({error.strerror}). Make that possible, or set HF_HOME to another directory."
    return None


def _broken(error: Exception) -> str:
    """How the network or the hub failed, in a few words."""
    from huggingface_hub import errors

    kind = type(error).__name__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids asking the hub"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub answers {error.response.status_code}"
    if isinstance(error, ValueError):
        return "what answers is not the hub (must a page be accepted to be online here?)"
    if "Timeout" in kind:
        return f"the hub does not answer in time ({kind})"
    return f"the hub cannot be reached ({kind})" if "Connect" in kind else f"the connection broke ({kind})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back huggingface_hub's warnings (signed addresses, alien advice), and its bars without a terminal."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    # who sets HF_HUB_DISABLE_PROGRESS_BARS to 0 wants them wherever it be
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
