"""Send files to a repository of the hub, in one commit.

Knows the hub, and which files of a repository would be lost; nothing of what is in the files. Logging in is left to
huggingface_hub.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..activity import doing
from ..errors import ModelError
from .hub import quiet
from .hub_errors import explained_upload

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

OF_THE_HUB = frozenset({".gitattributes"})  # what the hub itself puts into a new repository


@dataclass(frozen=True)
class Uploaded:
    """The outcome of an upload.

    Attributes:
        url: page of the repository.
        commit: the commit that holds the files.
        created: whether the repository is new.
    """

    url: str
    commit: str
    created: bool


def check_repository(repository: str) -> None:
    """Refuse a name that the hub would not accept; makes no request.

    Raises:
        ModelError: it is not OWNER/NAME.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    with explained_upload(repository, "nothing was sent"):
        validate_repo_id(repository)
        if repository.count("/") != 1:
            raise HFValidationError("no owner")


def upload(repository: str, files: Mapping[str, Path], *, private: bool, force: bool, message: str) -> Uploaded:
    """Make a repository of models hold these files and no others.

    The large files are sent first and one by one, and all appear with one commit: until then the repository is as it
    was, however the upload ends.

    Args:
        repository: OWNER/NAME; made if it does not exist.
        files: what it is to hold, by name.
        private: whether only its owner may see it.
        force: replace other files that it holds.
        message: of the commit, one line.

    Raises:
        ModelError: nobody is logged in; the repository holds other files, or is not as private as said; the hub or the
            network refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if not get_token():
        raise ModelError(
            f"{repository}: nobody is logged in to the hub here. `hf auth login` with a token that may write "
            "(https://huggingface.co/settings/tokens), or put it into HF_TOKEN."
        )
    api = HfApi()
    with quiet():
        there = _look_up(api, repository)
        others = _refuse(repository, there, files, private=private, force=force) if there else []
        if there is None:
            with explained_upload(repository, "nothing was sent"):
                api.create_repo(repository, private=private)
        additions = [CommitOperationAdd(name, path) for name, path in files.items()]
        # in a terminal huggingface_hub draws progress bars
        saying = contextlib.nullcontext(lambda _: None) if sys.stderr.isatty() else doing("uploading", len(files))
        with saying as tick:
            for number, addition in enumerate(additions):
                tick(number)
                with explained_upload(repository, f"{addition.path_in_repo} did not arrive, and nothing changed there"):
                    api.preupload_lfs_files(repository, [addition], free_memory=False)
        with explained_upload(repository, "whether the hub took the files is not known"):
            operations = [*additions, *(CommitOperationDelete(name, is_folder=False) for name in others)]
            made = api.create_commit(
                repository, operations, commit_message=message, parent_commit=there.sha if there else None
            )
            held = {file.rfilename for file in api.model_info(repository).siblings or ()}
    if missing := sorted(files.keys() - held):
        raise ModelError(
            f"{repository}: the hub left out {', '.join(missing)}. Has it a .gitignore that names them? Delete that, "
            "then run the same command again."
        )
    return Uploaded(f"{api.endpoint}/{repository}", made.oid, there is None)


def _look_up(api: HfApi, repository: str) -> ModelInfo | None:
    """Return what the hub says of a repository; None if there is none, or none that this login may see."""
    from huggingface_hub import constants
    from huggingface_hub.errors import RepositoryNotFoundError

    with explained_upload(repository, "nothing was sent"):
        try:
            return api.model_info(repository, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except RepositoryNotFoundError:
            return None


def _refuse(repository: str, there: ModelInfo, files: Mapping[str, Path], *, private: bool, force: bool) -> list[str]:
    """Return the other files that a repository holds, which will be deleted.

    Raises:
        ModelError: it holds some and `force` is not given, or it is not as private as said.
    """
    if private != bool(there.private):
        meant = (
            "is public, and everybody would see what is sent. If that is meant: --public; if not, make it private on "
            "its page"
            if private
            else "is private already. Leave out --public, or make it public on its page"
        )
        raise ModelError(f"{repository}: {meant}.")
    others = sorted({file.rfilename for file in there.siblings or ()} - files.keys() - OF_THE_HUB)
    if others and not force:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ModelError(
            f"{repository}: holds files that are not of this export ({', '.join(map(repr, others[:3]))}{more}), so "
            "it is left as it is. --force replaces all of it; or give another name."
        )
    return others
