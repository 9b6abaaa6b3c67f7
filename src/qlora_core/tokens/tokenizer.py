"""Encode rows of text as token ids, and mark those that are trained.

A trained answer continues exactly the ids that the model is given when it is asked: if the tokeniser would join the end
of a request and the beginning of an answer to one token, they are encoded apart. Knows chat templates, the tokeniser
and the loss mask. Uses `tokenizers` and jinja2's sandbox; knows nothing of mlx and does not import transformers, so the
page can show what will be trained.
"""

from __future__ import annotations

import functools
import hashlib
import re
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from tokenizers import Tokenizer

from ..config import BaseConfig, Reasoning
from ..errors import DataError, ModelError, brief, shown
from ..files.untrusted_json import TABLE_BYTES, is_whole, read_object, read_text
from ..models.base_models import find_tokenizer
from ..translations import Sentence
from .boundaries import Boundaries
from .chat_template import Script, open_template, read_template
from .conversations import Beginning, Conversation, Message, Note, Prompt, fit
from .rows import TokenRow

HIGHEST_ID = (1 << 24) - 1  # highest token id accepted: 60 times the largest known vocabulary
WORD_JOINER = "\u2060"  # an invisible character that breaks up a control token spelled out in a text


@dataclass(frozen=True, eq=False)
class EncodedText:
    """A text with its tokens.

    Attributes:
        text: as the model sees it.
        ids: int32, `(tokens,)`; if an end of text was appended, it is the last.
        trained: bool, `(tokens,)`.
        places: begin and end of each token in the text; an appended end of text has none. Tokens that share a character
            overlap there.
        ended: whether every answer has a token that ends it.
    """

    text: str
    ids: np.ndarray
    trained: np.ndarray
    places: Sequence[tuple[int, int]]
    ended: bool = True


_OPEN: weakref.WeakValueDictionary[str, ChatTokenizer] = weakref.WeakValueDictionary()
"""Open tokenisers by the hash of `tokenizer.json`: reading it takes a tenth of a second, and happens repeatedly."""


class ChatTokenizer:
    """The tokeniser of a model directory with its chat template.

    Args:
        directory: holds `tokenizer.json` and, usually, `tokenizer_config.json`.
        template: the chat template, as in the setting of that name.
        reasoning: how an answer's reasoning is used, as in the setting of that name.
        thinks: whether the model is asked for answers that begin with reasoning; None: as most of the rows that were
            encoded last have it, and before that as the template does.

    Raises:
        ConfigError: there is no such template.
        ModelError: `tokenizer.json` is missing or unreadable, no end-of-text token is known, or the chat template is
            not one.
    """

    def __init__(
        self,
        directory: Path,
        template: str = "auto",
        reasoning: Reasoning = "train",
        *,
        thinks: bool | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.template = template
        self.reasoning: Reasoning = reasoning
        self._told_to_think, self._rows_think = thinks, None
        path = self.directory / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                Sentence(
                    "{path}: not found. A model directory needs a tokenizer.json (a fast tokeniser).", path=str(path)
                )
            )
        try:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            same = _OPEN.get(digest)
            self._tokenizer = same._tokenizer if same else _read_tokenizer(content)
        except BaseException as error:  # the library raises plain Exception; a panic in Rust is only a BaseException
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ModelError(
                Sentence("{path}: cannot be read as a tokeniser: {error}", path=str(path), error=brief(error))
            ) from None
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
        letters = re.escape("".join(sorted({token[0] for token in self.control_tokens})))
        self._may_spell = re.compile(f"[{letters}]" if letters else r"(?!)").search
        highest = max([*self._tokenizer.get_vocab().values(), *self.eos_ids])
        if highest > HIGHEST_ID:
            raise ModelError(f"{path}: has the token id {highest}; at most {HIGHEST_ID} is believed.")
        self._boundaries = Boundaries(self._tokenizer)
        self.own_template = self._own_template(settings)
        begin, joins = self._begins_with_bos(), self._joins_blanks()
        self.template_text = read_template(template, self.own_template, begin=begin, joins=joins)
        try:
            self._template = open_template(self.template_text, self.bos_token or "", self.eos_token)
        except TemplateError as error:
            whose = "its chat template" if template == "auto" else f"the template {template}"
            raise ModelError(f"{self.directory}: {whose} cannot be read: {error}") from None
        self._listed_ends = self.eos_ids
        self.eos_ids = self._with_written_end()
        self._vocabulary = highest + 1

    def _with_written_end(self) -> tuple[int, ...]:
        """Return the ids that end an answer, including the control token that the template writes after one.

        A base model with a chat template, for example, may list only its end of text.
        """
        ending = self._template.endings[0].lstrip()
        token = next((token for token in self.control_tokens if ending.startswith(token)), None)
        found = self._tokenizer.token_to_id(token) if token else None
        return self.eos_ids if found is None or found in self.eos_ids else (*self.eos_ids, found)

    @property
    def ends_unlisted(self) -> bool:
        """Return whether answers end with a token that the model's files do not list as one that ends an answer."""
        return self.eos_ids != self._listed_ends

    def _end_ids(self) -> tuple[int, ...]:
        """Return the ids that end an answer; the tokeniser's own end of text comes first."""
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

    def _joins_blanks(self) -> bool:
        """Return whether a blank and the word after it are one token, as in byte-level BPE and SentencePiece."""
        return any(token[0] in "Ġ▁" and token[1:].isalpha() for token in self._tokenizer.get_vocab() if token)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the tokeniser, the template and the ids that end a text."""
        return self._fingerprint(self.template_text)

    def _fingerprint(self, template: str) -> str:
        digest = hashlib.sha256((self.directory / "tokenizer.json").read_bytes())
        digest.update(template.encode())
        digest.update(repr((self.bos_token, self._listed_ends)).encode())
        return digest.hexdigest()

    @property
    def fingerprint_with_blank(self) -> str:
        """Return the fingerprint by older versions, which left the blank before an answer in the request."""
        text = read_template(self.template, self.own_template, begin=self._begins_with_bos(), joins=False)
        return self._fingerprint(text)

    @property
    def thinks(self) -> bool | None:
        """Return whether the model is asked for answers that begin with reasoning; None: as the template does."""
        return self._rows_think if self._told_to_think is None else self._told_to_think

    @property
    def can_think(self) -> bool:
        """Return whether the template can ask for reasoning, or show that an answer has none."""
        return self._template.abilities.thinks

    def follow(self, thinks: bool | None) -> None:
        """Ask for answers with or without reasoning, as the training rows have it."""
        self._rows_think = thinks

    @property
    def asking_template(self) -> str:
        """Return the chat template for programs that ask the model, with reasoning on or off as here."""
        return self._template.without_reasoning() if self.thinks is False else self.template_text

    # Messages ---------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return messages as the text that the model sees; control tokens spelled out in them are broken up.

        Raises:
            DataError: the template refuses these messages, for example two user turns in a row.
        """
        if add_generation_prompt:
            return self._prompt(messages).text
        return self._fitting(
            self._safe(messages), None, lambda conversation: self._template.conversation(conversation)[0]
        )[1]

    def _fitting(self, messages: Sequence[Message], tools: Any, make: Callable[[Conversation], Any]) -> tuple[Any, Any]:
        """Return messages as fitted for the template, and the result of `make` for them.

        A system text that the template refuses is moved into the question after it.

        Raises:
            DataError: the template refuses them even so; the message is the first refusal's.
        """
        conversation = self._fit(messages, tools)
        try:
            return conversation, make(conversation)
        except DataError as error:
            if all(message["role"] != "system" for message in conversation.messages):
                raise
            moved = self._fit(messages, tools, move_system=True)
            try:
                return moved, make(moved)
            except DataError:
                raise error from None

    def _fit(self, messages: Sequence[Message], tools: Any, *, move_system: bool = False) -> Conversation:
        return fit(messages, tools, self._template.abilities, self.reasoning, move_system=move_system)

    def _safe(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return messages with all control tokens in their texts broken up; the same object if there are none."""
        for message in messages:
            for part in message.values():
                if part is not None and (not isinstance(part, str) or self._may_spell(part)):
                    return self._disarmed(messages)
        return messages

    def _disarmed(self, value: Any) -> Any:
        """Return a value with all control tokens in its texts broken up; the same object if there are none."""
        if isinstance(value, str):
            return self.disarm(value) if self._may_spell(value) else value
        if value is None:
            return None
        if isinstance(value, dict):
            made = {self._disarmed(key): self._disarmed(part) for key, part in value.items()}
            same = all(a is b and made[a] is part for (a, part), b in zip(value.items(), made, strict=False))
            return value if same and len(made) == len(value) else made
        if isinstance(value, list | tuple):
            parts = [self._disarmed(part) for part in value]
            return parts if any(a is not b for a, b in zip(parts, value, strict=True)) else value
        return value

    def disarm(self, text: str) -> str:
        """Break up every control token spelled out in `text`, so that data cannot end a turn or speak as the system.

        A text without any is returned as it is, not copied.
        """
        if self._may_spell(text):  # a model may have hundreds of control tokens
            for token in self.control_tokens:
                if token in text:
                    text = text.replace(token, token[0] + WORD_JOINER + token[1:])
        return text

    def _prompt(self, messages: Sequence[Message], tools: Any = None) -> Script:
        safe = self._safe(messages), self._disarmed(tools)
        return self._fitting(*safe, lambda conversation: self._template.prompt(conversation, self.thinks))[1]

    def encode_prompt(self, prompt: Prompt, tools: Sequence[Any] | None = None) -> list[int]:
        """Return the ids of a question, ready for the model's answer, or those of a text that it shall go on with.

        Args:
            prompt: the question, the messages before the answer, or the beginning of a text.
            tools: tools that the model may call.

        Raises:
            DataError: the template refuses it.
        """
        if isinstance(prompt, Beginning):
            return self._without_end(self._tokenizer.encode(self.disarm(prompt), add_special_tokens=True).ids)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        script = self._prompt(messages, tools)
        return self._boundaries.encode(script.text, script.begins).ids

    def _without_end(self, ids: list[int]) -> list[int]:
        """Return ids without a token that ends a text, which some tokenisers add to each."""
        return ids[:-1] if ids and ids[-1] in self.eos_ids else ids

    # Rows -------------------------------------------------------------------------------------------------------

    def encode_row(self, row: dict[str, Any], max_seq_length: int) -> TokenRow:
        """Encode a prepared row that is trained from one text, as nearly all are; see `encode_rows`.

        Raises:
            DataError: the template refuses the row, or it needs several texts.
        """
        rows, _ = self.encode_rows(row, max_seq_length)
        if len(rows) != 1:
            raise DataError(f"the model's chat template makes {len(rows)} texts of this conversation")
        return rows[0]

    def encode_rows(self, row: dict[str, Any], max_seq_length: int) -> tuple[list[TokenRow], frozenset[Note]]:
        """Encode a prepared row, `{"messages": […]}` or `{"text": …}`; also return notes on what was done with it.

        Every assistant turn is trained, including the token that ends it, unless it is marked `train: false`. A text
        row is trained completely. The end token is always there to be trained unless it is cut off. A conversation
        becomes several rows if the template writes an answer in one way when it is the last turn, and in another when
        more follows.

        Raises:
            DataError: the template refuses the row.
        """
        texts, notes, armed = self.texts_of(row)
        rows = []
        for encoded in texts:
            ids, trained = encoded.ids, encoded.trained
            cut = max(0, len(ids) - max_seq_length)
            if cut:  # a copy, so that what is cut off does not stay in memory
                ids, trained = ids[:max_seq_length].copy(), trained[:max_seq_length].copy()
            rows.append(TokenRow(ids, trained, row.get("source", ""), cut, armed))
        return rows, notes

    def texts_of(self, row: dict[str, Any]) -> tuple[list[EncodedText], frozenset[Note], bool]:
        """Return the texts that a prepared row is trained from, notes on it, and whether it contains a control token.

        Raises:
            DataError: the template refuses the row.
        """
        if "messages" not in row:
            text = self.disarm(row["text"])
            return [self._encoded_running(text)], frozenset(), text is not row["text"]
        messages, tools = self._safe(row["messages"]), self._disarmed(row.get("tools"))
        armed = messages is not row["messages"] or tools is not row.get("tools")
        conversation, (scripts, notes) = self._fitting(messages, tools, self._template.scripts)
        texts = [self._encoded_script(script) for script in scripts]
        if not all(text.ended for text in texts):  # an answer without an end token must be the last in its text
            scripts, notes = self._template.scripts(conversation, apart=True)
            texts = [self._encoded_script(script) for script in scripts]
        return texts, conversation.notes | notes, armed

    def _encoded_running(self, text: str) -> EncodedText:
        encoding = self._tokenizer.encode(text, add_special_tokens=True)
        ids = encoding.ids
        if not ids or ids[-1] not in self.eos_ids:
            ids.append(self.eos_ids[0])
        trained = np.ones(len(ids), bool)
        trained[0] = False
        return EncodedText(text, np.asarray(ids, np.int32), trained, encoding.offsets)

    def _encoded_script(self, script: Script) -> EncodedText:
        """Encode a script, and mark its answers as trained up to the tokens that end them."""
        ids, places = self._boundaries.encode(script.text, script.begins)
        if not ids:
            raise DataError("the model's chat template writes nothing for this conversation")
        trained, ends = np.zeros(len(ids), bool), [last for _, last in places]
        ended = True
        for start, stop in script.targets:
            first, last = bisect_right(ends, start), bisect_right(ends, stop)
            while first < last and places[first][0] < start:  # skip a token that began before the answer
                first += 1
            if first == last:
                continue
            # the model need not say what a template writes after the end token, such as a line feed; if a mark ends
            # before the end token, that token is the next one
            end = next((i for i in range(first, min(last + 1, len(ids))) if ids[i] in self.eos_ids), None)
            ended = ended and (end is not None or last == len(ids))
            trained[first : last if end is None else end + 1] = True
        trained[0] = False
        if trained[-1] and ids[-1] not in self.eos_ids:
            ids.append(self.eos_ids[0])
            trained = np.append(trained, True)
        return EncodedText(script.text, np.asarray(ids, np.int32), trained, places, ended)

    def texts_of_row(self, row: dict[str, Any]) -> list[str]:
        """Return a prepared row as the texts that the model sees, for trainers that render no conversations.

        Raises:
            DataError: the template refuses the row.
        """
        return [encoded.text for encoded in self.texts_of(row)[0]]

    def count(self, text: str) -> int:
        """Return the number of tokens in a text, without begin or end tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without control tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    @property
    def vocabulary(self) -> int:
        """Return the number of ids that the tokeniser may produce: one more than the highest."""
        return self._vocabulary


def _read_tokenizer(content: bytes) -> Tokenizer:
    made = Tokenizer.from_buffer(content)
    made.no_padding()
    made.no_truncation()
    return made


def open_tokenizer(config: BaseConfig) -> ChatTokenizer:
    """Open the tokeniser of `config.model`, fetched if need be, with the template of `config`.

    Raises:
        QLoraError: there is no such model or template, or one of them cannot be read.
    """
    return ChatTokenizer(find_tokenizer(config), config.template, config.reasoning)


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
