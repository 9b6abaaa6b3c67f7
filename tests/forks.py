"""Python programs in forks of one process that has imported mlx-lm: what takes seconds to import is imported once.

As a program this is that process: it reads a line of JSON for each program, runs it, and tells its exit status.
"""

import importlib
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import processes
import pytest

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class Forks:
    """Runs programs as `python -B …` would; a context manager.

    Only Linux forks a process that has loaded MLX: elsewhere each program gets a Python of its own.
    """

    def __enter__(self) -> "Forks":
        self._process = None
        if sys.platform == "linux":
            self._process = subprocess.Popen(
                [sys.executable, "-B", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},  # read while importing; models are directories here
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            with self._process as process:
                process.stdin.close()  # which ends it

    def run(self, *words: str | Path, given: bytes = b"", check: bool = False) -> subprocess.CompletedProcess[bytes]:
        """Run a program in `/`.

        Args:
            words: a file or `-c` and code, and its arguments.
            given: to its standard input.
            check: an exit status that is not 0 is an error.
        """
        if self._process is None:
            return processes.run([sys.executable, "-B", *words], given=given, check=check, cwd="/")
        with tempfile.TemporaryDirectory() as directory:
            files = {name: Path(directory, name) for name, _ in STREAMS}
            files["stdin"].write_bytes(given)
            asked = {"directory": directory, "words": [os.fspath(word) for word in words]}
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
            answers = self._process.stdout
            processes.wait_until(lambda: select.select([answers], [], [], 0.5)[0], lambda: str(words), pause=0)
            if not (line := answers.readline()):
                pytest.fail("the process that forks has ended")
            output, errors = (files[name].read_bytes() for name in ("stdout", "stderr"))
        done = subprocess.CompletedProcess(words, int(line), output, errors)
        if check:
            done.check_returncode()
        return done


# As a program ---------------------------------------------------------------------------------------------------


def import_libraries() -> None:
    """Import what every program here does; no stream of MLX may be made, whose thread a fork would lack."""
    for name in ("qlora_core.engine.device", "mlx_lm", "mlx_lm.models.llama"):  # the first decides on the BLAS
        importlib.import_module(name)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401 - imported when they are asked for


def become(directory: str, words: list[str]) -> int:
    """Run a program in this process, its streams files of `directory`; its exit status."""
    for number, (name, mode) in enumerate(STREAMS):
        with Path(directory, name).open(mode) as file:
            os.dup2(file.fileno(), number)
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - until it ends
    os.chdir("/")
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    """Fork for each line of standard input, until it ends."""
    import_libraries()
    while line := sys.stdin.buffer.readline():
        if (child := os.fork()) == 0:
            os._exit(become(**json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
