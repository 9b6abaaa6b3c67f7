"""Families of models in GGUF: the names of their parts, and the order in which llama.cpp wants the rows.

llama.cpp computes each architecture by its own code, so only what stands here can be written; whatever a model has
beyond that is refused by name instead of being left out. Knows names and settings, no weights.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError, shown
from ..models.base_models import read_configuration

Value = int | float | str | bool | list[bool]


@dataclass(frozen=True)
class Family:
    """A family of models as llama.cpp knows it.

    Attributes:
        models: the models that are meant, for people.
        architecture: llama.cpp's name for it, the value of `general.architecture`.
        layer: `{module within a transformer layer: its name in GGUF}`; every layer has all of them.
        paired: whether rows of queries and keys lie as pairs that rotate together, not as halves of a head.
        norm_offset: what is added to the weights of norms.
        tied: whether the embedding is always the output matrix, too.
        context: tokens of context if `config.json` does not say.
        theta: base of the rotary embedding if `config.json` does not say.
        scalings: kinds of rotary scaling that llama.cpp computes for it as mlx-lm does.
    """

    models: str
    architecture: str
    layer: dict[str, str]
    paired: bool = False
    norm_offset: float = 0.0
    tied: bool = False
    context: int = 4096
    theta: float = 10_000.0
    scalings: tuple[str, ...] = ("linear", "yarn")


_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_FUSED = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

FAMILIES = {
    "llama": Family("Llama 2 and 3, SmolLM2", "llama", _LAYER, paired=True, context=2048,
                    scalings=("linear", "yarn", "llama3")),
    "mistral": Family("Mistral, Mistral Nemo", "llama", _LAYER, paired=True, context=131_072,
                      scalings=("linear", "yarn", "llama3")),
    "qwen2": Family("Qwen2, Qwen2.5", "qwen2", _LAYER, context=32_768, theta=1_000_000.0),
    "qwen3": Family("Qwen3", "qwen3", _LAYER | _HEAD_NORMS, context=32_768, theta=1_000_000.0),
    "smollm3": Family("SmolLM3", "smollm3", _LAYER, paired=True, context=65_536),
    "gemma": Family("Gemma", "gemma", _LAYER, norm_offset=1.0, tied=True, context=8192, scalings=()),
    "gemma2": Family("Gemma 2", "gemma2", _LAYER | _FOUR_NORMS, norm_offset=1.0, tied=True, context=8192, scalings=()),
    "gemma3_text": Family("Gemma 3 (text)", "gemma3", _LAYER | _FOUR_NORMS | _HEAD_NORMS, norm_offset=1.0, tied=True,
                          context=32_768, theta=1_000_000.0, scalings=("linear",)),
    "phi3": Family("Phi-3, Phi-4-mini", "phi3", _FUSED, scalings=("linear", "longrope", "su")),
}  # fmt: skip
"""Families that can be written, by `model_type` in `config.json`."""
_ALSO = {"gemma3": "gemma3_text"}
"""A model that also sees has the same text model within it."""

_NO_ROPE_EVERY = 4  # SmolLM3: llama.cpp's own code leaves every fourth layer without rotary embedding
_WITHOUT_SCALE = {"gemma2": 46, "gemma3_text": 62}
"""Layers of the 27B models, where llama.cpp divides scores by the root of hidden size / heads, not of a head's size."""


def family_table() -> list[dict[str, str]]:
    """Return what each family can do, a row each, for documentation.

    Columns: `model_type` in `config.json`, the `models` meant, llama.cpp's name (`architecture`), kinds of rotary
    scaling that are written (`scaling`), and `limits`: what of the family is refused or computed otherwise.
    """
    return [
        {
            "model_type": name,
            "models": family.models,
            "architecture": family.architecture,
            "scaling": ", ".join(family.scalings),
            "limits": _LIMITS.get(name, ""),
        }
        for name, family in FAMILIES.items()
    ]


_LIMITS = {
    "llama": "no layers with a sliding window",
    "mistral": "a sliding window for all layers is not applied, as in mlx-lm; some layers only: refused",
    "smollm3": f"every {_NO_ROPE_EVERY}th layer without rotary embedding, no other",
    "gemma2": "query_pre_attn_scalar as in Google's models",
    "gemma3_text": "query_pre_attn_scalar as in Google's models; of models that also see, the text model alone",
    "phi3": "the long factors of LongRoPE at every length, as mlx-lm computes; no sliding window",
}


@dataclass(frozen=True)
class FamilyModel:
    """A model of one of these families, as GGUF sees it.

    Attributes:
        path: the directory.
        config: `config.json`, with the settings of a text model inside a larger one.
        family: what it is.
    """

    path: Path
    config: dict[str, Any]
    family: Family

    @property
    def layers(self) -> int:
        """Return the number of transformer layers."""
        return self.config["num_hidden_layers"]

    @property
    def heads(self) -> int:
        """Return the number of heads of the queries."""
        return self.config["num_attention_heads"]

    @property
    def key_heads(self) -> int:
        """Return the number of heads of keys and values."""
        return self.config.get("num_key_value_heads") or self.heads

    @property
    def head_size(self) -> int:
        """Return the size of a head."""
        return self.config.get("head_dim") or self.config["hidden_size"] // self.heads

    def names(self) -> dict[str, str]:
        """Return `{module: its name in GGUF}` of everything that the family can have."""
        layer = {
            f"model.layers.{i}.{module}": f"blk.{i}.{name}"
            for i in range(self.layers)
            for module, name in self.family.layer.items()
        }
        return {module: name for module, name in _TOP.items() if module != "lm_head" or not self.family.tied} | layer

    def order(self, module: str, rows: int) -> np.ndarray | None:
        """Return which row of a module's matrix stands where in GGUF, shape `(rows,)`; None: as they are.

        Hugging Face rotates row `i` of a head with row `i + half`; in GGUF these families have the two side by side.

        Raises:
            ModelError: the rows cannot be divided among the heads.
        """
        heads = {"q_proj": self.heads, "k_proj": self.key_heads}.get(module.rpartition(".")[2])
        if not self.family.paired or heads is None:
            return None
        if rows % (2 * heads):
            raise ModelError(
                f"{self.path}: {module} has {rows} rows, which is no even number for each of {heads} heads."
            )
        return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def recognise_model(path: Path) -> FamilyModel:
    """Read from its `config.json` of which family a model directory is.

    Raises:
        ModelError: it is no model, not of a family that can be written, or has something that llama.cpp computes
            differently.
    """
    config = read_configuration(path)
    given = config["model_type"]
    family = FAMILIES.get(_ALSO.get(given, given))
    if family is None or any(config.get(name) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise ModelError(
            f"{path}: {given} cannot be written as GGUF{_why_not(given, config)}. Families that can: "
            f"{', '.join(FAMILIES)}."
        )
    config = {**config, "model_type": _ALSO.get(given, given)}
    if problem := _differs(config, family):
        raise ModelError(f"{path / 'config.json'}: cannot be written as GGUF: {problem}.")
    return FamilyModel(path, config, family)


def _why_not(name: str, config: dict[str, Any]) -> str:
    experts = "moe" in name or "mixtral" in name or any("expert" in key for key in config)
    return " (a mixture of experts)" if experts else ""


def _differs(config: dict[str, Any], family: Family) -> str:
    """Return what llama.cpp would compute otherwise than mlx-lm, in words; empty if nothing."""
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        if not isinstance(config.get(name), int):
            return f"{name} is {shown(config.get(name))}, wanted a number"
    kind, scaling = _scaling(config)
    if kind and kind not in family.scalings:
        return f"rope_scaling {shown(kind)} is not known for this family; known: {', '.join(family.scalings) or 'none'}"
    if scaling.get("mscale_all_dim"):
        return f"rope_scaling has mscale_all_dim {shown(scaling['mscale_all_dim'])}, which llama.cpp does not know here"
    if family.architecture == "llama" and "sliding_attention" in (config.get("layer_types") or ()):
        return "some of its layers attend to a sliding window, which llama.cpp does not do for this family"
    if family.architecture == "smollm3" and (without := _without_rope(config)) != _without_rope({**config, **_EVERY}):
        return f"layers {without} have no rotary embedding; llama.cpp leaves it out of every {_NO_ROPE_EVERY}th"
    if (scalar := config.get("query_pre_attn_scalar")) and scalar != (wanted := _scale_of(config)):
        return f"query_pre_attn_scalar is {shown(scalar)}; llama.cpp takes {wanted:g} for a model of these sizes"
    return ""


_EVERY = {"no_rope_layers": None, "no_rope_layer_interval": _NO_ROPE_EVERY}


def _without_rope(config: dict[str, Any]) -> list[int]:
    interval = config.get("no_rope_layer_interval") or _NO_ROPE_EVERY
    with_rope = config.get("no_rope_layers") or [(i + 1) % interval for i in range(config["num_hidden_layers"])]
    return [i for i, used in enumerate(with_rope) if not used]


def _scale_of(config: dict[str, Any]) -> float:
    """Return what llama.cpp divides attention scores by the root of."""
    per_head = config["hidden_size"] / config["num_attention_heads"]
    if _WITHOUT_SCALE.get(config["model_type"]) == config["num_hidden_layers"]:
        return per_head
    return config.get("head_dim") or per_head


# Settings -------------------------------------------------------------------------------------------------------


def hyperparameters(model: FamilyModel) -> dict[str, Value]:
    """Return the model's settings as GGUF names them, after the architecture's name and a dot."""
    config, family = model.config, model.family
    found: dict[str, Value] = {
        "context_length": int(config.get("max_position_embeddings") or family.context),
        "embedding_length": config["hidden_size"],
        "block_count": model.layers,
        "feed_forward_length": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "attention.head_count": model.heads,
        "attention.head_count_kv": model.key_heads,
        "attention.key_length": model.head_size,
        "attention.value_length": model.head_size,
        "attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps") or 1e-6),
        "rope.dimension_count": rotated(model),
        "rope.freq_base": float(_rope(config).get("rope_theta") or config.get("rope_theta") or family.theta),
    }
    if family.architecture in ("gemma2", "gemma3"):
        found |= _windows(config)
    if family.architecture == "phi3":
        found["attention.sliding_window"] = int(config.get("sliding_window") or 0)  # llama.cpp wants one and ignores it
    return found | _scaling_settings(model)


def rotated(model: FamilyModel) -> int:
    """Return how many numbers of a head are rotated."""
    return int(model.head_size * (model.config.get("partial_rotary_factor") or 1.0))


def _windows(config: dict[str, Any]) -> dict[str, Value]:
    """Return what Gemma 2 and 3 have beside: windows, caps, and another rotary base inside the windows."""
    found: dict[str, Value] = {"attention.sliding_window": int(config.get("sliding_window") or 4096)}
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    found |= {cap: float(config[cap]) for cap in caps if config.get(cap)}
    if config["model_type"] == "gemma3_text":
        found["attention.sliding_window"] = int(config.get("sliding_window") or 512)
        found["attention.sliding_window_pattern"] = int(_pattern(config))
        found["rope.freq_base_swa"] = float(config.get("rope_local_base_freq") or 10_000.0)
    else:
        found.setdefault("attn_logit_softcapping", 50.0)
        found.setdefault("final_logit_softcapping", 30.0)
    return found


def _pattern(config: dict[str, Any]) -> int:
    """Return how many layers lie from one that attends to everything to the next."""
    kinds = config.get("layer_types") or []
    named = kinds.index("full_attention") + 1 if "full_attention" in kinds else 6
    return config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or named


# Rotary embedding -----------------------------------------------------------------------------------------------


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the rotary embedding that are objects: newer models put all of them into one."""
    newer = config.get("rope_parameters") or {}
    return {**(newer.get("full_attention") or newer), **(config.get("rope_scaling") or {})}


def _scaling(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the kind of scaling, empty if there is none, and its settings."""
    found = _rope(config)
    kind = str(found.get("rope_type") or found.get("type") or "")
    return ("" if kind == "default" else kind), found


def _scaling_settings(model: FamilyModel) -> dict[str, Value]:
    kind, found = _scaling(model.config)
    original = found.get("original_max_position_embeddings") or model.config.get("original_max_position_embeddings")
    if kind in ("linear", "yarn"):
        settings: dict[str, Value] = {"rope.scaling.type": kind, "rope.scaling.factor": float(found["factor"])}
        if kind == "yarn":
            settings["rope.scaling.original_context_length"] = int(original or 4096)
            settings |= {
                f"rope.scaling.yarn_{name}": float(found[name]) for name in ("beta_fast", "beta_slow") if name in found
            }
        return settings
    if kind in ("longrope", "su"):
        original = int(original or 4096)
        factor = model.config.get("max_position_embeddings", model.family.context) / original
        plain = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        return {
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": float(found.get("long_mscale") or plain),
        }
    return {}


def rope_tensors(model: FamilyModel) -> dict[str, np.ndarray]:
    """Return the rotary factors that GGUF keeps as tensors, `{name: float32}`.

    Each frequency is divided by its factor. mlx-lm computes LongRoPE with the long factors at every length, and so was
    the model trained here; llama.cpp would take the short ones for short texts, and therefore finds the long ones
    under both names.
    """
    kind, found = _scaling(model.config)
    if kind == "llama3":
        return {"rope_freqs": _llama3_factors(model, found)}
    if kind in ("longrope", "su"):
        factors = np.asarray(found["long_factor"], np.float32)
        if factors.shape != (rotated(model) // 2,):
            raise ModelError(
                f"{model.path / 'config.json'}: long_factor has {factors.size} numbers, wanted {rotated(model) // 2}."
            )
        return {"rope_factors_long": factors, "rope_factors_short": factors}
    return {}


def _llama3_factors(model: FamilyModel, found: dict[str, Any]) -> np.ndarray:
    """Return by what Llama 3.1 divides each frequency: slow ones by `factor`, fast ones by 1, between them smoothly."""
    theta = float(found.get("rope_theta") or model.config.get("rope_theta") or model.family.theta)
    size = rotated(model)
    wavelength = 2 * math.pi * theta ** (np.arange(0, size, 2) / size)
    factor, low, high = float(found["factor"]), found.get("low_freq_factor", 1.0), found.get("high_freq_factor", 4.0)
    original = found.get("original_max_position_embeddings", 8192)
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


_PREFIX = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?(?=layers\.|embed_tokens|norm)|^model\.(?=language_)")


def module_name(tensor: str) -> str:
    """Return a module's name as a text model alone has it; inside a larger model it stands below `language_model`."""
    if tensor.startswith(("language_model.lm_head", "model.language_model.lm_head")):
        return tensor[tensor.index("lm_head") :]
    return _PREFIX.sub("model.", tensor)
