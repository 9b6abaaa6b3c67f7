"""Fields and types of a run's JSON files, for validation: a run may come from elsewhere, or be damaged.

Knows no directory; `run` and `metrics` read the files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from .kernel_choice import Kernels

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Moment = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
"""Seconds since 1970."""
Loss = Annotated[float, msgspec.Meta(ge=0, le=1e15)]  # nats, summed over the tokens of a row
Seconds = Annotated[float, msgspec.Meta(ge=0)]
State = Literal["preparing", "running", "paused", "stopped", "completed", "failed", "crashed"]


class Work(TypedDict):
    """The present activity of the trainer, in `status.json`."""

    stage: str
    done: Count
    total: Count
    seconds: NotRequired[Seconds]


class Status(TypedDict, total=False):
    """Contents of `status.json`."""

    state: State
    step: Count
    total_steps: Count
    steps_per_epoch: Count
    epoch: Count
    best_step: Count
    best_val_loss: float | None
    message: str
    said: dict[str, Any]
    work: Work
    pid: Count
    time: Moment


class Model(TypedDict):
    """The base, in `environment.json`."""

    name: str
    path: NotRequired[str]
    licence: NotRequired[str]
    parameters: NotRequired[Count]
    loaded_bytes: NotRequired[Count]
    bits: NotRequired[Count | None]
    trainable: NotRequired[Count]


class RecordedRows(TypedDict):
    """The rows as tokens, in `environment.json`."""

    tokens: str
    thinks: NotRequired[bool | None]


class Environment(TypedDict):
    """Contents of `environment.json`."""

    model: Model
    rows: NotRequired[RecordedRows]
    identity: NotRequired[dict[str, Any]]
    kernels: NotRequired[Kernels]
    micro_batch: NotRequired[Annotated[int, msgspec.Meta(ge=1)]]
    versions: NotRequired[dict[str, str]]
    imported: NotRequired[dict[str, str]]


class Question(TypedDict):
    """A question with its answers, in `evaluation.json`."""

    question: str
    base: str
    tuned: str
    expected: NotRequired[list[str]]
    base_right: NotRequired[bool]
    tuned_right: NotRequired[bool]
    phrasing: NotRequired[str]
    reference: NotRequired[str]
    fact: NotRequired[str]


class Recall(TypedDict):
    """Right answers to questions of one kind, in `evaluation.json`."""

    questions: Count
    base: Count
    tuned: Count


class Best(TypedDict):
    """How sure the choice of the best adapters is, in `evaluation.json`."""

    step: Count
    sentence: str
    alike: list[Count]
    said: NotRequired[dict[str, Any]]


class Evaluation(TypedDict):
    """Contents of `evaluation.json`."""

    adapters: str
    questions: list[Question]
    recall: dict[str, Recall]
    best: NotRequired[Best | None]


class Answer(TypedDict):
    """An answer of a contender, in `verdict.json`."""

    text: str
    tokens: Count
    ended: bool
    right: NotRequired[bool]
    does: NotRequired[Literal["declined", "own fact", "other"]]
    words: NotRequired[Count]
    share: NotRequired[Annotated[float, msgspec.Meta(ge=0, le=1)]]
    given_away: NotRequired[bool]


class Answers(TypedDict):
    """What each contender said, in `verdict.json`."""

    base: Answer
    tuned: Answer
    base_passages: NotRequired[Answer]
    tuned_passages: NotRequired[Answer]


class JudgedQuestion(TypedDict):
    """A question and what each contender said, in `verdict.json`."""

    question: str
    answers: Answers
    expected: NotRequired[list[str]]


class OwnQuestion(JudgedQuestion):
    """A question of the run's own, in `verdict.json`."""

    expected: list[str]
    phrasing: str
    reference: str
    fact: NotRequired[str]
    passages: NotRequired[list[str]]
    confused_with: NotRequired[str]


class Repetition(TypedDict):
    """The answers of each contender to the beginning of a trained row, in `verdict.json`."""

    kind: Literal["row", "value"]
    rest: str
    answers: Answers
    source: NotRequired[str]


class JudgedRow(TypedDict):
    """The loss of each contender over a row or a text, in nats, in `verdict.json`."""

    tokens: Annotated[int, msgspec.Meta(ge=1)]
    base: Loss
    tuned: Loss
    source: NotRequired[str]
    reply: NotRequired[bool]
    base_passages: NotRequired[Loss]
    tuned_passages: NotRequired[Loss]


class MadeWith(TypedDict):
    """What a verdict was made with, in `verdict.json`: limits of questions and answers, and the state of the run."""

    adapters: str
    version: NotRequired[int]
    sha256: NotRequired[str]
    data: NotRequired[dict[str, str]]


# `with` is a word of Python's, so that this type cannot be written as a class
Verdict = TypedDict(
    "Verdict",
    {
        "with": MadeWith,
        "losses": NotRequired[list[JudgedRow]],
        "questions": NotRequired[list[OwnQuestion]],
        "questions_so_far": NotRequired[list[OwnQuestion]],
        "general_texts": NotRequired[list[JudgedRow]],
        "general_questions": NotRequired[list[JudgedQuestion]],
        "invention": NotRequired[list[JudgedQuestion]],
        "memory": NotRequired[list[Repetition]],
    },
)
"""Contents of `verdict.json`."""


class ValidationLosses(TypedDict):
    """Contents of `validation_losses.json`."""

    adapters: str
    adapters_sha256: str
    rows_sha256: str
    losses: list[Loss]
    tokens: list[Count]


class RowLosses(TypedDict):
    """A line of `row_losses.jsonl`."""

    step: Count
    losses: list[Loss]
    tokens: list[Count]


class Summary(TypedDict, total=False):
    """Contents of `summary.json`."""

    steps: Count
    tokens: Count
    target_tokens: Count
    loading_seconds: Seconds
    training_seconds: Seconds
    validation_seconds: Seconds
    samples_seconds: Seconds
    saving_seconds: Seconds
    evaluation_seconds: Seconds
    total_seconds: Seconds
    tokens_per_second: Annotated[float, msgspec.Meta(ge=0)]
    peak_memory_bytes: Count
    predicted_memory_bytes: Count
    peak_process_bytes: Count
    best_val_loss: float | None
    best_step: Count
    val_loss_before: float | None


class Sample(TypedDict):
    """A line of `samples.jsonl`."""

    step: Count
    epoch: NotRequired[Count]
    question: NotRequired[str]
    answer: NotRequired[str]
    reference: NotRequired[str]


class Event(TypedDict):
    """A line of `metrics.jsonl`, as far as its fields are known."""

    type: str
    step: NotRequired[Count]
    epoch: NotRequired[Count]
    total_steps: NotRequired[Count]
    steps_per_epoch: NotRequired[Count]
    train_loss: NotRequired[float | None]
    val_loss: NotRequired[float | None]
    avg_loss: NotRequired[float | None]
    perplexity: NotRequired[float | None]
    learning_rate: NotRequired[float | None]
    grad_norm: NotRequired[float | None]
    tokens: NotRequired[Count]
    target_tokens: NotRequired[Count]
    seconds: NotRequired[float]
    tokens_per_second: NotRequired[float | None]
    peak_memory_bytes: NotRequired[Count]
    available_memory_bytes: NotRequired[Count]
    cpu_percent: NotRequired[float | None]
    available: NotRequired[Count]
    process_peak: NotRequired[Count]
    bytes: NotRequired[Count]
    layers: NotRequired[Count]
    train_tokens: NotRequired[Count]
    val_tokens: NotRequired[Count]
    answers: NotRequired[Count]
    stage: NotRequired[str]
    label: NotRequired[str]
    message: NotRequired[str]
    said: NotRequired[dict[str, Any]]
    kind: NotRequired[str]
    state: NotRequired[str]
    time: NotRequired[Moment]


_NEEDED = {
    "step": ("step",),
    "eval": ("step",),
    "before": ("step",),
    "epoch": ("step", "epoch"),
    "checkpoint": ("step",),
    "memory": ("label", "available"),
    "trunk": ("layers", "bytes", "seconds"),
    "samples": ("step", "answers", "seconds"),
    "skipped": ("step", "stage"),
    "warning": ("message",),
}
"""Required fields of each type of event."""


def problem(value: Any, shape: Any) -> str:
    """Return what is wrong with a value by its type, in words; empty if nothing is."""
    try:
        msgspec.convert(value, shape)
    except (msgspec.ValidationError, ValueError, OverflowError, RecursionError) as error:
        return str(error)
    return ""


def is_event(value: Any) -> bool:
    """Return whether a decoded line of `metrics.jsonl` is a valid event."""
    if not isinstance(value, dict) or problem(value, Event):
        return False
    return all(value.get(name) is not None for name in _NEEDED.get(value["type"], ()))
