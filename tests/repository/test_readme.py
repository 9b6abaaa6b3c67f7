"""README.md and the English documents: their tables are made from the code, and what they name exists.

`python tests/repository/test_readme.py` writes the tables anew.
"""

import ast
import dataclasses
import importlib
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_imports import ORDER

from qlora_core.config import settings
from qlora_core.data.shapes import shape
from qlora_core.data.sources import DOCUMENTS, TABLES
from qlora_core.data.text_files import PACKED
from qlora_core.exports.formats import FORMATS, ExportChoices
from qlora_core.gguf.families import family_table
from qlora_core.runs.presets import PRESETS
from qlora_core.translations import catalogue

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from marked import replaced, split  # noqa: E402

README, PORTUGUESE = ROOT / "README.md", ROOT / "README.pt.md"
SETTINGS = ROOT / "docs/settings.md"
TRANSLATIONS = {
    "README.md": "README.pt.md",
    "CONTRIBUTING.md": "docs/pt/contribuir.md",
    "docs/architecture.md": "docs/pt/arquitetura.md",
    "docs/benchmarks.md": "docs/pt/medicoes.md",
    "docs/commands.md": "docs/pt/comandos.md",
    "docs/data.md": "docs/pt/dados.md",
    "docs/evaluation.md": "docs/pt/avaliacao.md",
    "docs/exports.md": "docs/pt/exportacoes.md",
    "docs/from-the-notebook.md": "docs/pt/do-notebook.md",
    "docs/library.md": "docs/pt/biblioteca.md",
    "docs/models.md": "docs/pt/modelos.md",
    "docs/page.md": "docs/pt/pagina.md",
    "docs/reliability.md": "docs/pt/fiabilidade.md",
    "docs/runs.md": "docs/pt/treinos.md",
    "docs/settings.md": "docs/pt/opcoes.md",
    "docs/several-devices.md": "docs/pt/varios-dispositivos.md",
}
"""Each page and its translation."""
ENGLISH_ONLY = ("docs/accuracy.md", "docs/doctor.md", "docs/scaling.md")
PORTUGUESE_ONLY = ("docs/pt/caminho.md",)
ENGLISH = (*TRANSLATIONS, *ENGLISH_ONLY)
EVERY_PAGE = (*ENGLISH, *TRANSLATIONS.values(), *PORTUGUESE_ONLY)
FOLDERS = "apps|src|data|tests|benchmarks|docs|scripts"
WIDEST = 125


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def settings_table() -> str:
    lines = ["| flag | default | |", "|---|---|---|"]
    for setting in settings():
        default = setting.default
        shown = " ".join(default) if isinstance(default, tuple) else str(default)
        if isinstance(default, bool):
            shown = "yes" if default else "no"
        choices = f" One of {', '.join(setting.choices)}." if setting.choices else ""
        unit = f" [{setting.unit}]" if setting.unit else ""
        lines.append(f"| `{setting.flag}` | {shown} | {setting.help}{unit}{choices} |")
    return "\n".join(lines) + "\n"


def presets_table() -> str:
    """A row a setting, a column a preset; the reasons stand in `presets.py` and are printed with the preset."""
    lines = []
    for size, title in (("large", "3B parameters and more (meant for Mistral-7B)"), ("small", "smaller models")):
        columns = [getattr(preset, size) for preset in PRESETS.values()]
        names = dict.fromkeys(name for column in columns for name in column)
        lines += [f"| {title} | {' | '.join(f'`{name}`' for name in PRESETS)} |", "|---|" + "---|" * len(PRESETS)]
        for name in names:
            cells = [_shown(column[name].value) if name in column else "" for column in columns]
            lines.append(f"| `--{name.replace('_', '-')}` | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return (
        ("yes" if value else "no")
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


CHOICES = {"bits": "--bits", "type": "--type", "with_base": "--with-base", "strict": "--strict"}
NEEDS = {"en": ("the base", "nothing"), "pt": ("o modelo de base", "nada")}
LIMITS_IN_PORTUGUESE = {
    "llama": "nenhuma camada com janela deslizante",
    "mistral": "uma janela deslizante em todas as camadas não se aplica, como no mlx-lm; só em algumas: recusado",
    "smollm3": "uma em cada 4 camadas sem embedding rotativo, e mais nenhuma",
    "gemma2": "query_pre_attn_scalar como nos modelos da Google",
    "gemma3_text": "query_pre_attn_scalar como nos modelos da Google; dos que também veem, só o modelo de texto",
    "phi3": "os fatores longos do LongRoPE em todos os comprimentos, como calcula o mlx-lm; sem janela deslizante",
}


def formats_table(language: str) -> str:
    """A row a format: what it is for, what it needs beside it, who opens it again, its choices."""
    known = catalogue(language)
    lines = [
        {
            "en": "| `--to` | what for | needs beside it | opened again by | choices |",
            "pt": "| `--to` | para quê | precisa ao lado de | aberto de novo por | escolhas |",
        }[language],
        "|---|---|---|---|---|",
    ]
    readers = {"program": "mlx-lm", "peft": "transformers", "llama.cpp": "llama.cpp"}
    for name, form in FORMATS.items():
        choices = " ".join(f"`{flag}`" for choice, flag in CHOICES.items() if choice in form.takes)
        needs = NEEDS[language][0 if form.needs_base else 1]
        purpose = known.get(form.purpose, form.purpose)
        lines.append(f"| `{name}` | {purpose} | {needs} | {readers[form.reader]} | {choices} |")
    return "\n".join(lines) + "\n"


def families_table(language: str) -> str:
    """A row a family that llama.cpp's formats can be written for."""
    heading = {
        "en": "| `model_type` | models | in llama.cpp | rotary scaling | limits |",
        "pt": "| `model_type` | modelos | no llama.cpp | escala rotativa | limites |",
    }[language]
    lines = [heading, "|---|---|---|---|---|"]
    for row in family_table():
        limits = LIMITS_IN_PORTUGUESE.get(row["model_type"], "") if language == "pt" else row["limits"]
        shown = (row["models"], f"`{row['architecture']}`", row["scaling"], limits)
        lines.append(f"| `{row['model_type']}` | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


EXPORTS, EXPORTACOES = ROOT / "docs/exports.md", ROOT / "docs/pt/exportacoes.md"
TABLES_OF_THE_CODE = {
    (SETTINGS, "settings"): settings_table,
    (SETTINGS, "presets"): presets_table,
    (EXPORTS, "formats"): lambda: formats_table("en"),
    (EXPORTS, "families"): lambda: families_table("en"),
    (EXPORTACOES, "formats"): lambda: formats_table("pt"),
    (EXPORTACOES, "families"): lambda: families_table("pt"),
}


def links(page: str) -> list[tuple[str, str]]:
    """The file, from the root, and the anchor of each link of a page within the project."""
    found = []
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text_of(page)):
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        found.append((path.resolve().relative_to(ROOT.resolve()).as_posix(), anchor))
    return found


def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def names_of_code(text: str) -> set[str]:
    """Dotted names of the package: `runs.plan.TrainingTracker`."""
    spans = re.findall(r"`([a-z_]+(?:\.\w+)+)`", text)
    return {name for name in spans if name.partition(".")[0] in ORDER and not name.endswith((".json", ".py"))}


def is_there(name: str) -> bool:
    """Whether a dotted name is that of a module, or of what one defines or hands on."""
    names = name.split(".")
    for length in range(len(names), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(("qlora_core", *names[:length])))
        except ModuleNotFoundError:
            continue
        for attribute in names[length:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@pytest.mark.parametrize(("page", "name"), TABLES_OF_THE_CODE)
def test_a_table_is_that_of_the_code(page, name):
    assert split(page.read_text(encoding="utf-8"), name)[1] == TABLES_OF_THE_CODE[page, name]()


def test_every_limit_of_a_family_is_translated():
    assert {row["model_type"] for row in family_table() if row["limits"]} == LIMITS_IN_PORTUGUESE.keys()


def test_every_choice_of_an_export_has_its_flag():
    assert {field.name for field in dataclasses.fields(ExportChoices)} == CHOICES.keys()


@pytest.mark.parametrize(("readme", "most"), [(README, 180), (PORTUGUESE, 190)])
def test_a_readme_is_read_in_one_go(readme, most):
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= most


def test_every_page_is_known_and_has_its_translation():
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == {page for page in EVERY_PAGE if page.startswith("docs/")}
    assert [page for page in EVERY_PAGE if not (ROOT / page).is_file()] == []


@pytest.mark.parametrize(("readme", "pages"), [("README.md", ENGLISH), ("README.pt.md", TRANSLATIONS.values())])
def test_a_readme_leads_to_every_page(readme, pages):
    assert set(pages) - {readme} <= {file for file, _ in links(readme)}


def test_every_page_leads_back_and_to_its_translation():
    for english, portuguese in TRANSLATIONS.items():
        assert (portuguese, "") in links(english), english
        assert (english, "") in links(portuguese), portuguese
        if english != "README.md":
            assert ("README.md", "") in links(english), english
            assert ("README.pt.md", "") in links(portuguese), portuguese


def test_its_rows_are_accepted():
    (rows,) = re.findall(r"```json\n(.*?)```", text_of("docs/data.md"), re.DOTALL)
    kinds = [next(iter(shape(json.loads(row), (), str).content)) for row in rows.splitlines()]
    assert kinds == ["messages"] * 6 + ["text"] * 2
    (row,) = re.findall(r"```json\n(.*?)```", text_of("README.md"), re.DOTALL)
    assert row in rows


def test_every_suffix_that_is_read_is_told():
    text = text_of("docs/data.md")
    synonyms = {".markdown", ".htm", ".xhtml"}
    assert [s for s in (*TABLES, *DOCUMENTS, *PACKED) if s not in synonyms and f"`{s}`" not in text] == []


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_every_file_named_exists(page):
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text_of(page))) | {file for file, _ in links(page)}
    assert named or page in ENGLISH_ONLY
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_every_anchor_is_a_heading(page):
    assert [(file, anchor) for file, anchor in links(page) if anchor and anchor not in anchors(file)] == []


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_every_name_of_the_code_exists(page):
    assert [name for name in sorted(names_of_code(text_of(page))) if not is_there(name)] == []


@pytest.mark.parametrize(("page", "least"), [("docs/architecture.md", 25), ("docs/from-the-notebook.md", 15)])
def test_pages_about_the_code_name_it(page, least):
    assert len(names_of_code(text_of(page))) >= least


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_prose_is_no_wider_than_a_screen(page):
    lines = [line for line in text_of(page).splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > WIDEST] == []
    assert not [pair for pair in pairwise(text_of(page).splitlines()) if pair == ("", "")]


def test_the_results_of_the_readme_are_among_those_measured():
    results = re.sub(r"`[^`]+`|SmolLM2-135M|Mistral-7B|H100", " ", text_of("README.md").partition("\n## Results\n")[2])
    table = [line for line in results.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    figures = set(re.findall(r"\d+(?:[.,]\d+)*", "\n".join(table)))
    measured = set(re.findall(r"\d+(?:[.,]\d+)*", text_of("docs/benchmarks.md")))
    assert len(figures) > 25
    assert sorted(figures - measured) == []


def test_every_script_says_what_it_writes():
    """Each program of "What programs write" names the documents that it writes, and is there."""
    section = text_of("CONTRIBUTING.md").partition("## What programs write")[2].partition("\n## ")[0]
    scripts = re.findall(r"uv run python (\S+)", section)
    assert len(scripts) == 5
    for script in scripts:
        assert ast.get_docstring(ast.parse(text_of(script))), script


if __name__ == "__main__":
    for (page, name), table in TABLES_OF_THE_CODE.items():
        page.write_text(replaced(page.read_text(encoding="utf-8"), name, table()), encoding="utf-8")
