"""The run directory: the one thing that the trainer and everything else share.

`TrainingTracker` plans runs and opens them for writing; `Run` reads them, also while they are being written. Knows
nothing of mlx. The layout is the table in README.md, "A run's directory".
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .activity import Activity
from .adapters import ADAPTER_FILE, check_adapters, find_adapters
from .bases import ModelSpec, describe
from .config import RunConfig, from_flat, from_json, to_flat, to_json
from .data import FACTS_FILE, TRAIN_FILE, VAL_FILE, PreparedData, Rows
from .errors import BusyError, ConfigError, RunError, StorageError, shown
from .foreign import TABLE_BYTES, read_object, read_text
from .locks import Held, LifeLock, holder_in_words, is_held
from .metrics import read_events
from .presets import preset_choices
from .run_files import Environment, Evaluation, Sample, State, Status, Summary, problem
from .schedule import suited_learning_rate
from .storage import (
    LineFile,
    clear_leftovers,
    describe_file,
    explain,
    explained,
    file_problem,
    left_by_file_manager,
    make_directory,
    remove,
    replacing,
    write_json,
    write_text,
)
from .tokens import ChatTokenizer, TokenDataset

Control = Literal["run", "pause", "stop"]

STATUS, METRICS = "status.json", "metrics.jsonl"
PRINTED = "what is printed"
RESERVE = 65_536  # bytes that are given back for a trainer's last words, should the disk be full

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


class RunLock(LifeLock):
    """The right to write a run.

    Args:
        run: the run's directory.
        descriptor: a lock already taken by the process that started this one.

    Raises:
        BusyError: another process holds it.
    """

    def __init__(self, run: Path, descriptor: int | None = None) -> None:
        try:
            super().__init__(run / "lock", descriptor)
        except Held:
            raise being_trained(run, run / "lock") from None


def being_trained(run: Path, lock: Path) -> BusyError:
    """The error for who wants to train a run that is being trained; `lock` tells by whom."""
    who = holder_in_words(lock)
    process = f"another process ({who})" if who else "another process"
    return BusyError(f"{run}: is being trained by {process}. Follow it, or pause it first.")


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
        return os.path.isfile(self.path / "config.json")  # noqa: PTH113 - false also for what can be no path

    @property
    def best(self) -> Path:
        """Adapters with the lowest validation loss."""
        return self.path / "best"

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
        usual, recorded = _defaults(), self.environment()["identity"]
        for name, value in _as_stored(to_flat(self.config(), "result")).items():
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
            return from_json(self._read("config.json"))
        except ConfigError as error:
            raise RunError(f"{self.path / 'config.json'}: {error}") from None

    def environment(self) -> dict[str, Any]:
        """Versions, device, kernel choice and the hashes that identify the run.

        Raises:
            RunError: this is not a run, or it is damaged.
        """
        found = self._read_json("environment.json", Environment)
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
        return self._read_json("evaluation.json", Evaluation) if (self.path / "evaluation.json").exists() else None

    def samples(self) -> list[dict[str, Any]]:
        """Answers while it learnt, in order: `{"step", "epoch", "question", "answer", "reference"}`."""
        try:
            lines = read_text(self.path / "samples.jsonl", TABLE_BYTES, errors="replace").splitlines()
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
        if not (self.path / "summary.json").exists():
            return None
        return {**_NO_NUMBERS, **self._read_json("summary.json", Summary)}

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
            word = read_text(self.path / "control", 100).strip()
        except (OSError, ValueError):  # also where it cannot be read for the moment: training goes on
            return "run"
        return word if word in ("pause", "stop") else "run"  # type: ignore[return-value]

    def request(self, what: Control) -> None:
        """Ask the trainer to pause or stop after its current step.

        Raises:
            RunError: the run is a link, or holds one.
        """
        refuse_links(self.path)
        write_text(self.path / "control", what)

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


@dataclass(frozen=True)
class TrainingPlan:
    """Everything decided before training: it exists only when tracker, model and data do.

    Attributes:
        run: where it will be, or already is.
        config: all settings.
        identity: what must be the same for a run to be resumed.
        model: what will be loaded.
        data: the prepared rows.
        train_rows: rows that can be trained, of those.
        template_text: the chat template.
        rows: of them as tokens, see `describe_rows`.
        initial_adapters: the file of adapters to start from, if any.
    """

    run: Run
    config: RunConfig
    identity: dict[str, Any]
    model: ModelSpec
    data: PreparedData
    train_rows: int
    template_text: str
    rows: dict[str, Any]
    initial_adapters: Path | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer updates of the whole run."""
        return self.config.train.total_steps(self.train_rows)

    @property
    def done(self) -> bool:
        """True when the run was completed with at least as many steps in view."""
        return self.run.state == "completed" and self.run.status().get("total_steps", 0) >= self.total_steps


def describe_rows(train: TokenDataset, validation: TokenDataset) -> dict[str, Any]:
    """What a run records of its rows as tokens: a digest, and whether their answers begin with reasoning."""
    digests = f"{train.rows.digest()} {validation.rows.digest()}"
    return {"tokens": hashlib.sha256(digests.encode()).hexdigest(), "thinks": train.thinks}


class TrainingTracker:
    """The directory of all runs: plans them, creates them, opens them for writing.

    Args:
        runs_dir: usually `checkpoints_qlora`.
    """

    def __init__(self, runs_dir: str | Path) -> None:
        self.runs_dir = Path(runs_dir)

    def runs(self) -> list[Run]:
        """All runs, newest first; a directory that could not be called so is none."""
        found = (Run(path.parent) for path in self.runs_dir.glob("*/config.json") if is_name(path.parent.name))
        return sorted(found, key=lambda run: (run.path / "config.json").stat().st_mtime, reverse=True)

    def find(self, name: str) -> Run:
        """A run by its name or path.

        Raises:
            RunError: there is none.
        """
        for run in ([Run(self.runs_dir / name)] if is_name(name) else []) + [Run(Path(name))]:
            if run.exists:
                return run
        known = ", ".join(run.name for run in self.runs()[:8]) or "none yet"
        name = name if name.isprintable() else shown(name)
        raise RunError(f"{name}: no such run in {self.runs_dir}. Runs: {known}.")

    def plan(
        self,
        config: RunConfig,
        model: ModelSpec,
        tokenizer: ChatTokenizer,
        data: PreparedData,
        train_dataset: TokenDataset,
        val_dataset: TokenDataset,
    ) -> TrainingPlan:
        """Decide where a run lies and whether it may be resumed. Writes nothing.

        Raises:
            RunError: runs cannot lie there, the name is no name, no row can be trained, or the run there was made with
                something else (named).
        """
        existing = next((path for path in (self.runs_dir, *self.runs_dir.parents) if path.exists()), Path())
        if not existing.is_dir():
            raise RunError(f"{self.runs_dir}: cannot hold runs, since {existing} is not a directory.")
        if not len(train_dataset):
            reasons = "; ".join(f"{where}: {why}" for where, why in train_dataset.skipped[:3])
            raise RunError(f"no row can be trained. {reasons}")
        model.adapted_shapes(config.lora)
        initial = find_adapters(config.lora.init_adapter, self.runs_dir) if config.lora.init_adapter else None
        if not config.train.learning_rate:
            config = from_flat({"learning_rate": suited_learning_rate(model.config["hidden_size"])}, base=config)
        identity = {
            **to_flat(config, "result"),
            "model": model.fingerprint,
            "tokeniser and template": tokenizer.fingerprint,
            "data": data.fingerprint,
            "initial adapters": describe_file(initial)["sha256"] if initial else "",
        }
        identity = _as_stored(identity)
        name = config.place.run or _default_name(config, model, identity)
        check_name(name)
        self._refuse_twin(name)
        run = Run(self.runs_dir / name)
        number = 2
        while config.place.fresh and run.exists:
            run, number = Run(self.runs_dir / f"{name}-{number}"), number + 1
        if run.exists:
            _refuse_differences(run, identity)
        if initial:
            check_adapters(initial, model, config.lora)
        template = tokenizer.template_text
        rows = describe_rows(train_dataset, val_dataset)
        return TrainingPlan(run, config, identity, model, data, len(train_dataset), template, rows, initial)

    def _refuse_twin(self, name: str) -> None:
        """Refuse a name that some file systems, a Mac's for one, cannot tell from that of another run."""
        names = [run.name for run in self.runs()]
        twin = next((other for other in names if other.lower() == name.lower()), name)
        if name not in names and twin != name:
            raise RunError(f"{name}: there is a run {twin} already, and not every disk can tell the two apart.")

    def create(self, plan: TrainingPlan) -> Run:
        """Write the run's directory, or take over how long and how often where it exists already.

        Raises:
            RunError: it is a link, or holds one.
        """
        run = plan.run
        _make_directory(run.path)
        if not run.exists:
            plan.data.save(run.path / "data")
            if plan.initial_adapters:
                with replacing(run.initial_adapters) as temporary:
                    shutil.copyfile(plan.initial_adapters, temporary)
            if plan.config.base.template.endswith(".jinja"):
                write_text(run.path / "chat_template.jinja", plan.template_text)
            brought = [path for path in (run.path / "data").iterdir() if not left_by_file_manager(path.name)]
            brought += [run.initial_adapters] if plan.initial_adapters else []
            environment = {
                "identity": plan.identity,
                "files": {str(path.relative_to(run.path)): describe_file(path) for path in sorted(brought)},
                "rows": plan.rows,
                "model": {
                    "name": plan.model.name,
                    "path": str(plan.model.path.resolve()),
                    "licence": plan.model.licence,
                    "parameters": plan.model.parameters,
                    "loaded_bytes": plan.model.loaded_bytes,
                    "bits": plan.model.bits,
                    "trainable": plan.model.trainable(plan.config.lora),
                },
            }
            write_json(run.path / "environment.json", environment)
            config = plan.config
            if plan.model.path == Path(config.base.model).expanduser():  # the run may be resumed from elsewhere
                config = from_flat({"model": str(plan.model.path.absolute())}, config)
        else:
            kept = {**to_flat(run.config()), **to_flat(plan.config, "length"), **to_flat(plan.config, "pace")}
            config = from_flat(kept)
        config = dataclasses.replace(config, place=dataclasses.replace(config.place, run=run.name, fresh=False))
        write_text(run.path / "config.json", to_json(config))  # last: from now on the run exists
        return run

    def record(self, run: Run, descriptor: int | None = None) -> RunWriter:
        """Open a run for writing; its directory is made when there is none yet.

        Raises:
            BusyError: another process writes it.
            RunError: it is a link, or holds one.
            StorageError: nothing can be written there.
        """
        _make_directory(run.path)
        with explained(run.path / "lock"):
            lock = RunLock(run.path, descriptor)
        try:
            return RunWriter(run, lock)
        except BaseException:
            lock.release()
            raise


def resolve_config(given: dict[str, Any], preset: str = "") -> RunConfig:
    """Settings from those given and, where they say nothing, from a preset.

    `run` of an existing run brings its settings and its own copy of the data along.

    Raises:
        ConfigError: a setting is unknown or out of range, or there is no such preset.
        RunError: the run's name is none, or that run is damaged.
        ModelError: there is no such base, whose size a preset depends on.
    """
    config = from_flat(given)
    if preset:
        given = {name: choice.value for name, choice in preset_choices(preset, config.base).items()} | given
        config = from_flat(given)
    if not config.place.run or config.place.fresh:
        return config
    check_name(config.place.run)
    run = Run(Path(config.place.runs_dir) / config.place.run)
    if not run.exists:
        return config
    stored = to_flat(run.config()) | {"data": (str(run.path / "data"),), "facts": ""}
    stored |= {"run": run.name, "runs_dir": config.place.runs_dir}  # where it was found, wherever it was made
    stored |= {"init_adapter": str(run.initial_adapters)} if run.initial_adapters.is_file() else {}
    stored |= {"template": run.template}
    return from_flat(stored | given)


def _make_directory(run: Path) -> None:
    refuse_links(run)
    make_directory(run)


def _default_name(config: RunConfig, model: ModelSpec, identity: dict[str, Any]) -> str:
    usual = _defaults()  # left out, so that a setting that is added later changes no name
    decisive = {key: value for key, value in identity.items() if value != usual.get(key)}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:6]
    return f"{model.short_name}-{f'q{model.bits}' if model.bits else 'full'}-r{config.lora.rank}-{digest}"


def _defaults() -> dict[str, Any]:
    return _as_stored(to_flat(RunConfig(), "result")) | {"initial adapters": ""}


def _as_stored(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they will be read again: tuples become lists."""
    return json.loads(json.dumps(values))


def _refuse_differences(run: Run, identity: dict[str, Any]) -> None:
    stored = _defaults() | run.environment()["identity"]  # what was not a setting yet, was as it is by default
    changed = [key for key in identity if stored.get(key) != identity[key]]
    if changed:
        short = {key: (str(stored.get(key))[:12], str(identity[key])[:12]) for key in changed}
        detail = "; ".join(f"{key}: the run has {old}, asked for {new}" for key, (old, new) in short.items())
        raise RunError(f"{run.name}: cannot go on with something else. {detail}. Use --fresh, or another --run name.")


class RunWriter:
    """Writes one run: status, metrics, and to whoever listens. A context manager; leaving it gives the lock back.

    What it writes can be done without for a while: if it cannot be written, training goes on with a warning, the status
    is kept in memory and the events wait.

    Raises:
        RunError: the run is a link, or holds one.
    """

    def __init__(self, run: Run, lock: RunLock) -> None:
        refuse_links(run.path)
        self.run = run
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.lock = lock
        self.status = run.status()
        self.status.pop("work", None)  # of a trainer that died over it
        self._written = 0.0
        self._failing: set[str] = set()
        for place, alone in ((run.path / "checkpoints", True), (run.path, False), (run.best, True), (run.final, True)):
            clear_leftovers(place, alone=alone)
        if not lock.inherited and run.control() != "run":
            run.request("run")  # a pause asked of an earlier trainer is done; one asked since the lock was taken is not
        self._metrics = LineFile(run.metrics_file)
        with contextlib.suppress(OSError):  # told at the first event, when somebody listens
            self._metrics.flush()
        self._reserve = run.path / ".reserve"
        with contextlib.suppress(OSError):
            self._reserve.write_bytes(os.urandom(RESERVE))  # not zeros: some file systems store none

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        if STATUS in self._failing:  # once more: readers take a last word that is missing for a crash
            with contextlib.suppress(OSError):
                write_json(self.run.path / STATUS, self.status)
        remove(self._reserve)
        self.lock.release()

    def log(self, type: str, **fields: Any) -> None:
        """Append one event to `metrics.jsonl`, a whole line at once, and tell the listeners."""
        event = {"type": type, **fields, "time": round(time.time(), 3)}
        line = json.dumps(event, ensure_ascii=False)
        self._attempt(METRICS, lambda: self._metrics.append(line))
        self.tell(**event)

    def tell(self, type: str, **fields: Any) -> None:
        """Tell the listeners something that is not worth keeping."""
        for listener in self.listeners:
            self._attempt(PRINTED, functools.partial(listener, {"type": type, **fields}))

    def working(self, activity: Activity | None) -> None:
        """Take what is being done into the status, and tell it; how far it is at most once a second."""
        if activity is None:
            self.status.pop("work", None)
            work = {"stage": "", "done": 0, "total": 0}
        else:
            work = {"stage": activity.stage, "done": activity.done, "total": activity.total}
            same = self.status.get("work", {}).get("stage") == activity.stage
            self.status["work"] = work
            if same and time.monotonic() - self._written < 1:
                return
        if state := self.status.get("state"):
            self.set_status(state)
        self.tell("working", **work)

    def sync(self) -> None:
        """Make what was logged durable."""
        self._attempt(METRICS, self._metrics.sync)

    def set_status(self, state: State, **fields: Any) -> None:
        """Replace `status.json`; fields not given stay as they were."""
        lasting = state != self.status.get("state")  # a beat that a power cut takes is no loss
        self.status = {
            **self.status,
            **fields,
            "state": state,
            "pid": os.getpid(),
            "time": round(time.time(), 3),
        }
        self._written = time.monotonic()
        self._attempt(STATUS, lambda: write_json(self.run.path / STATUS, self.status, lasting=lasting))

    def beat(self, **fields: Any) -> None:
        """Take `fields` into the status; written at most once a second, since every write waits for the disk."""
        self.status |= fields
        if time.monotonic() - self._written >= 1:
            self.set_status(self.status["state"])

    def end(self, state: State, step: int, message: str = "") -> None:
        """Say how training ended; the last event of this process."""
        remove(self._reserve)  # room for the last words, on a disk that is full
        self.log("end", state=state, step=step, message=message)
        self.set_status(state, step=step, message=message)

    def _attempt(self, what: str, write: Callable[[], object]) -> None:
        """Write something that training can do without; the first failure is a warning, and so is that it is over."""
        try:
            write()
        except OSError as error:
            if what not in self._failing:
                self._failing.add(what)
                reason = explain(error, self.run.path / what) if what != PRINTED else f"{what} is lost: {error}."
                self.log("warning", message=f"{reason} Training goes on, and tries again.")
        else:
            if what in self._failing and what != PRINTED:  # some events print nothing, which is no sign
                self._failing.remove(what)
                lost = f"; {self._metrics.lost} lines are lost" if self._metrics.lost else ""
                self.log("warning", message=f"{what} can be written again{lost}")


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


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
