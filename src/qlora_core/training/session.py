"""A run loaded into memory: base, adapters, optimizer, rows, and how they are computed.

It is made from the run directory alone, and refuses anything that changed since the run began; what may change is
recorded there. Takes no step.
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
from ..machine.processors import ProcessorMeter
from ..models.adapter_files import ADAPTER_FILE
from ..models.base_models import ModelSpec
from ..runs import memory_estimate
from ..runs.checkpoints import checkpoint_to_resume
from ..runs.hosts import devices_of
from ..runs.kernel_choice import ARITHMETIC, Kernels
from ..runs.run import Run, describe_rows
from ..runs.throughput import Throughput
from ..runs.time_spent import TimeSpent
from ..runs.writer import RunWriter, record
from ..tokens.dataset import TokenDataset
from ..tokens.rows import TokenRow, TokenRows
from ..tokens.shared_prefix import NO_PREFIX, common_prefix
from ..tokens.tokenizer import ChatTokenizer
from ..translations import Sentence
from .adapted_model import load_adapted, streams_of_this_thread
from .batcher import Batcher
from .checkpoint import Progress, load_checkpoint
from .followers import Followers
from .objective import SUPERVISED, Objective
from .share_workers import ShareWorkers


@dataclasses.dataclass
class LoopState:
    """The memory of the training loop from step to step: no weight depends on it, and nothing of it is saved.

    Attributes:
        memory_guard: decides what to do before memory runs out.
        norms: recent gradient norms.
        throughput: speed over recent steps.
        processors: how busy they were since they were last asked about.
        saved_at: when the last checkpoint was written, or training began, in seconds of a monotonic clock.
        save_next: whether the memory guard asked for a checkpoint.
        stepped: whether a step was done, after which kernels are compiled.
        ask_base: whether the base still has to answer the sample prompts.
    """

    memory_guard: MemoryGuard
    norms: NormWatch = dataclasses.field(default_factory=NormWatch)
    throughput: Throughput = dataclasses.field(default_factory=Throughput)
    processors: ProcessorMeter = dataclasses.field(default_factory=ProcessorMeter)
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
        spec: description of the base.
        tokenizer: of the base.
        model: with adapters attached.
        adapters: the model's adapters as one vector, as the optimizer sees them.
        optimizer: new, or restored from a checkpoint.
        batcher: which rows are computed together, how they are laid out, and on which kernels.
        objective: which loss is computed, over which tokens of the rows.
        train_rows: rows to train.
        val_rows: rows to validate on.
        progress: counters of the run.
        monitor: measures memory.
        loop_state: what is remembered from step to step.
        spent: how long each part of the run took.
        estimate: predicted peak memory.
        trunk: the frozen lower layers, if they are out of memory and rows have hidden states from a file.
        workers: processes that compute shares of a micro-batch beside this one, if worthwhile.
        processes_beside: how many of them were started, for the prediction of memory.
        followers: processes that compute on the run's other devices, if it has several.
    """

    run: Run
    config: RunConfig
    spec: ModelSpec
    tokenizer: ChatTokenizer
    model: nn.Module
    adapters: AdapterVector
    optimizer: optim.Optimizer
    batcher: Batcher
    objective: Objective
    train_rows: Sequence[TokenRow]
    val_rows: Sequence[TokenRow]
    progress: Progress
    monitor: MemoryMonitor
    loop_state: LoopState
    spent: TimeSpent
    estimate: memory_estimate.MemoryEstimate
    trunk: Trunk | None = None
    workers: ShareWorkers | None = None
    processes_beside: int = 0
    followers: Followers | None = None

    @property
    def kernels(self) -> Kernels:
        """Return how it computes."""
        return self.batcher.kernels

    @property
    def layout(self) -> Layout:
        """Return how batches are laid out."""
        return self.batcher.layout

    def share_prefix(self) -> None:
        """Let rows share the prefix that saves most, if the model allows it.

        They cannot with dropout: each row drops different numbers, in the prefix too.
        """
        kernels, lora = self.kernels, self.config.lora
        self.batcher.prefix = NO_PREFIX
        if kernels.prefix and self.layout == "packed" and not lora.dropout:
            prefix = common_prefix(self.train_rows)
            if len(prefix) and can_share_prefix(self.model, self.spec.config["vocab_size"], kernels.rounding):
                self.batcher.prefix = prefix

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model has all of its layers."""
        return self.trunk.whole() if self.trunk else contextlib.nullcontext()

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer updates in one pass over the rows."""
        return self.config.train.steps_per_epoch(len(self.train_rows))

    @property
    def total_steps(self) -> int:
        """Return the optimizer updates of the whole run."""
        return self.config.train.total_steps(len(self.train_rows))

    @functools.cached_property
    def streams(self) -> list[mx.Stream]:
        """Return the streams that compute the shares of a micro-batch."""
        return streams_of_this_thread(self.kernels.streams)

    @functools.cached_property
    def passes(self) -> Passes:
        """Return the loss and gradient functions for this model, which are compiled where that is faster."""
        return self.objective.passes(self.model, self.adapters, self.layout, self.kernels)

    @functools.cached_property
    def rate_ratio(self) -> mx.array | None:
        """Return each parameter's learning rate relative to the step's (LoRA+: higher for B); None: all the same."""
        ratio = self.config.train.lora_plus
        return self.adapters.spread(lambda name: ratio if name.endswith("lora_b") else 1.0)


def open_session(writer: RunWriter, monitor: MemoryMonitor, began: float | None = None) -> Session:
    """Load everything a run needs, from its newest usable checkpoint if there is one.

    Args:
        writer: has the run open.
        monitor: measures memory.
        began: when this process began to work on the run, by `time.monotonic`; by default now.

    Raises:
        QLoraError: the base, the data or a checkpoint is not what it was, or there is too little memory.
    """
    began = time.monotonic() if began is None else began
    opened = _read_run(writer)
    run, config, spec = writer.run, opened.config, opened.spec
    _, here = devices_of(config.pace)
    kernels = share_of_kernels(_kernels(writer, opened.environment, spec, monitor), here)
    micro_batch = run.micro_batch
    estimate = _estimate_memory(opened, micro_batch, kernels)
    free = monitor.sample().available
    # on a CPU all devices of this machine share the memory
    memory_estimate.check_before_loading(estimate, free // here if kernels.device == "cpu" else free, config)
    model, layout = _load_model(writer, opened, kernels)
    adapters, optimizer = AdapterVector(model), make_optimizer(config)
    optimizer.init({"adapters": adapters.join(model.trainable_parameters())})
    if not device.ON_CPU:
        device.clear_cache()  # memory that loading left in the cache counts as taken
    memory_estimate.check_after_loading(estimate, monitor.sample().available, spec.parameters, config)
    progress = load_checkpoint(opened.checkpoint, model, optimizer) if opened.checkpoint else Progress()
    session = Session(
        run=run,
        config=config,
        spec=spec,
        tokenizer=opened.tokenizer,
        model=model,
        adapters=adapters,
        optimizer=optimizer,
        batcher=Batcher(opened.train_rows.lengths.tolist(), config.train, kernels, layout, micro_batch),
        objective=opened.objective,
        train_rows=opened.train_rows,
        val_rows=opened.val_rows,
        progress=progress,
        monitor=monitor,
        loop_state=LoopState(MemoryGuard(config.pace.pause_below_gb * GB)),
        spent=TimeSpent(progress.extra.setdefault("seconds", {}), began),
        estimate=estimate,
    )
    with doing("trying"):
        session.share_prefix()
    return session


# Reading the run directory --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _OpenedRun:
    """A run as it stands in its directory, checked; nothing of it is on the device yet.

    Attributes:
        config: all settings.
        environment: what was recorded, before this process recorded anything.
        spec: description of the base.
        tokenizer: of the base; it asks for answers as the training rows have them.
        objective: which loss is computed, over which tokens of the rows.
        train_rows: rows to train.
        val_rows: rows to validate on.
        checkpoint: directory of the one to go on from; None: the run begins.
    """

    config: RunConfig
    environment: dict[str, Any]
    spec: ModelSpec
    tokenizer: ChatTokenizer
    objective: Objective
    train_rows: TokenRows
    val_rows: TokenRows
    checkpoint: Path | None


def _read_run(writer: RunWriter) -> _OpenedRun:
    """Read a run and encode its rows; refuse what changed, and warn of what may have.

    Raises:
        QLoraError: the base, the settings, the data or all checkpoints are not what they were.
    """
    run, config, environment = writer.run, writer.run.config(), writer.run.environment()
    spec = run.base()
    run.refuse_change("model", spec.fingerprint)
    with doing("checking"):
        run.refuse_changed_settings()
        run.refuse_damage()
        checkpoint = _checkpoint(writer)
    tokenizer = run.tokenizer()
    length = config.data.max_seq_length
    train, validation = SUPERVISED.encode(run.train_rows(), run.validation_rows(), tokenizer, length)
    _record_rows(writer, environment, train, validation, begun=checkpoint is not None)
    return _OpenedRun(
        config=config,
        environment=environment,
        spec=spec,
        tokenizer=tokenizer,
        objective=SUPERVISED,
        train_rows=train.rows,
        val_rows=validation.rows,
        checkpoint=checkpoint,
    )


def _checkpoint(writer: RunWriter) -> Path | None:
    """Return the checkpoint to resume from, and warn about damaged ones."""
    path, problems = checkpoint_to_resume(writer.run)
    for problem in problems:
        writer.log("warning", message=problem)
    return path


def _record_rows(
    writer: RunWriter, environment: dict[str, Any], train: TokenDataset, validation: TokenDataset, *, begun: bool
) -> None:
    """Record the digest of the rows as this version encodes them; warn if training may have begun with other tokens.

    Raises:
        RunError: training has begun with other tokens.
    """
    recorded, today = environment.get("rows"), describe_rows(train, validation)
    if recorded == today:
        return
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
        message = Sentence(
            "the run was begun by an older version, which made other tokens of some conversations (reasoning, system "
            "texts, ends of answers): it goes on, but perhaps not equal to the bit"
        )
        writer.log("warning", kind="version", message=message)
    record(writer.run, rows=today)


# Loading it onto the device -------------------------------------------------------------------------------------


def _kernels(writer: RunWriter, environment: dict[str, Any], spec: ModelSpec, monitor: MemoryMonitor) -> Kernels:
    """Return the run's recorded kernels, so results stay equal to the bit; at first, or on a new device, new ones."""
    chosen = device.choose_kernels(spec.dtype, spec.dense_bytes, monitor.sample().available)
    recorded = environment.get("kernels")
    if recorded:
        kernels = Kernels.from_dict(recorded)
        if (kernels.device, kernels.blas) == (chosen.device, chosen.blas):
            return _with_own_arithmetic(writer, kernels)
        message = Sentence(
            "the run computed on {before}, now on {now}: it goes on, but not equal to the bit",
            before=f"{recorded['device']} {recorded['blas']}", now=f"{chosen.device} {chosen.blas}",
        )  # fmt: skip
        writer.log("warning", kind="machine", message=message)
    if not device.BLAS.fast:
        message = Sentence("no optimised BLAS: {remedy}", remedy=device.BLAS.remedy)
        writer.log("warning", kind="blas", message=message)
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


def share_of_kernels(kernels: Kernels, devices: int) -> Kernels:
    """Return how one of several devices computes; on a CPU each has a share of the cores."""
    return dataclasses.replace(kernels, streams=max(1, kernels.streams // devices))


def _with_own_arithmetic(writer: RunWriter, kernels: Kernels) -> Kernels:
    """Return recorded kernels with this version's arithmetic; record a change and warn about it once."""
    if kernels.arithmetic == ARITHMETIC:
        return kernels
    older = kernels.arithmetic < ARITHMETIC
    message = Sentence(
        "the run was computed by {which} version (arithmetic {before}, now {now}): it goes on, but not equal to the "
        "bit",
        which=Sentence("an older") if older else Sentence("a newer"), before=kernels.arithmetic, now=ARITHMETIC,
    )  # fmt: skip
    writer.log("warning", kind="version", message=message)
    kernels = dataclasses.replace(kernels, arithmetic=ARITHMETIC)
    record(writer.run, kernels=dataclasses.asdict(kernels))
    return kernels


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _estimate_memory(opened: _OpenedRun, micro_batch: int, kernels: Kernels) -> memory_estimate.MemoryEstimate:
    """Predict the peak memory of training so many rows at once with these kernels."""
    return memory_estimate.estimate_memory(
        opened.spec,
        from_flat({"batch_size": micro_batch}, opened.config),
        opened.train_rows,
        keeps_dense=kernels.linear == "kept",
        on_gpu=kernels.device != "cpu",
    )


def _load_model(writer: RunWriter, opened: _OpenedRun, kernels: Kernels) -> tuple[nn.Module, Layout]:
    """Load the base with adapters as the run begins with them, and choose how batches are laid out for it."""
    model, layout = load_adapted(
        opened.spec, opened.config, kernels, lambda message: writer.log("warning", message=message)
    )
    if writer.run.initial_adapters.is_file():
        load_adapters(model, writer.run.initial_adapters)
    return model, layout


def make_optimizer(config: RunConfig) -> optim.Optimizer:
    """Make Adam (arXiv:1412.6980) or AdamW (arXiv:1711.05101), with bias correction; each step sets the rate."""
    if config.train.optimizer == "adam":
        return optim.Adam(config.train.learning_rate, bias_correction=True)
    return optim.AdamW(config.train.learning_rate, weight_decay=config.train.weight_decay, bias_correction=True)


# A model that only answers --------------------------------------------------------------------------------------


def load_for_answers(run: Run, *, base: bool = False, adapters: Path | None = None) -> tuple[nn.Module, ChatTokenizer]:
    """Load a run's base with adapters, or without any, ready to generate.

    Args:
        run: a run.
        base: without adapters.
        adapters: directory of the adapters; by default the best.

    Raises:
        QLoraError: the base or the adapters are missing or have changed.
    """
    config = run.config()
    spec = run.base()
    run.refuse_change("model", spec.fingerprint)
    tokenizer = run.tokenizer()
    recorded = run.environment().get("kernels")
    model = load_base(spec, device.kernels_to_answer(spec.dtype, spec.dense_bytes, available_bytes(), recorded))
    if not base:
        attach_adapters(model, spec, config.lora, config.train.seed)
        load_adapters(model, (adapters or run.adapters) / ADAPTER_FILE)
    model.eval()
    return model, tokenizer
