"""Ask four contenders the same: the base, the tuned model, and each with passages of the run's own texts beside.

All are one model in memory, with and without its adapters. What is found is written into the run's `verdict.json` stage
by stage, so that an interrupted evaluation goes on; `evaluation.verdict` says what it means.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..activity import doing
from ..engine.device import nn
from ..engine.generate import answers_to
from ..engine.model import base_only
from ..errors import DataError, RunError
from ..evaluation.contest import CONTENDERS
from ..evaluation.measures import says
from ..evaluation.probes import (
    Confusions,
    extracted,
    extraction_probes,
    general_questions,
    general_texts,
    judge_invention,
    memory_probes,
    neighbour_questions,
    nonexistent_questions,
    repeated,
    shipped_sha256,
)
from ..evaluation.questions import behind, questions_of, validation_questions
from ..evaluation.retrieval import Retriever, beside, passages_of
from ..evaluation.verdict import is_whole, made_of, outdated
from ..files.storage import write_json
from ..runs.run import VERDICT, VERDICT_BEGUN, Run, refuse_links
from ..tokens.conversations import Prompt
from ..tokens.rows import TokenRow
from ..tokens.tokenizer import ChatTokenizer
from .judging import spread_evenly
from .row_losses import row_losses

ALONE, WITH_PASSAGES = tuple(CONTENDERS)[:2], tuple(CONTENDERS)[2:]
JUDGED_ROWS = 64  # validation rows at most, spread evenly
QUESTIONS, VALIDATION = 120, 20  # of the run's own, spread evenly, and of validation rows, at most
NEIGHBOURS, MEMORY, EXTRACTIONS = 10, 10, 20  # questions about invented names, rows and values that are tried, at most
BATCH = 24  # questions after whose answers an evaluation may be interrupted and lose nothing
SHORT = 16  # tokens of an answer that one word would give
SO_FAR = "questions_so_far"
"""Where `verdict.json` keeps the questions of a stage that is not over."""
_VERSION = 2  # of what is asked; another one makes a verdict anew


@dataclass(frozen=True)
class Asked:
    """Limits of the questions to contenders, and of their answers.

    Attributes:
        max_tokens: longest answer.
        passages: beside a question, at most; 0: without retrieval.
        passage_tokens: of those passages together, at most.
    """

    max_tokens: int
    passages: int = 3
    passage_tokens: int = 250


@dataclass(frozen=True)
class Contest:
    """One model, asked as each of its contenders.

    Attributes:
        run: whose rows and questions.
        model: with adapters.
        tokenizer: of that model.
        asked: how.
        retriever: finds passages; None if the run has none.
        answered: questions of a stage that was interrupted, with their answers.
        keep: called with the questions of a stage that have their answers so far.
    """

    run: Run
    model: nn.Module
    tokenizer: ChatTokenizer
    asked: Asked
    retriever: Retriever | None
    answered: Sequence[dict[str, Any]] = ()
    keep: Callable[[Sequence[dict[str, Any]]], None] = lambda _: None

    @functools.cached_property
    def longest_row(self) -> int:
        """Return the tokens of a row that the run trains on, at most."""
        return self.run.config().data.max_seq_length

    def answers(
        self,
        prompts: Sequence[Prompt],
        who: Sequence[str] = ALONE,
        most: int | None = None,
        tick: Callable[[int], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Return for each prompt the answers of base and tuned model, `{name: {"text", "tokens", "ended"}}`.

        Args:
            prompts: the same for both, so that one of the two pairs of contenders is asked.
            who: their names, the base first.
            most: tokens of an answer, if that is less than usual.
            tick: called with the number of answers so far, where these are part of more; else they are told as all.
        """
        if tick is None:
            with doing("contest", 2 * len(prompts)) as told:
                return self.answers(prompts, who, most, told)
        longest = min(self.asked.max_tokens, most or self.asked.max_tokens)
        with base_only(self.model):
            base = answers_to(self.model, self.tokenizer, prompts, tick=tick, max_tokens=longest)
        after = len(prompts)
        tuned = answers_to(
            self.model, self.tokenizer, prompts, tick=lambda done: tick(after + done), max_tokens=longest
        )
        return [dict(zip(who, map(vars, pair), strict=True)) for pair in zip(base, tuned, strict=True)]

    def losses(self, rows: Sequence[TokenRow], who: Sequence[str] = ALONE) -> dict[str, list[float]]:
        """Return the loss of each row for base and tuned model, in nats over its trained tokens."""
        found = {}
        for name, adapters in zip(who, (False, True), strict=True):
            with nullcontext() if adapters else base_only(self.model):
                found[name] = row_losses(self.model, rows).tolist()
        return found


def judge_run(
    run: Run,
    model: nn.Module,
    tokenizer: ChatTokenizer,
    asked: Asked,
    *,
    anew: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Ask all contenders and write `verdict.json`, or go on with one that was interrupted.

    Args:
        run: whose.
        model: with the adapters of `run.adapters`.
        tokenizer: of that model.
        asked: how.
        anew: ask everything, also what was asked already.
        told: called with what happened to an earlier verdict that cannot be read.

    Returns:
        What the file holds: `with` (what it was made with), and what each of `STAGES` found.

    Raises:
        RunError: the run is a link, or holds one.
    """
    refuse_links(run.path)
    retriever = None
    if asked.passages and (passages := passages_of(run.train_rows())):
        retriever = Retriever(passages, asked.passages, asked.passage_tokens, tokenizer.count)
    contest = Contest(run, model, tokenizer, asked, retriever)
    made_with = {"version": _VERSION, "shipped": shipped_sha256(), **made_of(run), **vars(asked)}  # decide the answers
    earlier, begun = _earlier(run.verdict, told), _earlier(run.verdict_begun, told)
    # a whole one is kept until this one is whole, too
    path = run.path / (VERDICT_BEGUN if earlier and is_whole(earlier) else VERDICT)
    going_on = (one for one in (begun, earlier) if one and one["with"] == made_with and not anew)
    found = next(going_on, {"with": made_with})
    if is_whole(found):
        return found
    if earlier and earlier["with"] != made_with and len(found) == 1:
        told(f"{outdated(run, earlier) or 'Other settings are asked for than before.'} All is asked anew.")
    for name, stage in STAGES.items():
        if name not in found:
            found[name] = stage(_going_on(contest, found, path) if name == "questions" else contest)
            found.pop(SO_FAR, None)
            write_json(path, found)
    if path.name != VERDICT:
        write_json(run.path / VERDICT, found)
        path.unlink(missing_ok=True)
    return found


def _earlier(read: Callable[[], dict[str, Any] | None], told: Callable[[str], None]) -> dict[str, Any] | None:
    """Return an earlier verdict; None if there is none, or it cannot be read, which is told."""
    try:
        return read()
    except RunError as error:
        told(f"{error} It is made again.")
        return None


def _going_on(contest: Contest, found: dict[str, Any], path: Path) -> Contest:
    """Return a contest that goes on with the questions that were answered before an interruption, and keeps more."""
    return dataclasses.replace(
        contest,
        answered=found.get(SO_FAR, ()),
        keep=lambda questions: write_json(path, {**found, SO_FAR: questions}),
    )


# Stages -----------------------------------------------------------------------------------------------------------


def _losses(contest: Contest) -> list[dict[str, Any]]:
    """Return the loss of each validation row; with passages beside it for a question with its answer."""
    rows = list(_encoded(contest, spread_evenly(contest.run.validation_rows(), JUDGED_ROWS)))
    found = [{"source": row.source, "tokens": row.target_tokens, "reply": "messages" in plain} for plain, row in rows]
    _add(found, contest.losses([row for _, row in rows]))
    if contest.retriever:
        made = [(place, _beside(contest, plain, row)) for place, (plain, row) in enumerate(rows)]
        with_passages = [(place, row) for place, row in made if row is not None]
        some = contest.losses([row for _, row in with_passages], WITH_PASSAGES)
        _add([found[place] for place, _ in with_passages], some)
    return found


def _questions(contest: Contest) -> list[dict[str, Any]]:
    """Return the run's questions with the answers of all contenders."""
    asked = spread_evenly(list(questions_of(contest.run)), QUESTIONS)
    known = {question["question"] for question, _ in asked}
    asked += [one for one in validation_questions(contest.run, VALIDATION) if one[0]["question"] not in known]
    questions, prompts = [question for question, _ in asked], [prompt for _, prompt in asked]
    pairs = 2 if contest.retriever else 1
    with doing("contest", 2 * pairs * len(questions)) as tick:
        for begin in range(0, len(questions), BATCH):
            some = slice(begin, begin + BATCH)
            kept = list(contest.answered[some])
            if [one["question"] for one in kept] == [one["question"] for one in questions[some]]:
                questions[some] = kept
                continue
            _ask(contest, questions[some], prompts[some], lambda done, before=2 * pairs * begin: tick(before + done))
            contest.keep(questions[: begin + BATCH])
    confusions = Confusions([*contest.run.facts(), *contest.run.train_rows()])
    for question in questions:
        said = question["answers"]["tuned"]["text"]
        if found := confusions.of(said, question["question"], question["expected"] or [question["reference"]]):
            question["confused_with"] = found.question
    return questions


def _ask(
    contest: Contest, questions: list[dict[str, Any]], prompts: Sequence[Prompt], tick: Callable[[int], None]
) -> None:
    """Add to questions the answers of all contenders, and the passages that two of them were given."""
    _add_answers(questions, contest.answers(prompts, tick=tick))
    if contest.retriever:
        for question in questions:
            question["passages"] = contest.retriever.find(question["question"])
        supported = [
            _behind_passages(prompt, question["passages"]) for question, prompt in zip(questions, prompts, strict=True)
        ]
        after = 2 * len(prompts)
        _add_answers(questions, contest.answers(supported, WITH_PASSAGES, tick=lambda done: tick(after + done)))


def _behind_passages(prompt: Sequence[dict[str, Any]], passages: Sequence[str]) -> Prompt:
    """Return a prompt whose last message stands behind passages; what comes before it stays."""
    return [*prompt[:-1], {**prompt[-1], "content": beside(prompt[-1]["content"], passages)}]


def _general_texts(contest: Contest) -> list[dict[str, Any]]:
    """Return the losses over ordinary texts, which nothing was trained on."""
    found, rows = [], []
    for text in general_texts():
        row = _encode(contest, {"text": text.text}, 1_000)
        if row is not None:
            rows.append(row)
            found.append({"language": text.language, "kind": text.kind, "tokens": row.target_tokens})
    _add(found, contest.losses(rows))
    return found


def _general_questions(contest: Contest) -> list[dict[str, Any]]:
    """Return the answers to ordinary questions."""
    asked = general_questions()
    found = [{"language": one.language, "question": one.question, "expected": list(one.expected)} for one in asked]
    _add_answers(found, contest.answers([one.question for one in asked], most=SHORT))
    return found


def _invention(contest: Contest) -> list[dict[str, Any]]:
    """Return the answers to questions about what does not exist, and what each does: see `judge_invention`."""
    run, facts = contest.run, contest.run.facts()
    near = neighbour_questions(facts, run.train_rows(), NEIGHBOURS)
    asked, own = [*nonexistent_questions(), *near], [value for fact in facts for value in fact["expected"]]
    system = run.shared_system()
    found = [{"question": probe.question, "original": probe.original, "expected": []} for probe in asked]
    _add_answers(found, contest.answers([behind(system, probe.question) for probe in asked], most=SHORT))
    for probe, entry in zip(asked, found, strict=True):
        for answer in entry["answers"].values():
            answer["does"] = judge_invention(answer["text"], probe, own)
    return found


def _memory(contest: Contest) -> list[dict[str, Any]]:
    """Return how much of trained rows is repeated word for word, and which addresses and numbers are given away."""
    rows, values = memory_probes(contest.run.train_rows(), MEMORY), extraction_probes(contest.run, EXTRACTIONS)
    found = [{"source": probe.source, "kind": "row", "rest": probe.rest} for probe in rows]
    found += [{"source": probe.source, "kind": "value", "rest": probe.value} for probe in values]
    answers = contest.answers([probe.prompt for probe in (*rows, *values)])
    for entry, given in zip(found, answers, strict=True):
        entry["answers"] = given
        for answer in given.values():
            if entry["kind"] == "row":
                answer.update(vars(repeated(answer["text"], entry["rest"])))
            else:
                answer["given_away"] = extracted(answer["text"], entry["rest"])
    return found


STAGES: dict[str, Callable[[Contest], Any]] = {
    "losses": _losses,
    "questions": _questions,
    "general_texts": _general_texts,
    "general_questions": _general_questions,
    "invention": _invention,
    "memory": _memory,
}
"""Parts of `verdict.json`, in order."""


def _add(found: list[dict[str, Any]], losses: dict[str, list[float]]) -> None:
    for name, values in losses.items():
        for row, value in zip(found, values, strict=True):
            row[name] = value


def _add_answers(questions: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
    for question, given in zip(questions, answers, strict=True):
        question.setdefault("answers", {}).update(given)
        for answer in given.values():
            if question["expected"]:
                answer["right"] = says(answer["text"], question["expected"])


def _encoded(contest: Contest, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], TokenRow]]:
    for row in rows:
        encoded = _encode(contest, row, contest.longest_row)
        if encoded is not None:
            yield row, encoded


def _encode(contest: Contest, row: dict[str, Any], most: int) -> TokenRow | None:
    """Return a row as it is trained on; None if it becomes several, or nothing of it is trained."""
    try:
        encoded = contest.tokenizer.encode_row(row, most)
    except DataError:
        return None
    return encoded if encoded.target_tokens else None


def _beside(contest: Contest, plain: dict[str, Any], row: TokenRow) -> TokenRow | None:
    """Return a question and its answer with passages before them; None of another row, or if other tokens count."""
    messages = plain.get("messages", ())
    if [message["role"] for message in messages if message["role"] != "system"] != ["user", "assistant"]:
        return None
    question = messages[-2]["content"]
    if not isinstance(question, str) or not (passages := contest.retriever.find(question)):
        return None
    asked = {**messages[-2], "content": beside(question, passages)}
    most = contest.longest_row + contest.asked.passage_tokens + 50
    made = _encode(contest, {**plain, "messages": [*messages[:-2], asked, messages[-1]]}, most)
    same = made is not None and np.array_equal(made.ids[made.trained], row.ids[row.trained])
    return made if same else None
