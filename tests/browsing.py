"""A real Chromium on pages that are served by marimo, for the tests that look at them."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from playwright.sync_api import Browser, Locator, Page, expect

PATIENCE = 60_000  # ms; a limit for a broken page, not an expectation
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
            "--disable-sync"]  # fmt: skip
MARKUP = '<b id="owned">bold</b> <img src=x onerror="document.title=\'owned\'"> ![x](http://outside.invalid/x.png)'
expect.set_options(timeout=PATIENCE)


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`marimo run` or `marimo edit` of a notebook with flags; a context manager, and may be ended and begun again."""

    def __init__(self, log: Path, *flags: str | Path, mode: str = "run", app: str = "train") -> None:
        self.log, self.port = log, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "marimo", mode, f"apps/{app}.py", "--headless", "--no-token",
                        "--no-sandbox", "--port", str(self.port), "--", *map(str, flags)]  # fmt: skip

    def __enter__(self) -> "Server":
        environment = {**os.environ, "MARIMO_SKIP_UPDATE_CHECK": "1"}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            wait_for(lambda: answers(f"{self.address}/health"), self.log)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self, by: int = signal.SIGTERM) -> None:
        """End the server as `by` does."""
        self.process.send_signal(by)
        self.process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def wait_for(true: Callable[[], bool], log: Path | None = None, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail(log.read_text(encoding="utf-8") if log else "waited in vain")
        time.sleep(0.05)


@contextlib.contextmanager
def opened(browser: Browser, address: str, **context: Any) -> Iterator[Page]:
    """A page; its console must stay free of errors, it may ask nobody but the server, and show no traceback."""
    made = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, "locale": "en-GB", **context})
    page = made.new_page()
    page.set_default_timeout(PATIENCE)
    outside, errors = [], []
    own = (address, address.replace("http", "ws"), "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(own) or outside.append(request.url))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.get_by_role("heading", level=1).wait_for()
    yield page
    assert no_error_on(page)
    assert page.locator("#owned").count() == 0  # text from data, names and models is text
    assert page.title() != "owned"
    made.close()
    assert (outside, errors) == ([], [])


def no_error_on(page: Page) -> bool:
    text = page.inner_text("body")
    return not any(word in text for word in ("Traceback", "internal error", "ancestor", "MarimoError"))


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def press(page: Page, name: str) -> None:
    """Click when the button lies still: what is drawn while the page scrolls pushes it about."""
    target, boxes = button(page, name), [None] * 6
    expect(target).to_be_enabled()
    for _ in range(PATIENCE // 100):
        target.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
        boxes = [*boxes[1:], target.bounding_box()]
        if boxes[0] and boxes.count(boxes[0]) == len(boxes):
            break
    target.click()


def write_rows(path: Path, *more: tuple[str, str], count: int = 11) -> Path:
    """A small file of questions and answers."""
    pairs = [*((f"Question {i}?", f"Answer {i}") for i in range(count)), *more]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns), encoding="utf-8")
    return path
