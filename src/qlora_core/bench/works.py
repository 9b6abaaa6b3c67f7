"""The training data of the benchmark: token rows, initial adapters, and the model's directory.

All of it is a function of names and a seed, made once and handed to every trainer as files, so that all train the same
token ids with the same mask from the same start. Knows no trainer; imports neither MLX nor PyTorch.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, ModelError
from ..tokens.rows import TokenRow
from .catalogue import RANDOM, SHAPES

if TYPE_CHECKING:
    from ..models.base_models import ModelSpec

ADAPTERS = "adapters.safetensors"
PROJECTIONS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


# Rows -----------------------------------------------------------------------------------------------------------


def drawn_rows(
    count: int, lengths: Callable[[np.random.Generator], int], seed: int, vocabulary: int, prefix: int = 0
) -> list[TokenRow]:
    """Return rows of random token ids: a prompt, then a trained reply of about half the row.

    Ids follow Zipf's law (the k-th most frequent in proportion to 1/k); which id has which rank is drawn too.

    Args:
        count: rows.
        lengths: draws the tokens of a row.
        seed: decides everything.
        vocabulary: ids are below it.
        prefix: tokens more that all rows begin with, the same in each.
    """
    rng = np.random.default_rng(seed)
    names = rng.permutation(vocabulary).astype(np.int32)

    def drawn(length: int, rng: np.random.Generator) -> np.ndarray:
        return names[np.floor(vocabulary ** rng.random(length)).astype(np.int64) - 1]

    beginning = drawn(prefix, np.random.default_rng([seed, 1]))  # other draws are the same with and without a prefix
    rows = []
    for i in range(count):
        ids = np.concatenate([beginning, drawn(lengths(rng), rng)])
        prompt = prefix + max(1, round((len(ids) - prefix) * rng.uniform(0.3, 0.7)))
        rows.append(TokenRow(ids, np.arange(len(ids)) >= prompt, f"row {i + 1}"))
    return rows


def _short(rng: np.random.Generator) -> int:
    """Draw a length from 20 to 200 tokens, log-uniformly: 78 on average."""
    return round(20 * 10 ** rng.random())


DRAWN: dict[str, tuple[int, Callable[[np.random.Generator], int], int]] = {
    "short-qa": (2400, _short, 0),
    "system-text": (2400, _short, 100),
    "uniform": (400, lambda rng: 256, 0),
    "long": (100, lambda rng: int(rng.integers(1800, 2200)), 0),
}
"""Count of rows, length sampler and shared prefix length of each drawn work; other works use the sample."""


def make_rows(work: str, model: str, vocabulary: int, seed: int, data: Sequence[str] = ()) -> Rows:
    """Return the rows of a workload for a model; rows of the sample or of `data` are tokenised by its tokeniser.

    Raises:
        DataError: the sample is not here.
        ModelError: the model cannot be read.
    """
    if work in DRAWN and not data:
        count, lengths, prefix = DRAWN[work]
        return Rows(tuple(drawn_rows(count, lengths, seed, vocabulary, prefix)), ())
    return _read_rows(model, data or [_sample()])


@dataclass(frozen=True)
class Rows:
    """Rows to train and to validate on.

    Attributes:
        train: rows to train on.
        validation: rows to validate on; empty for drawn rows.
    """

    train: tuple[TokenRow, ...]
    validation: tuple[TokenRow, ...]

    @functools.cached_property
    def digest(self) -> str:
        """Return a hash of all token ids and of which are trained, as 16 digits."""
        digest = hashlib.sha256()
        for row in (*self.train, *self.validation):
            digest.update(np.int64(len(row)).tobytes() + row.ids.astype(np.int32).tobytes() + row.trained.tobytes())
        return digest.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """Return the rows' sizes and counts."""
        lengths = [len(row) for row in self.train]
        return {
            "rows": len(lengths),
            "validation_rows": len(self.validation),
            "tokens": sum(lengths),
            "target_tokens": sum(row.target_tokens for row in self.train),
            "shortest": min(lengths),
            "median": int(np.median(lengths)),
            "longest": max(lengths),
            "digest": self.digest,
        }

    def save(self, path: Path) -> Path:
        """Write the rows as an archive of arrays."""
        parts = {}
        for name, rows in (("train", self.train), ("validation", self.validation)):
            parts[f"{name}_lengths"] = np.array([len(row) for row in rows], np.int64)
            for field in ("ids", "trained"):
                arrays = [getattr(row, field) for row in rows]
                parts[f"{name}_{field}"] = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
        np.savez(path, **parts)
        return path

    @classmethod
    def load(cls, path: Path) -> Rows:
        """Load rows that `save` wrote."""
        with np.load(path) as parts:
            return cls(*(_split(name, parts) for name in ("train", "validation")))


def _split(name: str, parts: Any) -> tuple[TokenRow, ...]:
    cuts = np.cumsum(parts[f"{name}_lengths"])[:-1]
    if not len(parts[f"{name}_lengths"]):
        return ()
    ids, trained = (np.split(parts[f"{name}_{field}"], cuts) for field in ("ids", "trained"))
    return tuple(
        TokenRow(i.astype(np.int32), t.astype(bool), f"row {number}")
        for number, (i, t) in enumerate(zip(ids, trained, strict=True), 1)
    )


def _sample() -> str:
    for root in (Path.cwd(), Path(__file__).parents[3]):
        if (root / "data" / "sample").is_dir():
            return str(root / "data" / "sample")
    raise DataError("data/sample: not here. It lies in the repository; run there, or name rows with --data.")


def _read_rows(model: str, data: Sequence[str]) -> Rows:
    from .. import data as preparing
    from ..config import from_flat
    from ..tokens.dataset import make_datasets
    from ..tokens.tokenizer import open_tokenizer

    config = from_flat({"model": model, "data": list(data)})
    tokenizer = open_tokenizer(config.base)
    prepared = preparing.prepare(config.data, tokenizer)
    datasets = make_datasets(prepared.train, prepared.validation, tokenizer, config.data.max_seq_length)
    return Rows(*(tuple(one_reply(row) for row in dataset.rows) for dataset in datasets))


def one_reply(row: TokenRow) -> TokenRow:
    """Return the row up to its last trained token, trained from the first one on: a mask that every trainer knows."""
    places = np.flatnonzero(row.trained)
    length = int(places[-1]) + 1
    return TokenRow(np.array(row.ids[:length]), np.arange(length) >= places[0], row.source)


def first_trained(row: TokenRow) -> int:
    """Return the position of the first trained token; all after it are trained."""
    return int(row.trained.argmax())


def fixed_groups(count: int, batch_size: int, steps: int) -> list[list[int]]:
    """Return the row indices of each step in order, starting over after the last full batch."""
    batches = count // batch_size
    return [[batch_size * (step % batches) + i for i in range(batch_size)] for step in range(steps)]


# Model and adapters ---------------------------------------------------------------------------------------------


def describe_model(model: str, quantize: str) -> ModelSpec:
    """Return what is known before loading about a built-in, named or local model."""
    from ..config import from_flat
    from ..models.base_models import find_base

    return find_base(from_flat({"model": model, "quantize": quantize}).base)


def find_model(model: str, directory: Path | None) -> str:
    """Return a model name in the form other commands take; create a model with random weights if it is missing.

    Args:
        model: `random-` and a name of `SHAPES`, whose weights are drawn; else what `--model` of other commands takes.
        directory: directory of models with random weights; the cache by default.

    Raises:
        ModelError: there is no such shape.
    """
    from ..files.storage import cache_directory
    from ..models.base_models import has_gpu
    from .drawn import write_quantised

    if not model.startswith(RANDOM) or Path(model).is_dir():
        return model
    shape = model.removeprefix(RANDOM)
    if shape not in SHAPES:
        raise ModelError(f"model {model!r}: no such shape. Known: {', '.join(RANDOM + name for name in SHAPES)}.")
    dtype = "bfloat16" if has_gpu() else "float32"
    root = directory or cache_directory() / "bench"
    return str(write_quantised(shape, root / f"{model}-{dtype}", dtype))


def write_adapters(spec: ModelSpec, path: Path, *, rank: int, alpha: float, seed: int) -> Path:
    """Write the initial adapters that all trainers share: A drawn as mlx-lm draws it, B = 0.

    Tensors are named and laid out as mlx-lm has them: `lora_a` (inputs, rank), `lora_b` (rank, outputs), float32.
    """
    from safetensors.numpy import save_file

    from ..config import LoraConfig

    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in spec.adapter_shapes(LoraConfig(rank=rank, alpha=alpha)).items():
        width = 1 / math.sqrt(shape[0]) if name.endswith("lora_a") else 0.0
        tensors[name] = rng.uniform(-width, width, shape).astype(np.float32)
    save_file(tensors, path)
    return path
