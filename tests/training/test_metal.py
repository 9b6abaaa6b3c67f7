"""What Apple's GPUs are given: the whole path in processes where MLX's CPU poses as an M1's GPU (`pretended_metal`).

Numbers and speed of its kernels are only to be had on a Mac.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
from conftest import ROOT
from harness import create_run, events, train, write_pair

from qlora_core.engine import device
from qlora_core.jobs import launch
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.runs.run import Run
from qlora_core.tokens.batching import Rounding

ON_AN_M1 = Kernels("metal", "float16", "quantised", rounding=Rounding(32, 32, (128, 256), 1.05), compiled=True)
SETTINGS = {"batch_size": 4, "max_steps": 4, "epochs": 2, "warmup_steps": 1, "learning_rate": 1e-2, "eval_every": 2,
            "save_every": 2, "samples": 1, "max_answer_tokens": 2}  # fmt: skip

Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def model(random_model: Callable[..., Path]) -> Path:
    """A base as Mistral's: saved in bfloat16, which an M1 has no arithmetic for."""
    return random_model("mistral", dtype="bfloat16")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("rows"), train=8, validation=2)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory, as_an_m1: dict[str, str], model: Path, sources: Path) -> Run:
    """What the plain script trained; only for reading."""
    root = tmp_path_factory.mktemp("scripted")
    command = [sys.executable, ROOT / "apps/train.py", *flags(model, sources, root, "script")]
    ended = processes.run(command, cwd=root, env=as_an_m1, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ("Metal (Apple M1)" in ended.stdout, ended.stderr) == (True, "")
    return Run(root / "script")


def flags(model: Path, sources: Path, root: Path, name: str, **settings: object) -> list[str]:
    given = {"model": model, "data": sources, "runs_dir": root, "run": name, **SETTINGS, **settings}
    return [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]


def commands(environment: dict[str, str], directory: Path, *each: list[str]) -> list[str]:
    """Run `qlora` several times in one process, each successfully; what each printed."""
    script = (
        "import contextlib, io, json, sys\n"
        "from qlora_core.cli import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "        assert main(command) == 0, command\n"
        "    print(json.dumps(said.getvalue()))\n"
    )
    command = [sys.executable, "-c", script, json.dumps([list(map(str, one)) for one in each])]
    ended = processes.run(command, cwd=directory, env=environment, text=True)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def on_this_cpu(model: Path, sources: Path, root: Path, **settings: object) -> list[float]:
    """The losses that the same settings have in float32, on the same rows in each batch."""
    run = create_run(root / "cpu", model, sources, **{**SETTINGS, "samples": 0, **settings})
    with pytest.MonkeyPatch.context() as patch:
        kernels = Kernels("cpu", "float32", "kept", rounding=ON_AN_M1.rounding)
        patch.setattr(device, "choose_kernels", lambda *_: kernels)
        assert train(run).state == "completed"
    return losses(run)


def losses(run: Run) -> list[float]:
    return [*events(run, "step", "train_loss"), *events(run, "eval", "val_loss")]


def test_the_plain_script_trains_as_an_m1_would(scripted: Run, model: Path, sources: Path, tmp_path: Path) -> None:
    """In a process of its own that somebody looks after; with the losses of float32 but for rounding."""
    assert Kernels.from_dict(scripted.environment()["kernels"]) == ON_AN_M1
    assert scripted.state == "completed"
    assert events(scripted, "warning") == []
    assert (scripted.path / "worker.log").read_text(encoding="utf-8") == ""
    assert losses(scripted) == pytest.approx(on_this_cpu(model, sources, tmp_path), rel=1e-2)
    assert {sample["epoch"] for sample in scripted.samples()} == {0, 1, 2}
    assert scripted.evaluation() is not None


def test_it_answers_is_judged_and_exported_there(scripted: Run, as_an_m1: dict[str, str], tmp_path: Path) -> None:
    run = scripted.path
    asked = ["generate", run, "--prompt", "1?", "2?", "--max-tokens", "3", "--json"]
    exported = [
        ["export", run, "--to", "peft", "--out", tmp_path / "peft", "--no-verify", "--json"],
        ["export", run, "--to", "fused", "--dequantize", "--no-verify", "--out", tmp_path / "fused", "--json"],
        ["export", run, "--to", "fused", "--out", tmp_path / "auto", "--json"],
    ]
    answers, evaluation, peft, fused, auto = commands(as_an_m1, tmp_path, asked, ["evaluate", run, "--json"], *exported)
    assert [pair["prompt"] for pair in json.loads(answers)["answers"]] == ["1?", "2?"]
    assert json.loads(evaluation)["adapters"] == "best"
    assert "adapter_model.safetensors" in json.loads(peft)["files"]
    found = json.loads(fused)["fused"]
    assert found["fused_loss"] == pytest.approx(found["tuned_loss"], rel=2e-2)
    found = json.loads(auto)["fused"]
    assert found["fused_loss"] == pytest.approx(found["tuned_loss"], rel=2e-2)


TECHNIQUES = {
    "dora": ("qwen3", {"adapter": "dora"}),
    "checkpointed": ("mistral", {"grad_checkpoint": True}),
    "upper-layer": ("llama", {"num_layers": 1}),
    "soft-capped": ("gemma2", {}),
}


def test_every_technique_trains_there(
    as_an_m1: dict[str, str], random_model: Callable[..., Path], sources: Path, tmp_path: Path
) -> None:
    wanted, asked = {}, []
    for name, (family, settings) in TECHNIQUES.items():
        base = random_model(family, dtype="bfloat16")
        wanted[name] = on_this_cpu(base, sources, tmp_path / name, **settings)
        words = {key: value for key, value in settings.items() if value is not True}
        switches = [f"--{key.replace('_', '-')}" for key, value in settings.items() if value is True]
        words |= {"samples": 0, "restart": 0}
        asked.append(["train", *flags(base, sources, tmp_path, name, **words), *switches])
    commands(as_an_m1, tmp_path, *asked)
    for name, numbers in wanted.items():
        run = Run(tmp_path / name)
        assert run.environment()["kernels"]["dtype"] == "float16", name
        assert losses(run) == pytest.approx(numbers, rel=2e-2), name
    assert events(Run(tmp_path / "upper-layer"), "trunk", "layers") == [1]
    assert events(Run(tmp_path / "soft-capped"), "start", "layout") == ["whole"]


def test_the_pages_worker_trains_there(plan: Callable, model: Path, as_an_m1: dict[str, str], monkeypatch) -> None:
    for name in ("PYTHONPATH", "MLX_DISABLE_COMPILE"):
        monkeypatch.setenv(name, as_an_m1[name])
    tracker, planned = plan(model=str(model), run="page", **{**SETTINGS, "samples": 0})
    run = planned.run
    launch.start(tracker, planned)
    processes.wait_until(lambda: not run.alive, lambda: launch.last_words(run))
    assert run.state == "completed", launch.last_words(run)
    (started,) = events(run, "start")
    assert (started["device"], started["kernels"]["dtype"]) == ("Metal (Apple M1)", "float16")
    assert started["kernels"] == json.loads(json.dumps(dataclasses.asdict(ON_AN_M1)))
