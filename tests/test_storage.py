"""Files are wholly there or not at all, whatever happens while they are written."""

import contextlib
import json
from pathlib import Path

import pytest

from qlora_core import storage
from qlora_core.storage import (
    MANIFEST,
    cache_directory,
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
