"""Fact sheets of the terminal: the notebook's sections as text, and the end of a run.

Functions of values, some of which the page shows too. Knows nothing of mlx and decides nothing.
"""

from __future__ import annotations

import math
import platform
import shlex
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import psutil

from ..config import RunConfig, settings
from ..data import REPORT_FILE, DataReport, Findings, flag
from ..evaluation import statistics
from ..evaluation.best_choice import kept_sentence
from ..machine.memory import GB, available_bytes, total_bytes
from ..models.base_models import ModelSpec
from ..runs.plan import TrainingPlan
from ..runs.presets import preset_choices
from ..runs.run import Run
from ..runs.time_estimate import estimate
from ..runs.time_spent import PARTS
from ..tokens.report import TokenReport
from ..translations import say
from . import in_language
from .plain_text import block, one_line, section, share, size
from .time_words import parts_in_words, time_in_words

SHOWN_ANSWERS = 6


def machine() -> dict[str, str]:
    """Return the machine and its memory."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    return {
        "Machine": f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}",
        "Memory": f"{total_bytes() / GB:.1f} GB, {available_bytes() / GB:.1f} GB available",
    }


def preset_reasons(name: str, config: RunConfig) -> dict[str, str]:
    """Return a preset's choices and their reasons, and say which were chosen otherwise."""
    known = {setting.name: config.value(setting) for setting in settings()}
    return {
        setting: f"{known[setting]}: {choice.why}"
        if known[setting] == choice.value
        else f"{known[setting]}, as you chose (the preset: {choice.value})"
        for setting, choice in preset_choices(name, config.base).items()
    }


def data_counts(report: DataReport) -> dict[str, str]:
    """Return what was read, refused, repaired and joined, and how it was split."""
    split = "the files' own split" if report.own_split else "split by content"
    nearly = f"{report.near_duplicates} kept on one side of the split" if report.near_duplicates else ""
    if report.near_duplicates_dropped:
        nearly = f"{report.near_duplicates_dropped} left out"
    mended = ", ".join(f"{kind} {count}" for kind, count in report.mended.most_common())
    return {
        "Sources": ", ".join(report.sources),
        "Licence": "; ".join(report.licences),
        "Read": f"{report.files} files: {report.read} rows, {report.documents} documents"
        + "".join(f"; {count} in {name}" for name, count in report.encodings.items()),
        "Recognised": _findings(report.recognised, "files or chats"),
        "Joined": f"{report.joined_lines} lines of running text" if report.joined_lines else "",
        "Conversations": f"{report.conversations} made of {report.joined_messages} rows"
        if report.conversations
        else "",
        "Passages": f"{report.passages} made of running text and documents" if report.passages else "",
        "Questions": f"{report.questions} asked for the documents" if report.questions else "",
        "Mended": f"texts: {mended}" if mended else "",
        "Page debris": _findings(report.debris, "lines left out"),
        "Duplicates": f"{report.duplicates} left out" if report.duplicates else "",
        "Nearly equal": nearly,
        "Several": f"{report.questions_with_several} questions have several answers, in {report.several_answers} rows"
        + (f", {report.several_answers_dropped} left out" if report.several_answers_dropped else "")
        if report.several_answers
        else "",
        "Copies": f"{report.left_out_as_copies} rows left out" if report.left_out_as_copies else "",
        "Not asked": _findings(report.unasked, "documents and sections"),
        "Guessed": _guesses(report.doubts),
        "One pattern": f"{report.patterned} rows with the same words around other names or numbers"
        if report.patterned
        else "",
        "Not read": _findings(report.skipped_files, "files"),
        "Rejected": _findings(report.rejected, "rows"),
        "Marked": _findings(report.marked, "rows left out, as their author says"),
        "For testing": f"{report.test_rows} rows left out" if report.test_rows else "",
        "Not used": "\n".join(column.described for column in report.unused_columns),
        "Not facts": _findings(report.rejected_facts, "rows"),
        "Look at": _warnings(report.warnings),
        "Rows": f"{report.train} to train, {report.validation} to validate ({split})",
        "Facts": f"{', '.join(report.fact_sheets)} (asked, never trained)" if report.fact_sheets else "",
    }


def _warnings(warnings: Iterable[str]) -> str:
    return "\n".join(textwrap.fill(f"! {warning}", 88, subsequent_indent="  ") for warning in warnings)


def _guesses(found: Findings, shown: int = 5) -> str:
    """Return the guesses, and the flags that decide them."""
    lines = []
    for each in found.listed[:shown]:
        flags = [flag((setting, value)) for setting, value in each.choices]
        lines.append(f"{each.where}: {each.reason}" + (f". To decide: {' or '.join(flags)}" if flags else ""))
    more = [f"… and {found.count - shown} more, in {REPORT_FILE}"] if found.count > shown else []
    return "\n".join(lines + more)


def _findings(found: Findings, what: str, shown: int = 5) -> str:
    if not found.count:
        return ""
    lines = "".join(f"\n{f.where}: {f.reason}{f': {f.sample}' if f.sample else ''}" for f in found.listed[:shown])
    more = f"\n… and {found.count - shown} more, in {REPORT_FILE}" if found.count > shown else ""
    return f"{found.count} {what}{lines}{more}"


def token_counts(tokens: TokenReport) -> dict[str, str]:
    """Return the rows as tokens: how many are trained, their lengths, what was cut, and what to look at."""
    skipped = "".join(f"\n{where}: {reason}" for where, reason in tokens.skipped[:3])
    filled = [place for place, (_, _, count) in enumerate(tokens.histogram) if count]
    bins = tokens.histogram[filled[0] : filled[-1] + 1] if filled else ()
    most = max((count for _, _, count in bins), default=1)
    lengths = "\n".join(
        f"{low:>6} to {high:<6} {'▇' * math.ceil(24 * count / most)} {count:,}" for low, high, count in bins
    )
    return {
        "Tokens": f"{tokens.tokens:,} in {tokens.rows:,} rows, {share(tokens.target_tokens, tokens.tokens)} of them "
        f"trained; longest row {tokens.longest:,}",
        "Lengths": lengths,
        "Cut": f"{tokens.truncated:,} rows lose {tokens.lost_tokens:,} tokens" if tokens.truncated else "",
        "Not trained": f"{tokens.skipped_rows:,} rows{skipped}" if tokens.skipped_rows else "",
        "Typical": "\n".join(f"{row.source}: {row.text}" for row in tokens.most_typical[:2]),
        "Odd": "\n".join(f"{row.source}: {row.text}" for row in tokens.least_typical[:3]),
        "Look at": _warnings(tokens.warnings),
    }


def model_information(spec: ModelSpec, config: RunConfig) -> dict[str, str]:
    """Return what will be loaded and how much of it is trained."""
    trainable = spec.trainable(config.lora)
    layers = len(spec.adapted_layers(config.lora))
    licence = f", {spec.licence}" if spec.licence else ""
    return {
        "Base": f"{spec.name} ({spec.config['model_type']}{licence}), {loading(spec)}",
        "Parameters": f"{spec.parameters / 1e6:,.1f} M in {spec.num_layers} layers",
        "Trainable": f"{trainable / 1e6:,.2f} M ({100 * trainable / spec.parameters:.2f}%): "
        f"{_adapter_kind(config)}, rank {config.lora.rank}, alpha {config.lora.alpha:g}, "
        f"{config.lora.projections} projections of {layers} layers",
        "Weights": f"{size(spec.loaded_bytes)}, {spec.bits_per_weight:.2f} bits per weight",
    }


def loading(spec: ModelSpec) -> str:
    """Return how the base's weights are loaded, in the reader's language."""
    if spec.quantize_bits:
        return say("quantised to {bits} bits while loading", bits=spec.quantize_bits)
    return say("as it is stored")


def _adapter_kind(config: RunConfig) -> str:
    lora = config.lora
    kinds = [{"lora": "LoRA", "dora": "DoRA"}[lora.adapter], "rsLoRA" if lora.rslora else ""]
    kinds.append(f"LoRA+ {config.train.lora_plus:g}" if config.train.lora_plus != 1 else "")
    return ", ".join(filter(None, kinds))


def training_plan(plan: TrainingPlan) -> dict[str, str]:
    """Return where the run lies and how long it will be."""
    config, train = plan.config, plan.config.train
    rate = f"{train.learning_rate:g}, {train.schedule} after {train.warmup_steps} steps of warm-up"
    return {
        "Run": f"{plan.run.path}",
        "Steps": f"{plan.total_steps} ({train.steps_per_epoch(plan.train_rows)} an epoch), "
        f"{train.batch_size * train.grad_accumulation_steps} rows each",
        "Time": _planned_time(plan),
        "Rate": f"{rate}, {train.optimizer}",
        "Adapter": f"dropout {config.lora.dropout:g}, scale {config.lora.scale:g}",
    }


def _planned_time(plan: TrainingPlan) -> str:
    """Return how long a run will take; nothing if it is complete, or an earlier one did not tell."""
    if plan.done:
        return ""
    estimated = estimate(plan)
    if not estimated.known:
        return "known after the first steps"
    return f"{time_in_words(estimated)}: {parts_in_words(estimated)} (as {estimated.measured_by} took)"


def recall_lines(evaluation: dict[str, Any]) -> str:
    """Return recall of the fact sheet, before and after; with its 95% interval, over other questions of the kind."""
    names = {"trained": "trained phrasings", "held_out": "held-out phrasings"}
    lines = []
    for kind, name in names.items():
        if count := evaluation["recall"].get(kind):
            total = count["questions"]
            before, after = (
                f"{share(count[who], total):>4} ({count[who]}/{total}{sure})"
                for who, sure in (("base", ""), ("tuned", _interval(count["tuned"], total)))
            )
            lines.append(f"  {name:<19} before {before}   after {after}")
    return "\n".join(["Recall of facts", *lines]) if lines else ""


def _interval(part: int, whole: int) -> str:
    found = statistics.share(part, whole)
    return f"; 95%: {100 * found.low:.0f} to {100 * found.high:.0f}"


NOTHING_ASKED = """  Nothing was asked: no row is a question with its answer in words, and there is no fact sheet.
  qlora generate asks what you like; --sample-prompts asks while it learns, --facts at the end."""


def answers_side_by_side(evaluation: dict[str, Any], count: int = SHOWN_ANSWERS) -> str:
    """Return some questions with the answers of base and tuned model, spread over the whole list."""
    questions = evaluation["questions"]
    step = max(1, len(questions) // count)
    lines = []
    for question in questions[::step][:count]:
        lines += [
            f"  ? {one_line(question['question'])}",
            f"    base : {judged_answer(question, 'base')}",
            f"    tuned: {judged_answer(question, 'tuned')}",
        ]
    return "\n".join(lines)


def judged_answer(question: dict[str, Any], who: Literal["base", "tuned"]) -> str:
    """Return a model's answer on one line, with a mark where it was judged right or wrong."""
    mark = {True: " ✓", False: " ✗"}
    return one_line(question[who]) + mark.get(question.get(f"{who}_right"), "")


def final_summary(run: Run) -> str:
    """Return the last lines of a run that ended: answers, recall, numbers, places, what to do next."""
    evaluation, numbers = run.evaluation(), run.summary()
    parts = []
    if evaluation and evaluation["questions"]:
        parts += [section("Generation test"), answers_side_by_side(evaluation), recall_lines(evaluation)]
    elif evaluation:
        parts += [section("Generation test"), NOTHING_ASKED]
    elif message := run.status().get("message"):
        parts += [section("Generation test"), f"  {message}"]
    if numbers:
        parts += [block("Summary", {"State": run.state, **performance(numbers, evaluation), **places(run)})]
    return "\n".join(part for part in [*parts, next_commands(run)] if part)


def performance(numbers: dict[str, Any], evaluation: dict[str, Any] | None) -> dict[str, str]:
    """Return time, speed, memory, the best loss of a run that ended, and how sure it is that it was the best."""
    best, before, sure = numbers["best_val_loss"], numbers["val_loss_before"], kept_sentence(evaluation)
    return {
        "Time": time_spent(numbers),
        "Speed": f"{numbers['tokens_per_second']:,.0f} tokens/s over {numbers['tokens']:,} tokens in "
        f"{numbers['steps']} steps",
        "Memory": f"peak {size(numbers['peak_memory_bytes'])} of arrays{_predicted(numbers)}, "
        f"{size(numbers['peak_process_bytes'])} of the process",
        "Best": f"validation loss {best:.4f} at step {numbers['best_step']}" if best is not None else "",
        "Before": f"validation loss {before:.4f}" if before is not None else "",
        "How sure": textwrap.fill(sure, 80) if sure else "",
    }


def _predicted(numbers: dict[str, Any]) -> str:
    """Return what the peak of arrays was predicted to be; nothing for an old run."""
    predicted = numbers.get("predicted_memory_bytes")
    return f" ({size(predicted)} predicted)" if predicted else ""


def time_spent(numbers: dict[str, Any], words: Mapping[str, str] = PARTS) -> str:
    """Return how long a run took, with parts of half a second and more; for an old run the steps alone."""
    seconds = {word: numbers[f"{part}_seconds"] for part, word in words.items()}
    parts = ", ".join(f"{word} {in_language.duration(taken)}" for word, taken in seconds.items() if taken >= 0.5)
    return f"{in_language.duration(numbers['total_seconds'])}: {parts}" if numbers["total_seconds"] else parts


def places(run: Run) -> dict[str, str]:
    """Return where a run's adapters and all its other files lie."""
    kept = {"best": run.best, "last": run.final}
    return {
        "Adapters": ", ".join(f"{path} ({name})" for name, path in kept.items() if path.is_dir()),
        "To take away": f"{run.result} (inference.py, INTEGRATION.md, curves.png)" if run.result.is_dir() else "",
        "Everything": f"{run.path}",
    }


def diagnosis(facts: dict[str, Any]) -> dict[str, str]:
    """Return the findings of `qlora doctor`."""
    return {
        "Platform": facts["platform"],
        "Device": facts["device"],
        "BLAS": f"{facts['blas']}, {facts['gflops']:,.0f} GFLOP/s in float32",
        "Denormals": f"their products take {facts['denormal_cost']:.1f} times as long as others",
        "Memory": f"{facts['memory_gb']} GB, {facts['available_gb']} GB available",
        "Swap": f"{facts['swap_gb']} GB of memory lie on the disk",
        "Disk": f"{facts['disk_free_gb']} GB free for runs",
        "Power": facts["power"],
        "Sleep": facts["sleep"],
        "Versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "Browser": facts["browser"],
        "Hub": facts["hub"],
        "Cache": f"{facts['cache']}, {facts['cache_gb']} GB of converted and quantised models and prepared data",
    }


def next_commands(run: Run) -> str:
    """Return what to type now."""
    named = _named(run)
    return (
        f'Next\n  uv run qlora generate {named} --prompt "…"\n  uv run qlora evaluate {named}\n'
        "  uv run marimo run apps/train.py"
    )


def resume_line(run: Run) -> str:
    """Return the command that resumes a run."""
    return f"Go on with: uv run python apps/train.py --run {_named(run)}"


def _named(run: Run) -> str:
    """Return a run as a command line names it: its directory only if that is not the usual one."""
    elsewhere = run.path.parent != Path(RunConfig().place.runs_dir)
    return run.name + (f" --runs-dir {shlex.quote(str(run.path.parent))}" if elsewhere else "")


def page_opened(url: str, host: str, *, shared: bool) -> str:
    """Return where the page is, and who may see it."""
    lines = [f"The page: {url}", "Ctrl+C closes it; what is being trained goes on."]
    if shared:
        lines += [
            f"! --host {host}: everybody in your network can reach it, unencrypted, and whoever has this address can",
            "  read your data and start jobs. Only do this where you trust the network.",
        ]
    return "\n".join(lines)


def export_rows(made: dict[str, Any]) -> dict[str, str]:
    """Return what `export_run` wrote."""
    fused = made["fused"]
    return {
        "Run": made["run"],
        "Where": f"{made['path']}, {size(made['bytes'])}",
        "Files": ", ".join(made["files"]),
        "Verified": textwrap.fill(made["verification"]["verdict"], 80) if made["verification"] else "",
        "Merged": textwrap.fill(f"{fused['stored']}. {fused['verdict']}", 80) if fused else "",
        "Look at": "! it lost some of what was learnt" if fused and fused["within"] is False else "",
    }


def push_rows(told: dict[str, Any]) -> dict[str, str]:
    """Return what `push` sent, or would send."""
    width = max(map(len, told["files"]))
    files = "\n".join(f"{name:<{width}}  {size(count)}" for name, count in told["files"].items())
    return {
        "Repository": f"{told['repository']}, {'private' if told['private'] else 'public'}",
        "From": told["path"],
        "Format": ": ".join(filter(None, (told["exported_as"], told["stored"]))),
        "Files": f"{files}\n{'together':<{width}}  {size(told['bytes'])}",
        "Left here": ", ".join(told["left_here"]),
        "Card": told["card"] if told["dry_run"] else "",
    }


def models_table(models: Iterable[dict[str, Any]]) -> str:
    """Return a line for each model that has a short name."""
    lines = [
        f"{model['name']:<18} {model['download_gb']:>6.1f} GB  {model['licence']:<20} {model['repository']}"
        + (" (accept its licence on the hub first)" if model["gated"] else "")
        for model in models
    ]
    return "\n".join([f"{'model':<18} {'download':>9}  {'licence':<20} on the hub", *lines])


def runs_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return a line for each run, and which of them might as well have another best."""
    rows = list(rows)
    lines = [
        f"{row['run']:<36} {row['state']:<10} {row['step']:>6}/{row['total_steps']:<6} "
        + (f"{row['best_val_loss']:.4f}" if row["best_val_loss"] is not None else "–")
        for row in rows
    ]
    unsure = [f"{row['run']}: {row['best']['sentence']}" for row in rows if row["best"] and row["best"]["alike"]]
    lines += ["", *(line for text in unsure for line in textwrap.wrap(text, 100, subsequent_indent="  "))]
    return "\n".join([f"{'run':<36} {'state':<10} {'step':>6} {'':<6} best val loss", *lines]).rstrip()
