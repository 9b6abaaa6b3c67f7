"""Whether a run fits, in words for a terminal."""

from __future__ import annotations

from ..config import RunConfig
from ..runs.fit import Fit
from ..runs.memory_estimate import PROGRAM_BYTES, advice
from ..translations import Sentence
from . import plain_text
from .plain_text import size
from .time_words import parts_in_words, time_in_words


def fit_lines(found: Fit, config: RunConfig) -> str:
    """Return what a run needs by part, and the verdict."""
    memory = found.memory
    needs = {
        "Base": size(memory.weights),
        "Dequantised": f"{size(memory.dense)} beside it, since there is room" if memory.dense else "",
        "Adapters": f"{size(memory.adapters)} with gradients and the optimizer's moments",
        "Activations": f"{size(memory.activations)}, and attention scores {size(memory.attention)}",
        "Logits": size(memory.logits),
        "Program": size(PROGRAM_BYTES),
        "Peak": f"about {size(memory.total)}",
        "Beside it": f"{size(found.beside)} for another process, if the run is long and there is room"
        if found.beside
        else "",
        "Free": f"{size(found.free)} of {size(found.machine)}",
    }
    further = {"Disk": f"about {size(found.disk)}, {size(found.disk_free)} free", "Time": _time(found)}
    verdict = _verdict(found, config)
    room = "" if found.disk_suffices else "\nThe disk is too full: free some, or keep fewer with --keep-checkpoints."
    blocks = plain_text.block("Memory", needs), plain_text.block("Disk and time", further)
    return "\n".join([*blocks, f"{verdict}{room}"])


def _time(found: Fit) -> str:
    if not found.time.known:
        return "not known before this base was trained here; a run of --max-steps 5 measures it"
    return f"{time_in_words(found.time)}: {parts_in_words(found.time)} (as {found.time.measured_by} took)"


def _verdict(found: Fit, config: RunConfig) -> Sentence:
    values = {"needed": size(found.needed), "free": size(found.free), "machine": size(found.machine)}
    if found.verdict == "fits":
        return Sentence("✓ It fits: {needed} wanted, {free} free.", **values)
    if found.verdict == "tight":
        return Sentence("✓ It only just fits: {needed} wanted, {free} free. Start nothing large beside it.", **values)
    values["advice"] = advice(config)
    if found.verdict == "close programs":
        return Sentence("✗ It does not fit now: {needed} wanted, {free} of {machine} free. {advice}", **values)
    return Sentence("✗ It does not fit this machine: {needed} wanted, {machine} in all. {advice}", **values)
