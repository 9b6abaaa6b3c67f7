"""A split that the user made is kept, however it is told; what is for testing is never used, and that is said."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from qlora_core.config import DataConfig
from qlora_core.data import prepare
from qlora_core.data.sources import split_in
from qlora_core.errors import DataError
from qlora_core.tokens.tokenizer import ChatTokenizer

SHARED: dict[str, ChatTokenizer] = {}


@pytest.fixture(autouse=True)
def _tokenizer(tiny_model, tmp_path_factory, monkeypatch):
    monkeypatch.setitem(SHARED, "tokenizer", ChatTokenizer(tiny_model))
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path_factory.mktemp("cache")))


def read(*sources: Path, **settings):
    return prepare(DataConfig(data=tuple(map(str, sources)), **settings), SHARED["tokenizer"])


def questions(name: str, count: int = 3, **beside) -> list[dict]:
    return [{"question": f"{name} {i}?", "answer": f"{name} answer {i}", **beside} for i in range(count)]


def write(path: Path, rows: list[dict]) -> Path:
    """Rows in the format that the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def first_words(rows) -> set[str]:
    """Of which kind the rows are."""
    return {(row.get("text") or row["messages"][0]["content"]).split()[0] for row in rows}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("train_data", "train"), ("train-00000-of-00002", "train"), ("treino", "train"),
        ("cities_train", "train"), ("train_sft", "train"), ("Train", "train"), ("validation", "validation"),
        ("valid", "validation"), ("x.val", "validation"), ("dev", "validation"), ("dev-v2", "validation"),
        ("eval_set", "validation"), ("x-dev", "validation"), ("test", "test"), ("x_test", "test"),
        ("test-00000-of-00001", "test"), ("my_test_data", "test"), ("test2", "test"), ("", ""), ("latest", ""),
        ("contest", ""), ("valid_answers", ""), ("dev_notes", ""), ("training_camp", "train"), ("rows", ""),
        ("interview", ""), ("attestation", ""), ("of", ""),
    ],
)  # fmt: skip
def test_which_split_a_name_tells(name, split):
    assert split_in(name) == split


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("train.csv", "valid.csv", "test.csv"),
        ("train.tsv", "dev.tsv", "test.tsv"),
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("cities.train.json", "cities.val.json", "cities.test.json"),
        ("cities_train.jsonl", "cities_eval.jsonl", "cities_test.jsonl"),
        ("train/a.jsonl", "val/a.jsonl", "test/a.jsonl"),
        ("training/a.csv", "evaluation/b.jsonl", "testing/c.json"),
    ],
)
def test_files_and_folders_of_a_split(tmp_path, train, validation, test):
    for name, kind in ((train, "Train"), (validation, "Val"), (test, "Test")):
        write(tmp_path / "own" / name, questions(kind))
    prepared = read(tmp_path / "own", val_fraction=0.5)
    assert (first_words(prepared.train), len(prepared.train)) == ({"Train"}, 3)
    assert (first_words(prepared.validation), len(prepared.validation)) == ({"Val"}, 3)
    (left_out,) = prepared.report.skipped_files
    assert left_out.where.endswith(test)
    assert "neither trained nor validated on" in left_out.reason
    assert prepared.report.own_split


def test_files_that_are_named_one_by_one(tmp_path):
    names = ("train", "validation", "test")
    prepared = read(*(write(tmp_path / f"{name}.jsonl", questions(name.capitalize())) for name in names))
    assert (first_words(prepared.train), first_words(prepared.validation)) == ({"Train"}, {"Validation"})


def test_folders_that_are_named_one_by_one(tmp_path):
    names = ("train", "val", "test")
    prepared = read(*(write(tmp_path / name / "rows.jsonl", questions(name.capitalize())).parent for name in names))
    assert (first_words(prepared.train), first_words(prepared.validation)) == ({"Train"}, {"Val"})


def test_a_test_file_beside_one_to_train_is_left_out_and_the_rest_is_split(tmp_path):
    write(tmp_path / "own/train.jsonl", questions("Train", 40))
    write(tmp_path / "own/test.jsonl", questions("Test", 40))
    prepared = read(tmp_path / "own", val_fraction=0.3)
    assert first_words(prepared.train) == first_words(prepared.validation) == {"Train"}
    assert not prepared.report.own_split


def test_files_beside_one_to_validate_are_trained_whole(tmp_path):
    write(tmp_path / "own/cities.jsonl", questions("City", 40))
    write(tmp_path / "own/validation.jsonl", questions("Val"))
    prepared = read(tmp_path / "own", val_fraction=0.3)
    assert len(prepared.train) == 40
    assert first_words(prepared.validation) == {"Val"}


def test_only_a_test_file_says_what_to_do_and_that_works(tmp_path):
    path = write(tmp_path / "test.jsonl", questions("Test"))
    with pytest.raises(DataError, match=r"test\.jsonl: is for testing by its name(.|\n)*rename it, or --no-own-split"):
        read(path)
    assert len(read(path, own_split=False, val_fraction=0.0).train) == 3
    assert len(read(path.rename(tmp_path / "exam.jsonl"), val_fraction=0.0).train) == 3
    only = write(tmp_path / "valid.jsonl", questions("Val"))
    with pytest.raises(DataError, match=r"for validation by their name\. If not: --no-own-split"):
        read(only)


def test_a_book_of_that_name_is_a_book(tmp_path):
    book = tmp_path / "notes/test.md"
    book.parent.mkdir()
    book.write_text("# The test\n\nIt rained all day.", encoding="utf-8")
    assert len(read(book).train) == 1
    (tmp_path / "notes/driving-test.md").write_text("# Driving\n\nIt went well.", encoding="utf-8")
    prepared = read(tmp_path / "notes", val_fraction=0.0)
    assert len(prepared.train) == 2
    assert not prepared.report.skipped_files.count


def test_documents_in_folders_of_a_split(tmp_path):
    for name in ("train", "val", "test"):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "a.md").write_text(f"# {name.capitalize()}\n\nText of it.", encoding="utf-8")
    prepared = read(tmp_path / "own")
    assert (first_words(prepared.train), first_words(prepared.validation)) == ({"Train"}, {"Val"})
    assert prepared.report.skipped_files.count == 1


@pytest.mark.parametrize("damaged", [False, True])
def test_keys_of_one_object(tmp_path, damaged):
    text = json.dumps({"train": questions("Train"), "validation": questions("Val"), "test": questions("Test", 2)})
    path = tmp_path / "all.json"
    path.write_text(text[:-2] + ',{"question": x}]}' if damaged else text, encoding="utf-8")
    prepared = read(path, val_fraction=0.5)
    assert (first_words(prepared.train), first_words(prepared.validation)) == ({"Train"}, {"Val"})
    assert (prepared.report.test_rows, prepared.report.rejected.count) == (2, int(damaged))
    assert prepared.report.own_split
    assert any("2 rows say that they are for testing" in warning for warning in prepared.report.warnings)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_a_column_that_tells_the_split(tmp_path, name):
    rows = [row for kind, split in (("Train", "train"), ("Val", "dev"), ("Test", "test"))
            for row in questions(kind, 4, split=split)]  # fmt: skip
    prepared = read(write(tmp_path / name, rows), val_fraction=0.5)
    assert (first_words(prepared.train), first_words(prepared.validation)) == ({"Train"}, {"Val"})
    assert prepared.report.test_rows == 4
    assert len(read(tmp_path / name, own_split=False, val_fraction=0.0).train) == 12


def test_a_row_that_stands_on_both_sides_of_a_column_is_validated_on(tmp_path):
    rows = [
        *questions("Same", 1, split="train"),
        *questions("Train", 2, split="train"),
        *questions("Same", 1, split="val"),
    ]
    prepared = read(write(tmp_path / "rows.jsonl", rows))
    assert (first_words(prepared.train), first_words(prepared.validation)) == ({"Train"}, {"Same"})
    assert prepared.report.duplicates == 1


def test_a_column_with_training_and_test_alone_leaves_a_share_to_validate(tmp_path):
    rows = [*questions("Train", 60, split="train"), *questions("Test", 9, split="test")]
    prepared = read(write(tmp_path / "rows.jsonl", rows), val_fraction=0.3)
    assert first_words(prepared.validation) == {"Train"}


# One text --------------------------------------------------------------------------------------------------------


def memoir(paragraphs: int, heading: int = 0) -> str:
    """Paragraphs of which no two are alike; before every so many a heading."""
    made = []
    for i in range(paragraphs):
        made += [f"## Chapter {i}"] if heading and i % heading == 0 else []
        made.append(" ".join(f"In {i * 7 + j} the keeper of lamp {i * j} went to town {i + j}." for j in range(5)))
    return "\n\n".join(made)


@pytest.mark.parametrize("name", ["memoir.txt", "memoir.md"])
@pytest.mark.parametrize("paragraphs", [6, 15, 60])
def test_one_text_without_headings_is_validated_by_some_of_it(tmp_path, name, paragraphs):
    path = tmp_path / name
    path.write_text(memoir(paragraphs), encoding="utf-8")
    for settings in ({}, {"val_fraction": 0.3}, {"val_rows": 2}):
        prepared = read(path, passage_tokens=300, **settings)
        assert 0 < len(prepared.validation) <= len(prepared.train)
        assert not any("held out" in warning for warning in prepared.report.warnings)
    sides = [{row["text"] for row in side} for side in (prepared.train, prepared.validation)]
    assert sides[0].isdisjoint(sides[1])


def test_a_long_chapter_is_not_held_out_as_a_whole(tmp_path):
    path = tmp_path / "memoir.md"
    path.write_text(memoir(120, heading=60), encoding="utf-8")
    prepared = read(path, passage_tokens=300)
    assert 0 < len(prepared.validation) < len(prepared.train) / 5


def test_the_remedies_for_no_validation_work(tmp_path):
    path = write(tmp_path / "rows.jsonl", questions("City", 30))
    prepared = read(path, val_fraction=0.0)
    assert any("--val-fraction 0.05 or --val-rows 20" in warning for warning in prepared.report.warnings)
    assert read(path, val_fraction=0.05).validation
    assert read(path, val_rows=20).validation
    same = "The keeper of the lamp went to the town and bought a rope for the boat"
    alike = write(tmp_path / "alike.jsonl", [{"question": f"{same}?", "answer": f"yes{'!' * i}"} for i in range(3)])
    (warning,) = (w for w in read(alike).report.warnings if "validation loss" in w)
    assert "validation.jsonl beside train.jsonl" in warning
    write(tmp_path / "own/train.jsonl", questions("Train"))
    write(tmp_path / "own/validation.jsonl", questions("Val"))
    assert read(tmp_path / "own").validation
