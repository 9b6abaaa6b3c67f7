"""Terminal output while something goes on: the progress of a run, what takes long, and what is being tried.

Shows the events it receives. Knows nothing of mlx and decides nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from ..activity import STAGES, Activity, noting, watching
from ..first_words import WIDTH
from ..machine.keep_awake import LET_IT_SLEEP
from ..machine.memory import MB
from ..runs.throughput import Throughput
from .plain_text import duration, size, table

SKIPPED = {"validation": "Validation", "samples": "Sample answers", "evaluation": "Final test"}
INTERRUPTED = {
    "validation": "Pausing now; this validation is done again later.",
    "samples": "Pausing now; these sample answers are left out.",
    "evaluation": "Pausing now; the test questions are asked later. Of a run that was stopped, they are left out.",
}
"""Words for Ctrl+C in each stage that it interrupts; any other stage is finished first."""
PATIENCE = 2  # seconds of work before it is reported
STEP = "step"
SILENCE = 8  # seconds between two lines about it outside a terminal


class OneLine:
    """Lines and, on a terminal, below the last of them what is being tried.

    Args:
        stream: the output stream.
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


def event_line(event: dict[str, Any]) -> str:
    """Return an event of a run in a line, empty for those that are shown in another way."""
    kind = event["type"]
    if kind == "memory":
        return f"[Memory] {event['label']}: {event['available'] // MB}MB available"
    if kind == "epoch" and event.get("avg_loss") is not None:
        return f"  Epoch {event['epoch']} - Avg Loss: {event['avg_loss']:.4f}"
    if kind == "before" and event.get("val_loss") is not None:
        return f"Val Loss before training: {event['val_loss']:.4f}"
    if kind == "eval" and (event.get("val_loss") is None or event.get("perplexity") is None):
        return "  Val Loss: not finite"
    if kind == "eval":
        return f"  Val Loss: {event['val_loss']:.4f} (perplexity {event['perplexity']:,.2f})"
    if kind == "checkpoint":
        return f"  ✓ Checkpoint saved (step {event['step']})"
    if kind == "warning":
        return f"  ! {event['message']}"
    if kind == "skipped":
        return f"  – {SKIPPED.get(event['stage'], event['stage'])} of step {event['step']} skipped"
    if kind == "trunk":
        kept = f"{size(event['bytes'])} in {event['seconds']:,.1f} s"
        return f"  ✓ {event['layers']} layers were computed once for each row ({kept}), and are out of memory"
    if kind == "start" and event.get("step"):
        return f"Resuming at step {event['step']} of {event.get('total_steps')}"
    return ""


def working_words(words: str, done: int, total: int) -> str:
    """Return what is being done, as `activity.STAGES` or a translation has it, and how far it is if that is known."""
    return f"{words} … {done:,}{f' / {total:,}' if total else ''}" if done or total else f"{words} …"


class Waiting:
    """A stream's notice of work that takes long, and how far it is: nobody should wonder if anything happens.

    In a terminal, a line that counts and then disappears; elsewhere a new line every few seconds. A thread of its own
    checks, since the slowest work (compiling for a GPU, say) reports nothing for a minute.

    Args:
        stream: the output stream.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._now: Activity | None = None
        self._said = False  # whether the current activity was reported
        self._spoke = time.monotonic()
        self._counter: tqdm | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, activity: Activity | None) -> None:
        """Set what is being done now; None if nothing is worth saying."""
        with self._lock:
            if self._now and activity and self._now.stage == activity.stage != STEP:
                activity = dataclasses.replace(activity, began=self._now.began)
            else:
                self._said = bool(activity) and activity.stage == STEP  # the progress bar reports it
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
            with self._lock, contextlib.suppress(OSError, ValueError):  # the reader is gone
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
                self._counter.set_description_str(f"{words} {_times(now, seconds)}")
        elif (seconds >= PATIENCE and not self._said) or moment - self._spoke >= SILENCE:
            with tqdm.external_write_mode(file=self._stream):
                print(words if seconds < SILENCE else f"{words} {_times(now, seconds)}", file=self._stream, flush=True)
            self._said, self._spoke = True, moment

    def _close_counter(self) -> None:
        if self._counter is not None:
            with contextlib.suppress(OSError, ValueError):
                self._counter.close()
            self._counter = None


def _times(now: Activity, seconds: float) -> str:
    """Return how long something has taken, and about how long the rest takes if that is known."""
    return duration(seconds) + (f", about {duration(now.left)} left" if now.left else "")


@contextlib.contextmanager
def waiting(stream: Any) -> Iterator[None]:
    """Report on a stream, inside the block, what this thread does if it takes long; note it where wanted."""
    shown = Waiting(stream)
    try:
        with watching(shown), noting():
            yield
    finally:
        shown(None)


class TrainingReporter:
    """A printer of a run's events: epochs, memory, a progress bar, ticks.

    If nobody can read it any more (the terminal was closed, a pipe's reader is gone), training goes on silently.

    Args:
        stream: standard output; with `--json`, standard error.
    """

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream or sys.stdout
        self._bar: tqdm | None = None
        self._start: dict[str, Any] = {}
        self._pace = Throughput()
        self._stage = ""
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
        self._stage = event["stage"]
        doing = Activity(event["stage"], event["total"], event["done"]) if event["stage"] else None
        self._waiting(doing or self._stepping())

    def _stepping(self) -> Activity | None:
        """Return the next step if a long one would be silent."""
        if self._bar is None or self.stream.isatty():
            return None
        return Activity(STEP, int(self._bar.total), int(self._bar.n))

    def _on_asked(self, event: dict[str, Any]) -> None:
        does = INTERRUPTED.get(self._stage, "Saving after this step.")
        self.say(f"\n{does} A second Ctrl+C ends at once, without saving.")

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
            mininterval=0.1 if self.stream.isatty() else SILENCE / 2,  # a log needs few lines but no long silence
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

    def _on_before(self, event: dict[str, Any]) -> None:
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

    def _on_skipped(self, event: dict[str, Any]) -> None:
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
