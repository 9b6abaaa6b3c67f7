"""The reader's language, and how the page was opened.

Told by `--lang`, else by the address (`?lang=pt`), else by the browser.
"""

from __future__ import annotations

import argparse
import functools
import sys

import marimo as mo

from .. import translations
from ..jobs.server import add_page_arguments as add_page_arguments  # of the notebooks and of `qlora app` alike
from ..translations import LANGUAGES


@functools.cache
def _given(argv: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    add_page_arguments(parser)
    try:
        return parser.parse_known_args(argv)[0]
    except argparse.ArgumentError:  # the parser of the other flags reports it
        return argparse.Namespace(lang="", read_only="--read-only" in argv)


def read_only() -> bool:
    """Return whether the page may only be looked at."""
    return _given(tuple(sys.argv[1:])).read_only


def language() -> str:
    """Return the reader's language, one of `LANGUAGES`; English in a script, and outside of marimo."""
    meta = mo.app_meta()
    if meta.mode not in ("run", "edit"):
        return "en"
    asked = mo.query_params().get("lang")
    headers = meta.request.headers if meta.request else {}
    return (
        _given(tuple(sys.argv[1:])).lang
        or choose(str(asked or ""))
        or choose(headers.get("accept-language", ""))
        or "en"
    )


def choose(accepted: str) -> str:
    """Choose the first language of an Accept-Language header (RFC 9110, 12.5.4) that the page speaks; else empty."""
    wishes = []
    for place, wish in enumerate(accepted.split(",")):
        tag, _, weight = wish.partition(";q=")
        try:
            wishes.append((-float(weight or 1), place, tag.strip().lower().partition("-")[0]))
        except ValueError:
            continue
    return next((tag for weight, _, tag in sorted(wishes) if tag in LANGUAGES and weight < 0), "")


translations.find_language = language
