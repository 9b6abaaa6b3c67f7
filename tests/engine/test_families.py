"""Any base works: ten families in Hugging Face's layout, and other architectures of mlx-lm that differ in kind.

Each is loaded, trained, cut, resumed, asked, and read by mlx-lm itself in a process without our kernels.
"""

import dataclasses
import functools
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from harness import (
    FAST,
    PLAIN,
    at_step,
    checkpoint,
    create_run,
    difference,
    events,
    hashes,
    load,
    set_adapters,
    textbook_loss,
    train,
    trained_state,
    write_pair,
    write_quantised,
)
from tiny import FAMILIES, VOCABULARY, write_model, write_tokenizer

from qlora_core.config import LoraConfig
from qlora_core.engine import kernels as kernel_module
from qlora_core.engine.device import mx, nn, tree_flatten
from qlora_core.engine.generate import answer
from qlora_core.engine.model import Layout, attach_adapters, batch_loss, choose_layout, load_adapters
from qlora_core.runs.run import Run
from qlora_core.tokens.batching import make_batch
from qlora_core.tokens.rows import TokenRow
from qlora_core.training.session import load_for_answers

STEPS = 3
PROMPTS = ["red?", "What did the club win in its first year, and where?", "?"]
LORA = LoraConfig(rank=4)

LAYOUTS: dict[str, Layout] = {
    "llama": "packed",
    "mistral": "packed",
    "qwen2": "packed",
    "qwen3": "packed",
    "smollm3": "packed",
    "gemma": "packed",
    "gemma2": "whole",  # a soft cap on scores and logits
    "gemma3_text": "packed",
    "phi3": "packed",
    "phi": "packed",
}

# Other architectures --------------------------------------------------------------------------------------------

Tensors = Iterator[tuple[str, mx.array]]


@dataclasses.dataclass(frozen=True)
class Other:
    """An architecture of mlx-lm outside the families.

    Attributes:
        layout: what `choose_layout` must find.
        config: entries of `config.json` besides those of `SHAPE`; None takes one of those away.
        routers: linear layers that decide which expert computes, and get no adapters.
        as_published: a tensor of mlx-lm's model as Hugging Face's files hold it.
    """

    layout: Layout
    config: dict[str, Any]
    routers: tuple[str, ...] = ()
    as_published: Callable[[str, mx.array], Tensors] = lambda name, value: iter([(name, value)])


def experts_apart(part_names: dict[str, str]) -> Callable[[str, mx.array], Tensors]:
    """Published mixtures have a matrix an expert; mlx-lm stacks them."""

    def rename(name: str, value: mx.array) -> Tensors:
        stem, stacked, part = name.partition(".switch_mlp.")
        if not stacked:
            yield name, value
            return
        for old, new in part_names.items():
            part = part.replace(old, new)
        for expert, matrix in enumerate(value):
            yield f"{stem}.experts.{expert}.{part}", matrix

    return rename


def neox_names(name: str, value: mx.array) -> Tensors:
    """`model.h.0` is published as `gpt_neox.layers.0`."""
    name = name.removeprefix("model.")
    yield (name if name.startswith("embed_out") else f"gpt_neox.{name}".replace(".h.", ".layers.")), value


def with_vision(name: str, value: mx.array) -> Tensors:
    """A model that can see comes with layers of an image encoder, whose names are like those of its own."""
    yield name, value
    seen = name.replace("language_model.model.layers", "vision_tower.vision_model.encoder.layers")
    if seen != name and name.endswith(("q_proj.weight", "v_proj.weight")):
        yield seen, value


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
MULTIPLIERS = {
    "logits_scaling": 2.0,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_bias": False,
    "mlp_bias": False,
}
MIXTURE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "head_dim": 16,
}
NEOX = {"rotary_emb_base": 10000, "rotary_pct": 0.5}
NO_SHAPE = dict.fromkeys(SHAPE)
GPT2 = {"n_ctx": 256, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "layer_norm_epsilon": 1e-5}
JAMBA = {
    "attn_layer_offset": 1,
    "attn_layer_period": 2,
    "expert_layer_offset": 1,
    "expert_layer_period": 2,
    "mamba_d_conv": 4,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
LFM2 = {
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 64,
    "block_ff_dim": 128,
    "block_multiple_of": 32,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "layer_types": ["conv", "full_attention"],
}
MAMBA = {"state_size": 8, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4}
SEEING = {**NO_SHAPE, "text_config": {"model_type": "gemma3_text", **SHAPE, **FAMILIES["gemma3_text"]}}

OTHERS = {
    "olmo2": Other("packed", {}),
    "stablelm": Other("packed", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "starcoder2": Other("packed", {}),
    "cohere": Other("packed", {"use_qk_norm": True, "logit_scale": 1.0}),  # norms that are matrices
    "granite": Other("whole", MULTIPLIERS),
    "gpt_neox": Other("whole", NEOX),
    "gpt_neox-published": Other("whole", NEOX, as_published=neox_names),
    "gpt2": Other("whole", {**NO_SHAPE, **GPT2}),
    "exaone": Other("whole", {"num_layers": 2, "num_hidden_layers": None, "layer_norm_epsilon": 1e-5}),
    "qwen3_moe": Other("packed", MIXTURE, ("mlp.gate",)),
    "qwen3_moe-published": Other("packed", MIXTURE, ("mlp.gate",), experts_apart({})),
    "mixtral-published": Other(
        "packed",
        {"num_local_experts": 4},
        ("block_sparse_moe.gate",),
        experts_apart({"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}),
    ),
    "granitemoe": Other(
        "whole", {**MULTIPLIERS, "num_local_experts": 4, "num_experts_per_tok": 2}, ("block_sparse_moe.router.layer",)
    ),
    "nanochat": Other("whole", {}),  # norms without weights
    "mamba": Other("whole", MAMBA),
    "lfm2": Other("padded", LFM2),
    "jamba": Other("padded", JAMBA, ("feed_forward.router",)),
    "gemma3": Other("packed", SEEING, as_published=with_vision),
}

ALL = [*FAMILIES, *OTHERS]


def write_other(directory: Path, name: str) -> Path:
    """Write a random model of an architecture of mlx-lm, made by mlx-lm's own definition of it."""
    other = OTHERS[name]
    config = {"model_type": name.partition("-")[0], **VOCABULARY, **SHAPE, **other.config}
    config = {key: value for key, value in config.items() if value is not None}
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    tensors = [
        published
        for key, value in tree_flatten(model.parameters())
        # as it is made, a model says its last token again for ever
        for published in other.as_published(key, 4 * value if _is_matrix(key, value) else value)
    ]
    directory.mkdir(parents=True)
    mx.save_safetensors(str(directory / "model.safetensors"), dict(tensors), {"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(directory)
    return directory


def _is_matrix(name: str, value: mx.array) -> bool:
    return value.ndim > 1 and name.endswith(".weight") and not any(part in name for part in ("emb", "wte", "wpe"))


# What fails today -----------------------------------------------------------------------------------------------

KNOWN = [
    (
        "only mlx-lm's model knows of its 8-bit layers",
        "count",
        "granite granitemoe jamba qwen3_moe qwen3_moe-published",
    ),
]
"""What is wrong in the core, in which tests it shows, and where; each is to fail until it is put right there."""


def known(test: str, name: str) -> str:
    """Why a test is known to fail for an architecture; empty if it is not."""
    return next((reason for reason, tests, names in KNOWN if test in tests.split() and name in names.split()), "")


def cases(test: str, names: list[str]) -> pytest.MarkDecorator:
    """Parametrise `name`, with those that are known to fail marked."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=reason))
            if (reason := known(test, name))
            else name
            for name in names
        ],
    )


# Fixtures -------------------------------------------------------------------------------------------------------

Find = Callable[[str], Path]
FindRun = Callable[[str], Run]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """The directory of an architecture's model, unquantised; do not write into it."""
    root = tmp_path_factory.mktemp("bases")

    @functools.cache
    def find(name: str) -> Path:
        return write_model(root / name, name) if name in FAMILIES else write_other(root / name, name)

    return find


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory, base: Find) -> Find:
    """The same, quantised on disk as mlx-lm's own models are."""
    root = tmp_path_factory.mktemp("quantised")
    return functools.cache(lambda name: write_quantised(root / name, base(name)))


@pytest.fixture(scope="module")
def create(tmp_path_factory: pytest.TempPathFactory, quantised: Find) -> Callable[..., Run]:
    """Make a run of three steps on the quantised model."""
    sources = write_pair(tmp_path_factory.mktemp("rows"))

    def make(root: Path, name: str) -> Run:
        settings = {"run": name, "max_steps": STEPS, "batch_size": 6, "learning_rate": 0.03, "dropout": 0.1}
        return create_run(root, quantised(name), sources, **settings)

    return make


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, create: Callable[..., Run]) -> FindRun:
    """A run that nobody cut, made when it is first asked for."""
    root = tmp_path_factory.mktemp("trained")

    @functools.cache
    def run(name: str) -> Run:
        made = create(root, name)
        assert train(made).state == "completed"
        return made

    return run


def some_rows() -> list[TokenRow]:
    """Rows of very different lengths, some longer than gemma3's window."""
    rng = np.random.default_rng(4)
    rows = [TokenRow(rng.integers(0, 320, n).astype(np.int32), rng.random(n) < 0.4) for n in (23, 3, 40, 11)]
    for row in rows:
        row.trained[0], row.trained[-1] = False, True
    return rows


IDS = np.random.default_rng(8).integers(0, 320, (2, 17)).astype(np.int32)


def logits_of(model: nn.Module) -> np.ndarray:
    """Logits of `IDS`, evaluated: kernels hold for a whole family, and another model may be loaded next."""
    return np.array(model(mx.array(IDS)).astype(mx.float32))


# Loading --------------------------------------------------------------------------------------------------------


def test_each_family_has_a_layout_that_is_expected() -> None:
    assert LAYOUTS.keys() == FAMILIES.keys()


@cases("load", ALL)
def test_it_loads_quantised_and_unquantised(base: Find, name: str) -> None:
    full, spec = load(base(name), quantize="none")
    wanted = logits_of(full)
    assert (spec.bits, spec.num_layers) == (None, len(full.layers))
    packed, spec = load(base(name))
    layers = [module for layer in packed.layers for module in layer.modules() if isinstance(module, nn.Linear)]
    assert spec.bits == 4
    assert all(module.weight.shape[-1] % 64 for module in layers)  # only what no group divides is left as it was
    assert 0.01 < difference(logits_of(packed), wanted) < 1
    assert np.isfinite(wanted).all()


@cases("count", ALL)
def test_its_size_is_known_without_loading_it(base: Find, name: str) -> None:
    model, spec = load(base(name), PLAIN)
    assert spec.loaded_bytes == sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    model, spec = load(base(name), PLAIN, quantize="none")
    assert spec.parameters == sum(value.size for _, value in tree_flatten(model.parameters()))


def parameters_of(path: Path) -> dict[str, np.ndarray]:
    model, _ = load(path, PLAIN, quantize="none")
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_is_the_same_model_rounded(base: Find, tmp_path: Path, name: str, dtype: str, bits: int) -> None:
    path = write_model(tmp_path / dtype, name, dtype=dtype)
    wanted, found = parameters_of(base(name)), parameters_of(path)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=2.0**-bits, atol=2.0**-25)
    model, spec = load(path, PLAIN, quantize="none")
    assert spec.dtype == dtype
    rounded = logits_of(model)
    assert 0 < difference(rounded, logits_of(load(base(name), PLAIN, quantize="none")[0])) < 4 * 2.0**-bits


@pytest.mark.parametrize("name", FAMILIES)
def test_several_files_are_the_same_model(base: Find, tmp_path: Path, name: str) -> None:
    path = write_model(tmp_path / "sharded", name, shards=3)
    assert len(list(path.glob("model-0000?-of-00003.safetensors"))) == 3
    found, spec = load(path)
    logits = logits_of(found)
    wanted, whole = load(base(name))
    np.testing.assert_array_equal(logits, logits_of(wanted))
    assert (spec.parameters, spec.loaded_bytes, spec.shapes) == (whole.parameters, whole.loaded_bytes, whole.shapes)


# Adapters and loss ----------------------------------------------------------------------------------------------


def linear_layers(model: nn.Module, routers: tuple[str, ...]) -> set[str]:
    """Paths of the linear layers within the transformer layers, without those that choose experts."""
    within = {
        id(module): name
        for layer in model.layers
        for name, module in layer.named_modules()
        if isinstance(module, (nn.Linear, nn.QuantizedLinear)) and name not in routers
    }
    return {path for path, module in model.named_modules() if id(module) in within}


@cases("adapters", ALL)
def test_all_linear_layers_get_adapters_but_no_router(quantised: Find, trained: FindRun, name: str) -> None:
    model, spec = load(quantised(name))
    wanted = linear_layers(model, OTHERS[name].routers if name in OTHERS else ())
    file = mx.load(str(trained(name).best / "adapters.safetensors"))
    shapes = {key: value.shape for key, value in file.items()}
    assert {key.rpartition(".")[0] for key in shapes} == wanted
    assert spec.trainable(trained(name).config().lora) == sum(map(math.prod, shapes.values()))


@cases("layout", ALL)
def test_its_layout_is_the_best_that_gives_the_textbook_loss(base: Find, name: str) -> None:
    rows = some_rows()
    model, spec = load(base(name), PLAIN)
    attach_adapters(model, spec, LORA, 0)
    set_adapters(model)
    wanted = textbook_loss(model, rows).item()
    model, _ = load(base(name), FAST, lora=LORA)
    set_adapters(model)
    expected = LAYOUTS.get(name) or OTHERS[name].layout
    assert choose_layout(model, 320, packing=True) == expected
    assert choose_layout(model, 320, packing=False) == ("padded" if expected == "packed" else expected)
    loss = batch_loss(model, make_batch(rows, packed=expected == "packed"), expected).item()
    assert loss == pytest.approx(wanted, rel=1e-5)


@cases("attention", [name for name, layout in LAYOUTS.items() if layout == "packed"])
def test_attention_of_packed_rows_is_ours(base: Find, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And not MLX's over the square of all of them, which is right too but slower."""
    calls = []
    attend = kernel_module.fast_attention
    monkeypatch.setattr(
        kernel_module, "fast_attention", lambda *qkv, **options: calls.append(1) or attend(*qkv, **options)
    )
    load(base("llama"), PLAIN)  # smollm3 computes with llama's layers; what they were left with must not count
    model, _ = load(base(name), FAST)
    mx.eval(batch_loss(model, make_batch(some_rows(), packed=True), "packed"))
    assert calls


# Training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_cut_and_resumed_is_uninterrupted_to_the_byte(
    create: Callable[..., Run], trained: FindRun, tmp_path: Path, name: str
) -> None:
    cut, wanted = create(tmp_path, name), trained(name)
    for step in (1, 2):
        assert train(cut, at_step(step, lambda: cut.request("pause"))).state == "paused"
        assert checkpoint(cut, step).is_dir()
        assert not cut.final.exists()
    assert train(cut).state == "completed"
    assert trained_state(cut, STEPS) == trained_state(wanted, STEPS)
    for directory in ("best", "final"):
        assert hashes(cut.path / directory) == hashes(wanted.path / directory)
    assert events(cut, "step", "train_loss") == events(wanted, "step", "train_loss")


@cases("train", ALL)
def test_it_learns(trained: FindRun, name: str) -> None:
    run = trained(name)
    losses = events(run, "step", "train_loss")
    assert events(run, "start", "layout") == [LAYOUTS.get(name) or OTHERS[name].layout]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]


@cases("answers", ALL)
def test_answers_side_by_side_are_those_one_by_one(trained: FindRun, name: str) -> None:
    found = {}
    for tuned in (False, True):
        model, tokenizer = load_for_answers(trained(name), base=not tuned)
        found[tuned] = answer(model, tokenizer, PROMPTS, max_tokens=6)
        assert found[tuned] == [answer(model, tokenizer, [prompt], max_tokens=6)[0] for prompt in PROMPTS]
    assert found[True] != found[False]
    assert any(found[True])


# mlx-lm ---------------------------------------------------------------------------------------------------------

MLX_LM = """
import json, sys
from mlx_lm import load
from mlx_lm.tuner.utils import load_adapters
import mlx.core as mx
import numpy as np

ids, models = json.loads(sys.argv[1])
for base, adapters, out in models:
    try:
        model = load_adapters(load(base)[0], adapters)
        model.eval()
        np.save(out, np.array(model(mx.array(ids))))
    except Exception as error:
        print(f"{base}: {error!r}", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def from_mlx_lm(tmp_path_factory: pytest.TempPathFactory, trained: FindRun, quantised: Find) -> Find:
    """Where logits of every tuned model lie as mlx-lm computes them, in one process that never saw our kernels."""
    root = tmp_path_factory.mktemp("mlx-lm")
    names = [name for name in ALL if not known("mlx-lm", name)]
    models = [(str(quantised(name)), str(trained(name).best), str(root / f"{name}.npy")) for name in names]
    command = [sys.executable, "-c", MLX_LM, json.dumps([IDS.tolist(), models])]
    ended = processes.run(command, text=True)
    assert ended.returncode == 0, ended.stderr

    def find(name: str) -> Path:
        path = root / f"{name}.npy"
        assert path.is_file(), ended.stderr
        return path

    return find


@cases("mlx-lm", ALL)
def test_mlx_lm_reads_the_adapters_and_computes_the_same(
    from_mlx_lm: Find, quantised: Find, trained: FindRun, name: str
) -> None:
    wanted = np.load(from_mlx_lm(name))
    for kernels, tolerance in ((PLAIN, 1e-4), (FAST, 1e-3)):
        model, spec = load(quantised(name), kernels)
        assert difference(logits_of(model), wanted) > 0.01  # without adapters
        attach_adapters(model, spec, trained(name).config().lora, 0)
        load_adapters(model, trained(name).best / "adapters.safetensors")
        model.eval()
        assert difference(logits_of(model), wanted) < tolerance
