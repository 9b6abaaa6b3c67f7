"""A run on several devices of a machine: the same numbers, and a lost device ends it in order.

The engine connects a process once in its life, so each training on several devices has a process of its own.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from harness import create_run, events, random_rows, train, trained_state, write_pair

from qlora_core.config import TrainConfig
from qlora_core.errors import BusyError, ConfigError, DeviceError, RunError
from qlora_core.files.storage import write_json
from qlora_core.jobs import device_lock
from qlora_core.jobs.device_lock import DeviceLock
from qlora_core.machine.process_pool import cores
from qlora_core.runs import devices, plan
from qlora_core.runs.checkpoints import checkpoints
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock
from qlora_core.training import followers
from qlora_core.training.adapted_model import load_adapted
from qlora_core.training.batcher import Batcher
from qlora_core.training.followers import Followers, Loading

STEPS, HALF = 6, 3
GIVEN = {"batch_size": 2, "max_steps": STEPS, "schedule": "constant", "eval_every": HALF, "save_every": HALF,
         "keep_checkpoints": 9, "samples": 0}  # fmt: skip
LONG = {"epochs": 5_000, "eval_every": 5_000, "save_every": 1}
WORKER = "import sys; from qlora_core.jobs import worker; {first}; sys.exit(worker.main())"
KEEP_NOTHING = "from qlora_core.exports import export; export.keep_result = lambda run: ''"  # which takes long
IMPATIENT = "from qlora_core.training import followers; followers.QUIET, followers.GRACE = 4.0, 1.0"
PATIENCE = 120


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A run of six steps of two rows, so that a third device has none, on a machine with devices enough."""
    monkeypatch.setattr(plan, "refuse_too_many", lambda devices: None)

    def made(name: str, **settings: object) -> Run:
        rows = write_pair(tmp_path / "rows", 8, 3)
        return create_run(tmp_path / "runs", tiny_model, rows, run=name, **GIVEN | settings)

    return made


def change(run: Run, **settings: int) -> Run:
    """Change settings that a resumed run may have changed."""
    config = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    for name, value in settings.items():
        next(group for group in config.values() if isinstance(group, dict) and name in group)[name] = value
    write_json(run.path / "config.json", config)
    return run


def start(run: Run, first: str = "pass") -> subprocess.Popen[bytes]:
    """A trainer as the page starts it; `first` is done in it before."""
    lock = RunLock(run.path)
    command = [sys.executable, "-c", WORKER.format(first=first), str(run.path), "--lock", str(lock.descriptor)]
    with (run.path / "worker.log").open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock.descriptor,),
            start_new_session=True,
        )  # fmt: skip
    lock.release()
    return child


def finished(run: Run) -> Run:
    """Train a run in a process of its own until it is complete."""
    assert start(run, KEEP_NOTHING).wait(PATIENCE) == 0, (run.path / "worker.log").read_text(encoding="utf-8")
    assert run.state == "completed"
    return run


def after_steps(run: Run, child: subprocess.Popen[bytes], count: int = 1) -> list[psutil.Process]:
    """Wait until a trainer has made some steps, and return the followers."""
    end = time.monotonic() + PATIENCE
    while len(events(run, "step")) < count:
        if child.poll() is not None or time.monotonic() > end:
            pytest.fail((run.path / "worker.log").read_text(encoding="utf-8"))
        time.sleep(0.1)
    beside = [one for one in psutil.Process(child.pid).children(True) if one.status() != psutil.STATUS_ZOMBIE]
    return [one for one in beside if {followers.NEAR, followers.FAR} & set(one.cmdline())]


def losses(run: Run) -> np.ndarray:
    """Every loss of a run, of steps and validations."""
    return np.array([*events(run, "step", "train_loss"), *events(run, "eval", "val_loss")])


def assert_close(run: Run, wanted: Run) -> None:
    """The rows are the same, and losses agree as far as numbers that are summed in another order do."""
    assert events(run, "step", "tokens") == events(wanted, "step", "tokens")
    assert losses(run) == pytest.approx(losses(wanted), rel=1e-5)


def test_any_number_of_devices_gives_the_same_numbers_and_may_change(make) -> None:
    alone = make("alone")
    train(alone)
    two = finished(make("two", devices=2))
    assert_close(two, alone)

    half = finished(make("half", devices=2, max_steps=HALF))
    other = half.path.with_name("other")
    shutil.copytree(half.path, other)
    finished(change(half, max_steps=STEPS))
    assert trained_state(half, STEPS) == trained_state(two, STEPS)
    train(change(Run(other), max_steps=STEPS, devices=1))
    assert_close(Run(other), alone)

    begun = make("begun", max_steps=HALF)
    train(begun)
    assert_close(finished(change(begun, max_steps=STEPS, devices=3)), alone)


def is_paused_in_order(run: Run, *, because: str) -> None:
    """The run is paused at its newest checkpoint, which is whole, and says why; nobody holds it."""
    status, saved = run.status(), checkpoints(run.checkpoint_directory)
    assert (run.state, status["step"]) == ("paused", int(saved[-1].name))
    assert because in status["message"]
    assert (saved[-1] / "manifest.json").is_file()
    assert [event["state"] for event in events(run, "end")][-1] == "paused"
    RunLock(run.path).release()


def test_a_killed_device_pauses_the_run_which_restarts_by_itself(make) -> None:
    run = make("killed", devices=2, restart=1, max_steps=5_000, **LONG)
    trainer = start(run)
    [follower] = after_steps(run, trainer, 2)
    follower.kill()
    follower.wait(PATIENCE)
    after_steps(run, trainer, len(events(run, "step")) + 3)  # it makes one more at most
    run.request("pause")
    assert trainer.wait(PATIENCE) == 3
    assert events(run, "end", "state") == ["paused", "paused"]
    [restart] = [event for event in events(run, "warning") if event.get("kind") == "restart"]
    assert "device 2 of 2 ended" in restart["message"]


def test_one_ctrl_c_pauses_all_devices_and_a_hung_one_ends_the_run(make) -> None:
    run = make("hung", devices=2, max_steps=5_000, **LONG)
    trainer = start(run)
    [follower] = after_steps(run, trainer, 2)
    os.killpg(trainer.pid, signal.SIGINT)  # as a terminal does: everybody gets it
    assert trainer.wait(PATIENCE) == 130
    is_paused_in_order(run, because="")
    assert not follower.is_running()

    done = len(events(run, "step"))
    trainer = start(run, IMPATIENT)
    [follower] = after_steps(run, trainer, done + 2)
    follower.suspend()
    assert trainer.wait(PATIENCE) == 1
    is_paused_in_order(run, because="device 2 of 2 gave no sign of life for 4 seconds")
    assert "error: the device gave up: device 2 of 2" in (run.path / "worker.log").read_text(encoding="utf-8")
    assert not follower.is_running()


def test_a_trainer_that_nothing_wakes_is_ended_as_paused(make) -> None:
    """As with NCCL, which waits for a lost GPU for ever."""
    run = make("asleep", devices=2, max_steps=5_000, **LONG)
    trainer = start(run, f"{IMPATIENT}; followers.Followers._end = lambda self: None")
    [follower] = after_steps(run, trainer, 2)
    follower.suspend()
    try:
        assert trainer.wait(PATIENCE) == 1
        is_paused_in_order(run, because="device 2 of 2 gave no sign of life")
    finally:
        follower.kill()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_each_row_goes_to_one_device_and_all_get_about_as_many_tokens(layout) -> None:
    lengths = [50, 10, 10, 10, 10, 10, 30, 20]
    rows = random_rows(*lengths)
    batcher = Batcher(lengths, TrainConfig(batch_size=4), Kernels("cpu", "float32", "kept"), layout, 4)
    parts = [
        [row for _, shares in rounds for share in shares for row in share]
        for rounds in batcher.divided(rows, [range(4), range(4, 8)], 2)
    ]
    assert sorted(sum(map(len, part)) for part in parts) == [70, 80]
    assert sorted(id(row) for part in parts for row in part) == sorted(map(id, rows))


def test_a_device_with_another_model_or_version_is_refused_by_name(make, monkeypatch) -> None:
    run = make("other")
    spec, kernels = run.base(), Kernels("cpu", "float32", "kept")
    loading = Loading(spec, run.config(), kernels, "supervised")
    layout = load_adapted(spec, run.config(), kernels)[1]
    other = Followers(run, 2, give_up=pytest.fail)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(followers.importlib.metadata, "version", lambda name: f"{name} of yesterday")
            with pytest.raises(RunError, match=r"device 2 of 2: its version of mlx is .*mlx of yesterday"):
                other.load(loading, layout)
        vars(spec)["fingerprint"] = "that of another"
        with pytest.raises(RunError, match=r"device 2 of 2: its base model is \w{64}, .* that of another"):
            other.load(loading, layout)
    finally:
        other.close()


def test_more_devices_than_the_machine_has_are_refused(tiny_model, tmp_path) -> None:
    many = cores() + 1
    wanted = f"--devices {many}: this machine has .* cores?. Choose --devices {cores()} or fewer"
    with pytest.raises(ConfigError, match=wanted):
        create_run(tmp_path / "runs", tiny_model, write_pair(tmp_path / "rows"), devices=many)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("told", "wanted"),
    [("", []), ("-1", []), ("3", ["3"]), ("2, 5", ["2", "5"]), ("GPU-8a,GPU-9b", ["GPU-8a", "GPU-9b"])],
)
def test_gpus_are_those_that_the_environment_names(monkeypatch, told, wanted) -> None:
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    monkeypatch.setattr(devices, "has_metal", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    assert devices.visible_gpus() == wanted


def test_every_gpu_of_a_run_is_its_own(make, monkeypatch, tmp_path) -> None:
    run = make("two", devices=2)
    monkeypatch.setattr(device_lock, "visible_gpus", lambda: ["0", "1", "2"])
    with TrainingTracker(run.path.parent).record(run) as writer:
        with device_lock.further_devices(writer), pytest.raises(BusyError, match="two is being trained already"):
            DeviceLock(tmp_path / "other", device="GPU 1")
        with DeviceLock(tmp_path / "other", device="GPU 2"), device_lock.further_devices(writer):
            pass  # which it does not use
        with (
            DeviceLock(tmp_path / "other", device="GPU 1"),
            pytest.raises(BusyError, match="other is being trained already on this machine's GPU 1"),
            device_lock.further_devices(writer),
        ):
            pytest.fail("both have the GPU")
    assert run.state == "paused"


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `ssh` that runs the command on this machine, as if it were another, and that cannot reach `nowhere`."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != -- ]; do shift; done\n'
        'if [ "$2" = nowhere ]; then echo "ssh: connect to host nowhere port 22: No route to host" >&2; exit 255; fi\n'
        "echo 'Welcome!'\n"  # as some shells do
        f'QLORA_CACHE="{tmp_path}/far" exec sh -c "$3"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return program


def hosts_file(path: Path, *names: str) -> str:
    """A file of machines, this one first; all are at this one's addresses."""
    path.write_text(
        json.dumps({"hosts": [{"ssh": name, "ips": [f"127.0.0.{i}"], "rdma": []} for i, name in enumerate(names, 1)]}),
        encoding="utf-8",
    )
    return str(path)


def test_a_run_on_two_machines_gives_the_numbers_of_one(make, ssh, tmp_path) -> None:
    alone = make("alone")
    train(alone)
    two = finished(make("two", hosts=hosts_file(tmp_path / "hosts.json", "localhost", "far")))
    assert_close(two, alone)
    assert (two.path / "devices" / "2.log").read_text(encoding="utf-8") == ""


def test_a_machine_that_is_lost_is_named_and_its_process_ends(make, ssh, tmp_path) -> None:
    run = make("cut", max_steps=5_000, hosts=hosts_file(tmp_path / "hosts.json", "localhost", "far"), **LONG)
    trainer = start(run)
    [follower] = after_steps(run, trainer, 2)
    [line] = [one for one in psutil.Process(trainer.pid).children() if one.name() in ("ssh", "sh")]
    follower.kill()
    assert trainer.wait(PATIENCE) == 1
    is_paused_in_order(run, because="device 2 of 2 (far) ended")
    assert not line.is_running()

    done = len(events(run, "step"))
    trainer = start(run)
    [follower] = after_steps(run, trainer, done + 2)
    trainer.kill()
    trainer.wait(PATIENCE)
    psutil.wait_procs([follower], PATIENCE)
    assert not follower.is_running()  # and with it the lock of its device


@pytest.mark.parametrize(
    ("name", "python", "because"),
    [
        (
            "nowhere",
            "",
            r"\(nowhere\) cannot be used: .*No route to host. Does `ssh nowhere` work without a password\?",
        ),
        ("far", "/none/python", r"\(far\) cannot be used: .*/none/python.* The project has to be installed there"),
        ("far", "", r"\(far\) cannot be used: .*other is being trained already on this machine's CPU"),
    ],
    ids=["unreachable", "no Python", "busy"],
)
def test_a_machine_that_cannot_be_used_is_named_before_anything_is_loaded(
    make, ssh, tmp_path, monkeypatch, name, python, because
) -> None:
    path = tmp_path / "hosts.json"
    content = json.loads(Path(hosts_file(path, "localhost", name)).read_text(encoding="utf-8"))
    content["hosts"][1]["python"] = python
    path.write_text(json.dumps(content), encoding="utf-8")
    run = make("lost", hosts=str(path))
    with monkeypatch.context() as far:
        far.setenv("QLORA_CACHE", str(tmp_path / "far"))
        other = DeviceLock(tmp_path / "other")
    with other, pytest.raises(DeviceError, match=because):
        train(run)
    assert not events(run, "start")
    assert run.state == "paused"


def test_a_run_that_may_restart_goes_on_without_a_lost_machine(make, ssh, tmp_path) -> None:
    path = tmp_path / "hosts.json"
    alone = make("alone")
    train(alone)
    run = finished(make("left", restart=1, max_steps=HALF, hosts=hosts_file(path, "localhost", "far", "far")))
    hosts_file(path, "localhost", "nowhere", "far")
    assert_close(finished(change(run, max_steps=STEPS)), alone)
    [warning] = [event["message"] for event in events(run, "warning") if event.get("kind") == "device"]
    assert warning.startswith("device 2 of 3 (nowhere) cannot be used: ssh: connect to host nowhere port 22")
    assert warning.endswith("The run goes on without it.")


def test_a_process_on_another_machine_ends_when_nothing_is_heard_any_more() -> None:
    """As when the trainer's machine is switched off: nobody closes the connection."""
    ours, theirs = socket.socketpair()
    code = (
        "import sys; from multiprocessing.connection import Connection; "
        "from qlora_core.training.follower import follow; follow(Connection(int(sys.argv[1])), 0.5)"
    )
    with ours, theirs:
        command = [sys.executable, "-c", code, str(theirs.fileno())]
        assert subprocess.run(command, pass_fds=(theirs.fileno(),), timeout=PATIENCE, check=False).returncode == 0
