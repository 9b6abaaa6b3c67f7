"""Sources that are no good end with one line or a report, never with a traceback; what cannot lie in the corpus."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import processes
import pytest

from qlora_core.files.storage import finish_replacing

GOOD = '{"prompt": "Who?", "completion": "Ana."}\n{"prompt": "When?", "completion": "1974."}\n'


@pytest.fixture
def qlora(tiny_model, tmp_path):
    """`qlora data … --json` in `tmp_path`: status, report or None, and standard error."""

    def run(*arguments: str, preload: str = "") -> tuple[int, dict | None, str]:
        code = f"{preload}\nimport sys; from qlora_core.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "data", *arguments, "--out", "out", "--model", str(tiny_model), "--json"]
        done = processes.run(command, cwd=tmp_path, text=True)
        assert "Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr

    return run


TELL_PEAK = """
import atexit, pathlib, resource, sys
def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # what getrusage tells on Linux began with the memory of the process that started this one
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
atexit.register(lambda: print(peak(), file=sys.stderr))
"""


def skipped(report: dict) -> dict[str, str]:
    return {Path(found["where"]).name: found["reason"] for found in report["skipped_files"]["listed"]}


def test_a_directory_of_everything_that_is_no_file(qlora, tmp_path):
    folder = tmp_path / "mine"
    (folder / "empty").mkdir(parents=True)
    (folder / "rows.jsonl").write_text(GOOD, encoding="utf-8")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "dangling.jsonl").symlink_to(folder / "nowhere")
    (folder / "again").symlink_to(folder)  # a link that leads back
    (folder / "linked.jsonl").symlink_to(folder / "rows.jsonl")
    status, report, _ = qlora("mine")
    assert status == 0
    assert (report["files"], report["train"] + report["validation"]) == (1, 2)
    assert skipped(report) == {
        "pipe.jsonl": "not a regular file",
        "dangling.jsonl": "a link to something that is not there",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read(qlora, tmp_path):
    closed = tmp_path / "mine" / "closed"
    closed.mkdir(parents=True)
    (tmp_path / "mine" / "rows.jsonl").write_text(GOOD, encoding="utf-8")
    closed.chmod(0)
    try:
        status, report, _ = qlora("mine")
    finally:
        closed.chmod(0o700)
    assert status == 0
    assert skipped(report) == {"closed": "cannot be read: Permission denied"}


@pytest.mark.parametrize("source", ["pipe.jsonl", "empty", "dangling.jsonl", "nowhere", "/dev/null"])
def test_a_source_that_holds_nothing_is_an_error_of_one_kind(qlora, tmp_path, source):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "elsewhere")
    status, report, told = qlora(source)
    assert (status, report) == (1, None)
    assert told.startswith(f"error: {source}: ")
    assert "no such file" in told or "accepted rows" in told


def test_bad_input_leaves_an_older_output_alone(qlora, tmp_path):
    (tmp_path / "good.jsonl").write_text(GOOD, encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text("[1]\n", encoding="utf-8")
    assert qlora("good.jsonl")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    status, _, told = qlora("bad.jsonl")
    assert status == 1
    assert "bad.jsonl:1: a row must be a JSON object, found a list" in told
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_gigabyte_in_one_line_takes_no_memory_and_spoils_no_other_row(qlora, tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(GOOD.encode())
        file.truncate(file.tell() + (1 << 30))  # zeros that take no room on the disk
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + GOOD.replace("Who", "Whose").encode())
    status, report, told = qlora("rows.jsonl", preload=TELL_PEAK)
    assert status == 1  # more than a tenth could not be read
    assert report["train"] + report["validation"] == 3  # "When?" stands twice
    (rejected,) = report["rejected"]["listed"]
    assert rejected["where"] == "rows.jsonl:3"
    assert rejected["reason"] == "a line of more than 16 MB"
    assert int(told.split()[-1]) < 400 << 20


def test_killed_at_any_moment_it_leaves_the_old_output_or_the_new_one(qlora, tiny_model, tmp_path, request):
    """Old and new differ in every file; a process that is killed can clear nothing away."""
    rng = random.Random(1)
    for name, count in (("old", 20_000), ("new", 30_000)):
        rows = (f'{{"prompt": "{name} {i} {rng.random()}", "completion": "{rng.random()}"}}\n' for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        assert qlora(f"{name}.jsonl", "--no-tokens")[0] == 0
        saved = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        (tmp_path / name).mkdir()
        for file, content in saved.items():
            (tmp_path / name / file).write_bytes(content)
    command = [sys.executable, "-m", "qlora_core", "data", "new.jsonl", "--no-tokens", "--model", str(tiny_model)]
    began = time.monotonic()
    subprocess.run([*command, "--out", "timed"], cwd=tmp_path, check=True, capture_output=True)
    whole = time.monotonic() - began
    found = Counter()
    for number in range(request.config.getoption("--kills")):
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(tmp_path / "old", tmp_path / "out")
        with subprocess.Popen([*command, "--out", "out"], cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(0.3, 1.1) * whole if number else 0)  # the first before anything is written
            process.kill()
        finish_replacing(tmp_path / "out")  # as reading the directory does
        files = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.name[0] != "."}
        whose = [
            name for name in ("old", "new") if files == {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        ]
        found[whose[0] if whose else "mixed"] += 1
    assert set(found) <= {"old", "new"}
    assert found["old"]
    assert qlora("new.jsonl", "--no-tokens")[0] == 0
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name[0] == "."]


def test_two_hundred_thousand_brackets(qlora, tmp_path):
    (tmp_path / "rows.jsonl").write_text("[" * 200_000 + "\n" + '{"a":' * 200_000 + "\n" + GOOD, encoding="utf-8")
    status, report, _ = qlora("rows.jsonl")
    assert status == 1  # more than a tenth could not be read
    assert [found["reason"] for found in report["rejected"]["listed"]] == ["brackets nested too deeply"] * 2


@pytest.mark.skipif(sys.platform == "darwin", reason="names are always UTF-8 there")
def test_a_file_whose_name_is_not_utf_8(qlora, tmp_path):
    (tmp_path / "mine").mkdir()
    with open(os.fsencode(tmp_path) + b"/mine/a\xe7\xe3o.jsonl", "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(GOOD + "[]\n")
    status, report, _ = qlora("mine")
    assert status == 0
    assert report["train"] + report["validation"] == 2
    assert report["rejected"]["listed"][0]["where"] == "mine/a??o.jsonl:3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "Frage=prompt"], "columns: wanted OURS=YOURS"),
        (["--question", "Wer?"], "{title}"),
        (["--val-rows", "-1"], "val_rows must be at least 0"),
    ],
)
def test_a_setting_that_is_wrong(qlora, tmp_path, arguments, message):
    (tmp_path / "rows.jsonl").write_text(GOOD, encoding="utf-8")
    status, _, told = qlora("rows.jsonl", *arguments)
    assert status == 1
    assert told.startswith("error: ")
    assert message in told
    assert len(told.splitlines()) == 1
