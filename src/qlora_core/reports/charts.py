"""Curves of a run: panels for the page as Vega-Lite specifications, and one figure of them as SVG and PNG files.

Knows columns of numbers and the Vega-Lite format, written out here since altair takes two seconds to import and to
check it (the tests have it check). Nothing of mlx, marimo or page layout. Drawing makes no network requests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..files.storage import replacing
from ..machine.memory import GB
from ..runs.metrics import Columns, MetricsReader, loss_before
from ..runs.plan import TrainingPlan
from ..runs.run import Run
from ..schedule import learning_rate
from ..translations import say
from .in_language import number, vega_locale

POINTS = 600  # points of a curve; a screen cannot show more
DOTS = 60  # validations up to which each is marked, and steps, so that a single one can be seen
SMOOTHED = 100  # steps from which a mean is drawn; fewer need none
REACH = 40  # the mean covers a twentieth of the run

TRAINING, VALIDATION, FREE = "#3b82f6", "#e4572e", "#8a94a0"  # each can be read on white and on black
FAINT = 0.4  # opacity of a curve beside its mean
GREY, INK = "#8a94a0", "#37424d"
WIDE, NARROW = 780, 360  # pixels of the figure's panels


# Curves ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """The part of a run that the reader wants to see, and how it is drawn.

    Attributes:
        logarithmic: whether the vertical axis of the loss is.
        smoothing: how many times as far as usual the mean reaches; 0: there is none.
        first: share of the run, from 0 to 1, after which the curves begin.
        last: share of the run at which they end.
    """

    logarithmic: bool = False
    smoothing: float = 1.0
    first: float = 0.0
    last: float = 1.0

    def cut(self, columns: Columns, reached: float) -> Columns:
        """Return the rows between both ends, of a run that has reached a step."""
        if (self.first, self.last) == (0.0, 1.0):
            return columns
        known = columns["step"]
        begin = np.searchsorted(known, self.first * reached, side="left")
        end = np.searchsorted(known, self.last * reached, side="right")
        return {name: values[begin:end] for name, values in columns.items()}


ALL = View()


@dataclass(frozen=True)
class Series:
    """A line: its legend, colour, and points.

    Attributes:
        label: text in the legend.
        colour: colour of line and dots.
        steps: steps of its points.
        values: values of its points; as many, none of them NaN.
        faint: drawn beside its own mean.
        dots: each point is marked.
    """

    label: str
    colour: str
    steps: np.ndarray
    values: np.ndarray
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines that share a vertical axis.

    Attributes:
        name: short; what the data set is called.
        title: title of the panel.
        unit: unit of the vertical axis.
        format: number format of the axis, in d3's notation.
        about: description for screen readers.
        series: the lines.
        zero: whether the axis begins at 0.
        logarithmic: whether the axis is; all values are positive then.
        best: step, value and label of the point to mark, if there is one.
    """

    name: str
    title: str
    unit: str
    format: str
    about: str
    series: tuple[Series, ...]
    zero: bool = False
    logarithmic: bool = False
    best: tuple[float, float, str] | None = field(default=None)


def panels(steps: Columns, evals: Columns, view: View = ALL, before: float | None = None) -> list[Panel]:
    """Return all panels of a run with at least one step: loss, learning rate, gradient norm, speed, memory, CPU.

    Runs of earlier versions did not record the last.

    Args:
        steps: of the run.
        evals: its validations.
        view: what is to be seen.
        before: validation loss before the first step, with which the line of validation begins; None: unknown.
    """
    reached, best = float(steps["step"][-1]), _best(evals)
    if before is not None:
        evals = {name: np.insert(evals[name], 0, value) for name, value in {"step": 0.0, "val_loss": before}.items()}
    steps, evals = view.cut(steps, reached), view.cut(evals, reached)
    made = [
        _loss(steps, evals, best, view),
        Panel(
            "rate",
            say("Learning rate"),
            say("learning rate"),
            ".1~e",
            say("The learning rate of each step so far."),
            (_series(say("of each step"), TRAINING, steps, "learning_rate"),),
            zero=True,
        ),
        Panel(
            "norm",
            say("Gradient norm"),
            say("before clipping"),
            ".2~g",
            say("The length of the gradient at each step, before it is clipped."),
            _with_mean(steps, "grad_norm", say("each step"), say("mean of {count} steps"), view),
        ),
        Panel(
            "speed",
            say("Speed"),
            say("tokens/s"),
            ",~f",
            say("How many tokens were trained in a second."),
            _with_mean(steps, "tokens_per_second", say("each step"), say("mean of {count} steps"), view),
            zero=True,
        ),
        Panel(
            "memory",
            say("Memory"),
            say("GB"),
            ",~f",
            say("The most memory that the model's arrays took, and what was free on the machine."),
            (
                _series(say("peak of the arrays"), TRAINING, steps, "peak_memory_bytes", GB),
                _series(say("free"), FREE, steps, "available_memory_bytes", GB),
            ),
            zero=True,
        ),
    ]
    if np.isfinite(steps["cpu_percent"]).any():
        made.append(_processor(steps, view))
    return made


def _processor(steps: Columns, view: View) -> Panel:
    return Panel(
        "processor",
        say("CPU use"),
        say("% of this computer"),
        ",~f",
        say("How busy the processors were since the step before, with all that runs on the computer."),
        _with_mean(steps, "cpu_percent", say("each step"), say("mean of {count} steps"), view),
        zero=True,
    )


def _best(evals: Columns) -> tuple[float, float, str] | None:
    """Return step, value and label of the lowest validation loss, if one is known."""
    known = np.isfinite(evals["val_loss"])
    if not known.any():
        return None
    place = int(np.nanargmin(evals["val_loss"]))
    value = float(evals["val_loss"][place])
    return float(evals["step"][place]), value, say("best {loss}", loss=number(value, ".4f"))


def _loss(steps: Columns, evals: Columns, best: tuple[float, float, str] | None, view: View) -> Panel:
    """Return the training loss, as it is and smoothed, and the validation loss, the best marked if it is in view."""
    validation = _series(say("validation"), VALIDATION, evals, "val_loss", dots=len(evals["step"]) <= DOTS)
    seen = best is not None and best[0] in validation.steps
    lines = (
        *_with_mean(steps, "train_loss", say("training"), say("mean of {count} steps"), view),
        *([validation] if len(validation.values) else []),
    )
    return Panel(
        "loss",
        say("Loss"),
        say("nats/token"),
        ".3~f",
        say(
            "Loss of training at each step and smoothed, and loss of validation from before the first step on, with "
            "the lowest marked."
        ),
        tuple(map(_positive, lines)) if view.logarithmic else lines,
        logarithmic=view.logarithmic,
        best=best if seen and best and (best[1] > 0 or not view.logarithmic) else None,
    )


def _positive(series: Series) -> Series:
    """Return the points that a logarithmic axis can show."""
    kept = series.values > 0
    return series if kept.all() else replace(series, steps=series.steps[kept], values=series.values[kept])


def _series(
    label: str, colour: str, columns: Columns, name: str, scale: float = 1, *, dots: bool = False, faint: bool = False
) -> Series:
    known = np.isfinite(columns[name])
    return Series(label, colour, columns["step"][known], columns[name][known] / scale, faint=faint, dots=dots)


def _with_mean(steps: Columns, name: str, label: str, mean: str, view: View) -> tuple[Series, ...]:
    """Return a field as it is and smoothed (`mean` says over how many steps); alone if it is too short to smooth."""
    count = len(steps["step"])
    reach = round(view.smoothing * smoothing(count))
    each = _series(label, TRAINING, steps, name, faint=bool(reach), dots=count <= DOTS)
    if not reach:
        return (each,)
    return each, Series(mean.format(count=number(2 * reach + 1)), TRAINING, each.steps, smooth(each.values, reach))


def smoothing(count: int) -> int:
    """Return how many steps on either side go into the mean: 0, 2, 5, 10, 20, 50 …, so that it seldom changes."""
    if count < SMOOTHED:
        return 0
    power = 10 ** int(math.log10(count / REACH))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= count / REACH)


def smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Return the mean of each value and its neighbours, up to `reach` on either side, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    place = np.arange(len(values))
    first, last = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


# Fewer points -----------------------------------------------------------------------------------------------------


def thin(points: Sequence[Any], most: int = 1000) -> list[Any]:
    """Return at most about `most` points, evenly spaced, the last one always among them."""
    stride = max(1, -(-len(points) // most))
    return [*points[: len(points) - 1 : stride], *points[-1:]]


def stride(count: int, most: int = POINTS) -> int:
    """Return how many points share one minimum and maximum: a power of 2, so that points stay as others are added."""
    return 1 if count <= most else 2 ** math.ceil(math.log2(2 * count / (most - 4)))


def keep_extremes(values: np.ndarray, most: int = POINTS) -> np.ndarray:
    """Return the positions of at most `most` values: minimum and maximum of each stretch, the first and the last."""
    count = len(values)
    if count <= most:
        return np.arange(count)
    width = stride(count, most)
    whole = values[: count - count % width].reshape(-1, width)
    begins = np.arange(len(whole)) * width
    places = [begins + whole.argmin(1), begins + whole.argmax(1), [0, count - 1]]
    if rest := count % width:
        tail = values[-rest:]
        places.append([count - rest + tail.argmin(), count - rest + tail.argmax()])
    return np.unique(np.concatenate(places))


def rows_of(panel: Panel) -> str:
    """Return the points of a panel as CSV: `step,value,kind`, the kind being the number of the series."""
    lines = ["step,value,kind"]
    for kind, series in enumerate(panel.series):
        kept = keep_extremes(series.values)
        pairs = zip(series.steps[kept].tolist(), series.values[kept].tolist(), strict=True)
        lines += [f"{step:.0f},{value:.5g},{kind}" for step, value in pairs]
    return "\n".join(lines)


# Specifications ---------------------------------------------------------------------------------------------------

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
STEP = {"field": "step", "type": "quantitative"}
VALUE = {"field": "value", "type": "quantitative"}


class Chart:
    """A Vega-Lite specification with rows inserted unchecked: checking each row would cost 300 ms a redraw."""

    def __init__(self, specification: dict[str, Any], datasets: Mapping[str, Any]) -> None:
        self.specification = {**specification, "datasets": dict(datasets)}

    def _mime_(self) -> tuple[str, str]:
        return "application/vnd.vegalite.v6+json", json.dumps(self.specification, ensure_ascii=False)


def chart(panel: Panel, height: int) -> Chart:
    """Return a panel for the page, as wide as its place; the page's theme colours letters and axes."""
    return Chart(for_page(_layered(panel, touched=True), height, panel.about), _datasets(panel))


def rate_chart(plan: TrainingPlan) -> Chart:
    """Return a chart of the learning rate of every step of a plan."""
    total, train = plan.total_steps, plan.config.train
    steps = np.array(thin(range(1, total + 1), POINTS))
    values = np.array([learning_rate(int(step), total, train) for step in steps])
    about = say("The learning rate that each step will have.")
    planned = Series(say("of each step"), TRAINING, steps, values)
    return chart(Panel("rate", say("Learning rate"), say("learning rate"), ".1~e", about, (planned,), zero=True), 140)


def _datasets(panel: Panel) -> dict[str, Any]:
    best = [dict(zip(("step", "value", "text"), panel.best, strict=True))] if panel.best else []
    return {panel.name: rows_of(panel), **({f"{panel.name}-best": best} if best else {})}


def for_page(drawn: dict[str, Any], height: int, about: str = "") -> dict[str, Any]:
    """Return a specification styled for the page and as wide as its place.

    Args:
        drawn: the specification.
        height: height of the plot itself, in pixels.
        about: description for screen readers.
    """
    return {
        **drawn,
        "$schema": SCHEMA,
        "width": "container",
        "height": height,
        "background": "transparent",
        "description": about,
        "config": {**PAGE, "locale": vega_locale()},
        "usermeta": {"embedOptions": {"actions": False}},  # a nameless menu, which offers to send data away
    }


PAGE: dict[str, Any] = {
    "font": "PT Sans, system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelOpacity": 0.7,
        "titleOpacity": 0.7,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "gridColor": GREY,
        "gridOpacity": 0.2,
        "domainColor": GREY,
        "domainOpacity": 0.3,
        "tickColor": GREY,
        "tickOpacity": 0.3,
    },
    "axisY": {"minExtent": 40, "maxExtent": 40},  # keeps the plot in place while numbers grow
    "title": {"anchor": "start", "fontSize": 13, "fontWeight": 600, "offset": 8},
    "legend": {"labelOpacity": 0.85, "labelFontSize": 11, "symbolType": "stroke"},
}
"""Look of a chart on the page, whose theme colours its letters."""


def _layered(panel: Panel, *, touched: bool, halo: str = "") -> dict[str, Any]:
    """Return a panel's specification, without size and look.

    Args:
        panel: the panel.
        touched: each point tells its numbers when the pointer is on it.
        halo: colour behind the words at the best point, where the background is known.
    """
    labels = [series.label for series in panel.series]
    named = {"as": "series", "calculate": f"{json.dumps(labels)}[datum.kind]"}
    encoding = _encoding(panel, labels)

    def layer(mark: dict[str, Any], kinds: Sequence[int] | None = None, **more: Any) -> dict[str, Any]:
        chosen = [] if kinds is None else [{"filter": f"indexof({list(kinds)}, +datum.kind) >= 0"}]
        return {
            "data": {"name": panel.name, "format": {"type": "csv"}},
            "transform": [named, *chosen],
            "mark": mark,
            "encoding": {**encoding, **more},
        }

    layers = []
    for wanted, width in ((True, 1.0), (False, 1.8)):  # faint lines behind the others
        if kinds := [kind for kind, series in enumerate(panel.series) if series.faint == wanted]:
            layers.append(layer({"type": "line", "strokeWidth": width, "strokeJoin": "round", "point": False}, kinds))
    if dotted := [kind for kind, series in enumerate(panel.series) if series.dots]:
        layers.append(layer({"type": "point", "filled": True, "size": 34, "opacity": 1}, dotted))
    if touched:
        unseen = {"type": "point", "size": 90, "opacity": 0, "strokeOpacity": 0}
        layers.append(layer(unseen, tooltip=_tooltip(panel)))
    return {"title": panel.title, "layer": [*layers, *(_best_layers(panel, halo) if panel.best else [])]}


def _encoding(panel: Panel, labels: Sequence[str]) -> dict[str, Any]:
    """Return axes and colours of a panel's lines."""
    colours = [_faded(series.colour) if series.faint else series.colour for series in panel.series]
    return {
        "x": {
            **STEP,
            "title": say("optimizer step"),
            "axis": {"tickMinStep": 1, "format": ",d", "grid": False},
            "scale": {"nice": False},
        },
        "y": {
            **VALUE,
            "title": panel.unit,
            "axis": {"labelExpr": f"datum.value ? format(datum.value, '{panel.format}') : '0'", "tickCount": 5},
            "scale": {"type": "log", "nice": False} if panel.logarithmic else {"zero": panel.zero},
        },
        "color": {
            "field": "series",
            "type": "nominal",
            "sort": list(labels),
            "scale": {"domain": list(labels), "range": colours},
            "legend": {"title": None, "orient": "top", "direction": "horizontal", "labelLimit": 260},
        },
    }


def _tooltip(panel: Panel) -> list[dict[str, Any]]:
    return [
        {"field": "series", "type": "nominal", "title": say("line")},
        {**STEP, "title": say("step"), "format": ",d"},
        {**VALUE, "title": panel.unit, "format": panel.format},
    ]


def _faded(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{FAINT})"


def _best_layers(panel: Panel, halo: str) -> list[dict[str, Any]]:
    """Return a ring around the best point, and its value."""
    last = max((series.steps[-1] for series in panel.series if len(series.steps)), default=0)
    left = panel.best[0] > last / 2
    words = {"type": "text", "align": "right" if left else "left", "dx": -4 if left else 4, "dy": -17, "fontSize": 12,
             "fontWeight": "bold"}  # fmt: skip
    text = {"text": {"field": "text", "type": "nominal"}}
    marks = [({"type": "point", "size": 170, "color": VALIDATION, "strokeWidth": 2, "opacity": 1}, {})]
    if halo:
        marks.append(({**words, "stroke": halo, "strokeWidth": 4, "strokeJoin": "round"}, text))
    marks.append(({**words, "color": VALIDATION}, text))
    spot = {"name": f"{panel.name}-best"}
    return [{"data": spot, "mark": mark, "encoding": {"x": STEP, "y": VALUE, **more}} for mark, more in marks]


# The figure -----------------------------------------------------------------------------------------------------

PAPER = "#fdfdfc"
CURVES, CURVES_PNG = "curves.svg", "curves.png"
APART = {"scale": {"color": "independent"}}  # each panel has a legend of its own


def save_curves(run: Run, directory: Path) -> list[Path]:
    """Draw loss, learning rate, gradient norm, speed and memory of a run.

    Args:
        run: the run, which is only read.
        directory: destination of `curves.svg` and `curves.png`; files of these names are replaced.

    Returns:
        The files written: none for a run without a single step.

    Raises:
        RunError: the run's `environment.json` or `config.json` cannot be read.
    """
    reader = MetricsReader(run.metrics_file)
    reader.poll()
    if not len(reader.steps):
        return []
    import vl_convert

    drawn = panels(reader.steps.columns(), reader.evals.columns(), before=loss_before(reader.events))
    specification = _figure(run, drawn)
    svg = vl_convert.vegalite_to_svg(specification, allowed_base_urls=[])
    files = {CURVES: svg.encode(), CURVES_PNG: vl_convert.svg_to_png(svg, scale=2)}
    for name, content in files.items():
        with replacing(directory / name) as temporary:
            temporary.write_bytes(content)
    return [directory / name for name in files]


def _figure(run: Run, drawn: Sequence[Panel]) -> dict[str, Any]:
    """Return the whole figure as a Vega-Lite specification with its rows."""
    first, *others = drawn
    small = [{**_layered(panel, touched=False), "width": NARROW, "height": 120} for panel in others]
    pairs = [{"hconcat": small[i : i + 2], "spacing": 26, "resolve": APART} for i in range(0, len(small), 2)]
    loss = {**_layered(first, touched=False, halo=PAPER), "width": WIDE, "height": 270}
    title = {"text": run.name, "subtitle": _subtitle(run, first), "anchor": "start", "frame": "bounds", "offset": 16,
             "fontSize": 17}  # fmt: skip
    return {
        "$schema": SCHEMA,
        "title": title,
        "vconcat": [loss, *pairs],
        "spacing": 22,
        "resolve": APART,
        "background": PAPER,
        "padding": 22,
        "config": {**FIGURE, "locale": vega_locale()},
        "datasets": {name: rows for panel in drawn for name, rows in _datasets(panel).items()},
    }


def _subtitle(run: Run, loss: Panel) -> str:
    config, model = run.config(), run.environment()["model"]
    parts = [model["name"], say("rank {rank}", rank=config.lora.rank)]
    if loss.best:
        step, value, _ = loss.best
        parts.append(
            say("best validation loss {loss} at step {step}", loss=number(value, ".4f"), step=number(step, ",.0f"))
        )
    return "   ·   ".join(parts)


FIGURE: dict[str, Any] = {
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
"""Look of the figure: its colours and letters."""
