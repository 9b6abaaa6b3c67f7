"""Keep the machine from falling asleep while it trains, and macOS from ending work on its GPU.

A small program of the system holds sleep off and ends with this process, however that ends. If there is no such
program, or it is not permitted, the machine sleeps as usual. Closing the lid always puts it to sleep.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REASON = "training a language model"
TRIAL = 10  # seconds to wait for a program that only checks its permission, or that was told to end
LET_IT_SLEEP = "let it sleep in a long run: while it is on, macOS may end what keeps the GPU busy"


def gpu_environment() -> dict[str, str]:
    """Return the environment variables to set on a Mac before MLX opens the GPU; empty on other systems.

    macOS ends sustained work on the GPU that drives the display ("Impacting Interactivity": ml-explore/mlx#3267). Its
    driver, which reads this variable once, is more patient with it; llama.cpp sets it as well. Not yet run on a Mac.
    """
    return {"AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1"} if sys.platform == "darwin" else {}


def _command(*last: str) -> list[str]:
    """Return the command that holds sleep off while `last` runs; empty if the system has none."""
    if sys.platform == "darwin":  # not yet run here; -i: idle sleep alone, the display may be switched off
        found = shutil.which("caffeinate")
        return [found, "-i", *last] if found else []
    found = shutil.which("systemd-inhibit")
    told = ["--what=idle:sleep", "--mode=block", "--who=QLoRA Notebook", f"--why={REASON}"]
    return [found, *told, *last] if found else []


@contextlib.contextmanager
def kept_awake(wanted: bool = True) -> Iterator[None]:
    """Hold idle sleep off inside the block, where the system permits it.

    Args:
        wanted: if False, do nothing.
    """
    # on macOS it watches this process; on Linux `cat` waits for the end of a pipe that closes with this process
    last = ("-w", str(os.getpid())) if sys.platform == "darwin" else ("cat",)
    command = _command(*last) if wanted else []
    child = None
    if command:
        with contextlib.suppress(OSError):
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl+C is not for it, and it has no terminal to ask for a password
            )
    try:
        yield
    finally:
        if child is not None:
            child.stdin.close()  # type: ignore[union-attr]
            child.terminate()
            try:
                child.wait(TRIAL)
            except subprocess.TimeoutExpired:  # it waits for a system bus that does not answer
                child.kill()
                child.wait()


def describe() -> str:
    """Try to hold sleep off and return a sentence for people: whether it works here, and by which program."""
    command = _command("true")
    if not command:
        return f"not held off while training: no {'caffeinate' if sys.platform == 'darwin' else 'systemd-inhibit'} here"
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TRIAL, start_new_session=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not held off while training: {error}"
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return f"not held off while training: {said}"
    return f"held off while training ({Path(command[0]).name})"
