"""The title of a text that has only lines, and the title page that states it. Knows nothing of chapters."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from .book_lines import (
    ARTICLE,
    CONTENTS,
    FRONT,
    FRONT_LINES,
    HEAD,
    IMPRINT,
    LEGAL,
    PAGE,
    SHORT,
    TITLE,
    Hints,
    Line,
    ends_little,
    is_person,
)
from .decisions import TITLE as TITLE_OF
from .decisions import choice
from .heads import bare, nearly
from .prose import begins_low, ends_sentence

BY = ("por", "de", "by", "par", "von")
_STATED = re.compile(
    r"(?P<label>t[íi]tulo(?: original)?|title|autor(?:es|as?)?|author|textos?(?: de)?)\s*:\s*(?P<value>\S.*)",
    re.IGNORECASE,
)
_OWNER = re.compile(r"(?:©|\(c\)|copyright)[\s\d,©–-]*(?P<value>[^\W\d].*)", re.IGNORECASE)


def mark_title_page(lines: list[Line], where: str, hints: Hints) -> str:
    """Mark the lines of the title page and return a plausible title, if there is one.

    The imprint decides what the title is; the author's name is not, though it may head every page.
    """
    if not any(line.level or line.reason in (PAGE, HEAD, LEGAL, CONTENTS) for line in lines):
        return hints.title or _title_alone(lines[:2])
    front = _front(lines)
    for line in front:
        line.reason = FRONT
    stated, authors = _stated(lines)
    names = [line for line in front if sum(map(str.isalpha, line.text)) > 2]
    names = [line for line in names if not IMPRINT.match(line.text) and not _is_author(line.text)][:8]
    names = [line for line in names if not any(nearly(bare(line.text), author) for author in authors)]
    title = hints.title or stated
    if title:
        chosen = next((line for line in names if nearly(bare(line.text), bare(title))), None)
        if not chosen or hints.title:
            return title
    elif not names:
        if len(lines) > 5 * FRONT_LINES and not hints.title:
            hints.doubts.add(
                where,
                "no title was found: its passages stand under their sections alone",
                choices=[choice(TITLE_OF, where, PurePath(where).name.partition(".")[0])],
            )
        return ""
    else:
        chosen = _chosen(names, lines, where, hints)
    whole: list[str] = []
    for line in front[front.index(chosen) :]:
        if whole and not ends_little(whole[-1]):
            break
        line.reason = TITLE
        whole.append(line.text)
    return " ".join(whole)


def _stated(lines: Sequence[Line]) -> tuple[str, list[str]]:
    """Return the title that an imprint states, or "", and the authors, as `bare` makes them."""
    title, authors = "", []
    ends = [*lines[:FRONT_LINES], *lines[max(len(lines) - FRONT_LINES // 2, FRONT_LINES) :]]
    for line, after in itertools.zip_longest(ends, ends[1:]):
        match = _STATED.fullmatch(line.text) if len(line.text) < 2 * SHORT else None
        if match and match["label"][0] in "tT" and match["label"][:4].casefold() != "text":
            wraps = after is not None and ends_little(match["value"]) and len(after.text) <= SHORT
            title = title or (f"{match['value']} {after.text}" if wraps else match["value"])
        elif match or (match := _OWNER.match(line.text)):
            authors += [bare(name) for name in re.split(r",| e | and |&", match["value"]) if " " in name.strip()]
        elif _is_author(line.text):
            authors.append(bare(line.text.split(None, 1)[1]))
    return title.strip(' «»“”".'), [author for author in authors if author]


def _chosen(names: list[Line], lines: list[Line], where: str, hints: Hints) -> Line:
    """Return the title page's most probable title line: one that comes again and is no person's name."""
    times = Counter(line.key for line in lines)
    again = list({line.key: line for line in reversed(names) if times[line.key] > 1}.values())[::-1]
    if len(again) > 1:
        stem = bare(PurePath(where).stem)
        again.sort(key=lambda line: (bare(line.text) not in stem, is_person(line.text)))
        hints.doubts.add(
            where,
            f"its title was taken to be “{again[0].text}”, since it comes again as others do",
            again[0].text,
            [choice(TITLE_OF, where, line.text) for line in again],
        )
    chosen = again[0] if again else names[0]
    by, title_below = ARTICLE.match(names[0].text), len(names) > 1 and names[1].text.isupper()
    if chosen is names[0] and names[0].text.isupper() and not by and title_below and ARTICLE.match(names[1].text):
        return names[1]  # the first is the author
    return chosen


def _title_alone(lines: list[Line]) -> str:
    """Return the title of a text that is no book: a short line, then an empty one, then a longer one."""
    if len(lines) < 2 or not lines[1].gap or not len(lines[0].text) <= min(SHORT, len(lines[1].text)):
        return ""
    if ends_sentence(lines[0].text) or begins_low(lines[0].text) or lines[0].text[-1] in ",;:":
        return ""
    lines[0].reason = TITLE
    return lines[0].text


def _front(lines: list[Line]) -> list[Line]:
    """Return the short lines before the first heading or prose that are no part of a sentence."""
    first = lines[:FRONT_LINES]
    notice = max((index for index, line in enumerate(first) if line.reason in (LEGAL, CONTENTS)), default=-1)
    front: list[Line] = []
    prose = 0
    for index, line in enumerate(first):
        if line.reason:
            continue
        if line.level:
            return front if len(front) <= 12 or notice >= 0 else []
        after = next((line for line in lines[index + 1 : index + 5] if not line.reason), None)
        wraps = after is not None and not after.level and _goes_on(after.text)
        sentence = (ends_sentence(line.text) and not IMPRINT.match(line.text)) or len(line.text) > SHORT
        prose = prose + 1 if wraps or sentence or (index and _goes_on(line.text)) else 0
        if prose > 2 or (prose and index > notice):  # one or two lines before the imprint are a dedication
            return front
        if not prose:
            front.append(line)
    return []


def _goes_on(text: str) -> bool:
    return begins_low(text) and not _is_author(text)


def _is_author(text: str) -> bool:
    first, *names = text[:SHORT].split()
    return first.casefold() in BY and bool(names) and all(name[0].isupper() or ends_little(name) for name in names)
