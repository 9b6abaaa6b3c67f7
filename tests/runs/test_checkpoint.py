"""Checkpoints: whole or not there, the newest good one counts, old ones go."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import at_step, checkpoint, create_run, events, train, trained_state, write_pair
from safetensors.numpy import load_file, save_file

from qlora_core.errors import CheckpointError
from qlora_core.runs.checkpoints import checkpoints, latest_checkpoint
from qlora_core.runs.run import Run

FILES = {"adapters.safetensors", "optimizer.safetensors", "state.json"}


@pytest.fixture
def create(tmp_path: Path, tiny_model: Path) -> Callable[..., Run]:
    """Make a run of 6 steps that saves each."""
    sources = write_pair(tmp_path / "data")

    def make(name: str = "run", **settings: object) -> Run:
        return create_run(tmp_path / "runs", tiny_model, sources, run=name, **{"save_every": 1, **settings})

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """A run that nothing happened to, with all its checkpoints."""
    root = tmp_path_factory.mktemp("whole")
    run = create_run(root, tiny_model, write_pair(root / "data"), save_every=1, keep_checkpoints=100)
    train(run)
    return run


@pytest.fixture
def paused(create: Callable[..., Run]) -> Run:
    """The same run, paused at step 3 with checkpoints 1 to 3."""
    run = create()
    train(run, at_step(3, lambda: run.request("pause")))
    return run


def steps(run: Run) -> list[int]:
    return [int(path.name) for path in checkpoints(run.path / "checkpoints")]


# Written --------------------------------------------------------------------------------------------------------


def test_a_manifest_has_size_and_hash_of_every_file(whole: Run) -> None:
    for path in checkpoints(whole.path / "checkpoints"):
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
        assert manifest.keys() == FILES == {file.name for file in path.iterdir()} - {"manifest.json"}
        for name, entry in manifest.items():
            content = (path / name).read_bytes()
            assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_manifest_is_written_last(whole: Run) -> None:
    for path in checkpoints(whole.path / "checkpoints"):
        times = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
        assert max(times, key=lambda name: times[name]) == "manifest.json"


def test_the_state_counts_what_was_done(whole: Run) -> None:
    told = events(whole, "step")
    for step in (1, 4, 6):
        state = json.loads((checkpoint(whole, step) / "state.json").read_text(encoding="utf-8"))
        assert state["step"] == step
        assert state["tokens"] == sum(event["tokens"] for event in told[:step])
        assert state["target_tokens"] == sum(event["target_tokens"] for event in told[:step])


@pytest.mark.parametrize(("keep", "kept"), [(1, [6]), (2, [5, 6]), (10, [1, 2, 3, 4, 5, 6])])
def test_only_the_newest_are_kept(create: Callable[..., Run], keep: int, kept: list[int]) -> None:
    run = create(keep_checkpoints=keep)
    train(run)
    assert steps(run) == kept


@pytest.mark.parametrize(("every", "saved"), [(0, [3, 6]), (4, [4, 6]), (5, [5, 6])])
def test_they_are_saved_where_they_are_due_and_at_the_end(
    create: Callable[..., Run], every: int, saved: list[int]
) -> None:
    run = create(save_every=every)
    train(run)
    assert steps(run) == events(run, "checkpoint", "step") == saved
    sizes = [sum(file.stat().st_size for file in checkpoint(run, step).iterdir()) for step in saved]
    assert events(run, "checkpoint", "bytes") == sizes


def test_nothing_half_written_stays(whole: Run) -> None:
    assert [path.name for path in (whole.path / "checkpoints").iterdir() if path.name.startswith(".")] == []


# Damaged --------------------------------------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    file = path / "adapters.safetensors"
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content)


def lose_a_file(path: Path) -> None:
    (path / "state.json").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def spoil_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"files": [1, 2', encoding="utf-8")


DAMAGES = {
    cut_short: "optimizer.safetensors differs from its manifest",
    flip_a_bit: "adapters.safetensors differs from its manifest",
    lose_a_file: "state.json is missing",
    lose_the_manifest: "manifest.json is missing",
    spoil_the_manifest: "manifest.json cannot be read",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before(paused: Run, whole: Run, damage: Callable[[Path], None]) -> None:
    damage(checkpoint(paused, 3))
    path, problems = latest_checkpoint(paused.path / "checkpoints")
    assert path == checkpoint(paused, 2)
    (problem,) = problems
    assert problem.startswith(f"checkpoint 000003 cannot be used: {DAMAGES[damage]}")
    assert train(paused).state == "completed"
    assert events(paused, "start", "step")[-1] == 2
    assert problem in events(paused, "warning", "message")
    assert trained_state(paused, 6) == trained_state(whole, 6)


def test_with_all_of_them_damaged_it_does_not_begin_again_by_itself(paused: Run) -> None:
    for path in checkpoints(paused.path / "checkpoints"):
        cut_short(path)
    with pytest.raises(CheckpointError, match=r"000003 cannot be used: .*000001 cannot be used: .* --fresh, .*"):
        train(paused)
    assert paused.state == "failed"
    assert steps(paused) == [1, 2, 3]  # nothing was deleted


def test_what_a_crash_left_half_written_is_no_checkpoint(paused: Run) -> None:
    (paused.path / "checkpoints" / ".000004.123.tmp").mkdir()
    assert latest_checkpoint(paused.path / "checkpoints") == (checkpoint(paused, 3), [])


def test_they_are_in_the_order_of_their_steps_and_copies_are_none(tmp_path: Path) -> None:
    for name in ("1000000", "999999", "000200", "000200 copy", "damaged-000300", ".000400.1.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "000500").touch()
    assert [path.name for path in checkpoints(tmp_path)] == ["000200", "999999", "1000000"]


def test_no_checkpoint_is_no_problem(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "checkpoints") == (None, [])


# Of something else ------------------------------------------------------------------------------------------------


def seal(path: Path) -> None:
    """Make a manifest agree with what lies there."""
    files = {
        name: {
            "bytes": (path / name).stat().st_size,
            "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest(),
        }
        for name in FILES
    }
    (path / "manifest.json").write_text(json.dumps({"files": files}), encoding="utf-8")


def other_adapters(path: Path) -> None:
    weights = load_file(path / "adapters.safetensors")
    save_file({name: value[:, :4].copy() for name, value in weights.items()}, path / "adapters.safetensors")


def other_optimizer(path: Path) -> None:
    state = load_file(path / "optimizer.safetensors")
    save_file({name: value for name, value in state.items() if name != "step"}, path / "optimizer.safetensors")


def other_state(path: Path) -> None:
    (path / "state.json").write_text('{"steps": 3}', encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_adapters, r"cannot be resumed: .*lora_a has shape"),
        (other_optimizer, "its optimizer state does not fit the settings"),
        (other_state, "cannot be resumed: .*steps"),
    ],
)
def test_one_that_is_whole_but_does_not_fit_is_refused(
    paused: Run, change: Callable[[Path], None], message: str
) -> None:
    """Not passed over: falling back would hide that the run was tampered with."""
    change(checkpoint(paused, 3))
    seal(checkpoint(paused, 3))
    with pytest.raises(CheckpointError, match=message):
        train(paused)
    assert paused.state == "failed"
