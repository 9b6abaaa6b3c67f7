"""A model directory written as one GGUF file, a few rows at a time. Knows nothing of runs.

Each matrix is read, put into llama.cpp's order, stored in its blocks and written before the next one is looked at, so
memory stays near one part of one matrix however large the model is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_VERSION, GGUFValueType, GGUFWriter, Keys
from gguf.constants import GGUF_DEFAULT_ALIGNMENT

from ..errors import ModelError, shown
from ..files.storage import replacing
from ..tokens.tokenizer import ChatTokenizer
from ..translations import Sentence
from .blocks import KINDS, Block, Kind, choose_block, encode, encode_packed, file_type, row_bytes
from .families import FamilyModel, hyperparameters, module_name, recognise_model, rope_tensors
from .tokenizer import Vocabulary, read_vocabulary
from .weights import StoredWeights, Weight

AT_ONCE = 4_000_000  # weights that are converted together: 16 MB as float32

_SENSES = ("vision_tower", "vision_model", "multi_modal_projector", "audio_tower", "embed_vision")
"""Parts for images and sound, which are left out."""


@dataclass(frozen=True)
class About:
    """The metadata of a file for people and programs: its name, its base, and how it is asked.

    Attributes:
        name: the model's, for people; empty: none.
        chat_template: the template that it is asked with; empty: none.
        ends: ids that end an answer, the tokeniser's own end of text first.
        base: name of the base model.
        repository: OWNER/NAME of the base on Hugging Face's hub, if it is there.
        licence: as SPDX or the hub names it.
        begins: whether a chat begins with the beginning of text; None: if a plain text does. The template may leave out
            what the tokeniser would add, and a token more before each question changes answers.
    """

    name: str = ""
    chat_template: str = ""
    ends: Sequence[int] = ()
    base: str = ""
    repository: str = ""
    licence: str = ""
    begins: bool | None = None

    @classmethod
    def asked_by(cls, tokenizer: ChatTokenizer, **rest: str) -> About:
        """Make one for a model that is asked as a tokeniser does it, with its template.

        Raises:
            DataError: the template refuses a question.
        """
        first = tokenizer.encode_prompt("?")[:1]
        begins = bool(tokenizer.bos_token) and tokenizer.control_names.get(first[0]) == tokenizer.bos_token
        return cls(chat_template=tokenizer.asking_template, ends=tokenizer.eos_ids, begins=begins, **rest)


@dataclass
class Written:
    """The outcome of writing a file.

    Attributes:
        bytes: size of the file.
        tensors: number of tensors.
        blocks: how many weights have each kind of block, `{name: weights}`.
        rounded: tensors whose quantised numbers were to be kept, but fit no block exactly.
        notes: what llama.cpp does otherwise than here, a sentence each.
    """

    bytes: int = 0
    tensors: int = 0
    blocks: dict[str, int] = field(default_factory=dict)
    rounded: list[str] = field(default_factory=list)
    notes: list[Sentence] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """A tensor to be written: its name in GGUF with `.weight` or `.bias`, where it comes from, and its block."""

    name: str
    weight: Weight
    block: Block
    order: np.ndarray | None
    offset: float


def write_model(source: Path, out: Path, kind: Kind, about: About | None = None) -> Written:
    """Write a GGUF file from a model directory.

    Args:
        source: the model, in Hugging Face's or MLX's layout, unquantised or quantised by MLX.
        out: the file to write; it appears when it is complete, and replaces what was there.
        kind: how matrices are stored. `as-stored` keeps the numbers of a quantised base: 2 to 4 bits in Q4_1 and 5 in
            Q5_1, both exactly where scales fit float16; 8 in Q8_0, exactly where it has no bias but whole steps;
            everything else is float16. With another kind, too, a matrix whose numbers fit its block keeps them.
        about: what the file says of itself.

    Raises:
        ModelError: the model cannot be written; `out` is as it was.
        StorageError: the file cannot be written; `out` is as it was.
    """
    if kind not in KINDS:
        raise ModelError(f"{out}: cannot be written as {shown(kind)}; wanted one of {', '.join(KINDS)}.")
    about = about or About()
    model = recognise_model(source)
    parts = list(_parts(model, kind))
    vocabulary = read_vocabulary(source, _rows_of_embedding(parts), about.ends)
    if vocabulary.strips and not vocabulary.tokens_include(_PHI3_TOKENS):
        vocabulary.notes.append(Sentence("Some added tokens take the blanks after them along; not so in llama.cpp."))
    if about.begins is not None:
        vocabulary.adds["bos"] &= about.begins
    written = Written(tensors=len(parts), notes=list(vocabulary.notes))
    wanted = sum(_size(part) for part in parts)
    with replacing(out, wanted=wanted) as temporary:
        writer = GGUFWriter(temporary, model.family.architecture)
        try:
            _describe(writer, model, vocabulary, about, _main_block(parts))
            _write_tensors(writer, model, parts, written)
        finally:
            writer.close()
        written.bytes = temporary.stat().st_size
    return written


# Which tensors --------------------------------------------------------------------------------------------------


def _parts(model: FamilyModel, kind: Kind) -> Iterator[_Part]:
    """Yield everything that is written, the embedding first.

    Raises:
        ModelError: a tensor is unknown or missing.
    """
    names = model.names()
    found: dict[str, Weight] = {}
    for weight in StoredWeights(model.path, model.config):
        name = module_name(weight.name)
        if not any(sense in name for sense in _SENSES) and not name.endswith("rotary_emb.inv_freq"):
            found[name] = weight
    if model.family.tied or model.config.get("tie_word_embeddings"):
        found.pop("lm_head.weight", None)
    if unknown := [name for name in found if name.rpartition(".")[0] not in names]:
        raise ModelError(f"{model.path}: {unknown[0]} has no place in a {model.family.architecture} GGUF.")
    needed = [f"model.layers.{i}.{name}.weight" for i in range(model.layers) for name in model.family.layer]
    needed += ["model.embed_tokens.weight", "model.norm.weight"]
    if missing := [name for name in needed if name not in found]:
        raise ModelError(f"{model.path}: {missing[0]} is missing.")
    for module, target in names.items():
        for leaf in ("weight", "bias"):
            if weight := found.get(f"{module}.{leaf}"):
                block = choose_block(kind, target, weight, model.layers)
                order = model.order(module, weight.shape[0])
                offset = model.family.norm_offset if module.endswith("norm") else 0.0
                yield _Part(f"{target}.{leaf}", weight, block, order, offset)


def _rows_of_embedding(parts: Sequence[_Part]) -> int:
    return next(part.weight.shape[0] for part in parts if part.name == "token_embd.weight")


def _size(part: _Part) -> int:
    *rows, inputs = part.weight.shape
    return int(np.prod(rows, dtype=np.int64)) * row_bytes(part.block, inputs)


def _main_block(parts: Sequence[_Part]) -> Block:
    """Return the block of most weights within the layers."""
    count: dict[Block, int] = {}
    for part in parts:
        if len(part.weight.shape) > 1 and part.name.startswith("blk."):
            count[part.block] = count.get(part.block, 0) + int(np.prod(part.weight.shape))
    return max(count, key=count.__getitem__)


# Metadata -------------------------------------------------------------------------------------------------------


def _describe(writer: GGUFWriter, model: FamilyModel, vocabulary: Vocabulary, about: About, main: Block) -> None:
    writer.add_type("model")
    writer.add_name(_name(about.name or about.base or model.family.models, vocabulary))
    writer.add_file_type(file_type(main))
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_origin(writer, about)
    for key, value in hyperparameters(model).items():
        _add(writer, f"{model.family.architecture}.{key}", value)
    _add_vocabulary(writer, vocabulary)
    if about.chat_template:
        writer.add_chat_template(about.chat_template)


_PHI3 = re.compile("phi-?3", re.IGNORECASE)
_PHI3_TOKENS = frozenset({"</s>", "<s>", "<unk>", "<|endoftext|>"})


def _name(name: str, vocabulary: Vocabulary) -> str:
    """Return the name that is written.

    In a model whose name says Phi-3 llama.cpp lets control tokens take the blanks after them along, and does not load
    it without these four tokens. So the name says it exactly where that is right.
    """
    if vocabulary.strips and vocabulary.tokens_include(_PHI3_TOKENS):
        return name if _PHI3.search(name) else f"{name} (Phi-3)"
    return _PHI3.sub("Phi 3", name)


def add_origin(writer: GGUFWriter, about: About) -> None:
    """Write where a model comes from: names, never places on this machine."""
    if about.licence:
        writer.add_license(about.licence)
    if about.base or about.repository:
        owner, _, name = about.repository.rpartition("/")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, about.base or name)
        if about.repository:
            writer.add_base_model_organization(0, owner)
            writer.add_base_model_repo_url(0, f"https://huggingface.co/{about.repository}")


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.rules)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    elif vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    else:  # llama.cpp wants the list even if it is empty, which the package does not write
        writer.add_key_value(Keys.Tokenizer.MERGES, _no_merges(vocabulary), GGUFValueType.ARRAY)
    adders = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "eot": writer.add_eot_token_id,
              "unk": writer.add_unk_token_id, "pad": writer.add_pad_token_id}  # fmt: skip
    for key, number in vocabulary.ids.items():
        adders[key](number)
    writer.add_add_bos_token(vocabulary.adds["bos"])
    writer.add_add_eos_token(vocabulary.adds["eos"])


def _no_merges(vocabulary: Vocabulary) -> list[str]:
    """Return a merge that changes nothing: what it makes is no token, so its parts stay apart."""
    token = next(token for token in vocabulary.tokens if token + token not in vocabulary.tokens)
    return [f"{token} {token}"]


# Tensors --------------------------------------------------------------------------------------------------------


def _write_tensors(writer: GGUFWriter, model: FamilyModel, parts: Sequence[_Part], written: Written) -> None:
    extra = rope_tensors(model)
    for name, values in extra.items():
        writer.add_tensor_info(f"{name}.weight", values.shape, np.dtype(np.float32), values.nbytes)
    for part in parts:
        *rows, inputs = part.weight.shape
        stored = (*rows, row_bytes(part.block, inputs))
        plain = part.block is Block.F32
        shape, dtype = (part.weight.shape, np.float32) if plain else (stored, np.uint8)
        writer.add_tensor_info(part.name, shape, np.dtype(dtype), _size(part), None if plain else part.block)
        written.blocks[part.block.name] = written.blocks.get(part.block.name, 0) + int(np.prod(part.weight.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    file.write(bytes(-file.tell() % GGUF_DEFAULT_ALIGNMENT))
    for values in extra.values():
        write_padded(file, [values])
    for part in parts:
        try:
            write_padded(file, _encoded(part, written))
        except ModelError as error:
            raise ModelError(f"{model.path}: {part.weight.name} {error}") from None
    written.tensors += len(extra)


def write_padded(file: Any, chunks: Any) -> None:
    """Write one tensor and zeros up to the next multiple of the alignment."""
    size = 0
    for chunk in chunks:
        file.write(memoryview(np.ascontiguousarray(chunk)).cast("B"))
        size += chunk.nbytes
    file.write(bytes(-size % GGUF_DEFAULT_ALIGNMENT))


def _encoded(part: _Part, written: Written) -> Iterator[np.ndarray]:
    """Yield the bytes of a tensor, some rows at a time."""
    weight = part.weight
    rows = weight.shape[0]
    step = rows if len(weight.shape) == 1 else max(1, AT_ONCE // weight.shape[1])
    exact = True
    for begin in range(0, rows, step):
        chosen = slice(begin, begin + step) if part.order is None else part.order[begin : begin + step]
        if weight.bits and part.block in (Block.Q4_1, Block.Q5_1, Block.Q8_0) and _keeps(part):
            stored, same = encode_packed(weight.packed(chosen), part.block)
            exact &= same
            yield stored
        elif len(weight.shape) == 1:
            yield (weight.values(chosen) + np.float32(part.offset)).astype(np.float32)
        else:
            yield encode(weight.values(chosen), part.block)
    if not exact:
        written.rounded.append(part.name)


def _keeps(part: _Part) -> bool:
    """Return whether a block can take over the numbers of a quantised matrix."""
    return choose_block("as-stored", part.name.rpartition(".")[0], part.weight, 1) is part.block
