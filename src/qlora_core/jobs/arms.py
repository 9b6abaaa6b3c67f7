"""Train the runs that a comparison of LoRA with QLoRA lacks, and compare them.

An arm is a run trained again on the same rows, in the same order, with the same settings, on its base in another number
of bits. Each is an ordinary run beside the first one, with a name that tells what it is; whatever is there already is
used, and whatever was interrupted goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ..config import RunConfig, from_flat, to_flat
from ..errors import ConfigError, MemoryShortError, RunError
from ..machine.memory import GB, MemoryMonitor, available_bytes
from ..models.base_models import ModelSpec, has_gpu
from ..reports.live_output import TrainingReporter
from ..reports.plain_text import duration, section
from ..reports.quantisation import Arm, ArmComparison, compare_arms
from ..runs.plan import TrainingTracker, resolve_config
from ..runs.run import Run
from .exit_status import DONE
from .planning import plan_training, train_reported

Form = Literal["none", "8", "4"]
FORMS: tuple[Form, ...] = get_args(Form)
LONGEST_NAME = 64  # letters of a run's name


@dataclass(frozen=True)
class Part:
    """One run of a comparison: an arm with a seed.

    Attributes:
        name: of the run.
        bits: of its base's weights; None: unquantised.
        config: all settings, its name among them.
        own: whether it is the run that the others are made of.
        dequantised_from: as `reports.quantisation.Arm` has it.
    """

    name: str
    bits: int | None
    config: RunConfig
    own: bool
    dequantised_from: int | None

    @property
    def title(self) -> str:
        """Return what it is, in words."""
        base = f"{self.bits} bits" if self.bits else "unquantised"
        return f"{self.name} ({base}, seed {self.config.train.seed})"


def train_and_compare(
    run: Run, reporter: TrainingReporter, *, forms: Sequence[str] = FORMS, seeds: int = 1
) -> tuple[int, ArmComparison | None]:
    """Train whatever a comparison of a run with its other arms lacks, each in a process of its own, and compare them.

    Args:
        run: as it is; the arm that it belongs to is compared in any case. If it is not complete, it goes on first.
        reporter: shows the progress.
        forms: of the base, in the other arms: unquantised (`none`), 8 bits, 4 bits.
        seeds: the run's own one, and so many in all, the next whole numbers.

    Returns:
        The exit status of `qlora train` for the last run that was trained, and the comparison; None where it was
        paused or failed before all were complete.

    Raises:
        ConfigError: there is no such form, or nothing to compare.
        MemoryShortError: the unquantised base does not fit.
        QLoraError: a run of that name is something else, or the base is not what it was.
    """
    parts = plan_arms(run, forms, seeds, reporter.say)
    for number, part in enumerate(parts, 1):
        reporter.say(section(f"Run {number} of {len(parts)}: {part.title}"))
        status = _train(part, run, reporter)
        if status != DONE:
            reporter.say("The comparison goes on with the same command.")
            return status, None
    return DONE, _compare(run, parts, reporter)


def plan_arms(run: Run, forms: Sequence[str], seeds: int, told: Callable[[str], None] = lambda _: None) -> list[Part]:
    """Return the runs of a comparison: the run itself first, then its other arms, then the same for the next seeds.

    A base that is quantised in its files is dequantised for the other arms, once, into the cache; `told` is called
    with that before, and with what will be trained.

    Raises:
        ConfigError: there is no such form, or nothing to compare.
        RunError: the run was made of somebody's adapters.
        MemoryShortError: the unquantised base does not fit.
        StorageError: there is no room for the dequantised base.
    """
    wrong = [form for form in forms if form not in FORMS]
    if wrong or seeds < 1:
        raise ConfigError(f"bits={','.join(forms)}, seeds={seeds}: wanted bits among {', '.join(FORMS)}, and a seed.")
    if "imported" in run.environment():
        raise RunError(f"{run.name}: was made of adapters that something else trained; how, is not known here.")
    spec = run.base()
    others = [bits for bits in dict.fromkeys(_bits(form) for form in forms) if bits != spec.bits]
    if not others:
        raise ConfigError(f"{run.name}: is the only one of these arms. Name others with --bits, as in --bits none,8,4.")
    stored = (spec.quantization or {}).get("bits")
    own = resolve_config({"run": run.name, "runs_dir": str(run.path.parent)})
    if None in others:
        _refuse_too_large(run, spec)
    names = [_name(run, bits, seed, spec.bits, own.train.seed)
             for seed in range(own.train.seed, own.train.seed + seeds) for bits in (spec.bits, *others)]  # fmt: skip
    told(_ahead(run, names))
    copy = _dequantised(spec, told) if stored else ""
    parts = []
    for seed in range(own.train.seed, own.train.seed + seeds):
        for bits in (spec.bits, *others):
            changes: dict[str, Any] = {"seed": seed, "run": _name(run, bits, seed, spec.bits, own.train.seed)}
            if bits != spec.bits:
                changes |= {"quantize": str(bits or "none")} | ({"model": copy} if copy else {})
            config = from_flat({**to_flat(own), **changes})
            same = bits == spec.bits
            parts.append(Part(changes["run"], bits, config, same and seed == own.train.seed, None if same else stored))
    return parts


def _ahead(run: Run, names: Sequence[str]) -> str:
    """Return which runs a comparison still trains, and about how long each takes."""
    left = [name for name in names if Run(run.path.parent / name).state != "completed"]
    if not left:
        return "All runs of this comparison are complete."
    took = (run.summary() or {}).get("total_seconds")
    each = f", each about as long as {run.name} took ({duration(took)})" if took else ""
    return f"{len(left)} {'run' if len(left) == 1 else 'runs'} to train: {', '.join(left)}{each}."


def _bits(form: str) -> int | None:
    return None if form == "none" else int(form)


def _name(run: Run, bits: int | None, seed: int, own_bits: int | None, own_seed: int) -> str:
    ending = "" if bits == own_bits else f"-q{bits}" if bits else "-lora"
    ending += "" if seed == own_seed else f"-seed{seed}"
    return run.name[: LONGEST_NAME - len(ending)] + ending


def _refuse_too_large(run: Run, spec: ModelSpec) -> None:
    """Refuse an unquantised arm whose weights alone do not fit, before gigabytes are dequantised for it.

    Raises:
        MemoryShortError: as said.
    """
    complete = Run(run.path.parent / _name(run, None, 0, spec.bits, 0)).state == "completed"
    needed, free = spec.dense_bytes // (2 if has_gpu() else 1), available_bytes()
    if needed > free and not complete:
        raise MemoryShortError(
            f"{spec.name}: unquantised, its weights alone take {needed / GB:.1f} GB, and {free / GB:.1f} GB of memory "
            "are available. Leave that arm out: --bits 8,4."
        )


def _dequantised(spec: ModelSpec, told: Callable[[str], None]) -> str:
    from ..training.dequantised_base import dequantised_base  # only here: mlx takes a second, and memory

    return str(dequantised_base(spec, told))


def _train(part: Part, run: Run, reporter: TrainingReporter) -> int:
    """Train a run unless it is complete; return the exit status."""
    if part.own and run.state == "completed":
        reporter.say("✓ It is complete.")
        return DONE
    said: list[str] = []
    tracker, plan = plan_training(part.config, said.append)
    if plan.done:
        reporter.say("✓ It is complete.")
        return DONE
    for text in said:
        reporter.say(text)
    return train_reported(tracker, plan, reporter, MemoryMonitor(), apart=True)


def _compare(run: Run, parts: Sequence[Part], reporter: TrainingReporter) -> ArmComparison:
    from ..training.validation_losses import validation_losses

    tracker = TrainingTracker(run.path.parent)
    arms = []
    for bits in dict.fromkeys(part.bits for part in parts):
        own = [part for part in parts if part.bits == bits]
        runs = [tracker.find(part.name) for part in own]
        rows = [validation_losses(each, lambda message: reporter.say(f"! {message}")) for each in runs]
        arms.append(Arm(bits, runs, np.stack([each.losses for each in rows]), rows[0].tokens, own[0].dequantised_from))
    return compare_arms(arms)
