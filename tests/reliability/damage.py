"""Files damaged at random, and a process that opens them: `python damage.py KIND GOOD SCRATCH SEED FIRST LAST`.

Each case is a copy of a good directory in which one file was damaged; its number and the seed decide how. Prints a line
of JSON for each: number, what was done, and what became of it: `fine`, the name of an error for people, or a traceback.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import string
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 6 << 30  # bytes that the process may address
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 511, 513, 2**31, 2**31 - 1, -(2**31), 2**32, 2**63, 2**64, 10**30,
    10**400, 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), "", "x", "x" * 100_000, "\0", "\ud800",
    "../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "os.system", "../../evil", "evil.py", "qwen3",
    "base", "\x1b[2J", [], {}, [[]], [None], {"a": None}, {"": {}}, [0] * 10_000, {"bits": 0, "group_size": 0},
    {"bits": -4, "group_size": 3}, "16", "NaN", ["lora_a"] * 1000, {"quant_method": "awq"}, {"__float__": "NaN"},
]  # fmt: skip
KEYS = [
    "model_file", "auto_map", "chat_template_type", "tokenizer_class", "quantization", "quantization_config",
    "model_type", "text_config", "architectures", "rope_scaling", "eos_token_id", "num_hidden_layers",
    "lora_parameters", "rank", "scale", "keys", "num_layers", "state", "step", "total_steps", "time",
    "best_val_loss", "questions", "recall", "identity", "model", "path", "kernels", "chat_template", "eos_token",
    "type", "tokens", "message", "max_steps", "learning_rate",
]  # fmt: skip


# Damage -----------------------------------------------------------------------------------------------------------


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file, or put something else in its place; returns what was done, in a few words."""
    content = path.read_bytes()
    if rng.random() < 0.06:
        return _replace(path, rng)
    if path.suffix == ".safetensors" and rng.random() < 0.6:
        return _damage_header(path, content, rng)
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.75:
        return _damage_json(path, content, rng)
    return _damage_bytes(path, content, rng)


def _replace(path: Path, rng: random.Random) -> str:
    path.unlink()
    kinds: dict[str, Callable[[], Any]] = {
        "gone": lambda: None,
        "a directory": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a link to nothing": lambda: path.symlink_to("nowhere"),
        "a link to itself": lambda: path.symlink_to(path),
        "a link to a device": lambda: path.symlink_to("/dev/zero"),
        "empty": path.touch,
        "huge": lambda: (path.touch(), os.truncate(path, 1 << 40)),
    }
    kind = rng.choice(list(kinds))
    kinds[kind]()
    return kind


def _damage_bytes(path: Path, content: bytes, rng: random.Random) -> str:
    place = rng.randrange(len(content) + 1)
    junk = bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 64])))
    kinds = {
        "cut": lambda: content[:place],
        "bytes changed": lambda: content[:place] + junk + content[place + len(junk) :],
        "bytes put in": lambda: content[:place] + junk + content[place:],
        "a bit flipped": lambda: (
            content[:place]
            + bytes(byte ^ (1 << rng.randrange(8)) for byte in content[place : place + 1])
            + content[place + 1 :]
        ),
        "twice": lambda: content * 2,
        "deep": lambda: DEEP.encode(),
        "brackets": lambda: b"[" * 200_000,
        "with a mark": lambda: b"\xef\xbb\xbf" + content,
        "UTF-16": lambda: content.decode("utf-8", "replace").encode("utf-16", "replace"),
        "digits": lambda: b'{"a": ' + b"9" * 10_000 + b"}",
        "zeros": lambda: bytes(len(content)),
        "a list": lambda: b"[1, 2]",
        "a word": lambda: b'"word"',
        "many keys": lambda: json.dumps({f"k{i}": i for i in range(100_000)}).encode(),
    }
    kind = rng.choice(list(kinds))
    path.write_bytes(kinds[kind]())
    return kind


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found.append((value, key))
        _places(part, found)
    return found


def _change(value: Any, rng: random.Random) -> str:
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        places = _places(value, [])
        if not places or rng.random() < 0.15:
            if isinstance(value, dict):
                value[rng.choice(KEYS)] = copy.deepcopy(rng.choice(ODD))
            done = "a key added"
            continue
        container, key = rng.choice(places[: rng.choice([8, 40, len(places)])])
        if rng.random() < 0.2 and isinstance(container, dict):
            del container[key]
            done = f"{str(key)[:40]} gone"
        else:
            container[key] = copy.deepcopy(rng.choice(ODD))
            done = f"{str(key)[:40]} is {str(container[key])[:40] if container[key] != 10**400 else 'large'}"
    return done


def _damage_json(path: Path, content: bytes, rng: random.Random) -> str:
    lines = [json.loads(line) for line in content.splitlines()] if path.suffix == ".jsonl" else [json.loads(content)]
    done = _change(rng.choice(lines), rng)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(line) + "\n" for line in lines)
    else:
        text = json.dumps(lines[0])
        if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
            text = '{"rank": 3, ' + text[1:]
    path.write_text(text, encoding="utf-8")
    return done


def _damage_header(path: Path, content: bytes, rng: random.Random) -> str:
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    entry, other = header[rng.choice(names)], header[rng.choice(names)]
    numbers = [
        0,
        1,
        -1,
        2,
        8,
        2**31,
        2**32,
        2**62,
        2**63,
        2**64 - 1,
        10**30,
        1.5,
        None,
        "8",
        True,
        len(data),
        len(data) + 1,
    ]

    def rename() -> None:
        header[rng.choice(["", "x", "a" * 10_000, "\0", "model.layers.9999999999.x.lora_a", *names])] = header.pop(
            rng.choice(names)
        )

    kinds: dict[str, Callable[[], Any]] = {
        "a shape": lambda: entry.update(shape=[rng.choice(numbers) for _ in range(rng.choice([0, 1, 2, 3, 40]))]),
        "a dimension": lambda: entry["shape"].__setitem__(0, rng.choice(numbers)),
        "a shape turned": lambda: entry["shape"].reverse(),
        "a type": lambda: entry.update(dtype=rng.choice(["F64", "I8", "BF16", "F4", "C64", "F99", "", None, 3, []])),
        "an offset": lambda: entry["data_offsets"].__setitem__(rng.randrange(2), rng.choice(numbers)),
        "another's offsets": lambda: entry.update(data_offsets=other["data_offsets"]),
        "offsets": lambda: entry.update(data_offsets=rng.choice([[], None, [0], [1, 0], [0, 0], [0, 1, 2], "ab", {}])),
        "an entry": lambda: header.update(extra=copy.deepcopy(rng.choice(ODD))),
        "metadata": lambda: header.update(__metadata__=copy.deepcopy(rng.choice(ODD))),
        "an entry gone": lambda: header.pop(rng.choice(names)),
        "a name": rename,
    }  # fmt: skip
    kind = rng.choice(list(kinds))
    kinds[kind]()
    text = json.dumps(header).encode()
    said = rng.choice([len(text)] * 8 + [0, 1, len(text) - 1, len(text) + 1, 2**63, 2**64 - 1])
    path.write_bytes(said.to_bytes(8, "little") + text + data)
    return f"{kind} in the header"


# What is done with it ---------------------------------------------------------------------------------------------


def open_adapter(directory: Path, shared: dict[str, Any]) -> None:
    from qlora_core.config import BaseConfig, LoraConfig
    from qlora_core.engine.model import attach_adapters, load_adapters, load_base
    from qlora_core.errors import QLoraError
    from qlora_core.exports.peft import convert_adapters
    from qlora_core.models.adapter_files import ADAPTER_FILE, adapter_settings, check_adapters
    from qlora_core.models.base_models import describe
    from qlora_core.runs.kernel_choice import Kernels

    lora = LoraConfig(rank=4)
    if "model" not in shared:
        base = shared["base"]
        shared["spec"] = describe(base, BaseConfig(model=str(base)))
        shared["model"] = load_base(shared["spec"], Kernels("cpu", "float32", "kept"))
        attach_adapters(shared["model"], shared["spec"], lora, 0)
    out = directory / "peft"
    out.mkdir()
    each(
        lambda: check_adapters(directory / ADAPTER_FILE, shared["spec"], lora),
        lambda: load_adapters(shared["model"], directory / ADAPTER_FILE),
        lambda: adapter_settings(directory),
        lambda: convert_adapters(directory / ADAPTER_FILE, adapter_settings(directory), out, "base", 2),
        kind=QLoraError,
    )


def open_model(directory: Path, shared: dict[str, Any]) -> None:
    from qlora_core.config import BaseConfig
    from qlora_core.engine.model import batch_loss, load_base
    from qlora_core.errors import QLoraError
    from qlora_core.models.base_models import about_parameters, describe
    from qlora_core.runs.kernel_choice import Kernels
    from qlora_core.tokens.batching import make_batch
    from qlora_core.tokens.dataset import make_dataset
    from qlora_core.tokens.tokenizer import ChatTokenizer

    config = BaseConfig(model=str(directory), quantize="none")
    rows = [{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]}, {"text": "ab"}]

    def load() -> None:
        model = load_base(describe(directory, config), Kernels("cpu", "float32", "kept"))
        encoded = make_dataset(rows, ChatTokenizer(directory), 64).rows
        if len(encoded) and all(max(row.ids) < model.args.vocab_size for row in encoded):
            batch_loss(model, make_batch(list(encoded), packed=False), "whole").item()

    def tokenise() -> None:
        tokenizer = ChatTokenizer(directory)
        make_dataset(rows, tokenizer, 64)
        tokenizer.decode(tokenizer.encode_prompt("a?"))
        _ = tokenizer.fingerprint

    each(
        lambda: describe(directory, config).fingerprint,
        lambda: about_parameters(config),
        tokenise,
        load,
        kind=QLoraError,
    )


def open_run(directory: Path, shared: dict[str, Any]) -> None:
    from qlora_core.errors import QLoraError
    from qlora_core.page import results
    from qlora_core.reports import console, live_output
    from qlora_core.reports.comparison import compare
    from qlora_core.runs.metrics import MetricsReader
    from qlora_core.runs.plan import TrainingTracker, resolve_config
    from qlora_core.runs.run import Run, iterate_judged

    run, tracker = Run(directory), TrainingTracker(directory.parent)
    reader = MetricsReader(run.metrics_file)

    def read() -> None:
        reader.poll()
        reader.steps.columns(), reader.evals.columns()
        _ = [live_output.event_line(event) for event in reader.recent]
        _ = run.samples(), run.control(), run.alive, run.state

    each(
        read,
        run.config,
        lambda: run.base().adapted_shapes(run.config().lora),
        run.tokenizer,
        lambda: run.refuse_change("nothing", None),
        lambda: console.runs_table(list(iterate_judged(tracker.runs()))),
        lambda: console.final_summary(run),
        lambda: compare([run, shared["good"]]).lines(),
        lambda: resolve_config({"run": run.name, "runs_dir": str(directory.parent)}),
        lambda: results.generation_test(run),
        lambda: results.performance(run),
        lambda: results.runs_overview(tracker),
        lambda: list(run.train_rows()) + list(run.validation_rows()) + run.facts(),
        kind=QLoraError,
    )


def each(*actions: Callable[[], Any], kind: type[Exception]) -> None:
    """Do all of it; the first error for people is raised at the end, any other at once."""
    told: Exception | None = None
    for action in actions:
        try:
            action()
        except kind as error:
            told = told or error
    if told:
        raise told


FILES = {
    "adapter": ["adapters.safetensors", "adapter_config.json"],
    "model": ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
              "model.safetensors", "config.json"],
    "run": ["config.json", "environment.json", "status.json", "metrics.jsonl", "control", "samples.jsonl",
            "evaluation.json", "summary.json", "lock", "best/adapter_config.json", "data/train_data.jsonl"],
}  # fmt: skip
OPEN = {"adapter": open_adapter, "model": open_model, "run": open_run}


def main() -> None:
    """Go through the cases of one kind."""
    kind, good, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    seed, first, last = map(int, sys.argv[4:])
    if sys.platform != "darwin":  # a process there has hundreds of GB of addresses from the start
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from qlora_core.errors import QLoraError
    from qlora_core.runs.run import Run

    shared: dict[str, Any] = {"base": good.parent / "base", "good": Run(good)}
    for number in range(first, last):
        rng = random.Random(f"{kind} {seed} {number}")
        directory = scratch / "case"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(good, directory, symlinks=True)
        name = rng.choice([file for file in FILES[kind] if (directory / file).exists()])
        done = f"{name}: {damage(directory / name, rng)}"
        print(json.dumps([number, "".join(c for c in done if c in string.printable), "begun"]), flush=True)
        try:
            OPEN[kind](directory, shared)
            outcome = "fine"
        except QLoraError as error:
            outcome = type(error).__name__ if len(str(error)) < 2500 else f"long: {error}"
        except BaseException:
            outcome = traceback.format_exc()
        print(json.dumps([number, done, outcome]), flush=True)


if __name__ == "__main__":
    main()
