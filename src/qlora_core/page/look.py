"""The look of the page: headings, tables, cards and notes. The classes are those of `apps/page.css`.

The one place where text becomes HTML: markupsafe escapes every value put into a template, so that data, models, names
and people's words stay text. Knows nothing of runs or settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import marimo as mo
from markupsafe import Markup

from ..translations import say

Kind = Literal["info", "success", "warn", "danger"]


def put(template: str, *values: Any, **named: Any) -> Markup:
    """Return HTML from a template of this program and escaped values from anywhere."""
    return Markup(template).format(*values, **named)


def joined(parts: Iterable[Markup]) -> Markup:
    """Return pieces of HTML, one after another."""
    return Markup("").join(parts)


def shown(markup: Markup) -> mo.Html:
    """Return HTML made by `put` and `joined` as an output."""
    return mo.Html(str(markup))


def title(words: str, text: str = "") -> mo.Html:
    """Return the heading of a page and its purpose."""
    paragraph = put('<p class="q-lead">{}</p>', say(text)) if text else ""
    return shown(put('<div class="q-title"><h1>{}</h1>{}</div>', say(words), paragraph))


def section(title: str, text: str = "") -> mo.Html:
    """Return a heading and what its section is about."""
    paragraph = put('<p class="q-lead">{}</p>', say(text)) if text else ""
    return shown(put('<div class="q-section"><h2>{}</h2>{}</div>', say(title), paragraph))


def remark(text: str) -> mo.Html:
    """Return a remark of the notebook."""
    return small(say(text))


def note(message: str, kind: Kind = "info") -> mo.Html:
    """Return a message in a box. Its text is shown as it is."""
    role = "alert" if kind == "danger" else "status"
    return shown(put('<div class="q-note q-{}" role="{}">{}</div>', kind, role, message))


def small(text: str) -> mo.Html:
    """Return a remark in small type."""
    return shown(put('<p class="q-small">{}</p>', text))


def empty(text: str) -> mo.Html:
    """Return a placeholder: what will be here, and what to do for it."""
    return shown(put('<p class="q-empty">{}</p>', text))


def alone(text: str) -> mo.Html:
    """Return a placeholder for a whole step of the page: while it is shown, the step's other cells are not."""
    return shown(put('<p class="q-empty q-alone">{}</p>', text))


def text_block(text: str) -> mo.Html:
    """Return text with its line breaks in a fixed-width font."""
    return shown(put('<pre class="q-text" tabindex="0">{}</pre>', text))


def copyable(text: str) -> mo.Html:
    """Return text in a fixed-width font with a button that copies it; marimo adds one to this kind of block."""
    return shown(put('<div class="codehilite"><pre><code>{}</code></pre></div>', text))


def folded(title: str, content: Any, *, open: bool = False) -> mo.Html:
    """Return content that a click on its title shows."""
    opened = Markup(" open") if open else ""
    html = Markup(mo.as_html(content).text)
    return shown(put('<details class="q-folded"{}><summary>{}</summary>{}</details>', opened, title, html))


def field(element: Any, help: str = "", limits: str = "", empty: str = "") -> Markup:
    """Return a form's element with its meaning, its limits, and what it means to leave it empty."""
    limits = put('<span class="q-limits">{}</span>', limits) if limits else ""
    remark = put('<p class="q-small">{} {}</p>', help, limits) if help or limits else ""
    chosen = put('<p class="q-small q-empty-means">{}</p>', empty) if empty else ""
    return put('<div class="q-field">{}{}{}</div>', html_of(element), remark, chosen)


def fields(parts: Iterable[Markup]) -> mo.Html:
    """Return fields side by side, as many as fit."""
    return shown(put('<div class="q-fields">{}</div>', joined(parts)))


def html_of(output: Any) -> Markup:
    """Return an element or another output as HTML, to be put among others."""
    return Markup(mo.as_html(output).text)


def unseen(element: Any) -> mo.Html:
    """Return an element that works without being seen, announced or focused."""
    return shown(put('<div class="q-unseen-element">{}</div>', html_of(element)))


def figures(values: Mapping[str, str | tuple[str, str]]) -> mo.Html:
    """Return cards with a number each: `{label: number}` or `{label: (number, remark)}`."""
    cards = []
    for label, value in values.items():
        number, remark = value if isinstance(value, tuple) else (value, "")
        remark = put('<div class="q-remark">{}</div>', remark) if remark else ""
        cards.append(put('<div class="q-card"><dt>{}</dt><dd>{}{}</dd></div>', label, number, remark))
    return shown(put('<dl class="q-cards">{}</dl>', joined(cards)))


def fact_table(rows: Mapping[str, Any]) -> mo.Html:
    """Return names on the left, values on the right; rows without a value are left out."""
    lines = [
        put('<tr><th scope="row">{}</th><td>{}</td></tr>', name, _cell(value)) for name, value in rows.items() if value
    ]
    return _scrolling(put('<table class="q-facts">{}</table>', joined(lines)))


def row_table(rows: Sequence[Mapping[str, Any]], numbers: Sequence[str] = ()) -> mo.Html:
    """Return a small table with a heading; the columns in `numbers` are aligned right."""
    names = list(rows[0]) if rows else []
    kind = {name: Markup(' class="q-number"') if name in numbers else Markup("") for name in names}
    head = joined(put('<th scope="col"{}>{}</th>', kind[name], name) for name in names)
    body = joined(
        put("<tr>{}</tr>", joined(put("<td{}>{}</td>", kind[name], _cell(row[name])) for name in names)) for row in rows
    )
    table = '<table class="q-rows"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>'
    return _scrolling(put(table, head, body))


def _scrolling(table: Markup) -> mo.Html:
    """Return a table that may be wider than its place, and can be scrolled by keyboard too."""
    return shown(put('<div class="q-scroll" tabindex="0">{}</div>', table))


def _cell(value: Any) -> Markup:
    """Return HTML unchanged, and text with its line breaks."""
    if isinstance(value, Markup):
        return value
    return Markup("<br>").join(put("{}", line) for line in str(value).split("\n"))
