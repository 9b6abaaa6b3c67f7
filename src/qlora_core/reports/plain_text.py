"""Pieces of terminal output: headings, tables, and sizes and durations for people. Knows nothing of runs."""

from __future__ import annotations

from ..first_words import WIDTH
from ..machine.memory import GB, MB


def section(title: str) -> str:
    """Return a heading."""
    return f"\n── {title} {'─' * (WIDTH - len(title) - 4)}"


def block(title: str, rows: dict[str, str]) -> str:
    """Return a heading and its table."""
    return f"{section(title)}\n{table(rows)}"


def table(rows: dict[str, str]) -> str:
    """Return a line per row, further lines of a value indented under its first; rows without a value are left out."""
    indent = "\n" + " " * 14
    return "\n".join(f"{name:<12}  {value.replace(chr(10), indent)}" for name, value in rows.items() if value)


def share(part: int, whole: int) -> str:
    """Return a share of a whole in percent, 0% of nothing."""
    return f"{100 * part / whole:.0f}%" if whole else "0%"


def one_line(text: str, limit: int = 200) -> str:
    """Return a text without line breaks, cut if it is longer than `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def size(count: int) -> str:
    """Return bytes for people: 4.02 GB, 83 MB, 0.1 MB."""
    if count >= GB:
        return f"{count / GB:.2f} GB"
    return f"{count / MB:.0f} MB" if count >= 10 * MB else f"{count / MB:.1f} MB"


def duration(seconds: float) -> str:
    """Return a duration for people: 1 h 02 min, 3 min 04 s, 5 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"
