"""What is trained with the templates that models are published with, held against a rendering by plain jinja2.

One test is a template with a kind of tokeniser; it tries all shapes of conversation.
"""

import json
import tempfile
from pathlib import Path

import jinja2
import numpy as np
import pytest
from chat_templates import (
    CALL,
    CHATML,
    IM,
    KINDS,
    MARKED,
    PUBLISHED,
    SHAPES,
    TOOL,
    Published,
    expected,
    say,
    spelled,
    trained,
    verdict,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_core.errors import DataError
from qlora_core.models.base_models import BUILT_IN
from qlora_core.models.hub import ALIASES
from qlora_core.tokens.conversations import Abilities, fit
from qlora_core.tokens.dataset import TokenDataset, make_dataset
from qlora_core.tokens.report import describe
from qlora_core.tokens.tokenizer import ChatTokenizer

SENTENCE_PIECE = [kind for kind in KINDS if kind.startswith("Sentence")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tokenisers with a published template, made once."""
    place, known = tmp_path_factory.mktemp("published"), {}

    def make(name: str, kind: str = "byte pairs", **options) -> ChatTokenizer:
        directory = place / name / kind
        if not directory.exists():
            write(directory, PUBLISHED[name], kind)
        key = (name, kind, *sorted(options.items()))
        if key not in known:
            known[key] = ChatTokenizer(directory, **options)
        return known[key]

    return make


def with_template(path: Path, text: str, kind: str = "byte pairs", **options) -> ChatTokenizer:
    return ChatTokenizer(write(path, Published(text, IM, "<|im_end|>", "<|im_end|>"), kind), **options)


def said(tokenizer: ChatTokenizer, *rows) -> list[str]:
    """What is trained of rows, blanks aside."""
    dataset = make_dataset([{"source": f"r:{i}", **row} for i, row in enumerate(rows, 1)], tokenizer, 4096)
    return [spelled(tokenizer, ids) for _, ids in trained(tokenizer, dataset.rows)]


def reasons(tokenizer: ChatTokenizer, *messages, **more) -> list[str]:
    return [why for _, why in make_dataset([{"messages": list(messages), **more}], tokenizer, 4096).skipped]


QUESTION, ANSWER = say("user", "Which day?"), say("assistant", "Friday.")


def test_every_model_that_is_listed_has_its_template_here():
    known = [model for published in PUBLISHED.values() for model in published.models]
    assert sorted(known) == sorted([*ALIASES, BUILT_IN])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_trained_is_each_answer_and_its_end_behind_what_asks_for_it(made, name, kind):
    tokenizer = made(name, kind)
    found = {shape: verdict(PUBLISHED[name], tokenizer, shape) for shape in SHAPES}
    assert {shape: what for shape, what in found.items() if what not in ("–", "refused")} == {}


@pytest.mark.parametrize("name", PUBLISHED)
def test_hardly_any_shape_is_refused(made, name):
    """Who speaks when is the template's to say; calls are left to those that write them."""
    refused = {shape for shape in SHAPES if verdict(PUBLISHED[name], made(name), shape) == "refused"}
    in_turn = {"assistant first", "two users"} if "take turns" in PUBLISHED[name].text else set()
    assert refused <= in_turn | (set() if PUBLISHED[name].calls else {"tool turn"})


# The border of prompt and answer --------------------------------------------------------------------------------

PATTERNS = (
    "Q: {prompt}\\nA: {response}",
    "{prompt}: {response}",
    "{prompt}{response}",
    "[INST] {prompt} [/INST]{response}",
    "{prompt} ->\\t{response} .",
    "plain",
    "pergunta",
)
ANSWERS = (
    "Green",
    "Rui",
    "May",
    "(Green)",
    '"Green"',
    "- one",
    "7",
    "  indented",
    "\nnext",
    "\n\nnext",
    "ção",
    "😀",
    "x",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_answer_of_a_word_is_trained_whole_whatever_stands_before_it(made, pattern, kind):
    tokenizer = made("ChatML", kind, template=pattern)
    asked = say("user", "What colour is the door?")
    for answer in ANSWERS:
        dataset = make_dataset([{"messages": [asked, say("assistant", answer)]}], tokenizer, 512)
        (given, ids), prompt = trained(tokenizer, dataset.rows)[0], tokenizer.encode_prompt([asked])
        assert given == prompt
        behind = pattern.partition("{response}")[2] if "{" in pattern else ""
        wanted = f"{answer}{behind}<|im_end|>".replace(" ", "")
        assert spelled(tokenizer, ids) == wanted or ("\t" in pattern and spelled(tokenizer, ids) == "\t" + wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_behind_a_blank_is_the_token_that_texts_have(made, kind):
    """The model knows it; a lone blank at the end of a request it does not."""
    tokenizer = made("ChatML", kind, template="Q: {prompt}\\nA: {response}")
    prompt = tokenizer.encode_prompt("Where?")
    whole = tokenizer._tokenizer.encode("Q: Where?\nA: Green", add_special_tokens=False).ids
    assert prompt == whole[: len(prompt)]
    last = tokenizer._tokenizer.decode(prompt[-1:])
    assert last == " " if kind == "bytes" else last.endswith(":")


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_file_that_ends_with_a_blank_is_asked_as_it_stands(tmp_path, kind):
    text = CHATML.replace("assistant\n' }}{% endif", "assistant: ' }}{% endif")
    text = text.replace("m['role'] + '\n'", "m['role'] + (': ' if m['role'] == 'assistant' else '\n')")
    tokenizer = with_template(tmp_path / "model", text, kind)
    rows = make_dataset([{"messages": [QUESTION, say("assistant", "Green"), QUESTION, ANSWER]}], tokenizer, 512).rows
    (first, green), (second, friday) = trained(tokenizer, rows)
    assert [spelled(tokenizer, ids) for ids in (green, friday)] == ["Green<|im_end|>", "Friday.<|im_end|>"]
    assert first == tokenizer.encode_prompt([QUESTION])
    assert second == tokenizer.encode_prompt([QUESTION, say("assistant", "Green"), QUESTION])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(PATTERNS),
    st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6),
)
def test_every_letter_of_every_answer_is_trained_or_the_row_is_refused(kind, pattern, texts):
    with tempfile.TemporaryDirectory() as place:
        directory = write(Path(place), PUBLISHED["ChatML"], kind)
        tokenizer = ChatTokenizer(directory, pattern)
        texts = texts[: len(texts) // 2 * 2]
        messages = [say(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
        dataset = make_dataset([{"messages": messages}], tokenizer, 4096)
        if dataset.skipped:
            assert dataset.skipped[0][1]
            return
        found = trained(tokenizer, dataset.rows)
        assert len(found) == len(texts) // 2
        for place_of, (given_ids, ids) in enumerate(found):
            assert given_ids == tokenizer.encode_prompt(messages[: 2 * place_of + 1])
            if kind.startswith("byte"):  # nothing is unknown to bytes
                text = tokenizer._tokenizer.decode(ids, skip_special_tokens=False)
                assert tokenizer.disarm(texts[2 * place_of + 1]) in text


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(list(PUBLISHED)), st.data())
def test_every_answer_of_any_conversation_is_trained_refused_or_listed(made, name, data):
    words = st.text(min_size=1, max_size=8).filter(lambda text: text.strip())
    roles = data.draw(st.lists(st.sampled_from(["user", "assistant", "user", "assistant", "system"]), max_size=6))
    messages = [say(role, data.draw(words)) for role in roles] + [say("user", "a"), say("assistant", data.draw(words))]
    for message in messages:
        if message["role"] == "assistant" and data.draw(st.booleans()):
            message["reasoning_content"] = data.draw(words)
        if message["role"] == "assistant" and data.draw(st.integers(0, 3)) == 0:
            message["train"] = False
    tokenizer = made(name, "bytes")
    dataset = make_dataset([{"messages": messages, "source": "a:1"}], tokenizer, 1 << 16)
    assert bool(len(dataset)) != bool(dataset.skipped)
    if dataset.skipped or "altered" in [what for what, _, _ in dataset.notes]:
        return
    found = [tokenizer._tokenizer.decode(ids, skip_special_tokens=False) for _, ids in trained(tokenizer, dataset.rows)]
    wanted = [message for message in messages if message["role"] == "assistant" and message.get("train", True)]
    assert len(found) == len(wanted)
    for message in wanted:
        texts = (message["content"], message.get("reasoning_content", ""))
        assert any(all(tokenizer.disarm(text.strip()) in text_found for text in texts) for text_found in found)


# Ends -----------------------------------------------------------------------------------------------------------


def test_the_token_behind_an_answer_ends_it_listed_or_not(made):
    tokenizer = made("ChatML of a base")
    assert said(tokenizer, {"messages": [QUESTION, ANSWER, QUESTION, ANSWER]}) == ["Friday.<|im_end|>"] * 2
    names = [tokenizer._tokenizer.id_to_token(i) for i in tokenizer.eos_ids]
    assert names == ["<|endoftext|>", "<|im_end|>"]  # and generation stops there
    assert tokenizer.ends_unlisted
    assert not made("ChatML").ends_unlisted


# Systems --------------------------------------------------------------------------------------------------------

SYSTEM = say("system", "Be brief.")


@pytest.mark.parametrize("name", [name for name, published in PUBLISHED.items() if not published.system])
def test_a_refused_system_text_stands_before_the_first_question_and_is_told_once(made, name):
    tokenizer = made(name)
    moved = [say("user", "Be brief.\n\nWhich day?"), ANSWER]
    rows = [{"messages": [SYSTEM, QUESTION, ANSWER], "source": f"a:{i}"} for i in (1, 2)]
    dataset = make_dataset(rows, tokenizer, 512)
    assert dataset.rows[0].ids.tolist() == make_dataset([{"messages": moved}], tokenizer, 512).rows[0].ids.tolist()
    assert tokenizer.encode_prompt([SYSTEM, QUESTION]) == tokenizer.encode_prompt(moved[:1])
    assert dataset.notes == (("system", 2, "a:1"),)
    (warning,) = [w for w in describe(dataset, TokenDataset(()), tokenizer, 512).warnings if "system text" in w]
    assert warning.startswith(
        "2 rows, the first a:1: a system text, which the model's chat template refuses, is written"
    )


def test_an_empty_system_text_is_none(made):
    tokenizer = made("Gemma 2")
    with_it, without = (
        make_dataset([{"messages": m}], tokenizer, 512)
        for m in ([say("system", " "), QUESTION, ANSWER], [QUESTION, ANSWER])
    )
    assert with_it.rows[0].ids.tolist() == without.rows[0].ids.tolist()
    assert with_it.notes == ()


def test_a_system_text_between_the_turns_goes_into_the_question_behind_it(made):
    tokenizer = made("Gemma 3")
    dataset = make_dataset([{"messages": [QUESTION, ANSWER, SYSTEM, QUESTION, ANSWER]}], tokenizer, 512)
    assert "Be brief.\n\nWhich day?" in tokenizer.decode(dataset.rows[0].ids)
    assert [what for what, *_ in dataset.notes] == ["system"]


def test_a_system_text_that_is_left_out_goes_into_the_question_behind_it(made):
    """SmolLM3's template looks for one at the beginning only."""
    tokenizer, talk = made("SmolLM3"), [QUESTION, ANSWER, SYSTEM, QUESTION, ANSWER]
    dataset = make_dataset([{"messages": talk}], tokenizer, 512)
    assert [what for what, *_ in dataset.notes] == ["system"]
    prompt = tokenizer.encode_prompt(talk[:-1])
    assert dataset.rows[0].ids[: len(prompt)].tolist() == prompt
    assert "Be brief.\n\nWhich day?" in tokenizer.decode(prompt)


def test_a_refusal_that_is_not_about_the_system_text_keeps_its_words(made):
    assert reasons(made("Gemma 2"), SYSTEM, QUESTION, QUESTION, ANSWER) == [
        "the model's chat template refuses this conversation: user and assistant take turns"
    ]


# Marks ----------------------------------------------------------------------------------------------------------


def test_what_a_template_does_not_mark_is_not_trained_and_told(tmp_path):
    last = MARKED.replace("{% if m.role == 'assistant' %}", "{% if m.role == 'assistant' and loop.last %}")
    tokenizer = with_template(tmp_path / "model", last)
    rows = [{"messages": [QUESTION, say("assistant", "one"), QUESTION, say("assistant", "two")], "source": "a:1"}]
    dataset = make_dataset(rows, tokenizer, 512)
    assert said(tokenizer, *rows) == ["two<|im_end|>"]
    assert dataset.notes == (("unmarked", 1, "a:1"),)
    never = MARKED.replace("{% if m.role == 'assistant' %}", "{% if m.role == 'helper' %}")
    tokenizer = with_template(tmp_path / "never", never)
    assert reasons(tokenizer, QUESTION, ANSWER) == [
        "nothing to train: the model's chat template marks no part of an answer with {% generation %}"
    ]


def test_marks_within_an_answer_are_followed(tmp_path):
    marked = MARKED.replace(
        "{{ m.content }}{% endgeneration %}", "{{ m.content[:3] }}{% endgeneration %}{{ m.content[3:] }}"
    )
    tokenizer = with_template(tmp_path / "model", marked, "bytes")
    assert said(tokenizer, {"messages": [QUESTION, ANSWER]}) == ["Fri"]


def test_a_mark_is_a_scope_and_no_way_out(tmp_path):
    leak = "{% generation %}{% set x = 1 %}{% endgeneration %}{{ x }}" + CHATML
    assert with_template(tmp_path / "model", leak).render([QUESTION]).startswith("<|im_start|>user")
    for hostile in ("{% generation %}", "{% generation %}{{ ''.__class__.__mro__ }}{% endgeneration %}" + CHATML):
        with pytest.raises(Exception, match=r"cannot be read|unsafe"):
            with_template(tmp_path / f"m{len(hostile)}", hostile).render([QUESTION])


# Who is learned from --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_answer_that_is_context_is_read_and_not_trained(made, name):
    tokenizer = made(name)
    messages = [QUESTION, say("assistant", "Monday.", train=False), QUESTION, ANSWER]
    assert said(tokenizer, {"messages": messages}) == ["Friday." + PUBLISHED[name].end]
    ids = make_dataset([{"messages": messages}], tokenizer, 512).rows[0].ids
    assert "Monday." in tokenizer.decode(ids)
    unmarked = [{key: value for key, value in m.items() if key != "train"} for m in messages]
    assert said(tokenizer, {"messages": unmarked}) == [f"{day}.{PUBLISHED[name].end}" for day in ("Monday", "Friday")]
    assert reasons(tokenizer, QUESTION, {**ANSWER, "train": False}) == [
        "nothing to train: every answer is marked as not to be trained"
    ]


# Reasoning ------------------------------------------------------------------------------------------------------

THOUGHT = say("assistant", "Six.", reasoning_content="twice three")
INLINE = say("assistant", "<think>\ntwice three\n</think>\n\nSix.")
REASONS = [name for name, published in PUBLISHED.items() if published.thinks]


@pytest.mark.parametrize("answer", [THOUGHT, INLINE], ids=["apart", "inline"])
@pytest.mark.parametrize("name", [*REASONS, "Llama 3", "Gemma 2", "opens a thought"])
def test_reasoning_is_trained_kept_or_dropped(made, name, answer):
    row, end = {"messages": [QUESTION, answer], "source": "a:1"}, PUBLISHED[name].end
    whole = "twicethree\n</think>\n\nSix." + end
    opened = "" if name in ("opens a thought", "Qwen3 that always thinks") else "<think>\n"
    assert said(made(name), row) == [opened + whole]
    assert said(made(name, reasoning="keep"), row) == ["Six." + end]
    assert said(made(name, reasoning="drop"), row) == ["Six." + end]
    kept, dropped = (make_dataset([row], made(name, reasoning=how), 512) for how in ("keep", "drop"))
    assert "twice three" in made(name).decode(kept.rows[0].ids)
    assert "twice three" not in made(name).decode(dropped.rows[0].ids)
    assert ([what for what, *_ in kept.notes], [what for what, *_ in dropped.notes]) == (["reasoning"], ["dropped"])


@pytest.mark.parametrize("name", REASONS)
def test_rows_without_reasoning_ask_for_answers_without(made, name):
    """The empty thought is the template's to write, at generation too, and in what is exported."""
    tokenizer = made(name, "bytes", reasoning="train")
    dataset = make_dataset([{"messages": [QUESTION, ANSWER, QUESTION, ANSWER]}], tokenizer, 512)
    assert dataset.thinks is tokenizer.thinks is False
    prompt = tokenizer._tokenizer.decode(tokenizer.encode_prompt([QUESTION]), skip_special_tokens=False)
    assert prompt.rstrip().endswith("<think>\n\n</think>")
    asking = Published(tokenizer.asking_template, **{
        field: getattr(PUBLISHED[name], field) for field in ("special", "end", "eos", "bos", "plain")
    })  # fmt: skip
    from chat_templates import Plain

    assert Plain(asking)([QUESTION], ask=True) == prompt
    assert Plain(asking)([QUESTION], ask=True, enable_thinking=True) == prompt  # as mlx-lm says without being asked
    make_dataset([{"messages": [QUESTION, THOUGHT]}], tokenizer, 512)
    assert tokenizer.thinks is True
    assert tokenizer.asking_template == PUBLISHED[name].text
    assert not tokenizer._tokenizer.decode(tokenizer.encode_prompt([QUESTION])).rstrip().endswith("</think>")


def test_what_a_run_says_of_reasoning_holds(made):
    tokenizer = made("Qwen3", thinks=True)
    make_dataset([{"messages": [QUESTION, ANSWER]}], tokenizer, 512)
    assert tokenizer.thinks is True


def test_an_empty_thought_is_none(made):
    rows = [{"messages": [QUESTION, say("assistant", f"{empty}Friday.")]} for empty in ("", "<think>\n\n</think>\n\n")]
    first, second = (make_dataset([row], made("Qwen3"), 512).rows[0].ids.tolist() for row in rows)
    assert first == second


def test_reasoning_is_told(made):
    rows = [{"messages": [QUESTION, THOUGHT if i < 2 else ANSWER], "source": f"a:{i}"} for i in range(5)]
    tokenizer = made("Qwen3")
    report = describe(make_dataset(rows, tokenizer, 512), TokenDataset(()), tokenizer, 512)
    (warning,) = [warning for warning in report.warnings if "reasoning" in warning]
    assert warning.startswith("2 of 5 conversations have reasoning before an answer, the first a:0: ")
    assert "--reasoning" in warning
    assert warning.endswith(
        "most have none, so that the model is asked for answers without, where its template can say so"
    )


def test_earlier_turns_keep_their_reasoning_in_rows_of_their_own(made):
    tokenizer, row = made("Qwen3"), {"messages": SHAPES["reasoning"], "source": "a:1"}
    dataset = make_dataset([row], tokenizer, 512)
    assert said(tokenizer, row) == [
        f"<think>\ntwice{number}\n</think>\n\n{answer}.<|im_end|>"
        for number, answer in (("two", "Four"), ("three", "Six"))
    ]
    assert (len(dataset.rows), {what: count for what, count, _ in dataset.notes}) == (
        2,
        {"apart": 1, "reasoning": 1},
    )
    assert dataset.origins(1).tolist() == [0, 0]
    assert "twice two" not in tokenizer.decode(dataset.rows[1].ids)  # as the model is given it
    texts = tokenizer.texts_of_row(row)  # for other trainers
    assert ["twice two" in text for text in texts] == [True, False]
    assert ["twice three" in text for text in texts] == [False, True]


# Tools ----------------------------------------------------------------------------------------------------------

CALLS = [name for name, published in PUBLISHED.items() if published.calls]


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_trained_and_their_results_and_tools_are_not(made, name):
    tokenizer, end = made(name), PUBLISHED[name].end
    row = {"messages": SHAPES["tool turn"], "tools": [TOOL]}
    call, answer = said(tokenizer, row)
    assert "tide" in call
    assert "Friday" in call
    assert call.endswith(end)
    assert answer == "At17:40." + end
    whole = tokenizer.decode(make_dataset([row], tokenizer, 2048).rows[-1].ids)
    assert "When the tide turns." in whole
    assert "17:40" in whole.partition("At 17:40.")[0]


@pytest.mark.parametrize("name", CALLS)
def test_ids_of_calls_may_be_missing_or_of_any_length(made, name):
    tokenizer = made(name)
    for own in ({}, {"id": "call_000000000000"}):
        call = {**{key: value for key, value in CALL.items() if key != "id"}, **own}
        result = say("tool", "17:40", **({"tool_call_id": own["id"]} if own else {}))
        messages = [QUESTION, say("assistant", "", tool_calls=[call]), result, ANSWER]
        assert len(said(tokenizer, {"messages": messages, "tools": [TOOL]})) == 2


@pytest.mark.parametrize("name", ["Phi-4", "Zephyr", "Phi-3"])
def test_a_result_that_a_template_leaves_out_is_named(made, name):
    assert reasons(made(name), QUESTION, ANSWER, say("tool", "17:40"), ANSWER) == [
        "the model's chat template leaves out turn 3 (tool), which the answers may need"
    ]


def test_a_call_that_a_template_does_not_write_is_named(made):
    assert reasons(made("ChatML"), QUESTION, say("assistant", "", tool_calls=[CALL])) == [
        "the model's chat template does not write the call of a tool in turn 2"
    ]


def test_tools_stand_where_a_template_looks_for_them_or_are_told(made):
    row = {"messages": [QUESTION, ANSWER], "tools": [TOOL], "source": "a:1"}
    phi = make_dataset([row], made("Phi-4-mini"), 2048)
    assert "When the tide turns." in made("Phi-4-mini").decode(phi.rows[0].ids)
    assert phi.notes == ()
    tokenizer = made("ChatML")
    dataset = make_dataset([row], tokenizer, 2048)
    assert dataset.notes == (("tools", 1, "a:1"),)
    warnings = describe(dataset, TokenDataset(()), tokenizer, 2048).warnings
    assert [
        w
        for w in warnings
        if w.startswith("1 row, a:1: tools, for which the model's chat template has no place, are left out")
    ]


def test_tools_may_be_json(made):
    row = {"messages": [QUESTION, ANSWER]}
    for name in ("Qwen3", "Phi-4-mini"):
        first, second = (
            make_dataset([{**row, "tools": tools}], made(name), 2048).rows[0].ids.tolist()
            for tools in ([TOOL], json.dumps([TOOL]))
        )
        assert first == second


def test_control_tokens_in_calls_and_tools_are_broken_up(made):
    hostile = "<|im_end|>"
    call = {"type": "function", "function": {"name": "tide", "arguments": {hostile: hostile, "list": [hostile]}}}
    tool = {"type": "function", "function": {**TOOL["function"], "description": hostile}}
    thought = say("assistant", "ok", reasoning_content=hostile, tool_calls=[call])
    tokenizer = made("Qwen3")
    row = make_dataset([{"messages": [say("user", "a"), thought], "tools": [tool]}], tokenizer, 4096).rows[0]
    assert row.armed
    end = tokenizer._tokenizer.token_to_id(hostile)
    assert int(np.count_nonzero(row.ids == end)) == 3  # of the system text, the question and the answer


# What becomes of many -------------------------------------------------------------------------------------------


def test_parts_that_do_not_fit_are_named(made):
    tokenizer = made("Qwen3", "bytes")
    messages = [QUESTION, ANSWER, say("user", "x" * 300), ANSWER]
    dataset = make_dataset([{"messages": [QUESTION, ANSWER]}, {"messages": messages, "source": "a:2"}], tokenizer, 128)
    assert [source for source, _ in dataset.skipped] == ["a:2"]
    assert "the prompt fills max_seq_length 128" in dataset.skipped[0][1]
    assert dataset.origins(2).tolist() == [0, 1]


def test_fitting_changes_nothing_that_needs_no_change():
    messages = [SYSTEM, QUESTION, ANSWER]
    conversation = fit(messages, None, Abilities())
    assert all(a is b for a, b in zip(conversation.messages, messages, strict=True))
    assert (conversation.targets, conversation.notes, conversation.tools) == ((2,), frozenset(), None)


def test_a_template_that_shows_no_border_is_refused(tmp_path):
    tokenizer = with_template(tmp_path / "model", "{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(DataError, match=r"leaves out|does not show"):
        tokenizer.encode_rows({"messages": [say("user", "a"), say("assistant", "b")]}, 64)


def test_the_other_rendering_refuses_what_ours_refuses(made):
    with pytest.raises(jinja2.TemplateError):
        expected(PUBLISHED["Gemma 3"], SHAPES["two users"])
    assert json.dumps(reasons(made("Gemma 3"), *SHAPES["two users"]))
