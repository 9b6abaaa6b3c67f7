"""Hidden states of all rows above the frozen layers, computed once and memory-mapped from a file of the run.

Knows sessions, layers and that file; nothing of steps.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..activity import doing
from ..engine import device
from ..engine.device import mx, nn
from ..engine.frozen_layers import Trunk
from ..engine.model import (
    OTHER_PARTS,
    BatchForm,
    Layout,
    arrays_of,
    batch_loss,
    few_rows,
    form_hidden,
    load_lower_layers,
    same_loss,
)
from ..errors import StorageError
from ..files.storage import replacing, write_json
from ..machine.memory import GB
from ..runs.writer import RunWriter
from ..tokens.batching import Rounding, make_batch, neighbours
from ..tokens.rows import TokenRow, TokenRows
from .checkpoint import room_wanted
from .session import Session

FILE, RECORD = "hidden_states.bin", "hidden_states.json"
RESERVE_BYTES = 2 * GB  # disk space left for other programs
TOKENS = 512  # tokens computed together; without a backward pass nothing else is kept, so this takes little memory
BITS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


class RowsAbove(Sequence[TokenRow]):
    """Rows with their hidden states above the frozen layers.

    Args:
        rows: the rows without them.
        states: `(tokens, hidden)`, of all rows end to end, with the dtypes of `TokenRow`.
    """

    def __init__(self, rows: TokenRows, states: np.ndarray) -> None:
        self._rows, self._states = rows, states
        self.lengths, self.target_lengths = rows.lengths, rows.target_lengths

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        row, begin = self._rows[index], self._rows.offsets[index]
        return dataclasses.replace(row, states=self._states[begin : begin + len(row)])


class Maker:
    """Computes the hidden states above the frozen layers.

    Args:
        model: with all of its layers.
        trunk: the frozen layers of that model.
        layout: how batches are laid out; not `whole`.
        rounding: sizes that batches are padded to.
    """

    def __init__(self, model: nn.Module, trunk: Trunk, layout: Layout, rounding: Rounding) -> None:
        self._model, self._trunk, self._layout, self._rounding = model, trunk, layout, rounding

    def states_of(self, *batches: Sequence[TokenRow], streams: Sequence[mx.Stream] = ()) -> list[np.ndarray]:
        """Compute each row's hidden states, `(length, hidden)`; batches run concurrently, one per stream."""
        laid = [make_batch(rows, packed=self._layout == "packed", rounding=self._rounding) for rows in batches]
        seen = []
        for batch, stream in zip(laid, itertools.cycle(streams or [mx.default_stream(mx.default_device())])):
            with mx.stream(stream), self._trunk.alone() as relay:
                form_hidden(self._model, arrays_of(batch), BatchForm.of(batch, self._layout, training=False))
                seen.append(relay.seen.reshape(-1, relay.seen.shape[-1]))
        mx.eval(seen)
        states = []
        for batch, rows, flat in zip(laid, batches, seen, strict=True):
            hidden = np.array(flat.view(mx.uint16) if flat.dtype == mx.bfloat16 else flat)
            states += [hidden[start : start + len(row)] for start, row in zip(batch.starts, rows, strict=True)]
        return states

    def agrees(self, vocabulary: int) -> bool:
        """Return whether the layers above give the same loss with hidden states that were computed earlier.

        They do not if a model passes on more than hidden states.
        """
        rows = few_rows(vocabulary)

        def loss(rows: Sequence[TokenRow]) -> float:
            batch = make_batch(rows, packed=self._layout == "packed", rounding=self._rounding)
            return batch_loss(self._model, batch, self._layout).item()

        try:
            wanted, states = loss(rows), self.states_of(rows)
            below = self._trunk.take_out()
            try:
                found = loss([dataclasses.replace(row, states=each) for row, each in zip(rows, states, strict=True)])
            finally:
                self._trunk.put_back(below)
        except OTHER_PARTS:
            return False
        return same_loss(self._model, found, wanted)


def leave_trunk(session: Session, writer: RunWriter, asked: Callable[[], bool]) -> None:
    """Compute the layers below all adapters once for each row, and release them, if that saves time.

    Nothing changes if rows are trained only once, if the model does not allow it, or if `asked` returns True, since the
    run is to end, before all states are computed.

    Raises:
        StorageError: there is no room for the states, or too little would be left.
    """
    run, spec, kernels = session.run, session.spec, session.kernels
    depth = spec.adapted_layers(session.config.lora).start
    if not (kernels.trunk and depth and session.layout != "whole" and session.total_steps > session.steps_per_epoch):
        return
    session.model.eval()
    trunk = Trunk(session.model, depth, lambda: load_lower_layers(spec, kernels, depth))
    maker = Maker(session.model, trunk, session.layout, kernels.rounding)
    if not maker.agrees(spec.config["vocab_size"]):
        return
    parts, started = [TokenRows.of(session.train_rows), TokenRows.of(session.val_rows)], time.perf_counter()
    known = {"base": spec.fingerprint, "layers": depth, "layout": session.layout, "rows": _digest(parts)}
    known |= {"device": kernels.device, "blas": kernels.blas, "dtype": kernels.dtype}
    counts = [len(rows.ids) for rows in parts]
    with doing("checking"):
        states = read_states(run.path, known, kernels.dtype)
    if states is None:
        remove_states(run.path)
        wanted = sum(counts) * spec.config["hidden_size"] * np.dtype(BITS[kernels.dtype]).itemsize
        _refuse_to_fill_disk(session, wanted)
        writer.tell("leaving_trunk", layers=depth, rows=sum(map(len, parts)))
        try:
            with (
                device.blas_threads(max(1, device.cores() // kernels.streams)),
                doing("lower_layers", sum(map(len, parts))) as tick,
            ):
                write_states(run.path, known, _all_states(session, tick, maker, parts, asked), wanted)
        except _AskedToEnd:
            return
        states = _mapped(run.path, kernels.dtype)
    states = states.reshape(sum(counts), -1)
    session.train_rows = RowsAbove(parts[0], states[: counts[0]])
    session.val_rows = RowsAbove(parts[1], states[counts[0] :])
    session.trunk = trunk
    session.passes.forget()  # functions compiled for the longest rows would keep the layers in memory
    trunk.take_out()
    gc.collect()  # layers that share an input refer to each other
    device.clear_cache()
    writer.log("trunk", layers=depth, bytes=states.nbytes, seconds=time.perf_counter() - started)


def _refuse_to_fill_disk(session: Session, wanted: int) -> None:
    """Raise a `StorageError` if `wanted` bytes of states leave too little for what the run saves and a reserve."""
    run, keep = session.run, session.config.pace.keep_checkpoints
    needed = wanted + room_wanted(run.checkpoint_directory, session.model, keep) + RESERVE_BYTES
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise StorageError(
            f"{run.path}: {needed / GB:.1f} GB wanted ({wanted / GB:.1f} for their output, the rest for what the run "
            f"saves and for other programs), {free / GB:.1f} GB free there. It is tried again when the "
            "run goes on after a pause"
        )


class _AskedToEnd(Exception):
    """The run is to end before all hidden states are computed."""


def _all_states(
    session: Session,
    tick: Callable[[int], None],
    maker: Maker,
    parts: Sequence[TokenRows],
    asked: Callable[[], bool],
) -> Iterator[np.ndarray]:
    done = 0
    for rows in parts:
        pieces = neighbours(rows.lengths.tolist(), TOKENS)
        while some := [rows[piece.start : piece.stop] for piece in itertools.islice(pieces, len(session.streams))]:
            if asked():
                raise _AskedToEnd
            yield from maker.states_of(*some, streams=session.streams)
            done += sum(map(len, some))
            tick(done)


def _digest(parts: Iterable[TokenRows]) -> str:
    """Return a hash of the ids of rows, and of where each row begins."""
    digest = hashlib.sha256()
    for rows in parts:
        digest.update(rows.ids.tobytes())
        digest.update(rows.offsets.tobytes())
    return digest.hexdigest()


def write_states(directory: Path, known: dict[str, Any], made: Iterable[np.ndarray], wanted: int) -> None:
    """Write hidden states `(…, hidden)` one after another, and a record of what they were computed from.

    Args:
        directory: the run's directory.
        known: everything that decides the states.
        made: the states, in order.
        wanted: size of all states in bytes.

    Raises:
        StorageError: there is no room.
    """
    (directory / RECORD).unlink(missing_ok=True)
    digest = hashlib.sha256()
    with replacing(directory / FILE, wanted=wanted) as temporary, temporary.open("wb") as file:
        for states in made:
            content = states.tobytes()
            digest.update(content)
            file.write(content)
    write_json(directory / RECORD, {**known, "sha256": digest.hexdigest()})


def read_states(directory: Path, known: dict[str, Any], dtype: str) -> np.ndarray | None:
    """Return all states, mapped from the file; None if they belong to something else or are damaged."""
    try:
        recorded = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        with (directory / FILE).open("rb") as file:
            expected = {**known, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        if recorded != expected:
            return None
        return _mapped(directory, dtype)
    except (OSError, ValueError):
        return None


def _mapped(directory: Path, dtype: str) -> np.ndarray:
    return np.memmap(directory / FILE, BITS[dtype], "r")


def remove_states(directory: Path) -> None:
    """Delete the hidden states, which nobody needs once a run has ended."""
    for name in (RECORD, FILE):
        (directory / name).unlink(missing_ok=True)
