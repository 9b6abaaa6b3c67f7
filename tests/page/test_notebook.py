"""The notebook: its graph, its pieces, and the script it is as well."""

import ast
import html
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import marimo as mo
import pytest
from conftest import ROOT
from marimo._ast.app import InternalApp  # the dataflow graph has no public way in; marimo is pinned
from processes import wait_until
from tiny import write_model

from qlora_core import page
from qlora_core.config import RunConfig, from_flat, settings, to_flat
from qlora_core.errors import BusyError, ConfigError, DataError
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock, RunWriter

NOTEBOOK = ROOT / "apps" / "train.py"
VIEWERS = {"progress", "charts", "log", "generation_test", "performance_metrics", "saved_model", "integration_guide",
           "inference", "final_summary", "lora_and_qlora", "diagnosis", "memory_check"}  # fmt: skip


@pytest.fixture(scope="module")
def cells():
    """`{cell: {"defs", "refs", "ancestors", "position"}}` of the notebook."""
    spec = importlib.util.spec_from_file_location("train_notebook", NOTEBOOK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = InternalApp(module.app)
    graph, name = app.graph, app.cell_manager.cell_name
    order = [c for c in graph.cells if c in set(app.execution_order)]
    return {
        name(c): {
            "defs": graph.cells[c].defs,
            "refs": graph.cells[c].refs,
            "ancestors": {name(a) for a in graph.ancestors(c)},
            "position": position,
        }
        for position, c in enumerate(order)
    }


# The graph ------------------------------------------------------------------------------------------------------


def test_it_is_read_from_top_to_bottom(cells):
    """What a cell needs is defined above it; only what stays in view and the first screen show what comes later."""
    defined, early = set(), []
    for name, cell in cells.items():
        everything = set().union(*(other["defs"] for other in cells.values()))
        if (cell["refs"] & everything) - defined - cell["defs"]:
            early.append(name)
            assert not cell["defs"], name
        defined |= cell["defs"]
    assert early == ["steps", "run_line", "fetch", "model_problem", "data_in_short", "consequences", "memory_check",
                     "start_here", "settings_to_take_along"]  # fmt: skip


def test_training_descends_from_everything_it_needs(cells):
    needed = {"tracker", "model", "tokenizer", "datasets", "load_validate_split", "configuration", "plan"}
    assert needed <= cells["training"]["ancestors"]
    assert {"tracker", "model", "tokenizer", "prepared", "train_dataset", "val_dataset"} <= cells["plan"]["refs"]
    assert "plan" in cells["training"]["refs"]


def test_viewers_do_not_descend_from_training(cells):
    assert set(cells) >= VIEWERS
    for name in VIEWERS:
        assert "training" not in cells[name]["ancestors"], name
    assert {name for name in cells if "training" in cells[name]["ancestors"]} == {"end_of_script"}


def test_nothing_that_ticks_leads_to_training(cells):
    assert {"ticker", "poll_run", "poll_processes"}.isdisjoint(cells["training"]["ancestors"])


@pytest.mark.parametrize(
    "name",
    [
        "CHECKPOINTS_DIR",
        "tracker",
        "memory_monitor",
        "model",
        "tokenizer",
        "train_dataset",
        "val_dataset",
        "config",
        "prepared",
        "plan",
    ],
)
def test_names(cells, name):
    assert [cell for cell in cells if name in cells[cell]["defs"]] != []


def test_cells_are_short():
    bodies = NOTEBOOK.read_text(encoding="utf-8").split("@app.cell")[1:]
    assert max(len(body.splitlines()) for body in bodies) <= 25


def test_marimo_check():
    command = [sys.executable, "-m", "marimo", "check", "--strict", *map(str, NOTEBOOK.parent.glob("*.py"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_imports_no_mlx():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('n', {str(NOTEBOOK)!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm', 'transformers', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# As a script ----------------------------------------------------------------------------------------------------


@pytest.fixture
def flags(tiny_model: Path, tiny_rows: Path) -> list[str | Path]:
    return [
        "--model",
        tiny_model,
        "--data",
        tiny_rows,
        "--batch-size",
        "8",
        "--epochs",
        "1",
        "--max-answer-tokens",
        "4",
    ]


def sections(output: str) -> list[str]:
    return [line.split()[1] for line in output.splitlines() if line.startswith("── ")]


def test_the_first_words_come_before_what_takes_long_to_import(python):
    """In the script right after marimo itself, which its format wants first; in the command before all."""
    (setup,) = (node for node in ast.parse(NOTEBOOK.read_text(encoding="utf-8")).body if isinstance(node, ast.With))
    places = [ast.unparse(node) for node in setup.body]
    greeting = next(i for i, words in enumerate(places) if "first_words.greet" in words)
    assert {words for words in places[:greeting] if "qlora_core" in words} == {"from qlora_core import first_words"}
    heavy = "import sys, qlora_core.first_words; print(*{'numpy', 'jinja2', 'psutil', 'marimo'} & set(sys.modules))"
    assert python("-c", heavy).stdout.split() == []
    for program in ([NOTEBOOK], ["-m", "qlora_core", "train"]):
        shown = python(*program, "--data", "nothing there").stdout.splitlines()
        assert (shown[1].strip(), shown[0], shown[2]) == ("QLoRA Notebook", "═" * 72, "═" * 72)
        assert shown[3].startswith("Machine")
        told = python(*program, "--json", "--data", "nothing there")
        assert (told.stdout, told.stderr.splitlines()[1].strip()) == ("", "QLoRA Notebook")
        assert python(*program, "--help").stdout.startswith("usage: ")


def test_script_trains_then_says_complete_as_the_command_does(script, flags):
    first = script(NOTEBOOK, *flags)
    assert first.returncode == 0, first.stderr
    assert sections(first.stdout) == ["Data", "Model", "Datasets", "Training", "Generation", "Summary"]
    for line in ("EPOCH 1/1", "✓ Best model saved", "✓ Checkpoint saved (step 2)", "✓ Epoch 1 complete"):
        assert first.stdout.count(line) == 1, line
    again = script(NOTEBOOK, *flags)
    assert again.returncode == 0
    assert "is complete; nothing to train" in again.stdout
    assert "EPOCH" not in again.stdout
    command = script("-m", "qlora_core", "train", *flags)
    assert command.returncode == 0
    assert without_memory(command.stdout) == without_memory(again.stdout)


def without_memory(output: str) -> list[str]:
    return [line for line in output.splitlines() if not line.startswith("Memory  ")]


def test_script_quantises_a_mistral_of_the_hubs_kind_and_leaves_its_result(script, tiny_rows, tmp_path):
    """Sharded, in half precision, without a chat template; with a preset, from the data to the answer of its result."""
    model = write_model(tmp_path / "mistral", "mistral", dtype="bfloat16", shards=2)
    content = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    del content["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    given = [
        "--data",
        tiny_rows,
        "--run",
        "m",
        "--max-steps",
        "2",
        "--max-answer-tokens",
        "4",
        "--template",
        "pergunta",
    ]
    done = script(NOTEBOOK, "--model", model, "--quantize", "4", "--preset", "m1-16gb", *given)
    assert done.returncode == 0, done.stderr
    assert sections(done.stdout)[:3] == ["Preset", "Data", "Model"]
    assert "quantised to 4 bits while loading" in done.stdout
    assert "batch_size    4: no more than 4 rows of full length fit at once" in done.stdout
    result = tmp_path / "checkpoints_qlora" / "m" / "export" / "adapter"
    assert "### Pergunta:" in (result / "chat_template.jinja").read_text(encoding="utf-8")
    asked = script("-m", "qlora_core", "generate", "m", "--prompt", "1?", "--max-tokens", "6", "--json")
    alone = script(result / "inference.py", "1?", "--max-tokens", "6")
    assert json.loads(alone.stdout) == json.loads(asked.stdout)
    assert json.loads(alone.stdout)["status"] == "ok"


def test_script_prints_one_json_object(script, flags):
    done = script(NOTEBOOK, *flags, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "completed"
    assert "EPOCH 1/1" in done.stderr


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        (["--data", "nowhere"], 1, "error: nowhere: no such file or directory"),
        (["--rank", "0"], 1, "error: rank must be at least 1"),
        (["--runs-dir", "/dev/null/runs"], 1, "error: "),
        (["--nonsense"], 2, "error: unrecognized arguments: --nonsense"),
    ],
)
def test_script_errors_are_one_line(script, flags, given, status, said):
    done = script(NOTEBOOK, *flags, *given)
    assert done.returncode == status
    assert "Traceback" not in done.stdout + done.stderr
    line = done.stderr.splitlines()[-1]
    assert said in line
    if status == 1:
        assert done.stderr.strip() == line


def test_script_help(script):
    done = script(NOTEBOOK, "--help")
    assert done.returncode == 0
    assert "--learning-rate" in done.stdout
    assert done.stderr == ""


def test_script_pauses_with_status_3(script, flags, tmp_path):
    # a pause asked by somebody else, as soon as the run is there
    import threading

    def ask() -> None:
        while not (found := list(tmp_path.glob("checkpoints_qlora/*/metrics.jsonl"))):
            if ended.wait(0.02):
                return
        while not ended.wait(0.02) and '"step"' not in found[0].read_text(encoding="utf-8"):
            pass
        Run(found[0].parent).request("pause")

    ended = threading.Event()
    asker = threading.Thread(target=ask)
    asker.start()
    try:
        done = script(NOTEBOOK, *flags[:6], "--epochs", "10000", "--max-answer-tokens", "4")
    finally:
        ended.set()
        asker.join()
    assert done.returncode == 3, done.stderr
    assert "Paused at step" in done.stdout
    assert "Go on with: uv run python apps/train.py --run" in done.stdout


# Pieces of the page ---------------------------------------------------------------------------------------------


def test_form_has_every_setting_with_its_default():
    form = page.forms.settings_form(RunConfig())
    assert list(form.elements) == [setting.name for setting in settings()]
    assert page.forms.read_form(form.value) == to_flat(RunConfig())
    parts = [
        page.forms.settings_form(RunConfig(), group).value
        for group in ("data", "place", "lora", "train", "pace", "base")
    ]
    assert page.forms.read_forms(RunConfig(), *parts) == RunConfig()


def test_the_browser_gets_every_field_s_text_as_text():
    form = page.forms.settings_form(RunConfig())
    typed = {
        name: element for name, element in form.elements.items() if isinstance(element, (mo.ui.text, mo.ui.text_area))
    }
    sent = {name: re.search(r"data-initial-value='([^']*)'", element.text)[1] for name, element in typed.items()}
    assert {name: json.loads(html.unescape(text)) for name, text in sent.items()} == {
        name: element.value for name, element in typed.items()
    }
    assert sent["epochs"] == "&quot;5&quot;"


def test_form_keeps_what_was_given():
    given = {"learning_rate": 1.23456789e-5, "data": ("a b", "c"), "packing": False, "seed": 2**31 - 1, "quantize": "8"}
    config = from_flat(given)
    assert page.forms.read_forms(RunConfig(), page.forms.settings_form(config).value) == config


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", "many"), ("rank", ""), ("rank", "1.5"), ("rank", "0"), ("alpha", "nan")]
)
def test_form_refuses_in_words(name, value):
    values = {**page.forms.settings_form(RunConfig()).value, name: value}
    with pytest.raises(ConfigError, match=f"(?i){name}"):
        page.forms.read_forms(RunConfig(), values)


def test_a_problem_is_handed_on_and_shown_once():
    def fail():
        raise DataError("no rows <b>")

    problem = page.attempt(fail)
    assert problem.message == "no rows <b>"
    shown = page.complain(None, problem).text
    assert "no rows" in shown
    assert "<b>" not in shown
    below = page.attempt(len, problem.train.rows)
    assert isinstance(below, page.problems.Problem)
    assert page.complain(below) is None
    assert page.view(len, problem) is None
    with pytest.raises(ZeroDivisionError):  # a bug of ours is no problem of theirs
        page.attempt(lambda: 1 / 0)


def test_flags_of_a_page():
    assert page.forms.read_flags(["--rank", "4"]) == page.forms.Flags(from_flat({"rank": 4}), {"rank": 4})
    left = page.forms.read_flags(["--rank", "4", "--nonsense"])
    assert (left.config.lora.rank, left.problem.message) == (4, "unknown flags, left aside: --nonsense")
    for wrong in (["--rank", "four"], ["--rank", "0"], ["--help"]):
        refused = page.forms.read_flags(wrong)
        assert refused.config == RunConfig()
        assert refused.problem.message


def test_a_preset_leaves_what_was_given():
    flags = page.forms.read_flags(["--batch-size", "1", "--rank", "4"])
    assert page.forms.with_preset(flags, None) == flags.config
    config = page.forms.with_preset(flags, ("m1-8gb", "large"))
    assert (config.train.batch_size, config.lora.rank, config.lora.num_layers) == (1, 4, 8)
    assert "macOS begins to swap" in page.forms.preset_reasons(("m1-16gb", "large")).text
    assert page.forms.preset_reasons(None) is None
    assert ("cpu", "small") in page.forms.preset_menu().options.values()


def test_errands_end_well_or_say_why():
    errand = page.commands.Errand()
    assert errand.look() == page.commands.News()
    errand.send("models")
    assert errand.look().running
    wait_until(lambda: not errand.look().running)
    assert "mistral-7b" in [row["name"] for row in errand.look().result["models"]]
    errand.send("generate", "nowhere", "--prompt=x")
    wait_until(lambda: not errand.look().running)
    assert errand.look().problem.startswith("nowhere: no such run")


def test_tables_escape():
    shown = page.look.row_table([{"<i>": "<b>&\nx"}]).text + page.look.fact_table({"<u>": "<s>"}).text
    for tag in ("<i>", "<b>", "<u>", "<s>"):
        assert tag not in shown
    assert "&lt;b&gt;&amp;<br>x" in shown


# A run as it goes -----------------------------------------------------------------------------------------------


def make_run(path: Path) -> Run:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}", encoding="utf-8")
    return Run(path)


def test_watcher_follows_what_is_trained(tmp_path):
    tracker = TrainingTracker(tmp_path)
    watcher = page.watching.RunWatcher(tracker)
    nothing = page.problems.Problem("no plan")
    assert watcher.look(nothing) == page.watching.Snapshot()
    run = make_run(tmp_path / "one")
    assert watcher.look(nothing).run is None
    with RunWriter(run, RunLock(run.path)) as writer:
        writer.set_status("running", step=0, total_steps=4)
        writer.log("start", step=0, total_steps=4, epochs=1)
        writer.log("step", step=1, epoch=1, train_loss=2.0, seconds=0.5, tokens=10, available_memory_bytes=10**9)
        seen = watcher.look(nothing)
        assert (seen.run.path, seen.state, seen.alive) == (run.path, "running", True)
        assert watcher.look(nothing).version == seen.version
        panel = page.training.run_panel(seen).text
        assert "1 / 4" in panel
        watcher.request("pause")
        assert watcher.look(nothing).asked == "pause"
        assert watcher.look(nothing).phase != seen.phase
        start, pause, stop = page.training.controls(nothing, watcher)
        assert [b._component_args["disabled"] for b in (start, pause, stop)] == [True, True, False]
    crashed = watcher.look(nothing)
    assert (crashed.state, crashed.run.path) == ("crashed", run.path)
    assert "The trainer is gone" in page.training.run_panel(crashed).text


def test_start_says_busy_in_words(monkeypatch):
    def busy(*_):
        raise BusyError("one: is being trained by another process.")

    monkeypatch.setattr(page.training.launch, "start", busy)
    assert "is being trained by another process" in page.training.start(None, None).text
