"""Rows of text to token ids, and which of them are trained.

Knows chat templates, the tokeniser and the loss mask. Uses `tokenizers` and jinja2's sandbox; knows nothing of mlx and
does not import transformers, so that the page can show what will be trained.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import itertools
import json
import operator
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

import numpy as np
from jinja2 import Template, TemplateError, nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from .errors import DataError, ModelError
from .parallel import in_processes, processes

PARALLEL_ROWS = 20_000  # fewer rows are encoded before worker processes have started
CHUNK_ROWS = 2_000  # rows a task of a worker process: a tenth of a second
WORD_JOINER = "\u2060"  # breaks a control token spelled out in somebody's text, and is invisible

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}### Response:\n{{ message['content'] }}{{ eos_token }}\n"
    "{% else %}### Prompt:\n{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)
"""For a base model that brings no chat template of its own."""


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One row as the trainer sees it.

    Attributes:
        ids: int32, `(length,)`.
        trained: bool, `(length,)`; True where the token is a target of the loss. The first token never is.
        source: where the row came from (file:line).
        cut: tokens lost beyond `max_seq_length`.
        armed: whether its text spells a control token of the model, which was broken up.
    """

    ids: np.ndarray
    trained: np.ndarray
    source: str = ""
    cut: int = 0
    armed: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenRow):
            return NotImplemented
        same = (self.source, self.cut, self.armed) == (other.source, other.cut, other.armed)
        return same and np.array_equal(self.ids, other.ids) and np.array_equal(self.trained, other.trained)

    __hash__ = None  # arrays have none

    @property
    def target_tokens(self) -> int:
        """Number of trained tokens."""
        return int(self.trained.sum())


@dataclass(frozen=True, eq=False, repr=False)
class TokenRows(Sequence[TokenRow]):
    """Many rows end to end in a few arrays that cannot be written to; a row of it is a view.

    Attributes:
        ids: int32, `(tokens,)`.
        trained: bool, `(tokens,)`.
        offsets: int64, `(rows + 1,)`: where in `ids` each row begins, and the last ends.
        cut: int32, `(rows,)`.
        armed: bool, `(rows,)`.
        source_bytes: uint8: the sources end to end in UTF-8.
        source_offsets: int64, `(rows + 1,)`: where in `source_bytes` each begins, and the last ends.
    """

    ids: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray
    cut: np.ndarray
    armed: np.ndarray
    source_bytes: np.ndarray
    source_offsets: np.ndarray

    def __post_init__(self) -> None:
        for name, array in zip(_names(TokenRows), self._arrays(), strict=True):
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @classmethod
    def of(cls, rows: Iterable[TokenRow]) -> TokenRows:
        """The same rows, compact; what is compact already comes back itself."""
        if isinstance(rows, TokenRows):
            return rows
        rows = list(rows)
        sources = [row.source.encode("utf-8", "surrogatepass") for row in rows]  # a file's name may be no Unicode
        return cls(
            ids=np.concatenate([np.zeros(0, np.int32), *(row.ids for row in rows)], dtype=np.int32),
            trained=np.concatenate([np.zeros(0, bool), *(row.trained for row in rows)], dtype=bool),
            offsets=_offsets([len(row) for row in rows]),
            cut=np.asarray([row.cut for row in rows], np.int32),
            armed=np.asarray([row.armed for row in rows], bool),
            source_bytes=np.frombuffer(b"".join(sources), np.uint8),
            source_offsets=_offsets([len(source) for source in sources]),
        )

    @classmethod
    def joined(cls, parts: list[TokenRows]) -> TokenRows:
        """The rows of all parts in order. The list is empty then: each part is let go when it has been copied."""
        lengths = [np.concatenate([np.zeros(0, np.int64), *(np.diff(p.offsets) for p in parts)])]
        lengths += [np.concatenate([np.zeros(0, np.int64), *(np.diff(p.source_offsets) for p in parts)])]
        tokens, sources = _offsets(lengths[0]), _offsets(lengths[1])
        count = len(lengths[0])
        whole = (
            np.empty(tokens[-1], np.int32), np.empty(tokens[-1], bool), tokens, np.empty(count, np.int32),
            np.empty(count, bool), np.empty(sources[-1], np.uint8), sources,
        )  # fmt: skip
        filled = [0] * len(whole)
        parts.reverse()
        while parts:
            for i, array in enumerate(parts.pop()._arrays()):
                if whole[i] is not tokens and whole[i] is not sources:
                    whole[i][filled[i] : filled[i] + len(array)] = array
                    filled[i] += len(array)
        return cls(*whole)

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(getattr(self, name) for name in _names(TokenRows))

    def __reduce__(self) -> tuple[type[TokenRows], tuple[np.ndarray, ...]]:
        return TokenRows, self._arrays()  # an array that was pickled could be written to

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...

    @overload
    def __getitem__(self, index: slice) -> TokenRows: ...

    def __getitem__(self, index: int | slice) -> TokenRow | TokenRows:
        if isinstance(index, slice):
            return self._slice(*index.indices(len(self)))
        i = operator.index(index)
        i += len(self) if i < 0 else 0
        if not 0 <= i < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        here = slice(self.offsets[i], self.offsets[i + 1])
        source = self.source_bytes[self.source_offsets[i] : self.source_offsets[i + 1]]
        return TokenRow(
            self.ids[here],
            self.trained[here],
            source.tobytes().decode("utf-8", "surrogatepass"),
            int(self.cut[i]),
            bool(self.armed[i]),
        )

    def _slice(self, start: int, stop: int, step: int) -> TokenRows:
        if step != 1:
            return TokenRows.of(self[i] for i in range(start, stop, step))
        stop = max(start, stop)
        tokens, sources = self.offsets[start : stop + 1], self.source_offsets[start : stop + 1]
        return TokenRows(
            self.ids[tokens[0] : tokens[-1]],
            self.trained[tokens[0] : tokens[-1]],
            tokens - tokens[0],
            self.cut[start:stop],
            self.armed[start:stop],
            self.source_bytes[sources[0] : sources[-1]],
            sources - sources[0],
        )

    def __iter__(self) -> Iterator[TokenRow]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenRows):
            return NotImplemented
        return all(map(np.array_equal, self._arrays(), other._arrays()))

    __hash__ = None

    def __repr__(self) -> str:
        return f"TokenRows({len(self)} rows, {len(self.ids)} tokens)"

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int64, `(rows,)`: tokens of each row."""
        return np.diff(self.offsets)

    @functools.cached_property
    def target_lengths(self) -> np.ndarray:
        """int64, `(rows,)`: trained tokens of each row."""
        counts = np.zeros(len(self), np.int64)
        filled = np.flatnonzero(self.lengths)  # of an empty row, `reduceat` would give its neighbour's first token
        for start in range(0, len(filled), CHUNK_ROWS):  # it makes a copy eight times as large
            part = filled[start : start + CHUNK_ROWS]
            first, last = self.offsets[part[0]], self.offsets[part[-1] + 1]
            counts[part] = np.add.reduceat(self.trained[first:last], self.offsets[part] - first, dtype=np.int64)
        return counts


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64, `(rows + 1,)`: where each begins that has one of these lengths, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class ChatTokenizer:
    """The tokeniser of a model directory with its chat template.

    Args:
        directory: holds `tokenizer.json` and, usually, `tokenizer_config.json`.

    Raises:
        ModelError: `tokenizer.json` is missing or unreadable, no end-of-text token is known, or the chat template is
            not one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        path = self.directory / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path}: not found. A model directory needs a tokenizer.json (a fast tokeniser).")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path}: cannot be read as a tokeniser: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        settings = _read_json(self.directory / "tokenizer_config.json")
        self.bos_token = _token_text(settings.get("bos_token"))
        self.eos_token = _token_text(settings.get("eos_token"))
        self.eos_ids = self._end_ids()
        self.control_tokens = sorted(
            (token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special),
            key=len,
            reverse=True,
        )
        self._first_letters = {token[0] for token in self.control_tokens}
        self._ends_text = np.zeros(max([*self._tokenizer.get_vocab().values(), *self.eos_ids]) + 1, bool)
        self._ends_text[list(self.eos_ids)] = True
        self.template_text = self._template_text(settings)
        try:
            self._template = _ChatTemplate(self.template_text, self.bos_token or "", self.eos_token)
        except TemplateError as error:
            raise ModelError(f"{self.directory}: its chat template cannot be read: {error}") from None

    def _end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer; the tokeniser's own end-of-text comes first."""
        found = [self._tokenizer.token_to_id(self.eos_token)] if self.eos_token else []
        for name in ("config.json", "generation_config.json"):
            ids = _read_json(self.directory / name).get("eos_token_id")
            found += ids if isinstance(ids, list) else [ids]
        ids = [i for i in dict.fromkeys(found) if isinstance(i, int) and self._tokenizer.id_to_token(i) is not None]
        if not ids:
            raise ModelError(f"{self.directory}: no end-of-text token in tokenizer_config.json or config.json.")
        self.eos_token = self.eos_token or self._tokenizer.id_to_token(ids[0])
        return tuple(ids)

    def _template_text(self, settings: dict[str, Any]) -> str:
        own = self.directory / "chat_template.jinja"
        if own.is_file():
            return own.read_text(encoding="utf-8")
        template = settings.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = next((t["template"] for t in template if t.get("name") == "default"), None)
        return template or PLAIN_TEMPLATE

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokeniser, the template and the ids that end a text."""
        digest = hashlib.sha256((self.directory / "tokenizer.json").read_bytes())
        digest.update(self.template_text.encode())
        digest.update(repr((self.bos_token, self.eos_ids)).encode())
        return digest.hexdigest()

    def render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        """Messages as the text the model sees; control tokens spelled out in their content are broken up.

        Raises:
            DataError: the template refuses these messages (two user turns in a row, say).
        """
        return self._template.render(self._disarmed(messages), ask=add_generation_prompt)

    def _disarmed(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        return [{**m, "content": self.disarm(m["content"])} for m in messages]

    def disarm(self, text: str) -> str:
        """Break every control token spelled out in `text`, so that data cannot speak as the system or end a turn.

        A text that spells none comes back itself, not a copy.
        """
        if any(letter in text for letter in self._first_letters):  # a model may have hundreds of control tokens
            for token in self.control_tokens:
                if token in text:
                    text = text.replace(token, token[0] + WORD_JOINER + token[1:])
        return text

    def encode_row(self, row: dict[str, Any], max_seq_length: int) -> TokenRow:
        """Encode a prepared row, `{"messages": […]}` or `{"text": …}`.

        Every assistant turn is trained up to and including its end-of-text token; of a text row, everything. The end
        of text is always there to be trained, unless it is cut off.

        Raises:
            DataError: the template refuses the row.
        """
        if "messages" in row:
            safe = self._disarmed(row["messages"])
            armed = any(a["content"] is not b["content"] for a, b in zip(safe, row["messages"], strict=True))
            ids, trained = self._encode_messages(safe)
        else:
            text = self.disarm(row["text"])
            armed = text is not row["text"]
            found = self._tokenizer.encode(text, add_special_tokens=True).ids
            if not found or found[-1] not in self.eos_ids:
                found.append(self.eos_ids[0])
            ids = np.asarray(found, np.int32)
            trained = np.ones(len(ids), bool)
        trained[0] = False
        cut = max(0, len(ids) - max_seq_length)
        if cut:  # a copy, so that what is cut off does not stay in memory
            ids, trained = ids[:max_seq_length].copy(), trained[:max_seq_length].copy()
        return TokenRow(ids, trained, row.get("source", ""), cut, armed)

    def _encode_messages(self, messages: Sequence[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        text, ends = self._template.conversation(messages)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.int32)
        if not len(ids):
            raise DataError("the model's chat template writes nothing for this conversation")
        first, last = (
            np.fromiter(itertools.chain.from_iterable(encoding.offsets), np.int64, 2 * len(ids)).reshape(-1, 2).T
        )
        trained, ends_text = np.zeros(len(ids), bool), self._ends_text[ids]
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start, stop = self._template.answer_span(text, messages, turn, ends)
            inside = (first >= start) & (last <= stop)
            end = (inside & ends_text).argmax()
            if inside[end] and ends_text[end]:
                inside[end + 1 :] = False  # what a template writes behind it (a line feed) is not the model's to say
            elif stop == len(text) and turn + 1 < len(messages):
                raise DataError(f"the model's chat template does not show where the answer of turn {turn + 1} ends")
            trained |= inside
        if trained[-1] and not ends_text[-1]:
            ids, trained = np.append(ids, np.int32(self.eos_ids[0])), np.append(trained, True)
        return ids, trained

    def encode_prompt(self, prompt: str | Sequence[dict[str, str]]) -> list[int]:
        """Ids of a question, ready for the model's answer."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = self.render(messages, add_generation_prompt=True)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def text_of_row(self, row: dict[str, Any]) -> str:
        """A prepared row as the text the model sees, for a trainer that renders no conversation itself.

        Raises:
            DataError: the template refuses the row.
        """
        return self.render(row["messages"]) if "messages" in row else self.disarm(row["text"])

    def count(self, text: str) -> int:
        """Tokens of a text without begin or end."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, without control tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    @property
    def vocabulary(self) -> int:
        """Ids that the tokeniser may give: one more than the highest."""
        return len(self._ends_text)


class _ChatTemplate:
    """A chat template, which renders a conversation and its beginnings as seldom as its program allows.

    The span of an answer needs four texts: the conversation, what comes before the answer, that with the model asked to
    speak, and that with the answer. Many a template is a loop over the messages that never looks ahead: one rendering
    with a mark before each turn holds them all. Of most others, one rendering holds the two questions.

    Raises:
        TemplateError: it is not a template.
    """

    def __init__(self, text: str, bos_token: str, eos_token: str) -> None:
        self._names = {"bos_token": bos_token, "eos_token": eos_token}
        self._whole = _sandbox().from_string(text)
        self._turns, self._request = _marked_turns(text, self._names)
        self._asks = _marked_request(text)

    def render(self, messages: Sequence[dict[str, str]], *, ask: bool = False) -> str:
        """Messages as text.

        Raises:
            DataError: the template refuses them.
        """
        try:
            return self._whole.render(messages=messages, add_generation_prompt=ask, **self._names)
        except Exception as error:  # a template is a program of the model's: it may raise anything
            raise DataError(f"the model's chat template refuses this conversation: {error}") from None

    def conversation(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
        """The text, and how much of it the first 0, 1, 2, … messages write, empty where one rendering cannot tell.

        Raises:
            DataError: the template refuses the conversation.
        """
        if self._turns and messages and messages[0]["role"] != "assistant":  # of no messages, it may write otherwise
            with contextlib.suppress(Exception):  # rendered again without marks, for the words of its refusal
                pieces = self._turns.render(messages=messages, add_generation_prompt=False, **self._names).split(_MARK)
                if len(pieces) == len(messages) + 1:
                    return "".join(pieces), list(itertools.accumulate(map(len, pieces)))
        return self.render(messages), []

    def answer_span(
        self, text: str, messages: Sequence[dict[str, str]], turn: int, ends: Sequence[int]
    ) -> tuple[int, int]:
        """Where in the rendered conversation an answer begins, and where it has ended at the latest.

        A template may write an answer otherwise when more follows (Qwen3 drops its reasoning), so that a conversation
        cut behind it need not be a beginning of the whole one; the answer's end-of-text token then ends it.

        Args:
            text: of the whole conversation, with `ends`, as `conversation` gave them.
            messages: control tokens in them are broken up.
            turn: the answer's index in `messages`.
            ends: see `text`.

        Raises:
            DataError: the template refuses a beginning of the conversation, or does not write it as the whole begins.
        """
        if ends:
            return _common(text, self._request, ends[turn]), ends[turn + 1]
        before, asked = self._questions(messages[:turn])
        if not text.startswith(before if turn else ""):
            raise DataError(f"the model's chat template rewrites what comes before turn {turn + 1}")
        asked = self.render(messages[:turn], ask=True) if asked is None else asked
        answered = self.render(messages[: turn + 1]) if turn + 1 < len(messages) else text
        return _common(text, asked), len(answered) if text.startswith(answered) else len(text)

    def _questions(self, messages: Sequence[dict[str, str]]) -> tuple[str, str | None]:
        """The text of messages and that with the model asked to speak, or None where it is to be rendered."""
        if self._asks:
            with contextlib.suppress(Exception):
                rendered = self._asks.render(messages=messages, add_generation_prompt=True, **self._names)
                before, _, request = rendered.rpartition(_MARK)
                return before, before + request
        return self.render(messages) if messages else "", None


_MARK = f"\0{secrets.token_hex(16)}\0"  # data cannot know it


def _marked_request(text: str) -> Template | None:
    """The template with a mark before what asks the model to speak, if that is its end and nothing else depends on it.

    What stands before the mark is then the text without the request.
    """
    tree = _sandbox().parse(text)
    last = tree.body[-1] if tree.body else None
    asks = (
        isinstance(last, nodes.If) and isinstance(last.test, nodes.Name) and last.test.name == "add_generation_prompt"
    )
    if not asks or last.elif_ or last.else_ or _uses(tree, "add_generation_prompt") != 1:
        return None
    if tree.find((nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
        return None
    tree.body.insert(-1, _mark())
    return _sandbox().from_string(tree)


def _marked_turns(text: str, names: dict[str, str]) -> tuple[Template | None, str]:
    """The template with a mark before each turn, and its request; if it writes a message without regard to later ones.

    It does where its end is a loop over the messages and a request that is always the same, it looks at no messages
    besides but the first, and of the loop's state only at what has been.
    """
    tree = _sandbox().parse(text)
    if not _marked_request(text) or len(tree.body) < 2:
        return None, ""
    loop, request = tree.body[-2:]
    if not isinstance(loop, nodes.For) or loop.recursive or loop.test or loop.else_:
        return None, ""
    over_messages = isinstance(loop.iter, nodes.Name) and loop.iter.name == "messages"
    firsts = sum(
        isinstance(item.node, nodes.Name) and item.node.name == "messages" and item.arg == nodes.Const(0)
        for item in tree.find_all(nodes.Getitem)
    )
    behind = sum(
        isinstance(item.node, nodes.Name) and item.node.name == "loop" and item.attr in ("first", "index", "index0")
        for item in tree.find_all(nodes.Getattr)
    )
    if not over_messages or _uses(tree, "messages") != 1 + firsts or _uses(tree, "loop") != behind:
        return None, ""
    varying = any(name.name not in names for name in request.find_all(nodes.Name) if name is not request.test)
    if varying or any(name.name in names and name.ctx != "load" for name in tree.find_all(nodes.Name)):
        return None, ""
    asked = _sandbox().from_string(nodes.Template([request], lineno=1)).render(add_generation_prompt=True, **names)
    loop.body.insert(0, _mark())
    return _sandbox().from_string(tree), asked


def _uses(tree: nodes.Node, name: str) -> int:
    return sum(node.name == name for node in tree.find_all(nodes.Name))


def _mark() -> nodes.Output:
    return nodes.Output([nodes.TemplateData(_MARK, lineno=1)], lineno=1)


def _common(text: str, other: str, start: int = 0) -> int:
    """Where `text`, from `start` on, first differs from `other`; its end where it does not."""
    if text.startswith(other, start):
        return start + len(other)
    letters = enumerate(zip(itertools.islice(text, start, None), other, strict=False))
    return start + next((i for i, (a, b) in letters if a != b), len(other))


@dataclass(frozen=True)
class TokenDataset:
    """Rows ready to train, and what could not be used.

    Attributes:
        rows: in the order of the prepared file; given as any sequence of rows, they are made compact.
        skipped: (source, reason) of each row with nothing to train.
    """

    rows: TokenRows
    skipped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", TokenRows.of(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """All real tokens."""
        return len(self.rows.ids)

    @property
    def target_tokens(self) -> int:
        """Trained tokens."""
        return int(np.count_nonzero(self.rows.trained))

    @property
    def truncated(self) -> int:
        """Rows that lost tokens at their end."""
        return int(np.count_nonzero(self.rows.cut))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.rows.lengths.max(initial=0))


def make_dataset(
    rows: Iterable[dict[str, Any]],
    tokenizer: ChatTokenizer,
    max_seq_length: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> TokenDataset:
    """Encode prepared rows; one whose prompt fills `max_seq_length`, or that the template refuses, is reported.

    From `PARALLEL_ROWS` on, processes share the work; the result is the same to the bit.

    Args:
        rows: the prepared rows. Where it has a method `lines(start, stop)`, which gives rows as lines of JSON in
            bytes, the processes get those.
        tokenizer: of the model; the processes read it from its directory again.
        max_seq_length: tokens a row may have.
        progress: is told how many rows are done, now and then.

    Raises:
        DataError: a process was killed.
    """
    rows = rows if isinstance(rows, Sequence) else list(rows)
    chunks = [(start, min(start + CHUNK_ROWS, len(rows))) for start in range(0, len(rows), CHUNK_ROWS)]
    if len(rows) >= PARALLEL_ROWS and processes() > 1:
        lines = getattr(rows, "lines", None) or (lambda start, stop: list(_part(rows, start, stop)))
        work = functools.partial(_encode_lines, directory=tokenizer.directory, max_seq_length=max_seq_length)
        results = in_processes(work, (lines(*chunk) for chunk in chunks))
    else:
        results = (_encode_chunk(_part(rows, *chunk), tokenizer, max_seq_length) for chunk in chunks)
    parts: list[TokenRows] = []
    skipped: list[tuple[str, str]] = []
    with contextlib.closing(results):
        for (_, done), result in zip(chunks, results, strict=True):
            parts.append(result.rows)
            skipped += result.skipped
            if progress:
                progress(done)
    return TokenDataset(TokenRows.joined(parts), tuple(skipped))


def tokens_wanted(reason: str) -> int | None:
    """Tokens of the row that was skipped for this reason, if that is its prompt's length."""
    found = re.match(r"nothing to train: the prompt fills .* \(the row has (\d+) tokens\)$", reason)
    return int(found[1]) if found else None


def _encode_chunk(rows: Iterable[dict[str, Any]], tokenizer: ChatTokenizer, max_seq_length: int) -> TokenDataset:
    usable, skipped = [], []
    for row in rows:
        try:
            encoded = tokenizer.encode_row(row, max_seq_length)
        except DataError as error:
            skipped.append((row.get("source", ""), str(error)))
            continue
        if encoded.trained.any():
            usable.append(encoded)
        else:
            total = len(encoded) + encoded.cut
            reason = f"nothing to train: the prompt fills max_seq_length {max_seq_length} (the row has {total} tokens)"
            skipped.append((encoded.source, reason if encoded.cut else "nothing to train: no answer"))
    return TokenDataset(TokenRows.of(usable), tuple(skipped))


def _part(rows: Sequence[dict[str, Any]], start: int, stop: int) -> Iterator[dict[str, Any]]:
    return (rows[i] for i in range(start, stop))


def _encode_lines(lines: Sequence[bytes | dict[str, Any]], *, directory: Path, max_seq_length: int) -> TokenDataset:
    """In a process of its own: encode rows, given as JSON or decoded."""
    rows = (json.loads(line) if isinstance(line, bytes) else line for line in lines)
    return _encode_chunk(rows, _tokenizer_here(directory), max_seq_length)


@functools.lru_cache(maxsize=1)
def _tokenizer_here(directory: Path) -> ChatTokenizer:
    """The tokeniser of this process; not read as it starts, so that what is wrong with it can be told."""
    return ChatTokenizer(directory)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not JSON: {error}") from None
    return value if isinstance(value, dict) else {}


def _token_text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


@functools.cache
def _sandbox() -> ImmutableSandboxedEnvironment:
    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    # a date that moved with the clock would change the tokens of a resumed run
    environment.globals["strftime_now"] = lambda form: datetime.date(2024, 7, 26).strftime(form)
    return environment
