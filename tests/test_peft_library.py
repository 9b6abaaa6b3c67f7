"""The PEFT library computes what we do from what `qlora export --to peft` writes; on demand, since it needs PyTorch.

python -m venv peft && peft/bin/pip install torch transformers peft
uv run pytest tests/test_peft_library.py --peft peft/bin/python
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from harness import create_run, difference, mx, train, write_pair
from tiny import write_model

from qlora_core.exports.export import export_run
from qlora_core.training.session import load_for_answers

IDS = [5, 70, 9, 200, 41, 7, 33]
THEIRS = f"""
import sys
import numpy, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapters, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, adapters).eval()
with torch.no_grad():
    numpy.save(out, model(torch.tensor([{IDS}])).logits.numpy())
"""
KINDS = {
    "lora": {},
    "dora": {"adapter": "dora"},
    "rslora": {"rslora": True, "num_layers": 1, "projections": "q_proj,down_proj"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_peft_computes_the_same(request: pytest.FixtureRequest, tmp_path: Path, family: str, kind: str) -> None:
    python = request.config.getoption("--peft")
    if not python:
        pytest.skip("on demand: --peft PYTHON")
    base = write_model(tmp_path / "base", family)
    settings = {"quantize": "none", "learning_rate": 0.05, **KINDS[kind]}
    run = create_run(tmp_path / "runs", base, write_pair(tmp_path / "data"), run="run", **settings)
    train(run)
    export_run(run, tmp_path / "out", to="peft")
    command = [python, "-c", THEIRS, base, tmp_path / "out", tmp_path / "theirs.npy"]
    subprocess.run(command, check=True, capture_output=True)
    theirs = np.load(tmp_path / "theirs.npy")
    ours, untuned = (np.array(load_for_answers(run, base=only)[0](mx.array([IDS]))) for only in (False, True))
    assert difference(theirs, ours) < 1e-5
    assert difference(untuned, ours) > 0.1
