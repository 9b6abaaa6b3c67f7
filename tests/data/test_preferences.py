"""Of several answers, the one that the row calls the better one is trained; a tie is refused."""

import pytest

from qlora_core.data.columns import columns_of
from qlora_core.data.known_row import Shaped
from qlora_core.data.shapes import shape

GOOD, BAD = "Take the ferry at noon.", "Swim across in the dark."


def shaped(row: dict, *columns: str) -> Shaped:
    return shape(row, columns_of(columns), str.strip)


def trained(row: dict, *columns: str) -> list[str]:
    """The answers that are trained."""
    messages = shaped(row, *columns).content["messages"]
    return [m["content"] for m in messages if m["role"] == "assistant" and m.get("train", True)]


def said(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]


ASKED = {"prompt": "How do I cross the bay?"}


@pytest.mark.parametrize(
    ("row", "worse"),
    [
        ({"response_0": BAD, "response_1": GOOD, "better_response_id": 1, "safer_response_id": 1}, "response_0"),
        ({"response_0": GOOD, "response_1": BAD, "better_response_id": 0, "safer_response_id": 0}, "response_1"),
        ({"response_a": BAD, "response_b": GOOD, "winner": "model_b"}, "response_a"),
        ({"response_a": BAD, "response_b": GOOD, "model_a": "one", "model_b": "two", "winner": "two"}, "response_a"),
        ({"answerA": GOOD, "answerB": BAD, "preferred": "A"}, "answerB"),
        ({"answer_1": BAD, "answer_2": GOOD, "preferred": 2}, "answer_1"),
        ({"answer_1": BAD, "answer_2": GOOD, "preferred": "2.0"}, "answer_1"),
        ({"answer_1": BAD, "answer_2": GOOD, "preferred": "b"}, "answer_1"),
        ({"output_1": GOOD, "output_2": BAD, "preference": "output_1"}, "output_2"),
        ({"response_1": GOOD, "response_2": BAD, "best": GOOD}, "response_2"),
        ({"response_1": GOOD, "response_2": BAD, "chosen": "response_1"}, "response_2"),
        ({"response_1": BAD, "response_2": GOOD, "preference_strength": 2}, "response_1"),
        ({"response1": GOOD, "response2": BAD, "overall_preference": -3}, "response2"),
        ({"response_0": BAD, "response_1": GOOD, "label": 1}, "response_0"),
        (
            {"response_a": GOOD, "response_b": BAD, "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
            "response_b",
        ),
        ({"answer_0": BAD, "score_0": -0.5, "answer_1": GOOD, "score_1": 0.5}, "answer_0"),
        ({"human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1, "score_A": 9, "score_B": 3}, "human_ref_B"),
        ({"human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0, "score_A": 3, "score_B": 9}, "human_ref_A"),
    ],
)
def test_the_answer_that_is_called_the_better_one_is_trained(row, worse):
    found = shaped({**ASKED, **row})
    assert found.content == {"messages": said(ASKED["prompt"], GOOD)}
    assert found.marks == (f"{worse}: the worse answer",)
    assert found.unused == ()


def test_the_better_one_of_two_conversations():
    row = {"conversation_a": said("Why?", BAD), "conversation_b": said("Why?", GOOD), "winner": "model_b"}
    assert shaped(row).content == {"messages": said("Why?", GOOD)}
    rounds = {"prompt": '["Why?", "Sure?"]', "response_a": '["So.", "Yes."]', "response_b": '["No.", "No."]'}
    rounds |= {"winner_model_a": 1, "winner_model_b": 0}
    assert [m["content"] for m in shaped(rounds).content["messages"]] == ["Why?", "So.", "Sure?", "Yes."]
    assert trained(rounds) == ["Yes."]


def test_what_is_asked_may_be_the_context_or_the_history():
    row = {"context": said("Why?", "So.", "Sure?"), "response1": GOOD, "response2": BAD, "overall_preference": -1}
    assert shaped(row).content["messages"][2:] == said("Sure?", GOOD)
    assert trained(row) == [GOOD]
    row = {"history": "How do I cross?", "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1}
    assert shaped(row).content == {"messages": said("How do I cross?", GOOD)}


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        ({"winner": "tie"}, "a tie, as `winner` says: none of `response_a`, `response_b` is the better answer"),
        ({"winner": "tie (bothbad)"}, "a tie, as `winner` says"),
        ({"preferred": "neither"}, "a tie, as `preferred` says"),
        ({"preference_strength": 0}, "a tie, as `preference_strength` says"),
        ({"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, "a tie, as `winner_model_a`"),
        ({"score_a": 2, "score_b": 2}, "a tie, as `score_a`, `score_b` say"),
        ({"preferred": 1}, "`preferred` '1' names none of `response_a`, `response_b` as the better answer"),
        ({"winner": "three"}, "`winner` 'three' names none of"),
        ({"winner": ""}, "nothing says which of `response_a`, `response_b` is the better answer"),
        ({}, "Name the one to train: --columns completion=response_a; or the column that says it: --columns better="),
        (
            {"preferred": "a", "winner": "b"},
            "`preferred` response_a and `winner` response_b. Say which decides: --columns better=preferred",
        ),
    ],
)
def test_a_row_that_does_not_say_which_is_better_is_refused_with_the_reason(verdict, reason):
    with pytest.raises(ValueError) as error:
        shaped({**ASKED, "response_a": "One.", "response_b": "Two.", **verdict})
    assert reason in str(error.value)


def test_what_the_reasons_advise_works():
    row = {**ASKED, "response_0": GOOD, "response_1": BAD, "better_response_id": 1, "safer_response_id": 0}
    with pytest.raises(ValueError):
        shaped(row)
    assert trained(row, "better=safer_response_id") == [GOOD]
    assert trained(row, "better=better_response_id") == [BAD]
    assert trained({**ASKED, "response_0": GOOD, "response_1": BAD}, "completion=response_0") == [GOOD]
    assert trained({**ASKED, "response_0": GOOD, "response_1": BAD, "judge": "0"}, "better=judge") == [GOOD]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Why?", "answer": GOOD, "answer_1": "x y", "answer_2": "y z"},
        {"prompt": "Why?", "chosen": GOOD, "rejected": BAD, "response_a": GOOD, "response_b": BAD},
        {"messages": said("Why?", GOOD), "response_a": "x y", "response_b": "y z"},
        {"prompt": "Why?", "completion": GOOD, "answer_b": "y z", "answer_c": "y z", "winner": "b"},
    ],
)
def test_a_row_with_an_answer_of_its_own_keeps_it(row):
    assert trained(row) == [GOOD]


@pytest.mark.parametrize(
    "answers",
    [
        [{"answer": BAD, "rank": 2.0}, {"answer": GOOD, "rank": 1.0}, {"answer": "x", "rank": 3.0}],
        [{"text": BAD, "selected": False, "pm_score": 9}, {"text": GOOD, "selected": True, "pm_score": 1}],
        [{"response": BAD, "overall_score": 4.0}, {"response": GOOD, "overall_score": 8.5}],
    ],
)
@pytest.mark.parametrize("names", [("question", "answers"), ("instruction", "completions")])
def test_the_best_answer_of_a_list_is_trained(answers, names):
    found = shaped(dict(zip(names, ("Why?", answers), strict=True)))
    assert found.content == {"messages": said("Why?", GOOD)}
    assert found.marks == (f"{names[1]}: the worse answers",)


@pytest.mark.parametrize(
    "answers", [[{"text": GOOD, "score": 2}, {"text": BAD, "score": 2}], [{"text": GOOD}, {"text": BAD}]]
)
def test_a_list_of_answers_without_a_best_one_is_refused(answers):
    with pytest.raises(ValueError, match="none of them is said to be the best alone"):
        shaped({"question": "Why?", "answers": answers})
