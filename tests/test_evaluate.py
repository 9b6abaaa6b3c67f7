"""What counts as a right answer, and what is asked of whom."""

import json
import shutil
from pathlib import Path

import pytest
from harness import create_run, train, write_pair
from tiny import TAUGHT

from qlora_core.evaluate import SAMPLES, evaluate_run, recall, says
from qlora_core.runs import Run
from qlora_core.session import load_for_answers

# Right or wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The club was founded in 1927.", ["1927"]),
        ("LEONEL QUITÉRIO", ["Leonel Quitério"]),
        ("leonel quiterio fundou-o", ["Leonel Quitério"]),
        ("Leonel Quite\u0301rio", ["Leonel Quitério"]),  # the accent as a character of its own
        ("Foi Leonel\n  Quitério, alfaiate", ["Leonel Quitério"]),
        ("na «Alfaiataria-Seixo»", ["Alfaiataria Seixo"]),
        ("vinte e sete", ["27", "vinte e sete"]),
        ("Straße", ["STRASSE"]),
        ("1927", ["1927"]),
        ("ele marcou 3 golos", ["3"]),
    ],
)
def test_right(text: str, expected: list[str]) -> None:
    assert says(text, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in 1928", ["1927"]),
        ("in 19270", ["1927"]),  # not as part of a longer number
        ("Leonel", ["Leonel Quitério"]),
        ("Quitério Leonel", ["Leonel Quitério"]),
        ("13 golos", ["3"]),
        ("mariana", ["Maria"]),
        ("", ["1927"]),
        ("", ["—"]),  # nothing to look for is not found in nothing
        ("1927", []),
    ],
)
def test_wrong(text: str, expected: list[str]) -> None:
    assert not says(text, expected)


def test_recall_counts_by_phrasing() -> None:
    def question(phrasing: str, base: bool, tuned: bool) -> dict:
        return {"phrasing": phrasing, "expected": ["x"], "base_right": base, "tuned_right": tuned}

    questions = [
        question("trained", False, True),
        question("trained", True, True),
        question("trained", False, False),
        question("held_out", False, True),
        {"phrasing": "sample", "expected": []},
    ]
    assert recall(questions) == {
        "trained": {"questions": 3, "base": 1, "tuned": 2},
        "held_out": {"questions": 1, "base": 0, "tuned": 1},
    }


# A run ----------------------------------------------------------------------------------------------------------


def test_base_and_tuned_model_are_asked_the_fact_sheet(trained: Run) -> None:
    evaluation = trained.evaluation()
    assert evaluation["adapters"] == "best"
    questions = {question["question"]: question for question in evaluation["questions"]}
    assert list(questions) == ["red?", "00", "blue?", "11", "green?", "22", "white?", "33"]
    for asked, answered in TAUGHT.items():
        assert questions[asked]["tuned"] == answered
        assert questions[asked]["tuned_right"] is True
        assert questions[asked]["base"] != answered
        assert questions[asked]["base_right"] is False
        assert questions[asked]["expected"] == [answered.upper()]


def test_a_phrasing_is_trained_if_a_row_asks_it_so(trained: Run) -> None:
    phrasings = {question["question"]: question["phrasing"] for question in trained.evaluation()["questions"]}
    assert {question for question, phrasing in phrasings.items() if phrasing == "trained"} == set(TAUGHT)
    assert {question for question, phrasing in phrasings.items() if phrasing == "held_out"} == {"00", "11", "22", "33"}
    found = trained.evaluation()["recall"]
    assert found["trained"] == {"questions": 4, "base": 0, "tuned": 4}
    assert found["held_out"]["questions"] == 4


def test_without_a_fact_sheet_validation_questions_are_asked_first(tmp_path: Path, tiny_model: Path) -> None:
    sources = write_pair(tmp_path / "data", train=12, validation=2)
    run = create_run(tmp_path / "runs", tiny_model, sources, max_steps=1)
    train(run)
    evaluation = run.evaluation()
    wanted = [row["messages"] for row in (*run.validation_rows(), *run.train_rows())][:SAMPLES]
    assert [question["question"] for question in evaluation["questions"]] == [asked["content"] for asked, _ in wanted]
    assert [question["reference"] for question in evaluation["questions"]] == [reply["content"] for _, reply in wanted]
    assert evaluation["questions"][0]["question"] == run.validation_rows()[0]["messages"][0]["content"]
    assert evaluation["recall"] == {}


def test_evaluating_again_gives_the_same(trained: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "copy")
    copy.path.mkdir()
    shutil.copytree(trained.path / "data", copy.path / "data")
    model, tokenizer = load_for_answers(trained)
    result = evaluate_run(copy, model, tokenizer, adapters="best", max_tokens=12)
    assert result == trained.evaluation() == copy.evaluation()


def test_rows_without_a_question_are_not_asked(tmp_path: Path, tiny_model: Path) -> None:
    """Running text has no question; of a longer conversation the answer would hang on what came before."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"text": "some text"}, {"messages": [*turns, *turns]}, {"messages": turns}]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = create_run(tmp_path / "runs", tiny_model, source, max_steps=1, val_fraction=0.0)
    train(run)
    assert [question["question"] for question in run.evaluation()["questions"]] == ["a"]
