"""Commands of `qlora` that the page runs in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from ..errors import QLoraError


class Job:
    """A command of `qlora` that runs beside the page, which looks now and then whether it has ended.

    It lives in a session of its own: closing the page, or Ctrl+C in its terminal, leaves it alone.

    Args:
        arguments: the command and its flags, without `--json`.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = tuple(arguments)
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - read later
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qlora_core.cli", *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def result(self) -> dict[str, Any]:
        """The JSON object that it printed; waits for its end.

        Raises:
            QLoraError: it printed none; with its error line.
        """
        status = self._process.wait()
        try:
            return json.loads(_read(self._output))
        except ValueError:
            last = (_read(self._errors).strip().splitlines() or [f"exit status {status}"])[-1]
            raise QLoraError(last.removeprefix("error: ")) from None


def _read(file: Any) -> str:
    file.seek(0)
    return file.read().decode("utf-8", errors="replace")


def run_command(arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON object that `qlora … --json` prints.

    Raises:
        QLoraError: it printed none; with its error line.
    """
    return Job(arguments).result()
