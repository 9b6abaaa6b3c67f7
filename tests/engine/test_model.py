"""Loading, adapters and loss, for every family."""

import json
from pathlib import Path

import numpy as np
import pytest
from harness import (
    PLAIN,
    adapters_of,
    assert_same,
    difference,
    load,
    loss_and_gradients,
    losses_by_row,
    set_adapters,
    textbook_loss,
    write_quantised,
)
from tiny import FAMILIES, write_model

from qlora_core.config import LoraConfig
from qlora_core.engine.attention import BinnedRows, PackedRows, SlicedRows
from qlora_core.engine.device import mx, nn, tree_flatten
from qlora_core.engine.model import (
    base_only,
    batch_loss,
    choose_layout,
    load_adapters,
    save_adapters,
    use_grad_checkpoint,
)
from qlora_core.engine.weights import loaded_directory
from qlora_core.errors import ModelError
from qlora_core.models.adapter_files import adapter_parameters
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.tokens.batching import AS_IT_IS, Rounding, make_batch
from qlora_core.tokens.rows import TokenRow

VOCABULARY = 320
LORA = LoraConfig(rank=4, alpha=8.0)
WINDOWED = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 6}
SHAPES = {**{family: (family, {}) for family in FAMILIES}, "windowed": ("llama", WINDOWED)}
PACKABLE = [name for name in SHAPES if name != "gemma2"]  # its soft cap lies outside of what `packed` computes


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory for every family, and one with a sliding window; do not write into them."""
    root = tmp_path_factory.mktemp("families")
    return {name: write_model(root / name, family, **changes) for name, (family, changes) in SHAPES.items()}


def some_rows() -> list[TokenRow]:
    """Rows of very different lengths; several trained spans, single tokens, all tokens."""
    rng = np.random.default_rng(4)
    rows = [TokenRow(rng.integers(0, VOCABULARY, n).astype(np.int32), rng.random(n) < 0.4) for n in (23, 3, 40, 11)]
    rows[1].trained[:] = (False, False, True)
    rows[3].trained[1:] = True
    for row in rows:
        row.trained[0] = False
    return rows


def logits_of(model: nn.Module, length: int = 17) -> mx.array:
    """Logits of some tokens, evaluated: kernels hold for a whole family, and another model may be loaded next."""
    ids = np.random.default_rng(8).integers(0, VOCABULARY, (2, length)).astype(np.int32)
    logits = model(mx.array(ids))
    mx.eval(logits)
    return logits


# Loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", ["kept", "dequantised", "quantised"])
@pytest.mark.parametrize("name", SHAPES)
def test_packed_is_padded_is_textbook(models: dict[str, Path], name: str, linear: str) -> None:
    rows = some_rows()
    reference, _ = load(models[name], PLAIN, lora=LORA)
    set_adapters(reference)
    wanted = loss_and_gradients(reference, lambda model: textbook_loss(model, rows))
    model, _ = load(models[name], Kernels("cpu", "float32", linear, fast_exp=True), lora=LORA)
    set_adapters(model)
    for layout in ("packed", "padded", "whole") if name in PACKABLE else ("whole",):
        batch = make_batch(rows, packed=layout == "packed")
        found = loss_and_gradients(model, lambda model, batch=batch, layout=layout: batch_loss(model, batch, layout))
        assert_same(found, wanted)
        each = [textbook_loss(model, [row]).item() for row in rows]
        np.testing.assert_allclose(losses_by_row(model, batch, layout, len(rows)), each, rtol=1e-4)


@pytest.mark.parametrize("rounding", [AS_IT_IS, Rounding(32, 32, (64, 128))], ids=["as they are", "in bins"])
@pytest.mark.parametrize("name", PACKABLE)
def test_float16_has_the_loss_and_the_gradient_of_float32(
    models: dict[str, Path], tmp_path: Path, name: str, rounding: Rounding
) -> None:
    """To its 11 bits, with the same quantised weights."""
    rows, path = some_rows(), write_quantised(tmp_path / "base", models[name])

    def computed(dtype: str) -> tuple[str, float, dict[str, np.ndarray]]:
        model, _ = load(path, Kernels("cpu", dtype, "dequantised"), lora=LORA)
        set_adapters(model)
        layout = choose_layout(model, VOCABULARY, packing=True, rounding=rounding)
        batch = make_batch(rows, packed=layout == "packed", rounding=rounding)
        value, gradients = loss_and_gradients(model, lambda model: batch_loss(model, batch, layout))
        return layout, value / sum(row.target_tokens for row in rows), gradients

    layout, wanted, expected = computed("float32")
    same, loss, gradients = computed("float16")
    assert same == layout
    assert loss == pytest.approx(wanted, abs=1e-2)
    for key, gradient in expected.items():
        assert gradients[key].dtype == np.float32
        assert difference(gradients[key], gradient) < 2e-2, key


@pytest.mark.parametrize("name", SHAPES)
def test_layout_is_one_that_is_right(models: dict[str, Path], name: str) -> None:
    model, _ = load(models[name], lora=LORA)
    assert choose_layout(model, VOCABULARY, packing=True) == ("packed" if name in PACKABLE else "whole")
    assert choose_layout(model, VOCABULARY, packing=False) == ("padded" if name in PACKABLE else "whole")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_soft_cap_is_seen_where_rounding_is_larger(models: dict[str, Path], dtype: str) -> None:
    kernels = Kernels("cpu", dtype, "dequantised")
    for name, wanted in (("gemma2", "whole"), ("llama", "packed"), ("qwen3", "packed")):
        model, _ = load(models[name], kernels, lora=LORA)
        assert choose_layout(model, VOCABULARY, packing=True) == wanted, name


IN_BINS = Rounding(32, 32, (64, 128))


@pytest.mark.parametrize(("rows", "rounding"), [(SlicedRows, AS_IT_IS), (PackedRows, IN_BINS), (BinnedRows, IN_BINS)])
def test_layout_falls_back_where_packed_rows_see_each_other(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, rows: type, rounding: Rounding
) -> None:
    """A model whose attention asks the cache for no mask, say: packed rows would leak, padded ones are right."""
    model, _ = load(models["llama"], lora=LORA)
    assert choose_layout(model, VOCABULARY, packing=True, rounding=rounding) == "packed"
    monkeypatch.setattr(rows, "make_mask", lambda self, N, **_: mx.tril(mx.ones((N, N), mx.bool_)))
    assert choose_layout(model, VOCABULARY, packing=True, rounding=rounding) == "padded"


def test_layout_falls_back_where_the_model_has_other_parts(models: dict[str, Path]) -> None:
    class Renamed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.transformer = inner

        def __call__(self, ids: mx.array) -> mx.array:
            return self.transformer(ids)

    model, _ = load(models["llama"])
    assert choose_layout(Renamed(model), VOCABULARY, packing=True) == "whole"


@pytest.mark.parametrize("layout", ["packed", "padded", "whole"])
def test_grad_checkpoint_gives_the_same_gradients_in_less_memory(tmp_path: Path, layout: str) -> None:
    rng = np.random.default_rng(0)
    rows = [TokenRow(rng.integers(0, VOCABULARY, 80).astype(np.int32), np.arange(80) > 70) for _ in range(4)]
    model, _ = load(write_model(tmp_path / "deep", layers=12), lora=LORA)
    set_adapters(model)
    batch = make_batch(rows, packed=layout == "packed")
    results, peaks = [], []
    for checkpointed in (False, True):
        if checkpointed:
            use_grad_checkpoint(model)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        results.append(loss_and_gradients(model, lambda model: batch_loss(model, batch, layout)))
        peaks.append(mx.get_peak_memory() - before)
    assert_same(results[1], results[0])
    assert peaks[1] < 0.6 * peaks[0]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_are_those_of_the_loss_with_the_same_dropout(models: dict[str, Path], checkpointed: bool) -> None:
    """Against a finite difference: a mask drawn anew for the backward pass would give another function's gradient."""
    model, _ = load(models["llama"], lora=LoraConfig(rank=4, dropout=0.5))
    set_adapters(model)
    start = adapters_of(model)
    if checkpointed:
        use_grad_checkpoint(model)
    model.train()
    batch = make_batch(some_rows(), packed=True)

    def loss(model: nn.Module) -> mx.array:
        mx.random.seed(3)
        return batch_loss(model, batch, "packed")

    value, gradients = loss_and_gradients(model, loss)
    norm = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients.values()))

    def at(distance: float) -> float:
        """Loss at some distance along the gradient."""
        moved = [(name, mx.array(start[name] + distance * g / norm)) for name, g in gradients.items()]
        model.load_weights(moved, strict=False)
        return loss(model).item()

    assert at(0.0) == value
    assert (at(0.01) - at(-0.01)) / 0.02 == pytest.approx(norm, rel=0.01)


# Loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_quantised_while_loading(models: dict[str, Path], bits: int) -> None:
    full, _ = load(models["mistral"], PLAIN, quantize="none")
    wanted = dict(tree_flatten(full.parameters()))
    model, spec = load(models["mistral"], PLAIN, quantize=str(bits))
    assert spec.bits == bits
    found = dict(tree_flatten(model.parameters()))
    for path in ("model.layers.1.mlp.down_proj", "model.embed_tokens", "lm_head"):
        parts = mx.quantize(wanted[f"{path}.weight"], 64, bits)
        for leaf, part in zip(("weight", "scales", "biases"), parts, strict=True):
            assert mx.array_equal(found[f"{path}.{leaf}"], part), (path, leaf)
    assert mx.array_equal(found["model.norm.weight"], wanted["model.norm.weight"])


def test_more_bits_are_nearer_to_the_model(models: dict[str, Path]) -> None:
    wanted = logits_of(load(models["llama"], quantize="none")[0])
    errors = [difference(logits_of(load(models["llama"], quantize=bits)[0]), wanted) for bits in ("8", "4")]
    assert 0 < errors[0] < errors[1] / 5
    assert errors[1] < 0.5


def test_a_base_that_is_quantised_already_stays_as_it_is(models: dict[str, Path], tmp_path: Path) -> None:
    wanted = logits_of(load(models["llama"], quantize="8", group_size="32")[0])
    path = write_quantised(tmp_path / "q8", models["llama"], bits=8, group_size=32)
    model, spec = load(path, quantize="4")
    assert (spec.quantize_bits, spec.bits) == (None, 8)
    assert mx.array_equal(logits_of(model), wanted)


def test_nothing_of_the_base_is_trained(models: dict[str, Path]) -> None:
    assert tree_flatten(load(models["qwen3"])[0].trainable_parameters()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "nonsense"}, "nonsense"),
        ({"hidden_size": 32}, "llama"),
        ({"num_hidden_layers": 3}, "llama"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = write_model(tmp_path / "broken")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises(ModelError, match=f"cannot be loaded as a {message} model"):
        load(path)


# Adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", ["4", "none"])
@pytest.mark.parametrize("name", SHAPES)
def test_lora_changes_no_logit_at_step_0(models: dict[str, Path], name: str, quantize: str) -> None:
    before = logits_of(load(models[name], quantize=quantize)[0])
    model, _ = load(models[name], quantize=quantize, lora=LoraConfig(rank=4, dropout=0.5))
    model.train()
    assert mx.array_equal(logits_of(model), before)
    set_adapters(model)
    assert difference(logits_of(model), before) > 1e-3


@pytest.mark.parametrize("projections", ["all", "attention", "mlp", "qv", "q_proj,up_proj"])
@pytest.mark.parametrize("num_layers", [0, 1])
def test_adapters_lie_where_they_were_asked_for(models: dict[str, Path], projections: str, num_layers: int) -> None:
    lora = LoraConfig(rank=3, projections=projections, num_layers=num_layers)
    model, spec = load(models["llama"], lora=lora)
    found = adapters_of(model)
    modules = {name.rpartition(".")[0].removeprefix("model.") for name in found}
    wanted = {
        "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "mlp": ["gate_proj", "up_proj", "down_proj"],
        "qv": ["q_proj", "v_proj"],
        "q_proj,up_proj": ["q_proj", "up_proj"],
    }[projections]
    layers = [1] if num_layers else [0, 1]
    mlp = ("gate_proj", "up_proj", "down_proj")
    assert modules == {f"layers.{i}.{'mlp' if name in mlp else 'self_attn'}.{name}" for i in layers for name in wanted}
    assert sum(value.size for value in found.values()) == spec.trainable(lora)
    assert all(value.dtype == np.float32 for value in found.values())


def test_the_start_of_an_adapter_is_a_function_of_the_seed(models: dict[str, Path]) -> None:
    first, second = (adapters_of(load(models["llama"], lora=LORA)[0]) for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_base_only_is_the_base_to_the_bit(models: dict[str, Path]) -> None:
    base = logits_of(load(models["llama"])[0])
    model, _ = load(models["llama"], lora=LORA)
    set_adapters(model)
    tuned = logits_of(model)
    with base_only(model):
        assert mx.array_equal(logits_of(model), base)
    assert mx.array_equal(logits_of(model), tuned)
    assert not mx.array_equal(tuned, base)


def test_base_only_ends_with_an_error_too(models: dict[str, Path]) -> None:
    model, _ = load(models["llama"], lora=LORA)
    set_adapters(model)
    tuned = logits_of(model)
    with pytest.raises(ZeroDivisionError), base_only(model):
        _ = 1 / 0
    assert mx.array_equal(logits_of(model), tuned)


def saved(model: nn.Module, spec, directory: Path, lora: LoraConfig = LORA) -> Path:
    save_adapters(model, directory, adapter_parameters(spec, lora, loaded_directory(spec, "float32")), {"step": "7"})
    return directory / "adapters.safetensors"


def test_saved_adapters_come_back_to_the_bit(models: dict[str, Path], tmp_path: Path) -> None:
    model, spec = load(models["llama"], lora=LORA)
    set_adapters(model)
    path = saved(model, spec, tmp_path / "best")
    other, _ = load(models["llama"], lora=LORA)
    load_adapters(other, path)
    assert adapters_of(other).keys() == adapters_of(model).keys()
    assert mx.array_equal(logits_of(other), logits_of(model))


@pytest.mark.parametrize(
    ("lora", "problems"),
    [
        (
            LoraConfig(rank=2),
            [r"layers\.0\.mlp\.down_proj\.lora_a has shape \(128, 2\), wanted \(128, 4\)", "and 23 more"],
        ),
        (LoraConfig(rank=4, projections="qv"), [r"layers\.0\.mlp\.down_proj\.lora_a is missing"]),
    ],
)
def test_adapters_of_another_shape_are_refused(
    models: dict[str, Path], tmp_path: Path, lora: LoraConfig, problems: list[str]
) -> None:
    path = saved(*load(models["llama"], lora=lora), tmp_path, lora)
    model, _ = load(models["llama"], lora=LORA)
    set_adapters(model)
    before = adapters_of(model)
    for problem in problems:
        with pytest.raises(ModelError, match=problem):
            load_adapters(model, path)
    for name, value in adapters_of(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_unknown_tensors_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    path = saved(*load(models["llama"], lora=LORA), tmp_path)
    model, _ = load(models["llama"], lora=LoraConfig(rank=4, num_layers=1))
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.down_proj\.lora_a is not an adapter of this model"):
        load_adapters(model, path)


def test_a_damaged_adapter_file_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    model, spec = load(models["llama"], lora=LORA)
    path = saved(model, spec, tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match=r"adapters\.safetensors: not a safetensors file"):
        load_adapters(model, path)


def test_adapter_config_is_in_mlx_lms_words(models: dict[str, Path], tmp_path: Path) -> None:
    lora = LoraConfig(rank=4, alpha=6.0, dropout=0.1, num_layers=1, projections="qv")
    model, described = load(models["llama"], lora=lora)
    saved(model, described, tmp_path, lora)
    assert json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8")) == {
        "fine_tune_type": "lora",
        "num_layers": 1,
        "lora_parameters": {
            "rank": 4,
            "scale": 1.5,
            "dropout": 0.1,
            "keys": ["self_attn.q_proj", "self_attn.v_proj"],
        },
        "model": str(loaded_directory(described, "float32")),
    }
