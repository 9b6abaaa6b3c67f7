"""What a trained model knows: answers of base and tuned model side by side, and recall of a fact sheet.

Recall counts an answer as right when it contains an expected text, without regard to case and accents. Whether a
question was trained is read from the rows of the run, not declared.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from .device import nn
from .generate import answer
from .model import base_only
from .runs import Run
from .storage import write_json
from .tokens import ChatTokenizer

SAMPLES = 6  # questions answered side by side when there is no fact sheet


def evaluate_run(
    run: Run, model: nn.Module, tokenizer: ChatTokenizer, *, adapters: str, max_tokens: int
) -> dict[str, Any]:
    """Answer the run's fact sheet, or some validation questions, with base and tuned model.

    Args:
        run: its `evaluation.json` and `samples.jsonl` are replaced.
        model: with the adapters to be judged.
        tokenizer: of that model.
        adapters: which ones they are, for the record (`best`, `final`).
        max_tokens: longest answer.

    Returns:
        `{"adapters", "questions": […], "recall": {"trained": {…}, "held_out": {…}}}`.
    """
    questions = list(_questions(run))
    prompts = [question["question"] for question in questions]
    with base_only(model):
        base = answer(model, tokenizer, prompts, max_tokens=max_tokens)
    tuned = answer(model, tokenizer, prompts, max_tokens=max_tokens)
    for question, before, after in zip(questions, base, tuned, strict=True):
        question.update(base=before, tuned=after)
        if question["expected"]:
            question.update(
                base_right=says(before, question["expected"]), tuned_right=says(after, question["expected"])
            )
    result = {"adapters": adapters, "questions": questions, "recall": recall(questions)}
    write_json(run.path / "evaluation.json", result)
    lines = [
        json.dumps({k: q[k] for k in ("question", "reference", "base", "tuned")}, ensure_ascii=False) for q in questions
    ]
    (run.path / "samples.jsonl").write_text("\n".join(lines) + "\n" if lines else "", encoding="utf-8")
    return result


def recall(questions: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Right answers of base and tuned model, for trained and for held-out phrasings."""
    counts: dict[str, dict[str, int]] = {}
    for question in questions:
        if question["expected"]:
            count = counts.setdefault(question["phrasing"], {"questions": 0, "base": 0, "tuned": 0})
            count["questions"] += 1
            count["base"] += question["base_right"]
            count["tuned"] += question["tuned_right"]
    return counts


def says(text: str, expected: Sequence[str]) -> bool:
    """Whether `text` contains one of the expected texts as whole words, without regard to case and accents."""
    padded = f" {_plain(text)} "
    return any(f" {value} " in padded for value in map(_plain, expected) if value)


def _plain(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(c if c.isalnum() else " " for c in letters if not unicodedata.combining(c))
    return " ".join(kept.split())


def _questions(run: Run) -> Iterable[dict[str, Any]]:
    """The questions to ask: of the fact sheet, else the first prompts of the validation rows."""
    facts = run.facts()
    if facts:
        trained = {m["content"] for row in run.train_rows() for m in row.get("messages", ()) if m["role"] == "user"}
        for fact in facts:
            for question in fact["questions"]:
                phrasing = "trained" if question in trained else "held_out"
                yield {"question": question, "expected": fact["expected"], "phrasing": phrasing, "reference": ""}
        return
    asked = 0
    for row in [*run.validation_rows(), *run.train_rows()]:
        messages = row.get("messages", ())
        if asked < SAMPLES and len(messages) == 2 and messages[0]["role"] == "user":
            asked += 1
            reference = messages[1]["content"]
            yield {"question": messages[0]["content"], "expected": [], "phrasing": "sample", "reference": reference}
