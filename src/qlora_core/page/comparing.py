"""Runs side by side: curves over each other, settings that differ, numbers and answers.

Shows what `compare` finds, in the same form for `apps/compare.py`, `apps/train.py` and the terminal. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import marimo as mo
from markupsafe import Markup

from ..errors import RunError
from ..reports.charts import Chart, for_page, smooth, smoothing, thin
from ..reports.comparison import Comparison, compare
from ..runs.plan import TrainingTracker
from ..runs.run import Run
from ..translations import Sentence, say
from .forms import value_words, words
from .look import empty, fact_table, folded, html_of, joined, note, put, row_table, shown, small

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a8a100", "#7f7f7f")
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 2], [1, 3], [12, 4], [3, 2, 1, 2])
"""A colour and a dash for each run, distinguishable for colour-blind people on white and on black."""
MOST = len(COLOURS)
POINTS = 500  # of a curve
SHOWN_SAMPLES = 6


def run_choice(tracker: TrainingTracker, asked: Sequence[str] = (), *, ended: bool = False) -> mo.ui.dictionary:
    """Return a choice of runs, newest first: a box for each, by its name.

    Args:
        tracker: the tracker of all runs.
        asked: names of those chosen at first; the newest two where none or one of these is known.
        ended: only runs that ended, and none chosen while there is but one.
    """
    runs = [run for run in tracker.runs() if not ended or _has_ended(run)]
    names = [run.name for run in runs]
    wanted = [name for name in names if name in asked]
    first = wanted if len(wanted) > 1 else [*wanted, *(name for name in names if name not in wanted)][:2]
    if ended and len(runs) < 2:
        first = []
    return mo.ui.dictionary({
        run.name: mo.ui.checkbox(run.name in first, label=f"{run.name} ({say(run.state)})") for run in runs
    })  # fmt: skip


def _has_ended(run: Run) -> bool:
    """Return whether a run has the numbers of its end; a damaged one has not."""
    try:
        return bool(run.summary())
    except RunError:
        return False


def choice_place(chosen: mo.ui.dictionary) -> mo.Html | None:
    """Return the choice of runs where there is something to choose."""
    if len(chosen.value) < 2 and not any(chosen.value.values()):
        return None
    boxes = joined(html_of(box) for box in chosen.elements.values())
    words = say("Runs, at most {most}", most=MOST)
    return shown(put('<fieldset class="q-choices"><legend>{}</legend><div>{}</div></fieldset>', words, boxes))


def axis_choice() -> mo.ui.radio:
    """Return the choice of the curves' horizontal axis."""
    options = {say("steps"): "step", say("tokens seen"): "tokens", say("training time"): "seconds"}
    return mo.ui.radio(options, value=say("steps"), inline=True, label=say("X axis"))


def axis_place(found: Comparison, axis: mo.ui.radio) -> mo.ui.radio | None:
    """Return the choice of the axis where there are curves to draw."""
    return axis if found.runs else None


def compared(tracker: TrainingTracker, chosen: Mapping[str, bool]) -> Comparison:
    """Return the comparison of the chosen runs; a single run is accepted.

    Args:
        tracker: the tracker of all runs.
        chosen: whether each is chosen, by its name.

    Raises:
        RunError: one of them cannot be read, or more are chosen than there are colours.
    """
    names = [name for name, wanted in chosen.items() if wanted]
    if len(names) > MOST:
        raise RunError(Sentence("{count} runs are chosen: choose at most {most}.", count=len(names), most=MOST))
    return compare([tracker.find(name) for name in names], least=0)


def nothing_chosen(tracker: TrainingTracker, found: Comparison, listed: bool = False) -> mo.Html | None:
    """Return what to do if there is nothing to compare; nothing about no runs where they are `listed` above."""
    if not tracker.runs():
        words = say("No runs yet in {place}. Train one first, then come back.", place=str(tracker.runs_dir))
        return None if listed else empty(words)
    if len(found.runs) < 2:
        return empty(say("Choose two runs or more. Train again with one setting changed to get a second run."))
    return None


# Curves ---------------------------------------------------------------------------------------------------------


def curves(found: Comparison, axis: str) -> mo.Html | None:
    """Return the validation and training losses of all runs in shared charts."""
    if not found.runs:
        return None
    parts = []
    for kind, title in {"validation": say("Validation loss"), "training": say("Training loss, smoothed")}.items():
        rows = [row for name, curve in zip(_names(found), found.curves, strict=True)
                for row in _points(getattr(curve, kind), axis, name, smoothed=kind == "training")]  # fmt: skip
        if rows:
            heading = put('<h3 class="q-heading">{}</h3>', title)
            drawn = Chart(_overlay(axis, _names(found), kind), {"rows": rows})
            parts.append(mo.vstack([shown(heading), drawn], gap=0.25))
    if not parts:
        return empty(say("Curves appear with the first steps."))
    return mo.vstack(parts, gap=1)


def _names(found: Comparison) -> tuple[str, ...]:
    """Return the runs' names, made distinct for charts."""
    names = [run["run"] for run in found.runs]
    return tuple(names if len(set(names)) == len(names) else [f"{i} {name}" for i, name in enumerate(names, 1)])


def _points(points: Sequence[dict[str, float]], axis: str, name: str, *, smoothed: bool) -> list[dict[str, Any]]:
    losses: Sequence[float] = [point["loss"] for point in points]
    if smoothed and (reach := smoothing(len(points))):
        losses = [float(loss) for loss in smooth(losses, reach)]
    scale = 60 if axis == "seconds" else 1
    rows = [{"x": p[axis] / scale, "loss": loss, "run": name} for p, loss in zip(points, losses, strict=True)]
    return thin(rows, POINTS)


def _specification(axis: str, title: str, unit: str, names: Sequence[str], *, dots: bool) -> dict[str, Any]:
    """Return the specification of runs over each other, without rows: titles of both axes, and the runs' names."""
    format = ",d" if axis != "seconds" else "~g"
    along = {"field": "x", "type": "quantitative", "title": title}
    loss = {"field": "loss", "type": "quantitative"}
    run = {"field": "run", "type": "nominal"}
    legend = {"orient": "top", "title": None, "columns": 1, "labelLimit": 420, "symbolType": "stroke",
              "symbolSize": 500, "symbolStrokeWidth": 2}  # fmt: skip

    def told_apart(by: Sequence[Any]) -> dict[str, Any]:
        return {**run, "scale": {"domain": list(names), "range": list(by[: len(names)])}, "legend": legend}

    encoding = {
        "x": {**along, "axis": {"grid": False, "format": format, "tickCount": 6}},
        "y": {**loss, "title": unit, "scale": {"zero": False}, "axis": {"format": ".3~f"}},
        "color": told_apart(COLOURS),
        "strokeDash": told_apart(DASHES),
        "tooltip": [run, {**along, "format": format}, {**loss, "format": ".4f"}],
    }
    mark = {"type": "line", "strokeWidth": 2, "point": {"size": 22} if dots else False}
    return for_page({"data": {"name": "rows"}, "mark": mark, "encoding": encoding}, 260)


def _overlay(axis: str, names: tuple[str, ...], kind: str) -> dict[str, Any]:
    titles = {"step": say("step"), "tokens": say("tokens seen"), "seconds": say("minutes of training")}
    return _specification(axis, titles[axis], say("loss (nats/token)"), names, dots=kind == "validation")


# Tables ---------------------------------------------------------------------------------------------------------


def numbers(found: Comparison) -> mo.Html | None:
    """Return a table of the runs and their results, the best marked, and warnings about what must not be compared."""
    if not found.runs:
        return None
    names = _names(found)
    rows = [
        {"": say(row.label), **{name: _marked(row.values[i], i in row.best) for i, name in enumerate(names)}}
        for row in found.table()
    ]
    warnings = [note(say(words), "warn") for words in found.notes]
    return mo.vstack([row_table(rows), *warnings], gap=0.75)


def _marked(value: str, best: bool) -> Markup:
    return put('<strong>{}</strong> <span class="q-best">{}</span>', value, say("best")) if best else put("{}", value)


def settings(found: Comparison) -> mo.Html | None:
    """Return the settings that differ, with the others folded away."""
    if not found.runs:
        return None
    names = _names(found)
    rows = [
        {
            say("Setting"): say(words(setting)),
            **dict(zip(names, (value_words(setting, value) for value in values), strict=True)),
        }
        for setting, values in found.settings.items()
    ]
    table = row_table(rows) if rows else small(say("All settings are the same."))
    same = {say(words(setting)): value_words(setting, value) for setting, value in found.same.items()}
    return mo.vstack([table, folded(say("{count} settings that are the same", count=len(same)), fact_table(same))])


def samples(found: Comparison) -> mo.Html | None:
    """Return all runs' answers to the questions that each was asked."""
    if not found.runs:
        return None
    if not found.samples:
        return empty(say("Answers appear when all selected runs have finished and were asked the same questions."))
    names, some = _names(found), thin(found.samples, SHOWN_SAMPLES)
    parts = [_sample(sample, names) for sample in some]
    if len(some) == len(found.samples):
        return shown(joined(parts))
    everything = shown(joined(_sample(sample, names) for sample in found.samples))
    title = say("All {count} questions", count=len(found.samples))
    return mo.vstack([shown(joined(parts)), folded(title, everything)])


def _sample(sample: dict[str, Any], names: Sequence[str]) -> Markup:
    """Return a question with its answers; the base's once if all runs have the same one."""
    base = sample["base"]
    if len(set(base)) == 1:
        answers = {say("Base model"): base[0]}
    else:
        answers = {say("Base of {run}", run=name): text for name, text in zip(names, base, strict=True)}
    answers |= dict(zip(names, sample["tuned"], strict=True))
    table = fact_table({name: text or say("(nothing)") for name, text in answers.items()})
    return put('<div class="q-sample"><p class="q-heading">{}</p>{}</div>', sample["question"], html_of(table))
