"""A row whose columns are known, assembled as it is trained. Knows nothing of how its columns were recognised."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .columns import (
    INVERSE_MARKS,
    JUDGING,
    RIGHT,
    ColumnRoles,
    Columns,
    column_roles,
    content_length,
    is_refused,
    is_said,
    is_truth,
    says_no,
    says_yes,
)
from .options import Options
from .preferences import best_of
from .records import MarkedError, texts_of
from .speakers import BOTH, turns_of_text, two_of, with_speakers
from .turns import Noted, call_of, check_answers, conversation, tools_of
from .values import as_text, kind, unpacked, whole_number

Clean = Callable[[str], str]


@dataclass(frozen=True)
class Shaped:
    """A row whose shape is known.

    Attributes:
        content: `{"messages": […]}` or `{"text": …}`, with `tools` where the row offers some.
        metadata: everything else that the row carried.
        running: whether its text is a line of running text, to be joined with its neighbours.
        blank: for running text, the name of its empty column for questions; "" if it has none.
        unused: names of what holds content and is used for nothing, and whether that is longer than the prompt.
        beside: kind of content that unused columns stand beside: "text", "messages", or "question".
        marks: parts that its author marked as not to be trained, in words.
        guesses: assumptions that were made, in words.
        splits: words of the row that may name its split.
    """

    content: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    running: bool = False
    blank: str = field(default="", compare=False)
    unused: tuple[tuple[str, bool], ...] = field(default=(), compare=False)
    beside: str = field(default="question", compare=False)
    marks: tuple[str, ...] = field(default=(), compare=False)
    guesses: tuple[str, ...] = field(default=(), compare=False)
    splits: tuple[str, ...] = field(default=(), compare=False)


def _is_plain_mark(value: Any) -> bool:
    """Return whether a mark is true or 1, and so changes nothing."""
    return value is None or value == 1 or is_truth(value) or (isinstance(value, str) and value.strip() in ("", "1"))


def are_turns(value: Any) -> bool:
    """Return whether a value is a list of turns, each with a speaker and a text."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and _speaks(turn) for turn in value)


def _speaks(turn: dict[str, Any]) -> bool:
    said = (("role", "content"), ("from", "value"), ("role", "parts"), ("sender", "text"), ("sender", "content"))
    return any(speaker in turn and text in turn for speaker, text in said)


def other_shape(row: dict[str, Any], roles: ColumnRoles, columns: Columns) -> dict[str, Any]:
    """Return the row without empty columns if it has another shape then; tables have all columns in every row."""
    filled = {key: value for key, value in row.items() if not _is_blank(value)}
    other = column_roles(tuple(filled), columns)
    return filled if other and other != roles else {}


def _is_blank(value: Any) -> bool:
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def _text(row: dict[str, Any], name: str) -> str:
    text = as_text(row[name])
    if text is None:
        raise ValueError(f'"{name}" must be a text, found {kind(row[name])}')
    return text


def _system(row: dict[str, Any], name: str) -> str:
    """Return a system text, which may stand in parts: `[{"text": …}]`, `{"parts": [{"text": …}]}`."""
    value = row[name]
    parts = value.get("parts", value) if isinstance(value, dict) else value
    texts = flat(parts) if isinstance(parts, list | dict) else None
    return _text(row, name) if texts is None else texts


def whole_text(row: dict[str, Any], roles: ColumnRoles, clean: Clean) -> str:
    """Return the cleaned text of a row that is running text."""
    if not isinstance(row[roles.text], str):  # a number may be an answer, but is no text to train on
        raise ValueError(f'"{roles.text}" must be a text, found {kind(row[roles.text])}')
    text = clean(row[roles.text])
    if not text:
        raise ValueError("the text is empty")
    return text


class KnownRow:
    """A row with known columns."""

    def __init__(self, row: dict[str, Any], roles: ColumnRoles, columns: Columns, clean: Clean) -> None:
        self.row, self.roles, self.columns, self.clean = row, roles, columns, clean
        self.noted = Noted()
        self.blank = ""
        self.answered = roles.answered
        self.masks: set[str] = set()  # columns of marks that were copied to their turns

    def shaped(self) -> Shaped | None:
        """Assemble the row; return None if without its empty columns it has another shape.

        Raises:
            ValueError: what is wrong with it.
        """
        row, roles = self.row, self.roles
        if roles.marks or roles.states:
            self._refuse_marked()
        if roles.messages:
            content = self._conversation()
        elif roles.text:
            content = {"text": whole_text(row, roles, self.clean)}
        else:
            content = self._pair()
            if content is None:
                return None
        if "messages" in content:
            self._refuse_unseen(content["messages"])
        if roles.rejected:
            self.noted.marks.append(f"{roles.rejected}: the worse answer")
        return Shaped(
            content,
            self._metadata(),
            running="text" in content and not roles.text,
            blank=self.blank,
            unused=self._unused(content),
            beside="text" if "text" in content else "messages" if roles.messages else "question",
            marks=tuple(self.noted.marks),
            guesses=tuple(self.noted.guesses),
            splits=tuple(text for key in roles.splits if (text := self._split(key))),
        )

    def _metadata(self) -> dict[str, Any]:
        metadata = {key: self.row[key] for key in self.roles.left}
        if own := self.row.get("metadata"):
            metadata = {**own, **metadata} if isinstance(own, dict) else {"metadata": own, **metadata}
        return metadata

    def _unused(self, content: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
        for key in self.roles.left:
            if key == self.answered or key in self.masks or (key in self.roles.splits and self._split(key)):
                continue
            if key not in self.roles.marks:
                if not is_said(self.row[key], texts_of(content)):
                    self.noted.leave(key, key, self.row[key])
            elif not _is_plain_mark(self.row[key]):
                self.noted.leave(key, "text", self.row[key])
        if not self.noted.unused:
            return ()
        asked = [m["content"] for m in content.get("messages", ()) if m["role"] == "user"] or [content.get("text", "")]
        most = sum(map(len, asked))
        return tuple((name, length > most) for name, length in self.noted.unused.items())

    def _split(self, key: str) -> str:
        """Return the word for a split in a column: its text if that is one word, or the column's name if it is true."""
        value, name = self.row[key], key.strip().casefold()
        if not name.startswith("is_"):
            text = (as_text(value) or "").strip()
            return text if name.endswith("split") or text.isalpha() else ""
        if says_yes(value):
            return name.removeprefix("is_")
        return "test" if name == "is_train" and says_no(value) else ""

    # What must not be trained

    def _refuse_marked(self) -> None:
        for key in self.roles.states:
            if is_refused(self.row[key]):
                raise MarkedError(f"marked as not to be trained: {key} {self.row[key].strip()}")
        for key in self.roles.marks:
            value, name = self.row[key], key.strip().casefold()
            if name in JUDGING and (not is_truth(value) or self.roles.text):
                continue  # a class of the text, or a score
            if name == "loss" and not is_truth(value):
                continue  # a measurement
            if says_yes(value) if name in INVERSE_MARKS else says_no(value):
                raise MarkedError(f"marked as not to be trained: {key} {as_text(value)}")

    def _refuse_unseen(self, messages: list[dict[str, Any]]) -> None:
        for key in self.roles.media:
            if not _is_blank(self.row[key]):
                raise ValueError(f'"{key}" is not shown to a language model, and the answer may need it')
        for message in messages:
            content = message["content"]
            if "<" in content and message["role"] == "user" and (found := _PLACEHOLDER.search(content)):
                raise ValueError(f"the prompt holds {found[0].strip()}, which a language model is not shown")

    # Conversations

    def _conversation(self) -> dict[str, Any]:
        row, roles = self.row, self.roles
        turns = unpacked(row[roles.messages])
        messages = self._turns(turns, roles.messages)
        if roles.chosen:
            messages = self._with_better(messages)
        check_answers(messages, self.noted)
        return self._beside(messages)

    def _beside(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a conversation with the content of its neighbouring columns: system text, thought, tools."""
        row, roles = self.row, self.roles
        if roles.system and (system := self.clean(_system(row, roles.system).removeprefix("SYSTEM: "))):
            if messages[0]["role"] != "system":
                messages.insert(0, {"role": "system", "content": system})
            elif messages[0]["content"] != system:
                self.noted.leave(roles.system, "system", system)
        if roles.reasoning:
            answers = [message for message in messages if message["role"] == "assistant"]
            thought = as_text(row[roles.reasoning])
            if len(answers) == 1 and thought is not None and "reasoning_content" not in answers[0]:
                answers[0] |= {"reasoning_content": cleaned} if (cleaned := self.clean(thought)) else {}
            else:
                self.noted.leave(roles.reasoning, roles.reasoning, row[roles.reasoning])
        tools = tools_of(row[roles.tools], roles.tools) if roles.tools else []
        return {"messages": messages, "tools": tools} if tools else {"messages": messages}

    def _turns(self, turns: Any, name: str) -> list[dict[str, Any]]:
        turns = with_speakers(unpacked(turns), self.noted)
        return conversation(self._with_marks(turns) if self.roles.masks else turns, name, self.clean, self.noted)

    def _with_marks(self, turns: Any) -> Any:
        """Return the turns with the marks of a list beside them, if there is one for each turn."""
        for key in self.roles.masks:
            marks = unpacked(self.row[key])
            if not isinstance(turns, list) or not isinstance(marks, list) or len(marks) != len(turns):
                continue
            if all(isinstance(mark, bool | int | float) for mark in marks) and all(isinstance(t, dict) for t in turns):
                name = "mask" if key.strip().casefold() == "mask" else "loss_mask"
                turns = [{**turn, name: mark} for turn, mark in zip(turns, marks, strict=True)]
                self.masks.add(key)
        return turns

    def _with_better(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages before a preferred answer, which are only its context, and that answer."""
        name = self.roles.chosen
        better = self.row[name]
        if isinstance(better, str):
            turns = unpacked(better)
            better = turns if are_turns(turns) else turns_of_text(better) or better
        if isinstance(better, dict):
            better = [better]
        if isinstance(better, list):
            found = self._turns(better, name)
            start = 0 if found[0]["role"] == "assistant" else len(_common(messages, found))
            if start and start < len(messages):
                raise ValueError(f'"{name}" goes on from another conversation than the row holds')
            messages = [*messages, *found] if not start and found[0]["role"] == "assistant" else found
        else:
            messages = [*messages, {"role": "assistant", "content": self.clean(_text(self.row, name))}]
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError(f'"{name}" does not end with an answer')
        if not messages[-1]["content"] and "tool_calls" not in messages[-1]:
            raise ValueError(f"the {name} is empty")
        return self._last_alone(messages)

    def _last_alone(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return messages of which only the last answer, the one that was judged, is trained."""
        for message in messages[:-1]:
            if message["role"] == "assistant":
                message["train"] = False
                self.noted.marks.append("an answer before the better one")
        return messages

    # Questions and answers

    def _pair(self) -> dict[str, Any] | None:
        """Return a question and its answer, or running text; None if the row has another shape without blank cells."""
        row, roles = self.row, self.roles
        asked = unpacked(row[roles.asked]) if roles.asked else ""
        if isinstance(asked, dict) and isinstance(asked.get("messages"), list):  # hosted models' preference files
            asked = asked["messages"]
        if turns := self._asked_in_turns(asked):
            return self._continued(turns)
        if roles.chosen and (rounds := self._rounds(asked)):
            return self._beside(self._last_alone(rounds))
        options = self._options()
        prompt = self._prompt(options)
        earlier = self._history(roles.history)
        if roles.chosen:
            turns = [*earlier, *([{"role": "user", "content": prompt}] if prompt else [])]
            return self._beside(self._with_better(turns))
        if calls := self._calls():
            return self._beside([*earlier, {"role": "user", "content": prompt}, calls])
        answer = self._answer(options)
        if not answer:
            if not prompt and other_shape(row, roles, self.columns):
                return None
            raise ValueError(f"the {roles.answered} is empty")
        if not prompt:
            return self._line(answer)
        return self._beside([*earlier, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])

    def _options(self) -> Options:
        """Return the row's options; a list of answers is one if another column has the number of the right one."""
        row, name = self.row, self.roles.answered
        if self.roles.options or not name:
            return Options.of(row, self.roles.options)
        answers = unpacked(row[name])
        if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(text, str) for text in answers):
            return Options()
        names = {key.strip().casefold(): key for key in self.roles.left}
        right = (names[plain] for plain in RIGHT if plain in names)
        self.answered = next((key for key in right if whole_number(as_text(row[key]) or "") is not None), name)
        return Options.of(row, (("", name),)) if self.answered != name else Options()

    def _asked_in_turns(self, asked: Any) -> list[dict[str, Any]]:
        """Return the question if it is a conversation; empty if it is a text."""
        roles = self.roles
        if isinstance(asked, str):
            asked = turns_of_text(asked)
        if are_turns(asked):
            return self._turns(asked, roles.asked)
        if not roles.asked and len(roles.contexts) == 1:
            key = roles.contexts[0]
            if are_turns(turns := unpacked(self.row[key])):
                return self._turns(turns, key)
        return []

    def _rounds(self, asked: Any) -> list[dict[str, Any]]:
        """Return the rounds of a list of questions and a list of their answers; none if they are texts."""
        answers = unpacked(self.row[self.roles.chosen])
        if not isinstance(asked, list) or not isinstance(answers, list) or len(asked) != len(answers):
            return []
        if not all(isinstance(text, str) for text in (*asked, *answers)):
            return []
        both = (text for pair in zip(asked, answers, strict=True) for text in pair)
        return self._turns([{"role": BOTH[n % 2], "content": text} for n, text in enumerate(both)], self.roles.chosen)

    def _line(self, answer: str) -> dict[str, Any]:
        """Return a line of running text; the content beside it is unused."""
        roles = self.roles
        self.blank = roles.asked
        for key in (roles.system, roles.reasoning, roles.tools, roles.history):
            if key:
                self.noted.leave(key, key, self.row[key])
        return {"text": answer}

    def _prompt(self, options: Options) -> str:
        """Return the question followed by its context."""
        row, roles = self.row, self.roles
        if roles.contexts or options or roles.given:
            asked = self.clean(_text(row, roles.asked)) if roles.asked else ""
            given = self.clean(_text(row, roles.given)) if roles.given else ""
            contexts = [self.clean(text) for key in roles.contexts if (text := self._context(key))]
            return "\n\n".join(filter(None, (asked, given, *contexts, self.clean(options.shown))))
        return self.clean(_text(row, roles.asked)) if roles.asked else ""

    def _context(self, key: str) -> str:
        """Return a text that the question is about; "" for a mere name or number, which is metadata."""
        value = unpacked(self.row[key])
        text = flat(value)
        if text is None and isinstance(self.row[key], str):  # JSON that the question is about
            text = self.row[key]
        if text and (content_length("", text) or key.strip().casefold() in ("context", "contexto", "contexts")):
            return text
        if not _is_blank(value):
            self.noted.leave(key, key, value if text is None else "")
        return ""

    def _answer(self, options: Options) -> str:
        row, name = self.row, self.answered
        value = self._best(with_text(row[name], name), name)
        if options or options.missing:
            value = options.answer(value, name)
            if options.counted:
                self.noted.guesses.append("an answer that is the number of an option: 0 is the first")
        if isinstance(value, dict) and "text" in value:  # answers with their position in the context
            value = value["text"]
        if value == []:
            value = ""
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value) and name.endswith("s"):
            for other in value[1:]:
                if other != value[0]:
                    self.noted.leave(f"{name}[1:]", "answers", other)
            value = value[0]
        text = as_text(value)
        if text is None:
            raise ValueError(f'"{name}" must be a text, found {kind(value)}')
        return self.clean(text)

    def _best(self, value: Any, name: str) -> Any:
        """Return the best answer in a list with ranks or scores; any other value comes back unchanged."""
        if not isinstance(value, list) or not value or are_turns(value):
            return value
        if not all(isinstance(answer, dict) for answer in value):
            return value
        if len(value) > 1:
            self.noted.marks.append(f"{name}: the worse answers")
        return best_of(value, name)

    def _calls(self) -> dict[str, Any] | None:
        """Return the turn of an answer that is a list of calls to the row's tools."""
        row, roles = self.row, self.roles
        calls = unpacked(row[roles.answered]) if roles.tools and not _is_blank(row[roles.tools]) else None
        if not isinstance(calls, list) or not calls or not all(isinstance(c, dict) and "name" in c for c in calls):
            return None
        return {"role": "assistant", "content": "", "tool_calls": [call_of(call, 2) for call in calls]}

    def _continued(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a conversation that is asked and its continuation: only that is trained."""
        row, roles = self.row, self.roles
        if roles.chosen:
            return self._beside(self._with_better(messages))
        for message in messages:
            if message["role"] == "assistant":
                message["train"] = False
                self.noted.marks.append("an answer within the prompt")
        value = self._best(unpacked(row[roles.answered]), roles.answered)
        if isinstance(value, list | dict):
            messages += self._turns(value if isinstance(value, list) else [value], roles.answered)
        elif answer := self.clean(as_text(value) or ""):
            messages.append({"role": "assistant", "content": answer})
        else:
            raise ValueError(f"the {roles.answered} is empty")
        check_answers(messages, self.noted)
        return self._beside(messages)

    def _history(self, key: str) -> list[dict[str, Any]]:
        """Return the earlier rounds: pairs of texts, or turns."""
        rounds = unpacked(self.row[key]) if key else None
        if _is_blank(rounds):
            return []
        if are_turns(rounds):
            return self._turns(rounds, key)
        turns = []
        for number, item in enumerate(rounds if isinstance(rounds, list) else [None], 1):
            both = [as_text(text) for text in two_of(item)]
            if len(both) != 2 or not all(both):
                raise ValueError(f'round {number} of "{key}" must be a question and its answer')
            turns += [{"role": r, "content": self.clean(text or "")} for r, text in zip(BOTH, both, strict=True)]
        return turns


_PLACEHOLDER = re.compile(
    r"<\|(?:image|video|audio|vision)\w*\|>|(?m:^[ \t]*<image(?:_?\d+)?>|<image(?:_?\d+)?>[ \t]*$)"
    r"|(?m:^[ \t]*<(?:video|audio)>[ \t]*$)|\A<(?:video|audio)>(?=\S)"
)


def _common(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with which both begin."""
    same = []
    for one, other in zip(first, second, strict=False):
        if one["role"] != other["role"] or one["content"] != other["content"]:
            break
        same.append(one)
    return same


def with_text(value: Any, name: str) -> Any:
    """Return the answers in a cell of a table, as lists and objects stand there, if they are answers and no JSON."""
    found = unpacked(value)
    if isinstance(found, dict) and "text" in found and "answer_start" in found:
        return found
    texts = isinstance(found, list) and all(isinstance(text, str) for text in found)
    return found if texts and name.strip().casefold() == "answers" else value


_CONTEXT_TEXTS = ("text", "content", "passage", "contents", "body", "sentences", "passage_text")


def flat(value: Any) -> str | None:
    """Return the text of a context (a text, a list of texts, objects with a text and perhaps a title), or None."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [flat(item) for item in value]
        return None if None in texts else "\n\n".join(text for text in texts if text)
    if isinstance(value, dict):
        if len(value) > 1 and all(isinstance(each, list) for each in value.values()):  # a list of objects, by column
            return flat([dict(zip(value, each, strict=False)) for each in zip(*value.values(), strict=False)])
        text = next((flat(value[key]) for key in _CONTEXT_TEXTS if key in value), None)
        title = value.get("title")
        return f"{title}\n{text}" if text and isinstance(title, str) and title else text
    return None
