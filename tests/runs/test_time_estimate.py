"""How long a run will take: what there is to do, and what each unit of it took before."""

import itertools
import json

import numpy as np
import pytest

from qlora_core.activity import Activity
from qlora_core.reports.time_words import planned_time, time_sentence
from qlora_core.runs import time_estimate
from qlora_core.runs.metrics import MetricsReader
from qlora_core.runs.run import Run
from qlora_core.runs.time_estimate import TimeEstimate, estimate, left, planned_amounts, times_due
from qlora_core.runs.writer import RunLock, RunWriter


@pytest.mark.parametrize(("every", "total", "done"), [*itertools.product((1, 3, 4, 7), (1, 6, 8), (0, 3, 6))])
def test_what_is_due_is_counted_as_the_trainer_does_it(every, total, done):
    """Every so many steps, and after the last one."""
    assert times_due(every, total, done) == sum(
        step % every == 0 or step == total for step in range(done + 1, total + 1)
    )


def test_a_plan_counts_all_that_the_trainer_will_do(plan):
    _, planned = plan(run="club", eval_every=2, save_every=3, samples=2)
    amounts, steps = planned_amounts(planned), planned.total_steps
    assert amounts["training"] == planned.tokens * planned.config.train.epochs
    assert (
        amounts["validation"] == (times_due(2, steps, 0) + 1) * planned.validation_tokens > 0
    )  # once before it trains
    assert amounts["samples"] == (times_due(2, steps, 0) + 1) * 2  # the base answers once as well
    assert amounts["saving"] == times_due(3, steps, 0)
    assert amounts["evaluation"] == 2 * time_estimate.ASKED_QUESTIONS  # there is no fact sheet


def write_earlier(home, planned, name, *, speed=100.0):
    """A run that ended, with everything that it measured."""
    run = home.create(planned)
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.log("start", step=0, total_steps=4, steps_per_epoch=2, val_tokens=50)
        for step in (2, 4):
            writer.log("eval", step=step, val_loss=1.0, seconds=5.0)
            writer.log("checkpoint", step=step, bytes=1, seconds=2.0)
            writer.log("samples", step=step, answers=4, seconds=6.0)
    (run.path / "summary.json").write_text(
        json.dumps({"tokens_per_second": speed, "loading_seconds": 3.0, "evaluation_seconds": 24.0}), encoding="utf-8"
    )
    asked = [{"question": "?", "base": "", "tuned": ""}] * 6
    evaluation = {"adapters": "best", "questions": asked, "recall": {}}
    (run.path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    return run


def test_each_part_takes_as_long_as_it_took_before(plan):
    home, planned = plan(run="club")
    assert estimate(planned) == TimeEstimate({}, frozenset(planned_amounts(planned)) - {"loading"})
    assert planned_time(planned) == f"{planned.total_steps} steps"
    write_earlier(home, plan(run="earlier")[1], "earlier")
    found, amounts = estimate(planned), planned_amounts(planned)
    assert (found.measured_by, found.unknown) == ("earlier", frozenset())
    rates = {"loading": 3.0, "training": 0.01, "validation": 0.1, "samples": 1.5, "saving": 2.0, "evaluation": 2.0}
    assert found.seconds == pytest.approx({part: amounts[part] * rate for part, rate in rates.items()})
    assert found.checks == pytest.approx(sum(found.seconds[part] for part in ("validation", "samples", "evaluation")))


@pytest.mark.parametrize(
    ("estimated", "wanted"),
    [
        (TimeEstimate(), "220 steps, about 1 s"),
        (TimeEstimate({"training": 180, "validation": 60}), "220 steps, about 4 min, 1 min of it checks"),
        (TimeEstimate({"training": 180, "validation": 0.2}), "220 steps, about 3 min"),
        (TimeEstimate({"training": 180}, frozenset({"evaluation"})), "220 steps, at least 3 min"),
        (TimeEstimate({}, frozenset({"training"})), "220 steps"),
    ],
)  # fmt: skip
def test_an_estimate_in_a_sentence(estimated, wanted):
    assert time_sentence(220, estimated) == wanted


@pytest.fixture
def under_way(tmp_path):
    """A run of 8 steps, of which some are done; `look` returns what is left of it."""
    run = Run(tmp_path / "run")
    run.path.mkdir()
    (run.path / "config.json").write_text(json.dumps({"pace": {"samples": 2}}), encoding="utf-8")
    (run.path / "data").mkdir()
    rows = [
        {"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "!"}]} for n in range(9)
    ]
    (run.path / "data" / "train_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (run.path / "data" / "val_data.jsonl").write_text("", encoding="utf-8")
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("running", step=0, total_steps=8)
        writer.log("start", step=0, total_steps=8, steps_per_epoch=4, val_tokens=50)
        yield run, writer


def look(run, **how):
    reader = MetricsReader(run.metrics_file)
    reader.poll()
    return left(run, run.status(), reader.steps.columns(), reader.evals.columns(), reader.events, **how)


def make_steps(writer, *numbers):
    for number in numbers:
        writer.log("step", step=number, tokens=100, seconds=10.0)
        writer.beat(step=number)


def test_what_is_left_counts_validations_samples_saving_and_the_test(under_way):
    run, writer = under_way
    assert not look(run).known  # nobody knows before the first step
    make_steps(writer, 1)
    writer.log("samples", step=0, answers=2, seconds=4.0)
    found = look(run)
    assert (found.known, found.unknown) == (True, {"validation", "saving"})
    assert found.seconds == pytest.approx({"training": 70.0, "samples": 8.0, "evaluation": 24.0})
    make_steps(writer, 2, 3, 4)
    writer.log("eval", step=4, val_loss=1.0, seconds=30.0)
    writer.log("checkpoint", step=4, bytes=1, seconds=1.0)
    after = look(run)
    assert after.unknown == frozenset()
    assert after.seconds == pytest.approx(
        {"training": 40.0, "validation": 30.0, "saving": 1.0, "samples": 8.0, "evaluation": 24.0}
    )
    assert look(run, stopping=True).seconds == pytest.approx({"saving": 1.0, "evaluation": 24.0})


def test_the_validation_before_the_first_step_is_counted_until_it_is_made_or_skipped(under_way):
    run, writer = under_way
    writer.log("samples", step=0, answers=2, seconds=4.0)
    doing = Activity("validation", 40, 10)
    doing.began -= 6.0
    writer.working(doing)  # 18 s for the rest of the first one, and 24 for each of the two that follow
    assert look(run).seconds["validation"] == pytest.approx(66.0, abs=0.5)
    writer.working(None)
    writer.log("before", step=0, val_loss=2.0, seconds=24.0)
    assert look(run).seconds["validation"] == pytest.approx(48.0)


def test_the_validation_before_the_first_step_may_be_skipped(under_way):
    run, writer = under_way
    writer.log("skipped", step=0, stage="validation")
    make_steps(writer, 1, 2, 3, 4)
    writer.log("eval", step=4, val_loss=1.0, seconds=24.0)
    assert look(run).seconds["validation"] == pytest.approx(24.0)


def test_what_is_being_done_counts_with_its_rest(under_way):
    run, writer = under_way
    make_steps(writer, 1, 2, 3, 4)
    writer.log("samples", step=0, answers=2, seconds=4.0)
    doing = Activity("validation", 40, 10)
    doing.began -= 6.0
    writer.working(doing)  # a quarter in 6 s: 18 s for the rest, and 24 for the other validation
    found = look(run)
    assert found.unknown == {"saving"}
    assert found.seconds["validation"] == pytest.approx(42.0, abs=0.5)
    writer.working(None)
    writer.log("eval", step=4, val_loss=1.0, seconds=24.0)
    writer.log("checkpoint", step=4, bytes=1, seconds=1.0)
    writer.log("samples", step=4, answers=2, seconds=4.0)
    make_steps(writer, 5, 6, 7, 8)
    writer.log("eval", step=8, val_loss=1.0, seconds=24.0)
    writer.log("checkpoint", step=8, bytes=1, seconds=1.0)
    writer.log("samples", step=8, answers=2, seconds=4.0)
    assert look(run).seconds == pytest.approx({"evaluation": 24.0})
    doing = Activity("evaluation", 12, 9)
    doing.began -= 30.0
    writer.working(doing)
    assert look(run).seconds == pytest.approx({"evaluation": 10.0}, abs=0.5)


def test_a_part_that_was_skipped_is_not_expected_any_more(under_way):
    run, writer = under_way
    make_steps(writer, *range(1, 9))
    writer.log("samples", step=0, answers=2, seconds=4.0)
    writer.log("eval", step=4, val_loss=1.0, seconds=24.0)
    writer.log("checkpoint", step=8, bytes=1, seconds=1.0)
    writer.log("samples", step=4, answers=2, seconds=4.0)
    assert set(look(run).seconds) == {"validation", "samples", "evaluation"}
    writer.log("skipped", step=8, stage="validation")
    assert set(look(run).seconds) == {"samples", "evaluation"}


def test_a_run_without_a_summary_tells_its_speed_by_its_steps(plan):
    home, planned = plan(run="club")
    run = home.create(plan(run="paused")[1])
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("running", step=0, total_steps=4)
        writer.log("start", step=0, total_steps=4, steps_per_epoch=2)
        make_steps(writer, 1, 2)
    found = estimate(planned)
    assert found.measured_by == "paused"
    assert found.seconds == pytest.approx({"training": planned_amounts(planned)["training"] / 10})
    assert np.isfinite(found.total)


def test_a_complete_run_takes_no_time(plan):
    home, planned = plan(run="club")
    run = home.create(planned)
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("completed", step=planned.total_steps, total_steps=planned.total_steps)
    assert (planned_amounts(planned), estimate(planned).total) == ({}, 0)
    assert planned_time(planned) == "complete: no step is left"
