"""Python programs in forks of one process that has imported what they do: what takes seconds is imported once.

As a program this is that process: it reads a line of JSON for each program, tells its process and its exit status.
"""

import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import processes
import pytest
from huggingface_hub import constants

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class Forks:
    """Runs programs as `python …` would, one at a time; a context manager.

    Only Linux forks a process that has loaded MLX: elsewhere each program gets a Python of its own.

    Args:
        environment: in which everything is imported; None: this process's.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._environment = environment

    def __enter__(self) -> "Forks":
        self._process = None
        if sys.platform == "linux":
            self._process = subprocess.Popen(
                [sys.executable, "-B", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self._environment,
                bufsize=0,
            )  # what was read ahead, `select` would not tell of
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            with self._process as process:
                process.stdin.close()  # which ends it

    def run(
        self,
        *words: str | Path,
        given: bytes = b"",
        check: bool = False,
        text: bool = False,
        cwd: str | Path = "/",
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program to its end.

        Args:
            words: a file, `-c` and code, or `-m` and a module, and its arguments.
            given: to its standard input.
            check: an exit status that is not 0 is an error.
            text: what it prints is returned as text.
            cwd: where it runs.
            env: its environment; None: this process's. What was read while importing is not read again.
        """
        command = list(map(os.fspath, words))
        if self._process is None:
            options = {"text": True, "given": given.decode()} if text else {"given": given}
            return processes.run([sys.executable, "-B", *command], check=check, cwd=cwd, env=env, **options)
        with tempfile.TemporaryDirectory() as directory:
            files = {name: Path(directory, name) for name, _ in STREAMS}
            files["stdin"].write_bytes(given)
            environment = dict(os.environ if env is None else env)
            self._tell({"directory": directory, "words": command, "cwd": str(cwd), "environment": environment})
            status = self._hear(command, child=int(self._hear(command)))
            output, errors = (files[name].read_bytes() for name in ("stdout", "stderr"))
        processes.STARTS.count += 1  # it may have left something running
        if text:
            output, errors = output.decode(), errors.decode()
        done = subprocess.CompletedProcess(command, int(status), output, errors)
        if check:
            done.check_returncode()
        return done

    def _tell(self, asked: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()

    def _hear(self, command: list[str], child: int | None = None) -> str:
        """Return the next line, waited for while the program gets on; if none will come, `child` is killed."""
        answers = self._process.stdout
        try:
            processes.wait_until(lambda: select.select([answers], [], [], 0.5)[0], lambda: str(command), pause=0)
        except BaseException:
            if child is not None:
                os.kill(child, signal.SIGKILL)
                answers.readline()
            raise
        return answers.readline().decode() or pytest.fail("the process that forks has ended")


# As a program ---------------------------------------------------------------------------------------------------


def import_libraries() -> None:
    """Import what programs here do; no stream of MLX may be made, whose thread a fork would lack."""
    for name in ("qlora_core.engine.device", "mlx_lm", "mlx_lm.models.llama",  # the first decides on the BLAS
                 "qlora_core.cli", "qlora_core.api", "qlora_core.page", "qlora_core.jobs.worker",
                 "qlora_core.training.loop", "marimo", "marimo._server.main"):  # fmt: skip
        importlib.import_module(name)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401 - imported when they are asked for


def become(asked: dict[str, Any], imported: dict[str, str]) -> int:
    """Run a program in this process, its streams files of a directory; return its exit status.

    Args:
        asked: as `Forks.run` tells it.
        imported: variables of the environment that importing has set.
    """
    for number, (name, mode) in enumerate(STREAMS):
        with Path(asked["directory"], name).open(mode) as file:
            os.dup2(file.fileno(), number)
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - until it ends
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(imported | asked["environment"])
    constants.HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE") == "1"
    if os.environ.get("PYTHONWARNINGS") == "default":
        warnings.simplefilter("default")
    try:
        start(asked["words"])
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def start(words: list[str]) -> None:
    """Run what the words say, as the main program."""
    first, *others = words
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *others[1:]], ""
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv, sys.path[0] = others, str(Path.cwd())
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    """Fork for each line of standard input, until it ends."""
    before = dict(os.environ)
    import_libraries()
    imported = {name: value for name, value in os.environ.items() if before.get(name) != value}
    while line := sys.stdin.buffer.readline():
        if (child := os.fork()) == 0:
            sys.exit(become(json.loads(line), imported))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
