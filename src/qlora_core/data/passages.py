"""Passages that read well, made of blocks, and questions about them. Knows nothing of files or models."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .prose import SPEECH, STOP, begins_low, ends_sentence, is_abbreviated
from .records import Block, ends_of_place
from .subjects import NONE, THING, find_subject, is_topic, plain_title

TEMPLATES = {  # language: question for the document, question for a section
    "pt": ("Quem foi {title}?", "O que se sabe sobre {title} ({section})?"),
    "en": ("Who was {title}?", "What is known about {title} ({section})?"),
    "es": ("¿Quién fue {title}?", "¿Qué se sabe sobre {title} ({section})?"),
    "fr": ("Qui était {title} ?", "Que sait-on de {title} ({section}) ?"),
    "de": ("Wer war {title}?", "Was ist über {title} bekannt ({section})?"),
}


WHAT = {  # language: question for a document that is about no person
    "pt": "O que se sabe sobre {title}?",
    "en": "What is known about {title}?",
    "es": "¿Qué se sabe sobre {title}?",
    "fr": "Que sait-on de {title} ?",
    "de": "Was ist über {title} bekannt?",
}


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document that can be read by itself.

    Attributes:
        title: title of the document, or "".
        section: the headings above it, or "".
        body: its text, word for word.
        first: place of the first block or line that it came from, or "".
        last: place of the last one.
    """

    title: str
    section: str
    body: str
    first: str
    last: str

    @property
    def text(self) -> str:
        """Return title and section on a line, with the body below."""
        head = _head(self.title, self.section)
        return f"{head}\n{self.body}" if head else self.body


def _head(title: str, section: str) -> str:
    return ": ".join(filter(None, (title, section)))


# Blocks to passages ---------------------------------------------------------------------------------------------

STUB = 1 / 4  # of the limit: a shorter passage says too little on its own
MOST = 64  # pieces of which a passage is made


class _Piece(NamedTuple):
    text: str
    before: str  # separator from the piece before
    cost: int
    place: str
    cut: float  # cost of beginning a passage here
    code: bool = False


@dataclass(slots=True)
class _Section:
    path: tuple[str, ...]
    room: int  # tokens of a passage without its head
    pieces: list[_Piece]

    @property
    def name(self) -> str:
        return " – ".join(self.path)


def make_passages(title: str, blocks: Iterable[Block], count: Callable[[str], int], limit: int) -> Iterator[Passage]:
    """Cut blocks into passages under their title and section.

    Args:
        title: title of the document, or "".
        blocks: headings and text, in order.
        count: the tokens of a text.
        limit: tokens of a passage with its head.
    """
    while title and count(title) > limit // 4:
        title = title[: len(title) * 3 // 4].rpartition(" ")[0]
    sections = _sections(title, blocks, count, limit)
    costs = [sum(piece.cost for piece in section.pieces) + count(section.name) + 1 for section in sections]
    room = limit - count(title) - 1
    for start, stop in _distribute(costs, room, [0.0] * len(sections), join=0.8):
        if stop - start > 1:
            yield _joined(title, sections[start:stop])
        else:
            yield from _divided(title, sections[start])


def _sections(title: str, blocks: Iterable[Block], count: Callable[[str], int], limit: int) -> list[_Section]:
    """Return blocks under the headings above them; a heading with no text and no subheading counts as text.

    A heading without words ends the sections before it.
    """
    path: list[Block] = []
    unused: Block | None = None

    def section(headings: Sequence[Block]) -> _Section:
        names = [heading.text for heading in headings]
        while names and count(" – ".join(names)) > limit // 4:
            names = names[1:]
        return _Section(tuple(names), max(limit - count(_head(title, " – ".join(names))) - 1, 2), [])

    sections = [section(())]
    for block in (*blocks, None):
        level = block.level if block and (not block.level or count(block.text) <= limit // 4) else 0
        if unused and (block is None or 0 < level <= unused.level):
            sections.append(section(path[:-1]))
            sections[-1].pieces.extend(_pieces(unused, count, sections[-1].room))
        if block is None:
            break
        if level and not block.text:
            path, unused = [], None
            sections.append(section(()))
            continue
        if level:
            path = [*(heading for heading in path if heading.level < level), block]
            unused = block
            continue
        if unused:
            sections.append(section(path))
            unused = None
        sections[-1].pieces.extend(_pieces(block, count, sections[-1].room))
    return [section for section in sections if section.pieces]


def _pieces(block: Block, count: Callable[[str], int], room: int) -> list[_Piece]:
    """Return a short block whole, else its sentences, the shortest of them joined."""
    cost = count(block.text) + 1  # the one is for the white space before it
    opening = 0.2 if SPEECH.match(block.text) or cost <= room // 12 else 0.0
    if cost <= room // 4:
        return [_Piece(block.text, "\n", cost, block.place, opening)]
    pieces: list[_Piece] = []
    place, counted = block.place, block.verbatim and block.place.isdecimal()
    for start, sentence in _lines_of_code(block.text) if block.verbatim else _sentences(block.text):
        place = str(int(place) + start.count("\n")) if counted else place
        for part, (mark, text, tokens) in enumerate(_fitting(sentence, start, count, room - 1)):
            cost = tokens + 1
            last = pieces[-1] if pieces else None
            if last and last.cost + cost <= max(room // 16, 2):
                pieces[-1] = last._replace(text=f"{last.text}{mark}{text}", cost=last.cost + cost)
            else:
                cut = 0.5 if part else 0.05 if "\n\n" in mark and text[0] not in " \t" else 0.25
                cut = cut if last else opening
                pieces.append(_Piece(text, mark if last else "\n", cost, place, cut, block.verbatim))
    for lone in (1, -1) if len(pieces) > 1 and not block.verbatim else ():  # one sentence of a paragraph, by itself
        pieces[lone] = pieces[lone]._replace(cut=pieces[lone].cut + 0.15)
    return pieces


def _lines_of_code(text: str) -> Iterator[tuple[str, str]]:
    """Yield indented lines, each with the line feeds before it."""
    before = ""
    for match in re.finditer(r"([^\n]+)(\n*)", text):
        yield before, match[1]
        before = match[2]


def _sentences(text: str) -> Iterator[tuple[str, str]]:
    """Yield lines with their indentation, and sentences, each with the white space before it."""
    start, before = 0, ""
    for match in STOP.finditer(text):
        mark = match[0].lstrip(".!?…。！？»”’\"')]")
        mark = mark[: mark.rfind("\n") + 1] or mark
        stop = match.end() - (len(match[0]) - match[0].rfind("\n") - 1 if "\n" in mark else 0)
        abbreviated = is_abbreviated(text[max(start, stop - 24) : stop].rstrip() or "…")
        if "\n" not in mark and (abbreviated or begins_low(text[stop : stop + 8])):
            continue
        if match.start() > start or mark != match[0]:
            yield before, text[start : stop - len(mark)]
        start, before = stop, "\n" if "\n" in mark else mark
    if start < len(text):
        yield before, text[start:]


def _fitting(text: str, before: str, count: Callable[[str], int], most: int) -> Iterator[tuple[str, str, int]]:
    """Yield a sentence, or pieces that fit: cut after ; : or , if possible, else between words, else anywhere."""
    cost = count(text)
    if len(text) < 2 or cost <= most:
        yield before, text, cost
        return
    parts = 11 * cost // (10 * most) + 1  # a few more than needed, since parts are never equally long
    middle, margin = len(text) * (parts // 2) // parts, len(text) // 8
    marks = [match.span() for match in re.finditer(r"(?<=[;:,])\s+", text)]
    marks = [span for span in marks if margin < span[0] < len(text) - margin]
    marks = marks or [match.span() for match in re.finditer(r"\s+", text)] or [(middle, middle)]
    start, stop = min(marks, key=lambda span: abs(span[0] - middle))
    yield from _fitting(text[:start], before, count, most)
    yield from _fitting(text[stop:], text[start:stop], count, most)


def _distribute(costs: Sequence[int], room: int, cuts: Sequence[float], join: float = 0.0) -> Iterator[tuple[int, int]]:
    """Yield start and stop of groups of neighbours that fit: full ones, none tiny, cut where it costs little."""
    total = [0, *itertools.accumulate(costs)]
    best = [0.0] + [float("inf")] * len(costs)
    begins = [0] * len(best)
    for stop in range(1, len(best)):
        for start in range(stop - 1, max(stop - MOST, 0) - 1, -1):
            cost = total[stop] - total[start]
            if cost > room and stop - start > 1:
                break
            share = min(cost / room, 1.0)
            value = best[start] + cuts[start] + (1 - share) ** 2 + (share < STUB) + join * (stop - start - 1)
            if value < best[stop]:
                best[stop], begins[stop] = value, start
    groups = []
    stop = len(costs)
    while stop:
        groups.append((begins[stop], stop))
        stop = begins[stop]
    yield from reversed(groups)


def _divided(title: str, section: _Section) -> Iterator[Passage]:
    """Yield the passages of a section."""
    pieces = section.pieces
    cuts = [0.0]
    for before, piece in itertools.pairwise(pieces):
        open_end = 0.8 if begins_low(piece.text) and not piece.code else 0.4 if before.text.endswith(":") else 0.2
        cuts.append(piece.cut + (0.0 if ends_sentence(before.text) else open_end))
    for start, stop in _distribute([piece.cost for piece in pieces], section.room, cuts):
        yield _passage(title, section.name, _text(pieces[start:stop]), pieces[start], pieces[stop - 1])


def _joined(title: str, sections: Sequence[_Section]) -> Passage:
    """Join short sections into one passage, their headings as lines of it."""
    shared = 0
    while all(len(s.path) > shared and s.path[shared] == sections[0].path[shared] for s in sections):
        shared += 1
    above = sections[0].path[:shared]
    lines, known = [], above
    for section in sections:
        new = [name for at, name in enumerate(section.path) if section.path[: at + 1] != known[: at + 1]]
        lines += [" – ".join(new)] if new else []
        lines.append(_text(section.pieces))
        known = section.path
    return _passage(title, " – ".join(above), "\n".join(lines), sections[0].pieces[0], sections[-1].pieces[-1])


def _text(pieces: Sequence[_Piece]) -> str:
    return pieces[0].text + "".join(f"{piece.before}{piece.text}" for piece in pieces[1:])


def _passage(title: str, section: str, body: str, first: _Piece, last: _Piece) -> Passage:
    return Passage(title, section, body, ends_of_place(first.place)[0], ends_of_place(last.place)[1])


# Passages to questions ------------------------------------------------------------------------------------------


def check_template(template: str) -> None:
    """Check a language of `TEMPLATES` or a question of the user's own.

    Raises:
        ValueError: why it cannot be used.
    """
    if template in TEMPLATES:
        return
    try:
        fields = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError:
        raise ValueError(
            f"{template!r} has a brace without its partner; write {{{{ or }}}} for one that is text"
        ) from None
    for name, form, conversion in fields:
        if name not in ("title", "section") or form or conversion:
            raise ValueError(f"{template!r} has {{{name}}}, but only {{title}} and {{section}} are known")
    if all(name != "title" for name, _, _ in fields):
        languages = ", ".join(TEMPLATES)
        raise ValueError(f"{template!r} has no {{title}}; it may also be one of the languages {languages}")


NO_PROSE = "it has no prose that could be an answer"


class Asked(NamedTuple):
    """A question about a document, with the passage that answers it.

    Attributes:
        row: `{"messages": […]}`.
        passage: whose words answer it.
        whole: whether the answer is all of them.
    """

    row: dict[str, Any]
    passage: Passage
    whole: bool


def question_rows(passages: Sequence[Passage], template: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of `ask`."""
    yield from (asked.row for asked in ask(passages, template))


def ask(
    passages: Sequence[Passage],
    template: str,
    *,
    kind: str = "",
    about_all: bool = True,
    unasked: Callable[[str, str], None] = lambda about, reason: None,
) -> Iterator[Asked]:
    """Yield questions about documents and their sections, answered by their own prose.

    The question is "who" for a person and "what" for a thing, with the name in the title without its headline.
    Captions, dates and labels before the prose are no answer, nor is a passage that is mostly a list. A question of the
    user's own asks about every section.

    Args:
        passages: passages of one or several documents, in order.
        template: a language of `TEMPLATES`, or a question with `{title}`; with `{section}` too it asks for every
            section that has a name, and for nothing else.
        kind: kind of subject (see `subjects`), if it is known.
        about_all: whether the document as a whole is asked about; of a book only its sections are.
        unasked: collects documents and sections about which nothing is asked, with the reason.

    Raises:
        ValueError: the template cannot be used.
    """
    check_template(template)
    own = template not in TEMPLATES
    of_section = any(name == "section" for _, name, _, _ in string.Formatter().parse(template))
    for title, group in itertools.groupby(passages, key=lambda passage: passage.title):
        members = list(group)
        subject = find_subject(title, "\n".join(passage.body for passage in members[:3]))
        if (kind or subject.kind) == NONE or not subject.name:
            if title:
                unasked(title, "its title is a file's name or the mark of a page: nobody and nothing to ask about")
            continue
        whole, part = _forms(template, kind or subject.kind, of_section)
        first = _answering(members) if whole and about_all else None
        if first:
            yield _asked(whole.format(title=subject.name, section=""), *first)
        elif whole:
            unasked(title, NO_PROSE if about_all else "it is long: its sections are asked about")
        for section, below in _by_section(members) if part else ():
            name = plain_title(section)
            if not name or (first and first[0] in below):
                continue
            found = _answering(below)
            if not own and not is_topic(name):
                unasked(f"{title}: {section}", "its heading is no topic that one asks for")
            elif found:
                yield _asked(part.format(title=subject.name, section=name), *found)
            else:
                unasked(f"{title}: {section}", NO_PROSE)


def _by_section(passages: Sequence[Passage]) -> Iterable[tuple[str, list[Passage]]]:
    """Return passages by the name of their section, wherever they stand."""
    sections: dict[str, list[Passage]] = {}
    for passage in passages:
        sections.setdefault(passage.section, []).append(passage)
    return sections.items()


def _answering(passages: Sequence[Passage]) -> tuple[Passage, str] | None:
    """Return the first passage that can answer, and the answer."""
    return next(((passage, answer) for passage in passages if (answer := prose_of(passage.body))), None)


def _forms(template: str, kind: str, of_section: bool) -> tuple[str, str]:
    """Return the question forms for a document and for a section; "" if there is none."""
    if template in TEMPLATES:
        who, part = TEMPLATES[template]
        return (WHAT[template] if kind == THING else who), part
    return ("", template) if of_section else (template, "")


def _asked(question: str, passage: Passage, answer: str) -> Asked:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Asked({"messages": turns}, passage, answer == passage.body)


_ITEM = re.compile(r"\s*(?:[-•▪*·]|\d{1,2}[.)])\s")
_DATED = re.compile(
    r"\W*(?:(?:data|publicad[oa] em|atualizad[oa] em|date|published|updated)\W+)?"
    r"(?:[^\W\d_][^\d.!?]{0,30},\s*)?(?:em\s+)?"
    r"(?:\d{1,2}\W+(?:de\s+)?[^\W\d_]+\W+(?:de\s+)?\d{4}|\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}|\d{4})"
    r"(?:\s*[–—-]\s*(?:[^.!?]{0,40}\d{4})?)?\W*"
)
_CAPTION = re.compile(
    r"\W*(?:foto(?:grafia)?|legenda|imagem|figura|fig\.|photo|picture|caption|image)\b[^.]{0,20}[:–—]", re.IGNORECASE
)


def prose_of(body: str) -> str:
    """Return the part of a passage that answers a question: from its first prose on, without a final label; "" if none.

    A heading among its lines ends it, since the text below is about something else. Where half of the lines are list
    items, only the prose before the first of them counts.
    """
    lines = body.split("\n")
    first = next((place for place, line in enumerate(lines) if _is_prose(line)), len(lines))
    lines = list(itertools.takewhile(lambda line: _ITEM.match(line) or not _is_label(line), lines[first:]))
    if 2 * sum(bool(_ITEM.match(line)) for line in lines) >= len(lines):
        lines = list(itertools.takewhile(_is_prose, lines))
    while lines and lines[-1].rstrip().endswith(":"):
        lines.pop()
    return "\n".join(lines)


def _is_prose(line: str) -> bool:
    if _ITEM.match(line) or _DATED.fullmatch(line) or _CAPTION.match(line) or line.rstrip().endswith(":"):
        return False
    return not _is_label(line)


def _is_label(line: str) -> bool:
    """Return whether a line is a few words that end no sentence."""
    return not ends_sentence(line) and len(line) < 60 and not line.rstrip().endswith((",", ";", ":"))
