"""Each file of `data_corpus/` gives what the JSON file beside it says.

After a change that is meant, `python tests/data/test_data_corpus.py` writes what is found now; read the difference.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_core.config import DataConfig
from qlora_core.data import ACCEPTED, prepare
from qlora_core.errors import DataError
from qlora_core.tokens.dataset import make_dataset
from qlora_core.tokens.tokenizer import ChatTokenizer

CORPUS = Path(__file__).parent / "data_corpus"
EXPECTED = ".expected.json"


def cases() -> Iterator[Path]:
    yield from (path for path in sorted(CORPUS.iterdir()) if not path.name.endswith(EXPECTED))


def found_in(path: Path, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """What a file gives: rows, and everything that was said of it; counts of nothing are left out."""
    try:
        prepared = prepare(DataConfig(data=(str(path),), val_fraction=0.0), tokenizer)
    except DataError as error:
        return {"error": str(error).removesuffix(ACCEPTED).replace(str(path), path.name).splitlines()}
    report = prepared.report.as_dict()
    told = (
        "encodings",
        "joined_lines",
        "passages",
        "mended",
        "debris",
        "duplicates",
        "near_duplicates",
        "rejected",
        "skipped_files",
        "personal_data",
    )
    dataset = make_dataset(prepared.train, tokenizer, 4096)
    assert len(dataset) == len(prepared.train)  # what is accepted can be trained
    return {
        "rows": [shown(row, path) for row in prepared.train],
        **{name: shown_finding(report[name], path) for name in told if report[name] and report[name] != NOTHING},
    }


NOTHING = {"count": 0, "listed": []}


def shown(row: dict[str, Any], path: Path) -> dict[str, Any]:
    content = {key: row[key] for key in ("messages", "text") if key in row}
    place = {"source": row["source"].replace(str(path), path.name)}
    return {**content, **place, **({"metadata": row["metadata"]} if row["metadata"] else {})}


def shown_finding(value: Any, path: Path) -> Any:
    if not isinstance(value, dict) or "listed" not in value:
        return value
    return [f"{found['where'].replace(str(path), path.name)}: {found['reason']}" for found in value["listed"]]


@pytest.mark.parametrize("path", list(cases()), ids=lambda path: path.name)
def test_a_file_gives_what_is_written_beside_it(path, tiny_model):
    expected = json.loads(path.with_name(path.name + EXPECTED).read_text(encoding="utf-8"))
    assert found_in(path, ChatTokenizer(tiny_model)) == expected


def test_there_are_enough_cases_and_each_has_its_result():
    names = {path.name for path in CORPUS.iterdir()}
    assert len(list(cases())) >= 40
    assert {name for name in names if name.endswith(EXPECTED)} == {path.name + EXPECTED for path in cases()}


if __name__ == "__main__":
    import tempfile

    from tiny import write_model

    tokenizer = ChatTokenizer(write_model(Path(tempfile.mkdtemp()) / "model"))
    for case in cases():
        found = json.dumps(found_in(case, tokenizer), indent=1, ensure_ascii=False)
        case.with_name(case.name + EXPECTED).write_text(found + "\n", encoding="utf-8")
