"""How many answers of a run come out the same where llama.cpp opens its exports: one file, adapters, Ollama's folder.

    uv run --extra gguf python benchmarks/answers_in_llama_cpp.py RUN [--facts FILE …] [--questions 20] [--out FILE]

RUN is a run's name under `checkpoints_qlora`, or its directory. Each format is written into a temporary directory and
opened by llama.cpp itself (the package xllamacpp), on which Ollama and LM Studio are built. The questions are the first
of the fact sheets (by default the run's own), answered greedily: by the run's base and adapters with MLX, and by
llama.cpp, which renders the chat with the template inside its file. An answer is the same if its text is.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from qlora_core.config import RunConfig
from qlora_core.engine.generate import Prompt, answer
from qlora_core.exports.export import export_run
from qlora_core.exports.formats import ExportChoices
from qlora_core.gguf import llama_cpp
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
from qlora_core.tokens.tokenizer import ChatTokenizer
from qlora_core.training.session import load_for_answers

FORMS = {"gguf": ExportChoices(), "gguf-lora": ExportChoices(with_base=True), "ollama": ExportChoices()}
FLAGS = {"gguf": "gguf", "gguf-lora": "gguf-lora --with-base", "ollama": "ollama"}
MB = 1e6


def main() -> None:
    """Print a row for each format, and write all answers where that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--runs-dir", default=RunConfig().place.runs_dir)
    parser.add_argument("--facts", nargs="+", type=Path, help="fact sheets (default: the run's own)")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write questions and answers to this file, as JSON")
    arguments = parser.parse_args()
    run = TrainingTracker(arguments.runs_dir).find(arguments.run)
    prompts = questions(run, arguments.facts or [], arguments.questions)
    longest = run.config().pace.max_answer_tokens
    model, tokenizer = load_for_answers(run)
    found: dict[str, Any] = {"prompts": prompts, "run": answer(model, tokenizer, prompts, max_tokens=longest)}
    del model
    print("| format | files | same answers | same token ids of the question | seconds |\n|---|---:|---:|---:|---:|")
    for to in FORMS:
        found[to] = asked(run, to, prompts, tokenizer, longest)
        same = sum(one == other for one, other in zip(found["run"], found[to]["answers"], strict=True))
        size, seconds, ids = (found[to][name] for name in ("bytes", "seconds", "same_ids"))
        total = len(prompts)
        print(
            f"| {FLAGS[to]} | {size / MB:.1f} MB | {same} of {total} | {ids} of {total} | {seconds:.0f} |", flush=True
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def questions(run: Run, sheets: list[Path], most: int) -> list[Prompt]:
    """Return the first questions of fact sheets as the run asks them; without a sheet, of its own."""
    told = [json.loads(line) for sheet in sheets for line in sheet.read_text(encoding="utf-8").splitlines()]
    texts = [text for fact in told or run.facts() for text in fact["questions"]][:most]
    if not texts:
        raise SystemExit(f"{run.path}: has no fact sheet. Give one with --facts.")
    system = run.shared_system()
    first = [{"role": "system", "content": system}] if system else []
    return [[*first, {"role": "user", "content": text}] for text in texts]


def asked(run: Run, to: str, prompts: list[Prompt], tokenizer: ChatTokenizer, longest: int) -> dict[str, Any]:
    """Export a run, and return llama.cpp's answers, how many questions had the run's token ids, bytes and seconds."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / to
        made = export_run(run, out, to=to, choices=FORMS[to], verified=False)
        model, adapters = out / made["gguf"]["model"], made["gguf"]["adapters"]
        chats = [[{**m, "content": tokenizer.disarm(m["content"])} for m in prompt] for prompt in prompts]
        files = {"model": model, "adapters": out / adapters if adapters else None}
        rendered = llama_cpp.ask(questions=llama_cpp.Questions(chats=chats), **files).chats
        began = time.monotonic()
        replies = llama_cpp.ask(questions=llama_cpp.Questions(prompts=rendered, max_tokens=longest), **files)
        return {
            "answers": [tokenizer.decode(ids).strip() for ids in replies.answers],
            "same_ids": sum(tokenizer.encode_prompt(one) == ids for one, ids in zip(prompts, rendered, strict=True)),
            "bytes": sum(path.stat().st_size for path in out.glob("*.gguf")),
            "seconds": time.monotonic() - began,
        }


if __name__ == "__main__":
    main()
