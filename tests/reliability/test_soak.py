"""A long training takes no more memory, descriptors or threads at its end than at its beginning."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

LONG = 5000  # steps from which a line can be fitted: before, the allocator's own rhythm is all there is to see
KB, MB = 1000, 1_000_000

SOAK = """
import json, sys
import psutil
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from harness import create_run, events, train, write_pair
from qlora_core.engine import device

model, place, steps, every, cycle = Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:])
settings = {"max_steps": steps, "epochs": min(steps, 10_000), "eval_every": every, "save_every": every, "samples": 0}
run = create_run(place / "runs", model, write_pair(place / "data"), run="soak", **settings)
this, seen = psutil.Process(), []

def look(event):
    step = event.get("step", 0)
    if event["type"] != "step":
        return
    if step % (cycle // 10) == 0:
        with this.oneshot():
            numbers = this.memory_info().rss, device.memory_counters()["active"], this.num_fds(), this.num_threads()
        seen.append((step, *numbers))
    if step % cycle == 0 and step < steps:
        run.request("pause")

while run.state != "completed":
    train(run, look)
counts = {kind: len(events(run, kind)) for kind in ("step", "checkpoint", "eval", "start")}
print(json.dumps({"seen": seen, **counts}))
"""


@pytest.fixture
def soaked(tiny_model: Path, tmp_path: Path, request: pytest.FixtureRequest) -> dict:
    """What was seen of a process that trained, validated, saved, paused and went on."""
    steps = request.config.getoption("--soak-steps")
    every, cycle = (100, 200) if steps >= LONG else (20, 50)
    numbers = map(str, (steps, every, cycle))
    command = [sys.executable, "-c", SOAK, str(ROOT / "tests/support"), str(tiny_model), str(tmp_path), *numbers]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["step"] == steps
    assert seen["checkpoint"] >= steps // every
    assert seen["eval"] >= steps // every
    assert seen["start"] == -(-steps // cycle)
    return seen


def slope(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Bytes a step of the line through the points, and the end of its 95% interval, from means over 20 blocks.

    Neighbouring samples say nearly the same; the means of blocks are nearly independent of each other.
    """
    blocks = [(block.mean(), part.mean()) for block, part in zip(*map(_blocks, (steps, values)), strict=True)]
    x, y = np.array(blocks).T
    fitted = np.polyfit(x, y, 1)
    spread = np.sqrt(((y - np.polyval(fitted, x)) ** 2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    return float(fitted[0]), float(fitted[0] + 2.1 * spread)


def _blocks(values: np.ndarray) -> list[np.ndarray]:
    return np.array_split(values, 20)


def test_nothing_grows(soaked):
    steps, resident, active, descriptors, threads = np.array(soaked["seen"], float).T
    warm = steps > steps[-1] / 5
    told = json.dumps(soaked["seen"][:: max(1, len(steps) // 40)])
    most_open = descriptors.reshape(-1, 10).max(1)  # of each cycle: it opens a file at its first validation
    assert set(most_open) == {most_open[-1]}, told
    assert set(threads[warm]) == {threads[-1]}, told
    for name, values in (("resident", resident), ("active", active)):
        if steps[-1] >= LONG:
            found, most = slope(steps[warm], values[warm])
            print(f"{name}: {found:.0f} bytes a step, with 95% certainty less than {most:.0f}")
            assert most <= KB, f"{name}: {found:.0f} bytes a step ({most:.0f}); {told}"
        else:
            assert np.ptp(values[warm]) < 8 * MB, f"{name}: {told}"
