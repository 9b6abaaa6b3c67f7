"""Rows of well-known published data sets, in their own columns and numbers, are read as what they are."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from prepared import said

from qlora_core.config import DataConfig
from qlora_core.data import prepare
from qlora_core.data.nested import nested_rows
from qlora_core.data.published import PUBLISHED
from qlora_core.data.records import MarkedError
from qlora_core.data.shapes import columns_of, shape, unknown_columns
from qlora_core.tokens.tokenizer import ChatTokenizer


def shaped(row: object, *columns: str):
    return shape(row, columns_of(columns), str.strip)


def turns(row: object, *columns: str) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in shaped(row, *columns).content["messages"]]


# Multiple choice -----------------------------------------------------------------------------------------------------

HELLASWAG = {
    "ind": 4, "activity_label": "Grinding corn", "ctx_a": "A man opens a sack.", "ctx_b": "he",
    "ctx": "A man opens a sack. he", "endings": ["eats the sack.", "pours corn.", "sings.", "swims away."],
    "source_id": "x~1", "split": "train", "split_type": "indomain", "label": "1",
}  # fmt: skip
SWAG = {
    "video-id": "a1", "fold-ind": "1", "startphrase": "The mill stands still. The miller",
    "sent1": "The mill stands still.", "sent2": "The miller", "gold-source": "gold",
    "ending0": "opens the sluice.", "ending1": "eats the wheel.",
    "ending2": "becomes rye.", "ending3": "is a river.", "label": 0,
}  # fmt: skip
PIQA = {"goal": "Keep flour dry", "sol1": "Put it in the river.", "sol2": "Put it in a jar.", "label": 1}
SOCIAL = {
    "context": "Ana lent Rui her boat.", "question": "How would Rui feel?", "answerA": "grateful", "answerB": "seasick",
    "answerC": "tall", "label": "1",
}  # fmt: skip
COSMOS = {
    "id": "3Q9#0", "context": "The wheel broke.", "question": "What happened next?", "answer0": "It rained.",
    "answer1": "They sang.", "answer2": "None of the above choices .", "answer3": "They mended it.", "label": 3,
}  # fmt: skip
WINOGRANDE = {
    "sentence": "The sack did not fit the cart because _ was too wide.", "option1": "sack", "option2": "cart",
    "answer": "1",
}  # fmt: skip
COPA = {
    "premise": "The river rose.", "choice1": "It had rained.", "choice2": "It was Monday.", "question": "cause",
    "idx": 0, "label": 0,
}  # fmt: skip
ANLI = {
    "story_id": "b2", "observation_1": "The mill was full of corn.", "observation_2": "Now it is empty.",
    "hypothesis_1": "Mice came.", "hypothesis_2": "Nothing happened.", "label": "1",
}  # fmt: skip
BELEBELE = {
    "link": "https://x", "question_number": 1, "flores_passage": "The mill ground rye.", "question": "What was ground?",
    "mc_answer1": "Iron", "mc_answer2": "Salt", "mc_answer3": "Sand", "mc_answer4": "Rye", "correct_answer_num": "4",
    "dialect": "eng_Latn",
}  # fmt: skip
RECLOR = {
    "context": "All mills turn.", "question": "What follows?", "answers": ["None turns", "Some stop", "This one turns"],
    "label": 2, "id_string": "train_0",
}  # fmt: skip
QUAIL = {
    "context": "The mill stood.", "question": "What stood?", "answers": ["the mill", "the cow"],
    "correct_answer_id": 0,
}  # fmt: skip
ARC = {
    "id": "M1", "question": {"stem": "What turns a mill?", "choices": [
        {"text": "Water", "label": "A"}, {"text": "Rye", "label": "B"}]}, "answerKey": "A",
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "asked", "answer"),
    [
        (HELLASWAG, "Grinding corn\n\nA man opens a sack. he\n\nHow does this go on?\n\nA. eats the sack.\n"
                    "B. pours corn.\nC. sings.\nD. swims away.", "B"),
        (SWAG, "The mill stands still. The miller …\n\nHow does this go on?\n\nA. opens the sluice.\n"
               "B. eats the wheel.\nC. becomes rye.\nD. is a river.", "A"),
        (PIQA, "Keep flour dry\n\nA. Put it in the river.\nB. Put it in a jar.", "B"),
        (SOCIAL, "How would Rui feel?\n\nAna lent Rui her boat.\n\nA. grateful\nB. seasick\nC. tall", "A"),
        ({**SOCIAL, "label": "3"}, "How would Rui feel?\n\nAna lent Rui her boat.\n\nA. grateful\nB. seasick\nC. tall",
         "C"),
        (COSMOS, "What happened next?\n\nThe wheel broke.\n\nA. It rained.\nB. They sang.\n"
                 "C. None of the above choices .\nD. They mended it.", "D"),
        (WINOGRANDE, "The sack did not fit the cart because _ was too wide.\n\nWhich of these does _ stand for?\n\n"
                     "A. sack\nB. cart", "A"),
        (COPA, "The river rose.\n\nWhat was the cause?\n\nA. It had rained.\nB. It was Monday.", "A"),
        ({**COPA, "question": "effect", "label": 1},
         "The river rose.\n\nWhat happened as a result?\n\nA. It had rained.\nB. It was Monday.", "B"),
        (ANLI, "The mill was full of corn. … Now it is empty.\n\nWhat happened in between?\n\nA. Mice came.\n"
               "B. Nothing happened.", "A"),
        (BELEBELE, "What was ground?\n\nThe mill ground rye.\n\nA. Iron\nB. Salt\nC. Sand\nD. Rye", "D"),
        (RECLOR, "What follows?\n\nAll mills turn.\n\nA. None turns\nB. Some stop\nC. This one turns", "C"),
        (QUAIL, "What stood?\n\nThe mill stood.\n\nA. the mill\nB. the cow", "A"),
        (ARC, "What turns a mill?\n\nA. Water\nB. Rye", "A"),
    ],
)  # fmt: skip
def test_the_right_option_is_trained_whatever_the_first_one_is_numbered(row, asked, answer):
    assert turns(row) == [("user", asked), ("assistant", answer)]
    assert shaped(row).unused == ()
    assert row is ARC or unknown_columns(row, ()) == ""  # a table has no such objects


@pytest.mark.parametrize("row", [HELLASWAG, SWAG, PIQA, SOCIAL, COSMOS, WINOGRANDE, COPA, ANLI, BELEBELE])
@pytest.mark.parametrize("hidden", ["", "-1", -1, None, " "])
def test_a_hidden_answer_is_refused_by_name(row, hidden):
    key = "answer" if "option1" in row else "correct_answer_num" if "mc_answer1" in row else "label"
    with pytest.raises(ValueError, match=f'"{key}"'):
        shaped({**row, key: hidden})
    with pytest.raises(ValueError, match=f'nothing says which option is right: it has no "{key}"|wanted "messages"'):
        shaped({name: value for name, value in row.items() if name != key})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**HELLASWAG, "label": "4"}, '"label" 4 names no option: there are 4, counted from 0'),
        ({**PIQA, "label": 2}, '"label" 2 names no option: there are 2, counted from 0'),
        ({**SOCIAL, "label": "0"}, '"label" 0 names no option: there are 3, counted from 1'),
        ({**SOCIAL, "label": "4"}, '"label" 4 names no option'),
        ({**WINOGRANDE, "answer": "sack"}, '"answer" sack names no option'),
        ({**PIQA, "label": True}, '"label" true names no option'),
        ({**PIQA, "sol1": ""}, '"sol1" must be a list of texts, all of them filled'),
        ({**HELLASWAG, "endings": "one text"}, '"endings" must be a list of texts'),
        ({**RECLOR, "label": 3}, "the label 3 names no option: there are 3"),
    ],
)
def test_an_answer_outside_its_options_is_refused(row, reason):
    with pytest.raises(ValueError, match=reason):
        shaped(row)


def test_columns_that_are_named_win_over_a_published_data_set():
    assert turns(PIQA, "prompt=goal", "completion=sol2") == [("user", "Keep flour dry"), ("assistant", PIQA["sol2"])]
    assert turns({**PIQA, "role": "Be brief."}, "system=role")[0] == ("system", "Be brief.")


def test_each_published_data_set_is_recognised_by_columns_of_its_own():
    for each in PUBLISHED:
        assert set(each.needs) <= {*each.columns, "uid"}
        found = next(other for other in PUBLISHED if set(other.needs) <= set(each.needs))
        assert found is each, f"{each.name} is taken for {found.name}"


# Inference -----------------------------------------------------------------------------------------------------------

PAIR = {"premise": "The mill turns.", "hypothesis": "Something moves."}


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({**PAIR, "label": 0}, "entailment"),
        ({**PAIR, "label": "1"}, "neutral"),
        ({**PAIR, "label": 2}, "contradiction"),
        ({**PAIR, "label": "Entailment"}, "entailment"),
        ({**PAIR, "label": "not_entailment", "idx": 3}, "not entailment"),
        ({"uid": "a", **PAIR, "label": 2, "reason": None}, "contradiction"),
        ({"uid": "a", "context": PAIR["premise"], "hypothesis": PAIR["hypothesis"], "label": "n"}, "neutral"),
        ({"sentence1": PAIR["premise"], "sentence2": PAIR["hypothesis"], "gold_label": "neutral"}, "neutral"),
    ],
)
def test_a_class_of_inference_is_trained_by_its_name(row, answer):
    asked = "Premise: The mill turns.\nHypothesis: Something moves."
    assert turns(row) == [
        ("user", f"{asked}\n\nDoes the hypothesis follow: entailment, neutral or contradiction?"),
        ("assistant", answer),
    ]
    numbered = str(row.get("label", "")).isdecimal()
    assert shaped(row).guesses == (("label: 0 is entailment, 1 neutral, 2 contradiction",) if numbered else ())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**PAIR, "label": -1}, '"label" is hidden'),
        ({**PAIR, "label": 3}, "none of entailment, neutral, contradiction"),
        ({**PAIR, "label": 1, "idx": 7}, "means one class in MNLI and another in CB and RTE"),
        ({"sentence1": "x", "sentence2": "y", "gold_label": "-"}, '"gold_label" is hidden'),
    ],
)
def test_a_class_that_is_hidden_or_unclear_is_refused(row, reason):
    with pytest.raises(ValueError, match=reason):
        shaped(row)


# MOSS ----------------------------------------------------------------------------------------------------------------


def moss(human: str, answer: str, thought: str = "None", commands: str = "None", results: str = "None") -> dict:
    return {
        "Human": f"<|Human|>: {human}<eoh>\n", "Inner Thoughts": f"<|Inner Thoughts|>: {thought}<eot>\n",
        "Commands": f"<|Commands|>: {commands}<eoc>\n", "Tool Responses": f"<|Results|>: {results}<eor>\n",
        "MOSS": f"<|MOSS|>: {answer}<eom>\n",
    }  # fmt: skip


def test_a_conversation_of_moss_in_the_order_of_its_numbers():
    row = {
        "conversation_id": 7, "meta_instruction": "You are MOSS.", "num_turns": 3, "category": "Code",
        "chat": {"turn_10": moss("Ten?", "Ten."), "turn_2": moss("None", "Two."), "turn_1": moss("Hello", "Hi.")},
    }  # fmt: skip
    assert turns(row) == [
        ("system", "You are MOSS."), ("user", "Hello"), ("assistant", "Hi."), ("user", "None"), ("assistant", "Two."),
        ("user", "Ten?"), ("assistant", "Ten."),
    ]  # fmt: skip
    assert shaped(row).unused == ()


def test_commands_of_moss_are_calls_and_their_results_are_not_trained():
    said = 'Search("mills of \\"Lorvão\\""), Calculate("3*4")'
    row = {"chat": {"turn_1": moss("Which?", "Two mills.", "I must look.", said, 'Search("…") =>\n<|1|>: "Two"')}}
    messages = shaped(row).content["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["reasoning_content"] == "I must look."
    assert [call["function"] for call in messages[1]["tool_calls"]] == [
        {"name": "Search", "arguments": {"query": 'mills of "Lorvão"'}},
        {"name": "Calculate", "arguments": {"expression": "3*4"}},
    ]
    with pytest.raises(ValueError, match='a command of "turn_1" is no NAME'):
        shaped({"chat": {"turn_1": moss("x", "y", commands="rm -rf")}})


# Several rows in one value -------------------------------------------------------------------------------------------

CONTEXT = "The mill at Lorvão ground rye until 1931. Then the river changed its bed."
QAS = [
    {"question": "What did it grind?", "id": "a1", "answers": [{"text": "rye", "answer_start": 26}],
     "is_impossible": False},
    {"question": "Until when?", "id": "a2", "is_impossible": False, "answers": [
        {"text": "1931", "answer_start": 36}, {"text": "1931", "answer_start": 36},
        {"text": "until the year 1931", "answer_start": 30}]},
    {"question": "Who built it?", "id": "a3", "answers": [], "is_impossible": True,
     "plausible_answers": [{"text": "the river", "answer_start": 44}]},
]  # fmt: skip
ARTICLE = {"title": "Lorvão", "paragraphs": [{"context": CONTEXT, "qas": QAS}]}
TASK = {
    "Contributors": ["Ana Lopes"], "Source": ["mills"], "Definition": ["Say what it ground."],
    "Positive Examples": [{"input": "Mill X", "output": "wheat", "explanation": "It ground wheat."}],
    "Negative Examples": [{"input": "Mill X", "output": "iron", "explanation": "No mill grinds iron."}],
    "Instances": [{"id": "t-1", "input": "Mill A", "output": ["rye"]},
                  {"id": "t-2", "input": "Mill B", "output": ["oats", "only oats"]}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("two.json", json.dumps({"version": "v2.0", "data": [ARTICLE]})),
        ("pretty.json", json.dumps({"data": [ARTICLE], "version": "v2.0"}, indent=2)),
        ("bare.json", json.dumps({"data": [ARTICLE]})),
        ("articles.jsonl", json.dumps(ARTICLE) + "\n"),
        ("paragraphs.jsonl", json.dumps(ARTICLE["paragraphs"][0]) + "\n"),
    ],
)
def test_questions_about_a_text_are_rows_and_what_has_no_answer_is_not_trained(read, name, content):
    prepared = read(name, content)
    assert said(prepared) == [(f"What did it grind?\n\n{CONTEXT}", "rye"), (f"Until when?\n\n{CONTEXT}", "1931")]
    report = prepared.report
    assert (report.read, report.train, report.marked.count) == (3, 2, 1)
    [left] = report.marked
    assert left.where.endswith(f"{name}:1 (a3)")
    assert left.reason == "marked as not to be trained: is_impossible true"
    assert "river" not in json.dumps([row["messages"][-1] for row in prepared.train])
    assert report.unused == {"question answers[1:]": 1}


def test_questions_without_answers_are_refused_and_all_of_a_text_stay_on_one_side(read):
    hidden = {"version": "1.1", "data": [{"title": "T", "paragraphs": [
        {"context": CONTEXT, "qas": [{"question": "What?", "id": "b1"}, QAS[0]]}]}]}  # fmt: skip
    prepared = read("test-of.json", json.dumps(hidden), own_split=False)
    assert [(found.where.rpartition(" ")[2], found.reason) for found in prepared.report.rejected] == [
        ("(b1)", "the answers is empty")
    ]
    texts = [f"Mill {number} ground {grain}." for number, grain in enumerate(["rye", "oats", "corn", "wheat"])]
    asked = [{"question": f"What did mill {n} do on day {d}?", "id": f"{n}-{d}", "answers": [{"text": f"{n}{d}"}]}
             for n in range(4) for d in range(6)]  # fmt: skip
    many = {"data": [{"paragraphs": [{"context": text, "qas": asked[6 * n : 6 * n + 6]} for n, text in
                                     enumerate(texts)]}]}  # fmt: skip
    split = read("many.json", json.dumps(many), val_fraction=0.3)
    sides = [{row["messages"][0]["content"].rpartition("\n")[2] for row in rows}
             for rows in (split.train, split.validation)]  # fmt: skip
    assert all(sides)
    assert sides[0].isdisjoint(sides[1])


def test_the_lines_of_a_reading_comprehension_file_with_a_head():
    row = {"id": "", "context": CONTEXT, "qas": [{"question": "What?", "qid": "q1", "answers": ["rye"]}]}
    [found] = nested_rows(row)
    assert (found.row["question"], found.row["answers"], found.place) == ("What?", "rye", "q1")
    assert nested_rows({"header": {"dataset": "SQuAD"}}) is None


def test_questions_that_follow_each_other_are_one_conversation(read):
    asked = [("What was ground?", "rye"), ("Who owned it?", "CANNOTANSWER")]
    qas = [{"followup": "y", "yesno": "x", "question": question, "id": f"C#{n}",
            "answers": [{"text": "another", "answer_start": 1}], "orig_answer": {"text": answer, "answer_start": 1}}
           for n, (question, answer) in enumerate(asked)]  # fmt: skip
    value = {"data": [{"title": "Mill", "paragraphs": [{"context": f"{CONTEXT} CANNOTANSWER", "qas": qas, "id": "C"}]}]}
    [row] = read("quac.json", json.dumps(value)).train
    assert [(m["role"], m["content"], m.get("train", True)) for m in row["messages"]] == [
        ("user", f"What was ground?\n\n{CONTEXT}", True), ("assistant", "rye", True), ("user", "Who owned it?", True),
        ("assistant", "CANNOTANSWER", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "beside",
    [
        {"questions": [{"input_text": "What?", "turn_id": 1}, {"input_text": "When?", "turn_id": 2}],
         "answers": [{"input_text": "rye", "span_text": "ground rye"}, {"input_text": "1931", "span_text": "1931"}]},
        {"questions": ["What?", "When?"], "answers": {"input_text": ["rye", "1931"], "answer_start": [1, 2]}},
    ],
)  # fmt: skip
def test_a_conversation_about_a_story(read, beside):
    prepared = read("story.json", json.dumps({"version": "1.0", "data": [{"id": "s", "story": CONTEXT, **beside}]}))
    assert said(prepared) == [(f"What?\n\n{CONTEXT}", "rye", "When?", "1931")]


def test_the_instances_of_a_task_are_trained_and_its_examples_are_listed(read):
    for definition in (TASK["Definition"], TASK["Definition"][0]):
        prepared = read("task001.json", json.dumps({**TASK, "Definition": definition}, indent=4))
        assert said(prepared) == [
            ("Say what it ground.\n\nMill A", "rye"), ("Say what it ground.\n\nMill B", "oats"),
        ]  # fmt: skip
        assert prepared.report.unused == {
            "question Contributors": 1, "question Positive Examples": 1, "question Negative Examples": 1,
            "question output[1:]": 1,
        }  # fmt: skip


# Numbers that a file gives names -------------------------------------------------------------------------------------


def test_classes_of_a_parquet_file_have_the_names_that_it_states(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    rows = [{**PAIR, "idx": 1, "label": 1}, {**PAIR, "premise": "A cow.", "idx": 2, "label": -1}]
    features = {"label": {"names": ["entailment", "contradiction", "neutral"], "_type": "ClassLabel"}}
    table = pyarrow.Table.from_pylist(rows)
    stated = {"huggingface": json.dumps({"info": {"features": features}})}
    pyarrow.parquet.write_table(table.replace_schema_metadata(stated), tmp_path / "cb.parquet")
    config = DataConfig(data=(str(tmp_path / "cb.parquet"),), val_fraction=0.0)
    prepared = prepare(config, ChatTokenizer(tiny_model))
    assert [row["messages"][-1]["content"] for row in prepared.train] == ["contradiction"]
    assert prepared.report.rejected.count == 1


@pytest.mark.parametrize("answers", [{"text": ["rye"], "answer_start": [5]}, {"text": [], "answer_start": []}])
def test_a_flat_row_of_questions_about_a_text(answers):
    row = {"id": "1", "title": "T", "context": CONTEXT, "question": "What?", "answers": answers}
    if answers["text"]:
        assert turns(row)[-1] == ("assistant", "rye")
    else:
        with pytest.raises(ValueError, match="the answers is empty"):
            shaped(row)
        with pytest.raises(MarkedError, match="is_impossible true"):
            shaped({**row, "is_impossible": True})


@pytest.mark.parametrize(
    "value",
    [
        {"data": [{"title": "A", "paragraphs": [{"context": CONTEXT, "qas": None}]}]},
        {"data": [{"title": "A", "paragraphs": [{"context": CONTEXT, "qas": ["What?", 3]}]}]},
        {"data": [{"title": "A", "paragraphs": [{"context": 7, "qas": [{"question": None, "answers": [[1], None]}]}]}]},
        {"data": [{"title": "A", "paragraphs": [None]}]},
        {"data": [{"title": "A", "paragraphs": []}]},
        {"data": [{"id": "s", "story": CONTEXT, "questions": ["What?", "When?"], "answers": ["rye"]}]},
        {"data": [{"id": "s", "story": CONTEXT, "questions": [None], "answers": {"input_text": [4]}}]},
        {"Definition": [1, None], "Instances": [{"input": {"a": 1}, "output": {"b": 2}}]},
        {"Definition": "Say.", "Instances": [{"input": "x", "output": []}]},
    ],
)
def test_damaged_parts_are_refused_by_name_and_the_rest_is_read(read, value):
    rows = [value, {"question": "Who?", "answer": "Ana."}]
    prepared = read("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert said(prepared)[-1] == ("Who?", "Ana.")
    report = prepared.report
    assert report.read == report.train + report.rejected.count == 2
    assert report.rejected.count == 2 - report.train
