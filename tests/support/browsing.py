"""A real Chromium on pages that are served by marimo, for the tests that look at them."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import ROOT
from playwright.sync_api import Browser, Locator, Page, expect
from processes import end_of, wait_until

from qlora_core.page.steps import identifier, read_outline

PATIENCE = int(os.environ.get("PATIENCE", 300_000))  # ms; a limit for a broken page, not an expectation
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
    """A notebook or all of them, served with flags; a context manager, and may be ended and begun again.

    Args:
        log: gets what it prints.
        flags: for the notebook.
        command: what serves: `run` or `edit` of marimo, or `app` of qlora.
        app: the notebook that marimo serves.

    Attributes:
        address: of the page; with the token, where there is one.
    """

    def __init__(self, log: Path, *flags: str | Path, command: str = "run", app: str = "train") -> None:
        self.log, self.port = log, free_port()
        self.address = self.origin = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "marimo", command, f"apps/{app}.py", "--headless", "--no-token",
                        "--no-sandbox", "--port", str(self.port), "--", *map(str, flags)]  # fmt: skip
        if command == "app":
            self.command = [sys.executable, "-m", "qlora_core", "app", "--no-browser", "--json",
                            "--port", str(self.port), *map(str, flags)]  # fmt: skip

    def __enter__(self) -> "Server":
        environment = {**os.environ, "MARIMO_SKIP_UPDATE_CHECK": "1"}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            wait_until(lambda: answers(f"{self.origin}/health"), lambda: self.log.read_text(encoding="utf-8"))
            if "app" in self.command:
                self.address = json.loads(self.log.read_text(encoding="utf-8").splitlines()[-1])["url"]
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self, by: int = signal.SIGTERM) -> None:
        """End the server as `by` does."""
        self.process.send_signal(by)
        end_of(self.process)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:  # it answers, if only to those with the token
        return True
    except OSError:
        return False


@contextlib.contextmanager
def opened(browser: Browser, address: str, **context: Any) -> Iterator[Page]:
    """A page; its console must stay free of errors, it may ask nobody but the server, and show no traceback."""
    with browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, "locale": "en-GB", **context}) as made:
        page = made.new_page()
        page.set_default_timeout(PATIENCE)
        outside, errors = [], []
        origin = address.partition("/?")[0]
        own = (origin, origin.replace("http", "ws"), "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or outside.append(request.url))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.get_by_role("heading", level=1).wait_for()
        yield page
        assert no_error_on(page)
        assert page.locator("#owned").count() == 0  # text from data, names and models is text
        assert page.title() != "owned"
    assert (outside, errors) == ([], [])


def no_error_on(page: Page) -> bool:
    text = page.inner_text("body")
    refused = page.get_by_text("Bad Data", exact=True).count()  # by a field of marimo's, which lies in a shadow tree
    return not refused and not any(word in text for word in ("Traceback", "internal error", "ancestor", "MarimoError"))


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def go(page: Page, step: str) -> None:
    """Choose a step of the page, as `steps.STEPS` names it."""
    page.locator(f"label[for=q-step-{step}]").click()


def unfold(page: Page, fold: str) -> None:
    """Choose the step of a fold and open it, if it is closed; `fold` is its English title."""
    outline, name = read_outline(ROOT / "apps" / "train.py"), identifier(fold)
    go(page, next(step for step, cells in outline.steps.items() if outline.folds[name][0] in cells))
    if page.locator(f"#{name}:not([open])").count():
        page.locator(f"#{name} > summary").click()


def reveal(target: Locator) -> None:
    """Choose the step of an element and open its fold, so that it can be seen."""
    name = target.evaluate(
        "e => { while (!e.closest('.marimo-cell')) e = e.getRootNode().host;"
        " return e.closest('.marimo-cell').dataset.cellName }"
    )
    outline = read_outline(ROOT / "apps" / "train.py")
    for step, cells in outline.steps.items():
        if name in cells:
            go(target.page, step)
    for fold, (_, cells) in outline.folds.items():
        if name in cells and target.page.locator(f"#{fold}:not([open])").count():
            target.page.locator(f"#{fold} > summary").click()


def press(page: Page, name: str) -> None:
    """Click when the button lies still: what is drawn while the page scrolls pushes it about."""
    target, boxes = page.get_by_role("button", name=name, exact=True, include_hidden=True).first, [None] * 6
    expect(target).to_be_enabled()
    if page.locator(".q-steps").is_visible():
        reveal(target)
    for _ in range(PATIENCE // 100):
        target.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
        boxes = [*boxes[1:], target.bounding_box()]
        if boxes[0] and boxes.count(boxes[0]) == len(boxes):
            break
    target.click()


def state(page: Page, word: str) -> None:
    """Wait until the run that is shown is in a state."""
    expect(page.locator(".q-state strong")).to_have_text(word)


def card(page: Page, label: str) -> Locator:
    """The first card with a label."""
    return page.locator(".q-card", has=page.locator("dt", has_text=re.compile(f"^{re.escape(label)}$"))).first


def step_beyond(page: Page, step: int) -> None:
    """Wait until the page shows a later step."""
    page.wait_for_function(
        """step => [...document.querySelectorAll('.q-card')].some(card =>
             /^(Step|Passo)$/.test(card.querySelector('dt').textContent) &&
             parseInt(card.querySelector('dd').textContent.replace(/[^0-9/]/g, '')) > step)""",
        arg=step,
    )  # fmt: skip


def fill(page: Page, label: str, text: str) -> None:
    """Type into a field and leave it."""
    field = page.get_by_label(label, exact=True).last
    if page.locator(".q-steps").is_visible():
        reveal(field)
    field.fill(text)
    field.blur()


def show_all(page: Page) -> None:
    """Make the window as high as the page, so that all of it is drawn and stands still."""
    size = page.viewport_size or {"width": 1280, "height": 1000}
    heights = "Math.max(...[...document.querySelectorAll('*')].map(e => e.scrollHeight))"
    for _ in range(2):  # what is drawn at last may be higher
        page.set_viewport_size({"width": size["width"], "height": min(int(page.evaluate(heights)) + 40, 16_000)})
        page.wait_for_timeout(500)


def write_rows(path: Path, *more: tuple[str, str], count: int = 11) -> Path:
    """A small file of questions and answers."""
    pairs = [*((f"Question {i}?", f"Answer {i}") for i in range(count)), *more]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns), encoding="utf-8")
    return path
