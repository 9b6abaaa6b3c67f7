"""Settings as a file, a command and a program: what is written can be read, and means the same."""

import argparse
import runpy
import shlex
from pathlib import Path

import pytest

from qlora_core.config import RunConfig, from_flat, to_json
from qlora_core.errors import ConfigError
from qlora_core.jobs.planning import training_parser
from qlora_core.runs import recipes

CHOSEN = from_flat({
    "data": ("texts/um livro.md", "it's"), "model": "mistral-7b", "max_steps": 20, "learning_rate": 1e-5,
    "dropout": 0.05, "fresh": True, "repair": False, "projections": "qv",
})  # fmt: skip


def parsed(*words: str) -> RunConfig:
    return from_flat(recipes.settings_of(training_parser().parse_args(words)))


def test_a_command_gives_the_same_settings():
    words = shlex.split(recipes.to_command(CHOSEN))
    assert words[:4] == ["uv", "run", "qlora", "train"]
    assert parsed(*words[4:]) == CHOSEN


def test_a_file_gives_the_same_settings_and_a_flag_goes_before_it(tmp_path):
    path = tmp_path / "club.toml"
    path.write_text(recipes.to_toml(CHOSEN), encoding="utf-8")
    assert parsed("--config", str(path)) == CHOSEN
    assert parsed("--config", str(path), "--max-steps", "7") == from_flat({"max_steps": 7}, CHOSEN)
    (tmp_path / "config.json").write_text(to_json(CHOSEN), encoding="utf-8")
    assert parsed("--config", str(tmp_path / "config.json")) == CHOSEN


def test_a_program_plans_the_same(tmp_path, monkeypatch):
    import qlora_core

    asked = []
    monkeypatch.setattr(qlora_core, "plan", lambda *data, **given: asked.append(from_flat({"data": data, **given})))
    monkeypatch.setattr(qlora_core, "train", lambda plan: plan)
    (tmp_path / "program.py").write_text(recipes.to_python(CHOSEN), encoding="utf-8")
    runpy.run_path(str(tmp_path / "program.py"))
    assert asked == [CHOSEN]


def test_tables_and_dashes_of_other_programs_are_read(tmp_path):
    (tmp_path / "a.toml").write_text("[train]\nmax_steps = 3\n[lora]\nrank = 4\n", encoding="utf-8")
    assert recipes.read_settings(tmp_path / "a.toml") == {"max_steps": 3, "rank": 4}
    (tmp_path / "b.toml").write_text('max-steps = 3\ndata = ["x"]\n', encoding="utf-8")
    assert recipes.read_settings(tmp_path / "b.toml") == {"max_steps": 3, "data": ("x",)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_steps: 20\n", "not TOML"),
        ("iters = 20\n", "unknown setting iters"),
        ("rank = 0\n", "rank must be at least 1"),
        ("rank = 'many'\n", "rank must be a whole number"),
        ("\udcff", "not TOML"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, told):
    path = tmp_path / "a.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=told) as error:
        recipes.settings_of(argparse.Namespace(config_file=str(path)))
    assert str(path) in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot be read"):
        recipes.read_settings(Path("nothing.toml"))
