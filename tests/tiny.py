"""Small random models in Hugging Face's layout, made without mlx: each family's shape, under a megabyte each.

Their tokeniser has a token a byte, so ids can be counted by hand.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 16, "max_position_embeddings": 256, "tie_word_embeddings": True},
    "gemma": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16.0,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
}


def write_model(directory: Path, family: str = "llama", *, layers: int = 2, seed: int = 0, **changes: Any) -> Path:
    """Write a model directory: `config.json`, `model.safetensors`, tokeniser and ChatML template.

    `changes` replace entries of `config.json`.
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
        "vocab_size": 320,
        "bos_token_id": 257,
        "eos_token_id": 258,
        **FAMILIES[family],
        **changes,
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(_weights(config, np.random.default_rng(seed)), directory / "model.safetensors", {"format": "pt"})
    _tokenizer().save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "chat_template": CHATML,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def _weights(config: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    gemma = config["model_type"].startswith("gemma")
    norm = np.zeros if gemma else np.ones  # gemma's norms multiply by 1 + weight

    def matrix(outputs: int, inputs: int) -> np.ndarray:
        return (rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)

    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden), "model.norm.weight": norm(hidden)}
    for i in range(config["num_hidden_layers"]):
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
        if config["model_type"] == "qwen3":
            layer |= {"self_attn.q_norm": norm(head), "self_attn.k_norm": norm(head)}
        if config["model_type"] == "gemma2":
            layer |= {"pre_feedforward_layernorm": norm(hidden), "post_feedforward_layernorm": norm(hidden)}
        weights |= {f"model.layers.{i}.{name}.weight": value for name, value in layer.items()}
    if not config.get("tie_word_embeddings", True):
        weights["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    return {name: value.astype(np.float32) for name, value in weights.items()}


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
