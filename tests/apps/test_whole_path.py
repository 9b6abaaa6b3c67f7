"""The whole path as its user goes it: the built-in model, the sample data, one page, a real browser."""

from pathlib import Path

import pytest
from browsing import Server, button, card, expect, fill, go, opened, press, state, step_beyond, unfold
from conftest import ROOT

pytestmark = pytest.mark.browser


@pytest.fixture
def flags(tmp_path: Path) -> list[str | Path]:
    """A short training of the sample: few answers, and a few facts of its sheet."""
    facts = tmp_path / "some_facts.jsonl"
    lines = (ROOT / "data/sample/club/facts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    facts.write_text("".join(lines[:3]), encoding="utf-8")
    return ["--runs-dir", tmp_path / "runs", "--facts", facts, "--max-steps", "60", "--batch-size", "1",
            "--eval-every", "10", "--save-every", "5", "--samples", "1", "--max-answer-tokens", "6"]  # fmt: skip


def test_from_the_data_to_an_answer(browser, flags, tmp_path):
    with Server(tmp_path / "server.log", *flags) as server, opened(browser, server.address) as page:
        fill(page, "Files and folders, one per line", "")
        expect(page.get_by_text("Nothing chosen yet")).to_be_visible()
        fill(page, "Files and folders, one per line", "data/sample/club")
        expect(page.get_by_text("88 rows to train")).to_be_visible()
        look_at_tokens(page)
        press(page, "Start")
        state(page, "running")
        step_beyond(page, 1)
        expect(page.locator(".q-chart canvas")).to_have_count(6)
        with opened(browser, server.address) as second:  # another tab shows the same, and cannot start a second one
            state(second, "running")
            go(second, "prepare")
            expect(button(second, "Start")).to_be_disabled()
        press(page, "Pause")
        state(page, "paused")
        page.reload()
        state(page, "paused")
        press(page, "Go on")
        state(page, "running")
        press(page, "Stop")
        state(page, "stopped")
        expect(page.get_by_role("heading", name="Generation test")).to_be_visible()  # in view by itself
        press(page, "Go on")
        state(page, "completed")
        expect(card(page, "Step").locator("dd")).to_have_text("60 / 60")
        expect(card(page, "Facts recalled, trained wording")).to_be_visible()
        unfold(page, "Using it elsewhere")
        expect(page.get_by_text("INTEGRATION.md")).to_be_visible()
        ask_both(page)
        assert not loads_mlx(server.process.pid)


def look_at_tokens(page) -> None:
    """What is trained is told apart from what is only read, and the end of the text is seen."""
    unfold(page, "Rows")
    page.locator("summary", has_text="As tokens").click()
    expect(page.locator(".q-tokens")).to_be_visible()
    fill(page, "Search their text", "Quem fundou o Ferrenal")
    row = page.locator(".q-tokens")
    expect(row.locator(".q-context").first).to_contain_text("<|im_start|>")
    expect(row.locator(".q-trained")).to_contain_text("<|im_end|>")
    assert "fundou" in "".join(row.locator(".q-context .q-token").all_inner_texts())
    assert "Leonel" in "".join(row.locator(".q-trained .q-token").all_inner_texts())


def ask_both(page) -> None:
    """Base and tuned model answer side by side, from a process of their own, whose memory is then freed."""
    fill(page, "Question", "Quem compôs o hino do Ferrenal?")
    press(page, "Ask")
    expect(page.locator(".q-answer")).to_have_count(2)
    expect(page.locator(".q-answer.q-tuned .q-small")).to_contain_text("tokens/s")
    expect(page.locator(".q-answer:not(.q-tuned) .q-small")).to_contain_text("tokens/s")
    press(page, "Unload model")
    expect(page.get_by_text("No model is loaded; no memory is held.")).to_be_visible()


def loads_mlx(pid: int) -> bool:
    maps = Path(f"/proc/{pid}/maps")
    return maps.exists() and "libmlx" in maps.read_text(encoding="utf-8")
