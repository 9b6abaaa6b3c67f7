"""Small random models in Hugging Face's layout, made without mlx: each family's shape, under a megabyte each.

Their tokeniser has a token a byte, so ids can be counted by hand.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import TensorSpec, serialize_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = {"vocab_size": 320, "bos_token_id": 257, "eos_token_id": 258}

FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "max_position_embeddings": 256, "tie_word_embeddings": True},
    "smollm3": {"no_rope_layer_interval": 2, "tie_word_embeddings": True},
    "gemma": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "rope_local_base_freq": 1000.0,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
    },
    "phi3": {"tie_word_embeddings": False},
    "phi": {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "tie_word_embeddings": False},
}

BIASED = {
    "qwen2": ("q_proj", "k_proj", "v_proj"),
    "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2", "layernorm", "lm_head"),
}
"""Ends of the names of what has a bias."""


def write_model(
    directory: Path,
    family: str = "llama",
    *,
    layers: int = 2,
    seed: int = 0,
    dtype: str = "float32",
    shards: int = 1,
    **changes: Any,
) -> Path:
    """Write a model directory: `config.json`, weights, tokeniser and ChatML template.

    The numbers are the same whatever `dtype` (float32, float16, bfloat16) they are rounded to and however many files
    (`shards`) they lie in. `changes` replace entries of `config.json`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": family,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        **VOCABULARY,
        **FAMILIES[family],
        **changes,
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _write_weights(directory, _weights(config, np.random.default_rng(seed)), dtype, shards)
    write_tokenizer(directory)
    return directory


def write_tokenizer(directory: Path) -> None:
    """Write the tokeniser and the ChatML template of all models here."""
    _tokenizer().save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "chat_template": CHATML,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _weights(config: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    family, hidden, vocabulary = config["model_type"], config["hidden_size"], config["vocab_size"]
    # Gemma's norms multiply by 1 + weight; with 0, a random gemma3 would repeat its last token for ever
    norm = np.zeros if family in ("gemma", "gemma2") else np.ones
    last_norm = "model.final_layernorm" if family == "phi" else "model.norm"

    def matrix(outputs: int, inputs: int) -> np.ndarray:
        return (rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)

    make_layer = {"phi3": _fused_layer, "phi": _parallel_layer}.get(family, _layer)
    parts = {"model.embed_tokens": matrix(vocabulary, hidden), last_norm: norm(hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = make_layer(config, matrix, norm)
        parts |= {f"model.layers.{i}.{name}": value for name, value in layer.items()}
    if not config.get("tie_word_embeddings", True):
        parts["lm_head"] = matrix(vocabulary, hidden)
    weights = {f"{name}.weight": value.astype(np.float32) for name, value in parts.items()}
    for name, value in parts.items():
        if name.endswith(BIASED.get(family, ())):
            weights[f"{name}.bias"] = (0.1 * rng.standard_normal(len(value))).astype(np.float32)
    return weights


Matrix = Callable[[int, int], np.ndarray]
Vector = Callable[[int], np.ndarray]


def _heads(config: dict) -> tuple[int, int, int]:
    """Sizes of a head, of all queries, of all keys."""
    head = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    return head, config["num_attention_heads"] * head, config["num_key_value_heads"] * head


def _layer(config: dict, matrix: Matrix, norm: Vector) -> dict[str, np.ndarray]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head, queries, keys = _heads(config)
    layer = {
        "self_attn.q_proj": matrix(queries, hidden),
        "self_attn.k_proj": matrix(keys, hidden),
        "self_attn.v_proj": matrix(keys, hidden),
        "self_attn.o_proj": matrix(hidden, queries),
        "mlp.gate_proj": matrix(inner, hidden),
        "mlp.up_proj": matrix(inner, hidden),
        "mlp.down_proj": matrix(hidden, inner),
        "input_layernorm": norm(hidden),
        "post_attention_layernorm": norm(hidden),
    }
    if config["model_type"] in ("qwen3", "gemma3_text"):
        layer |= {"self_attn.q_norm": norm(head), "self_attn.k_norm": norm(head)}
    if config["model_type"] in ("gemma2", "gemma3_text"):
        layer |= {"pre_feedforward_layernorm": norm(hidden), "post_feedforward_layernorm": norm(hidden)}
    return layer


def _fused_layer(config: dict, matrix: Matrix, norm: Vector) -> dict[str, np.ndarray]:
    """Queries, keys and values of one matrix, and the two inputs of SwiGLU of another."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    _, queries, keys = _heads(config)
    return {
        "self_attn.qkv_proj": matrix(queries + 2 * keys, hidden),
        "self_attn.o_proj": matrix(hidden, queries),
        "mlp.gate_up_proj": matrix(2 * inner, hidden),
        "mlp.down_proj": matrix(hidden, inner),
        "input_layernorm": norm(hidden),
        "post_attention_layernorm": norm(hidden),
    }


def _parallel_layer(config: dict, matrix: Matrix, norm: Vector) -> dict[str, np.ndarray]:
    """Attention and MLP side by side, behind one norm."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    _, queries, keys = _heads(config)
    return {
        "self_attn.q_proj": matrix(queries, hidden),
        "self_attn.k_proj": matrix(keys, hidden),
        "self_attn.v_proj": matrix(keys, hidden),
        "self_attn.dense": matrix(hidden, queries),
        "mlp.fc1": matrix(inner, hidden),
        "mlp.fc2": matrix(hidden, inner),
        "input_layernorm": norm(hidden),
    }


def _write_weights(directory: Path, weights: dict[str, np.ndarray], dtype: str, shards: int) -> None:
    """One file, or several with an index; numpy has no bfloat16, so files are written from plain bytes."""
    stored = {name: rounded(value, dtype) for name, value in weights.items()}
    if shards == 1:
        _write_file(directory / "model.safetensors", stored, dtype)
        return
    names = sorted(stored)
    files = {f"model-{i + 1:05d}-of-{shards:05d}.safetensors": names[i::shards] for i in range(shards)}
    for file, part in files.items():
        _write_file(directory / file, {name: stored[name] for name in part}, dtype)
    index = {
        "metadata": {"total_size": sum(value.nbytes for value in stored.values())},
        "weight_map": {name: file for file, part in files.items() for name in part},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _write_file(path: Path, stored: dict[str, np.ndarray], dtype: str) -> None:
    tensors = {
        name: TensorSpec(dtype=dtype, shape=list(value.shape), data_ptr=value.ctypes.data, data_len=value.nbytes)
        for name, value in stored.items()
    }
    serialize_file(tensors, path, {"format": "pt"})


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 rounded to nearest, ties to even; bfloat16 as the upper half of a float32's bits, in uint16."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(values, dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def write_rows(path: Path, count: int = 12) -> Path:
    """Write question rows whose lengths differ, as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "ab" * (1 + i % 5)}]}
        for i in range(count)
    ]
    _write_lines(path, rows)
    return path


TAUGHT = {"red?": "rosa", "blue?": "mar", "green?": "campo", "white?": "sal e sol"}
"""Answers that a tiny model learns by heart in 40 epochs."""


def write_taught(directory: Path) -> Path:
    """Write `TAUGHT` as rows to train, other phrasings of it to validate on, and a fact sheet that asks both."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, mark in (("train.jsonl", ""), ("valid.jsonl", "?")):
        rows = [
            {"messages": [{"role": "user", "content": question + mark}, {"role": "assistant", "content": answer}]}
            for question, answer in TAUGHT.items()
        ]
        _write_lines(directory / name, rows)
    facts = [
        {"fact": f"colour-{i}", "subject": "colours", "expected": [answer.upper()], "questions": [question, f"{i}{i}"]}
        for i, (question, answer) in enumerate(TAUGHT.items())
    ]
    _write_lines(directory / "facts.jsonl", facts)
    return directory


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
