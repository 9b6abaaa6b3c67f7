"""Ask the tuned model that lies beside this file, and get one line of JSON.

    python inference.py "a question"
    echo "a question" | python inference.py

Standard output is {"prompt", "response", "status"} and nothing else: status is "ok", or "error: …" with an exit status
that is not 0. Needs the package mlx-lm and nothing else; a loaded model answers more questions through `load` and
`answer`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WORD_JOINER = "\u2060"  # breaks a control token spelled out in a question, and is invisible


def find_base() -> str:
    """Return the directory or hub id of the model to load: the adapters' base, or this directory if it is a model."""
    if not (HERE / "adapters.safetensors").is_file():
        return str(HERE)
    settings = _settings()
    places = [settings[name] for name in ("local_base", "model", "base_model") if name in settings]
    return next((place for place in map(os.path.expanduser, places) if Path(place).is_dir()), settings["model"])


def _settings() -> dict[str, Any]:
    path = HERE / "adapter_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def load(base: str | None = None) -> tuple[Any, Any]:
    """Load the model of this directory.

    Args:
        base: directory or hub id of the base model, where `find_base` does not find the right one.

    Returns:
        The model and its tokeniser, as mlx-lm makes them.

    Raises:
        OSError: the base model is not there.
        ValueError: the files do not fit together.
    """
    settings = _settings()
    base = base or find_base()
    if Path(base).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is here: no network is asked for anything
    elif base.startswith((".", "/", "~")):
        raise FileNotFoundError(f"the base model is not at {base}; say where with --base (a directory or a hub id)")
    mx = import_mlx()
    import mlx.nn as nn
    import mlx_lm

    model, tokenizer = mlx_lm.load(base, lazy=True)
    if mx.default_device() == mx.cpu:
        model.set_dtype(mx.float32)  # a processor computes in half precision many times slower
    if quantize := settings.get("quantize"):  # the adapters were trained on a base that was quantised while loading
        size, bits = quantize["group_size"], quantize["bits"]
        wanted = {path for path, module in model.named_modules() if _quantisable(module, size)}
        nn.quantize(model, size, bits, class_predicate=lambda path, _: path in wanted)
    if (HERE / "adapters.safetensors").is_file():
        model = mlx_lm.utils.load_adapters(model, str(HERE))
    model.eval()
    mx.eval(model.parameters())
    return model, tokenizer


def import_mlx() -> Any:
    """Import mlx: with a fast BLAS if qlora_core is installed, set up for a processor if there is no GPU."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            _flush_denormals()
        with contextlib.suppress(ImportError):
            from qlora_core.engine import device  # must come before mlx

            device.set_blas_threads(max(1, device.cores() // 2))  # products are small when it answers
    elif sys.platform == "darwin":  # whose GPU driver is then more patient with long work while the display is on
        os.environ.setdefault("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")
    import mlx.core as mx

    if not (mx.metal.is_available() or mx.cuda.is_available()):
        mx.set_default_device(mx.cpu)
        mx.disable_compile()  # it would need a C++ compiler
    return mx


def _flush_denormals() -> None:
    """Flush denormal numbers to zero before mlx starts its threads: they cost some processors much time."""
    place, bits = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}.get(platform.machine(), (0, 0))
    libm, environment = ctypes.CDLL("libm.so.6"), ctypes.create_string_buffer(64)
    if bits and libm.fegetenv(environment) == 0:
        register = int.from_bytes(environment.raw[place : place + 4], "little") | bits
        environment[place : place + 4] = register.to_bytes(4, "little")
        libm.fesetenv(environment)


def _quantisable(module: Any, group_size: int) -> bool:
    return hasattr(module, "to_quantized") and hasattr(module, "weight") and module.weight.shape[-1] % group_size == 0


def answer(
    model: Any,
    tokenizer: Any,
    question: str,
    *,
    system: str = "",
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Answer a question.

    Args:
        model: the model from `load`.
        tokenizer: the tokeniser from `load`.
        question: the user's words; control tokens spelled out in them are broken up.
        system: a system message before it.
        max_tokens: longest answer, in tokens.
        temperature: 0 takes the likeliest token every time.
        seed: decides the draws when it is above 0.
    """
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    return answer_messages(model, tokenizer, messages, max_tokens=max_tokens, temperature=temperature, seed=seed)


def answer_messages(
    model: Any,
    tokenizer: Any,
    messages: Sequence[dict[str, str]],
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Answer the last message of a conversation, `[{"role", "content"}, …]`; see `answer` for the rest."""
    import mlx.core as mx
    from mlx_lm.generate import stream_generate
    from mlx_lm.sample_utils import make_sampler

    mx.random.seed(seed)
    prompt = encode(tokenizer, messages)
    if end := ending(tokenizer):
        tokenizer.add_eos_token(end)
    sampler = make_sampler(temp=temperature)
    parts = stream_generate(model, tokenizer, prompt, max_tokens=max_tokens, sampler=sampler)
    tokens = [part.token for part in parts if part.finish_reason != "stop"]
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def encode(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Return the token ids of a conversation, ready for the model's turn."""
    safe = []
    for message in messages:
        content = message["content"]
        for token in control_tokens(tokenizer):
            content = content.replace(token, token[0] + WORD_JOINER + token[1:])
        safe.append({**message, "content": content})
    try:
        text = render(tokenizer, safe, ask=True)
    except Exception:  # a template is a program: it may raise anything, at a system message too
        text = ""
    if safe[0]["role"] == "system" and safe[0]["content"].strip() not in text:  # it stood before the question then
        safe = [{**safe[1], "content": "\n\n".join(message["content"] for message in safe[:2])}, *safe[2:]]
        text = ""
    return tokenizer.encode(text or render(tokenizer, safe, ask=True), add_special_tokens=False)


def render(tokenizer: Any, messages: Sequence[dict[str, str]], *, ask: bool) -> str:
    """Render messages as the text that the model was trained with; `ask`: ready for the model's turn."""
    template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=ask)


def control_tokens(tokenizer: Any) -> list[str]:
    """Return the texts of the control tokens, the longest first."""
    known = tokenizer.added_tokens_decoder.values()
    return sorted((token.content for token in known if token.special), key=len, reverse=True)


def ending(tokenizer: Any) -> str:
    """Return the control token right behind an answer, which the model's files may not list as an end."""
    mark = "answer-" * 3
    with contextlib.suppress(Exception):
        answered = [{"role": "user", "content": "question"}, {"role": "assistant", "content": mark}]
        behind = render(tokenizer, answered, ask=False).partition(mark)[2].lstrip()
        return next((token for token in control_tokens(tokenizer) if behind.startswith(token)), "")
    return ""


# Command line ---------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser that raises an ordinary error for a wrong command line."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message} (see --help)")


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(description="Ask the tuned model beside this file; one line of JSON on standard output.")
    parser.add_argument("question", nargs="?", help="default: what standard input says")
    parser.add_argument("--system", default="", help="a system message before the question")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest answer (default: 128)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default: always the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="decides the draws when the temperature is above 0")
    parser.add_argument("--base", help="directory or hub id of the base model, if it is not where it was in training")
    arguments = parser.parse_args(words)
    if arguments.max_tokens < 1:
        raise ValueError(f"--max-tokens must be at least 1; found {arguments.max_tokens}")
    if not 0 <= arguments.temperature < float("inf"):
        raise ValueError(f"--temperature must be at least 0; found {arguments.temperature}")
    return arguments


def _ask(words: Sequence[str], result: dict[str, str]) -> None:
    """Fill in `result` step by step, so that a failure still tells the question."""
    arguments = _arguments(words)
    given = arguments.question
    question = os.fsencode(given) if given is not None else sys.stdin.buffer.read().rstrip(b"\r\n")
    result["prompt"] = question.decode("utf-8", "replace")
    if not result["prompt"].strip():
        raise ValueError("no question: give one as an argument or on standard input")
    model, tokenizer = load(arguments.base)
    result["response"] = answer(
        model,
        tokenizer,
        result["prompt"],
        system=arguments.system,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    result["status"] = "ok"


def _line(result: dict[str, str]) -> bytes:
    text = json.dumps(result, ensure_ascii=False)
    for separator in "\x85\u2028\u2029":  # some programs take these for ends of lines
        text = text.replace(separator, f"\\u{ord(separator):04x}")
    return (text + "\n").encode("utf-8", "replace")


def main(words: Sequence[str] | None = None) -> int:
    """Answer one question on standard output and return the exit status."""
    sys.stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints, in Python or in C, goes to standard error
    result = {"prompt": "", "response": "", "status": ""}
    status = 0
    try:
        _ask(sys.argv[1:] if words is None else words, result)
    except KeyboardInterrupt:
        result["status"], status = "error: interrupted", 130
    except ImportError as error:
        remedy = f"is mlx-lm installed in {sys.executable}? (pip install mlx-lm; on Linux also mlx[cpu] or mlx[cuda12])"
        result["status"], status = f"error: {error}; {remedy}", 1
    except Exception as error:  # whoever reads the line must learn of any failure
        result["status"], status = f"error: {error or type(error).__name__}", 1
    sys.stdout.flush()
    with os.fdopen(answers, "wb") as stream:
        stream.write(_line(result))
    return status


if __name__ == "__main__":
    sys.exit(main())
