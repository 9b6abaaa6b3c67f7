"""Read a run directory, also while it is being written.

Knows nothing of mlx. The layout is the table in docs/runs.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ..config import RunConfig, from_json, to_flat
from ..data import FACTS_FILE, TRAIN_FILE, VAL_FILE, Rows
from ..errors import ConfigError, RunError, StorageError, shown
from ..files.locks import is_held
from ..files.storage import (
    explained,
    file_problem,
    write_text,
)
from ..files.untrusted_json import TABLE_BYTES, read_object, read_text
from ..models.adapter_files import ADAPTER_FILE
from ..models.base_models import ModelSpec, describe
from ..tokens.dataset import TokenDataset
from ..tokens.tokenizer import ChatTokenizer
from ..translations import Sentence
from .metrics import events_of, loss_before, read_events
from .row_losses import RowLosses, read_row_losses
from .schema import Environment, Evaluation, Sample, State, Status, Summary, Verdict, problem

Control = Literal["run", "pause", "stop", "skip"]

CONFIG, ENVIRONMENT, STATUS, METRICS = "config.json", "environment.json", "status.json", "metrics.jsonl"
SAMPLES, EVALUATION, SUMMARY, CONTROL = "samples.jsonl", "evaluation.json", "summary.json", "control"
VERDICT, VERDICT_BEGUN = "verdict.json", "verdict_begun.json"
WORKER_LOG, EXIT = "worker.log", "exit.json"
ROW_LOSSES, VALIDATION_LOSSES = "row_losses.jsonl", "validation_losses.json"
"""Files of a run; `docs/runs.md` tells what is in them."""

_ALIKE = 1000  # rows that are checked for a common system text
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_NO_SAMPLE = {"epoch": 0, "question": "", "answer": "", "reference": ""}
_NO_NUMBERS = dict.fromkeys(Summary.__annotations__, 0) | {"best_val_loss": None, "val_loss_before": None}


def is_name(name: str) -> bool:
    """Return whether a run may have that name: one part of a path, valid on every file system and not hidden."""
    return bool(_NAME.fullmatch(name)) and not name.endswith(".") and not _RESERVED.fullmatch(name)


def check_name(name: str) -> None:
    """Refuse a name that a run cannot have.

    Raises:
        RunError: it is not valid.
    """
    if not is_name(name):
        raise RunError(
            f"{shown(name)} cannot be a run's name: letters, digits, '.', '_' and '-', at most 64; a letter or a digit "
            "first, no '.' last, and no name that means a device somewhere (con, nul, …)."
        )


def refuse_links(run: Path) -> None:
    """Refuse to write into a run if it, or something in it, is a link to somewhere else.

    Raises:
        RunError: it is a link, or contains one.
    """
    if run.is_symlink():
        raise RunError(
            f"{run}: is a link to {run.readlink()}. A run is written only where it lies: name its directory with "
            "--runs-dir, which may be a link."
        )
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(run) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise RunError(f"{entry.path}: is a link, and a run holds none. Put there what it leads to.")


class Run:
    """A run directory, for reading.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """Return the directory's name."""
        return self.path.name

    @property
    def exists(self) -> bool:
        """Return whether the run has been created."""
        return os.path.isfile(self.path / CONFIG)  # noqa: PTH113 - also False for an impossible path

    @property
    def best(self) -> Path:
        """Return the directory of the adapters with the lowest validation loss."""
        return self.path / "best"

    @property
    def checkpoint_directory(self) -> Path:
        """Return the directory of the checkpoints that training resumes from."""
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        """Return the directory of the adapters at the end of training."""
        return self.path / "final"

    @property
    def exports(self) -> Path:
        """Return the directory of the run's own exports, each in one that is named after its format."""
        return self.path / "export"

    @property
    def result(self) -> Path:
        """Return the directory to export: adapters, a program that uses them, a guide, curves; written at the end."""
        return self.exports / "adapter"

    @property
    def initial_adapters(self) -> Path:
        """Return the file of the adapters that training starts from, which exists only if it starts from some."""
        return self.path / "initial_adapters.safetensors"

    @property
    def metrics_file(self) -> Path:
        """Return the file of events recorded during training, one per line."""
        return self.path / METRICS

    @property
    def template(self) -> str:
        """Return the chat template: the run's copy of a file, else the value of the setting."""
        own = self.path / "chat_template.jinja"
        return str(own) if own.is_file() else self.config().base.template

    def base(self) -> ModelSpec:
        """Return the description of the base that it is trained on.

        Raises:
            RunError: this is not a run, or its base is gone.
            ModelError: the base cannot be read.
        """
        model = self.environment()["model"]
        path = Path(model["path"])
        if not path.is_dir():
            raise RunError(Sentence("{path}: the run's base model is not there any more.", path=str(path)))
        return describe(path, self.config().base, model["licence"])

    def tokenizer(self) -> ChatTokenizer:
        """Open the base's tokeniser with the run's template.

        Raises:
            RunError: it has changed since the run began.
            ModelError: it cannot be read.
        """
        environment, reasoning = self.environment(), self.config().base.reasoning
        thinks = environment.get("rows", {}).get("thinks")
        made = ChatTokenizer(Path(environment["model"]["path"]), self.template, reasoning, thinks=thinks)
        recorded = environment["identity"].get("tokeniser and template")
        if recorded == made.fingerprint_with_blank != made.fingerprint:
            raise RunError(
                f"{self.name}: was made by an older version, which did not train the first word of an answer behind a "
                "template with a blank before {response}. Use --fresh."
            )
        self.refuse_change("tokeniser and template", made.fingerprint)
        return made

    def refuse_change(self, what: str, found: str) -> None:
        """Compare a fingerprint with the one recorded when the run began.

        Raises:
            RunError: they differ.
        """
        environment = self.environment()
        if environment["identity"].get(what) != found:
            where = environment["model"]["path"]
            raise RunError(f"{self.name}: its {what} changed since the run began ({where}). Use --fresh.")

    def refuse_changed_settings(self) -> None:
        """Compare the settings that decide the result with those recorded when the run began.

        Raises:
            RunError: one differs (named).
            ConfigError: they cannot be read.
        """
        usual, recorded = stored_defaults(), self.environment()["identity"]
        for name, value in as_stored(to_flat(self.config(), "result")).items():
            if value != (wanted := recorded.get(name, usual[name])):
                raise RunError(
                    f"{self.path / 'config.json'}: {name} changed since the run began: it was {wanted!r} and is "
                    f"{value!r}. Put it back, or use --fresh."
                )

    def refuse_damage(self) -> None:
        """Compare the run's rows and initial adapters with their hashes recorded when the run began.

        Raises:
            RunError: a file is damaged or missing.
        """
        environment = self.environment()
        for name, expected in environment.get("files", {}).items():  # earlier versions recorded none
            if problem := file_problem(self.path / name, expected):
                raise RunError(
                    f"{self.path / name}: {problem}: it was damaged or changed since the run began. Put it back from a "
                    "copy, or use --fresh with what it was made of."
                )

    @property
    def adapters(self) -> Path:
        """Return the directory of the adapters to use: the best, or the final ones if there was no validation.

        Raises:
            RunError: the run has neither.
        """
        for directory in (self.best, self.final):
            if (directory / ADAPTER_FILE).is_file():
                return directory
        raise RunError(
            Sentence(
                "{run}: has no trained adapters yet (state: {state}).", run=str(self.path), state=Sentence(self.state)
            )
        )

    def config(self) -> RunConfig:
        """Return the run's settings."""
        try:
            return from_json(self._read(CONFIG))
        except ConfigError as error:
            raise RunError(f"{self.path / 'config.json'}: {error}") from None

    def environment(self) -> dict[str, Any]:
        """Return versions, device, kernels and the hashes that identify the run.

        Raises:
            RunError: this is not a run, or it is damaged.
        """
        found = self._read_json(ENVIRONMENT, Environment)
        unknown = {"path": "(unknown)", "licence": ""}
        return {"identity": {}, **found, "model": {**unknown, **found["model"]}}

    @property
    def micro_batch(self) -> int:
        """Return the number of rows that are computed at once.

        After memory ran out these are fewer than `batch_size`, and a step has more micro-batches.
        """
        batch_size = self.config().train.batch_size
        return min(self.environment().get("micro_batch", batch_size), batch_size)

    def status(self) -> dict[str, Any]:
        """Return the trainer's last status; empty if there is none yet, or it is damaged."""
        try:
            found = read_object(self.path / STATUS)
        except (OSError, ValueError):
            return {}
        return {} if problem(found, Status) else found

    def evaluation(self) -> dict[str, Any] | None:
        """Return the result of the last evaluation; None if there was none.

        Raises:
            RunError: it is damaged.
        """
        return self._read_json(EVALUATION, Evaluation) if (self.path / EVALUATION).exists() else None

    def verdict(self) -> dict[str, Any] | None:
        """Return what `qlora evaluate` has found, perhaps in part; None if it was not asked yet.

        Raises:
            RunError: it is damaged.
        """
        return self._read_json(VERDICT, Verdict) if (self.path / VERDICT).exists() else None

    def verdict_begun(self) -> dict[str, Any] | None:
        """Return what `qlora evaluate` has found so far where `verdict` is whole, of something else; None if nothing.

        Raises:
            RunError: it is damaged.
        """
        return self._read_json(VERDICT_BEGUN, Verdict) if (self.path / VERDICT_BEGUN).exists() else None

    def samples(self) -> list[dict[str, Any]]:
        """Return answers during training, in order: `{"step", "epoch", "question", "answer", "reference"}`."""
        try:
            lines = read_text(self.path / SAMPLES, TABLE_BYTES, errors="replace").splitlines()
        except (OSError, ValueError):
            return []
        found = []
        for line in lines:
            try:
                sample = json.loads(line)
            except (ValueError, RecursionError):  # torn by a crash
                continue
            if not problem(sample, Sample):
                found.append({**_NO_SAMPLE, **sample})
        return found

    @property
    def loss_before(self) -> float | None:
        """Return the validation loss before the first step; None where it was not computed."""
        return loss_before(events_of(self.metrics_file, ("before",)))

    def row_losses(self) -> list[RowLosses]:
        """Return the loss of each validation row at each validation, by step; none of a run of an earlier version."""
        return read_row_losses(self.path / ROW_LOSSES)

    def summary(self) -> dict[str, Any] | None:
        """Return the numbers of a run that ended; None before that.

        Raises:
            RunError: they are damaged.
        """
        if not (self.path / SUMMARY).exists():
            return None
        return {**_NO_NUMBERS, **self._read_json(SUMMARY, Summary)}

    @property
    def best_is_last(self) -> bool:
        """Return whether the validation loss was lowest in the last tenth of the steps: it may still fall."""
        numbers = self.summary() or {}
        return bool(numbers.get("best_step")) and numbers["best_step"] >= 0.9 * numbers["steps"]

    def train_rows(self) -> Rows:
        """Return the prepared training rows."""
        return Rows(self.path / "data" / TRAIN_FILE)

    def validation_rows(self) -> Rows:
        """Return the prepared validation rows."""
        return Rows(self.path / "data" / VAL_FILE)

    def shared_system(self) -> str:
        """Return the system text that all training rows begin with; empty if there is none, or several."""
        texts = set()
        for row in itertools.islice(self.train_rows(), _ALIKE):
            first = (row.get("messages") or [{}])[0]
            texts.add(first["content"] if first.get("role") == "system" else "")
            if len(texts) > 1:
                return ""
        return texts.pop() if texts else ""

    def facts(self) -> list[dict[str, Any]]:
        """Return the fact sheet; empty if there is none."""
        path = self.path / "data" / FACTS_FILE
        return list(Rows(path)) if path.is_file() else []

    @property
    def alive(self) -> bool:
        """Return whether a trainer holds the lock."""
        return is_held(self.path / "lock")

    @property
    def state(self) -> State | Literal["new"]:
        """Return what the run is doing.

        It is `crashed` if its trainer is gone without having recorded why, and `new` before the first training.
        """
        status = self.status()
        if status.get("state") in ("preparing", "running") and not self.alive:
            # read again: a trainer that ended or began between reading the status and checking the lock has written one
            if (again := self.status()) == status:
                return "crashed"
            status = again
        if state := status.get("state"):
            return state
        if self.alive:
            return "preparing"
        return "crashed" if _has_content(self.metrics_file) else "new"  # a power cut may have emptied the status

    def control(self) -> Control:
        """Return what the trainer was asked to do."""
        try:
            word = read_text(self.path / CONTROL, 100).strip()
        except (OSError, ValueError):  # missing, or unreadable for the moment: training goes on
            return "run"
        return word if word in ("pause", "stop", "skip") else "run"  # type: ignore[return-value]

    def request(self, what: Control) -> None:
        """Ask the trainer to pause or stop after its current step, or to skip a check that it is at.

        Raises:
            RunError: the run is a link, or holds one.
        """
        refuse_links(self.path)
        write_text(self.path / CONTROL, what)

    def metrics(self) -> list[dict[str, Any]]:
        """Return all events so far, in order, without steps that were undone by a resume."""
        return read_events(self.metrics_file)

    def _read(self, name: str) -> str:
        try:
            with explained(self.path / name, problem="cannot be read"):
                return read_text(self.path / name)
        except StorageError:  # the device's fault, not the run's
            raise
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                Sentence(
                    "{run}: is not a run ({name} is missing). `qlora runs` lists them.", run=str(self.path), name=name
                )
            ) from None
        except (OSError, ValueError) as error:
            raise RunError(
                Sentence("{file}: cannot be read: {error}", file=str(self.path / name), error=str(error))
            ) from None

    def _read_json(self, name: str, shape: type) -> dict[str, Any]:
        try:
            found = json.loads(self._read(name))
        except (ValueError, RecursionError) as error:
            raise RunError(
                Sentence("{file}: cannot be read: {error}", file=str(self.path / name), error=str(error))
            ) from None
        if wrong := problem(found, shape):
            raise RunError(Sentence("{file}: is damaged: {wrong}.", file=str(self.path / name), wrong=wrong))
        return found


def describe_rows(train: TokenDataset, validation: TokenDataset) -> dict[str, Any]:
    """Return what a run records about its rows as tokens: a digest, and whether answers begin with reasoning."""
    digests = f"{train.rows.digest()} {validation.rows.digest()}"
    return {"tokens": hashlib.sha256(digests.encode()).hexdigest(), "thinks": train.thinks}


def iterate_states(runs: list[Run]) -> Iterator[dict[str, Any]]:
    """Yield for each run its name, state, steps, best validation loss and path."""
    for run in runs:
        status = run.status()
        yield {
            "run": run.name,
            "state": run.state,
            "step": status.get("step", 0),
            "total_steps": status.get("total_steps", 0),
            "best_val_loss": status.get("best_val_loss"),
            "path": str(run.path),
        }


def iterate_judged(runs: list[Run]) -> Iterator[dict[str, Any]]:
    """Yield the states of runs, and how sure their best steps are, for which each evaluation is read."""
    for run, state in zip(runs, iterate_states(runs), strict=True):
        yield {**state, "best": _best(run)}


def _best(run: Run) -> dict[str, Any] | None:
    """Return how sure the choice of the best adapters is, as far as that is known."""
    try:
        return (run.evaluation() or {}).get("best")
    except (RunError, StorageError):  # a damaged one is told where it is read
        return None


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def stored_defaults() -> dict[str, Any]:
    """Return the settings that decide a result at their defaults, as JSON stores them."""
    return as_stored(to_flat(RunConfig(), "result")) | {"initial adapters": ""}


def as_stored(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as they will be read again from JSON: tuples become lists."""
    return json.loads(json.dumps(values))
