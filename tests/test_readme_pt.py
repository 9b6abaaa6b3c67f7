"""README.pt.md says what README.md says: the same settings, commands, files, numbers and names, in Portuguese."""

import argparse
import json
import re
import shlex
import shutil
from itertools import pairwise

import pytest
from test_readme import PORTUGUESE, README, ROOT, parts

from qlora_core.cli import build_parser, main
from qlora_core.config import settings
from qlora_core.data.shapes import shape
from qlora_core.data.sources import DOCUMENTS, PACKED, TABLES
from qlora_core.jobs.planning import training_parser
from qlora_core.runs.presets import PRESETS

ENGLISH_TEXT, TEXT = (path.read_text(encoding="utf-8") for path in (README, PORTUGUESE))
OF_OTHERS = {"--no-group", "--extra", "--tokens", "--browser", "--check", "--strict", "--adapter-path"} | {
    "--examples", "--kills", "--cuts", "--disk-failures", "--power-cuts", "--damages", "--injections", "--races",
    "--soak-steps", "--signals", "--mutations", "--templates", "--names",
}  # fmt: skip
"""Flags of uv (two), of benchmarks (three), of ruff, of marimo and of mlx_lm; and those of the tests."""
FIRST_USER = "O caminho mais curto"
FOLDERS = "apps|src|data|tests|benchmarks|docs"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def table_rows(text: str) -> list[list[str]]:
    return [cells(line) for line in text.splitlines() if line.startswith("| `--")]


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "sim" if value else "não"
    if isinstance(value, tuple):
        return " ".join(value)
    return str(value)


def blocks(text: str) -> str:
    """The fenced and the indented lines, without fences and comments."""
    fenced = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL))
    indented = "\n".join(re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE))
    return re.sub(r" +# .*$", "", f"{fenced}\n{indented}", flags=re.MULTILINE)


def commands(text: str) -> list[str]:
    return [line for line in blocks(text).splitlines() if line.startswith(("uv run", "pip install"))]


def spans(text: str) -> set[str]:
    """What stands between backticks, without fenced blocks, and without examples of rows, which are translated."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose) if not span.startswith('{"expected"')}


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


def numbers(text: str) -> set[str]:
    """Numbers of the prose and its tables: no code, no names such as Qwen2 or x86-64, no table that code makes."""
    for table in ("settings", "presets", "bench"):
        before, _, after = parts(text, table)
        text = before + after
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    text = re.sub(r"^ {4}\S.*$|`[^`]+`|\]\([^)]*\)", " ", text, flags=re.MULTILINE)
    return set(re.findall(r"(?<![\w.,-])\d+(?:[.,\u00a0]\d+)*(?![\w-])", text))


def in_portuguese(number: str) -> str:
    """`1.5` to `1,5`; `1,500` to `1500`, and `15,000` with a space that does not break."""
    whole, point, rest = number.partition(".")
    digits = whole.replace(",", "")
    return (digits if len(digits) < 5 else whole.replace(",", "\u00a0")) + (f",{rest}" if point else "")


def test_its_settings_are_those_of_the_code():
    rows = table_rows(parts(TEXT, "settings")[1])
    assert [row[:2] for row in rows] == [[f"`{setting.flag}`", shown(setting.default)] for setting in settings()]


@pytest.mark.parametrize("setting", tuple(settings()), ids=lambda setting: setting.flag)
def test_a_setting_is_explained_with_choices_and_unit(setting):
    (help,) = [row[2] for row in table_rows(parts(TEXT, "settings")[1]) if row[0] == f"`{setting.flag}`"]
    assert len(help) > len(setting.help) / 2
    assert not setting.choices or f" Valores: {', '.join(setting.choices)}." in help
    assert bool(setting.unit) == help.endswith("]")


def test_its_presets_are_those_of_the_code():
    expected = []
    for size in ("large", "small"):
        columns = [getattr(preset, size) for preset in PRESETS.values()]
        for name in dict.fromkeys(name for column in columns for name in column):
            values = [column[name].value if name in column else "" for column in columns]
            texts = [f"{value:g}" if isinstance(value, float) else shown(value) for value in values]
            expected.append([f"`--{name.replace('_', '-')}`", *texts])
    table = parts(TEXT, "presets")[1]
    assert table_rows(table) == expected
    headings = [cells(line)[1:] for line in table.splitlines() if "`m1-16gb`" in line]
    assert headings == [[f"`{name}`" for name in PRESETS]] * 2


def test_it_has_the_commands_of_the_original():
    wanted = commands(ENGLISH_TEXT)
    assert len(wanted) > 5
    assert [command for command in wanted if command not in commands(TEXT)] == []


def test_it_has_the_sections_of_the_original_and_one_for_the_first_user():
    headings = [re.findall(r"^## (.*)$", text, re.MULTILINE) for text in (ENGLISH_TEXT, TEXT)]
    assert len(headings[1]) == len(headings[0]) + 1
    assert headings[1][0] == "Dois comandos"
    assert headings[1][1].startswith(FIRST_USER)


def test_it_links_back_to_the_original():
    assert [line for line in TEXT.splitlines() if line][1] == "*In English: [README.md](README.md)*"


def test_it_names_what_the_original_names():
    names = spans(ENGLISH_TEXT)
    assert len(names) > 200
    assert sorted(names - spans(TEXT)) == []


def test_it_has_the_numbers_of_the_original():
    wanted = {in_portuguese(number) for number in numbers(ENGLISH_TEXT)}
    assert {"57\u00a0000", "14\u00a0370", "14,50"} <= wanted
    assert sorted(wanted - numbers(TEXT)) == []


def test_every_table_has_as_many_rows_as_in_the_original():
    _, _, rest = TEXT.partition("\n## Os seus dados\n")
    counts = [sum(line.startswith("|") for line in text.splitlines()) for text in (ENGLISH_TEXT, rest)]
    assert counts[0] == counts[1] > 100


def test_every_file_named_exists():
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", TEXT))
    in_commands = set(re.findall(rf"(?<!\S)((?:{FOLDERS})/[\w./-]+)", "\n".join(commands(TEXT))))
    linked = set(re.findall(r"\]\((?!http|#)([^)]+)\)", TEXT))
    assert named
    assert in_commands
    assert linked == {"README.md", "docs/page.png", "docs/tokens.png", "docs/doctor.md", "docs/accuracy.md"}
    assert [name for name in named | in_commands | linked if not (ROOT / name).exists()] == []


def test_every_anchor_is_a_heading():
    anchors = set(re.findall(r"\]\(#([^)]+)\)", TEXT))
    headings = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    assert anchors
    assert anchors <= {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_subcommand_and_flag_exists():
    named = set(re.findall(r"\bqlora ([a-z]+)", TEXT))
    assert named == set(subcommands())
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", TEXT))
    known = set().union(*map(flags_of, subcommands().values()))
    assert sorted(flags - known) == sorted(OF_OTHERS)


def test_every_command_in_a_block_is_accepted():
    parsed = []
    for command in commands(TEXT):
        _, _, rest = command.rpartition("uv run ")
        words = shlex.split(rest)
        if words[0] == "qlora":
            parsed.append(build_parser().parse_args(words[1:]).command)
        elif "apps/train.py" in words and words[1] != "check":
            given = [word for word in words[words.index("apps/train.py") + 1 :] if word != "--"]
            parsed.append(getattr(training_parser().parse_args(given), "model", "built in"))
    assert {"data", "doctor", "generate", "evaluate", "compare", "mistral-7b-4bit", "built in"} <= set(parsed)


def test_its_rows_are_accepted():
    (rows,) = [block for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL) if '"messages"' in block]
    kinds = [next(iter(shape(json.loads(row), (), str).content)) for row in rows.splitlines()]
    assert kinds == ["messages"] * 6 + ["text"] * 2


def test_every_suffix_that_is_read_is_told():
    synonyms = {".markdown", ".htm", ".xhtml"}
    assert [s for s in (*TABLES, *DOCUMENTS, *PACKED) if s not in synonyms and f"`{s}`" not in TEXT] == []


def test_the_first_user_gets_the_report_that_is_told(tmp_path, monkeypatch, capsys):
    """The command of the section, on the sample book with two broken lines and the fact sheet of the section."""
    section = TEXT.partition(f"## {FIRST_USER}")[2].partition("\n## ")[0]
    (sheet,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    (command,) = [line for line in commands(section) if "facts.jsonl" in line]
    shutil.copytree(ROOT / "tests/data_book", tmp_path, dirs_exist_ok=True)
    with (tmp_path / "livro.jsonl").open("a", encoding="utf-8") as book:
        book.write('{"prompt": "Quem?", "completion": ""}\n{"prompt": "Quem?"\n')
    (tmp_path / "facts.jsonl").write_text(sheet, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command.removeprefix("uv run qlora "))) == 0
    printed = capsys.readouterr().out
    labels = [label for row in re.findall(r"^\| (`[A-Z].*?) \|", section, re.MULTILINE) for label in row.split(", ")]
    assert len(labels) == 11
    assert [label for label in labels if not re.search(rf"^{label.strip('`')} ", printed, re.MULTILINE)] == []
    assert "the completion is empty" in printed
    assert "not JSON" in printed
    assert {path.name for path in (tmp_path / "preparado").iterdir()} == {
        "train_data.jsonl", "val_data.jsonl", "data_report.json", "facts.jsonl"
    }  # fmt: skip
    assert "Quem foi Ilda Coutinho?" in "".join(p.read_text("utf-8") for p in (tmp_path / "preparado").iterdir())


def test_its_prose_is_no_wider_than_the_originals():
    lines = [line for line in TEXT.splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 125] == []
    assert not [pair for pair in pairwise(TEXT.splitlines()) if pair == ("", "")]
