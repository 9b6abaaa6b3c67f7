"""A base that is quantised in its files, written once as plain numbers, so that it can be trained unquantised.

Knows base models and the cache; nothing of runs or adapters.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from ..engine import device
from ..engine.device import mx, tree_flatten
from ..engine.weights import load_weights
from ..errors import RunError, StorageError
from ..files.storage import (
    cache_directory,
    clear_leftovers,
    locked,
    manifest_problem,
    nearest_existing,
    publishing,
)
from ..machine.crash_reasons import device_failure
from ..machine.memory import GB, available_bytes
from ..models.base_models import ModelSpec
from ..tokens.tokenizer_files import copy_companions
from .changed_matrices import dense_weight, find_changed_matrices
from .fused_files import save_weights, write_configuration


def dequantised_base(spec: ModelSpec, told: Callable[[str], None] = lambda _: None) -> Path:
    """Return the directory of a quantised base's own weights as numbers of the dtype that this device computes in.

    It is written into the cache the first time, by the content of the base. In float32, as a CPU computes, they are
    exactly the weights that training on the quantised base computes with; in half precision, they are those rounded.

    Args:
        spec: a base that is quantised in its files.
        told: called with what will be written, and where, before it is.

    Raises:
        ModelError: the base cannot be loaded.
        StorageError: there is no room for the copy.
        RunError: MLX cannot write it.
    """
    dtype = device.choose_kernels(spec.dtype, spec.dense_bytes, available_bytes()).dtype
    place = cache_directory() / "models" / "dequantised" / f"{spec.fingerprint[:16]}-{dtype}"
    directory = place / f"{spec.short_name}-dequantised"
    with locked(directory):  # a second process waits, and then uses what the first one wrote
        if manifest_problem(directory, contents=False) is not None:
            clear_leftovers(place)  # gigabytes, of a process that was killed
            _announce(spec, getattr(mx, dtype).size * spec.parameters, directory, told)
            _write(spec, dtype, directory)
    return directory


def _announce(spec: ModelSpec, wanted: int, directory: Path, told: Callable[[str], None]) -> None:
    """Tell what will be written; refuse it before the base is loaded where there is no room.

    Raises:
        StorageError: as said.
    """
    free = shutil.disk_usage(nearest_existing(directory)).free
    room = f"{wanted / GB:.2f} GB, of {free / GB:.1f} GB that are free there"
    if wanted > free:
        raise StorageError(
            f"{directory}: {spec.name} is quantised in its files, and its weights as plain numbers would take {room}. "
            "Make room there, then go on; or name a cache on another disk with QLORA_CACHE.",
            errno.ENOSPC,
        )
    told(
        f"{spec.name} is quantised in its files: its weights are written once more as plain numbers, {room}. They stay "
        f"for the next comparison, and may be deleted: {directory}"
    )


def _write(spec: ModelSpec, dtype: str, directory: Path) -> None:
    model = load_weights(spec, dtype, lambda _: None)
    number = getattr(mx, dtype)
    weights = {}
    for matrix in find_changed_matrices(model, quantise=False):
        weights[f"{matrix.path}.weight"] = dense_weight(matrix.module).astype(number)
        if (bias := matrix.module.get("bias")) is not None:
            weights[f"{matrix.path}.bias"] = bias
    anew = tuple(f"{name.removesuffix('weight')}" for name in weights if name.endswith(".weight"))
    others = tree_flatten(model.parameters())
    weights |= {name: value for name, value in others if not name.startswith(anew)}
    model = matrix = bias = others = None  # each packed matrix is freed when its numbers are written
    with publishing(directory, wanted=number.size * spec.parameters) as temporary:
        copy_companions(spec.path, temporary)
        write_configuration(spec, temporary, dtype, {})
        try:
            save_weights(weights, temporary, spec.parameters)
        except RuntimeError as error:  # mlx's own, for a full disk say
            if failure := device_failure(error):
                raise failure from None
            raise RunError(f"{directory}: the dequantised base cannot be written: {error}") from None
    mx.clear_cache()
