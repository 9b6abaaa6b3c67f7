"""Whatever bytes a file holds: nothing is raised, every row is accounted for, and what is accepted can be trained.

`pytest tests/data/test_data_fuzz.py --examples 20000` is the long form.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_core.config import DataConfig
from qlora_core.data.reading import Reading
from qlora_core.data.records import texts_of
from qlora_core.data.sources import Source
from qlora_core.data.units import Unit
from qlora_core.machine.denormals import are_flushed, flush_denormals
from qlora_core.tokens.dataset import make_dataset
from qlora_core.tokens.tokenizer import ChatTokenizer

FORMS = (".jsonl", ".json", ".csv", ".tsv", ".md", ".txt", ".html", ".docx", ".pdf", ".epub", ".parquet")
NAMES = ("messages", "conversations", "role", "content", "from", "value", "prompt", "completion", "text", "question",
         "answer", "instruction", "input", "output", "system", "metadata", "source", "Pergunta", "data", "context",
         "history", "options", "reasoning", "tools", "tool_calls", "weight", "train", "label", "chosen", "rejected",
         "split", "parent_id", "message_id", "replies", "name", "arguments", "type")  # fmt: skip
WORDS = (
    "user",
    "assistant",
    "human",
    "gpt",
    "",
    " ",
    "<|im_end|>",
    "<s>",
    "Ã§",
    "\ud83d",
    "a\u0301",
    "\0",
    "CAPÍTULO I",
    "12",
)

texts = st.sampled_from(WORDS) | st.text(st.characters(), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | texts, inner, max_size=5),
    max_leaves=12,
)
turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(WORDS), "content": values | texts}), max_size=4)
rows = st.fixed_dictionaries(
    {}, optional={"messages": turns | values, "prompt": texts, "completion": texts, "x": values}
)
lines = st.lists((rows | values).map(json.dumps), max_size=6).map("\n".join)
spliced = st.tuples(lines, st.binary(max_size=8), st.integers(0, 400)).map(
    lambda parts: parts[0].encode()[: parts[2]] + parts[1] + parts[0].encode()[parts[2] :]
)


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Let hypothesis make up denormal numbers: a test before this one may have had the thread flush them."""
    flushed = are_flushed()
    flush_denormals(False)
    yield
    flush_denormals(flushed)


def examples(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--examples")


def check(content: bytes, form: str, directory: Path, tokenizer: ChatTokenizer) -> None:
    path = directory / f"file{form}"
    path.write_bytes(content)
    parts = list(Reading(DataConfig(question="pt"), tokenizer.directory).parts(Unit(Source(path, form))))
    made = [json.loads(line) for part in parts for line in part.lines]
    report = parts[0].report
    for part in parts[1:]:
        report.add(part.report)
    there = len(made) + report.rejected.count + report.joined_lines
    there += report.marked.count + report.test_rows + report.joined_messages
    assert report.read + report.passages + report.questions + report.conversations == there
    assert all(found.reason for found in [*report.rejected, *report.skipped_files])
    for row in made:
        assert set(row) - {"messages", "text", "tools"} == {"source", "metadata"}
        assert row["source"].startswith(str(path))
        assert any(text.strip() for text in texts_of(row))
    dataset = make_dataset(made, tokenizer, 64)
    assert len(dataset) + len(dataset.skipped) == len(made)
    assert all(row.target_tokens for row in dataset.rows)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return ChatTokenizer(tiny_model)


@pytest.mark.parametrize(
    "contents", [st.binary(max_size=300), lines.map(str.encode), spliced], ids=["bytes", "JSON values", "spliced"]
)
def test_nothing_is_raised_and_nothing_lost(contents, request, tmp_path, tokenizer):
    @settings(max_examples=examples(request), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(content=contents, form=st.sampled_from(FORMS))
    def run(content: bytes, form: str) -> None:
        check(content, form, tmp_path, tokenizer)

    run()


def test_json_rows_are_what_was_written(request, tmp_path, tokenizer):
    """A well-formed question is never refused, and its words are kept."""
    words = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=30)

    @settings(max_examples=examples(request), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(prompt=words, completion=words)
    def run(prompt: str, completion: str) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"prompt": prompt, "completion": completion}), encoding="utf-8")
        reading = Reading(DataConfig(repair=False), tokenizer.directory)
        (part,) = reading.parts(Unit(Source(path, ".jsonl")))
        assert texts_of(json.loads(part.lines[0])) == [prompt, completion]

    run()
