"""Files that change on the disk by themselves: found before they are used, named, and the next older ones used."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness import at_step, checkpoint, create_run, events, train, trained_state, write_pair
from safetensors import SafetensorError
from safetensors.numpy import load

from qlora_core.errors import CheckpointError, ModelError, RunError
from qlora_core.exports.export import export_run
from qlora_core.files.checksums import refuse_damage
from qlora_core.runs.checkpoints import FILES, checkpoints, latest_checkpoint
from qlora_core.runs.run import Run

SEED = 7
NAMES = sorted((*FILES, "manifest.json"))
SETTINGS = {"save_every": 1, "keep_checkpoints": 3, "samples": 0, "max_steps": 5, "eval_every": 2}


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """A run of 5 steps that was paused at step 3, with checkpoints 1 to 3; only for copying."""
    root = tmp_path_factory.mktemp("paused")
    run = create_run(root, tiny_model, write_pair(root / "data"), run="run", **SETTINGS)
    train(run, at_step(3, lambda: run.request("pause")))
    assert [path.name for path in checkpoints(run.path / "checkpoints")] == ["000001", "000002", "000003"]
    return run


@pytest.fixture
def run(paused: Run, tmp_path: Path) -> Run:
    """A copy to be damaged."""
    return Run(Path(shutil.copytree(paused.path, tmp_path / "runs" / "run")))


@pytest.fixture(scope="module")
def wanted(paused: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What it ends with if nothing is damaged."""
    whole = Run(Path(shutil.copytree(paused.path, tmp_path_factory.mktemp("whole") / "run")))
    train(whole)
    return trained_state(whole, 5)


def flipped(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """One bit changed, and where."""
    place, bit = chance.randrange(len(content)), chance.randrange(8)
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed), f"bit {bit} of byte {place}"


def cut(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """The end missing."""
    place = chance.randrange(len(content))
    return content[:place], f"cut at byte {place}"


@pytest.mark.parametrize(("change", "share"), [(flipped, 1.0), (cut, 0.4)])
def test_every_byte_counts(request, run: Run, change: Callable[..., tuple[bytes, str]], share: float) -> None:
    """Flipped or cut anywhere in any file of the newest checkpoint, it is found, and the one before is chosen."""
    chance, newest = random.Random(SEED), checkpoint(run, 3)
    count = int(share * request.config.getoption("--damages"))
    for number in range(count):
        name = NAMES[number % len(NAMES)]
        content = (newest / name).read_bytes()
        changed, where = change(content, chance)
        (newest / name).write_bytes(changed)
        path, problems = latest_checkpoint(run.path / "checkpoints")
        assert path == checkpoint(run, 2), f"seed {SEED}, {name}: {where}"
        assert len(problems) == 1, f"seed {SEED}, {name}: {where}"
        assert problems[0].startswith("checkpoint 000003 cannot be used: "), problems
        assert name in problems[0] or name == "manifest.json", problems
        (newest / name).write_bytes(content)
    assert latest_checkpoint(run.path / "checkpoints") == (newest, [])


def manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage that lies in what the manifest lists."""

    def damage(path: Path) -> None:
        whole = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        change(whole["files"])
        (path / "manifest.json").write_text(json.dumps(whole), encoding="utf-8")

    return damage


def loses(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def other_size(path: Path) -> None:
    with (path / "state.json").open("ab") as file:
        file.write(b" ")


DAMAGES = {
    **{f"{name} is missing": loses(name) for name in NAMES},
    "manifest.json cannot be read": lambda path: (path / "manifest.json").write_bytes(b""),
    "manifest.json does not list optimizer.safetensors": manifest(lambda files: files.pop("optimizer.safetensors")),
    "manifest.json does not list adapters.safetensors": manifest(lambda files: files.clear()),
    "manifest.json lists ../secret, which": manifest(lambda files: files.update({"../secret": {"bytes": 0}})),
    "state.json differs from its manifest": other_size,
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_the_next_older_one_is_used_and_named(run: Run, wanted: dict[str, str], problem: str) -> None:
    DAMAGES[problem](checkpoint(run, 3))
    assert train(run).state == "completed"
    assert events(run, "start", "step") == [0, 2]
    first, second = events(run, "warning", "message")
    assert first.startswith(f"checkpoint 000003 cannot be used: {problem}")
    assert second == "going on from checkpoint 000002 instead; what is damaged is kept as damaged-000003"
    assert (run.path / "checkpoints" / "damaged-000003").is_dir()
    assert trained_state(run, 5) == wanted


def test_damaged_ones_do_not_push_out_good_ones(run: Run) -> None:
    """They were newer than what is saved next, and older ones go first."""
    for step in (2, 3):
        loses("state.json")(checkpoint(run, step))
    train(run, at_step(2, lambda: run.request("pause")))
    assert [path.name for path in checkpoints(run.path / "checkpoints")] == ["000001", "000002"]
    assert latest_checkpoint(run.path / "checkpoints") == (checkpoint(run, 2), [])


def test_with_none_left_it_says_what_to_do_and_does_not_begin_again(run: Run, tiny_model: Path) -> None:
    before = {path: path.read_bytes() for path in (run.path / "best").iterdir()}
    for step in (1, 2, 3):
        loses("state.json")(checkpoint(run, step))
    with pytest.raises(CheckpointError) as error:
        train(run)
    told = str(error.value)
    assert re.findall(r"checkpoint (\d+) cannot be used: state\.json is missing", told) == [
        "000003",
        "000002",
        "000001",
    ]
    assert "--fresh, which starts a new run beside it; with --init-adapter run " in told
    assert (run.state, run.status()["message"]) == ("failed", told)
    assert [path.name for path in checkpoints(run.path / "checkpoints")] == ["000001", "000002", "000003"]
    assert {path: path.read_bytes() for path in (run.path / "best").iterdir()} == before
    follower = create_run(  # what it advised
        run.path.parent, tiny_model, run.path / "data", run="run", fresh=True, init_adapter="run", **SETTINGS
    )
    assert follower.name == "run-2"
    assert train(follower).state == "completed"


def test_checkpoints_that_are_gone_altogether_are_missed(run: Run) -> None:
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(CheckpointError, match="it saved step 3, and there is no checkpoint any more"):
        train(run)
    assert not (run.path / "checkpoints").exists()


def test_a_run_that_never_saved_begins(run: Run) -> None:
    shutil.rmtree(run.path / "checkpoints")
    run.metrics_file.unlink()
    assert train(run).state == "completed"


# What else a run holds -----------------------------------------------------------------------------------------------


def refused(file: Path) -> bool:
    try:
        refuse_damage(file)
    except ModelError as error:
        return str(error).startswith(f"{file}: ")
    return False


@pytest.mark.parametrize("change", [flipped, cut])
def test_adapters_are_not_used_with_other_numbers_than_were_saved(request, run: Run, change) -> None:
    """`best/` and `final/` have no manifest, being mlx-lm's; the file itself says what its numbers hash to."""
    chance, file = random.Random(SEED), run.best / "adapters.safetensors"
    content = file.read_bytes()
    numbers = load(content)
    refuse_damage(file)
    for _ in range(request.config.getoption("--damages")):
        changed, where = change(content, chance)
        file.write_bytes(changed)
        if refused(file):
            continue
        try:  # in the text around the numbers, then: as it loads, it is what was saved
            found = load(changed)
        except SafetensorError:
            continue
        assert found.keys() == numbers.keys(), where
        assert all(np.array_equal(found[name], numbers[name]) for name in numbers), where


def test_damaged_adapters_are_not_exported(run: Run) -> None:
    train(run)
    file = run.best / "adapters.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"best/adapters\.safetensors: is damaged: its numbers are not those"):
        export_run(run, run.path / "export" / "again", to="adapter")
    assert not (run.path / "export" / "again").exists()


@pytest.mark.parametrize("change", [flipped, cut])
def test_rows_that_changed_are_found_before_training(request, run: Run, change) -> None:
    chance = random.Random(SEED)
    for file in sorted((run.path / "data").iterdir()):
        content = file.read_bytes()
        for _ in range(request.config.getoption("--damages") // 4):
            changed, where = change(content, chance)
            file.write_bytes(changed)
            print(f"seed {SEED}, {file.name}: {where}")  # shown when it is not found
            with pytest.raises(RunError, match=re.escape(f"{file}: ")):
                run.refuse_damage()
        if change is flipped:
            with pytest.raises(RunError, match=r"it was damaged or changed since the run began.* --fresh"):
                train(run)
            assert (run.state, events(run, "start", "step")) == ("failed", [0])
        file.write_bytes(content)
    run.refuse_damage()
