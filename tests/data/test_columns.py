"""What stands beside a question and its answer is used as its format says, or listed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_core.data.columns import columns_of, content_length, unknown_columns
from qlora_core.data.known_row import Shaped
from qlora_core.data.records import MarkedError, Written, said_in
from qlora_core.data.shapes import shape
from qlora_core.data.sources import Source
from qlora_core.data.tables import read_rows


def shaped(row: object, *columns: str) -> Shaped:
    return shape(row, columns_of(columns), str.strip)


def turns(row: object, *columns: str) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in shaped(row, *columns).content["messages"]]


def prompt(row: object, *columns: str) -> str:
    return next(text for role, text in turns(row, *columns) if role == "user")


def unused(row: object, *columns: str) -> dict[str, bool]:
    return dict(shaped(row, *columns).unused)


SAID = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ana."}


# Beside a question ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"instruction": "Who won?", "context": "Ana won.", "response": "Ana."}, "Who won?\n\nAna won."),
        ({"context": "Ana won.", "question": "Who won?", "answer": "Ana."}, "Who won?\n\nAna won."),
        ({"question": "Who?", "Passage": "Ana won it.", "answer": "Ana."}, "Who?\n\nAna won it."),
        (
            {"question": "Who?", "documents": ["Ana won.", "Rui lost."], "answer": "Ana."},
            "Who?\n\nAna won.\n\nRui lost.",
        ),
        (
            {"query": "Who?", "contexts": [{"title": "Cup", "text": "Ana won."}], "response": "Ana."},
            "Who?\n\nCup\nAna won.",
        ),
        ({"instruction": "A", "input": "B", "context": "C D", "output": "E"}, "A\n\nB\n\nC D"),
        ({"prompt": "", "context": "Ana won.", "completion": "Yes."}, "Ana won."),
        ({"question": "Who?", "notes": "Ana won.", "answer": "Ana."}, "Who?"),
        ({"question": "Who?", "document": "cup.pdf", "answer": "Ana."}, "Who?"),  # a name of one
    ],
)
def test_what_a_question_is_about_follows_it(row, wanted):
    assert prompt(row) == wanted


def test_a_column_of_any_name_can_be_what_it_is_about():
    row = {"question": "Who?", "notes": "Ana won.", "answer": "Ana."}
    assert unused(row) == {"notes": True}
    assert prompt(row, "context=notes") == "Who?\n\nAna won."
    assert unused(row, "context=notes") == {}


def test_system_and_tools_beside_a_conversation():
    row = {"system": "Be brief.", "tools": json.dumps([{"name": "tide"}]), "messages": list(SAID)}
    assert turns(row) == [("system", "Be brief."), ("user", "Who?"), ("assistant", "Ana.")]
    assert shaped(row).content["tools"] == [{"type": "function", "function": {"name": "tide"}}]
    assert turns({"messages": list(SAID), "manners": "Be brief."}, "system=manners")[0] == ("system", "Be brief.")
    own = [{"role": "system", "content": "Be long."}, *SAID]
    assert turns({"system": "Be brief.", "messages": own})[0] == ("system", "Be long.")
    assert unused({"system": "Be brief.", "messages": own}) == {"system": True}
    with pytest.raises(ValueError, match='"tools" must be a list of tools'):
        shaped({"tools": "a spanner", "messages": list(SAID)})


@pytest.mark.parametrize(
    "history",
    [
        [["One?", "Two."], ["Three?", "Four."]],
        '[["One?", "Two."], ["Three?", "Four."]]',
        [{"prompt": "One?", "response": "Two."}, {"prompt": "Three?", "response": "Four."}],
        [{"user": "One?", "assistant": "Two."}, {"user": "Three?", "assistant": "Four."}],
        [
            {"role": role, "content": text}
            for role, text in zip(["user", "assistant"] * 2, ["One?", "Two.", "Three?", "Four."], strict=True)
        ],
    ],
)
def test_earlier_rounds_come_before_the_question(history):
    row = {"instruction": "Five?", "input": "", "output": "Six.", "system": "S", "history": history}
    assert [text for _, text in turns(row)] == ["S", "One?", "Two.", "Three?", "Four.", "Five?", "Six."]


@pytest.mark.parametrize("history", [[["One?"]], [["One?", ""]], ["One?", "Two."], "One?"])
def test_earlier_rounds_that_are_none_are_refused(history):
    with pytest.raises(ValueError, match='round 1 of "history" must be a question and its answer'):
        shaped({"instruction": "Five?", "output": "Six.", "history": history})


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beside", "answer", "shown", "wanted"),
    [
        ({"options": {"A": "Iron", "B": "Mercury"}}, "B", "A. Iron\nB. Mercury", "B"),
        ({"choices": ["Balsa", "Ebony"]}, 1, "A. Balsa\nB. Ebony", "B"),
        ({"choices": ["Balsa", "Ebony"]}, "Ebony", "A. Balsa\nB. Ebony", "Ebony"),
        ({"choices": ["3", "4"]}, 4, "A. 3\nB. 4", "4"),
        ({"choices": '["Balsa", "Ebony"]'}, "0", "A. Balsa\nB. Ebony", "A"),
        ({"choices": {"label": ["1", "2"], "text": ["Balsa", "Ebony"]}}, "2", "1. Balsa\n2. Ebony", "2"),
        ({"options": [{"key": "x", "value": "Balsa"}, {"key": "y", "value": "Elm"}]}, "y", "x. Balsa\ny. Elm", "y"),
        ({"A": "Balsa", "B": "Ebony", "C": ""}, "B", "A. Balsa\nB. Ebony", "B"),
        ({"option_a": "Balsa", "option_b": "Ebony"}, "B", "A. Balsa\nB. Ebony", "B"),
        ({"choice1": "Balsa", "choice2": "Ebony"}, "Ebony", "1. Balsa\n2. Ebony", "Ebony"),
        ({"options": "(a) Balsa (b) Ebony"}, "b", "(a) Balsa (b) Ebony", "b"),
    ],
)
def test_options_stand_below_the_question(beside, answer, shown, wanted):
    row = {"question": "Which?", **beside, "answer": answer}
    assert turns(row) == [("user", f"Which?\n\n{shown}"), ("assistant", wanted)]
    assert unused(row) == {}


def test_the_right_option_may_have_other_names():
    row = {"question": "Which?", "choices": {"label": ["A", "B"], "text": ["Balsa", "Ebony"]}, "answerKey": "B"}
    assert turns(row)[-1] == ("assistant", "B")


def test_an_answer_by_number_is_told_as_a_guess():
    assert shaped({"question": "Which?", "choices": ["Balsa", "Ebony"], "answer": 1}).guesses
    assert not shaped({"question": "Which?", "choices": ["Balsa", "Ebony"], "answer": "B"}).guesses


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Which?", "options": None, "answer": "B"}, "the answer names an option, and the row has none"),
        ({"question": "Which?", "choices": [], "answer": 1}, "the answer names an option, and the row has none"),
        ({"question": "Which?", "choices": ["a", "b"], "answer": 2}, "the answer 2 names no option: there are 2"),
        ({"question": "Which?", "choices": [["a"], ["b"]], "answer": "A"}, '"choices" must be a list of texts'),
    ],
)
def test_a_choice_without_its_options_is_refused(row, reason):
    with pytest.raises(ValueError, match=reason):
        shaped(row)


# Thoughts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SAID[0], {**SAID[1], "reasoning_content": "She did."}]},
        {"messages": [SAID[0], {**SAID[1], "thinking": "She did."}]},
        {"messages": [SAID[0], {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "She did.", "signature": "x"}, {"type": "text", "text": "Ana."}]}]},
        {"messages": [SAID[0], {"role": "assistant", "content": [
            {"type": "reasoning", "value": "She did."}, {"type": "text", "value": "Ana."}]}]},
        {"messages": list(SAID), "reasoning": "She did."},
        {"Question": "Who?", "Complex_CoT": "She did.", "Response": "Ana."},
        {"question": "Who?", "rationale": "She did.", "answer": "Ana."},
        {"problem": "Who?", "why": "She did.", "solution": "Ana."},
    ],
)  # fmt: skip
def test_a_thought_is_kept_apart_from_the_answer(row):
    found = shaped(row, "reasoning=why")
    assert found.content["messages"][-1] == {"role": "assistant", "content": "Ana.", "reasoning_content": "She did."}
    assert found.unused == ()


def test_a_thought_that_belongs_to_no_answer_is_listed():
    assert unused({"messages": [*SAID, *SAID], "reasoning": "She did it."}) == {"reasoning": True}
    assert unused({"messages": [{**SAID[0], "thought": "He did it."}, SAID[1]]}) == {"messages[].thought": True}


# Calls ---------------------------------------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Aveiro"}}}
WRITTEN = '{"name": "tide", "arguments": {"port": "Aveiro"}}'


@pytest.mark.parametrize(
    "calling",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "tide", "arguments": '{"port":"Aveiro"}'}}],
        },
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "function_call": {"name": "tide", "arguments": '{"port": "Aveiro"}'}},
        {"from": "function_call", "value": WRITTEN},
        {"role": "tool_call", "content": f"[{WRITTEN}]"},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "tide", "input": {"port": "Aveiro"}}]},
        {"role": "assistant", "content": [{"type": "tool_call", "value": WRITTEN}]},
    ],
)
def test_a_call_is_what_the_assistant_says(calling):
    row = {"messages": [SAID[0], calling, {"role": "tool", "content": "04:12"}, SAID[1]]}
    assert shaped(row).content["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert [role for role, _ in turns(row)] == ["user", "assistant", "tool", "assistant"]


def test_a_call_keeps_the_text_beside_it_and_its_number():
    calling = {"role": "assistant", "content": "Let me look.", "tool_calls": [{"id": "7", **CALL}]}
    result = {"role": "tool", "tool_call_id": "7", "name": "tide", "content": "04:12"}
    row = {"messages": [SAID[0], calling, result, SAID[1]]}
    found = shaped(row)
    assert found.content["messages"][1] == calling
    assert found.content["messages"][2] == {"role": "tool", "content": "04:12", "name": "tide", "tool_call_id": "7"}
    assert found.unused == ()
    assert "Aveiro" in said_in(found.content)


def test_calls_in_turns_of_their_own_are_one_turn_with_the_text_before_them():
    row = {"conversations": [
        {"from": "human", "value": "When?"}, {"from": "gpt", "value": "Let me look."},
        {"from": "function_call", "value": WRITTEN}, {"from": "function_call", "value": '{"name": "wind"}'},
        {"from": "observation", "value": "04:12"}, {"from": "gpt", "value": "At four."},
    ]}  # fmt: skip
    said = shaped(row).content["messages"]
    assert [m["role"] for m in said] == ["user", "assistant", "tool", "assistant"]
    assert [call["function"]["name"] for call in said[1]["tool_calls"]] == ["tide", "wind"]


def test_a_result_among_the_parts_of_a_turn_is_a_turn_of_the_tool():
    result = {"type": "tool_result", "tool_use_id": "7", "content": [{"type": "text", "text": "04:12"}]}
    row = {
        "messages": [
            SAID[0],
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "user", "content": [result]},
            SAID[1],
        ]
    }
    assert shaped(row).content["messages"][2] == {"role": "tool", "content": "04:12", "tool_call_id": "7"}


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"from": "function_call", "value": "look it up"}, "turn 1 has a call of a tool that is not"),
        ({"role": "assistant", "tool_calls": [{"name": "tide", "arguments": "x"}]}, "turn 1 has a call of tide whose"),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]},
            "not text: a part of the type 'image_url'",
        ),
        ({"role": "assistant", "content": [{"picture": 1}]}, "not text: a part with the keys 'picture'"),
        ({"role": "assistant", "content": [None]}, "not text: null"),
        ({"role": "assistant", "content": [5]}, "not text: a number"),
    ],
)
def test_what_is_neither_text_nor_call_says_what_it_is(turn, reason):
    with pytest.raises(ValueError, match=reason):
        shaped({"messages": [turn, *SAID]})


# Pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"messages": list(SAID), "images": ["quay/1.jpg"]},
        {"question": "What colour?", "image": "bus.png", "answer": "Red."},
        {"prompt": "<image>What stands there?", "completion": "A crane."},
        {"prompt": "What stands there?\n<image>", "completion": "A crane."},
        {"prompt": "<video>What happens?", "completion": "It falls."},
        {"prompt": "What is <|image_pad|> about?", "completion": "A crane."},
        {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A crane."}]},
    ],
)
def test_a_row_about_a_picture_is_refused(row):
    with pytest.raises(ValueError, match="not shown"):
        shaped(row)


def test_a_row_with_an_empty_column_for_pictures_or_about_a_tag_is_kept():
    assert prompt({"prompt": "Who?", "completion": "Ana.", "images": []}) == "Who?"
    assert prompt({"prompt": "What does the <image> element do in SVG?", "completion": "It shows one."})
    assert unused({"text": "The bridge fell.", "image": "bridge.jpg"}) == {"image": False}


# The better answer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "chosen": "Ana.", "rejected": "Rui."},
        {"question": "Who?", "response_chosen": "Ana.", "response_rejected": "Rui."},
        {"conversations": [{"from": "human", "value": "Who?"}], "chosen": {"from": "gpt", "value": "Ana."},
         "rejected": {"from": "gpt", "value": "Rui."}},
        {"prompt": "Who?", "chosen": list(SAID), "rejected": [SAID[0], {"role": "assistant", "content": "Rui."}]},
        {"chosen": list(SAID), "rejected": [SAID[0], {"role": "assistant", "content": "Rui."}]},
        {"prompt": [SAID[0]], "chosen": [SAID[1]], "rejected": [{"role": "assistant", "content": "Rui."}]},
        {"input": {"messages": [SAID[0]]}, "preferred_output": [SAID[1]], "non_preferred_output": [SAID[0]]},
        {"chosen": "\n\nHuman: Who?\n\nAssistant: Ana.", "rejected": "\n\nHuman: Who?\n\nAssistant: Rui."},
    ],
)  # fmt: skip
def test_of_two_answers_the_better_one_is_trained(row):
    found = shaped(row)
    assert found.content == {"messages": list(SAID)}
    assert "Rui" not in json.dumps(found.metadata)
    assert any("worse" in mark for mark in found.marks)


def test_what_comes_before_the_better_answer_is_not_trained():
    row = {"conversations": [*SAID, {"role": "user", "content": "Sure?"}], "chosen": "Yes.", "rejected": "No."}
    said = shaped(row).content["messages"]
    assert [m.get("train", True) for m in said] == [True, False, True, True]
    assert said[-1]["content"] == "Yes."


def test_a_prompt_of_turns_goes_on_in_its_completion():
    row = {"prompt": [*SAID, SAID[0]], "completion": [SAID[1]]}
    assert [m.get("train", True) for m in shaped(row).content["messages"]] == [True, False, True, True]


# Marks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mark",
    [{"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"train": False}, {"train": "False"}, {"training": False},
     {"trainable": False}, {"loss": False}, {"label": False}, {"is_correct": False}, {"loss_weight": 0.0},
     {"loss_mask": 0}, {"masked": True},
     {"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]}],
)  # fmt: skip
def test_a_turn_that_is_marked_is_context(mark):
    row = {"messages": [SAID[0], {**SAID[1], **mark}, SAID[0], {**SAID[1], "weight": 1, "train": True}]}
    found = shaped(row)
    assert [m.get("train", True) for m in found.content["messages"]] == [True, False, True, True]
    assert len(found.marks) == 1
    assert next(iter(mark)) in found.marks[0]
    with pytest.raises(MarkedError, match="every answer is marked"):
        shaped({"messages": row["messages"][:2]})


@pytest.mark.parametrize(
    "mark",
    [{"label": False}, {"label": "False"}, {"kto_tag": False}, {"weight": 0}, {"train": False}, {"is_correct": False},
     {"loss": False},
     {"rejected": True}, {"chosen": False}, {"deleted": True}],
)  # fmt: skip
@pytest.mark.parametrize("row", [{"prompt": "Who?", "completion": "Ana."}, {"messages": list(SAID)}])
def test_a_row_that_is_marked_is_left_out(row, mark):
    with pytest.raises(MarkedError, match=f"marked as not to be trained: {next(iter(mark))}"):
        shaped({**row, **mark})


@pytest.mark.parametrize(
    "mark", [{"label": True}, {"weight": 1}, {"train": True}, {"chosen": True}, {"rejected": False}]
)
def test_a_row_that_is_marked_as_good_is_trained(mark):
    assert turns({"prompt": "Who?", "completion": "Ana.", **mark}) == [("user", "Who?"), ("assistant", "Ana.")]


def test_what_may_be_a_mark_and_may_be_none_is_listed():
    assert unused({"prompt": "Who?", "completion": "Ana.", "label": 0}) == {"label": False}
    assert unused({"text": "It rained.", "label": 0}) == {"label": False}
    assert unused({"prompt": "Who?", "completion": "Ana.", "approved": False}) == {"approved": False}
    assert unused({"prompt": "Who?", "completion": "Ana.", "quality": "bad"}) == {"quality": False}
    assert unused({"prompt": "Who?", "completion": "Ana.", "loss_mask": [0, 1]}) == {"loss_mask": False}
    assert unused({"prompt": "Who?", "completion": "Ana.", "weight": 0.5}) == {"weight": False}
    assert unused({"prompt": "Who?", "completion": "Ana.", "loss": 2.5, "weight": 1}).keys() <= {"loss"}
    assert unused({"messages": [SAID[0], {**SAID[1], "label": 0}]}) == {"messages[].label": False}
    assert unused({"messages": [{**SAID[0], "tool_calls": [CALL]}, SAID[1]]}) == {"messages[].tool_calls": False}
    assert unused({"messages": [SAID[0], {**SAID[1], "loss_mask": [0, 1]}]}) == {"messages[].loss_mask": False}
    weighed = {"messages": [SAID[0], {**SAID[1], "weight": 0.5}]}
    assert unused(weighed) == {"messages[].weight": False}


# What is used for nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("id", "row 7 of the list"), ("created_at", "Monday 3 May"), ("url", "https://example.org/a b"), ("score", 0.5),
     ("note", ""), ("note", None), ("category", "closed_qa"), ("when", "2024-05-01 10:00"), ("tags", ["sea"]),
     ("link_to", "https://example.org/" + "x" * 200), ("n", 7), ("embedding", [0.1, 0.2]), ("good", True),
     ("author", "Ana Prata")],
)  # fmt: skip
def test_what_keeps_the_books_is_not_listed(name, value):
    assert content_length(name, value) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("notes", "two words"), ("notes", "x" * 101), ("notes", ["two", "words"]), ("notes", {"a": "two words"}),
     ("author", "She wrote at length. " * 9), ("source", "The whole text of a chapter. " * 9), ("answer", "B"),
     ("input", "x"), ("note", "笔记内容"),
     ("good", False), ("label", 3), ("text", "x"), ("notes", [{"b": ["two words"]}])],
)  # fmt: skip
def test_what_holds_content_is_listed(name, value):
    assert content_length(name, value) > 0


def test_what_the_row_says_anyway_is_not_listed():
    row = {"messages": [{"role": "user", "content": "Who won it?"}, SAID[1]], "prompt": "Who won it?"}
    assert unused(row) == {}
    assert unused({**row, "prompt": "Who lost it?"}) == {"prompt": True}


def test_turns_may_stand_as_lists_of_roles_and_contents():
    row = {"messages": {"role": ["user", "assistant"], "content": ["Who?", "Ana."]}}
    assert turns(row) == [("user", "Who?"), ("assistant", "Ana.")]
    with pytest.raises(ValueError, match="found an object"):
        shaped({"messages": {"role": ["user"], "content": []}})


def test_keys_beside_the_content_of_a_turn_and_of_a_part_are_listed():
    part = {"type": "text", "text": "Ana.", "citations": [{"title": "The cup of 1931"}]}
    row = {"messages": [{**SAID[0], "mood": "rather cross"}, {"role": "assistant", "content": [part]}]}
    assert unused(row) == {"messages[].mood": True, "messages[].content[].citations": True}


names = st.sampled_from(
    ["prompt", "completion", "question", "answer", "instruction", "input", "output", "response", "context", "document",
     "system", "notes", "text", "explanation", "reasoning", "passage", "hint", "title"]
)  # fmt: skip


@given(st.lists(names, min_size=1, max_size=7, unique=True))
def test_every_text_of_a_row_is_used_or_listed_or_the_row_refused(keys):
    row = {key: f"the {key} of this row" for key in keys}
    try:
        found = shaped(row)
    except ValueError:
        return
    made = json.dumps(found.content)
    for key, value in row.items():
        assert (value in made) != (key in dict(found.unused)), key


@given(st.lists(names, min_size=2, max_size=6, unique=True), st.data())
def test_a_column_that_is_named_is_used_and_the_others_are_not_lost(keys, data):
    ours = data.draw(st.sampled_from(["prompt", "completion", "text", "system", "context"]))
    theirs = data.draw(st.sampled_from(keys))
    row = {key: f"the {key} of this row" for key in keys}
    try:
        found = shaped(row, f"{ours}={theirs}")
    except ValueError:
        return
    made = json.dumps(found.content)
    for key, value in row.items():
        assert (value in made) != (key in dict(found.unused)), key
    if ours in ("prompt", "completion", "text"):
        assert row[theirs] in made


# The setting ---------------------------------------------------------------------------------------------------------


def test_a_mapping_adds_a_name_and_the_known_ones_stay_known():
    row = {"prompt": "Who?", "reply": "Ana."}
    assert turns(row, "completion=reply") == [("user", "Who?"), ("assistant", "Ana.")]
    assert turns({"ask": "Who?", "answer": "Ana."}, "prompt=ask") == [("user", "Who?"), ("assistant", "Ana.")]
    assert turns({"prompt": "Who?", "text": "Ana."}, "completion=text") == [("user", "Who?"), ("assistant", "Ana.")]
    both = {"question": "no", "answer": "no", "reply": "Ana.", "ask": "Who?"}
    assert turns(both, "prompt=ask", "completion=reply") == [("user", "Who?"), ("assistant", "Ana.")]
    assert shaped({"question": "Who?", "answer": "Ana.", "all": "Who? Ana."}, "text=all").content == {
        "text": "Who? Ana."
    }


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["input", "system", "messages", "context", "history", "options", "tools", "reasoning", "text"]
)
def test_null_is_as_good_as_absent(name):
    row = {"instruction": "Name a bird.", "output": "A wren.", name: None}
    assert turns(row) == [("user", "Name a bird."), ("assistant", "A wren.")]
    assert shaped(row).metadata == {}


def test_a_table_of_several_shapes_has_empty_columns():
    assert turns({"messages": [], "question": "Who?", "answer": "Ana."}) == [("user", "Who?"), ("assistant", "Ana.")]
    assert turns({"messages": "", "question": "Who?", "answer": "Ana."}) == [("user", "Who?"), ("assistant", "Ana.")]
    assert shaped({"question": "", "answer": "", "text": "It rained."}).content == {"text": "It rained."}


@pytest.mark.parametrize(
    ("value", "text"), [(4, "4"), (True, "true"), (False, "false"), (Written("1.50"), "1.50"), (-0.5, "-0.5"), (0, "0")]
)
def test_numbers_and_truth_are_texts(value, text):
    assert turns({"question": "How much?", "answer": value}) == [("user", "How much?"), ("assistant", text)]
    assert prompt({"question": value, "answer": "So."}) == text
    assert turns({"messages": [SAID[0], {"role": "assistant", "content": value}]})[1] == ("assistant", text)


def test_answers_with_where_they_stand():
    row = {"context": "Built in 1908.", "question": "When?", "answers": {"text": ["In 1908"], "answer_start": [6]}}
    assert turns(row) == [("user", "When?\n\nBuilt in 1908."), ("assistant", "In 1908")]
    with pytest.raises(ValueError, match="the answers is empty"):
        shaped({**row, "answers": {"text": [], "answer_start": []}})


def test_a_bare_list_of_turns_is_a_conversation():
    assert turns(list(SAID)) == [("user", "Who?"), ("assistant", "Ana.")]
    assert turns({"messages": json.dumps(SAID)}) == [("user", "Who?"), ("assistant", "Ana.")]


def test_one_message_alone_is_no_text():
    for row in ({"role": "user", "text": "Who?"}, {"role": "assistant", "content": "Ana."}):
        with pytest.raises(ValueError, match="one message of a conversation"):
            shaped(row)
    assert shaped({"role": "midfielder", "text": "Rui played here."}).content == {"text": "Rui played here."}


def test_a_prepared_row_is_prepared_again_as_it_is():
    calling = {"role": "assistant", "content": "", "reasoning_content": "So.", "tool_calls": [CALL], "train": False}
    row = {"messages": [SAID[0], calling, {"role": "tool", "content": "x"}, SAID[1]], "tools": [CALL]}
    assert shaped(row).content == row


# Formats of published data sets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"inputs": "Why are there tides?", "targets": "The moon."}, [("user", "Why are there tides?")]),
        ({"input": "Why?", "target": "The moon."}, [("user", "Why?")]),
        ({"source": "Why are there tides?", "target": "The moon."}, [("user", "Why are there tides?")]),
        ({"problem": "Why?", "response": "The moon."}, [("user", "Why?")]),
        ({"instruction": "Say why.", "input": "Tides.", "target": "The moon."}, [("user", "Say why.\n\nTides.")]),
        ({"definition": "Say why.", "inputs": "Tides.", "targets": "The moon."}, [("user", "Say why.\n\nTides.")]),
        (
            {"question": "Why?", "correct_answer": "The moon.", "support": "The moon pulls the sea."},
            [("user", "Why?\n\nThe moon pulls the sea.")],
        ),
        (
            {"question": "Why?", "answer": "The moon.",
             "context": {"title": ["Sea"], "sentences": [["The moon pulls.", "It is far."]]}},
            [("user", "Why?\n\nSea\nThe moon pulls.\n\nIt is far.")],
        ),
        ({"prompt": "\n\nHuman: Why?\n\nAssistant:", "completion": "The moon."}, [("user", "Why?")]),
    ],
)  # fmt: skip
def test_names_of_what_is_asked_and_answered(row, wanted):
    assert turns(row) == [*wanted, ("assistant", "The moon.")]
    assert unused(row) == {}


@pytest.mark.parametrize("row", [{"text": "A film.", "target": "good"}, {"text": "A film.", "input": "a", "target": 1}])
def test_a_text_with_its_class_stays_a_text(row):
    assert shaped(row).content == {"text": "A film."}


def test_options_that_show_their_letters_keep_one():
    row = {"question": "2 + 3?", "options": ["A)5", "B)6"], "rationale": "It is 5.", "correct": "A"}
    assert turns(row) == [("user", "2 + 3?\n\nA. 5\nB. 6"), ("assistant", "A")]


FOUR = [("user", "Why?"), ("assistant", "The moon."), ("user", "Sure?"), ("assistant", "Yes.")]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": ["Why?", "The moon.", "Sure?", "Yes."]},
        {"id": "1", "data": ["Why?", "The moon.", "Sure?", "Yes."]},
        {"dialog": ["Why?", "The moon.", "Sure?", "Yes."]},
        {"conversation": [{"input": "Why?", "output": "The moon."}, {"input": "Sure?", "output": "Yes."}]},
        {"chat": "USER: Why?\n\n\nASSISTANT: The moon. <|endoftext|>\n\n\n"
                 "USER: Sure?\n\n\nASSISTANT: Yes. <|endoftext|>"},
        {"messages": "Human: Why?\n\nAssistant: The moon.\n\nHuman: Sure?\n\nAssistant: Yes."},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "bard", "value": "The moon."},
                           {"from": "human", "value": "Sure?"}, {"from": "bing", "value": "Yes."}]},
    ],
)  # fmt: skip
def test_turns_without_their_roles(row):
    assert turns(row) == FOUR
    assert unused(row) == {}


def test_texts_that_take_turns_are_told_as_a_guess():
    assert shaped({"conversations": ["Why?", "The moon."]}).guesses == (
        "texts without a speaker take turns, and the first is the user's",
    )


def test_a_talk_with_functions_as_one_text():
    chat = 'USER: Tide?\n\n\nASSISTANT: <functioncall> {"name": "tide"} <|endoftext|>\n\n\nFUNCTION RESPONSE: {"at": 9}'
    row = {"system": "SYSTEM: Use tide().", "chat": f"{chat}\n\n\nASSISTANT: At nine. <|endoftext|>"}
    assert turns(row) == [
        ("system", "Use tide()."), ("user", "Tide?"), ("assistant", '<functioncall> {"name": "tide"}'),
        ("tool", '{"at": 9}'), ("assistant", "At nine."),
    ]  # fmt: skip


def test_an_answer_that_is_a_list_of_calls():
    tools = '[{"name": "tide", "description": "of a place", "parameters": {}}]'
    row = {"query": "Tide?", "answers": '[{"name": "tide", "arguments": {"place": "Sal"}}]', "tools": tools}
    found = shaped(row).content
    assert found["messages"][1]["tool_calls"] == [
        {"type": "function", "function": {"name": "tide", "arguments": {"place": "Sal"}}}
    ]
    assert found["tools"][0]["function"]["name"] == "tide"


def test_a_question_that_nothing_answers_is_refused():
    with pytest.raises(ValueError, match="the answers is empty"):
        shaped({"question": "Who?", "context": "Ana won.", "answers": {"text": [], "answer_start": []}})


def test_rows_of_tokens_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="Tokens belong to the tokenizer that made them: give the texts"):
        shaped({"input_ids": [1, 2], "labels": [-100, 2]})


# Two languages, and what is in an object -----------------------------------------------------------------------------

TRANSLATED = {"id": "7", "translation": {"en": "The sea is wide.", "pt": "O mar é largo."}}


def test_a_text_in_two_languages_says_what_to_do_and_that_works():
    with pytest.raises(ValueError) as error:
        shaped(TRANSLATED)
    advice = "Say which is asked and which answers: --columns prompt=translation.en completion=translation.pt, or"
    assert advice in str(error.value)
    both = [("user", "The sea is wide."), ("assistant", "O mar é largo.")]
    assert turns(TRANSLATED, "prompt=translation.en", "completion=translation.pt") == both
    assert turns(TRANSLATED, "prompt=translation.pt", "completion=translation.en")[0] == ("user", "O mar é largo.")
    with pytest.raises(ValueError, match=r"--columns prompt=en completion=pt, or prompt=pt completion=en"):
        shaped(TRANSLATED["translation"])
    assert turns(TRANSLATED["translation"], "prompt=en", "completion=pt") == both


def test_a_parquet_file_of_translations_says_what_to_do_and_that_works(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([TRANSLATED]), path)

    def rows(*columns: str) -> list:
        return list(read_rows(Source(path, ".parquet"), lambda keys: unknown_columns(keys, columns_of(columns))))

    with pytest.raises(ValueError, match=r"--columns prompt=translation\.en completion=translation\.pt"):
        rows()
    both = ("prompt=translation.en", "completion=translation.pt")
    assert [len(turns(row, *both)) for _, row in rows(*both)] == [2]


def test_what_else_is_in_an_object_is_not_lost():
    row = {"translation": {"en": "The sea is wide.", "pt": "O mar é largo.", "fr": "La mer est large."}}
    assert unused(row, "prompt=translation.en", "completion=translation.pt") == {"translation.fr": True}
    deep = {"question": {"stem": "Which?", "choices": [{"text": "ebb", "label": "A"}]}, "answerKey": "A"}
    found = turns(deep, "prompt=question.stem", "options=question.choices", "completion=answerKey")
    assert found == [("user", "Which?\n\nA. ebb"), ("assistant", "A")]
    packed = {"translation": json.dumps(TRANSLATED["translation"])}  # as a table holds an object
    assert len(turns(packed, "prompt=translation.en", "completion=translation.pt")) == 2


# Marks of turns ------------------------------------------------------------------------------------------------------

TALK = [{"role": r, "content": t} for r, t in FOUR]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK, "loss_mask": [0, 0, 0, 1]},
        {"messages": TALK, "mask": [0, 0, 0, 1]},
        {"messages": TALK, "mask": [True, True, True, False]},
        {"messages": TALK, "train_mask": [False, False, False, True]},
        {"messages": [{**turn, "mask": int(n == 3)} for n, turn in enumerate(TALK)]},
        {"messages": [{**turn, "mask": n != 3} for n, turn in enumerate(TALK)]},
        {"messages": [{**turn, "train_on_turn": n == 3} for n, turn in enumerate(TALK)]},
    ],
)
def test_marks_of_turns_are_kept_to(row):
    messages = shaped(row).content["messages"]
    assert [m["content"] for m in messages if m["role"] == "assistant" and m.get("train", True)] == ["Yes."]
    assert unused(row) == {}


def test_marks_of_tokens_are_listed():
    row = {"messages": TALK, "loss_mask": [0, 0, 0, 1, 1, 1, 0]}
    assert unused(row) == {"loss_mask": False}
    assert all(m.get("train", True) for m in shaped(row).content["messages"])
