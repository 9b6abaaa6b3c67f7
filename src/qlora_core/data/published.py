"""Published data sets whose rows give the right one of several options by its number, or a class by its number.

One table says of each what its columns are, how its question is put, and which number the first option has. Such a row
becomes one with a question, its options and the letter of the right one. Knows one row, nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .options import LABELS
from .values import as_text, unpacked, whole_number

_COLUMN = re.compile(r"\{(\w+)\}")
_HIDDEN = ("", "-", "?", "-1", "-1.0")
_CAUSE = {"cause": "What was the cause?", "effect": "What happened as a result?"}
_NLI = ("entailment", "neutral", "contradiction")
_NLI_NAMES = {"e": "entailment", "n": "neutral", "c": "contradiction", "not_entailment": "not entailment",
              **{name: name for name in (*_NLI, "not entailment")}}  # fmt: skip
_NLI_ASKED = (
    "Premise: {premise}\nHypothesis: {hypothesis}",
    "Does the hypothesis follow: entailment, neutral or contradiction?",
)


@dataclass(frozen=True)
class Published:
    """One data set's columns, named in small letters.

    Attributes:
        name: what it is called, in messages.
        needs: columns by which its rows are recognised.
        asked: parts of the question, with columns in braces; a part whose column is absent or empty is left out.
        options: columns of one option each, or the one of all; none where the answer is a class.
        answer: column of the right option's number, or of the class.
        first: number of the first option.
        words: what a column's value is called in the question.
        renamed: columns that stand for others of the question.
    """

    name: str
    needs: tuple[str, ...]
    asked: tuple[str, ...]
    options: tuple[str, ...]
    answer: str = "label"
    first: int = 0
    words: Mapping[str, str] = field(default_factory=dict, hash=False)
    renamed: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def columns(self) -> frozenset[str]:
        """Return every column that is used."""
        asked = (self.renamed.get(name, name) for part in self.asked for name in _COLUMN.findall(part))
        return frozenset((*asked, *self.options, self.answer))

    def plain(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Return the row with its question, options and answer under names of their own, and what was guessed, or "".

        Other columns stay.

        Raises:
            ValueError: the answer is hidden, or names no option.
        """
        keys = {key.strip().casefold(): key for key in row}
        values = {name: row[key] for name, key in keys.items() if name in self.columns}
        left = {key: row[key] for name, key in keys.items() if name not in self.columns}
        key = keys.get(self.answer, self.answer)
        if self.answer not in values:
            raise ValueError(
                f'nothing says which option is right: it has no "{key}" (a file of labels beside it is not read: put '
                f"them into the rows)"
            )
        said = as_text(values[self.answer])
        said = "" if values[self.answer] is None else said.strip() if said is not None else "?"
        if said in _HIDDEN:
            raise ValueError(
                f'its "{key}" is hidden ({said or "empty"}), as in a test set: there is no answer to train'
            )
        question = "\n\n".join(filter(None, (self._part(part, values) for part in self.asked)))
        if not self.options:
            guess = f"{key}: 0 is entailment, 1 neutral, 2 contradiction" if whole_number(said) is not None else ""
            return {**left, "question": question, "answer": self._class(said, key, keys)}, guess
        texts = self._texts(values)
        answer = self._letter(said, key, len(texts))
        return {**left, "question": question, "options": dict(zip(LABELS, texts, strict=False)), "answer": answer}, ""

    def _part(self, part: str, values: Mapping[str, Any]) -> str:
        """Return a part of the question; "" if it lacks a column's text."""
        found: list[str] = []
        for name in _COLUMN.findall(part):
            column = self.renamed.get(name, name)
            text = as_text(values.get(column, ""))
            if text is None:
                raise ValueError(f'"{column}" must be a text')
            found.append(self.words.get(text.strip(), text.strip()))
        filled = iter(found)
        return _COLUMN.sub(lambda _: next(filled), part) if all(found) else ""

    def _texts(self, values: Mapping[str, Any]) -> list[Any]:
        texts = [values[name] for name in self.options]
        listed = unpacked(texts[0]) if len(texts) == 1 else texts
        if not isinstance(listed, list) or not all(as_text(text) for text in listed):
            raise ValueError(f'"{self.options[0]}" must be a list of texts, all of them filled')
        return listed

    def _letter(self, said: str, key: str, count: int) -> str:
        number = whole_number(said)
        if number is None or not 0 <= number - self.first < count:
            raise ValueError(f'its "{key}" {said} names no option: there are {count}, counted from {self.first}')
        return LABELS[number - self.first]

    def _class(self, said: str, key: str, names: Iterable[str]) -> str:
        if found := _NLI_NAMES.get(said.casefold()):
            return found
        number = whole_number(said)
        if number is None or not 0 <= number < len(_NLI):
            raise ValueError(f'its "{key}" {said} is none of {", ".join(_NLI)}, nor a number from 0 to 2')
        if "idx" in names:  # the columns of GLUE's MNLI and of SuperGLUE's CB and RTE, which number differently
            raise ValueError(
                f'its "{key}" {said} means one class in MNLI and another in CB and RTE, which have the same columns: '
                "give the classes by their names"
            )
        return _NLI[number]


PUBLISHED = (
    Published("HellaSwag", ("ctx", "endings"), ("{activity_label}", "{ctx}", "How does this go on?"), ("endings",)),
    Published("SWAG", ("startphrase", "ending0", "ending1", "ending2", "ending3"),
              ("{startphrase} …", "How does this go on?"), ("ending0", "ending1", "ending2", "ending3")),
    Published("PIQA", ("goal", "sol1", "sol2"), ("{goal}",), ("sol1", "sol2")),
    Published("SocialIQA", ("context", "question", "answera", "answerb", "answerc"), ("{question}", "{context}"),
              ("answera", "answerb", "answerc"), first=1),
    Published("CosmosQA", ("context", "question", "answer0", "answer1", "answer2", "answer3"),
              ("{question}", "{context}"), ("answer0", "answer1", "answer2", "answer3")),
    Published("WinoGrande", ("sentence", "option1", "option2"), ("{sentence}", "Which of these does _ stand for?"),
              ("option1", "option2"), "answer", first=1),
    Published("COPA", ("premise", "choice1", "choice2", "question"), ("{premise}", "{question}"),
              ("choice1", "choice2"), words=_CAUSE),
    Published("aNLI", ("observation_1", "observation_2", "hypothesis_1", "hypothesis_2"),
              ("{observation_1} … {observation_2}", "What happened in between?"),
              ("hypothesis_1", "hypothesis_2"), first=1),
    Published("Belebele", ("flores_passage", "question", "mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4"),
              ("{question}", "{flores_passage}"), ("mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4"),
              "correct_answer_num", first=1),
    Published("SNLI, MNLI and ANLI", ("premise", "hypothesis", "label"), _NLI_ASKED, ()),
    Published("SNLI and MNLI", ("sentence1", "sentence2", "gold_label"), _NLI_ASKED, (), "gold_label",
              renamed={"premise": "sentence1", "hypothesis": "sentence2"}),
    Published("ANLI", ("uid", "context", "hypothesis", "label"), _NLI_ASKED, (), renamed={"premise": "context"}),
)  # fmt: skip


def published_of(names: Mapping[str, str]) -> Published | None:
    """Return the data set that some columns are of, `{name in small letters: key}`; None if of none."""
    return next((each for each in PUBLISHED if all(name in names for name in each.needs)), None)
