"""From files to rows: what is accepted, joined, refused and split, and a report that adds up."""

import contextlib
import json
import random
from pathlib import Path

import pytest

from qlora_core import data
from qlora_core.config import DataConfig
from qlora_core.data import Record, prepare, read_rows, split
from qlora_core.errors import DataError


@pytest.fixture
def write(tmp_path):
    """Write a file below `tmp_path`; rows are written as JSONL."""

    def to(name: str, content: str | bytes | list) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to


def question(prompt: str, answer: str = "yes") -> dict:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def questions(count: int) -> list[dict]:
    return [question(f"question {i}", f"answer {i}") for i in range(count)]


def read(*sources: Path, **settings) -> data.PreparedData:
    return prepare(DataConfig(data=tuple(map(str, sources)), **settings))


def everything(*sources: Path, **settings) -> data.PreparedData:
    """All rows in the training split, in order."""
    return read(*sources, val_fraction=0.0, **settings)


def contents(rows) -> list[str]:
    """What identifies each row: its text, or its messages, as JSON."""
    return [json.dumps(row.get("messages", row.get("text")), ensure_ascii=False) for row in rows]


def adds_up(report: data.DataReport) -> bool:
    there = report.train + report.validation + report.duplicates + len(report.rejected) + report.joined_lines
    return report.read + report.passages == there


# Rows ----------------------------------------------------------------------------------------------------------------


def test_the_three_shapes_become_two(write):
    path = write(
        "rows.jsonl",
        [
            question("Who?", "Ana"),
            {"prompt": "When?", "completion": "1974"},
            {"text": "The club was founded."},
        ],
    )
    prepared = everything(path)
    expected = [{**question("Who?", "Ana")}, {**question("When?", "1974")}, {"text": "The club was founded."}]
    assert list(prepared.train) == [
        {**row, "source": f"{path}:{line}", "metadata": {}} for line, row in enumerate(expected, 1)
    ]
    assert prepared.report.shapes == {"messages": 2, "text": 1}


def test_whatever_else_a_row_carries_is_kept_as_metadata(write):
    row = {**question("?"), "metadata": {"language": "pt"}, "page": 7, "source": "a book"}
    assert everything(write("a.jsonl", [row])).train[0]["metadata"] == {
        "language": "pt",
        "page": 7,
        "source": "a book",
    }


def test_text_is_cleaned_but_not_changed(write):
    row = question("  A\u0301rea\r\n\0?  ", "um\rdois")
    (only,) = everything(write("a.jsonl", [row])).train
    assert [message["content"] for message in only["messages"]] == ["Área\n?", "um\ndois"]


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n', 2),
        (b'{"text": "a"}\r\n{"text": "b"}\r\n', 2),
        (b'\n\n{"text": "a"}\n \t\n{"text": "b"}', 2),
        ('{"text": "one\u2028line"}\n'.encode(), 1),  # str.splitlines would cut it
        (b'{"text": "\\ud83d\\ude00"}\n', 1),  # a whole surrogate pair
    ],
    ids=["BOM", "CRLF", "blank lines, no last line feed", "U+2028", "surrogate pair"],
)
def test_lines_as_other_programs_write_them(write, content, count):
    report = everything(write("a.jsonl", content)).report
    assert (report.read, report.train, report.rejected) == (count, count, [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'{"text": "a"} {"text": "b"}', "not JSON: Extra data at column 15"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 11 of the line"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 100_000, "brackets nested too deeply"),
        (b'{"text": ' + b"9" * 5000 + b"}", "a number of more than 4300 digits"),
        (b"[1, 2]", "a row must be a JSON object, found a list"),
        (b"null", "a row must be a JSON object, found null"),
        (b"{}", 'wanted "messages", "prompt" and "completion", or "text"; found the keys none'),
        (b'{"question": "?"}', "found the keys 'question'"),
        (b'{"text": 5}', '"text" must be a text, found a number'),
        (b'{"text": " \\n "}', "the text is empty"),
        (b'{"prompt": "?", "completion": true}', '"completion" must be a text, found true or false'),
        (b'{"prompt": ["?"], "completion": "a"}', '"prompt" must be a text, found a list'),
        (b'{"prompt": "?", "completion": ""}', "the completion is empty"),
        (b'{"messages": "hi"}', '"messages" must be a list of {role, content}, found a text'),
        (b'{"messages": []}', '"messages" must be a list of {role, content}, found an empty list'),
        (b'{"messages": [{"role": "user"}]}', 'turn 1 of "messages" must be {role, content} with texts'),
        (b'{"messages": [{"role": "bot", "content": "a"}]}', "turn 1 has the role 'bot', wanted one of system, user"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "no assistant turn: nothing would be trained"),
        (
            b'{"messages": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": " "}]}',
            "turn 2 is an assistant turn without an answer",
        ),
    ],
)
def test_a_bad_row_is_reported_with_file_and_line_and_the_others_are_used(write, line, reason):
    path = write("rows.jsonl", b'{"text": "first"}\n\n' + line + b'\n{"text": "last"}\n')
    report = everything(path).report
    (rejected,) = report.rejected
    assert rejected.where == f"{path}:3"
    assert reason in rejected.reason
    assert len(rejected.sample) <= 80
    assert (report.read, report.train) == (3, 2)


def test_duplicates_are_left_out_and_counted(write):
    first = write("a.jsonl", [question("?"), {**question("?"), "metadata": {"page": 2}}, question("?", "no")])
    second = write("b.jsonl", [{"prompt": " ? ", "completion": "yes"}])
    prepared = everything(first, second)
    assert contents(prepared.train) == contents([question("?"), question("?", "no")])
    assert prepared.report.duplicates == 2
    assert adds_up(prepared.report)


# Running text and documents ------------------------------------------------------------------------------------------


def lines_of_text(*lines: str) -> list[dict]:
    return [{"prompt": "", "completion": line} for line in lines]


def test_running_text_is_joined_in_file_order(write):
    path = write("book.jsonl", lines_of_text("The club was", "founded in 1974.", "Its ground is small."))
    (row,) = everything(path).train
    # a line that ends a sentence ended its paragraph; another was broken where the page was
    assert row["text"] == "The club was founded in 1974.\nIts ground is small."
    assert row["source"] == f"{path}:1-3"


def test_passages_end_with_a_sentence_near_their_length(write):
    sentences = [f"Sentence number {i} of the book." for i in range(40)]
    prepared = everything(write("book.jsonl", lines_of_text(*sentences)), passage_length=100)
    texts = [row["text"] for row in prepared.train]
    assert "\n".join(texts).split("\n") == sentences  # nothing lost, nothing twice
    assert all(66 <= len(text) <= 100 for text in texts[:-1])
    report = prepared.report
    assert (report.read, report.joined_lines, report.passages) == (40, 40, len(texts))
    assert adds_up(report)


def test_questions_among_running_text_stay_rows(write):
    rows = [*lines_of_text("One.", "Two."), question("?")]
    prepared = everything(write("mixed.jsonl", rows))
    assert prepared.report.shapes == {"messages": 1, "text": 1}
    assert adds_up(prepared.report)


def test_a_biography_becomes_passages_under_its_title(write):
    path = write("ana-silva.md", "\ufeff# Ana Silva\r\n\r\nBorn in 1950.\n\nPlayed here.\n\n## Later years\nCoached.\n")
    prepared = everything(path)
    assert [row["text"] for row in prepared.train] == [
        "Ana Silva\nBorn in 1950.\nPlayed here.",
        "Ana Silva: Later years\nCoached.",
    ]
    assert {row["source"] for row in prepared.train} == {str(path)}
    assert (prepared.report.documents, prepared.report.passages, prepared.report.read) == (1, 2, 0)


def test_a_document_without_a_heading_is_named_by_its_file(write):
    assert everything(write("ana-silva.txt", "Born in 1950.")).train[0]["text"] == "ana silva\nBorn in 1950."


def test_a_long_paragraph_is_cut_between_sentences(write):
    sentences = [f"She scored in season number {i}." for i in range(20)]
    rows = everything(write("ana.md", "# Ana\n\n" + " ".join(sentences)), passage_length=120).train
    assert len(rows) > 3
    bodies = [row["text"].removeprefix("Ana\n") for row in rows]
    assert " ".join(" ".join(bodies).split()) == " ".join(sentences)
    assert all(len(body) <= 120 for body in bodies)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.md", b"\xff\xfe# A", "not UTF-8 at byte 1"),
        ("a.md", b"# Only a title\n", "holds no text"),
        ("a.txt", b"", "holds no text"),
        ("a.pdf", b"%PDF", "a .pdf file is not read"),
        ("LICENSE", b"text", "a nameless file is not read"),
        ("README.md", b"# What this is\n\nData.", "a README describes data, it is not data"),
    ],
)
def test_a_file_that_is_not_used_is_named(write, tmp_path, name, content, reason):
    path = write(f"all/{name}", content)
    write("all/rows.jsonl", questions(2))
    report = everything(tmp_path / "all").report
    (skipped,) = report.skipped_files
    assert (skipped.where, skipped.reason) == (str(path), reason)
    assert report.train == 2
    assert adds_up(report)


def test_a_file_without_permission_is_named(write, tmp_path, monkeypatch):
    path = write("all/a.jsonl", questions(2))
    write("all/b.jsonl", [question("?")])
    monkeypatch.setattr(data.os, "access", lambda file, _: file != path)  # tests may run as root, who may read all
    report = everything(tmp_path / "all").report
    assert [(s.where, s.reason) for s in report.skipped_files] == [(str(path), "may not be read: no permission")]
    assert report.train == 1


def test_hidden_files_and_directories_are_not_data(write, tmp_path):
    write("all/.git/notes.md", "# Notes\n\nSecret.")
    write("all/.hidden.jsonl", questions(1))
    write("all/rows.jsonl", questions(2))
    report = everything(tmp_path / "all").report
    assert (report.train, report.files, report.skipped_files) == (2, 1, [])


def test_a_file_named_twice_is_read_once(write, tmp_path):
    path = write("all/rows.jsonl", questions(3))
    report = everything(tmp_path / "all", path, tmp_path / "all" / ".." / "all").report
    assert (report.files, report.read, report.duplicates) == (1, 3, 0)


# The split -----------------------------------------------------------------------------------------------------------


def records(count: int, start: int = 0) -> list[Record]:
    return [Record({"text": f"row {i}"}, f"f:{i}") for i in range(start, start + count)]


def sides(rows: list[Record], fraction: float) -> dict[str, bool]:
    """Source → whether it is validated."""
    train, validation = split(rows, fraction)
    return {row.source: side for side, rows in ((False, train), (True, validation)) for row in rows}


def test_a_row_stays_on_its_side_whatever_the_order():
    rows = records(200)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert sides(rows, 0.1) == sides(shuffled, 0.1)


def test_a_row_stays_on_its_side_when_others_come():
    before, after = sides(records(200), 0.1), sides(records(400), 0.1)
    assert {source: after[source] for source in before} == before


def test_the_share_is_about_what_was_asked_for():
    assert 160 <= sum(sides(records(2000), 0.1).values()) <= 240  # 200, three deviations


def test_rows_keep_their_order():
    train, validation = split(records(100), 0.2)
    for side in (train, validation):
        assert [row.source for row in side] == sorted((row.source for row in side), key=lambda s: int(s[2:]))


@pytest.mark.parametrize(
    ("count", "fraction", "validated"),
    [(0, 0.5, 0), (1, 0.5, 0), (2, 0.0001, 1), (30, 0.0001, 1), (200, 0.0, 0)],
)
def test_neither_side_is_empty_where_that_is_possible(count, fraction, validated):
    train, validation = split(records(count), fraction)
    assert len(validation) == validated
    assert len(train) == count - validated


def test_two_rows_are_one_and_one_although_both_fall_to_validation():
    both = [rows for i in range(200) if len(split(rows := records(2, 2 * i), 0.5)[1]) == 1]
    assert len(both) == 200


@pytest.mark.parametrize(("replies", "only_replies"), [(data.ENOUGH_REPLIES, True), (data.ENOUGH_REPLIES - 1, False)])
def test_passages_are_held_out_only_where_replies_are_few(replies, only_replies):
    answered = [Record(question(f"question {i}"), f"q:{i}") for i in range(replies)]
    train, validation = split([*records(200), *answered], 0.2)
    assert {row.source[0] for row in validation} == ({"q"} if only_replies else {"q", "f"})
    assert len(train) + len(validation) == 200 + replies


def test_passages_of_a_document_are_on_one_side(write):
    for i in range(30):
        write(f"all/player-{i}.md", f"# Player {i}\n\n" + "\n\n".join(f"Part {j} of {i}. " * 10 for j in range(4)))
    prepared = read(write("all/none.jsonl", "").parent, val_fraction=0.3, passage_length=100)
    sources = [{row["source"] for row in side} for side in (prepared.train, prepared.validation)]
    assert all(sources)
    assert sources[0].isdisjoint(sources[1])
    assert len(sources[0] | sources[1]) == 30


def test_no_row_is_on_both_sides(write):
    rows = questions(100)
    prepared = read(write("a.jsonl", rows + rows[:50]), write("b.jsonl", rows[50:]), val_fraction=0.2)
    train, validation = set(contents(prepared.train)), set(contents(prepared.validation))
    assert train.isdisjoint(validation)
    assert len(train | validation) == 100
    assert adds_up(prepared.report)


# Splits of the user's own --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "validation"), [("train.jsonl", "valid.jsonl"), ("train_data.jsonl", "val_data.jsonl")]
)
def test_a_pair_keeps_its_split(write, train, validation):
    directory = write(f"own/{train}", questions(5)).parent
    write(f"own/{validation}", [question("held out")])
    prepared = read(directory, val_fraction=0.5)
    assert contents(prepared.train) == contents(questions(5))
    assert contents(prepared.validation) == contents([question("held out")])
    assert prepared.report.own_split


def test_a_pairs_validation_row_is_not_trained(write):
    directory = write("own/train.jsonl", questions(5)).parent
    write("own/valid.jsonl", questions(2))
    prepared = read(directory)
    assert contents(prepared.train) == contents(questions(5)[2:])
    assert len(prepared.validation) == 2
    assert prepared.report.duplicates == 2
    assert adds_up(prepared.report)


def test_beside_a_pair_nothing_else_is_read_and_that_is_said(write):
    directory = write("own/train.jsonl", questions(3)).parent
    write("own/valid.jsonl", [question("held out")])
    test = write("own/test.jsonl", [question("for the very end")])
    prepared = read(directory)
    assert len(prepared.train) == 3
    assert [skipped.where for skipped in prepared.report.skipped_files] == [str(test)]
    assert prepared.report.files == 2


def test_what_is_named_beside_a_pair_is_trained_too(write, tmp_path):
    directory = write("own/train.jsonl", questions(3)).parent
    write("own/valid.jsonl", [question("held out")])
    more = write("own/more.jsonl", [question("one more")])
    write("elsewhere/ana.md", "# Ana\n\nPlayed.")
    prepared = read(directory, more, tmp_path / "elsewhere", val_fraction=0.0)
    assert len(prepared.train) == 5
    assert len(prepared.validation) == 1
    assert prepared.report.skipped_files == []


def test_two_pairs_are_both_used(write):
    sources = []
    for name in ("a", "b"):
        sources.append(write(f"{name}/train.jsonl", [question(f"{name} train")]).parent)
        write(f"{name}/valid.jsonl", [question(f"{name} valid")])
    prepared = read(*sources)
    assert contents(prepared.train) == contents([question("a train"), question("b train")])
    assert contents(prepared.validation) == contents([question("a valid"), question("b valid")])


# Fact sheets ---------------------------------------------------------------------------------------------------------

FACT = {"fact": "founded", "expected": ["1974"], "questions": ["When was it founded?"]}


def test_fact_sheets_are_found_but_never_trained(write, tmp_path):
    write("all/rows.jsonl", questions(3))
    sheet = write("all/facts.jsonl", [FACT])
    prepared = everything(tmp_path / "all")
    assert prepared.facts == (FACT,)
    assert prepared.report.fact_sheets == [str(sheet)]
    assert len(prepared.train) == 3
    assert "1974" not in "".join(contents(prepared.train))


def test_a_fact_sheet_of_another_name_is_not_trained_either(write, tmp_path):
    write("all/rows.jsonl", questions(3))
    sheet = write("all/exam.jsonl", [{**FACT, "text": "never to be trained"}])
    prepared = everything(tmp_path / "all", facts=str(sheet))
    assert prepared.facts == (FACT,)
    assert contents(prepared.train) == contents(questions(3))


def test_a_bad_fact_is_named_and_blank_lines_are_none(write, tmp_path):
    write("all/rows.jsonl", questions(2))
    sheet = write(
        "all/facts.jsonl", json.dumps(FACT) + '\n\n{"fact": "x", "expected": "1974", "questions": ["?"]}\n[]\n'
    )
    prepared = everything(tmp_path / "all")
    assert prepared.facts == (FACT,)
    assert [problem.where for problem in prepared.report.rejected_facts] == [f"{sheet}:3", f"{sheet}:4"]
    assert prepared.report.rejected_facts[0].reason == 'not a fact: "expected" must be a list of texts'
    assert adds_up(prepared.report)


def test_a_fact_sheet_that_is_not_there(write, tmp_path):
    with pytest.raises(DataError, match=r"exam\.jsonl: no such fact sheet \(looked in "):
        read(write("rows.jsonl", questions(2)), facts=str(tmp_path / "exam.jsonl"))


# Nothing to train ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "\n\n", "not json\n", '{"question": "?"}\n'])
def test_nothing_usable_says_what_is_accepted(write, content):
    path = write("rows.jsonl", content)
    with pytest.raises(DataError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "none usable" in message
    for shape in ('"messages"', '"prompt"', '"completion"', '"text"', ".md", ".jsonl"):
        assert shape in message
    assert (f"{path}:1" in message) == bool(content.strip())  # and why the first rows were refused


def test_an_empty_directory_says_what_is_accepted(tmp_path):
    with pytest.raises(DataError, match=r"0 rows in 0 files, none usable(.|\n)*accepted rows"):
        read(tmp_path)


def test_a_source_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or directory \(looked in "):
        read(tmp_path / "nowhere")


# Saving --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(write, tmp_path):
    write("all/rows.jsonl", [*questions(30), *lines_of_text("One.", "Two.")])
    write("all/facts.jsonl", [FACT])
    write("all/ana.md", "# Ana\n\nPlayed.\n\n## Later\n\nCoached.")
    return tmp_path / "all"


def test_a_prepared_directory_is_used_as_it_stands(sources, tmp_path):
    prepared = read(sources, val_fraction=0.2)
    prepared.save(tmp_path / "out")
    again = read(tmp_path / "out", val_fraction=0.5)
    assert (again.train, again.validation, again.facts) == (prepared.train, prepared.validation, prepared.facts)
    assert again.fingerprint == prepared.fingerprint
    again.save(tmp_path / "out2")
    for name in ("train_data.jsonl", "val_data.jsonl", "facts.jsonl"):
        assert (tmp_path / "out2" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_prepared_directory_without_validation_rows_gets_none(write, tmp_path):
    everything(write("rows.jsonl", questions(20))).save(tmp_path / "out")
    again = read(tmp_path / "out", val_fraction=0.5)
    assert (len(again.train), len(again.validation)) == (20, 0)


def test_the_fingerprint_is_of_the_rows_not_of_their_places(sources, tmp_path):
    moved = sources.rename(tmp_path / "moved")
    assert read(moved).fingerprint == read(moved / ".." / "moved").fingerprint
    whole = read(moved)
    assert read(moved, val_fraction=0.5).fingerprint != whole.fingerprint
    (moved / "rows.jsonl").write_text(json.dumps(question("other")), encoding="utf-8")
    assert read(moved).fingerprint != whole.fingerprint


def test_the_report_is_saved_in_words_that_can_be_read_again(sources, tmp_path):
    prepared = read(sources)
    prepared.save(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))
    assert (saved["train"], saved["validation"]) == (len(prepared.train), len(prepared.validation))
    assert saved["sources"] == [str(sources)]


def snapshot(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("allowed", [0, 1, 2, 3])
def test_an_interrupted_save_leaves_the_old_output_whole(sources, tmp_path, monkeypatch, allowed):
    out = tmp_path / "out"
    read(sources, val_fraction=0.2).save(out)
    before = snapshot(out)
    written = []
    write_text = Path.write_text

    def failing(self, *arguments, **options):
        if len(written) == allowed:
            raise OSError(28, "No space left on device")
        written.append(self)
        return write_text(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", failing)
    with contextlib.suppress(OSError):
        read(sources, val_fraction=0.5).save(out)
    assert len(written) == allowed
    assert snapshot(out) == before


def test_a_fact_sheet_of_an_older_preparation_goes(sources, tmp_path):
    read(sources).save(tmp_path / "out")
    (sources / "facts.jsonl").unlink()
    read(sources).save(tmp_path / "out")
    assert read(tmp_path / "out").facts == ()


def test_a_users_own_fact_sheet_in_the_output_stays(write, tmp_path):
    own = write("out/facts.jsonl", [FACT])
    read(write("rows.jsonl", questions(5))).save(tmp_path / "out")
    assert own.is_file()


def test_sources_are_never_written_over(sources):
    before = snapshot(sources)
    with pytest.raises(DataError, match=r"facts\.jsonl: is a source, which is never written over"):
        read(sources).save(sources)
    assert snapshot(sources) == before


def test_a_damaged_prepared_file_is_named(tmp_path):
    (tmp_path / "train_data.jsonl").write_text('{"text": "a"}\n{', encoding="utf-8")
    with pytest.raises(DataError, match=r"train_data\.jsonl: cannot be read"):
        read_rows(tmp_path / "train_data.jsonl")
