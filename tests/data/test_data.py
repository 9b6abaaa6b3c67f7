"""From files to rows: what is accepted, joined, refused and split, and a report that adds up."""

import contextlib
import gzip
import hashlib
import json
import os
import time
import unicodedata
from pathlib import Path

import pytest

from qlora_core import data
from qlora_core.config import DataConfig
from qlora_core.data import Findings, PreparedData, preparation, prepare
from qlora_core.errors import DataError, QLoraError
from qlora_core.files import storage
from qlora_core.tokens.tokenizer import ChatTokenizer


@pytest.fixture(autouse=True)
def _tokenizer(tiny_model, tmp_path_factory, monkeypatch):
    """The tokeniser that `read` takes, of a token a byte, and a cache of this test's own."""
    monkeypatch.setitem(SHARED, "tokenizer", ChatTokenizer(tiny_model))
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path_factory.mktemp("cache")))


SHARED: dict[str, ChatTokenizer] = {}


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
    return prepare(DataConfig(data=tuple(map(str, sources)), **settings), SHARED["tokenizer"])


def everything(*sources: Path, **settings) -> data.PreparedData:
    """All rows in the training split, in order."""
    return read(*sources, val_fraction=0.0, **settings)


def contents(rows) -> list[str]:
    """What identifies each row: its text, or its messages, as JSON."""
    return [json.dumps(row.get("messages", row.get("text")), ensure_ascii=False) for row in rows]


def adds_up(report: data.DataReport) -> bool:
    left_out = report.duplicates + report.near_duplicates_dropped + report.rejected.count + report.marked.count
    there = (
        report.train + report.validation + report.test_rows + left_out + report.joined_lines + report.joined_messages
    )
    return report.read + report.passages + report.questions + report.conversations == there


def listed(findings: Findings) -> list[tuple[str, str]]:
    """Where and why, of each."""
    return [(found.where, found.reason) for found in findings]


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
    assert adds_up(prepared.report)


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
    assert (report.read, report.train, listed(report.rejected)) == (count, count, [])


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
        (b'{"text": "a", "text": "b"}', "the key 'text' stands twice"),
        (b'{"text": NaN}', '"text" must be a text, found null'),
        (b'{"text": 5}', '"text" must be a text, found a number'),
        (b'{"text": " \\n "}', "the text is empty"),
        (b'{"prompt": "?", "completion": [true]}', '"completion" must be a text, found a list'),
        (b'{"prompt": ["?"], "completion": "a"}', '"prompt" must be a text, found a list'),
        (b'{"prompt": "?", "completion": ""}', "the completion is empty"),
        (b'{"messages": "hi"}', '"messages" must be a list of {role, content}, found a text'),
        (b'{"messages": []}', '"messages" must be a list of {role, content}, found an empty list'),
        (b'{"messages": [{"role": "user"}]}', 'turn 1 of "messages" must be {role, content} with texts'),
        (
            b'{"messages": [{"role": "narrator", "content": "a"}]}',
            "turn 1 has the role 'narrator', wanted one of system, user",
        ),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "no assistant turn: nothing would be trained"),
        (
            b'{"messages": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": " "}]}',
            "turn 2 is an assistant turn without an answer",
        ),
    ],
)
def test_a_bad_row_is_reported_with_file_and_line_and_the_others_are_used(write, line, reason):
    path = write("rows.jsonl", '{"text": "a primeira, com ação"}\n\n'.encode() + line + b'\n{"text": "last"}\n')
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
    assert row["text"].split() == ["The", "club", "was", "founded", "in", "1974.", "Its", "ground", "is", "small."]
    assert row["source"] == f"{path}:1-3"


def test_passages_end_with_a_sentence_within_their_budget(write):
    sentences = [f"Sentence number {i} of the book." for i in range(40)]
    prepared = everything(write("book.jsonl", lines_of_text(*sentences)), passage_tokens=100)
    texts = [row["text"] for row in prepared.train]
    assert " ".join(texts).split() == " ".join(sentences).split()  # nothing lost, nothing twice
    assert all(len(text) <= 100 and text.endswith(".") for text in texts)
    report = prepared.report
    assert (report.read, report.joined_lines, report.passages) == (40, 40, len(texts))
    assert adds_up(report)


def test_a_passage_is_never_longer_than_a_row(write):
    sentences = [f"Sentence number {i} of the book." for i in range(40)]
    prepared = everything(write("book.jsonl", lines_of_text(*sentences)), passage_tokens=1000, max_seq_length=66)
    assert all(len(row["text"]) <= 64 for row in prepared.train)


def test_questions_among_running_text_stay_rows(write):
    rows = [*lines_of_text("One.", "Two."), question("?")]
    prepared = everything(write("mixed.jsonl", rows))
    assert prepared.report.shapes == {"messages": 1, "text": 1}
    assert adds_up(prepared.report)


def test_page_debris_is_left_out_and_named(write):
    lines = lines_of_text("The ball went over the", "- 12 -", "wall and into the river.")
    path = write("book.jsonl", lines)
    prepared = everything(path)
    assert [row["text"] for row in prepared.train] == ["The ball went over the wall and into the river."]
    assert listed(prepared.report.debris) == [(f"{path}:2", "page number")]
    assert "- 12 -" in everything(path, drop_debris=False).train[0]["text"]
    assert adds_up(prepared.report)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("Sra. Prof. Lima.md", "Sra. Prof. Lima"),
        ("2023.11.05 atas.txt", "2023.11.05 atas"),
        ("Vila-Nova de Baixo.html", "Vila-Nova de Baixo"),
        ("Ana-Rita_Lima.md", "Ana-Rita Lima"),
        ("COVID-19.md", "COVID-19"),
        ("chapter-2.md", "chapter 2"),
        ("2023-11-05.md", "2023-11-05"),
        ("2023-11-05-first-meeting.md", "2023-11-05 first meeting"),
        ("rosa-maria-lima.md", "rosa maria lima"),
        ("Rosa_Lima v1.2.MD", "Rosa Lima v1.2"),
        ("notes.final.md.gz", "notes.final"),
        ("Boats 0123456789abcdef0123456789abcdef.md", "Boats"),
    ],
)
def test_a_document_without_a_title_has_that_of_its_file(write, name, title):
    content = gzip.compress(b"Some text.") if name.endswith(".gz") else b"Some text."
    (row,) = everything(write(name, content)).train
    assert row["metadata"]["title"] == title


@pytest.mark.parametrize("repair", [True, False])
def test_the_name_of_a_file_goes_into_texts_composed(write, tmp_path, repair):
    """macOS hands out decomposed names, whose letters and accents are other tokens than those of the text."""
    name = "Ribeirão-do_Açor.md"
    path = write(f"lives/{unicodedata.normalize('NFD', name)}", "Aldeia com três fontes e uma capela.\n")
    prepared = everything(tmp_path / "lives", question="Quem é {title}?", repair=repair)
    passage, asked = prepared.train
    assert passage["text"] == "Ribeirão do Açor\nAldeia com três fontes e uma capela."
    assert asked["messages"][0]["content"] == "Quem é Ribeirão do Açor?"
    assert {row["metadata"]["title"] for row in prepared.train} == {"Ribeirão do Açor"}
    assert not prepared.report.mended
    opened = asked["source"]  # what opens the file is as the disk has it
    assert opened == str(path)
    assert Path(opened).is_file()


def test_a_document_stays_on_one_side_however_its_name_is_written(write, tmp_path):
    """A book that was copied to another system has the same group, and so the same split."""
    for form in ("NFC", "NFD"):
        for number in range(12):
            name = unicodedata.normalize(form, f"João {number}.md")
            write(f"{form}/{name}", f"Foi o número {number}, e jogou à defesa.\n")
    sides = [
        {contents([row])[0] for row in read(tmp_path / form, val_fraction=0.3).validation} for form in ("NFC", "NFD")
    ]
    assert sides[0] == sides[1] != set()


def test_a_fact_sheet_asks_in_composed_letters(write):
    sheet = write("exam.jsonl", [{key: _decomposed(value) for key, value in FACT_IN_PORTUGUESE.items()}])
    assert read(write("rows.jsonl", questions(2)), facts=str(sheet)).facts == (FACT_IN_PORTUGUESE,)


FACT_IN_PORTUGUESE = {"fact": "João é avançado.", "expected": ["avançado"], "questions": ["Em que posição joga João?"]}


def _decomposed(value: str | list[str]) -> str | list[str]:
    return [_decomposed(item) for item in value] if isinstance(value, list) else unicodedata.normalize("NFD", value)


def test_a_biography_becomes_passages_under_its_title(write):
    path = write("ana-silva.md", "\ufeff# Ana Silva\r\n\r\nBorn in 1950.\n\nPlayed here.\n\n## Later years\nCoached.\n")
    prepared = everything(path, passage_tokens=40)
    assert all(row["text"].startswith("Ana Silva") for row in prepared.train)
    words = " ".join(row["text"] for row in prepared.train)
    assert all(part in words for part in ("Born in 1950.", "Played here.", "Later years", "Coached."))
    assert {row["metadata"]["title"] for row in prepared.train} == {"Ana Silva"}
    assert {row["source"].split(":")[0] for row in prepared.train} == {str(path)}
    assert (prepared.report.documents, prepared.report.passages, prepared.report.read) == (1, len(prepared.train), 0)


def test_a_document_without_a_heading_is_named_by_its_file(write):
    assert everything(write("ana-silva.txt", "Born in 1950.")).train[0]["text"] == "ana silva\nBorn in 1950."


def test_a_question_is_asked_for_each_document_and_answered_with_its_words(write, tmp_path):
    write("lives/ana.md", "# Ana\n\nBorn in 1950.")
    write("lives/rui.md", "# Rui\n\nBorn in 1951.")
    prepared = everything(tmp_path / "lives", question="Quem é {title}?")
    assert contents(prepared.train) == contents(
        [
            {"text": "Ana\nBorn in 1950."},
            question("Quem é Ana?", "Born in 1950."),
            {"text": "Rui\nBorn in 1951."},
            question("Quem é Rui?", "Born in 1951."),
        ]
    )
    assert prepared.report.questions == 2
    assert adds_up(prepared.report)
    with pytest.raises(QLoraError, match="title"):
        everything(tmp_path / "lives", question="Quem é?")


# Cleaning ------------------------------------------------------------------------------------------------------------


def test_what_was_decoded_wrongly_is_mended_and_named(write):
    path = write("a.jsonl", [question("Quem ganhou a ConceiÃ§Ã£o?", "O SÃ£o JoÃ£o."), question("E?", "José.")])
    prepared = everything(path)
    assert contents(prepared.train) == contents(
        [question("Quem ganhou a Conceição?", "O São João."), question("E?", "José.")]
    )
    assert prepared.report.mended["encoding"] == 2
    assert [where for where, _ in listed(prepared.report.mended_rows)] == [f"{path}:1"]
    kept = everything(path, repair=False)
    assert "ConceiÃ§Ã£o" in contents(kept.train)[0]
    assert not kept.report.mended


def test_personal_data_is_named_and_kept(write):
    path = write("a.jsonl", [{"text": "Write to ana@example.org."}, {"text": "It ended 3-2 in 1974."}])
    prepared = everything(path)
    assert len(prepared.train) == 2
    assert listed(prepared.report.personal_data) == [(f"{path}:1", "e-mail address")]
    assert any("e-mail address or a telephone number" in warning for warning in prepared.report.warnings)


def test_another_language_is_left_out_where_that_was_asked(write):
    rows = [
        {"text": "O campo ficava junto ao rio e a equipa treinava ao domingo de manhã, antes da missa."},
        {"text": "The ground was next to the river and the team used to train on Sundays before mass."},
    ]
    path = write("a.jsonl", rows)
    assert len(everything(path).train) == 2
    prepared = everything(path, language="pt")
    assert contents(prepared.train) == contents(rows[:1])
    assert listed(prepared.report.rejected) == [(f"{path}:2", "its language is 'en', wanted 'pt'")]
    assert adds_up(prepared.report)


STORY = "Na noite de São João a equipa atravessou o rio a nado, com as botas ao pescoço, e ganhou por três a dois."


def story(number: int) -> str:
    """Thirty words that no other number has."""
    return " ".join(f"{hashlib.sha256(f'{number} {word}'.encode()).hexdigest()[:6]}" for word in range(30))


def test_near_duplicates_stay_on_one_side(write):
    rows = [row for i in range(60) for row in (question(f"{story(i)}?"), question(f"{story(i)} ?"))]
    prepared = read(write("a.jsonl", rows), val_fraction=0.3)
    assert prepared.report.near_duplicates >= 55  # of 60; bands may miss one
    assert prepared.report.leakage == {"equal": 0, "nearly_equal": 0, "same_document": 0}
    held_out = set(contents(prepared.validation))
    together = [sum(json.dumps(row["messages"]) in held_out for row in rows[i : i + 2]) for i in range(0, 120, 2)]
    assert together.count(1) <= 5
    assert 5 < together.count(2) < 40


def test_many_rows_of_one_pattern_are_no_near_duplicates(write):
    rows = [question(f"{STORY} How many goals were there in the year {1900 + i}?", str(i)) for i in range(60)]
    prepared = read(write("a.jsonl", [*rows, *rows[:3]]), val_fraction=0.3)
    assert (prepared.report.near_duplicates, prepared.report.patterned) == (0, 60)
    assert 8 < len(prepared.validation) < 30
    assert prepared.report.leakage["nearly_equal"] == 0
    assert len(everything(*prepared.files, near_duplicates="drop").train) == 60


def test_what_the_system_says_makes_no_rows_alike(write):
    system = {"role": "system", "content": f"{STORY} {STORY}"}
    rows = [{"messages": [system, *question(f"How many goals in the year {1900 + i}?")["messages"]]} for i in range(40)]
    prepared = read(write("a.jsonl", rows), val_fraction=0.3)
    assert prepared.report.near_duplicates + prepared.report.patterned < 40  # every row but one, with the system's text
    assert len(prepared.validation) > 3
    assert prepared.report.leakage["nearly_equal"] == 0


def test_near_duplicates_are_dropped_where_that_was_asked(write):
    rows = [question(f"{STORY}?", "yes"), question(f"{STORY} ?", "yes!"), question("Who?")]
    path = write("a.jsonl", rows)
    assert len(everything(path).train) == 3
    prepared = everything(path, near_duplicates="drop")
    assert contents(prepared.train) == contents([rows[0], rows[2]])
    assert prepared.report.near_duplicates_dropped == 1
    assert adds_up(prepared.report)
    assert everything(path, near_duplicates="ignore").report.near_duplicates == 0


def test_near_duplicates_across_a_split_of_the_users_own_are_told(write):
    directory = write("own/train.jsonl", [question(f"{STORY}?")]).parent
    write("own/valid.jsonl", [question(f"{STORY} ?"), question("Who?")])
    report = read(directory).report
    assert (report.train, report.validation) == (1, 2)
    assert report.leakage["nearly_equal"] == 1
    assert any("1 of 2 validation rows say what a training row says" in warning for warning in report.warnings)


def test_what_is_like_a_validation_row_of_the_users_own_is_not_trained(write, tmp_path):
    directory = write("own/train.jsonl", questions(3)).parent
    write("own/valid.jsonl", [question(f"{STORY}?")])
    more = write("more.jsonl", [question(f"{STORY} ?"), question("Who?")])
    prepared = read(directory, more, val_fraction=0.0)
    assert contents(prepared.train) == contents([*questions(3), question("Who?")])
    assert len(prepared.validation) == 2


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.png", b"\x89PNG", "a .png file is not read"),
        ("a.zip", b"PK", "is no zip archive: it is damaged or only a part of one"),
        ("a.7z", b"7z", "a .7z file is not read. Unpack it first."),
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
    # tests may run as root, who may read everything
    monkeypatch.setattr(data.sources.os, "access", lambda file, _: file != path)
    report = everything(tmp_path / "all").report
    assert listed(report.skipped_files) == [(str(path), "may not be read: no permission")]
    assert report.train == 1


def test_what_file_managers_leave_is_not_spoken_of(write, tmp_path):
    write("all/rows.jsonl", questions(3))
    for name in LEFT_BY_FILE_MANAGERS:
        write(f"all/{name}", b"\0")
    prepared = everything(tmp_path / "all")
    assert (len(prepared.train), prepared.report.skipped_files.count) == (3, 0)


LEFT_BY_FILE_MANAGERS = (".DS_Store", "._rows.jsonl", ".localized", "Icon\r", "Thumbs.db", "desktop.ini")


def test_hidden_files_and_directories_are_not_data(write, tmp_path):
    write("all/.git/notes.md", "# Notes\n\nSecret.")
    write("all/.hidden.jsonl", questions(1))
    write("all/rows.jsonl", questions(2))
    report = everything(tmp_path / "all").report
    assert (report.train, report.files, listed(report.skipped_files)) == (2, 1, [])


def test_a_file_named_twice_is_read_once(write, tmp_path):
    path = write("all/rows.jsonl", questions(3))
    report = everything(tmp_path / "all", path, tmp_path / "all" / ".." / "all").report
    assert (report.files, report.read, report.duplicates) == (1, 3, 0)


# The split -----------------------------------------------------------------------------------------------------------


def test_passages_of_a_document_are_on_one_side(write):
    for i in range(30):
        write(f"all/player-{i}.md", f"# Player {i}\n\n" + "\n\n".join(f"Part {j} of {i}. " * 10 for j in range(4)))
    prepared = read(write("all/none.jsonl", "").parent, val_fraction=0.3, passage_tokens=100)
    titles = [{row["metadata"]["title"] for row in side} for side in (prepared.train, prepared.validation)]
    assert all(titles)
    assert titles[0].isdisjoint(titles[1])
    assert len(titles[0] | titles[1]) == 30
    assert prepared.report.leakage["same_document"] == 0


def test_a_book_alone_is_split_by_its_sections(write):
    text = "\n\n".join(f"## Part {i}\n\n{f'Sentence {i} of the book is not short. ' * 5}" for i in range(40))
    prepared = read(write("book.md", f"# Book\n\n{text}"), val_fraction=0.2, passage_tokens=100)
    sections = [{row["metadata"]["section"] for row in side} for side in (prepared.train, prepared.validation)]
    assert all(sections)
    assert sections[0].isdisjoint(sections[1])


def test_rows_keep_their_order(write):
    prepared = read(write("a.jsonl", questions(100)), val_fraction=0.2)
    for side in (prepared.train, prepared.validation):
        lines = [int(row["source"].rpartition(":")[2]) for row in side]
        assert len(lines) > 1
        assert lines == sorted(lines)


def test_no_row_is_on_both_sides(write):
    rows = questions(100)
    prepared = read(write("a.jsonl", rows + rows[:50]), write("b.jsonl", rows[50:]), val_fraction=0.2)
    train, validation = set(contents(prepared.train)), set(contents(prepared.validation))
    assert train.isdisjoint(validation)
    assert len(train | validation) == 100
    assert adds_up(prepared.report)


# What is left out, and what is used for nothing ----------------------------------------------------------------------


def test_a_row_that_is_marked_is_counted_and_named(write):
    rows = [{"prompt": "Who?", "completion": name, "label": name == "Ana"} for name in ("Rui", "Ana")]
    path = write("a.jsonl", rows)
    prepared = everything(path)
    assert contents(prepared.train) == contents([question("Who?", "Ana")])
    assert listed(prepared.report.marked) == [(f"{path}:1", "marked as not to be trained: label false")]
    assert any("1 rows are left out since they are marked" in warning for warning in prepared.report.warnings)
    assert adds_up(prepared.report)
    with pytest.raises(DataError, match="marked as not to be trained: label false"):
        everything(write("b.jsonl", rows[:1]))


def test_what_is_used_for_nothing_is_listed_with_its_share_and_length(write, tmp_path):
    rows = [{"question": f"{i}?", "answer": "So.", "id": i, **({"story": "A long one, told at length."} if i else {})}
            for i in range(4)]  # fmt: skip
    prepared = everything(write("a.jsonl", rows))
    wanted = {"column": "story", "beside": "question", "rows": 3, "share": 0.75, "longer_rows": 3,
              "longer_than_prompt": True}  # fmt: skip
    assert prepared.report.as_dict()["unused"] == [wanted]
    (warning,) = (w for w in prepared.report.warnings if "used for nothing" in w)
    assert "`story` (in 75% of the rows, longer than the prompt)" in warning
    assert "--columns context=story" in warning
    mended = everything(tmp_path / "a.jsonl", columns=("context=story",))
    assert contents(mended.train)[1] == contents([question("1?\n\nA long one, told at length.", "So.")])[0]
    assert not mended.report.unused
    prepared.save(tmp_path / "out")
    assert PreparedData(tmp_path / "out").report == prepared.report


@pytest.mark.parametrize(
    ("beside", "remedy"),
    [
        ({"answer": "42"}, "If that is the answer: --columns completion=answer."),
        ({"quality": "bad"}, "Rows that `quality` calls bad are trained: take them out."),
        ({"note": "Told at length."}, "If the answer needs it: --columns context=note."),
    ],
)
def test_what_is_used_for_nothing_has_a_remedy_of_its_kind(write, beside, remedy):
    (warning,) = everything(
        write("a.jsonl", [{"problem": "6 x 7?", "solution": "Six sevens.", **beside}])
    ).report.warnings
    assert warning.endswith(remedy)


def test_the_remedy_for_a_question_beside_a_text_works(write, tmp_path):
    path = write("a.jsonl", [{"prompt": "Who rowed?", "text": "Rui did."}])
    (warning,) = (w for w in everything(path).report.warnings if "used for nothing" in w)
    assert "--columns prompt=prompt completion=text" in warning
    prepared = everything(path, columns=("prompt=prompt", "completion=text"))
    assert contents(prepared.train) == contents([question("Who rowed?", "Rui did.")])


def test_a_column_that_no_row_has_is_told(write):
    path = write("a.jsonl", questions(2))
    assert any("--columns prompt=Frage" in w for w in everything(path, columns=("prompt=Frage",)).report.warnings)
    known = everything(write("b.csv", "Frage,answer\nWer?,Ana\n"), columns=("prompt=frage",))
    assert contents(known.train) == contents([question("Wer?", "Ana")])
    assert not known.report.warnings


def test_a_question_that_is_empty_among_others_is_refused(write):
    path = write("a.csv", "question,answer\nWho?,Rui\n,Ana kept the log.\nWhere?,Here\n,It was called Star.\n")
    prepared = everything(path)
    assert [where for where, _ in listed(prepared.report.rejected)] == [f"{path}:3", f"{path}:5"]
    assert "the question is empty, and most rows of the file have one" in prepared.report.rejected.listed[0].reason
    assert contents(prepared.train) == contents([question("Who?", "Rui"), question("Where?", "Here")])
    assert adds_up(prepared.report)


def test_running_text_stays_so_beside_a_few_questions(write):
    lines = lines_of_text(*(f"Line {i} of the book." for i in range(20)))
    prepared = everything(write("a.jsonl", [*lines, {"prompt": "Who?", "completion": "Ana"}]))
    assert (prepared.report.joined_lines, prepared.report.rejected.count) == (20, 0)


def test_values_that_json_has_not_are_kept_as_texts(write, tmp_path):
    import datetime

    import pyarrow
    import pyarrow.parquet

    rows = [{"question": "Who?", "answer": "Ana", "day": datetime.date(1931, 5, 3), "raw": b"x" * 500}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (row,) = everything(tmp_path / "a.parquet").train
    assert row["metadata"]["day"] == "1931-05-03"
    assert len(row["metadata"]["raw"]) <= 100


def test_what_could_not_be_read_is_counted_and_its_share_told(write):
    report = everything(write("a.jsonl", '{"prompt": "?", "completion": "a"}\n{"prompt": "?", "com\n')).report
    assert (report.unreadable, report.lost_share) == (1, 0.5)
    assert any("1 of 2 rows could not be read" in warning for warning in report.warnings)
    broken = write("b.json", '[{"prompt": "?", "completion": "a"},\n{"prompt": "?", "completion": "' + "x" * 200)
    report = everything(broken).report
    assert report.unread > 200
    assert report.lost_share > 0.5


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
    assert not prepared.report.skipped_files.count


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
    assert prepared.report.rejected_facts.listed[0].reason == 'not a fact: "expected" must be a list of texts'
    assert adds_up(prepared.report)


def test_a_fact_sheet_that_is_not_there(write, tmp_path):
    with pytest.raises(DataError, match=r"exam\.jsonl: no such fact sheet \(looked in "):
        read(write("rows.jsonl", questions(2)), facts=str(tmp_path / "exam.jsonl"))


# Nothing to train ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "\n\n", "not json\n", '{"answer": "?"}\n'])
def test_nothing_usable_says_what_is_accepted(write, content):
    path = write("rows.jsonl", content)
    with pytest.raises(DataError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "none usable" in message
    for shape in (
        '"messages"',
        '"conversations"',
        '"prompt"',
        '"question"',
        '"text"',
        ".md",
        ".jsonl",
        ".csv",
        "--columns",
    ):
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


@pytest.mark.parametrize("allowed", range(10))
def test_an_interrupted_save_leaves_the_old_output_or_the_new_one(sources, tmp_path, monkeypatch, allowed):
    """The plug is pulled before the n-th rename, or before the list of them is written."""
    out = tmp_path / "out"
    read(sources, val_fraction=0.2).save(out)
    before = snapshot(out)
    newer = read(sources, val_fraction=0.5)
    done = []
    rename = Path.replace

    class PulledPlug(BaseException):
        pass

    def renaming(self, target):
        if len(done) == allowed:
            raise PulledPlug
        done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", renaming)
        patched.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # the dead clear nothing away
        with contextlib.suppress(PulledPlug):
            newer.save(out)
    again = read(out)
    assert again.fingerprint == (newer.fingerprint if done else read(sources, val_fraction=0.2).fingerprint)
    left = {name: content for name, content in snapshot(out).items() if not name.startswith(".")}
    assert left == before or (done and left["train_data.jsonl"] != before["train_data.jsonl"])


def test_a_full_disk_leaves_the_old_output_and_nothing_else(sources, tmp_path, monkeypatch):
    out = tmp_path / "out"
    read(sources, val_fraction=0.2).save(out)
    before = snapshot(out)
    newer = read(sources, val_fraction=0.5)
    monkeypatch.setattr(
        storage, "flush_to_disk", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        newer.save(out)
    assert snapshot(out) == before


def test_data_is_prepared_where_it_lies_again_and_again(sources, write):
    config = DataConfig(data=(str(sources),), val_fraction=0.2)
    prepare(config, SHARED["tokenizer"], output=sources).save(sources)
    first = snapshot(sources)
    assert json.loads(first["facts.jsonl"]) == FACT
    write("all/more.jsonl", [question("one more")])
    again = prepare(config, SHARED["tokenizer"], output=sources)
    again.save(sources)
    assert "one more" in "".join(contents([*again.train, *again.validation]))
    assert (
        len(again.train) + len(again.validation)
        == len(first["train_data.jsonl"].splitlines()) + len(first["val_data.jsonl"].splitlines()) + 1
    )
    assert len(read(sources).train) == len(again.train)  # and to train, it is what was prepared


def test_what_was_prepared_inside_a_source_is_not_read_twice(sources):
    read(sources).save(sources / "prepared")
    prepared = read(sources)
    assert (str(sources / "prepared"), "was written by `qlora data`: name it itself to use it") in listed(
        prepared.report.skipped_files
    )
    assert prepared.report.duplicates == 0


def test_a_fact_sheet_of_an_older_preparation_goes(sources, tmp_path):
    read(sources).save(tmp_path / "out")
    (sources / "facts.jsonl").unlink()
    read(sources).save(tmp_path / "out")
    assert read(tmp_path / "out").facts == ()


def test_a_users_own_fact_sheet_in_the_output_stays(write, tmp_path):
    own = write("out/facts.jsonl", [FACT])
    read(write("rows.jsonl", questions(5))).save(tmp_path / "out")
    assert own.is_file()


def test_sources_are_never_written_over(write):
    """A user's own file may have the name of one of ours."""
    directory = write("mine/train_data.jsonl", questions(5)).parent
    before = snapshot(directory)
    prepared = prepare(DataConfig(data=(str(directory),)), SHARED["tokenizer"], output=directory)
    with pytest.raises(DataError, match=r"train_data\.jsonl: is a source, which is never written over"):
        prepared.save(directory)
    assert snapshot(directory) == before


def test_a_fact_sheet_that_is_a_source_is_not_written_over_by_several(write, tmp_path):
    directory = write("mine/rows.jsonl", questions(5)).parent
    write("mine/facts.jsonl", [FACT])
    other = write("other/facts.jsonl", [{**FACT, "fact": "other"}]).parent
    with pytest.raises(DataError, match=r"facts\.jsonl: is a source"):
        read(directory, other).save(directory)


def test_a_damaged_prepared_file_is_named(sources, tmp_path):
    read(sources).save(tmp_path / "out")
    file = tmp_path / "out" / "train_data.jsonl"
    file.write_text(file.read_text(encoding="utf-8") + '{"text":', encoding="utf-8")
    rows = PreparedData(tmp_path / "out").train
    with pytest.raises(DataError, match=r"train_data\.jsonl: cannot be read at line"):
        rows[-1]
    file.unlink()
    with pytest.raises(DataError, match=r"train_data\.jsonl: cannot be read"):
        PreparedData(tmp_path / "out")


# What need not be read again -----------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """The files that were read, as they are."""
    found = []
    parts = preparation.Reading.parts

    def noting(self, unit):
        found.append(unit.source.path.name)
        return parts(self, unit)

    monkeypatch.setattr(preparation.Reading, "parts", noting)
    return found


def age(*paths: Path, seconds: float = 60) -> None:
    for path in paths:
        os.utime(path, (time.time() - seconds,) * 2)


def test_unchanged_sources_are_not_read_again(write, reads):
    path = write("a.jsonl", questions(30))
    age(path)
    first, second = read(path), read(path)
    assert reads == ["a.jsonl"]
    assert (first.reused, second.reused) == (False, True)
    assert (first.train, first.validation, first.report) == (second.train, second.validation, second.report)
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("change", ["content", "time", "settings", "another file", "tokenizer"])
def test_changed_sources_are_read_again(write, tmp_path, reads, change, monkeypatch):
    path = write("all/a.jsonl", questions(30))
    age(path)
    read(tmp_path / "all")
    if change == "content":
        write("all/a.jsonl", questions(31))
        age(path)
    elif change == "time":
        age(path, seconds=50)
    elif change == "another file":
        age(write("all/b.jsonl", questions(2)))
    elif change == "tokenizer":
        monkeypatch.setitem(vars(SHARED["tokenizer"]), "fingerprint", "another")
    assert not read(tmp_path / "all", **({"val_fraction": 0.5} if change == "settings" else {})).reused
    assert reads.count("a.jsonl") == 2


def test_a_file_that_was_changed_just_now_is_not_trusted(write, reads):
    """Its time of change would not tell a second change of the same moment."""
    path = write("a.jsonl", questions(30))
    read(path)
    assert not read(path).reused
    assert reads == ["a.jsonl"] * 2


def test_few_preparations_are_kept_and_those_in_use_stay_readable(write):
    path = write("a.jsonl", questions(30))
    age(path)
    first = read(path)
    for rows in range(1, preparation.KEPT + 3):
        read(path, val_rows=rows)
    assert len(list((storage.cache_directory() / "data").iterdir())) == preparation.KEPT
    assert len(list(first.train)) == len(first.train) > 0
    assert not read(path).reused


# In several processes ------------------------------------------------------------------------------------------------


def test_several_processes_find_what_one_does(write, tmp_path, monkeypatch):
    write("all/a.jsonl", [*questions(300), *lines_of_text("One.", "Two."), {"foo": 1}])
    write("all/b.csv", "question,answer\n" + "".join(f"what {i}?,{i}\n" for i in range(50)))
    write("all/ana.md", "# Ana\n\nPlayed.")
    alone = read(tmp_path / "all")
    monkeypatch.setattr(preparation, "WORTH_PROCESSES", 1)
    together = read(tmp_path / "all")
    monkeypatch.setattr(preparation, "PIECE", 1000)
    in_pieces = read(tmp_path / "all")
    assert together.report == alone.report
    for prepared in (together, in_pieces):
        assert (prepared.train, prepared.validation) == (alone.train, alone.validation)
        assert prepared.fingerprint == alone.fingerprint
        assert adds_up(prepared.report)
