"""Data sets of the hub, from one on this machine: which files come, that they come once, and what is said."""

import io
import json
import sys
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from fake_hub import REPOSITORY, FakeHub
from huggingface_hub import close_session, constants, file_download

from qlora_core.config import DataConfig
from qlora_core.data import prepare
from qlora_core.data.from_hub import fetched, is_wanted
from qlora_core.errors import DataError
from qlora_core.tokens.tokenizer import ChatTokenizer


def questions(name: str, count: int = 6) -> list[dict]:
    return [{"question": f"{name} {i}?", "answer": f"{name} answer {i}"} for i in range(count)]


def parquet(name: str) -> bytes:
    made = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(questions(name)), made)
    return made.getvalue()


def lines(name: str) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in questions(name)).encode()


FILES = {
    "README.md": b"---\nlanguage: pt\nlicense: cc-by-4.0\n---\n# Questions\n",
    "data/train-00000-of-00001.parquet": parquet("Train"),
    "data/validation-00000-of-00001.parquet": parquet("Val"),
    "data/test-00000-of-00001.parquet": parquet("Test"),
    "dataset_infos.json": b"{}",
    "script.py": b"raise SystemExit",
}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A hub with one data set, and huggingface_hub that knows no other."""
    server = FakeHub(dict(FILES))
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    for module in (file_download, sys.modules["huggingface_hub.utils._http"]):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    close_session()
    yield server
    server.close()
    close_session()


@pytest.fixture
def read(tiny_model):
    def of(name: str, **settings):
        return prepare(DataConfig(data=(name,), **settings), ChatTokenizer(tiny_model))

    return of


def first_words(rows) -> set[str]:
    return {row["messages"][0]["content"].split()[0] for row in rows}


def test_all_but_the_test_comes_with_its_split(fake, read):
    prepared = read(f"hf:{REPOSITORY}")
    assert (first_words(prepared.train), first_words(prepared.validation)) == ({"Train"}, {"Val"})
    assert prepared.report.sources == [f"hf:{REPOSITORY}"]
    assert prepared.report.licences == [f"{REPOSITORY}: cc-by-4.0"]
    asked = [path for _, path, _ in fake.requests]
    assert not any("test-00000" in path or "script" in path or "infos" in path for path in asked)


@pytest.mark.parametrize(("split", "word"), [("train", "Train"), ("train-00000-of-00001", "Train")])
def test_one_split(fake, read, split, word):
    prepared = read(f"hf:{REPOSITORY}:{split}", val_fraction=0.3)
    assert first_words(prepared.train) == first_words(prepared.validation) == {word}


def test_what_is_here_is_neither_fetched_nor_asked_for_again(fake, read):
    first = read(f"hf:{REPOSITORY}")
    large = len([path for _, path, _ in fake.requests if "elsewhere" in path])
    fake.close()
    again = read(f"hf:{REPOSITORY}")
    assert (again.train, again.report) == (first.train, first.report)
    assert large == 2


def test_what_broke_off_goes_on_where_it_was(fake, read):
    fake.cut_at, fake.ranges = 300, True
    with pytest.raises(DataError, match="run the same command again and it goes on from there"):
        read(f"hf:{REPOSITORY}:train")
    fake.cut_at = None
    assert len(read(f"hf:{REPOSITORY}:train", val_fraction=0.0).train) == 6
    assert "bytes=300-" in [headers.get("range") for headers in fake.asked("elsewhere")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hf:nobody/nothing", "nobody/nothing: the hub has no such data set"),
        ("hf:a b", "not a data set on the hub"),
        (f"hf:{REPOSITORY}:holdout", "holds no split 'holdout' of rows"),
        (f"hf:{REPOSITORY}@v9", "the hub has the data set, but not that revision"),
    ],
)
def test_what_cannot_be_had_says_why(fake, read, name, reason):
    with pytest.raises(DataError, match=reason) as error:
        read(name)
    assert "\n" not in str(error.value)


def test_a_data_set_without_rows_says_so(fake, read):
    fake.files = {"README.md": b"# Pictures", "cat.png": b"x"}
    with pytest.raises(DataError, match=r"holds no file of rows .*Scripts of data sets are not run"):
        read(f"hf:{REPOSITORY}")


def test_a_data_set_that_names_no_licence(fake):
    fake.files = {"train.jsonl": lines("Train")}
    assert fetched([f"hf:{REPOSITORY}", "more/"]).licences == (f"{REPOSITORY}: no licence is named",)
    assert fetched([f"hf:{REPOSITORY}", "more/"]).sources[1] == "more/"


@pytest.mark.parametrize(
    ("file", "split", "wanted"),
    [
        ("train.jsonl", "", True), ("test.jsonl", "", False), ("test/a.csv", "", False), ("en/train.csv", "en", True),
        ("pt/train.csv", "en", False), ("test.jsonl", "test", True), ("data/val-0.parquet", "validation", True),
        ("a.py", "", False), (".cache/a.json", "", False), ("train.jsonl.gz", "train", True), ("state.json", "", False),
    ],
)  # fmt: skip
def test_which_files_are_wanted(file, split, wanted):
    assert is_wanted(file, split) == wanted
