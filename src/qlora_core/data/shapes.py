"""A row as somebody wrote it to a row as it is trained: which of the known shapes it has. Knows nothing of files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .columns import (
    INVERSE_MARKS,
    JUDGING,
    MAPPED,
    OPTIONS,
    PAIRS,
    TELLING,
    Columns,
    Layout,
    columns_of,
    content_length,
    is_said,
    is_truth,
    layout_of,
    listed,
    says_no,
    says_yes,
    unknown_columns,
)
from .options import Options
from .records import MarkedError, texts_of
from .threads import speaks
from .turns import ROLES, Noted, as_text, check_answers, conversation, kind, tools_of, unpacked

__all__ = ["ACCEPTED", "MAPPED", "PAIRS", "ROLES", "Columns", "Layout", "Shaped", "columns_of", "kind", "layout_of",
           "shape", "unknown_columns"]  # fmt: skip

ACCEPTED = """accepted rows, one JSON object a line in a .jsonl file, or a row of a .json, .csv, .tsv or .parquet file:
  {"messages": [{"role": "user", "content": "Who founded the club?"}, {"role": "assistant", "content": "…"}]}
  {"conversations": [{"from": "human", "value": "Who founded the club?"}, {"from": "gpt", "value": "…"}]}
  {"prompt": "Who founded the club?", "completion": "…"}
  {"instruction": "Answer briefly.", "input": "Who founded the club?", "output": "…"}
  {"question": "Who founded the club?", "answer": "…"}        also {"pergunta": "…", "resposta": "…"}
  {"text": "The club was founded by …"}        also {"prompt": "", "completion": "…"}: running text
beside them: system, context, history, options, reasoning, tools; of chosen and rejected, chosen is the answer
other names for columns: --columns prompt=YOUR_NAME completion=YOUR_NAME
and documents: .md, .txt, .html, .docx, .odt, .rtf, .pdf, .epub, .tex, .ipynb, .srt, .vtt, .eml, .mbox
and exports: chats of WhatsApp, Telegram and Signal, Anki's notes and decks, Kindle's clippings
and folders of source code, and archives (.zip, .tar) of all of these"""

Clean = Callable[[str], str]


@dataclass(frozen=True)
class Shaped:
    """A row whose shape is known.

    Attributes:
        content: `{"messages": […]}` or `{"text": …}`, with `tools` where the row offers some.
        metadata: everything else that the row carried.
        running: whether its text is a line of running text, to be joined with its neighbours.
        blank: of such a row, the name of its column for questions, which is empty; "" if it has none.
        unused: names of what holds content and is used for nothing, and whether that is longer than the prompt.
        beside: what it stands beside: "text", "messages", or "question".
        marks: what its author marked as not to be trained, in words.
        guesses: what was taken to be so, in words.
        split: what the row says of its own split.
    """

    content: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    running: bool = False
    blank: str = field(default="", compare=False)
    unused: tuple[tuple[str, bool], ...] = field(default=(), compare=False)
    beside: str = field(default="question", compare=False)
    marks: tuple[str, ...] = field(default=(), compare=False)
    guesses: tuple[str, ...] = field(default=(), compare=False)
    split: str = field(default="", compare=False)


def shape(row: Any, columns: Columns, clean: Clean) -> Shaped:
    """Recognise a row.

    Args:
        row: a JSON value, or a row of a table; a null is as good as absent.
        columns: names that would not be recognised, as `columns_of` gives them.
        clean: what every text goes through.

    Raises:
        MarkedError: its author marked it as not to be trained.
        ValueError: what is wrong with it, in words for whoever wrote it.
    """
    if _are_turns(row):
        row = {"messages": row}
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, found {kind(row)}")
    if None in row.values():
        row = _without_nulls(row, columns)
    layout = layout_of(tuple(row), columns)
    if layout is None:
        raise ValueError(_unrecognised(row))
    if (layout.chosen and is_truth(row[layout.chosen])) or (layout.rejected and is_truth(row[layout.rejected])):
        return shape(_judged(row, layout), columns, clean)
    if layout.messages and not row[layout.messages] and (other := _other_shape(row, layout, columns)):
        return shape(other, columns, clean)
    if len(row) == 1 and layout.text:  # nearly all texts
        return Shaped({"text": _whole_text(row, layout, clean)})
    if layout.text and speaks(row):
        raise ValueError(_ALONE)
    if len(row) == 2 and layout.plain and (turns := _question(row, layout, clean)):  # nearly all questions
        return Shaped({"messages": turns})
    return _Row(row, layout, columns, clean).shaped()


def _is_plain_mark(value: Any) -> bool:
    """Whether a mark is true or 1, and so says nothing that is not done."""
    return value is None or value == 1 or is_truth(value) or (isinstance(value, str) and value.strip() in ("", "1"))


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and _speaks(turn) for turn in value)


def _speaks(turn: dict[str, Any]) -> bool:
    return ("role" in turn and "content" in turn) or ("from" in turn and "value" in turn)


def _unrecognised(row: dict[str, Any]) -> str:
    if speaks(row):
        return _ALONE
    return f'wanted "messages", "prompt" and "completion", or "text"; found the keys {listed(row)}'


def _without_nulls(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    filled = {key: v for key, v in row.items() if v is not None or key.strip().casefold() not in _ABSENT_IF_NULL}
    if not layout_of(tuple(filled), columns) and (layout := layout_of(tuple(row), columns)):
        name = next(key for key in (layout.messages, layout.answered, layout.chosen, layout.text) if key)
        wanted = "a list of {role, content}" if layout.messages else "a text"
        raise ValueError(f'"{name}" must be {wanted}, found null')
    return filled


def _judged(row: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """A row without `chosen` and `rejected`, which only say whether its answer is a good one.

    Raises:
        MarkedError: it is not.
    """
    for key, against in ((layout.chosen, says_no), (layout.rejected, says_yes)):
        if key and is_truth(row[key]) and against(row[key]):
            raise MarkedError(f"marked as not to be trained: {key} {as_text(row[key])}")
    return {
        key: value for key, value in row.items() if not (key in (layout.chosen, layout.rejected) and is_truth(value))
    }


def _other_shape(row: dict[str, Any], layout: Layout, columns: Columns) -> dict[str, Any]:
    """The row without its empty columns, where it has another shape then; tables have all columns in every row."""
    filled = {key: value for key, value in row.items() if not _is_blank(value)}
    other = layout_of(tuple(filled), columns)
    return filled if other and other != layout else {}


def _is_blank(value: Any) -> bool:
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def _text(row: dict[str, Any], name: str) -> str:
    text = as_text(row[name])
    if text is None:
        raise ValueError(f'"{name}" must be a text, found {kind(row[name])}')
    return text


def _whole_text(row: dict[str, Any], layout: Layout, clean: Clean) -> str:
    if not isinstance(row[layout.text], str):  # a number is an answer, but no text to learn by heart
        raise ValueError(f'"{layout.text}" must be a text, found {kind(row[layout.text])}')
    text = clean(row[layout.text])
    if not text:
        raise ValueError("the text is empty")
    return text


def _question(row: dict[str, Any], layout: Layout, clean: Clean) -> list[dict[str, Any]]:
    """The turns of a question and its answer; empty where there is more to be said of them."""
    asked, answered = row[layout.asked], row[layout.answered]
    if type(asked) is not str or type(answered) is not str or "<" in asked or asked[:1] in ("[", "{"):
        return []
    asked, answered = clean(asked), clean(answered)
    if not asked or not answered:
        return []
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


class _Row:
    """A row whose columns are known."""

    def __init__(self, row: dict[str, Any], layout: Layout, columns: Columns, clean: Clean) -> None:
        self.row, self.layout, self.columns, self.clean = row, layout, columns, clean
        self.noted = Noted()
        self.blank = ""

    def shaped(self) -> Shaped:
        """The row, put together.

        Raises:
            ValueError: what is wrong with it.
        """
        row, layout = self.row, self.layout
        if layout.marks:
            self._refuse_marked()
        if layout.messages:
            content = self._conversation()
        elif layout.text:
            content = {"text": _whole_text(row, layout, self.clean)}
        else:
            content = self._pair()
            if content is None:
                return shape(_other_shape(row, layout, self.columns), self.columns, self.clean)
        if "messages" in content:
            self._refuse_unseen(content["messages"])
        if layout.rejected:
            self.noted.marks.append(f"{layout.rejected}: the worse answer")
        return Shaped(
            content,
            self._metadata(),
            running="text" in content and not layout.text,
            blank=self.blank,
            unused=self._unused(content),
            beside="text" if "text" in content else "messages" if layout.messages else "question",
            marks=tuple(self.noted.marks),
            guesses=tuple(self.noted.guesses),
            split=str(row[layout.split]) if layout.split else "",
        )

    def _metadata(self) -> dict[str, Any]:
        metadata = {key: self.row[key] for key in self.layout.left}
        if own := self.row.get("metadata"):
            metadata = {**own, **metadata} if isinstance(own, dict) else {"metadata": own, **metadata}
        return metadata

    def _unused(self, content: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
        for key in self.layout.left:
            if key == self.layout.split:
                continue
            if key not in self.layout.marks:
                if not is_said(self.row[key], texts_of(content)):
                    self.noted.leave(key, key, self.row[key])
            elif not _is_plain_mark(self.row[key]):
                self.noted.leave(key, "text", self.row[key])
        if not self.noted.unused:
            return ()
        asked = [m["content"] for m in content.get("messages", ()) if m["role"] == "user"] or [content.get("text", "")]
        most = sum(map(len, asked))
        return tuple((name, length > most) for name, length in self.noted.unused.items())

    # What must not be trained

    def _refuse_marked(self) -> None:
        for key in self.layout.marks:
            value, name = self.row[key], key.strip().casefold()
            if name in JUDGING and (not is_truth(value) or self.layout.text):
                continue  # a class of its text, or a number that says how good it is
            if name == "loss" and not is_truth(value):
                continue  # what was measured
            if says_yes(value) if name in INVERSE_MARKS else says_no(value):
                raise MarkedError(f"marked as not to be trained: {key} {as_text(value)}")

    def _refuse_unseen(self, messages: list[dict[str, Any]]) -> None:
        for key in self.layout.media:
            if not _is_blank(self.row[key]):
                raise ValueError(f'"{key}" is not shown to a language model, and the answer may need it')
        for message in messages:
            content = message["content"]
            if "<" in content and message["role"] == "user" and (found := _PLACEHOLDER.search(content)):
                raise ValueError(f"the prompt holds {found[0].strip()}, which a language model is not shown")

    # Conversations

    def _conversation(self) -> dict[str, Any]:
        row, layout = self.row, self.layout
        turns = unpacked(row[layout.messages])
        messages = self._turns(turns, layout.messages)
        if layout.chosen:
            messages = self._with_better(messages)
        check_answers(messages, self.noted)
        return self._beside(messages)

    def _beside(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """A conversation with what stands in columns beside it: system text, thought, tools."""
        row, layout = self.row, self.layout
        if layout.system and (system := self.clean(_text(row, layout.system))):
            if messages[0]["role"] != "system":
                messages.insert(0, {"role": "system", "content": system})
            elif messages[0]["content"] != system:
                self.noted.leave(layout.system, "system", system)
        if layout.reasoning:
            answers = [message for message in messages if message["role"] == "assistant"]
            thought = as_text(row[layout.reasoning])
            if len(answers) == 1 and thought is not None and "reasoning_content" not in answers[0]:
                answers[0] |= {"reasoning_content": cleaned} if (cleaned := self.clean(thought)) else {}
            else:
                self.noted.leave(layout.reasoning, layout.reasoning, row[layout.reasoning])
        tools = tools_of(row[layout.tools], layout.tools) if layout.tools else []
        return {"messages": messages, "tools": tools} if tools else {"messages": messages}

    def _turns(self, turns: Any, name: str) -> list[dict[str, Any]]:
        return conversation(turns, name, self.clean, self.noted)

    def _with_better(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages before a preferred answer, which only are its context, and that answer."""
        name = self.layout.chosen
        better = self.row[name]
        if isinstance(better, str) and _are_turns(turns := unpacked(better)):
            better = turns
        if isinstance(better, dict):
            better = [better]
        if isinstance(better, list):
            found = self._turns(better, name)
            start = 0 if found[0]["role"] == "assistant" else len(_common(messages, found))
            if start and start < len(messages):
                raise ValueError(f'"{name}" goes on from another conversation than the row holds')
            messages = [*messages, *found] if not start and found[0]["role"] == "assistant" else found
        else:
            messages = [*messages, *_transcript(_text(self.row, name), self.clean)]
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError(f'"{name}" does not end with an answer')
        if not messages[-1]["content"] and "tool_calls" not in messages[-1]:
            raise ValueError(f"the {name} is empty")
        for message in messages[:-1]:
            if message["role"] == "assistant":
                message["train"] = False
                self.noted.marks.append("an answer before the better one")
        return messages

    # Questions and answers

    def _pair(self) -> dict[str, Any] | None:
        """A question and its answer, or running text; None where the row has another shape without its blank cells."""
        row, layout = self.row, self.layout
        asked = unpacked(row[layout.asked]) if layout.asked else ""
        if isinstance(asked, dict) and isinstance(asked.get("messages"), list):  # hosted models' preference files
            asked = asked["messages"]
        if _are_turns(asked):
            return self._continued(self._turns(asked, layout.asked))
        options = Options.of(row, layout.options)
        prompt = self._prompt(options)
        earlier = self._history()
        if layout.chosen:
            turns = [*earlier, *([{"role": "user", "content": prompt}] if prompt else [])]
            return self._beside(self._with_better(turns))
        answer = self._answer(options)
        if not answer:
            if not prompt and _other_shape(row, layout, self.columns):
                return None
            raise ValueError(f"the {layout.answered} is empty")
        if not prompt:
            return self._line(answer)
        return self._beside([*earlier, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])

    def _line(self, answer: str) -> dict[str, Any]:
        """A line of running text; what stands beside it is used for nothing."""
        layout = self.layout
        self.blank = layout.asked
        for key in (layout.system, layout.reasoning, layout.tools, layout.history):
            if key:
                self.noted.leave(key, key, self.row[key])
        return {"text": answer}

    def _prompt(self, options: Options) -> str:
        """What is asked, with what it is about behind it."""
        row, layout = self.row, self.layout
        if layout.contexts or options or layout.given:
            asked = self.clean(_text(row, layout.asked)) if layout.asked else ""
            given = self.clean(_text(row, layout.given)) if layout.given else ""
            contexts = [self.clean(text) for key in layout.contexts if (text := self._context(key))]
            return "\n\n".join(filter(None, (asked, given, *contexts, self.clean(options.shown))))
        return self.clean(_text(row, layout.asked)) if layout.asked else ""

    def _context(self, key: str) -> str:
        """A text that the question is about; "" for the name or number of one, which is metadata."""
        value = unpacked(self.row[key])
        text = flat(value)
        if text and (content_length("", text) or key.strip().casefold() in ("context", "contexto", "contexts")):
            return text
        if not _is_blank(value):
            self.noted.leave(key, key, value if text is None else "")
        return ""

    def _answer(self, options: Options) -> str:
        row, name = self.row, self.layout.answered
        value = row[name]
        if options or options.missing:
            value = options.answer(value, name)
            if options.counted:
                self.noted.guesses.append("an answer that is the number of an option: 0 is the first")
        if isinstance(value, dict) and "text" in value:  # answers with where they stand in the context
            value = value["text"]
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value) and name.endswith("s"):
            for other in value[1:]:
                if other != value[0]:
                    self.noted.leave(f"{name}[1:]", "answers", other)
            value = value[0]
        text = as_text(value)
        if text is None:
            raise ValueError(f'"{name}" must be a text, found {kind(value)}')
        return self.clean(text)

    def _continued(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """A conversation that is asked, and how it goes on: only that is trained."""
        row, layout = self.row, self.layout
        if layout.chosen:
            return self._beside(self._with_better(messages))
        for message in messages:
            if message["role"] == "assistant":
                message["train"] = False
                self.noted.marks.append("an answer within the prompt")
        value = unpacked(row[layout.answered])
        if isinstance(value, list | dict):
            messages += self._turns(value if isinstance(value, list) else [value], layout.answered)
        elif answer := self.clean(_text(row, layout.answered)):
            messages.append({"role": "assistant", "content": answer})
        else:
            raise ValueError(f"the {layout.answered} is empty")
        check_answers(messages, self.noted)
        return self._beside(messages)

    def _history(self) -> list[dict[str, Any]]:
        """Earlier rounds: pairs of texts, or turns."""
        key = self.layout.history
        rounds = unpacked(self.row[key]) if key else None
        if _is_blank(rounds):
            return []
        if _are_turns(rounds):
            return self._turns(rounds, key)
        turns = []
        for number, item in enumerate(rounds if isinstance(rounds, list) else [None], 1):
            both = [as_text(text) for text in _two_of(item)]
            if len(both) != 2 or not all(both):
                raise ValueError(f'round {number} of "{key}" must be a question and its answer')
            turns += [{"role": r, "content": self.clean(text or "")} for r, text in zip(_BOTH, both, strict=True)]
        return turns


_ALONE = (
    "is one message of a conversation, and nothing says which: join the messages to rows, or give each a "
    '"message_id" and a "parent_id", or a "conversation_id"'
)
_ABSENT_IF_NULL = TELLING - frozenset(OPTIONS)  # a question of choice without its options cannot be answered
_BOTH = ("user", "assistant")
_PLACEHOLDER = re.compile(
    r"<\|(?:image|video|audio|vision)\w*\|>|(?m:^[ \t]*<image(?:_?\d+)?>|<image(?:_?\d+)?>[ \t]*$)"
    r"|(?m:^[ \t]*<(?:video|audio)>[ \t]*$)|\A<(?:video|audio)>(?=\S)"
)


def _two_of(item: Any) -> list[Any]:
    """A question and its answer, from a pair or an object of two."""
    if isinstance(item, dict):
        layout = layout_of(tuple(item))
        if layout and layout.asked and layout.answered:
            return [item[layout.asked], item[layout.answered]]
        return [next((item[name] for name in _NAMES_OF[role] if name in item), None) for role in _BOTH]
    return item if isinstance(item, list) else []


_NAMES_OF = {role: [name for name, stands_for in ROLES.items() if stands_for == role] for role in _BOTH}


def _common(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with which both begin."""
    same = []
    for one, other in zip(first, second, strict=False):
        if one["role"] != other["role"] or one["content"] != other["content"]:
            break
        same.append(one)
    return same


def _transcript(text: str, clean: Clean) -> list[dict[str, Any]]:
    """The answer that a text is; or the turns of a whole talk between `Human:` and `Assistant:`."""
    parts = re.split(r"\n\n(Human|Assistant):", text)
    if not text.startswith("\n\nHuman:") or len(parts) < 4:
        return [{"role": "assistant", "content": clean(text)}]
    return [
        {"role": ROLES[speaker.casefold()], "content": clean(said)}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def flat(value: Any) -> str | None:
    """The text of a context: a text, a list of texts, or objects with a text and perhaps a title; None otherwise."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [flat(item) for item in value]
        return None if None in texts else "\n\n".join(text for text in texts if text)
    if isinstance(value, dict):
        text = next(
            (flat(value[key]) for key in ("text", "content", "passage", "contents", "body") if key in value), None
        )
        title = value.get("title")
        return f"{title}\n{text}" if text and isinstance(title, str) and title else text
    return None
