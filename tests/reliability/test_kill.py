"""A worker is killed at random instants, again and again, and the run goes on: nothing acknowledged is ever lost."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import create_run, hashes, train, write_pair
from processes import Patience, end_of
from safetensors import safe_open

from qlora_core.files.checksums import refuse_damage
from qlora_core.files.storage import write_json
from qlora_core.runs.checkpoints import checkpoints, latest_checkpoint
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock

SEED = 6
SETTINGS = {
    "save_every": 1, "eval_every": 5, "samples": 0, "schedule": "constant", "dropout": 0.1, "keep_checkpoints": 3,
    "grad_accumulation_steps": 2, "batch_size": 2, "epochs": 10_000,
}  # fmt: skip
FILES = ("adapters.safetensors", "optimizer.safetensors", "state.json")


def prolong(run: Run, steps: int) -> None:
    """Let a run last until a step; with a constant rate, how long it is changes nothing before."""
    config = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    config["train"]["max_steps"] = steps
    write_json(run.path / "config.json", config)


def start(run: Run) -> subprocess.Popen[bytes]:
    """The worker as the page starts it."""
    lock = RunLock(run.path)
    with (run.path / "worker.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "qlora_core.jobs.worker", str(run.path), "--lock", str(lock.descriptor)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock.descriptor,), start_new_session=True,
        )  # fmt: skip
    lock.release()
    return child


class Acknowledged:
    """The last checkpoint that a run's metrics speak of, read as they grow."""

    def __init__(self, run: Run) -> None:
        self.path, self.offset, self.step, self.count = run.metrics_file, 0, 0, 0

    def look(self) -> int:
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.offset)
                lines = file.read()
            lines = lines[: lines.rfind(b"\n") + 1]
            self.offset += len(lines)
            for line in lines.splitlines():
                if b'"checkpoint"' in line:
                    self.step = json.loads(line)["step"]
                    self.count += 1
        return self.step


def wait_for(condition: Callable[[], object], child: subprocess.Popen[bytes], run: Run) -> None:
    patience = Patience()
    while not condition():
        if child.poll() is not None or patience.over():
            pytest.fail(
                f"no progress: {(run.path / 'worker.log').read_text(encoding='utf-8', errors='replace')[-2000:]}"
            )
        time.sleep(0.0005)


def unfinished(run: Run) -> list[str]:
    """What a killed save left in the directory of checkpoints."""
    return [name for name in os.listdir(run.path / "checkpoints") if name.startswith(".")]  # noqa: PTH208


def check_all(run: Run, acknowledged: int, where: str) -> int:
    """Every checkpoint that is offered is whole, by its manifest and by its tensors; the newest is as new as promised.

    Hashes are compared here, not by the code that is tested.
    """
    offered = checkpoints(run.path / "checkpoints")
    assert offered, where
    for path in offered:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
        assert sorted(manifest) == sorted(FILES), where
        assert sorted(file.name for file in path.iterdir()) == sorted((*FILES, "manifest.json")), where
        for name, entry in manifest.items():
            content = (path / name).read_bytes()
            assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}, (where, path, name)
        for name in FILES[:2]:
            with safe_open(path / name, "numpy") as tensors:
                assert all(tensors.get_tensor(key).size for key in tensors.keys()), where  # noqa: SIM118
        assert json.loads((path / "state.json").read_text(encoding="utf-8"))["step"] == int(path.name), where
    assert latest_checkpoint(run.path / "checkpoints") == (offered[-1], []), where
    assert int(offered[-1].name) >= acknowledged, where
    for place in (run.best, run.final):
        if (place / "adapters.safetensors").exists():
            refuse_damage(place / "adapters.safetensors")
    return int(offered[-1].name)


def test_no_acknowledged_checkpoint_is_lost_however_often_it_is_killed(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path
) -> None:
    kills, chance = request.config.getoption("--kills"), random.Random(SEED)
    data = write_pair(tmp_path / "data", 16)
    run = create_run(tmp_path / "killed", tiny_model, data, run="run", **SETTINGS)
    acknowledged, inside, loading, killed, lives = Acknowledged(run), 0, 0, 0, 0
    (run.path / "checkpoints").mkdir()
    while killed < kills or inside < -(-kills // 3):
        lives += 1
        assert killed < 3 * kills + 3, f"seed {SEED}: {inside} of {killed} kills fell into a save"
        before, left = acknowledged.count, unfinished(run)
        child = start(run)
        try:
            way = (
                "anywhere" if not acknowledged.step else chance.choice(("save", "save", "save", "anywhere", "loading"))
            )
            where = f"seed {SEED}, kill {killed} ({way})"
            if way == "loading":
                time.sleep(chance.uniform(0, 1.5))
            else:
                wait_for(lambda before=before: acknowledged.look() and acknowledged.count > before, child, run)
                assert not set(left) & set(unfinished(run)), where  # the save that was acknowledged had cleared it up
                time.sleep(chance.uniform(0, 0.1))
                if way == "save":
                    wait_for(lambda: unfinished(run), child, run)
                    time.sleep(chance.uniform(0, 0.008))
            last = acknowledged.look()
        finally:
            child.kill()
            child.wait()
        assert not run.alive
        assert run.state == "crashed", where
        killed += 1
        inside += bool(set(unfinished(run)) - set(left))
        loading += way == "loading"
        check_all(run, last, where)
        acknowledged.look()
    reached = check_all(run, acknowledged.step, f"seed {SEED}, at the end")
    prolong(run, reached + 3)
    child = start(run)
    assert end_of(child) == 0, (run.path / "worker.log").read_text(encoding="utf-8")[-2000:]
    assert run.state == "completed"
    assert unfinished(run) == []
    whole = create_run(tmp_path / "whole", tiny_model, data, run="run", **SETTINGS, max_steps=reached + 3)
    assert train(whole).state == "completed"
    for place in (f"checkpoints/{reached + 3:06d}", "best", "final"):
        tensors = ["adapters.safetensors", *(["optimizer.safetensors"] if "checkpoints" in place else [])]
        assert hashes(run.path / place, tensors) == hashes(whole.path / place, tensors), place
    print(f"{killed} kills, {inside} inside a save, {loading} while loading; {reached + 3} steps, equal to the bit")
