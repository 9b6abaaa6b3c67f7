"""One row of text to token ids, and which of them are trained.

Knows chat templates, the tokeniser and the loss mask. Uses `tokenizers` and jinja2's sandbox; knows nothing of mlx and
does not import transformers, so that the page can show what will be trained.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from .errors import DataError, ModelError

WORD_JOINER = "\u2060"  # breaks a control token spelled out in somebody's text, and is invisible

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}### Response:\n{{ message['content'] }}{{ eos_token }}\n"
    "{% else %}### Prompt:\n{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)
"""For a base model that brings no chat template of its own."""


@dataclass(frozen=True)
class TokenRow:
    """One row as the trainer sees it.

    Attributes:
        ids: int32, `(length,)`.
        trained: bool, `(length,)`; True where the token is a target of the loss. The first token never is.
        source: where the row came from (file:line).
        cut: tokens lost beyond `max_seq_length`.
    """

    ids: np.ndarray
    trained: np.ndarray
    source: str = ""
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def target_tokens(self) -> int:
        """Number of trained tokens."""
        return int(self.trained.sum())


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
        self.template_text = self._template_text(settings)
        try:
            self._template = _sandbox().from_string(self.template_text)
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
        safe = [{**m, "content": self.disarm(m["content"])} for m in messages]
        try:
            return self._template.render(
                messages=safe,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token or "",
                eos_token=self.eos_token,
            )
        except Exception as error:  # a template is a program of the model's: it may raise anything
            raise DataError(f"the model's chat template refuses this conversation: {error}") from None

    def disarm(self, text: str) -> str:
        """Break every control token spelled out in `text`, so that data cannot speak as the system or end a turn."""
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
        source = row.get("source", "")
        if "messages" in row:
            ids, trained = self._encode_messages(row["messages"])
        else:
            ids = self._tokenizer.encode(self.disarm(row["text"]), add_special_tokens=True).ids
            ids = [*ids, self.eos_ids[0]] if not ids or ids[-1] not in self.eos_ids else ids
            trained = [True] * len(ids)
        trained[0] = False
        keep = min(len(ids), max_seq_length)
        return TokenRow(
            ids=np.asarray(ids[:keep], np.int32),
            trained=np.asarray(trained[:keep], bool),
            source=source,
            cut=len(ids) - keep,
        )

    def _encode_messages(self, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[bool]]:
        text = self.render(messages)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if not encoding.ids:
            raise DataError("the model's chat template writes nothing for this conversation")
        ids, trained = list(encoding.ids), [False] * len(encoding.ids)
        offsets = np.asarray(encoding.offsets).reshape(-1, 2)
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start, stop = self._answer_span(text, messages, turn)
            inside = np.flatnonzero((offsets[:, 0] >= start) & (offsets[:, 1] <= stop))
            end = next((i for i in inside if ids[i] in self.eos_ids), None)
            if end is None and stop == len(text) and turn + 1 < len(messages):
                raise DataError(f"the model's chat template does not show where the answer of turn {turn + 1} ends")
            for i in inside:  # what a template writes after the end of text (a line feed) is not the model's to say
                trained[i] = end is None or i <= end
        if trained[-1] and ids[-1] not in self.eos_ids:
            ids.append(self.eos_ids[0])
            trained.append(True)
        return ids, trained

    def _answer_span(self, text: str, messages: Sequence[dict[str, str]], turn: int) -> tuple[int, int]:
        """Where in the rendered conversation an answer begins, and where it has ended at the latest.

        A template may write an answer otherwise when more follows (Qwen3 drops its reasoning), so that a conversation
        cut behind it need not be a beginning of the whole one; the answer's end-of-text token then ends it.
        """
        if not text.startswith(self.render(messages[:turn]) if turn else ""):
            raise DataError(f"the model's chat template rewrites what comes before turn {turn + 1}")
        asked = self.render(messages[:turn], add_generation_prompt=True)
        answered = self.render(messages[: turn + 1])
        start = next((i for i, (a, b) in enumerate(zip(text, asked, strict=False)) if a != b), len(asked))
        return start, len(answered) if text.startswith(answered) else len(text)

    def encode_prompt(self, prompt: str | Sequence[dict[str, str]]) -> list[int]:
        """Ids of a question, ready for the model's answer."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = self.render(messages, add_generation_prompt=True)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, without control tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


@dataclass(frozen=True)
class TokenDataset:
    """Rows ready to train, and what could not be used.

    Attributes:
        rows: in the order of the prepared file.
        skipped: (source, reason) of each row with nothing to train.
    """

    rows: tuple[TokenRow, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """All real tokens."""
        return sum(map(len, self.rows))

    @property
    def target_tokens(self) -> int:
        """Trained tokens."""
        return sum(row.target_tokens for row in self.rows)

    @property
    def truncated(self) -> int:
        """Rows that lost tokens at their end."""
        return sum(row.cut > 0 for row in self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows), default=0)


def make_dataset(rows: Iterable[dict[str, Any]], tokenizer: ChatTokenizer, max_seq_length: int) -> TokenDataset:
    """Encode prepared rows; one whose prompt fills `max_seq_length`, or that the template refuses, is reported."""
    usable, skipped = [], []
    for row in rows:
        try:
            encoded = tokenizer.encode_row(row, max_seq_length)
        except DataError as error:
            skipped.append((row.get("source", ""), str(error)))
            continue
        if encoded.target_tokens:
            usable.append(encoded)
        else:
            total = len(encoded) + encoded.cut
            reason = f"nothing to train: the prompt fills max_seq_length {max_seq_length} (the row has {total} tokens)"
            skipped.append((encoded.source, reason if encoded.cut else "nothing to train: no answer"))
    return TokenDataset(tuple(usable), tuple(skipped))


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
