"""How the page looks and reads: light and dark, on a phone, in both languages, for whoever cannot see or point."""

import json
import runpy
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import Server, card, expect, go, opened, show_all, unfold
from conftest import ROOT

from qlora_core.page.steps import STEPS
from qlora_core.runs.run import Run
from qlora_core.translations import catalogue

pytestmark = pytest.mark.browser

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 420, "height": 860}
ENGLISH, PORTUGUESE = "en-GB", "pt-PT"
OURS = {"include": [[".marimo-cell"]], "exclude": [["marimo-file"]]}
"""Not the frame that marimo puts around, nor its field for files, whose input, which nobody reaches, has no name."""


@pytest.fixture(scope="module")
def server(trained: Run, tmp_path_factory):
    """A page beside a run that ended, whose settings it has."""
    log = tmp_path_factory.mktemp("appearance") / "server.log"
    flags = ["--runs-dir", trained.path.parent, "--run", trained.name]
    with Server(log, *flags) as made:
        yield made


@pytest.mark.parametrize(
    ("viewport", "scheme", "locale"),
    [(WIDE, "light", ENGLISH), (WIDE, "dark", PORTUGUESE), (PHONE, "light", PORTUGUESE), (PHONE, "dark", ENGLISH)],
    ids=["wide", "wide-dark-pt", "phone-pt", "phone-dark"],
)
def test_it_can_be_read(browser, server, viewport, scheme, locale):
    with opened(browser, server.address, viewport=viewport, color_scheme=scheme, locale=locale) as page:
        expect(page.locator(".q-chart canvas")).to_have_count(6)
        assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
        page.locator("details.q-fold").evaluate_all("folds => folds.forEach(fold => fold.open = true)")
        for step in STEPS:
            go(page, step)
            show_all(page)
            assert too_wide(page) == []
            assert locale == ENGLISH or untranslated(page) == []
            found = Axe().run(page, OURS)
            assert [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in serious(found)] == []


def too_wide(page) -> list[str]:
    """What reaches beyond the window, unless it lies in something that scrolls."""
    return page.evaluate(
        """() => [...document.querySelectorAll('[class*="q-"]')].filter(e => {
             for (let p = e.parentElement; p; p = p.parentElement)
               if (p.matches('.q-scroll, .q-text, .q-log, .q-samples, pre')) return false;
             return e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1;
           }).map(e => e.className)"""
    )


def untranslated(page) -> list[str]:
    """English sentences of the catalogue that are shown; single words may be the same in both languages."""
    shown = page.inner_text("body")
    return [text for text, other in catalogue("pt").items() if " " in text and text != other and text in shown]


def serious(found) -> list[dict]:
    return [v for v in found.response["violations"] if v["impact"] in ("serious", "critical")]


def test_the_language_can_be_asked_for(browser, trained, tmp_path):
    flags = ["--runs-dir", trained.path.parent, "--run", trained.name, "--lang", "pt"]
    with Server(tmp_path / "server.log", *flags) as server, opened(browser, server.address) as page:
        expect(page.get_by_role("radio", name="Preparar", exact=True)).to_be_visible()


def test_it_goes_on_by_keyboard_alone(browser, server):
    """From the settings to the buttons by Tab, and a fold opens by Enter."""
    with opened(browser, server.address) as page:
        expect(page.locator(".q-chart canvas")).to_have_count(6)
        unfold(page, "Training settings")
        fold = page.locator("summary", has_text="More about training")
        page.get_by_label("Learning rate", exact=True).focus()
        page.keyboard.press("Tab")
        expect(fold).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_label("Weight decay", exact=True)).to_be_visible()


def test_a_hundred_thousand_steps(browser, tmp_path, tiny_model, tiny_rows):
    """Such a run is shown, and what is added to it is seen."""
    bench = runpy.run_path(str(ROOT / "benchmarks" / "redraw_the_page.py"))
    runs = tmp_path / "runs"
    runs.mkdir()
    bench["write_run"](runs / "long", 100_000)
    flags = ["--model", tiny_model, "--data", tiny_rows, "--runs-dir", runs]
    with Server(tmp_path / "server.log", *flags) as server, opened(browser, server.address) as page:
        go(page, "train")
        page.get_by_label("Show run").select_option("long")
        expect(card(page, "Step").locator("dd")).to_have_text("100,000 / 200,000")
        expect(page.locator(".q-chart canvas")).to_have_count(6)
        append_step(runs / "long", 100_001)
        expect(card(page, "Training loss").locator("dd")).to_have_text("7.250")


def append_step(run: Path, number: int) -> None:
    event = {"type": "step", "step": number, "epoch": 1, "train_loss": 7.25, "seconds": 1.0, "tokens": 800}
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
