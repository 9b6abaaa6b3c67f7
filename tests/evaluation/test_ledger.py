"""The fact ledger: what was known, learned, lost, taught, and what to add."""

import json

import pytest

from qlora_core.evaluation.ledger import ENOUGH_PHRASINGS, ledger
from qlora_core.evaluation.questions import questions_of
from qlora_core.runs.run import Run

FACT = {"fact": "founder", "expected": ["Leonel"], "questions": ["Who founded it?", "Whose idea was it?"]}


def row(question, answer, source, **metadata):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "source": source, "metadata": metadata}


@pytest.fixture
def run_of(tmp_path):
    def make(rows, samples=(), facts=(FACT,)):
        (tmp_path / "data").mkdir()
        for name, content in (("data/train_data.jsonl", rows), ("data/facts.jsonl", facts), ("samples.jsonl", samples)):
            text = "".join(json.dumps(one) + "\n" for one in content)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return Run(tmp_path)

    return make


def judged(run, *tuned_right):
    """The run's questions as an evaluation judges them; the base is wrong."""
    questions = [question for question, _ in questions_of(run)]
    return [{**one, "base": "", "tuned": "", "base_right": False, "tuned_right": right}
            for one, right in zip(questions, tuned_right, strict=True)]  # fmt: skip


def test_questions_name_their_fact(run_of):
    run = run_of([row("Who founded it?", "Leonel.", "q:1")])
    assert [(question["fact"], question["phrasing"]) for question, _ in questions_of(run)] == [
        ("founder", "trained"), ("founder", "held_out"),
    ]  # fmt: skip


def test_what_was_learned_and_lost_is_told_by_step(run_of):
    answers = [(0, "Me."), (10, "Leonel."), (20, "Bento."), (30, "It was Leonel."), (40, "Leonel")]
    samples = [{"step": step, "question": "Who founded it?", "answer": answer} for step, answer in answers]
    (entry,) = ledger(run_of([], samples), [])
    first, second = entry.phrasings
    assert (first.learned_at, first.lost_at) == ((10, 30), (20,))
    assert (second.learned_at, second.lost_at) == ("unknown", "unknown")
    assert (first.phrasing, first.base_right, first.tuned_right) == ("unknown", None, None)
    assert (entry.advice, entry.known_before, entry.holds, entry.fails) == (None, (), (), ())


def test_rows_teach_by_their_fact_or_by_their_words(run_of):
    rows = [
        row("Who founded it?", "Leonel did.", "q:1", fact="founder"),
        row("Who swept it?", "Leonel did.", "q:2", fact="sweeper"),  # another fact, as it says itself
        row("And who else?", "Leonela.", "q:3"),  # another word
        {"text": "One night LEONEL knocked at the door.", "source": "b:4", "metadata": {}},
    ]
    run = run_of(rows)
    (entry,) = ledger(run, judged(run, True, True))
    assert [(one.source, one.question, one.names_fact) for one in entry.rows] == [
        ("q:1", "Who founded it?", True), ("b:4", "", False),
    ]  # fmt: skip
    assert (entry.taught_phrasings, entry.advice, entry.row) == (2, None, None)
    assert entry.holds == ("Who founded it?", "Whose idea was it?")


def test_a_fact_that_no_row_teaches_gets_one(run_of):
    run = run_of([row("Is it old?", "Yes.", "q:1")])
    (entry,) = ledger(run, judged(run, False, False))
    assert entry.advice == "No training row says Leonel: add one."
    assert entry.row == {
        "messages": [{"role": "user", "content": "Who founded it?"}, {"role": "assistant", "content": "Leonel"}],
        "metadata": {"fact": "founder"},
    }
    assert json.loads(json.dumps(entry.as_dict()))["advice"]["values"] == {"answer": "Leonel"}


def test_a_fact_taught_in_few_ways_gets_a_phrasing_that_fails(run_of):
    rows = [row("Quem o fundou?", "Foi Leonel.", "q:1"), row("Who founded it?", "It was Leonel.", "q:2")]
    run = run_of(rows)
    (entry,) = ledger(run, judged(run, True, False))
    assert entry.taught_phrasings == 2
    assert entry.row["messages"][0]["content"] == "Whose idea was it?"
    assert entry.row["messages"][1]["content"] == "It was Leonel."  # "it" is in both questions
    assert "few: 2." in entry.advice


def test_rows_that_contradict_are_named(run_of):
    rows = [row(f"Who founded it, {i}?", "Leonel.", f"q:{i}") for i in range(ENOUGH_PHRASINGS)]
    run = run_of([*rows, row("Who founded it, 3?", "Bento.", "q:9")])
    (entry,) = ledger(run, judged(run, False, False))
    assert [one.source for one in entry.contradictions] == ["q:9"]
    assert "1 (q:9)" in entry.advice
    assert entry.row is None


def test_a_fact_that_is_taught_often_is_left_to_the_advice_on_the_run(run_of):
    run = run_of([row(f"Who founded it, {i}?", "Leonel.", f"q:{i}") for i in range(ENOUGH_PHRASINGS)])
    (entry,) = ledger(run, judged(run, False, False))
    assert entry.taught_phrasings == 5
    assert "the advice on the whole run" in entry.advice
    assert entry.advice.within("pt") != entry.advice


def test_a_run_without_a_sheet_has_no_ledger(run_of):
    assert ledger(run_of([row("a", "b", "c")], facts=()), []) == []
