"""Links between the notebooks that one server shows."""

from __future__ import annotations

from urllib.parse import quote, urlencode

import marimo as mo
from markupsafe import Markup

from ..jobs import server
from ..translations import LANGUAGES, say
from .look import joined, put, shown


def links(here: str, *, others: bool = False, run: str = "") -> mo.Html | None:
    """Return links to all notebooks, the one with path `here` marked; nothing if there is only one.

    Args:
        here: an entry of `server.served`.
        others: to the others alone, where the notebook has tabs of its own.
        run: the run that they open; empty: the one that they choose.
    """
    if len(server.served) < 2:
        return None
    names = {"": say("Train"), "/compare": say("Compare"), "/chat": say("Chat")}
    asked = {"run": run} if run else {}
    parts = [
        put('<a href="{}" target="_self"{}>{}</a>', address(path, **asked), _mark(path == here), names[path])
        for path in server.served
        if not (others and path == here)
    ]
    return shown(put('<nav class="q-nav" aria-label="{}">{}</nav>', say("Pages"), joined(parts)))


def address(path: str, **asked: str) -> str:
    """Return a notebook's address on this server, in the requested language, with what it is opened for."""
    language = str(mo.query_params().get("lang") or "") if mo.app_meta().mode in ("run", "edit") else ""
    query = {**({"lang": language} if language in LANGUAGES else {}), **asked}
    return quote(f"{path}/") + (f"?{urlencode(query)}" if query else "")


def asked_runs() -> list[str]:
    """Return the runs that the address names, `?run=NAME`."""
    return list(mo.query_params().get_all("run")) if mo.app_meta().mode in ("run", "edit") else []


def _mark(current: bool) -> Markup:
    return Markup(' aria-current="page"') if current else Markup("")
