"""Planning a run from flags, and training it with its progress on the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from ..config import RunConfig, add_arguments
from ..machine.memory import MemoryMonitor
from ..reports import console, live_output, plain_text
from ..runs.plan import TrainingPlan, TrainingTracker
from ..runs.presets import PRESETS
from ..runs.recipes import CONFIG_FILE
from ..runs.run import Run
from . import launch
from .exit_status import DONE, ERROR, INTERRUPTED, PAUSED
from .supervisor import restarts, supervise
from .worker import exit_status, train_and_keep


def training_parser(prog: str = "train.py") -> argparse.ArgumentParser:
    """Return the parser of `qlora train` and of `python apps/train.py`: one flag for each setting."""
    parser = argparse.ArgumentParser(
        prog=prog,
        allow_abbrev=False,  # --lang is a flag of the page, --language a setting
        description="Train adapters for a language model, or go on with a run. Each run is one directory.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, and nothing else")
    add_training_arguments(parser)
    return parser


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting, and one for a preset."""
    machines = "; ".join(f"{name}: {preset.machine}" for name, preset in PRESETS.items())
    help = f"settings that fit a machine, for Mistral-7B and smaller models ({machines}); a setting that is given wins"
    parser.add_argument("--preset", choices=PRESETS, default="", help=help)
    help = "settings in a TOML file, a line each, as in: max_steps = 20; or a run's config.json; flags go before it"
    parser.add_argument("--config", dest=CONFIG_FILE, metavar="FILE", default="", help=help)
    add_arguments(parser)


def train_planned(
    tracker: TrainingTracker, plan: TrainingPlan, *, monitor: MemoryMonitor | None = None, as_json: bool = False
) -> int:
    """Train a planned run, showing its progress; only show a complete one.

    Train in this process or, with `restarts`, in a child that this process supervises.

    Args:
        tracker: the tracker of all runs.
        plan: the planned run.
        monitor: looks at the memory; a new one by default.
        as_json: show the progress on standard error, and the result as one JSON object on standard output.

    Returns:
        The exit status.
    """
    reporter = live_output.TrainingReporter(sys.stderr if as_json else sys.stdout)
    status = train_reported(tracker, plan, reporter, monitor or MemoryMonitor())
    if as_json:
        print_json(run_as_json(plan.run))
    return status


def train_reported(
    tracker: TrainingTracker,
    plan: TrainingPlan,
    reporter: live_output.TrainingReporter,
    monitor: MemoryMonitor,
    *,
    apart: bool = False,
) -> int:
    """Train a planned run as `train_planned` does, and return the exit status.

    Args:
        tracker: the tracker of all runs.
        plan: the planned run.
        reporter: shows its progress.
        monitor: looks at the memory.
        apart: train in a child in any case, whose peak of memory then is that of this run alone.
    """
    if plan.done:
        reporter.say(f"✓ Run {plan.run.name} is complete; nothing to train. More: --epochs, or --fresh for a new run.")
        reporter.say(console.final_summary(plan.run))
        return DONE
    run = plan.run
    with launch.beginning(tracker, plan) as (writer, device):  # before anything is written: somebody may be training
        if apart or restarts(plan.config):
            status = supervise(writer, reporter, device)  # the child reports errors and keeps the result
        else:
            try:
                outcome, problem = train_and_keep(writer, reporter, device=device, monitor=monitor)
            except KeyboardInterrupt:  # while waiting for the device, or before a trainer existed
                reporter.say(f"\nInterrupted before it began. {console.resume_line(run)}")
                return INTERRUPTED
            status = exit_status(outcome)
            reporter.say(f"  ! {problem}") if problem else None
    if run.state == "paused" and status != ERROR:
        step, total, why = run.status().get("step"), plan.total_steps, run.status().get("message")
        how = (
            f"{why[0].upper()}{why[1:].rstrip('.')}."
            if why
            else f"Paused at step {step} of {total}; everything is saved."
        )
        reporter.say(f"\n{how} {console.resume_line(run)}")
    elif status in (DONE, PAUSED):
        reporter.say(console.final_summary(run))
    return status


def plan_training(
    config: RunConfig, say: Callable[[str], None], *, preset: str = ""
) -> tuple[TrainingTracker, TrainingPlan]:
    """Make a plan from settings in the notebook's order, reporting each section and what a preset chose."""
    from .. import data
    from ..models import base_models
    from ..tokens.dataset import make_datasets
    from ..tokens.report import describe
    from ..tokens.tokenizer import open_tokenizer

    say(plain_text.table(console.machine()))
    if preset:
        say(plain_text.block(f"Preset {preset}", console.preset_reasons(preset, config)))
    tokenizer = open_tokenizer(config.base)
    prepared = data.prepare(config.data, tokenizer)
    say(plain_text.block("Data", console.data_counts(prepared.report)))
    # after the data, whose errors should show before 14 GB are downloaded
    model = base_models.find_base(config.base)
    say(plain_text.block("Model", console.model_information(model, config)))
    datasets = make_datasets(prepared.train, prepared.validation, tokenizer, config.data.max_seq_length)
    described = describe(*datasets, tokenizer, config.data.max_seq_length)
    say(plain_text.block("Datasets", console.token_counts(described)))
    tracker = TrainingTracker(config.place.runs_dir)
    plan = tracker.plan(config, model, tokenizer, prepared, *datasets)
    say(plain_text.block("Training", console.training_plan(plan)))
    return tracker, plan


def run_as_json(run: Run) -> dict[str, Any]:
    """Return a run's state and results as one object."""
    evaluation = run.evaluation()
    return {
        "run": run.name,
        "path": str(run.path),
        "state": run.state,
        "summary": run.summary(),
        "recall": evaluation["recall"] if evaluation else None,
    }


def print_json(value: dict[str, Any]) -> None:
    """Print a result for programs."""
    print(json.dumps(value, ensure_ascii=False, indent=2))
