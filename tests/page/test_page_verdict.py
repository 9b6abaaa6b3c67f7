"""The page on whether training helped: nothing asked, part of it, all of it, damage."""

import json
import shutil

import pytest

from qlora_core import translations
from qlora_core.evaluation.verdict import made_of
from qlora_core.page import verdict
from qlora_core.page.verdict import Judged
from qlora_core.runs.run import Run

WHO = "base", "tuned", "base_passages", "tuned_passages"


def found_of(run: Run) -> dict:
    """A made-up evaluation: the base knows nothing, the tuned model all it was taught."""
    questions = []
    for fact in run.facts():
        for place, question in enumerate(fact["questions"]):
            right = {"base": False, "tuned": not place, "base_passages": False, "tuned_passages": True}
            answers = {
                who: {"text": fact["expected"][0] if right[who] else "<b>no</b>", "tokens": 3, "ended": True,
                      "right": right[who]} for who in WHO
            }  # fmt: skip
            questions.append(
                {"question": question, "expected": fact["expected"], "phrasing": "held_out" if place else "trained",
                 "reference": "", "fact": fact["fact"], "passages": ["text"], "answers": answers}
            )  # fmt: skip
    losses = [{"tokens": 10, "base": 30.0 + row, "tuned": 5.0 + row} for row in range(8)]
    return {"with": made_of(run), "losses": losses, "questions": questions, "general_texts": losses,
            "general_questions": [], "invention": [], "memory": []}  # fmt: skip


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained.path, tmp_path / "trained"))


def write(run: Run, found: dict) -> Judged:
    (run.path / "verdict.json").write_text(json.dumps(found), encoding="utf-8")
    return verdict.look(run, None)


def test_nothing_was_asked(run):
    judged = verdict.look(run, None)
    assert judged.made == 0
    assert verdict.result(judged) is None
    assert "Nothing was asked yet" in verdict.progress(judged).text
    assert "Find out" in verdict.button(judged).text


def test_no_run_no_words():
    judged = verdict.look(None, None)
    assert verdict.result(judged) is None
    assert verdict.progress(judged) is None


def test_a_whole_evaluation(run):
    judged = write(run, found_of(run))
    html = verdict.result(judged).text
    assert "The tuned model is better than the base" in html
    assert "Loss of validation rows" in html
    assert "What became of each fact" in html
    assert "&lt;b&gt;no&lt;/b&gt;" in html
    assert "<b>no</b>" not in html
    assert "Ask everything again" in verdict.button(judged).text
    assert verdict.progress(judged) is None


def test_half_an_evaluation_says_so(run):
    found = found_of(run)
    del found["memory"]
    judged = write(run, found)
    html = verdict.result(judged).text
    assert "some of it is missing" in html
    assert "Rows, addresses and numbers repeated word for word: not asked yet" in html
    assert "Find out" in verdict.button(judged).text
    del found["questions"]
    assert verdict.result(write(run, found)) is None


def test_an_evaluation_of_other_data_is_not_shown_as_todays(run):
    found = found_of(run)
    del found["with"]["data"]["facts.jsonl"]
    judged = write(run, found)
    assert "data changed: facts.jsonl. Ask again." in verdict.result(judged).text
    assert "Find out" in verdict.button(judged).text


def test_one_that_was_begun_is_gone_on_with(run):
    judged = write(run, found_of(run))
    (run.path / "verdict_begun.json").write_text("{}", encoding="utf-8")
    assert "better than the base" in verdict.result(judged).text
    assert "Find out" in verdict.button(judged).text


def test_a_damaged_evaluation_is_told(run):
    (run.path / "verdict.json").write_text("{", encoding="utf-8")
    judged = verdict.look(run, None)
    html = verdict.result(judged).text
    assert "verdict.json" in html
    assert "made anew" in html


def test_a_new_evaluation_is_another_version(run):
    before = verdict.look(run, None)
    after = write(run, found_of(run))
    assert before.version != after.version
    assert after.version == verdict.look(run, None).version


def test_it_is_told_in_portuguese(run, monkeypatch):
    judged = write(run, found_of(run))
    monkeypatch.setattr(translations, "find_language", lambda: "pt")
    html = verdict.result(judged).text
    assert "O modelo afinado é melhor do que o de base" in html
    assert "3,350" in html  # the base's loss, with a comma
    for english in ("tuned", "base with", "Loss", "points", "phrasings", "Retrieval", "ordinary"):
        assert english not in html, english
