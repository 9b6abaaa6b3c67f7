"""The package as a library: what a script or a notebook of your own calls.

`import qlora_core` offers these functions; everything else may change from one version to the next. They take settings
by the names of the command line's flags (`max_steps=50` for `--max-steps 50`) and raise `errors.QLoraError`, whose text
is meant for the person at the keyboard.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import from_flat
from .errors import ConfigError, RunError
from .runs.plan import TrainingPlan, TrainingTracker, resolve_config
from .runs.run import Run

if TYPE_CHECKING:
    from .data import PreparedData
    from .tokens.conversations import Prompt

PathOrName = str | os.PathLike[str]
"""A file or folder; for data also `hf:OWNER/NAME`, for a run also its name."""


def prepare(*sources: PathOrName, **settings: Any) -> PreparedData:
    """Read, repair and split texts, and report what became of every row.

    Args:
        sources: files, folders, or data sets of the hub.
        settings: of the data and of the model whose tokens measure passages.

    Returns:
        `train` and `validation` hold the rows, `report` what was read and left out; `save(directory)` writes them.
    """
    from . import data
    from .tokens.tokenizer import open_tokenizer

    config = from_flat({**settings, "data": [os.fspath(source) for source in sources]})
    return data.prepare(config.data, open_tokenizer(config.base))


def plan(*sources: PathOrName, preset: str = "", **settings: Any) -> TrainingPlan:
    """Prepare data and decide everything about a run, without writing it.

    The same settings and data lead to the same run, which `train` goes on with.

    Args:
        sources: what to train on; none where `run` names a run that exists.
        preset: settings that fit a machine, such as `m1-16gb`.
        settings: any of the command line's.
    """
    from .jobs.planning import plan_training

    given = {**settings, "data": [os.fspath(source) for source in sources]} if sources else settings
    _, made = plan_training(resolve_config(given, preset), say=lambda _: None)
    return made


def train(plan: TrainingPlan, listener: Callable[[dict[str, Any]], None] = lambda _: None) -> Run:
    """Train a planned run in this process, from where it stopped, and keep its result in its directory.

    Ctrl+C saves and returns; the run's `state` is `paused` then, and `completed` at the end. A completed run is
    returned as it is.

    Args:
        plan: what `plan` made.
        listener: is told every event as it is written to `metrics.jsonl`.

    Raises:
        BusyError: this run is being trained, or another on the same device.
    """
    from .jobs.launch import beginning
    from .jobs.worker import train_and_keep

    if plan.done:
        return plan.run
    tracker = TrainingTracker(plan.config.place.runs_dir)
    with beginning(tracker, plan) as (writer, device):
        _, problem = train_and_keep(writer, listener, device=device)
        if problem:  # it is trained all the same
            warnings.warn(problem, stacklevel=2)
    return plan.run


def load_run(name: PathOrName, runs_dir: PathOrName = "checkpoints_qlora") -> Run:
    """Open a run for reading, by its name or its directory.

    Raises:
        RunError: there is none.
    """
    return TrainingTracker(runs_dir).find(os.fspath(name))


def generate(run: Run, prompts: Sequence[Prompt], *, base: bool = False, **sampling: Any) -> list[str]:
    """Answer questions with a run's best adapters.

    Args:
        run: has trained adapters.
        prompts: questions, or conversations as lists of messages.
        base: ask the base model, without the adapters.
        sampling: fields of `sampling.Sampling`, such as `max_tokens` and `temperature`.
    """
    from .engine.generate import answer
    from .training.session import load_for_answers

    model, tokenizer = load_for_answers(run, base=base)
    return answer(model, tokenizer, prompts, **sampling)


def evaluate(run: Run, *, passages: int = 3, found_tokens: int = 250, again: bool = False) -> dict[str, Any]:
    """Ask base and tuned model the same, each with and without passages of the run's texts, and say whether it helped.

    Args:
        run: has trained adapters.
        passages: beside a question, at most; 0: no retrieval.
        found_tokens: of these passages together, at most.
        again: ask everything anew, not only what is missing.

    Returns:
        What the run's `verdict.json` holds, with `recall` of the fact sheet, `judged` (verdict, findings, advice and
        measures with intervals) and `ledger` (what became of each fact).
    """
    from .evaluation.verdict import told_whole
    from .training.contenders import Asked, judge_run
    from .training.session import load_for_answers

    asked = Asked(run.config().pace.max_answer_tokens, passages, found_tokens)
    return told_whole(run, judge_run(run, *load_for_answers(run), asked, anew=again))


def compare(
    *runs: Run, train: bool = False, bits: Sequence[str] = ("none", "8", "4"), seeds: int = 1
) -> dict[str, Any]:
    """Compare runs side by side; with `train`, LoRA against QLoRA: one run with itself on its base in other bits.

    Args:
        runs: two or more; one with `train`.
        train: train the runs that are not there yet, each in a process of its own, beside the run that is given.
        bits: of the base in these runs; `none` is unquantised.
        seeds: the run's own seed and the next ones, so many in all.

    Returns:
        `{"runs": […], "settings": {…}, "notes": […], "samples": […]}`; with `train` also `arms`, `differences` and
        `conclusion`, a sentence.

    Raises:
        ConfigError: there is nothing to compare.
        KeyboardInterrupt: by Ctrl+C while a run was trained; it is saved, and the same call goes on.
        RunError: a run could not be trained, or was paused.
    """
    from .reports.comparison import compare as side_by_side

    if not train:
        return side_by_side(runs).as_dict()
    if len(runs) != 1:
        raise ConfigError(f"{len(runs)} runs given; train=True wants one, and makes the others of it.")
    from .jobs.arms import train_and_compare
    from .jobs.exit_status import INTERRUPTED
    from .reports.live_output import TrainingReporter

    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:  # a stream that a child process may write to
        status, found = train_and_compare(runs[0], TrainingReporter(nowhere), forms=bits, seeds=seeds)
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if found is None:
        raise RunError(f"{runs[0].name}: one of the runs that it is compared with is not complete. `qlora runs` tells.")
    return found.as_dict()


def card(run: Run, out: PathOrName | None = None) -> list[Path]:
    """Write all that is known of a run on one page, `run.md` and `run.html`; return where they are.

    Args:
        run: may still be training.
        out: directory; by default the run's.
    """
    from .exports.run_card import write_run_card

    directory = run.path if out is None else Path(os.fspath(out))
    directory.mkdir(parents=True, exist_ok=True)
    return write_run_card(run, directory)


def export(
    run: Run, out: PathOrName, *, to: str = "adapter", checkpoint: str = "", force: bool = False, **choices: Any
) -> dict[str, Any]:
    """Write a run's result where it can be used without this package.

    Args:
        run: has trained adapters; is only read.
        out: directory to write, which appears all at once.
        to: a format: `adapter` for mlx-lm, `peft` for that library, `fused` for one stand-alone model, and the others
            of `exports.formats.FORMATS`.
        checkpoint: `best`, `final`, or the step of a checkpoint; empty: the best.
        force: replace whatever is in `out`.
        choices: fields of `exports.formats.ExportChoices`, such as `bits="8"`.

    Returns:
        `{"run", "to", "path", "bytes", "files": {name: bytes}, "fused", "gguf", "verification"}`, as
        `exports.export.export_run` tells.

    Raises:
        ConfigError: there is no such format, or a choice does not belong to it.
    """
    from .exports.export import export_run
    from .exports.formats import FORMATS, ExportChoices

    if to not in FORMATS:
        raise ConfigError(f"to={to!r}: no such format. There are {', '.join(FORMATS)}.")
    return export_run(run, Path(out), to=to, choices=ExportChoices(**choices), checkpoint=checkpoint, force=force)


def push(
    exported: Run | PathOrName,
    repository: str,
    *,
    to: str | None = None,
    public: bool = False,
    force: bool = False,
    with_personal_data: bool = False,
    dry_run: bool = False,
    runs_dir: PathOrName = "checkpoints_qlora",
) -> dict[str, Any]:
    """Send an export to the hub, with the login of `hf auth login` or the token in `HF_TOKEN`.

    Args:
        exported: a run, which is exported first if that is missing or older than its adapters; or an export's
            directory.
        repository: OWNER/NAME; made, and private, if it is not there.
        to: format of a run's export; by default `adapter`.
        public: let everybody see it.
        force: replace other files that the repository holds.
        with_personal_data: send it although its rows seem to hold personal data.
        dry_run: send nothing, and tell what would be sent.
        runs_dir: directory of all runs, which must not be named in what is sent.

    Returns:
        `{"repository", "private", "path", "stored", "bytes", "files": {name: bytes}, "url", …}`, as
        `exports.push.push` tells.

    Raises:
        ConfigError: there is no such format.
        ExportError: what is to be sent must not be.
        ModelError: the hub or the network refuses.
    """
    from .exports.formats import FORMATS
    from .exports.push import find_export
    from .exports.push import push as send

    if to is not None and to not in FORMATS:
        raise ConfigError(f"to={to!r}: no such format. There are {', '.join(FORMATS)}.")
    given, runs = (exported.path, exported.path.parent) if isinstance(exported, Run) else (exported, Path(runs_dir))
    return send(
        find_export(os.fspath(given), str(runs), to),  # type: ignore[arg-type]
        repository,
        runs_dir=runs,
        public=public,
        force=force,
        with_personal_data=with_personal_data,
        dry_run=dry_run,
    )


def import_adapters(path: PathOrName, **settings: Any) -> Run:
    """Make a run of adapters that another program trained, in the format of PEFT, mlx-lm or llama.cpp.

    Args:
        path: their directory or file; only read.
        settings: such as `model` (by default the base that they name), `run`, and `data` and `facts` to evaluate it and
            train on. What the adapters decide, such as the rank, is none.

    Raises:
        ConfigError: they decide a setting that is given, or name no base that can be loaded.
        ModelError: they cannot be read, or do not belong to the base.
        RunError: there is such a run already.
    """
    from .exports.importing import import_adapters as take_over

    settings = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in settings.items()}
    return take_over(Path(path), settings)
