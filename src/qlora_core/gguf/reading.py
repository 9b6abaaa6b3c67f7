"""GGUF files read by us: settings, tokeniser and tensors, where llama.cpp is not at hand.

A file is hostile until it is read: each length is checked against what is left of the file before anything is made of
it, each tensor must lie within the file and overlap no other, and numbers are read only when asked for. The format is
described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES

from ..errors import ModelError, StorageError, brief, shown
from ..files.storage import explained
from ..files.untrusted_json import is_whole
from .blocks import Block, decode
from .families import FAMILIES, Family, FamilyModel

MOST_KEYS, MOST_TENSORS, MOST_ITEMS = 10_000, 100_000, 1 << 24
LONGEST_NAME, LONGEST_TEXT = 256, 16_000_000  # bytes
LARGEST = 2**31 - 1  # of a dimension

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_READABLE = {Block.F32, Block.F16, Block.BF16, Block.Q4_0, Block.Q4_1, Block.Q5_0, Block.Q5_1, Block.Q8_0, Block.Q2_K,
             Block.Q3_K, Block.Q4_K, Block.Q5_K, Block.Q6_K}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry in the header.

    Attributes:
        block: how it is stored.
        shape: as numpy has it, the longest-lying dimension last.
        begin: its place in the file.
        size: its bytes.
    """

    block: Block
    shape: tuple[int, ...]
    begin: int
    size: int


class GgufFile:
    """The header of a GGUF file, and its tensors on demand.

    Args:
        path: the file.

    Attributes:
        metadata: `{key: value}`; arrays of numbers are numpy's, arrays of texts lists.
        tensors: `{name: entry}`.

    Raises:
        ModelError: it is not one, is cut off or contradicts itself.
        StorageError: the device does not let it be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            if not self.path.is_file():  # reading a named pipe would wait for ever
                raise ValueError("not a regular file")
            if self.path.stat().st_size < 24:
                raise ValueError(f"only {self.path.stat().st_size} bytes")
            with explained(self.path, problem="cannot be read"), self.path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.metadata, self.tensors = _read_header(_Cursor(self._bytes))
        except StorageError:  # the device's fault, not the file's
            raise
        except (OSError, ValueError, OverflowError, struct.error) as error:
            raise ModelError(f"{self.path}: not a GGUF file that can be read: {brief(error)}.") from None

    def values(self, name: str) -> np.ndarray:
        """Return a tensor as float32.

        Raises:
            ModelError: there is none of that name.
        """
        info = self.tensors.get(name)
        if info is None:
            raise ModelError(f"{self.path}: has no tensor {shown(name)}.")
        raw = np.frombuffer(self._bytes, np.uint8, info.size, info.begin)
        if info.size == 0:
            return np.zeros(info.shape, np.float32)
        return decode(raw.reshape(math.prod(info.shape[:-1]), -1), info.block).reshape(info.shape)


class _Cursor:
    """A place in the file's bytes that never moves beyond their end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        if size > len(self.data) - self.place:
            raise ValueError(f"cut off: {size} bytes wanted at byte {self.place} of {len(self.data)}")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, code: str) -> Any:
        """Return the next number."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self, longest: int) -> str:
        """Return the next text; bytes that are no UTF-8 are kept as escapes."""
        size = self.number("Q")
        if size > longest:
            raise ValueError(f"a text of {size} bytes at byte {self.place}; at most {longest} are read")
        return self.take(size).decode("utf-8", errors="backslashreplace")

    def value(self, kind: int) -> Any:
        """Return the next value of metadata."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text(LONGEST_TEXT)
        if kind != _ARRAY:
            raise ValueError(f"a value of the unknown type {kind}")
        of, count = self.number("I"), self.number("Q")
        if count > MOST_ITEMS:
            raise ValueError(f"an array of {count} items; at most {MOST_ITEMS} are read")
        if of == _TEXT:
            return [self.text(LONGEST_TEXT) for _ in range(count)]
        if of not in _SCALARS:
            raise ValueError(f"an array of the unknown type {of}")
        dtype = np.dtype(_SCALARS[of]).newbyteorder("<")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)


def _read_header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if (magic := cursor.take(4)) != b"GGUF":
        raise ValueError(f"begins with {shown(magic)}")
    if (version := cursor.number("I")) not in (2, 3):
        raise ValueError(f"version {version}; wanted 2 or 3")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    if tensors > MOST_TENSORS or keys > MOST_KEYS:
        raise ValueError(f"{tensors} tensors and {keys} settings")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text(LONGEST_NAME)
        if key in metadata:
            raise ValueError(f"{shown(key)} stands there twice")
        metadata[key] = cursor.value(cursor.number("I"))
    entries = dict(_entry(cursor) for _ in range(tensors))
    if len(entries) < tensors:
        raise ValueError("a tensor stands there twice")
    alignment = metadata.get("general.alignment", 32)
    if not is_whole(alignment, 1, 1 << 16) or alignment % 8:
        raise ValueError(f"alignment {shown(alignment)}")
    start = -(-cursor.place // alignment) * alignment
    placed = {name: Tensor(block, shape, start + offset, size) for name, (block, shape, offset, size) in
              entries.items()}  # fmt: skip
    _refuse_misplaced(placed, alignment, len(cursor.data))
    return metadata, placed


def _entry(cursor: _Cursor) -> tuple[str, tuple[Block, tuple[int, ...], int, int]]:
    name, count = cursor.text(LONGEST_NAME), cursor.number("I")
    if not 1 <= count <= 4:
        raise ValueError(f"{shown(name)} has {count} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(count))[::-1]
    kind, offset = cursor.number("I"), cursor.number("Q")
    known = {block.value: block for block in _READABLE}
    if kind not in known:
        raise ValueError(f"{shown(name)} is stored in blocks of the type {kind}, which is not read")
    weights, stored = GGML_QUANT_SIZES[known[kind]]
    if any(size > LARGEST for size in shape) or shape[-1] % weights:
        raise ValueError(f"{shown(name)} has the shape {shape} in blocks of {weights}")
    return name, (known[kind], shape, offset, math.prod(shape) // weights * stored)


def _refuse_misplaced(tensors: dict[str, Tensor], alignment: int, end: int) -> None:
    reached = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].begin):
        if info.begin % alignment or info.begin < reached:
            raise ValueError(f"{shown(name)} overlaps another tensor or lies at no multiple of {alignment}")
        reached = info.begin + info.size
        if reached > end:
            raise ValueError(f"cut off: {shown(name)} ends at byte {reached} of {end}")


# Models ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A model in a GGUF file.

    Attributes:
        file: it.
        architecture: llama.cpp's name for it.
        hyperparameters: its settings, without the architecture before their names.
        tokenizer: the settings of its tokeniser, without `tokenizer.ggml.`.
        chat_template: how it is asked; empty if the file does not say.
    """

    file: GgufFile
    architecture: str
    hyperparameters: dict[str, Any]
    tokenizer: dict[str, Any]
    chat_template: str

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield names and float32 numbers of all tensors as Hugging Face has them.

        Raises:
            ModelError: the family is not known, or a tensor does not belong to it.
        """
        model = FamilyModel(self.file.path, self._config(), self._family())
        modules = {target: module for module, target in model.names().items()}
        for name, info in self.file.tensors.items():
            target, _, leaf = name.rpartition(".")
            if target in ("rope_freqs", "rope_factors_long", "rope_factors_short"):
                continue
            if target not in modules:
                raise ModelError(f"{self.file.path}: {shown(name)} has no place in a {self.architecture} model.")
            module, values = modules[target], self.file.values(name)
            if (order := model.order(module, info.shape[0])) is not None:
                values = values[np.argsort(order)]
            if module.endswith("norm") and model.family.norm_offset:
                values = values - np.float32(model.family.norm_offset)
            yield f"{module}.{leaf}", values

    def _family(self) -> Family:
        family = next((each for each in FAMILIES.values() if each.architecture == self.architecture), None)
        if family is None:
            known = ", ".join(sorted({each.architecture for each in FAMILIES.values()}))
            raise ModelError(f"{self.file.path}: is a {shown(self.architecture)}; known: {known}.")
        return family

    def _config(self) -> dict[str, Any]:
        names = {
            "num_hidden_layers": ("block_count", 1024),
            "num_attention_heads": ("attention.head_count", 1 << 14),
            "num_key_value_heads": ("attention.head_count_kv", 1 << 14),
            "hidden_size": ("embedding_length", 1 << 20),
        }
        for key, most in names.values():
            if not is_whole(self.hyperparameters.get(key), 1, most):
                raise ModelError(f"{self.file.path}: {key} is {shown(self.hyperparameters.get(key))}.")
        return {name: self.hyperparameters[key] for name, (key, _) in names.items()}


def read_model(path: Path) -> Model:
    """Read a model's GGUF file: its header now, numbers on demand.

    Raises:
        ModelError: it is no model, or is damaged.
    """
    file = GgufFile(path)
    architecture = file.metadata.get("general.architecture")
    kind = file.metadata.get("general.type", "model")
    if not isinstance(architecture, str) or not isinstance(kind, str) or kind != "model":
        raise ModelError(f"{path}: holds no model, but {shown(file.metadata.get('general.type'))}.")
    own, tokens = f"{architecture}.", "tokenizer.ggml."
    template = file.metadata.get("tokenizer.chat_template", "")
    return Model(
        file,
        architecture,
        {key.removeprefix(own): value for key, value in file.metadata.items() if key.startswith(own)},
        {key.removeprefix(tokens): value for key, value in file.metadata.items() if key.startswith(tokens)},
        template if isinstance(template, str) else "",
    )
