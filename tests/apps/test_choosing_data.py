"""Data is chosen by typing and by browsing, and what became of it is shown."""

import pytest
from browsing import Server, card, expect, fill, opened, unfold, write_rows
from conftest import ROOT

pytestmark = pytest.mark.browser


def test_browsing_puts_what_is_chosen_in_the_place_of_what_was_typed(browser, tmp_path, tiny_model):
    rows = write_rows(tmp_path / "rows.jsonl", ("red?", ""))
    with rows.open("a", encoding="utf-8") as file:
        file.write("{ broken\n")
    flags = ["--model", tiny_model, "--data", rows, "--runs-dir", tmp_path / "runs"]
    with Server(tmp_path / "server.log", *flags) as server, opened(browser, server.address) as page:
        unfold(page, "Data")
        listed = page.get_by_label("Files and folders, one per line", exact=True)
        expect(card(page, "Rejected").locator("dd")).to_have_text("2")
        expect(page.get_by_text(f"{rows}:13")).to_be_visible()  # with its reason, where it was found
        page.locator("summary", has_text="Browse files…").click()
        page.get_by_role("row", name="data", exact=True).get_by_role("gridcell").first.click()
        expect(listed).to_have_value("data")
        expect(card(page, "Rejected").locator("dd")).to_have_text("0")
        expect(card(page, "Documents").locator("dd")).not_to_have_text("0")
        fill(page, "Files and folders, one per line", "no/such/folder")
        expect(page.locator(".q-danger", has_text="no/such/folder: no such file or directory")).to_have_count(1)


def test_rows_that_are_cut_and_rows_that_cannot_be_trained_are_seen_in_their_tokens(browser, tmp_path, tiny_model):
    rows = write_rows(tmp_path / "rows.jsonl", ("short?", "long " * 60), ("long? " * 60, "short"))
    flags = ["--model", tiny_model, "--data", rows, "--runs-dir", tmp_path / "runs", "--max-seq-length", "64",
             "--val-rows", "1"]  # fmt: skip
    with Server(tmp_path / "server.log", *flags) as server, opened(browser, server.address) as page:
        unfold(page, "Rows")
        page.get_by_label("Which", exact=True).select_option("Only cut")
        page.locator("summary", has_text="As tokens").click()
        expect(page.locator(".q-tokens .q-cut")).to_contain_text("l")
        assert "end of text" not in page.locator(".q-tokens .q-trained").inner_text()
        page.get_by_label("Which", exact=True).select_option("Only unusable")
        expect(page.get_by_text("the prompt fills").first).to_be_visible()


def test_files_are_dropped(browser, tmp_path, tiny_model):
    """They are copied beside the other data, and trained instead of what was typed."""
    rows = write_rows(tmp_path / "dropped-on-the-page.jsonl")
    flags = ["--model", tiny_model, "--data", tmp_path / "nothing", "--runs-dir", tmp_path / "runs"]
    kept = ROOT / "data" / "dropped" / rows.name
    kept.unlink(missing_ok=True)
    with Server(tmp_path / "server.log", *flags) as server, opened(browser, server.address) as page:
        page.locator("input[type=file]").set_input_files(rows)
        listed = page.get_by_label("Files and folders to train on, one a line", exact=True)
        expect(listed).to_have_value(f"data/dropped/{rows.name}")
        expect(page.get_by_text("11 rows to train").or_(page.get_by_text("10 rows to train"))).to_be_visible()
        assert kept.read_bytes() == rows.read_bytes()
        kept.unlink()
