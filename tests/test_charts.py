"""Curves: what is drawn is what was measured, as files that need nothing else."""

import json
import re
import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qlora_core import charts
from qlora_core.config import from_flat, to_json
from qlora_core.runs import Run


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 12345])
def test_thin(count):
    points = list(range(count))
    kept = charts.thin(points)
    assert len(kept) <= charts.POINTS + 1
    assert kept == sorted(set(kept))
    if count <= charts.POINTS:
        assert kept == points
    else:
        assert (kept[0], kept[-1]) == (0, count - 1)


def test_smooth_is_the_mean_of_the_neighbours():
    values = [5.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    assert charts.smooth(values, 0) == values
    assert charts.smooth(values, 1) == pytest.approx([3, 10 / 3, 2, 10 / 3, 5, 7])
    assert charts.smooth(values, 9) == pytest.approx([25 / 6] * 6)
    assert charts.smooth([], 3) == []


def test_loss_chart_takes_rows_as_they_are():
    steps = [{"step": i, "train_loss": None if i == 3 else 1.0 / i} for i in range(1, 6)]
    chart = charts.loss_chart(steps, [{"step": 5, "val_loss": 0.5}])
    kind, text = chart._mime_()
    assert kind.startswith("application/vnd.vegalite")
    rows = json.loads(text)["datasets"]["rows"]
    assert [row["kind"] for row in rows] == ["training"] * 5 + ["validation"]
    assert charts.loss_chart(steps, [])._mime_()


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
            "tokens_per_second": 100.0 + i,
            "peak_memory_bytes": 2_000_000_000,
            "available_memory_bytes": 9_000_000_000,
        }
        for i in range(1, steps + 1)
    ]
    events += [{"type": "eval", "step": step, "val_loss": loss} for step, loss in evals.items()]
    (path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return Run(path)


def texts(svg: Path) -> list[str]:
    """All words of a picture."""
    return ["".join(node.itertext()) for node in ElementTree.parse(svg).iter() if node.tag.endswith("}text")]


def test_curves_of_a_trained_run(trained, tmp_path):
    svg, png = charts.save_curves(trained, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {svg.name, png.name} == {"curves.svg", "curves.png"}
    words = texts(svg)
    best = trained.summary()["best_val_loss"]
    for wanted in ("trained", "Loss", "nats a token", "Learning rate", "Speed", "tokens a second", "Memory", "GB"):
        assert wanted in words
    assert f"best {best:.4f}" in words
    content = svg.read_text(encoding="utf-8")
    assert content.count("#4c78a8") > 2
    assert content.count("#e4572e") > 2
    assert not re.search(r"<image|<script|@import|href=|url\((?!#)", content)  # whole as it is
    head = png.read_bytes()[:24]
    width, height = struct.unpack(">II", head[16:])
    assert head.startswith(b"\x89PNG")
    assert width > 1500 < 2 * height


def test_smoothed_from_many_steps_on(tmp_path):
    few = charts.save_curves(write_run(tmp_path / "few", charts.SMOOTHED - 1, {9: 1.0}), tmp_path)[0]
    assert not [text for text in texts(few) if "mean" in text]
    many = charts.save_curves(write_run(tmp_path / "many", 400, {9: 1.0, 400: 2.0}), tmp_path)[0]
    assert {"training, each step", "training, mean of 41 steps", "mean of 41", "best 1.0000"} <= set(texts(many))


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
