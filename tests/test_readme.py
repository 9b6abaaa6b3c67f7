"""The README's tables are made from the code; `python tests/test_readme.py` writes them anew."""

import json
import re
import sys
from pathlib import Path

from qlora_core.config import settings
from qlora_core.data.shapes import shape
from qlora_core.data.sources import DOCUMENTS, PACKED, TABLES

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- settings -->\n", "<!-- end of settings -->\n"


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


def test_settings_table_is_that_of_the_code():
    text = README.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == settings_table()


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
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2] if END in rest else rest
    README.write_text(before + BEGIN + settings_table() + END + after, encoding="utf-8")
    sys.exit(0)
