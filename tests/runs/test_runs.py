"""The run directory: who may write it, what may change when it is resumed, and what readers see meanwhile."""

import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys

import pytest
from tiny import CHATML, write_model, write_rows

from qlora_core.config import RunConfig, to_flat
from qlora_core.errors import BusyError, ConfigError, RunError
from qlora_core.files import locks
from qlora_core.runs import plan as plans
from qlora_core.runs import writer as writers
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.runs.plan import TrainingTracker, resolve_config
from qlora_core.runs.run import Run, iterate_states
from qlora_core.runs.writer import RunLock, RunWriter

ENDED = ("paused", "stopped", "completed", "failed")


@pytest.fixture
def run(tmp_path):
    """A directory to write status and metrics into; it has no configuration."""
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


@pytest.fixture
def created(plan):
    """Create a planned run of the tiny model."""

    def make(**settings):
        tracker, planned = plan(**settings)
        return tracker.create(planned)

    return make


def open_run(run: Run) -> RunWriter:
    return TrainingTracker(run.path.parent).record(run)


# Planning -------------------------------------------------------------------------------------------------------


def test_planning_writes_nothing(plan, tmp_path):
    plan()
    assert not (tmp_path / "runs").exists()


def test_a_created_run_is_whole(plan, tmp_path):
    tracker, planned = plan()
    assert not planned.run.exists
    run = tracker.create(planned)
    assert run.exists
    assert {path.name for path in run.path.iterdir()} == {"config.json", "environment.json", "data"}
    assert run.train_rows() == list(planned.data.train)
    assert run.validation_rows() == list(planned.data.validation)
    assert run.environment()["identity"] == json.loads(json.dumps(planned.identity))
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700  # private text may lie in it
    assert (run.config().place.run, run.config().place.fresh) == (run.name, False)
    same = {name: value for name, value in to_flat(planned.config).items() if name not in ("run", "fresh")}
    assert same.items() <= to_flat(run.config()).items()


def test_a_run_whose_creation_broke_off_does_not_exist_and_is_made_again(plan, monkeypatch):
    tracker, planned = plan()
    with monkeypatch.context() as patch:
        patch.setattr(plans, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            tracker.create(planned)
    assert not planned.run.exists
    assert tracker.runs() == []
    assert tracker.create(planned).exists


def test_the_default_name_says_model_bits_and_rank(plan):
    assert plan()[1].run.name.startswith("tiny-llama-q4-r8-")
    assert plan(quantize="none", rank=2)[1].run.name.startswith("tiny-llama-full-r2-")


@pytest.mark.parametrize(
    "change",
    [{"epochs": 9}, {"max_steps": 3}, {"patience": 2}, {"eval_every": 1}, {"save_every": 1}, {"max_answer_tokens": 3}],
    ids=lambda change: next(iter(change)),
)
def test_how_long_and_how_often_leave_the_name_alone(plan, change):
    assert plan(**change)[1].run.name == plan()[1].run.name


def test_the_name_does_not_depend_on_where_things_lie(plan, tiny_model, tiny_rows, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "elsewhere" / tiny_model.name)
    rows = shutil.copy(tiny_rows, tmp_path / "other-name.jsonl")
    assert plan(model=str(model), data=[str(rows)])[1].run.name == plan()[1].run.name


@pytest.mark.parametrize(
    "change",
    [{"rank": 4}, {"alpha": 8.0}, {"dropout": 0.1}, {"learning_rate": 1e-4}, {"batch_size": 2}, {"seed": 1},
     {"quantize": "8"}, {"max_seq_length": 64}, {"val_fraction": 0.4}, {"num_layers": 1}, {"optimizer": "adam"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_decides_the_result_makes_another_run(plan, change):
    assert plan(**change)[1].run.name != plan()[1].run.name


def other_data(tmp_path, _):
    return {"data": [str(write_rows(tmp_path / "more.jsonl", 13))]}


def other_model(tmp_path, tiny_model):
    return {"model": str(write_model(tmp_path / tiny_model.name, seed=1))}


def other_template(tmp_path, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / tiny_model.name)
    (model / "chat_template.jinja").write_text(" " + CHATML, encoding="utf-8")
    return {"model": str(model)}


def other_rank(*_):
    return {"rank": 4}


differing = pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_data, "data: the run has"),
        (other_model, "model: the run has"),
        (other_template, "tokeniser and template: the run has"),
        (other_rank, "rank: the run has 8, asked for 4"),
    ],
)


@differing
def test_another_content_makes_another_run(plan, tmp_path, tiny_model, change, named):
    assert plan(**change(tmp_path, tiny_model))[1].run.name != plan()[1].run.name


@differing
def test_going_on_with_something_else_is_refused_and_named(plan, created, tmp_path, tiny_model, change, named):
    before = (created(run="club").path / "config.json").read_bytes()
    with pytest.raises(RunError) as error:
        plan(run="club", **change(tmp_path, tiny_model))
    assert str(error.value).startswith("club: cannot go on with something else. ")
    assert named in str(error.value)
    assert "--fresh" in str(error.value)
    assert (tmp_path / "runs" / "club" / "config.json").read_bytes() == before


def test_all_differences_are_named_at_once(plan, created):
    created(run="club")
    with pytest.raises(RunError, match=r"alpha: the run has 16\.0, asked for 2\.0; seed: the run has 42, asked for 7"):
        plan(run="club", alpha=2.0, seed=7)


def test_how_long_and_how_often_may_change_on_resume(plan, created):
    created(run="club", epochs=2, save_every=5)
    tracker, planned = plan(run="club", epochs=9, save_every=7)
    config = tracker.create(planned).config()
    assert (config.train.epochs, config.pace.save_every, planned.total_steps) == (9, 7, 27)
    assert planned.run.train_rows() == list(planned.data.train)


def test_fresh_makes_a_run_beside_the_old_ones(plan, created):
    first = created()
    names = [created(fresh=True).name for _ in range(2)]
    assert names == [f"{first.name}-2", f"{first.name}-3"]


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "-x", "a b", "x" * 65, "é", "a\n", "/x", "x\0"])
def test_a_name_that_is_no_name_is_refused(plan, tmp_path, name):
    with pytest.raises(RunError, match="cannot be a run's name"):
        plan(run=name)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["x", "Club.2-final_v3", "x" * 64, "7"])
def test_a_name_is_letters_digits_dots_and_dashes(plan, name):
    assert plan(run=name)[1].run.name == name


def test_without_a_row_to_train_there_is_no_plan(plan, tmp_path):
    path = tmp_path / "long.jsonl"
    turns = [{"role": "user", "content": "x" * 99}, {"role": "assistant", "content": "y"}]
    path.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    with pytest.raises(RunError, match=rf"no row can be trained\. {path}:1: nothing to train: the prompt fills"):
        plan(data=[str(path)], max_seq_length=16)


@pytest.mark.parametrize(
    ("state", "total", "epochs", "done"),
    [("completed", 6, 2, True), ("completed", 6, 3, False), ("completed", 9, 2, True), ("paused", 6, 2, False)],
)
def test_a_run_is_done_when_it_was_completed_with_as_many_steps(plan, created, state, total, epochs, done):
    with open_run(created(run="club")) as writer:  # 11 rows to train by 4: 3 steps an epoch
        writer.set_status(state, step=total, total_steps=total)
    assert plan(run="club", epochs=epochs)[1].done == done


# Resuming by name -------------------------------------------------------------------------------------------------


def test_a_runs_name_brings_its_settings_and_its_own_data(created, tiny_rows, tmp_path):
    run = created(run="club", rank=2, learning_rate=0.5)
    tiny_rows.unlink()
    config = resolve_config({"run": "club", "runs_dir": str(tmp_path / "runs"), "epochs": 9})
    assert (config.lora.rank, config.train.learning_rate, config.train.epochs) == (2, 0.5, 9)
    assert config.data.data == (str(run.path / "data"),)


def test_a_run_is_resumed_where_it_lies_now(created, tmp_path, monkeypatch):
    """Made in one directory, moved to the default one of another, and resumed from there."""
    run = created(run="club", rank=2)
    (tmp_path / "elsewhere").mkdir()
    run.path.parent.rename(tmp_path / "elsewhere" / "checkpoints_qlora")
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = resolve_config({"run": "club"})
    assert (config.lora.rank, config.place.runs_dir) == (2, "checkpoints_qlora")
    assert config.data.data == ("checkpoints_qlora/club/data",)


def test_a_relative_model_directory_is_found_from_elsewhere(plan, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    tracker, planned = plan(run="club", model=tiny_model.name)
    tracker.create(planned)
    monkeypatch.chdir(tmp_path)
    assert resolve_config({"run": "club", "runs_dir": "runs"}).base.model == str(tiny_model)


def test_a_name_of_no_run_and_fresh_change_nothing(created, tmp_path):
    created(run="club", rank=2)
    where = {"runs_dir": str(tmp_path / "runs")}
    for given in ({}, {"run": "new"}, {"run": "club", "fresh": True}):
        assert resolve_config({**where, **given}).lora.rank == RunConfig().lora.rank


def test_a_wrong_setting_is_refused_before_the_run_is_read(tmp_path):
    with pytest.raises(ConfigError, match="rank must be at least 1"):
        resolve_config({"run": "club", "runs_dir": str(tmp_path), "rank": 0})


# The lock ---------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused(run):
    with open_run(run):
        assert run.alive
        with pytest.raises(BusyError, match=r"by another process \(\d+, since \d\d:\d\d\)\. Follow it, or pause"):
            open_run(run)
    assert not run.alive
    open_run(run).__exit__()


def test_a_refused_writer_changes_nothing(run):
    with open_run(run) as writer:
        writer.log("start", step=0)
        run.request("pause")
        before = {path.name: path.read_bytes() for path in run.path.iterdir()}
        with pytest.raises(BusyError):
            open_run(run)
        assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_a_reader_that_looks_does_not_keep_a_trainer_out(run, monkeypatch):
    RunLock(run.path).release()
    looking = os.open(run.path / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(locks.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
    with open_run(run):
        assert run.alive
    os.close(looking)


TRAINER = """
import sys, time
from pathlib import Path
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
with TrainingTracker("runs").record(Run(Path(sys.argv[1]))) as writer:
    writer.set_status("running", step=3, total_steps=9)
    print("ready", flush=True)
    time.sleep(600)
"""


def test_the_lock_is_lost_with_the_process_and_the_run_has_crashed(run):
    with subprocess.Popen([sys.executable, "-c", TRAINER, run.path], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            assert (run.alive, run.state, run.status()["pid"]) == (True, "running", child.pid)
            with pytest.raises(BusyError):
                open_run(run)
        finally:
            child.kill()
    assert child.returncode == -signal.SIGKILL
    assert (run.alive, run.state) == (False, "crashed")
    with open_run(run):
        assert run.alive


def test_a_lock_taken_by_the_parent_is_not_handed_on_further(run):
    first = RunLock(run.path)
    os.set_inheritable(first.descriptor, True)
    inherited = RunLock(run.path, first.descriptor)
    assert inherited.inherited
    assert not os.get_inheritable(inherited.descriptor)
    inherited.release()
    assert not run.alive


# State ----------------------------------------------------------------------------------------------------------


def test_a_run_nobody_trained_is_new_and_one_that_was_just_taken_is_preparing(run):
    assert run.state == "new"
    with open_run(run):
        assert run.state == "preparing"


@pytest.mark.parametrize("state", ["preparing", "running", *ENDED])
def test_the_state_is_the_trainers_word_unless_it_is_gone(run, state):
    with open_run(run) as writer:
        writer.set_status(state)
        assert run.state == state
    assert run.state == (state if state in ENDED else "crashed")


def test_a_half_written_status_is_no_status(run):
    (run.path / "status.json").write_text('{"state": "run', encoding="utf-8")
    assert (run.status(), run.state) == ({}, "new")


def test_a_status_that_a_power_cut_emptied_is_that_of_a_crash(run):
    with open_run(run) as writer:
        writer.set_status("running", step=3)
        writer.log("step", step=3)
    (run.path / "status.json").write_bytes(b"")
    assert (run.status(), run.state) == ({}, "crashed")


@pytest.mark.parametrize("state", ["completed", "preparing"])
def test_a_trainer_that_ends_or_begins_between_two_looks_has_not_crashed(run, state):
    class Moving(Run):
        @property
        def alive(self):
            with open_run(run) as writer:
                writer.set_status(state)
            return False

    with open_run(run) as writer:
        writer.set_status("running")
    assert Moving(run.path).state == state


def test_status_fields_stay_until_they_are_given_again(run):
    with open_run(run) as writer:
        writer.set_status("running", step=1, best_val_loss=2.5)
        writer.set_status("running", step=2)
        assert {"state": "running", "step": 2, "best_val_loss": 2.5, "pid": os.getpid()}.items() <= run.status().items()
    with open_run(run) as writer:  # a resumed run shows where it was while it loads
        writer.set_status("preparing")
        assert (run.status()["step"], run.status()["best_val_loss"]) == (2, 2.5)


def test_a_beat_writes_once_a_second_but_forgets_nothing(run, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(writers.time, "monotonic", lambda: clock[0])
    with open_run(run) as writer:
        writer.set_status("running", step=0)
        writer.beat(step=1, epoch=1)
        assert run.status()["step"] == 0
        clock[0] += 1
        writer.beat(step=2)
        assert (run.status()["step"], run.status()["epoch"]) == (2, 1)


def test_the_end_is_told_and_kept(run):
    with open_run(run) as writer:
        writer.end("failed", 7, "no memory")
    assert run.state == "failed"
    assert {"step": 7, "message": "no memory"}.items() <= run.status().items()
    assert {"type": "end", "state": "failed", "step": 7, "message": "no memory"}.items() <= run.metrics()[-1].items()


# Control ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "word"),
    [("pause", "pause"), ("stop\n", "stop"), ("run", "run"), ("", "run"), ("halt", "run"), ("é", "run"), (None, "run")],
)
def test_control_words(run, content, word):
    if content is not None:
        (run.path / "control").write_text(content, encoding="utf-8")
    assert run.control() == word


def test_a_new_trainer_forgets_what_was_asked_of_the_last(run):
    run.request("pause")
    with open_run(run):
        assert run.control() == "run"
        run.request("stop")
        assert run.control() == "stop"


def test_a_trainer_that_inherits_the_lock_keeps_what_was_asked_since_it_was_taken(run):
    lock = RunLock(run.path)
    run.request("pause")
    with RunWriter(run, RunLock(run.path, lock.descriptor)):
        assert run.control() == "pause"


# Reading ---------------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_name_and_by_path(created, tmp_path):
    run, tracker = created(run="club"), TrainingTracker(tmp_path / "runs")
    assert tracker.find("club").path == run.path
    assert TrainingTracker(tmp_path / "elsewhere").find(str(run.path)).path == run.path


def test_a_run_that_is_not_there_is_told_with_those_that_are(created, tmp_path):
    created(run="club")
    for tracker, known in ((TrainingTracker(tmp_path / "runs"), "club"), (TrainingTracker(tmp_path), "none yet")):
        with pytest.raises(RunError, match=rf"^clbu: no such run in .*\. Runs: {known}\.$"):
            tracker.find("clbu")


def test_runs_are_listed_newest_first_with_their_state(created, tmp_path):
    for age, name in enumerate(("new", "old")):
        run = created(run=name)
        os.utime(run.path / "config.json", (1000 - age, 1000 - age))
    with open_run(run) as writer:
        writer.set_status("paused", step=4, total_steps=9, best_val_loss=1.5)
    (tmp_path / "runs" / "no-run").mkdir()
    rows = list(iterate_states(TrainingTracker(tmp_path / "runs").runs()))
    assert [row["run"] for row in rows] == ["new", "old"]
    assert rows[0]["state"] == "new"
    assert {"state": "paused", "step": 4, "total_steps": 9, "best_val_loss": 1.5}.items() <= rows[1].items()


def test_adapters_are_the_best_ones_else_the_final_ones(run):
    with pytest.raises(RunError, match=r"has no trained adapters yet \(state: new\)"):
        _ = run.adapters
    for directory in (run.final, run.best):
        directory.mkdir()
        (directory / "adapters.safetensors").touch()
        assert run.adapters == directory


def test_results_are_none_before_there_are_any(run):
    assert (run.summary(), run.evaluation(), run.facts()) == (None, None, [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"is not a run \(config\.json is missing\)\. `qlora runs` lists them"),
        ("config.json", "{", r"config\.json: not JSON"),
        ("config.json", '{"lora": {"rank": 0}}', r"config\.json: rank must be at least 1; found 0"),
        ("environment.json", "{", r"environment\.json: cannot be read"),
        ("environment.json", None, r"environment\.json is missing"),
    ],
)
def test_a_damaged_run_is_named(created, name, content, message):
    run = created()
    (run.path / name).unlink()
    if content is not None:
        (run.path / name).write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=message):
        _ = run.config(), run.environment()


@pytest.mark.parametrize("value", ["many", 0, None])
def test_rows_at_once_are_a_number_of_rows(plan, value):
    tracker, planned = plan()
    run = tracker.create(planned)
    path = run.path / "environment.json"
    path.write_text(json.dumps(run.environment() | {"micro_batch": value}), encoding="utf-8")
    with pytest.raises(RunError, match="micro_batch"):
        _ = run.micro_batch


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("rounding", 5, "Expected `object`"),
        ("rounding", {"bins": "many"}, "Expected `array`"),
        ("sharing", "yes", "Expected `bool`"),
        ("at_once", -1, "Expected `int` >= 0"),
        ("prefix", None, "Expected `bool`"),
        ("dtype", "float8", "Invalid enum value"),
    ],
)
def test_recorded_kernels_are_validated_whole(plan, name, value, told):
    """Every field, since the trainer makes itself after them."""
    tracker, planned = plan()
    run = tracker.create(planned)
    kernels = dataclasses.asdict(Kernels("cpu", "float32", "kept"))
    path = run.path / "environment.json"
    environment = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(environment | {"kernels": kernels}), encoding="utf-8")
    assert run.environment()["kernels"]["dtype"] == "float32"
    path.write_text(json.dumps(environment | {"kernels": {**kernels, name: value}}), encoding="utf-8")
    with pytest.raises(RunError, match=re.escape(told)):
        run.environment()
