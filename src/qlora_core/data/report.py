"""What became of the sources: counts, findings and warnings. Knows nothing of how rows are made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import DataConfig
from .records import Findings, Rejected


@dataclass
class DataReport:
    """What became of the sources.

    Every row is accounted for: read + passages + questions = train + validation + duplicates + near_duplicates_dropped
    + several_answers_dropped + copies_dropped + copies_left_out + rejected + joined_lines.

    Attributes:
        sources: what was named.
        files: files that were read.
        documents: of those, documents.
        encodings: files in another encoding than UTF-8, `{encoding: files}`.
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
        questions_with_several: questions that are answered in several ways; `conflicting` names their rows.
        several_answers: their rows.
        several_answers_dropped: of those, how many were left out because of the setting of that name.
        copies_dropped: rows of a source left out since another holds its text, as the settings say.
        copies_left_out: rows not trained since a validation row from a copy of their source says the same.
        doubts: what was guessed, with the settings that decide it.
        unasked: documents and sections about which `question` asks nothing, and why.
        by_source: rows of each source, and how many of them are validated: `{source: [rows, validated]}`.
        unvalidated: large sources of which no row is validated, with what changes it.
        answered_passages: passages that a question of `question` repeats word for word.
        rejected: rows that cannot be used.
        skipped_files: files that were not used, or not to their end.
        personal_data: rows that seem to hold an e-mail address or a telephone number; they are kept.
        shapes: rows by shape.
        train, validation: rows written.
        own_split: whether files came with a split of their own.
        leakage: rows of validation that training knows: equal, nearly equal, of the same document.
        questions_on_both_sides: rows of validation whose question is trained with another answer.
        fact_sheets, rejected_facts: sheets of facts, and their rows that cannot be used.
        tokens: what the model will make of the rows (`TokenReport.as_dict()`), where it was asked.
        warnings: what should be looked at, each with a remedy.
        fingerprint: SHA-256 over the contents of all rows in order.
    """

    sources: list[str] = field(default_factory=list)
    files: int = 0
    documents: int = 0
    encodings: Counter[str] = field(default_factory=Counter)
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
    questions_with_several: int = 0
    several_answers: int = 0
    several_answers_dropped: int = 0
    conflicting: Findings = field(default_factory=Findings)
    copies_dropped: int = 0
    copies_left_out: int = 0
    doubts: Findings = field(default_factory=Findings)
    unasked: Findings = field(default_factory=Findings)
    by_source: dict[str, list[int]] = field(default_factory=dict)
    unvalidated: dict[str, str] = field(default_factory=dict)
    answered_passages: int = 0
    rejected: Findings = field(default_factory=Findings)
    skipped_files: Findings = field(default_factory=Findings)
    personal_data: Findings = field(default_factory=Findings)
    shapes: Counter[str] = field(default_factory=Counter)
    train: int = 0
    validation: int = 0
    own_split: bool = False
    leakage: dict[str, int] = field(default_factory=dict)
    questions_on_both_sides: int = 0
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

    def look_again(self, config: DataConfig) -> None:
        """Fill `warnings` from the counts; each remedy that is named changes what the settings are."""
        self.warnings = [*self._of_content(), *self._of_guesses(config), *self._of_the_split(config)]

    def _of_content(self) -> Iterator[str]:
        total = self.train + self.validation
        if leaking := self.leakage.get("equal", 0) + self.leakage.get("nearly_equal", 0):
            yield (
                f"{leaking} of {self.validation} validation rows say what a training row says: the loss on them "
                "flatters. Take them out of your validation file, or let the split be made here."
            )
        if self.personal_data.count:
            yield (
                f"Rows that seem to hold an e-mail address or a telephone number: {self.personal_data.count}. "
                "The model may repeat them; `personal_data` in the report lists them."
            )
        if lost := self.mended["lost characters"]:
            yield (
                f"Texts with the sign U+FFFD, where characters were lost before the file was written: {lost}. "
                "Export them again, as UTF-8."
            )
        if self.near_duplicates > total / 2:
            yield (
                f"{self.near_duplicates} of {total} rows say nearly what another one says, and stay "
                "on its side of the split. If they only repeat it: --near-duplicates drop."
            )

    def _of_guesses(self, config: DataConfig) -> Iterator[str]:
        if self.several_answers and config.several_answers == "keep":
            yield (
                f"{self.questions_with_several} questions have several different answers, in {self.several_answers} "
                "rows: the model learns none of them well. `conflicting` in the report lists them; mend them, or "
                "--several-answers first (or drop)."
            )
        if self.questions_on_both_sides:
            yield (
                f"{self.questions_on_both_sides} validation rows ask what is trained with another answer: the loss on "
                "them says little. Take them out of your validation file, or let the split be made here."
            )
        if self.copies_left_out:
            yield (
                f"{self.copies_left_out} rows are not trained, since a validation row from a copy of their source says "
                "the same. `doubts` in the report names the copies: keep one of them."
            )
        if self.doubts.count:
            yield f"Guesses that may be wrong: {self.doubts.count}; `doubts` in the report says how each is decided."
        if config.question and not self.questions and (self.documents or self.joined_lines):
            reason = next((found.reason for found in self.unasked), "there is no document with a title")
            yield f"--question asked nothing: {reason}."
        if self.answered_passages and config.asked_passages == "keep":
            yield (
                f"{self.answered_passages} passages are trained twice, as text and as the answer to a question: "
                "--asked-passages drop trains the answers alone."
            )

    def _of_the_split(self, config: DataConfig) -> Iterator[str]:
        for source, remedy in self.unvalidated.items():
            rows = self.by_source.get(source, [0])[0]
            yield (
                f"{source} gives {rows} of {self.train + self.validation} rows, and none of them is validated: the "
                f"validation loss says nothing of it. {remedy}"
            )
        if not self.validation and self.train > 1 and not self.own_split:
            if not config.val_fraction and not config.val_rows:
                remedy = "--val-fraction 0.05 or --val-rows 20."
            elif config.val_from == "replies":
                remedy = "there is none with a prompt and an answer. --val-from all"
            else:
                remedy = "all rows are passages of one document, which stay together. --no-keep-documents"
            yield f"No row is held out, so that there is no validation loss: {remedy}"
