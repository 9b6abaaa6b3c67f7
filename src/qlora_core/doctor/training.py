"""The whole path of training on a tiny model of each shape: compute, learn, resume, answer, export.

Everything happens in a temporary directory, cache included: no run or lock of the user is touched.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import data
from ..bench.drawn import write_small
from ..config import BaseConfig, from_flat
from ..engine import device
from ..engine.device import mx, nn, tree_flatten
from ..engine.generate import answer
from ..engine.model import attach_adapters, load_adapters, load_base, read_tensors
from ..exports.export import export_run
from ..exports.formats import Target
from ..files.locks import is_held
from ..jobs.device_lock import device_name, lock_file
from ..machine.memory import MemoryMonitor
from ..models import base_models
from ..models.adapter_files import ADAPTER_FILE
from ..runs.kernel_choice import Kernels
from ..runs.plan import TrainingTracker
from ..runs.run import Run
from ..tokens.batching import make_batch
from ..tokens.dataset import make_datasets
from ..tokens.rows import TokenRow
from ..tokens.tokenizer import ChatTokenizer, open_tokenizer
from ..training import loop, steps
from ..training.session import Session, load_for_answers, open_session
from .checks import REPORT, Checks, Finding, NotTried
from .kernels import Checked, device_checks
from .machine import machine_findings

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 320, "bos_token_id": 257, "eos_token_id": 258,
    "max_position_embeddings": 512, "rope_theta": 10_000.0,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": SIZES | {"model_type": "mistral", "tie_word_embeddings": False},
    "qwen3": SIZES | {"model_type": "qwen3", "tie_word_embeddings": True},
    "gemma3": SIZES | {
        "model_type": "gemma3_text", "query_pre_attn_scalar": 64, "rope_local_base_freq": 1000.0, "sliding_window": 16,
        "sliding_window_pattern": 2, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""`config.json` of each; heads of 64, which every device has kernels for."""

TAUGHT = {"red?": "rosa", "blue?": "mar", "green?": "campo", "white?": "sal e sol"}
STEPS, CUT = 40, 17
SETTINGS = {
    "batch_size": len(TAUGHT), "epochs": STEPS, "warmup_steps": 2, "learning_rate": 1e-2, "eval_every": STEPS,
    "save_every": STEPS, "max_answer_tokens": 12, "samples": 0,
}  # fmt: skip
NEARLY = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 1e-1}
"""Largest relative error of a gradient against plain float32 arithmetic; of the loss, a tenth of it."""


def examine(checks: Checks, runs_dir: Path, *, shapes: Sequence[str] = tuple(SHAPES), ask_hub: bool = False) -> Checks:
    """Check the machine, its device's arithmetic, and the whole path of training; Ctrl+C ends it.

    Args:
        checks: collects the findings.
        runs_dir: directory of all runs, of which only the disk is looked at.
        shapes: names of `SHAPES`.
        ask_hub: whether to send the hub a request.
    """
    try:
        checks.make_all("machine", lambda: machine_findings(runs_dir, ask_hub=ask_hub))
        if is_held(lock_file()):
            busy = f"a run is being trained on this machine's {device_name()}; the rest would disturb it"
            checks.note("training", Finding("warning", f"not tried: {busy}", "run this again when it has ended"))
            return checks
        with _set_apart() as place:
            checks.hide(place, "TEMPORARY")
            trials = (check for shape in shapes for check in Trial(shape, place).checks())
            for name, look in itertools.chain(device_checks(), trials):
                checks.make(name, look)
    except KeyboardInterrupt:
        checks.interrupted = True
    return checks


@contextlib.contextmanager
def _set_apart() -> Iterator[Path]:
    """Make a temporary directory that also holds this process's cache."""
    usual = os.environ.get("QLORA_CACHE")
    with tempfile.TemporaryDirectory(prefix="qlora-doctor-") as place:
        os.environ["QLORA_CACHE"] = str(Path(place) / "cache")
        try:
            yield Path(place)
        finally:
            os.environ.pop("QLORA_CACHE") if usual is None else os.environ.update(QLORA_CACHE=usual)


class Trial:
    """The whole path of training, tried on one model.

    Args:
        shape: a name of `SHAPES`.
        place: an empty directory, or one with trials of other shapes.
    """

    def __init__(self, shape: str, place: Path) -> None:
        self.shape, self.place = shape, place / shape
        self._learnt: Run | None = None
        self._answers: list[str] = []

    def checks(self) -> Iterator[Checked]:
        """Yield the checks in order; each needs the ones before."""
        yield f"{self.shape}: loss and gradient", self.computes
        yield f"{self.shape}: learns", self.learns
        yield f"{self.shape}: cut, then resumed", self.resumes
        yield f"{self.shape}: answers", self.answers
        yield f"{self.shape}: export, adapter", lambda: self.exports("adapter")
        yield f"{self.shape}: export, fused", lambda: self.exports("fused")

    @property
    def _run(self) -> Run:
        if self._learnt is None:
            raise NotTried("it did not learn")
        return self._learnt

    def computes(self) -> Finding:
        """Load and quantise the model; compare loss and gradient with plain arithmetic in float32."""
        run = self._create("computed")
        warned: list[str] = []
        with TrainingTracker(run.path.parent).record(run) as writer:
            writer.listeners.append(_collecting(warned))
            session = open_session(writer, MemoryMonitor(counters=device.memory_counters))
            rows = list(session.train_rows)
            _draw_adapters(session.model)
            steps.prepare_to_train(session)
            packed, rounding = session.layout == "packed", session.kernels.rounding
            batch = make_batch(rows, packed=packed, rounding=rounding)
            loss, gradient = session.passes.loss_and_gradient(batch)
            mx.eval(loss, gradient)
            found = loss.item(), np.array(gradient)
            wanted = _plainly(session, rows)
        kernels, limit = session.kernels, NEARLY[session.kernels.dtype]
        off = abs(found[0] / wanted[0] - 1), _distance(found[1], wanted[1])
        value = f"off by {off[0]:.0e} and {off[1]:.0e} ({kernels.dtype}, {kernels.linear}, {session.layout})"
        if off[0] < limit / 10 and off[1] < limit:
            return _with(warned, value)
        allowed = f"{value}; {limit / 10:.0e} and {limit:.0e} allowed"
        return Finding("failed", allowed, f"do not train models of this shape here. {REPORT}")

    def learns(self) -> Finding:
        """Train the model without a break."""
        run = self._create("whole")
        started = time.perf_counter()
        warned: list[str] = []
        losses = self._train(run, _collecting(warned))
        took = time.perf_counter() - started
        value = f"{len(losses)} steps in {took:.1f} s, loss {losses[0]:.2f} to {losses[-1]:.2f}"
        if run.state != "completed" or not losses[-1] < losses[0] / 2:
            return Finding("failed", f"{value} ({run.state}): too little learnt", REPORT)
        self._learnt = run
        return _with(warned, value)

    def resumes(self) -> Finding:
        """Train again, paused in the middle, and compare losses, adapters and the optimizer's state."""
        whole, cut = self._run, self._create("cut")

        def pause(event: dict[str, Any]) -> None:
            if (event["type"], event.get("step")) == ("step", CUT):
                cut.request("pause")

        self._train(cut, pause)
        if cut.state != "paused":
            return Finding("failed", f"it was to pause after step {CUT} and is {cut.state}", REPORT)
        self._train(cut)
        found, wanted = _losses(cut), _losses(whole)
        if found == wanted and _same_state(cut, whole):
            return Finding("ok", f"equal to the bit to the run without a break, {len(found)} steps")
        parted = next((i for i, pair in enumerate(zip(found, wanted, strict=False), 1) if pair[0] != pair[1]), STEPS)
        soon = zip(found[CUT : CUT + 3], wanted[CUT : CUT + 3], strict=True)
        off = max(abs(one / other - 1) for one, other in soon)
        value = f"paused after step {CUT}; losses differ from step {parted} on, by up to {off:.0e} soon after the pause"
        if device.ON_CPU or not off < NEARLY["bfloat16"]:
            return Finding("failed", value, f"a run that was paused does not go on as it would have. {REPORT}")
        return Finding("warning", value, "this device does not compute the same each time; such runs are as good")

    def answers(self) -> Finding:
        """Ask the model what it was taught."""
        model, tokenizer = load_for_answers(self._run)
        self._answers = answer(model, tokenizer, list(TAUGHT), max_tokens=12)
        right = sum(found == wanted for found, wanted in zip(self._answers, TAUGHT.values(), strict=True))
        value = f"{right} of {len(TAUGHT)} as taught: {', '.join(self._answers)}"
        return Finding("ok", value) if 2 * right > len(TAUGHT) else Finding("failed", value, REPORT)

    def exports(self, to: Target) -> Finding:
        """Export the model, read the export and ask it again."""
        if not self._answers:
            raise NotTried("it did not answer")
        out = self.place / "export" / to
        made = export_run(self._run, out, to="fused-float16" if to == "fused" else to, verified=False)
        if to == "adapter":
            model, tokenizer = load_for_answers(self._run)
            _draw_adapters(model)  # so that its answers come from the file
            load_adapters(model, out / ADAPTER_FILE)
        else:
            spec = base_models.describe(out, BaseConfig(model=str(out), quantize="none"))
            model = load_base(spec, device.kernels_to_answer(spec.dtype, spec.dense_bytes, 0, None))
            tokenizer = ChatTokenizer(out)
        answers = answer(model, tokenizer, list(TAUGHT), max_tokens=12)
        same = sum(one == other for one, other in zip(answers, self._answers, strict=True))
        value = f"{len(made['files'])} files, read back; {same} of {len(answers)} answers the same"
        enough = same == len(answers) if to == "adapter" else 2 * same > len(answers)  # fused weights are rounded
        return Finding("ok", value) if enough else Finding("failed", f"{value}: {', '.join(answers)}", REPORT)

    def _create(self, name: str) -> Run:
        """Create a run of this model as `qlora train` does."""
        model, sources = write_small(SHAPES[self.shape], self.place / "model"), _write_rows(self.place / "rows")
        runs = self.place / "runs"
        config = from_flat(
            {"model": str(model), "data": [str(sources)], "run": name, "runs_dir": str(runs), **SETTINGS}
        )
        spec, tracker = base_models.find_base(config.base), TrainingTracker(runs)
        tokenizer = open_tokenizer(config.base)
        prepared = data.prepare(config.data, tokenizer)
        datasets = make_datasets(prepared.train, prepared.validation, tokenizer, config.data.max_seq_length)
        return tracker.create(tracker.plan(config, spec, tokenizer, prepared, *datasets))

    @staticmethod
    def _train(run: Run, *listeners: Callable[[dict[str, Any]], None]) -> list[float]:
        """Train or resume, passing every event to the listeners, and return the losses of all steps so far."""
        with TrainingTracker(run.path.parent).record(run) as writer:
            writer.listeners += listeners
            outcome = loop.train(writer)
        if outcome.by_ctrl_c or (outcome.state == "paused" and run.control() == "run"):  # by another signal
            raise KeyboardInterrupt
        return _losses(run)


def _collecting(warned: list[str]) -> Callable[[dict[str, Any]], None]:
    """Return a listener that collects a run's warnings."""
    return lambda event: warned.append(event["message"]) if event["type"] == "warning" else None


def _with(warned: list[str], value: str) -> Finding:
    """Return a success, or a warning with what the run warned of."""
    return Finding("warning", f"{value}; {'; '.join(warned)}") if warned else Finding("ok", value)


def _write_rows(directory: Path) -> Path:
    """Write the lesson twice, to train and to validate on, like a user's own pair of files."""
    directory.mkdir(exist_ok=True)
    for name, mark in (("train.jsonl", ""), ("valid.jsonl", "?")):
        rows = [
            {"messages": [{"role": "user", "content": asked + mark}, {"role": "assistant", "content": told}]}
            for asked, told in TAUGHT.items()
        ]
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return directory


def _draw_adapters(model: nn.Module) -> None:
    """Give all adapters random values: as attached, B is 0 and A has no gradient."""
    rng = np.random.default_rng(1)
    named = sorted(tree_flatten(model.trainable_parameters()))
    drawn = [(name, mx.array((0.05 * rng.standard_normal(value.shape)).astype(np.float32))) for name, value in named]
    model.load_weights(drawn, strict=False)
    mx.eval(model.parameters())


def _plainly(session: Session, rows: Sequence[TokenRow]) -> tuple[float, np.ndarray]:
    """Return loss and gradient of a session's model, row by row in float32 with dequantised weights, nothing shared."""
    kernels = Kernels(session.kernels.device, "float32", "dequantised", sharing=False, trunk=False, prefix=False)
    model = load_base(session.spec, kernels)
    attach_adapters(model, session.spec, session.config.lora, session.config.train.seed)
    _draw_adapters(model)

    def loss(model: nn.Module) -> mx.array:
        total = mx.array(0.0)
        for row in rows:
            logits = model(mx.array(row.ids)[None])[0].astype(mx.float32)
            log_p = logits - mx.logsumexp(logits, -1, keepdims=True)
            places = np.flatnonzero(row.trained)
            total = total - log_p[mx.array(places - 1), mx.array(row.ids[places])].sum()
        return total

    value, gradients = nn.value_and_grad(model, loss)(model)
    joined = session.adapters.join(gradients)
    mx.eval(value, joined)
    return value.item(), np.array(joined)


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    if not np.isfinite(found).all():
        return math.inf
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))


def _losses(run: Run) -> list[float]:
    return [event["train_loss"] for event in run.metrics() if event["type"] == "step"]


def _same_state(one: Run, other: Run) -> bool:
    """Return whether adapters and optimizer state of two runs' last checkpoints are equal to the bit."""
    for name in ("adapters.safetensors", "optimizer.safetensors"):
        found, wanted = (read_tensors(run.checkpoint_directory / f"{STEPS:06d}" / name) for run in (one, other))
        if found.keys() != wanted.keys() or any(_bytes(found[key]) != _bytes(wanted[key]) for key in wanted):
            return False
    return True


def _bytes(value: mx.array) -> bytes:
    return np.array(value).tobytes()
