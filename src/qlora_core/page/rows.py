"""The data: its sources, what was read from them, and its tokens.

Knows reports and how they are shown; reads no row itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import marimo as mo
import numpy as np

from ..config import RunConfig, settings
from ..data import DataReport, Findings, PreparedData, Unused
from ..files.storage import make_directory, replacing
from ..reports.charts import GREY, TRAINING, Chart, for_page
from ..reports.in_language import number, percent, share
from ..tokens.dataset import TokenDataset
from ..tokens.report import ShownRow, TokenReport
from ..translations import say, spoken
from . import reasons
from .doubts import guesses, with_choices
from .forms import read_forms, settings_form
from .language import read_only
from .look import empty, fact_table, figures, folded, note, row_table, small
from .problems import Problem

DROPPED = Path("data") / "dropped"
LARGEST_DROPPED = 256_000_000  # bytes of one file
FEW, MANY = 5, 200  # findings that are shown, and those that a click shows
BEYOND = "#e4572e"  # reads well on light and on dark ground, where a chart knows no CSS variable
MOST_BARS, HEIGHT = 60, 180  # of the histogram, which is so many pixels high
RULE_FROM = 0.7  # of what fits: where all rows are shorter, a rule would only make the bars narrow


# Where it comes from --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """Sources that cannot be changed, in the place of the text area."""

    value: str


def source_list(sources: Sequence[str]) -> mo.ui.text_area | Named:
    """Return the text area for files and folders, one a line."""
    text = "\n".join(sources)
    if read_only():
        return Named(text)
    label = say("Files and folders, one per line")
    return mo.ui.text_area(text, rows=max(2, len(sources)), label=label, full_width=True)


class Unhidden(type(Path())):  # type: ignore[misc] - of this system's own paths; the browser keeps the class
    """A path that lists no hidden files and folders."""

    def iterdir(self) -> Iterator[Path]:
        """Yield what lies in this folder and does not begin with a dot."""
        return (path for path in super().iterdir() if not path.name.startswith("."))


def source_browser(choose: Callable[[tuple[str, ...]], Any]) -> mo.ui.file_browser | None:
    """Return a file browser; what is picked is given to `choose` as a person would type it."""
    if read_only():
        return None
    return mo.ui.file_browser(
        Unhidden(Path.cwd()),
        selection_mode="all",
        multiple=True,
        restrict_navigation=False,
        label=say("Tick files or folders. Your selection replaces the list above."),
        on_change=lambda chosen: choose(tuple(as_typed(entry.path) for entry in chosen)),
    )


def drop_area(choose: Callable[[tuple[str, ...]], Any]) -> mo.ui.file | None:
    """Return a place to drop files on; they are copied to `DROPPED` and given to `choose`."""
    if read_only():
        return None
    label = say("Drop files here, or click to choose them")
    return mo.ui.file(
        multiple=True, kind="area", max_size=LARGEST_DROPPED, label=label,
        on_change=lambda files: choose(tuple(as_typed(keep_dropped(file.name, file.contents)) for file in files)),
    )  # fmt: skip


def keep_dropped(name: str, content: bytes, directory: Path | None = None) -> Path:
    """Write a dropped file and return its path; another file of that name is kept, and the new one gets a number.

    Args:
        name: as the browser names it; whatever looks like a folder in it is left out.
        content: its bytes.
        directory: where to write; by default `DROPPED`, in the working directory.
    """
    place = directory or Path.cwd() / DROPPED
    plain = Path(name.replace("\\", "/")).name.lstrip(".") or "file"
    for copy in itertools.count(1):
        stem, _, ending = plain.partition(".")
        path = place / (plain if copy == 1 else f"{stem}-{copy}{'.' * bool(ending)}{ending}")
        if path.is_file() and path.read_bytes() == content:
            return path
        if not path.exists():
            make_directory(place)
            with replacing(path, wanted=len(content)) as part:
                part.write_bytes(content)
            return path
    raise AssertionError("numbers do not end")


def as_typed(path: Path) -> str:
    """Return a path as one would type it here: relative if it lies under the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def sources(listed: mo.ui.text_area | Named) -> mo.Html:
    """Return the text area or, if nothing may be changed, the sources as text."""
    return fact_table({say("Sources"): listed.value}) if isinstance(listed, Named) else mo.as_html(listed)


def browsing(browser: mo.ui.file_browser | None) -> mo.Html | None:
    """Return the folded browser; a part of its own, since a choice in it creates the text area anew."""
    return folded(say("Browse files…"), browser) if browser is not None else None


def data_form(config: RunConfig) -> mo.ui.dictionary:
    """Return the settings of data and places without the sources, and without any path if nothing may be changed."""
    left_out = {s.name for s in settings() if s.name == "data" or (s.role == "place" and read_only())}
    form = settings_form(config, "data", "place")
    return mo.ui.dictionary({name: element for name, element in form.elements.items() if name not in left_out})


def read_data_form(
    config: RunConfig, values: Mapping[str, Any], listed: str, chosen: Sequence[tuple[str, str]] = ()
) -> RunConfig | Problem:
    """Return `config` with the form's values, the sources, and choices among the guesses.

    Without sources the result is a problem, which `nothing_chosen` shows.

    Raises:
        ConfigError: a value is out of range or no number.
    """
    if not listed.strip():
        return Problem(say("no data is chosen"), shown=True)
    return with_choices(read_forms(config, values, {"data": listed}), chosen)


def nothing_chosen(listed: str) -> mo.Html | None:
    """Return what to do while there is no source."""
    if listed.strip():
        return None
    return empty(
        say(
            "Nothing chosen yet. Type a file or a folder above, or browse for one: JSONL, CSV, Markdown, plain text, "
            "Word, PDF and others are read. To try it out, type data/sample/club."
        )
    )


# What became of it ----------------------------------------------------------------------------------------------


def in_short(prepared: PreparedData) -> mo.Html:
    """Return the counts in one line, and what is worth knowing before training."""
    report = prepared.report
    counts = [
        say("{count} rows to train", count=number(report.train)),
        say("{count} to validate", count=number(report.validation)),
        say("{count} rejected", count=number(report.rejected.count)) if report.rejected.count else "",
        say("{count} texts repaired", count=number(report.mended.total())) if report.mended.total() else "",
        say("to decide, below: {count}", count=number(len(asked))) if (asked := guesses(report)) else "",
    ]
    line = small(" · ".join(count for count in counts if count))
    return mo.vstack([line, *(note(spoken(warning), "warn") for warning in report.warnings)], gap=0.5)


def data_report(prepared: PreparedData) -> mo.Html:
    """Return what was read, refused, repaired and joined, and how it was split."""
    report = prepared.report
    cards = {
        say("Rows to train"): number(report.train),
        say("Rows to validate"): number(report.validation),
        say("Rejected"): number(report.rejected.count),
        say("Texts repaired"): number(report.mended.total()),
        say("Documents"): number(report.documents),
    }
    found = [
        (say("Rejected rows"), report.rejected),
        (say("Files that were not read"), report.skipped_files),
        (say("Rows left out, as their author marked them"), report.marked),
        (say("Rows of fact sheets that cannot be used"), report.rejected_facts),
        (say("Documents and sections that nothing is asked about"), report.unasked),
    ]
    kept = [
        (say("Files that were recognised, and how they were read"), report.recognised),
        (say("Texts that were repaired"), report.mended_rows),
        (say("Rows that seem to hold personal data, and are kept"), report.personal_data),
        (say("Page numbers, running heads and the like, left out"), report.debris),
    ]
    parts: list[Any] = [figures(cards)]
    parts += [_findings(title, findings) for title, findings in found if findings.count]
    if unused := report.unused_columns:
        parts.append(_unused(unused))
    parts += [_folded_findings(title, findings) for title, findings in kept if findings.count]
    parts.append(folded(say("Import details"), fact_table(_facts(report))))
    return mo.vstack(parts, gap=0.75)


def _unused(columns: Sequence[Unused]) -> mo.Html:
    """Return unused columns with how much content they have."""
    share, longer = say("Share of the rows"), say("Longer than the prompt")
    rows = [
        {
            say("Column"): column.column,
            share: percent(column.share),
            longer: say("yes") if column.longer_than_prompt else say("no"),
        }
        for column in columns[:MANY]
    ]
    return mo.vstack([small(say("Columns with content that is used for nothing")), row_table(rows, [share])], gap=0.25)


def _facts(report: DataReport) -> dict[str, str]:
    """Return how files became rows, one step per line; steps that did nothing are empty."""
    read = say("{rows} rows in {files} files", rows=number(report.read), files=number(report.files))
    nearly = say("{count} kept on one side of the split", count=number(report.near_duplicates))
    if report.near_duplicates_dropped:
        nearly = say("{count} left out", count=number(report.near_duplicates_dropped))
    split = say("as the files say") if report.own_split else say("by a hash of each row's content")
    validated = "\n".join(
        say("{source}: {validated} of {rows} validated", source=source, validated=number(held), rows=number(rows))
        for source, (rows, held) in list(report.by_source.items())[:MANY]
    )
    sheets = ", ".join(report.fact_sheets)
    return {
        say("Sources"): "\n".join(report.sources),
        say("Licence"): "\n".join(report.licences),
        say("Read"): read,
        say("Encodings"): _counts(report.encodings),
        say("Shapes"): _counts(report.shapes),
        say("Joined"): _if(
            report.joined_lines, say("{count} lines of running text", count=number(report.joined_lines))
        ),
        say("Threads"): _if(
            report.conversations,
            say("{count} made of {rows} rows", count=number(report.conversations), rows=number(report.joined_messages)),
        ),
        say("Marked as not to be trained"): _counts(report.marks),
        say("Taken to be so"): _counts(report.guesses),
        say("For testing"): _if(report.test_rows, say("{count} left out", count=number(report.test_rows))),
        say("Passages"): _if(
            report.passages, say("{count} made of running text and documents", count=number(report.passages))
        ),
        say("Questions"): _if(report.questions, say("{count} asked for documents", count=number(report.questions))),
        say("Repaired"): _counts(report.mended),
        say("Duplicates"): _if(report.duplicates, say("{count} left out", count=number(report.duplicates))),
        say("Nearly equal"): _if(report.near_duplicates, nearly),
        say("Several answers"): _if(
            report.several_answers,
            say(
                "{questions} questions in {rows} rows",
                questions=number(report.questions_with_several),
                rows=number(report.several_answers),
            ),
        ),
        say("Copies"): _if(
            report.left_out_as_copies,
            say("{count} rows left out", count=number(report.left_out_as_copies)),
        ),
        say("One pattern"): _if(
            report.patterned,
            say("{count} rows with the same words around other names or numbers", count=number(report.patterned)),
        ),
        say("Split"): split,
        say("Of each source"): validated,
        say("Facts"): _if(len(report.fact_sheets), say("{files}: asked, never trained", files=sheets)),
    }


def _if(count: int, text: str) -> str:
    return text if count else ""


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(
        f"{reasons.told(kind)} {number(count)}" for kind, count in sorted(counted.items(), key=lambda entry: -entry[1])
    )


def _findings(title: str, findings: Findings) -> mo.Html:
    """Return a few findings at once, the others folded."""
    heading = small(say("{title}: {count}", title=title, count=number(findings.count)))
    first, rest = findings.listed[:FEW], findings.listed[FEW:MANY]
    parts = [heading, row_table(_finding_rows(first))]
    if rest:
        parts.append(folded(say("{count} more", count=number(len(rest))), row_table(_finding_rows(rest))))
    return mo.vstack([*parts, *_unlisted(findings)], gap=0.25)


def _folded_findings(title: str, findings: Findings) -> mo.Html:
    table = row_table(_finding_rows(findings.listed[:MANY]))
    heading = say("{title}: {count}", title=title, count=number(findings.count))
    return folded(heading, mo.vstack([table, *_unlisted(findings)], gap=0.25))


def _finding_rows(found: Iterable[Any]) -> list[dict[str, Any]]:
    return [{say("Where"): f.where, say("Why"): reasons.cell(f.reason), say("Begins with"): f.sample} for f in found]


def _unlisted(findings: Findings) -> list[mo.Html]:
    left = findings.count - min(len(findings.listed), MANY)
    count = number(left)
    more = say("{count} more are not shown. The run's data_report.json lists the first thousand.", count=count)
    return [small(more)] if left > 0 else []


# What the model makes of it -------------------------------------------------------------------------------------


def token_figures(report: TokenReport, *datasets: TokenDataset) -> mo.Html:
    """Return the rows as tokens: how many are trained, their lengths, which are odd, and what to look at.

    Args:
        report: the report on the datasets.
        datasets: rows to train and to validate on.
    """
    cards = {
        say("Tokens"): (number(report.tokens), say("in {rows} rows", rows=number(report.rows))),
        say("Tokens trained on"): (
            share(report.target_tokens, report.tokens),
            say("{count} tokens", count=number(report.target_tokens)),
        ),
        say("Longest row"): (number(report.longest), say("of {most} that fit", most=number(report.max_seq_length))),
        say("Rows cut"): (number(report.truncated), say("{count} tokens lost", count=number(report.lost_tokens))),
        say("Unusable rows"): number(report.skipped_rows),
    }
    parts: list[Any] = [figures(cards)]
    if report.rows:
        lengths = np.concatenate([dataset.rows.lengths + dataset.rows.cut for dataset in datasets])
        parts.append(length_chart(lengths, report.max_seq_length))
    if report.skipped:
        rows = [{say("Where"): where, say("Why"): reasons.cell(why)} for where, why in report.skipped[:MANY]]
        parts.append(folded(say("Unusable rows"), row_table(rows)))
    for title, found in (
        (say("Most typical rows"), report.most_typical),
        (say("Least typical rows"), report.least_typical),
    ):
        if found:
            parts.append(folded(title, _typical(found)))
    return mo.vstack(parts, gap=0.75)


def _typical(found: Sequence[ShownRow]) -> mo.Html:
    bits = say("Bits per token")
    rows = [{say("Where"): row.source, bits: number(row.bits, ".1f"), say("Begins with"): row.text} for row in found]
    explained = say("Bits per token: how surprising a row's tokens are among all of them, whatever their order.")
    return mo.vstack([row_table(rows, [bits]), small(explained)], gap=0.25)


def length_chart(lengths: np.ndarray, most: int) -> Chart:
    """Return a chart of how many rows have how many tokens, with a rule at the limit.

    Args:
        lengths: lengths of the rows, `(rows,)`, truncated tokens included.
        most: tokens that fit.
    """
    longest = int(lengths.max(initial=1))
    width, end = bin_width(min(longest, 2 * most)), min(longest, 2 * most) + 1
    counts = np.bincount(np.minimum(lengths, end - 1) // width).tolist()
    rows = [
        {"low": low, "high": low + width, "rows": count, "beyond": low > most,
         "tokens": _range(low, longest if place == len(counts) - 1 else low + width - 1)}
        for place, count in enumerate(counts) if count for low in [place * width]
    ]  # fmt: skip
    cut = int(np.count_nonzero(lengths > most))
    described = say(
        "Histogram of {rows} rows by their length in tokens. The longest has {longest}; {cut} are longer than "
        "{most} and cut.",
        rows=number(len(lengths)), longest=number(longest), cut=number(cut), most=number(most),
    )  # fmt: skip
    words = (say("tokens in a row"), say("rows"), say("cut beyond {most}", most=number(most)))
    limit = [{"most": most}] if longest > RULE_FROM * most else []
    return Chart({**_histogram(*words), "description": described}, {"rows": rows, "limit": limit})


def bin_width(longest: int) -> int:
    """Return the tokens of one bar: 1, 2, 5, 10, 20 …, so that there are at most `MOST_BARS` bars."""
    widths = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    return next(width for width in widths if longest // width < MOST_BARS)


def _range(low: int, high: int) -> str:
    return number(low) if low == high else f"{number(low)} – {number(high)}"


def _histogram(tokens: str, rows: str, rule: str) -> dict[str, Any]:
    """Return the histogram's specification, without rows: titles of both axes, and the words at the rule."""
    length = {"field": "low", "type": "quantitative", "title": tokens}
    count = {"field": "rows", "type": "quantitative", "title": rows}
    bars = {
        "data": {"name": "rows"},
        "mark": {"type": "bar", "binSpacing": 1, "cornerRadiusTopLeft": 2, "cornerRadiusTopRight": 2},
        "encoding": {
            "x": {**length, "scale": {"nice": False}, "axis": {"format": ",d", "grid": False}},
            "x2": {"field": "high"},
            "y": {**count, "axis": {"tickMinStep": 1, "format": ",d"}},
            "y2": {"datum": 0},
            "color": {"condition": {"test": "datum.beyond", "value": BEYOND}, "value": TRAINING},
            "tooltip": [{"field": "tokens", "type": "nominal", "title": tokens}, {**count, "format": ",d"}],
        },
    }
    limit = {"data": {"name": "limit"}, "encoding": {"x": {**length, "field": "most"}}}
    line = {"type": "rule", "strokeDash": [4, 3], "color": GREY, "size": 1.5}
    words = {"type": "text", "align": "right", "dx": -6, "y": 8, "color": GREY, "text": rule}
    return for_page({"layer": [bars, {**limit, "mark": line}, {**limit, "mark": words}]}, HEIGHT)
