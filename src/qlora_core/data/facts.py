"""Fact sheets: rows that are asked after training, and never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .json_values import read_json_lines
from .records import UnusableError, composed
from .report import DataReport
from .text_files import BrokenOffError


def read_facts(sheets: Sequence[Path], report: DataReport) -> list[dict[str, Any]]:
    """Return the rows of every fact sheet, `{"fact", "expected": […], "questions": […]}`.

    Raises:
        DataError: a sheet does not exist.
    """
    facts = []
    for path in sheets:
        if not path.is_file():
            raise DataError(f"{path}: no such fact sheet (looked in {Path.cwd()}).")
        report.fact_sheets.append(str(path))
        try:
            for number, row in read_json_lines(path):
                try:
                    facts.append(_parse_fact(row))
                except ValueError as error:
                    report.rejected_facts.add(f"{path}:{number}", f"not a fact: {error}")
        except BrokenOffError as error:
            report.rejected_facts.add(str(path), str(error))
    return facts


def _parse_fact(row: Any) -> dict[str, Any]:
    if isinstance(row, UnusableError):
        raise row
    for name in ("expected", "questions"):
        value = row.get(name) if isinstance(row, dict) else None
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise ValueError(f'"{name}" must be a list of texts')
    lists = {name: [composed(item) for item in row[name]] for name in ("expected", "questions")}
    return {"fact": composed(str(row.get("fact", ""))), **lists}
