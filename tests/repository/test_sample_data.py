"""The sample data keeps its promises: shapes, facts, held-out questions."""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from qlora_core.evaluation.probes import general_questions, nonexistent_questions

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"
SETS = ("club", "more")
WORDS = {"club": (1, 7), "more": (8, 18)}
"""Words of an answer: a first run is short, and what tells facts apart is a large part of short answers."""
ENGLISH = {"club": (0.3, 0.6), "more": (0.1, 0.3)}
TRAINED = {"club": 2, "more": 1}
"""Questions of a fact that are trained word for word; one more is held out."""


def read(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines
    return [json.loads(line) for line in lines]


def fold(text):
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def key(text):
    """What makes two phrasings the same: letters and digits only."""
    return re.sub(r"\W+", " ", fold(text)).strip()


def questions(name):
    return read(SAMPLE / name / "questions.jsonl")


def facts(name):
    return read(SAMPLE / name / "facts.jsonl")


def every(reader):
    return [row for name in SETS for row in reader(name)]


def turns(row, role):
    if "messages" in row:
        return [message["content"] for message in row["messages"] if message["role"] == role]
    return [row["prompt" if role == "user" else "completion"]]


def contains(text, values):
    return any(fold(value) in fold(text) for value in values)


@pytest.mark.parametrize("name", SETS)
def test_question_rows_have_their_shape(name):
    rows = questions(name)
    for row in rows:
        if "messages" in row:
            assert set(row) == {"messages", "metadata"}
            assert all(set(message) == {"role", "content"} for message in row["messages"])
            roles = [message["role"] for message in row["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert roles
        else:
            assert set(row) == {"prompt", "completion", "metadata"}
        for text in turns(row, "user") + turns(row, "assistant"):
            assert isinstance(text, str)
            assert text
            assert text == text.strip()
        assert set(row["metadata"]) == {"fact", "language"}
        assert row["metadata"]["language"] in {"pt", "en"}
        fewest, most = WORDS[name]
        assert fewest <= len(turns(row, "assistant")[-1].split()) <= most, row
    assert any(len(turns(row, "user")) > 1 for row in rows)
    english = sum(row["metadata"]["language"] == "en" for row in rows) / len(rows)
    least, most = ENGLISH[name]
    assert least < english < most


@pytest.mark.parametrize("name", SETS)
def test_fact_rows_have_their_shape(name):
    for row in facts(name):
        assert set(row) == {"fact", "subject", "expected", "questions"}
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["fact"])
        assert row["subject"]
        assert row["expected"]
        assert all(value == value.strip() and value for value in row["expected"])
        assert len(row["questions"]) == TRAINED[name] + 1


@pytest.mark.parametrize("name", SETS)
def test_history_rows_have_their_shape(name):
    for path in (SAMPLE / name).glob("history*.jsonl"):
        for row in read(path):
            assert set(row) == {"prompt", "completion"}
            assert row["prompt"] == ""
            assert row["completion"].strip()


@pytest.mark.parametrize(("name", "count", "most"), [("club", 2, 70), ("more", 43, 160)])
def test_biographies(name, count, most):
    paths = sorted((SAMPLE / name / "biographies").glob("*.md"))
    assert len(paths) == count
    told = facts("club") if name == "club" else every(facts)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# ")
        title, _, body = text.partition("\n")
        assert path.stem == key(title).replace(" ", "-")
        assert 40 <= len(body.split()) <= most, path.name
        assert any(contains(text, fact["expected"]) for fact in told), path.name


def test_counts():
    assert len(facts("club")) == 6
    assert len(questions("club")) == 73
    assert len(read(SAMPLE / "club" / "history.jsonl")) == 21
    assert len(facts("more")) == 95
    assert len(questions("more")) >= 530
    phrasings = Counter(row["metadata"]["fact"] for row in questions("club"))
    assert min(phrasings.values()) >= 12


def test_ordinary_rows_are_none_of_the_questions_that_judge_a_run():
    rows = read(SAMPLE / "club" / "ordinary.jsonl")
    assert len(rows) == 14
    asked = [row["prompt"] for row in rows]
    judging = [one.question for one in (*general_questions(), *nonexistent_questions())]
    assert len({key(question) for question in [*asked, *judging]}) == len(asked) + len(judging)
    values = [value for fact in every(facts) for value in fact["expected"]]
    assert not any(contains(row["prompt"] + row["completion"], values) for row in rows)


def test_fact_ids_are_unique_and_known():
    ids = [row["fact"] for row in every(facts)]
    assert len(ids) == len(set(ids))
    assert {row["metadata"]["fact"] for row in questions("club")} == {row["fact"] for row in facts("club")}
    assert {row["metadata"]["fact"] for row in questions("more")} == {row["fact"] for row in facts("more")}


def test_no_prompt_stands_twice():
    counts = Counter(key(prompt) for row in every(questions) for prompt in turns(row, "user"))
    assert [prompt for prompt, count in counts.items() if count > 1] == []


def test_each_answer_contains_its_fact():
    expected = {row["fact"]: row["expected"] for row in every(facts)}
    for row in every(questions):
        assert contains(turns(row, "assistant")[-1], expected[row["metadata"]["fact"]]), row


def test_no_question_gives_its_answer_away():
    expected = {row["fact"]: row["expected"] for row in every(facts)}
    for row in every(questions):
        for prompt in turns(row, "user"):
            assert not contains(prompt, expected[row["metadata"]["fact"]]), row
    for row in every(facts):
        for question in row["questions"]:
            assert not contains(question, row["expected"]), row


@pytest.mark.parametrize("name", SETS)
def test_the_first_questions_are_trained(name):
    prompts = {(row["prompt"], row["metadata"]["fact"]) for row in questions(name) if "prompt" in row}
    for row in facts(name):
        assert {(question, row["fact"]) for question in row["questions"][:-1]} <= prompts


def test_the_last_question_is_held_out():
    prompts = {key(prompt) for row in every(questions) for prompt in turns(row, "user")}
    held_out = [key(row["questions"][-1]) for row in every(facts)]
    assert len(held_out) == len(set(held_out))
    assert prompts.isdisjoint(held_out)


def test_different_facts_have_different_values():
    values = [fold(row["expected"][0]) for row in every(facts)]
    assert len(values) == len(set(values))
