"""The source of an export: adapters of a run, and the base and tokeniser that they belong to. A run is only read."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..files.checksums import refuse_damage
from ..files.storage import manifest_problem, write_json
from ..models.adapter_files import ADAPTER_CONFIG, ADAPTER_FILE, adapter_parameters, adapter_settings
from ..models.base_models import ALIASES, BUILT_IN, ModelSpec
from ..runs.checkpoints import checkpoints, usable_checkpoints
from ..runs.run import Run
from ..tokens.tokenizer import ChatTokenizer

BUILT_IN_ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"  # source of the built-in model's file


@dataclass(frozen=True)
class ExportSource:
    """Adapters to export, and what they belong to.

    Attributes:
        run: the run that trained them.
        checkpoint: `best`, `final`, or the step of a checkpoint.
        adapters: directory with the file of the adapters.
        spec: the base.
        tokenizer: the base's, with the run's template.
    """

    run: Run
    checkpoint: str
    adapters: Path
    spec: ModelSpec
    tokenizer: ChatTokenizer

    @property
    def adapter_file(self) -> Path:
        """Return the file of the adapters."""
        return self.adapters / ADAPTER_FILE

    @property
    def settings(self) -> dict[str, Any]:
        """Return the adapters' settings in mlx-lm's format; a checkpoint has none of its own, but they are the run's.

        `model` is the base's hub id; `local_base` is then its directory on this machine, as it was loaded. A base that
        is a directory of the user's own has no id and is named by its path. Of a base that was quantised while loading
        they also name the original (`base_model`) and the method, because the quantised copy lies in a cache and may
        disappear.
        """
        settings, public = self._trained_settings(), self.public_base
        original = str(self.spec.path.resolve())
        if not Path(public).is_absolute():
            settings["local_base"] = from_home(settings["model"])
            settings["model"], original = public, from_home(original)
        if self.spec.quantize_bits:
            settings["base_model"] = original
            settings["quantize"] = {"bits": self.spec.quantize_bits, "group_size": self.spec.quantize_group_size}
        return settings

    def _trained_settings(self) -> dict[str, Any]:
        """Return the settings as training wrote them: the base by its directory on this machine."""
        known = [
            place for place in (self.adapters, self.run.best, self.run.final) if (place / ADAPTER_CONFIG).is_file()
        ]
        lora = self.run.config().lora
        return adapter_settings(known[0]) if known else adapter_parameters(self.spec, lora, self.spec.path)

    def copy_adapters(self, directory: Path) -> None:
        """Write the adapters, unchanged, and their settings into a directory, as mlx-lm reads them."""
        shutil.copyfile(self.adapter_file, directory / ADAPTER_FILE)
        write_json(directory / ADAPTER_CONFIG, self.settings)

    @property
    def loaded_base(self) -> Path:
        """Return the directory of the base as training loaded it."""
        return Path(self._trained_settings()["model"])

    @property
    def public_base(self) -> str:
        """Return the base as other programs find it: a hub id, else its directory."""
        name = self.run.config().base.model
        if name == BUILT_IN:
            return BUILT_IN_ORIGIN
        if Path(name).expanduser().is_dir():
            return str(self.spec.path.resolve())
        return ALIASES[name].repository if name in ALIASES else name

    @property
    def public_base_differs(self) -> bool:
        """Return whether the base under its public name has other numbers: the built-in one was quantised from it."""
        return self.run.config().base.model == BUILT_IN

    @property
    def repository(self) -> str:
        """Return the base's OWNER/NAME on the hub, without a revision; empty for a base of this machine."""
        name = self.public_base.partition("@")[0]
        return "" if Path(name).is_absolute() else name


def from_home(path: str) -> str:
    """Return a path with the home directory written as `~`, as it is read by `os.path.expanduser`."""
    home = Path.home()
    return f"~/{Path(path).relative_to(home).as_posix()}" if Path(path).is_relative_to(home) else path


def open_source(run: Run, checkpoint: str = "") -> ExportSource:
    """Open a run's adapters for exporting, and refuse damaged ones.

    Args:
        run: has trained adapters.
        checkpoint: `best`, `final`, or the step of a checkpoint; empty: the best, or the final ones if there was no
            validation.

    Raises:
        RunError: there are none, or they are damaged.
        QLoraError: the base or the tokeniser is not what it was.
    """
    spec, tokenizer = run.base(), run.tokenizer()
    adapters = _find(run, checkpoint) if checkpoint else run.adapters
    refuse_damage(adapters / ADAPTER_FILE)
    name = adapters.name if adapters.parent == run.path else str(int(adapters.name))
    return ExportSource(run, name, adapters, spec, tokenizer)


def adapters_to_export(run: Run) -> tuple[str, ...]:
    """Return the names of a run's adapters that are whole by their manifests: the best, the last, checkpoints by step.

    The first is what is exported if none is named. Of a damaged file that has the right size `open_source` tells.
    """
    kept = [place.name for place in (run.best, run.final) if (place / ADAPTER_FILE).is_file()]
    return (*kept, *(str(int(place.name)) for place in usable_checkpoints(run.checkpoint_directory)))


def _find(run: Run, checkpoint: str) -> Path:
    """Return the directory of the adapters of that name.

    Raises:
        RunError: there are none (what there is, is named), or the checkpoint is damaged.
    """
    kept = {place.name: place for place in (run.best, run.final) if (place / ADAPTER_FILE).is_file()}
    steps = {str(int(place.name)): place for place in checkpoints(run.checkpoint_directory)}
    by_name = {**kept, **steps}
    if checkpoint not in by_name:
        there = ", ".join(by_name) or "none"
        raise RunError(f"{run.path}: has no adapters of the name {checkpoint!r}. There are: {there}.")
    if checkpoint in steps and (problem := manifest_problem(by_name[checkpoint])):
        raise RunError(f"{by_name[checkpoint]}: {problem}: this checkpoint is damaged. Choose another.")
    return by_name[checkpoint]
