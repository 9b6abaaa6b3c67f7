"""Terminal output: the notebook's sections as text, and a run's progress.

The texts are functions of values, so that the page shows the same ones. Knows nothing of mlx and decides nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import platform
import shlex
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from ..activity import STAGES, Activity, watching
from ..config import RunConfig, settings
from ..data import REPORT_FILE, DataReport, Findings, flag
from ..first_words import WIDTH
from ..machine.keep_awake import LET_IT_SLEEP
from ..machine.memory import GB, MB, available_bytes, total_bytes
from ..models.base_models import ModelSpec
from ..runs.plan import TrainingPlan
from ..runs.presets import preset_choices
from ..runs.run import Run
from ..runs.throughput import Pace
from ..runs.time_spent import PARTS
from ..tokens.report import TokenReport

SHOWN_ANSWERS = 6
PATIENCE = 2  # seconds before something that takes long is spoken of
STEP = "step"
SILENCE = 8  # seconds between two lines about it, where there is no terminal


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
        "Tokens": f"{tokens.tokens:,} in {tokens.rows:,} rows, {_share(tokens.target_tokens, tokens.tokens)} of them "
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
    how = f"quantised to {spec.quantize_bits} bits while loading" if spec.quantize_bits else "as it is stored"
    layers = len(spec.adapted_layers(config.lora))
    return {
        "Base": f"{spec.name} ({spec.config['model_type']}{f', {spec.licence}' if spec.licence else ''}), {how}",
        "Parameters": f"{spec.parameters / 1e6:,.1f} M in {spec.num_layers} layers",
        "Trainable": f"{trainable / 1e6:,.2f} M ({100 * trainable / spec.parameters:.2f}%): "
        f"{_adapter_kind(config)}, rank {config.lora.rank}, alpha {config.lora.alpha:g}, "
        f"{config.lora.projections} projections of {layers} layers",
        "Weights": f"{size(spec.loaded_bytes)}, {spec.bits_per_weight:.2f} bits per weight",
    }


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
        "Rate": f"{rate}, {train.optimizer}",
        "Adapter": f"dropout {config.lora.dropout:g}, scale {config.lora.scale:g}",
    }


def recall_lines(evaluation: dict[str, Any]) -> str:
    """Return recall of the fact sheet, before and after."""
    names = {"trained": "trained phrasings", "held_out": "held-out phrasings"}
    lines = []
    for kind, name in names.items():
        if count := evaluation["recall"].get(kind):
            total = count["questions"]
            lines.append(
                f"  {name:<19} before {_share(count['base'], total):>4} ({count['base']}/{total})"
                f"   after {_share(count['tuned'], total):>4} ({count['tuned']}/{total})"
            )
    return "\n".join(["Recall of facts", *lines]) if lines else ""


NOTHING_ASKED = """  Nothing was asked: no row is a question with its answer in words, and there is no fact sheet.
  qlora generate asks what you like; --sample-prompts asks while it learns, --facts at the end."""


def answers_side_by_side(evaluation: dict[str, Any], count: int = SHOWN_ANSWERS) -> str:
    """Return some questions with the answers of base and tuned model, spread over the whole list."""
    questions = evaluation["questions"]
    step = max(1, len(questions) // count)
    lines = []
    for question in questions[::step][:count]:
        mark = {True: " ✓", False: " ✗"}
        lines += [
            f"  ? {one_line(question['question'])}",
            f"    base : {one_line(question['base'])}{mark.get(question.get('base_right'), '')}",
            f"    tuned: {one_line(question['tuned'])}{mark.get(question.get('tuned_right'), '')}",
        ]
    return "\n".join(lines)


def final_summary(run: Run) -> str:
    """Return the last lines of a run that ended: answers, recall, numbers, places, what to do next."""
    evaluation, numbers = run.evaluation(), run.summary()
    parts = []
    if evaluation and evaluation["questions"]:
        parts += [section("Generation test"), answers_side_by_side(evaluation), recall_lines(evaluation)]
    elif evaluation:
        parts += [section("Generation test"), NOTHING_ASKED]
    if numbers:
        parts += [block("Summary", {"State": run.state, **performance(numbers), **places(run)})]
    return "\n".join(part for part in [*parts, next_commands(run)] if part)


def performance(numbers: dict[str, Any]) -> dict[str, str]:
    """Return time, speed, memory and the best loss of a run that ended."""
    best = numbers["best_val_loss"]
    return {
        "Time": time_spent(numbers),
        "Speed": f"{numbers['tokens_per_second']:,.0f} tokens/s over {numbers['tokens']:,} tokens in "
        f"{numbers['steps']} steps",
        "Memory": f"peak {size(numbers['peak_memory_bytes'])} of arrays, "
        f"{size(numbers['peak_process_bytes'])} of the process",
        "Best": f"validation loss {best:.4f} at step {numbers['best_step']}" if best is not None else "",
    }


def time_spent(numbers: dict[str, Any], words: Mapping[str, str] = PARTS) -> str:
    """Return how long a run took, with parts of half a second and more; for an old run the steps alone."""
    seconds = {word: numbers[f"{part}_seconds"] for part, word in words.items()}
    parts = ", ".join(f"{word} {duration(taken)}" for word, taken in seconds.items() if taken >= 0.5)
    return f"{duration(numbers['total_seconds'])}: {parts}" if numbers["total_seconds"] else parts


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


class OneLine:
    """Lines and, on a terminal, below the last of them what is being tried.

    Args:
        stream: where to.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def trying(self, name: str) -> None:
        """Say what is being tried, until the next line or an empty name."""
        if self._stream.isatty():
            self._stream.write(f"\r\033[K… {name}" if name else "\r\033[K")
            self._stream.flush()

    def tell(self, line: str) -> None:
        """Print a line."""
        self.trying("")
        print(line, file=self._stream, flush=True)


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


def event_line(event: dict[str, Any]) -> str:
    """Return an event of a run in a line, empty for those that are shown in another way."""
    kind = event["type"]
    if kind == "memory":
        return f"[Memory] {event['label']}: {event['available'] // MB}MB available"
    if kind == "epoch" and event.get("avg_loss") is not None:
        return f"  Epoch {event['epoch']} - Avg Loss: {event['avg_loss']:.4f}"
    if kind == "eval" and (event.get("val_loss") is None or event.get("perplexity") is None):
        return "  Val Loss: not finite"
    if kind == "eval":
        return f"  Val Loss: {event['val_loss']:.4f} (perplexity {event['perplexity']:,.2f})"
    if kind == "checkpoint":
        return f"  ✓ Checkpoint saved (step {event['step']})"
    if kind == "warning":
        return f"  ! {event['message']}"
    if kind == "trunk":
        kept = f"{size(event['bytes'])} in {event['seconds']:,.1f} s"
        return f"  ✓ {event['layers']} layers were computed once for each row ({kept}), and are out of memory"
    if kind == "start" and event.get("step"):
        return f"Resuming at step {event['step']} of {event.get('total_steps')}"
    return ""


def working_words(words: str, done: int, total: int) -> str:
    """Say what is being done, as `activity.STAGES` or a translation has it, and how far it is if that is known."""
    return f"{words} … {done:,}{f' / {total:,}' if total else ''}" if done or total else f"{words} …"


class Waiting:
    """A stream's notice of work that takes long, and how far it is: nobody should wonder if anything happens.

    In a terminal that is a line that counts and goes away; elsewhere a new line every few seconds. A thread of its own
    looks, since what takes longest (compiling for a GPU, say) says nothing for a minute.

    Args:
        stream: where to.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._now: Activity | None = None
        self._said = False  # what is being done now
        self._spoke = time.monotonic()
        self._counter: tqdm | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, activity: Activity | None) -> None:
        """Set what is being done now; None if nothing is worth saying."""
        with self._lock:
            if self._now and activity and self._now.stage == activity.stage != STEP:
                activity = dataclasses.replace(activity, began=self._now.began)
            else:
                self._said = bool(activity) and activity.stage == STEP  # the bar speaks of it
                self._close_counter()
            self._now = activity
            if activity and self._thread is None:
                self._thread = threading.Thread(target=self._look, name="waiting", daemon=True)
                self._thread.start()

    def spoke(self) -> None:
        """Note that something else was said."""
        self._spoke = time.monotonic()

    def _look(self) -> None:
        while True:
            time.sleep(0.5)
            with self._lock, contextlib.suppress(OSError, ValueError):  # nobody reads any more
                if self._now is None:
                    self._thread = None
                    return
                self._show(self._now, time.monotonic())

    def _show(self, now: Activity, moment: float) -> None:
        seconds = moment - now.began
        words = f"  {working_words(STAGES[now.stage], now.done, now.total)}"
        if self._stream.isatty():
            if seconds >= PATIENCE and self._counter is None:
                self._counter = tqdm(file=self._stream, bar_format="{desc}", leave=False)
            if self._counter is not None:
                self._counter.set_description_str(f"{words} {duration(seconds)}")
        elif (seconds >= PATIENCE and not self._said) or moment - self._spoke >= SILENCE:
            with tqdm.external_write_mode(file=self._stream):
                print(words if seconds < SILENCE else f"{words} {duration(seconds)}", file=self._stream, flush=True)
            self._said, self._spoke = True, moment

    def _close_counter(self) -> None:
        if self._counter is not None:
            with contextlib.suppress(OSError, ValueError):
                self._counter.close()
            self._counter = None


@contextlib.contextmanager
def waiting(stream: Any) -> Iterator[None]:
    """Report on a stream, inside the block, what this thread does if it takes long."""
    shown = Waiting(stream)
    try:
        with watching(shown):
            yield
    finally:
        shown(None)


class TrainingReporter:
    """A printer of a run's events: epochs, memory, a progress bar, ticks.

    When nobody can read it any more (the terminal was closed, the reader of a pipe is gone) training goes on silently.

    Args:
        stream: standard output; with `--json`, standard error.
    """

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream or sys.stdout
        self._bar: tqdm | None = None
        self._start: dict[str, Any] = {}
        self._pace = Pace()
        self._waiting = Waiting(self.stream)

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        show = getattr(self, f"_on_{event['type']}", None)
        if show:
            with self._while_it_is_read():
                show(event)

    def say(self, text: str) -> None:
        """Print a line without tearing the progress bar."""
        with self._while_it_is_read():
            with tqdm.external_write_mode(file=self.stream):
                print(text, file=self.stream, flush=True)
            self._waiting.spoke()

    @contextlib.contextmanager
    def _while_it_is_read(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                silence(self.stream)

    def _on_start(self, event: dict[str, Any]) -> None:
        self._start = event
        layout = {"packed": "packed end to end", "padded": "padded", "whole": "padded, all logits"}[event["layout"]]
        display = LET_IT_SLEEP if event["device"].startswith("Metal") else ""
        self.say(table({"Device": f"{event['device']}; rows {layout}", "Display": display}))
        if line := event_line(event):
            self.say(line)

    def _on_working(self, event: dict[str, Any]) -> None:
        doing = Activity(event["stage"], event["total"], event["done"]) if event["stage"] else None
        self._waiting(doing or self._stepping())

    def _stepping(self) -> Activity | None:
        """Return the next step if a long one would be silent."""
        if self._bar is None or self.stream.isatty():
            return None
        return Activity(STEP, int(self._bar.total), int(self._bar.n))

    def _on_asked(self, event: dict[str, Any]) -> None:
        self.say("\nSaving after this step; a second Ctrl+C ends at once, without.")

    def _on_leaving_trunk(self, event: dict[str, Any]) -> None:
        self.say(f"\nComputing the {event['layers']} layers below the adapters once, for {event['rows']:,} rows …")

    def _on_trunk(self, event: dict[str, Any]) -> None:
        self.say(event_line(event))

    def _on_memory(self, event: dict[str, Any]) -> None:
        epoch = event["step"] // self._start["steps_per_epoch"] + 1
        self._close_bar()
        self.say(f"\nEPOCH {epoch}/{self._start['epochs']}")
        self.say(event_line(event))
        per_epoch = self._start["steps_per_epoch"]
        before = event["step"] - (epoch - 1) * per_epoch
        total = min(per_epoch, self._start["total_steps"] - (epoch - 1) * per_epoch)
        self._bar = tqdm(
            total=total,
            initial=before,
            file=self.stream,
            ncols=WIDTH + 8,
            delay=0.01,  # nothing to show before the first step
            mininterval=0.1 if self.stream.isatty() else SILENCE / 2,  # a log needs few lines, and no long silence
            bar_format="  {n_fmt}/{total_fmt} {bar} {desc}",
        )

    def _on_step(self, event: dict[str, Any]) -> None:
        self._pace.count(event["tokens"], event["seconds"])
        if self._bar is None:
            return
        left = self._pace.seconds_for(self._bar.total - self._bar.n - 1)
        shown = "–" if event["train_loss"] is None else f"{event['train_loss']:.3f}"
        speed = f"{self._pace.tokens_per_second:,.0f} tokens/s"
        self._bar.set_description_str(f"loss {shown}  {speed}  {duration(left)} left", refresh=False)
        if self._bar.update(1):
            self._waiting.spoke()
        self._waiting(self._stepping())

    def _on_epoch(self, event: dict[str, Any]) -> None:
        self._close_bar()
        self.say(event_line(event))

    def _on_eval(self, event: dict[str, Any]) -> None:
        if self._bar is not None and self._bar.n >= (self._bar.total or 0):  # training ends within an epoch
            self._close_bar()
        self.say(event_line(event))
        if event["best"]:
            self.say("  ✓ Best model saved")

    def _on_checkpoint(self, event: dict[str, Any]) -> None:
        self.say(event_line(event))

    def _on_epoch_complete(self, event: dict[str, Any]) -> None:
        self.say(f"  ✓ Epoch {event['epoch']} complete")

    def _on_warning(self, event: dict[str, Any]) -> None:
        self.say(event_line(event))

    def _on_waiting(self, event: dict[str, Any]) -> None:
        self.say(f"… {event['message']}")

    def _on_evaluating(self, event: dict[str, Any]) -> None:
        self._close_bar()
        self.say("\nTesting what the model learned …")

    def _on_end(self, event: dict[str, Any]) -> None:
        self._close_bar()
        self._waiting(None)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def silence(stream: Any) -> None:
    """Discard what is still written to a stream whose reader is gone, including what waits in its buffer."""
    with contextlib.suppress(OSError, ValueError):  # a stream that has no descriptor, or is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def page_opened(url: str, host: str, *, shared: bool) -> str:
    """Return where the page is, and who may see it."""
    lines = [f"The page: {url}", "Ctrl+C closes it; what is being trained goes on."]
    if shared:
        lines += [
            f"! --host {host}: everybody in your network can reach it, unencrypted, and whoever has this address can",
            "  read your data and start jobs. Only do this where you trust the network.",
        ]
    return "\n".join(lines)


# Pieces ---------------------------------------------------------------------------------------------------------


def section(title: str) -> str:
    """Return a heading."""
    return f"\n── {title} {'─' * (WIDTH - len(title) - 4)}"


def block(title: str, rows: dict[str, str]) -> str:
    """Return a heading and its table."""
    return f"{section(title)}\n{table(rows)}"


def table(rows: dict[str, str]) -> str:
    """Return a line per row, further lines of a value indented under its first; rows without a value are left out."""
    indent = "\n" + " " * 14
    return "\n".join(f"{name:<12}  {value.replace(chr(10), indent)}" for name, value in rows.items() if value)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "0%"


def one_line(text: str, limit: int = 200) -> str:
    """Return a text without line breaks, cut if it is longer than `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def size(count: int) -> str:
    """Return bytes for people: 4.02 GB, 83 MB, 0.1 MB."""
    if count >= GB:
        return f"{count / GB:.2f} GB"
    return f"{count / MB:.0f} MB" if count >= 10 * MB else f"{count / MB:.1f} MB"


def duration(seconds: float) -> str:
    """Return a duration for people: 1 h 02 min, 3 min 04 s, 5 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def export_rows(made: dict[str, Any]) -> dict[str, str]:
    """Return what `export_run` wrote."""
    fused = made["fused"]
    return {
        "Run": made["run"],
        "Where": f"{made['path']}, {size(made['bytes'])}",
        "Files": ", ".join(made["files"]),
        "Merged": _merged(fused) if fused else "",
        "Look at": "! quantised again after the merge, it lost some of what it learnt; --dequantize keeps it"
        if fused and fused["bits"] and not fused["not_judged"] and fused["same_choice"] < 0.99
        else "",
    }


def _merged(fused: dict[str, Any]) -> str:
    """Return what merging changed."""
    tuned = f"validation loss {fused['tuned_loss']:.4f} with the adapters"
    if fused["not_judged"]:
        return f"{tuned}; merged, not judged: {fused['not_judged']}"
    same = _share(round(1000 * fused["same_choice"]), 1000)
    return f"{tuned}, {fused['fused_loss']:.4f} merged; the same likeliest token for {same}"


def models_table(models: Iterable[dict[str, Any]]) -> str:
    """Return a line for each model that has a short name."""
    lines = [
        f"{model['name']:<18} {model['download_gb']:>6.1f} GB  {model['licence']:<20} {model['repository']}"
        + (" (accept its licence on the hub first)" if model["gated"] else "")
        for model in models
    ]
    return "\n".join([f"{'model':<18} {'download':>9}  {'licence':<20} on the hub", *lines])


def runs_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return a line for each run."""
    lines = [
        f"{row['run']:<36} {row['state']:<10} {row['step']:>6}/{row['total_steps']:<6} "
        + (f"{row['best_val_loss']:.4f}" if row["best_val_loss"] is not None else "–")
        for row in rows
    ]
    return "\n".join([f"{'run':<36} {'state':<10} {'step':>6} {'':<6} best val loss", *lines])
