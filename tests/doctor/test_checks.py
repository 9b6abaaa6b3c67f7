"""Checks in a row: how they are told, what is hidden, and what becomes of an error."""

from pathlib import Path

import pytest

from qlora_core.doctor import checks
from qlora_core.doctor.checks import Checks, Finding, NotTried, anonymous


@pytest.fixture
def made():
    """Checks, and the lines that they told."""
    told: list[str] = []
    found = Checks(told.append)
    found.told = told
    return found


def raising(error):
    def look():
        raise error

    return look


def test_a_check_is_a_line_with_its_remedy_below(made):
    made.make("speed", lambda: Finding("ok", "fast"))
    made.make("disk", lambda: Finding("warning", "nearly full", "make room"))
    assert [line.split() for line in made.told[0].splitlines()] == [["ok", "speed", "fast"]]
    assert [line.split() for line in made.told[1].splitlines()] == [
        ["warning", "disk", "nearly", "full"],
        ["→", "make", "room"],
    ]
    assert made.verdict() == "✓ Training works on this machine: 2 checks, none failed; 1 with a warning."


def test_an_error_is_a_failure_of_what_was_looked_at(made):
    made.make("speed", raising(ValueError("no such\nkernel")))
    made.make("resume", raising(NotTried("it did not learn")))
    assert [(check.state, check.value) for check in made.made] == [
        ("failed", "ValueError: no such kernel"),
        ("warning", "not tried: it did not learn"),
    ]
    assert made.verdict() == "✗ 1 of 2 checks failed: speed."


def test_what_is_tried_is_said_and_taken_back():
    said: list[str] = []
    Checks(lambda _: said.append("line"), said.append).make("speed", lambda: Finding("ok", "fast"))
    assert said == ["speed", "", "line"]


def test_ctrl_c_is_no_failure_of_a_check(made):
    with pytest.raises(KeyboardInterrupt):
        made.make("speed", raising(KeyboardInterrupt()))
    made.make("disk", lambda: Finding("ok", "large"))
    made.interrupted = True
    assert made.verdict() == "– Interrupted; of what was tried by then, nothing failed (1 checks)."


def test_an_object_holds_all_of_it(made):
    made.make("speed", lambda: Finding("failed", "slow", "buy"))
    assert made.as_dict() == {
        "checks": [{"name": "speed", "state": "failed", "value": "slow", "remedy": "buy"}],
        "failed": 1,
        "warnings": 0,
        "interrupted": False,
        "verdict": "✗ 1 of 1 checks failed: speed.",
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("in /home/marguerite/.cache/qlora", "in ~/.cache/qlora"),
        ("in /home/marguerite", "in ~"),
        ("in /home/marguerites/x", "in …/x"),
        ("in /scratch/marguerite", "in …/USER"),
        ("in /scratch/club/cache, 2 GB/s", "in …/cache, 2 GB/s"),
        ("marguerite is a name", "marguerite is a name"),
        ("lock of lunar-lander, held", "lock of HOST, held"),
        ("lunar-landers", "lunar-landers"),
    ],
)
def test_home_user_and_machine_are_hidden(monkeypatch, text, shown):
    monkeypatch.setattr(checks.Path, "home", lambda: Path("/home/marguerite"))
    monkeypatch.setattr(checks.getpass, "getuser", lambda: "marguerite")
    monkeypatch.setattr(checks.platform, "node", lambda: "lunar-lander")
    assert anonymous(text) == shown


def test_short_names_are_words(monkeypatch):
    """A user `mlx` or a machine `mac` would blacken half of the report."""
    monkeypatch.setattr(checks.getpass, "getuser", lambda: "mlx")
    monkeypatch.setattr(checks.platform, "node", lambda: "mac")
    assert anonymous("mlx on a mac") == "mlx on a mac"


def test_a_temporary_directory_is_hidden(made, tmp_path):
    made.hide(tmp_path, "TEMPORARY")
    made.make("llama", raising(OSError(f"{tmp_path}/runs/x: is full")))
    assert made.made[0].value == "OSError: TEMPORARY/runs/x: is full"
