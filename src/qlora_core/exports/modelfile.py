"""Ollama's Modelfile: the run's chat template in Ollama's form, its ends of answers, system text and sampling.

The form is documented at https://docs.ollama.com/modelfile. A chat template is a program in Jinja and Ollama's is one
in Go, so that it is not translated: the run's template is rendered, what stands around each text is cut out, and the
result is compared with further renderings. Knows nothing of weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import RunConfig
from ..errors import DataError, ExportError
from ..sampling import Sampling
from ..tokens.tokenizer import ChatTokenizer
from ..translations import Sentence

Turn = tuple[str, str]
"""Role and text."""

_MARKS = {"system": "SYSTEM\u2063TEXT", "user": "QUESTION\u2063ONE", "assistant": "ANSWER\u2063ONE"}
_SECOND = "QUESTION\u2063TWO"  # an invisible separator stands in no template, and is no blank that one might strip
LEAST_CONTEXT = 4096  # tokens that Ollama makes room for, if the run's rows are shorter


@dataclass(frozen=True)
class Surroundings:
    """Texts that a chat template writes around those of a conversation.

    Attributes:
        start: before a first question without a system text: often the template's own one.
        before_system: before the system text.
        after_system: between the system text and the question.
        before_question: before other questions.
        after_question: between question and answer.
        after_answer: after an answer.
    """

    start: str
    before_system: str
    after_system: str
    before_question: str
    after_question: str
    after_answer: str

    def template(self) -> str:
        """Return the text as a template for Ollama; a system text is its message 0, and the first question follows."""
        start, before_system, after_system, before_question, after_question, after_answer = (
            text.replace("{{", '{{ "{{" }}') for text in vars(self).values()
        )
        return (
            "{{ range $i, $_ := .Messages }}"
            f'{{{{ if eq .Role "system" }}}}{before_system}{{{{ .Content }}}}{after_system}'
            f'{{{{ else if eq .Role "user" }}}}{{{{ if eq $i 0 }}}}{start}'
            f"{{{{ else if not (and (eq $i 1) $.System) }}}}{before_question}{{{{ end }}}}"
            f"{{{{ .Content }}}}{after_question}"
            f"{{{{ else }}}}{{{{ .Content }}}}{after_answer}{{{{ end }}}}{{{{ end }}}}"
        )

    def render(self, turns: Sequence[Turn]) -> str:
        """Return a conversation that ends with a question as Ollama renders it with this template."""
        text, before = "", self.start
        for role, content in turns:
            if role == "system":
                text, before = text + self.before_system + content + self.after_system, ""
            elif role == "user":
                text, before = text + before + content + self.after_question, self.before_question
            else:
                text += content + self.after_answer
        return text


def find_surroundings(tokenizer: ChatTokenizer, *, adds_bos: bool) -> tuple[Surroundings, list[Sentence]]:
    """Return what a tokeniser's template writes around texts, and what Ollama will write otherwise, a sentence each.

    Args:
        tokenizer: with the run's template.
        adds_bos: whether the model's file has the begin-of-text token added, so that the template must not write it.

    Raises:
        ExportError: not even a single question can be written as the template writes it.
    """
    system, user, answer = _MARKS.items()
    begin = tokenizer.bos_token or "" if adds_bos else ""
    start, after_question = _around(_rendered(tokenizer, begin, [user]), user[1])
    before_system, behind = _around(_rendered(tokenizer, begin, [system, user]), system[1])
    after_system = behind.partition(user[1])[0]
    _, behind = _around(_rendered(tokenizer, begin, [user, answer, ("user", _SECOND)]), answer[1])
    between = behind.partition(_SECOND)[0]
    end = next((mark for i in tokenizer.eos_ids if between.startswith(mark := tokenizer.control_names[i])), "")
    after_answer = end + re.match(r"\s*", between[len(end) :])[0]  # type: ignore[index]
    found = Surroundings(start, before_system, after_system, between[len(after_answer) :], after_question, after_answer)
    return found, _differences(found, tokenizer, begin)


def _differences(found: Surroundings, tokenizer: ChatTokenizer, begin: str) -> list[Sentence]:
    """Return which conversations are written otherwise than by the run's own template, a sentence each.

    Raises:
        ExportError: a single question is.
    """
    question, system = ("user", "É a 1.ª?\n\n {x}"), ("system", "Sê breve.")
    answer, further = ("assistant", "Sim.\n\nNão."), ("user", "E?")
    tried = {
        Sentence("Ollama writes a question behind a system text otherwise than the run's own template."): (
            [system, question]
        ),
        Sentence("Ollama writes a further question otherwise than the run's own template."): (
            [question, answer, further]
        ),
        Sentence("Ollama writes a further question behind a system text otherwise than the run's own template."): (
            [system, question, answer, further]
        ),
    }

    def differs(turns: Sequence[Turn]) -> bool:
        wanted = _rendered(tokenizer, begin, turns)
        return bool(wanted) and found.render(turns) != wanted

    if not _rendered(tokenizer, begin, [question]) or differs([question]):
        raise ExportError(
            f"{tokenizer.directory}: its chat template writes a question in a way that a template of Ollama cannot "
            "express. Use --to gguf: llama.cpp and LM Studio run the template as it is."
        )
    return [note for note, turns in tried.items() if differs(turns)]


def _rendered(tokenizer: ChatTokenizer, begin: str, turns: Sequence[Turn]) -> str:
    """Return a conversation ready for an answer, without its beginning `begin`."""
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        text = tokenizer.render(messages, add_generation_prompt=True)
    except DataError:  # the template refuses such a conversation
        return ""
    return text.removeprefix(begin)


def _around(text: str, mark: str) -> tuple[str, str]:
    """Return what stands before a mark and behind it; two empty texts if it is not there."""
    before, found, after = text.partition(mark)
    return (before, after) if found else ("", "")


def write_modelfile(
    directory: Path,
    tokenizer: ChatTokenizer,
    config: RunConfig,
    *,
    base: str,
    adapter: str,
    adds_bos: bool,
    system: str,
    licence: str,
) -> list[Sentence]:
    """Write `Modelfile`, and return which conversations Ollama will write otherwise than the run, a sentence each.

    Args:
        directory: its destination, beside the files that it names.
        tokenizer: with the run's template.
        config: the run's settings.
        base: file of the model.
        adapter: file of the adapters; empty if they are merged into it.
        adds_bos: whether the model's file has the begin-of-text token added.
        system: system text that all rows were trained with; empty if there is none.
        licence: the base's; may be empty.

    Raises:
        ExportError: a question cannot be written as the run's template writes it.
    """
    found, differences = find_surroundings(tokenizer, adds_bos=adds_bos)
    sampling = Sampling(max_tokens=config.pace.max_answer_tokens)
    parameters = {
        "num_ctx": max(LEAST_CONTEXT, config.data.max_seq_length),
        "num_predict": sampling.max_tokens,
        "temperature": f"{sampling.temperature:g}",
        "repeat_penalty": f"{sampling.repetition_penalty:g}",  # Ollama's own default would change answers
    }
    lines = [
        f"FROM ./{base}",
        *([f"ADAPTER ./{adapter}"] if adapter else []),
        f"TEMPLATE {_quoted(found.template())}",
        *([f"SYSTEM {_quoted(system)}"] if system else []),
        *(f"PARAMETER stop {_quoted(tokenizer.control_names[i])}" for i in tokenizer.eos_ids),
        *(f"PARAMETER {name} {value}" for name, value in parameters.items()),
        *([f"LICENSE {_quoted(licence)}"] if licence else []),
    ]
    (directory / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return differences


def _quoted(text: str) -> str:
    """Return a text between the quotation marks of a Modelfile.

    Raises:
        ExportError: it holds such marks itself, for which there is no way to write them.
    """
    if '"""' in text:
        raise ExportError('the system text or template holds """, which a Modelfile cannot: use --to gguf instead.')
    plain = not re.search(r'[\n"]', text) and text == text.strip()
    return f'"{text}"' if plain else f'"""{text}"""'
