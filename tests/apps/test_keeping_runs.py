"""A run gets another name and a note on the page, and is deleted there once that was confirmed."""

import re
import shutil

import pytest
from browsing import Server, expect, fill, opened, press, unfold

pytestmark = pytest.mark.browser


def test_a_run_is_renamed_annotated_and_deleted(browser, trained, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(trained.path, runs / "first_try_1")
    with Server(tmp_path / "server.log", "--runs-dir", runs) as server, opened(browser, server.address) as page:
        unfold(page, "Rename, annotate or delete")
        expect(page.get_by_label("Delete first_try_1 with its checkpoints and exports")).to_be_visible()
        fill(page, "Name", "second")
        fill(page, "Note", "os mesmos dados, mais épocas")
        press(page, "Save")
        expect(page.get_by_text("Saved as second.")).to_be_visible()
        expect(page.get_by_role("cell", name="os mesmos dados, mais épocas")).to_be_visible()
        assert [path.name for path in runs.iterdir()] == ["second"]
        delete = page.get_by_role("button", name=re.compile("Delete, and free"))
        delete.click()
        expect(page.get_by_text("Tick the box first")).to_be_visible()
        page.get_by_label("Delete second with its checkpoints and exports").click()
        delete.click()
        expect(page.get_by_text("second is deleted")).to_be_visible()
        assert list(runs.iterdir()) == []
