"""Runs side by side: every number comes from the runs, and what must not be compared is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import create_run, train
from tiny import write_taught

from qlora_core.errors import RunError
from qlora_core.reports.comparison import COLUMNS, NOTHING, compare
from qlora_core.runs.run import Run


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same rows on a base quantised to 4 bits, and on the unquantised one; only for reading."""
    root = tmp_path_factory.mktemp("compared")
    data = write_taught(root / "data")
    made = []
    for name, settings in {"quantised": {}, "plain": {"quantize": "none", "rank": 2, "projections": "qv"}}.items():
        run = create_run(root / "runs", tiny_model, data, run=name, epochs=3, max_answer_tokens=4, **settings)
        train(run)
        made.append(run)
    return made[0], made[1]


def copy(run: Run, directory: Path, **changed: Any) -> Run:
    """A run whose `environment.json` has entries changed, each named `group__key`."""
    copied = Run(shutil.copytree(run.path, directory))
    environment = run.environment()
    for name, value in changed.items():
        group, _, key = name.partition("__")
        environment[group][key.replace("_", " ") if group == "identity" else key] = value
    (directory / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    return copied


def row(lines: list[str], label: str) -> list[str]:
    """The cells of a row of the table for two runs."""
    (line,) = (line for line in lines if line.startswith(f"{label:<20}"))
    half = (COLUMNS - 20) // 2
    return [line[20 : 20 + half].strip(), line[20 + half :].strip()]


def test_results_are_those_of_the_runs(runs):
    for run, found in zip(runs, compare(runs).runs, strict=True):
        numbers = run.summary()
        for name in ("best_val_loss", "best_step", "training_seconds", "tokens_per_second", "steps"):
            assert found[name] == numbers[name]
        assert (found["peak_memory_bytes"], found["peak_process_bytes"]) == (
            numbers["peak_memory_bytes"], numbers["peak_process_bytes"])  # fmt: skip
        evals = [event for event in run.metrics() if event["type"] == "eval"]
        assert found["perplexity"] == pytest.approx(min(event["perplexity"] for event in evals))
        assert found["train_loss"] == [e["train_loss"] for e in run.metrics() if e["type"] == "step"][-1]
        assert found["adapter_bytes"] == (run.best / "adapters.safetensors").stat().st_size
        assert found["recall"] == run.evaluation()["recall"]
        assert (found["state"], found["adapter"], found["total_steps"]) == ("completed", "LoRA", 3)


def test_settings_that_differ_and_no_others(runs):
    found = compare(runs)
    assert found.settings == {"quantize": ["4", "none"], "rank": [8, 2], "projections": ["all", "qv"]}
    assert found.notes == []
    assert row(found.lines(), "projections") == ["all", "qv"]


def test_what_is_known_of_the_base(runs, tmp_path):
    facts = {"model__loaded_bytes": 50_000, "model__parameters": 100_000, "model__trainable": 4096}
    both = [
        copy(runs[0], tmp_path / "quantised", **facts, model__bits=4, model__licence="Apache-2.0"),
        copy(runs[1], tmp_path / "plain", **facts, model__bits=None),
    ]
    lines = compare(both).lines()
    assert row(lines, "Kind") == ["QLoRA, 4 bits", "LoRA, unquantised"]
    assert row(lines, "Base") == ["tiny-llama, Apache-2.0", "tiny-llama"]
    assert row(lines, "Base in memory") == ["0.1 MB", "0.1 MB"]
    assert row(lines, "Bits per weight") == ["4.00", "4.00"]
    assert row(lines, "Trainable") == ["4,096 parameters", "4,096 parameters"]
    assert compare(both).runs[0]["bits_per_weight"] == 4.0


def test_what_is_not_known_is_shown_as_such(runs, tmp_path):
    old = copy(runs[0], tmp_path / "old")
    environment = old.environment()
    environment["model"] = {name: environment["model"][name] for name in ("name", "path", "licence")}
    (old.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    for name in ("summary.json", "evaluation.json", "metrics.jsonl", "status.json"):
        (old.path / name).unlink()
    for directory in (old.best, old.final):
        shutil.rmtree(directory)
    found = compare([old, runs[1]])
    lines = found.lines()
    for label in ("Kind", "Base in memory", "Bits per weight", "Trainable", "Adapter file", "Best validation loss",
                  "Steps", "Perplexity", "Last training loss", "Training time", "Speed, tokens/s",
                  "Peak memory, arrays"):  # fmt: skip
        assert row(lines, label)[0] == NOTHING
    assert row(lines, "Adapter")[0] == f"{NOTHING}, rank 8"
    assert row(lines, "State")[0] == "new"
    assert found.samples == []


def test_a_run_that_goes_on_tells_what_there_is(runs, tmp_path):
    going = Run(shutil.copytree(runs[0].path, tmp_path / "going"))
    (going.path / "summary.json").unlink()
    (found, ended) = compare([going, runs[0]]).runs
    # an interrupted step counts as its neighbours do, which are other ones while it is made
    assert found["training_seconds"] == pytest.approx(ended["training_seconds"], rel=0.25)
    assert found["tokens_per_second"] == pytest.approx(ended["tokens_per_second"], rel=0.25)
    assert found["best_val_loss"] == pytest.approx(ended["best_val_loss"])
    assert 0 < found["peak_memory_bytes"] <= ended["peak_memory_bytes"]
    assert 0 < found["peak_process_bytes"] <= ended["peak_process_bytes"]


def test_a_step_during_which_the_machine_slept_counts_as_its_neighbours(runs, tmp_path):
    slept = Run(shutil.copytree(runs[0].path, tmp_path / "slept"))
    (slept.path / "summary.json").unlink()
    events = slept.metrics()
    longest = max(event["seconds"] for event in events if event["type"] == "step")
    next(event for event in reversed(events) if event["type"] == "step")["seconds"] = 3600.0
    (slept.path / "metrics.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    compared = compare([slept, runs[0]])
    steps = sum(event["type"] == "step" for event in events)
    assert compared.runs[0]["training_seconds"] <= steps * longest
    assert compared.curves[0].training[-1]["seconds"] == pytest.approx(compared.runs[0]["training_seconds"])


def test_the_same_questions_side_by_side(runs):
    found = compare(runs)
    first, second = (run.evaluation()["questions"] for run in runs)
    assert [sample["question"] for sample in found.samples] == [entry["question"] for entry in first]
    assert found.samples[2]["tuned"] == [first[2]["tuned"], second[2]["tuned"]]
    assert found.samples[2]["base"] == [first[2]["base"], second[2]["base"]]
    lines = found.lines(samples=2)
    assert [line for line in lines if line.startswith("  ? ")] == ["  ? red?", "  ? green?"]
    assert len([line for line in lines if line.startswith("    tuned 2: ")]) == 2


def test_questions_that_only_one_was_asked(runs, tmp_path):
    other = Run(shutil.copytree(runs[1].path, tmp_path / "other"))
    evaluation = other.evaluation()
    evaluation["questions"][0]["question"] = "another?"
    (other.path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    found = compare([runs[0], other])
    assert "red?" not in [sample["question"] for sample in found.samples]
    assert found.notes == ["The runs were asked different questions: their recall is not comparable."]


@pytest.mark.parametrize(
    ("field", "note"),
    [
        ("identity__data", "The runs were trained and validated on different data: their losses are not comparable."),
        (
            "identity__tokeniser_and_template",
            "The runs cut text into tokens differently: losses and tokens/s are not comparable.",
        ),
    ],
)
def test_losses_that_must_not_be_compared(runs, tmp_path, field, note):
    found = compare([*runs, copy(runs[0], tmp_path / "other", **{field: "another"})])
    assert found.notes == [note]
    assert f"! {note}" in found.lines()


def test_two_runs_fit_a_hundred_columns_and_all_of_a_name_is_shown(runs, tmp_path):
    name = "a-model-with-a-long-name-of-sixty-four-letters-q4-r8-0123456789"
    both = [Run(shutil.copytree(runs[i].path, tmp_path / f"{name}{i}")) for i in range(2)]
    evaluation = both[0].evaluation()
    evaluation["questions"][0] |= {"tuned": "word\n" * 50, "base": "x" * 300}
    (both[0].path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    lines = compare(both).lines()
    assert max(map(len, lines)) <= COLUMNS
    assert "".join(line[20:60].strip() for line in lines[:3]).startswith(f"1  {name}0")
    assert all("\n" not in line for line in lines)


def test_many_runs(runs):
    lines = compare([*runs] * 3).lines()
    assert lines[0].count("quantised") == lines[0].count("plain") == 3


def test_as_json(runs):
    found = compare(runs).as_dict()
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["runs", "settings", "notes", "samples"]


def test_what_cannot_be_compared(runs, tmp_path):
    with pytest.raises(RunError, match="1 run given; wanted two or more to compare"):
        compare(runs[:1])
    with pytest.raises(RunError, match=r"is not a run \(config\.json is missing\)"):
        compare([runs[0], Run(tmp_path)])
