"""Runs are renamed, annotated and deleted; one that is trained, or that holds a link, is left alone."""

import os

import pytest

from qlora_core.cli import main
from qlora_core.errors import BusyError, RunError
from qlora_core.runs import keeping
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "runs" / "one"
    (path / "best").mkdir(parents=True)
    (path / "config.json").write_text("{}", encoding="utf-8")
    (path / "best" / "adapters.safetensors").write_bytes(bytes(1000))
    return Run(path)


def test_a_renamed_run_has_all_its_files(run):
    renamed = keeping.rename(run, "two")
    assert (renamed.name, renamed.exists, run.exists) == ("two", True, False)
    assert (renamed.best / "adapters.safetensors").read_bytes() == bytes(1000)
    assert keeping.rename(renamed, "two").path == renamed.path


@pytest.mark.parametrize("name", ["", "../outside", ".hidden", "a/b", "con", "x" * 65])
def test_a_name_that_is_not_valid_changes_nothing(run, name):
    with pytest.raises(RunError, match="cannot be a run's name"):
        keeping.rename(run, name)
    assert run.exists


def test_a_taken_name_is_refused(run):
    other = run.path.with_name("two")
    other.mkdir()
    with pytest.raises(RunError, match="exists already"):
        keeping.rename(run, "two")
    assert run.exists
    assert list(other.iterdir()) == []


def test_deleting_frees_what_it_says(run):
    expected = keeping.bytes_of(run)
    assert expected >= 1000
    assert keeping.delete(run) >= expected  # the lock is a file as well
    assert list(run.path.parent.iterdir()) == []


def test_what_is_trained_is_left_alone(run):
    with RunLock(run.path):
        for change in (lambda: keeping.rename(run, "two"), lambda: keeping.delete(run)):
            with pytest.raises(BusyError, match="being trained"):
                change()
    assert run.exists


def test_a_link_is_not_followed(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x", encoding="utf-8")
    (run.path / "link").symlink_to(outside)
    with pytest.raises(RunError, match="is a link"):
        keeping.delete(run)
    assert (outside / "precious").exists()


def test_a_note_is_kept_with_the_run(run):
    assert keeping.read_note(run) == ""
    keeping.write_note(run, "  os mesmos dados, mais épocas\n")
    assert keeping.read_note(keeping.rename(run, "two")) == "os mesmos dados, mais épocas"
    keeping.write_note(Run(run.path.with_name("two")), "")
    assert keeping.read_note(Run(run.path.with_name("two"))) == ""
    with pytest.raises(RunError, match="at most"):
        keeping.write_note(Run(run.path.with_name("two")), "x" * 3000)


def test_what_is_no_run_is_not_deleted(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="no such run"):
        keeping.delete(Run(tmp_path / "mine"))
    assert (tmp_path / "mine").is_dir()


def test_the_command_asks_before_it_deletes(run, capsys):
    given = ["runs", "--runs-dir", str(run.path.parent)]
    assert main([*given, "--delete", "one"]) == 1  # nobody is at a terminal here
    assert "give --yes" in capsys.readouterr().err
    assert run.exists
    assert main([*given, "--note", "one", "keep"]) == 0
    assert main([*given, "--rename", "one", "two"]) == 0
    assert main([*given, "--delete", "two", "--yes"]) == 0
    assert "Freed bytes" in capsys.readouterr().out
    assert main([*given, "--delete", "two", "--yes"]) == 1
    assert "two" in capsys.readouterr().err


def test_a_place_that_may_not_be_written_is_told_while_planning(plan, tmp_path, monkeypatch):
    access = os.access  # whoever runs the tests may write everywhere
    monkeypatch.setattr(os, "access", lambda path, how: how != os.W_OK | os.X_OK and access(path, how))
    with pytest.raises(RunError, match=r"cannot hold runs: .* may not be written. Name another directory"):
        plan(run="new")


def test_a_place_without_directories_of_ones_own_is_told_when_the_run_is_made(plan, monkeypatch):
    from qlora_core.runs import plan as planning

    def refuse(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    home, planned = plan(run="new")
    monkeypatch.setattr(planning, "make_directory", refuse)
    with pytest.raises(RunError, match=r"cannot hold runs: No such file or directory. Name another directory"):
        home.create(planned)
