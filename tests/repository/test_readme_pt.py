"""Each Portuguese page says what the English one says: the same settings, commands, numbers and names."""

import argparse
import json
import re
import shlex
import shutil

import pytest
from test_readme import EVERY_PAGE, FOLDERS, PORTUGUESE, PORTUGUESE_ONLY, ROOT, TRANSLATIONS, split, text_of

from qlora_core.cli import build_parser, main
from qlora_core.config import settings
from qlora_core.data.shapes import shape
from qlora_core.data.sources import DOCUMENTS, TABLES
from qlora_core.data.text_files import PACKED
from qlora_core.jobs.planning import training_parser
from qlora_core.runs.presets import PRESETS

PAGES = list(TRANSLATIONS.items())
ENGLISH_TEXT = "\n".join(text_of(page) for page in TRANSLATIONS)
TEXT = "\n".join(text_of(page) for page in (*TRANSLATIONS.values(), *PORTUGUESE_ONLY))
OF_OTHERS = {"--no-group", "--extra", "--tokens", "--browser", "--check", "--adapter-path"} | {
    "--over", "--output-hostfile",
    "--examples", "--kills", "--cuts", "--disk-failures", "--power-cuts", "--damages", "--injections", "--races",
    "--soak-steps", "--signals", "--mutations", "--templates", "--names",
}  # fmt: skip
"""Flags of uv (two), of benchmarks (three), of ruff, of marimo, of mlx_lm and of mlx (two); and those of the tests."""
FIRST_USER = "O caminho mais curto"
of_each_page = pytest.mark.parametrize(("english", "portuguese"), PAGES, ids=list(TRANSLATIONS.values()))


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
    """Numbers of the prose and its tables: no code, no names (Qwen2, x86-64, Mistral 0.1), no table that code makes."""
    for table in ("settings", "presets", "bench", "imports", "formats", "families"):
        if f"<!-- {table} -->" in text:
            before, _, after = split(text, table)
            text = before + after
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    text = re.sub(r"^ {4}\S.*$|`[^`]+`|\]\([^)]*\)", " ", text, flags=re.MULTILINE)
    text = re.sub(r"Mistral v?\d\.\d", " ", text)
    return set(re.findall(r"(?<![\w.,-])\d+(?:[.,\u00a0]\d+)*(?![\w-])", text))


def in_portuguese(number: str) -> str:
    """`1.5` to `1,5`; `1,500` to `1500`, and `15,000` with a space that does not break."""
    whole, point, rest = number.partition(".")
    digits = whole.replace(",", "")
    return (digits if len(digits) < 5 else whole.replace(",", "\u00a0")) + (f",{rest}" if point else "")


def test_its_settings_are_those_of_the_code():
    rows = table_rows(split(TEXT, "settings")[1])
    assert [row[:2] for row in rows] == [[f"`{setting.flag}`", shown(setting.default)] for setting in settings()]


@pytest.mark.parametrize("setting", tuple(settings()), ids=lambda setting: setting.flag)
def test_a_setting_is_explained_with_choices_and_unit(setting):
    (help,) = [row[2] for row in table_rows(split(TEXT, "settings")[1]) if row[0] == f"`{setting.flag}`"]
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
    table = split(TEXT, "presets")[1]
    assert table_rows(table) == expected
    headings = [cells(line)[1:] for line in table.splitlines() if "`m1-16gb`" in line]
    assert headings == [[f"`{name}`" for name in PRESETS]] * 2


@of_each_page
def test_it_has_the_commands_of_the_original(english, portuguese):
    there = commands(text_of(portuguese))
    assert [command for command in commands(text_of(english)) if command not in there] == []


def test_there_are_commands_to_compare():
    assert len(commands(ENGLISH_TEXT)) > 15


@of_each_page
def test_it_has_the_sections_of_the_original(english, portuguese):
    counts = [len(re.findall(r"^##+ ", text_of(page), re.MULTILINE)) for page in (english, portuguese)]
    assert counts[1] == counts[0] + (portuguese == "README.pt.md")  # which has one for the first user


def test_the_first_user_has_a_section():
    headings = re.findall(r"^## (.*)$", PORTUGUESE.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Dois comandos"
    assert headings[1].startswith(FIRST_USER)
    assert "docs/pt/caminho.md" in PORTUGUESE.read_text(encoding="utf-8")


def test_it_links_back_to_the_original():
    lines = PORTUGUESE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line][1] == "*In English: [README.md](README.md)*"


@of_each_page
def test_it_names_what_the_original_names(english, portuguese):
    assert sorted(spans(text_of(english)) - spans(text_of(portuguese))) == []


def test_there_are_names_to_compare():
    assert len(spans(ENGLISH_TEXT)) > 300


@of_each_page
def test_it_has_the_numbers_of_the_original(english, portuguese):
    wanted = {in_portuguese(number) for number in numbers(text_of(english))}
    assert sorted(wanted - numbers(text_of(portuguese))) == []


def test_there_are_numbers_to_compare():
    wanted = {in_portuguese(number) for number in numbers(ENGLISH_TEXT)}
    assert {"57\u00a0000", "14\u00a0370", "14,50"} <= wanted


@of_each_page
def test_every_table_has_as_many_rows_as_in_the_original(english, portuguese):
    counts = [sum(line.startswith("|") for line in text_of(page).splitlines()) for page in (english, portuguese)]
    assert counts[0] == counts[1]


def test_there_are_rows_to_compare():
    assert sum(line.startswith("|") for line in ENGLISH_TEXT.splitlines()) > 300


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_every_file_in_a_command_exists(page):
    named = set(re.findall(rf"(?<!\S)((?:{FOLDERS})/[\w./-]+)", "\n".join(commands(text_of(page)))))
    assert [name for name in named if not (ROOT / name).exists()] == []


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
    (rows,) = re.findall(r"```json\n(.*?)```", text_of("docs/pt/dados.md"), re.DOTALL)
    kinds = [next(iter(shape(json.loads(row), (), str).content)) for row in rows.splitlines()]
    assert kinds == ["messages"] * 6 + ["text"] * 2
    (row,) = re.findall(r"```json\n(.*?)```", text_of("README.pt.md"), re.DOTALL)
    assert row in rows


def test_every_suffix_that_is_read_is_told():
    synonyms, text = {".markdown", ".htm", ".xhtml"}, text_of("docs/pt/dados.md")
    assert [s for s in (*TABLES, *DOCUMENTS, *PACKED) if s not in synonyms and f"`{s}`" not in text] == []


def test_the_first_user_gets_the_report_that_is_told(tmp_path, monkeypatch, capsys):
    """The command of the page for the first user, on the sample book with two broken lines and its fact sheet."""
    section = text_of("docs/pt/caminho.md")
    assert section.startswith(f"# {FIRST_USER}")
    (sheet,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    (command,) = [line for line in commands(section) if "facts.jsonl" in line]
    shutil.copytree(ROOT / "tests/data/data_book", tmp_path, dirs_exist_ok=True)
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
