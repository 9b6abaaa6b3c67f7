"""A fused model loses nothing silently: what it is judged by, every form, and what happens when one loses too much."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import Forks
from harness import PLAIN, create_run, load, normal, random_rows, textbook_loss, train, write_pair, write_quantised
from tiny import write_model

from qlora_core.activity import STAGES, watching
from qlora_core.engine.device import mx
from qlora_core.errors import ConfigError, ExportError, RunError
from qlora_core.exports.export import export_run
from qlora_core.exports.formats import ExportChoices
from qlora_core.runs.run import Run
from qlora_core.tokens.dataset import make_dataset
from qlora_core.tokens.rows import TokenRow
from qlora_core.training import changed_matrices, fuse, fused_files, judging
from qlora_core.training.fuse import BITS, MOST_LOST, fuse_run
from qlora_core.training.input_moments import input_moments, padded_batches
from qlora_core.training.judging import Judge, divide_rows

Make = Callable[..., Run]


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Train a small run on a base; only for reading."""

    def make(base: Path, **settings: Any) -> Run:
        root = tmp_path_factory.mktemp("run")
        run = create_run(root / "runs", base, write_pair(root / "data", 50, 6), run="small", **settings)
        train(run)
        return run

    return make


@pytest.fixture(scope="module")
def plain(make_run: Make, tiny_model: Path) -> Run:
    """A LoRA run on an unquantised base that 4 bits harm; only for reading."""
    return make_run(tiny_model, quantize="none", epochs=6)


# What judges ------------------------------------------------------------------------------------------------------


def heard_by(listener: Callable[[int, int, str], object]) -> AbstractContextManager[None]:
    """Tell a listener what is done, of how many, and the words for it."""
    return watching(lambda now: now and listener(now.done, now.total, STAGES[now.stage]))


def test_no_row_that_judges_calibrates(plain):
    tokenizer = plain.tokenizer()
    rows = divide_rows(plain, tokenizer, 320)
    judged, calibrating = ({row.ids.tobytes() for row in part} for part in (rows.judged, rows.calibrating))
    assert not judged & calibrating
    assert (rows.trained.sum(), (~rows.trained).sum()) == (10, 6)
    assert rows.judged[10:] == list(make_dataset(plain.validation_rows(), tokenizer, 512).rows)
    assert len(judged | calibrating) == 56


def test_many_long_rows_are_held_to_limits(plain, monkeypatch):
    tokenizer = plain.tokenizer()
    monkeypatch.setattr(judging, "JUDGED_BYTES", 2 * 320 * 40)
    monkeypatch.setattr(judging, "CALIBRATION_TOKENS", 100)
    rows = divide_rows(plain, tokenizer, 320)
    assert 20 < sum(row.target_tokens for row in rows.judged) <= 40
    assert set(rows.trained) == {True, False}
    assert 60 < sum(map(len, rows.calibrating)) < 140


def test_what_is_measured_is_what_the_words_say(tiny_model, tmp_path):
    rows, trained = random_rows(9, 17, 5, 12), np.array([True, True, False, False])
    models = [load(tiny_model, PLAIN, quantize="none")[0], load(tiny_model, PLAIN)[0]]
    judge = Judge(rows, trained, tmp_path / "judged")
    judge.hear_tuned(models[0])
    found = judge.compare(models[1]).as_dict()

    def logs(model: Any, row: TokenRow) -> np.ndarray:
        logits = model(mx.array(row.ids)[None])[0][mx.array(np.flatnonzero(row.trained) - 1)]
        return np.array(logits - mx.logsumexp(logits, -1, keepdims=True))

    for chosen, part in ((rows, found), (rows[:2], found["training"]), (rows[2:], found["validation"])):
        tokens = sum(row.target_tokens for row in chosen)
        losses = [textbook_loss(model, chosen).item() / tokens for model in models]
        tuned, other = (np.concatenate([logs(model, row) for row in chosen]) for model in models)
        assert (part["rows"], part["tokens"]) == (len(chosen), tokens)
        assert (part["tuned_loss"], part["fused_loss"]) == pytest.approx(losses, rel=1e-5)
        assert part["lost"] == pytest.approx(losses[1] - losses[0], rel=1e-3)
        assert part["kl"] == pytest.approx((np.exp(tuned) * (tuned - other)).sum(-1).mean(), rel=1e-3)
        assert part["same_choice"] == (tuned.argmax(-1) == other.argmax(-1)).mean()
        assert part["interval"] is None  # of so few rows
    same = judge.compare(models[0])
    assert same.lost == 0
    assert same.kl == pytest.approx(0, abs=1e-5)


def test_an_interval_covers_what_more_rows_would_find():
    """Of 200 samples of 30 rows from a population whose mean is known, about 95 in 100 cover it."""
    rng, covered = np.random.default_rng(3), 0
    for _ in range(200):
        lengths = rng.integers(5, 40, 30)
        change = lengths * 0.02 + np.sqrt(lengths) * rng.normal(0, 0.3, 30)
        zeros = np.zeros(30)
        compared = judging.Comparison(zeros, change, zeros, zeros, lengths, np.ones(30, bool))
        low, high = compared.as_dict()["interval"]
        covered += low <= 0.02 <= high
    assert 175 <= covered <= 199


@pytest.mark.parametrize("family", ["llama", "phi3", "phi"])
def test_moments_are_those_of_rows_one_by_one(random_model, family):
    """Without padding, and once for layers with a common input."""
    model, _ = load(random_model(family), PLAIN, quantize="none")
    paths = [path for path, module in model.named_modules() if path.startswith("model.layers") and "weight" in module]
    paths = [path for path in paths if dict(model.named_modules())[path].weight.ndim == 2]
    rows = random_rows(30, 7, 19, 300, 300)
    assert len(list(padded_batches(rows))) > 1
    found = input_moments(model, paths, rows)
    assert len(found.sums) == {"llama": 8, "phi3": 8, "phi": 6}[family] < len(paths) or family == "phi3"
    alone = [input_moments(model, paths, [row]) for row in rows]
    for group, moments in enumerate(found.sums):
        wanted = sum(each.sums[group] for each in alone)
        assert mx.allclose(moments, wanted, rtol=1e-3, atol=1e-3)
    first = found.sums[found.group_of[next(path for path in paths if "layers.0" in path and "q" in path)]]
    norm = model.model.layers[0].input_layernorm
    x = mx.concatenate([norm(model.model.embed_tokens(mx.array(row.ids))) for row in rows])
    assert mx.allclose(first, x.T @ x, rtol=1e-3, atol=1e-3)


# Forms ------------------------------------------------------------------------------------------------------------

READER = """
import json, sys
import mlx.core as mx
from mlx_lm import load
if not mx.metal.is_available() and not mx.cuda.is_available():
    mx.set_default_device(mx.cpu)
model, _ = load(sys.argv[1])
model.set_dtype(mx.float32)
total = count = 0
for ids, places in json.load(sys.stdin):
    logits = model(mx.array(ids)[None])[0]
    for place in places:
        total -= (logits[place - 1] - mx.logsumexp(logits[place - 1]))[ids[place]].item()
        count += 1
print(total / count)
"""


def loss_of(directory: Path, run: Run, forks: Forks) -> float:
    """Mean loss over the judged rows, computed by mlx-lm in a process of its own."""
    rows = divide_rows(run, run.tokenizer(), 320).judged
    given = json.dumps([[row.ids.tolist(), np.flatnonzero(row.trained).tolist()] for row in rows])
    return float(forks.run("-c", READER, directory, given=given.encode(), check=True).stdout)


def tensors(directory: Path) -> dict[str, mx.array]:
    """Every tensor of a model directory, by its name."""
    found: dict[str, mx.array] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= mx.load(str(file))
    return found


@pytest.mark.parametrize("bits", BITS)
def test_every_form_is_opened_by_mlx_lm_and_has_the_loss_that_was_told(plain, tmp_path, forks, bits):
    heard: list[tuple[int, int, str]] = []
    with heard_by(lambda *what: heard.append(what)):
        made = fuse_run(plain, tmp_path, bits=bits)
    assert loss_of(tmp_path, plain, forks) == pytest.approx(made["fused_loss"], rel=1e-4)
    assert {value.dtype for value in tensors(tmp_path).values()} <= {mx.float16, mx.uint32}
    assert made["lost"] == pytest.approx(made["fused_loss"] - made["tuned_loss"], abs=1e-12)
    assert made["within"] is (made["lost"] <= MOST_LOST)
    assert bits == "auto" or made["form"] == bits
    assert made["within"] or bits in ("4", "5", "6")
    assert {words for _, _, words in heard} >= {
        "Comparing with the tuned model, row by row",
        "Writing the merged weights, matrix by matrix",
    }
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_auto_is_the_smallest_that_keeps_what_was_learnt(plain, tmp_path):
    sizes = {}
    for bits in BITS:
        (tmp_path / bits).mkdir()
        made = fuse_run(plain, tmp_path / bits, bits=bits)
        sizes[bits] = sum(value.nbytes for value in tensors(tmp_path / bits).values()) if made["within"] else np.inf
    assert sizes["4"] == np.inf  # so that there is something to choose
    assert sizes["auto"] == min(sizes.values()) < sizes["8"]


def test_mixed_bits_are_named_layer_by_layer(plain, tmp_path):
    made = fuse_run(plain, tmp_path, bits="mixed")
    quantization = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["quantization"]
    named = {path: how for path, how in quantization.items() if isinstance(how, dict)}
    assert named
    assert all(how.keys() == {"group_size", "bits"} for how in named.values())
    stored = tensors(tmp_path)
    for path in {name.removesuffix(".scales") for name in stored if name.endswith(".scales")}:
        how = named.get(path, quantization)
        inputs = stored[f"{path}.scales"].shape[1] * how["group_size"]
        assert stored[f"{path}.weight"].shape[1] * 32 == inputs * how["bits"]
    assert made["bits"] == pytest.approx(float(made["stored"].split(", ")[1].split()[0]), abs=0.05)


BASES = {
    "8 bits": ("llama", {"quantize": "8"}),
    "4 bits, DoRA": ("llama", {"quantize": "4", "adapter": "dora"}),
    "unquantised, DoRA": ("llama", {"quantize": "none", "adapter": "dora"}),
    "head of its own": ("mistral", {"quantize": "4"}),
    "biases": ("qwen2", {"quantize": "4"}),
    "soft caps": ("gemma2", {"quantize": "none"}),
    "last layer": ("llama", {"quantize": "4", "num_layers": 1}),
}


@pytest.mark.parametrize("name", BASES)
def test_every_kind_of_run_is_fused(make_run, random_model, tmp_path, forks, name):
    family, settings = BASES[name]
    run = make_run(random_model(family), **settings)
    for bits in ("16", "auto"):
        out = tmp_path / bits
        out.mkdir()
        made = fuse_run(run, out, bits=bits)
        assert made["within"]
        assert loss_of(out, run, forks) == pytest.approx(made["fused_loss"], rel=1e-4)
        assert bits == "auto" or abs(made["lost"]) < 1e-3


@pytest.mark.parametrize("bits", ["4", "8"])
def test_layers_without_adapters_stay_as_they_are(make_run, tiny_model, tmp_path, bits):
    base = write_quantised(tmp_path / "base", tiny_model)
    run = make_run(base, num_layers=1)
    (tmp_path / "out").mkdir()
    fuse_run(run, tmp_path / "out", bits=bits)
    before, after = tensors(base), tensors(tmp_path / "out")
    kept = [name for name in after if "layers.1" not in name]
    assert any("layers.0.mlp.down_proj.weight" in name for name in kept)
    for name in kept:
        assert np.array_equal(np.array(after[name]), np.array(before[name].astype(after[name].dtype))), name


def test_a_base_in_bfloat16_stays_so(make_run, random_model, tmp_path):
    base = random_model("llama", dtype="bfloat16", torch_dtype="bfloat16")
    made = fuse_run(make_run(base, quantize="none"), tmp_path, bits="6")
    assert made["dtype"] == "bfloat16"
    assert {value.dtype for value in tensors(tmp_path).values()} == {mx.bfloat16, mx.uint32}
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["torch_dtype"] == "bfloat16"


def test_layers_that_fit_no_group_are_merged_unquantised(make_run, random_model, tmp_path, forks):
    run = make_run(random_model("llama", intermediate_size=100), quantize="none")
    made = fuse_run(run, tmp_path, bits="8")
    stored = tensors(tmp_path)
    assert stored["model.layers.0.mlp.down_proj.weight"].shape == (64, 100)
    assert stored["model.layers.0.mlp.down_proj.weight"].dtype == mx.float16
    assert loss_of(tmp_path, run, forks) == pytest.approx(made["fused_loss"], rel=1e-4)


def test_calibration_helps_and_too_few_rows_are_rounded_plainly(plain, tmp_path, monkeypatch):
    found = {}
    for name, tokens in (("calibrated", 16_384), ("plain", 20)):
        monkeypatch.setattr(judging, "CALIBRATION_TOKENS", tokens)
        (tmp_path / name).mkdir()
        found[name] = fuse_run(plain, tmp_path / name, bits="4")
    assert found["plain"]["calibrated_tokens"] == 0
    assert found["calibrated"]["calibrated_tokens"] > 1_000
    assert found["calibrated"]["kl"] < 0.8 * found["plain"]["kl"]


def test_merged_weights_are_the_formulas(tiny_model):
    """LoRA and DoRA, on a quantised and an unquantised base, as the adapters themselves compute."""
    from qlora_core.config import LoraConfig

    x = normal(5, 64)
    for adapter in ("lora", "dora"):
        for quantize in ("none", "4"):
            model, _ = load(tiny_model, PLAIN, quantize=quantize, lora=LoraConfig(adapter=adapter, rank=4))
            layer = model.model.layers[1].self_attn.v_proj
            layer.lora_b = normal(*layer.lora_b.shape)
            assert mx.allclose(x @ changed_matrices.dense_weight(layer).T, layer(x), rtol=1e-4, atol=1e-4)


# Too much lost ------------------------------------------------------------------------------------------------------


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge as if nothing had been learnt."""
    right = changed_matrices.dense_weight
    monkeypatch.setattr(changed_matrices, "dense_weight", lambda module: right(getattr(module, "linear", module)))
    monkeypatch.setattr(fuse, "dense_weight", changed_matrices.dense_weight)


@pytest.mark.parametrize("bits", ["16", "8"])
def test_a_harmful_merge_is_caught(plain, tmp_path, monkeypatch, bits):
    forget(monkeypatch)
    made = fuse_run(plain, tmp_path, bits=bits)
    assert not made["within"]
    assert made["lost"] > 1
    assert made["interval"][0] > MOST_LOST
    assert made["verdict"].startswith("It lost some of what was learnt: the loss is ")
    assert f"{made['fused_loss']:.4f} instead of {made['tuned_loss']:.4f} nats a token" in made["verdict"]


def test_a_verdict_on_few_rows_says_how_much_it_could_be():
    found = {"fused_loss": 0.409, "tuned_loss": 0.4, "lost": 0.009, "interval": [-0.001, 0.0201], "rows": 7}
    end = "counts as the same. Judged on 7 rows alone, it could be up to +0.0201"
    assert fuse._verdict(found, "", "mixed").endswith(f"{end}; --bits 8 is safer.")
    assert fuse._verdict(found, "", "8").endswith(f"{end}; --bits 16 is safer.")
    assert fuse._verdict(found, "", "16").endswith(f"{end}.")
    assert fuse._verdict(found | {"interval": [0, 0.0099]}, "", "4").endswith("counts as the same.")


def test_strict_leaves_nothing_behind_and_what_was_there_as_it_was(plain, tmp_path):
    out = tmp_path / "out"
    export_run(plain, out, to="fused", choices=ExportChoices(bits="8", strict=True))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ExportError, match=r"small: It lost some .* on 16 rows; up to \+0\.01 .* --bits auto finds"):
        export_run(plain, out, to="fused", choices=ExportChoices(bits="4", strict=True))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "It keeps what was learnt: " in summary


def test_strict_refuses_what_cannot_be_judged(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(fuse, "available_bytes", lambda: 200_000_000)
    monkeypatch.setattr(fuse, "memory_counters", dict)
    with pytest.raises(ExportError, match=r"was not compared with .*: it does not fit here: 0.3 GB wanted"):
        fuse_run(plain, tmp_path, strict=True)
    assert list(tmp_path.iterdir()) == []
    made = fuse_run(plain, tmp_path)
    assert (made["form"], made["within"], made["lost"]) == ("8", None, None)


@pytest.mark.parametrize("stage", ["Comparing", "Rounding", "Finding", "Writing"])
def test_interrupted_it_leaves_nothing(plain, tmp_path, stage):
    def interrupt(done: int, total: int, words: str) -> None:
        if words.startswith(stage) and done >= min(total, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), heard_by(interrupt):
        fuse_run(plain, tmp_path, bits="mixed")
    assert list(tmp_path.iterdir()) == []


def test_a_form_that_there_is_not_is_refused(plain, tmp_path):
    with pytest.raises(ConfigError, match="bits must be one of auto, mixed, 16, 8, 6, 5, 4; found 7"):
        fuse_run(plain, tmp_path, bits="7")
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="is not empty"):
        fuse_run(plain, tmp_path, bits="8")
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"
    for unfit in ({"bits": "8"}, {"strict": True}):
        with pytest.raises(ConfigError, match=f"--{next(iter(unfit))} says nothing about the format peft"):
            export_run(plain, tmp_path / "out", to="peft", choices=ExportChoices(**unfit))


# Memory -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep(make_run: Make, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one step on a base of eight layers, quantised on disk; only for reading."""
    root = tmp_path_factory.mktemp("deep")
    model = write_model(root / "model", layers=8, hidden_size=256, intermediate_size=512, vocab_size=2_000)
    return make_run(write_quantised(root / "base", model), max_steps=1, max_answer_tokens=1)


@pytest.mark.parametrize("bits", ["16", "4"])
def test_writing_takes_a_shard_and_a_few_matrices_beside_the_base(deep, tmp_path, monkeypatch, bits):
    """Together MLX computed all matrices ahead of time: that took several times the base."""
    monkeypatch.setattr(fused_files, "SHARD_BYTES", 1_000_000)
    peaks, right = [], fuse.save_weights

    def watched(weights: dict[str, mx.array], *rest: Any) -> None:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        right(weights, *rest)
        peaks.append(mx.get_peak_memory() - before)
        assert weights == {}

    monkeypatch.setattr(fuse, "save_weights", watched)
    fuse_run(deep, tmp_path, bits=bits)
    matrix = 256 * 2_000 * 4  # the largest, as plain float32
    assert peaks[0] <= fused_files.SHARD_BYTES + 3 * matrix
    written = tensors(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert sorted(written) == list(index["weight_map"])
    assert len(set(index["weight_map"].values())) == len(list(tmp_path.glob("*.safetensors"))) > 2
    assert any(name.endswith(".scales") for name in written) is (bits == "4")
