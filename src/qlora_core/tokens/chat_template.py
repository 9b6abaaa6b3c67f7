"""A model's chat template: renders messages as text, and finds the answers in it. Knows jinja2, nothing of tokens."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template, nodes

from ..errors import ConfigError, DataError, ModelError
from ..files.untrusted_json import read_text
from . import template_sandbox
from .conversations import Abilities, Conversation, Message, after_reasoning, calls_of

PATTERNS = {
    "plain": "### Prompt:\n{prompt}\n\n### Response:\n{response}",
    "pergunta": "### Pergunta:\n{prompt}\n\n### Resposta:\n{response}",
}
"""Patterns for a base model without a chat template of its own."""


def from_pattern(pattern: str, *, begin: bool = False, joins: bool = False) -> str:
    """Build a chat template that writes each question and its answer into a text with `{prompt}` and `{response}`.

    A system text goes above the first question, unchanged. Every answer ends with the end-of-text token.

    Args:
        pattern: the text with the two placeholders.
        begin: write the begin-of-text token first.
        joins: the tokeniser joins a blank and the next word to one token. The request then ends before a blank that
            precedes `{response}`, and the answer begins with it.

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
    texts = (before, between, between.rstrip(" \t") if joins else between, after)
    before, between, request, after = (json.dumps(text, ensure_ascii=False) for text in texts)
    answer = f"{between} + message['content'] + {after} + eos_token + '\\n'"
    return (
        f"{'{{ bos_token }}' if begin else ''}{{% for message in messages %}}"
        f"{{% if message['role'] == 'assistant' %}}{{{{ {answer} }}}}"
        "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        f"{{% else %}}{{{{ {before} + message['content'] }}}}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {request} }}}}{{% endif %}}"
    )


def read_template(choice: str, own: str | None, *, begin: bool, joins: bool = False) -> str:
    r"""Return the text of the chat template that the setting `template` names.

    Args:
        choice: `auto`, a name of `PATTERNS`, the path of a `.jinja` file, or a pattern with `\n` for line breaks.
        own: the model's own template, if it has one.
        begin: whether this tokeniser begins texts with its begin-of-text token; a template from a pattern then does.
        joins: whether it joins a blank and the next word to one token.

    Raises:
        ConfigError: there is no such file, or the text is not a pattern.
    """
    if choice == "auto" and own:
        return own
    if choice.endswith(".jinja"):
        try:
            return read_text(Path(choice).expanduser())
        except (OSError, ValueError) as error:
            raise ConfigError(f"template {choice}: cannot be read: {error}") from None
    pattern = PATTERNS.get("plain" if choice == "auto" else choice, choice.replace("\\n", "\n"))
    return from_pattern(pattern, begin=begin, joins=joins)


@dataclass(frozen=True)
class Script:
    """A text for the model, with the places of the answers in it.

    Attributes:
        text: a conversation, or the beginning of one.
        begins: where answers begin, including those that are not trained: the text before one is what the model is
            given when it is asked for it.
        targets: where each trained answer begins, and where it has certainly ended.
    """

    text: str
    begins: tuple[int, ...] = ()
    targets: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Answer:
    """An answer with the request that it answers.

    Attributes:
        place: index of its message.
        prompt: the text that the model is given.
        said: the text that it should answer, and what the template writes after it.
        shift: how much further on it stands here than in the conversation that ends with it.
    """

    place: int
    prompt: str
    said: str
    shift: int

    @property
    def text(self) -> str:
        return self.prompt + self.said


class ChatTemplate:
    """A chat template, which renders a conversation and its beginnings as rarely as its program allows.

    An answer is found from two texts: the request for it, and the conversation up to and including it. Many templates
    are a loop over the messages that never looks ahead. Of these, one rendering with a mark before each turn is enough.

    Raises:
        TemplateError: it is not a template.
    """

    def __init__(self, text: str, bos_token: str, eos_token: str) -> None:
        self._names = {"bos_token": bos_token, "eos_token": eos_token}
        self._text = text
        self._whole = template_sandbox.build(template_sandbox.parse(text))
        self._switches = "enable_thinking" in text
        self._marked = _marked_blocks(text)
        self._turns, self._request = _marked_turns(text, self._names)
        if self._marked or self._switches or self.empty_thought:
            self._turns = None

    # Texts ------------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], *, ask: bool = False, **names: Any) -> str:
        """Render messages as text.

        Args:
            messages: in order.
            ask: end with the request for the model's answer.
            names: `tools` that may be called; `thinks`, whether an answer begins with reasoning, if that matters.

        Raises:
            DataError: the template refuses them.
            ModelError: it wrote too much or took too long, and cannot be used.
        """
        return self._rendered(self._whole, messages, ask=ask, **names)

    def _rendered(
        self, template: Template, messages: Sequence[Message], *, ask: bool, tools: Any = None, thinks: Any = None
    ) -> str:
        names = dict(self._names)
        if tools:
            names["tools"] = tools
        if self._switches and thinks is not None:
            names["enable_thinking"] = thinks
        try:
            return template_sandbox.render(template, messages=messages, add_generation_prompt=ask, **names)
        except template_sandbox.LimitError as error:  # other conversations would fail as well, and take as long
            raise ModelError(
                f"the model's chat template was stopped: {error}. Choose another with --template."
            ) from None
        except Exception as error:  # a template is a program that comes with the model: it may raise anything
            raise DataError(f"the model's chat template refuses this conversation: {error}") from None

    def conversation(self, conversation: Conversation) -> tuple[str, list[int]]:
        """Return the text, and how long the text of the first 0, 1, 2, … messages is; empty if unknown.

        Raises:
            DataError: the template refuses the conversation.
            ModelError: see `render`.
        """
        messages, tools = conversation.messages, conversation.tools
        # without messages, or with an answer first, a template may write something else
        if self._turns and messages and messages[0]["role"] != "assistant":
            with contextlib.suppress(Exception):  # it is rendered again below, which gives the reason for a refusal
                pieces = self._rendered(self._turns, messages, ask=False, tools=tools).split(_MARK)
                if len(pieces) == len(messages) + 1:
                    return "".join(pieces), list(itertools.accumulate(map(len, pieces)))
        thinks = conversation.thinks.get(max(conversation.thinks, default=0))
        return self.render(messages, tools=tools, thinks=thinks), []

    def prompt(self, conversation: Conversation, thinks: bool | None = None) -> Script:
        """Return the text that asks the model for the next turn, with the places where earlier answers begin.

        Args:
            conversation: the turns before.
            thinks: whether the answer should begin with reasoning; None: as the template does.

        Raises:
            DataError: the template refuses it, or omits a part of it.
            ModelError: see `render`.
        """
        self._look_at_context(conversation, len(conversation.messages), thinks)
        text, ends = self.conversation(conversation) if self._turns else ("", [])
        if ends and (begins := self._begins(text, conversation, ends)) is not None:
            return Script(text + self._request, begins)
        text = self._asked(conversation, thinks)
        prompts = (self._try_asking(conversation, place) for place in _answers(conversation))
        begins = {len(prompt) for prompt in prompts if prompt is not None and text.startswith(prompt)}
        return Script(text, tuple(sorted(begins)))

    def _asked(self, conversation: Conversation, thinks: bool | None) -> str:
        text = self.render(conversation.messages, ask=True, tools=conversation.tools, thinks=thinks)
        return text + self.empty_thought if thinks is False else text

    def _try_asking(self, conversation: Conversation, place: int) -> str | None:
        """Return the request for an answer; None if nothing precedes it or the template refuses that."""
        with contextlib.suppress(DataError):
            return self._asked(conversation.up_to(place), conversation.thinks.get(place)) if place else None
        return None

    # Scripts ----------------------------------------------------------------------------------------------------

    def scripts(self, conversation: Conversation, *, apart: bool = False) -> tuple[list[Script], frozenset[str]]:
        """Return the texts from which a conversation is trained, and notes on them.

        One text holds all answers that stand in it just as they were asked for. If the template writes an answer
        differently when more turns follow (Qwen3's drops its reasoning), or its request (Mistral's puts the system text
        into the last question), the answer gets a text of its own, which ends with it.

        Args:
            conversation: its control tokens are broken up.
            apart: give each answer a text of its own.

        Raises:
            DataError: the template refuses the conversation, or leaves out a part of it.
            ModelError: see `render`.
        """
        text, ends = self.conversation(conversation)
        if not text:
            raise DataError("the model's chat template writes nothing for this conversation")
        last = max(conversation.targets, default=0)
        altered = self._look_at_context(conversation, last, conversation.thinks.get(last))
        notes = {"altered"} if altered else set()
        begins = self._begins(text, conversation, ends) if ends and not apart and not conversation.unsaid else None
        if begins is not None:
            spans = [(ends[place] + len(self._request), ends[place + 1]) for place in conversation.targets]
            for place, span in zip(conversation.targets, spans, strict=True):
                self._look_at_answer(conversation, place, text[slice(*span)], notes)
            return [Script(text, begins, tuple(spans))], frozenset(notes)
        prompts = {place: self._try_asking(conversation, place) for place in _answers(conversation)}
        answers = []
        for place in conversation.targets:
            answered = text if place == len(conversation.messages) - 1 else None  # which has its reasoning, or none
            answers.append(self._answer(conversation, place, prompts[place], answered))
            prompts[place] = answers[-1].prompt
            opened = _OPENED.search(answers[-1].prompt)  # the beginning of what is said may stand in the request
            said = (opened[0] if opened else "") + answers[-1].said
            self._look_at_answer(conversation, place, said, notes)
        return self._gathered(conversation, text, answers, prompts, notes, apart=apart), frozenset(notes)

    def _begins(self, text: str, conversation: Conversation, ends: Sequence[int]) -> tuple[int, ...] | None:
        """Return where answers begin, if each follows the request, which is always the same; else None."""
        places = _answers(conversation)
        if not all(text.startswith(self._request, ends[place]) for place in places):
            return None
        return tuple(ends[place] + len(self._request) for place in places)

    def _gathered(
        self,
        conversation: Conversation,
        text: str,
        answers: Sequence[_Answer],
        prompts: dict[int, str | None],
        notes: set[str],
        *,
        apart: bool,
    ) -> list[Script]:
        """Return one text with the answers that stand in it as they were asked for, and one for each other answer."""

        def script(text: str, spans: Sequence[tuple[int, int]]) -> Script:
            begins = {len(prompt) for prompt in prompts.values() if prompt is not None and text.startswith(prompt)}
            return Script(text, tuple(sorted(begins)), tuple(spans))

        together: list[tuple[int, int]] = []
        scripts: list[Script] = []
        for answer in answers:
            stop = 0 if apart else self._stop(text, answer)
            spans = self._learned(conversation, answer, text if stop else answer.text, stop)
            if not spans:
                notes.add("unmarked")
            elif stop:
                together += spans
            else:
                scripts.append(script(answer.text, spans))
        if len(scripts) + bool(together) > 1:
            notes.add("apart")
        return [*scripts, script(text, together)] if together or not scripts else scripts

    def _stop(self, text: str, answer: _Answer) -> int:
        """Return where an answer ends in the text of the whole conversation; 0 if it stands there differently."""
        if text.startswith(answer.text):
            return len(answer.text)
        ending, inner = self.endings
        needed = len(answer.text) - (len(ending) - len(inner) if ending and answer.text.endswith(ending) else 0)
        alike = _common(text, answer.text)
        return alike if alike >= needed else 0

    def _learned(self, conversation: Conversation, answer: _Answer, text: str, stop: int) -> list[tuple[int, int]]:
        """Return the trained parts of an answer: those that the template marks, without reasoning that is only read.

        Args:
            conversation: the whole conversation.
            answer: one of its answers.
            text: the text that it stands in: the whole conversation's or its own.
            stop: where it ends in the text of the whole conversation; 0: `text` is its own.
        """
        whole, start, stop = stop > 0, len(answer.prompt), stop or len(text)
        spans = [(start, stop)]
        if self._marked:
            last = len(conversation.messages) - 1 if whole else answer.place
            thinks = conversation.thinks.get(max(conversation.thinks) if whole else answer.place)
            marked = self._marked_spans(conversation, last + 1, thinks, 0 if whole else answer.shift)
            spans = [(max(start, first), min(stop, end)) for first, end in marked] if marked is not None else spans
        if answer.place in conversation.unsaid:
            said = start + after_reasoning(answer.said)
            spans = [(max(said, first), end) for first, end in spans]
        return [(first, end) for first, end in spans if first < end]

    def _answer(
        self, conversation: Conversation, place: int, prompt: str | None, answered: str | None = None
    ) -> _Answer:
        """Return an answer with the request for it.

        Args:
            conversation: the whole conversation.
            place: index of the answer.
            prompt: the request for it, if known.
            answered: the text of the conversation up to and including it, if known.

        Raises:
            DataError: the template refuses the conversation up to there, or it does not show where the answer begins.
        """
        thinks = conversation.thinks.get(place)
        if answered is None:
            answered = self.render(conversation.messages[: place + 1], tools=conversation.tools, thinks=thinks)
        if prompt is not None and answered.startswith(prompt):
            return _Answer(place, prompt, answered[len(prompt) :], 0)
        asked = any(message["role"] in ("user", "tool") for message in conversation.messages[:place])
        if asked and prompt is None:  # raises the error with the template's reason
            prompt = self._asked(conversation.up_to(place), thinks)
        begin = self._boundary(conversation, place, answered, prompt if asked else "")
        prompt = prompt if asked and prompt is not None else answered[:begin]
        opened = _OPENED.search(prompt) and _OPENING.match(conversation.messages[place].get("content") or "")
        if opened:  # the request opens the reasoning, and once it is said the template leaves it out
            content = conversation.messages[place]["content"]
            return _Answer(place, prompt, content[opened.end() :] + self.endings[0], len(prompt) - begin)
        return _Answer(place, prompt, answered[begin:], len(prompt) - begin)

    def _boundary(self, conversation: Conversation, place: int, answered: str, prompt: str | None) -> int:
        """Return where an answer begins in a conversation that does not begin with the request for it.

        The place is between the turn before and the answer's own words, which a rendering with other words shows. It is
        where the texts first differ there, else where the text before most resembles the end of a request.

        Raises:
            DataError: the rendering does not show it.
        """
        messages, thinks = conversation.messages, conversation.thinks.get(place)
        other = [*messages[:place], {**messages[place], "content": _WORD}]
        before, found, _ = self.render(other, tools=conversation.tools, thinks=thinks).partition(_WORD)
        if not found or not answered.startswith(before):
            turn = conversation.number(place)
            raise DataError(f"the model's chat template does not show where the answer of turn {turn} begins")
        last = (messages[place - 1].get("content") or "").strip() if place else ""
        first = before.rfind(last) + len(last) if last and last in before else 0
        if prompt and first <= (alike := _common(before, prompt)):
            return alike
        if not prompt:
            prompt = self._try([{"role": "user", "content": _WORD}], ask=True, thinks=thinks)
            prompt += self.empty_thought if thinks is False else ""
        borders, backwards = range(len(before), first - 1, -1), prompt[::-1]
        return max(borders, key=lambda border: _common(before[first:border][::-1], backwards))

    # What a template omits --------------------------------------------------------------------------------------

    def _look_at_context(self, conversation: Conversation, last: int, thinks: bool | None) -> bool:
        """Refuse a conversation if the request for turn `last` omits an earlier turn.

        Returns:
            Whether it omits the words of an earlier answer, for example those beside a call.

        Raises:
            DataError: it omits a turn that is not an answer (named).
        """
        altered = False
        if not last or last > MOST_LOOKED_AT:
            return altered
        shape = tuple(
            (m["role"], False, False, False)
            if len(m) == 2
            else (m["role"], "tool_calls" in m, "reasoning_content" in m, "tools" in m)
            for m in conversation.messages[:last]
        )
        for place in self._omitted(shape, bool(conversation.tools), thinks):
            message = conversation.messages[place]
            if not (message.get("content") or "").strip():
                continue
            if message["role"] == "assistant":
                altered = True
                continue
            turn = f"turn {conversation.number(place)} ({message['role']})"
            raise DataError(f"the model's chat template leaves out {turn}, which the answers may need")
        return altered

    def _look_at_answer(self, conversation: Conversation, place: int, said: str, notes: set[str]) -> None:
        """Refuse an answer that is not written at all, and note one that is written differently.

        Raises:
            DataError: it is not written.
        """
        message = conversation.messages[place]
        content = (message.get("content") or "").strip()
        called = False
        for call in calls_of(message):
            called = True
            if str(call.get("name")) not in said:
                turn = conversation.number(place)
                raise DataError(f"the model's chat template does not write the call of a tool in turn {turn}")
        if message.get("reasoning_content", "").strip() not in said:
            notes.add("altered")
        if not content or content in said:
            return
        words, thinks = [*conversation.messages[:place], {**message, "content": _WORD}], conversation.thinks.get(place)
        if not called and _WORD not in self._try(words, tools=conversation.tools, thinks=thinks):
            turn = conversation.number(place)
            raise DataError(f"the model's chat template leaves out the answer of turn {turn}")
        notes.add("altered")

    def _omitted(self, shape: tuple[tuple[str, bool, bool, bool], ...], tools: bool, thinks: bool | None) -> list[int]:
        """Return the indices of the messages whose words a request omits, for conversations of that shape."""
        key = (shape, tools, thinks)
        if key not in self._omissions:
            messages = []
            for place, (role, calls, reasons, told) in enumerate(shape):
                message: dict[str, Any] = {"role": role, "content": f"{_WORD}{place}."}
                message |= {"tool_calls": [_CALL]} if calls else {}
                message |= {"tool_call_id": _CALL["id"]} if role == "tool" else {}
                message |= {"reasoning_content": "b"} if reasons else {}
                messages.append(message | ({"tools": "[]"} if told else {}))
            text = self._try(messages, ask=True, tools=[_TOOL] if tools else None, thinks=thinks)
            found = [place for place in range(len(messages)) if f"{_WORD}{place}." not in text] if text else []
            self._omissions[key] = found
        return self._omissions[key]

    @functools.cached_property
    def _omissions(self) -> dict[Any, list[int]]:
        return {}

    # What a template can do -------------------------------------------------------------------------------------

    def _try(self, messages: Sequence[Message], *, ask: bool = False, **names: Any) -> str:
        """Render made-up messages; return an empty text if the template refuses them."""
        with contextlib.suppress(DataError, ModelError):
            return self.render(messages, ask=ask, **names)
        return ""

    @functools.cached_property
    def abilities(self) -> Abilities:
        """Find out by trying what it can write besides questions and answers."""
        question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        system = {"role": "system", "content": _WORD}
        tools: Any = ""
        if "tools" in self._text:
            told = {"role": "system", "content": "", "tools": _WORD}
            named = {**_TOOL, "function": {**_TOOL["function"], "name": _WORD}}
            apart = self._try([question], ask=True, tools=[named])
            tools = "apart" if _WORD in apart else "system" if _WORD in self._try([told, question], ask=True) else ""
        thought = [question, {**answer, "reasoning_content": _WORD}]
        return Abilities(
            system=_WORD in self._try([system, question], ask=True),
            tools=tools,
            reasoning="reasoning_content" in self._text and _WORD in self._try(thought, thinks=True),
            thinks=self._switches or bool(self.empty_thought),
        )

    @functools.cached_property
    def empty_thought(self) -> str:
        """Return the text between a request and an answer without reasoning, if the template writes any."""
        if "</think>" not in self._text:
            return ""
        question = {"role": "user", "content": "a"}
        asked = self._try([question], ask=True, thinks=False)
        answered = self._try([question, {"role": "assistant", "content": _WORD}], thinks=False)
        lead = answered.partition(_WORD)[0].removeprefix(asked) if answered.startswith(asked) else ""
        return lead if _EMPTY_THOUGHT.fullmatch(lead) else ""

    @functools.cached_property
    def endings(self) -> tuple[str, str]:
        """Return the text after an answer that ends a conversation, and the part of it that follows other answers."""
        asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _WORD}]
        more = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
        thinks = False if self._switches else None
        last = self._try(asked, thinks=thinks).partition(_WORD)[2]
        inner = self._try([*asked, *more], thinks=thinks).partition(_WORD)[2]
        return last, last[: _common(last, inner)]

    def without_reasoning(self) -> str:
        """Return this template, changed so that it always asks for answers without reasoning.

        mlx-lm asks every template of a model that can reason for reasoning.
        """
        if self._switches:
            return "{% set enable_thinking = false %}" + self._text
        if self.empty_thought:
            thought = json.dumps(self.empty_thought)
            return f"{self._text.removesuffix(chr(10))}{{% if add_generation_prompt %}}{{{{ {thought} }}}}{{% endif %}}"
        return self._text

    def _marked_spans(
        self, conversation: Conversation, upto: int, thinks: bool | None, shift: int
    ) -> list[tuple[int, int]] | None:
        """Return the spans inside `{% generation %}`, moved by `shift`; None if they cannot be told."""
        messages, tools = conversation.messages[:upto], conversation.tools
        pieces = self._rendered(self._marked, messages, ask=False, tools=tools, thinks=thinks).split(_MARK)
        if len(pieces) % 2 == 0:  # a filter has changed or removed marks
            return None
        edges = [shift + edge for edge in itertools.accumulate(map(len, pieces))]
        return list(zip(edges[0::2], edges[1::2], strict=False))


_WORD = f"w{secrets.token_hex(16)}"  # a word that is in no data, and that only a filter which escapes letters changes
_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
_CALL = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "f", "arguments": {}}}
_EMPTY_THOUGHT = re.compile(r"\s*(<think>\s*)?</think>\s*")  # which the request may have opened
_OPENED, _OPENING = re.compile(r"<think>\s*$"), re.compile(r"\s*<think>\s*(?=.*</think>)", re.DOTALL)
MOST_LOOKED_AT = 200  # longest conversation, in turns, that is checked for omissions


@functools.lru_cache(maxsize=16)
def open_template(text: str, bos_token: str, eos_token: str) -> ChatTemplate:
    """Return a template that is parsed only once in a process: a page opens the same one repeatedly.

    Raises:
        TemplateError: it is not a template.
    """
    return ChatTemplate(text, bos_token, eos_token)


def _answers(conversation: Conversation) -> list[int]:
    """Return the indices of the answers, trained or not."""
    return [place for place, message in enumerate(conversation.messages) if message["role"] == "assistant"]


_MARK = f"\0{secrets.token_hex(16)}\0"  # data cannot know it


def _marked_blocks(text: str) -> Template | None:
    """Return the template with a mark before and after each `{% generation %}`; None if it has none."""
    tree = template_sandbox.parse(text)
    blocks = list(tree.find_all(nodes.Scope))
    for block in blocks:
        block.body = [_mark(), *block.body, _mark()]
    return template_sandbox.build(tree) if blocks else None


def _ends_with_request(tree: nodes.Template) -> bool:
    """Return whether a template ends with the request for an answer, and depends on it nowhere else."""
    last = tree.body[-1] if tree.body else None
    asks = (
        isinstance(last, nodes.If) and isinstance(last.test, nodes.Name) and last.test.name == "add_generation_prompt"
    )
    if not asks or last.elif_ or last.else_ or _uses(tree, "add_generation_prompt") != 1:
        return False
    return not tree.find((nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport))


def _marked_turns(text: str, names: dict[str, str]) -> tuple[Template | None, str]:
    """Return the template with a mark before each turn, and its request, if no turn's text depends on later turns.

    This holds if the template ends with a loop over the messages and a request that is always the same, looks at no
    other message but the first, and of the loop's state only at what has been.
    """
    tree = template_sandbox.parse(text)
    if not _ends_with_request(tree) or len(tree.body) < 2:
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
    alone = template_sandbox.build(nodes.Template(template_sandbox.parse(text).body[-1:], lineno=1))
    try:
        asked = template_sandbox.render(alone, add_generation_prompt=True, **names)
    except Exception:  # told when a conversation is rendered
        return None, ""
    loop.body.insert(0, _mark())
    return template_sandbox.build(tree), asked


def _uses(tree: nodes.Node, name: str) -> int:
    return sum(node.name == name for node in tree.find_all(nodes.Name))


def _mark() -> nodes.Output:
    return nodes.Output([nodes.TemplateData(_MARK, lineno=1)], lineno=1)


def _common(text: str, other: str) -> int:
    """Return the length of the common beginning of two texts."""
    alike, most = 0, min(len(text), len(other))
    while alike < most:
        middle = (alike + most + 1) // 2
        if text.startswith(other[alike:middle], alike):
            alike = middle
        else:
            most = middle - 1
    return alike
