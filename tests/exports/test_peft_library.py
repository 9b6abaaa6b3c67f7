"""The PEFT library computes what we do from what `qlora export --to peft` writes; on demand, since it needs PyTorch.

python -m venv peft && peft/bin/pip install torch transformers peft
uv run pytest tests/exports/test_peft_library.py --peft peft/bin/python
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from harness import create_run, difference, mx, train, tree_flatten, write_pair
from mlx_lm.utils import dequantize_model
from tiny import TAUGHT, write_model

from qlora_core.engine.generate import answer
from qlora_core.engine.model import load_base, save_tensors
from qlora_core.exports.export import export_run
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.runs.run import Run
from qlora_core.training.fused_files import save_companions
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
RENDERED = """
import json, sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapters, asked, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(adapters)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), adapters).eval()
told = []
for question in json.load(open(asked, encoding="utf-8")):
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=12, do_sample=False)
    length = ids["input_ids"].shape[1]
    answer = tokenizer.decode(made[0, length:], skip_special_tokens=True)
    told.append({"ids": ids["input_ids"][0].tolist(), "answer": answer})
json.dump(told, open(out, "w", encoding="utf-8"))
"""
QUESTIONS = ["red?", "What is É?\n\n {x}"]
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


def test_transformers_renders_and_answers_chats_as_the_run_does(
    request: pytest.FixtureRequest, trained: Run, tmp_path: Path
) -> None:
    """From an export's own tokeniser and template, beside the unquantised numbers of the base that was trained on."""
    python = request.config.getoption("--peft")
    if not python:
        pytest.skip("on demand: --peft PYTHON")
    export_run(trained, tmp_path / "out", to="peft")
    model, tokenizer = load_for_answers(trained)
    base = dequantised(trained, tmp_path / "base")
    (tmp_path / "asked.json").write_text(json.dumps(QUESTIONS), encoding="utf-8")
    files = (base, tmp_path / "out", tmp_path / "asked.json", tmp_path / "told.json")
    done = subprocess.run([python, "-c", RENDERED, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert [each["ids"] for each in told] == [tokenizer.encode_prompt(question) for question in QUESTIONS]
    assert [each["answer"].strip() for each in told] == answer(model, tokenizer, QUESTIONS, max_tokens=12)
    assert told[0]["answer"].strip() == TAUGHT["red?"]


def dequantised(run: Run, directory: Path) -> Path:
    """The run's base in float32, as PyTorch loads it."""
    directory.mkdir()
    spec = run.base()
    model = dequantize_model(load_base(spec, Kernels("cpu", "float32", "quantised")))
    save_companions(spec, directory, run.tokenizer(), "float32", {})
    save_tensors(directory / "model.safetensors", dict(tree_flatten(model.parameters())), {"format": "pt"})
    return directory
