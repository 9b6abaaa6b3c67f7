"""Figures from what contestants measured: medians, ratios, peaks, differences of losses. Starts no contestant."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]


def peak(result: Result, device: str) -> int:
    """Return peak bytes: of the library's arrays on a GPU, of the process on a CPU, where not every library counts."""
    return result.get("process_peak_bytes" if device == "cpu" else "peak_bytes") or 0


def best_size(trials: Sequence[Result], max_memory_gb: float, device: str) -> int:
    """Return the batch size of the fastest trial that fits; 0 if none does."""
    fitting = [
        trial
        for trial in trials
        if "tokens_per_second" in trial and (not max_memory_gb or peak(trial, device) <= max_memory_gb * 1e9)
    ]
    return max(fitting, key=lambda trial: trial["tokens_per_second"])["batch_size"] if fitting else 0


def compare(one: Result, other: Result) -> Result:
    """Return the ratio of tokens/s, and the largest share of the processor that other programs took meanwhile."""
    return {
        "ratio": one["tokens_per_second"] / other["tokens_per_second"],
        "others_share": max(result.get("others_share", 0.0) for result in (one, other)),
    }


def middle(values: Sequence[float]) -> dict[str, float]:
    """Return median and range."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def compare_losses(mine: Sequence[Result], theirs: Sequence[Result], tolerance: float) -> Result:
    """Return the differences between the losses of the same steps, in nats per trained token."""
    gaps = [abs(one["loss"] - other["loss"]) for one, other in zip(mine, theirs, strict=True)]
    return {
        "steps": len(gaps),
        "largest": max(gaps),
        "mean": statistics.fmean(gaps),
        "tolerance": tolerance,
        "holds": all(gap <= tolerance for gap in gaps),  # a NaN loss fails
    }


def elapsed(result: Result) -> list[float]:
    """Return the seconds from process start to the end of each step, loading included; the first is before any step."""
    ends = [result["seconds_loading"]]
    for step in result["steps"]:
        ends.append(ends[-1] + step["seconds"])
    return ends


def time_to_loss(curves: dict[str, list[dict[str, float]]]) -> Result:
    """Return the seconds each contestant takes to reach the lowest validation loss that all of them reach.

    Between two evaluations the loss is taken to fall along a line.
    """
    target = max(min(point["val_loss"] for point in curve) for curve in curves.values())
    return {
        "val_loss": target,
        "curves": curves,
        "seconds": {name: _crossing(curve, target) for name, curve in curves.items()},
    }


def _crossing(curve: list[dict[str, float]], target: float) -> float:
    before = curve[0]
    for point in curve:
        if point["val_loss"] <= target:
            fall = before["val_loss"] - point["val_loss"]
            share = (before["val_loss"] - target) / fall if fall > 0 else 1.0
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return curve[-1]["seconds"]


def in_words(result: Result, device: str) -> str:
    """Return a run in one line."""
    if result.get("out_of_memory"):
        return f"out of memory: {result['error']}"
    if "error" in result:
        return f"failed: {result['error']}"
    if "tokens_per_second" not in result:
        return "no step was timed"
    return (
        f"{result['tokens_per_second']:,.1f} tokens/s over {result['timed_steps']} steps, first step after "
        f"{result['seconds_to_first_step']:.1f} s, peak {peak(result, device) / 1e9:.2f} GB"
    )
