"""Open an export in this process, and compare it with the run's own base and adapters. A program of its own.

    python -m qlora_core.training.verifying ASKED.json REPLIED.json

Knows runs, models and the readers of other programs; nothing of how exports are written.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..activity import doing, noting
from ..engine.device import blas_threads, cores, memory_counters, mx, nn
from ..engine.generate import Prompt, answer
from ..errors import QLoraError, brief
from ..gguf import llama_cpp
from ..gguf.model import About, write_model
from ..machine.memory import GB, available_bytes
from ..models.base_models import ModelSpec
from ..models.foreign_adapters import PEFT_FILE, fit_adapters, read_peft
from ..runs.memory_estimate import RESERVE_BYTES, keeps_dense_weights
from ..runs.run import Run
from ..tokens.rows import TokenRow
from ..tokens.tokenizer import ChatTokenizer
from .evaluate import questions_of
from .judging import MOST_LOST, NO_ROWS, Comparison, Judge, divide_rows
from .session import load_for_answers

QUESTIONS = 10
ANSWER_TOKENS = 32
TOKENS = 1024  # of the rows that are compared
TOKENS_OF_LLAMA_CPP = 96  # each of the trained ones is a request
SECONDS = 3600.0  # for llama.cpp to reply


@dataclass(frozen=True)
class Opened:
    """Replies of the export.

    Attributes:
        reader: the program that opened it, with its version.
        comparison: with what base and adapters say to the judged rows.
        answers: to the questions.
        ids: token ids of the questions, ready for an answer.
    """

    reader: str
    comparison: Comparison
    answers: list[str]
    ids: list[list[int]]


@dataclass(frozen=True)
class Export:
    """An export, and what it belongs to.

    Attributes:
        run: the run.
        tuned: directory of the adapters that were exported.
        directory: where the export lies.
        base: directory of the base as training loaded it.
        model: the file that llama.cpp loads; empty: the base, written anew with its own bits.
        adapters: the file of adapters that it loads; empty: none.
        work: a directory for what is needed in between.
    """

    run: Run
    tuned: Path
    directory: Path
    base: Path
    model: str
    adapters: str
    work: Path


def verify(export: Export, reader: str) -> dict[str, Any]:
    """Return what `exports.verification.verify` does, but for its verdict.

    Args:
        export: the export.
        reader: `program`, `peft` or `llama.cpp`.
    """
    run = export.run
    if reader == "llama.cpp" and not llama_cpp.is_installed():
        return _not_verified(f"llama.cpp is not installed; `pip install {llama_cpp.PACKAGE}` brings it")
    if short := _too_little_memory(run.base()):
        return _not_verified(short)
    model, tokenizer = load_for_answers(run, adapters=export.tuned)
    divided = divide_rows(run, tokenizer, run.base().config["vocab_size"])
    if not divided.judged:
        return _not_verified(NO_ROWS)
    chosen = _few(divided.judged, divided.trained, TOKENS_OF_LLAMA_CPP if reader == "llama.cpp" else TOKENS)
    judge = Judge([divided.judged[i] for i in chosen], divided.trained[chosen], export.work / "judged")
    judge.hear_tuned(model)
    prompts = [prompt for (_, prompt), _ in zip(questions_of(run), range(QUESTIONS), strict=False)]
    answers = _ask(model, tokenizer, prompts)
    del model
    mx.clear_cache()
    opened = _OPEN[reader](export, tokenizer, judge, prompts)
    return {
        "not_verified": "",
        "opened_with": opened.reader,
        **opened.comparison.as_dict(),
        "within": opened.comparison.lost <= MOST_LOST,
        "questions": len(prompts),
        "same_answers": sum(one == other for one, other in zip(answers, opened.answers, strict=True)),
        "same_ids": sum(tokenizer.encode_prompt(each) == ids for each, ids in zip(prompts, opened.ids, strict=True)),
    }


def _ask(model: nn.Module, tokenizer: ChatTokenizer, prompts: Sequence[Prompt]) -> list[str]:
    with doing("asking", len(prompts)) as tick:
        return answer(model, tokenizer, prompts, tick=tick, max_tokens=ANSWER_TOKENS)


def _not_verified(why: str) -> dict[str, Any]:
    return {"not_verified": why, "within": None}


def _few(rows: Sequence[TokenRow], trained: np.ndarray, most: int) -> np.ndarray:
    """Return the indices of some rows with about so many tokens together, of both kinds in turn, the shortest first."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    kinds = [[i for i in order if trained[i] == kind] for kind in (False, True)]
    chosen, tokens = [], 0
    while any(kinds) and tokens < most:
        for kind in filter(None, kinds):
            chosen.append(kind.pop(0))
            tokens += len(rows[chosen[-1]])
    return np.sort(chosen)


def _too_little_memory(spec: ModelSpec) -> str:
    """Return why a model is not opened here; empty if there is room for it."""
    needed = spec.loaded_bytes + RESERVE_BYTES
    free = memory_counters().get("free", available_bytes())
    return "" if needed <= free else f"{needed / GB:.1f} GB of memory wanted, {free / GB:.1f} GB available"


# Readers --------------------------------------------------------------------------------------------------------


def _open_program(export: Export, tokenizer: ChatTokenizer, judge: Judge, prompts: Sequence[Prompt]) -> Opened:
    """Open an export as its own `inference.py` does, with mlx-lm."""
    spec = importlib.util.spec_from_file_location("inference", export.directory / "inference.py")
    program = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(program)  # type: ignore[union-attr]
    model, theirs = program.load()
    _prepare_for_processor(model, export.run.base())
    answers = []
    with doing("asking", len(prompts)) as tick:
        for number, prompt in enumerate(prompts):
            tick(number)
            answers.append(program.answer_messages(model, theirs, prompt, max_tokens=ANSWER_TOKENS))
    ids = [program.encode(theirs, prompt) for prompt in prompts]
    return Opened(f"mlx-lm {importlib.metadata.version('mlx-lm')}", judge.compare(model), answers, ids)


def _prepare_for_processor(model: nn.Module, spec: ModelSpec) -> None:
    """Dequantise a model's weights, if a processor computes with it and has the room: its numbers stay the same.

    MLX's products with quantised weights are many times slower there.
    """
    from mlx_lm.utils import dequantize_model

    if mx.default_device() == mx.cpu and keeps_dense_weights(4 * spec.parameters, available_bytes()):
        dequantize_model(model)


def _open_peft(export: Export, tokenizer: ChatTokenizer, judge: Judge, prompts: Sequence[Prompt]) -> Opened:
    """Read PEFT's files back into the base; questions are rendered by transformers."""
    from transformers import AutoTokenizer

    spec, lora, directory = export.run.base(), export.run.config().lora, export.directory
    tensors = fit_adapters(read_peft(directory / PEFT_FILE), spec, spec.adapter_shapes(lora))
    model, _ = load_for_answers(export.run, adapters=export.tuned)
    model.load_weights([(name, mx.array(value)) for name, value in tensors.items()], strict=False)
    theirs = AutoTokenizer.from_pretrained(directory)
    asked = _safe(tokenizer, prompts)
    ids = [theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for messages in asked]
    answers = _ask(model, ChatTokenizer(directory), prompts)
    reader = f"this package's reader of PEFT's files, and transformers {importlib.metadata.version('transformers')}"
    return Opened(reader, judge.compare(model), answers, [list(each) for each in ids])


def _safe(tokenizer: ChatTokenizer, prompts: Sequence[Prompt]) -> list[list[dict[str, str]]]:
    """Return questions with control tokens broken up, as the run's tokeniser does it before it asks."""
    return [[{**m, "content": tokenizer.disarm(m["content"])} for m in prompt] for prompt in prompts]


def _open_in_llama_cpp(export: Export, tokenizer: ChatTokenizer, judge: Judge, prompts: Sequence[Prompt]) -> Opened:
    """Ask llama.cpp itself; adapters without a base get the run's own, written anew."""
    model = export.directory / export.model if export.model else export.work / "base.gguf"
    if not export.model:
        write_model(export.base, model, "as-stored", About.asked_by(tokenizer))
    asked = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    sequences = [row.ids.tolist() for row in judge.rows]
    places = [np.flatnonzero(row.trained).tolist() for row in judge.rows]  # a token is predicted by those before it
    longest = max(map(len, [*asked, *sequences])) + ANSWER_TOKENS
    questions = llama_cpp.Questions(
        chats=_safe(tokenizer, prompts),
        prompts=asked,
        max_tokens=ANSWER_TOKENS,
        sequences=sequences,
        places=places,
    )
    adapters = export.directory / export.adapters if export.adapters else None
    replies = llama_cpp.ask(model, questions, adapters=adapters, context=longest, seconds=SECONDS)
    answers = [tokenizer.decode(ids).strip() for ids in replies.answers]
    reader = f"llama.cpp ({llama_cpp.PACKAGE} {importlib.metadata.version(llama_cpp.PACKAGE)})"
    return Opened(reader, judge.compare_said(replies.log_probabilities), answers, replies.chats)


_OPEN = {"program": _open_program, "peft": _open_peft, "llama.cpp": _open_in_llama_cpp}


def main(asked: Path, replied: Path) -> int:
    """Verify what `asked` says and write the reply as JSON; return the exit status."""
    about = json.loads(asked.read_text(encoding="utf-8"))
    # products are small here, and one thread of the BLAS does not wait for another on a busy machine
    with tempfile.TemporaryDirectory() as work, blas_threads(max(1, cores() // 2)), noting():
        tuned, directory, base = (Path(about[name]) for name in ("tuned", "directory", "base"))
        export = Export(Run(Path(about["run"])), tuned, directory, base, about["model"], about["adapters"], Path(work))
        try:
            found = verify(export, about["reader"])
        except QLoraError as error:
            found = {"problem": str(error)}
        except Exception as error:  # whatever a reader finds wrong with the export is what this is for
            found = {"problem": f"{type(error).__name__}: {brief(error)}"}
    replied.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
