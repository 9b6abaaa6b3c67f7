"""A GPU whose work the system ends, or that has no memory for it: nothing is saved after that, and the run goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import assert_same_training, at_step, create_run, events, hashes, train, write_pair

from qlora_core import cli
from qlora_core.config import from_flat
from qlora_core.engine.device import mx
from qlora_core.errors import DeviceError
from qlora_core.jobs import supervisor
from qlora_core.jobs.supervisor import restarts
from qlora_core.machine.crash_reasons import device_failure, reason
from qlora_core.page import training
from qlora_core.page.problems import Problem
from qlora_core.page.watching import RunWatcher
from qlora_core.runs.checkpoints import checkpoints
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
from qlora_core.training import loop

FAILED = "[METAL] Command buffer execution failed: "
DISPLAY = f"{FAILED}Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"
TIMEOUT = f"{FAILED}Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)."
MEMORY = f"{FAILED}Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
IGNORED = f"{FAILED}Ignored (for causing prior/excessive GPU errors) (00000004:SubmissionsIgnored)"
ALLOCATION = "[metal::malloc] Attempting to allocate 9000000000 bytes which is greater than the maximum allowed"
CUDA = "cudaMallocAsync(&data, size, stream) failed: out of memory"
SETTINGS = {"epochs": 2, "max_steps": 6, "save_every": 2, "eval_every": 1, "samples": 1, "restart": 0}
LET_IT_SLEEP, FEWER_ROWS = "Let the display sleep while it trains", "computes fewer rows at once"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def create(tmp_path: Path, tiny_model: Path, sources: Path) -> Callable[[str], Run]:
    return lambda name: create_run(tmp_path / "runs", tiny_model, sources, run=name, **SETTINGS)


def saved(run: Run) -> dict[str, dict[str, str]]:
    """Hashes of all that a training saves."""
    places = (*checkpoints(run.path / "checkpoints"), run.best, run.final)
    return {place.name: hashes(place) for place in places if place.is_dir()}


@pytest.fixture
def fail_next(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run, str], list[Any]]:
    """Let the next evaluation fail as MLX says it; returns where what was saved by then comes to lie."""
    real = mx.eval

    def arm(run: Run, text: str) -> list[Any]:
        found: list[Any] = []

        def fail(*_: Any) -> None:
            found.append(saved(run))
            monkeypatch.setattr(mx, "eval", real)
            raise RuntimeError(text)

        monkeypatch.setattr(mx, "eval", fail)
        return found

    return arm


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        (DISPLAY, LET_IT_SLEEP),
        (TIMEOUT, "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"),
        (MEMORY, FEWER_ROWS),
        (ALLOCATION, FEWER_ROWS),
        (CUDA, FEWER_ROWS),
        (IGNORED, "restart the machine"),
    ],
)
def test_it_is_told_in_plain_words_with_the_remedy(text: str, remedy: str) -> None:
    told = str(device_failure(RuntimeError(text)))
    assert told.startswith(f"the device gave up: {text.rstrip('.')}. ")
    assert remedy in told
    assert "\n" not in told


@pytest.mark.parametrize("error", [
    RuntimeError("[quantize] The last dimension of the matrix needs to be divisible by the group size"),
    RuntimeError("cudaMemcpyAsync(dst, src, size) failed: invalid argument"),
    RuntimeError("out of memory, says a program of somebody's"),
    ValueError(DISPLAY),
])  # fmt: skip
def test_a_fault_of_the_program_is_not_the_devices(error: Exception) -> None:
    assert device_failure(error) is None


@pytest.mark.parametrize("text", [DISPLAY, MEMORY])
def test_nothing_is_saved_after_it_and_going_on_ends_as_if_it_had_not_been(
    create: Callable[[str], Run], fail_next: Callable, text: str
) -> None:
    whole, run, found = create("whole"), create("cut"), []
    train(whole)
    with pytest.raises(DeviceError, match="the device gave up") as told:
        train(run, at_step(3, lambda: found.append(fail_next(run, text))))
    assert found == [[saved(run)]]
    assert run.state == "paused"
    assert (run.status()["step"], run.status()["message"]) == (2, str(told.value))
    assert str(told.value).endswith("The run is paused: its last checkpoint, of step 2, is as it was.")
    assert train(run).state == "completed"
    assert_same_training(run, whole, 6)


def test_before_anything_was_saved_it_is_paused_too(create: Callable[[str], Run], fail_next: Callable) -> None:
    run = create("first")
    with pytest.raises(DeviceError, match=r"The run is paused: nothing was saved yet\."):
        train(run, lambda event: fail_next(run, ALLOCATION) if event["type"] == "start" else None)
    assert (run.state, run.status()["step"]) == ("paused", 0)
    assert saved(run) == {}


def test_answers_within_training_pause_it_and_the_test_at_its_end_does_not(
    create: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then all is saved, and `qlora evaluate` is a new process."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(DISPLAY)

    run = create("asked")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "answer_samples", fail)
        with pytest.raises(DeviceError, match=LET_IT_SLEEP):
            train(run)
    assert run.state == "paused"
    monkeypatch.setattr(loop, "evaluate_run", fail)
    assert train(run).state == "completed"
    (warning,) = events(run, "warning", "message")
    assert warning.startswith(
        "what it learnt could not be tested; `qlora evaluate` does it again: the device gave up: "
    )
    assert LET_IT_SLEEP in warning
    assert (run.final / "adapters.safetensors").is_file()


def test_a_terminal_and_the_page_tell_it_without_a_traceback(
    create: Callable[[str], Run], fail_next: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run, real = create("told"), loop.train_epoch

    def train_epoch(*given: Any) -> None:
        fail_next(run, DISPLAY)
        real(*given)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    assert cli.main(["train", "--run", "told", "--runs-dir", str(run.path.parent)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {run.status()['message']}"
    seen = RunWatcher(TrainingTracker(run.path.parent)).look(Problem("no plan"), "told")
    assert training.state_words(seen)[0] == "paused"
    shown = training.run_panel(seen).text
    assert (LET_IT_SLEEP in shown, "Traceback" in shown) == (True, False)


def test_commands_that_answer_end_with_one_line(capsys: pytest.CaptureFixture) -> None:
    def fail(error: Exception) -> int:
        raise error

    assert cli.guarded(lambda: fail(RuntimeError(DISPLAY))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the device gave up: {DISPLAY}. macOS ended the work")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli.guarded(lambda: fail(RuntimeError("a fault of ours")))


def test_where_it_still_ends_a_process_the_reason_is_told_of_its_log() -> None:
    aborted = reason(-6, f"libc++abi: terminating due to uncaught exception of type std::runtime_error: {DISPLAY}")
    assert LET_IT_SLEEP in aborted
    assert reason(-6, "").startswith("It crashed inside compiled code")


@pytest.mark.parametrize(("metal", "asked", "wanted"), [(True, -1, 3), (False, -1, 0), (True, 0, 0), (False, 2, 2)])
def test_a_mac_goes_on_by_itself_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, metal: bool, asked: int, wanted: int
) -> None:
    monkeypatch.setattr(supervisor, "has_metal", lambda: metal)
    assert restarts(from_flat({"restart": asked})) == wanted
    assert from_flat({}).pace.restart == -1
