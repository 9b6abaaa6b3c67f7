"""What quantising saved and cost, in words: from runs whose numbers are set, and losses counted by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import create_run, train, write_pair

from qlora_core.reports.comparison import COLUMNS
from qlora_core.reports.quantisation import Arm, ArmComparison, compare_arms
from qlora_core.runs.run import Run

MB = 1_000_000
ROWS = 40
TOKENS = np.full(ROWS, 10)
NOISE = np.random.default_rng(2).normal(0, 0.5, ROWS)
PLAIN = 20 + np.random.default_rng(1).normal(0, 5, ROWS)


@pytest.fixture(scope="module")
def short(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a step, whose copies get other numbers; only for reading."""
    root = tmp_path_factory.mktemp("short")
    run = create_run(root / "runs", tiny_model, write_pair(root / "data"), run="club", max_steps=1, samples=0)
    train(run)
    return run


@pytest.fixture
def arm(short: Run, tmp_path: Path):
    """An arm of copies of the run, with its numbers changed."""

    def make(bits: int | None, losses: np.ndarray, *, name: str = "", loaded: int = 100, peak: int = 500,
             linear: str = "kept", right: str = "", seed: int = 42, **changes: Any) -> Arm:  # fmt: skip
        run = Run(shutil.copytree(short.path, tmp_path / (name or f"club-{bits}")))
        environment = run.environment()
        environment["model"] |= {"bits": bits, "loaded_bytes": loaded * MB}
        environment["kernels"] |= {"linear": linear, **changes}
        _write(run, "environment", environment)
        _write(run, "summary", {**run.summary(), "peak_memory_bytes": peak * MB})
        asked = [
            {"question": f"{i}?", "expected": ["x"], "base": "", "tuned": "", "base_right": False,
             "tuned_right": letter == "+", "phrasing": "trained"} for i, letter in enumerate(right)
        ]  # fmt: skip
        _write(run, "evaluation", {"adapters": "best", "questions": asked, "recall": {}})
        return Arm(bits, [run], np.atleast_2d(losses), TOKENS[: np.atleast_2d(losses).shape[1]])

    return make


def _write(run: Run, name: str, value: dict[str, Any]) -> None:
    (run.path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def told(found: ArmComparison) -> str:
    """The conclusion, as the last lines of what a terminal shows have it."""
    lines = found.lines()
    assert max(map(len, lines)) <= COLUMNS
    assert " ".join(" ".join(lines).split()).endswith(found.conclusion)
    return found.conclusion


def test_what_was_saved_and_cost_in_a_sentence(arm):
    found = compare_arms([arm(4, PLAIN + 1 + NOISE, loaded=20, peak=300), arm(None, PLAIN)])
    (difference,) = found.differences
    value, low, high = difference.loss.value, difference.loss.low, difference.loss.high
    assert value == pytest.approx(0.1 + NOISE.mean() / 10)  # 1 nat and the noise a row, over 10 tokens
    assert low < value < high
    assert told(found) == (
        "Against LoRA (unquantised), QLoRA (4 bits) saved 80 MB of weights (80%) and 200 MB at the peak of training "
        f"(40%), and cost {value:.4f} nats a token (95%: {low:.4f} to {high:.4f})."
    )


def test_where_no_difference_was_seen_that_is_said(arm):
    found = compare_arms([arm(None, PLAIN), arm(8, PLAIN + NOISE - NOISE.mean(), loaded=60, peak=498)])
    assert told(found).startswith(
        "Against LoRA (unquantised), QLoRA (8 bits) saved 40 MB of weights (40%) and took the same at the peak of "
        "training (498 MB), and no difference in loss was seen ("
    )
    assert not found.differences[0].loss.is_clear


def test_a_lower_loss_is_no_cost(arm):
    assert "and its loss was lower (-0.1" in told(compare_arms([arm(None, PLAIN), arm(4, PLAIN - 1.2 + 0.1 * NOISE)]))


def test_a_higher_peak_is_told_with_its_reason_once(arm):
    """As on a CPU: packed weights and their dequantised copy."""
    found = compare_arms([
        arm(4, PLAIN, loaded=20, peak=615), arm(8, PLAIN, loaded=40, peak=630), arm(None, PLAIN),
    ])  # fmt: skip
    assert [each.run for each in found.differences] == ["club-8", "club-4"]  # the most bits first
    reason = "since a dequantised copy of the weights is kept beside the packed ones"
    first, second = told(found).split("; ")
    assert "saved 60 MB of weights (60%), but cost 130 MB of memory at the peak of training here" in first
    assert f"(630 MB against 500 MB), {reason}" in first
    assert "QLoRA (4 bits) saved 80 MB of weights (80%), but cost 115 MB of memory" in second
    assert found.conclusion.count(reason) == 1
    assert [each.peak_saved for each in found.differences] == [-130 * MB, -115 * MB]


def test_a_reason_that_is_not_known_is_not_made_up(arm):
    found = compare_arms([arm(None, PLAIN), arm(4, PLAIN, peak=700, linear="quantised")])
    assert "(700 MB against 500 MB), and no difference" in told(found)


def test_losses_of_several_seeds_are_averaged_row_by_row(arm):
    """Seeds whose means differ by far more than the arms do: row by row, the arms still differ clearly."""
    seeds = np.array([[0.0], [3.0], [-3.0]])
    plain, packed = arm(None, PLAIN + seeds), arm(4, PLAIN + 1 + seeds)
    for each in (plain, packed):
        each.runs.extend([each.runs[0]] * 2)
    found = compare_arms([plain, packed])
    assert found.differences[0].loss.value == pytest.approx(0.1)
    assert found.differences[0].loss.is_clear
    assert packed.seed_means == pytest.approx([(PLAIN.mean() + 1 + each) / 10 for each in (0, 3, -3)])
    rows = {row[0]: row[1:] for row in found._loss_rows()}
    assert rows["Their standard deviation"] == ["0.3000", "0.3000"]
    assert not [note for note in found.shown.notes if "One seed" in note]
    assert found.as_dict()["arms"][1]["seed_means"] == packed.seed_means


def test_recall_is_compared_question_by_question(arm):
    found = compare_arms([arm(None, PLAIN, right="++++++++--"), arm(4, PLAIN, right="+-------+-")])
    recall = found.differences[0].recall["trained"]
    assert (recall["gained"], recall["lost"], recall["chance"]) == (1, 7, 18 / 256)
    assert recall["difference"].value == pytest.approx(-0.6)
    other = compare_arms([arm(None, PLAIN, right="++", name="a"), arm(4, PLAIN, right="+", name="b")])
    assert other.differences[0].recall == {}


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"blas": "another"}, "did not compute in the same way (BLAS: "),
        ({"linear": "dequantised"}, "did not compute in the same way (weights: kept or dequantised)"),
    ],
)
def test_arms_that_computed_otherwise_are_not_compared_in_speed_and_memory(arm, changes, note):
    (found,) = [each for each in compare_arms([arm(None, PLAIN), arm(4, PLAIN, **changes)]).shown.notes if note in each]
    assert found.endswith("their speed and memory are not comparable.")


def test_arms_with_other_settings_or_steps_are_told(arm):
    plain, packed = arm(None, PLAIN), arm(4, PLAIN)
    run = packed.runs[0]
    environment = run.environment()
    environment["identity"] |= {"rank": 3, "data": "others"}
    _write(run, "environment", environment)
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        step = next(event for event in run.metrics() if event["type"] == "step")
        file.write(json.dumps({**step, "step": 2}) + "\n")
    notes = compare_arms([plain, packed]).shown.notes
    assert "The runs also differ in rank: their losses are not comparable." in notes
    assert any("trained and validated on different data" in note for note in notes)
    assert "The runs made different numbers of steps (club-None 1, club-4 2): their losses are not comparable." in notes


def test_a_copy_of_a_quantised_base_is_told(arm):
    plain, more, packed = arm(None, PLAIN), arm(8, PLAIN), arm(4, PLAIN)
    copies = [Arm(each.bits, each.runs, each.losses, each.tokens, 4) for each in (plain, more)]
    (note,) = [note for note in compare_arms([packed, *copies]).shown.notes if "in its files" in note]
    assert "(4 bits)" in note
    assert "a dequantised copy of the same weights, the arm of 8 bits on that copy rounded again." in note


def test_losses_of_other_rows_and_of_few_rows_are_no_difference(arm):
    other = compare_arms([arm(None, PLAIN[:30], name="a"), arm(4, PLAIN, name="b")])
    assert other.differences[0].loss is None
    assert other.conclusion.endswith("and its loss is not comparable.")
    few = compare_arms([arm(None, PLAIN[:5], name="c"), arm(4, PLAIN[:5] + 1, name="d")])
    assert "and 5 validation rows are too few to tell a difference in loss (+0.1000 nats a token)." in few.conclusion
    assert "5 validation rows are too few to call a difference one; 6 are wanted at least." in few.shown.notes


def test_everything_is_json(arm):
    found = compare_arms([arm(None, PLAIN, right="+-"), arm(4, PLAIN + 1, right="++")]).as_dict()
    assert json.loads(json.dumps(found)) == found
    assert {"runs", "settings", "notes", "samples", "arms", "differences", "conclusion"} == set(found)
