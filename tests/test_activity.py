"""What is being done is said: in which order, with words for all of it, and nowhere in silence."""

import ast
import dataclasses
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from harness import create_run, train, write_pair
from processes import wait_until

from qlora_core.activity import STAGES, Activity, doing, run_program, watching
from qlora_core.reports import console, live_output
from qlora_core.reports.live_output import TrainingReporter, Waiting
from qlora_core.runs import time_spent as spent
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock, RunWriter
from qlora_core.training import steps


def heard() -> tuple[list[tuple[str, int, int] | None], Callable[[Activity | None], None]]:
    """A list, and a watch that fills it."""
    told: list[tuple[str, int, int] | None] = []
    return told, lambda now: told.append(now and (now.stage, now.done, now.total))


# Saying and hearing ---------------------------------------------------------------------------------------------


def test_who_watches_hears_what_is_done_and_how_far_it_is() -> None:
    told, watch = heard()
    with watching(watch), doing("samples", 3) as tick:
        tick(1)
        with doing("loading"):
            pass
        tick(3)
    assert told == [("samples", 0, 3), ("samples", 1, 3), ("loading", 0, 0), ("samples", 1, 3), ("samples", 3, 3), None]


def test_only_the_inner_watch_is_told() -> None:
    outer, watch_outer = heard()
    inner, watch_inner = heard()
    with watching(watch_outer):
        with watching(watch_inner), doing("saving"):
            pass
        with doing("loading"):
            pass
    assert inner == [("saving", 0, 0), None]
    assert outer == [("loading", 0, 0), None]


def test_another_thread_is_not_heard() -> None:
    told, watch = heard()

    def work() -> None:
        with doing("saving"):
            pass

    with watching(watch):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert told == []


def test_what_ends_with_an_error_is_over() -> None:
    told, watch = heard()
    with pytest.raises(ValueError, match="no"), watching(watch), doing("loading"):
        raise ValueError("no")
    assert told == [("loading", 0, 0), None]


def test_a_listener_that_interrupts_leaves_nothing_behind() -> None:
    def interrupt(now: Activity | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watching(interrupt), doing("loading"):
        pass
    told, watch = heard()
    with watching(watch), doing("saving"):
        pass
    assert told == [("saving", 0, 0), None]


def test_every_stage_has_words_and_is_done_somewhere() -> None:
    said = set()
    for path in (ROOT / "src" / "qlora_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "doing":
                said |= {each.value for each in ast.walk(node.args[0]) if isinstance(each, ast.Constant)}
    assert said - {"cpu"} == STAGES.keys() - {live_output.STEP}


# In a run -------------------------------------------------------------------------------------------------------


def stages(run: Run, *listeners: Any) -> list[str]:
    """Trains, and gives the stages in order, between them the types of the other events; repeated ones once."""
    told: list[str] = []

    def listen(event: dict[str, Any]) -> None:
        name = event.get("stage") if event["type"] == "working" else event["type"]
        if name and told[-1:] != [name]:
            told.append(name)

    train(run, listen, *listeners)
    return told


def test_a_training_says_what_it_does_in_order(tmp_path: Path, tiny_model: Path) -> None:
    run = create_run(
        tmp_path, tiny_model, write_pair(tmp_path / "data"), run="run", num_layers=1, quantize="8", epochs=2
    )
    told = [name for name in stages(run) if name not in ("hashing", "warning")]
    assert told[: told.index("start")] == ["checking", "encoding", "quantising", "keeping", "dequantising", "trying"]
    begun = told[told.index("start") + 1 :]
    assert begun[: begun.index("step") + 1] == [
        "checking", "leaving_trunk", "lower_layers", "trunk", "validation", "before", "memory", "first_step", "step",
    ]  # fmt: skip
    assert begun[begun.index("epoch") :][:6] == ["epoch", "validation", "eval", "saving", "checkpoint", "loading"]
    assert begun.count("first_step") == 1
    assert begun[-4:] == ["evaluating", "loading", "evaluation", "end"]
    assert [name for name in stages(create_run(tmp_path, tiny_model, tmp_path / "data", run="next", quantize="8"))
            if name in ("loading", "quantising", "keeping")] == ["loading"]  # fmt: skip


def test_the_status_holds_it_while_it_lasts(tmp_path: Path, tiny_model: Path) -> None:
    run = create_run(tmp_path, tiny_model, write_pair(tmp_path / "data"), run="run", batch_size=1)
    seen = []

    def look(event: dict[str, Any]) -> None:
        if event["type"] == "working":
            work = run.status().get("work")
            seen.append((event["stage"], work and {name: work[name] for name in ("stage", "done", "total")}))

    train(run, look)
    rows = len(run.validation_rows())  # a validation counts rows
    assert ("validation", {"stage": "validation", "done": 0, "total": rows}) in seen
    assert {str(work) for stage, work in seen if not stage} == {"None"}
    assert "work" not in run.status()


def test_what_a_trainer_died_over_is_not_what_the_next_one_does(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("running", step=3)
        writer.working(Activity("loading", 4, 2))
    work = run.status()["work"]
    assert (work["stage"], work["done"], work["total"]) == ("loading", 2, 4)
    assert work["seconds"] >= 0  # for so long already
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("preparing")
    assert "work" not in run.status()


def test_the_steps_are_told_apart_from_the_first_on_a_gpu(tmp_path: Path, tiny_model: Path, monkeypatch: Any) -> None:
    plain = steps._first_step

    def on_a_gpu(session: Any) -> Any:
        return plain(SimpleNamespace(kernels=dataclasses.replace(session.kernels, device="cuda")))

    monkeypatch.setattr(steps, "_first_step", on_a_gpu)
    run = create_run(tmp_path, tiny_model, write_pair(tmp_path / "data"), run="run", epochs=1)
    told = stages(run)
    assert told[told.index("compiling") + 1] == "step"
    assert "first_step" not in told


# In a terminal, and in a log ------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is done takes long."""
    monkeypatch.setattr(live_output, "PATIENCE", 0)


def until(found: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    wait_until(found)


@pytest.mark.usefixtures("impatient")
def test_a_log_has_a_line_for_each_stage_and_more_when_it_would_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    waiting = Waiting(stream)
    waiting(Activity("loading", 30, 3))
    until(lambda: bool(stream.getvalue()))
    waiting(Activity("loading", 30, 4))
    waiting(Activity("trying"))
    until(lambda: "Trying" in stream.getvalue())
    assert stream.getvalue() == "  Loading the base model, matrix by matrix … 3 / 30\n" \
                                "  Trying how this model computes fastest …\n"  # fmt: skip
    monkeypatch.setattr(live_output, "SILENCE", 0)
    until(lambda: stream.getvalue().count("\n") > 3)
    assert re.fullmatch(r"  Trying how this model computes fastest … \d+ s", stream.getvalue().splitlines()[-1])
    waiting(None)
    until(lambda: waiting._thread is None)
    lines = stream.getvalue()
    waiting(Activity("samples", 4, 0))
    until(lambda: stream.getvalue() != lines)
    waiting(None)


@pytest.mark.usefixtures("impatient")
def test_a_long_step_is_not_silent_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    reporter = TrainingReporter(stream)
    begin = {"step": 0, "steps_per_epoch": 20, "total_steps": 20, "epochs": 1, "layout": "packed", "device": "none"}
    reporter({"type": "start", **begin})
    reporter({"type": "memory", "step": 0, "label": "Epoch 1 start", "available": 1})
    reporter({"type": "working", "stage": "first_step", "done": 0, "total": 0})
    until(lambda: "Making the first step" in stream.getvalue())
    reporter({"type": "working", "stage": "", "done": 0, "total": 0})
    reporter({"type": "step", "step": 1, "train_loss": 1.0, "tokens": 100, "seconds": 1.0})
    assert "Training, step by step" not in stream.getvalue()  # not yet
    monkeypatch.setattr(live_output, "SILENCE", 0)
    until(lambda: "Training, step by step … 1 / 20" in stream.getvalue())
    reporter({"type": "end"})


@pytest.mark.usefixtures("impatient")
def test_a_terminal_has_one_line_that_goes_away() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    waiting = Waiting(stream)
    waiting(Activity("evaluation", 80, 12))
    until(lambda: "Answering the test questions … 12 / 80" in stream.getvalue())
    waiting(None)
    assert "\n" not in stream.getvalue()
    assert not stream.getvalue().rpartition("\r")[2].strip()
    until(lambda: waiting._thread is None)


# Where the time goes --------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass."""
    now = [100.0]
    monkeypatch.setattr(spent, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_parts_add_up_over_the_processes_of_a_run(clock: Callable[[float], None]) -> None:
    kept: dict[str, float] = {}
    for seconds in (1.0, 10.0):
        time_spent = spent.TimeSpent(kept, began=spent.time.monotonic())
        clock(2 * seconds)
        time_spent.loaded()
        for part in ("validation", "samples", "validation"):
            with time_spent.on(part):
                clock(seconds)
        clock(4 * seconds)
        time_spent.until_now()
        clock(0.5)
    found = time_spent.as_summary()
    assert found == {
        "loading_seconds": 22.0, "validation_seconds": 22.0, "samples_seconds": 11.0, "saving_seconds": 0.0,
        "evaluation_seconds": 0.0, "total_seconds": 9 * 11 + 0.5,
    }  # fmt: skip
    line = console.time_spent({**found, "training_seconds": 44.0})
    assert line == "1 min 40 s: loading 22 s, training 44 s, validation 22 s, sample answers 11 s"
    assert console.time_spent({**dict.fromkeys(found, 0.0), "training_seconds": 44.0}) == "training 44 s"


def test_a_run_that_was_paused_counts_all_of_its_time(tmp_path: Path, tiny_model: Path) -> None:
    run = create_run(tmp_path, tiny_model, write_pair(tmp_path / "data"), run="run")
    train(run, lambda event: run.request("pause") if event["type"] == "step" and event["step"] == 2 else None)
    before = json.loads((run.path / "checkpoints" / "000002" / "state.json").read_text("utf-8"))["extra"]
    train(run)
    after = run.summary()
    assert before["seconds"]["loading"] < after["loading_seconds"]
    assert before["seconds"]["total"] < after["total_seconds"]
    assert all(after[f"{part}_seconds"] > 0 for part in spent.PARTS)
    assert sum(after[f"{part}_seconds"] for part in spent.PARTS) <= after["total_seconds"]


# Between programs ------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from qlora_core.activity import doing, noting, run_program

def work():
    with doing("rounding", 8) as tick:
        for done in range(9):
            tick(done)
            time.sleep(0.1)
    print("ready")

if sys.argv[1] == "work":
    with noting():
        work()
else:
    with noting(), doing("verifying"):
        run_program([sys.executable, sys.argv[0], "work"])
"""


@pytest.mark.parametrize("depth", ["work", "through another"])
def test_what_another_program_does_is_told_as_if_it_were_done_here(tmp_path: Path, depth: str) -> None:
    told: list[Activity] = []
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    watch = watching(lambda now: told.append(dataclasses.replace(now)) if now else None)
    with watch, doing("exporting"):
        done = run_program([sys.executable, str(program), depth], stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "ready\n")
    assert {told[0].stage, told[-1].stage} == {"exporting"}
    theirs = [activity for activity in told if activity.stage == "rounding"]
    assert {activity.total for activity in theirs} == {8}
    assert any(0 < (activity.left or 0) < 5 for activity in theirs)


def test_a_program_that_takes_too_long_is_ended() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_program([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.1)


def test_time_left_is_known_once_something_is_done() -> None:
    now = time.monotonic()
    assert Activity("rounding", 10, 0, now - 5).left is None
    assert Activity("reading", 0, 7, now - 5).left is None
    assert Activity("rounding", 10, 4, now - 8).left == pytest.approx(12, abs=0.5)
