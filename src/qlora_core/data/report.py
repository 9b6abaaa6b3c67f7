"""What became of the sources: counts, findings and warnings. Knows nothing of how rows are made."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .records import Findings, Rejected


@dataclass
class DataReport:
    """What became of the sources.

    Every row is accounted for: read + passages + questions = train + validation + duplicates + near_duplicates_dropped
    + rejected + joined_lines.

    Attributes:
        sources: what was named.
        files: files that were read.
        documents: of those, documents.
        encodings: files in another encoding than UTF-8, `{encoding: files}`.
        recognised: files that are something else than their suffix says, and how they were read.
        read: rows read.
        joined_lines: lines of running text (page numbers and the like among them).
        passages: made of running text and documents.
        questions: rows added by the setting `question`.
        mended: texts that were repaired, by kind.
        mended_rows: some of them.
        debris: lines of running text left out: page numbers, running heads, front matter.
        duplicates: rows left out since an earlier one is the same.
        near_duplicates: rows that say nearly the same as an earlier one.
        patterned: rows that only seem to, since many are written to one pattern (see `duplicates.near_duplicates`).
        near_duplicates_dropped: of those, how many were left out because of `near_duplicates`.
        rejected: rows that cannot be used.
        skipped_files: files that were not used, or not to their end.
        personal_data: rows that seem to hold an e-mail address or a telephone number; they are kept.
        shapes: rows by shape.
        train, validation: rows written.
        own_split: whether files came with a split of their own.
        leakage: rows of validation that training knows: equal, nearly equal, of the same document.
        fact_sheets, rejected_facts: sheets of facts, and their rows that cannot be used.
        tokens: what the model will make of the rows (`TokenReport.as_dict()`), where it was asked.
        warnings: what should be looked at, each with a remedy.
        fingerprint: SHA-256 over the contents of all rows in order.
    """

    sources: list[str] = field(default_factory=list)
    files: int = 0
    documents: int = 0
    encodings: Counter[str] = field(default_factory=Counter)
    recognised: Findings = field(default_factory=Findings)
    read: int = 0
    joined_lines: int = 0
    passages: int = 0
    questions: int = 0
    mended: Counter[str] = field(default_factory=Counter)
    mended_rows: Findings = field(default_factory=Findings)
    debris: Findings = field(default_factory=Findings)
    duplicates: int = 0
    near_duplicates: int = 0
    patterned: int = 0
    near_duplicates_dropped: int = 0
    rejected: Findings = field(default_factory=Findings)
    skipped_files: Findings = field(default_factory=Findings)
    personal_data: Findings = field(default_factory=Findings)
    shapes: Counter[str] = field(default_factory=Counter)
    train: int = 0
    validation: int = 0
    own_split: bool = False
    leakage: dict[str, int] = field(default_factory=dict)
    fact_sheets: list[str] = field(default_factory=list)
    rejected_facts: Findings = field(default_factory=Findings)
    tokens: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    fingerprint: str = ""

    def add(self, part: DataReport) -> None:
        """Add the counts and findings of a part of the sources."""
        for name, value in vars(part).items():
            mine = getattr(self, name)
            if isinstance(mine, Findings):
                mine.extend(value)
            elif isinstance(mine, Counter):
                mine.update(value)
            elif isinstance(mine, int) and not isinstance(mine, bool):
                setattr(self, name, mine + value)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> DataReport:
        """The report that `write` wrote; what it does not know is left out."""
        report = cls()
        for name, mine in vars(report).items():
            value = saved.get(name, mine)
            if isinstance(mine, Findings) and isinstance(value, dict):
                value = Findings(value["count"], [Rejected(**listed) for listed in value["listed"]])
            setattr(report, name, Counter(value) if isinstance(mine, Counter) else value)
        return report

    def write(self, path: Path) -> None:
        """Write the report as `data_report.json` holds it."""
        path.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")

    def as_dict(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            name: asdict(value) if isinstance(value, Findings) else dict(value) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }

    def look_again(self) -> None:
        """Fill `warnings` from the counts."""
        total = self.train + self.validation
        found = []
        if leaking := self.leakage.get("equal", 0) + self.leakage.get("nearly_equal", 0):
            found.append(
                f"{leaking} of {self.validation} validation rows say what a training row says: the loss on them "
                "flatters. Take them out of your validation file, or let the split be made here."
            )
        if self.personal_data.count:
            found.append(
                f"Rows that seem to hold an e-mail address or a telephone number: {self.personal_data.count}. "
                "The model may repeat them; `personal_data` in the report lists them."
            )
        if lost := self.mended["lost characters"]:
            found.append(
                f"Texts with the sign U+FFFD, where characters were lost before the file was written: {lost}. "
                "Export them again, as UTF-8."
            )
        if self.near_duplicates > total / 2:
            found.append(
                f"{self.near_duplicates} of {total} rows say nearly what another one says, and stay "
                "on its side of the split. If they only repeat it: --near-duplicates drop."
            )
        if not self.validation and total > 1 and not self.own_split:
            found.append(
                "No row is held out, so that there is no validation loss: --val-fraction 0.05 or --val-rows 20."
            )
        self.warnings = found
