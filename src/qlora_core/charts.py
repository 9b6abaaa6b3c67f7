"""Curves of a run: Vega-Lite specifications for the page, and one figure as SVG and PNG files.

Knows events and altair, and nothing of mlx, marimo or how a page is laid out. Drawing asks no network for anything.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .memory import GB
from .runs import Run, TrainingPlan
from .schedule import learning_rate
from .storage import replacing

POINTS = 1000  # of a curve; more cannot be told apart on a screen
DOTS = 60  # points up to which each is marked, so that a single one can be seen
SMOOTHED = 100  # steps from which on a mean is drawn too; fewer show their course themselves

TRAINING, VALIDATION = "#4c78a8", "#e4572e"
FAINT, GREY, INK = "#b9cde3", "#8a94a0", "#37424d"
WIDE, NARROW = 780, 206  # pixels of the panels


class Chart:
    """A Vega-Lite specification with rows put into it as they are: checking each row would cost 300 ms a redraw."""

    def __init__(self, specification: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.specification = {**specification, "datasets": {"rows": rows}}

    def _mime_(self) -> tuple[str, str]:
        return "application/vnd.vegalite.v6+json", json.dumps(self.specification)


@functools.cache
def _line_chart(y: str, title: str, kinds: tuple[str, ...], height: int, format: str, dots: bool) -> dict[str, Any]:
    """Specification of a line chart over steps, one line a kind; built once, since altair takes its time."""
    import altair as alt

    colours = alt.Scale(domain=list(kinds), range=[TRAINING, VALIDATION][: len(kinds)])
    legend = alt.Legend(orient="top", title=None) if len(kinds) > 1 else None
    chart = (
        alt.Chart(alt.NamedData(name="rows"))
        .mark_line(point=alt.OverlayMarkDef(size=18) if dots else False)
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, format="d", grid=False)),
            y=alt.Y(f"{y}:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format=format)),
            color=alt.Color("kind:N", scale=colours, legend=legend),
            tooltip=["kind:N", "step:Q", alt.Tooltip(f"{y}:Q", format=format)],
        )
        .properties(width="container", height=height, background="transparent")
        .configure_view(strokeOpacity=0)
    )
    return chart.to_dict()


def loss_chart(steps: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> Chart:
    """Training and validation loss over steps."""
    rows = [{"step": e["step"], "loss": e["train_loss"], "kind": "training"} for e in thin(steps)]
    rows += [{"step": e["step"], "loss": e["val_loss"], "kind": "validation"} for e in thin(evals)]
    return Chart(
        _line_chart("loss", "loss (nats a token)", ("training", "validation"), 280, ".3~f", len(rows) <= DOTS), rows
    )


def rate_chart(plan: TrainingPlan) -> Chart:
    """The learning rate of every step of a plan."""
    total, train = plan.total_steps, plan.config.train
    rows = [{"step": s, "rate": learning_rate(s, total, train), "kind": "rate"} for s in thin(range(1, total + 1))]
    return Chart(_line_chart("rate", "learning rate", ("rate",), 140, ".1~e", False), rows)


def thin(points: Sequence[Any], most: int = POINTS) -> list[Any]:
    """At most about `most` points, evenly spaced, the last one always among them."""
    stride = max(1, -(-len(points) // most))
    return [*points[: len(points) - 1 : stride], *points[-1:]]


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value and its neighbours, up to `reach` on either side, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    place = np.arange(len(values))
    first, last = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return ((sums[last] - sums[first]) / (last - first)).tolist()


# The figure -----------------------------------------------------------------------------------------------------


def save_curves(run: Run, directory: Path) -> list[Path]:
    """Draw loss, learning rate, speed and memory of a run.

    Args:
        run: is only read.
        directory: gets `curves.svg` and `curves.png`; files of these names are replaced.

    Returns:
        The files written: none for a run without a single step.

    Raises:
        RunError: the run's `environment.json` or `config.json` cannot be read.
    """
    events = run.metrics()
    steps = [event for event in events if event["type"] == "step"]
    if not steps:
        return []
    import altair
    import vl_convert

    evals = [event for event in events if event["type"] == "eval"]
    specification = _figure(run, steps, evals)
    options = {"vl_version": altair.SCHEMA_VERSION.rpartition(".")[0], "allowed_base_urls": []}
    drawn = {
        "curves.svg": vl_convert.vegalite_to_svg(specification, **options).encode(),
        "curves.png": vl_convert.vegalite_to_png(specification, scale=2, **options),
    }
    for name, content in drawn.items():
        with replacing(directory / name) as temporary:
            temporary.write_bytes(content)
    return [directory / name for name in drawn]


def _figure(run: Run, steps: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole figure as a Vega-Lite specification with its rows."""
    import altair as alt

    reach = len(steps) // 20 if len(steps) >= SMOOTHED else 0
    rate = [{"step": e["step"], "value": e["learning_rate"], "kind": "of each step"} for e in thin(steps)]
    speed = _both(steps, "tokens_per_second", reach, ("each step", f"mean of {2 * reach + 1}"))
    memory = [{"step": e["step"], "value": e["peak_memory_bytes"] / GB, "kind": "arrays, peak"} for e in thin(steps)]
    memory += [{"step": e["step"], "value": e["available_memory_bytes"] / GB, "kind": "free"} for e in thin(steps)]
    datasets = {"rate": rate, "speed": speed, "memory": memory}
    small = [
        _panel("rate", "Learning rate", None, _colours(rate, FAINT, TRAINING), ".1~e"),
        _panel("speed", "Speed", "tokens a second", _colours(speed, FAINT, TRAINING), ",~f"),
        _panel("memory", "Memory", "GB", {"arrays, peak": TRAINING, "free": GREY}, ",~f"),
    ]
    loss, rows = _loss_panel(steps, evals, reach)
    figure = alt.vconcat(loss, alt.hconcat(*small, spacing=26).resolve_scale(color="independent"), spacing=22)
    figure = figure.resolve_scale(color="independent").properties(
        background="#fdfdfc",
        padding=22,
        title=alt.TitleParams(
            run.name, subtitle=_subtitle(run, evals), anchor="start", frame="bounds", offset=16, fontSize=17
        ),
    )
    specification = figure.configure(**_look()).to_dict()
    return {**specification, "datasets": {**datasets, **rows}}


def _loss_panel(
    steps: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]], reach: int
) -> tuple[Any, dict[str, list[dict[str, Any]]]]:
    """Loss of training, as it is and smoothed, and of validation with its best marked; and their rows."""
    import altair as alt

    finite = [event for event in evals if event["val_loss"] is not None]
    rows = _both(steps, "train_loss", reach, ("training, each step", f"training, mean of {2 * reach + 1} steps"))
    colours = _colours(rows, FAINT, TRAINING)
    rows += [{"step": e["step"], "value": e["val_loss"], "kind": "validation"} for e in thin(finite)]
    best = min(finite, key=lambda event: event["val_loss"], default=None)
    if finite:
        colours["validation"] = VALIDATION
    marked = [] if best is None else [{"step": best["step"], "value": best["val_loss"], "text": _best(best)}]
    lines = _panel("loss", "Loss", "nats a token", colours, ".3~f", width=WIDE, height=270)
    dots = (
        alt.Chart(alt.NamedData(name="loss"))
        .transform_filter("datum.kind == 'validation'")
        .mark_point(filled=True, size=34, color=VALIDATION, opacity=1)
        .encode(x="step:Q", y="value:Q")
    )
    last = steps[-1]["step"]
    left = best is not None and best["step"] > last / 2
    spot = alt.Chart(alt.NamedData(name="best")).encode(x="step:Q", y="value:Q")
    ring = spot.mark_point(size=170, color=VALIDATION, strokeWidth=2, opacity=1)
    words = {"align": "right" if left else "left", "dx": -4 if left else 4, "dy": -17, "fontSize": 12}
    halo = spot.mark_text(stroke="#fdfdfc", strokeWidth=4, strokeJoin="round", **words).encode(text="text:N")
    label = spot.mark_text(color=VALIDATION, fontWeight="bold", **words).encode(text="text:N")
    layers = [lines, *([dots] if len(finite) <= DOTS else []), ring, halo, label]
    return alt.layer(*layers).properties(title="Loss"), {"loss": rows, "best": marked}


def _panel(
    data: str,
    title: str,
    unit: str | None,
    colours: Mapping[str, str],
    format: str,
    width: int = NARROW,
    height: int = 120,
) -> Any:
    """Lines over steps of one named data set, a colour a kind."""
    import altair as alt

    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    legend = alt.Legend(title=None, orient="top", direction="horizontal")
    axis = alt.Axis(labelExpr=f"datum.value ? format(datum.value, '{format}') : '0'", tickCount=5)
    return (
        alt.Chart(alt.NamedData(name=data), title=title, width=width, height=height)
        .mark_line(strokeWidth=1.8, strokeJoin="round", point=False)
        .encode(
            x=alt.X("step:Q", title="optimizer step", axis=alt.Axis(tickMinStep=1, format=",d", grid=False)),
            y=alt.Y("value:Q", title=unit, scale=alt.Scale(zero=data != "loss"), axis=axis),
            color=alt.Color("kind:N", scale=scale, legend=legend, sort=list(colours)),
        )
    )


def _both(steps: Sequence[Mapping[str, Any]], field: str, reach: int, kinds: tuple[str, str]) -> list[dict[str, Any]]:
    """Rows of a field as it is and smoothed; only as it is where there are too few steps to smooth."""
    known = [event for event in steps if event[field] is not None]
    raw = [{"step": e["step"], "value": e[field], "kind": kinds[0]} for e in known]
    if not reach:
        return thin(raw)
    values = smooth([e[field] for e in known], reach)
    mean = [{"step": e["step"], "value": v, "kind": kinds[1]} for e, v in zip(known, values, strict=True)]
    return [*thin(raw), *thin(mean)]


def _colours(rows: Iterable[Mapping[str, Any]], faint: str, strong: str) -> dict[str, str]:
    """A colour for each kind among the rows: a lone kind the strong one, else the first the faint one."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    return dict(zip(kinds, [faint, strong] if len(kinds) > 1 else [strong], strict=False))


def _best(event: Mapping[str, Any]) -> str:
    return f"best {event['val_loss']:.4f}"


def _subtitle(run: Run, evals: Sequence[Mapping[str, Any]]) -> str:
    config, model = run.config(), run.environment()["model"]
    best = min((e for e in evals if e["val_loss"] is not None), key=lambda e: e["val_loss"], default=None)
    parts = [model["name"], f"rank {config.lora.rank}"]
    if best:
        parts.append(f"best validation loss {best['val_loss']:.4f} at step {best['step']:,}")
    return "   ·   ".join(parts)


def _look() -> dict[str, Any]:
    """Colours and letters of the figure."""
    return {
        "font": "Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        "axis": {
            "labelColor": GREY,
            "titleColor": GREY,
            "titleFontWeight": "normal",
            "gridColor": "#e8ebee",
            "domainColor": "#cfd5da",
            "tickColor": "#cfd5da",
            "titlePadding": 8,
            "labelFontSize": 11,
            "titleFontSize": 11,
        },
        "legend": {"labelColor": INK, "labelFontSize": 11, "symbolStrokeWidth": 2.5, "symbolType": "stroke"},
        "title": {
            "color": INK,
            "fontSize": 13,
            "anchor": "start",
            "frame": "group",
            "subtitleColor": GREY,
            "subtitleFontSize": 12,
        },
    }
