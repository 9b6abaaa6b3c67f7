"""What counts as a right answer, and what is asked of whom."""

import json
import shutil
from pathlib import Path

import pytest
from harness import create_run, train, write_pair
from tiny import TAUGHT

from qlora_core.cli import main
from qlora_core.config import PaceConfig
from qlora_core.evaluation.measures import says
from qlora_core.evaluation.questions import recall
from qlora_core.reports import console
from qlora_core.runs.run import Run
from qlora_core.runs.time_estimate import ASKED_QUESTIONS
from qlora_core.training.evaluate import _samples, evaluate_run
from qlora_core.training.session import load_for_answers

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
    wanted = [row["messages"] for row in (*run.validation_rows(), *run.train_rows())][:ASKED_QUESTIONS]
    assert [question["question"] for question in evaluation["questions"]] == [asked["content"] for asked, _ in wanted]
    assert [question["reference"] for question in evaluation["questions"]] == [reply["content"] for _, reply in wanted]
    assert evaluation["questions"][0]["question"] == run.validation_rows()[0]["messages"][0]["content"]
    assert evaluation["recall"] == {}


def test_evaluating_again_gives_the_same(trained: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "copy")
    copy.path.mkdir()
    shutil.copytree(trained.path / "data", copy.path / "data")
    for name in ("status.json", "row_losses.jsonl"):
        shutil.copy(trained.path / name, copy.path)
    model, tokenizer = load_for_answers(trained)
    result = evaluate_run(copy, model, tokenizer, adapters="best", max_tokens=12)
    assert result == trained.evaluation() == copy.evaluation()


def test_rows_without_a_question_are_not_asked(tmp_path: Path, tiny_model: Path) -> None:
    """Running text has no question; one that was asked already is not asked again."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"text": "some text"}, {"messages": [*turns, *turns]}, {"messages": turns}]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = create_run(tmp_path / "runs", tiny_model, source, max_steps=1, val_fraction=0.0)
    train(run)
    assert [question["question"] for question in run.evaluation()["questions"]] == ["a"]


SYSTEM = {"role": "system", "content": "You keep the lighthouse."}


def run_of(tmp_path: Path, model: Path, rows: list[dict], **settings) -> Run:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return create_run(tmp_path / "runs", model, source, max_steps=1, **settings)


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_rows_with_a_system_text_are_asked_with_it(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"messages": [SYSTEM, *talk(f"When is lamp {i} lit?", f"At {i}.", "And then?", "Later.")]} for i in range(6)
    ]
    run = run_of(tmp_path, tiny_model, rows, val_fraction=0.0)
    train(run)
    asked = {question["question"]: question["reference"] for question in run.evaluation()["questions"]}
    assert asked == {f"When is lamp {i} lit?": f"At {i}." for i in range(6)}
    assert {sample["question"] for sample in run.samples()} <= set(asked)
    prompts = [prompt for _, _, prompt in _samples(run, PaceConfig())]
    assert main(["generate", run.name, "--runs-dir", str(run.path.parent), "--prompt", "x", "--max-tokens", "1"]) == 0
    assert "--system 'You keep the lighthouse.'" in capsys.readouterr().err
    assert prompts
    assert all(prompt[0] == SYSTEM and len(prompt) == 2 for prompt in prompts)


def test_questions_of_ones_own_come_with_the_system_text_that_all_rows_have(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"messages": [SYSTEM, *talk(f"{i}?", "yes")]} for i in range(6)]
    facts = tmp_path / "sheet.jsonl"
    facts.write_text(json.dumps({"expected": ["noon"], "questions": ["When?"]}) + "\n", encoding="utf-8")
    run = run_of(tmp_path, tiny_model, rows, facts=str(facts))
    wanted = [SYSTEM, {"role": "user", "content": "When?"}]
    assert [prompt for _, _, prompt in _samples(run, PaceConfig())] == [wanted]
    assert [prompt for _, _, prompt in _samples(run, PaceConfig(sample_prompts=("When?",)))] == [wanted]


def test_that_there_was_nothing_to_ask_is_said(tmp_path: Path, tiny_model: Path) -> None:
    run = run_of(tmp_path, tiny_model, [{"text": f"The lamp of tower {i} is lit."} for i in range(4)])
    train(run)
    assert run.evaluation()["questions"] == []
    assert console.NOTHING_ASKED in console.final_summary(run)
