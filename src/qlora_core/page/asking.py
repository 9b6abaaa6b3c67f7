"""Questions to a tuned model and its base, answered by processes of their own."""

from __future__ import annotations

import marimo as mo

from ..runs import Run
from .commands import run_command
from .look import fact_table
from .problems import Problem, attempt, failure


def ask(run: Run | None, question: str, base: bool) -> mo.Html:
    """The tuned model's answer to a question, and the base's beside it, each from a process of its own."""
    if run is None or not question.strip():
        return failure("Train a run and write a question first.")
    common = ["generate", run.name, "--runs-dir", str(run.path.parent), f"--prompt={question}"]
    answers = {}
    for name, flags in {"tuned": [], **({"base": ["--base"]} if base else {})}.items():
        with mo.status.spinner(f"Asking the {name} model …"):
            answer = attempt(run_command, [*common, *flags])
        if isinstance(answer, Problem):
            return failure(answer.message)
        answers[name] = answer["response"] or "(nothing)"
    return fact_table(answers)
