"""The half that knows nothing of mlx stays without it, so that the page is light and training has the memory."""

import ast
from pathlib import Path

import qlora_core

SOURCE = Path(qlora_core.__file__).parent
WITHOUT_MLX = [
    "errors", "denormals", "storage", "config", "data", "parallel", "sandbox", "conversations", "chat_template",
    "borders", "token_rows", "tokens", "token_report", "token_view", "memory", "guard", "pace", "projections",
    "foreign", "headers", "seals",
    "hub_failures", "hub", "sampling", "bases", "adapters", "fit", "presets", "run_files", "metrics", "locks", "runs",
    "device_lock", "awake", "endings", "jobs", "worker", "supervisor", "texts", "advice", "first_words", "activity",
    "spent", "console", "cli",
    "talk", "talker", "serve", "page", "schedule", "prefix", "batching", "charts", "compare", "export", "guides",
    "peft", "later", "checks", "bench",
]  # fmt: skip
HEAVY = ("mlx", "mlx_lm", "transformers", "torch")


def test_importing_it_brings_neither_mlx_nor_transformers(python):
    """In a fresh interpreter, one module after the other: here, other tests have imported both."""
    script = (
        "import importlib, sys\n"
        f"for module in {WITHOUT_MLX}:\n"
        "    importlib.import_module(f'qlora_core.{module}')\n"
        f"    print(module, *(name for name in {HEAVY} if name in sys.modules))\n"
    )
    assert python("-c", script).stdout.splitlines() == WITHOUT_MLX


def test_training_brings_nothing_that_it_does_not_use(python):
    script = (
        "import sys, qlora_core.trainer, mlx_lm.generate\n"
        "print(*sorted({'transformers', 'huggingface_hub', 'rich'} & set(sys.modules)))"
    )
    assert python("-c", script).stdout.split() == []


def test_what_stands_in_for_a_library_is_replaced_when_it_is_used(python):
    """mlx-lm is whole to whoever asks more of it than training does."""
    script = (
        "import qlora_core.kernels, mlx_lm.tuner\n"
        "from mlx_lm.generate import PreTrainedTokenizer\n"
        "print(mlx_lm.tuner.TrainingArgs().batch_size, isinstance(1, PreTrainedTokenizer))\n"
        "from mlx_lm.tuner.trainer import TrainingArgs\n"
        "print(type(mlx_lm.tuner.TrainingArgs()) is TrainingArgs)\n"
    )
    assert python("-c", script).stdout.splitlines() == ["4 False", "True"]


def source_files(module: str) -> list[Path]:
    """The file of a module, or those of a package."""
    single = SOURCE / f"{module}.py"
    return [single] if single.is_file() else sorted((SOURCE / module).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules next to `errors` that a file imports when it is imported, not inside functions."""
    up = len(path.relative_to(SOURCE).parts)
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level == up:
            names |= {node.module} if node.module else {alias.name for alias in node.names}
    return names


def test_every_module_belongs_to_one_half():
    """A module that is in neither list of the design would be in no test."""
    with_mlx = {"device", "elementwise", "attention", "sharing", "kernels", "loss", "model", "passes", "checkpoint",
                "session", "generate", "evaluate", "trainer", "smollm2", "doctor", "doctor_kernels", "doctor_training",
                "weights", "fuse", "trunk", "hidden_states", "sums", "share_workers"}  # fmt: skip
    found = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - {"__init__", "__main__"} == with_mlx | set(WITHOUT_MLX)


def test_imports_of_the_first_half_stay_in_it():
    for module in WITHOUT_MLX:
        for path in source_files(module):
            assert imported(path) <= set(WITHOUT_MLX), path
