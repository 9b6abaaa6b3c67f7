"""Evaluation of a trained model: answers of base and tuned model side by side, and recall of a fact sheet.

An answer counts as right if it contains an expected text, regardless of case and accents. Whether a question was
trained is found in the rows of the run, not declared.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

from ..activity import doing
from ..config import PaceConfig
from ..engine.device import nn
from ..engine.generate import answer
from ..engine.model import base_only
from ..evaluation.best_choice import best_choice
from ..evaluation.measures import says
from ..evaluation.questions import behind, questions_of, recall
from ..files.storage import write_json, write_text
from ..runs.run import EVALUATION, SAMPLES, Run, refuse_links
from ..tokens.conversations import Prompt
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
        `{"adapters", "questions": […], "recall": {"trained": {…}, "held_out": {…}}, "best": {…}}`, the last as
        `evaluation.best_choice.BestChoice.as_dict` has it, None where that is not known.

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
    choice = best_choice(run)
    result = {
        "adapters": adapters,
        "questions": questions,
        "recall": recall(questions),
        "best": choice.as_dict() if choice else None,
    }
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
        return [(question, "", behind(system, question)) for question in dict.fromkeys(config.sample_prompts)]
    known = {
        question["question"]: (question["question"], " / ".join(question["expected"]) or question["reference"], prompt)
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
