"""Messages that stand one a row, and trees of replies, become conversations; each answer is trained once."""

import json
import random

import pytest

from qlora_core.config import DataConfig
from qlora_core.data import preparation, prepare
from qlora_core.tokens.tokenizer import ChatTokenizer


def message(name: str, parent: str | None, text: str, role: str = "", **beside) -> dict:
    speaker = role or ("assistant" if text.endswith(".") else "prompter")
    return {"message_id": name, "parent_id": parent, "text": text, "role": speaker, "lang": "en", **beside}


@pytest.fixture
def read(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))

    def of(rows: list[dict], **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        prepared = prepare(
            DataConfig(data=(str(path),), **{"val_fraction": 0.0, **settings}), ChatTokenizer(tiny_model)
        )
        report = prepared.report
        made = report.train + report.validation + report.duplicates + report.rejected.count + report.marked.count
        assert report.read + report.conversations == made + report.joined_messages
        return prepared

    return of


def said(prepared) -> list[list[str]]:
    """The conversations; a sign before what is not trained though the assistant says it."""
    return [["-" * (m.get("train") is False) + m["content"] for m in row["messages"]] for row in prepared.train]


THREAD = [
    message("1", None, "Wood?"), message("2", "1", "Balsa."), message("3", "2", "Sinks?"), message("4", "3", "Ebony."),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_thread_in_any_order(read, seed):
    rows = random.Random(seed).sample(THREAD, 4) if seed else THREAD
    prepared = read(rows)
    assert said(prepared) == [["Wood?", "Balsa.", "Sinks?", "Ebony."]]
    assert prepared.train[0]["messages"][0]["role"] == "user"
    assert (prepared.report.conversations, prepared.report.joined_messages) == (1, 4)


def test_several_answers_are_several_conversations_and_each_is_trained_once(read):
    rows = [*THREAD, message("5", "3", "Ironwood."), message("6", "1", "Cork.")]
    assert said(read(rows)) == [
        ["Wood?", "Balsa.", "Sinks?", "Ebony."], ["Wood?", "-Balsa.", "Sinks?", "Ironwood."], ["Wood?", "Cork."],
    ]  # fmt: skip


def test_the_conversations_of_one_tree_are_on_one_side(read):
    rows = []
    for i in range(40):
        rows += [
            message(f"{i}", None, f"Question {i}?"),
            *(message(f"{i}-{j}", f"{i}", f"Answer {j}.") for j in range(3)),
        ]
    prepared = read(rows, val_fraction=0.3)
    asked = [{row["messages"][0]["content"] for row in side} for side in (prepared.train, prepared.validation)]
    assert asked[0].isdisjoint(asked[1])
    assert len(asked[0] | asked[1]) == 40
    assert asked[1]


def test_what_cannot_be_joined_is_told(read):
    rows = [
        *THREAD, message("5", "4", "And?"), message("6", "x", "Lost."), message("7", "6", "Why?"),
        message("1", None, "Twice?"), message("8", "9", "A?"), message("9", "8", "B."),
    ]  # fmt: skip
    report = read(rows).report
    reasons = {found.where.rpartition(":")[2]: found.reason for found in report.rejected}
    assert reasons.keys() == {"5", "6", "7", "8", "9", "10"}
    assert reasons["5"] == "nobody answers it"
    assert reasons["6"] == "the message 'x' that it answers is not here"
    assert "stands twice" in reasons["8"]
    assert "circle" in reasons["9"]


def test_an_answer_that_was_marked_is_context(read):
    rows = [*THREAD[:1], {**THREAD[1], "review_result": False}, *THREAD[2:]]
    prepared = read(rows)
    assert said(prepared) == [["Wood?", "-Balsa.", "Sinks?", "Ebony."]]
    assert prepared.report.marks == {"review_result false": 1}


def test_messages_of_one_talk_follow_each_other(read):
    talk = [("a", 1, "user", "Wood?"), ("b", 1, "user", "Fish?"), ("a", 2, "assistant", "Balsa."),
            ("b", 2, "assistant", "Bream.")]  # fmt: skip
    rows = [{"conversation_id": name, "turn": turn, "role": role, "content": text} for name, turn, role, text in talk]
    wanted = [["Wood?", "Balsa."], ["Fish?", "Bream."]]
    assert said(read(rows)) == wanted
    assert sorted(said(read(rows[::-1]))) == sorted(wanted)


def tree(text: str, role: str, *replies: dict) -> dict:
    return {"text": text, "role": role, "replies": list(replies)}


def test_a_tree_of_replies(read):
    root = tree("Wood?", "prompter", tree("Balsa.", "assistant", tree("Sure?", "prompter", tree("Yes.", "assistant"))),
                tree("Cork.", "assistant"))  # fmt: skip
    wanted = [["Wood?", "Balsa.", "Sure?", "Yes."], ["Wood?", "Cork."]]
    for row in ({"message_tree_id": "t", "prompt": root}, root):
        prepared = read([row])
        assert sorted(said(prepared)) == wanted
        assert (prepared.report.conversations, prepared.report.joined_messages) == (2, 1)


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        (tree("Wood?", "prompter"), "nobody answers"),
        (tree("Wood?", "prompter", {"text": "Balsa."}), "one of its replies is not"),
    ],
)
def test_a_tree_that_cannot_be_used_says_why(read, root, reason):
    (found,) = read([root, {"prompt": "?", "completion": "So."}]).report.rejected
    assert reason in found.reason


def test_a_large_file_of_messages_is_not_cut(read, monkeypatch):
    monkeypatch.setattr(preparation, "PIECE", 100)
    rows = [row for i in range(30) for row in (message(f"q{i}", None, f"{i}?"), message(f"a{i}", f"q{i}", f"{i}."))]
    assert len(read(rows).train) == 30
