"""The page in a real Chromium: it opens in both modes, trains through a worker, and shows how it ends."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from playwright.sync_api import Browser, Page, expect, sync_playwright

pytestmark = pytest.mark.browser

PATIENCE = 60_000  # ms; a limit for a broken page, not an expectation
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-sync",
]
MARKUP = '<b id="owned">bold</b> <img src=x onerror="document.title=\'owned\'">'


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        message = "no chromium, chromium-browser or google-chrome found"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield made
        made.close()


@contextlib.contextmanager
def served(mode: str, log: Path, *flags: str | Path) -> Iterator[tuple[str, int]]:
    """`marimo run` or `marimo edit` with flags for the notebook; yields its address and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "marimo", mode, "apps/train.py", "--headless", "--no-token", "--port", str(port)]
    command += ["--no-sandbox", "--", *map(str, flags)]
    environment = {**os.environ, "MARIMO_SKIP_UPDATE_CHECK": "1"}
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: answers(f"{address}/health"), log)
            yield address, server.pid
        finally:
            server.terminate()
            server.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def wait_for(true: Callable[[], bool], log: Path, attempts: int = 600) -> None:
    import time

    for _ in range(attempts):
        if true():
            return
        time.sleep(0.1)
    pytest.fail(log.read_text(encoding="utf-8"))


@contextlib.contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """A page; its console must stay free of errors, and it may ask nobody but the server."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    outside, errors = [], []
    own = (address, address.replace("http", "ws"), "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(own) or outside.append(request.url))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.get_by_role("heading", name="QLoRA Notebook").wait_for()
    yield page
    assert no_error_on(page)
    context.close()
    assert (outside, errors) == ([], [])


def no_error_on(page: Page) -> bool:
    text = page.inner_text("body")
    return not any(word in text for word in ("Traceback", "internal error", "ancestor", "MarimoError"))


def button(page: Page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def press(page: Page, name: str) -> None:
    """Click when the button lies still: editors that are mounted while the page scrolls push it about."""
    target, boxes = button(page, name), [None] * 10
    expect(target).to_be_enabled()
    for _ in range(PATIENCE // 100):
        target.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
        boxes = [*boxes[1:], target.bounding_box()]
        if boxes[0] and boxes.count(boxes[0]) == len(boxes):
            break
    target.click()


def state(page: Page, word: str) -> None:
    expect(page.get_by_text(word, exact=True).first).to_be_visible()


@pytest.fixture
def flags(tmp_path: Path, tiny_model: Path) -> list[str | Path]:
    """Flags for a short run on rows one of which is markup."""
    contents = [(f"Question {i}?", f"Answer {i}") for i in range(11)] + [(MARKUP, MARKUP)]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in contents]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns), encoding="utf-8")
    return ["--model", tiny_model, "--data", rows, "--runs-dir", tmp_path / "runs", "--max-answer-tokens", "4",
            "--batch-size", "4"]  # fmt: skip


def test_start_pause_reload_go_on_stop(browser, flags, tmp_path):
    with (
        served("run", tmp_path / "server.log", *flags, "--epochs", "10000") as (address, server),
        opened(browser, address) as page,
    ):
        press(page, "Start")
        state(page, "running")
        expect(button(page, "Start")).to_be_disabled()
        with opened(browser, address) as second:  # another page shows the same run
            state(second, "running")
            expect(button(second, "Start")).to_be_disabled()
        press(page, "Pause")
        state(page, "paused")
        page.reload()
        state(page, "paused")
        model = page.get_by_label("Model", exact=True)
        named = model.input_value()
        model.fill("no-such-model")
        model.blur()
        expect(page.get_by_text("model 'no-such-model': no such directory or alias").first).to_be_visible()
        expect(button(page, "Start")).to_be_disabled()
        model.fill(named)
        model.blur()
        press(page, "Go on")
        state(page, "running")
        press(page, "Stop")
        state(page, "stopped")
        assert page.locator("#owned").count() == 0  # text from the data is text
        assert page.title() != "owned"
        assert not loads_mlx(server)


def loads_mlx(pid: int) -> bool:
    maps = Path(f"/proc/{pid}/maps")
    return maps.exists() and "libmlx" in maps.read_text(encoding="utf-8")


def test_edit_mode_trains_to_the_end(browser, flags, tmp_path):
    with (
        served("edit", tmp_path / "server.log", *flags, "--max-steps", "4", "--nonsense") as (address, _),
        opened(browser, address) as page,
    ):
        expect(page.get_by_text("unknown flags, left aside: --nonsense")).to_be_visible()
        press(page, "Start")
        state(page, "completed")
        expect(button(page, "Start")).to_be_disabled()
        question = page.get_by_label("Question", exact=True).last
        question.fill("--Question 1?")  # looks like a flag
        question.blur()
        press(page, "Ask")
        expect(page.locator("th", has_text="tuned")).to_be_visible()
        page.screenshot(path=tmp_path / "edit.png", full_page=True)
