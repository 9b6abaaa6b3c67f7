"""LoRA against QLoRA: what a comparison trains, how it goes on, and what it says."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from harness import events, hashes, write_pair, write_quantised
from tiny import write_taught

import qlora_core
from qlora_core import cli
from qlora_core.config import to_flat
from qlora_core.errors import ConfigError, MemoryShortError, RunError
from qlora_core.evaluation.statistics import mean_difference
from qlora_core.jobs import arms
from qlora_core.reports.quantisation import ArmComparison
from qlora_core.runs.run import Run
from qlora_core.training.validation_losses import validation_losses

STEPS = 90  # enough of them for Ctrl+C to come in between
VALIDATION = 8


@pytest.fixture(scope="module")
def trained_arms(random_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with 4 bits and its other two arms, made by the command; only for reading."""
    root = tmp_path_factory.mktemp("arms")
    data = write_pair(root / "data", train=12, validation=VALIDATION)
    write_taught(root / "taught")
    shutil.copyfile(root / "taught/facts.jsonl", data / "facts.jsonl")
    words = f"--model {random_model('llama')} --data {data} --epochs {STEPS // 3} --batch-size 4 --learning-rate 0.005"
    words += f" --max-answer-tokens 2 --samples 0 --eval-every 30 --run club --runs-dir {root / 'runs'}"
    assert cli.main(["train", *words.split()]) == 0
    assert cli.main(["compare", "club", "--train", "--runs-dir", str(root / "runs")]) == 0
    return root / "runs"


@pytest.fixture
def runs(trained_arms: Path, tmp_path: Path) -> Path:
    """A copy of it, to write into."""
    return Path(shutil.copytree(trained_arms, tmp_path / "runs"))


@pytest.fixture
def compare(capfd: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """`qlora compare club --train` in a directory of runs: exit status and output."""

    def run(runs: Path, *flags: str) -> SimpleNamespace:
        capfd.readouterr()
        status = cli.main(["compare", "club", "--train", "--runs-dir", str(runs), *flags])
        printed = capfd.readouterr()
        return SimpleNamespace(status=status, out=printed.out, err=printed.err)

    return run


# What is trained ------------------------------------------------------------------------------------------------


def test_arms_are_ordinary_runs_that_differ_in_their_bits_alone(trained_arms):
    names = {"club": 4, "club-lora": None, "club-q8": 8}
    assert {path.name for path in trained_arms.iterdir() if path.is_dir()} == set(names)
    own = Run(trained_arms / "club")
    for name, bits in names.items():
        run = Run(trained_arms / name)
        assert run.state == "completed"
        assert run.environment()["model"]["bits"] == bits
        settings, wanted = to_flat(run.config(), "result"), to_flat(own.config(), "result")
        assert settings | {"quantize": wanted["quantize"]} == wanted
        assert settings["quantize"] == str(bits or "none")
        assert run.environment()["identity"]["model"] == own.environment()["identity"]["model"]


def test_arms_have_the_same_rows_in_the_same_order(trained_arms):
    own, *others = (Run(trained_arms / name) for name in ("club", "club-lora", "club-q8"))
    assert len(events(own, "step")) == STEPS
    assert len(set(events(own, "step", "tokens"))) > 1  # so that another order would be seen
    for run in others:
        assert run.environment()["rows"] == own.environment()["rows"]
        for field in ("step", "epoch", "tokens", "target_tokens", "learning_rate"):
            assert events(run, "step", field) == events(own, "step", field)
        assert events(run, "step", "train_loss") != events(own, "step", "train_loss")


def test_each_arm_was_trained_in_a_process_of_its_own(trained_arms):
    """Else the peak of a process would be that of the largest before it."""
    pids = {Run(trained_arms / name).status()["pid"] for name in ("club-lora", "club-q8")}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_complete_arms_are_used_as_they_are(runs, compare):
    before = {name: files(runs / name) for name in ("club", "club-lora", "club-q8")}
    done = compare(runs)
    assert done.status == 0
    assert done.out.count("✓ It is complete.") == 3
    assert {name: files(runs / name) for name in before} == before


def files(directory: Path) -> dict[str, str]:
    return hashes(directory, [str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()])


def test_what_was_interrupted_goes_on_with_the_same_command(runs, trained_arms, compare):
    shutil.rmtree(runs / "club-lora")
    arm = Run(runs / "club-lora")
    watching = threading.Thread(target=_interrupt_after, args=(arm, 3), daemon=True)
    watching.start()
    stopped = compare(runs, "--bits", "none")
    watching.join(60)
    assert stopped.status == 130
    assert "The comparison goes on with the same command." in stopped.out
    assert "Against" not in stopped.out
    assert arm.state == "paused"
    assert 0 < arm.status()["step"] < STEPS
    done = compare(runs, "--bits", "none")
    assert done.status == 0
    assert f"Resuming at step {events(arm, 'start', 'step')[-1]} of {STEPS}" in done.out
    assert hashes(arm.best) == hashes(trained_arms / "club-lora" / "best")
    assert "Against LoRA (unquantised), QLoRA (4 bits) saved " in " ".join(done.out.split())


def _interrupt_after(run: Run, step: int) -> None:
    for _ in range(6000):
        if run.metrics_file.is_file() and any(s >= step for s in events(run, "step", "step")):
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.01)


def test_more_seeds_have_names_that_tell_them(trained_arms):
    parts = arms.plan_arms(Run(trained_arms / "club"), ("none", "4"), 2)
    assert [part.name for part in parts] == ["club", "club-lora", "club-seed43", "club-lora-seed43"]
    assert [part.config.train.seed for part in parts] == [42, 42, 43, 43]
    assert [part.bits for part in parts] == [4, None, 4, None]
    assert [part.own for part in parts] == [True, False, False, False]
    assert len({part.config.data for part in parts}) == 1


def test_a_long_name_still_makes_names_of_runs(trained_arms, tmp_path):
    long = Run(shutil.copytree(trained_arms / "club", tmp_path / ("x" * 60)))
    assert [part.name for part in arms.plan_arms(long, ("none",), 1)] == ["x" * 60, f"{'x' * 59}-lora"]


def test_a_run_of_that_name_that_is_something_else_is_refused(runs, compare):
    environment = json.loads((runs / "club-lora/environment.json").read_text(encoding="utf-8"))
    environment["identity"]["rank"] = 3
    (runs / "club-lora/environment.json").write_text(json.dumps(environment), encoding="utf-8")
    done = compare(runs)
    assert done.status == 1
    assert "club-lora: cannot go on with something else. rank: the run has 3, asked for 8" in done.err


# What is refused ------------------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_said(trained_arms, runs, compare, monkeypatch):
    own = Run(trained_arms / "club")
    with pytest.raises(ConfigError, match=r"club: is the only one of these arms\. Name others with --bits"):
        arms.plan_arms(own, ("4",), 1)
    with pytest.raises(ConfigError, match="bits=2, seeds=1: wanted bits among none, 8, 4"):
        arms.plan_arms(own, ("2",), 1)
    (runs / "club/environment.json").write_text(json.dumps({**own.environment(), "imported": {"from": "x"}}))
    with pytest.raises(RunError, match="was made of adapters that something else trained"):
        arms.plan_arms(Run(runs / "club"), ("none",), 1)
    monkeypatch.setattr(arms, "available_bytes", lambda: 1000)
    shutil.rmtree(runs / "club-lora")
    (runs / "club/environment.json").write_text(json.dumps(own.environment()))
    with pytest.raises(
        MemoryShortError, match=r"unquantised, its weights alone take .* Leave that arm out: --bits 8,4"
    ):
        arms.plan_arms(Run(runs / "club"), ("none",), 1)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["club", "club-q8", "--train"], "2 runs given; --train wants one"),
        (["club", "club-q8", "--bits", "4"], "give --train, too"),
        (["club", "club-q8", "--seeds", "2"], "give --train, too"),
    ],
)
def test_flags_that_do_not_go_together(trained_arms, capsys, flags, told):
    assert cli.main(["compare", *flags, "--runs-dir", str(trained_arms)]) == 1
    assert told in capsys.readouterr().err


# What is said ---------------------------------------------------------------------------------------------------


def test_everything_in_json_and_from_python_is_what_the_runs_say(trained_arms, compare):
    done = compare(trained_arms, "--json")
    found = json.loads(done.out)
    assert found == qlora_core.compare(Run(trained_arms / "club"), train=True)
    assert [arm["kind"] for arm in found["arms"]] == ["LoRA, unquantised", "QLoRA, 8 bits", "QLoRA, 4 bits"]
    assert [arm["runs"] for arm in found["arms"]] == [["club-lora"], ["club-q8"], ["club"]]
    runs = [Run(trained_arms / arm["runs"][0]) for arm in found["arms"]]
    losses = [validation_losses(run) for run in runs]
    for arm, run, kept in zip(found["arms"], runs, losses, strict=True):
        assert (arm["rows"], arm["tokens"]) == (VALIDATION, int(kept.tokens.sum()))
        assert arm["loss"]["value"] == pytest.approx(run.summary()["best_val_loss"], rel=1e-4)
    for told, run, kept in zip(found["differences"], runs[1:], losses[1:], strict=True):
        wanted = mean_difference(kept.losses, losses[0].losses, kept.tokens)
        assert told["loss"] == wanted.as_dict()
        loaded = [each.environment()["model"]["loaded_bytes"] for each in (runs[0], run)]
        assert told["weights_saved"] == loaded[0] - loaded[1] > 0
        peaks = [each.summary()["peak_memory_bytes"] for each in (runs[0], run)]
        assert told["peak_saved"] == peaks[0] - peaks[1]
        assert told["recall"]["trained" if "trained" in told["recall"] else "held_out"]["chance"] <= 1
    assert found["conclusion"] in " ".join(compare(trained_arms).out.split())


def test_a_base_that_is_quantised_already_is_dequantised_and_that_is_told(tiny_model, tmp_path, compare):
    """Dequantised, it has the same weights, so that LoRA on it learns what QLoRA on the packed ones does."""
    base = write_quantised(tmp_path / "base", tiny_model)
    data = write_pair(tmp_path / "data", validation=VALIDATION)
    words = f"--model {base} --data {data} --max-steps 3 --batch-size 4 --learning-rate 0.005 --max-answer-tokens 1"
    assert cli.main(["train", *words.split(), "--samples", "0", "--run", "club", "--runs-dir", str(tmp_path)]) == 0
    done = compare(tmp_path, "--bits", "none", "--json")
    assert "1 run to train: club-lora, each about as long as club took" in done.err
    assert done.err.index("written once more as plain numbers") < done.err.index("Run 1 of 2")
    found = json.loads(done.out)
    assert [arm["dequantised_from"] for arm in found["arms"]] == [4, None]
    (note,) = [note for note in found["notes"] if "quantised in its files" in note]
    assert "The base is quantised in its files (4 bits), and what it was before is not here" in note
    assert "the unquantised arm is trained on a dequantised copy of the same weights" in note
    (difference,) = found["differences"]
    assert difference["loss"]["value"] == pytest.approx(0, abs=1e-4)
    assert difference["weights_saved"] > 0
    assert not [note for note in found["notes"] if "also differ" in note or "not comparable" in note]


def test_two_seeds_are_trained_and_their_interval_is_told(tiny_model, tmp_path, compare):
    data = write_pair(tmp_path / "data", validation=VALIDATION)
    words = f"--model {tiny_model} --data {data} --max-steps 3 --batch-size 4 --learning-rate 0.005 --samples 0"
    words += f" --max-answer-tokens 1 --run club --runs-dir {tmp_path}"
    assert cli.main(["train", *words.split()]) == 0
    told = " ".join(compare(tmp_path, "--bits", "none", "--seeds", "2").out.split())
    runs = {name: Run(tmp_path / name) for name in ("club", "club-lora", "club-seed43", "club-lora-seed43")}
    assert {run.state for run in runs.values()} == {"completed"}
    assert [run.config().train.seed for run in runs.values()] == [42, 42, 43, 43]
    losses = {name: run.summary()["best_val_loss"] for name, run in runs.items()}
    means = re.search(r"Means of seeds 42, (\S+) (\S+) (\S+) (\S+) 43 ", told)  # the label goes on in the next line
    wanted = [losses[name] for name in ("club-lora", "club-lora-seed43", "club", "club-seed43")]
    assert [float(one) for one in means.groups()] == pytest.approx(wanted, rel=1e-3)
    each = [losses["club"] - losses["club-lora"], losses["club-seed43"] - losses["club-lora-seed43"]]
    half = 12.706 * abs(each[0] - each[1]) / 2  # Student's t of one degree of freedom; the deviation is |a - b| / √2
    found = re.search(r"Difference, over – (\S+) \((\S+) to (\S+)\) seeds", told)
    mean = sum(each) / 2
    assert [float(one) for one in found.groups()] == pytest.approx([mean, mean - half, mean + half], abs=1e-2)


def test_validation_losses_are_kept_and_made_again_where_they_must_be(runs):
    run, said = Run(runs / "club-lora"), list[str]()
    path = run.path / "validation_losses.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["adapters"] == "best"
    assert len(kept["losses"]) == len(kept["tokens"]) == VALIDATION
    written = path.stat().st_mtime_ns
    assert validation_losses(run, said.append).losses.tolist() == kept["losses"]
    assert path.stat().st_mtime_ns == written

    for damage in ('{"adapters": 1}', "{", json.dumps({**kept, "losses": kept["losses"][1:]})):
        path.write_text(damage, encoding="utf-8")
        assert validation_losses(run, said.append).losses.tolist() == kept["losses"]
        assert said.pop().startswith(f"{path}: is damaged, and is made again: ")
        assert json.loads(path.read_text(encoding="utf-8")) == kept
    shutil.copyfile(runs / "club-q8/best/adapters.safetensors", run.best / "adapters.safetensors")
    assert not np.allclose(validation_losses(run, said.append).losses, kept["losses"], rtol=1e-6)
    assert said == []


def test_a_run_without_validation_rows_still_tells_what_memory_was_saved(trained_arms):
    """Losses of no rows: `compare_arms` is what the command prints from."""
    from qlora_core.reports.quantisation import Arm, compare_arms

    pair = [Arm(bits, [Run(trained_arms / name)], np.zeros((1, 0)), np.zeros(0, int))
            for bits, name in ((4, "club"), (None, "club-lora"))]  # fmt: skip
    found = compare_arms(pair)
    assert isinstance(found, ArmComparison)
    assert "nothing is known of what quantising costs in loss" in "".join(found.shown.notes)
    assert found.conclusion.endswith("and nothing is known of its loss.")
    assert found.differences[0].weights_saved > 0
