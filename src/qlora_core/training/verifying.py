"""Open an export in this process, and compare it with the run's own base and adapters. A program of its own.

    python -m qlora_core.training.verifying ASKED.json REPLIED.json

Knows runs, models and the readers of other programs; nothing of how exports are written.
"""

from __future__ import annotations

import dataclasses
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
from ..config import BaseConfig
from ..engine.device import blas_threads, cores, kernels_to_answer, memory_counters, mx, nn
from ..engine.generate import answer
from ..engine.model import attach_adapters, load_base
from ..errors import ModelError, QLoraError, brief
from ..evaluation.questions import questions_of
from ..gguf import llama_cpp
from ..gguf.adapters import read_adapters
from ..gguf.model import About, write_model
from ..gguf.reading import read_model
from ..gguf.tokenizer import read_vocabulary
from ..machine.memory import available_bytes
from ..models.base_models import ModelSpec, describe
from ..models.foreign_adapters import PEFT_FILE, fit_adapters, read_peft
from ..runs.memory_estimate import RESERVE_BYTES, keeps_dense_weights
from ..runs.run import Run
from ..tokens.conversations import Prompt
from ..tokens.rows import TokenRow
from ..tokens.tokenizer import ChatTokenizer
from .fused_files import save_companions, save_weights
from .judging import MOST_LOST, Comparison, Judge, divide_rows
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
        library: the library that opened it, or rendered its questions; empty: none but this package's own.
        comparison: with what base and adapters say to the judged rows.
        answers: to the questions.
        ids: token ids of the questions, ready for an answer.
    """

    library: str
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
        reader: `program`, `peft` or `llama.cpp`, in whose place `own` reads where it is not installed.
    """
    run = export.run
    if reader == "llama.cpp" and not llama_cpp.is_installed():
        reader = "own"
    needed, free = _memory(run.base(), reader)
    if needed > free:
        return {"why": "memory", "needed": needed, "free": free, "within": None}
    model, tokenizer = load_for_answers(run, adapters=export.tuned)
    divided = divide_rows(run, tokenizer, run.base().config["vocab_size"])
    if not divided.judged:
        return {"why": "rows", "within": None}
    chosen = _few(divided.judged, divided.trained, TOKENS_OF_LLAMA_CPP if reader == "llama.cpp" else TOKENS)
    judge = Judge([divided.judged[i] for i in chosen], divided.trained[chosen], export.work / "judged")
    judge.hear_tuned(model)
    prompts = [prompt for (_, prompt), _ in zip(questions_of(run), range(QUESTIONS), strict=False)]
    answers = _ask(model, tokenizer, prompts)
    del model
    mx.clear_cache()
    opened = _OPEN[reader](export, tokenizer, judge, prompts)
    return {
        "why": "",
        "reader": reader,
        "library": opened.library,
        "version": importlib.metadata.version(opened.library) if opened.library else "",
        **(means := opened.comparison.as_dict()),
        "within": means["lost"] <= MOST_LOST,
        "sure": means["interval"] is not None and means["interval"][1] <= MOST_LOST,
        "questions": len(prompts),
        "same_answers": sum(one == other for one, other in zip(answers, opened.answers, strict=True)),
        "same_ids": sum(tokenizer.encode_prompt(each) == ids for each, ids in zip(prompts, opened.ids, strict=True)),
    }


def _ask(model: nn.Module, tokenizer: ChatTokenizer, prompts: Sequence[Prompt]) -> list[str]:
    with doing("asking", len(prompts)) as tick:
        return answer(model, tokenizer, prompts, tick=tick, max_tokens=ANSWER_TOKENS)


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


def _memory(spec: ModelSpec, reader: str) -> tuple[int, int]:
    """Return how many bytes it takes to open a model, and how many there are."""
    dequantised = 2 * spec.parameters if reader == "own" else 0
    needed = max(spec.loaded_bytes, dequantised) + RESERVE_BYTES
    return needed, memory_counters().get("free", available_bytes())


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
    return Opened("mlx-lm", judge.compare(model), answers, ids)


def _prepare_for_processor(model: nn.Module, spec: ModelSpec) -> None:
    """Dequantise a model's weights, if a processor computes with it and has the room: its numbers stay the same.

    MLX's products with quantised weights are many times slower there.
    """
    from mlx_lm.utils import dequantize_model

    if mx.default_device() == mx.cpu and keeps_dense_weights(spec.dense_bytes, available_bytes()):
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
    return Opened("transformers", judge.compare(model), answers, [list(each) for each in ids])


def _safe(tokenizer: ChatTokenizer, prompts: Sequence[Prompt]) -> list[list[dict[str, str]]]:
    """Return questions with control tokens broken up, as the run's tokeniser does it before it asks."""
    return [[{**m, "content": tokenizer.disarm(m["content"])} for m in prompt] for prompt in prompts]


def _model_file(export: Export, tokenizer: ChatTokenizer) -> Path:
    """Return the GGUF file of an export's model; of adapters without a base the run's own, written anew."""
    if export.model:
        return export.directory / export.model
    made = export.work / "base.gguf"
    write_model(export.base, made, "as-stored", About.asked_by(tokenizer))
    return made


def _open_in_llama_cpp(export: Export, tokenizer: ChatTokenizer, judge: Judge, prompts: Sequence[Prompt]) -> Opened:
    """Ask llama.cpp itself."""
    model = _model_file(export, tokenizer)
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
    return Opened(llama_cpp.PACKAGE, judge.compare_said(replies.log_probabilities), answers, replies.chats)


def _open_by_itself(export: Export, tokenizer: ChatTokenizer, judge: Judge, prompts: Sequence[Prompt]) -> Opened:
    """Read a GGUF file with `gguf.reading` and compute it with MLX: its tensors, tokens and template, not their use."""
    spec, lora = export.run.base(), export.run.config().lora
    path = _model_file(export, tokenizer)
    read, theirs = _read_gguf(path, export, tokenizer)
    kernels = kernels_to_answer(read.dtype, read.dense_bytes, available_bytes(), None)
    model = load_base(read, kernels)
    if export.adapters:
        found = read_adapters(export.directory / export.adapters, export.base)
        attach_adapters(model, spec, dataclasses.replace(lora, alpha=found.scale * lora.rank, rslora=False), seed=0)
        model.load_weights([(name, mx.array(value)) for name, value in found.tensors.items()], strict=False)
    model.eval()
    answers, ids = _ask(model, theirs, prompts), [theirs.encode_prompt(prompt) for prompt in prompts]
    return Opened("", judge.compare(model), answers, ids)


def _read_gguf(path: Path, export: Export, tokenizer: ChatTokenizer) -> tuple[ModelSpec, ChatTokenizer]:
    """Write what a GGUF file holds as a model directory that MLX loads; return it, and how the file says it is asked.

    Raises:
        ModelError: the file is damaged, or has other tokens than the base.
    """
    file, spec = read_model(path), export.run.base()
    tokens = file.tokenizer.get("tokens", [])
    wanted = read_vocabulary(export.base, len(tokens), tokenizer.eos_ids)
    merges = file.tokenizer.get("merges", []) if wanted.merges else []  # without any, a file has one that does nothing
    if tokens != wanted.tokens or merges != wanted.merges:
        raise ModelError(f"{path}: has other tokens, or other rules to join them, than {export.base}.")
    directory, template = export.work / "read", export.work / "template.jinja"
    directory.mkdir()
    template.write_text(file.chat_template, encoding="utf-8")
    dtype = "float32" if keeps_dense_weights(spec.dense_bytes, available_bytes()) else spec.dtype
    weights = {name: mx.array(values).astype(getattr(mx, dtype)) for name, values in file.weights()}
    save_companions(spec, directory, tokenizer, dtype, {})
    save_weights(weights, directory, spec.parameters)
    read = describe(directory, BaseConfig(model=str(directory), quantize="none"))
    return read, ChatTokenizer(export.base, str(template) if file.chat_template else "auto", tokenizer.reasoning)


_OPEN = {"program": _open_program, "peft": _open_peft, "llama.cpp": _open_in_llama_cpp, "own": _open_by_itself}


def main(asked: Path, replied: Path) -> int:
    """Verify what `asked` says and write the reply as JSON; return the exit status."""
    about = json.loads(asked.read_text(encoding="utf-8"))
    # products are small here, and one thread of the BLAS does not wait for another on a busy machine
    with tempfile.TemporaryDirectory() as work, blas_threads(max(1, cores() // 2)), noting():
        tuned, directory, base = (Path(about[name]) for name in ("tuned", "directory", "base"))
        export = Export(Run(Path(about["run"])), tuned, directory, base, about["model"], about["adapters"], Path(work))
        try:
            reply = verify(export, about["reader"])
        except QLoraError as error:
            reply = {"problem": str(error)}
        except Exception as error:  # whatever a reader finds wrong with the export is what this is for
            reply = {"problem": f"{type(error).__name__}: {brief(error)}"}
    replied.write_text(json.dumps(reply), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
