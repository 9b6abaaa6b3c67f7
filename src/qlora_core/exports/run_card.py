"""The run card: `run.md` and `run.html`, all that is known of a run on one page, to keep or to hand on.

Tells no path of this machine. The HTML is one file, with its curves, and opens without a network.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from markupsafe import Markup

from ..config import RunConfig, from_flat, to_flat
from ..errors import RunError
from ..evaluation.contest import CONTENDERS, NAMES
from ..evaluation.verdict import judged_run, outdated
from ..files.storage import remembered_sha256, write_text
from ..models.adapter_files import ADAPTER_FILE
from ..reports import console
from ..reports.charts import CURVES, save_curves
from ..reports.comparison import setting_text
from ..reports.verdict_text import interval_text, ledger_lines, value_text
from ..runs.recipes import to_command
from ..runs.run import Run
from .card import data_facts

MARKDOWN, HTML = "run.md", "run.html"
_STYLE = """
:root { color-scheme: light dark; --ink: #0f172a; --soft: #64748b; --line: #e2e8f0; --paper: #fff; --block: #f6f6f6 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e2e8f0; --soft: #94a3b8; --line: #334155; --paper: #0f172a; --block: #1e293b }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-top: 1px solid var(--line);
  padding-top: 1.2rem }
div { overflow-x: auto } table { border-collapse: collapse; font-size: .92rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500 } pre { background: var(--block); padding: .8rem; overflow-x: auto;
  font-size: .85rem; white-space: pre-wrap } figure { margin: 1rem 0; background: #fff } svg { max-width: 100%;
  height: auto } p strong { font-size: 1.05rem }
"""


@dataclass(frozen=True)
class Section:
    """A part of the card; what it has none of is left out.

    Attributes:
        title: its heading.
        lead: a sentence that stands out.
        facts: names and values.
        table: a heading and rows.
        items: of a list.
        block: text with line breaks.
    """

    title: str
    lead: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    table: Sequence[Sequence[str]] = ()
    items: Sequence[str] = ()
    block: str = ""

    @property
    def has_content(self) -> bool:
        """Return whether there is anything below its heading."""
        return bool(self.lead or self.facts or self.table or self.items or self.block)


def write_run_card(run: Run, directory: Path) -> list[Path]:
    """Write `run.md` and `run.html`; return where they are.

    Args:
        run: whose; it may still be training.
        directory: must exist.

    Raises:
        RunError: this is not a run, or it is damaged.
    """
    sections = [section for section in _sections(run) if section.has_content]
    texts = {MARKDOWN: _markdown(run.name, sections), HTML: _html(run.name, sections, _curves(run))}
    for name, text in texts.items():
        write_text(directory / name, text)
    return [directory / name for name in texts]


def portable(config: RunConfig) -> RunConfig:
    """Return settings whose paths are names, so that they tell nothing of this machine."""

    def named(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(named, value))
        is_path = isinstance(value, str) and (PurePath(value).is_absolute() or Path(value).exists())
        return PurePath(value).name if is_path else value

    return from_flat({name: named(value) for name, value in to_flat(config).items()})


# What it tells ----------------------------------------------------------------------------------------------------


def _sections(run: Run) -> Iterator[Section]:
    environment, numbers, evaluation = run.environment(), run.summary(), run.evaluation()
    yield Section("What it is", facts=_what(run, environment))
    yield from _judged(run)
    yield Section("How it went", facts=console.performance(numbers, evaluation) if numbers else {})
    yield Section("The data", facts=_data(run))
    if evaluation and evaluation["questions"]:
        recalled = console.recall_lines(evaluation)
        yield Section("Answers", block="\n".join(filter(None, (console.answers_side_by_side(evaluation), recalled))))
    yield Section("How to repeat it", block=to_command(portable(run.config())))
    yield Section("Settings", facts=_settings(run))
    versions = environment.get("versions") or {}
    device = {"Device": str(environment.get("device") or "")} if environment.get("device") else {}
    yield Section("Where it was trained", facts={**device, **{name: str(value) for name, value in versions.items()}})
    yield Section("Hashes (SHA-256)", facts=_hashes(run, environment))


def _what(run: Run, environment: Mapping[str, Any]) -> dict[str, str]:
    model, config = environment["model"], run.config()
    bits = f"{model['bits']} bits" if model.get("bits") else "as it is"
    rank = f"{config.lora.adapter}, rank {config.lora.rank}, alpha {config.lora.alpha:g}"
    rows = f"{len(run.train_rows()):,} to train, {len(run.validation_rows()):,} to validate"
    base = ", ".join(filter(None, (PurePath(model["name"]).name, model.get("licence", ""), bits)))
    return {"State": run.state, "Base": base, "Adapters": rank, "Rows": rows}


def _judged(run: Run) -> Iterator[Section]:
    """Yield what an evaluation found, as far as it went."""
    try:
        found = run.verdict()
    except RunError as error:
        problem = str(error).replace(str(run.path), run.name)
        yield Section("Did it help?", lead=f"{problem} `qlora evaluate` makes it again.")
        return
    if not found or "questions" not in found:
        yield Section("Did it help?", lead="Not asked yet: `qlora evaluate` tells.")
        return
    if reason := outdated(run, found):
        yield Section("Did it help?", lead=f"{reason} `qlora evaluate` asks again.")
        return
    verdict, entries = judged_run(run, found)
    names = verdict.contenders
    table = [["", *(CONTENDERS[name] for name in names)]]
    for measure in verdict.measures.values():
        values = [measure.values.get(name) for name in names]
        cells = [f"{value_text(measure, one)} ({interval_text(measure, one)})".replace(" ()", "") for one in values]
        table.append([NAMES[measure.name], *cells])
    items = [*map(str, verdict.findings), *(f"Not judged: {one}" for one in verdict.missing)]
    yield Section("Did it help?", str(verdict.sentence), {"Advice": str(verdict.advice)}, table, items)
    yield Section("What became of each fact", block="\n".join(ledger_lines(entries)))


def _data(run: Run) -> dict[str, str]:
    return {name: f"{count:,} rows" for name, count in (data_facts(run) or {}).get("sources", {}).items()}


def _settings(run: Run) -> dict[str, str]:
    return {name: setting_text(value) for name, value in to_flat(portable(run.config())).items()}


def _hashes(run: Run, environment: Mapping[str, Any]) -> dict[str, str]:
    found = {name: entry["sha256"] for name, entry in environment.get("files", {}).items()}
    for directory in (run.best, run.final):
        if (path := directory / ADAPTER_FILE).is_file():
            found[f"{directory.name}/{ADAPTER_FILE}"] = remembered_sha256(path)
    identity = environment["identity"]
    return {
        **found,
        **{name: identity[name] for name in ("model", "tokeniser and template", "data") if name in identity},
    }


def _curves(run: Run) -> str:
    """Return the curves as SVG, those of the run's result if they are not older; empty if there are none yet."""
    with contextlib.suppress(OSError):
        drawn = run.result / CURVES
        if drawn.stat().st_mtime >= run.metrics_file.stat().st_mtime:
            return drawn.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as place:
        drawn = [path for path in save_curves(run, Path(place)) if path.suffix == ".svg"]
        return drawn[0].read_text(encoding="utf-8") if drawn else ""


# How it is written ------------------------------------------------------------------------------------------------


def _markdown(name: str, sections: Sequence[Section]) -> str:
    parts = [f"# {name}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [f"**{_inline(section.lead)}**"] if section.lead else []
        rows = [["", ""], *([key, value] for key, value in section.facts.items())] if section.facts else []
        parts += [_grid(table) for table in (rows, section.table) if table]
        parts += ["\n".join(f"- {_inline(item)}" for item in section.items)] if section.items else []
        parts += [f"{_fence(section.block)}text\n{section.block}\n{_fence(section.block)}"] if section.block else []
    return "\n\n".join(parts) + "\n"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(_inline(cell) for cell in row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def _inline(text: str) -> str:
    """Return text for one line of Markdown, in which it is neither a table, a link nor HTML."""
    one = " ".join(str(text).split())
    for sign in "\\|<>[]*_":
        one = one.replace(sign, "\\" + sign)
    return one


def _fence(block: str) -> str:
    """Return a fence that is longer than any in a block."""
    longest = max((len(run) for line in block.splitlines() for run in [line.strip()] if set(run) == {"`"}), default=0)
    return "`" * max(3, longest + 1)


def _html(name: str, sections: Sequence[Section], curves: str) -> str:
    parts = [Markup("<h1>{}</h1>").format(name)]
    for section in sections:
        parts.append(Markup("<h2>{}</h2>").format(section.title))
        if section.lead:
            parts.append(Markup("<p><strong>{}</strong></p>").format(section.lead))
        if section.facts:
            lines = (Markup("<tr><th>{}</th><td>{}</td></tr>").format(*pair) for pair in section.facts.items())
            parts.append(Markup("<div><table>{}</table></div>").format(Markup("").join(lines)))
        if section.table:
            rows = [
                Markup("<tr>{}</tr>").format(
                    Markup("").join(Markup("<{0}>{1}</{0}>").format(Markup(tag), cell) for cell in row)
                )
                for tag, row in zip(["th", *["td"] * len(section.table)], section.table, strict=False)
            ]
            parts.append(Markup("<div><table>{}</table></div>").format(Markup("").join(rows)))
        if section.items:
            items = (Markup("<li>{}</li>").format(item) for item in section.items)
            parts.append(Markup("<ul>{}</ul>").format(Markup("").join(items)))
        if section.block:
            parts.append(Markup("<pre>{}</pre>").format(section.block))
        if section.title == "How it went" and curves:
            parts.append(Markup("<figure>{}</figure>").format(Markup(curves)))  # of our own drawing
    page = Markup(
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width"><title>{}</title><style>{}</style></head>\n<body>\n{}\n</body>\n</html>\n'
    )
    return str(page.format(name, Markup(_STYLE), Markup("\n").join(parts)))
