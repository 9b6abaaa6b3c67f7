"""Quantising while loading: the numbers of all at once, one matrix at full size, kept for the next time."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from harness import PLAIN
from safetensors.numpy import save_file
from tiny import write_model

from qlora_core.config import BaseConfig
from qlora_core.engine import weights
from qlora_core.engine.device import mx, nn, tree_flatten
from qlora_core.engine.weights import load_weights, loaded_directory
from qlora_core.errors import ModelError
from qlora_core.files import storage
from qlora_core.models.base_models import ModelSpec, describe

IDS = mx.array([[5, 70, 9, 300, 41, 7]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def described(path: Path, bits: str = "4", group_size: str = "64") -> ModelSpec:
    return describe(path, BaseConfig(model=str(path), quantize=bits, group_size=group_size))


def load(spec: ModelSpec, *, dtype: str = "float32") -> tuple[nn.Module, list[str]]:
    """The model, and what was warned of."""
    warnings: list[str] = []
    return load_weights(spec, dtype, warnings.append), warnings


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: np.array(value.astype(mx.float32)) for name, value in tree_flatten(model.parameters())}


def assert_same(found: nn.Module, wanted: nn.Module) -> None:
    found, wanted = arrays(found), arrays(wanted)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("bits", ["4", "8"])
@pytest.mark.parametrize("group_size", ["32", "64"])
@pytest.mark.parametrize("block", [500, weights.BLOCK])  # rows in parts, and all at once
def test_quantised_is_what_mlx_quantises(tiny_model, monkeypatch, bits, group_size, block) -> None:
    monkeypatch.setattr(weights, "BLOCK", block)
    found, _ = load(described(tiny_model, bits, group_size))
    wanted, _ = load(described(tiny_model, "none"))
    nn.quantize(wanted, int(group_size), int(bits))
    assert_same(found, wanted)
    assert mx.array_equal(found(IDS), wanted(IDS))


def test_a_matrix_that_no_group_divides_stays_as_it_is(tmp_path) -> None:
    """128 does not divide the 64 columns of most; `down_proj` has 128."""
    model, _ = load(described(write_model(tmp_path / "model"), "4", "128"))
    kinds = {name.rpartition(".")[2]: type(module) for name, module in model.named_modules()}
    assert kinds["down_proj"] is nn.QuantizedLinear
    assert kinds["up_proj"] is nn.Linear
    assert type(load(described(tmp_path / "model", "4", "128"))[0].layers[0].mlp.up_proj) is nn.Linear  # read again


def test_the_second_time_it_is_read(tiny_model, monkeypatch, cache) -> None:
    spec = described(tiny_model)
    assert loaded_directory(spec, "float32") == tiny_model
    first, warnings = load(spec)
    assert not warnings
    monkeypatch.setattr(weights, "_quantised", None)
    second, _ = load(spec)
    assert_same(second, first)
    kept = loaded_directory(spec, "float32")
    assert kept.parent == cache / "models"
    assert loaded_directory(described(tiny_model, "none"), "float32") == tiny_model


def test_what_is_kept_opens_in_mlx_lm(tiny_model) -> None:
    from mlx_lm.utils import load as load_in_mlx_lm

    model, _ = load(described(tiny_model))
    theirs, tokenizer = load_in_mlx_lm(str(loaded_directory(described(tiny_model), "float32")))
    assert mx.array_equal(theirs(IDS), model(IDS))
    assert tokenizer.chat_template
    config = json.loads(
        (loaded_directory(described(tiny_model), "float32") / "config.json").read_text(encoding="utf-8")
    )
    assert (config["quantization"]["bits"], config["quantization"]["group_size"]) == (4, 64)


@pytest.mark.parametrize("change", ["bits", "group_size", "content", "dtype"])
def test_each_way_and_content_is_kept_by_itself(tmp_path, change) -> None:
    path = write_model(tmp_path / "model")
    one = loaded_directory_after(described(path), "float32")
    if change == "content":
        write_model(path, seed=1)
    other = described(path, "8" if change == "bits" else "4", "32" if change == "group_size" else "64")
    assert loaded_directory_after(other, "float16" if change == "dtype" else "float32") != one


def loaded_directory_after(spec: ModelSpec, dtype: str) -> Path:
    load(spec, dtype=dtype)
    return loaded_directory(spec, dtype)


def test_what_was_cut_off_is_quantised_anew(tiny_model) -> None:
    spec = described(tiny_model)
    first, _ = load(spec)
    file = loaded_directory(spec, "float32") / "model.safetensors"
    os.truncate(file, 1000)
    assert loaded_directory(spec, "float32") == tiny_model
    second, _ = load(spec)
    assert_same(second, first)
    assert file.stat().st_size > 1000


def test_without_room_it_is_not_kept(tiny_model, monkeypatch, cache) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 10**9, 10**9))
    model, (warning,) = load(described(tiny_model))
    assert "is not kept" in warning
    assert "2.0 GB wanted, 1.0 GB free" in warning
    assert "QLORA_CACHE" in warning
    assert type(model.layers[0].mlp.up_proj) is nn.QuantizedLinear
    assert loaded_directory(described(tiny_model), "float32") == tiny_model
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OSError(28, "No space left on device"),
            r"No space left on device \(ENOSPC\); [\d,]+ bytes wanted, .* go on\. ",
        ),
        (RuntimeError("[save_safetensors] failed"), r": \[save_safetensors\] failed\. "),
    ],
)
def test_a_disk_that_fills_up_leaves_nothing_behind(tiny_model, monkeypatch, cache, error, told) -> None:
    def fail(path: Path, *_: object) -> None:
        (path / "model.safetensors").write_bytes(b"half of it")
        raise error

    monkeypatch.setattr("mlx_lm.utils.save_model", fail)
    _, (warning,) = load(described(tiny_model))
    assert re.search(f"{told}QLORA_CACHE", warning), warning
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_what_one_that_was_killed_left_is_cleared_away(tiny_model, cache) -> None:
    load(described(tiny_model))
    kept = loaded_directory(described(tiny_model), "float32")
    stale = kept.with_name(f".{kept.name}.123.tmp")
    kept.rename(stale)
    load(described(tiny_model))
    assert not stale.exists()
    assert loaded_directory(described(tiny_model), "float32") == kept


def test_two_at_once_quantise_once(tiny_model) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom qlora_core.engine import weights\n"
        "from qlora_core.models.base_models import describe\n"
        "from qlora_core.config import BaseConfig\n"
        "made = weights._quantised\n"
        "weights._quantised = lambda *given: print('quantised') or made(*given)\n"
        "weights.load_weights(describe(Path(sys.argv[1]), BaseConfig(model=sys.argv[1])), 'float32', print)\n"
    )
    command = [sys.executable, "-c", script, str(tiny_model)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate()[0] for process in both) == ["", "quantised\n"]
    assert [process.returncode for process in both] == [0, 0]


def test_no_more_than_one_matrix_is_there_at_full_size(tmp_path) -> None:
    """A model of 12 equal layers and a large vocabulary: the peak is its quantised size and a matrix."""
    path = write_model(tmp_path / "model", layers=12, hidden_size=512, intermediate_size=1024, vocab_size=8192)
    spec = described(path)
    full = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    matrix = 8192 * 512 * 4
    script = (
        "import sys\nfrom pathlib import Path\nfrom qlora_core.engine import weights\n"
        "from qlora_core.models.base_models import describe\n"
        "from qlora_core.config import BaseConfig\nfrom qlora_core.engine.device import mx\n"
        "weights.BLOCK = 500_000\n"
        "weights.load_weights(describe(Path(sys.argv[1]), BaseConfig(model=sys.argv[1])), 'float32', print)\n"
        "print(mx.get_peak_memory())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    peak = int(done.stdout)
    assert spec.loaded_bytes < peak < spec.loaded_bytes + 1.3 * matrix < full / 2


@pytest.mark.parametrize("model_type", ["no_such_model", "llama4"])
def test_what_mlx_lm_cannot_load_is_refused(tmp_path, model_type) -> None:
    path = write_model(tmp_path / "model")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps(config | {"model_type": model_type}), encoding="utf-8")
    with pytest.raises(ModelError, match=f"cannot be loaded as a {model_type} model"):
        load(described(path))


def test_weights_that_do_not_fit_are_refused(tmp_path) -> None:
    path = write_model(tmp_path / "model")
    save_file({"model.layers.0.mlp.up_proj.weight": np.zeros((4, 64), np.float32)}, path / "model.safetensors")
    with pytest.raises(ModelError, match="cannot be loaded as a llama model"):
        load(described(path))


# Hashes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content was hashed; those of 10 bytes and more are large."""
    hashed: list[Path] = []
    plain = storage.describe_file
    monkeypatch.setattr(storage, "describe_file", lambda path: hashed.append(path) or plain(path))
    monkeypatch.setattr(storage, "LARGE_FILE", 10)
    return hashed


def age(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file's last change lie long back."""
    monkeypatch.setattr(storage, "QUIET_SECONDS", -1.0)


def test_the_hash_of_a_large_file_is_remembered(tmp_path, monkeypatch, counted) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789")
    age(path, monkeypatch)
    first = storage.remembered_sha256(path)
    assert storage.remembered_sha256(path) == first == storage.describe_file(path)["sha256"]
    assert counted == [path, path]  # once, and once more by the line above
    path.write_bytes(b"0123456780")
    assert storage.remembered_sha256(path) != first
    shutil.copy2(path, tmp_path / "other")
    assert storage.remembered_sha256(tmp_path / "other") == storage.remembered_sha256(path)


def test_the_hash_of_a_small_or_new_file_is_not_remembered(tmp_path, monkeypatch, counted) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789")
    for _ in range(2):
        storage.remembered_sha256(path)  # just written
    age(path, monkeypatch)
    path.write_bytes(b"012")
    for _ in range(2):
        storage.remembered_sha256(path)
    assert len(counted) == 4


def test_a_damaged_memory_of_hashes_is_forgotten(tmp_path, monkeypatch, counted, cache) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789")
    age(path, monkeypatch)
    cache.mkdir()
    (cache / "hashes.json").write_text("[1, 2", encoding="utf-8")
    assert storage.remembered_sha256(path) == storage.remembered_sha256(path)
    assert counted == [path]


def test_kernels_compute_on_what_was_kept(tiny_model) -> None:
    from qlora_core.engine.model import load_base

    spec = described(tiny_model)
    assert mx.array_equal(load_base(spec, PLAIN)(IDS), load_base(spec, PLAIN)(IDS))
