"""A run's metrics, read while they are written: whole lines once each, as columns, and what a resume takes back."""

import json

import numpy as np
import pytest

from qlora_core.runs.metrics import RECENT, GrowingTable, MetricsReader
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run


@pytest.fixture
def run(tmp_path):
    """A directory to write metrics into."""
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


def append(run: Run, content: str | bytes) -> None:
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def line(type: str, step: int, **fields) -> str:
    fields = {"message": "slow", **fields} if type == "warning" else fields
    return json.dumps({"type": type, "step": step, **fields}) + "\n"


def steps(reader: MetricsReader) -> list[int]:
    return reader.steps.columns()["step"].tolist()


def test_no_file_yet(run):
    reader = MetricsReader(run.metrics_file)
    assert not reader.poll()
    assert (len(reader.steps), len(reader.evals), reader.events) == (0, 0, [])
    assert run.metrics() == []


def test_each_look_brings_what_is_new(run):
    reader = MetricsReader(run.metrics_file)
    append(run, line("start", 0) + line("step", 1))
    assert reader.poll()
    assert not reader.poll()
    append(run, line("step", 2))
    assert reader.poll()
    assert (steps(reader), reader.generation) == ([1, 2], 0)


def test_a_half_written_line_waits_until_it_is_complete(run):
    reader, whole = MetricsReader(run.metrics_file), line("step", 2, note="ção").encode()
    append(run, line("step", 1))
    for i in range(len(whole)):  # also in the middle of a letter
        append(run, whole[i : i + 1])
        reader.poll()
        assert steps(reader) == ([1, 2] if i == len(whole) - 1 else [1])


def test_what_was_read_is_not_read_again(run):
    reader = MetricsReader(run.metrics_file)
    append(run, line("step", 1))
    reader.poll()
    size = (run.path / "metrics.jsonl").stat().st_size
    (run.path / "metrics.jsonl").write_bytes(b"\0" * size)
    append(run, line("step", 2))
    reader.poll()
    assert steps(reader) == [1, 2]


@pytest.mark.parametrize("torn", ['{"type": "step", "st', "\0\0\0", "17", "null", "[1]", b'{"\xff": 1}'])
def test_a_line_torn_by_a_crash_is_passed_over(run, torn):
    append(run, line("step", 1))
    append(run, torn)
    with TrainingTracker(run.path.parent).record(run) as writer:  # the next trainer ends the torn line
        writer.log("step", step=2)
    assert [event["step"] for event in run.metrics()] == [1, 2]


def test_going_on_from_an_older_step_takes_back_what_came_after_it(run):
    reader = MetricsReader(run.metrics_file)
    append(run, line("start", 0) + "".join(line("step", i) for i in range(1, 6)) + line("eval", 4) + line("eval", 2))
    append(run, line("warning", 5))
    reader.poll()
    append(run, line("start", 3) + line("step", 4))
    reader.poll()
    assert steps(reader) == [1, 2, 3, 4]
    assert reader.evals.columns()["step"].tolist() == [2]
    assert [(event["type"], event["step"]) for event in reader.events] == [("start", 0), ("warning", 5), ("start", 3)]
    assert [event["type"] for event in reader.recent] == ["start", "eval", "eval", "warning", "start"]  # as it was
    assert reader.generation == 1
    assert [event["step"] for event in run.metrics() if event["type"] == "step"] == steps(reader)
    at_once = MetricsReader(run.metrics_file)
    at_once.poll()
    assert (steps(at_once), at_once.events) == (steps(reader), reader.events)


def test_going_on_where_it_was_takes_nothing_back(run):
    append(run, line("start", 0) + line("step", 1) + line("end", 1) + line("start", 1) + line("step", 2))
    assert [(event["type"], event["step"]) for event in run.metrics()] == [
        ("start", 0), ("step", 1), ("end", 1), ("start", 1), ("step", 2),
    ]  # fmt: skip


def test_events_are_kept_and_told_or_only_told(run):
    heard = []
    with TrainingTracker(run.path.parent).record(run) as writer:
        writer.listeners.append(heard.append)
        writer.log("step", step=1, note="ção")
        writer.tell("evaluating")
    (kept,) = run.metrics()
    assert {"type": "step", "step": 1, "note": "ção"}.items() <= kept.items()
    assert heard == [kept, {"type": "evaluating"}]


def test_what_is_not_finite_or_not_recorded_is_nan(run):
    reader = MetricsReader(run.metrics_file)
    append(run, line("step", 1, train_loss=None, grad_norm=2.5) + line("eval", 1, val_loss=None))
    reader.poll()
    columns = reader.steps.columns()
    assert columns["grad_norm"].tolist() == [2.5]
    assert np.isnan([columns["train_loss"][0], columns["tokens"][0], reader.evals.columns()["val_loss"][0]]).all()


def test_columns_that_were_given_away_do_not_change(run):
    reader = MetricsReader(run.metrics_file)
    append(run, "".join(line("step", i) for i in range(1, 6)))
    reader.poll()
    before = reader.steps.columns()
    append(run, line("start", 2) + line("step", 3, tokens=7))
    reader.poll()
    assert before["step"].tolist() == [1, 2, 3, 4, 5]
    assert np.isnan(before["tokens"]).all()
    with pytest.raises(ValueError, match="read-only"):
        before["step"][0] = 9
    assert steps(reader) == [1, 2, 3]


def test_a_table_grows_seldom():
    table, places = GrowingTable(("step",)), set()
    for i in range(5000):
        table.extend([{"step": i}])
        places.add(table.columns()["step"].__array_interface__["data"][0])
    assert len(places) < 10
    assert table.columns()["step"].tolist() == list(range(5000))


def test_the_log_keeps_the_last_events_and_no_steps(run):
    reader = MetricsReader(run.metrics_file)
    append(run, "".join(line("warning", i) + line("step", i) for i in range(RECENT + 5)))
    reader.poll()
    assert [event["step"] for event in reader.recent] == list(range(5, RECENT + 5))


def test_another_run_of_the_same_name_is_read_from_its_beginning(run):
    reader = MetricsReader(run.metrics_file)
    append(run, line("step", 1) + line("step", 2))
    reader.poll()
    run.metrics_file.write_text(line("step", 1), encoding="utf-8")
    assert reader.poll()
    assert (steps(reader), reader.generation) == ([1], 1)
