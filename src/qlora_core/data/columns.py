"""Names that popular formats give the columns of a row, and which of them hold content.

Knows names and values, nothing of files or of how a row is assembled.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from .preferences import Rivals, columns_by_stem, rivals_of
from .published import Published, published_of

# Names ----------------------------------------------------------------------------------------------------------

CONVERSATIONS = ("messages", "conversations", "conversation")
PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("pergunta", "resposta"),
    ("instruction", "output"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("question", "response"),
    ("input", "output"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "answer"),
    ("instruction", "answer"),
    ("problem", "solution"),
    ("problem", "answer"),
    ("question", "answers"),
)
"""Names of question and answer; the first pair whose answer a row has is taken."""

ASKED = (*dict.fromkeys(asked for asked, _ in PAIRS), "inputs")
ANSWERED = (
    *dict.fromkeys(answered for _, answered in PAIRS), "target", "targets", "completions", "correct_answer",
    "best_answer",
)  # fmt: skip
"""Names of answers that count without a pair, in order of preference; a row with a text is running text."""

GIVEN = {"instruction": "input", "definition": "inputs"}
"""Names of an instruction's input, by the instruction's name; the input follows the instruction."""

ASKED_WITH_OPTIONS = (*ASKED, "question_stem")
RIGHT = (
    "answerkey", "answer_key", "correct_option", "correct_answer_id", "correct_answer_index", "correct_idx",
    "answer_idx", "answer_index", "answer_id", "gold_label", "gold", "cop", "label", "correct",
)  # fmt: skip
ANSWERED_WITH_OPTIONS = (*ANSWERED, *RIGHT)
"""Names of the right option, where nothing else is the answer."""

SYSTEM = ("system", "system_prompt", "system_message", "meta_instruction", "systeminstruction",
          "system_instruction")  # fmt: skip
CONTEXTS = (
    "context", "contexts", "contexto", "passage", "passages", "document", "documents", "paragraph", "article",
    "background", "support",
)  # fmt: skip
"""Texts that a question is about; they follow it, as `input` follows `instruction`."""

OPTIONS = ("options", "choices", "alternatives")
HISTORY = ("history", "chat_history", "conversation_history")
REASONING = (
    "reasoning_content", "reasoning", "thinking", "thought", "thoughts", "think", "complex_cot", "cot",
    "chain_of_thought", "rationale",
)  # fmt: skip
TOOLS = ("tools", "functions")
CHOSEN = (
    "chosen", "chosen_response", "response_chosen", "chosen_messages", "chosen_answer", "preferred", "preferred_output",
    "response_j",
)  # fmt: skip
REJECTED = (
    "rejected", "rejected_response", "response_rejected", "rejected_messages", "rejected_answer", "dispreferred",
    "non_preferred_output", "response_k",
)  # fmt: skip
"""The better and the worse of two answers; the worse one is never trained."""

MEDIA = (
    "image", "images", "img", "image_path", "image_url", "picture", "pictures", "video", "videos", "audio", "audios",
    "pixel_values",
)  # fmt: skip
"""Names of media, which a language model cannot see."""

SPLITS = (
    "split", "data_split", "dataset_split", "partition", "subset", "set", "fold", "is_test", "is_validation", "is_val",
    "is_dev", "is_eval", "is_train",
)  # fmt: skip
"""Names of the column of a split: it holds a word, or true where the name itself says the split."""

TURN_MARKS = (
    "weight", "loss_weight", "train", "training", "trainable", "train_on_turn", "loss", "loss_mask", "review_result",
)  # fmt: skip
ROW_MARKS = (
    "weight", "loss_weight", "train", "training", "trainable", "loss", "label", "kto_tag", "is_correct", "correct",
    "accepted", "is_accepted", "desirable", "is_chosen", "include", "included", "keep", "use_for_training",
)  # fmt: skip
"""Marks whose 0 or false excludes something from training, on a turn and on a row."""

INVERSE_MARKS = (
    "masked", "mask", "rejected", "is_rejected", "deleted", "is_impossible", "exclude", "excluded", "skip", "skipped",
    "ignore", "ignored", "exclude_from_training", "is_bad",
)  # fmt: skip
"""Marks whose true does so."""

STATES = ("status", "review_status", "annotation_status")
_REFUSED = ("rejected", "discarded", "deleted", "excluded", "removed", "ignored", "skipped")
"""Columns that say in a word what became of a row, and the words that exclude it from training."""

_TRAINS = frozenset(("train", "trained", "trainable", "training", "loss", "weight", "learn", "supervise", "supervised"))
_COUNTED = frozenset(
    ("step", "steps", "id", "ids", "idx", "index", "epoch", "time", "type", "name", "value", "source", "data", "set")
)
_NOT = frozenset(("no", "not", "ignore", "ignored", "skip", "skipped", "exclude", "excluded", "without"))

JUDGING = frozenset(("label", "kto_tag", "is_correct", "correct", "accepted", "is_accepted", "desirable", "is_chosen"))
"""Marks that are none where they are numbers, which are classes or scores, nor beside a text, which is of a class."""

_JUDGEMENTS = ("quality", "rating", "verdict", "correctness", "feedback", "rank", "vote", "judgement", "judgment")
MASKS = ("loss_mask", "mask", "train_mask", "label_mask", "weights")
"""Lists of one mark for each turn, or for each token."""

BOOKKEEPING = frozenset(
    (
        "id", "uuid", "guid", "idx", "index", "source", "url", "link", "date", "time", "datetime", "timestamp",
        "created", "updated", "author", "authors", "license", "licence", "language", "lang", "model", "dataset", "file",
        "filename", "path", "page", "line", "version", "hash", "signature",
    )
)  # fmt: skip
"""Names whose values are bookkeeping, unless they are long."""

_BOOKKEEPING_END = re.compile(r"_(?:id|ids|url|date|time|at|by|hash)$|[a-z]Id$")
TELLING = frozenset(
    (
        *CONVERSATIONS, *ASKED_WITH_OPTIONS, *ANSWERED_WITH_OPTIONS, *SYSTEM, *CONTEXTS, *OPTIONS, *HISTORY, *REASONING,
        *TOOLS, *CHOSEN, *REJECTED, *MEDIA, *_JUDGEMENTS, *MASKS, "text", "content", "value", "reference",
        "references",
    )
)  # fmt: skip
"""Names whose values always count, however short: content, or marks that may exclude it from training."""

MAPPED = (
    "messages", "system", "prompt", "completion", "text", "context", "options", "history", "reasoning", "tools",
    "better",
)  # fmt: skip

_ASKING = frozenset(("messages", "prompt", "completion", "text", "options"))
"""Names of `MAPPED` that decide how a row is read: mapping one keeps it from being read as a published data set."""

Columns = tuple[tuple[str, str], ...]
"""`(ours, theirs)` for each name that would not be recognised; ours are those of `MAPPED`."""


# Content --------------------------------------------------------------------------------------------------------

_TWO_WORDS = re.compile(
    r"[^\W\d_]\S*\s+(?:\S+\s+)*?\S*[^\W\d_]"
    r"|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]{2}"  # scripts without blanks
)
_LINK = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+$")
_DEEP = 8  # levels of lists and objects that are looked into
LONG = 100  # characters: a longer word counts as content


def content_length(name: str, value: Any, depth: int = 0) -> int:
    """Return how many characters of content a value has; 0 for bookkeeping such as ids, numbers, dates and links.

    A text has content if two of its words are written in letters, if it is longer than `LONG`, or if its name is one
    that always holds content (`TELLING`). A list or an object has the content of its items. `false` counts as one
    character, since it may exclude a row from training; `true` and numbers count under a telling name only.
    """
    plain = name.strip().casefold()
    if depth > _DEEP:
        return 1
    if isinstance(value, str):
        text = value.strip()
        if not text or (plain not in TELLING and _keeps_books(name, text)):
            return 0
        return len(text)
    if isinstance(value, bool | int | float):
        return 1 if value is False or plain in TELLING else 0
    if isinstance(value, dict):
        return sum(content_length(str(key), inner, depth + 1) for key, inner in value.items())
    if isinstance(value, list | tuple):
        texts = [inner for inner in value if isinstance(inner, str)]
        others = [inner for inner in value if isinstance(inner, list | tuple | dict)]
        length = content_length(name, " ".join(texts)) + sum(content_length(name, one, depth + 1) for one in others)
        return length or int(plain in TELLING and len(value) > 0)
    return 0 if value is None else int(plain in TELLING)


def _keeps_books(name: str, text: str) -> bool:
    if len(text) > LONG:
        return bool(_LINK.match(text))
    if name.strip().casefold() in BOOKKEEPING or _BOOKKEEPING_END.search(name):
        return True
    return not _TWO_WORDS.search(text)


def judges(name: str) -> bool:
    """Return whether a column of this name may mark rows as not to be trained, in words or numbers of its own."""
    plain = name.strip().casefold()
    return plain in (*ROW_MARKS, *INVERSE_MARKS, *_JUDGEMENTS, *MASKS)


def is_said(value: Any, texts: Iterable[str]) -> bool:
    """Return whether a value is a text of two words or more that others contain word for word."""
    return isinstance(value, str) and bool(_TWO_WORDS.search(value)) and any(value.strip() in text for text in texts)


def says_no(value: Any) -> bool:
    """Return whether a mark's value is 0 or false, in JSON or as a table writes it."""
    if isinstance(value, str):
        return value.strip().casefold() in ("false", "no", "0", "0.0")
    return isinstance(value, bool | int | float) and value <= 0


def says_yes(value: Any) -> bool:
    """Return whether a mark's value is true or 1, in JSON or as a table writes it."""
    if isinstance(value, str):
        return value.strip().casefold() in ("true", "yes", "1", "1.0")
    return isinstance(value, bool | int | float) and value > 0


@functools.lru_cache(maxsize=1024)
def turn_mark(key: str) -> int:
    """Return 1 if a turn's key of this name marks it as trained, -1 if as not trained, 0 if it is no mark.

    Beside the known names it is one if its words speak of training or loss: `output_with_loss`, `step_loss_mask`,
    `ignore_loss`.
    """
    plain = key.strip().casefold()
    if plain in INVERSE_MARKS:
        return -1
    if plain in TURN_MARKS or plain in JUDGING:
        return 1
    words = re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key.strip()).casefold())
    if _TRAINS.isdisjoint(words) or words[-1] in _COUNTED:
        return 0
    return 1 if _NOT.isdisjoint(words) else -1


def is_refused(value: Any) -> bool:
    """Return whether a word says that a row was refused: "rejected", "discarded"."""
    return isinstance(value, str) and value.strip().casefold() in _REFUSED


def is_truth(value: Any) -> bool:
    """Return whether a value is true or false, in JSON or as a table writes it."""
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().casefold() in ("true", "false"))


# Roles -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ColumnRoles:
    """The role of each key of a row; "" for a role that no key has.

    Attributes:
        messages, system, asked, given, answered, text: keys of the parts of the row.
        contexts: texts that the question is about.
        options: `(label, key)` of each option that has a column of its own, or `("", key)` of the one that holds all.
        history: earlier rounds.
        reasoning: key of the thoughts before the answer.
        tools: the functions that may be called.
        chosen, rejected: the better and the worse of two answers.
        rivals: answers of which the row says in another column which is the better.
        published: the data set that the row is of, if its columns are known only so; it has no other role then.
        marks: keys that may say that the row is not to be trained.
        states: keys that say in a word what became of the row.
        masks: keys of lists of marks, one for each turn or for each token.
        media: keys of pictures and the like.
        splits: keys that may say whether the row is for training, validation or test.
        left: the other keys.
    """

    messages: str = ""
    system: str = ""
    asked: str = ""
    given: str = ""
    contexts: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    history: str = ""
    reasoning: str = ""
    tools: str = ""
    answered: str = ""
    chosen: str = ""
    rejected: str = ""
    rivals: Rivals | None = None
    published: Published | None = None
    text: str = ""
    marks: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    left: tuple[str, ...] = field(default=(), compare=False)

    @functools.cached_property
    def plain(self) -> bool:
        """Return whether a row with two keys and these roles is nothing but a question and its answer."""
        return bool(self.asked and self.answered)

    @functools.cached_property
    def used(self) -> frozenset[str]:
        """Return the keys that make up the row."""
        single = (
            self.messages, self.system, self.asked, self.given, self.history, self.reasoning, self.tools,
            self.answered, self.chosen, self.rejected, self.text,
        )  # fmt: skip
        rivals = self.rivals.used if self.rivals else ()
        return frozenset((*single, *rivals, *self.contexts, *(key for _, key in self.options)))


@functools.lru_cache(maxsize=4096)  # nearly all rows of a file have the same keys
def column_roles(keys: tuple[str, ...], columns: Columns = (), better: str = "") -> ColumnRoles | None:
    """Return the roles of a row's keys, or None if they are not recognised.

    Case and white space around names do not matter. Names in `columns` take precedence over guesses; other names keep
    their meaning. `better` is the key of the answer that a row calls the better one in another column.
    """
    names: dict[str, str] = {}
    for key in keys:
        names.setdefault(key.strip().casefold(), key)
    mapped = {ours: names[plain] for ours, theirs in columns if (plain := theirs.strip().casefold()) in names}
    known = {name: key for name, key in names.items() if key not in mapped.values()}
    if not mapped.keys() & _ASKING and (published := published_of(known)):
        return ColumnRoles(published=published)
    found = _roles_of_names(known, mapped, better)
    if found is None:
        return None
    rest = {name: key for name, key in known.items() if key not in found.used}
    found = _with(
        found,
        marks=tuple(rest[name] for name in (*ROW_MARKS, *INVERSE_MARKS) if name in rest),
        states=tuple(rest[name] for name in STATES if name in rest),
        masks=tuple(rest[name] for name in MASKS if name in rest),
        media=tuple(rest[name] for name in MEDIA if name in rest),
        splits=tuple(rest[name] for name in SPLITS if name in rest),
    )
    return _with(found, left=tuple(key for key in keys if key not in found.used and key != "metadata"))


def _with(roles: ColumnRoles, **changes: Any) -> ColumnRoles:
    fields = {name: value for name, value in vars(roles).items() if name not in ("used", "plain")}
    return ColumnRoles(**{**fields, **changes})


def _roles_of_names(known: dict[str, str], mapped: dict[str, str], better: str) -> ColumnRoles | None:
    """Return the roles that the names imply, those given by the user first."""
    both = known | mapped
    rivals = _rivals(known, mapped)
    if rivals and not better:
        return ColumnRoles(rivals=rivals)
    beside: dict[str, Any] = {
        "system": mapped.get("system") or _first(known, SYSTEM),
        "tools": mapped.get("tools") or _first(known, TOOLS),
        "chosen": _first(known, CHOSEN),
        "rejected": _first(known, REJECTED),
        "reasoning": mapped.get("reasoning") or _first(known, REASONING),
    }
    if rivals:
        worse = next(key for _, key in rivals.keys if key != better)
        beside |= {"chosen": better, "rejected": worse, "rivals": rivals}
    asks = "prompt" in mapped or "completion" in mapped
    if "text" in mapped and not asks and "messages" not in mapped:
        return ColumnRoles(text=mapped["text"])
    if conversation := mapped.get("messages") or ("" if asks else _first(both, CONVERSATIONS)):
        return ColumnRoles(messages=conversation, **beside)
    options = (("", mapped["options"]),) if "options" in mapped else _options(known)
    pair = _pair(both, known, mapped, with_options=bool(options), chosen=beside["chosen"])
    if pair is None:
        return ColumnRoles(text=both["text"]) if "text" in both else None
    asked, answered = pair
    history = mapped.get("history") or _first(known, HISTORY)
    if rivals and not asked and not mapped.get("prompt"):
        asked, history = history, ""
    contexts = (mapped["context"],) if "context" in mapped else tuple(known[n] for n in CONTEXTS if n in known)
    return ColumnRoles(
        asked=asked,
        given=next((known.get(given, "") for order, given in GIVEN.items() if asked and asked == known.get(order)), ""),
        answered="" if beside["chosen"] == answered else answered,
        contexts=tuple(key for key in contexts if key not in pair),
        options=tuple((label, key) for label, key in options if key not in pair),
        history=history,
        **beside,
    )


def _rivals(known: dict[str, str], mapped: dict[str, str]) -> Rivals | None:
    """Return competing answers of which one is the better, if nothing else is the answer."""
    if {"completion", "text"} & mapped.keys() or (_first(known, CHOSEN) and _first(known, REJECTED)):
        return None
    found = rivals_of(known, mapped.get("better", ""))
    if found is None or "better" in mapped:
        return found
    others = {name: key for name, key in known.items() if key not in found.used}
    said = bool(found.verdicts or found.strengths or found.hits)
    if _first(others, ANSWERED) or (not said and ("messages" in mapped or _first(others, (*CONVERSATIONS, "text")))):
        return None
    return found


def _pair(
    names: dict[str, str], known: dict[str, str], mapped: dict[str, str], *, with_options: bool, chosen: str
) -> tuple[str, str] | None:
    """Return the keys of question ("" if there is none) and answer; None if nothing is answered."""
    if "completion" in mapped or "prompt" in mapped:
        answered = mapped.get("completion") or _first(known, ANSWERED) or known.get("text", "")
        asked = mapped.get("prompt") or _first({n: k for n, k in known.items() if k != answered}, ASKED)
        return (asked, answered) if answered else None
    if chosen:
        return _first(known, ASKED), chosen
    for asked, answered in PAIRS:
        if answered in names and (asked in names or answered == "completion"):
            return names.get(asked, ""), names[answered]
    if with_options and (asked := _first(known, ASKED_WITH_OPTIONS)):
        answered = _first(known, ANSWERED_WITH_OPTIONS)
        return (asked, answered) if answered else None
    if "text" in names or not (answered := _first(known, ANSWERED)):
        return None
    if "inputs" in known and "definition" in known:
        return known["definition"], answered
    asked = _first(known, ASKED) or (known.get("source", "") if answered == known.get("target") else "")
    return (asked, answered) if asked else None


def _first(names: dict[str, str], wanted: Iterable[str]) -> str:
    return next((names[name] for name in wanted if name in names), "")


_OPTION = re.compile(r"(opt(?:ion)?|op|choice|alternativa|)[ _-]?([a-h]|\d)")


def _options(known: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the column of all options, or the columns of one option each: `A` `B` `C`, `option_a`, `choice1`."""
    if key := _first(known, OPTIONS):
        return (("", key),)
    for prefix, found in columns_by_stem(known, _OPTION).items():
        marks = "".join(sorted(found))
        numbers = prefix and any(row.startswith(marks) for row in ("0123456789", "123456789"))
        if len(marks) > 1 and ("abcdefgh".startswith(marks) or numbers):
            return tuple((mark.upper(), found[mark]) for mark in marks)
    return ()


def columns_of(given: Sequence[str]) -> Columns:
    """Parse the setting `columns`: texts like "prompt=Frage".

    Raises:
        ConfigError: one of them is not `ours=theirs`, or one of ours is given twice.
    """
    pairs = [tuple(text.split("=", 1)) for text in given]
    for text, pair in zip(given, pairs, strict=True):
        if len(pair) != 2 or pair[0] not in MAPPED or not pair[1]:
            raise ConfigError(f"columns: wanted OURS=YOURS with OURS one of {', '.join(MAPPED)}; found {text!r}")
    ours = [pair[0] for pair in pairs]
    if twice := next((name for name in ours if ours.count(name) > 1), ""):
        raise ConfigError(f"columns: {twice} is given twice; one name for each")
    return tuple(pairs)  # type: ignore[arg-type]


def has_column(row: Iterable[str], name: str) -> bool:
    """Return whether a row has a column of this name, ignoring case and surrounding white space."""
    return name in row or any(key.strip().casefold() == name.strip().casefold() for key in row)


def reaches(row: Iterable[str], name: str) -> bool:
    """Return whether a row has this column, or an object that may hold it: `translation.en` in `translation`."""
    return has_column(row, name) or ("." in name and reaches(row, name.rpartition(".")[0]))


def unknown_columns(keys: Iterable[str], columns: Columns) -> str:
    """Return why rows of a table with these columns cannot be recognised; "" if they can."""
    keys = tuple(keys)
    names = {key.strip().casefold() for key in keys}
    within = tuple(theirs for _, theirs in columns if "." in theirs and reaches(keys, theirs))
    if column_roles((*keys, *within), columns) or ("role" in names and not names.isdisjoint(("text", "content"))):
        return ""  # the latter has one message per row
    return f"none of its columns is known: {listed(keys)}. {which_columns(keys)}"


def which_columns(texts: Iterable[str]) -> str:
    """Return how to say what some text columns are for."""
    texts = [name for name in texts if not _keeps_books(name.rpartition(".")[2], "a word")]
    if len(texts) == 2:
        one, other = map(shlex.quote, texts)
        return (
            f"Say which is asked and which answers: --columns prompt={one} completion={other}, "
            f"or prompt={other} completion={one}"
        )
    return "Say which they are: --columns prompt=NAME completion=NAME"


def listed(names: Iterable[Any]) -> str:
    """Return some names in quotation marks."""
    quoted = [repr(name) for name in names]
    return (", ".join(quoted[:6]) + (" …" if len(quoted) > 6 else "")) or "none"
