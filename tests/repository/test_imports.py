"""The packages lie in one order: each imports only what stands before it, and only some may import MLX."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import qlora_core

SOURCE = Path(qlora_core.__file__).parent
VALUES = ("errors", "config", "schedule", "sampling", "activity", "translations", "first_words")
ORDER = (*VALUES, "machine", "files", "models", "tokens", "gguf", "data", "runs", "evaluation", "reports", "engine",
         "training", "exports", "jobs", "api", "page", "bench", "doctor", "cli", "__main__")  # fmt: skip
"""Packages and single modules, as `docs/architecture.md` draws them."""
WITH_MLX = ("engine", "training", "doctor")
HEAVY = ("mlx", "mlx_lm", "transformers", "torch")
FILES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a module below `qlora_core`; empty for the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_imported(path: Path, tree: ast.AST) -> Iterator[str]:
    """Dotted names below `qlora_core`, of modules where a name is one."""
    package = path.relative_to(SOURCE).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - (node.level - 1)], *(node.module or "").split(".")]
            base = [part for part in base if part]
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                is_module = (SOURCE / Path(*inner.split("."))).with_suffix(".py").is_file()
                yield inner if is_module or not base else ".".join(base)


def at_once(tree: ast.Module) -> ast.Module:
    """What of a module runs when it is imported: no functions, nothing that is only for type checkers."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    return ast.Module([node for node in body if not isinstance(node, ast.FunctionDef)], [])


def test_every_module_has_its_place():
    assert {name_of(path).partition(".")[0] for path in FILES} - {""} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path):
    """Those inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = name_of(path).partition(".")[0]
    above = ORDER[ORDER.index(own) + 1 :] if own else ()
    assert [name for name in modules_imported(path, tree) if name.partition(".")[0] in above] == []


def test_no_file_imports_itself_by_way_of_others():
    imports = {
        name_of(path): set(modules_imported(path, ast.parse(path.read_text(encoding="utf-8")))) for path in FILES
    }
    free: set[str] = set()
    while ready := {name for name, others in imports.items() if name not in free and others & imports.keys() <= free}:
        free |= ready
    assert sorted(imports.keys() - free) == []


def test_importing_what_needs_no_mlx_brings_neither_it_nor_transformers(python):
    """In a fresh interpreter, one module after the other: here, other tests have imported both."""
    names = [name_of(path) for path in FILES]
    light = [name for name in names if name.partition(".")[0] not in (*WITH_MLX, "__main__") and not needs_mlx(name)]
    script = (
        "import importlib, sys\n"
        f"for module in {light}:\n"
        "    importlib.import_module(f'qlora_core.{module}'.rstrip('.'))\n"
        f"    print(module, *(name for name in {HEAVY} if name in sys.modules))\n"
    )
    assert [line.rstrip() for line in python("-c", script).stdout.splitlines()] == light


def needs_mlx(name: str) -> bool:
    """Contestants of the benchmark and programs of exports run in processes of their own."""
    return name.startswith("exports.templates") or name in ("bench.mlxlm", "bench.torchpeft", "bench.__main__")


def test_training_brings_nothing_that_it_does_not_use(python):
    script = (
        "import sys, qlora_core.training.loop, mlx_lm.generate\n"
        "print(*sorted({'transformers', 'huggingface_hub', 'rich'} & set(sys.modules)))"
    )
    assert python("-c", script).stdout.split() == []


def test_what_stands_in_for_a_library_is_replaced_when_it_is_used(python):
    """mlx-lm is whole to whoever asks more of it than training does."""
    script = (
        "import qlora_core.engine.kernels, mlx_lm.tuner\n"
        "from mlx_lm.generate import PreTrainedTokenizer\n"
        "print(mlx_lm.tuner.TrainingArgs().batch_size, isinstance(1, PreTrainedTokenizer))\n"
        "from mlx_lm.tuner.trainer import TrainingArgs\n"
        "print(type(mlx_lm.tuner.TrainingArgs()) is TrainingArgs)\n"
    )
    assert python("-c", script).stdout.splitlines() == ["4 False", "True"]


def test_the_command_line_does_not_wait_for_the_page(python):
    """marimo takes longer to import than everything else together: only what shows the page needs it."""
    script = "import sys, qlora_core.cli, qlora_core.__main__; print({'marimo', 'altair', 'mlx'} & set(sys.modules))"
    assert python("-c", script).stdout.split() == ["set()"]


def test_the_heading_of_the_page_waits_for_no_heavy_import(python):
    """Each other part is there when it is named."""
    script = (
        "import sys, marimo\n"
        "before = set(sys.modules)\n"
        "from qlora_core import page\n"
        "page.title('QLoRA Notebook')\n"
        "print({'numpy', 'psutil', 'jinja2', 'qlora_core.data'} & (set(sys.modules) - before))\n"
        "print([name for name in page.PARTS if getattr(page, name).__name__ != f'qlora_core.page.{name}'])"
    )
    assert python("-c", script).stdout.split() == ["set()", "[]"]


def test_parts_are_the_modules_of_the_page():
    from qlora_core import page

    modules = {path.stem for path in (SOURCE / "page").glob("*.py")}
    assert set(page.PARTS) <= modules
    notebooks = "".join(path.read_text(encoding="utf-8") for path in (SOURCE.parents[1] / "apps").glob("*.py"))
    named = {name for name in modules if f"page.{name}." in notebooks}
    assert named <= {*page.PARTS, "language", "steps"}


def test_what_is_imported_ahead_is_all_that_the_notebooks_need(python):
    """`marimo run` of another notebook imports nothing."""
    script = (
        "import asyncio, sys, threading\n"
        "from qlora_core.jobs.server import notebooks\n"
        "from qlora_core.page import ahead\n"
        "ours = str(notebooks() / 'train.py')\n"
        "async def serve(*argv):\n"
        "    sys.argv = ['marimo', *argv]\n"
        "    async with ahead.lifespan(None):\n"
        "        print(*(thread.name for thread in threading.enumerate() if 'ahead' in thread.name))\n"
        "for argv in (['run', 'other.py'], ['edit', ours], ['run', ours]):\n"
        "    asyncio.run(serve(*argv))\n"
        "ahead.import_ahead().join()\n"
        "before = set(sys.modules)\n"
        "import qlora_core.data, qlora_core.jobs.planning, qlora_core.reports.console, qlora_core.tokens.report\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    assert python("-c", script).stdout.splitlines() == ["", "", "imports ahead", ""]
