"""What happens to a run does not happen to the page, and the other way round."""

import os
import signal
from pathlib import Path

import pytest
from browsing import Server, button, expect, fill, go, opened, press, state, step_beyond, write_rows
from processes import wait_until

from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run

pytestmark = pytest.mark.browser


@pytest.fixture
def flags(tmp_path: Path, tiny_model: Path) -> list[str | Path]:
    """A run of a tiny model that would take hours."""
    rows = write_rows(tmp_path / "rows.jsonl")
    return ["--model", tiny_model, "--data", rows, "--runs-dir", tmp_path / "runs", "--batch-size", "4",
            "--epochs", "10000", "--eval-every", "50", "--save-every", "20", "--samples", "1",
            "--max-answer-tokens", "4"]  # fmt: skip


def the_run(tmp_path: Path) -> Run:
    (run,) = TrainingTracker(tmp_path / "runs").runs()
    return run


def test_a_killed_trainer_is_told_in_plain_words_and_goes_on(browser, flags, tmp_path):
    with Server(tmp_path / "server.log", *flags) as server, opened(browser, server.address) as page:
        press(page, "Start")
        step_beyond(page, 25)
        run = the_run(tmp_path)
        os.kill(run.status()["pid"], signal.SIGKILL)
        state(page, "crashed")
        told = page.locator(".q-danger", has_text="The trainer is gone.")
        expect(told.first).to_contain_text("Most likely the memory ran out")
        expect(told.first).to_contain_text("continues there")
        saved = max(int(path.name) for path in (run.path / "checkpoints").glob("[0-9]*"))
        press(page, f"Go on from step {saved}")
        state(page, "running")
        step_beyond(page, saved)
        press(page, "Stop")
        state(page, "stopped")


def test_the_server_is_ended_and_begun_again_while_it_trains(browser, flags, tmp_path):
    with Server(tmp_path / "server.log", *flags) as server:
        with opened(browser, server.address) as page:
            press(page, "Start")
            state(page, "running")
        run = the_run(tmp_path)
        pid = run.status()["pid"]
        server.end(signal.SIGKILL)
        before = run.status()["step"]
        wait_until(lambda: run.status()["step"] > before + 5)
        with server, opened(browser, server.address) as page:
            state(page, "running")
            assert run.status()["pid"] == pid
            go(page, "prepare")
            expect(button(page, "Start")).to_be_disabled()
            step_beyond(page, before + 5)
            press(page, "Stop")
            state(page, "stopped")
            assert run.status()["pid"] == pid


def test_a_setting_that_is_wrong_is_told_where_it_stands_and_mended(browser, flags, tmp_path):
    with Server(tmp_path / "server.log", *flags, "--nonsense") as server, opened(browser, server.address) as page:
        expect(page.get_by_text("unknown flags, left aside: --nonsense")).to_be_visible()
        field = "Its folder, or its name on the hub"
        named = page.get_by_label(field, exact=True).input_value()
        for label, wrong, right, words in (
            (field, "no-such-model", named, "model 'no-such-model': no such directory or alias"),
            ("Adapter rank", "0", "8", "Adapter rank: 0 is not allowed. From 1 to 512."),
            ("Epochs", "many", "2", "Epochs: a whole number is needed; found “many”."),
        ):
            fill(page, label, wrong)
            expect(page.locator(".q-danger", has_text=words)).to_have_count(1)  # once, where it happened
            page.locator("details.q-fold[open]").evaluate_all("folds => folds.forEach(fold => fold.open = false)")
            expect(page.locator(".q-danger", has_text=words)).to_be_visible()  # in a closed fold as well
            expect(button(page, "Start")).to_be_disabled()
            fill(page, label, right)
            expect(page.locator(".q-danger", has_text=words)).to_have_count(0)
            expect(button(page, "Start")).to_be_enabled()


def test_edit_mode_trains_to_the_end_and_answers(browser, flags, tmp_path):
    with (
        Server(tmp_path / "server.log", *flags, "--max-steps", "4", command="edit") as server,
        opened(browser, server.address) as page,
    ):
        press(page, "Start")
        state(page, "completed")
        expect(button(page, "Start")).to_be_disabled()
        fill(page, "Question", "--Question 1?")  # looks like a flag
        press(page, "Ask")
        expect(page.locator(".q-answer.q-tuned .q-small")).to_contain_text("tokens/s")
