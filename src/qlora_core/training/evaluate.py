"""Evaluation of a trained model: answers of base and tuned model side by side, and recall of a fact sheet.

An answer counts as right if it contains an expected text, regardless of case and accents. Whether a question was
trained is found in the rows of the run, not declared.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from ..activity import doing
from ..config import PaceConfig
from ..engine.device import nn
from ..engine.generate import Prompt, answer
from ..engine.model import base_only
from ..files.storage import write_json, write_text
from ..runs.run import EVALUATION, SAMPLES, Run, refuse_links
from ..runs.time_estimate import ASKED_QUESTIONS
from ..tokens.tokenizer import ChatTokenizer


def evaluate_run(
    run: Run, model: nn.Module, tokenizer: ChatTokenizer, *, adapters: str, max_tokens: int
) -> dict[str, Any]:
    """Answer the run's fact sheet, or some validation questions, with the base and the tuned model.

    Args:
        run: its `evaluation.json` is replaced.
        model: with the adapters to be judged.
        tokenizer: of that model.
        adapters: name of the adapters, for the record (`best` or `final`).
        max_tokens: longest answer, in tokens.

    Returns:
        `{"adapters", "questions": […], "recall": {"trained": {…}, "held_out": {…}}}`.

    Raises:
        RunError: the run is a link, or holds one.
    """
    refuse_links(run.path)
    asked = list(questions_of(run))
    questions, prompts = [question for question, _ in asked], [prompt for _, prompt in asked]
    with doing("evaluation", 2 * len(prompts)) as tick:
        with base_only(model):
            base = answer(model, tokenizer, prompts, tick=tick, max_tokens=max_tokens)
        tuned = answer(model, tokenizer, prompts, tick=lambda n: tick(len(prompts) + n), max_tokens=max_tokens)
    for question, before, after in zip(questions, base, tuned, strict=True):
        question.update(base=before, tuned=after)
        if question["expected"]:
            question.update(
                base_right=says(before, question["expected"]), tuned_right=says(after, question["expected"])
            )
    result = {"adapters": adapters, "questions": questions, "recall": recall(questions)}
    write_json(run.path / EVALUATION, result)
    return result


def answer_samples(
    run: Run, model: nn.Module, tokenizer: ChatTokenizer, config: PaceConfig, *, step: int, epoch: int
) -> int:
    """Answer the run's sample prompts in one batch and add them to its `samples.jsonl`; return how many.

    Args:
        run: whose.
        model: with the current adapters; for step 0 the base answers, whatever they are.
        tokenizer: of that model.
        config: which prompts are asked, and how long an answer may be.
        step: steps done so far.
        epoch: epoch that the step belongs to, from 1.
    """
    asked = _samples(run, config)
    with doing("samples", len(asked)) as tick, nullcontext() if step else base_only(model):
        prompts = [prompt for _, _, prompt in asked]
        answers = answer(model, tokenizer, prompts, tick=tick, max_tokens=config.max_answer_tokens)
    lines = [
        {"step": step, "epoch": epoch, "question": question, "answer": text, "reference": reference}
        for (question, reference, _), text in zip(asked, answers, strict=True)
    ]
    with (run.path / SAMPLES).open("a", encoding="utf-8", newline="\n") as file:
        file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return len(lines)


def sample_prompts(run: Run, config: PaceConfig) -> dict[str, str]:
    """Return the questions that are asked during training, with their expected answers where known.

    These are the prompts of the settings, else some of the questions that are asked at the end, evenly spread.
    """
    return {question: reference for question, reference, _ in _samples(run, config)}


def _samples(run: Run, config: PaceConfig) -> list[tuple[str, str, Prompt]]:
    """Return each question asked during training, with its expected answer and the full prompt."""
    if config.sample_prompts:
        system = run.shared_system()
        return [(question, "", _behind(system, question)) for question in dict.fromkeys(config.sample_prompts)]
    known = {
        question["question"]: (question["question"], question["reference"] or " / ".join(question["expected"]), prompt)
        for question, prompt in questions_of(run)
    }
    questions = list(known.values())
    count = min(config.samples, len(questions))
    return [questions[i * len(questions) // count] for i in range(count)]


def forget_samples(run: Run, step: int) -> None:
    """Remove samples of steps after `step`, when a run resumes from an older checkpoint, and any torn line."""
    path = run.path / SAMPLES
    kept = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in run.samples() if sample["step"] <= step]
    if path.is_file() and path.read_bytes() != "".join(kept).encode():
        write_text(path, "".join(kept))


def recall(questions: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count right answers of base and tuned model, for trained and for held-out phrasings."""
    counts: dict[str, dict[str, int]] = {}
    for question in questions:
        if question["expected"]:
            count = counts.setdefault(question["phrasing"], {"questions": 0, "base": 0, "tuned": 0})
            count["questions"] += 1
            count["base"] += question["base_right"]
            count["tuned"] += question["tuned_right"]
    return counts


def says(text: str, expected: Sequence[str]) -> bool:
    """Return whether `text` contains one of the expected texts as whole words, regardless of case and accents."""
    padded = f" {_plain(text)} "
    return any(f" {value} " in padded for value in map(_plain, expected) if value)


def _plain(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(c if c.isalnum() else " " for c in letters if not unicodedata.combining(c))
    return " ".join(kept.split())


def _behind(system: str, question: str) -> Prompt:
    asked = {"role": "user", "content": question}
    return [{"role": "system", "content": system}, asked] if system else [asked]


def questions_of(run: Run) -> Iterator[tuple[dict[str, Any], Prompt]]:
    """Yield questions and their full prompts: of the fact sheet, else from the beginnings of conversations."""
    facts = run.facts()
    if facts:
        trained_questions = {
            m["content"] for row in run.train_rows() for m in row.get("messages", ()) if m["role"] == "user"
        }
        system = run.shared_system()
        for fact in facts:
            for question in fact["questions"]:
                phrasing = "trained" if question in trained_questions else "held_out"
                entry = {"question": question, "expected": fact["expected"], "phrasing": phrasing, "reference": ""}
                yield entry, _behind(system, question)
        return
    asked: list[Prompt] = []
    for prompt, reference in filter(
        None, map(_first_exchange, itertools.chain(run.validation_rows(), run.train_rows()))
    ):
        if len(asked) == ASKED_QUESTIONS:
            break
        if prompt not in asked:
            asked.append(prompt)
            question = prompt[-1]["content"]
            yield {"question": question, "expected": [], "phrasing": "sample", "reference": reference}, prompt


def _first_exchange(row: dict[str, Any]) -> tuple[list[dict[str, Any]], str] | None:
    """Return a conversation up to its first question, and the answer; None if that is not a plain text.

    A row with tools does not count: it may be answered by a call.
    """
    messages = row.get("messages", ())
    answer = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), 0)
    if row.get("tools") or not answer or messages[answer - 1]["role"] != "user" or not messages[answer].get("content"):
        return None
    return list(messages[:answer]), messages[answer]["content"]
