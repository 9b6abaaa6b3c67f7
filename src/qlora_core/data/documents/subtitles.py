"""Subtitles (.srt, .vtt): the speech without times and numbers, one sentence or speaker a line."""

from __future__ import annotations

import html
import re

from ..prose import ends_sentence, joint
from ..records import Block, Document
from .outline import UnreadableError, one_line

_CLOCK = r"(?:(\d{1,3}):)?(\d{1,2}):(\d\d)[.,]\d{1,3}"
_TIMES = re.compile(rf"\s*{_CLOCK}\s*-->\s*{_CLOCK}.*")
_SPEAKER = re.compile(r"<v(?:\.[\w.]+)?\s+([^>]+)>")
_MARKS = re.compile(r"<[^<>\n]{0,40}>|\{\\[^{}\n]*\}")
PAUSE = 5  # seconds without a word: a paragraph ends


def is_subtitles(text: str) -> bool:
    """Return whether a text has subtitle times, and nothing before the first but a number or a header."""
    lines = text.lstrip("\ufeff\n").split("\n")
    times = [at for at, line in enumerate(lines[:400]) if _TIMES.fullmatch(line)]
    return bool(times) and (lines[0].startswith("WEBVTT") or (times[0] < 3 and 8 * len(times) >= len(lines[:400]) - 8))


def read_subtitles(text: str) -> Document:
    """Return paragraphs of the speech between pauses.

    Raises:
        UnreadableError: nothing is said.
    """
    blocks: list[Block] = []
    parts: list[str] = []
    place, ended, before = "", 0, ""
    for line, begins, ends, said in _cues(text):
        if parts and begins - ended > PAUSE:
            blocks.append(Block("\n".join(parts), 0, place))
            parts = []
        place = place if parts else line
        for row in said:
            if row == before:  # captions that scroll show a line twice
                continue
            anew = (
                not parts or ends_sentence(parts[-1]) or row[0] in "-–—♪[(" or re.match(r"[^\W\d_][\w .]{0,20}: ", row)
            )
            if anew:
                parts.append(row)
            else:
                parts[-1] += joint(parts[-1], row) + row
            before = row
        ended = ends
    if parts:
        blocks.append(Block("\n".join(parts), 0, place))
    if not blocks:
        raise UnreadableError("holds no text")
    return Document(blocks=tuple(blocks))


def _cues(text: str) -> list[tuple[str, int, int, list[str]]]:
    """Return line, begin and end in seconds, and rows of each subtitle."""
    lines = text.replace("\ufeff", "").split("\n")
    found: list[tuple[str, int, int, list[str]]] = []
    open_cue = False
    for at, line in enumerate(lines):
        if match := _TIMES.fullmatch(line):
            h, m, s, h2, m2, s2 = (int(number or 0) for number in match.groups())
            found.append((str(at + 2), 3600 * h + 60 * m + s, 3600 * h2 + 60 * m2 + s2, []))
            open_cue = True
        elif not line.strip():
            open_cue = open_cue and at + 1 < len(lines) and not _begins_cue(lines, at + 1)
        elif open_cue and not _begins_cue(lines, at):
            row = one_line(html.unescape(_MARKS.sub("", _SPEAKER.sub(r"\1: ", line))))
            found[-1][3].extend([row] if row else [])
    return found


def _begins_cue(lines: list[str], at: int) -> bool:
    """Return whether a line starts a subtitle (number, name or times) or is a note."""
    here, below = lines[at].strip(), lines[at + 1] if at + 1 < len(lines) else ""
    return bool(_TIMES.fullmatch(here) or _TIMES.fullmatch(below)) or here.startswith(("NOTE", "STYLE", "REGION"))
