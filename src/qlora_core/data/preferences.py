"""The better of several answers, as a row states it: by number, letter, name or score.

Knows one row's columns, nothing of how a row is assembled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_STEMS = (
    "response", "answer", "output", "completion", "conversation", "reply", "candidate", "summary", "generation",
    "human_ref", "model_output", "assistant", "messages", "message",
)  # fmt: skip
_RIVAL = re.compile(rf"({'|'.join(_STEMS)})[ _-]?([0-9a-d])")
_COUNTED = ("0123456789", "123456789", "abcd")

VERDICTS = (
    "better_response_id", "safer_response_id", "better_response", "better_answer", "better", "best_response",
    "best_answer", "best", "preferred_response", "preferred_answer", "preferred_output", "preferred", "preference",
    "winner", "chosen", "choice", "selected",
)  # fmt: skip
"""Columns that say which of several answers is better; where several do, they must agree."""

_CLASSES = ("label", "labels")
"""The same, if a row has none of the others."""

_STRENGTHS = ("overall_preference", "preference_strength")
"""Below 0 the first of two is better, above it the second."""

_SCORES = ("score", "rating", "overall_score", "reward")
_TIE = re.compile(r"(?:tie\b|tied\b|both|neither|equal|draw\b|none\b|same\b|no preference).*")
_NAMED = re.compile(rf"(?:model|option|chatbot|{'|'.join(_STEMS)})?[ _-]?([a-d]|\d)")


@dataclass(frozen=True)
class Rivals:
    """Columns that hold one answer each, of which one is the better.

    Attributes:
        keys: keys of the answers, by their number or letter.
        verdicts: keys of the columns that say which is better.
        strengths: keys of numbers that say so by their sign.
        hits: columns that each say yes for one of them, by number or letter; "" for a tie.
        scores: columns with a score each.
        models: columns that name who gave each answer.
        human: whether they are two of people, of which a label 1 means the first.
    """

    keys: tuple[tuple[str, str], ...]
    verdicts: tuple[str, ...] = ()
    strengths: tuple[str, ...] = ()
    hits: tuple[tuple[str, str], ...] = ()
    scores: tuple[tuple[str, str], ...] = ()
    models: tuple[tuple[str, str], ...] = ()
    human: bool = False

    @property
    def used(self) -> tuple[str, ...]:
        """Return every key that this names."""
        beside = (*self.keys, *self.hits, *self.scores)
        return (*(key for _, key in beside), *self.verdicts, *self.strengths)

    def better(self, row: Mapping[str, Any]) -> str:
        """Return the key of the better answer.

        Raises:
            ValueError: the row says that none is, or does not say which.
        """
        found = {key: self._named(row[key], key, row) for key in self.verdicts if _says(row[key])}
        found |= {key: self._signed(row[key], key) for key in self.strengths if _says(row[key])}
        if not found and (best := self._marked(row) or self._scored(row)):
            return best
        if len(set(found.values())) > 1:
            said = " and ".join(f"`{verdict}` {key}" for verdict, key in found.items())
            raise ValueError(
                f"two columns name different answers as the better one: {said}. Say which decides: --columns "
                f"better={next(iter(found))}"
            )
        if not found:
            raise ValueError(
                f"nothing says which of {self._answers} is the better answer. Name the one to train: --columns "
                f"completion={self.keys[0][1]}; or the column that says it: --columns better=NAME"
            )
        return next(iter(found.values()))

    @property
    def _answers(self) -> str:
        return ", ".join(f"`{key}`" for _, key in self.keys)

    def _named(self, value: Any, key: str, row: Mapping[str, Any]) -> str:
        """Return the answer that a column names."""
        said = str(value).strip()
        plain = said.casefold().removesuffix(".0")
        labels = dict(self.keys)
        by_model = [labels[label] for label, model in self.models if str(row[model]).strip() == said]
        by_text = [theirs for _, theirs in self.keys if row[theirs] == value]
        name = _NAMED.fullmatch(plain)
        label = name[1] if name else ""
        if self.human and label in ("0", "1"):
            return self.keys[1 - int(label)][1]
        if label.isalpha() and label not in labels:
            place = ord(label) - ord("a")
            label = self.keys[place][0] if place < len(self.keys) else label
        if len(by_text) == 1 or plain in (theirs.casefold() for theirs in labels.values()):
            return by_text[0] if by_text else next(k for k in labels.values() if k.casefold() == plain)
        if len(by_model) == 1:
            return by_model[0]
        if label in labels:
            return labels[label]
        if _TIE.fullmatch(plain):
            raise ValueError(f"a tie, as `{key}` says: none of {self._answers} is the better answer")
        raise ValueError(f"`{key}` {said[:40]!r} names none of {self._answers} as the better answer")

    def _signed(self, value: Any, key: str) -> str:
        """Return the answer that the sign of a number names."""
        number = _number(value)
        if number is None or len(self.keys) != 2:
            raise ValueError(f"`{key}` must be a number below or above 0 for one of two answers, found {value!r:.40}")
        if not number:
            raise ValueError(f"a tie, as `{key}` says: none of {self._answers} is the better answer")
        return self.keys[number > 0][1]

    def _marked(self, row: Mapping[str, Any]) -> str:
        """Return the answer whose column says yes; "" if there are no such columns."""
        said = [label for label, key in self.hits if _number(row[key])]
        if not self.hits:
            return ""
        if len(said) != 1 or not said[0]:
            raise ValueError(f"a tie, as {', '.join(f'`{key}`' for _, key in self.hits)} say")
        return dict(self.keys)[said[0]]

    def _scored(self, row: Mapping[str, Any]) -> str:
        """Return the answer with the highest score; "" if there are none."""
        scores = {label: number for label, key in self.scores if (number := _number(row[key])) is not None}
        if len(scores) < len(self.keys):
            return ""
        best = [label for label, score in scores.items() if score == max(scores.values())]
        if len(best) > 1:
            raise ValueError(f"a tie, as {', '.join(f'`{key}`' for _, key in self.scores)} say")
        return dict(self.keys)[best[0]]


def columns_by_stem(known: Mapping[str, str], pattern: re.Pattern[str]) -> dict[str, dict[str, str]]:
    """Return `{stem: {label: key}}` of columns that differ by a label, as in `answer_1` and `answer_2`.

    Args:
        known: columns, `{plain name: key}`.
        pattern: matches such a name, with the stem and the label as its groups.
    """
    groups: dict[str, dict[str, str]] = {}
    for name, key in known.items():
        if match := pattern.fullmatch(name):
            groups.setdefault(match[1], {})[match[2]] = key
    return groups


def rivals_of(known: Mapping[str, str], verdict: str = "") -> Rivals | None:
    """Return the answers among some columns, `{plain name: name}`; `verdict` is the user's key for the decision."""
    for stem, found in columns_by_stem(known, _RIVAL).items():
        labels = "".join(sorted(found))
        if len(labels) < 2 or not any(counted.startswith(labels) for counted in _COUNTED):
            continue
        keys = tuple((label, found[label]) for label in labels)
        human = stem == "human_ref" and labels == "ab"
        if verdict:
            return Rivals(keys, (verdict,), human=human)
        verdicts = tuple(known[name] for name in VERDICTS if name in known)
        strengths = tuple(known[name] for name in _STRENGTHS if name in known)
        if not (verdicts or strengths):
            verdicts = tuple(known[name] for name in _CLASSES if name in known)
        hits = _each(known, labels, "winner_model", "winner")
        if hits and (tie := known.get("winner_tie")):
            hits = (*hits, ("", tie))
        return Rivals(
            keys, verdicts, strengths, hits, _each(known, labels, *_SCORES), _each(known, labels, "model"), human
        )
    return None


def _each(known: Mapping[str, str], labels: str, *stems: str) -> tuple[tuple[str, str], ...]:
    """Return the columns of one stem that stand beside each answer."""
    for stem in stems:
        found = tuple((label, known[name]) for label in labels if (name := f"{stem}_{label}") in known)
        if len(found) == len(labels):
            return found
    return ()


def _says(value: Any) -> bool:
    return value is not None and (not isinstance(value, str) or bool(value.strip()))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


# Answers in one list --------------------------------------------------------------------------------------------

_TEXTS = ("answer", "text", "response", "content", "output", "completion", "body")
_BEST = ("overall_score", "score", "pm_score", "rating", "reward")


def best_of(answers: list[Mapping[str, Any]], name: str) -> Any:
    """Return the text of the best answer in a list whose items have a rank, a score or a mark.

    Raises:
        ValueError: they do not say which is the best, or it has no text.
    """
    best = answers
    for key, wanted in (("selected", max), ("is_selected", max), ("rank", min), *((key, max) for key in _BEST)):
        numbers = [_number(answer.get(key)) for answer in answers]
        if None in numbers or len(set(numbers)) < 2:
            continue
        best = [one for one, number in zip(answers, numbers, strict=True) if number == wanted(numbers)]
        break
    if len(best) != 1:
        raise ValueError(f'"{name}" holds {len(answers)} answers, and none of them is said to be the best alone')
    text = next((best[0][key] for key in _TEXTS if key in best[0]), None)
    if text is None:
        raise ValueError(f'the best answer of "{name}" has no text: {", ".join(map(str, best[0]))[:80]}')
    return text
