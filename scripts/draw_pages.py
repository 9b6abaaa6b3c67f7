"""Take the pictures of the page that README.md and docs/ show: docs/page.png and docs/tokens.png.

    uv run python apps/train.py             trains the default run, a few minutes, unless it is there
    uv run python scripts/draw_pages.py     takes the pictures
    uv run python scripts/draw_pages.py --runs-dir DIRECTORY --run NAME   … of another run

Needs Chromium, like the tests of the page.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/support")]

from browsing import CHROMIUM, Server, fill, find_chromium, go, opened, unfold  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

WIDTH = 1120
SHOWN = {"viewport": {"width": WIDTH, "height": 1000}, "locale": "en-GB", "color_scheme": "light"}
CHARTS_TAKE = 1500  # ms from the last figure to charts that stand still


def main() -> int:
    """Serve the page and take both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", default="checkpoints_qlora")
    parser.add_argument("--run", default="", help="its settings and rows are shown (default: those of the defaults)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    flags = ["--runs-dir", arguments.runs_dir, *(["--run", arguments.run] if arguments.run else [])]
    with (
        tempfile.TemporaryDirectory() as directory,
        Server(Path(directory) / "server.log", *flags) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM)
        with opened(browser, server.address, **SHOWN) as page:
            take_training(page, arguments.out / "page.png")
            take_rows(page, arguments.out / "tokens.png")
        browser.close()
    return 0


def take_training(page: Page, path: Path) -> None:
    """Take the step “Train” of a run that ended: its figures and charts."""
    page.locator(".q-chart canvas").nth(5).wait_for(state="attached")
    go(page, "train")
    page.wait_for_timeout(CHARTS_TAKE)
    take(page, path, page.locator(".q-charts"))


def take_rows(page: Page, path: Path) -> None:
    """Take a conversation as the model reads it, in the step “Prepare”."""
    unfold(page, "Rows")
    fill(page, "Search their text", "nickname")
    row = page.locator("[data-cell-name=row_view]")
    row.get_by_text("nickname").first.wait_for()
    row.locator("summary", has_text="As tokens").click()
    page.wait_for_timeout(CHARTS_TAKE)
    page.evaluate("document.querySelector('#q-fold-rows').scrollIntoView()")
    take(page, path, row, page.locator("#q-fold-rows"))


def take(page: Page, path: Path, last, first=None) -> None:
    """Take a picture down to the lower end of `last`, from the top of the page or that of `first`."""
    page.set_viewport_size({"width": WIDTH, "height": 3000})  # so that nothing has to be scrolled
    page.wait_for_timeout(CHARTS_TAKE)
    top = first.bounding_box()["y"] - 12 if first else 0
    box = last.bounding_box()
    page.screenshot(path=path, clip={"x": 0, "y": top, "width": WIDTH, "height": box["y"] + box["height"] + 24 - top})
    print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    sys.exit(main())
