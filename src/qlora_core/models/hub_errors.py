"""Explain to the user why huggingface_hub, the network or the disk failed.

Knows the exceptions of huggingface_hub. Knows nothing of files, and makes no request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..errors import ModelError

GO_ONLINE = (
    "Go online once and run the same command again; without a network, give a directory or take the built-in model."
)


@contextlib.contextmanager
def explained(name: str, state: str, remedy: str = GO_ONLINE, *, kind: str = "model") -> Iterator[None]:
    """Turn errors inside the block into a ModelError.

    An error's own text is never repeated: it may contain secrets.

    Args:
        name: the repository, OWNER/NAME.
        state: what is and is not on this machine, shown if the network or the hub fails.
        remedy: what to do then.
        kind: of the repository: "model" or "dataset".

    Raises:
        ModelError: huggingface_hub, the network or the disk failed inside.
    """
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HTTPError, OSError, ValueError) as raised:
        hidden = raised.__cause__ if isinstance(raised, LocalEntryNotFoundError) else None
        error = hidden if isinstance(hidden, Exception) else raised
        refused = _refused(error, "data set" if kind == "dataset" else kind)
        raise ModelError(f"{name}: {refused or f'{state}; {_broken(error)}. {remedy}'}") from None


def _refused(error: Exception, what: str) -> str | None:
    """Return why the hub or the disk refuses, and what to do; None if the network or the hub fails."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HFValidationError):
        return f"not a {what} on the hub: wanted OWNER/NAME, in letters, digits, - _ and dots."
    if isinstance(error, errors.GatedRepoError):
        return f"its owner wants a licence to be accepted first. Accept it on the {what}'s page, then `hf auth login`."
    if isinstance(error, errors.RepositoryNotFoundError):
        known = " `qlora models` lists known ones." if what == "model" else ""
        return f"the hub has no such {what}. Misspelt, or private (`hf auth login`)?{known}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has the {what}, but not that revision. Leave out what follows the @, or correct it."
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


@contextlib.contextmanager
def explained_upload(name: str, state: str) -> Iterator[None]:
    """Turn errors inside the block into a ModelError, as `explained` does, for what is sent to the hub.

    Args:
        name: the repository, OWNER/NAME.
        state: what is and is not on the hub, shown if the network or the hub fails.

    Raises:
        ModelError: huggingface_hub or the network failed inside.
    """
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as raised:
        # what uploads a file tells the reason only as the cause
        hidden = raised.__cause__ if isinstance(raised, RuntimeError) else None
        error = hidden if isinstance(hidden, Exception) else raised
        remedy = "Run the same command again: what the hub has got already is not sent twice."
        raise ModelError(f"{name}: {_upload_refused(error) or f'{state}; {_broken(error)}. {remedy}'}") from None


def _upload_refused(error: Exception) -> str | None:
    """Return why the hub does not take something, and what to do; None if the network or the hub fails."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return "not a name on the hub: wanted OWNER/NAME, in letters, digits, - _ and dots, at most 96."
    if not isinstance(error, errors.HfHubHTTPError):
        return None
    status = error.response.status_code
    # the hub has no status of its own for a full quota; its text is only looked at, never repeated
    full = status == 403 and any(word in str(error).lower() for word in ("storage", "quota", "billing"))
    if full or status in (402, 413, 507):
        return (
            f"the hub has no room left for it on this account ({status}). Delete something there (see "
            "https://huggingface.co/settings/billing), send a smaller format, or make it public."
        )
    if status == 401:
        return "the hub refuses your login (401). `hf auth login` anew, or put a valid token into HF_TOKEN."
    if status in (403, 404):
        return (
            f"your token may not write there ({status}). Make one with the role “write” at "
            "https://huggingface.co/settings/tokens, then `hf auth login`; or name an OWNER that is yours."
        )
    if status in (409, 412):
        return f"it exists already where you cannot see it, or was changed meanwhile ({status}). Look at its page."
    if status == 429:
        return "the hub asks for patience (429: too many requests). Wait some minutes, then run the same command again."
    return None


def _broken(error: Exception) -> str:
    """Return how the network or the hub failed, in a few words."""
    from huggingface_hub import errors

    kind = type(error).__name__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and forbids asking the hub"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub answers {error.response.status_code}"
    if isinstance(error, ValueError):
        return "what answers is not the hub (must a page be accepted to be online here?)"
    if "Timeout" in kind:
        return f"the hub does not answer in time ({kind})"
    return f"the hub cannot be reached ({kind})" if "Connect" in kind else f"the connection broke ({kind})"
