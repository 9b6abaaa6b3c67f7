"""Columns, marks, calls, cells and notes in the spellings of other tools, each read as its author meant it."""

import io
import itertools
import json
import textwrap
import zipfile

import docx
import pyarrow
import pyarrow.parquet
import pytest
from prepared import said

from qlora_core.data.columns import turn_mark
from qlora_core.data.documents import read_document
from qlora_core.data.documents.columns import read_columns
from qlora_core.data.records import MarkedError
from qlora_core.data.shapes import columns_of, shape
from qlora_core.data.values import unpacked
from qlora_core.errors import DataError

ASKED, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ana."}


def shaped(row: object, *columns: str):
    return shape(row, columns_of(columns), str.strip)


def turns(row: object, *columns: str) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in shaped(row, *columns).content["messages"]]


# Marks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mark",
    [
        {"step_loss_mask": 0}, {"loss_scale": 0.0}, {"ignore_loss": True}, {"no_loss": True}, {"skip": True},
        {"exclude": True}, {"ignore": True}, {"compute_loss": False}, {"doTrain": False}, {"is_trained": "false"},
        {"exclude_from_training": 1}, {"learn": False},
    ],
)  # fmt: skip
def test_a_turn_that_is_marked_in_other_words_is_not_trained(mark):
    row = {"messages": [ASKED, {**ANSWER, **mark}, ASKED, ANSWER]}
    assert [m.get("train", True) for m in shaped(row).content["messages"]] == [True, False, True, True]
    assert len(shaped(row).marks) == 1


def test_a_round_whose_output_has_no_loss_is_not_trained():
    rounds = [{"input": "Who?", "output": "Nobody.", "output_with_loss": False}, {"input": "Who?", "output": "Ana."}]
    messages = shaped({"conversation": rounds}).content["messages"]
    assert [m.get("train", True) for m in messages] == [True, False, True, True]


@pytest.mark.parametrize("key", ["training_step", "train_idx", "loss_type", "name", "content", "trainer", "lossless"])
def test_a_key_that_only_sounds_like_a_mark_is_none(key):
    assert turn_mark(key) == 0


@pytest.mark.parametrize(
    "mark",
    [
        {"status": "rejected"}, {"review_status": " Discarded"}, {"annotation_status": "excluded"}, {"exclude": True},
        {"skip": "true"}, {"include": "no"}, {"keep": 0}, {"use_for_training": False},
    ],
)  # fmt: skip
def test_a_row_whose_state_says_that_it_was_refused_is_left_out(mark):
    with pytest.raises(MarkedError, match=f"marked as not to be trained: {next(iter(mark))}"):
        shaped({"question": "Who?", "answer": "Ana.", **mark})
    kept = {key: "accepted" if isinstance(value, str) and len(value) > 5 else None for key, value in mark.items()}
    assert shaped({"question": "Who?", "answer": "Ana.", **kept}).unused == ()


# Splits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "train"),
    [
        ({"subset": "test"}, {"subset": "algebra"}), ({"partition": "TEST"}, {"partition": "train"}),
        ({"set": " test "}, {"set": "train"}), ({"is_test": True}, {"is_test": False}),
        ({"data_split": "test"}, {"data_split": "train"}), ({"is_train": False}, {"is_train": True}),
        ({"split": "train", "is_test": 1}, {"split": "train", "is_test": 0}),
    ],
)  # fmt: skip
def test_a_split_in_a_column_of_another_name_is_kept(read, test, train):
    rows = [{"question": "Asked?", "answer": "Tested.", **test}, {"question": "Who?", "answer": "Ana.", **train}]
    prepared = read("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert said(prepared) == [("Who?", "Ana.")]
    assert prepared.report.test_rows == 1


def test_a_column_that_names_no_split_stays_what_it_is():
    row = {"question": "Who?", "answer": "Ana.", "subset": "test of two words", "set": "3"}
    assert shaped(row).splits == ()
    assert shaped(row).unused == (("subset", True),)


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"choices": ["Elm", "Oak"], "answer": -1}, "the answer -1 names no option"),
        ({"choices": ["Elm", "Oak"], "answer": "E"}, "the answer E names no option: they are A, B"),
        ({"choices": ["Elm", "Oak"], "answer": "(E)"}, "the answer E names no option"),
        ({"choices": ["Elm", "Oak"], "answer": "e."}, "the answer e names no option"),
        ({"choice1": "Elm", "choice2": "Oak", "answer": 0}, "the answer 0 names no option: they are 1, 2"),
    ],
)
def test_an_answer_that_is_none_of_the_options_is_refused(row, reason):
    with pytest.raises(ValueError, match=reason):
        shaped({"question": "Which tree?", **row})


@pytest.mark.parametrize(
    ("choices", "answer", "wanted"),
    [
        (["Elm", "Oak"], "1.0", "B"), (["Elm", "Oak"], "b", "B"), (["Elm", "Oak"], "(b)", "(b)"),
        (["Elm", "Oak"], "B. Oak", "B. Oak"), (["a", "e"], "e", "e"), ("['Elm', 'Oak']", "1", "B"),
        ("['Elm' \"Ana's oak\"]", "1", "B"),
        ("{'text': array(['Elm (old)', 'Oak'], dtype=object), 'label': array(['A', 'B'], dtype=object)}", "B", "B"),
    ],
)  # fmt: skip
def test_options_and_answers_as_tables_hold_them(choices, answer, wanted):
    found = turns({"question": "Which tree?", "choices": choices, "answer": answer})
    assert found[-1] == ("assistant", wanted)
    assert found[0][1].count("\n") == 3
    assert "array" not in found[0][1]
    assert "[" not in found[0][1]


# Cells that were printed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['a', 'b']", ["a", "b"]),
        ("['a' 'b c'\n 'd']", ["a", "b c", "d"]),
        ("[{'role': 'user'}\n {'role': 'x y'}]", [{"role": "user"}, {"role": "x y"}]),
        ("{'t': array(['a (1)', 'b'], dtype=object), 'n': array([5], dtype=int32)}", {"t": ["a (1)", "b"], "n": [5]}),
        ('["a", "b"]', ["a", "b"]),
        ("[1, 2]", [1, 2]),
        ("[see the note]", "[see the note]"),
        ("{not} an object", "{not} an object"),
        ("['open", "['open"),
        ("[__import__('os').getcwd()]", "[__import__('os').getcwd()]"),
    ],
)
def test_a_list_or_object_that_was_printed_into_a_cell(text, value):
    assert unpacked(text) == value


def test_answers_that_a_table_holds_as_text_are_their_texts_and_json_that_is_asked_for_stays():
    about = {"context": "The mill ground rye.", "question": "What?"}
    for cell in (
        "{'text': array(['rye'], dtype=object), 'answer_start': array([16], dtype=int32)}",
        '{"text": ["rye"], "answer_start": [16]}',
        "['rye', 'some rye']",
    ):
        assert turns({**about, "answers": cell})[-1] == ("assistant", "rye")
        assert turns({"question": "What?", "answers": "['rye' 'oats']"})[-1] == ("assistant", "rye")
    asked = {"question": "As JSON?", "answer": '{"text": "rye", "n": 1}'}
    assert turns(asked)[-1] == ("assistant", asked["answer"])
    said_of = {"context": '{"mill": "of two wheels"}', "question": "How many?", "answer": "2"}
    assert turns(said_of)[0] == ("user", 'How many?\n\n{"mill": "of two wheels"}')


def test_a_conversation_that_was_printed_into_a_cell():
    cell = "[{'role': 'user', 'content': \"Who's there?\"}\n {'role': 'assistant', 'content': 'Ana.'}]"
    assert turns({"messages": cell}) == [("user", "Who's there?"), ("assistant", "Ana.")]


# Calls and conversations of other tools ------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "open", "arguments": {"gate": 1}}}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "I open.", "toolCalls": [{"toolName": "open", "args": {"gate": 1}}]},
        {"role": "assistant", "content": "I open.", "function_calls": [{"name": "open", "arguments": '{"gate": 1}'}]},
        {"role": "assistant", "content": "I open.", "tool_call": {"name": "open", "parameters": {"gate": 1}}},
        {"role": "model", "parts": [{"text": "I open."}, {"functionCall": {"name": "open", "args": {"gate": 1}}}]},
        {"role": "assistant", "content": [{"text": "I open."}, {"toolUse": {"name": "open", "input": {"gate": 1}}}]},
    ],
)
def test_a_call_in_another_spelling_is_a_call(turn):
    [_, message] = shaped({"messages": [ASKED, turn]}).content["messages"]
    assert message == {"role": "assistant", "content": "I open.", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    "part",
    [
        {"functionResponse": {"name": "open", "response": {"done": True}}},
        {"toolResult": {"toolUseId": "1", "content": [{"text": '{"done": true}'}]}},
    ],
)
def test_a_result_in_another_spelling_is_a_turn_of_the_tool(part):
    row = {"messages": [ASKED, {**ANSWER, "toolCalls": [CALL]}, {"role": "user", "content": [part]}, ANSWER]}
    assert turns(row)[2] == ("tool", '{"done": true}')


@pytest.mark.parametrize(
    "row",
    [
        {"systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]}, "contents": [
            {"role": "user", "parts": [{"text": "Who?"}]}, {"role": "model", "parts": [{"text": "Ana."}]}]},
        {"schemaVersion": "bedrock-conversation-2024", "system": [{"text": "Be brief."}], "messages": [
            {"role": "user", "content": [{"text": "Who?"}]}, {"role": "assistant", "content": [{"text": "Ana."}]}]},
        {"messages": [{"role": "System", "content": "Be brief."}, {"role": "User", "content": "Who?"},
                      {"role": "Chatbot", "content": "Ana."}]},
    ],
)  # fmt: skip
def test_conversations_of_hosted_models(row):
    assert turns(row) == [("system", "Be brief."), ("user", "Who?"), ("assistant", "Ana.")]


def test_exported_conversations_of_chat_programs(read):
    claude = [{"uuid": "1", "name": "Mills", "chat_messages": [
        {"uuid": "a", "text": "Who?", "sender": "human", "content": [{"type": "text", "text": "Who?"}]},
        {"uuid": "b", "text": "Ana.", "sender": "assistant"}]}]  # fmt: skip
    assert said(read("conversations.json", json.dumps(claude))) == [("Who?", "Ana.")]

    def node(role: str, text: str, parent: str | None, *children: str, time: float = 0.0) -> dict:
        message = {"author": {"role": role}, "create_time": time, "recipient": "all",
                   "content": {"content_type": "text", "parts": [text]}}  # fmt: skip
        return {"message": message if role else None, "parent": parent, "children": list(children)}

    mapping = {
        "top": node("", "", None, "sys"), "sys": node("system", "", "top", "q"),
        "q": node("user", "Who?", "sys", "old", "new"), "old": node("assistant", "Nobody.", "q", time=1.0),
        "new": node("assistant", "Ana.", "q", time=2.0),
    }  # fmt: skip
    row = {"title": "Mills", "mapping": mapping, "current_node": "new"}
    assert turns(row) == [("user", "Who?"), ("assistant", "Ana.")]
    mapping["new"]["message"]["content"] = {"content_type": "code", "text": "open()"}
    with pytest.raises(ValueError, match="a turn is 'code' to 'all', no text"):
        shaped(row)


def test_messages_of_slack_are_no_texts():
    with pytest.raises(ValueError, match="is one message of a conversation"):
        shaped({"type": "message", "user": "U024", "text": "The mill is open today.", "ts": "1405894322.002768"})


# Tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('question, answer\n"Who, then?", "Ana, ""the elder"""\nWhere?, By the river\n',
         [("Who, then?", 'Ana, "the elder"'), ("Where?", "By the river")]),
        ('question,answer\n"Who?", "Ana, the elder"\n"When?", "1931"\n',
         [("Who?", "Ana, the elder"), ("When?", "1931")]),
        ('question,answer\n"He said, ""no"", and left?",Ana\nWhen?,    indented\n',
         [('He said, "no", and left?', "Ana"), ("When?", "    indented")]),
        ("question,answer\nWho?,Ana\nquestion,answer\nWhen?,1931\n", [("Who?", "Ana"), ("When?", "1931")]),
        ("question,answer\nWho?,\\N\nWhen?,NULL\nWhere?,nan\nWhat?,NaN\nWhy?,<NA>\nHow?,#N/A\nReally?,None\n",
         [("Really?", "None")]),
        ("\n \nquestion,answer\nWho?,Ana\n", [("Who?", "Ana")]),
    ],
)  # fmt: skip
def test_cells_as_other_programs_write_them(read, content, rows):
    prepared = read("rows.csv", content)
    assert said(prepared) == rows
    assert prepared.report.read == prepared.report.train + prepared.report.rejected.count


def test_a_repeated_header_is_named_by_its_line(read):
    report = read("rows.csv", "question,answer\nWho?,Ana\nquestion,answer\n").report
    [found] = report.rejected
    assert report.unreadable == 0
    assert found.where.endswith("rows.csv:3")
    assert found.reason == "the names of the columns again, as in files that were joined"


def test_calls_of_a_parquet_file_have_no_arguments_of_other_calls(tmp_path, read):
    calls = [{"name": "open", "arguments": {"gate": 1}}, {"name": "weigh", "arguments": {"sack": "rye"}}]
    rows = [{"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}]}
            for call in calls]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "calls.parquet")
    found = [row["messages"][1]["tool_calls"][0]["function"] for row in read("calls.parquet").train]
    assert found == calls


# Notes, pages and chats ----------------------------------------------------------------------------------------------


def texts(suffix: str, content: str) -> list[str]:
    return [block.text for block in read_document(suffix, content.encode()).blocks]


def test_what_its_author_struck_out_is_not_trained_and_listed():
    page = "<p>Built in <del>1930</del><ins>1931</ins> by <s>Rui</s> Ana.</p>"
    assert texts(".html", page) == ["Built in 1931 by Ana."]
    assert [(r, t) for _, r, t in read_document(".html", page.encode()).left_out] == [
        ("struck out", "1930"), ("struck out", "Rui"),
    ]  # fmt: skip
    note = "# Mill\n\nBuilt in <del>1930</del> 1931 by ~~Rui *Lopes*~~ Ana, 3 ~ 4 and ~~ alone.\n"
    found = read_document(".md", note.encode())
    assert [block.text for block in found.blocks] == ["Built in 1931 by Ana, 3 ~ 4 and ~~ alone."]
    assert [(p, t) for p, _, t in found.left_out] == [("3", "1930"), ("3", "Rui Lopes")]


def test_what_a_program_of_notes_keeps_for_itself_is_not_trained():
    logseq = (
        "title:: The Mill\ntags:: rye, river\n\n- It stood by the river.\n  id:: 64f0a1b2-1111-4000-8000-000000000001\n"
        "  collapsed:: true\n\t- It burned. ((64f0a1b2-2222-4000-8000-000000000002))\n- {{query (todo TODO)}}\n"
    )
    found = read_document(".md", logseq.encode())
    assert found.title == "The Mill"
    assert [block.text for block in found.blocks] == ["- It stood by the river.\n  - It burned."]
    obsidian = "# Mill\n\nKeeper:: Ana\n\n```dataview\nTABLE file.ctime FROM #mill\n```\n\n```python\nid:: x\n```\n"
    found = read_document(".md", obsidian.encode())
    assert [block.text for block in found.blocks] == ["Keeper:: Ana", "id:: x"]
    assert [(place, reason) for place, reason, _ in found.left_out] == [("5", "a query of notes")]


def test_a_long_notice_of_whatsapp_is_no_message(read):
    notice = "\u200eMessages and calls are end-to-end encrypted. No one outside of this chat can read them."
    closed = "Closed, as on every other Sunday of this year and the last."
    lines = [
        f"[01/05/2024, 10:02:33] Mill: {notice}", "[01/05/2024, 10:02:40] Ana: When does it open?",
        "[01/05/2024, 10:03:01] Rui: At nine.", "[01/05/2024, 10:03:25] Ana: And Sunday?",
        f"[01/05/2024, 10:03:30] Rui: \u200e{closed}",
    ]  # fmt: skip
    prepared = read("chat.txt", "\n".join(lines) + "\n", answers_of="Rui")
    assert [text for row in said(prepared) for text in row] == [
        "When does it open?", "At nine.", "And Sunday?", closed,
    ]  # fmt: skip


def test_a_file_of_which_no_row_has_an_answer_says_so(read):
    rows = [{"goal": "Keep flour dry", "sol1": "River.", "sol2": "Jar.", "label": -1}] * 2
    with pytest.raises(DataError, match=r'rows.jsonl:1: its "label" is hidden \(-1\), as in a test set'):
        read("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "value",
    [
        {"version": "1.0", "data": [{"question": "Who?", "answer": "Ana"}, {"question": "When?", "answer": "1931"}]},
        {"name": "mills", "examples": [{"input": "Who?", "target": "Ana"}, {"input": "When?", "target": "1931"}]},
        {"features": [{"name": "question"}], "num_rows_total": 2, "rows": [
            {"row_idx": 0, "row": {"question": "Who?", "answer": "Ana"}, "truncated_cells": []},
            {"row_idx": 1, "row": {"question": "When?", "answer": "1931"}, "truncated_cells": []}]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_beside_what_describes_them_are_no_conversation(read, value, indent):
    assert said(read("rows.json", json.dumps(value, indent=indent))) == [("Who?", "Ana"), ("When?", "1931")]


def test_a_row_that_has_examples_is_one_row(read):
    row = {"prompt": "Who?", "completion": "Ana", "examples": [{"input": "x", "target": "y"}]}
    assert said(read("rows.json", json.dumps(row, indent=2))) == [("Who?", "Ana")]


# Office documents ----------------------------------------------------------------------------------------------------


def word_with_looks() -> bytes:
    document = docx.Document()
    paragraph = document.add_paragraph("Built in ")
    paragraph.add_run("1930").font.strike = True
    paragraph.add_run(" 1931, of 10")
    for sign in "-6":
        paragraph.add_run(sign).font.superscript = True
    paragraph.add_run(" parts. ")
    paragraph.add_run("Hidden.").font.hidden = True
    paragraph.add_run("In 1940").font.strike = False
    paragraph.add_run("2").font.superscript = True
    paragraph.add_run(" it fell.")
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def rtf_with_looks() -> bytes:
    return (
        rb"{\rtf1\ansi Built in {\strike 1930} 1931, of 10{\super -}{\super 6} parts. {\v Hidden.}"
        rb"{\strike0 In 1940}{\up6 2} it fell.\par}"
    )


def opendocument_with_looks() -> bytes:
    names = "".join(f' xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in
                    ("office", "text", "style"))  # fmt: skip
    looks = "".join(
        f'<style:style style:name="{name}" style:family="text"><style:text-properties {look}/></style:style>'
        for name, look in (("T1", 'style:text-line-through-style="solid"'), ("T2", 'style:text-position="super 58%"'),
                           ("T3", 'style:text-line-through-style="none"'))
    )  # fmt: skip
    body = (
        'Built in <text:span text:style-name="T1">1930</text:span> 1931, of 10<text:span text:style-name="T2">-'
        '</text:span><text:span text:style-name="T2">6</text:span> parts. <text:span text:style-name="T3">In 1940'
        '</text:span><text:span text:style-name="T2">2</text:span> it fell.'
    )
    content = (
        f"<office:document-content{names}><office:automatic-styles>{looks}</office:automatic-styles><office:body>"
        f"<office:text><text:p>{body}</text:p></office:text></office:body></office:document-content>"
    )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
        archive.writestr("content.xml", content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("suffix", "content"),
    [(".docx", word_with_looks()), (".rtf", rtf_with_looks()), (".odt", opendocument_with_looks())],
)
def test_numbers_that_are_raised_and_text_that_is_struck_out(suffix, content):
    document = read_document(suffix, content)
    text = document.blocks[0].text if document.blocks else document.lines[0].text
    assert text == "Built in 1931, of 10⁻⁶ parts. In 1940 it fell."
    assert [(reason, said) for _, reason, said in document.left_out] == [("struck out", "1930")]


# Pages in columns ----------------------------------------------------------------------------------------------------

COLUMN = (
    "The mill at Lorvão ground rye for the monks and for the farmers of the valley, who came on foot with their sacks.",
    "In winter the river rose above the second step, and the miller moved his bed upstairs to watch the barrels float.",
    "When the wheel broke nobody had the money to mend it, so the stones were sold to a baker, who made one a table.",
)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("gap", [2, 3, 5])
def test_a_page_of_several_columns_is_read_column_by_column(count, gap):
    for width in range(20, 44):
        columns = [textwrap.wrap(COLUMN[place % 3] * 2, width) for place in range(count)]
        rows = itertools.zip_longest(*columns, fillvalue="")
        page = "\n".join((" " * gap).join(cell.ljust(width) for cell in row) for row in rows)
        head = "The heading of this page runs across all of its columns"
        found = [line.strip() for line in read_columns(f"{head}\n{page}") if line.strip()]
        assert found == [head, *(line for column in columns for line in column)], (count, gap, width)
