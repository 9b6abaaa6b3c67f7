"""All notebooks behind one address: `qlora app`, its token, its links, and a page that is only to be looked at."""

import urllib.error
import urllib.request

import pytest
from browsing import Server, button, card, expect, go, opened, press

pytestmark = pytest.mark.browser


def test_from_one_notebook_to_the_others(browser, trained, tmp_path):
    with Server(tmp_path / "server.log", "--runs-dir", trained.path.parent, command="app") as server:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(server.origin)
        with opened(browser, server.address) as page:
            page.get_by_role("link", name="Compare", exact=True).click()
            expect(page.get_by_role("heading", name="Compare runs", level=1)).to_be_visible()
            expect(page.get_by_text("Choose two runs or more.")).to_be_visible()
            page.get_by_role("link", name="Chat", exact=True).click()
            expect(page.get_by_role("heading", name="Talk to it", level=1)).to_be_visible()
            talk(page)
            page.get_by_role("link", name="Train", exact=True).click()
            expect(page.get_by_role("heading", name="QLoRA Notebook", level=1)).to_be_visible()


def talk(page) -> None:
    """A conversation: a question suggested, one written, both columns, one asked anew."""
    page.get_by_role("group", name="Suggested questions").get_by_role("button").first.click()
    expect(page.locator(".q-bubble .q-tuned .q-small")).to_contain_text("tokens/s")
    expect(page.get_by_role("group", name="Suggested questions")).to_have_count(0)
    field = page.get_by_label("Message", exact=True).last
    page.get_by_role("checkbox", name="Compare with the base").click()
    field.click()
    page.keyboard.type("blue?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("green?")
    expect(field).to_have_value("blue?\ngreen?")
    page.keyboard.press("Enter")
    expect(page.locator(".q-mine").last).to_have_text("blue?green?")
    expect(field).to_have_value("")
    expect(field).to_be_focused()  # to write on at once
    tuned, base = page.locator(".q-two .q-answer.q-tuned"), page.locator(".q-two .q-answer:not(.q-tuned)")
    expect(tuned.locator(".q-small")).to_contain_text("tokens/s")
    expect(base.locator(".q-small")).to_contain_text("tokens/s")
    assert tuned.bounding_box()["y"] == base.bounding_box()["y"]
    button(page, "Edit").first.click()
    expect(page.get_by_label("Message to ask anew", exact=True).last).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("red?")
    page.keyboard.press("Enter")
    expect(page.locator(".q-mine")).to_have_text(["red?"])  # what followed is replaced
    expect(page.locator(".q-two .q-answer:not(.q-tuned) .q-small")).to_contain_text("tokens/s")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".q-mine + .q-acts .q-copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == "red?"
    press(page, "New conversation")
    expect(page.get_by_text("Nothing said yet.")).to_be_visible()


def test_a_page_to_look_at_starts_nothing(browser, trained, tmp_path):
    flags = ["--runs-dir", trained.path.parent, "--run", trained.name, "--read-only"]
    with (
        Server(tmp_path / "server.log", *flags, command="app") as server,
        opened(browser, server.address) as page,
    ):
        expect(card(page, "Step").locator("dd")).to_contain_text("/")
        go(page, "prepare")
        expect(page.get_by_text("nothing on it starts or ends training")).to_be_visible()
        for name in ("Start", "Go on", "Pause", "Stop", "Export", "Ask", "Run hardware check", "Fetch it"):
            expect(button(page, name)).to_have_count(0)
