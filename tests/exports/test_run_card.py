"""The run card: everything on one page, in Markdown and HTML, and nothing of this machine."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qlora_core import api
from qlora_core.cli import main
from qlora_core.evaluation.verdict import made_of
from qlora_core.exports.run_card import write_run_card
from qlora_core.runs.run import Run

HOSTILE = '<script>alert(1)</script> | [x](javascript:1) `a` "q"'


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained.path, tmp_path / "runs" / "trained"))


def judged(run: Run) -> None:
    """Write a made-up verdict into a run: the base is wrong, the tuned model right."""
    questions = [
        {"question": question, "expected": fact["expected"], "phrasing": "trained", "reference": "",
         "fact": fact["fact"],
         "answers": {"base": {"text": "no", "tokens": 2, "ended": True, "right": False},
                     "tuned": {"text": fact["expected"][0], "tokens": 2, "ended": True, "right": True}}}
        for fact in run.facts() for question in fact["questions"]
    ]  # fmt: skip
    found = {"with": made_of(run), "losses": [], "questions": questions, "general_texts": [], "general_questions": [],
             "invention": [], "memory": []}  # fmt: skip
    (run.path / "verdict.json").write_text(json.dumps(found), encoding="utf-8")


class Tags(HTMLParser):
    """Names of the elements of a page, and all addresses in it."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_it_tells_what_is_known_and_opens_alone(run, tmp_path):
    judged(run)
    markdown, page = write_run_card(run, tmp_path)
    for text in (markdown.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")):
        for part in ("Did it help?", "The tuned model is better than the base", "What became of each fact", "colour-0",
                     "How to repeat it", "qlora train", "Settings", "Hashes", "best/adapters.safetensors"):  # fmt: skip
            assert part in text
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    assert "svg" in tags.names
    assert "script" not in tags.names
    assert [address for address in tags.addresses if not address.startswith("#")] == []


def test_it_tells_nothing_of_this_machine(run, tmp_path):
    judged(run)
    for path in write_run_card(run, tmp_path):
        text = path.read_text(encoding="utf-8")
        assert str(tmp_path.parent) not in text
        assert str(Path.home()) not in text
        assert re.search(r"(?<![\w.])/(?:tmp|home|root|Users|var)/", text) is None


def test_text_of_others_is_text(run, tmp_path):
    judged(run)
    evaluation = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    evaluation["questions"][0]["base"] = HOSTILE
    (run.path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    environment = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    environment["model"]["name"] = HOSTILE.replace("/", "")
    (run.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    markdown, page = write_run_card(run, tmp_path)
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    assert "script" not in tags.names
    assert r"\<script\>alert(1)\<script\> \| \[x\](javascript:1)" in markdown.read_text(encoding="utf-8")


def test_without_an_evaluation_it_says_so(run, tmp_path):
    markdown, _ = write_run_card(run, tmp_path)
    assert "Not asked yet" in markdown.read_text(encoding="utf-8")
    (run.path / "verdict.json").write_text("{", encoding="utf-8")
    markdown, _ = write_run_card(run, tmp_path)
    text = markdown.read_text(encoding="utf-8")
    assert "verdict.json: cannot be read" in text
    assert "makes it again" in text
    assert str(run.path) not in text


def test_a_verdict_in_part_or_about_something_else_says_so(run, tmp_path):
    judged(run)
    path = run.path / "verdict.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    del found["memory"], found["invention"]
    path.write_text(json.dumps(found), encoding="utf-8")
    markdown, _ = write_run_card(run, tmp_path)
    text = markdown.read_text(encoding="utf-8")
    for part in ("Questions about what does not exist", "Rows, addresses and numbers repeated word for word"):
        assert f"Not judged: {part}: not asked yet" in text
    assert "Ordinary questions: not asked yet" not in text
    path.write_text(json.dumps({**found, "with": {**found["with"], "sha256": "0"}}), encoding="utf-8")
    markdown, _ = write_run_card(run, tmp_path)
    assert "about other adapters than the run has now. `qlora evaluate` asks again" in markdown.read_text("utf-8")
    assert "better than the base" not in markdown.read_text("utf-8")


def test_the_command_and_python_write_it_into_the_run(run, tmp_path, capsys):
    assert main(["card", run.name, "--runs-dir", str(run.path.parent), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in told["files"]] == ["run.md", "run.html"]
    assert all((run.path / name).is_file() for name in ("run.md", "run.html"))
    assert [path.parent for path in api.card(run, tmp_path / "out")] == [tmp_path / "out"] * 2
