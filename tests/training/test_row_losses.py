"""The loss of each row, and a quantised base as plain numbers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from harness import PLAIN, load, random_rows, set_adapters, textbook_loss, write_quantised

from qlora_core.config import BaseConfig, LoraConfig
from qlora_core.errors import StorageError
from qlora_core.models.base_models import describe
from qlora_core.tokens.rows import TokenRow
from qlora_core.tokens.tokenizer import ChatTokenizer
from qlora_core.training import dequantised_base as module
from qlora_core.training.dequantised_base import dequantised_base
from qlora_core.training.row_losses import row_losses


def test_losses_are_those_of_rows_one_by_one_in_their_order(tiny_model):
    """Rows that are padded beside longer ones, that fill a batch, and one with nothing to train."""
    model, _ = load(tiny_model, PLAIN, lora=LoraConfig())
    set_adapters(model)
    rows = random_rows(30, 7, 300, 19, 300, 5)
    rows.insert(2, TokenRow(rows[0].ids, np.zeros(30, bool)))
    found = row_losses(model, rows)
    assert found.dtype == np.float64
    assert found[2] == 0
    assert found == pytest.approx([textbook_loss(model, [row]).item() for row in rows], rel=1e-5)
    assert row_losses(model, []).shape == (0,)


@pytest.mark.parametrize(("family", "bits"), [("llama", 4), ("phi", 8)])
def test_a_dequantised_base_is_the_same_model(random_model, tmp_path, monkeypatch, family, bits):
    """The same losses to the last bits of float32, the same tokens, and nothing quantised."""
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    base = write_quantised(tmp_path / "base", random_model(family), bits=bits)
    spec = describe(base, BaseConfig(model=str(base)))
    assert spec.bits == bits
    copy = dequantised_base(spec)
    dense = describe(copy, BaseConfig(model=str(copy), quantize="none"))
    assert (dense.bits, dense.parameters, dense.shapes) == (None, spec.parameters, spec.shapes)
    assert "quantization" not in json.loads((copy / "config.json").read_text(encoding="utf-8"))
    assert ChatTokenizer(copy).fingerprint == ChatTokenizer(base).fingerprint
    rows = random_rows(9, 17, 30)
    losses = [row_losses(load(path, PLAIN, quantize="none")[0], rows) for path in (base, copy)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert not any("scales" in part for part in load(copy, PLAIN, quantize="none")[0].modules())


def test_it_is_written_once_and_again_where_the_copy_is_not_whole(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    base = write_quantised(tmp_path / "base", tiny_model)
    spec = describe(base, BaseConfig(model=str(base)))
    copy = dequantised_base(spec)
    weights = copy / "model.safetensors"
    whole, written = weights.read_bytes(), weights.stat().st_mtime_ns
    assert dequantised_base(spec) == copy
    assert weights.stat().st_mtime_ns == written
    weights.write_bytes(whole[:100])
    assert dequantised_base(spec) == copy
    assert weights.read_bytes() == whole


def test_what_will_be_written_is_told_before_and_refused_without_room(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    base = write_quantised(tmp_path / "base", tiny_model)
    spec = describe(base, BaseConfig(model=str(base)))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(module, "load_weights", lambda *_: pytest.fail("loaded"))
    with pytest.raises(StorageError, match=r"plain numbers would take .* Make room there"):
        dequantised_base(spec)
    monkeypatch.undo()
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    told = list[str]()
    copy = dequantised_base(spec, told.append)
    assert f"written once more as plain numbers, {spec.dense_bytes / 1e9:.2f} GB" in told[0]
    assert str(copy) in told[0]
    dequantised_base(spec, lambda _: pytest.fail("it is there"))


def test_a_copy_that_cannot_be_written_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    base = write_quantised(tmp_path / "base", tiny_model)

    def full(*_: object) -> None:
        raise StorageError("no room")

    monkeypatch.setattr(module, "save_weights", full)
    with pytest.raises(StorageError, match="no room"):
        dequantised_base(describe(base, BaseConfig(model=str(base))))
    assert not list((tmp_path / "cache/models/dequantised").rglob("*.safetensors"))
