"""Merge a base and its adapters into one stand-alone model, as small as it can be without losing what was learnt.

Knows a run, and how the parts work together: `changed_matrices` and `gptq` round, `judging` measures, `bit_choice`
chooses, `fused_files` writes. Knows nothing of guides, pages or where exports are.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..activity import doing
from ..config import BaseConfig
from ..engine.device import kernels_to_answer, memory_counters, mx, nn, tree_flatten
from ..engine.kernels import quantised_products_are_right
from ..engine.model import load_base
from ..errors import ConfigError, ExportError, RunError
from ..machine.crash_reasons import device_failure
from ..machine.memory import GB, available_bytes
from ..models.base_models import ModelSpec, describe
from ..runs.kernel_choice import Kernels
from ..runs.memory_estimate import RESERVE_BYTES
from ..runs.run import Run
from ..tokens.rows import TokenRow
from ..translations import Figure, Sentence
from .bit_choice import BitWidths, mixtures, size, smallest_that, total
from .changed_matrices import ChangedMatrix, Roundings, dense_weight, find_changed_matrices
from .fused_files import Storage, save_companions, save_weights
from .input_moments import TOKENS_AT_ONCE, replaced
from .judging import MOST_LOST, NO_ROWS, Judge, divide_rows, with_tokens
from .session import load_for_answers

Bits = Literal["auto", "mixed", "16", "8", "6", "5", "4"]

BITS: tuple[Bits, ...] = get_args(Bits)
UNIFORM = (4, 5, 6, 8)  # bits that a quantised model may have, or its matrices in a mixture
GROUP_SIZE = 64  # of what is rounded anew, except at the bits of a quantised base, which keeps its own
QUARTERS = 4  # parts of the model's depth in which the matrices of a kind have the same bits
PROBE_TOKENS = 512  # about as many, on which the harm of each of these units is measured
MEMORY_SHARE = 4  # second moments may take one part in so many of the memory that is available


def fuse_run(
    run: Run,
    directory: Path,
    *,
    bits: str = "auto",
    strict: bool = False,
    adapters: Path | None = None,
) -> dict[str, Any]:
    """Merge a run's adapters into its base, and write a model directory in MLX and Hugging Face layout.

    What is merged is rounded anew: up to 6 bits so that the outputs change least on the run's own training rows (GPTQ,
    see `gptq`), or to the nearest step where these rows have fewer tokens than a matrix has inputs. Quantised layers
    without adapters stay as they are, unless `bits` is 16. Scales, biases and unquantised weights are float16, or
    bfloat16 if the base is.

    The written model is loaded and compared with the tuned one on rows that calibrated nothing (`divide_rows`), and may
    lose `MOST_LOST`.

    While it chooses, `auto` and `mixed` keep every matrix at each number of bits in `directory`: about three bytes for
    each merged weight. How long it takes: `benchmarks/fused_forms.py`.

    Args:
        run: only read.
        directory: an existing, empty directory; gets weights, `config.json` and the tokeniser's files. It is empty
            again if anything goes wrong, an interruption included.
        bits: `16`: unquantised; `8`, `6`, `5`, `4`: each matrix has so many; `mixed`: the matrices that do most harm at
            4 bits, which is measured for each, have more, until no more than `MOST_LOST` is lost; `auto`: the smallest
            of all these that loses no more.
        strict: refuse to write a model that loses more, or that cannot be judged.
        adapters: directory of the adapters; by default the run's best.

    Returns:
        What the model became: `form` (one of the names above, but `auto`), `bits` (None: unquantised; a mean for
        mixed), `stored` (the same in words), `dtype`, `calibrated_tokens`, `seconds`. What merging changed: `rows`,
        `tokens`, `tuned_loss`, `fused_loss`, `lost`, `interval`, `kl`, `same_choice` as in `Comparison.as_dict`, also
        for the `training` and the `validation` rows alone; `within`: whether no more than `MOST_LOST` was lost; and
        `verdict`, a sentence. If there is too little memory to load the model again, `not_judged` says so, and what was
        not measured is None.

    Raises:
        ConfigError: there is no such form.
        ExportError: `strict`, and it loses more or cannot be judged.
        QLoraError: the base or the adapters are not what they were.
        RunError: the directory is not empty, or the weights cannot be written.
        DeviceError: the device failed.
    """
    if bits not in BITS:
        raise ConfigError(f"bits must be one of {', '.join(BITS)}; found {bits}.")
    if any(directory.iterdir()):
        raise RunError(f"{directory}: is not empty; what is there would be lost if anything went wrong.")
    try:
        with tempfile.TemporaryDirectory(prefix=".work-", dir=directory) as work:
            made = _Fusion(run, directory, Path(work), adapters).make(bits)
            if strict and not made["within"]:
                raise ExportError(f"{run.name}: {made['verdict']}")
            return made
    except BaseException as error:
        _empty(directory)
        if isinstance(error, RuntimeError) and (failure := device_failure(error)):
            raise failure from None
        raise


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


class _Fusion:
    """One merge, from the loaded run to the judged model.

    Args:
        run: only read.
        directory: to write.
        work: a directory for what is needed in between.
        adapters: directory of the adapters; None: the run's best.
    """

    def __init__(self, run: Run, directory: Path, work: Path, adapters: Path | None) -> None:
        self.began = time.monotonic()
        self.directory, self.spec = directory, run.base()
        self.model, self.tokenizer = load_for_answers(run, adapters=adapters)
        self.rows = divide_rows(run, self.tokenizer, self.spec.config["vocab_size"])
        self.judge = Judge(self.rows.judged, self.rows.trained, work / "judged")
        self.dtype = "bfloat16" if self.spec.dtype == "bfloat16" else "float16"
        self.roundings = Roundings(work, _group_sizes(self.spec), getattr(mx, self.dtype))
        self.work = work

    def make(self, bits: str) -> dict[str, Any]:
        """Round, choose, write and judge; return what `fuse_run` returns."""
        if self.rows.judged:
            self.judge.hear_tuned(self.model)
        widths = None if bits == "16" else self._choose_widths(bits)
        made = self._write(widths)
        merged = describe(self.directory, BaseConfig(model=str(self.directory), quantize="none"))
        reason = _too_large(merged.loaded_bytes, merged, self.rows.judged) if self.rows.judged else NO_ROWS
        compared = None
        if not reason:
            compared = self.judge.compare(_load(merged))
        tuned = self.judge.tuned_means() if self.rows.judged else {"rows": 0, "tokens": 0, "tuned_loss": None}
        measured = compared.as_dict() if compared else dict.fromkeys(_NOT_MEASURED) | tuned
        within = compared is not None and compared.lost <= MOST_LOST
        return {
            **made,
            "dtype": self.dtype,
            "calibrated_tokens": sum(map(len, self.rows.calibrating)) if self.roundings.calibrated else 0,
            **measured,
            "within": within if compared else None,
            "not_judged": reason,
            "verdict": _verdict(measured, reason, made["form"]),
            "seconds": time.monotonic() - self.began,
        }

    # Choosing -------------------------------------------------------------------------------------------------

    def _choose_widths(self, bits: str) -> BitWidths | None:
        """Round everything, and return the bits asked for; None where only 16 bits are left."""
        matrices = [matrix for matrix in find_changed_matrices(self.model, quantise=True) if matrix.fits]
        searching = bits in ("auto", "mixed")
        if searching and (not self.rows.judged or self._no_room(matrices)):
            bits, searching = "8", False
        wanted = UNIFORM if searching else (int(bits),)
        self.roundings.make(self.model, matrices, wanted, self.rows.calibrating, available_bytes() // MEMORY_SHARE)
        if not searching:
            return _uniform(matrices, int(bits))
        return self._smallest(matrices, uniform=bits == "auto")

    def _no_room(self, matrices: Sequence[ChangedMatrix]) -> bool:
        """Return whether a second quantised model does not fit beside the tuned one, so that nothing can be tried."""
        largest = sum(matrix.inputs * matrix.outputs for matrix in matrices) * 9 // 8  # 8 bits, with scales and biases
        return bool(_too_large(largest, self.spec, self.rows.judged))

    def _smallest(self, matrices: Sequence[ChangedMatrix], *, uniform: bool) -> BitWidths | None:
        """Return the bits of the smallest model that loses no more than `MOST_LOST`; if none does, of the largest.

        It looks at the judged rows about ten times. So that it does not favour bits which these few rows happen to
        like, it also wants the mean Kullback-Leibler divergence to be at most `MOST_LOST`: that is what would be lost
        on texts of the tuned model's own, and it depends far less on which rows are judged.

        Args:
            matrices: rounded to all of `UNIFORM`.
            uniform: whether one number of bits for all is wanted too; then None is returned if none will do.
        """
        options, lost = self.roundings.options, {}
        kernels = self._kernels()

        def fits(widths: BitWidths) -> bool:
            key = tuple(widths.items())
            if key not in lost:
                with replaced(self.model, self.roundings.layers(matrices, widths, kernels)):
                    compared = self.judge.compare(self.model)
                lost[key] = max(compared.lost, compared.kl)
            return lost[key] <= MOST_LOST

        lowest = _uniform(matrices, UNIFORM[0])
        if fits(lowest):
            return lowest
        units = _units(matrices, self.spec.num_layers)
        by_unit = {name: total(self.roundings.options[matrix.path] for matrix in unit) for name, unit in units.items()}

        def spelt_out(widths: BitWidths) -> BitWidths:
            return {matrix.path: widths[name] for name, unit in units.items() for matrix in unit}

        candidates = [spelt_out(widths) for widths in mixtures(by_unit, self._harm(units, kernels))]
        smallest = smallest_that(fits, candidates)
        if not uniform:
            return smallest or candidates[-1]
        for each in UNIFORM[1:]:
            widths = _uniform(matrices, each)
            if (smallest is None or size(options, widths) < size(options, smallest)) and fits(widths):
                return widths
        return smallest

    def _kernels(self) -> Kernels:
        """Return how rounded models are computed: as `load_base` will compute the written model."""
        kernels = kernels_to_answer(self.dtype, self.spec.dense_bytes, available_bytes(), None)
        right = kernels.linear != "quantised" or all(
            quantised_products_are_right(kernels.dtype, bits=bits, group_size=size)
            for bits, size in _group_sizes(self.spec).items()
        )
        return kernels if right else dataclasses.replace(kernels, linear="dequantised")

    def _harm(self, units: dict[str, list[ChangedMatrix]], kernels: Kernels) -> dict[str, float]:
        """Return how far the model's answers go apart when one unit alone has the lowest bits, in nats a token.

        That is measured on calibrating rows, so that the judged rows tell nothing about single units.
        """
        rows = with_tokens(self.rows.calibrating or self.rows.judged, PROBE_TOKENS)
        probe = Judge(rows, np.ones(len(rows), bool), self.work / "probe", told=False)
        probe.hear_tuned(self.model)
        harm = {}
        with doing("choosing", len(units)) as tick:
            for number, (name, unit) in enumerate(units.items()):
                tick(number)
                layers = self.roundings.layers(unit, _uniform(unit, UNIFORM[0]), kernels)
                with replaced(self.model, layers):
                    harm[name] = probe.compare(self.model).kl
        return harm

    # Writing --------------------------------------------------------------------------------------------------

    def _write(self, widths: BitWidths | None) -> dict[str, Any]:
        """Write the model with these bits (None: unquantised), and release the tuned one; return what was written."""
        dtype = getattr(mx, self.dtype)
        storage: Storage = {
            path: _stored(module) for path, module in self.model.named_modules() if widths is not None and _kept(module)
        }
        weights, sizes = {}, {}
        for matrix in find_changed_matrices(self.model, quantise=widths is not None):
            sizes[matrix.path] = matrix.inputs * matrix.outputs
            if widths is None or matrix.path not in widths:
                arrays = {"weight": dense_weight(matrix.module)}
            else:
                arrays = self.roundings.arrays(matrix.path, widths[matrix.path])
                storage[matrix.path] = self.roundings.stored(matrix.path, widths[matrix.path])
            storage.pop(f"{matrix.path}.linear", None)
            if (bias := matrix.base.get("bias")) is not None:
                arrays["bias"] = bias
            weights |= {f"{matrix.path}.{name}": value for name, value in arrays.items()}
        anew = tuple(f"{path}." for path in sizes)
        weights |= {name: value for name, value in tree_flatten(self.model.parameters()) if not name.startswith(anew)}
        weights = {name: _as(value, dtype) for name, value in weights.items()}
        # each of the model's own arrays is freed when what becomes of it is written
        self.model = matrix = arrays = bias = None
        save_companions(self.spec, self.directory, self.tokenizer, self.dtype, storage)
        try:
            save_weights(weights, self.directory, self.spec.parameters)
        except RuntimeError as error:  # mlx's own, for a full disk say
            if device_failure(error):
                raise
            raise RunError(f"{self.directory}: the fused weights cannot be written: {error}") from None
        return _described(widths, sizes, self.dtype)


_NOT_MEASURED = ("fused_loss", "lost", "interval", "kl", "same_choice")


def _group_sizes(spec: ModelSpec) -> dict[int, int]:
    """Return the group size for each number of bits."""
    own = spec.quantize_group_size if spec.quantize_bits else (spec.quantization or {}).get("group_size")
    return {bits: own if own and bits == spec.bits else GROUP_SIZE for bits in UNIFORM}


def _uniform(matrices: Sequence[ChangedMatrix], bits: int) -> BitWidths:
    return {matrix.path: bits for matrix in matrices}


def _units(matrices: Sequence[ChangedMatrix], layers: int) -> dict[str, list[ChangedMatrix]]:
    """Return matrices by kind and quarter of the model's depth: each unit has one number of bits.

    To measure every matrix alone would take a pass through the model for each; what one costs differs more between
    kinds than between neighbours.
    """
    units: dict[str, list[ChangedMatrix]] = {}
    for matrix in matrices:
        quarter = QUARTERS * max(matrix.layer, 0) // layers
        units.setdefault(f"{matrix.path.rpartition('.')[2]} {quarter}", []).append(matrix)
    return units


def _kept(module: nn.Module) -> bool:
    """Return whether a layer is quantised."""
    return "scales" in module


def _stored(module: Any) -> dict[str, Any]:
    """Return how a quantised layer is stored, as `config.json` says it."""
    how = {"group_size": module.group_size, "bits": module.bits}
    return how if module.mode == "affine" else how | {"mode": module.mode}


def _as(value: mx.array, dtype: mx.Dtype) -> mx.array:
    return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value


def _described(widths: BitWidths | None, sizes: dict[str, int], dtype: str) -> dict[str, Any]:
    """Return the name of a form (`fuse_run`), its mean bits and how it is stored, in words."""
    if widths is None:
        return {"form": "16", "bits": None, "stored": dtype}
    low, high = min(widths.values()), max(widths.values())
    if low == high:
        return {"form": str(low), "bits": low, "stored": Sentence("{bits} bits", bits=low)}
    mean = sum(bits * sizes[path] for path, bits in widths.items()) / sum(sizes.values())
    stored = Sentence("{low} to {high} bits, {mean} on average", low=low, high=high, mean=Figure(mean, ".1f"))
    return {"form": "mixed", "bits": mean, "stored": stored}


def _verdict(found: dict[str, Any], not_judged: str, form: str) -> str:
    """Return what merging changed, and what to do if it lost something, in a sentence or two."""
    if not_judged:
        return f"It was not compared with the adapters on the untouched base: {not_judged}."
    interval = found["interval"]  # few rows have none
    between = f" ({interval[0]:+.4f} to {interval[1]:+.4f})" if interval else ""
    measured = (
        f"{found['fused_loss']:.4f} instead of {found['tuned_loss']:.4f} nats a token, {found['lost']:+.4f}{between} "
        f"on {found['rows']} rows"
    )
    if found["lost"] <= MOST_LOST:
        kept = f"It keeps what was learnt: the loss is {measured}; up to {MOST_LOST:+} counts as the same."
        if not interval:
            return f"{kept} {found['rows']} rows are too few to say how sure that is."
        if interval[1] <= MOST_LOST:
            return kept
        safer = {"16": "", "8": "; --bits 16 is safer"}.get(form, "; --bits 8 is safer")
        return f"{kept} Judged on {found['rows']} rows alone, it could be up to {interval[1]:+.4f}{safer}."
    remedy = (
        "--bits auto finds the smallest form that does not"
        if form not in ("16", "mixed")
        else ("export the adapters instead (--to adapter)" if form == "16" else "--bits 16 keeps more")
    )
    return f"It lost some of what was learnt: the loss is {measured}; up to {MOST_LOST:+} would be the same. {remedy}."


def _too_large(nbytes: int, spec: ModelSpec, rows: Sequence[TokenRow]) -> str:
    """Return why a model is not loaded for judging; empty if there is room for it and the logits of a batch."""
    tokens = max(TOKENS_AT_ONCE, *map(len, rows))
    needed = nbytes + 8 * tokens * spec.config["vocab_size"] + RESERVE_BYTES
    free = memory_counters().get("free", available_bytes())
    if needed <= free:
        return ""
    return f"it does not fit here: {needed / GB:.1f} GB wanted, {free / GB:.1f} GB available"


def _load(merged: ModelSpec) -> nn.Module:
    available = available_bytes()
    return load_base(merged, kernels_to_answer(merged.dtype, merged.dense_bytes, available, None))
