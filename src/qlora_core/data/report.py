"""Results of reading the sources: counts, findings and warnings. Knows nothing of how rows are made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..translations import Sentence, from_record
from .columns import ANSWERED, MASKS, judges
from .enough_rows import rows_to_hold_out, uncertainty
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
        said = [from_record(record) for record in saved.get("warnings_said") or ()]
        if said == report.warnings:  # as they are in English: to be told in any language
            report.warnings = said
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
        said = [warning.as_record() for warning in self.warnings if isinstance(warning, Sentence)]
        return {**plain, "unused": [asdict(column) for column in self.unused_columns], "warnings_said": said}

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
            yield Sentence(
                "{count} of {all} validation rows say what a training row says: the loss on them flatters. Take them "
                "out of your validation file, or let the split be made here.", count=leaking, all=self.validation,
            )  # fmt: skip
        if self.personal_data.count:
            yield Sentence(
                "Rows that seem to hold an e-mail address or a telephone number: {count}. The model may repeat them; "
                "`personal_data` in the report lists them.", count=self.personal_data.count,
            )  # fmt: skip
        if lost := self.mended["lost characters"]:
            yield Sentence(
                "Texts with the sign U+FFFD, where characters were lost before the file was written: {count}. Export "
                "them again, as UTF-8.", count=lost,
            )  # fmt: skip
        if self.near_duplicates > total / 2:
            yield Sentence(
                "{count} of {all} rows say nearly what another one says, and stay on its side of the split. If they "
                "only repeat it: --near-duplicates drop.", count=self.near_duplicates, all=total,
            )  # fmt: skip

    def _lost(self) -> list[str]:
        found = []
        if self.unreadable or self.unread:
            rows = Sentence("{count} of {all} rows", count=self.unreadable, all=self.read)
            parts = Sentence("{count} of {all} bytes", count=f"{self.unread:,}", all=f"{self.bytes:,}")
            both = Sentence("{rows} and {bytes}", rows=rows, bytes=parts)
            lost = both if self.unreadable and self.unread else rows if self.unreadable else parts
            found.append(
                Sentence(
                    "{lost} could not be read; Rejected and Not read say where and why. Mend the file, or export it "
                    "again.", lost=lost,
                )
            )  # fmt: skip
        if self.test_rows:
            found.append(
                Sentence(
                    "{count} rows say that they are for testing, and are neither trained nor validated on. If they are "
                    "not: --no-own-split.", count=self.test_rows,
                )
            )  # fmt: skip
        return found

    def _left_aside(self, columns: Sequence[str]) -> list[str]:
        """Return warnings about content of the rows that is not trained because it is unused or its author says so."""
        found = []
        if unused := self.unused_columns:
            more = [Sentence("and {count} more", count=len(unused) - MANY)] if len(unused) > MANY else []
            names = Sentence.of_parts("; ", [*(column.described for column in unused[:MANY]), *more])
            remedies = Sentence.of_parts(" ", dict.fromkeys(column.remedy for column in unused[:MANY]))
            found.append(
                Sentence("Columns with content that is used for nothing: {names}. {remedies}", names=names,
                         remedies=remedies)
            )  # fmt: skip
        if self.marked.count:
            found.append(
                Sentence(
                    "{count} rows are left out since they are marked as not to be trained; Marked says which. If one "
                    "is to be trained: take its mark out.", count=self.marked.count,
                )
            )  # fmt: skip
        if self.marks:
            marks = "; ".join(f"{mark} ({count})" for mark, count in self.marks.most_common(MANY))
            found.append(Sentence("Read, and not trained, as the rows are marked: {marks}.", marks=marks))
        found += [
            Sentence("Taken to be so in {rows} rows: {guess}.", rows=rows, guess=guess)
            for guess, rows in self.guesses.items()
        ]
        missing = [pair for pair in columns if pair.partition("=")[2] not in self.columns]
        if missing and self.read:
            found.append(
                Sentence("No row has the column that is named: --columns {names}. See how it is written.",
                         names=" ".join(missing))
            )  # fmt: skip
        return found

    def _of_guesses(self, config: DataConfig) -> Iterator[str]:
        if self.several_answers and config.several_answers == "keep":
            yield Sentence(
                "{questions} several different answers, in {rows} rows: the model learns none of them well. "
                "`conflicting` in the report lists them; mend them, or --several-answers first (or drop).",
                questions=_questions(self.questions_with_several), rows=self.several_answers,
            )  # fmt: skip
        if self.questions_on_both_sides:
            yield Sentence(
                "{count} validation rows ask what is trained with another answer: the loss on them says little. Take "
                "them out of your validation file, or let the split be made here.", count=self.questions_on_both_sides,
            )  # fmt: skip
        if self.copies_left_out:
            yield Sentence(
                "{count} rows are not trained, since a validation row from a copy of their source says the same. "
                "`doubts` in the report names the copies: keep one of them.", count=self.copies_left_out,
            )  # fmt: skip
        if self.doubts.count:
            yield Sentence(
                "Guesses that may be wrong: {count}; `doubts` in the report says how each is decided.",
                count=self.doubts.count,
            )  # fmt: skip
        if config.question and not self.questions and (self.documents or self.joined_lines):
            reason = next((found.reason for found in self.unasked), Sentence("there is no document with a title"))
            yield Sentence("--question asked nothing: {reason}.", reason=reason)
        if self.answered_passages and config.asked_passages == "keep":
            yield Sentence(
                "{count} passages are trained twice, as text and as the answer to a question: --asked-passages drop "
                "trains the answers alone.", count=self.answered_passages,
            )  # fmt: skip

    def _of_the_split(self, config: DataConfig) -> Iterator[str]:
        for source, remedy in self.unvalidated.items():
            rows = self.by_source.get(source, [0])[0]
            yield Sentence(
                "{source} gives {rows} of {all} rows, and none of them is validated: the validation loss says nothing "
                "of it. {remedy}", source=source, rows=rows, all=self.train + self.validation, remedy=remedy,
            )  # fmt: skip
        if not self.validation and self.train > 1 and not self.own_split:
            if not config.val_fraction and not config.val_rows:
                remedy = Sentence("--val-fraction 0.05 or --val-rows 20.")
            elif config.val_from == "replies":
                remedy = Sentence("there is none with a prompt and an answer. --val-from all")
            else:
                remedy = Sentence(
                    "all say nearly the same. Give rows of your own: a file validation.jsonl beside train.jsonl."
                )
            yield Sentence("No row is held out, so that there is no validation loss: {remedy}", remedy=remedy)
        yield from self._of_few_validation_rows(config)

    def _of_few_validation_rows(self, config: DataConfig) -> Iterator[str]:
        """Return that more rows should validate, where more can: nothing where somebody said how many."""
        total = self.train + self.validation
        wanted = rows_to_hold_out(total)
        if not 0 < self.validation < wanted or config.val_rows:
            return
        remedy = (
            Sentence("Put more rows into your validation file.")
            if self.own_split
            else Sentence("--val-rows {count} holds out more.", count=wanted)
        )
        yield Sentence(
            "{rows} of {all} rows validate, and so decide which step is best: the loss on others of their kind may be "
            "{percent}% higher or lower. {remedy}",
            rows=self.validation, all=total, percent=round(100 * uncertainty(self.validation)), remedy=remedy,
        )  # fmt: skip


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
        told = {"column": f"`{self.column}`", "share": share}
        if not self.longer_than_prompt:
            return Sentence("{column} (in {share} of the rows)", **told)
        if self.beside == "text":
            return Sentence("{column} (in {share} of the rows, longer than the text)", **told)
        return Sentence("{column} (in {share} of the rows, longer than the prompt)", **told)

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
            example = '{"role": "assistant", "content": "…", "train": false}'
            return Sentence(
                "{column} has not one mark for each turn, and marks of tokens belong to the tokenizer that made them. "
                "Mark turns: {example}.", column=f"`{self.column}`", example=example,
            )  # fmt: skip
        if "[" in self.column or (self.beside == "messages" and not judges(self.column)):
            return Sentence("What belongs to a conversation must stand in the content of one of its turns.")
        if judges(self.column):
            return Sentence("Rows that {column} calls bad are trained: take them out.", column=f"`{self.column}`")
        if self.column.strip().casefold() in ANSWERED:
            return Sentence("If that is the answer: --columns completion={column}.", column=self.column)
        if self.beside == "text":
            return Sentence("If that is a question that the text answers: --columns prompt={column} completion=text.",
                            column=self.column)  # fmt: skip
        return Sentence("If the answer needs it: --columns context={column}.", column=self.column)


def _questions(count: int) -> str:
    return Sentence("1 question has") if count == 1 else Sentence("{count} questions have", count=count)


def _counted(unused: Any) -> dict[str, Counter[str]]:
    """Return the counts of a list of `Unused` in the form `as_dict` writes."""
    columns = [Unused(**column) for column in unused] if isinstance(unused, list) else []
    names = [(f"{column.beside} {column.column}", column) for column in columns]
    return {
        "unused": Counter({name: column.rows for name, column in names}),
        "unused_longer": Counter({name: column.longer_rows for name, column in names}),
    }
