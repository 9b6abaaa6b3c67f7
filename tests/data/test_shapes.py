"""Which of the known shapes a row has, whatever its columns are called."""

import pytest

from qlora_core.data.known_row import Shaped
from qlora_core.data.shapes import ACCEPTED, column_roles, columns_of, shape, unknown_columns
from qlora_core.errors import ConfigError


def asked(prompt: str, answer: str, system: str = "") -> dict:
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def shaped(row: object, *columns: str) -> Shaped:
    return shape(row, columns_of(columns), str.strip)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "completion": "Ana."},
        {"prompt": "Who?", "response": "Ana."},
        {"question": "Who?", "answer": "Ana."},
        {"pergunta": "Who?", "resposta": "Ana."},
        {"instruction": "Who?", "output": "Ana."},
        {"instruction": "Who?", "input": "", "output": "Ana."},
        {"instruction": "", "input": "Who?", "output": "Ana."},
        {"input": "Who?", "output": "Ana."},
        {" Question": " Who? ", "ANSWER": "Ana.\n"},
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ana."}]},
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ana."}]},
        {"conversation": [{"role": "human", "content": "Who?"}, {"role": "model", "content": [{"text": "Ana."}]}]},
    ],
)
def test_a_question_and_its_answer(row):
    assert shaped(row) == Shaped(asked("Who?", "Ana."))


def test_an_instruction_and_its_input_are_one_prompt():
    row = {"instruction": "Translate.", "input": "o golo", "output": "the goal"}
    assert shaped(row).content == asked("Translate.\n\no golo", "the goal")


def test_a_system_text_comes_first():
    row = {"system": "Be brief.", "prompt": "Who?", "completion": "Ana."}
    assert shaped(row).content == asked("Who?", "Ana.", system="Be brief.")
    assert shaped({**row, "system": " "}).content == asked("Who?", "Ana.")


def test_every_speaker_has_a_role():
    names = ["developer", "human", "gpt", "observation", "chatgpt"]
    row = {"conversations": [{"from": name, "value": name} for name in names]}
    assert [m["role"] for m in shaped(row).content["messages"]] == ["system", "user", "assistant", "tool", "assistant"]


def test_a_row_without_a_prompt_is_running_text():
    for row in ({"prompt": " ", "completion": "So."}, {"completion": "So."}, {"question": "", "answer": "So."}):
        assert shaped(row) == Shaped({"text": "So."}, running=True)
    assert shaped({"text": "So."}) == Shaped({"text": "So."}, running=False)


def test_what_else_a_row_carries_is_metadata():
    row = {"text": "So.", "page": 3, "metadata": {"by": "Ana", "page": 2}}
    assert shaped(row).metadata == {"by": "Ana", "page": 3}
    assert shaped({"text": "So.", "metadata": "a note"}).metadata == {"metadata": "a note"}
    both = {"messages": asked("Who?", "Ana.")["messages"], "text": "not trained"}
    assert shaped(both).metadata == {"text": "not trained"}
    assert shaped({"input": "x", "prompt": "Who?", "completion": "Ana."}).metadata == {"input": "x"}


def test_named_columns_are_taken_instead():
    row = {"Frage": "Who?", "Antwort": "Ana.", "text": "a note", "prompt": "no"}
    assert shaped(row, "prompt=Frage", "completion=Antwort") == Shaped(
        asked("Who?", "Ana."), {"text": "a note", "prompt": "no"}
    )
    assert shaped({"Satz": "So."}, "text=Satz") == Shaped({"text": "So."})
    assert shaped({"question": "Who?", "answer": "Ana."}, "text=Satz").content == asked("Who?", "Ana.")
    assert shaped({"a": "x", "b": "y", "c": "z"}, "system=a", "prompt=b", "completion=c").content == asked(
        "y", "z", "x"
    )


@pytest.mark.parametrize("given", ["Frage", "Frage=prompt", "prompt=", "answer=Antwort"])
def test_a_column_that_is_not_written_as_it_must_be(given):
    with pytest.raises(ConfigError, match="columns: wanted OURS=YOURS with OURS one of messages, system, prompt"):
        columns_of([given])


def test_a_table_of_unknown_columns_says_what_to_do():
    assert unknown_columns(["question", "answer", "id"], ()) == ""
    assert unknown_columns(["Frage", "Antwort"], columns_of(["prompt=Frage", "completion=Antwort"])) == ""
    assert unknown_columns(["a", "b", "c"], ()) == (
        "none of its columns is known: 'a', 'b', 'c'. Say which they are: --columns prompt=NAME completion=NAME"
    )
    assert unknown_columns(["id", "Frage", "Die Antwort"], ()) == (
        "none of its columns is known: 'id', 'Frage', 'Die Antwort'. Say which is asked and which answers: --columns "
        "prompt=Frage completion='Die Antwort', or prompt='Die Antwort' completion=Frage"
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (3, "a row must be a JSON object, found a number"),
        ({"foo": 1}, "found the keys 'foo'"),
        ({"question": "Who?"}, "found the keys 'question'"),
        ({str(i): 1 for i in range(9)}, "'5' …"),
        ({"question": "Who?", "answer": None}, '"answer" must be a text, found null'),
        ({"resposta": " ", "pergunta": "?"}, "the resposta is empty"),
        ({"text": ""}, "the text is empty"),
        (
            {"conversations": [{"from": "narrator", "value": "x"}]},
            "turn 1 has the role 'narrator', wanted one of system",
        ),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "turn 1 has the role ['user'], wanted"),
        ({"messages": ["x"]}, 'turn 1 of "messages" must be {role, content} with texts'),
        (
            {"conversations": [{"from": "gpt", "text": "x"}]},
            'turn 1 of "conversations" must be {from, value} with texts',
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "turn 1 has a call of a tool that is not",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "turn 1 holds something that is not text"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "turn 1 is an assistant turn without an answer"),
        ({"messages": [{"role": "user", "content": "?"}]}, "no assistant turn: nothing would be trained"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, reason):
    with pytest.raises(ValueError) as error:
        shaped(row)
    assert reason in str(error.value)


def test_the_accepted_shapes_are_accepted():
    """What is printed where nothing usable was found must be true."""
    import json

    examples = [json.loads(part) for line in ACCEPTED.splitlines() for part in parts(line)]
    assert len(examples) == 8
    for example in examples:
        assert shaped(example).content
    assert not column_roles(("YOUR_NAME",))


def parts(line: str) -> list[str]:
    """The JSON objects of a line."""
    found = []
    for piece in line.split("        also "):
        piece = piece.strip().removesuffix(": running text").strip()
        found += [piece] if piece.startswith("{") else []
    return found


@pytest.mark.parametrize("part", [None, True, 0, 1.5, [], ["x"], {}])
def test_a_part_of_a_turn_that_is_no_text_is_named(part):
    with pytest.raises(ValueError, match="turn 1 holds something that is not text"):
        shape({"messages": [{"role": "user", "content": [part]}]}, (), str)
