"""The loss of each validation row at each validation: written, read, cut, and read again after a crash."""

import json

import pytest

from qlora_core.runs.row_losses import as_line, forget_row_losses, read_row_losses

TOKENS = [3, 5, 2]


@pytest.fixture
def path(tmp_path):
    """A file of validations before the first step and at steps 4, 8 and 12."""
    path = tmp_path / "row_losses.jsonl"
    path.write_text("".join(as_line(step, [9.0 - step / 4, 5.25, 1 / 3], TOKENS) + "\n" for step in (0, 4, 8, 12)))
    return path


def steps(path):
    return [one.step for one in read_row_losses(path)]


def test_what_was_written_is_read(path):
    first, *_, last = read_row_losses(path)
    assert (first.step, last.step) == (0, 12)
    assert last.losses.tolist() == [6.0, 5.25, 0.333333]
    assert last.tokens.tolist() == TOKENS
    assert last.mean == pytest.approx((6.0 + 5.25 + 1 / 3) / 10, abs=1e-6)


def test_cut_at_any_byte_whole_lines_are_read_and_the_next_ones_after_it(path):
    """As a kill leaves it: a torn line is ended by the next writer."""
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        known = [0, 4, 8, 12][: sum(end - 1 <= size for end in ends)]  # a line without its end is whole already
        assert steps(path) == known, size
        path.write_bytes(whole[:size] + b"\n" + as_line(16, [1.0, 1.0, 1.0], TOKENS).encode() + b"\n")
        assert steps(path) == [*known, 16], size
        forget_row_losses(path, 4)
        assert steps(path) == known[:2], size
        assert path.read_bytes() == whole[: len(path.read_bytes())], size


def test_of_a_step_that_was_made_again_the_last_word_counts(path):
    with path.open("a") as file:
        file.write(as_line(8, [1.0, 2.0, 3.0], TOKENS) + "\n")
    assert steps(path) == [0, 4, 8, 12]
    assert read_row_losses(path)[2].losses.tolist() == [1.0, 2.0, 3.0]


def test_lines_that_are_something_else_are_passed_over(path):
    strange = [
        [],
        {"step": 1},
        {"step": 1, "losses": [1.0], "tokens": TOKENS},
        {"step": -1, "losses": [1.0], "tokens": [1]},
        {"step": 1, "losses": ["a", 1, 1], "tokens": TOKENS},
        {"step": 1, "losses": [1], "tokens": [0]},
    ]
    lines = "".join(json.dumps(line) + "\n" for line in strange)
    path.write_text(lines + path.read_text() + '{"step": NaN\n' + "[" * 9999)
    assert steps(path) == [0, 4, 8, 12]


def test_validations_of_other_rows_than_the_last_are_not_compared_with_it(path):
    with path.open("a") as file:
        file.write(as_line(16, [1.0, 2.0], [4, 4]) + "\n")
    assert steps(path) == [16]


def test_a_run_of_an_earlier_version_has_none(tmp_path):
    assert read_row_losses(tmp_path / "row_losses.jsonl") == []
    forget_row_losses(tmp_path / "row_losses.jsonl", 3)
    assert list(tmp_path.iterdir()) == []
