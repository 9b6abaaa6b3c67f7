"""Draw the packages of qlora_core in their order of imports, in docs/architecture.md and its translation.

    uv run python scripts/draw_imports.py           writes the drawing and the table
    uv run python scripts/draw_imports.py --check   writes nothing; exit status 1 if they are not current

The order and how imports are read are those of tests/repository/test_imports.py, which also checks that none goes up.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests/repository")]

from marked import replaced, split  # noqa: E402
from test_imports import FILES, ORDER, VALUES, WITH_MLX, modules_imported, name_of  # noqa: E402

DOCUMENTS = {"en": ROOT / "docs/architecture.md", "pt": ROOT / "docs/pt/arquitetura.md"}
PART = "imports"
WIDTH = 72

PURPOSES = {
    "errors": ("the exception tree", "a árvore das exceções"),
    "config": ("every setting, once", "todas as opções, uma só vez"),
    "schedule": ("the learning rate of a step", "a taxa de aprendizagem de um passo"),
    "sampling": ("how the next token is chosen", "como se escolhe o token seguinte"),
    "activity": ("what is being done, for whoever waits", "o que se está a fazer, para quem espera"),
    "translations": ("texts in the reader's language", "os textos na língua de quem lê"),
    "first_words": ("the first line of a start that takes long", "a primeira linha de um arranque demorado"),
    "machine": ("this computer: memory, cores, sleep", "este computador: memória, núcleos, suspensão"),
    "files": ("bytes on disk that survive a power cut", "bytes em disco que sobrevivem a um corte de energia"),
    "models": (
        "which base models and adapter files exist; no weight is loaded",
        "que modelos de base e ficheiros de adaptadores existem; não se carrega nenhum peso",
    ),
    "tokens": ("text to token ids, ids to batches", "de texto a tokens, de tokens a lotes"),
    "gguf": ("llama.cpp's files: written, read, and opened by llama.cpp itself",
             "os ficheiros do llama.cpp: escritos, lidos, e abertos pelo próprio llama.cpp"),
    "data": ("files to rows to a split", "de ficheiros a exemplos, de exemplos a uma divisão"),
    "runs": ("the run directory: what is planned, written and read there",
             "a pasta de um treino: o que lá se planeia, escreve e lê"),
    "evaluation": ("did it help: questions, measures, intervals, a verdict",
                   "ajudou ou não: perguntas, medidas, intervalos, um veredicto"),
    "reports": ("what people see of runs, as text and charts", "o que se mostra dos treinos, em texto e gráficos"),
    "engine": ("one model on one device: its loss and its answers",
               "um modelo num dispositivo: a sua perda e as suas respostas"),
    "training": ("many steps of one run: loop, checkpoints, validation",
                 "muitos passos de um treino: ciclo, checkpoints, validação"),
    "exports": ("what is taken away from a run", "o que se leva de um treino"),
    "jobs": ("processes that train or answer", "processos que treinam ou respondem"),
    "api": ("the package as a library", "o pacote como biblioteca"),
    "page": ("what the notebooks in `apps/` show", "o que os notebooks em `apps/` mostram"),
    "bench": ("training speed against other trainers", "velocidade de treino em comparação com outros programas"),
    "doctor": ("whether this machine can train", "se este computador pode treinar"),
    "cli": ("the commands", "os comandos"),
    "__main__": ("where `qlora` starts", "onde `qlora` começa"),
}  # fmt: skip
"""Purpose of each package or module, in English and in Portuguese."""

HEADINGS = {
    "en": ("| package | what it is for | imports, besides single modules |", "* imports MLX", "single modules"),
    "pt": ("| pacote | para que serve | importa, além dos módulos soltos |", "* importa o MLX", "módulos soltos"),
}


def imports() -> dict[str, set[str]]:
    """Return what each package imports of the others, also inside functions."""
    found: dict[str, set[str]] = {name: set() for name in ORDER}
    for path in FILES:
        if own := name_of(path).partition(".")[0]:
            names = modules_imported(path, ast.parse(path.read_text(encoding="utf-8")))
            found[own] |= {name.partition(".")[0] for name in names} - {own, ""}
    return found


def rows(found: dict[str, set[str]]) -> list[list[str]]:
    """Return the packages in rows, the lowest first: each imports only from rows below its own.

    The single modules are the lowest row; they import one another in the order in which they stand.
    """
    level = dict.fromkeys(VALUES, 0)
    for name in ORDER[len(VALUES) :]:
        level[name] = 1 + max((level[other] for other in found[name]), default=0)
    return [[name for name in ORDER if level[name] == number] for number in range(max(level.values()) + 1)]


def drawing(found: dict[str, set[str]], language: str) -> str:
    """Return the rows as a text, the highest first, with an arrow from each to the next."""
    lowest, *above = rows(found)
    lines: list[str] = []
    for row in reversed(above):
        shown = "     ".join(f"{name} *" if name in WITH_MLX else name for name in row)
        lines += [shown.center(WIDTH).rstrip(), "│".center(WIDTH).rstrip()]
    lines[-1] = "▼".center(WIDTH).rstrip()
    lines += ["  ".join(lowest).center(WIDTH).rstrip(), f"({HEADINGS[language][2]})".center(WIDTH).rstrip()]
    return "\n".join([*lines, "", HEADINGS[language][1]])


def table(found: dict[str, set[str]], language: str) -> str:
    """Return a table of the packages, the highest first: what each is for and what it imports."""
    lines = [HEADINGS[language][0], "|---|---|---|"]
    for name in reversed(ORDER):
        others = ", ".join(f"`{other}`" for other in ORDER if other in found[name] and other not in VALUES)
        lines.append(f"| `{name}` | {PURPOSES[name][language == 'pt']} | {others} |")
    return "\n".join(lines)


def made(language: str) -> str:
    """Return what stands between the markers."""
    found = imports()
    return f"```text\n{drawing(found, language)}\n```\n\n{table(found, language)}\n"


def main() -> int:
    """Read the command line, then write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if they are not current")
    only_check = parser.parse_args().check
    old = 0
    for language, path in DOCUMENTS.items():
        text = path.read_text(encoding="utf-8")
        if split(text, PART)[1] == made(language):
            continue
        old += 1
        print(f"{path.relative_to(ROOT)} is not current" if only_check else f"{path.relative_to(ROOT)} written")
        if not only_check:
            path.write_text(replaced(text, PART, made(language)), encoding="utf-8")
    return int(only_check and old > 0)


if __name__ == "__main__":
    sys.exit(main())
