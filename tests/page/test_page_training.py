"""The training section without a browser: which run it follows, what it says, and that words stay words."""

import json
import signal

import pytest

from qlora_core import page, translations
from qlora_core.activity import Activity
from qlora_core.config import RunConfig, from_flat
from qlora_core.errors import BusyError
from qlora_core.files.storage import discard, publishing
from qlora_core.jobs import launch
from qlora_core.jobs.device_lock import DeviceLock
from qlora_core.machine.crash_reasons import reason
from qlora_core.page import training
from qlora_core.page.commands import News
from qlora_core.page.problems import Problem
from qlora_core.page.watching import RunWatcher, Snapshot
from qlora_core.runs.checkpoints import FILES, STATE_FILE
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock, RunWriter

NOTHING = Problem("no plan")
MARKUP = '<img src=x onerror="alert(1)">'


def step(number: int, **fields) -> dict:
    made = {"epoch": 1, "train_loss": 2.0, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens": 100, "seconds": 0.5}
    made |= {"tokens_per_second": 200.0, "peak_memory_bytes": 2_000_000_000, "available_memory_bytes": 9_000_000_000}
    made |= {"cpu_percent": 87.5}
    return {**made, "step": number, **fields}


@pytest.fixture
def tracker(tmp_path):
    return TrainingTracker(tmp_path / "runs")


@pytest.fixture
def make(tracker):
    """A run directory with some steps, ended as it is told."""

    def made(name: str, state: str = "paused", steps: int = 4, total: int = 8) -> Run:
        run = Run(tracker.runs_dir / name)
        run.path.mkdir(parents=True)
        (run.path / "config.json").write_text("{}", encoding="utf-8")
        with RunWriter(run, RunLock(run.path)) as writer:
            writer.set_status("running", step=0, total_steps=total)
            writer.log("start", step=0, total_steps=total, steps_per_epoch=4, epochs=2, val_tokens=60)
            for number in range(1, steps + 1):
                writer.log("step", **step(number))
            writer.log("eval", step=steps, val_loss=1.5, perplexity=4.5, seconds=1.0, best=True)
            writer.log("checkpoint", step=steps, bytes=5_000_000, seconds=1.0)
            writer.set_status(state, step=steps)
        write_checkpoint(run, steps)
        return run

    return made


def disabled(buttons) -> list[bool]:
    return [button._component_args["disabled"] for button in buttons[:3]]


# Which run ------------------------------------------------------------------------------------------------------


def test_a_living_run_comes_first_also_after_a_reload(tracker, make):
    make("old")
    run = make("new")
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("running")
        watcher = RunWatcher(tracker)  # as a new session has it
        assert watcher.look(NOTHING).run.path == run.path
        chosen = watcher.look(NOTHING, "old")
        assert (chosen.run.name, watcher.run.name, watcher.active.name) == ("old", "old", "new")
        watcher.request("pause")  # what is asked goes to the one that trains
        assert run.control() == "pause"
        assert watcher.look(NOTHING, "old").phase != chosen.phase
        assert watcher.look(NOTHING, "no such run").run.path == run.path
        assert watcher.look(NOTHING, "").run.path == run.path


def test_a_snapshot_changes_with_what_is_shown_and_charts_seldom(tracker, make):
    run = make("run", steps=3000, total=9000)
    watcher = RunWatcher(tracker)
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("running")
        before = watcher.look(NOTHING, "run")
        assert watcher.look(NOTHING, "run") == before
        drawings = set()
        for number in range(3001, 3033):
            writer.log("step", **step(number))
            after = watcher.look(NOTHING, "run")
            assert after.version != before.version
            assert after.phase == before.phase
            drawings.add(after.drawing)
        assert 1 < len(drawings) <= 32 / 4 + 1
        writer.log("eval", step=3032, val_loss=1.0, seconds=1.0)
        assert watcher.look(NOTHING, "run").drawing not in drawings


def test_a_complete_run_whose_trainer_is_not_gone_yet_is_looked_at_again(tracker, make):
    run = make("run", state="completed", steps=8)
    watcher = RunWatcher(tracker)
    with RunWriter(run, RunLock(run.path)):
        before = watcher.look(NOTHING, "run")
        assert training.state_words(before)[0] == "finishing"
    after = watcher.look(NOTHING, "run")
    assert training.state_words(after)[0] == "completed"
    for mark in ("version", "phase", "drawing"):
        assert getattr(before, mark) != getattr(after, mark), mark


def test_the_menu_keeps_what_was_chosen(tracker, make):
    make("old")
    watcher = RunWatcher(tracker)
    assert training.run_menu(tracker, watcher).value == ""
    watcher.look(NOTHING, "old")
    assert training.run_menu(tracker, watcher).value == "old"
    watcher.chosen = "gone"
    assert training.run_menu(tracker, watcher).value == ""


def test_a_run_that_is_renamed_elsewhere_is_still_looked_at(tracker, make):
    run = make("old")
    make("newest")
    watcher = RunWatcher(tracker)
    watcher.look(NOTHING, "old")
    run.path.rename(run.path.with_name("new"))
    seen = watcher.look(NOTHING, "old")  # the menu is made anew afterwards
    assert (seen.run.name, watcher.chosen, seen.step) == ("new", "new", 4)
    assert training.run_menu(tracker, watcher).value == "new"
    discard(seen.run.path)
    assert watcher.look(NOTHING, "new").run is None


def test_the_active_run_is_followed_as_well(tracker, make):
    run = make("old")
    watcher = RunWatcher(tracker)
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("running")
        assert watcher.look(NOTHING).run.name == "old"
        writer.set_status("paused")
    run.path.rename(run.path.with_name("new"))
    assert watcher.look(NOTHING).run.name == "new"


# Buttons --------------------------------------------------------------------------------------------------------


def beside_start(plan) -> str:
    """The words beside a button that starts a plan."""
    return training.start_row(plan, RunWatcher(TrainingTracker("nowhere")), page.model.fetch_button(News())).text


def test_beside_start_it_says_once_what_is_missing(monkeypatch):
    wrong = beside_start(Problem("Epochs: 0 is not allowed. From 1 to 10,000.").onward)
    assert "Not ready: first put right what is marked in red." in wrong
    assert "Epochs" not in wrong  # that is said under the settings
    unnamed = page.model.read_base_form(RunConfig(), {}, "", " ")
    told = page.model.fetching(unnamed, page.model.Presence(), News(), None).text
    assert "No model is named yet" in told
    assert page.complain(unnamed) is None
    monkeypatch.setattr(page.model.hub, "is_here", lambda *_, **__: False)
    monkeypatch.setattr(page.model, "scripted", lambda: False)
    missing = page.model.find_tokenizer(from_flat({"model": "qwen3-0.6b"}).base)
    assert page.complain(missing) is None  # how to fetch it is said above
    assert "Not ready: fetch the model first, above.<" in beside_start(missing.anything)


def test_a_form_tells_its_problem_above_the_further_settings_and_what_empty_fields_mean(plan):
    _, planned = plan(run="club", max_steps=3)
    chosen = page.model.chosen_now(planned)
    wanted = {"max_steps": "6 steps", "num_layers": "2", "eval_every": "every 3 steps", "save_every": "every 3 steps"}
    assert wanted.items() <= chosen.items()
    assert "run" not in chosen
    assert page.model.chosen_now(NOTHING) == {}
    form = page.forms.settings_form(RunConfig(), "train")
    html = page.forms.form_layout(form, Problem("Epochs: wrong."), chosen, "More about training").text
    places = [html.index(words) for words in ("Passes over the training rows", "Epochs: wrong.", "More about training")]
    assert places == sorted(places)
    assert f"Empty: automatic · {chosen['learning_rate']}" in html
    assert "q-danger" not in page.forms.form_layout(form, RunConfig(), {}, "More about training").text


def test_buttons_of_a_plan_say_what_start_will_do(plan, tracker):
    _, planned = plan(run="club")
    watcher = RunWatcher(tracker)
    watcher.look(planned)
    buttons = training.controls(planned, watcher)
    assert disabled(buttons) == [False, True, True]
    assert "club will take 6 steps" in training.start_row(planned, watcher, buttons[0]).text
    assert training.bar_buttons(watcher, *buttons) is None  # nothing to pause, nothing to go on with


def test_one_that_may_wait_can_be_started_beside_the_one_that_is_trained(plan, tracker):
    home, planned = plan(run="club")
    waiting = plan(run="club", queue=True)[1]
    other = home.create(plan(run="other")[1])
    with home.record(other):
        watcher = RunWatcher(home)
        watcher.look(planned)
        assert disabled(training.controls(planned, watcher)) == [True, False, False]
        assert disabled(training.controls(waiting, watcher)) == [False, False, False]
        with home.record(waiting.run):
            assert disabled(training.controls(waiting, watcher)) == [True, False, False]


def test_the_time_is_guessed_from_a_run_of_the_same_model(plan):
    from qlora_core.tokens.dataset import make_dataset
    from qlora_core.tokens.tokenizer import ChatTokenizer

    home, planned = plan(run="club")
    rows = make_dataset(planned.data.train, ChatTokenizer(planned.model.path, "auto"), 512)
    assert "known after the first steps" in page.model.consequences(planned, rows, home).text
    _, earlier = plan(run="earlier")
    run = home.create(earlier)
    speed = 2 * rows.tokens / 600  # two epochs in ten minutes
    (run.path / "summary.json").write_text(json.dumps({"tokens_per_second": speed}), encoding="utf-8")
    shown = page.model.consequences(planned, rows, home).text
    assert "at least 10 min" in shown  # nobody measured a validation
    assert "club will take 6 steps, at least 10 min." in beside_start(planned)
    assert "of it for checks; at the speed of earlier" in shown
    environment = run.environment()
    environment["identity"]["model"] = "another"
    (run.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    assert "known after the first steps" in page.model.consequences(planned, rows, home).text
    (run.path / "environment.json").write_text("{", encoding="utf-8")
    assert "known after the first steps" in page.model.consequences(planned, rows, home).text


def test_what_takes_long_is_said_while_it_lasts(tracker, make, monkeypatch):
    run = make("run", steps=0)
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("running")
        writer.working(Activity("evaluation", 80, 12))
        watcher = RunWatcher(tracker)
        assert "Answering the test questions, 12 of 80" in training.run_panel(watcher.look(NOTHING)).text
        monkeypatch.setattr(translations, "find_language", lambda: "pt")
        assert "A responder às perguntas do teste, 12 de 80" in training.run_panel(watcher.look(NOTHING)).text
        writer.status["work"] = {"stage": "of a later version", "done": 0, "total": 0}
        writer.set_status("running")
        assert "later version" not in training.run_panel(watcher.look(NOTHING)).text
        writer.working(Activity("saving"))
    assert "A guardar …" not in training.run_panel(watcher.look(NOTHING)).text  # nobody is at it any more


def write_checkpoint(run, step):
    """Something that is a checkpoint by its manifest."""
    path = run.checkpoint_directory / f"{step:06d}"
    with publishing(path) as temporary:
        for name in FILES:
            (temporary / name).write_bytes(b"something")
    return path


def test_a_crashed_run_goes_on_from_its_last_checkpoint_that_is_whole(plan):
    home, planned = plan(run="club")
    run = home.create(planned)
    write_checkpoint(run, 4)
    (write_checkpoint(run, 6) / STATE_FILE).write_text("cut", encoding="utf-8")  # damaged: nobody goes on from there
    (run.checkpoint_directory / "000008").mkdir()
    with home.record(run) as writer:
        writer.set_status("running", step=5, total_steps=planned.total_steps)
        watcher = RunWatcher(home)
        watcher.look(planned)
        buttons = training.controls(planned, watcher)
        assert disabled(buttons) == [True, False, False]
        assert "You can close this page" in training.start_row(planned, watcher, buttons[0]).text
        bar = training.bar_buttons(watcher, *buttons).text
        assert [name in bar for name in ("Start", "Pause", "Stop")] == [False, True, True]
        run.request("pause")
        buttons = training.controls(planned, watcher)
        assert disabled(buttons) == [True, True, False]
        assert "Pausing" in training.start_row(planned, watcher, buttons[0]).text
    crashed = watcher.look(planned)
    assert crashed.state == "crashed"
    buttons = training.controls(planned, watcher)
    assert "Go on from step 4" in buttons[0].text
    assert "Go on from step 4" in training.bar_buttons(watcher, *buttons).text
    assert "Go on from step 4" in training.run_panel(crashed).text


def test_a_page_to_look_at_has_no_buttons(plan, tracker, make, monkeypatch):
    for module in (training, page.watching):
        monkeypatch.setattr(module, "read_only", lambda: True)
    home, planned = plan(run="club")
    watcher = RunWatcher(home)
    watcher.look(planned)
    buttons = training.controls(planned, watcher)
    assert training.bar_buttons(watcher, *buttons) is None
    shown = training.start_row(planned, watcher, buttons[0]).text
    assert "marimo-button" not in shown
    assert "looked at" in shown or "to look at" in shown
    assert "to look at" in training.start(home, planned).text
    assert not planned.run.exists
    run = make("run")
    with RunWriter(run, RunLock(run.path)):
        watcher = RunWatcher(tracker)
        watcher.look(NOTHING)
        watcher.request("stop")
        assert run.control() == "run"


def test_two_runs_do_not_train_at_once(plan):
    home, planned = plan(run="club")
    other = home.create(plan(run="other")[1])
    with home.record(other), DeviceLock(other.path), pytest.raises(BusyError, match="other is being trained already"):
        launch.start(home, planned)
    assert not planned.run.path.exists()


# What is said ---------------------------------------------------------------------------------------------------


def test_the_panel_of_a_run(tracker, make):
    make("run")
    text = training.run_panel(RunWatcher(tracker).look(NOTHING, "run")).text
    for wanted in (
        "4 / 8",
        "1 / 2",
        "2.000",
        "1.500",
        "best 1.500 at step 4",
        "200 tokens/s",
        "9.00 GB",
        "paused",
        "and 2 s of checks",
    ):
        assert wanted in text
    assert 'role="progressbar"' in text
    assert 'aria-valuenow="4"' in text
    assert text.count("aria-live") == 1


def test_time_left_counts_validation_and_saving(tracker, make):
    make("run")
    seen = RunWatcher(tracker).look(NOTHING, "run")
    assert training.seconds_trained(seen) == pytest.approx(4 * 0.5)
    assert seen.time_left.total == pytest.approx(4 * 0.5 + 1 + 1)  # and a validation, saved
    assert Snapshot().time_left is None


def test_before_the_first_step_there_are_no_charts(tracker, make):
    assert training.run_charts(Snapshot()) is None
    make("run")
    assert training.run_charts(RunWatcher(tracker).look(NOTHING, "run")).text.count("<figure") == 6


def test_checkpoints_tell_their_loss_and_which_is_best(tracker, make):
    run = make("run")
    write_checkpoint(run, 2)
    text = training.checkpoints(RunWatcher(tracker).look(NOTHING, "run")).text
    assert "Checkpoints (2)" in text
    assert text.index(">4<") < text.index(">2<")
    assert "1.5000" in text
    assert text.count(">best<") == 1
    assert "5.0 MB" in text


@pytest.mark.parametrize(
    ("status", "log", "wanted"),
    [
        (-signal.SIGKILL, "", "memory ran out"),
        (137, "", "memory ran out"),
        (-signal.SIGABRT, "[METAL] Insufficient Memory", "memory ran out"),
        (1, "Traceback\nMemoryError", "memory ran out"),
        (-signal.SIGSEGV, "", "compiled code (SIGSEGV)"),
        (134, "", "compiled code (SIGABRT)"),
        (-signal.SIGHUP, "", "from outside (signal 1)"),
        (1, "Traceback\nKeyError: 'x'", "did not expect: KeyError: 'x'"),
        (127, "", "it left no line"),
        (250, "", "it left no line"),
        (None, "", "Nobody saw"),
    ],
)
def test_why_a_trainer_is_gone(status, log, wanted):
    assert wanted in reason(status, log)


def test_how_a_crashed_process_ended_is_noted_once(tracker, make):
    run = make("run", state="running")
    assert launch.exit_status(run) is None
    said = run.status().get("time")
    (run.path / launch.EXIT).write_text(json.dumps({"status": -9, "after": said}), encoding="utf-8")
    seen = RunWatcher(tracker).look(NOTHING, "run")
    assert (seen.state, seen.exit_status) == ("crashed", -9)
    assert "memory ran out" in training.run_panel(seen).text
    (run.path / launch.EXIT).write_text(json.dumps({"status": -9, "after": 1}), encoding="utf-8")  # of one before
    assert launch.exit_status(run) is None


def test_what_a_run_says_stays_text(tracker, make):
    run = make("run")
    (run.path / "worker.log").write_text(MARKUP, encoding="utf-8")
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.log("warning", step=4, message=MARKUP)
        writer.set_status("failed", message=MARKUP)
    watcher = RunWatcher(tracker)
    seen = watcher.look(NOTHING, "run")
    pieces = [training.run_panel(seen), training.run_log(seen), training.diagnosis(seen)]
    (run.path / "status.json").write_text(json.dumps({"state": "running"}), encoding="utf-8")
    seen = watcher.look(NOTHING, "run")
    begin = training.controls(Problem(MARKUP), watcher)[0]
    pieces += [
        training.run_panel(seen),
        training.diagnosis(seen),
        training.start_row(Problem(MARKUP, told_above=True), watcher, begin),
    ]
    for piece in pieces:
        assert "&lt;img" in piece.text
        assert "<img" not in piece.text


@pytest.mark.parametrize(("device", "said"), [("Metal (Apple M1)", True), ("CPU, 2 cores, OpenBLAS", False)])
def test_on_a_mac_a_living_run_says_that_the_display_may_sleep(tracker, make, device, said):
    run = make("run")
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("running")
        writer.log("start", step=4, total_steps=8, epochs=2, device=device)
        assert ("Let the display sleep" in training.run_panel(RunWatcher(tracker).look(NOTHING)).text) == said
    assert "Let the display sleep" not in training.run_panel(RunWatcher(tracker).look(NOTHING, "run")).text
