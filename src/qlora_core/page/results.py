"""Results of a run that ended: answers, numbers, files, guides, and next steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marimo as mo
from markupsafe import Markup

from ..errors import RunError
from ..evaluation import statistics
from ..evaluation.best_choice import kept_sentence
from ..exports.guides import GUIDES
from ..jobs import server
from ..reports import console
from ..reports.charts import thin
from ..reports.in_language import duration, moment, number, share, size
from ..runs.keeping import read_note
from ..runs.plan import TrainingTracker
from ..runs.run import CONFIG, Run, iterate_states
from ..runs.time_spent import PARTS
from ..translations import say, spoken
from . import navigation
from .language import language
from .look import alone, empty, fact_table, figures, folded, joined, put, row_table, shown, text_block

NOTHING = "–"


def runs_overview(tracker: TrainingTracker) -> mo.Html:
    """Return all runs, newest first."""
    runs = tracker.runs()
    if not runs:
        return empty(say("No runs yet in {place}.", place=str(tracker.runs_dir)))
    rows = [_run_row(run, found) for run, found in zip(runs, iterate_states(runs), strict=True)]
    notes = [read_note(run) for run in runs]
    if any(notes):
        rows = [
            row | {say("Note"): put('<div class="q-kept-note">{}</div>', text)}
            for row, text in zip(rows, notes, strict=True)
        ]
    return row_table(rows, numbers=[say("Step"), say("Best validation loss")])


def _run_row(run: Run, found: dict[str, Any]) -> dict[str, Any]:
    best, changed = found["best_val_loss"], run.status().get("time") or (run.path / CONFIG).stat().st_mtime
    row = {
        say("Run"): run.name,
        say("State"): say(found["state"]),
        say("Step"): f"{number(found['step'])} / {number(found['total_steps'])}",
        say("Best validation loss"): NOTHING if best is None else number(best, ".4f"),
        say("Base"): _base_name(run),
        say("Last written"): moment(changed),
    }
    return row | {say("Open"): _links(run)}


def _base_name(run: Run) -> str:
    """Return the name of a run's base; of a damaged run, that it cannot be told: the others are listed all the same."""
    try:
        return run.environment()["model"]["name"]
    except RunError:
        return say("cannot be read")


def _links(run: Run) -> Markup:
    """Return links that show this run here, and in the other notebooks if the same server shows them."""
    names = {"": say("show"), "/compare": say("compare"), "/chat": say("chat")}
    links = [
        put('<a href="{}" target="_self">{}</a>', navigation.address(path, run=run.name), name)
        for path, name in names.items()
        if not path or path in server.served
    ]
    return put('<span class="q-links">{}</span>', joined(links))


def nothing_yet(run: Run | None, tracker: TrainingTracker) -> mo.Html | None:
    """Return what will be here, while a run has saved no adapters, and how to see that of another run."""
    if saved_something(run):
        return None
    words = say("Answers, numbers and files appear here when a run has ended.")
    if any(saved_something(other) for other in tracker.runs()):
        words += " " + say("For those of an earlier run, choose it in “Train”.")
    return alone(words)


def saved_something(run: Run | None) -> bool:
    """Return whether a run has adapters that can be asked and exported."""
    return run is not None and (run.best.is_dir() or run.final.is_dir())


def generation_test(run: Run | None) -> mo.Html | None:
    """Return recall and answers of base and tuned model, as the trainer judged them."""
    evaluation = run.evaluation() if run else None
    if not evaluation or not evaluation["questions"]:
        return None
    cards = recall_cards(evaluation)
    rows = [
        {
            say("Question"): q["question"],
            say("Base model"): console.judged_answer(q, "base"),
            say("Tuned model"): console.judged_answer(q, "tuned"),
        }
        for q in evaluation["questions"]
    ]
    some = thin(rows, console.SHOWN_ANSWERS)
    more = [folded(say("All {count} questions", count=len(rows)), row_table(rows))] if len(some) < len(rows) else []
    return mo.vstack([*([figures(cards)] if cards else []), row_table(some), *more])


def recall_cards(evaluation: dict[str, Any] | None) -> dict[str, tuple[str, str]]:
    """Return the shares of correct answers on the fact sheet; empty if there is no fact sheet."""
    names = {"trained": say("Facts recalled, trained wording"), "held_out": say("Facts recalled, new wording")}
    return {
        names.get(kind, kind): (
            share(count["tuned"], count["questions"]),
            _recalled(count),
        )
        for kind, count in (evaluation["recall"] if evaluation else {}).items()
        if count["questions"]
    }  # fmt: skip


def _recalled(count: Mapping[str, int]) -> str:
    """Return how many answers are right, with the interval of their share."""
    found = statistics.share(count["tuned"], count["questions"])
    return say(
        "{right} of {all}, 95%: {low} to {high}%; base model {base}",
        right=count["tuned"],
        all=count["questions"],
        low=round(100 * found.low),
        high=round(100 * found.high),
        base=count["base"],
    )


def performance(run: Run | None) -> mo.Html | None:
    """Return the numbers of a run that ended."""
    numbers = run.summary() if run else None
    if run is None or not numbers:
        return None
    best = numbers["best_val_loss"]
    at = (
        say("at step {step} of {steps}", step=number(numbers["best_step"]), steps=number(numbers["steps"]))
        if best is not None
        else ""
    )
    if (before := numbers["val_loss_before"]) is not None and at:
        at = say("{at}; before training {loss}", at=at, loss=number(before, ".4f"))
    perplexity, evaluation = _perplexity(run, numbers["best_step"]), run.evaluation()
    cards = {
        say("Best validation loss"): (NOTHING if best is None else number(best, ".4f"), at),
        say("Perplexity"): (
            NOTHING if perplexity is None else number(perplexity, ",.2f"),
            say("on the validation rows"),
        ),
        **recall_cards(evaluation),
        say("Training time"): (
            duration(numbers["training_seconds"]),
            say("{steps} steps, without checks", steps=number(numbers["steps"])),
        ),
    }
    facts = {
        say("Run"): run.name,
        say("State"): say(run.state),
        say("How sure the best is"): spoken(kept_sentence(evaluation) or ""),
        say("Time"): console.time_spent(numbers, {part: say(words) for part, words in PARTS.items()}),
        say("Speed"): say("{speed} tokens/s over {tokens} tokens",
                          speed=number(numbers['tokens_per_second'], ",.0f"), tokens=number(numbers['tokens'])),
        say("Peak memory"): say("{arrays} of the arrays, {process} of the whole process",
                           arrays=size(numbers["peak_memory_bytes"]), process=size(numbers["peak_process_bytes"])),
    }  # fmt: skip
    return mo.vstack([figures(cards), fact_table(facts)], gap=0.75)


def _perplexity(run: Run, step: int | None) -> float | None:
    found = (event["perplexity"] for event in run.metrics() if event["type"] == "eval" and event["step"] == step)
    return next(found, None)


def saved(run: Run | None) -> mo.Html | None:
    """Return where a run's adapters and all its other files lie."""
    if run is None or not saved_something(run):
        return None
    return fact_table(
        {
            say("Best adapters"): str(run.best.absolute()) if run.best.is_dir() else "",
            say("Last adapters"): str(run.final.absolute()) if run.final.is_dir() else "",
            say("Exported to"): str(run.result.absolute()) if run.result.is_dir() else "",
            say("Everything"): str(run.path.absolute()),
        }
    )


def integration(run: Run | None) -> mo.Html | None:
    """Return the guide beside the exported adapters, in the reader's language first."""
    ours = sorted(GUIDES, key=lambda name: (".pt." in name) != (language() == "pt"))
    guides = [path for name in ours if run and (path := run.result / name).is_file()]
    if not guides:
        return None
    titles = {name: say("In Portuguese") if ".pt." in name else say("In English") for name in GUIDES}
    return mo.vstack(
        [
            folded(f"{titles[path.name]}: {path.name}", text_block(path.read_text(encoding="utf-8")))
            for path in guides
        ],
        gap=0,
    )  # fmt: skip


def next_steps(run: Run | None, tracker: TrainingTracker, read_only: bool = False) -> mo.Html:
    """Return what to do now, as a run's state suggests it."""
    steps = [] if read_only else list(_next_steps(run))
    if len(tracker.runs()) > 1:
        steps.append(say("Compare it with other runs: their curves, settings, numbers and answers side by side."))
    if not steps:
        return empty(say("Nothing to do: wait for a run."))
    return shown(put('<ul class="q-list">{}</ul>', joined(put("<li>{}</li>", step) for step in steps)))


def _next_steps(run: Run | None) -> list[str]:
    state = run.state if run else "new"
    if run is None or state == "new":
        return [say("Press Start.")]
    if state in ("preparing", "running"):
        return [say("It is being trained. The page may be closed meanwhile.")]
    if state in ("paused", "crashed", "failed"):
        return [say("Press “Go on” to continue from its last checkpoint.")]
    found = [say("Ask it something that your text answers, and something that it does not."), _length_advice(run)]
    found.append(say("Export it: the adapter is there already; one model that needs no base is easier to hand on."))
    return [step for step in found if step]


def _length_advice(run: Run) -> str:
    """Return advice on whether the best loss came early or at the end."""
    numbers = run.summary() or {}
    best, steps = numbers.get("best_step"), numbers.get("steps")
    if not best or not steps:
        return ""
    if run.best_is_last:
        return say("Train it longer with more epochs: its loss was best at the end, so it may still fall.")
    if best <= 0.5 * steps:
        return say("It was best at step {best} of {steps} and learnt by heart after that: more epochs will not help, "
                   "more or other text may.", best=best, steps=steps)  # fmt: skip
    return ""
