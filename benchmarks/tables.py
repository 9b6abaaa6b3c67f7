"""The tables of docs/benchmarks.md and its translation from `benchmarks/results/*.json`, which `qlora bench` writes.

    uv run python benchmarks/tables.py            # writes them
    uv run python benchmarks/tables.py --print    # shows them

They stand between `<!-- bench -->` and `<!-- end of bench -->`; each file's machine and date are its heading.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path

from qlora_core.bench.report import caption, tables

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from marked import replaced  # noqa: E402

DOCUMENTS = {"en": ROOT / "docs/benchmarks.md", "pt": ROOT / "docs/pt/medicoes.md"}
PART = "bench"


def made(language: str, directory: Path = ROOT / "benchmarks" / "results") -> str:
    """Return the text between the marks."""
    parts = []
    for path in sorted(directory.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        parts += [textwrap.fill(f"{caption(results)}:", 120), *tables(results, language)]
    return "\n\n".join(parts) + "\n" if parts else ""


def main() -> int:
    """Write or show the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="show them, in English, and write nothing")
    if parser.parse_args().print:
        print(made("en"), end="")
        return 0
    for language, path in DOCUMENTS.items():
        path.write_text(replaced(path.read_text(encoding="utf-8"), PART, made(language)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
