"""Hidden states of all rows above the trunk, made once and kept in a file of the run, which is mapped into memory.

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
    Form,
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

FILE, SEAL = "hidden_states.bin", "hidden_states.json"
RESERVE_BYTES = 2 * GB  # of the disk, left for other programs
TOKENS = 512  # that go through the layers together: nothing is kept of them, so that they take little memory
BITS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


class RowsAbove(Sequence[TokenRow]):
    """Rows with their hidden states.

    Args:
        rows: whose.
        states: `(tokens, hidden)`, of all rows end to end, as `TokenRow` has them.
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
    """Makes hidden states above a trunk.

    Args:
        model: with all of its layers.
        trunk: of that model.
        layout: how batches go through it; not `whole`.
        rounding: of batches.
    """

    def __init__(self, model: nn.Module, trunk: Trunk, layout: Layout, rounding: Rounding) -> None:
        self._model, self._trunk, self._layout, self._rounding = model, trunk, layout, rounding

    def states_of(self, *batches: Sequence[TokenRow], streams: Sequence[mx.Stream] = ()) -> list[np.ndarray]:
        """Those of each row, `(length, hidden)`; the batches are computed at the same time, each on a stream."""
        laid = [make_batch(rows, packed=self._layout == "packed", rounding=self._rounding) for rows in batches]
        seen = []
        for batch, stream in zip(laid, itertools.cycle(streams or [mx.default_stream(mx.default_device())])):
            with mx.stream(stream), self._trunk.alone() as passage:
                form_hidden(self._model, arrays_of(batch), Form.of(batch, self._layout, training=False))
                seen.append(passage.seen.reshape(-1, passage.seen.shape[-1]))
        mx.eval(seen)
        states = []
        for batch, rows, flat in zip(laid, batches, seen, strict=True):
            found = np.array(flat.view(mx.uint16) if flat.dtype == mx.bfloat16 else flat)
            states += [found[start : start + len(row)] for start, row in zip(batch.starts, rows, strict=True)]
        return states

    def agrees(self, vocabulary: int) -> bool:
        """Whether the layers above give the same loss on states made before: a model may hand on more than those."""
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
    """Where only upper layers have adapters, compute those below once for each row, and let them go.

    All stays as it is where each row is trained once, where the model does not allow it, and where the run is `asked`
    to end before all are computed.

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
    session.passes.forget()  # compiled for the longest rows, they would keep the layers that go
    trunk.take_out()
    gc.collect()  # layers that share an input know each other
    device.clear_cache()
    writer.log("trunk", layers=depth, bytes=states.nbytes, seconds=time.perf_counter() - started)


def _refuse_to_fill_disk(session: Session, wanted: int) -> None:
    """Raise a `StorageError` where states of so many bytes leave too little for what the run saves, and for others."""
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
    """The run is to end before all rows have their states."""


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
    """Of the ids of rows, and of where each begins."""
    found = hashlib.sha256()
    for rows in parts:
        found.update(rows.ids.tobytes())
        found.update(rows.offsets.tobytes())
    return found.hexdigest()


def write_states(directory: Path, known: dict[str, Any], made: Iterable[np.ndarray], wanted: int) -> None:
    """Write states `(…, hidden)` one after the other, and of what they were made.

    Args:
        directory: of the run.
        known: what decides them.
        made: as they come.
        wanted: bytes of all.

    Raises:
        StorageError: there is no room.
    """
    (directory / SEAL).unlink(missing_ok=True)
    seal = hashlib.sha256()
    with replacing(directory / FILE, wanted=wanted) as temporary, temporary.open("wb") as file:
        for states in made:
            content = states.tobytes()
            seal.update(content)
            file.write(content)
    write_json(directory / SEAL, {**known, "sha256": seal.hexdigest()})


def read_states(directory: Path, known: dict[str, Any], dtype: str) -> np.ndarray | None:
    """The numbers of all states, mapped from the file; None if they were made of something else, or are damaged."""
    try:
        recorded = json.loads((directory / SEAL).read_text(encoding="utf-8"))
        with (directory / FILE).open("rb") as file:
            sealed = {**known, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        if recorded != sealed:
            return None
        return _mapped(directory, dtype)
    except (OSError, ValueError):
        return None


def _mapped(directory: Path, dtype: str) -> np.ndarray:
    return np.memmap(directory / FILE, BITS[dtype], "r")


def remove_states(directory: Path) -> None:
    """Once a run has ended nobody needs them."""
    for name in (SEAL, FILE):
        (directory / name).unlink(missing_ok=True)
