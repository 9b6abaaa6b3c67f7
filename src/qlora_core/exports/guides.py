"""The texts of an export: how to use it, in English and Portuguese, and a summary of the run.

Filled in from the files of `templates/`. Knows values and words; of files, only where the texts go.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..models.base_models import ModelSpec
from ..reports import console, plain_text
from ..runs.run import Run
from ..translations import catalogue, told
from .facts import ExportFacts

TEMPLATES = Path(__file__).parent / "templates"
GUIDES = {"INTEGRATION.md": ("en", "What do you know?"), "INTEGRACAO.pt.md": ("pt", "O que sabes?")}
"""Each guide: its language, and its example question for a run without a short one of its own."""
FIND_BASE = "\"$(python -c 'import inference; print(inference.find_base())')\""
"""The base of an export of adapters, as an argument in a shell: no path that is one machine's alone."""


def write_program(directory: Path) -> None:
    """Write `inference.py`."""
    shutil.copyfile(TEMPLATES / "inference.py", directory / "inference.py")


def write_guides(directory: Path, facts: ExportFacts) -> None:
    """Write the guides, whose examples work from inside the export wherever it lies, and the program that some use.

    Args:
        directory: destination of `INTEGRATION.md`, `INTEGRACAO.pt.md` and, if mlx-lm reads the export, `inference.py`.
        facts: what its texts tell.
    """
    if facts.format.has_program:
        write_program(directory)
    right_first = sorted(facts.questions, key=lambda entry: not entry.get("tuned_right"))
    short = next((entry["question"] for entry in right_first if _simple(entry["question"])), None)
    for name, (language, question) in GUIDES.items():
        known = catalogue(language)
        purposes = [(each, known.get(purpose, purpose)) for each, purpose in facts.purposes.items()]
        template = _templates().get_template(f"{facts.format.reader}.{language}.md.jinja")
        said = {"stored": told(facts.stored, language), "notes": [told(note, language) for note in facts.notes]}
        text = template.render(
            facts.by_name() | said, question=short or question, formats=purposes, find_base=FIND_BASE
        )
        text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"  # parts of a template that are left out leave gaps
        (directory / name).write_text(text, encoding="utf-8", newline="\n")


def _simple(question: str) -> bool:
    """Return whether a question is simple enough to stand inside an example."""
    plain = question.isprintable() and "`" not in question and not question.startswith("-")
    return plain and 0 < len(question.strip()) <= 80


def write_summary(directory: Path, run: Run, spec: ModelSpec, facts: ExportFacts) -> None:
    """Write `summary.md`: one page on what was trained, on what data, how it went and how to use it.

    Args:
        directory: destination, which holds the files that it lists.
        run: the run, with its numbers if it ended.
        spec: the base model.
        facts: what its texts tell.
    """
    config, numbers, evaluation = run.config(), run.summary(), run.evaluation()
    table = {
        "State": run.state,
        **console.model_information(spec, config),
        "Rows": f"{len(run.train_rows()):,} to train, {len(run.validation_rows()):,} to validate",
        "Settings": f"learning rate {config.train.learning_rate:g} ({config.train.schedule}), "
        f"{config.train.batch_size * config.train.grad_accumulation_steps} rows a step, seed {config.train.seed}",
        **(console.performance(numbers, evaluation) if numbers else {}),
        "Device": str(run.environment().get("device") or ""),
    }
    answers = console.answers_side_by_side(evaluation) if evaluation and evaluation["questions"] else ""
    text = (
        _templates()
        .get_template("summary.md.jinja")
        .render(
            facts.by_name(),
            table={name: value for name, value in table.items() if value},
            recall_lines=console.recall_lines(evaluation) if evaluation else "",
            answers=answers,
            files=sorted(path.name for path in directory.iterdir()),
        )
    )
    (directory / "summary.md").write_text(text, encoding="utf-8", newline="\n")


def fill(template: str, values: Mapping[str, Any], **more: Any) -> str:
    """Return a template of `templates/`, filled in."""
    return _templates().get_template(template).render(values, **more)


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "shell": shlex.quote,
        "literal": functools.partial(json.dumps, ensure_ascii=False),  # a literal valid in Python and in JavaScript
        "code": _code,
        "cell": lambda text: str(text).replace("|", "\\|").replace("\n", "<br>"),
        "fence": _fence,
    }
    return environment


def printable(text: str, most: int) -> str:
    """Return a text on one line, shortened, without signs that hide text or turn the direction of writing."""
    return "".join(c if c.isprintable() else "\ufffd" for c in plain_text.one_line(text, most))


def _code(text: str) -> str:
    """Return a text as inline code."""
    plain = printable(str(text), 500)
    ticks = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    return f"{ticks}{plain}{ticks}" if ticks == "`" else f"{ticks} {plain} {ticks}"


def _fence(text: str) -> str:
    """Return lines as a code block, whatever they hold."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}text\n{text}\n{ticks}"
