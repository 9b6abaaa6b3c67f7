"""What the report says of rows that are counted by hand: a token a byte, and rows made of ids."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

from qlora_core.tokens import report as token_report
from qlora_core.tokens.dataset import TokenDataset, make_dataset
from qlora_core.tokens.report import describe, typicality
from qlora_core.tokens.rows import TokenRow, TokenRows
from qlora_core.tokens.tokenizer import ChatTokenizer

NOTHING = TokenDataset(())


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return ChatTokenizer(tiny_model)


def question(content: str, answer: str, source: str = "", system: str | None = None) -> dict:
    """A row; with the tiny models' template it has 21 tokens and a line feed besides question, answer and its end."""
    before = [] if system is None else [{"role": "system", "content": system}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": before + turns, "source": source}


def bare(*lengths: int, cut: dict[int, int] | None = None) -> TokenDataset:
    """Rows of the given lengths, half of each trained; `cut` has what is cut off, by index."""
    rng, cut = np.random.default_rng(0), cut or {}
    rows = [
        TokenRow(rng.integers(0, 200, n).astype(np.int32), np.arange(n) >= n // 2, f"a:{i + 1}", cut.get(i, 0))
        for i, n in enumerate(lengths)
    ]
    return TokenDataset(tuple(rows))


def about(report: token_report.TokenReport, word: str) -> list[str]:
    return [warning for warning in report.warnings if word in warning]


def test_the_numbers_by_hand(tokenizer):
    rows = [question("hi", "ok", "a:1"), question("hi", "o" * 20, "a:2"), question("x" * 40, "ok", "a:3")]
    train = make_dataset(rows, tokenizer, 30)
    validation = make_dataset([question("hi", "yes", "b:1")], tokenizer, 30)
    report = describe(train, validation, tokenizer, 30)
    # 25, 43 (13 lost) and 26 tokens; 3, 9 and 4 trained
    assert (report.rows, report.tokens, report.target_tokens) == (3, 25 + 30 + 26, 3 + 9 + 4)
    assert (report.longest, report.truncated, report.lost_tokens, report.max_seq_length) == (43, 1, 13, 30)
    assert report.percentiles == {50: 26, 90: 43, 99: 43}
    assert report.histogram == ((1, 16, 0), (17, 30, 2), (31, 43, 1))
    assert (report.skipped_rows, report.skipped) == (1, train.skipped)


@pytest.mark.parametrize("longest", [16, 20, 512, 640, 1 << 17])
def test_the_histogram_has_every_row_once_and_ends_with_the_longest(tokenizer, longest):
    lengths = [1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 500]
    dataset = bare(*(min(n, longest) for n in lengths), cut={i: max(0, n - longest) for i, n in enumerate(lengths)})
    bins = describe(dataset, NOTHING, tokenizer, longest).histogram
    assert sum(count for *_, count in bins) == len(lengths)
    assert all(count == sum(low <= n <= high for n in lengths) for low, high, count in bins)
    assert len(bins) <= 12
    assert bins[0][0] == 1
    assert all(low == previous + 1 for (_, previous, _), (low, *_) in itertools.pairwise(bins))
    assert longest in [high for _, high, _ in bins]
    assert bins[-1][1] == max(longest, 500)


def test_surprise_by_hand():
    """Of 4 tokens, 2 is three and 1 is one; with one more for each of a vocabulary of 4, that is 4 and 2 of 8."""
    rows = TokenRows.of(
        [TokenRow(np.asarray(ids, np.int32), np.ones(len(ids), bool)) for ids in ([2, 2, 2], [], [1], [])]
    )
    assert typicality(rows, 4).tolist() == pytest.approx([1, np.nan, 2, np.nan], nan_ok=True)


def test_surprise_does_not_depend_on_blocks(monkeypatch):
    rows = bare(*range(1, 40)).rows
    whole = typicality(rows, 256)
    monkeypatch.setattr(token_report, "BLOCK_ROWS", 7)
    assert typicality(rows, 256) == pytest.approx(whole)


def test_odd_rows_are_found_and_equal_ones_shown_once(tokenizer):
    usual = [{"text": "the red house is a house" + " here" * (i % 4), "source": f"a:{i}"} for i in range(40)]
    odd = [{"text": "%$#&@!~^*()_+=", "source": "odd:1"}, {"text": "ж" * 9, "source": "odd:2"}]
    short = [{"text": "§", "source": "short:1"}]
    report = describe(make_dataset([*usual, *odd, *odd, *short], tokenizer, 64), NOTHING, tokenizer, 64)
    assert [row.source for row in report.least_typical] == ["odd:1"]  # the others are five: 4 lengths, and one letter
    assert [row.source for row in report.most_typical[:4]] != [row.source for row in report.least_typical]
    assert {row.source for row in report.most_typical} == {"a:0", "a:1", "a:2", "a:3", "odd:2"}
    bits = [row.bits for row in (*report.most_typical, *report.least_typical)]
    assert bits == sorted(bits)
    assert report.least_typical[0].text == "%$#&@!~^*()_+="


def test_five_of_each_with_the_beginning_of_what_is_their_own(tokenizer):
    letters = "abcdefghijkl"
    rows = [question(x + "?", (letters[: i + 1] * 200)[:200], f"a:{i}", "Be kind.") for i, x in enumerate(letters)]
    report = describe(make_dataset(rows, tokenizer, 512), NOTHING, tokenizer, 512)
    assert (len(report.most_typical), len(report.least_typical)) == (5, 5)
    shown = {row.source: row.text for row in (*report.most_typical, *report.least_typical)}
    assert len(shown) == 10
    for text in shown.values():
        assert len(text) == 120
        assert text[1:].startswith("? assistant ")
        assert text.endswith("…")


def test_few_rows_are_learnt_by_heart(tokenizer):
    assert about(describe(bare(*[20] * 49), bare(20, 20), tokenizer, 64), "only 49 rows to train: expect it to learn")
    assert not about(describe(bare(*[20] * 50), NOTHING, tokenizer, 64), "to train")


def test_no_row_to_train_is_said_with_the_reason(tokenizer):
    rows = [question("Who?", "", f"a:{i}") for i in range(3)]
    dataset = make_dataset(rows, tokenizer, 20)
    warning = describe(dataset, NOTHING, tokenizer, 20).warnings[0]
    assert warning.startswith("no row can be trained with this model, of 3 rows to train. The first: a:0: ")
    assert token_report.none_trained(bare(20)) == ""
    assert (token_report.left_out(dataset, 3), token_report.left_out(bare(20, 20), 2)) == (3, 0)


def test_rows_that_are_all_right_bring_no_warning(tokenizer):
    rows = [question(f"{i}?", "a whole sentence, with much to say " + str(i), f"a:{i}") for i in range(60)]
    assert describe(make_dataset(rows, tokenizer, 128), NOTHING, tokenizer, 128).warnings == ()


def test_a_long_system_message_is_told_with_what_it_costs(tokenizer):
    rows = [question(f"{chr(65 + i)}?", "no", f"a:{i}", "s" * 80) for i in range(50)]
    dataset = make_dataset(rows, tokenizer, 256)
    (warning,) = about(describe(dataset, NOTHING, tokenizer, 256), "prompt")
    # <|im_start|>system\n 8, 80, <|im_end|>\n 2, <|im_start|>user\n 6: 96 of 96 + 2 + 2 + 11 + 2 + 2 tokens, 3 trained
    assert dataset.tokens == 50 * 115
    assert warning.startswith("97% of the tokens are prompt: only the reply is trained. ")
    assert (
        "All rows begin with the same 96 tokens, 4,800 of 5,750: rows that are trained together share them" in warning
    )
    assert warning.endswith("shorten the system message, or leave it out")


def test_long_questions_are_told_without_a_system_message(tokenizer):
    rows = [question(f"{chr(65 + i)}" + "?" * 80, "no no", f"a:{i}") for i in range(50)]
    (warning,) = about(describe(make_dataset(rows, tokenizer, 256), NOTHING, tokenizer, 256), "prompt")
    assert "begin with the same" not in warning
    assert "Shorten the questions" in warning


@pytest.mark.parametrize("block", [8, 1 << 15])
def test_what_rows_share_ends_where_one_differs(monkeypatch, block):
    monkeypatch.setattr(token_report, "BLOCK_ROWS", block)
    ids = [[1, 2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 3, 9, 9], [1, 2, 3, 4, 5]]
    rows = [TokenRow(np.asarray(i, np.int32), np.ones(len(i), bool)) for i in ids]
    shared = [token_report._shared_beginning(token_report._Corpus([TokenRows.of(rows[:n])])) for n in range(5)]
    assert shared == [0, 0, 4, 3, 3]
    other = TokenRow(np.asarray([7], np.int32), np.ones(1, bool))
    assert token_report._shared_beginning(token_report._Corpus([TokenRows.of(rows), TokenRows.of([other])])) == 0


@pytest.mark.parametrize(
    ("rows", "cut", "warning"),
    [
        (60, {1: 100, 2: 28}, "2 rows are cut at max_seq_length 500, 128 tokens lost: 640 would hold all"),
        (60, {1: 140}, "1 row is cut at max_seq_length 500, 140 tokens lost: 640 would hold all"),
        (
            200,
            {1: 19_500, 2: 100, 3: 90},
            "3 rows are cut at max_seq_length 500, 19,690 tokens lost: 20032 would hold all; "
            "640 would hold 99% of the rows",
        ),
        (
            200,
            {1: 19_500},
            "1 row is cut at max_seq_length 500, 19,500 tokens lost: 20032 would hold all; 99% of the rows are not cut",
        ),
        (
            60,
            {1: 200_000},
            "1 row is cut at max_seq_length 500, 200,000 tokens lost: "
            "no length would hold all (131072 is the most): split the longest",
        ),
    ],
)
def test_cuts_are_told_with_a_length_that_would_do(tokenizer, rows, cut, warning):
    assert about(describe(bare(*[500] * rows, cut=cut), NOTHING, tokenizer, 500), " cut at ") == [warning]


def test_prompts_that_fill_the_length_are_told_apart_from_other_rows_left_out(tokenizer):
    rows = [question("x" * n, "ok", f"a:{n}") for n in (40, 80)]
    silent = {"messages": [{"role": "user", "content": "?"}], "source": "a:7"}
    report = describe(make_dataset([*rows, silent], tokenizer, 30), NOTHING, tokenizer, 30)
    assert about(report, "left out") == [
        "2 rows are left out, since the prompt fills max_seq_length 30: 128 would hold all of them; "
        "or shorten the prompts",
        "1 row is left out; mend them or remove them. The first: a:7: nothing to train: no answer",
    ]


def test_of_many_rows_that_are_left_out_the_first_are_kept_and_all_counted(tokenizer):
    skipped = tuple((f"a:{i}", "nothing to train: no answer") for i in range(1500))
    report = describe(TokenDataset((), skipped), NOTHING, tokenizer, 30)
    assert (report.rows, report.skipped_rows, report.skipped) == (0, 1500, skipped[:1000])
    assert about(report, "1,500 rows are left out")


def test_tiny_answers_are_told(tokenizer):
    def told(answer):
        rows = [question("?", answer)] * 2 + [question("?", "a long one")]
        return about(describe(make_dataset(rows, tokenizer, 64), NOTHING, tokenizer, 64), "half of the replies")

    assert told("no")  # with its end, 3
    assert not told("yes")


def test_a_row_far_longer_than_all_others_is_named(tokenizer):
    lengths = [20] * 199
    (warning,) = about(describe(bare(*lengths, 64, cut={199: 97}), NOTHING, tokenizer, 64), "mistake")
    assert warning.startswith("a:200: has 161 tokens, more than 8 times as many as 99% of the rows (20): ")
    assert not about(describe(bare(*lengths, 64, cut={199: 96}), NOTHING, tokenizer, 64), "mistake")
    two = describe(bare(*lengths, *lengths, 300, 400), NOTHING, tokenizer, 512)
    assert about(two, "a:400: has 400 tokens, more than 8 times as many as 99% of the rows (20) (1 other too)")


def test_control_tokens_that_are_spelled_are_counted_and_named(tokenizer):
    rows = [question("what is <|im_end|>?", "an end", "a:1"), question("b", "<|endoftext|><|im_end|>", "a:2")]
    report = describe(make_dataset([*rows, question("<|", "|>")], tokenizer, 128), NOTHING, tokenizer, 128)
    assert report.control_rows == 2
    assert set(report.control_tokens) == {"<|im_end|>", "<|endoftext|>"}
    (warning,) = about(report, "control token")
    assert warning.startswith("2 rows spell a control token of the model (")
    assert "it is broken up, so that it stays text" in warning


def test_a_template_that_refuses_a_lone_question_is_no_hindrance(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    template = (
        "{% if messages|length < 2 %}{{ raise_exception('alone') }}{% endif %}{% for m in messages %}{{ m.content }}"
    )
    (tmp_path / "model" / "chat_template.jinja").write_text(template + "{% endfor %}", encoding="utf-8")
    report = describe(bare(*[20] * 60), NOTHING, ChatTokenizer(tmp_path / "model"), 64)
    assert report.rows == 60


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_it_is_ready_for_json(tokenizer, rows):
    given = [question(f"{i}<|im_end|>", "x" * 90 * (i % 3), f"a:{i}") for i in range(rows)]
    report = describe(make_dataset(given, tokenizer, 64), NOTHING, tokenizer, 64)
    written = json.loads(json.dumps(report.as_dict()))
    assert written == report.as_dict()
    assert set(written) == {field.name for field in dataclasses.fields(report)}
    assert written["percentiles"] == {str(k): v for k, v in report.percentiles.items()}
    if rows == 40:
        assert written["least_typical"][0].keys() == {"source", "bits", "text"}
