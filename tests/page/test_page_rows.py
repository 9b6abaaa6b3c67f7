"""The data on the page: sources, what became of them, and rows one by one; nothing in them is HTML."""

import json
import sys
from pathlib import Path

import altair
import numpy as np
import pytest

from qlora_core import data
from qlora_core.config import DataConfig, RunConfig, from_flat
from qlora_core.data import Findings
from qlora_core.page import doubts, row_browser, rows
from qlora_core.page.problems import Problem
from qlora_core.tokens.dataset import make_dataset, make_datasets
from qlora_core.tokens.pieces import Piece
from qlora_core.tokens.report import describe
from qlora_core.tokens.tokenizer import ChatTokenizer

MARKUP = '<b id="owned">bold</b> <script>x</script>'


def turns(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, contents: list) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in contents]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    return ChatTokenizer(tiny_model)


@pytest.fixture
def prepare(tmp_path: Path, tokenizer: ChatTokenizer):
    """Prepare rows; gives what was prepared and both datasets."""

    def make(contents: list, most: int = 100, **settings):
        path = write(tmp_path / "rows.jsonl", contents)
        config = DataConfig(data=(str(path),), max_seq_length=most, val_fraction=0.0, **settings)
        prepared = data.prepare(config, tokenizer)
        return prepared, *make_datasets(prepared.train, prepared.validation, tokenizer, most)

    return make


WANTED = {"side": "train", "only": "all", "text": ""}


def texts(found: row_browser.Found) -> list[str]:
    return [found.rows[place]["messages"][0]["content"] for place in found.places]


# Sources --------------------------------------------------------------------------------------------------------


def test_what_is_browsed_is_written_as_one_would_type_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rows.as_typed(tmp_path / "data" / "a.jsonl") == str(Path("data", "a.jsonl"))
    assert rows.as_typed(tmp_path.parent / "b.jsonl") == str(tmp_path.parent / "b.jsonl")


def test_typed_sources_are_the_setting_and_no_others_are_lost():
    start = from_flat({"max_seq_length": 99})
    form = rows.data_form(start)
    assert "data" not in form.elements
    read = rows.read_data_form(start, form.value, "a.jsonl\n\nfolder of mine\n")
    assert read == from_flat({"data": ("a.jsonl", "folder of mine")}, base=start)


def test_nothing_chosen_is_an_empty_state_and_a_problem_that_says_so_below():
    read = rows.read_data_form(RunConfig(), {}, " \n")
    assert read == Problem("no data is chosen", shown=True)
    assert "Type a file" in rows.nothing_chosen(" \n").text
    assert rows.nothing_chosen("a.jsonl") is None


def test_a_page_to_look_at_has_nothing_to_type_a_path_into(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--read-only"])
    named = rows.source_list(["a.jsonl", MARKUP])
    assert named.value == f"a.jsonl\n{MARKUP}"
    assert "&lt;b id=" in rows.sources(named).text
    assert "textarea" not in rows.sources(named).text
    assert rows.source_browser(lambda _: None) is None
    assert {"facts", "runs_dir", "run", "data"}.isdisjoint(rows.data_form(RunConfig()).elements)
    assert "max_seq_length" in rows.data_form(RunConfig()).elements


# What became of them --------------------------------------------------------------------------------------------


def test_report_names_what_was_refused_and_why_as_text(prepare):
    prepared, *_ = prepare([turns("a", "b"), turns("c", "d"), "not JSON " + MARKUP])
    html = rows.data_report(prepared).text
    assert "rows.jsonl:3" in html
    assert "not JSON" in html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_report_names_what_is_used_for_nothing_and_what_is_marked(prepare):
    row = {"question": "a", "answer": "b", MARKUP: "Told at length."}
    prepared, *_ = prepare([row, {"question": "c", "answer": "d", "label": False}])
    html = rows.data_report(prepared).text
    assert "Columns with content that is used for nothing" in html
    assert "&lt;script&gt;" in html
    assert "50%" in html
    assert "<script>" not in html
    assert "marked as not to be trained: label false" in html


def test_many_findings_are_folded_and_those_not_shown_are_counted():
    findings = Findings()
    for place in range(1500):
        findings.add(f"a.jsonl:{place}", "wrong")
    html = rows._findings("Rejected rows", findings).text
    assert "Rejected rows: 1,500" in html
    assert html.count("a.jsonl:") == rows.MANY
    assert "195 more" in html
    assert "1,300 more are not shown" in html
    few = Findings()
    few.add("a.jsonl:1", "wrong")
    assert "more" not in rows._findings("Rejected rows", few).text


def test_tokens_in_numbers_and_a_chart_that_says_what_it_shows(prepare, tokenizer):
    _, train, validation = prepare([turns("a", "b" * n) for n in range(1, 40)] + [turns("c", "d" * 300)])
    report = describe(train, validation, tokenizer, 100)
    html = rows.token_figures(report, train, validation).text
    assert f"{report.tokens:,}" in html
    lengths = np.concatenate([dataset.rows.lengths + dataset.rows.cut for dataset in (train, validation)])
    specification = json.loads(rows.length_chart(lengths, 100)._mime_()[1])
    assert "40 rows" in specification["description"]
    bars = specification["datasets"]["rows"]
    assert sum(bar["rows"] for bar in bars) == 40
    assert [bar["rows"] for bar in bars if bar["beyond"]] == [report.truncated] == [1]
    assert bars[-1]["tokens"].endswith(f"– {report.longest}")  # what is far beyond stands in the last bar
    assert specification["datasets"]["limit"] == [{"most": 100}]
    assert json.loads(rows.length_chart(lengths, 1000)._mime_()[1])["datasets"]["limit"] == []
    altair.Chart.from_dict({key: value for key, value in specification.items() if key != "datasets"}, validate=True)
    titles = [layer["encoding"]["x"].get("title") for layer in specification["layer"]]
    assert titles[0] == "tokens in a row"


@pytest.mark.parametrize("longest", [1, 7, 59, 60, 119, 253, 512, 4096, 131_072])
def test_bars_are_few_and_round(longest):
    width = rows.bin_width(longest)
    assert longest // width < rows.MOST_BARS
    assert width == 1 or longest // (0.4 * width) >= rows.MOST_BARS  # the next narrower makes too many
    assert str(width).strip("0") in ("1", "2", "5")


def test_no_rows_at_all_are_shown_without_a_chart(tokenizer):
    nothing = make_dataset([], tokenizer, 100)
    assert "vega" not in rows.token_figures(describe(nothing, nothing, tokenizer, 100), nothing, nothing).text


# Which rows -----------------------------------------------------------------------------------------------------


def test_search_minds_neither_case_nor_accents_nor_names_of_fields(prepare):
    prepared, *datasets = prepare([turns("Coração", "b"), turns("x", "CORACAO\nde"), turns('say "hi"', "z")])
    found = row_browser.find(prepared, *datasets, {**WANTED, "text": " coracÃo "})
    assert (texts(found), found.searched) == (["Coração", "x"], 3)
    for text, count in (("assistant", 0), ("content", 0), ('"hi"', 1), ("coracao\nde", 1), ("rows.jsonl:2", 1)):
        assert len(row_browser.find(prepared, *datasets, {**WANTED, "text": text}).places) == count, text


def test_search_that_has_no_time_says_how_far_it_came(prepare, monkeypatch):
    prepared, *datasets = prepare([turns(f"{i} what", f"{i} that") for i in range(7)], near_duplicates="ignore")
    monkeypatch.setattr(row_browser, "BLOCK", 2)
    assert row_browser.search(prepared.train, range(7), "that", seconds=60) == (list(range(7)), 7)
    assert row_browser.search(prepared.train, [1, 3, 6], "that", seconds=60) == ([1, 3, 6], 3)
    places, searched = row_browser.search(prepared.train, range(7), "that", seconds=0)
    assert (places, searched) == ([0, 1], 2)
    found = row_browser.Found(prepared.train, datasets[0], places, 7, searched)
    assert "in the first 2 of 7" in row_browser._found(found).text
    monkeypatch.setattr(row_browser, "SEARCHED", 3)
    assert row_browser.search(prepared.train, range(7), "that", seconds=60) == ([0, 1, 2], 3)


def test_rows_that_are_cut_and_rows_left_out_are_found(prepare):
    contents = [
        turns("a", "b"),
        turns("long" * 30, "b"),
        turns("cut", "b" * 200),
        turns("c", "d"),
        turns("cut", "e" * 99),
    ]
    prepared, *datasets = prepare(contents)
    assert texts(row_browser.find(prepared, *datasets, {**WANTED, "only": "cut"})) == ["cut", "cut"]
    assert texts(row_browser.find(prepared, *datasets, {**WANTED, "only": "skipped"})) == ["long" * 30]
    found = row_browser.find(prepared, *datasets, {**WANTED, "only": "cut", "text": "EEE"})
    assert (found.places, found.asked, found.searched) == ([4], 2, 2)
    assert not row_browser.find(prepared, *datasets, {**WANTED, "side": "validation"}).places


def test_moving_stays_among_the_rows(prepare):
    found = row_browser.find(*prepare([turns("a", "b"), turns("c", "d")]), WANTED)
    place = 0

    def move(change) -> None:
        nonlocal place
        place = change(place)

    before, behind, number = row_browser.movers(found, move)
    seen = []
    pressed = [behind, behind, before, before, number, number, number, number]
    for element, value in zip(pressed, [1, 2, 3, 4, "2", "99", "0", "x"], strict=True):
        element._update(value)
        seen.append(place)
    assert seen == [1, 1, 0, 0, 1, 1, 0, 0]


# One row --------------------------------------------------------------------------------------------------------


def view(prepared_and_datasets, tokenizer, place: int = 0, part: str = "first", most: int = 100, **wanted) -> str:
    found = row_browser.find(*prepared_and_datasets, {**WANTED, **wanted})
    config = from_flat({"max_seq_length": most})
    return row_browser.row_view(found, place, tokenizer, config, part).text


def test_a_row_with_html_in_it_is_text(prepare, tokenizer):
    html = view(prepare([turns(MARKUP, MARKUP + ' <|im_end|> " onmouseover="x'), turns("c", "d")]), tokenizer)
    assert "<script" not in html
    assert "<b " not in html
    assert "onmouseover=&#34;x" in html
    assert "rows.jsonl:1" in html


def test_a_turn_shows_what_it_thinks_and_calls_and_that_it_is_context():
    call = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Aveiro"}}}
    turn = {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call], "train": False}
    written = '{"name": "tide", "arguments": {"port": "Aveiro"}}'
    role = "assistant, not trained"
    assert row_browser._said(turn) == [(f"{role}, thinking", "Hm."), (f"{role}, calling a tool", written)]
    assert row_browser._said({"role": "user", "content": ""}) == [("user", "")]


def test_a_row_that_cannot_be_trained_says_why(prepare, tokenizer):
    html = view(prepare([turns("a", "b"), turns("long" * 30, "b")]), tokenizer, only="skipped")
    assert "the prompt fills max_seq_length 100" in html
    assert "q-trained" in html.split("q-tokens")[0]  # in the legend alone
    assert "q-trained" not in html.split("q-tokens")[1]


def test_what_cannot_be_seen_is_named():
    assert row_browser.visible("a b") == 'a<i class="q-sign">·</i>b'
    assert row_browser.visible("\n").endswith("↵</i><br>")
    for letter in "\u202e\u200b\u2060\xa0\x00\ud800":
        assert f"U+{ord(letter):04X}" in row_browser.visible(letter)
    assert row_browser.visible("\u0301").startswith("◌")
    assert "◂" in row_browser.visible("")
    assert len(row_browser.visible("a" * 5000)) < 1100


def test_every_kind_of_token_is_told_in_words(prepare, tokenizer):
    html = view(prepare([turns("é", "b" * 200), turns("c", "d")]), tokenizer).split('role="group"')[1]
    assert ["[read, not trained:]" in html, "[trained:]" in html, "[cut off:]" in html] == [True] * 3
    assert "&lt;|im_start|&gt;" in html
    assert "token 1 of the row" in html


def test_a_long_row_is_shown_in_parts():
    """Of 10,000 tokens, some hundred are boxes, those around what was asked for."""
    kinds = ["context"] * 3000 + ["trained"] * 2000 + ["cut"] * 5000
    tokens = [Piece(f"{i}", i, kind) for i, kind in enumerate(kinds)]
    most = row_browser.SHOWN
    assert row_browser.window(tokens, "first") == (0, most)
    start, stop = row_browser.window(tokens, "trained")
    assert start < 3000 < stop == start + most
    start, stop = row_browser.window(tokens, "cut")
    assert (start < 5000, stop) == (True, 5000 + row_browser.CUT_SHOWN)
    assert row_browser.window(tokens, "last") == (10_000 - row_browser.CUT_SHOWN, 10_000)
    assert row_browser.window(tokens[:5000], "last") == (5000 - most, 5000)
    assert row_browser.window(tokens[2990:3010], "cut") == (0, 20)
    html = row_browser.token_boxes(tokens, "trained").text
    assert html.count("<wbr>") == most
    assert "2,900 tokens before these" in html
    assert "6,500 more tokens" in html


# What was guessed -----------------------------------------------------------------------------------------------


def test_a_guess_has_buttons_that_show_its_rows_and_that_decide_it(prepare):
    prepared, *_ = prepare([turns("who", "Ana"), turns("who", "Rui"), turns("when", MARKUP)])
    prepared.report.doubts.add(
        f"a{MARKUP}.md",
        "was taken for a person",
        "Lua",
        [("decide", "subject:a.md=thing"), ("decide", "title:a.md=b=c")],
    )
    chosen, sought = [], []
    elements = doubts.buttons(prepared, chosen.append, sought.append)
    assert list(elements.elements) == [
        "forget", "show 0", "use 0 0", "use 0 1", "show 1", "use 1 0", "use 1 1",
    ]  # fmt: skip
    html = doubts.panel(prepared, elements, ()).text
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert "Ana / Rui" in html
    assert doubts.panel(prepare([turns("a", "b")])[0], elements, ()) is None
    for name in elements.elements:
        elements.elements[name]._on_click(None)
    assert sought == [f"a{MARKUP}.md", "who"]
    made: tuple = ()
    for change in chosen[1:]:
        made = change(made)
    assert made == (("decide", "subject:a.md=thing"), ("decide", "title:a.md=b=c"), ("several_answers", "drop"))
    assert chosen[0](made) == ()


def test_a_column_that_is_used_for_nothing_can_be_used(prepare):
    row = {"question": "who", "answer": "Ana", "notes": f"she won the cup {MARKUP}", "rating": 3}
    prepared, *_ = prepare([row, {**row, "question": "when"}])
    chosen: list = []
    elements = doubts.buttons(prepared, chosen.append, print)
    assert list(elements.elements) == ["forget", "use 0 0"]
    html = doubts.panel(prepared, elements, ()).text
    assert "The column “notes” holds text and is used for nothing." in html
    assert "In a terminal: <code>--columns context=notes</code>" in html
    elements.elements["use 0 0"]._on_click(None)
    assert chosen[0]((("columns", "context=other"), ("columns", "prompt=ask"))) == (
        ("columns", "prompt=ask"), ("columns", "context=notes"),
    )  # fmt: skip


def test_what_is_chosen_is_a_setting():
    columns = [("columns", "context=a b"), ("columns", "prompt=ask"), ("columns", "context=notes")]
    config = doubts.with_choices(RunConfig(), columns)
    assert config.data.columns == ("context=notes", "prompt=ask")
    assert doubts.with_choices(config, [("columns", "prompt=other")]).data.columns == ("context=notes", "prompt=other")
    config = doubts.with_choices(RunConfig(), [("decide", "copy:a.md=drop"), ("scans", "all")])
    assert (config.data.decide, config.data.scans) == (("copy:a.md=drop",), "all")
    assert doubts.with_choices(RunConfig(), ()) == RunConfig()


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (("decide", "title:a.txt=Fifty Years"), "Fifty Years"),
        (("decide", "copy:b.txt=drop"), "leave out b.txt"),
        (("decide", "subject:a.md=thing"), "a thing"),
        (("decide", "section:a.md=go on"), "it goes on"),
        (("near_duplicates", "drop"), "nothing twice"),
        (("several_answers", "first"), "the first answer alone"),
        (("several_answers", "drop"), "none of these rows"),
        (("scans", "all"), "such words as they may be"),
        (("columns", "context=notes"), "notes as what the question is about"),
        (("columns", "prompt=ask"), "ask as the question"),
        (("val_from", "all"), "--val-from all"),
    ],
)
def test_a_choice_in_a_few_words(choice, said):
    assert doubts.answer(choice) == said


def test_a_dropped_file_is_kept_beside_others_of_its_name(tmp_path):
    first = rows.keep_dropped("notes.tar.gz", b"one", tmp_path)
    assert rows.keep_dropped("notes.tar.gz", b"one", tmp_path) == first == tmp_path / "notes.tar.gz"
    second = rows.keep_dropped("notes.tar.gz", b"two", tmp_path)
    assert (second.name, first.read_bytes(), second.read_bytes()) == ("notes-2.tar.gz", b"one", b"two")
    for name in ("../../outside.md", "..\\outside.md", "/etc/outside.md"):
        assert rows.keep_dropped(name, b"three", tmp_path).parent == tmp_path
    assert rows.keep_dropped("..", b"four", tmp_path) == tmp_path / "file"


def test_the_browser_lists_no_hidden_files(tmp_path):
    for name in (".git", "data"):
        (tmp_path / name).mkdir()
    assert [path.name for path in rows.Unhidden(tmp_path).iterdir()] == ["data"]
