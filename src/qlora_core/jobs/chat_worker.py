"""The process that answers questions: `python -m qlora_core.jobs.chat_worker RUN`, or `--model NAME`.

Reads JSON lines: `{"id", "messages", "base", "sampling"}`, `{"cancel": id}`, `{"alive": true}`. Writes JSON lines:
`{"ready", "loaded_bytes", "tuned"}`, `{"id", "piece", "tokens"}`, `{"id", "done", "cancelled", "tokens", "seconds"}`,
`{"id", "error"}`, and before it ends on an error `{"error"}`. Ends with its input, or when it hears nothing for long.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Write = Callable[..., None]


def main() -> int:
    """Load the model and answer until nobody asks any more; return 1 if it cannot be loaded."""
    parser = argparse.ArgumentParser(prog="qlora_core.jobs.chat_worker")
    parser.add_argument("run", type=Path, nargs="?", help="directory of a run")
    parser.add_argument("--model", help="instead of a run: a base model")
    parser.add_argument("--quantize", choices=("4", "8", "none"), default="4")
    parser.add_argument("--silence", type=float, default=90.0, metavar="SECONDS", help="end after hearing nothing")
    arguments = parser.parse_args()
    write, ears = _take_output(), Ears(arguments.silence)

    from ..errors import QLoraError
    from ..files.storage import keep_private
    from ..machine.crash_reasons import device_failure

    keep_private()
    try:
        model, tokenizer, tuned = _load(arguments)
    except QLoraError as error:
        write(error=str(error))
        return 1
    except RuntimeError as error:
        if failure := device_failure(error):
            write(error=str(failure))
            return 1
        raise
    from ..engine.device import memory_counters

    write(ready=True, loaded_bytes=memory_counters()["active"], tuned=tuned)
    for request in ears.requests():
        try:
            _answer(model, tokenizer, request, tuned, ears, write)
        except Exception as error:  # e.g. a template refuses a conversation: the next question may work
            told = device_failure(error) or f"{type(error).__name__}: {error}"
            write(id=request["id"], error=str(told))
    return 0


def _take_output() -> Write:
    """Return a function that writes lines to standard output; other output goes to standard error."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def write(**line: Any) -> None:
        output.write(json.dumps(line) + "\n")
        output.flush()

    return write


class Ears:
    """A thread that reads input, so that a word comes through while the model loads or answers.

    Args:
        silence: seconds without a word after which the process ends. It has nothing to save, so it ends at once.
    """

    def __init__(self, silence: float) -> None:
        self.cancelled: set[int] = set()
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(silence,), daemon=True).start()

    def requests(self) -> Iterator[Request]:
        """Yield questions as they come, without end."""
        while True:
            yield self._requests.get()

    def _listen(self, silence: float) -> None:
        pending = b""
        while select.select([0], [], [], silence)[0] and (chunk := os.read(0, 65536)):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in map(json.loads, lines):
                if "cancel" in line:
                    self.cancelled.add(line["cancel"])
                elif "id" in line:
                    self._requests.put(line)
        os._exit(0)


def _load(arguments: argparse.Namespace) -> tuple[Any, Any, bool]:
    """Return model, tokeniser, and whether adapters are attached.

    Raises:
        QLoraError: it is not there, or there is too little memory for it.
    """
    from ..config import BaseConfig
    from ..engine import device
    from ..engine.model import load_base
    from ..errors import MemoryShortError, RunError
    from ..machine.memory import GB, available_bytes
    from ..runs.run import Run
    from ..tokens.tokenizer import open_tokenizer
    from ..training.session import load_for_answers
    from .chat_client import needed_bytes

    run = Run(arguments.run) if arguments.run else None
    if run is None:
        from ..models.base_models import find_base

        config = BaseConfig(model=arguments.model or "", quantize=arguments.quantize)
        spec = find_base(config)
    else:
        spec = run.base()
    available = available_bytes()
    if (needed := needed_bytes(spec, available)) > available:
        raise MemoryShortError(
            f"{spec.name}: answering takes about {needed / GB:.1f} GB, and {available / GB:.1f} GB are available. "
            "Close other programs, or take a smaller model."
        )
    if run is None:
        model = load_base(spec, device.kernels_to_answer(spec.dtype, spec.dense_bytes, available, None))
        model.eval()
        return model, open_tokenizer(config), False
    try:
        tuned = bool(run.adapters)
    except RunError:
        tuned = False
    return *load_for_answers(run, base=not tuned), tuned


def _answer(model: Any, tokenizer: Any, request: Request, tuned: bool, ears: Ears, write: Write) -> None:
    """Answer one question, token by token."""
    from contextlib import closing, nullcontext

    from ..engine.generate import stream_tokens
    from ..engine.model import base_only

    number, base, started, tokens = request["id"], request.get("base", False), time.perf_counter(), 0
    if not base and not tuned:
        write(id=number, error="There are no trained adapters yet; only the base can answer.")
        return
    sampling = request.get("sampling", {})
    with (
        base_only(model) if base else nullcontext(),
        closing(stream_tokens(model, tokenizer, request["messages"], **sampling)) as pieces,
    ):
        while not (stopped := number in ears.cancelled) and (made := next(pieces, None)):
            piece, tokens = made
            if piece:
                write(id=number, piece=piece, tokens=tokens)
    seconds = time.perf_counter() - started
    write(id=number, done=True, cancelled=stopped, tokens=tokens, seconds=round(seconds, 3))


if __name__ == "__main__":
    sys.exit(main())
