"""Files of rows to rows, one at a time, whatever is wrong with them; the corpus has the usual cases."""

import bz2
import gzip
import json
import lzma
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from backports import zstd

from qlora_core.data import json_values, tables, text_files
from qlora_core.data.records import UnusableError
from qlora_core.data.sources import Source, form_of
from qlora_core.data.tables import read_rows
from qlora_core.data.text_files import BrokenOffError, pieces_of, read_lines

COMMA, VALUE = "not JSON: Expecting ',' delimiter at column {}", "not JSON: Expecting value at column {}"
QUOTE = "not a row of a table: ',' expected after '\"'"
OPEN = "not a row of a table: a quotation mark is opened and never closed"


@pytest.fixture
def write(tmp_path):
    def to(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to


def rows_of(path: Path) -> list:
    """(number, value) of each row; a reason instead of the value where it cannot be used, and last if it breaks off."""
    found: list = []
    try:
        for number, value in read_rows(Source(path, form_of(path)), lambda _: ""):
            found.append((number, str(value) if isinstance(value, UnusableError) else value))
    except ValueError as error:
        found.append(str(error))
    return found


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd.compress])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_packed_file_is_known_by_its_bytes(write, pack, name):
    assert rows_of(write(name, pack(b'{"a": 1}\n\n{"a": 2}'))) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd.compress])
def test_a_packed_file_that_was_cut_gives_what_came_before(write, pack):
    import random

    rng = random.Random(0)
    lines = b"".join(b'{"a": %d}\n' % rng.getrandbits(60) for _ in range(60_000))
    packed = pack(lines)
    found = rows_of(write("rows.jsonl", packed[: len(packed) * 3 // 4]))
    assert found[:2] == [(1, json.loads(lines.split(b"\n")[0])), (2, json.loads(lines.split(b"\n")[1]))]
    assert len(found) > 1000
    assert found[-1].startswith(f"breaks off after line {len(found) - 1} (")


def test_a_line_longer_than_any_row_is_not_kept_in_memory(write, monkeypatch):
    monkeypatch.setattr(text_files, "LINE_LIMIT", 1 << 16)
    monkeypatch.setattr(json_values, "LINE_LIMIT", 1 << 16)
    path = write("rows.jsonl", b'{"a": 1}\n{"a": "' + b"x" * (64 << 20) + b'"}\n{"a": 2}\n')
    tracemalloc.start()
    found = rows_of(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [number for number, _ in found] == [1, 2, 3]
    assert found[1][1].startswith("a line of more than")
    assert peak < 4 << 20


@pytest.mark.parametrize("content", [b"", b"{}", b"{}\n", b"\n\n{}\n\n", b'{"a": "' + b"x" * 50 + b'"}\n' * 9])
@pytest.mark.parametrize("size", [1, 3, 7, 64, 1000])
def test_pieces_together_are_the_file(write, content, size):
    path = write("rows.jsonl", content * 5)
    pieces = pieces_of(path, size)
    together = [found for piece in pieces for found in read_lines(path, *piece)]
    assert together == list(read_lines(path))
    assert pieces[0][0] == 0
    assert pieces[-1][1] is None


def test_only_the_first_line_loses_its_mark(write):
    path = write("rows.jsonl", b"\xef\xbb\xbf{}\n\xef\xbb\xbf{}\n")
    assert [line for _, line in read_lines(path)] == [b"{}\n", b"\xef\xbb\xbf{}\n"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[]", []),
        ("", []),
        ('[{"a":1},\n{"a":2}]', [(1, {"a": 1}), (2, {"a": 2})]),
        ('\ufeff\n [\n\n{"a":1}]', [(4, {"a": 1})]),
        ('{\n"a":1}', [(1, {"a": 1})]),
        ('{"data":[{"a":1},{"a":2}]}', [(1, {"a": 1}), (1, {"a": 2})]),
        ('{"train":[{"a":1}],"test":[{"a":2}]}', [(1, {"a": 1}), (1, {"a": 2})]),
        ('{"0":{"a":1},"1":{"a":2}}', [(1, {"a": 1}), (1, {"a": 2})]),
        ('{"data":[{"a":1}],"b":2}', [(1, {"data": [{"a": 1}], "b": 2})]),
        ('{"messages":[{"role":"user"}]}', [(1, {"messages": [{"role": "user"}]})]),
        ('{"a":1}\n{"a":', [(1, {"a": 1}), (2, "not JSON: Expecting value at column 6")]),  # lines after all
        ('[{"a":1},\n\n{"a":', [(1, {"a": 1}), "breaks off at line 3 (not JSON: Expecting value at column 6)"]),
        ('[{"a":1},{"b":1,"b":2},{"c":3}]', [(1, {"a": 1}), (1, "the key 'b' stands twice"), (1, {"c": 3})]),
        ('// by hand\n[{"a":1,}, /* no */\n{"a":[2,],},\n]', [(2, {"a": 1}), (3, {"a": [2]})]),
        ('[{"a":"http://x // y,]"},\n{"a":2,}]', [(1, {"a": "http://x // y,]"}), (2, {"a": 2})]),
        (
            '[{"a":1},\n{"a":"b"c"},\n{"a":3}]',
            [(1, {"a": 1}), (2, COMMA.format(9)), (3, {"a": 3})],
        ),
        (
            '[\n{"a":1},\n{"a":"b,"c":2},\n{"a":3}]',
            [(2, {"a": 1}), (3, COMMA.format(10)), (4, {"a": 3})],
        ),
        ('[{"a":1},\n{"b":\n\'x\'},\n{"a":3}]', [(1, {"a": 1}), (2, VALUE.format(1) + " (lines 2-3)"), (4, {"a": 3})]),
        ('[{"a":1}, nothing, {"a":2}]', [(1, {"a": 1}), (1, VALUE.format(11)), (1, {"a": 2})]),
        (
            '{"data":[{"a":1},{"a":tru},{"a":3}]}',
            [(1, {"a": 1}), (1, VALUE.format(23)), (1, {"a": 3})],
        ),
        ('[[{"role":"user"}],[{"role":"user"}]]', [(1, [{"role": "user"}]), (1, [{"role": "user"}])]),
        ('[{"a":1}]\n[{"a":2}]', [(1, {"a": 1}), (2, {"a": 2})]),
        ('{"a":' * 100_000, ["breaks off at line 1 (brackets nested too deeply)"]),
    ],
)
def test_a_json_file(write, content, found):
    wanted = [f"{item}; what comes before is used" if isinstance(item, str) else item for item in found]
    assert rows_of(write("rows.json", content)) == wanted


def test_a_json_array_is_read_block_by_block(write, monkeypatch):
    monkeypatch.setattr(json_values, "_BLOCK", 7)
    rows = [{"a": "ção" * i, "b": [i, {"c": "]"}]} for i in range(50)]
    found = rows_of(write("rows.json", json.dumps(rows, indent=1, ensure_ascii=False)))
    assert [value for _, value in found] == rows


def test_one_row_that_never_ends_is_given_up(write, monkeypatch):
    monkeypatch.setattr(json_values, "_BLOCK", 64)
    monkeypatch.setattr(json_values, "LINE_LIMIT", 64)
    found = rows_of(write("rows.json", '[{"a":1},{"a":"' + "x" * 5000))
    assert found[0] == (1, {"a": 1})
    assert found[1].startswith("breaks off at line 1 (one row of more than")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("a,b\n1,2\n", [(2, {"a": "1", "b": "2"})]),
        ("a;b\n1,5;2\n", [(2, {"a": "1,5", "b": "2"})]),
        ("a|b\n1|2", [(2, {"a": "1", "b": "2"})]),
        ("sep=;\na;b,c\n1;2\n", [(3, {"a": "1", "b,c": "2"})]),
        ('a,b\n"x\ny",2\n3,4\n', [(2, {"a": "x\ny", "b": "2"}), (4, {"a": "3", "b": "4"})]),
        ("a,b\n\n,\n1\n", [(4, {"a": "1", "b": ""})]),
        ("a,b,\n1,2,\n", [(2, {"a": "1", "b": "2"})]),
        ("a,b\n1,2,3\n4,5\n", [(2, "3 cells where the header names 2 columns"), (3, {"a": "4", "b": "5"})]),
        ('a,b\nx,"y\n1,2\n3,4\n', [(2, OPEN), (3, {"a": "1", "b": "2"}), (4, {"a": "3", "b": "4"})]),
        ('a,b\n"x" is,1\n3,"4"\n', [(2, {"a": '"x" is', "b": "1"}), (3, {"a": "3", "b": "4"})]),
        (
            'a,b\nx,"y\n1,"2\n3,4\n',
            [(2, QUOTE), (3, OPEN), (4, {"a": "3", "b": "4"})],
        ),
        ("a,a\n1,2\n", ["two of its columns are named 'a'"]),
        ('"a\n', ["its first line is no header: unexpected end of data"]),
        ("", []),
    ],
)
def test_a_csv_file(write, content, found):
    assert rows_of(write("rows.csv", content)) == found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            'a\tb\n"x\t1\ny\t2\nz "w"\t3\n',
            [(2, {"a": '"x', "b": "1"}), (3, {"a": "y", "b": "2"}), (4, {"a": 'z "w"', "b": "3"})],
        ),
        ('a\tb\n"x\t1\ny"\t2\n', [(2, {"a": '"x', "b": "1"}), (3, {"a": 'y"', "b": "2"})]),
        ('a\tb\nx\t"1\n', [(2, {"a": "x", "b": '"1'})]),
        ('a\tb\n"x ""y"" z"\t1\n', [(2, {"a": 'x "y" z', "b": "1"})]),
        ('a\tb\n"two\nlines"\t1\n', [(2, {"a": "two\nlines", "b": "1"})]),
        ('a\tb\n"a\ttab"\t1\n', [(2, {"a": "a\ttab", "b": "1"})]),
    ],
)
def test_a_quotation_mark_between_tabs_is_a_letter_unless_it_holds_a_cell_together(write, content, found):
    assert rows_of(write("rows.tsv", content)) == found


NEXT = "not a row of a table: a quotation mark is opened, and the next one stands {}, in another row"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            'q,a\n"Who?,Ana\nWhen?,Noon\nHow tall?,6"\nWhy?,So\n',
            [(2, NEXT.format("2 lines below")), (3, {"q": "When?", "a": "Noon"}),
             (4, {"q": "How tall?", "a": '6"'}), (5, {"q": "Why?", "a": "So"})],
        ),
        (
            'q;a\n"Who is it?;It is Ana, who\nHow tall 6";She is tall\n',
            [(2, NEXT.format("in the next line")), (3, {"q": 'How tall 6"', "a": "She is tall"})],
        ),
        (
            'a,b,c,d\nx, y,"2, 3\n4,, 5,6\n7,8,9",10\n',
            [(2, NEXT.format("2 lines below")), (3, {"a": "4", "b": "", "c": " 5", "d": "6"}),
             (4, {"a": "7", "b": "8", "c": '9"', "d": "10"})],
        ),
        # texts of several lines
        ('q,a\n"Dear Ana,\nthanks",Rui\n', [(2, {"q": "Dear Ana,\nthanks", "a": "Rui"})]),
        ('q,a\n"Porto, Portugal\nthe city",x\n', [(2, {"q": "Porto, Portugal\nthe city", "a": "x"})]),
        ('q,a\nWhere?,"In Porto,\nby sea,\nFaro"\n', [(2, {"q": "Where?", "a": "In Porto,\nby sea,\nFaro"})]),
        ('q,a\n"f(a,b)\nend",Ruby\n', [(2, {"q": "f(a,b)\nend", "a": "Ruby"})]),
        ('q,a\n"1,5\n2",x\n', [(2, {"q": "1,5\n2", "a": "x"})]),
        ('a,b,c\n1,"one, two\nthree, four",x\n', [(2, {"a": "1", "b": "one, two\nthree, four", "c": "x"})]),
        ('a\n"x\ny"\n', [(2, {"a": "x\ny"})]),
        ('a,b\n"x\ny","z\nw"\n', [(2, {"a": "x\ny", "b": "z\nw"})]),
    ],
)  # fmt: skip
def test_a_quotation_mark_that_joins_whole_rows_costs_its_own_row(write, content, found):
    assert rows_of(write("rows.csv", content)) == found


def test_the_sample_of_a_row_that_is_none_is_its_line(write):
    path = write("rows.csv", 'a,b\nx,"never closed\n')
    ((_, error),) = read_rows(Source(path, ".csv"), lambda _: "")
    assert error.sample == 'x,"never closed'


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('[{"a":1},{"a":2}]', [(1, {"a": 1}), (1, {"a": 2})]),
        ('{\n "a": 1\n}\n{\n "a": 2\n}\n', [(1, {"a": 1}), (4, {"a": 2})]),
        ('[{"a":1},\n{"a":2}]\n', [(1, {"a": 1}), (2, {"a": 2})]),
        ('// by hand\n{"a":1}\n', [(2, {"a": 1})]),
        ('{"a":1},\n{"a":2,},\n', [(1, {"a": 1}), (2, {"a": 2})]),
        ('{"a":\n{"a":2}\n', [(1, "not JSON: Expecting value at column 6"), (2, {"a": 2})]),
        ('[{"role":"user"}]\n[{"role":"user"}]\n', [(1, [{"role": "user"}]), (2, [{"role": "user"}])]),
        ("[1, 2]\n", [(1, [1, 2])]),
    ],
)
def test_a_jsonl_file_that_is_written_otherwise(write, content, found):
    assert rows_of(write("rows.jsonl", content)) == found


def test_what_is_lost_behind_a_break_is_counted(write):
    content = '[{"a":1},\n{"a":"ção' + "x" * 100
    with pytest.raises(BrokenOffError) as error:
        list(read_rows(Source(write("rows.json", content), ".json"), lambda _: ""))
    assert error.value.unread == len('{"a":"ção'.encode()) + 100


def test_a_number_keeps_how_it_is_written(write):
    ((_, row),) = read_rows(Source(write("rows.jsonl", '{"a": 1.50, "b": 1e3}'), ".jsonl"), lambda _: "")
    assert (row["a"].text, row["b"].text, row["a"]) == ("1.50", "1e3", 1.5)


def test_a_cell_larger_than_any_row_spoils_only_its_row(write, monkeypatch):
    monkeypatch.setattr(tables, "LINE_LIMIT", 100)
    found = rows_of(write("rows.csv", f"a,b\n1,2\n{'x' * 200},2\n3,4\n"))
    assert found[0] == (2, {"a": "1", "b": "2"})
    assert found[1] == (3, "not a row of a table: field larger than field limit (100)")
    assert found[-1] == (4, {"a": "3", "b": "4"})


def test_a_parquet_file_and_one_that_was_cut(write, tmp_path):
    table = pyarrow.table({"a": [f"row {i}" for i in range(5000)]})
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=100)
    found = rows_of(path)
    assert (found[0], found[-1], len(found)) == ((1, {"a": "row 0"}), (5000, {"a": "row 4999"}), 5000)
    whole = path.read_bytes()
    (reason,) = rows_of(write("cut.parquet", whole[:-100]))
    assert reason.startswith("cannot be read as Parquet: ")
    hole = len(whole) // 3
    *before, reason = rows_of(write("hole.parquet", whole[:hole] + bytes(200) + whole[hole + 200 :]))
    assert reason.startswith("breaks off after row ")
    assert before == found[: len(before)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.parquet", b"{}", "is not a Parquet file"),
        ("a.jsonl", b"PK\x03\x04rest", "is not what its name says: the content is a ZIP archive"),
        ("a.csv", b"%PDF-1.4", "is not what its name says: the content is a PDF"),
    ],
)
def test_a_file_that_is_something_else(write, name, content, reason):
    assert rows_of(write(name, content)) == [reason]


def test_a_table_of_unknown_columns_is_refused_as_a_whole(write):
    path = write("rows.csv", "a,b\n1,2\n")
    with pytest.raises(ValueError, match="no use for a, b"):
        list(read_rows(Source(path, ".csv"), lambda names: f"no use for {', '.join(names)}"))


def test_an_unreadable_file_breaks_off_at_its_beginning(tmp_path):
    with pytest.raises(BrokenOffError, match="breaks off at its beginning"):
        list(read_lines(tmp_path / "nowhere"))
