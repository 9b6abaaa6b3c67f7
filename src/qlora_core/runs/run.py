"""The run directory: the one thing that the trainer and everything else share.

`TrainingTracker` plans runs and opens them for writing; `Run` reads them, also while they are being written. Knows
nothing of mlx. The layout is the table in docs/runs.md.
"""

from __future__ import annotations

import contextlib
import hashlib
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
from .metrics import read_events
from .schema import Environment, Evaluation, Sample, State, Status, Summary, problem

Control = Literal["run", "pause", "stop"]

CONFIG, ENVIRONMENT, STATUS, METRICS = "config.json", "environment.json", "status.json", "metrics.jsonl"
SAMPLES, EVALUATION, SUMMARY, CONTROL = "samples.jsonl", "evaluation.json", "summary.json", "control"
WORKER_LOG, EXIT = "worker.log", "exit.json"
"""Files of a run; `docs/runs.md` tells what is in them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_NO_SAMPLE = {"epoch": 0, "question": "", "answer": "", "reference": ""}
_NO_NUMBERS = dict.fromkeys(Summary.__annotations__, 0) | {"best_val_loss": None}


def is_name(name: str) -> bool:
    """Whether a run may be called that: one part of a path, the same on every file system, hidden nowhere."""
    return bool(_NAME.fullmatch(name)) and not name.endswith(".") and not _RESERVED.fullmatch(name)


def check_name(name: str) -> None:
    """Refuse what cannot be a run's name.

    Raises:
        RunError: it is none.
    """
    if not is_name(name):
        raise RunError(
            f"{shown(name)} cannot be a run's name: letters, digits, '.', '_' and '-', at most 64; a letter or a digit "
            "first, no '.' last, and no name that means a device somewhere (con, nul, …)."
        )


def refuse_links(run: Path) -> None:
    """Refuse to write into a run that is not where it seems to be, in whole or in part.

    Raises:
        RunError: it is a link, or holds one.
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
        """The directory's name."""
        return self.path.name

    @property
    def exists(self) -> bool:
        """True once the run was created."""
        return os.path.isfile(self.path / CONFIG)  # noqa: PTH113 - false also for what can be no path

    @property
    def best(self) -> Path:
        """Adapters with the lowest validation loss."""
        return self.path / "best"

    @property
    def checkpoint_directory(self) -> Path:
        """Where the trainer saves what it goes on from."""
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        """Adapters as training left them."""
        return self.path / "final"

    @property
    def result(self) -> Path:
        """What to take away, once training ended: adapters, a program that asks them, a guide, curves."""
        return self.path / "export" / "adapter"

    @property
    def initial_adapters(self) -> Path:
        """The file of adapters that training starts from, where it starts from some."""
        return self.path / "initial_adapters.safetensors"

    @property
    def metrics_file(self) -> Path:
        """What was recorded while training, an event a line."""
        return self.path / METRICS

    @property
    def template(self) -> str:
        """Which chat template: the run's copy of a file, else as the setting says."""
        own = self.path / "chat_template.jinja"
        return str(own) if own.is_file() else self.config().base.template

    def base(self) -> ModelSpec:
        """The base that it is trained on.

        Raises:
            RunError: this is not a run, or its base is gone.
            ModelError: the base cannot be read.
        """
        model = self.environment()["model"]
        path = Path(model["path"])
        if not path.is_dir():
            raise RunError(f"{path}: the run's base model is not there any more.")
        return describe(path, self.config().base, model["licence"])

    def tokenizer(self) -> ChatTokenizer:
        """The base's tokeniser with the run's template.

        Raises:
            RunError: it is not what it was when the run began.
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
        """Compare a fingerprint with the one of its beginning.

        Raises:
            RunError: they differ.
        """
        environment = self.environment()
        if environment["identity"].get(what) != found:
            where = environment["model"]["path"]
            raise RunError(f"{self.name}: its {what} changed since the run began ({where}). Use --fresh.")

    def refuse_changed_settings(self) -> None:
        """Compare the settings that decide the result with those of its beginning.

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
        """Compare the rows and adapters that it brought along with what they were in its beginning.

        Raises:
            RunError: a file is damaged or missing.
        """
        environment = self.environment()
        for name, expected in environment.get("files", {}).items():  # runs of earlier versions noted none
            if problem := file_problem(self.path / name, expected):
                raise RunError(
                    f"{self.path / name}: {problem}: it was damaged or changed since the run began. Put it back from a "
                    "copy, or use --fresh with what it was made of."
                )

    @property
    def adapters(self) -> Path:
        """What to answer with: the best adapters, or the final ones where there was no validation.

        Raises:
            RunError: the run has neither.
        """
        for directory in (self.best, self.final):
            if (directory / ADAPTER_FILE).is_file():
                return directory
        raise RunError(f"{self.path}: has no trained adapters yet (state: {self.state}).")

    def config(self) -> RunConfig:
        """What was asked."""
        try:
            return from_json(self._read(CONFIG))
        except ConfigError as error:
            raise RunError(f"{self.path / 'config.json'}: {error}") from None

    def environment(self) -> dict[str, Any]:
        """Versions, device, kernel choice and the hashes that identify the run.

        Raises:
            RunError: this is not a run, or it is damaged.
        """
        found = self._read_json(ENVIRONMENT, Environment)
        unknown = {"path": "(unknown)", "licence": ""}
        return {"identity": {}, **found, "model": {**unknown, **found["model"]}}

    @property
    def micro_batch(self) -> int:
        """Rows that are computed at once. Fewer than `batch_size` since memory ran out: then as many more times."""
        batch_size = self.config().train.batch_size
        return min(self.environment().get("micro_batch", batch_size), batch_size)

    def status(self) -> dict[str, Any]:
        """The trainer's last word; empty before it spoke, and where that is damaged."""
        try:
            found = read_object(self.path / STATUS)
        except (OSError, ValueError):
            return {}
        return {} if problem(found, Status) else found

    def evaluation(self) -> dict[str, Any] | None:
        """The result of the last evaluation, if there was one.

        Raises:
            RunError: it is damaged.
        """
        return self._read_json(EVALUATION, Evaluation) if (self.path / EVALUATION).exists() else None

    def samples(self) -> list[dict[str, Any]]:
        """Answers while it learnt, in order: `{"step", "epoch", "question", "answer", "reference"}`."""
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

    def summary(self) -> dict[str, Any] | None:
        """The numbers of a run that ended.

        Raises:
            RunError: they are damaged.
        """
        if not (self.path / SUMMARY).exists():
            return None
        return {**_NO_NUMBERS, **self._read_json(SUMMARY, Summary)}

    def train_rows(self) -> Rows:
        """The prepared rows it trains on."""
        return Rows(self.path / "data" / TRAIN_FILE)

    def validation_rows(self) -> Rows:
        """The prepared rows it validates on."""
        return Rows(self.path / "data" / VAL_FILE)

    def facts(self) -> list[dict[str, Any]]:
        """The fact sheet, empty if there is none."""
        path = self.path / "data" / FACTS_FILE
        return list(Rows(path)) if path.is_file() else []

    @property
    def alive(self) -> bool:
        """True while a trainer holds the lock."""
        return is_held(self.path / "lock")

    @property
    def state(self) -> State | Literal["new"]:
        """What the run is doing; `crashed` when its trainer is gone without having said why, `new` before the first."""
        status = self.status()
        if status.get("state") in ("preparing", "running") and not self.alive:
            # a trainer that ended, or began, between the two looks has written again
            if (again := self.status()) == status:
                return "crashed"
            status = again
        if state := status.get("state"):
            return state
        if self.alive:
            return "preparing"
        return "crashed" if _has_content(self.metrics_file) else "new"  # a power cut may empty the status

    def control(self) -> Control:
        """What the trainer was asked to do."""
        try:
            word = read_text(self.path / CONTROL, 100).strip()
        except (OSError, ValueError):  # also where it cannot be read for the moment: training goes on
            return "run"
        return word if word in ("pause", "stop") else "run"  # type: ignore[return-value]

    def request(self, what: Control) -> None:
        """Ask the trainer to pause or stop after its current step.

        Raises:
            RunError: the run is a link, or holds one.
        """
        refuse_links(self.path)
        write_text(self.path / CONTROL, what)

    def metrics(self) -> list[dict[str, Any]]:
        """All events so far, in order, steps that were taken back by a resume left out."""
        return read_events(self.metrics_file)

    def _read(self, name: str) -> str:
        try:
            with explained(self.path / name, problem="cannot be read"):
                return read_text(self.path / name)
        except StorageError:  # the device's fault, not the run's
            raise
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{self.path}: is not a run ({name} is missing). `qlora runs` lists them.") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / name}: cannot be read: {error}") from None

    def _read_json(self, name: str, shape: type) -> dict[str, Any]:
        try:
            found = json.loads(self._read(name))
        except (ValueError, RecursionError) as error:
            raise RunError(f"{self.path / name}: cannot be read: {error}") from None
        if wrong := problem(found, shape):
            raise RunError(f"{self.path / name}: is damaged: {wrong}.")
        return found


def describe_rows(train: TokenDataset, validation: TokenDataset) -> dict[str, Any]:
    """What a run records of its rows as tokens: a digest, and whether their answers begin with reasoning."""
    digests = f"{train.rows.digest()} {validation.rows.digest()}"
    return {"tokens": hashlib.sha256(digests.encode()).hexdigest(), "thinks": train.thinks}


def iterate_states(runs: list[Run]) -> Iterator[dict[str, Any]]:
    """A line a run for `qlora runs`: name, state, step, total steps, best validation loss."""
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


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def stored_defaults() -> dict[str, Any]:
    """Return the settings that decide a result at their defaults, as JSON stores them."""
    return as_stored(to_flat(RunConfig(), "result")) | {"initial adapters": ""}


def as_stored(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they will be read again: tuples become lists."""
    return json.loads(json.dumps(values))
