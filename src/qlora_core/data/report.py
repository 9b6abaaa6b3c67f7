"""Results of reading the sources: counts, findings and warnings. Knows nothing of how rows are made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import DataConfig
from .columns import ANSWERED, MASKS, judges
from .records import Findings, Rejected

MANY = 8  # columns or marks that a warning names
MOST_LOST = 0.1  # share of the sources that may be unreadable; above it, preparing them has failed


@dataclass
class DataReport:
    """The result of reading the sources.

    Every row is accounted for: read + passages + questions + conversations = train + validation + test_rows +
    duplicates + near_duplicates_dropped + several_answers_dropped + copies_dropped + copies_left_out + rejected +
    marked + joined_lines + joined_messages.

    Attributes:
        sources: sources as they were named.
        licences: licences that data sets of the hub state.
        files: files that were read.
        documents: number of documents among the files.
        encodings: files in another encoding than UTF-8, `{encoding: files}`.
        recognised: files that are something else than their suffix says, and how they were read.
        read: rows read.
        joined_lines: lines of running text (page numbers and the like among them).
        joined_messages: rows that are one message of a conversation, or a tree of them.
        conversations: made of those.
        passages: made of running text and documents.
        questions: rows added by the setting `question`.
        mended: texts that were repaired, by kind.
        mended_rows: some of them.
        debris: lines of running text left out: page numbers, running heads, front matter.
        duplicates: rows left out since an earlier one is the same.
        near_duplicates: rows that say nearly the same as an earlier one.
        patterned: rows that only seem to, since many are written to one pattern (see `duplicates.near_duplicates`).
        near_duplicates_dropped: number of those left out because of `near_duplicates`.
        questions_with_several: questions that are answered in several ways; `conflicting` names their rows.
        several_answers: their rows.
        several_answers_dropped: number of those left out because of the setting of that name.
        copies_dropped: rows of a source left out since another holds its text, as the settings say.
        copies_left_out: rows not trained since a validation row from a copy of their source says the same.
        doubts: guesses, with the settings that decide them.
        unasked: documents and sections about which `question` asks nothing, and why.
        by_source: rows of each source, and how many of them are validated: `{source: [rows, validated]}`.
        unvalidated: large sources of which no row is validated, with what changes it.
        answered_passages: passages that a question of `question` repeats word for word.
        rejected: rows that cannot be used.
        unreadable: rejected rows that are not even JSON, or no row of a table.
        marked: rows that are left out since their author marked them so (`label` false, `weight` 0 and the like).
        marks: parts of rows that are marked as not to be trained, such as rejected answers; by the mark.
        guesses: assumptions that were made, with the number of rows.
        unused: columns and keys that hold content and are used for nothing, by what they stand beside and their names:
            `{"question notes": rows that have it}`; `unused_columns` tells more.
        unused_longer: number of those rows in which it is longer than the prompt.
        columns: names that the setting `columns` gives, with the rows that have them.
        test_rows: rows left out since they are for testing, as a column `split` or the key of their list says.
        bytes: size of all files.
        unread: bytes that could not be read, behind the place where a file breaks off.
        skipped_files: files that were not used, or not to their end.
        personal_data: rows that seem to hold an e-mail address or a telephone number; they are kept.
        shapes: rows by shape.
        train, validation: rows written.
        own_split: whether files came with a split of their own.
        leakage: rows of validation that training knows: equal, nearly equal, of the same document.
        questions_on_both_sides: rows of validation whose question is trained with another answer.
        fact_sheets, rejected_facts: sheets of facts, and their rows that cannot be used.
        tokens: the rows as tokens (`TokenReport.as_dict()`), if they were counted.
        warnings: things to look at, each with a remedy.
        fingerprint: SHA-256 over the contents of all rows in order.
    """

    sources: list[str] = field(default_factory=list)
    licences: list[str] = field(default_factory=list)
    files: int = 0
    documents: int = 0
    encodings: Counter[str] = field(default_factory=Counter)
    recognised: Findings = field(default_factory=Findings)
    read: int = 0
    joined_lines: int = 0
    joined_messages: int = 0
    conversations: int = 0
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
    unreadable: int = 0
    marked: Findings = field(default_factory=Findings)
    marks: Counter[str] = field(default_factory=Counter)
    guesses: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    unused_longer: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    test_rows: int = 0
    bytes: int = 0
    unread: int = 0
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
        """Return the report that `write` wrote; unknown keys are ignored."""
        report = cls()
        saved = {**saved, **_counted(saved.get("unused"))}
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
        """Return the report as a JSON object."""
        plain = {
            name: asdict(value) if isinstance(value, Findings) else dict(value) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }
        del plain["unused_longer"]
        return {**plain, "unused": [asdict(column) for column in self.unused_columns]}

    @property
    def unused_columns(self) -> list[Unused]:
        """Return columns that hold content and are used for nothing, those that most rows have first."""
        found = []
        for name, rows in self.unused.most_common():
            beside, _, column = name.partition(" ")
            longer = self.unused_longer[name]
            share = min(1.0, rows / max(self.read, 1))
            found.append(Unused(column, beside, rows, round(share, 4), longer, longer * 2 > rows))
        return found

    @property
    def left_out_as_copies(self) -> int:
        """Return the number of rows left out because a copy of their source says the same."""
        return self.copies_dropped + self.copies_left_out

    @property
    def lost_share(self) -> float:
        """Return the share that could not be read, of rows or bytes, whichever is larger, from 0 to 1."""
        return max(self.unreadable / max(self.read, 1), min(1.0, self.unread / max(self.bytes, 1)))

    def look_again(self, config: DataConfig) -> None:
        """Fill `warnings` from the counts; every remedy changes the current settings."""
        self.warnings = [
            *self._lost(),
            *self._left_aside(config.columns),
            *self._of_content(),
            *self._of_guesses(config),
            *self._of_the_split(config),
        ]

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

    def _lost(self) -> list[str]:
        found = []
        if self.unreadable or self.unread:
            rows = f"{self.unreadable} of {self.read} rows" if self.unreadable else ""
            parts = f"{self.unread:,} of {self.bytes:,} bytes" if self.unread else ""
            found.append(
                f"{' and '.join(filter(None, (rows, parts)))} could not be read; Rejected and Not read say where and "
                "why. Mend the file, or export it again."
            )
        if self.test_rows:
            found.append(
                f"{self.test_rows} rows say that they are for testing, and are neither trained nor validated on. If "
                "they are not: --no-own-split."
            )
        return found

    def _left_aside(self, columns: Sequence[str]) -> list[str]:
        """Return warnings about content of the rows that is not trained because it is unused or its author says so."""
        found = []
        if unused := self.unused_columns:
            names = "; ".join(column.described for column in unused[:MANY])
            more = f"; and {len(unused) - MANY} more" if len(unused) > MANY else ""
            remedies = " ".join(dict.fromkeys(column.remedy for column in unused[:MANY]))
            found.append(f"Columns with content that is used for nothing: {names}{more}. {remedies}")
        if self.marked.count:
            found.append(
                f"{self.marked.count} rows are left out since they are marked as not to be trained; Marked says which. "
                "If one is to be trained: take its mark out."
            )
        if self.marks:
            marks = "; ".join(f"{mark} ({count})" for mark, count in self.marks.most_common(MANY))
            found.append(f"Read, and not trained, as the rows are marked: {marks}.")
        found += [f"Taken to be so in {rows} rows: {guess}." for guess, rows in self.guesses.items()]
        missing = [pair for pair in columns if pair.partition("=")[2] not in self.columns]
        if missing and self.read:
            found.append(f"No row has the column that is named: --columns {' '.join(missing)}. See how it is written.")
        return found

    def _of_guesses(self, config: DataConfig) -> Iterator[str]:
        if self.several_answers and config.several_answers == "keep":
            yield (
                f"{_questions(self.questions_with_several)} several different answers, in {self.several_answers} "
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
                remedy = "all say nearly the same. Give rows of your own: a file validation.jsonl beside train.jsonl."
            yield f"No row is held out, so that there is no validation loss: {remedy}"


@dataclass(frozen=True)
class Unused:
    """A column, or a key beside a message's content, that holds content and is used for nothing.

    Attributes:
        column: its name; `messages[].name` for a key beside a message's content.
        beside: the content that it stands beside: "text", "messages" or "question".
        rows: number of rows that have it.
        share: share of all rows, from 0 to 1.
        longer_rows: number of rows in which it is longer than the prompt or, beside a text, than the text.
        longer_than_prompt: whether that is most of them.
    """

    column: str
    beside: str
    rows: int
    share: float
    longer_rows: int
    longer_than_prompt: bool

    @property
    def described(self) -> str:
        """Describe name, share and length in words."""
        share = f"{self.share:.0%}" if self.share >= 0.01 else f"{self.rows}"
        longer = f", longer than the {'text' if self.beside == 'text' else 'prompt'}" if self.longer_than_prompt else ""
        return f"`{self.column}` (in {share} of the rows{longer})"

    @property
    def choice(self) -> tuple[str, str] | None:
        """Return the setting that uses it if it belongs to the row; None if no setting does."""
        plain = self.column.strip().casefold()
        if plain in MASKS or "[" in self.column or self.beside == "messages" or judges(self.column):
            return None
        if plain in ANSWERED:
            return "columns", f"completion={self.column}"
        return "columns", f"{'prompt' if self.beside == 'text' else 'context'}={self.column}"

    @property
    def remedy(self) -> str:
        """Return what to do if it belongs to the row."""
        if self.column.strip().casefold() in MASKS:
            return (
                f"`{self.column}` has not one mark for each turn, and marks of tokens belong to the tokenizer that "
                'made them. Mark turns: {"role": "assistant", "content": "…", "train": false}.'
            )
        if "[" in self.column or (self.beside == "messages" and not judges(self.column)):
            return "What belongs to a conversation must stand in the content of one of its turns."
        if judges(self.column):
            return f"Rows that `{self.column}` calls bad are trained: take them out."
        if self.column.strip().casefold() in ANSWERED:
            return f"If that is the answer: --columns completion={self.column}."
        if self.beside == "text":
            return f"If that is a question that the text answers: --columns prompt={self.column} completion=text."
        return f"If the answer needs it: --columns context={self.column}."


def _questions(count: int) -> str:
    return f"{count} question has" if count == 1 else f"{count} questions have"


def _counted(unused: Any) -> dict[str, Counter[str]]:
    """Return the counts of a list of `Unused` in the form `as_dict` writes."""
    columns = [Unused(**column) for column in unused] if isinstance(unused, list) else []
    names = [(f"{column.beside} {column.column}", column) for column in columns]
    return {
        "unused": Counter({name: column.rows for name, column in names}),
        "unused_longer": Counter({name: column.longer_rows for name, column in names}),
    }
