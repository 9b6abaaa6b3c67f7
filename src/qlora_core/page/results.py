"""What a run that ended leaves: answers, numbers, files, guides, and how it compares with others."""

from __future__ import annotations

from collections.abc import Sequence

import marimo as mo

from .. import console
from ..charts import thin
from ..compare import compare
from ..guides import GUIDES
from ..runs import Run, TrainingTracker, iterate_states
from .look import empty, fact_table, figures, folded, row_table, text_block


def runs_overview(tracker: TrainingTracker) -> mo.Html:
    """All runs, newest first."""
    rows = [
        {
            "run": row["run"],
            "state": row["state"],
            "step": f"{row['step']} / {row['total_steps']}",
            "best validation loss": "–" if row["best_val_loss"] is None else f"{row['best_val_loss']:.4f}",
        }
        for row in iterate_states(tracker.runs())
    ]
    return row_table(rows) if rows else empty("None yet.")


def generation_test(run: Run | None) -> mo.Html:
    """Recall and answers of base and tuned model, as the trainer judged them."""
    evaluation = run.evaluation() if run else None
    if not evaluation or not evaluation["questions"]:
        return empty("Answers appear here when training ends.")
    names = {"trained": "Recall, trained phrasings", "held_out": "Recall, held-out phrasings"}
    cards = {
        names.get(kind, f"Recall, {kind}"): (
            f"{100 * count['tuned'] / count['questions']:.0f}%",
            f"{count['tuned']} of {count['questions']}; base model {count['base']}",
        )
        for kind, count in evaluation["recall"].items()
    }
    mark = {True: " ✓", False: " ✗"}
    rows = [
        {
            "question": q["question"],
            "base": console.one_line(q["base"]) + mark.get(q.get("base_right"), ""),
            "tuned": console.one_line(q["tuned"]) + mark.get(q.get("tuned_right"), ""),
        }
        for q in evaluation["questions"]
    ]
    shown = thin(rows, console.SHOWN_ANSWERS)
    more = [folded(f"All {len(rows)} questions", row_table(rows))] if len(shown) < len(rows) else []
    return mo.vstack([*([figures(cards)] if cards else []), row_table(shown), *more])


def performance(run: Run | None) -> mo.Html:
    """The numbers of a run that ended, and its curves."""
    numbers = run.summary() if run else None
    if not numbers:
        return empty("Numbers appear here when training ends.")
    curves = run.result / "curves.png"
    image = [mo.image(str(curves), alt="Loss, learning rate, speed and memory over steps")] if curves.is_file() else []
    return mo.vstack([fact_table(console.performance(numbers)), *image])


def saved(run: Run | None) -> mo.Html:
    """Where the adapters lie."""
    if run is None or not (run.best.is_dir() or run.final.is_dir()):
        return empty("The best adapters are saved at the first validation, the last ones when training ends.")
    return fact_table(console.places(run))


def integration(run: Run | None) -> mo.Html:
    """The guide that lies beside the exported adapters, in both languages."""
    guides = [path for name in GUIDES if run and (path := run.result / name).is_file()]
    if not guides:
        return empty("The guide appears here when training ends.")
    return mo.vstack([folded(path.name, text_block(path.read_text(encoding="utf-8"))) for path in guides], gap=0)


def run_choice(tracker: TrainingTracker) -> mo.ui.multiselect:
    """Runs that ended, of which two or more may be chosen; at first the newest two."""
    names = [run.name for run in tracker.runs() if run.summary()]
    return mo.ui.multiselect(names, value=names[:2], label="Runs", full_width=True)


def comparison(tracker: TrainingTracker, names: Sequence[str]) -> mo.Html:
    """Runs side by side, as `qlora compare` shows them."""
    if len(names) < 2:
        return empty("Two runs that ended are compared here: train one with --quantize none and one with 4, say.")
    return text_block("\n".join(compare([tracker.find(name) for name in names]).lines()))
