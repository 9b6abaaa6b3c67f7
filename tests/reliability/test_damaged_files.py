"""Adapters, models and runs, damaged at random: success or an error for people, never a signal or a traceback."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import damage
import processes
import pytest
from harness import create_run, train, write_pair
from tiny import write_model

from qlora_core.runs.run import Run

WORK = 3600.0  # seconds of processor time; a limit for something broken, not an expectation
SEED = 3
SHARES = {"adapter": 0.4, "model": 0.25, "run": 0.35}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole directory of each kind."""
    root = tmp_path_factory.mktemp("good")
    base = write_model(root / "base", layers=2)
    (base / "generation_config.json").write_text('{"eos_token_id": [258, 257], "max_length": 20}', encoding="utf-8")
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    (base / "chat_template.jinja").write_text(settings["chat_template"], encoding="utf-8")
    run = create_run(root / "runs", base, write_pair(root / "data"), run="good", rank=4, epochs=1)
    assert train(run).state == "completed"
    run.request("pause")
    shutil.rmtree(run.path / "checkpoints")
    shutil.copytree(run.best, root / "adapter")
    return {"adapter": root / "adapter", "model": base, "run": run.path}


@pytest.mark.parametrize("kind", damage.FILES)
def test_damaged_files_end_nothing(kind: str, good: dict[str, Path], tmp_path: Path, request) -> None:
    count = round(request.config.getoption("--mutations") * SHARES[kind])
    command = [sys.executable, damage.__file__, kind, good[kind], tmp_path, SEED, 0, count]
    done = processes.run(list(map(str, command)), text=True, work=WORK, errors="replace")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert done.returncode == 0, (f"seed {SEED}", lines[-1:], done.stderr[-2000:])
    outcomes = [line for line in lines if line[2] != "begun"]
    assert len(outcomes) == count
    unexpected = [line for line in outcomes if line[2] != "fine" and not line[2].endswith("Error")]
    assert not unexpected, (f"seed {SEED}, {len(unexpected)} of {count}", *unexpected[0])
    found = Counter(outcome for *_, outcome in outcomes)
    assert found["fine"]
    assert len(found) > 1, found


def test_a_good_one_of_each_kind_is_opened(good: dict[str, Path], tmp_path: Path) -> None:
    for kind, directory in good.items():
        case = shutil.copytree(directory, tmp_path / kind / "case")
        damage.OPEN[kind](case, {"base": good["model"], "good": Run(good["run"])})
