"""Curves: what is drawn is what was measured, as files that need nothing else."""

import csv
import json
import re
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from qlora_core import translations
from qlora_core.config import from_flat, to_json
from qlora_core.reports import charts
from qlora_core.runs.metrics import STEP_FIELDS
from qlora_core.runs.run import Run


def columns(count: int, **values) -> dict[str, np.ndarray]:
    """Steps 1 to `count` with made-up numbers, and those given."""
    step = np.arange(1.0, count + 1)
    made = {name: 1 + np.sin(step) ** 2 for name in STEP_FIELDS}
    return {**made, "step": step, **{name: np.asarray(value, float) for name, value in values.items()}}


def evals(**losses: float) -> dict[str, np.ndarray]:
    """Validations, `s5=1.5` at step 5."""
    return {"step": np.array([float(name[1:]) for name in losses]), "val_loss": np.array([*losses.values()], float)}


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 12345])
def test_thin(count):
    points = list(range(count))
    kept = charts.thin(points, 1000)
    assert len(kept) <= 1001
    assert kept == sorted(set(kept))
    if count <= 1000:
        assert kept == points
    else:
        assert (kept[0], kept[-1]) == (0, count - 1)


@pytest.mark.parametrize("count", [0, 1, charts.POINTS, charts.POINTS + 1, 1201, 4095, 4097, 99_999, 100_000])
def test_extremes_of_every_stretch_are_kept(count):
    values = np.random.default_rng(count).normal(size=count)
    if count > 10:
        values[[count // 3, count // 2]] = 99, -99
    kept = charts.keep_extremes(values)
    assert len(kept) <= charts.POINTS
    assert kept.tolist() == sorted(set(kept.tolist()))
    if count <= charts.POINTS:
        assert len(kept) == count
        return
    assert {0, count // 3, count // 2, count - 1} <= set(kept.tolist())
    width = charts.stride(count)
    for begin in range(0, count, width):
        stretch, drawn = values[begin : begin + width], values[kept[(kept >= begin) & (kept < begin + width)]]
        assert (drawn.min(), drawn.max()) == (stretch.min(), stretch.max())


def test_points_stay_where_they_are_while_others_join_them():
    values = np.random.default_rng(0).normal(size=1001)
    before, after = charts.keep_extremes(values[:1000]), charts.keep_extremes(values)
    assert len(set(before.tolist()) ^ set(after.tolist())) <= 4


def test_smooth_is_the_mean_of_the_neighbours():
    values = np.array([5.0, 1.0, 4.0, 1.0, 5.0, 9.0])
    assert charts.smooth(values, 0) == pytest.approx(values)
    assert charts.smooth(values, 1) == pytest.approx([3, 10 / 3, 2, 10 / 3, 5, 7])
    assert charts.smooth(values, 9) == pytest.approx([25 / 6] * 6)
    assert charts.smooth(np.array([]), 3).tolist() == []


@pytest.mark.parametrize(("count", "reach"), [(99, 0), (100, 2), (400, 10), (799, 10), (800, 20), (100_000, 2000)])
def test_the_mean_is_over_a_round_number_of_steps(count, reach):
    assert charts.smoothing(count) == reach


def test_panels_hold_what_was_measured():
    steps = columns(5, train_loss=[5, 4, np.nan, 2, 1], peak_memory_bytes=[2e9] * 5)
    made = charts.panels(steps, evals(s2=4.5, s4=2.25, s5=np.nan))
    loss, memory = made[0], made[4]
    assert [panel.name for panel in made] == ["loss", "rate", "norm", "speed", "memory", "processor"]
    rows = list(csv.DictReader(charts.rows_of(loss).splitlines()))
    assert [(row["step"], row["value"]) for row in rows if row["kind"] == "0"] == [
        ("1", "5"), ("2", "4"), ("4", "2"), ("5", "1"),
    ]  # fmt: skip
    assert [(row["step"], row["value"]) for row in rows if row["kind"] == "1"] == [("2", "4.5"), ("4", "2.25")]
    assert loss.best == (4.0, 2.25, "best 2.2500")
    assert {row["value"] for row in csv.DictReader(charts.rows_of(memory).splitlines()) if row["kind"] == "0"} == {"2"}
    assert all(panel.title and panel.unit and panel.about for panel in made)


def test_a_run_that_recorded_no_cpu_use_has_no_panel_for_it():
    made = charts.panels(columns(5, cpu_percent=[np.nan] * 5), evals())
    assert [panel.name for panel in made] == ["loss", "rate", "norm", "speed", "memory"]


def test_a_part_of_the_run_with_another_mean_and_axis():
    steps = columns(400, train_loss=np.arange(400) - 250.0)
    view = charts.View(logarithmic=True, smoothing=0, first=0.5, last=0.75)
    loss, rate, *_ = charts.panels(steps, evals(s100=0.5, s240=0.75), view)
    assert (rate.series[0].steps[0], rate.series[0].steps[-1]) == (200, 300)
    each, validation = loss.series  # no mean, and what a logarithmic axis can show
    assert (each.steps.tolist(), each.values.min()) == (list(range(252, 301)), 1)
    assert (validation.values.tolist(), loss.best) == ([0.75], None)  # the best one lies outside
    assert charts.chart(loss, 200).specification["layer"][0]["encoding"]["y"]["scale"] == {"type": "log", "nice": False}
    assert charts.panels(steps, evals(s100=0.5), charts.View(last=0.5))[0].best == (100.0, 0.5, "best 0.5000")
    nothing = charts.panels(steps, evals(s1=1.0), charts.View(first=0.9991, last=0.9992))
    assert {len(series.steps) for panel in nothing for series in panel.series} == {0}


def test_a_stronger_mean_reaches_further():
    reached = [charts.panels(columns(400), evals(), charts.View(smoothing=s))[1 + 1].series[-1] for s in (1, 5)]
    assert [series.label for series in reached] == ["mean of 21 steps", "mean of 101 steps"]


def test_a_run_of_many_steps_stays_small_and_keeps_its_spike():
    steps = columns(100_000)
    steps["train_loss"][33_333] = 50
    loss = charts.panels(steps, evals())[0]
    rows = charts.rows_of(loss).splitlines()
    assert "33334,50,0" in rows
    assert len(rows) <= 2 * charts.POINTS + 1
    assert sum(len(charts.chart(panel, 200)._mime_()[1]) for panel in charts.panels(steps, evals())) < 120_000


@pytest.mark.parametrize("count", [1, 99, 400])
def test_specifications_are_valid(count):
    import altair

    view = charts.View(logarithmic=True, smoothing=5, last=0.9)
    for panel in [*charts.panels(columns(count), evals(s1=2.0)), charts.panels(columns(count), evals(s1=2.0), view)[0]]:
        kind, text = charts.chart(panel, 200)._mime_()
        assert kind.startswith("application/vnd.vegalite")
        made = json.loads(text)
        altair.Chart.from_dict({key: value for key, value in made.items() if key != "datasets"}, validate=True)
        assert made["background"] == "transparent"
        assert made["description"] == panel.about
        assert made["usermeta"]["embedOptions"]["actions"] is False
        assert set(made["datasets"]) >= {panel.name}


# The figure -----------------------------------------------------------------------------------------------------


def write_run(path: Path, steps: int, evals: dict[int, float | None]) -> Run:
    """A run directory with events and nothing else; the third step had no finite loss."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(to_json(from_flat({})), encoding="utf-8")
    (path / "environment.json").write_text(json.dumps({"model": {"name": "tiny <&> llama"}}), encoding="utf-8")
    events = [
        {
            "type": "step",
            "step": i,
            "train_loss": None if i == 3 else 5 / i,
            "learning_rate": 1e-3 / i,
            "grad_norm": 1.0,
            "tokens_per_second": 100.0 + i,
            "peak_memory_bytes": 2_000_000_000,
            "available_memory_bytes": 9_000_000_000,
        }
        for i in range(1, steps + 1)
    ]
    events += [{"type": "eval", "step": step, "val_loss": loss} for step, loss in evals.items()]
    (path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return Run(path)


def test_the_figures_specification_is_valid(tmp_path):
    import altair

    run = write_run(tmp_path / "run", 120, {9: 1.0})
    made = charts._figure(run, charts.panels(columns(120), evals(s9=1.0)))
    altair.Chart.from_dict({key: value for key, value in made.items() if key != "datasets"}, validate=True)


def texts(svg: Path) -> list[str]:
    """All words of a picture."""
    return ["".join(node.itertext()) for node in ElementTree.parse(svg).iter() if node.tag.endswith("}text")]


def test_curves_of_a_trained_run(trained, tmp_path):
    svg, png = charts.save_curves(trained, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {svg.name, png.name} == {"curves.svg", "curves.png"}
    words = texts(svg)
    best = trained.summary()["best_val_loss"]
    for wanted in ("trained", "Loss", "nats/token", "Learning rate", "Speed", "tokens/s", "Memory", "GB"):
        assert wanted in words
    assert f"best {best:.4f}" in words
    content = svg.read_text(encoding="utf-8")
    assert content.count(charts.TRAINING) > 2
    assert content.count("#e4572e") > 2
    assert not re.search(r"<image|<script|@import|href=|url\((?!#)", content)  # whole as it is
    head = png.read_bytes()[:24]
    width, height = struct.unpack(">II", head[16:])
    assert head.startswith(b"\x89PNG")
    assert width > 1500 < 2 * height


def test_axes_write_numbers_as_the_reader_does(tmp_path, monkeypatch):
    monkeypatch.setattr(translations, "find_language", lambda: "pt")
    words = texts(charts.save_curves(write_run(tmp_path / "run", 3_000, {9: 0.25, 3_000: 1.5}), tmp_path)[0])
    assert {"1\u00a0000", "passo do otimizador"} <= set(words)
    assert "melhor: 0,2500" in words
    assert [word for word in words if re.search(r"\d\.\d", word)] == []


def test_smoothed_from_many_steps_on(tmp_path):
    few = charts.save_curves(write_run(tmp_path / "few", charts.SMOOTHED - 1, {9: 1.0}), tmp_path)[0]
    assert not [text for text in texts(few) if "mean" in text]
    many = charts.save_curves(write_run(tmp_path / "many", 400, {9: 1.0, 400: 2.0}), tmp_path)[0]
    assert {"training", "mean of 21 steps", "each step", "validation", "best 1.0000"} <= set(texts(many))


@pytest.mark.parametrize("evals", [{}, {2: None}])
def test_a_run_without_a_usable_validation(evals, tmp_path):
    svg, _ = charts.save_curves(write_run(tmp_path / "run", 3, evals), tmp_path)
    words = texts(svg)
    assert not [word for word in words if "valid" in word or "best" in word]
    assert "tiny <&> llama · rank 8" in [" ".join(word.split()) for word in words]


def test_one_step_is_enough_and_none_draws_nothing(tmp_path):
    assert len(charts.save_curves(write_run(tmp_path / "one", 1, {1: 3.0}), tmp_path)) == 2
    assert charts.save_curves(write_run(tmp_path / "none", 0, {}), tmp_path / "empty") == []
    assert not (tmp_path / "empty").exists()
