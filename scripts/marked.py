"""The parts of documents that programs write: each stands between `<!-- NAME -->` and `<!-- end of NAME -->`."""

from __future__ import annotations


def split(text: str, name: str) -> tuple[str, str, str]:
    """Split a document into what comes before a marked part, the part, and what comes after it, without the marks."""
    before, begin, rest = text.partition(f"<!-- {name} -->\n")
    part, end, after = rest.partition(f"<!-- end of {name} -->\n")
    if not (begin and end):
        raise SystemExit(f"there is no <!-- {name} --> … <!-- end of {name} -->")
    return before, part, after


def replaced(text: str, name: str, part: str) -> str:
    """Return a document with another part between the marks of that name."""
    before, _, after = split(text, name)
    return f"{before}<!-- {name} -->\n{part}<!-- end of {name} -->\n{after}"
