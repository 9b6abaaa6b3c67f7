"""The questions that a run is judged by: of its fact sheet, else of conversations that it has.

Whether a question was trained is found in the rows of the run, not declared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..runs.run import Run
from ..runs.time_estimate import ASKED_QUESTIONS
from ..tokens.conversations import Prompt


def questions_of(run: Run) -> Iterator[tuple[dict[str, Any], Prompt]]:
    """Yield questions and their full prompts: of the fact sheet, else from the beginnings of conversations."""
    facts = run.facts()
    if facts:
        trained = dict(pair for row in run.train_rows() for pair in _pairs(row))
        system = run.shared_system()
        for fact in facts:
            for question in fact["questions"]:
                phrasing, reference = "trained" if question in trained else "held_out", trained.get(question, "")
                entry = {"question": question, "expected": fact["expected"], "phrasing": phrasing}
                entry["reference"] = reference
                yield {**entry, "fact": fact.get("fact", "")}, behind(system, question)
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
            entry = {"question": question, "expected": [], "phrasing": "sample", "reference": reference}
            yield {**entry, "fact": ""}, prompt


def validation_questions(run: Run, most: int) -> Iterator[tuple[dict[str, Any], Prompt]]:
    """Yield the first questions of conversations that were not trained, each once, with their full prompts."""
    asked = set()
    for prompt, reference in filter(None, map(_first_exchange, run.validation_rows())):
        question = prompt[-1]["content"]
        if len(asked) < most and question not in asked:
            asked.add(question)
            yield {"question": question, "expected": [], "phrasing": "validation", "reference": reference}, prompt


def recall(questions: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count right answers of base and tuned model, for trained and for held-out phrasings."""
    counts: dict[str, dict[str, int]] = {}
    for question in questions:
        if question["expected"]:
            count = counts.setdefault(question["phrasing"], {"questions": 0, "base": 0, "tuned": 0})
            count["questions"] += 1
            count["base"] += bool(question["base_right"])
            count["tuned"] += bool(question["tuned_right"])
    return counts


def fact_of(row: Mapping[str, Any]) -> str:
    """Return the fact that a prepared row says it teaches, in its metadata; empty if it says none."""
    metadata = row.get("metadata")
    return str(metadata.get("fact") or "") if isinstance(metadata, Mapping) else ""


def as_evaluated(questions: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield questions of `verdict.json` as those of `evaluation.json` are: `base`, `base_right` and so on."""
    for question in questions:
        flat = {key: value for key, value in question.items() if key != "answers"}
        for who, answer in question["answers"].items():
            flat |= {who: answer["text"], f"{who}_right": answer.get("right")}
        yield flat


def behind(system: str, question: str) -> Prompt:
    """Return a question, behind a system text if there is one."""
    asked = {"role": "user", "content": question}
    return [{"role": "system", "content": system}, asked] if system else [asked]


def _pairs(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the questions of a conversation with the answers to them; an answer that is no text is empty."""
    for message, reply in itertools.pairwise(row.get("messages", ())):
        if message["role"] == "user":
            said = reply.get("content") if reply["role"] == "assistant" else ""
            yield message["content"], said if isinstance(said, str) else ""
    if row.get("messages") and row["messages"][-1]["role"] == "user":
        yield row["messages"][-1]["content"], ""


def _first_exchange(row: dict[str, Any]) -> tuple[list[dict[str, Any]], str] | None:
    """Return a conversation up to its first question, and the answer; None if that is not a plain text.

    A row with tools does not count: it may be answered by a call.
    """
    messages = row.get("messages", ())
    answer = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), 0)
    if row.get("tools") or not answer or messages[answer - 1]["role"] != "user" or not messages[answer].get("content"):
        return None
    return list(messages[:answer]), messages[answer]["content"]
