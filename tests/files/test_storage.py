"""Files are wholly there or not at all, whatever happens while they are written."""

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_core.errors import StorageError
from qlora_core.files import storage
from qlora_core.files.storage import (
    MANIFEST,
    cache_directory,
    clear_leftovers,
    discard,
    flush_directory,
    manifest_problem,
    publishing,
    replacing,
    write_json,
    write_text,
)


class PulledPlug(Exception):
    """What stands for a crash inside a block."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_in_utf8_with_line_feeds(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "first")
    write_text(path, "ção\nline\r\n")
    assert path.read_bytes() == "ção\nline\r\n".encode()
    assert names(path.parent) == ["file.txt"]


def test_json_is_readable_as_written(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1, None]}
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_the_old_file_is_seen_until_the_block_ends(tmp_path):
    path = tmp_path / "adapters.safetensors"
    path.write_text("old", encoding="utf-8")
    with replacing(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
        assert temporary.suffix == ".safetensors"  # writers of safetensors insist on it
        assert temporary.parent == path.parent  # or the rename would cross file systems
    assert path.read_text(encoding="utf-8") == "new"


def test_a_crash_inside_the_block_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with contextlib.suppress(PulledPlug), replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise PulledPlug
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["file.txt"]


def test_content_reaches_the_device_before_the_name_does(tmp_path, monkeypatch):
    path, seen = tmp_path / "file.txt", []
    monkeypatch.setattr(storage, "flush_to_disk", lambda _: seen.append(("file", path.exists())))
    monkeypatch.setattr(storage, "flush_directory", lambda where: seen.append((where, path.exists())))
    write_text(path, "text")
    assert seen == [("file", False), (tmp_path, True)]


def publish(directory: Path, **files: str) -> None:
    with publishing(directory) as temporary:
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")


def test_a_directory_appears_at_once_with_its_manifest(tmp_path):
    with publishing(tmp_path / "000200") as temporary:
        (temporary / "a").write_text("one", encoding="utf-8")
        assert not (tmp_path / "000200").exists()
    assert names(tmp_path / "000200") == ["a", MANIFEST]
    assert json.loads((tmp_path / "000200" / MANIFEST).read_text(encoding="utf-8"))["files"]["a"]["bytes"] == 3
    assert manifest_problem(tmp_path / "000200") is None
    assert names(tmp_path) == ["000200"]


def test_publishing_over_a_directory_replaces_all_of_it(tmp_path):
    publish(tmp_path / "d", a="old", b="old")
    publish(tmp_path / "d", a="new")
    assert names(tmp_path / "d") == ["a", MANIFEST]
    assert (tmp_path / "d" / "a").read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["d"]


def test_a_crash_while_publishing_leaves_the_old_directory_and_nothing_else(tmp_path):
    publish(tmp_path / "d", a="old")
    with contextlib.suppress(PulledPlug), publishing(tmp_path / "d") as temporary:
        (temporary / "a").write_text("half", encoding="utf-8")
        raise PulledPlug
    assert (tmp_path / "d" / "a").read_text(encoding="utf-8") == "old"
    assert manifest_problem(tmp_path / "d") is None
    assert names(tmp_path) == ["d"]


def test_a_failed_rename_puts_the_old_directory_back(tmp_path, monkeypatch):
    publish(tmp_path / "d", a="old")
    rename = Path.rename

    def failing(self, target):
        if self.suffix == ".tmp":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        publish(tmp_path / "d", a="new")
    assert (tmp_path / "d" / "a").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["d"]


# After a kill ----------------------------------------------------------------------------------------------------


def leave(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).mkdir(parents=True)
        (directory / name / "content").write_text(name, encoding="utf-8")


def test_leftovers_go_and_what_was_moved_aside_comes_back(tmp_path):
    gone, other = ended_process(), os.getppid()
    leave(
        tmp_path, "b", f".a.{gone}.old", f".a.{gone}.tmp", f".b.{gone}.old", f".c.{gone}.tmp", f".d.{other}.tmp", ".e"
    )
    (tmp_path / f".status.{gone}.tmp.json").write_text("{}", encoding="utf-8")
    clear_leftovers(tmp_path)
    assert names(tmp_path) == [f".d.{other}.tmp", ".e", "a", "b"]  # the one of a process that lives is left alone
    assert (tmp_path / "a" / "content").read_text(encoding="utf-8") == f".a.{gone}.old"
    assert (tmp_path / "b" / "content").read_text(encoding="utf-8") == "b"
    clear_leftovers(tmp_path, alone=True)
    assert names(tmp_path) == [".e", "a", "b"]
    clear_leftovers(tmp_path / "missing")


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    return child.pid


def test_a_directory_is_deleted_all_at_once_or_stays(tmp_path, monkeypatch):
    leave(tmp_path, "a", "b")
    discard(tmp_path / "a")
    assert names(tmp_path) == ["b"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refusing(errno.EIO))
        discard(tmp_path / "b")
    assert names(tmp_path / "b") == ["content"]


# What the device refuses -----------------------------------------------------------------------------------------


def refusing(code: int):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    return refuse


def test_what_cannot_be_written_is_told_with_place_room_and_remedy(tmp_path, monkeypatch):
    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(storage, "flush_to_disk", refusing(errno.ENOSPC))
    with pytest.raises(StorageError) as error:
        write_text(tmp_path / "file", "newer")
    assert re.fullmatch(
        rf"{tmp_path}/file: cannot be written: No space left on device \(ENOSPC\); 5 bytes wanted, [\d,]+ bytes free "
        r"there\. Make room there, then go on\.",
        str(error.value),
    )
    assert error.value.errno == errno.ENOSPC  # it is an OSError as well
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["file"]
    with pytest.raises(StorageError, match=r"directory: cannot be written: No space left on device"):
        publish(tmp_path / "directory", a="content")
    assert names(tmp_path) == ["file"]


def test_what_is_not_the_devices_fault_stays_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file") as temporary:
        temporary.write_bytes((tmp_path / "source").read_bytes())
    elsewhere = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/source")
    with pytest.raises(PermissionError, match="/elsewhere/source") as error, replacing(tmp_path / "file"):
        raise elsewhere
    assert error.value is elsewhere


def test_the_drives_own_cache_is_flushed_on_macos_where_it_can_be(tmp_path, monkeypatch):
    """What the call is, and what happens where a network drive does not know it; the call itself is not made here."""
    calls, answer = [], [None]

    def fcntl(_, command):
        calls.append(command)
        if answer[0]:
            raise OSError(answer[0], os.strerror(answer[0]))

    monkeypatch.setattr(storage.sys, "platform", "darwin")
    monkeypatch.setattr(storage.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(storage.fcntl, "fcntl", fcntl)
    monkeypatch.setattr(storage.os, "fsync", lambda _: calls.append("fsync"))
    for code, wanted in ((None, [51]), (errno.ENOTSUP, [51, "fsync"]), (errno.EINVAL, [51, "fsync"])):
        answer[0] = code
        flush_directory(tmp_path)
        assert calls == wanted
        calls.clear()
    answer[0] = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        flush_directory(tmp_path)
    assert calls == [51]


@pytest.mark.parametrize(("code", "told"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_drive_that_flushes_no_directories_is_good_enough(tmp_path, monkeypatch, code, told):
    monkeypatch.setattr(storage.os, "fsync", refusing(code))
    with pytest.raises(OSError, match=os.strerror(code)) if told else contextlib.nullcontext():
        flush_directory(tmp_path)


def test_what_need_not_last_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.os, "fsync", refusing(errno.EIO))
    write_json(tmp_path / "status.json", {"step": 1}, lasting=False)
    assert names(tmp_path) == ["status.json"]


# Damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda d: flip(d / "a"), "a differs from its manifest"),
        (lambda d: (d / "a").write_text("longer than before", encoding="utf-8"), "a differs from its manifest"),
        (lambda d: (d / "a").write_text("", encoding="utf-8"), "a differs from its manifest"),
        (lambda d: (d / "a").unlink(), "a is missing"),
        (lambda d: ((d / "a").unlink(), (d / "a").mkdir()), "a is a directory"),
        (lambda d: (d / MANIFEST).unlink(), "manifest.json is missing"),
        (lambda d: (d / MANIFEST).write_text('{"files"', encoding="utf-8"), "manifest.json cannot be read"),
        (lambda d: (d / MANIFEST).write_text("[]", encoding="utf-8"), "manifest.json cannot be read"),
        (lambda d: (d / MANIFEST).write_text("{}", encoding="utf-8"), "manifest.json cannot be read"),
    ],
)
def test_damage_is_found_and_named(tmp_path, damage, problem):
    publish(tmp_path / "d", a="content", b="other")
    damage(tmp_path / "d")
    assert manifest_problem(tmp_path / "d").startswith(problem)


def test_the_cache_has_a_place_of_the_systems_and_an_override(monkeypatch, tmp_path):
    monkeypatch.delenv("QLORA_CACHE", raising=False)
    assert cache_directory().name == "qlora-notebook"
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.setenv("QLORA_CACHE", "~/elsewhere")
    assert cache_directory() == Path.home() / "elsewhere"
