"""A model's chat template: messages to text, and where in it each answer stands. Knows jinja2, nothing of tokens."""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Template, nodes

from . import sandbox
from .errors import ConfigError, DataError, ModelError
from .foreign import read_text

PATTERNS = {
    "plain": "### Prompt:\n{prompt}\n\n### Response:\n{response}",
    "pergunta": "### Pergunta:\n{prompt}\n\n### Resposta:\n{response}",
}
"""For a base model that brings no chat template of its own."""


def from_pattern(pattern: str, *, begin: bool = False) -> str:
    """The chat template that writes each question and its answer into a text with `{prompt}` and `{response}` in it.

    A system text stands above the first question as it is. Every answer ends with the end-of-text token.

    Args:
        pattern: the text.
        begin: write the begin-of-text token before all.

    Raises:
        ConfigError: one of the two is missing, occurs twice, or stands in the other's place.
    """
    before, prompt, rest = pattern.partition("{prompt}")
    between, response, after = rest.partition("{response}")
    if not (prompt and response) or "{prompt}" in rest or "{response}" in before + after:
        raise ConfigError(
            f"template {pattern!r}: wanted auto, {', '.join(PATTERNS)}, a .jinja file, or a text with {{prompt}} "
            "and then {response} in it, each once."
        )
    before, between, after = (json.dumps(text, ensure_ascii=False) for text in (before, between, after))
    answer = f"{between} + message['content'] + {after} + eos_token + '\\n'"
    return (
        f"{'{{ bos_token }}' if begin else ''}{{% for message in messages %}}"
        f"{{% if message['role'] == 'assistant' %}}{{{{ {answer} }}}}"
        "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        f"{{% else %}}{{{{ {before} + message['content'] }}}}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {between} }}}}{{% endif %}}"
    )


def read_template(choice: str, own: str | None, *, begin: bool) -> str:
    r"""The text of the chat template that the setting `template` names.

    Args:
        choice: `auto`, a name of `PATTERNS`, the path of a `.jinja` file, or a pattern with `\n` for line breaks.
        own: what the model brings.
        begin: whether this tokeniser begins a text with its begin-of-text token, as a template of ours then does.

    Raises:
        ConfigError: there is no such file, or the text is no pattern.
    """
    if choice == "auto" and own:
        return own
    if choice.endswith(".jinja"):
        try:
            return read_text(Path(choice).expanduser())
        except (OSError, ValueError) as error:
            raise ConfigError(f"template {choice}: cannot be read: {error}") from None
    return from_pattern(PATTERNS.get("plain" if choice == "auto" else choice, choice.replace("\\n", "\n")), begin=begin)


class ChatTemplate:
    """A chat template, which renders a conversation and its beginnings as seldom as its program allows.

    The span of an answer needs four texts: the conversation, what comes before the answer, that with the model asked to
    speak, and that with the answer. Many a template is a loop over the messages that never looks ahead: one rendering
    with a mark before each turn holds them all. Of most others, one rendering holds the two questions.

    Raises:
        TemplateError: it is not a template.
    """

    def __init__(self, text: str, bos_token: str, eos_token: str) -> None:
        self._names = {"bos_token": bos_token, "eos_token": eos_token}
        self._whole = sandbox.build(sandbox.parse(text))
        self._turns, self._request = _marked_turns(text, self._names)
        self._asks = _marked_request(text)

    def render(self, messages: Sequence[dict[str, str]], *, ask: bool = False) -> str:
        """Messages as text.

        Raises:
            DataError: the template refuses them.
            ModelError: it made too much of them, or took too long, and is not to be used.
        """
        try:
            return sandbox.render(self._whole, messages=messages, add_generation_prompt=ask, **self._names)
        except sandbox.LimitError as error:  # the next conversation would fare no better, and take as long
            raise ModelError(
                f"the model's chat template was stopped: {error}. Choose another with --template."
            ) from None
        except Exception as error:  # a template is a program of the model's: it may raise anything
            raise DataError(f"the model's chat template refuses this conversation: {error}") from None

    def conversation(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
        """The text, and how much of it the first 0, 1, 2, … messages write, empty where one rendering cannot tell.

        Raises:
            DataError: the template refuses the conversation.
        """
        if self._turns and messages and messages[0]["role"] != "assistant":  # of no messages, it may write otherwise
            with contextlib.suppress(Exception):  # rendered again without marks, for the words of its refusal
                text = sandbox.render(self._turns, messages=messages, add_generation_prompt=False, **self._names)
                pieces = text.split(_MARK)
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
                rendered = sandbox.render(self._asks, messages=messages, add_generation_prompt=True, **self._names)
                before, _, request = rendered.rpartition(_MARK)
                return before, before + request
        return self.render(messages) if messages else "", None


_MARK = f"\0{secrets.token_hex(16)}\0"  # data cannot know it


def _marked_request(text: str) -> Template | None:
    """The template with a mark before what asks the model to speak, if that is its end and nothing else depends on it.

    What stands before the mark is then the text without the request.
    """
    tree = sandbox.parse(text)
    last = tree.body[-1] if tree.body else None
    asks = (
        isinstance(last, nodes.If) and isinstance(last.test, nodes.Name) and last.test.name == "add_generation_prompt"
    )
    if not asks or last.elif_ or last.else_ or _uses(tree, "add_generation_prompt") != 1:
        return None
    if tree.find((nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
        return None
    tree.body.insert(-1, _mark())
    return sandbox.build(tree)


def _marked_turns(text: str, names: dict[str, str]) -> tuple[Template | None, str]:
    """The template with a mark before each turn, and its request; if it writes a message without regard to later ones.

    It does where its end is a loop over the messages and a request that is always the same, it looks at no messages
    besides but the first, and of the loop's state only at what has been.
    """
    tree = sandbox.parse(text)
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
    alone = sandbox.build(nodes.Template(sandbox.parse(text).body[-1:], lineno=1))
    try:
        asked = sandbox.render(alone, add_generation_prompt=True, **names)
    except Exception:  # told when a conversation is rendered
        return None, ""
    loop.body.insert(0, _mark())
    return sandbox.build(tree), asked


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
