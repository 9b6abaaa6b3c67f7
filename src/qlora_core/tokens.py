"""Rows of text to token ids, and which of them are trained.

Knows chat templates, the tokeniser and the loss mask. Uses `tokenizers` and jinja2's sandbox; knows nothing of mlx and
does not import transformers, so that the page can show what will be trained.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from tokenizers import Tokenizer

from .activity import doing
from .bases import find_tokenizer
from .chat_template import ChatTemplate, read_template
from .config import BaseConfig
from .errors import DataError, ModelError, brief, shown
from .foreign import TABLE_BYTES, is_whole, read_object, read_text
from .parallel import in_processes, processes
from .token_rows import TokenRow, TokenRows

PARALLEL_ROWS = 20_000  # fewer rows are encoded before worker processes have started
CHUNK_ROWS = 2_000  # rows a task of a worker process: a tenth of a second
HIGHEST_ID = (1 << 24) - 1  # of a token: 60 times as many as the largest vocabulary known
WORD_JOINER = "\u2060"  # breaks a control token spelled out in somebody's text, and is invisible


_OPEN: weakref.WeakValueDictionary[str, ChatTokenizer] = weakref.WeakValueDictionary()
"""By the content of their `tokenizer.json`, which takes a tenth of a second to read: the trainer opens it again."""


class ChatTokenizer:
    """The tokeniser of a model directory with its chat template.

    Args:
        directory: holds `tokenizer.json` and, usually, `tokenizer_config.json`.
        template: which chat template, as the setting of that name says.

    Raises:
        ConfigError: there is no such template.
        ModelError: `tokenizer.json` is missing or unreadable, no end-of-text token is known, or the chat template is
            not one.
    """

    def __init__(self, directory: Path, template: str = "auto") -> None:
        self.directory = Path(directory)
        self.template = template
        path = self.directory / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path}: not found. A model directory needs a tokenizer.json (a fast tokeniser).")
        try:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            same = _OPEN.get(digest)
            self._tokenizer = same._tokenizer if same else _read_tokenizer(content)
        except BaseException as error:  # the library raises bare Exception, and a panic of Rust is not even that
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ModelError(f"{path}: cannot be read as a tokeniser: {brief(error)}") from None
        _OPEN[digest] = self
        settings = _read_json(self.directory / "tokenizer_config.json")
        self.bos_token = _token_text(settings.get("bos_token"))
        self.eos_token = _token_text(settings.get("eos_token"))
        self.eos_ids = self._end_ids()
        added = self._tokenizer.get_added_tokens_decoder().items()
        self.control_names = {i: token.content for i, token in added if token.special} | {
            i: self._tokenizer.id_to_token(i) for i in self.eos_ids
        }
        self.control_tokens = sorted((token.content for _, token in added if token.special), key=len, reverse=True)
        self._first_letters = {token[0] for token in self.control_tokens}
        highest = max([*self._tokenizer.get_vocab().values(), *self.eos_ids])
        if highest > HIGHEST_ID:
            raise ModelError(f"{path}: has the token id {highest}; at most {HIGHEST_ID} is believed.")
        self._ends_text = np.zeros(highest + 1, bool)
        self._ends_text[list(self.eos_ids)] = True
        self.own_template = self._own_template(settings)
        self.template_text = read_template(template, self.own_template, begin=self._begins_with_bos())
        try:
            self._template = ChatTemplate(self.template_text, self.bos_token or "", self.eos_token)
        except TemplateError as error:
            whose = "its chat template" if template == "auto" else f"the template {template}"
            raise ModelError(f"{self.directory}: {whose} cannot be read: {error}") from None

    def _end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer; the tokeniser's own end-of-text comes first."""
        found = [self._tokenizer.token_to_id(self.eos_token)] if self.eos_token else []
        for name in ("config.json", "generation_config.json"):
            ids = _read_json(self.directory / name).get("eos_token_id")
            found += ids if isinstance(ids, list) else [ids]
        known = [i for i in found if is_whole(i, 0, HIGHEST_ID) and self._tokenizer.id_to_token(i) is not None]
        ids = list(dict.fromkeys(known))
        if not ids:
            raise ModelError(f"{self.directory}: no end-of-text token in tokenizer_config.json or config.json.")
        self.eos_token = self.eos_token or self._tokenizer.id_to_token(ids[0])
        return tuple(ids)

    def _own_template(self, settings: dict[str, Any]) -> str | None:
        own = self.directory / "chat_template.jinja"
        if own.is_file():
            try:
                return read_text(own)
            except (OSError, ValueError) as error:
                raise ModelError(f"{own}: cannot be read: {error}") from None
        template = settings.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = (t for t in template if isinstance(t, dict) and t.get("name") == "default")
            template = next(named, {}).get("template")
        if not isinstance(template, str | None):
            raise ModelError(f"{self.directory}: its chat template is no text; found {shown(template)}.")
        return template

    def _begins_with_bos(self) -> bool:
        ids = self._tokenizer.encode("", add_special_tokens=True).ids
        return bool(self.bos_token) and ids[:1] == [self._tokenizer.token_to_id(self.bos_token)]

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

    def places(self, row: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """The text of a prepared row, and where in it each token of `encode_row` begins and ends.

        An end of text that `encode_row` appends has no place. Tokens that share a character have it in common.

        Raises:
            DataError: the template refuses the row.
        """
        text = self.text_of_row(row)
        return text, self._tokenizer.encode(text, add_special_tokens="text" in row).offsets

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


def _read_tokenizer(content: bytes) -> Tokenizer:
    made = Tokenizer.from_buffer(content)
    made.no_padding()
    made.no_truncation()
    return made


def open_tokenizer(config: BaseConfig) -> ChatTokenizer:
    """The tokeniser of `config.model`, fetched if need be, with the template that `config` names.

    Raises:
        QLoraError: there is no such model or template, or one of them cannot be read.
    """
    return ChatTokenizer(find_tokenizer(config), config.template)


@dataclass(frozen=True)
class TokenDataset:
    """Rows ready to train, and what could not be used.

    Attributes:
        rows: in the order of the prepared file; given as any sequence of rows, they are made compact.
        skipped: (source, reason) of each row with nothing to train.
        skipped_places: where each of those stands among the prepared rows.
    """

    rows: TokenRows
    skipped: tuple[tuple[str, str], ...] = ()
    skipped_places: tuple[int, ...] = ()

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
        source = (tokenizer.directory, tokenizer.template)
        work = functools.partial(_encode_lines, source=source, max_seq_length=max_seq_length)
        results = in_processes(work, (lines(*chunk) for chunk in chunks))
    else:
        results = (_encode_chunk(_part(rows, *chunk), tokenizer, max_seq_length) for chunk in chunks)
    parts: list[TokenRows] = []
    skipped: list[tuple[str, str]] = []
    places: list[int] = []
    with contextlib.closing(results), doing("encoding", len(rows)) as tick:
        for (start, done), result in zip(chunks, results, strict=True):
            parts.append(result.rows)
            skipped += result.skipped
            places += [start + place for place in result.skipped_places]
            tick(done)
            if progress:
                progress(done)
    return TokenDataset(TokenRows.joined(parts), tuple(skipped), tuple(places))


def tokens_wanted(reason: str) -> int | None:
    """Tokens of the row that was skipped for this reason, if that is its prompt's length."""
    found = re.match(r"nothing to train: the prompt fills .* \(the row has (\d+) tokens\)$", reason)
    return int(found[1]) if found else None


def _encode_chunk(rows: Iterable[dict[str, Any]], tokenizer: ChatTokenizer, max_seq_length: int) -> TokenDataset:
    usable, skipped, places = [], [], []
    for place, row in enumerate(rows):
        try:
            encoded = tokenizer.encode_row(row, max_seq_length)
        except DataError as error:
            skipped.append((row.get("source", ""), str(error)))
            places.append(place)
            continue
        if encoded.trained.any():
            usable.append(encoded)
        else:
            total = len(encoded) + encoded.cut
            reason = f"nothing to train: the prompt fills max_seq_length {max_seq_length} (the row has {total} tokens)"
            skipped.append((encoded.source, reason if encoded.cut else "nothing to train: no answer"))
            places.append(place)
    return TokenDataset(TokenRows.of(usable), tuple(skipped), tuple(places))


def _part(rows: Sequence[dict[str, Any]], start: int, stop: int) -> Iterator[dict[str, Any]]:
    return (rows[i] for i in range(start, stop))


def _encode_lines(
    lines: Sequence[bytes | dict[str, Any]], *, source: tuple[Path, str], max_seq_length: int
) -> TokenDataset:
    """In a process of its own: encode rows, given as JSON or decoded."""
    rows = (json.loads(line) if isinstance(line, bytes) else line for line in lines)
    return _encode_chunk(rows, _tokenizer_here(*source), max_seq_length)


@functools.lru_cache(maxsize=1)
def _tokenizer_here(directory: Path, template: str) -> ChatTokenizer:
    """The tokeniser of this process; not read as it starts, so that what is wrong with it can be told."""
    return ChatTokenizer(directory, template)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_object(path, TABLE_BYTES)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from None


def _token_text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        return None
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character
        return None
    return text
