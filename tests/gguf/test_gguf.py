"""GGUF files of every family are read by llama.cpp itself, and compute there what mlx-lm computes here."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from harness import PLAIN, difference, load, mx, nn, set_adapters, tree_flatten, write_quantised
from tiny import rounded, write_model

from qlora_core.config import LoraConfig
from qlora_core.errors import ModelError
from qlora_core.gguf.adapters import read_adapters, write_adapters
from qlora_core.gguf.blocks import KINDS, Block, decode, encode
from qlora_core.gguf.families import FAMILIES, family_table, recognise_model
from qlora_core.gguf.llama_cpp import Questions, Replies, ask
from qlora_core.gguf.model import About
from qlora_core.gguf.model import write_model as write_gguf
from qlora_core.gguf.reading import read_model
from qlora_core.gguf.weights import StoredWeights
from qlora_core.models.base_models import _gguf, built_in_directory
from qlora_core.tokens.tokenizer import ChatTokenizer

IDS = [5, 70, 9, 200, 41, 7, 33, 65, 66, 67, 100, 101]
CHAT = [{"role": "user", "content": "Quem é?  12"}]
LONG = {"max_position_embeddings": 256, "original_max_position_embeddings": 64}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, untied": ("llama", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    "llama 3": (
        "llama",
        {
            "max_position_embeddings": 256,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 32},
        },
    ),
    "llama, linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "mistral": ("mistral", {}),
    "mistral nemo": ("mistral", {"head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3, yarn": ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, **LONG}}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 4, "layers": 4}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
    "gemma3, linear": ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "phi3": ("phi3", {}),
    "phi4-mini": (
        "phi3",
        {
            **LONG,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [1, 1.5, 2, 3, 4, 5]},
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
        },
    ),
}  # fmt: skip
GELU = 0.01
"""How far log probabilities may be apart for Gemma: llama.cpp looks its activation up in a table of float16."""


def asked(path: Path, adapters: Path | None = None, **questions: Any) -> Replies:
    """What llama.cpp replies, on one thread and in float32."""
    return ask(path, Questions(**questions), adapters=adapters, context=256, threads=1, precise=True, seconds=60)


def log_probabilities(model: nn.Module, ids: list[int] = IDS) -> np.ndarray:
    logits = model(mx.array([ids]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def greedy(model: nn.Module, count: int, ids: list[int] = IDS) -> list[int]:
    made = list(ids)
    for _ in range(count):
        made.append(int(log_probabilities(model, made)[-1].argmax()))
    return made[len(ids) :]


def until_end(ids: list[int]) -> list[int]:
    """An answer as llama.cpp gives it: <|endoftext|> ends one by its name, <|im_end|> because the file says so."""
    return ids[: next((i + 1 for i, each in enumerate(ids) if each in (256, 258)), len(ids))]


# Every family ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_what_we_compute(random_model: Callable[..., Path], tmp_path: Path, case: str) -> None:
    family, changes = CASES[case]
    base = write_model(tmp_path / "base", family, **changes)
    model, _ = load(base, PLAIN, quantize="none")
    write_gguf(base, tmp_path / "f32.gguf", "f32")
    tokenizer = ChatTokenizer(base)
    write_gguf(base, tmp_path / "f16.gguf", "f16", About.asked_by(tokenizer))
    replies = asked(tmp_path / "f32.gguf", sequences=[IDS])
    assert difference(replies.log_probabilities[0], log_probabilities(model)) < (GELU if "gemma" in case else 2e-5)
    half = asked(tmp_path / "f16.gguf", sequences=[IDS], prompts=[IDS], max_tokens=6, chats=[CHAT])
    assert difference(half.log_probabilities[0], log_probabilities(model)) < 0.01
    assert half.answers[0] == until_end(greedy(model, 6))
    assert half.chats[0] == tokenizer.encode_prompt(CHAT)


@pytest.mark.parametrize("case", ["llama, untied", "qwen2", "qwen3", "smollm3", "gemma3", "phi3"])
def test_llama_cpp_applies_adapters_as_we_do(tmp_path: Path, case: str) -> None:
    family, changes = CASES[case]
    base = write_model(tmp_path / "base", family, **changes)
    model = write_run_adapters(tmp_path / "adapters", base)
    write_gguf(base, tmp_path / "base.gguf", "f32")
    untuned = asked(tmp_path / "base.gguf", sequences=[IDS]).log_probabilities[0]
    for precision, most in (("f32", 2e-5), ("f16", 0.02)):
        write_adapters(tmp_path / "adapters", base, tmp_path / "lora.gguf", precision)
        tuned = asked(tmp_path / "base.gguf", tmp_path / "lora.gguf", sequences=[IDS]).log_probabilities[0]
        assert difference(tuned, log_probabilities(model)) < (GELU if "gemma" in case else most)
    assert difference(untuned, log_probabilities(model)) > 0.1


def write_run_adapters(directory: Path, base: Path, **settings: Any) -> nn.Module:
    """Random adapters as mlx-lm stores them; the model with them."""
    lora = LoraConfig(rank=4, alpha=12.0)
    model, _ = load(base, PLAIN, quantize="none", lora=lora)
    set_adapters(model, size=0.2)
    directory.mkdir()
    tensors = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(directory / "adapters.safetensors"), tensors)
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 3.0, "dropout": 0.0}, **settings}
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    model.eval()
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_come_back_to_the_bit(tmp_path: Path, family: str) -> None:
    changes = {"no_rope_layer_interval": 4} if family == "smollm3" else {}
    base = write_model(tmp_path / "base", family, **changes)
    write_run_adapters(tmp_path / "adapters", base)
    write_adapters(tmp_path / "adapters", base, tmp_path / "lora.gguf", "f32")
    back = read_adapters(tmp_path / "lora.gguf", base)
    own = mx.load(str(tmp_path / "adapters" / "adapters.safetensors"))
    assert (back.rank, back.scale) == (4, 3.0)
    assert back.tensors.keys() == own.keys()
    assert all(back.tensors[name].tobytes() == np.array(own[name]).tobytes() for name in own)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_llama_cpps_own_converter(tmp_path: Path, family: str) -> None:
    changes = {"no_rope_layer_interval": 4} if family == "smollm3" else {}
    model = recognise_model(write_model(tmp_path / "base", family, **changes))
    architecture = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[model.family.architecture]
    table = gguf.get_tensor_name_map(architecture, model.layers)
    names = model.names()
    assert {name: table.get_name(name) for name in names} == names


@pytest.mark.parametrize("family", FAMILIES)
def test_our_own_reader_gives_the_weights_back(tmp_path: Path, family: str) -> None:
    changes = {"no_rope_layer_interval": 4} if family == "smollm3" else {}
    base = write_model(tmp_path / "base", family, shards=3, **changes)
    write_gguf(base, tmp_path / "f32.gguf", "f32", About(chat_template="{{ messages }}"))
    model = read_model(tmp_path / "f32.gguf")
    wanted = {weight.name: weight.values() for weight in StoredWeights(base, {})}
    found = dict(model.weights())
    assert found.keys() == wanted.keys()
    assert all(difference(found[name], wanted[name]) <= 1e-7 for name in wanted)  # norms: 1 + w - 1
    assert model.chat_template == "{{ messages }}"
    assert model.hyperparameters["block_count"] == 2


def test_the_table_of_families_promises_what_is_tried_here() -> None:
    table = {row["model_type"]: row for row in family_table()}
    assert table.keys() == {family for family, _ in CASES.values()}
    tried = {(family, kind) for family, changes in CASES.values() if (kind := scaling(changes))}
    promised = {(name, kind) for name, row in table.items() for kind in row["scaling"].split(", ") if kind}
    assert tried <= promised
    assert {kind for _, kind in promised} - {"su"} == {kind for _, kind in tried}


def scaling(changes: dict[str, Any]) -> str:
    found = changes.get("rope_scaling", {})
    return found.get("rope_type") or found.get("type") or ""


# How numbers are stored -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("f32", "f16")])
def test_llama_cpp_reads_every_kind_as_we_do(tmp_path: Path, kind: str) -> None:
    """Of a file the same numbers come to mlx-lm through our reader; llama.cpp also rounds activations to 8 bits."""
    base = write_model(tmp_path / "base", hidden_size=256, intermediate_size=512, tie_word_embeddings=False)
    if kind == "as-stored":
        base = write_quantised(tmp_path / "quantised", base)
    write_gguf(base, tmp_path / "model.gguf", kind)
    read = shutil.copytree(tmp_path / "base", tmp_path / "read")
    tensors = {name: mx.array(value) for name, value in read_model(tmp_path / "model.gguf").weights()}
    mx.save_safetensors(str(read / "model.safetensors"), tensors)
    ours, _ = load(read, PLAIN, quantize="none")
    original, _ = load(tmp_path / "base", PLAIN, quantize="none")
    theirs = asked(tmp_path / "model.gguf", sequences=[IDS]).log_probabilities[0]
    assert difference(theirs, log_probabilities(ours)) < 0.008
    assert difference(log_probabilities(ours), log_probabilities(original)) > 0.0005


@pytest.mark.parametrize(
    ("block", "most"),
    [(Block.Q8_0, 0.006), (Block.Q6_K, 0.019), (Block.Q4_K, 0.075), (Block.Q4_1, 0.081), (Block.Q4_0, 0.09)],
)
def test_blocks_lose_as_little_as_they_should(block: Block, most: float) -> None:
    values = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    values[3], values[4], values[5, :32] = 0, 0.5, 0
    back = decode(encode(values, block), block)
    assert np.sqrt(np.mean((back - values) ** 2) / np.mean(values**2)) < most
    assert not back[3].any()
    assert difference(back[4], values[4]) < 0.002


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_quantised_base_keeps_its_numbers(tmp_path: Path, bits: int, group: int) -> None:
    """Scales that float16 holds: those of bases in float16. Other 8-bit groups than symmetric ones are rounded."""
    base = write_model(tmp_path / "base", hidden_size=128, intermediate_size=256, dtype="float16")
    base = write_quantised(tmp_path / "quantised", base, bits=bits, group_size=group)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    tensors = mx.load(str(base / "model.safetensors"))
    halves = {name: value if value.dtype == mx.uint32 else value.astype(mx.float16) for name, value in tensors.items()}
    mx.save_safetensors(str(base / "model.safetensors"), halves)
    written = write_gguf(base, tmp_path / "model.gguf", "as-stored")
    found = dict(read_model(tmp_path / "model.gguf").weights())
    wanted = {weight.name: weight for weight in StoredWeights(base, config)}
    apart = max(difference(found[name], weight.values()) for name, weight in wanted.items())
    assert (apart == 0) == (bits <= 5)
    assert apart < {6: 0.0005, 8: 0.01}.get(bits, 1)
    assert bool(written.rounded) == (bits == 8)


def test_eight_bits_without_a_bias_are_kept(tmp_path: Path) -> None:
    base = write_quantised(tmp_path / "base", write_model(tmp_path / "plain"), bits=8, group_size=32)
    tensors = mx.load(str(base / "model.safetensors"))
    for name in [name for name in tensors if name.endswith(".scales")]:
        tensors[name] = tensors[name].astype(mx.float16)
        tensors[name.replace("scales", "biases")] = tensors[name].astype(mx.float32) * -128
    mx.save_safetensors(str(base / "model.safetensors"), tensors)
    written = write_gguf(base, tmp_path / "model.gguf", "as-stored")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    found = dict(read_model(tmp_path / "model.gguf").weights())
    assert written.rounded == []
    assert all(np.array_equal(found[weight.name], weight.values()) for weight in StoredWeights(base, config))


def test_the_built_in_model_is_written_as_it_came(tmp_path: Path) -> None:
    written = write_gguf(built_in_directory(), tmp_path / "base.gguf", "as-stored")
    ours, theirs = (gguf.GGUFReader(path) for path in (tmp_path / "base.gguf", _gguf()))
    stored = [{tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in each.tensors} for each in
              (ours, theirs)]  # fmt: skip
    assert stored[0] == stored[1]
    assert len(stored[0]) == written.tensors == 272
    assert written.rounded == written.notes == []
    for key in ("tokens", "token_type", "merges", "pre", "bos_token_id", "eos_token_id", "add_bos_token"):
        name = f"tokenizer.ggml.{key}"
        assert ours.fields[name].contents() == theirs.fields[name].contents()


def test_bfloat16_is_read(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", dtype="bfloat16")
    plain = write_model(tmp_path / "plain")
    write_gguf(base, tmp_path / "model.gguf", "bf16")
    found = dict(read_model(tmp_path / "model.gguf").weights())
    for weight in StoredWeights(plain, {}):
        upper = rounded(weight.values(), "bfloat16").astype(np.uint32) << 16
        assert np.array_equal(found[weight.name], upper.view(np.float32))


# What is said of it ---------------------------------------------------------------------------------------------


def test_the_file_says_where_it_comes_from_and_nothing_of_this_machine(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    about = About("Mine", "{{ messages }}", (258,), "Tiny", "owner/Tiny-1", "apache-2.0")
    write_gguf(base, tmp_path / "model.gguf", "f16", about)
    metadata = read_model(tmp_path / "model.gguf").file.metadata
    assert metadata["general.name"] == "Mine"
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["general.base_model.0.repo_url"] == "https://huggingface.co/owner/Tiny-1"
    content = (tmp_path / "model.gguf").read_bytes()
    assert str(tmp_path).encode() not in content
    write_run_adapters(tmp_path / "adapters", base, model=str(base))
    write_adapters(tmp_path / "adapters", base, tmp_path / "lora.gguf", about=about)
    assert str(tmp_path).encode() not in (tmp_path / "lora.gguf").read_bytes()


# What is refused ------------------------------------------------------------------------------------------------

REFUSED = {
    "another family": ({"model_type": "phi"}, "phi cannot be written as GGUF. Families that can: llama, mistral"),
    "experts": ({"model_type": "mixtral"}, "mixtral cannot be written as GGUF (a mixture of experts)"),
    "experts by number": ({"num_local_experts": 4}, "a mixture of experts"),
    "scaling": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling 'dynamic'"),
    "windows": ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding window"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    base = write_model(tmp_path / "base")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(ModelError, match=message.replace("(", r"\(").replace(")", r"\)")):
        write_gguf(base, tmp_path / "model.gguf", "f16")
    assert (tmp_path / "model.gguf").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model.gguf"]


def test_smollm3_with_other_layers_and_gemma2_with_another_scale_are_refused(tmp_path: Path) -> None:
    for family, changes, message in (
        ("smollm3", {}, "no rotary embedding"),
        ("gemma2", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar is 24; llama.cpp takes 16"),
    ):
        base = write_model(tmp_path / family, family, **changes)
        with pytest.raises(ModelError, match=message):
            write_gguf(base, tmp_path / "model.gguf", "f16")


def test_tensors_that_are_missing_or_unknown_are_named(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    tensors = mx.load(str(base / "model.safetensors"))
    gone = tensors.pop("model.layers.1.mlp.up_proj.weight")
    mx.save_safetensors(str(base / "model.safetensors"), tensors)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        write_gguf(base, tmp_path / "model.gguf", "f16")
    tensors |= {"model.layers.1.mlp.up_proj.weight": gone, "model.layers.1.mlp.extra.weight": gone}
    mx.save_safetensors(str(base / "model.safetensors"), tensors)
    with pytest.raises(ModelError, match=r"mlp\.extra\.weight has no place"):
        write_gguf(base, tmp_path / "model.gguf", "f16")


def test_weights_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    tensors = mx.load(str(base / "model.safetensors"))
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1e6
    mx.save_safetensors(str(base / "model.safetensors"), tensors)
    with pytest.raises(ModelError, match=r"up_proj\.weight has the weight .* Try bf16 or f32"):
        write_gguf(base, tmp_path / "model.gguf", "f16")
    assert not (tmp_path / "model.gguf").exists()
    write_gguf(base, tmp_path / "model.gguf", "bf16")


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    write_run_adapters(tmp_path / "adapters", base)
    out = tmp_path / "lora.gguf"
    with pytest.raises(ModelError, match=r"lora_a has shape \(128, 4\), wanted \(256, 4\)"):
        write_adapters(tmp_path / "adapters", write_model(tmp_path / "other", intermediate_size=256), out)
    config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text(encoding="utf-8"))
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps(config | {"fine_tune_type": "dora"}))
    with pytest.raises(ModelError, match=r"dora adapters cannot be used .* Merge them"):
        write_adapters(tmp_path / "adapters", base, out)
    assert not out.exists()


# Files from elsewhere -------------------------------------------------------------------------------------------


def test_a_damaged_file_is_refused_in_a_line(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    write_run_adapters(tmp_path / "adapters", base)
    write_adapters(tmp_path / "adapters", base, tmp_path / "lora.gguf", "f32")
    write_gguf(base, tmp_path / "model.gguf", "q4_1")
    rng, refused = np.random.default_rng(0), 0
    for name, read in (("model.gguf", lambda path: dict(read_model(path).weights())),
                       ("lora.gguf", lambda path: read_adapters(path, base))):  # fmt: skip
        content = (tmp_path / name).read_bytes()
        bad = tmp_path / f"bad-{name}"
        for i in range(request.config.getoption("--mutations")):
            changed = bytearray(content)
            if i % 3 == 0:
                changed = changed[: int(rng.integers(len(changed)))]
            else:
                for place in rng.integers(min(len(changed), 4000 if i % 3 == 1 else len(changed)), size=3):
                    changed[place] = rng.integers(256)
            bad.write_bytes(changed)
            if problem := why_refused(read, bad):
                refused += 1
                assert str(bad) in problem
                assert "\n" not in problem
    assert refused > request.config.getoption("--mutations") // 3


def why_refused(read: Callable[[Path], object], path: Path) -> str:
    try:
        with np.errstate(all="ignore"):
            read(path)
    except ModelError as error:
        return str(error)
    return ""


def header(*, tensors: int = 0, keys: bytes = b"", count: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + np.array([3], "<u4").tobytes() + np.array([tensors, count], "<u8").tobytes() + keys + rest


def text(value: bytes) -> bytes:
    return np.array([len(value)], "<u8").tobytes() + value


def entry(name: bytes, shape: list[int], kind: int, offset: int) -> bytes:
    sizes = np.array([len(shape)], "<u4").tobytes() + np.array(shape, "<u8").tobytes()
    return text(name) + sizes + np.array([kind], "<u4").tobytes() + np.array([offset], "<u8").tobytes()


HOSTILE = {
    "empty": b"",
    "not one": b"PK\x03\x04" + bytes(100),
    "more tensors than bytes": header(tensors=99_999),
    "endless text": header(count=1, keys=text(b"a") + np.array([8], "<u4").tobytes() + b"\xff" * 8),
    "endless array": header(count=1, keys=text(b"a") + np.array([9, 4], "<u4").tobytes() + b"\xff" * 8),
    "arrays in arrays": header(count=1, keys=text(b"a") + np.array([9, 9], "<u4").tobytes() + bytes(8)),
    "a huge matrix": header(tensors=1, rest=entry(b"a", [2**31 - 1, 2**31 - 1], 0, 0)),
    "beyond the end": header(tensors=1, rest=entry(b"a", [32], 0, 2**63) + bytes(200)),
    "on top of each other": header(tensors=2, rest=entry(b"a", [32], 0, 0) + entry(b"b", [32], 0, 0) + bytes(500)),
    "no dimensions": header(tensors=1, rest=entry(b"a", [], 0, 0) + bytes(200)),
    "unknown blocks": header(tensors=1, rest=entry(b"a", [32], 99, 0) + bytes(200)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(ModelError, match="not a GGUF file that can be read"):
        read_model(path)


def test_a_file_that_llama_cpp_cannot_open_ends_only_its_own_process(tmp_path: Path) -> None:
    write_gguf(write_model(tmp_path / "base"), tmp_path / "model.gguf", "f16")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:50_000])
    with pytest.raises(ModelError, match=r"llama\.cpp cannot use it: .*not within the file bounds"):
        asked(tmp_path / "cut.gguf", texts=["x"])
    with pytest.raises(ModelError, match="No such file"):
        asked(tmp_path / "nothing.gguf", texts=["x"])
