"""Losses and gradient norms are those of PyTorch with PEFT, on the same rows; on demand, since it needs both.

python -m venv peft && peft/bin/pip install torch transformers peft
uv run pytest tests/training/test_torch_oracle.py --peft peft/bin/python -s

At the run's own adapters of some steps, and over the first steps of a training of their own. Longer trainings of both
part: rounding grows with every step (`docs/accuracy.md`).
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Killed, adapters_of, at_step, create_run, kill, mx, train, write_pair
from tiny import write_model

from qlora_core.bench.prepare import dequantise
from qlora_core.engine.model import read_tensors
from qlora_core.engine.weights import loaded_directory
from qlora_core.files.safetensors_headers import weight_files
from qlora_core.runs.run import Run
from qlora_core.training import steps

ROOT = Path(__file__).parents[2]
ORACLE = ROOT / "tests/support/torch_oracle.py"
FIRST = 24  # steps that both train
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"adapter": "dora"},
    "rslora": {"rslora": True},
    "lora+": {"lora_plus": 16.0},
    "decay": {"weight_decay": 0.5},
    "decay and lora+": {"weight_decay": 0.1, "lora_plus": 4.0},
    "adam": {"optimizer": "adam", "schedule": "linear", "max_grad_norm": 0.3},
    "accumulated": {"grad_accumulation_steps": 2, "schedule": "constant"},
}
QUIET = {"samples": 0, "eval_every": 10_000, "save_every": 10_000}


@pytest.fixture
def peft(request: pytest.FixtureRequest) -> str:
    """A Python with torch, transformers and peft."""
    return request.config.getoption("--peft") or pytest.skip("on demand: --peft PYTHON")


def train_and_note(run: Run, directory: Path, at: list[int], monkeypatch: pytest.MonkeyPatch) -> list[steps.Step]:
    """Train to the last of these steps; what each step saw, its adapters at these, and the job for the oracle."""
    directory.mkdir()
    found, rows, train_step = [], [], steps.train_step
    settings: dict[str, Any] = {}

    def noting(session, group):
        number = session.progress.step + 1
        if number in at:
            np.savez(directory / f"{number}.npz", **adapters_of(session.model))
        settings.update(vars(session.config.lora) | vars(session.config.train), total=session.total_steps)
        some = [session.train_rows[i] for indices in group for i in indices]
        rows.append([[row.ids.tolist(), row.trained.tolist()] for row in some])
        found.append(train_step(session, group))
        return found[-1]

    monkeypatch.setattr(steps, "train_step", noting)
    with pytest.raises(Killed):
        train(run, at_step(max(at), kill))
    job = {**settings, "base": str(dense_base(run, directory / "base")), "at": at, "steps": rows, "train": FIRST}
    (directory / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return found


def dense_base(run: Run, directory: Path) -> Path:
    """A run's base as Hugging Face's libraries read it, dequantised."""
    source = loaded_directory(run.base(), "float32")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    quantization = config.pop("quantization", {})
    config.pop("quantization_config", None)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (file,) = weight_files(source)
    dense = dequantise(read_tensors(file), quantization, mx.float32)
    mx.save_safetensors(str(directory / "model.safetensors"), dense, {"format": "pt"})
    return directory


def compare_with_oracle(peft: str, name: str, directory: Path, ours: list[steps.Step]) -> None:
    """Losses and norms within what is promised; prints how near they are."""
    ended = subprocess.run([peft, ORACLE, directory], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((directory / "found.json").read_text(encoding="utf-8"))

    def gaps(step: steps.Step, loss: float, norm: float) -> tuple[float, float]:
        return step.loss / step.targets - loss, step.norm / norm - 1

    at = {int(number): gaps(ours[int(number) - 1], *theirs) for number, theirs in found["at"].items()}
    first = [gaps(step, *theirs) for step, theirs in zip(ours, found["trained"], strict=False)]
    largest, norms = (max(abs(gap[i]) for gap in first) for i in (0, 1))
    mean = float(np.mean([abs(gap[0]) for gap in first]))
    print(f"\n{name}: loss of the first {len(first)} steps within {largest:.1e} (mean {mean:.1e}), norm {norms:.1e}")
    for number, (loss, norm) in at.items():
        step = ours[number - 1]
        print(f"  step {number}: loss {step.loss / step.targets:.6f} {loss:+.1e}, norm {step.norm:.5f} {norm:+.1e}")
    assert len(first) == FIRST
    for loss, norm in at.values():
        assert abs(loss) < 1e-4
        assert abs(norm) < 2e-4
    assert largest < 2e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_model_with_a_large_vocabulary(
    monkeypatch: pytest.MonkeyPatch, peft: str, tmp_path: Path, kind: str
) -> None:
    base = write_model(tmp_path / "model", vocab_size=49_152)
    settings = {"quantize": "none", "epochs": 100, "learning_rate": 1e-3, "warmup_steps": 5, **QUIET, **KINDS[kind]}
    run = create_run(tmp_path / "runs", base, write_pair(tmp_path / "data"), run="run", **settings)
    ours = train_and_note(run, tmp_path / "job", [1, 50, 100, 200], monkeypatch)
    compare_with_oracle(peft, kind, tmp_path / "job", ours)


@pytest.mark.parametrize("kind", KINDS)
def test_the_builtin_model(monkeypatch: pytest.MonkeyPatch, peft: str, tmp_path: Path, kind: str) -> None:
    """The default run and the other kinds, at a quarter of the default rate: there both part later."""
    settings = {"batch_size": 4, "epochs": 5, "learning_rate": 1e-3, "warmup_steps": 5, **QUIET, **KINDS[kind]}
    settings |= {"rslora": {"learning_rate": 2.5e-4}, "lora+": {"learning_rate": 1.25e-4}}.get(kind, {})
    run = create_run(tmp_path / "runs", "smollm2-135m", ROOT / "data" / "sample" / "club", run="run", **settings)
    at = [1, 50, 95] if kind == "lora" else [1, FIRST // 2, FIRST]  # 95 steps are the whole run
    ours = train_and_note(run, tmp_path / "job", at, monkeypatch)
    compare_with_oracle(peft, kind, tmp_path / "job", ours)
