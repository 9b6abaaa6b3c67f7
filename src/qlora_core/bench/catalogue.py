"""The choices as plain data: trainers, workloads, and model shapes. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Contestant:
    """A trainer.

    Attributes:
        words: its description for people.
        module: module here whose `train` drives it.
        needs: packages that must be installed.
        install: the command that installs them.
        on: devices (`cpu`, `cuda`, `metal`) on which it is compared.
        cautious: whether it is so slow on a CPU that it gets a few steps only.
    """

    words: str
    module: str
    needs: tuple[str, ...] = ("mlx", "mlx_lm")
    install: str = "pip install mlx-lm"
    on: tuple[str, ...] = ("cpu", "cuda", "metal")
    cautious: bool = False


PEFT = ("torch", "transformers", "peft")
CONTESTANTS = {
    "qlora": Contestant("this package", "ours"),
    "mlx-lm": Contestant("mlx-lm's trainer as installed", "mlxlm", cautious=True),
    "mlx-lm-strong": Contestant(
        "mlx-lm's trainer with rows sorted by length, its cache kept, and on a Linux CPU this package's BLAS and "
        "dequantised products",
        "mlxlm",
    ),
    "peft": Contestant(
        "PyTorch and PEFT, the same weights dequantised to float32",
        "torchpeft",
        PEFT,
        "pip install torch transformers peft accelerate",
        ("cpu", "metal"),
    ),
    "peft-nf4": Contestant(
        "PyTorch and PEFT, weights in bitsandbytes' nf4",
        "torchpeft",
        (*PEFT, "bitsandbytes"),
        "pip install torch transformers peft accelerate bitsandbytes",
        ("cuda",),
    ),
    "peft-bf16": Contestant(
        "PyTorch and PEFT, the same weights dequantised to bfloat16",
        "torchpeft",
        PEFT,
        "pip install torch transformers peft accelerate",
        ("cuda",),
    ),
}


@dataclass(frozen=True)
class Work:
    """Rows to train; `works` makes them.

    Attributes:
        words: their description for people.
        on_cpu: rows a step that each trainer is tried with.
        on_gpu: rows a step on a GPU.
    """

    words: str
    on_cpu: tuple[int, ...]
    on_gpu: tuple[int, ...]


WORKS = {
    "short-qa": Work("2,400 short questions and answers of 20 to 200 tokens", (4, 8, 16), (16, 32, 64, 128)),
    "system-text": Work(
        "the same rows, all with one system text of 100 tokens before them", (4, 8, 16), (16, 32, 64, 128)
    ),
    "sample": Work("the sample data", (4, 8, 16), (8, 16, 32, 64)),
    "uniform": Work("400 rows of 256 tokens: nothing to gain by packing", (2, 4, 8), (4, 8, 16)),
    "long": Work("100 rows of about 2,000 tokens", (1, 2), (1, 2, 4)),
}

RANDOM = "random-"  # before the name of a shape: a model of that shape whose weights are drawn
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True,
    },
    "mistral-7b": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32_768, "tie_word_embeddings": False,
    },
    "mistral-small": {
        "model_type": "mistral", "hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32_768, "tie_word_embeddings": False,
    },
    "qwen3": {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
        "max_position_embeddings": 40_960, "tie_word_embeddings": True,
    },
    "gemma": {
        "model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262_144,
        "query_pre_attn_scalar": 256, "rope_local_base_freq": 10_000.0, "sliding_window": 512,
        "sliding_window_pattern": 6, "max_position_embeddings": 32_768, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""`config.json` of each: mistral-7b's, and those of small models whose vocabulary makes the head expensive."""

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
