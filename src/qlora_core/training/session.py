"""A run loaded into memory: base, adapters, optimizer, rows, and how they compute.

Made from the run directory alone; refuses what is not what it was when the run began. Knows nothing of steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..activity import doing
from ..config import RunConfig, from_flat
from ..engine import device
from ..engine.compiled_loss import Passes
from ..engine.device import mx, nn, optim
from ..engine.frozen_layers import Trunk
from ..engine.model import (
    AdapterVector,
    Layout,
    attach_adapters,
    can_share_prefix,
    load_adapters,
    load_base,
)
from ..errors import RunError
from ..machine.memory import GB, MemoryMonitor, available_bytes
from ..machine.memory_guard import MemoryGuard, NormWatch
from ..models.base_models import ModelSpec
from ..runs import memory_estimate
from ..runs.checkpoints import checkpoint_to_resume
from ..runs.kernel_choice import ARITHMETIC, Kernels
from ..runs.run import Run, describe_rows
from ..runs.throughput import Pace
from ..runs.time_spent import TimeSpent
from ..runs.writer import RunWriter, record
from ..tokens.batching import Order
from ..tokens.dataset import TokenDataset, make_dataset
from ..tokens.rows import TokenRow
from ..tokens.shared_prefix import NO_PREFIX, common_prefix
from ..tokens.tokenizer import ChatTokenizer
from .adapted_model import load_adapted, streams_of_this_thread
from .checkpoint import Progress, load_checkpoint
from .share_workers import ShareWorkers


@dataclasses.dataclass
class Watch:
    """What the trainer keeps in mind from step to step, and no result depends on.

    Attributes:
        memory: decides what to do before it runs out.
        norms: of the gradients of late.
        pace: of the last steps.
        saved_at: when the last checkpoint was written, or training began; seconds of a clock that is never set.
        save_next: whether the memory guard wants a checkpoint.
        stepped: whether a step was made, after which kernels are compiled.
        ask_base: whether the base has not answered the sample prompts yet.
    """

    memory: MemoryGuard
    norms: NormWatch = dataclasses.field(default_factory=NormWatch)
    pace: Pace = dataclasses.field(default_factory=Pace)
    saved_at: float = 0.0
    save_next: bool = False
    stepped: bool = False
    ask_base: bool = False


@dataclasses.dataclass
class Session:
    """A run loaded for training.

    Attributes:
        run: its directory.
        config: all settings.
        spec: the base.
        tokenizer: of the base.
        model: with adapters attached.
        adapters: the model's, as the optimizer sees them.
        optimizer: initialised, or restored.
        kernels: how it computes.
        layout: how batches go through it.
        train_rows: rows to train.
        val_rows: rows to validate on.
        progress: where it is.
        monitor: memory.
        watch: of the steps.
        spent: where its time goes.
        micro_batch: rows that are computed at once: `batch_size`, or fewer since memory ran out.
        estimate: of its memory.
        trunk: the layers that are out of memory, where rows have their hidden states from a file.
        prefix: token ids of the beginning that rows computed together share; none if they share nothing.
        workers: processes that compute shares of a micro-batch beside this one, where they are worth it.
    """

    run: Run
    config: RunConfig
    spec: ModelSpec
    tokenizer: ChatTokenizer
    model: nn.Module
    adapters: AdapterVector
    optimizer: optim.Optimizer
    kernels: Kernels
    layout: Layout
    train_rows: Sequence[TokenRow]
    val_rows: Sequence[TokenRow]
    progress: Progress
    monitor: MemoryMonitor
    watch: Watch
    spent: TimeSpent
    micro_batch: int
    estimate: memory_estimate.MemoryEstimate
    trunk: Trunk | None = None
    prefix: np.ndarray = dataclasses.field(default_factory=lambda: NO_PREFIX)
    workers: ShareWorkers | None = None

    def share_prefix(self) -> None:
        """Have rows share the beginning that saves most, where the model allows it.

        With dropout each row drops other numbers, also of what it begins with.
        """
        kernels, lora = self.kernels, self.config.lora
        self.prefix = NO_PREFIX
        if kernels.prefix and self.layout == "packed" and not lora.dropout:
            found = common_prefix(self.train_rows)
            if len(found) and can_share_prefix(self.model, self.spec.config["vocab_size"], kernels.rounding):
                self.prefix = found

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block the model has all of its layers."""
        return self.trunk.whole() if self.trunk else contextlib.nullcontext()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer updates in one pass over the rows."""
        return self.config.train.steps_per_epoch(len(self.train_rows))

    @property
    def total_steps(self) -> int:
        """Optimizer updates of the whole run."""
        return self.config.train.total_steps(len(self.train_rows))

    @functools.cached_property
    def streams(self) -> list[mx.Stream]:
        """Where the parts of a micro-batch are computed."""
        return streams_of_this_thread(self.kernels.streams)

    @functools.cached_property
    def passes(self) -> Passes:
        """Of batches through the model."""
        return Passes(self.model, self.adapters, self.layout, compiled=self.kernels.compiled)

    @functools.cached_property
    def rate_ratio(self) -> mx.array | None:
        """Learning rate of each adapter parameter over the step's (LoRA+: that of B is higher); None: all the same."""
        ratio = self.config.train.lora_plus
        return self.adapters.spread(lambda name: ratio if name.endswith("lora_b") else 1.0)

    @property
    def order(self) -> Order:
        """How rows come together in batches."""
        if self.layout != "packed":
            return "alike"
        return "level" if self.kernels.rounding.bins else "drawn"

    @functools.cached_property
    def tokens_at_once(self) -> int:
        """Of packed rows: as many as the `micro_batch` longest have, which fit."""
        return sum(sorted(self.lengths)[-self.micro_batch :])

    @property
    def tokens_a_stream(self) -> int:
        """Of those, as many as one stream computes."""
        return self.kernels.at_once or self.tokens_at_once

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row to train."""
        return self.train_rows.lengths.tolist()


def open_session(writer: RunWriter, monitor: MemoryMonitor, began: float | None = None) -> Session:
    """Load everything a run needs, from its newest usable checkpoint where there is one.

    Args:
        writer: has the run open.
        monitor: looks at the memory.
        began: when this process began to do something for the run, by `time.monotonic`; by default now.

    Raises:
        QLoraError: the base, the data or a checkpoint is not what it was, or there is too little memory.
    """
    run, began = writer.run, time.monotonic() if began is None else began
    config, environment = run.config(), run.environment()
    spec = run.base()
    run.refuse_change("model", spec.fingerprint)
    with doing("checking"):
        run.refuse_changed_settings()
        run.refuse_damage()
        checkpoint = _checkpoint(writer)
    tokenizer = run.tokenizer()
    length = config.data.max_seq_length
    train, validation = (make_dataset(rows, tokenizer, length) for rows in (run.train_rows(), run.validation_rows()))
    environment = _with_rows_of_today(writer, environment, train, validation, begun=checkpoint is not None)
    if train.conversations:
        tokenizer.follow(train.thinks)
    rows, val_rows = train.rows, validation.rows
    kernels = _kernels(writer, environment, spec, monitor)
    at_once = from_flat({"batch_size": run.micro_batch}, config)
    estimate = memory_estimate.estimate_memory(
        spec, at_once, rows, keeps_dense=kernels.linear == "kept", on_gpu=kernels.device != "cpu"
    )
    memory_estimate.check_before_loading(estimate, monitor.sample().available, config)
    model, layout = load_adapted(spec, config, kernels, lambda message: writer.log("warning", message=message))
    if run.initial_adapters.is_file():
        load_adapters(model, run.initial_adapters)
    optimizer = make_optimizer(config)
    adapters = AdapterVector(model)
    optimizer.init({"adapters": adapters.join(model.trainable_parameters())})
    if not device.ON_CPU:
        device.clear_cache()  # what loading left there counts as taken
    memory_estimate.check_after_loading(estimate, monitor.sample().available, spec.parameters, config)
    progress = load_checkpoint(checkpoint, model, optimizer) if checkpoint else Progress()
    watch = Watch(MemoryGuard(config.pace.pause_below_gb * GB))
    spent = TimeSpent(progress.extra.setdefault("seconds", {}), began)
    session = Session(
        run, config, spec, tokenizer, model, adapters, optimizer, kernels, layout, rows, val_rows, progress, monitor,
        watch, spent, at_once.train.batch_size, estimate,
    )  # fmt: skip
    with doing("trying"):
        session.share_prefix()
    return session


def _kernels(writer: RunWriter, environment: dict[str, Any], spec: ModelSpec, monitor: MemoryMonitor) -> Kernels:
    """The run's recorded kernel choice, so that it goes on to the bit; at first, and on another device, a new one."""
    chosen = device.choose_kernels(spec.dtype, 4 * spec.parameters, monitor.sample().available)
    recorded = environment.get("kernels")
    if recorded:
        kernels = Kernels.from_dict(recorded)
        if (kernels.device, kernels.blas) == (chosen.device, chosen.blas):
            return _of_today(writer, environment, kernels)
        message = f"the run computed on {recorded['device']} {recorded['blas']}, now on {chosen.device} {chosen.blas}: "
        writer.log("warning", message=message + "it goes on, but not equal to the bit")
    if not device.BLAS.fast:
        writer.log("warning", message=f"no optimised BLAS: {device.BLAS.remedy}")
    packages = ("mlx", "mlx-lm", "numpy", "tokenizers", "qlora-notebook")
    record(
        writer.run,
        kernels=dataclasses.asdict(chosen),
        device=device.describe_device(),
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: _version(name) for name in packages},
    )
    return chosen


def _with_rows_of_today(
    writer: RunWriter, environment: dict[str, Any], train: TokenDataset, validation: TokenDataset, *, begun: bool
) -> dict[str, Any]:
    """The environment with the rows as this version makes tokens of them; it is told where that may be new.

    Raises:
        RunError: training has begun with other tokens.
    """
    recorded, today = environment.get("rows"), describe_rows(train, validation)
    if recorded == today:
        return environment
    name = writer.run.name
    if begun and recorded and recorded["tokens"] != today["tokens"]:
        raise RunError(
            f"{name}: this version makes other tokens of its rows than the one it began with, so it cannot go on where "
            "it was. Use --fresh, or go on with that version."
        )
    if begun and not recorded:
        counts = [event.get("train_rows") for event in writer.run.metrics() if event["type"] == "start"]
        if counts and counts[-1] != len(train):
            raise RunError(
                f"{name}: was begun by an older version, which trained {counts[-1]} rows where this one trains "
                f"{len(train)}: the same steps would be other rows. Use --fresh, or go on with that version."
            )
        message = (
            "the run was begun by an older version, which made other tokens of some conversations (reasoning, system "
            "texts, ends of answers): it goes on, but perhaps not equal to the bit"
        )
        writer.log("warning", message=message)
    return record(writer.run, rows=today)


def _of_today(writer: RunWriter, environment: dict[str, Any], kernels: Kernels) -> Kernels:
    """Recorded kernels with the arithmetic of this version of the package; what changes is recorded and told, once."""
    if kernels.arithmetic == ARITHMETIC:
        return kernels
    other = "an older" if kernels.arithmetic < ARITHMETIC else "a newer"
    message = (
        f"the run was computed by {other} version (arithmetic {kernels.arithmetic}, now {ARITHMETIC}): it goes "
        "on, but not equal to the bit"
    )
    writer.log("warning", message=message)
    kernels = dataclasses.replace(kernels, arithmetic=ARITHMETIC)
    record(writer.run, kernels=dataclasses.asdict(kernels))
    return kernels


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def make_optimizer(config: RunConfig) -> optim.Optimizer:
    """Adam (arXiv:1412.6980) or AdamW (arXiv:1711.05101), with bias correction; the rate is set at each step."""
    if config.train.optimizer == "adam":
        return optim.Adam(config.train.learning_rate, bias_correction=True)
    return optim.AdamW(config.train.learning_rate, weight_decay=config.train.weight_decay, bias_correction=True)


def _checkpoint(writer: RunWriter) -> Path | None:
    """Where the run goes on from, telling what is damaged."""
    path, problems = checkpoint_to_resume(writer.run)
    for problem in problems:
        writer.log("warning", message=problem)
    return path


def load_for_answers(run: Run, *, base: bool = False) -> tuple[nn.Module, ChatTokenizer]:
    """A run's base with its best adapters, or without any, ready to generate.

    Raises:
        QLoraError: the base or the adapters are not there, or not what they were.
    """
    config = run.config()
    spec = run.base()
    run.refuse_change("model", spec.fingerprint)
    tokenizer = run.tokenizer()
    recorded = run.environment().get("kernels")
    model = load_base(spec, device.kernels_to_answer(spec.dtype, 4 * spec.parameters, available_bytes(), recorded))
    if not base:
        attach_adapters(model, spec, config.lora, config.train.seed)
        load_adapters(model, run.adapters / "adapters.safetensors")
    model.eval()
    return model, tokenizer
