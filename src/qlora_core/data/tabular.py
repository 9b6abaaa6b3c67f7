"""Sentences made of tables inside documents, one a row, with the column names. Knows cells, nothing of files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .records import Block, Fragment

Table = Sequence[Sequence[str]]

_RULE = re.compile(r"\s*\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?\s*")
_GAP = re.compile(r"\t+|\s{2,}")
_FIGURE = re.compile(r"\W*\d[\d\s.,:;/–—+%€-]*\W*")
_TIME = {
    "em": re.compile(r"anos?|épocas?|temporadas?|datas?|mandatos?|per[íi]odos?|dia", re.IGNORECASE),
    "in": re.compile(r"years?|seasons?|dates?|terms?|periods?", re.IGNORECASE),
}
_ANY = re.compile(  # columns whose names say nothing
    r"\W*(?:campos?|valor(?:es)?|dados?|informaç(?:ão|ões)|item|detalhes?|atributo|descrição|categoria|field|value|item|"
    r"detail|info(?:rmation)?|key|property)?\W*",
    re.IGNORECASE,
)
FEW = 3  # neighbouring lines that make a table without a rule below the first


def table_sentences(table: Table) -> list[str]:
    """Return a sentence for each row but the first, which names the columns; a row of one cell stays as it is."""
    names, *rows = ([" ".join(cell.split()) for cell in row] for row in table)
    return [_sentence(names, row) for row in rows if any(row)]


def _sentence(names: Sequence[str], row: Sequence[str]) -> str:
    pairs = [(name, cell) for name, cell in itertools.zip_longest(names, row, fillvalue="") if cell]
    if len(pairs) == 1 and len(names) > 1:
        return pairs[0][1]
    if len(names) == 2 and len(pairs) == 2:
        text = _pair(*pairs)
    else:
        (name, cell), *others = pairs
        lead = f"{name} {cell}".strip() if name else cell
        told = "; ".join(f"{name}: {cell}" if name else cell for name, cell in others)
        text = f"{lead} – {told}" if told else lead
    return text[:1].upper() + text[1:] + ("" if text[-1] in ".!?…" else ".")


def _pair(first: tuple[str, str], second: tuple[str, str]) -> str:
    """Return the sentence of two columns: who was what when, a field and its value, or both with their names."""
    (left, left_cell), (right, right_cell) = first, second
    for (name, cell), (what, who) in ((first, second), (second, first)):
        for preposition, pattern in _TIME.items():
            if pattern.fullmatch(name) and what:
                return f"{what} {preposition} {cell}: {who}"
    if _ANY.fullmatch(left) and _ANY.fullmatch(right):
        return f"{left_cell.rstrip(':')}: {right_cell}"
    return f"{left}: {left_cell}; {right}: {right_cell}"


def with_sentences(block: Block) -> Block:
    """Return a block whose text is its table's sentences, if it is a table with named columns."""
    return replace(block, text="\n".join(table_sentences(block.table))) if len(block.table) > 1 else block


# Tables in lines ------------------------------------------------------------------------------------------------


def barred(lines: Sequence[str]) -> list[str]:
    """Return lines with bars between the cells of tables written with tabs or in columns of spaces."""
    cells = [_GAP.split(line.strip()) if "\t" in line.strip() or "  " in line.strip() else [] for line in lines]
    found = list(lines)
    start = 0
    for count, run in itertools.groupby(map(len, cells)):
        stop = start + len(list(run))
        if count > 1 and stop - start >= FEW and _is_table(cells[start:stop], lines[start:stop]):
            found[start:stop] = ["| " + " | ".join(row) + " |" for row in cells[start:stop]]
        start = stop
    return found


def _is_table(rows: Table, lines: Sequence[str]) -> bool:
    """Return whether rows of equal length are a table: by their tabs, or by a column of figures and short cells."""
    tabs = all("\t" in line.strip() for line in lines)
    short = sum(len(cell) for row in rows for cell in row) < 30 * sum(map(len, rows))
    figures = any(2 * sum(bool(_FIGURE.fullmatch(row[at])) for row in rows) >= len(rows) for at in range(len(rows[0])))
    return short and figures and (tabs or len(rows[0]) > 2)


def tables_in(lines: Sequence[Fragment], sentences: bool) -> list[Fragment]:
    """Return lines in which each table row is a paragraph: a sentence, or its cells with bars between them."""
    found: list[Fragment] = []
    place = 0
    texts = barred([line.text for line in lines])
    while place < len(lines):
        stop = _end_of_table(texts, place)
        if stop == place:
            found.append(lines[place])
            place += 1
            continue
        rows = [(at, cells) for at in range(place, stop) if (cells := _cells(texts[at]))]
        ruled = any(_RULE.fullmatch(texts[at]) for at in range(place, stop))
        named = len(rows) > 1 and (ruled or _names_columns([cells for _, cells in rows]))
        found.append(Fragment("", lines[place].place))
        for at, cells in rows[named and sentences :]:
            text = table_sentences([rows[0][1], cells])[0] if named and sentences else " | ".join(cells)
            found += [Fragment(text, lines[at].place), Fragment("", lines[at].place)]
        place = stop
    return found


def _end_of_table(texts: Sequence[str], start: int) -> int:
    """Return where the table that begins at a line ends; the line itself if there is none."""
    if "|" not in texts[start]:
        return start
    stop = next((at for at in range(start, len(texts)) if "|" not in texts[at]), len(texts))
    if start + 1 < stop and "-" in texts[start + 1] and _RULE.fullmatch(texts[start + 1]):
        return stop
    counts = {len(_cells(text)) for text in texts[start:stop]}
    return stop if stop - start >= FEW and len(counts) == 1 and max(counts) > 2 else start


def _cells(text: str) -> list[str]:
    """Return the cells of a row; none for a rule."""
    return [] if _RULE.fullmatch(text) else [cell.strip() for cell in text.strip().strip("|").split("|")]


def _names_columns(rows: Table) -> bool:
    """Return whether the first row names the columns: it has no figures, and a column below it has."""
    first, *others = rows
    plain = all(cell and not re.search(r"\d", cell) for cell in first)
    return (
        plain
        and len(set(first)) == len(first)
        and any(
            2 * sum(bool(_FIGURE.fullmatch(row[at])) for row in others if at < len(row)) > len(others)
            for at in range(len(first))
        )
    )


def guessed_table(rows: Table) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a table whose first row may name the columns; none if it does not."""
    if len(rows) > 2 and len({len(row) for row in rows}) == 1 and len(rows[0]) > 2 and _names_columns(rows):
        yield from (tuple(row) for row in rows)
