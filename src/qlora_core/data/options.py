"""The options of a multiple-choice question: how they are shown, and which one an answer means. Knows one row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .values import as_text, unpacked, whole_number

_MARKED = re.compile(r"\(([A-Za-z])\)\.?|([A-Za-z])[.)]")
LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class Options:
    """The options of one row; false where it has none.

    Attributes:
        labels: label of each option, "A" or "1".
        texts: text of each option.
        shown: the options as the prompt shows them, one a line; "" for none.
        missing: whether the row has a column for options and nothing in it.
        counted: whether an answer was found by its number.
    """

    labels: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    shown: str = ""
    missing: bool = False
    counted: bool = False

    def __bool__(self) -> bool:
        return bool(self.shown)

    @classmethod
    def of(cls, row: dict[str, Any], columns: Sequence[tuple[str, str]]) -> Options:
        """Return the options of some columns: `(label, key)` of one each, or `("", key)` of the one that holds all.

        Raises:
            ValueError: they are no list and no object of texts.
        """
        if not columns:
            return cls()
        if columns[0][0]:
            found = [(label, as_text(row[key])) for label, key in columns]
        else:
            value = unpacked(row[columns[0][1]])
            if isinstance(value, str) and value.strip():  # written out already
                return cls(shown=value)
            found = _listed(value)
            if found is None or any(text is None for _, text in found):
                raise ValueError(f'"{columns[0][1]}" must be a list of texts, or an object of them by their letters')
        filled = [(label, text.strip()) for label, text in found if text and text.strip()]
        if not filled:
            return cls(missing=True)
        if all(re.match(rf"\(?{re.escape(label)}[).:]\s*\S", text) for label, text in filled):  # labelled already
            filled = [(label, re.split(r"[).:]\s*", text, maxsplit=1)[1]) for label, text in filled]
        labels, texts = zip(*filled, strict=True)
        return cls(labels, texts, "\n".join(f"{label}. {text}" for label, text in filled))

    def answer(self, value: Any, name: str) -> Any:
        """Return an answer in the options' words; the number of an option becomes its letter.

        Raises:
            ValueError: the answer names an option, and the row has none, or not that one.
        """
        text = (as_text(value) or "").strip()
        if (marked := _MARKED.fullmatch(text)) and text not in self.texts:  # stays as it is written
            self._lettered(marked[1] or marked[2], name)
            return value
        number = whole_number(text)
        names_one = number is not None or (len(text) == 1 and text.upper() in LABELS)
        if self.missing and names_one:
            raise ValueError(f"the {name} names an option, and the row has none")
        if not names_one or not self.texts or text in self.labels or text in self.texts:
            return value
        if number is None:
            return self._lettered(text, name)
        if str(number) in self.labels:
            return str(number)
        counted = all(label.isdecimal() for label in self.labels)
        if counted or not 0 <= number < len(self.labels):
            those = f"they are {', '.join(self.labels)}" if counted else f"there are {len(self.labels)}, counted from 0"
            raise ValueError(f"the {name} {text} names no option: {those}")
        self.counted = True
        return self.labels[number]

    def _lettered(self, letter: str, name: str) -> str:
        """Return the label that a letter means, whatever its case."""
        found = next((label for label in self.labels if label.casefold() == letter.casefold()), "")
        if not found and self.labels and all(len(label) == 1 for label in self.labels):
            raise ValueError(f"the {name} {letter} names no option: they are {', '.join(self.labels)}")
        return found or letter


def _listed(value: Any) -> list[tuple[str, str | None]] | None:
    """Return labels and texts; None for anything but a list or an object of them."""
    if value is None or value == "":
        return []
    if isinstance(value, dict):
        texts = value.get("text")
        if isinstance(texts, list) and isinstance(labels := value.get("label"), list) and len(labels) == len(texts):
            return [(str(label), as_text(text)) for label, text in zip(labels, texts, strict=True)]
        return [(str(label), as_text(text)) for label, text in value.items() if text is not None]
    if not isinstance(value, list) or len(value) > len(LABELS):
        return None
    if all(isinstance(item, dict) for item in value):
        return [
            (
                str(next((item[key] for key in ("label", "key", "id", "letter") if key in item), label)),
                as_text(next((item[key] for key in ("text", "value", "content", "option") if key in item), None)),
            )
            for label, item in zip(LABELS, value, strict=False)
        ]
    return [(label, as_text(item)) for label, item in zip(LABELS, value, strict=False)]
