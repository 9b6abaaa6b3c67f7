"""Questions to llama.cpp itself about a GGUF file: token ids, rendered chats, answers, probabilities.

It runs in a process of its own (this module, started as a program), because native code that reads a damaged file may
crash. There the package `xllamacpp` (the extra `gguf`) starts llama.cpp's server on this machine's own address, and it
is asked over HTTP, as Ollama and LM Studio ask theirs. Knows nothing of how files are written.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..activity import doing, noting, run_program
from ..errors import ModelError

PACKAGE = "xllamacpp"
SHOWN_LINES = 3  # lines of llama.cpp's complaints that a message repeats
LONGEST_REASON = 600  # characters of them


@dataclass(frozen=True)
class Questions:
    """Questions to llama.cpp about a file.

    Attributes:
        texts: texts whose token ids are wanted; control tokens in them are recognised, nothing is added.
        chats: lists of messages whose rendered token ids are wanted, ready for an answer.
        prompts: token ids that are to be continued, the likeliest token each time.
        max_tokens: most tokens of an answer.
        sequences: token ids for which log probabilities are wanted.
        places: for each sequence, after how many of its tokens; none: after each.
    """

    texts: Sequence[str] = ()
    chats: Sequence[Sequence[dict[str, str]]] = ()
    prompts: Sequence[Sequence[int]] = ()
    max_tokens: int = 32
    sequences: Sequence[Sequence[int]] = ()
    places: Sequence[Sequence[int]] = ()


@dataclass
class Replies:
    """Replies of llama.cpp, in the order of the questions.

    Attributes:
        texts: token ids of each text.
        chats: token ids of each chat.
        answers: token ids of each answer, with the token that ended it, if one did. llama.cpp knows more such tokens
            than a file lists, by their names.
        answer_texts: the same as text.
        log_probabilities: for each sequence float32 `(places, vocabulary)`: of what follows its first token, its first
            two, and so on, or so many of its tokens as its places say.
        vocabulary: number of tokens of the model.
    """

    texts: list[list[int]] = field(default_factory=list)
    chats: list[list[int]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    answer_texts: list[str] = field(default_factory=list)
    log_probabilities: list[np.ndarray] = field(default_factory=list)
    vocabulary: int = 0


def is_installed() -> bool:
    """Return whether llama.cpp can be asked."""
    return importlib.util.find_spec(PACKAGE) is not None


def ask(
    model: Path,
    questions: Questions,
    *,
    adapters: Path | None = None,
    context: int = 2048,
    threads: int = 0,
    precise: bool = False,
    seconds: float = 600.0,
) -> Replies:
    """Open a GGUF file in llama.cpp, in a fresh process, and ask it.

    Args:
        model: the file.
        questions: what is asked.
        adapters: a GGUF file with a LoRA, applied at its own scale.
        context: tokens of context.
        threads: threads that compute; 0: as many as llama.cpp chooses.
        precise: keep keys and values in float32, not in float16 as is usual, to compare numbers.
        seconds: when to give up.

    Raises:
        ModelError: it is not installed, cannot open the file, or did not reply in time.
    """
    if not is_installed():
        raise ModelError(f"{model}: llama.cpp is not installed. `pip install {PACKAGE}` (the extra gguf) brings it.")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        asked = asdict(questions) | {"model": str(Path(model).resolve()), "context": context, "threads": threads,
                                     "precise": precise}  # fmt: skip
        asked["adapters"] = str(Path(adapters).resolve()) if adapters else ""
        (place / "questions.json").write_text(json.dumps(asked), encoding="utf-8")
        _run(place, model, seconds)
        found = json.loads((place / "replies.json").read_text(encoding="utf-8"))
        names = [place / f"{i}.float32" for i in range(len(questions.sequences))]
        probabilities = [np.fromfile(name, np.float32).reshape(-1, found["vocabulary"]) for name in names]
    return Replies(**found, log_probabilities=probabilities)


def _run(place: Path, model: Path, seconds: float) -> None:
    """Run this module as a program; whatever ends this process's group ends it, too."""
    with (place / "log").open("wb") as log:
        command = [sys.executable, "-m", __name__, str(place)]
        try:
            done = run_program(command, seconds=seconds, stdout=log, stderr=log)
        except subprocess.TimeoutExpired:
            raise ModelError(f"{model}: llama.cpp did not reply within {seconds:g} seconds.") from None
    status = done.returncode
    if status or not (place / "replies.json").is_file():
        raise ModelError(f"{model}: llama.cpp cannot use it: {_reason(place, status)}")


def _reason(place: Path, status: int) -> str:
    """Return llama.cpp's complaints on one line; native code may also have ended with a signal."""
    log = (place / "log").read_text(encoding="utf-8", errors="replace")
    told = [" ".join(line.split()).partition(" E ")[2] for line in log.splitlines() if " E " in line]
    problem = place / "problem"
    if not told and problem.is_file():
        told = [" ".join(problem.read_text(encoding="utf-8").split())]
    ended = f"it ended with signal {-status}" if status < 0 else f"it ended with status {status}"
    return "; ".join(dict.fromkeys([*told[:SHOWN_LINES], ended]))[:LONGEST_REASON]


# In the process of its own --------------------------------------------------------------------------------------

Post = Callable[[str, dict[str, Any] | None], dict[str, Any]]


def _main(place: Path) -> None:
    try:
        with noting():
            _reply(place)
    except Exception as error:
        (place / "problem").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        sys.exit(1)  # an ordinary end, with which llama.cpp writes the rest of its log
    os._exit(0)  # the server's threads might keep the process


def _reply(place: Path) -> None:
    asked = json.loads((place / "questions.json").read_text(encoding="utf-8"))
    post = _start(asked)
    size = int(post("/v1/models", None)["data"][0]["meta"]["n_vocab"])
    replies: dict[str, Any] = {"vocabulary": size}
    replies["texts"] = [_ids(post, text, add=False) for text in asked["texts"]]
    replies["chats"] = [
        _ids(post, post("/apply-template", {"messages": messages})["prompt"], add=True) for messages in asked["chats"]
    ]
    letter = _ids(post, "a", add=False)[-1]
    places = asked["places"] or [range(1, len(ids) + 1) for ids in asked["sequences"]]
    done, wanted = 0, len(asked["prompts"]) + sum(map(len, places))
    replies["answers"], replies["answer_texts"] = [], []
    with doing("llama_cpp", wanted) as tick:
        for ids in asked["prompts"]:
            tick(done)
            body = {**_GREEDY, "prompt": ids, "n_predict": asked["max_tokens"], "return_tokens": True}
            answer = post("/completion", body)
            replies["answers"].append(answer["tokens"])
            replies["answer_texts"].append(answer["content"])
            done += 1
        for i, ids in enumerate(asked["sequences"]):
            rows = []
            for count in places[i]:
                tick(done)
                rows.append(_follow(post, ids[:count], size, letter))
                done += 1
            np.concatenate(rows).tofile(place / f"{i}.float32")
    (place / "replies.json").write_text(json.dumps(replies), encoding="utf-8")


_GREEDY = {"temperature": 0, "samplers": ["temperature"], "cache_prompt": False}


def _start(asked: dict[str, Any]) -> Post:
    """Start llama.cpp's server with the model; return how it is asked."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.n_ctx, params.n_parallel, params.warmup = asked["context"], 1, False
    params.fit_params = False
    if asked["threads"]:
        params.cpuparams.n_threads = asked["threads"]
    if asked["precise"]:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if asked["adapters"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(asked["adapters"], 1.0)]
    key = secrets.token_hex(16)
    params.hostnames, params.port, params.api_keys, params.ui = ["127.0.0.1"], 0, [key], False
    server = xllamacpp.Server(params)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

    def post(path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(server.listening_address + path, data, headers)
        with opener.open(request) as reply:
            return json.load(reply)

    return post


def _ids(post: Post, text: str, *, add: bool) -> list[int]:
    return post("/tokenize", {"content": text, "add_special": add, "parse_special": True})["tokens"]


def _follow(post: Post, ids: list[int], size: int, letter: int) -> np.ndarray:
    """Return the log probability of each token to come next, float32, `(vocabulary,)`.

    Probabilities are of before sampling. A plain letter is sampled in any case: the server reports nothing for an end
    of text, or for part of a character.
    """
    reply = post("/completion", {**_GREEDY, "prompt": ids, "n_predict": 1, "n_probs": size, "cache_prompt": True,
                                 "logit_bias": [[letter, 1000.0]]})  # fmt: skip
    found = np.full(size, -np.inf, np.float32)
    for entry in reply["completion_probabilities"][0]["top_logprobs"]:
        if entry["logprob"] is not None:
            found[entry["id"]] = entry["logprob"]
    return found


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
