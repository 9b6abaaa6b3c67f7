"""What data, prompts, answers, runs and logs say is text on every page, whatever it says."""

import json
import shutil

import pytest
from browsing import MARKUP, Server, expect, fill, opened, press, show_all, write_rows

from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock, RunWriter

pytestmark = pytest.mark.browser

NAMES = ['<img src=x onerror="document.title=`owned`">', "<b id=owned>", "[x](javascript:document.title='owned')"]
PAYLOADS = [
    MARKUP,
    "<script>document.title='owned'</script>",
    "<svg/onload=\"document.title='owned'\">",
    "</div></pre><iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>",
    "{{constructor.constructor('document.title=`owned`')()}}",
    "<a id=owned href=\"javascript:document.title='owned'\">x</a>",
    "$$\\href{javascript:document.title='owned'}{x}$$",
    "&lt;img src=x onerror=document.title='owned'&gt;",
]


@pytest.fixture
def hostile(trained: Run, tmp_path) -> Run:
    """A run in which everything that can be said says something bad, and another; some directories have a bad name."""
    run = Run(tmp_path / "runs" / "hostile")
    shutil.copytree(trained.path, run.path)
    text = "\n".join(PAYLOADS)
    samples = [{"step": i, "epoch": 1, "question": payload, "answer": text, "reference": payload}
               for i, payload in enumerate(PAYLOADS)]  # fmt: skip
    (run.path / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples), encoding="utf-8")
    evaluation = run.evaluation()
    for question, payload in zip(evaluation["questions"], PAYLOADS, strict=False):
        question |= {"question": payload, "base": payload, "tuned": text}
    (run.path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    (run.path / "worker.log").write_text(text, encoding="utf-8")
    run.result.mkdir(parents=True, exist_ok=True)
    (run.result / "INTEGRATION.md").write_text(text, encoding="utf-8")
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.log("warning", step=1, message=text)
        writer.set_status("failed", message=text)
    for name in ("hostile-2", *NAMES):
        shutil.copytree(run.path, run.path.with_name(name))
    return run


def test_on_the_page_that_trains(browser, hostile, tmp_path):
    """`opened` asserts at its end that nothing of it became an element, ran, or fetched something."""
    rows = write_rows(tmp_path / "rows.jsonl", *((payload, payload) for payload in PAYLOADS))
    rows = rows.rename(tmp_path / "<b id=owned>rows.jsonl")
    flags = ["--model", hostile.environment()["model"]["path"], "--data", rows, "--runs-dir", hostile.path.parent]
    with Server(tmp_path / "server.log", *flags) as server, opened(browser, server.address) as page:
        page.get_by_label("Show run").select_option("hostile")
        expect(page.locator(".q-state strong")).to_have_text("failed")
        fill(page, "Search their text", "owned")
        expect(page.locator(".q-tokens")).to_be_visible()
        for fold in page.locator("details").all():
            fold.evaluate("element => { element.open = true }")
        fill(page, "Question", MARKUP)
        press(page, "Ask")
        expect(page.locator(".q-asked")).to_have_text(MARKUP)
        show_all(page)
        expect(page.get_by_text(PAYLOADS[1]).first).to_be_visible()


@pytest.mark.parametrize("app", ["compare", "chat"])
def test_on_the_other_pages(browser, hostile, tmp_path, app):
    with (
        Server(tmp_path / "server.log", "--runs-dir", hostile.path.parent, app=app) as server,
        opened(browser, server.address) as page,
    ):
        if app == "compare":
            expect(page.get_by_text(PAYLOADS[1]).first).to_be_visible()
        else:
            expect(page.get_by_label("Who to talk to").first.locator("option")).to_have_count(3)  # and a base alone
            fill(page, "Message", MARKUP)
            press(page, "Send")
            expect(page.locator(".q-mine")).to_have_text(MARKUP)
        show_all(page)
