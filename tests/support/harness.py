"""Loaded models and trained runs for tests, made through the core's public functions."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_rows

from qlora_core import data
from qlora_core.config import BaseConfig, LoraConfig, from_flat
from qlora_core.engine.device import mx, nn, tree_flatten
from qlora_core.engine.model import BatchForm, Layout, arrays_of, attach_adapters, form_token_losses, load_base
from qlora_core.machine.memory import MemoryMonitor
from qlora_core.models import base_models
from qlora_core.models.base_models import ModelSpec
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.runs.plan import TrainingPlan, TrainingTracker
from qlora_core.runs.run import Run
from qlora_core.tokens.batching import Batch
from qlora_core.tokens.dataset import make_datasets
from qlora_core.tokens.rows import TokenRow
from qlora_core.tokens.tokenizer import ChatTokenizer
from qlora_core.training import loop

FAST = Kernels("cpu", "float32", "kept", streams=2, fast_exp=True)
PLAIN = Kernels("cpu", "float32", "quantised")
"""What mlx-lm computes by itself. Kernels hold for all models of a family: the last one loaded decides."""


# Models ---------------------------------------------------------------------------------------------------------


def load(
    path: Path,
    kernels: Kernels = FAST,
    *,
    quantize: str = "4",
    group_size: str = "64",
    lora: LoraConfig | None = None,
    seed: int = 0,
) -> tuple[nn.Module, ModelSpec]:
    """A base, with adapters attached if `lora` is given."""
    spec = base_models.describe(path, BaseConfig(model=str(path), quantize=quantize, group_size=group_size))
    model = load_base(spec, kernels)
    if lora:
        attach_adapters(model, spec, lora, seed)
    return model, spec


def write_quantised(directory: Path, source: Path, *, bits: int = 4, group_size: int = 64) -> Path:
    """A copy of a model directory that is quantised on disk, as mlx-lm's own are."""
    shutil.copytree(source, directory)
    model, _ = load(source, PLAIN, quantize=str(bits), group_size=str(group_size))
    mx.save_safetensors(str(directory / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    own = {
        path: {"group_size": module.group_size, "bits": module.bits}
        for path, module in model.named_modules()
        if getattr(module, "bits", bits) != bits
    }
    config["quantization"] = {"group_size": group_size, "bits": bits, **own}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def set_adapters(model: nn.Module, seed: int = 1, size: float = 0.05) -> None:
    """Give all adapters random values: as attached, B is 0 and A has no gradient."""
    rng = np.random.default_rng(seed)
    values = [
        (name, mx.array(rng.normal(0, size, value.shape).astype(np.float32)))
        for name, value in sorted(tree_flatten(model.trainable_parameters()))
    ]
    model.load_weights(values, strict=False)
    mx.eval(model.parameters())


def adapters_of(model: nn.Module) -> dict[str, np.ndarray]:
    """A copy of all adapter parameters."""
    return {name: np.array(value) for name, value in tree_flatten(model.trainable_parameters())}


def textbook_loss(model: nn.Module, rows: Iterable[TokenRow]) -> mx.array:
    """-log p of every trained token given those before it, summed, row by row."""
    total = mx.array(0.0)
    for row in rows:
        logits = model(mx.array(row.ids)[None])[0]
        log_p = logits - mx.log(mx.exp(logits).sum(-1, keepdims=True))
        for place in np.flatnonzero(row.trained):
            total = total - log_p[int(place) - 1, int(row.ids[place])]
    return total


def losses_by_row(model: nn.Module, batch: Batch, layout: Layout, count: int) -> np.ndarray:
    """The loss of each of the rows laid out in a batch, as validation sums it up."""
    form = BatchForm.of(batch, layout, training=False)
    return batch.by_row(np.array(form_token_losses(model, arrays_of(batch), form)), count)


def loss_and_gradients(model: nn.Module, loss: Callable[[nn.Module], mx.array]) -> tuple[float, dict[str, np.ndarray]]:
    """Value and adapter gradients of `loss(model)`."""
    value, gradients = nn.value_and_grad(model, loss)(model)
    mx.eval(value, gradients)  # together: the value alone would keep every activation for the gradients
    return value.item(), {name: np.array(gradient) for name, gradient in tree_flatten(gradients)}


def assert_same(
    found: tuple[float, dict[str, np.ndarray]], wanted: tuple[float, dict[str, np.ndarray]], tolerance: float = 1e-5
) -> None:
    """Loss and every gradient agree."""
    assert found[0] == pytest.approx(wanted[0], rel=tolerance)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert np.abs(gradient).max() > 0, name
        assert difference(found[1][name], gradient) < tolerance, name


def random_rows(*lengths: int, seed: int = 4, vocabulary: int = 320) -> list[TokenRow]:
    """Rows of these lengths with several trained spans; the last token of each is always trained."""
    rng = np.random.default_rng(seed)
    rows = [TokenRow(rng.integers(0, vocabulary, n).astype(np.int32), rng.random(n) < 0.4) for n in lengths]
    for row in rows:
        row.trained[0], row.trained[-1] = False, True
    return rows


def difference(found: Any, wanted: Any) -> float:
    """Norm of the difference of two arrays, relative to that of `wanted`."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30))


# Runs -----------------------------------------------------------------------------------------------------------

QUICK = {"batch_size": 4, "epochs": 2, "warmup_steps": 1, "learning_rate": 1e-2, "max_answer_tokens": 1}


def write_pair(directory: Path, train: int = 12, validation: int = 3) -> Path:
    """A directory with a `train.jsonl` and a `valid.jsonl`, which are used as they stand."""
    write_rows(directory / "train.jsonl", train)
    lines = write_rows(directory / "valid.jsonl", train + validation).read_text(encoding="utf-8").splitlines(True)
    (directory / "valid.jsonl").write_text("".join(lines[train:]), encoding="utf-8")
    return directory


def create_run(root: Path, model: Path, sources: Path, **settings: Any) -> Run:
    """A run directory below `root`, ready to be trained: what `qlora train` makes before it trains."""
    return TrainingTracker(root).create(plan_run(root, model, sources, **settings))


def plan_run(root: Path, model: Path, sources: Path, **settings: Any) -> TrainingPlan:
    """The plan of such a run."""
    config = from_flat({"model": str(model), "data": [str(sources)], "runs_dir": str(root), **QUICK, **settings})
    spec = base_models.find_base(config.base)
    tokenizer = ChatTokenizer(spec.path, config.base.template)
    prepared = data.prepare(config.data, tokenizer)
    datasets = make_datasets(prepared.train, prepared.validation, tokenizer, config.data.max_seq_length)
    return TrainingTracker(root).plan(config, spec, tokenizer, prepared, *datasets)


def train(run: Run, *listeners: Callable[[dict[str, Any]], None], monitor: MemoryMonitor | None = None) -> loop.Outcome:
    """Train or resume a run in this process, telling the listeners every event."""
    with TrainingTracker(run.path.parent).record(run) as writer:
        writer.listeners += listeners
        return loop.train(writer, monitor)


def at_step(step: int, act: Callable[[], Any]) -> Callable[[dict[str, Any]], None]:
    """A listener that acts when a step has been made, before what follows it."""

    def listen(event: dict[str, Any]) -> None:
        if event["type"] == "step" and event["step"] == step:
            act()

    return listen


def events(run: Run, kind: str, field: str | None = None) -> list[Any]:
    """The events of one type, or one field of them."""
    found = [event for event in run.metrics() if event["type"] == kind]
    return [event[field] for event in found] if field else found


class Killed(Exception):
    """The process is gone: nothing is saved, nothing said."""


def kill() -> None:
    """End a training in this process as if it were killed."""
    raise Killed


def checkpoint(run: Run, step: int) -> Path:
    """Where a checkpoint lies."""
    return run.path / "checkpoints" / f"{step:06d}"


def hashes(directory: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 of files of a directory, all or those named."""
    paths: Sequence[Path] = [directory / name for name in names] if names else sorted(directory.iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def trained_state(run: Run, step: int) -> dict[str, str]:
    """Hashes of what a checkpoint restores: adapters and optimizer."""
    return hashes(checkpoint(run, step), ("adapters.safetensors", "optimizer.safetensors"))


def assert_same_training(found: Run, wanted: Run, step: int, *, best: bool = True) -> None:
    """Files equal to the byte, and every number that was told.

    Args:
        found: one run.
        wanted: another.
        step: the last one.
        best: whether both were validated at the same steps, so that validations and best adapters are compared too.
    """
    assert trained_state(found, step) == trained_state(wanted, step)
    for directory in ("best", "final") if best else ("final",):
        assert hashes(found.path / directory) == hashes(wanted.path / directory)
    for field in ("step", "epoch", "train_loss", "learning_rate", "grad_norm", "tokens", "target_tokens"):
        assert events(found, "step", field) == events(wanted, "step", field), field
    for field in ("step", "val_loss", "best") if best else ():
        assert events(found, "eval", field) == events(wanted, "eval", field), field
    if best:
        assert row_losses(found) == row_losses(wanted) != {}
    assert found.loss_before == wanted.loss_before
    assert events(found, "epoch", "avg_loss") == events(wanted, "epoch", "avg_loss")


def row_losses(run: Run) -> dict[int, list[float]]:
    """The loss of each validation row, by step."""
    return {one.step: one.losses.tolist() for one in run.row_losses()}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Functions of arrays ----------------------------------------------------------------------------------------------

CLOSE = 3e-6  # float32 has 24 bits; sums of a few hundred numbers lose some


def normal(*shape: int, seed: int = 0, size: float = 1.0) -> mx.array:
    """Random numbers, the same each time."""
    return mx.array(np.random.default_rng([seed, *shape]).normal(0, size, shape).astype(np.float32))


def compare(ours: Callable[..., mx.array], plain: Callable[..., mx.array], *inputs: mx.array) -> None:
    """Values, and gradients with a random cotangent, are the same."""
    wanted = plain(*inputs)
    cotangent = mx.array(np.random.default_rng(9).normal(size=wanted.shape).astype(np.float32))
    (found,), gradients = mx.vjp(lambda *xs: [ours(*xs)], inputs, [cotangent])
    _, wanted_gradients = mx.vjp(lambda *xs: [plain(*xs)], inputs, [cotangent])
    assert difference(found, wanted) < CLOSE
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        assert difference(gradient, wanted_gradient) < CLOSE
