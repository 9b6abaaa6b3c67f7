"""The README's tables are made from the code; `python tests/test_readme.py` writes them anew."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qlora_core.config import settings
from qlora_core.data.shapes import shape
from qlora_core.data.sources import DOCUMENTS, PACKED, TABLES
from qlora_core.runs.presets import PRESETS

ROOT = Path(__file__).parent.parent
README, PORTUGUESE = ROOT / "README.md", ROOT / "README.pt.md"


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


TABLES_OF_THE_CODE = {"settings": settings_table, "presets": presets_table}


def parts(text: str, name: str) -> tuple[str, str, str]:
    """What comes before a table of the code, the table, and what comes after it."""
    before, _, rest = text.partition(f"<!-- {name} -->\n")
    table, end, after = rest.partition(f"<!-- end of {name} -->\n")
    assert end, f"{name} is not marked"
    return before, table, after


@pytest.mark.parametrize("name", TABLES_OF_THE_CODE)
def test_a_table_is_that_of_the_code(name):
    assert parts(README.read_text(encoding="utf-8"), name)[1] == TABLES_OF_THE_CODE[name]()


def test_its_rows_are_accepted():
    (rows,) = re.findall(r"```json\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    kinds = [next(iter(shape(json.loads(row), (), str).content)) for row in rows.splitlines()]
    assert kinds == ["messages"] * 6 + ["text"] * 2


def test_every_suffix_that_is_read_is_told():
    text = README.read_text(encoding="utf-8")
    synonyms = {".markdown", ".htm", ".xhtml"}
    assert [s for s in (*TABLES, *DOCUMENTS, *PACKED) if s not in synonyms and f"`{s}`" not in text] == []


def test_every_file_named_exists():
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:apps|src|data|tests|benchmarks)/[\w./-]*)`", text)) | set(
        re.findall(r"\]\((?!http|#)([^)]+)\)", text)
    )
    assert named
    assert [name for name in named if not (README.parent / name).exists()] == []


if __name__ == "__main__":
    for name, table in TABLES_OF_THE_CODE.items():
        before, _, after = parts(README.read_text(encoding="utf-8"), name)
        README.write_text(f"{before}<!-- {name} -->\n{table()}<!-- end of {name} -->\n{after}", encoding="utf-8")
