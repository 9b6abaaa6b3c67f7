"""Turn settings and data into a run that can be trained: a new one, or one to resume."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import RunConfig, from_flat, to_flat, to_json
from ..data import PreparedData
from ..errors import RunError, shown
from ..files.storage import (
    describe_file,
    explained,
    left_by_file_manager,
    make_directory,
    nearest_existing,
    replacing,
    write_json,
    write_text,
)
from ..machine.memory import available_bytes
from ..models.adapter_files import check_adapters, find_adapters
from ..models.base_models import ModelSpec
from ..schedule import suited_learning_rate
from ..tokens.dataset import TokenDataset
from ..tokens.tokenizer import ChatTokenizer
from ..translations import Sentence
from .devices import refuse_too_many
from .hosts import hosts_of
from .memory_estimate import MemoryEstimate, predict
from .presets import preset_choices
from .run import CONFIG, ENVIRONMENT, Run, as_stored, check_name, describe_rows, is_name, refuse_links, stored_defaults
from .writer import RunLock, RunWriter


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that is decided before training, from settings, model and data.

    Attributes:
        run: where it will be, or already is.
        config: all settings.
        identity: what must be the same for a run to be resumed.
        model: description of the base.
        data: the prepared rows.
        train_rows: number of rows that can be trained.
        tokens: tokens of those rows.
        validation_tokens: tokens of the rows to validate on.
        memory: predicted peak; None without rows.
        template_text: text of the chat template.
        rows: digest of the rows as tokens, see `describe_rows`.
        initial_adapters: file of the adapters to start from, if any.
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
    tokens: int = 0
    validation_tokens: int = 0
    memory: MemoryEstimate | None = None

    @property
    def total_steps(self) -> int:
        """Return the optimizer updates of the whole run."""
        return self.config.train.total_steps(self.train_rows)

    @property
    def done(self) -> bool:
        """Return whether the run was completed, with at least as many steps as planned here."""
        return self.run.state == "completed" and self.run.status().get("total_steps", 0) >= self.total_steps


class TrainingTracker:
    """The directory of all runs: plans and creates runs, and opens them for writing.

    Args:
        runs_dir: usually `checkpoints_qlora`.
    """

    def __init__(self, runs_dir: str | Path) -> None:
        self.runs_dir = Path(runs_dir)

    def runs(self) -> list[Run]:
        """Return all runs, newest first; directories without a valid name of a run are ignored."""
        found = (Run(path.parent) for path in self.runs_dir.glob("*/config.json") if is_name(path.parent.name))
        return sorted(found, key=lambda run: (run.path / CONFIG).stat().st_mtime, reverse=True)

    def find(self, name: str) -> Run:
        """Find a run by its name or path.

        Raises:
            RunError: there is none.
        """
        for run in ([Run(self.runs_dir / name)] if is_name(name) else []) + [Run(Path(name))]:
            if run.exists:
                return run
        known = ", ".join(run.name for run in self.runs()[:8]) or Sentence("none yet")
        name = name if name.isprintable() else shown(name)
        raise RunError(
            Sentence("{name}: no such run in {place}. Runs: {known}.", name=name, place=str(self.runs_dir), known=known)
        )

    def plan(
        self,
        config: RunConfig,
        model: ModelSpec,
        tokenizer: ChatTokenizer,
        data: PreparedData,
        train_dataset: TokenDataset,
        val_dataset: TokenDataset,
        *,
        imported: bool = False,
    ) -> TrainingPlan:
        """Decide where a run goes and whether it may be resumed. Writes nothing.

        Args:
            config: all settings.
            model: the base.
            tokenizer: the base's, with the template.
            data: the prepared rows.
            train_dataset: rows to train, as tokens.
            val_dataset: rows to validate on, as tokens.
            imported: the run is made of adapters that are trained already: it needs no rows, and must be a new one.

        Raises:
            RunError: there cannot be runs there, the name is not valid, no row can be trained, or the run there was
                made with something different (named).
        """
        refuse_too_many(config.pace.devices)
        hosts_of(config.pace)
        existing = nearest_existing(self.runs_dir)
        if not existing.is_dir():
            raise _not_writable(self.runs_dir, Sentence("{place} is not a directory", place=str(existing)))
        if not len(train_dataset) and not imported:
            reasons = [Sentence.of_parts(": ", skipped) for skipped in train_dataset.skipped[:3]]
            raise RunError(Sentence("no row can be trained. {reasons}", reasons=Sentence.of_parts("; ", reasons)))
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
        identity = as_stored(identity)
        run = self._place(config, config.place.run or _default_name(config, model, identity))
        if run.exists and imported:
            raise RunError(Sentence("{run}: is a run already. Give another name with --run.", run=str(run.path)))
        if run.exists:
            _refuse_differences(run, identity)
        elif not os.access(existing, os.W_OK | os.X_OK):
            raise _not_writable(self.runs_dir, Sentence("{place} may not be written", place=str(existing)))
        if initial:
            check_adapters(initial, model, config.lora)
        return TrainingPlan(
            run, config, identity, model, data, len(train_dataset), tokenizer.template_text,
            describe_rows(train_dataset, val_dataset), initial,
            tokens=train_dataset.tokens, validation_tokens=val_dataset.tokens,
            memory=predict(model, config, train_dataset.rows, available_bytes()) if len(train_dataset) else None,
        )  # fmt: skip

    def _place(self, config: RunConfig, name: str) -> Run:
        """Return the run of a name; where a fresh one is wanted, the first that does not exist yet, by number."""
        check_name(name)
        self._refuse_twin(name)
        run, number = Run(self.runs_dir / name), 2
        while config.place.fresh and run.exists:
            run, number = Run(self.runs_dir / f"{name}-{number}"), number + 1
        return run

    def _refuse_twin(self, name: str) -> None:
        """Refuse a name that some file systems, such as a Mac's, cannot tell from that of another run."""
        names = [run.name for run in self.runs()]
        twin = next((other for other in names if other.lower() == name.lower()), name)
        if name not in names and twin != name:
            raise RunError(f"{name}: there is a run {twin} already, and not every disk can tell the two apart.")

    def create(self, plan: TrainingPlan) -> Run:
        """Create the run's directory; in an existing run, update only settings of length and of how often to look.

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
            write_json(run.path / ENVIRONMENT, environment)
            config = plan.config
            if plan.model.path == Path(config.base.model).expanduser():  # the run may be resumed from elsewhere
                config = from_flat({"model": str(plan.model.path.absolute())}, config)
        else:
            kept = {**to_flat(run.config()), **to_flat(plan.config, "length"), **to_flat(plan.config, "pace")}
            config = from_flat(kept)
        config = dataclasses.replace(config, place=dataclasses.replace(config.place, run=run.name, fresh=False))
        write_text(run.path / CONFIG, to_json(config))  # last: from now on the run exists
        return run

    def record(self, run: Run, descriptor: int | None = None) -> RunWriter:
        """Open a run for writing; its directory is created if missing.

        Raises:
            BusyError: another process is writing it.
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
    """Return the complete settings: those given, and a preset's for others.

    The name of an existing run brings along its settings and its own copy of the data.

    Raises:
        ConfigError: a setting is unknown or out of range, or there is no such preset.
        RunError: the run's name is not valid, or that run is damaged.
        ModelError: there is no such base; a preset depends on its size.
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
    try:
        with explained(run, problem="cannot be made"):
            make_directory(run)
    except FileNotFoundError as error:  # nothing is missing: the file system has no directories of one's own
        raise _not_writable(run.parent, error.strerror) from None


def _not_writable(directory: Path, reason: str) -> RunError:
    return RunError(
        Sentence(
            "{directory}: cannot hold runs: {reason}. Name another directory with --runs-dir.",
            directory=str(directory),
            reason=reason,
        )
    )


def _default_name(config: RunConfig, model: ModelSpec, identity: dict[str, Any]) -> str:
    usual = stored_defaults()  # defaults are left out, so that a setting which is added later changes no name
    decisive = {key: value for key, value in identity.items() if value != usual.get(key)}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:6]
    return f"{model.short_name}-{f'q{model.bits}' if model.bits else 'full'}-r{config.lora.rank}-{digest}"


def _refuse_differences(run: Run, identity: dict[str, Any]) -> None:
    stored = stored_defaults() | run.environment()["identity"]  # a setting that is newer than the run had its default
    changed = [key for key in identity if stored.get(key) != identity[key]]
    if changed:
        short = {key: (str(stored.get(key))[:12], str(identity[key])[:12]) for key in changed}
        details = [
            Sentence("{setting}: the run has {old}, asked for {new}", setting=key, old=old, new=new)
            for key, (old, new) in short.items()
        ]
        raise RunError(
            Sentence(
                "{run}: cannot go on with something else. {detail}. Use --fresh, or another --run name.",
                run=run.name,
                detail=Sentence.of_parts("; ", details),
            )
        )
