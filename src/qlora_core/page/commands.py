"""Commands of `qlora` that the page runs in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import QLoraError


def run_command(arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON object that `qlora … --json` prints.

    Raises:
        QLoraError: it printed none; with its error line.
    """
    command = [sys.executable, "-m", "qlora_core.cli", *arguments, "--json"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8")
    try:
        return json.loads(ended.stdout)
    except ValueError:
        last = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise QLoraError(last.removeprefix("error: ")) from None
