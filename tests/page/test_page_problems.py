"""Problems in the reader's language, and the choice of runs to compare."""

import errno
import os
import re
import shutil

import pytest

from qlora_core import translations
from qlora_core.errors import RunError
from qlora_core.page import comparing, problems, results
from qlora_core.runs.plan import TrainingTracker


@pytest.mark.parametrize("number", sorted(problems._SYSTEM_WORDS))
def test_what_the_system_reports_is_told_in_portuguese(number, monkeypatch):
    monkeypatch.setattr(translations, "find_language", lambda: "pt")
    told = problems.words_of(OSError(number, os.strerror(number), "/a/place"))
    assert told.startswith("/a/place: ")
    assert os.strerror(number) not in told
    assert problems._SYSTEM_WORDS[number] not in told


def test_another_report_of_the_system_stays_as_it_is():
    assert problems.words_of(OSError(errno.ENOTEMPTY, "not empty", "x")) == f"[Errno {errno.ENOTEMPTY}] not empty: 'x'"


def test_a_place_for_runs_that_is_a_file_is_told_in_portuguese(tmp_path, monkeypatch):
    monkeypatch.setattr(translations, "find_language", lambda: "pt")
    (tmp_path / "file").write_text("")
    problem = problems.attempt(TrainingTracker(tmp_path / "file").find, "nothing")
    assert problem.message == f"nothing: não há tal treino em {tmp_path / 'file'}. Treinos: ainda nenhum."


def test_more_runs_than_colours_are_not_compared(tmp_path):
    chosen = {f"run-{number}": number < 9 for number in range(12)}
    with pytest.raises(RunError, match="9 runs are chosen: choose at most 8"):
        comparing.compared(TrainingTracker(tmp_path), chosen)


@pytest.mark.parametrize("file", ["config.json", "environment.json", "status.json", "summary.json", "metrics.jsonl"])
def test_one_damaged_run_hides_no_other(trained, tmp_path, file):
    for name in ("good", "torn"):
        shutil.copytree(trained.path, tmp_path / name)
    (tmp_path / "torn" / file).write_text("{torn", encoding="utf-8")
    tracker = TrainingTracker(tmp_path)
    assert {"good", "torn"} <= set(re.findall(r"good|torn", results.runs_overview(tracker).text))
    assert "good" in comparing.run_choice(tracker, ended=True).elements
