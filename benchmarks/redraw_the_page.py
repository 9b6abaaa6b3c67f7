"""The cost to the page of following a long run: `uv run python benchmarks/redraw_the_page.py [--browser]`.

A run of 100,000 steps is made up and read; then steps are added one by one, as a trainer does, and all that is done on
the server for each is measured: reading, figures, six charts, log. The page itself draws charts less often than that:
when they would look different. With `--browser`, in the system's Chromium: when the heading and a usable button are
there, and in how many frames a chart was missing while the run grew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_core.config import from_flat, to_json
from qlora_core.page import training
from qlora_core.page.problems import Problem
from qlora_core.page.watching import RunWatcher
from qlora_core.runs.plan import TrainingTracker


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--redraws", type=int, default=50)
    parser.add_argument("--browser", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        runs = Path(directory)
        write_run(runs / "long", arguments.steps)
        measured = on_the_server(runs, arguments.steps, arguments.redraws)
        if arguments.browser:
            measured |= in_the_browser(runs)
    print(json.dumps({"steps": arguments.steps, **measured}, indent=2))


def made_up_step(number: int, numbers: random.Random) -> str:
    """Return the line of a step in `metrics.jsonl`."""
    event: dict[str, Any] = {"type": "step", "epoch": number // 1000 + 1, "step": number}
    event |= {"train_loss": 1 + 3 * math.exp(-number / 3e4) + numbers.gauss(0, 0.2), "learning_rate": 1e-3}
    event |= {"grad_norm": abs(numbers.gauss(1, 0.3)), "tokens": 812, "target_tokens": 300, "seconds": 1.0}
    event |= {"tokens_per_second": numbers.gauss(812, 60), "peak_memory_bytes": 2_100_000_000}
    event |= {"available_memory_bytes": int(numbers.gauss(5e9, 1e8)), "time": 1.7e9 + number}
    event |= {"cpu_percent": min(100.0, max(0.0, numbers.gauss(85, 6)))}
    return json.dumps(event) + "\n"


def write_run(path: Path, steps: int) -> None:
    """Write a run with a validation and a checkpoint every 1,000 steps."""
    path.mkdir()
    (path / "config.json").write_text(to_json(from_flat({})), encoding="utf-8")
    status = {"state": "paused", "step": steps, "total_steps": 2 * steps, "time": 1.7e9}
    (path / "status.json").write_text(json.dumps(status), encoding="utf-8")
    numbers = random.Random(0)
    with (path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        file.write(json.dumps({"type": "start", "step": 0, "epochs": 200}) + "\n")
        for number in range(1, steps + 1):
            file.write(made_up_step(number, numbers))
            if number % 1000 == 0:
                loss = 1.2 + 3 * math.exp(-number / 3e4)
                file.write(json.dumps({"type": "eval", "step": number, "val_loss": loss, "perplexity": 4.0,
                                       "seconds": 3.0, "time": 1.7e9 + number, "best": True}) + "\n")  # fmt: skip
                saved = {"type": "checkpoint", "step": number, "bytes": 5_000_000, "seconds": 0.2, "time": 1.7e9}
                file.write(json.dumps(saved) + "\n")


def on_the_server(runs: Path, steps: int, redraws: int) -> dict[str, Any]:
    """Return the seconds of the first read, the milliseconds of each later one, and the size of what is sent."""
    watcher, nothing, numbers = RunWatcher(TrainingTracker(runs)), Problem("no plan"), random.Random(1)
    began = time.perf_counter()
    snapshot = watcher.look(nothing, "long")
    first = time.perf_counter() - began
    began = time.perf_counter()
    training.run_charts(snapshot)  # specifications are built once
    built = time.perf_counter() - began
    times, sizes = [], []
    for number in range(steps + 1, steps + redraws + 1):
        with (runs / "long" / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(made_up_step(number, numbers))
        began = time.perf_counter()
        seen = watcher.look(nothing, "long")
        shown = [
            training.run_panel(seen),
            training.run_charts(seen),
            training.checkpoints(seen),
            training.run_log(seen),
        ]
        times.append(1000 * (time.perf_counter() - began))
        sizes.append(sum(len(part.text) for part in shown if part is not None) / 1000)
    return {
        "first read, s": round(first, 2),
        "first drawing, s": round(built, 2),
        "redraw of all, median ms": round(statistics.median(times), 1),
        "redraw of all, worst ms": round(max(times), 1),
        "sent, all of it, kB": round(sizes[-1]),
        "sent, figures alone, kB": round(len(training.run_panel(seen).text) / 1000, 1),
    }


@contextlib.contextmanager
def served(runs: Path) -> Iterator[str]:
    """Serve the notebook with `marimo run`, showing these runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "marimo", "run", "apps/train.py", "--headless", "--no-token", "--port", str(port)]
    environment = {**os.environ, "MARIMO_SKIP_UPDATE_CHECK": "1"}
    server = subprocess.Popen(
        [*command, "--", "--runs-dir", str(runs)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health"):
                break
            time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait()


FRAMES = """() => {
  const canvas = e => e.tagName === 'CANVAS' ? e :
    [...(e.shadowRoot ? e.shadowRoot.children : []), ...e.children].map(canvas).find(Boolean);
  const charts = [...document.querySelectorAll('.q-chart')];
  window.seen = {frames: 0, without: 0, redrawn: 0};
  let last = charts.map(canvas);
  const look = () => {
    const now = charts.map(canvas);
    seen.frames += 1;
    seen.without += now.some(c => !c || !c.offsetHeight) ? 1 : 0;
    seen.redrawn += now.some((c, i) => c !== last[i]) ? 1 : 0;
    if (!seen.at && now[0] !== last[0]) seen.at = Date.now();
    last = now;
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}"""


def in_the_browser(runs: Path) -> dict[str, Any]:
    """Return the seconds until the page can be read and used, and whether charts flicker while the run grows."""
    from playwright.sync_api import sync_playwright

    chromium = next(
        found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))
    )
    with served(runs) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        began = time.perf_counter()
        page.goto(address)
        page.get_by_role("heading", name="QLoRA Notebook").wait_for()
        heading = time.perf_counter() - began
        page.locator("button:enabled", has_text="Start").first.wait_for()
        start = time.perf_counter() - began
        page.locator("label[for=q-step-train]").click()
        page.get_by_label("Show run").first.select_option("long")
        page.locator(".q-chart canvas").nth(5).wait_for()
        page.wait_for_timeout(2000)
        page.evaluate(FRAMES)
        numbers, written = random.Random(2), time.time()
        with (runs / "long" / "metrics.jsonl").open("a", encoding="utf-8") as file:
            for number in range(200_001, 200_601):
                file.write(made_up_step(number, numbers))
        page.wait_for_function("window.seen.at > 0", timeout=20_000)
        page.wait_for_timeout(1000)
        seen = page.evaluate("window.seen")
        browser.close()
    return {
        "heading visible, s": round(heading, 2),
        "Start enabled, s": round(start, 2),
        "line written to chart drawn, s (looks are 1 s apart)": round(seen["at"] / 1000 - written, 2),
        "frames": seen["frames"],
        "frames without a chart": seen["without"],
    }


if __name__ == "__main__":
    main()
