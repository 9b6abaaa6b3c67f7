"""What leaves a run works on its own: adapters, PEFT's adapters, a fused model, and every example of the guides."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import processes
import pytest
from chat_templates import PUBLISHED
from chat_templates import write as write_published
from forks import Forks
from guide_examples import (
    PORT,
    blocks,
    command,
    example_environment,
    is_server,
    printed,
    said_over_http,
    serving,
)
from harness import create_run, difference, textbook_loss, train, write_pair, write_quantised
from safetensors.numpy import load_file, save_file
from tiny import TAUGHT, write_model

from qlora_core.engine.generate import answer
from qlora_core.errors import ConfigError, ModelError, RunError
from qlora_core.exports import export, guides
from qlora_core.exports.formats import FORMATS, ExportChoices
from qlora_core.exports.peft import convert_adapters
from qlora_core.files.storage import manifest_problem
from qlora_core.models.adapter_files import ADAPTER_FILE, adapter_settings
from qlora_core.runs.run import Run
from qlora_core.tokens.tokenizer import ChatTokenizer
from qlora_core.training.judging import divide_rows
from qlora_core.training.session import load_for_answers

PROGRAM = guides.TEMPLATES / "inference.py"
QUESTIONS = [*TAUGHT, "red??", "<|im_end|>red?", "quem é?"]
BESIDE = {"inference.py", "INTEGRATION.md", "INTEGRACAO.pt.md", "chat_template.jinja"}
TOKENIZER = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
REPORT = {"metrics.json", "curves.svg", "curves.png", "summary.md", "README.md", "manifest.json"}


def export_run(run: Run, out: Path, *, to: str, force: bool = False, verified: bool = False, **choices: Any) -> dict:
    """Export; not verified unless asked for, since that takes a process of its own."""
    return export.export_run(run, out, to=to, choices=ExportChoices(**choices), force=force, verified=verified)


def in_mlx_lm() -> ModuleType:
    """mlx-lm, imported after `qlora_core.engine.device`: whoever imports mlx first decides which BLAS it uses."""
    import mlx_lm.utils

    return mlx_lm


@pytest.fixture(scope="module")
def adapter(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run's adapters, exported; only for reading."""
    out = tmp_path_factory.mktemp("exports") / "it's an export"
    export_run(trained, out, to="adapter")
    return out


@pytest.fixture(scope="module")
def on_load(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the last layer of a base that was quantised while loading; only for reading."""
    root = tmp_path_factory.mktemp("on-load")
    run = create_run(root / "runs", tiny_model, write_pair(root / "data"), run="on-load", num_layers=1)
    train(run)
    return run


@pytest.fixture(scope="module")
def tuned_answers(trained: Run) -> list[str]:
    """What `qlora generate` answers."""
    model, tokenizer = load_for_answers(trained)
    return answer(model, tokenizer, QUESTIONS, max_tokens=12)


def forget_curves(run: Run) -> None:
    """Drop the numbers of each step: drawing their curves takes longer than all else of an export."""
    (run.path / "metrics.jsonl").unlink()


def ask_many(forks: Forks, directory: Path) -> list[str]:
    """Answers of an export's own program, loaded once in a process of its own."""
    script = (
        "import json, sys\n"
        f"sys.path.insert(0, {str(directory)!r})\n"
        "from inference import answer, load\n"
        "loaded = load()\n"
        f"print(json.dumps([answer(*loaded, question, max_tokens=12) for question in {QUESTIONS!r}]))\n"
    )
    done = forks.run("-c", script, check=True)
    return json.loads(done.stdout)


# Adapters -------------------------------------------------------------------------------------------------------


def test_adapters_with_all_that_is_needed(adapter, trained):
    assert {path.name for path in adapter.iterdir()} == {
        "adapters.safetensors", "adapter_config.json", *BESIDE, *REPORT}  # fmt: skip
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (adapter / name).read_bytes() == (trained.best / name).read_bytes()
    assert manifest_problem(adapter) is None
    base = Path(trained.environment()["model"]["path"])
    assert (adapter / "chat_template.jinja").read_text(encoding="utf-8") == ChatTokenizer(base).template_text


def test_metrics_tell_the_numbers_and_no_places(adapter, trained):
    text = (adapter / "metrics.json").read_text(encoding="utf-8")
    metrics = json.loads(text)
    assert metrics["exported_as"] == "adapter"
    assert metrics["summary"] == trained.summary()
    assert metrics["recall"] == trained.evaluation()["recall"]
    assert metrics["settings"]["rank"] == 8
    steps = [event for event in trained.metrics() if event["type"] == "step"]
    assert metrics["curves"]["train_loss"] == [[event["step"], event["train_loss"]] for event in steps]
    assert [step for step, _ in metrics["curves"]["val_loss"]] == [10, 20, 30, 40]
    assert str(trained.path.parent.parent) not in text


def test_what_is_returned_is_what_is_there(trained, tmp_path):
    result = export_run(trained, tmp_path / "out", to="adapter")
    files = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert result["files"] == files
    assert result == {
        "run": "trained", "to": "adapter", "path": str(tmp_path / "out"), "bytes": sum(files.values()),
        "files": files, "fused": None, "gguf": None, "verification": None,
    }  # fmt: skip


def test_summary_is_one_page_of_this_run(adapter, trained):
    text = (adapter / "summary.md").read_text(encoding="utf-8")
    numbers = trained.summary()
    assert f"| Best | validation loss {numbers['best_val_loss']:.4f} at step {numbers['best_step']} |" in text
    assert "| Rows | 4 to train, 4 to validate |" in text
    assert "trained phrasings   before   0% (0/4)   after 100% (4/4; 95%: 51 to 100)" in text
    assert "![Loss, learning rate, speed and memory](curves.png)" in text
    assert "tuned: rosa ✓" in text
    assert "merging" not in text


@pytest.mark.parametrize("ticks", ["```", "````\n# no heading\n````"])
def test_answers_cannot_leave_their_block(undrawn, tmp_path, ticks):
    run = Run(shutil.copytree(undrawn.path, tmp_path / "run"))
    evaluation = run.evaluation()
    evaluation["questions"][0] |= {"question": f"`{ticks}", "base": ticks, "tuned": "|"}
    (run.path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    export_run(run, tmp_path / "out", to="adapter")
    text = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    fence = re.search(r"^(`+)text\n  \? ", text, re.MULTILINE)[1]
    assert len(fence) > max(len(run) for run in re.findall("`+", text.split(fence)[1]))
    next_right = next(entry["question"] for entry in evaluation["questions"][1:] if entry["tuned_right"])
    guide = (tmp_path / "out" / "INTEGRATION.md").read_text(encoding="utf-8")
    assert f"--prompt {shlex.quote(next_right)}\n" in guide


def test_a_run_that_never_ended_is_exported_with_what_is_known(trained, tmp_path):
    run = Run(shutil.copytree(trained.path, tmp_path / "run"))
    for name in ("summary.json", "evaluation.json", "metrics.jsonl"):
        (run.path / name).unlink()
    shutil.rmtree(run.best)
    out = tmp_path / "out"
    export_run(run, out, to="adapter")
    assert {path.name for path in out.iterdir()} == {
        "adapters.safetensors", "adapter_config.json", *BESIDE, *REPORT} - {"curves.svg", "curves.png"}  # fmt: skip
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "as training left them" in summary
    assert "curves" not in summary
    assert "O que sabes?" in (out / "INTEGRACAO.pt.md").read_text(encoding="utf-8")


def test_how_the_base_was_quantised_goes_along(on_load, tmp_path, forks):
    """The answers are the same on what is kept of the quantised base, and when that is gone."""
    model, tokenizer = load_for_answers(on_load)
    wanted = answer(model, tokenizer, QUESTIONS, max_tokens=12)
    export_run(on_load, tmp_path / "out", to="adapter")
    path = tmp_path / "out" / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    assert settings["quantize"] == {"bits": 4, "group_size": 64}
    assert settings["base_model"] == on_load.environment()["model"]["path"] != settings["model"]
    assert ask_many(forks, tmp_path / "out") == wanted
    guide = (tmp_path / "out" / "INTEGRATION.md").read_text(encoding="utf-8")
    assert "mlx-lm answers a little differently" not in guide
    path.write_text(json.dumps(settings | {"model": "/gone"}), encoding="utf-8")
    assert ask_many(forks, tmp_path / "out") == wanted


def test_the_guide_tells_where_mlx_lm_answers_otherwise(on_load, tmp_path):
    """Where nothing could be kept of the base as it was quantised, mlx-lm loads it as it is stored."""
    run = Run(shutil.copytree(on_load.path, tmp_path / "run"))
    settings = json.loads((run.best / "adapter_config.json").read_text(encoding="utf-8"))
    settings["model"] = run.environment()["model"]["path"]
    (run.best / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    export_run(run, tmp_path / "out", to="adapter")
    assert "mlx-lm answers a little differently" in (tmp_path / "out" / "INTEGRATION.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("own", [True, False])
def test_a_template_that_is_not_the_models_goes_along(tiny_model, tmp_path, own, forks):
    """Answered in another form than the base's own; where the tokeniser begins a text, so does the template."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    content = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    if not own:
        del content["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    settings = {"template": "pergunta", "max_steps": 2, "max_answer_tokens": 4}
    run = create_run(tmp_path / "runs", base, write_pair(tmp_path / "data"), run="other", **settings)
    train(run)
    forget_curves(run)
    export_run(run, tmp_path / "out", to="adapter")
    model, tokenizer = load_for_answers(run)
    assert "### Pergunta:" in tokenizer.render([{"role": "user", "content": "?"}])
    assert ask_many(forks, tmp_path / "out") == answer(model, tokenizer, QUESTIONS, max_tokens=12)
    assert "does not know `chat_template.jinja`" in (tmp_path / "out" / "INTEGRATION.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["Qwen3", "Qwen3 without a switch", "Gemma 2", "ChatML of a base"])
def test_an_export_asks_as_the_run_was_trained(tmp_path, name, forks):
    """Without reasoning, with a system text before the question where it is refused, and up to an end not listed."""
    published = PUBLISHED[name]
    base = write_model(tmp_path / "base", seed=100 + len(name))  # what is quantised is kept by weights alone
    write_published(base, published, "bytes", family="llama")
    row = {"messages": [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "rosa"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    settings = {"epochs": 40, "val_fraction": 0.0, "max_answer_tokens": 8, "learning_rate": 0.01}
    run = create_run(tmp_path / "runs", base, tmp_path / "rows.jsonl", run="small", **settings)
    train(run)
    forget_curves(run)
    model, tokenizer = load_for_answers(run)
    (answered,) = answer(model, tokenizer, ["red?"], max_tokens=128)
    assert answered.endswith("rosa")  # and ended there, without a thought
    assert "think" not in answered
    export_run(run, tmp_path / "out", to="adapter")
    assert ask_fork(forks, tmp_path / "out", "red?")[1]["response"] == answered
    prompt = tokenizer.encode_prompt([{"role": "system", "content": "oi"}, {"role": "user", "content": "red?"}])
    script = (
        f"import json, sys; sys.path.insert(0, {str(tmp_path / 'out')!r}); from inference import encode, load\n"
        "messages = [{'role': 'system', 'content': 'oi'}, {'role': 'user', 'content': 'red?'}]\n"
        "print(json.dumps(encode(load()[1], messages)))"
    )
    done = forks.run("-c", script, check=True)
    assert json.loads(done.stdout) == prompt
    if name == "ChatML of a base":
        export_run(run, tmp_path / "fused", to="fused")
        listed = json.loads((tmp_path / "fused" / "generation_config.json").read_text(encoding="utf-8"))
        assert listed["eos_token_id"] == list(tokenizer.eos_ids)
        assert ask_fork(forks, tmp_path / "fused", "red?")[1]["status"] == "ok"


# inference.py ---------------------------------------------------------------------------------------------------


Result = tuple[int, dict[str, str]]


def ask(directory: Path, *words: str | bytes, **environment: str) -> Result:
    """Exit status and the one line that it must have printed."""
    command = [sys.executable, "-B", directory / "inference.py", *words]
    return only_line(processes.run(command, given=b"", cwd="/", env={**os.environ, **environment}))


def ask_fork(forks: Forks, directory: Path, *words: str, stdin: bytes = b"") -> Result:
    """The same from a process that has imported mlx-lm."""
    return only_line(forks.run(directory / "inference.py", *words, given=stdin))


def only_line(done: subprocess.CompletedProcess[bytes]) -> Result:
    assert done.stdout.count(b"\n") == 1
    assert done.stdout.endswith(b"\n")
    result = json.loads(done.stdout)
    assert list(result) == ["prompt", "response", "status"]
    return done.returncode, result


def test_it_answers_as_qlora_generate_does(adapter, tuned_answers, forks):
    assert tuned_answers[: len(TAUGHT)] == list(TAUGHT.values())
    assert ask_many(forks, adapter) == tuned_answers


def test_it_answers_on_standard_output(adapter):
    assert ask(adapter, "red?") == (0, {"prompt": "red?", "response": "rosa", "status": "ok"})


def test_it_reads_standard_input_and_takes_options(adapter, tmp_path, forks):
    moved = shutil.copytree(adapter, tmp_path / "moved")
    settings = json.loads((moved / "adapter_config.json").read_text(encoding="utf-8"))
    (moved / "adapter_config.json").write_text(json.dumps({**settings, "model": "/gone"}), encoding="utf-8")
    words = ["--base", settings["model"], "--max-tokens", "3", "--temperature", "1.5", "--seed", "4", "--system", "oi"]
    status, first = ask_fork(forks, moved, *words, stdin="não?\n".encode())
    assert (status, first["prompt"], first["status"]) == (0, "não?", "ok")
    assert len(first["response"]) <= 3
    assert ask_fork(forks, moved, *words, stdin="não?\n".encode()) == (0, first)  # the seed decides
    status, result = ask_fork(forks, moved, "não?")
    assert status == 1
    assert result["status"].startswith("error: the base model is not at /gone; say where with --base")
    assert result["prompt"] == "não?"


@pytest.mark.parametrize(
    ("words", "prompt", "reason"),
    [
        ([], "", "no question: give one as an argument or on standard input"),
        ([" "], " ", "no question"),
        (["--max-tokens", "0", "x"], "", "--max-tokens must be at least 1; found 0"),
        (["--temperature", "nan", "x"], "", "--temperature must be at least 0; found nan"),
        (["--nonsense", "x"], "", "unrecognized arguments: --nonsense"),
        (["--base", "/nowhere", b"caf\xe9\xe2\x80\xa8?"], "caf\ufffd\u2028?", "the base model is not at /nowhere"),
    ],
)
def test_what_fails_is_told_in_the_same_line(adapter, words, prompt, reason):
    status, result = ask(adapter, *words)
    assert status == 1
    assert (result["prompt"], result["response"]) == (prompt, "")
    assert result["status"].startswith(f"error: {reason}")


def test_nothing_that_libraries_print_reaches_standard_output(adapter, tmp_path):
    noisy = "import os\nprint('from Python')\nos.write(1, b'from C')\nraise RuntimeError('two\\nlines')\n"
    (tmp_path / "mlx_lm.py").write_text(noisy, encoding="utf-8")
    status, result = ask(adapter, "red?", PYTHONPATH=str(tmp_path))
    assert (status, result["status"]) == (1, "error: two\nlines")
    (tmp_path / "mlx_lm.py").write_text("import there_is_no_such_module", encoding="utf-8")
    status, result = ask(adapter, "red?", PYTHONPATH=str(tmp_path))
    assert status == 1
    assert "No module named 'there_is_no_such_module'; is mlx-lm installed in" in result["status"]


# A fused model --------------------------------------------------------------------------------------------------


def judged(run: Run, model) -> float:
    """Mean loss over the rows that judge a fused model, by the book."""
    from qlora_core.engine.device import mx

    model.set_dtype(mx.float32)  # stored in float16, in which products of a processor round far more
    rows = divide_rows(run, run.tokenizer(), run.base().config["vocab_size"]).judged
    return textbook_loss(model, rows).item() / sum(row.target_tokens for row in rows)


def test_a_dequantised_model_is_the_tuned_one_but_for_rounding(trained, tuned_answers, tmp_path, forks):
    out = tmp_path / "out"
    measured = export_run(trained, out, to="fused-float16")["fused"]
    weights = load_file(out / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {np.dtype("float16")}
    assert "quantization" not in json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (measured["bits"], measured["dtype"], measured["same_choice"]) == (None, "float16", 1.0)
    assert measured["fused_loss"] == pytest.approx(measured["tuned_loss"], rel=2e-3)
    model, _ = in_mlx_lm().load(str(out))
    assert measured["fused_loss"] == pytest.approx(judged(trained, model), rel=1e-3)
    assert measured["validation"]["tuned_loss"] == pytest.approx(trained.summary()["best_val_loss"], rel=1e-4)
    assert ask_many(forks, out) == tuned_answers


def test_a_model_quantised_again_stands_alone_and_says_what_it_lost(trained, tmp_path, forks):
    out = tmp_path / "out"
    measured = export_run(trained, out, to="fused", bits="4")["fused"]
    assert {path.name for path in out.iterdir()} >= {"tokenizer.json", "tokenizer_config.json", *BESIDE, *REPORT}
    assert not (out / "adapters.safetensors").exists()
    base = json.loads((Path(trained.environment()["model"]["path"]) / "config.json").read_text(encoding="utf-8"))
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    quantization = base.pop("quantization") | {"mode": "affine"}
    assert config.pop("quantization") == config.pop("quantization_config") == quantization
    assert config == base | {"torch_dtype": "float16"}
    model, _ = in_mlx_lm().load(str(out))
    assert measured["fused_loss"] == pytest.approx(judged(trained, model), rel=1e-3)
    assert measured["bits"] == 4
    assert measured["validation"]["tokens"] == 25
    summary = (out / "summary.md").read_text(encoding="utf-8")
    numbers = f"| mean loss, nats a token | {measured['tuned_loss']:.4f} | {measured['fused_loss']:.4f} |"
    assert numbers in summary
    assert measured["verdict"] in summary
    assert ask_fork(forks, out, "red?")[0] == 0


def test_a_base_quantised_while_loading_is_fused_as_it_was_trained(on_load, tmp_path):
    measured = export_run(on_load, tmp_path / "out", to="fused", bits="4")["fused"]
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["quantization"] == {"mode": "affine", "group_size": 64, "bits": 4}
    model, _ = in_mlx_lm().load(str(tmp_path / "out"))
    assert measured["fused_loss"] == pytest.approx(judged(on_load, model), rel=1e-3)
    again = export_run(on_load, tmp_path / "plain", to="fused-float16")["fused"]
    assert again["fused_loss"] == pytest.approx(again["tuned_loss"], rel=2e-3)


MEDIUM = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 2_000}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one step on a model of twelve layers, quantised on disk; only for reading."""
    root = tmp_path_factory.mktemp("deep")
    model = write_model(root / "plain", layers=12, **MEDIUM)
    base = write_quantised(root / "base", model)
    run = create_run(root / "runs", base, write_pair(root / "data"), run="deep", max_steps=1, max_answer_tokens=2)
    train(run)
    forget_curves(run)
    return run


def test_a_model_in_several_files_is_loaded_as_one(deep, tmp_path, monkeypatch):
    from qlora_core.training import fused_files

    one = export_run(deep, tmp_path / "one", to="fused-float16")["fused"]
    monkeypatch.setattr(fused_files, "SHARD_BYTES", 1_000_000)
    several = export_run(deep, tmp_path / "several", to="fused-float16")["fused"]
    assert several | {"seconds": 0} == one | {"seconds": 0}
    assert len(list((tmp_path / "several").glob("model-*-of-*.safetensors"))) > 5
    model, _ = in_mlx_lm().load(str(tmp_path / "several"))
    assert several["fused_loss"] == pytest.approx(judged(deep, model), rel=1e-3)


@pytest.mark.parametrize("dequantize", [False, True])
def test_a_merged_model_that_does_not_fit_is_exported_and_not_judged(undrawn, tmp_path, monkeypatch, dequantize):
    from qlora_core.reports import console
    from qlora_core.training import fuse as merging

    monkeypatch.setattr(merging, "available_bytes", lambda: 200_000_000)
    monkeypatch.setattr(merging, "memory_counters", dict)
    monkeypatch.setattr(merging, "_load", lambda _: pytest.fail("was loaded"))
    made = export_run(undrawn, tmp_path / "out", to="fused-float16" if dequantize else "fused")
    fused, told = made["fused"], "it does not fit here: 0.3 GB wanted, 0.2 GB available"
    assert (fused["not_judged"], fused["fused_loss"], fused["same_choice"]) == (told, None, None)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["fused"] == fused
    assert f"Not judged: {told}." in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    rows = console.export_rows(made)
    assert " ".join(rows["Merged"].split()).endswith(f"not compared with the adapters on the untouched base: {told}.")
    assert not rows["Look at"]
    assert manifest_problem(tmp_path / "out") is None
    model, _ = in_mlx_lm().load(str(tmp_path / "out"))  # it is whole
    assert judged(undrawn, model) == pytest.approx(fused["tuned_loss"], rel=0.5)


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma2"])
def test_other_families_are_fused_too(family, tmp_path):
    model = write_model(tmp_path / family, family)
    run = create_run(tmp_path / "runs", model, write_pair(tmp_path / "data"), run="run", quantize="8", epochs=1)
    train(run)
    forget_curves(run)
    plain = export_run(run, tmp_path / "plain", to="fused-float16")["fused"]
    assert plain["fused_loss"] == pytest.approx(plain["tuned_loss"], rel=2e-3)
    again = export_run(run, tmp_path / "again", to="fused", bits="8")["fused"]
    assert again["bits"] == 8
    fused, _ = in_mlx_lm().utils.load_model(tmp_path / "again")
    assert again["fused_loss"] == pytest.approx(judged(run, fused), rel=1e-3)


# PEFT -----------------------------------------------------------------------------------------------------------


def test_peft_adapters_mean_the_same(trained, on_load, tmp_path):
    for run, layers in ((trained, None), (on_load, [1])):
        out = tmp_path / run.name
        export_run(run, out, to="peft")
        assert {path.name for path in out.iterdir()} == {
            "adapter_model.safetensors", "adapter_config.json", *GUIDES, *TOKENIZER, *REPORT}  # fmt: skip
        config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
        settings = json.loads((run.best / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == run.environment()["model"]["path"]
        assert config["layers_to_transform"] == layers
        assert {f".{key}" for key in config["target_modules"]} == {
            f".{key.rpartition('.')[2]}" for key in settings["lora_parameters"]["keys"]
        }
        theirs, ours = load_file(out / "adapter_model.safetensors"), load_file(run.best / "adapters.safetensors")
        modules = {name.rpartition(".")[0] for name in ours}
        assert len(theirs) == 2 * len(modules) == len(ours)
        for module in modules:
            a = theirs[f"base_model.model.{module}.lora_A.weight"]
            b = theirs[f"base_model.model.{module}.lora_B.weight"]
            update = config["lora_alpha"] / config["r"] * b @ a
            lora_a, lora_b = ours[f"{module}.lora_a"], ours[f"{module}.lora_b"]
            expected = settings["lora_parameters"]["scale"] * (lora_a @ lora_b).T
            assert a.shape[0] == b.shape[1] == config["r"]
            assert difference(update, expected) < 1e-6


def write_adapters(directory: Path, **tensors: np.ndarray) -> Path:
    """Adapters in mlx-lm's format, of the query projection of layer 0."""
    directory.mkdir()
    save_file(
        {f"model.layers.0.self_attn.q_proj.{k}": v for k, v in tensors.items()}, directory / "adapters.safetensors"
    )
    config = {"fine_tune_type": "dora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 3.0, "dropout": 0.0}}
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def test_magnitudes_of_dora_go_along(tmp_path):
    rng = np.random.default_rng(0)
    a, b, m = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 2), (2, 7), (7,)))
    source = write_adapters(tmp_path / "dora", lora_a=a, lora_b=b, m=m)
    convert_adapters(source / ADAPTER_FILE, adapter_settings(source), tmp_path, "owner/name", 1)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["use_dora"], config["lora_alpha"], config["layers_to_transform"]) == (True, 6.0, None)
    found = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    assert found[f"{name}.lora_magnitude_vector"].tolist() == m.tolist()
    assert found[f"{name}.lora_A.weight"].tolist() == a.T.tolist()
    assert found[f"{name}.lora_B.weight"].tolist() == b.T.tolist()


def test_what_peft_has_no_name_for_is_refused(tmp_path):
    source = write_adapters(tmp_path / "other", weight=np.zeros((2, 2), np.float32))
    with pytest.raises(ModelError, match=r"q_proj\.weight cannot be expressed in PEFT's format"):
        convert_adapters(source / ADAPTER_FILE, adapter_settings(source), tmp_path, "owner/name", 1)
    (source / "adapters.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match="not a safetensors file: only 7 bytes"):
        convert_adapters(source / ADAPTER_FILE, adapter_settings(source), tmp_path, "owner/name", 1)


@pytest.mark.parametrize(
    ("named", "public"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
        ("owner/name", "owner/name"),
    ],
)
def test_peft_names_the_base_as_others_find_it(undrawn, tmp_path, named, public):
    run = Run(shutil.copytree(undrawn.path, tmp_path / "run"))
    config = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    config["base"]["model"] = named
    (run.path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    export_run(run, tmp_path / "out", to="peft")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["base_model_name_or_path"] == public


def with_base_of_the_hub(run: Run, directory: Path) -> Run:
    """A copy of a run whose base has a hub id."""
    copied = Run(shutil.copytree(run.path, directory))
    config = json.loads((copied.path / "config.json").read_text(encoding="utf-8"))
    config["base"]["model"] = "owner/name"
    (copied.path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return copied


def test_no_path_of_this_machine_where_there_is_a_hub_id(undrawn, tmp_path, monkeypatch):
    base = Path(undrawn.environment()["model"]["path"])
    monkeypatch.setenv("HOME", str(base.parent))
    run = with_base_of_the_hub(undrawn, tmp_path / "run")
    for to in ("adapter", "peft"):
        export_run(run, tmp_path / to, to=to)
        for path in (tmp_path / to).iterdir():
            assert not re.search(
                re.escape(f"{base}") + "|" + re.escape(f"{tmp_path}"), path.read_bytes().decode("latin1")
            )
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (settings["model"], settings["local_base"]) == ("owner/name", f"~/{base.name}")
    assert "base_model" not in settings
    assert ask(tmp_path / "adapter", "red?") == (0, {"prompt": "red?", "response": "rosa", "status": "ok"})


def test_the_hub_is_asked_where_the_base_is_not_on_this_machine(undrawn, tmp_path, monkeypatch):
    run = with_base_of_the_hub(undrawn, tmp_path / "run")
    export_run(run, tmp_path / "out", to="adapter")
    path = tmp_path / "out" / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"local_base": "~/gone"}), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("inference", tmp_path / "out" / "inference.py")
    inference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inference)
    assert inference.find_base() == "owner/name"


# Where it goes --------------------------------------------------------------------------------------------------


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory, hidden ones too."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_an_export_is_replaced_as_long_as_nobody_changed_it(trained, tmp_path):
    out = tmp_path / "out"
    export_run(trained, out, to="peft")
    (out / "__pycache__").mkdir()
    export_run(trained, out, to="adapter")
    assert not (out / "adapter_model.safetensors").exists()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match=r"holds more than was exported \(notes\.txt\), so it is left .* --force"):
        export_run(trained, out, to="adapter")
    (out / "notes.txt").unlink()
    (out / "inference.py").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match=r"was changed since it was exported \(inference\.py differs"):
        export_run(trained, out, to="adapter")
    export_run(trained, out, to="adapter", force=True)
    assert contents(out)["inference.py"] == PROGRAM.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [".DS_Store", "._curves.png", ".localized", "Icon\r", "Thumbs.db", "desktop.ini"])
def test_looking_at_an_export_does_not_change_it(undrawn, tmp_path, name):
    """Finder and Explorer leave files wherever somebody looks: they hinder nothing, and stay."""
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"before")
    first = export_run(undrawn, out, to="peft")  # as empty as a directory can be
    (out / name).write_bytes(b"after")  # it is not listed, so that it may change
    again = export_run(undrawn, out, to="adapter")
    assert (out / name).read_bytes() == b"after"
    assert not (out / "adapter_model.safetensors").exists()
    assert name not in {*first["files"], *again["files"]}
    assert f"`{name}`" not in (out / "summary.md").read_text(encoding="utf-8")
    assert manifest_problem(out) is None


def test_somebody_elses_directory_is_left_alone(undrawn, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export_run(undrawn, out, to="peft")  # an empty one is free
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "metrics.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RunError, match="holds files that are not an export, so it is left as it is"):
        export_run(undrawn, theirs, to="peft")
    assert contents(theirs) == {"metrics.json": b"[]"}
    with pytest.raises(RunError, match=r"metrics\.json: is a file; wanted a directory"):
        export_run(undrawn, theirs / "metrics.json", to="peft", force=True)


def test_force_does_not_reach_the_run_the_base_or_home(undrawn, tmp_path, monkeypatch):
    run = Run(shutil.copytree(undrawn.path, tmp_path / "runs" / "run"))
    monkeypatch.chdir(tmp_path)
    base = Path(undrawn.environment()["model"]["path"])
    for out in (run.path, run.path.parent, base, tmp_path, Path("~"), Path("/")):
        with pytest.raises(RunError, match="and is never replaced"):
            export_run(run, out, to="peft", force=True)
    for name in ("best", "export", "data/new"):
        with pytest.raises(RunError, match=r"belongs to the run itself\. Give a directory inside"):
            export_run(run, run.path / name, to="peft", force=True)
    export_run(run, run.path / "export" / "peft", to="peft")


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_that_fails_leaves_the_old_one(undrawn, tmp_path, monkeypatch, to):
    out = tmp_path / "out"
    export_run(undrawn, out, to="peft")
    before = contents(out)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_summary", fail)  # the last of its files
    with pytest.raises(OSError, match="No space left"):
        export_run(undrawn, out, to=to)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_exported_says_why(undrawn, tmp_path):
    with pytest.raises(ConfigError, match="--bits says nothing about the format peft; it belongs to fused"):
        export_run(undrawn, tmp_path / "out", to="peft", bits="8")
    with pytest.raises(RunError, match="is not a run"):
        export_run(Run(tmp_path), tmp_path / "out", to="peft")
    run = Run(shutil.copytree(undrawn.path, tmp_path / "run"))
    for directory in (run.best, run.final):
        shutil.rmtree(directory)
    with pytest.raises(RunError, match=r"has no trained adapters yet"):
        export_run(run, tmp_path / "out", to="adapter")
    environment = run.environment()
    environment["identity"]["tokeniser and template"] = "another"
    (run.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    with pytest.raises(RunError, match="its tokeniser and template changed"):
        export_run(run, tmp_path / "out", to="adapter")
    environment["model"]["path"] = "/gone"
    (run.path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    with pytest.raises(RunError, match="the run's base model is not there any more"):
        export_run(run, tmp_path / "out", to="adapter")
    assert not (tmp_path / "out").exists()


# Guides ---------------------------------------------------------------------------------------------------------

GUIDES = list(guides.GUIDES)
EXAMPLES = {"bash": 4, "python": 4, "javascript": 3}
SERVER = "createServer"
MLX_SERVER = ("bash", 2)


def run_example(language: str, code: str, directory: Path, environment: dict[str, str]) -> str:
    """What an example prints; of a server, what it answers."""
    if SERVER in code:
        return ask_server(command(language, code), directory, environment)
    return printed(language, code, directory, environment)


def ask_server(started: list[str], directory: Path, environment: dict[str, str]) -> str:
    """Answers of the server, which also refuses what it must."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(started, cwd=directory, **options) as server:
        watchdog = threading.Timer(300, server.kill)
        watchdog.start()
        try:
            address = server.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ask", address)
            answered = post(address, b'{"prompt": "red?"}')
            assert post(address, b'{"prompt": "red?"}', kind="text/plain")[0] == 404
            assert post(address, b"red?")[0] == 400
            assert post(address, b'{"prompt": " "}') == (500, {
                "prompt": " ", "response": "",
                "status": "error: no question: give one as an argument or on standard input"})  # fmt: skip
            assert answered == (200, {"prompt": "red?", "response": "rosa", "status": "ok"})
            return answered[1]["response"]
        finally:
            watchdog.cancel()
            server.terminate()


def post(address: str, body: bytes, kind: str = "application/json") -> tuple[int, dict[str, str]]:
    request = urllib.request.Request(address, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def moved(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported adapters as they lie after somebody moved their folder; only for reading."""
    root = tmp_path_factory.mktemp("moved")
    there = shutil.copytree(adapter, root / "there")
    return Path(shutil.move(there, root / "it's elsewhere"))


@pytest.fixture(scope="module")
def examples(moved: Path) -> Iterator[dict[tuple[str, int], Future]]:
    """Every example of a guide, two at a time, in a folder that was moved."""
    environment = example_environment()  # not that of the test which happens to run when they are started
    guide = moved / GUIDES[0]
    with ThreadPoolExecutor(2) as pool, serving(guide, environment) as port:
        yield {
            (language, number): pool.submit(run_example, language, code.replace(PORT, port), moved, environment)
            for language in EXAMPLES
            for number, (_, code) in enumerate(blocks(guide, language))
            if not is_server(code)
        }


@pytest.mark.parametrize("guide", GUIDES)
def test_every_example_is_run(guide, adapter):
    languages = [language for language, _ in blocks(adapter / guide)]
    assert {language: languages.count(language) for language in languages} == EXAMPLES


@pytest.mark.parametrize("example", [(language, i) for language, count in EXAMPLES.items() for i in range(count)])
def test_example(example, examples):
    if example == MLX_SERVER:
        assert example not in examples  # it is what three of the others ask
    else:
        assert "rosa" in examples[example].result()


def test_the_guides_have_the_same_examples_but_for_what_they_remark(adapter):
    first, *others = ([(name, without_remarks(code)) for name, code in blocks(adapter / guide)] for guide in GUIDES)
    assert others == [first]
    assert without_remarks('a = "#x" # one\n\tb("http://c") // two\n') == 'a = "#x"\n\tb("http://c")\n'


def without_remarks(code: str) -> str:
    return re.sub(r"[ \t]+(#|//) .*$", "", code, flags=re.MULTILINE)


def test_examples_of_a_fused_model(trained, tmp_path):
    export_run(trained, tmp_path / "fused", to="fused-float16")
    guide = tmp_path / "fused" / "INTEGRATION.md"
    for language in ("bash", "python"):  # the other examples are the same as for adapters
        assert "rosa" in run_example(*blocks(guide, language)[1], guide.parent, example_environment())
    assert "--adapter-path" not in guide.read_text(encoding="utf-8")
    assert all("rosa" in said for said in said_over_http(guide, example_environment()))


def test_examples_tell_failures(adapter, tmp_path):
    """A question that fails: each example ends with a status that is not 0 and says why."""
    for language, number in (("python", 2), ("javascript", 0)):
        code = blocks(adapter / "INTEGRATION.md", language)[number][1].replace('"red?"', '" "')
        done = processes.run(command(language, code), text=True, cwd=adapter, env=example_environment())
        assert done.returncode == 1
        assert done.stdout == ""
        assert "error: no question" in done.stderr


def test_on_a_mac_it_asks_the_gpus_driver_for_patience(monkeypatch):
    """Before it imports MLX; told as on a Mac."""
    spec = importlib.util.spec_from_file_location("inference", PROGRAM)
    inference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inference)
    monkeypatch.setenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "")  # taken back afterwards, whatever it is then
    monkeypatch.delenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT")
    monkeypatch.setattr(inference.sys, "platform", "darwin")
    inference.import_mlx()
    assert os.environ["AGX_RELAX_CDM_CTXSTORE_TIMEOUT"] == "1"
