"""Speed and memory of preparing rows: `uv run python benchmarks/prepare_a_million_rows.py`.

Questions and answers are made up (200 bytes each, a thousandth of them twice), prepared without counting tokens,
prepared again unchanged, and only parsed, by `json.loads` into a list, as the measure of what is fast and large. Each
in a process of its own; memory is the sum of what that process and its children hold for themselves (PSS on Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--tokens", action="store_true", help="also all that `qlora data` does, tokens counted and saved"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["QLORA_CACHE"] = str(Path(directory, "cache"))
        path = Path(directory, "rows.jsonl")
        write_rows(path, arguments.rows)
        os.utime(path, (time.time() - 60,) * 2)  # as a file that lay there before
        works = {"parsed": parse, "prepared": prepare, "prepared again": prepare}
        works |= {"prepared, counted and saved": save} if arguments.tokens else {}
        measured = {name: in_a_process(work, path) for name, work in works.items()}
        size = path.stat().st_size
    rows = arguments.rows
    print(
        json.dumps(
            {
                "rows": rows,
                "megabytes": round(size / 1e6),
                "cores": psutil.cpu_count(logical=False),
                **{
                    name: {"seconds": round(seconds, 1), "rows/s": round(rows / seconds), "megabytes": round(peak)}
                    for name, (seconds, peak) in measured.items()
                },
                "time against parsing": round(measured["prepared"][0] / measured["parsed"][0], 2),
                "memory against parsing": round(measured["prepared"][1] / measured["parsed"][1], 2),
            },
            indent=2,
        )
    )


def write_rows(path: Path, rows: int) -> None:
    """Write questions and answers of made-up words."""
    rng = random.Random(0)
    letters = "aaabcdeeefghiiijlmnooopqrstuuvxzãçéô"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(20_000)]
    line = ""
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            if not line or rng.random() > 0.001:
                prompt, answer = " ".join(rng.choices(words, k=8)), " ".join(rng.choices(words, k=17))
                line = json.dumps({"prompt": f"{prompt}?", "completion": f"{answer}."}, ensure_ascii=False) + "\n"
            file.write(line)


def parse(path: Path) -> int:
    """Parse every row, the least work that any reader must do."""
    with path.open(encoding="utf-8") as file:
        return len([json.loads(line) for line in file])


def prepare(path: Path) -> int:
    """Do all that `qlora data --no-tokens` does before it saves."""
    from qlora_core import data
    from qlora_core.config import BaseConfig, DataConfig
    from qlora_core.models import base_models
    from qlora_core.tokens import tokenizer as tokens

    cache = os.environ.pop("QLORA_CACHE")  # the built-in model is where it always is
    tokenizer = tokens.ChatTokenizer(base_models.find_tokenizer(BaseConfig()))
    os.environ["QLORA_CACHE"] = cache
    prepared = data.prepare(DataConfig(data=(str(path),)), tokenizer)
    return len(prepared.train) + len(prepared.validation)


def save(path: Path) -> int:
    """Run `qlora data` on sources that it has not seen, tokens included."""
    from qlora_core import cli

    os.utime(path)  # changed just now
    directory = path.parent
    del os.environ["QLORA_CACHE"]
    return cli.main(["data", str(path), "--out", str(directory / "out"), "--json"])


def in_a_process(work: Callable[[Path], Any], path: Path) -> tuple[float, float]:
    """Return seconds and peak megabytes of `work` in its own process."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=quietly, args=(work, path))
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            peak[0] = max(peak[0], held_by(process.pid) / 1e6)

    watcher = threading.Thread(target=watch)
    began = time.perf_counter()
    process.start()
    watcher.start()
    process.join()
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed")
    return seconds, peak[0]


def quietly(work: Callable[[Path], Any], path: Path) -> None:
    """Run a command without showing what it prints."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        work(path)


def held_by(pid: int | None) -> int:
    """Return the bytes held by a process and its children; pages of files that they share count once."""
    total = 0
    try:
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            memory = one.memory_full_info()
            total += getattr(memory, "pss", None) or memory.rss
    except psutil.Error:
        pass
    return total


if __name__ == "__main__":
    main()
