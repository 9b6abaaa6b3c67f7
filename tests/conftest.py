"""What tests share: small models, rows, and a command line that runs in a directory of its own."""

import functools
import itertools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

# test processes share the cores: waiting BLAS threads only cost time, and training sets its own number anyway
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import processes
import pytest
from forks import Forks
from tiny import write_model, write_rows, write_taught

from qlora_core.jobs.planning import plan_training
from qlora_core.runs.plan import TrainingPlan, TrainingTracker, resolve_config
from qlora_core.runs.run import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from qlora_core.data import PreparedData

ROOT = Path(__file__).parent.parent
CACHE = tempfile.mkdtemp(prefix="qlora-tests-")
os.environ["QLORA_CACHE"] = CACHE  # for the processes that tests start as well
NUMBERS = itertools.count(1)
sys.addaudithook(processes.STARTS)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add flags for how long the open-ended tests run."""
    parser.addoption("--examples", type=int, default=150, help="examples that hypothesis makes up for each test")
    parser.addoption("--peft", metavar="PYTHON", help="a Python with torch, transformers and peft, to read our exports")
    parser.addoption("--cuts", type=int, default=1, help="steps at which a run of 40 steps is cut, spread over them")
    parser.addoption(
        "--injections", type=int, default=4, help="steps that get a number that is not finite, a kind each"
    )
    parser.addoption("--signals", type=int, default=1, help="how often a training process gets each signal")
    parser.addoption("--kills", type=int, default=6, help="how often a process is killed in the middle of its work")
    parser.addoption("--disk-failures", type=int, default=16, help="failures of the disk that are tried; 0: all")
    parser.addoption("--power-cuts", type=int, default=150, help="states after a power cut that are tried; 0: all")
    parser.addoption("--damages", type=int, default=40, help="places where a checkpoint is damaged")
    parser.addoption("--races", type=int, default=30, help="how often processes start the same run at the same moment")
    parser.addoption("--soak-steps", type=int, default=300, help="steps over which nothing may grow")
    parser.addoption("--templates", type=int, default=100, help="chat templates that are made up to do harm")
    parser.addoption("--mutations", type=int, default=120, help="files damaged at random that are then opened")
    parser.addoption("--names", type=int, default=1_000, help="names of runs that are made up to lead elsewhere")


LONGEST = ("apps", "exports/test_export.py", "page/test_notebook.py", "reliability/test_overflow.py",
           "engine/test_families.py", "training/test_metal.py", "training/test_fuse.py",
           "reliability/test_exact_resume.py", "training/test_trainer.py", "reliability/test_templates.py",
           "reliability/test_worker_death.py")  # fmt: skip
"""Files of tests that take minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: with the short ones at the end, no worker waits long for the other."""

    assert all((ROOT / "tests" / name).exists() for name in LONGEST)

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((i for i, name in enumerate(LONGEST) if f"/tests/{name}" in path), len(LONGEST))

    items.sort(key=place)


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def conditions() -> Iterator[str]:
    """Yield the session's name for its processes, which run under the same conditions however it was started."""
    session = f"{os.environ.get(processes.TOKEN, '')}{os.getpid()}-{secrets.token_hex(4)}/"
    with processes.default_signals(), processes.watched(session, CACHE), processes.named(f"{session}0/"):
        yield session


@pytest.fixture(autouse=True)
def own_processes(conditions: str) -> Iterator[None]:
    """Each test has its device to itself, and what it starts ends with it."""
    token = f"{conditions}{next(NUMBERS)}/"
    before = processes.STARTS.count
    shutil.rmtree(Path(CACHE) / "training", ignore_errors=True)  # where the device's lock lies
    with processes.named(token):
        yield
    if processes.STARTS.count > before:
        assert processes.end_processes(token) == [], "left running, and ended now"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama-shaped model directory; do not write into it."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A random model's directory by its family and changes, written when first asked for; do not write into it."""
    root = tmp_path_factory.mktemp("random-models")
    numbers = itertools.count()
    return functools.cache(lambda family, **changes: write_model(root / str(next(numbers)), family, **changes))


def is_missing(what: str) -> NoReturn:
    """Skip a test for something that this machine lacks; on CI nothing may be lacking."""
    pytest.fail(what) if os.environ.get("CI") else pytest.skip(what)


@pytest.fixture
def compiling() -> Iterator[None]:
    """Inside the test MLX compiles; without a C++ compiler for that it is skipped, on CI it fails."""
    from qlora_core.engine.device import ON_CPU, mx

    if ON_CPU and shutil.which("g++") is None:
        is_missing("MLX compiles for a CPU with g++, which was not found")
    mx.enable_compile()
    yield
    if ON_CPU:
        mx.disable_compile()


@pytest.fixture
def float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside the test runs compute in float32 on the CPU, whatever there is: for numbers that half precision rounds."""
    from qlora_core.engine.device import ON_CPU, mx
    from qlora_core.training import adapted_model

    if ON_CPU:
        yield
        return
    before = mx.default_device()
    for backend in (mx.metal, mx.cuda):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    monkeypatch.setattr(adapted_model, "_made", threading.local())  # streams of the GPU
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(scope="session")
def as_an_m1() -> dict[str, str]:
    """An environment for processes in which MLX's CPU poses as an M1's GPU (`pretended_metal`); nothing is compiled.

    Files of tests run so too, but for what presumes a CPU:
    `PYTHONPATH=tests/support/pretended_metal MLX_DISABLE_COMPILE=1 uv run pytest tests/engine/test_passes.py`.
    """
    return {**os.environ, "PYTHONPATH": str(ROOT / "tests/support/pretended_metal"), "MLX_DISABLE_COMPILE": "1"}


@pytest.fixture
def tiny_rows(tmp_path: Path) -> Path:
    """A JSONL file of 12 question rows."""
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def read(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> "Callable[..., PreparedData]":
    """Prepare a file with this name and content, all of it to train on; without content, one that is there."""
    from qlora_core.config import DataConfig
    from qlora_core.data import prepare
    from qlora_core.tokens.tokenizer import ChatTokenizer

    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))

    def of(name: str, content: str | bytes | None = None, **settings: Any) -> "PreparedData":
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        config = DataConfig(data=(str(tmp_path / name),), **{"val_fraction": 0.0, **settings})
        return prepare(config, ChatTokenizer(tiny_model))

    return of


@pytest.fixture
def plan(tiny_model: Path, tiny_rows: Path, tmp_path: Path) -> Callable[..., tuple[TrainingTracker, TrainingPlan]]:
    """Plan a short run of the tiny model in `tmp_path/runs`, as `qlora train` does; loads no mlx."""

    def make(**settings: Any) -> tuple[TrainingTracker, TrainingPlan]:
        given = {"model": str(tiny_model), "runs_dir": str(tmp_path / "runs"), "batch_size": 4, "epochs": 2, **settings}
        if not Run(Path(given["runs_dir"]) / given.get("run", "")).exists:  # one that exists brings its own data
            given.setdefault("data", [str(tiny_rows)])
        return plan_training(resolve_config(given), say=lambda _: None)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """A run that learnt `TAUGHT` by heart, with a fact sheet, on a base that is quantised on disk; only for reading."""
    from harness import create_run, train, write_quantised

    root = tmp_path_factory.mktemp("trained")
    base = write_quantised(root / "base", tiny_model)
    settings = {"epochs": 40, "eval_every": 10, "save_every": 40, "max_answer_tokens": 12}
    run = create_run(root / "runs", base, write_taught(root / "data"), run="trained", **settings)
    assert train(run).state == "completed"
    return run


@pytest.fixture(scope="session")
def undrawn(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The trained run without the numbers of its steps, whose curves take an export long to draw; only for reading."""
    run = Run(shutil.copytree(trained.path, tmp_path_factory.mktemp("undrawn") / "trained"))
    (run.path / "metrics.jsonl").unlink()
    return run


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """A real Chromium, that of the system; without one tests are skipped, on CI they fail."""
    from browsing import CHROMIUM, find_chromium
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        is_missing("no chromium, chromium-browser or google-chrome found")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield made
        made.close()


@pytest.fixture(scope="session")
def forks(conditions: str) -> Iterator[Forks]:
    """Runs Python programs that use this package, marimo or mlx-lm, without their importing them each time."""
    with Forks() as started:
        yield started


@pytest.fixture
def script(forks: Forks, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python …` in `tmp_path` to its end, in a fork of a process that has imported what takes long."""
    return lambda *words: forks.run(*map(str, words), cwd=tmp_path, text=True)


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python …` in `tmp_path`, waiting for it to end."""

    def run(*arguments: str | Path, cwd: Path = tmp_path, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "PYTHONWARNINGS": "default"}
        return processes.run(command, cwd=cwd, env=environment, text=True, **options)

    return run
