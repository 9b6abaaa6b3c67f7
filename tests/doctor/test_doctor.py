"""The doctor: facts of the machine, wrong kernels found and named, the whole path on small models, Ctrl+C."""

import functools
import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness import at_step

from qlora_core import cli
from qlora_core.doctor import kernels as doctor_kernels
from qlora_core.doctor import machine as doctor
from qlora_core.doctor import training as doctor_training
from qlora_core.doctor.checks import Checks, Finding
from qlora_core.engine import kernels
from qlora_core.engine.device import mx
from qlora_core.exports import export
from qlora_core.files.storage import cache_directory
from qlora_core.jobs.device_lock import DeviceLock
from qlora_core.machine.memory import GB
from qlora_core.runs.kernel_choice import Kernels
from qlora_core.training import adapted_model, session

FACTS = {"Device": Finding("ok", "CPU"), "Memory": Finding("ok", "8 GB")}


# The machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("battery", "found"),
    [
        (None, ("ok", "no battery known of")),
        (SimpleNamespace(percent=43.2, power_plugged=False), ("warning", "on its battery at 43%")),
        (SimpleNamespace(percent=99, power_plugged=True), ("ok", "plugged in, battery at 99%")),
        (SimpleNamespace(percent=50, power_plugged=None), ("ok", "plugged in, battery at 50%")),
    ],
)
def test_a_battery_is_told(monkeypatch, battery, found):
    monkeypatch.setattr(doctor, "_low_power_mode", lambda: False)
    monkeypatch.setattr(doctor.psutil, "sensors_battery", lambda: battery, raising=False)
    told = doctor.power()
    assert (told.state, told.value) == found
    assert bool(told.remedy) == (told.state == "warning")


@pytest.mark.parametrize(("digit", "state"), [("0", "ok"), ("1", "warning")])
def test_low_power_mode_of_a_mac_is_told(monkeypatch, digit, state):
    said = f"Battery Power:\n Currently in use:\n lowpowermode         {digit}\n sleep                1\n"
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    monkeypatch.setattr(doctor.psutil, "sensors_battery", lambda: None, raising=False)
    assert doctor.power().state == state


def test_a_machine_without_a_display_has_no_browser(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    found = doctor.browser()
    assert found.state == "warning"
    assert "no display" in found.value
    assert "qlora app" in found.remedy


@pytest.fixture
def hub_home(monkeypatch, tmp_path) -> Path:
    """A hub cache of our own, no token, nothing said of being offline."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return tmp_path


def test_a_token_is_known_of_and_never_shown(hub_home, monkeypatch):
    assert "no token" in doctor.hub().value
    (hub_home / "token").write_text("hf_secret", encoding="utf-8")
    in_file = doctor.hub()
    (hub_home / "token").unlink()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for found in (in_file, doctor.hub()):
        assert "with a token" in found.value
        assert "secret" not in str(found)


def test_the_hub_is_asked_only_on_request(hub_home, monkeypatch):
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert "not asked (--hub" in doctor.hub().value
        assert asked == []
        assert doctor.hub(ask=True).value.startswith("answers;")
        assert asked == ["/"] or asked == [""]
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert "HF_HUB_OFFLINE" in doctor.hub(ask=True).value
        server.shutdown()
    assert len(asked) == 1
    monkeypatch.delenv("HF_HUB_OFFLINE")
    found = doctor.hub(ask=True)  # nobody listens there any more
    assert found.state == "warning"
    assert "does not answer" in found.value


def test_denormal_numbers_reach_the_device_as_they_are():
    """Were they 0 before they are multiplied, their cost would never show."""
    bits = doctor._filled(0x2CA).view(mx.uint32)
    assert (bits == 0x2CA).all().item()
    assert 0 < doctor.denormal_cost() < 1e4


@pytest.mark.parametrize(
    ("fact", "value", "told"), [("denormal_cost", 90.0, "90 times as long"), ("swap_gb", 9.0, "9.0 GB of memory lie")]
)
def test_what_is_no_obstacle_is_a_warning(fact, value, told):
    usual = {"denormal_cost": 1.0, "swap_gb": 0.1, "memory_gb": 16.0}
    assert list(doctor._doubts(usual)) == []
    ((_, found),) = doctor._doubts(usual | {fact: value})
    assert found.state == "warning"
    assert told in found.value
    assert found.remedy


def test_the_same_facts_are_checks(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "available_bytes", lambda: 2 * GB)
    monkeypatch.setattr(doctor, "product_speed", lambda: 300.0)
    monkeypatch.setattr(doctor, "built_in_directory", lambda: tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=GB))
    found = doctor.machine_findings(tmp_path)
    assert found["Memory"].state == "warning"
    assert found["Disk"].state == "failed"
    assert (found["Disk"].value, found["Disk"].remedy) == ("1.0 GB free for runs", "make room")
    assert found["Device"].state == "ok"
    assert {"Swap", "Power", "Denormals", "Browser", "Hub", "Built-in model"} <= found.keys()


# Kernels --------------------------------------------------------------------------------------------------------


def wrong_quantised(monkeypatch, direction: str) -> None:
    """MLX's quantised product is a thousandth off in one direction."""
    right = mx.quantized_matmul

    def product(*args, transpose=True, **options):
        return right(*args, transpose=transpose, **options) * (1.001 if transpose == (direction == "forward") else 1)

    monkeypatch.setattr(mx, "quantized_matmul", product)


@pytest.fixture(autouse=True)
def few_products(monkeypatch):
    """The smallest products alone, however fast this machine is."""
    monkeypatch.setattr(doctor_kernels, "PRODUCTS", doctor_kernels.PRODUCTS[:3])
    monkeypatch.setattr(doctor_kernels, "_takes_long", lambda *_: False)


def test_the_kernels_here_are_right():
    for name, look in doctor_kernels.device_checks():
        if not name.startswith("speed"):
            found = look()
            assert found.state == "ok", (name, found)


def test_no_more_products_than_patience_allows(monkeypatch):
    monkeypatch.setattr(doctor_kernels, "PATIENCE", 0)
    assert doctor_kernels.quantised_products("float32").value.startswith("1 of 3 shapes, both directions: within ")


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_wrong_quantised_kernel_is_named(monkeypatch, direction):
    wrong_quantised(monkeypatch, direction)
    found = doctor_kernels.quantised_products("float32")
    assert found.state == "warning"
    assert (
        f"{direction} product of 7 rows with 576 x 576 at 4 bits, group 32, is off by 1.0e-03 (3 such)" in found.value
    )
    assert "dequantised ones are right" in found.value


def test_a_wrong_quantised_kernel_that_training_uses_is_a_failure(monkeypatch):
    wrong_quantised(monkeypatch, "backward")
    metal = Kernels("metal", "float16", "quantised")
    monkeypatch.setattr(doctor_kernels.device, "choose_kernels", lambda *_: metal)
    assert doctor_kernels.quantised_products("float32").state == "failed"


def test_wrong_dequantising_is_a_failure(monkeypatch):
    right = mx.dequantize
    monkeypatch.setattr(mx, "dequantize", lambda *args, **options: right(*args, **options) * 1.001)
    found = doctor_kernels.quantised_products("float32")
    assert (found.state, "dequantised products are off by 1.0e-03" in found.value) == ("failed", True)


@pytest.mark.parametrize(
    ("place", "look", "named"),
    [
        ("scaled_dot_product_attention", doctor_kernels.attention, "output is off"),
        ("rms_norm", doctor_kernels.small_kernels, "norm is off"),
        ("rope", doctor_kernels.small_kernels, "rotation is off"),
    ],
)
def test_other_wrong_kernels_are_named(monkeypatch, place, look, named):
    right = getattr(mx.fast, place)
    monkeypatch.setattr(mx.fast, place, lambda *args, **options: right(*args, **options) * 1.01)
    found = look("float32")
    assert found.state == "failed"
    assert named in found.value


def test_numbers_that_are_not_finite_are_wrong():
    assert doctor_kernels.difference(mx.array([1.0, float("nan")]), mx.ones(2)) == float("inf")


def test_speed_is_told_for_both_directions_of_what_is_not_too_large(monkeypatch):
    monkeypatch.setattr(doctor_kernels, "_timed", lambda *_: doctor_kernels.LONGEST / 2)
    assert doctor_kernels.speed("float32", 8).value.startswith("256 x 256: quantised ")
    monkeypatch.setattr(doctor_kernels, "_timed", lambda *_: 2 * doctor_kernels.LONGEST)
    assert doctor_kernels.speed("float32", 8).value.startswith("not measured")
    monkeypatch.setattr(doctor_kernels, "_timed", lambda *_: 1e-9)
    assert doctor_kernels._largest(8, "float32").outputs == 14336


# The whole path -------------------------------------------------------------------------------------------------


@pytest.fixture
def examine(monkeypatch, tmp_path):
    """Examine one shape alone: the machine's facts are given, its kernels are not tried, and no curves are drawn."""
    monkeypatch.setattr(doctor_training, "machine_findings", lambda *_, **__: FACTS)
    monkeypatch.setattr(doctor_training, "device_checks", lambda: iter(()))
    monkeypatch.setattr(doctor_training, "examine", functools.partial(doctor_training.examine, shapes=("llama",)))
    monkeypatch.setattr(export, "save_curves", lambda *_: [])

    def run() -> dict[str, tuple[str, str]]:
        made = Checks(lambda _: None)
        doctor_training.examine(made, tmp_path)
        return {check.name: (check.state, check.value) for check in made.made} | {"verdict": made.verdict()}

    return run


def test_a_model_goes_the_whole_way(examine, tmp_path):
    kept = sorted(cache_directory().rglob("*"))
    found = examine()
    assert found["verdict"] == "✓ Training works on this machine: 8 checks, none failed.", found
    assert "equal to the bit" in found["llama: cut, then resumed"][1]
    assert found["llama: answers"][1] == "4 of 4 as taught: rosa, mar, campo, sal e sol"
    assert "4 of 4 answers the same" in found["llama: export, adapter"][1]
    assert sorted(cache_directory().rglob("*")) == kept
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", doctor_training.SHAPES)
def test_every_shape_computes_what_plain_arithmetic_does(shape, tmp_path):
    found = doctor_training.Trial(shape, tmp_path).computes()
    assert found.state == "ok", found


def test_a_wrong_gradient_is_found(tmp_path, monkeypatch):
    right = kernels.Dequantising.backward
    monkeypatch.setattr(kernels.DequantisingLinear, "backward", lambda self, g, onto=None: 1.1 * right(self, g, onto))
    plainly = doctor_training._plainly

    def rightly(*args):
        monkeypatch.undo()
        return plainly(*args)

    monkeypatch.setattr(doctor_training, "_plainly", rightly)
    found = doctor_training.Trial("llama", tmp_path).computes()
    assert found.state == "failed"
    assert "allowed" in found.value


def test_a_resume_that_differs_is_found(tmp_path, monkeypatch):
    right = session.load_checkpoint

    def forgetful(path, model, optimizer):
        progress = right(path, model, optimizer)
        optimizer.state["adapters"]["m"] = mx.zeros_like(optimizer.state["adapters"]["m"])
        return progress

    monkeypatch.setattr(session, "load_checkpoint", forgetful)
    monkeypatch.setattr(doctor_training, "STEPS", 12)
    monkeypatch.setattr(doctor_training, "CUT", 5)
    monkeypatch.setattr(doctor_training, "SETTINGS", doctor_training.SETTINGS | {"epochs": 12, "eval_every": 12})
    trial = doctor_training.Trial("llama", tmp_path)
    assert trial.learns().state == "ok"
    found = trial.resumes()
    assert found.state == "failed"
    assert found.value.startswith("paused after step 5; losses differ from step 7 on")


def test_what_a_run_warns_of_is_told(tmp_path, monkeypatch):
    load = adapted_model.load_base

    def warning(spec, kernels, warn):
        warn("multiplies weights wrongly; they are dequantised instead")
        return load(spec, kernels, warn)

    monkeypatch.setattr(adapted_model, "load_base", warning)
    found = doctor_training.Trial("llama", tmp_path).computes()
    assert found.state == "warning"
    assert found.value.endswith("; multiplies weights wrongly; they are dequantised instead")


def test_what_needs_more_than_there_is_is_not_tried(examine, monkeypatch):
    monkeypatch.setattr(doctor_training.Trial, "learns", lambda self: Finding("failed", "nothing learnt"))
    found = examine()
    assert found["llama: answers"] == ("warning", "not tried: it did not learn")
    assert found["llama: export, fused"] == ("warning", "not tried: it did not answer")


def test_nothing_is_tried_beside_a_training(examine, tmp_path):
    with DeviceLock(tmp_path / "secret-run"):
        found = examine()
    state, value = found["training"]
    assert state == "warning"
    assert "being trained on this machine's CPU" in value
    assert "secret" not in str(found)
    assert not any(name.startswith("llama") for name in found)


def test_ctrl_c_within_a_training_ends_it_with_what_was_found(examine, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup it is ignored
    learn, cache = doctor_training.Trial._train, os.environ["QLORA_CACHE"]

    def interrupted(run, *listeners):
        return learn(run, at_step(3, lambda: signal.raise_signal(signal.SIGINT)))

    monkeypatch.setattr(doctor_training.Trial, "_train", staticmethod(interrupted))
    try:
        status = cli.main(["doctor", "--train", "--json"])
    finally:
        signal.signal(signal.SIGINT, before)
    told = json.loads(capfd.readouterr().out)
    assert status == 130
    assert told["interrupted"]
    assert told["failed"] == 0
    assert [check["name"] for check in told["checks"]][-1] == "llama: loss and gradient"
    assert os.environ["QLORA_CACHE"] == cache


def test_the_command_tells_a_line_a_check_and_a_verdict(examine, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor_training.Trial, "checks", lambda self: iter([("learns", lambda: Finding("ok", "well"))]))
    assert cli.main(["doctor", "--train"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["ok", "Device"], ["ok", "Memory"], ["ok", "learns"]]
    assert lines[4].startswith("✓ Training works on this machine: 3 checks")


def test_the_command_fails_with_a_check_and_hides_where_it_was(examine, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)

    def look(self):
        raise OSError(f"{Path.home()}/models and {self.place}: are gone")

    monkeypatch.setattr(doctor_training.Trial, "checks", lambda self: iter([("learns", lambda: look(self))]))
    assert cli.main(["doctor", "--train", "--json"]) == 1
    told = json.loads(capfd.readouterr().out)
    assert told["checks"][-1] | {"remedy": ""} == {
        "name": "learns",
        "state": "failed",
        "value": "OSError: ~/models and TEMPORARY/llama: are gone",
        "remedy": "",
    }
    assert set(told) == {"checks", "failed", "warnings", "interrupted", "verdict"}
