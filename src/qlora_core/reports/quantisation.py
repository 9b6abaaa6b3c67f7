"""LoRA against QLoRA: runs that differ in the bits of their base alone, and what quantising it saved and cost.

Reads run directories and takes the loss of each validation row. Says what makes the runs unequal otherwise, and how
sure a difference is. Trains nothing, and knows nothing of mlx.
"""

from __future__ import annotations

import dataclasses
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.statistics import (
    FEWEST,
    Estimate,
    mean_difference,
    mean_of_few,
    share_difference,
    sign_test,
    weighted_mean,
)
from ..runs.run import Run
from .comparison import COLUMNS, NOTHING, Comparison, compare, in_columns
from .plain_text import section, size

ALIKE = 0.01  # share of a peak; two that are no further apart count as the same
PHRASINGS = {"trained": "trained wording", "held_out": "new wording"}
_WAYS = {
    "kept": "a dequantised copy of the weights is kept beside the packed ones, as is fastest on this device",
    "dequantised": "weights are dequantised anew for each use",
}
"""Reasons why training on quantised weights may take more memory, by how they are multiplied (`Kernels.linear`)."""
ONE_SEED = "One seed each: the intervals are over the choice of rows. --seeds 3 shows what another seed changes."


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds alone.

    Attributes:
        bits: of the base's weights; None: unquantised.
        runs: one for each seed.
        losses: nats of each validation row, summed over its trained tokens, `(seeds, rows)`.
        tokens: trained tokens of each row, `(rows,)`.
        dequantised_from: bits that the base has in its own files, where this arm has a dequantised copy of it, or that
            copy rounded again; None: the base is as it was.
    """

    bits: int | None
    runs: Sequence[Run]
    losses: np.ndarray
    tokens: np.ndarray
    dequantised_from: int | None = None

    @property
    def row_means(self) -> np.ndarray:
        """Return each row's loss, averaged over the seeds."""
        return self.losses.mean(0)

    @property
    def loss(self) -> Estimate | None:
        """Return the loss a token, averaged over the seeds; None without validation rows."""
        return weighted_mean(self.row_means, self.tokens) if len(self.tokens) else None

    @property
    def seed_means(self) -> list[float]:
        """Return the loss a token of each seed."""
        return [float(each.sum() / self.tokens.sum()) for each in self.losses] if len(self.tokens) else []


@dataclass(frozen=True)
class Difference:
    """An arm against the first one, which has the most bits.

    Attributes:
        run: the arm's first run.
        against: that of the first arm.
        loss: by how many nats a token its validation loss is higher; None where losses cannot be compared.
        weights_saved: by how many bytes its loaded weights are smaller; None where that is not known.
        peak_saved: by how many bytes the peak memory of its arrays while training is lower.
        recall: for each phrasing that was asked, by what share recall is higher (`difference`), the questions that were
            `gained` and `lost`, and how often chance alone would be so uneven (`chance`).
        words: the same in a part of a sentence.
        why: the end of the words about memory, where more was taken and the reason is known; else empty.
    """

    run: str
    against: str
    loss: Estimate | None
    weights_saved: int | None
    peak_saved: int | None
    recall: dict[str, dict[str, Any]]
    words: str
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        recall = {kind: {**told, "difference": told["difference"].as_dict()} for kind, told in self.recall.items()}
        names = ("run", "against", "weights_saved", "peak_saved", "words")
        told = {name: getattr(self, name) for name in names}
        return {**told, "loss": self.loss.as_dict() if self.loss else None, "recall": recall}


@dataclass(frozen=True)
class ArmComparison:
    """Arms side by side.

    Attributes:
        arms: that with the most bits first.
        shown: comparison of the first run of each arm, with `notes` of all that makes the arms unequal.
        every: comparison of all runs.
        differences: one of each arm but the first.
    """

    arms: Sequence[Arm]
    shown: Comparison
    every: Comparison
    differences: Sequence[Difference]

    @property
    def conclusion(self) -> str:
        """Return what quantising saved and cost, in one sentence."""
        parts, told = [], set[str]()
        for each in self.differences:
            parts.append(each.words.replace(each.why, "") if each.why in told else each.words)
            told |= {each.why} - {""}
        return f"Against {_name(self.shown.runs[0])}, {'; '.join(parts)}."

    def lines(self) -> list[str]:
        """Return the comparison as a terminal shows it."""
        title = section("Loss of the validation rows, with intervals of 95%").split("\n")
        lines = [*self.shown.lines(), *title, *in_columns(self._loss_rows()), ""]
        return lines + textwrap.wrap(self.conclusion, COLUMNS)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON may hold it."""
        arms = [
            {
                "bits": arm.bits,
                "kind": facts["kind"],
                "runs": [run.name for run in arm.runs],
                "seeds": [run.config().train.seed for run in arm.runs],
                "rows": len(arm.tokens),
                "tokens": int(arm.tokens.sum()),
                "loss": arm.loss.as_dict() if arm.loss else None,
                "seed_means": arm.seed_means,
                "dequantised_from": arm.dequantised_from,
            }
            for arm, facts in zip(self.arms, self.shown.runs, strict=True)
        ]
        differences = [difference.as_dict() for difference in self.differences]
        told = {"notes": self.shown.notes, "arms": arms, "differences": differences, "conclusion": self.conclusion}
        return self.every.as_dict() | told

    def _loss_rows(self) -> list[list[str]]:
        arms, others = self.arms, self.differences
        rows = [
            ["", *(_name(facts) for facts in self.shown.runs)],
            ["Rows, tokens", *(f"{len(arm.tokens)}, {int(arm.tokens.sum()):,}" for arm in arms)],
            ["Nats a token", *(_interval(arm.loss, ".4f") for arm in arms)],
            ["Difference", NOTHING, *(_interval(each.loss, "+.4f") for each in others)],
        ]
        if len(arms[0].runs) > 1:
            seeds = ", ".join(str(run.config().train.seed) for run in arms[0].runs)
            rows.append(
                [f"Means of seeds {seeds}", *(" ".join(f"{mean:.4f}" for mean in arm.seed_means) for arm in arms)]
            )
            spread = [f"{statistics.stdev(arm.seed_means):.4f}" if arm.seed_means else NOTHING for arm in arms]
            rows.append(["Their standard deviation", *spread])
            by_seed = [_interval(over_seeds(arm, arms[0]), "+.4f") for arm in arms[1:]]
            rows.append(["Difference, over seeds", NOTHING, *by_seed])
        for kind, words in PHRASINGS.items():
            told = [each.recall.get(kind) for each in others]
            if any(told):
                rows.append([f"Facts recalled, {words}", NOTHING, *map(_recall_words, told)])
        return rows


def over_seeds(arm: Arm, first: Arm) -> Estimate | None:
    """Return how much higher an arm's loss is than the first one's, seed by seed; None without validation rows."""
    pairs = zip(arm.seed_means, first.seed_means, strict=True)
    return mean_of_few([ours - theirs for ours, theirs in pairs]) if arm.seed_means else None


def compare_arms(arms: Sequence[Arm]) -> ArmComparison:
    """Compare arms, each with the one that has the most bits.

    Args:
        arms: two or more, with the same seeds. The memory, speed and recall of an arm are those of its first run.

    Raises:
        RunError: one of the runs cannot be read.
    """
    arms = sorted(arms, key=lambda arm: -(arm.bits or 64))
    every = compare([run for arm in arms for run in arm.runs])
    shown = compare([arm.runs[0] for arm in arms])
    notes = [*every.notes, *_unequal(arms, every)]
    shown = dataclasses.replace(shown, notes=notes)
    differences = [
        _difference(arm, facts, arms[0], shown.runs[0]) for arm, facts in zip(arms[1:], shown.runs[1:], strict=True)
    ]
    return ArmComparison(arms, shown, every, differences)


# What differs ---------------------------------------------------------------------------------------------------


def _difference(arm: Arm, facts: dict[str, Any], first: Arm, wanted: dict[str, Any]) -> Difference:
    comparable = len(arm.tokens) and np.array_equal(arm.tokens, first.tokens)
    loss = mean_difference(arm.row_means, first.row_means, arm.tokens) if comparable else None
    weights, peak = _saved(facts, wanted, "loaded_bytes"), _saved(facts, wanted, "peak_memory_bytes")
    reason = _WAYS.get(arm.runs[0].environment().get("kernels", {}).get("linear", ""), "")
    why = f", since {reason}" if reason and (peak or 0) < -ALIKE * (wanted["peak_memory_bytes"] or 0) else ""
    memory = f"{_weight_words(weights, wanted)}{_peak_words(facts, wanted)}{why}"
    words = f"{_name(facts)} {memory}, and {_loss_words(arm, loss)}"
    return Difference(facts["run"], wanted["run"], loss, weights, peak, _recall(arm.runs[0], first.runs[0]), words, why)


def _saved(facts: dict[str, Any], wanted: dict[str, Any], name: str) -> int | None:
    return None if facts[name] is None or wanted[name] is None else wanted[name] - facts[name]


def _recall(run: Run, first: Run) -> dict[str, dict[str, Any]]:
    """Return how recall differs, for each phrasing; empty where they were not asked the same."""
    evaluations = [each.evaluation() for each in (run, first)]
    if not all(evaluations):
        return {}
    ours, theirs = ([q for q in each["questions"] if "tuned_right" in q] for each in evaluations)
    if [q["question"] for q in ours] != [q["question"] for q in theirs]:
        return {}
    found = {}
    for kind in PHRASINGS:
        right = [
            (a["tuned_right"], b["tuned_right"]) for a, b in zip(ours, theirs, strict=True) if a.get("phrasing") == kind
        ]
        if right:
            gained, lost = sum(a and not b for a, b in right), sum(b and not a for a, b in right)
            difference = share_difference(*zip(*right, strict=True))
            found[kind] = {
                "difference": difference, "gained": gained, "lost": lost, "chance": sign_test(gained, lost)
            }  # fmt: skip
    return found


# What makes the arms unequal ------------------------------------------------------------------------------------


def _unequal(arms: Sequence[Arm], every: Comparison) -> list[str]:
    """Return everything but bits and seeds in which the runs differ, and what the comparison does not say."""
    runs = [run for arm in arms for run in arm.runs]
    notes = [_copied(arms), _other_identity(arms, runs), _other_machine(runs)]
    steps = [facts["steps"] for facts in every.runs]
    if len(set(steps)) > 1:
        made = ", ".join(f"{facts['run']} {facts['steps']}" for facts in every.runs)
        notes.append(f"The runs made different numbers of steps ({made}): their losses are not comparable.")
    count = len(arms[0].tokens)
    if not count:
        notes.append("The runs keep no rows for validation, so nothing is known of what quantising costs in loss.")
    elif count < FEWEST:
        notes.append(f"{count} validation rows are too few to call a difference one; {FEWEST} are wanted at least.")
    elif len(arms[0].runs) == 1:
        notes.append(ONE_SEED)
    return [note for note in notes if note]


def _copied(arms: Sequence[Arm]) -> str:
    copied = [arm for arm in arms if arm.dequantised_from]
    if not copied:
        return ""
    stored = copied[0].dequantised_from
    plain = any(arm.bits is None for arm in copied)
    rounded = " and ".join(f"{arm.bits}" for arm in copied if arm.bits)
    parts = ["the unquantised arm is trained on a dequantised copy of the same weights"] if plain else []
    parts += [f"the arm of {rounded} bits on that copy rounded again"] if rounded else []
    return (
        f"The base is quantised in its files ({stored} bits), and what it was before is not here: {', '.join(parts)}. "
        "Memory and speed are those of such weights; what quantising the original has cost in loss is not seen."
    )


def _other_identity(arms: Sequence[Arm], runs: Sequence[Run]) -> str:
    """Return which settings or inputs differ that should not, apart from those that `compare` tells."""
    expected = {"quantize", "seed", "data", "tokeniser and template"}
    expected |= {"model"} if any(arm.dequantised_from for arm in arms) else set()
    identities = [run.environment()["identity"] for run in runs]
    names = {name for identity in identities for name in identity} - expected
    differ = [name for name in sorted(names) if any(each.get(name) != identities[0].get(name) for each in identities)]
    return f"The runs also differ in {', '.join(differ)}: their losses are not comparable." if differ else ""


def _other_machine(runs: Sequence[Run]) -> str:
    """Return that runs were trained on different devices, by different versions or in different ways."""

    def facts(run: Run) -> dict[str, str]:
        environment = run.environment()
        kernels = environment.get("kernels", {})
        versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
        return {
            "device": f"{environment.get('device')}",
            "BLAS": kernels.get("blas", ""),
            "streams": f"{kernels.get('streams', '')}",
            "weights": kernels.get("linear", ""),
            "versions": versions,
        }

    found = [facts(run) for run in runs]
    differ = [name for name in found[0] if any(each[name] != found[0][name] for each in found)]
    if not differ:
        return ""
    told = "; ".join(f"{name}: {' or '.join(dict.fromkeys(each[name] for each in found))}" for name in differ)
    return f"The runs did not compute in the same way ({told}): their speed and memory are not comparable."


# In words -------------------------------------------------------------------------------------------------------


def _name(facts: dict[str, Any]) -> str:
    name, _, rest = (facts["kind"] or facts["run"]).partition(", ")
    return f"{name} ({rest})" if rest else name


def _weight_words(saved: int | None, wanted: dict[str, Any]) -> str:
    if saved is None:
        return "has weights of a size that was not recorded"
    if saved < 0:
        return f"took {size(-saved)} more for weights"
    return f"saved {size(saved)} of weights ({saved / wanted['loaded_bytes']:.0%})"


def _peak_words(facts: dict[str, Any], wanted: dict[str, Any]) -> str:
    saved, before = _saved(facts, wanted, "peak_memory_bytes"), wanted["peak_memory_bytes"]
    if saved is None or not before:
        return ""
    if abs(saved) <= ALIKE * before:
        return f" and took the same at the peak of training ({size(facts['peak_memory_bytes'])})"
    if saved > 0:
        return f" and {size(saved)} at the peak of training ({saved / before:.0%})"
    peaks = f"{size(facts['peak_memory_bytes'])} against {size(before)}"
    return f", but cost {size(-saved)} of memory at the peak of training here ({peaks})"


def _loss_words(arm: Arm, loss: Estimate | None) -> str:
    if loss is None:
        return "nothing is known of its loss" if not len(arm.tokens) else "its loss is not comparable"
    if loss.count < FEWEST or loss.low is None:
        return f"{loss.count} validation rows are too few to tell a difference in loss ({loss.value:+.4f} nats a token)"
    if loss.is_clear and loss.value > 0:
        return f"cost {loss.value:.4f} nats a token (95%: {loss.low:.4f} to {loss.high:.4f})"
    between = f"({loss.value:+.4f} nats a token, 95%: {loss.low:+.4f} to {loss.high:+.4f})"
    return f"its loss was lower {between}" if loss.is_clear else f"no difference in loss was seen {between}"


def _interval(found: Estimate | None, form: str) -> str:
    if found is None:
        return NOTHING
    between = "" if found.low is None else f" ({found.low:{form}} to {found.high:{form}})"
    return f"{found.value:{form}}{between}"


def _recall_words(told: dict[str, Any] | None) -> str:
    if told is None:
        return NOTHING
    found = told["difference"]
    between = f"{100 * found.low:+.0f} to {100 * found.high:+.0f}"
    return f"{100 * found.value:+.0f} in 100 ({between}); sign test {told['chance']:.2f}"
