"""Exports for llama.cpp, Ollama and LM Studio: what llama.cpp itself makes of them, and of Ollama's template."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from chat_templates import PUBLISHED
from chat_templates import write as write_published
from guide_examples import blocks, example_environment, said_over_http, with_llama_server
from safetensors.numpy import load_file
from tiny import TAUGHT

from qlora_core.errors import ConfigError, ExportError, StorageError
from qlora_core.exports import destination
from qlora_core.exports.export import export_run
from qlora_core.exports.formats import FORMATS, ExportChoices, place_here
from qlora_core.exports.guides import GUIDES
from qlora_core.exports.importing import import_adapters
from qlora_core.exports.modelfile import find_surroundings, write_modelfile
from qlora_core.files.storage import manifest_problem
from qlora_core.gguf.reading import GgufFile
from qlora_core.runs.run import Run
from qlora_core.tokens.tokenizer import ChatTokenizer

FILES = {
    "gguf": {"model": "trained-Q8_0.gguf", "adapters": ""},
    "lmstudio": {"model": "trained-Q8_0.gguf", "adapters": ""},
    "gguf-lora": {"model": "", "adapters": "adapter.gguf"},
    "ollama": {"model": "base.gguf", "adapters": "adapter.gguf"},
}


@pytest.mark.parametrize("to", FILES)
def test_llama_cpp_answers_as_the_run_does(undrawn, tmp_path, to):
    made = export_run(undrawn, tmp_path / "out", to=to)
    assert {name: made["gguf"][name] for name in ("model", "adapters")} == FILES[to]
    assert {name for name in made["files"] if name.endswith(".gguf")} == {*FILES[to].values()} - {""}
    found = made["verification"]
    assert found["opened_with"].startswith("llama.cpp")
    assert found["same_answers"] == found["same_ids"] == found["questions"] > 0
    assert found["within"]
    assert abs(found["lost"]) < 0.01
    assert found["same_choice"] > 0.95
    assert json.loads((tmp_path / "out" / "verification.json").read_text(encoding="utf-8")) == found
    assert found["verdict"] in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert manifest_problem(tmp_path / "out") is None
    assert FORMATS[to].use(place_here(undrawn, tmp_path / "out"))


@pytest.mark.parametrize(("to", "choices"), [("gguf", {}), ("gguf-lora", {"with_base": True}), ("ollama", {})])
def test_examples_of_the_guides_answer_as_the_run_does(undrawn, tmp_path, to, choices):
    """Over HTTP, from a terminal, Python and JavaScript, in a folder that was moved."""
    export_run(undrawn, tmp_path / "out", to=to, choices=ExportChoices(**choices), verified=False)
    moved = Path(shutil.move(tmp_path / "out", tmp_path / "it's elsewhere"))
    environment = with_llama_server(tmp_path, example_environment())
    in_json, *others = said_over_http(moved / "INTEGRATION.md", environment)
    assert json.loads(in_json)["choices"][0]["message"]["content"] == TAUGHT["red?"]
    assert others == [f"{TAUGHT['red?']}\n"] * 2


@pytest.mark.parametrize("to", FILES)
def test_the_guides_are_short_and_have_the_same_examples(undrawn, tmp_path, to):
    export_run(undrawn, tmp_path / "out", to=to, verified=False)
    texts = {name: (tmp_path / "out" / name).read_text(encoding="utf-8") for name in GUIDES}
    first, second = (blocks(tmp_path / "out" / name) for name in texts)
    assert first == second
    assert all(len(text.splitlines()) < 120 and str(tmp_path) not in text for text in texts.values())
    assert all(f"| **`{to}`** |" in text for text in texts.values())
    assert not (tmp_path / "out" / "inference.py").exists()
    (server,) = [code for _, code in first if "llama-server" in code]
    assert server.startswith(f"llama-server --jinja -m {FILES[to]['model'] or 'BASE.gguf'}")
    assert ("--lora adapter.gguf" in server) == bool(FILES[to]["adapters"])


@pytest.mark.parametrize("to", ["adapter", "peft", "gguf-lora"])
def test_the_guides_tell_the_system_text_of_the_training(undrawn, tmp_path, monkeypatch, to):
    monkeypatch.setattr(Run, "shared_system", lambda run: "Sê breve, `sempre`.")
    export_run(undrawn, tmp_path / "out", to=to, verified=False)
    for name in GUIDES:
        assert "`` Sê breve, `sempre`. ``" in (tmp_path / "out" / name).read_text(encoding="utf-8")


def test_adapters_come_back_as_a_run(undrawn, tmp_path):
    export_run(undrawn, tmp_path / "out", to="gguf-lora", verified=False)
    given = {"model": undrawn.environment()["model"]["path"], "runs_dir": str(tmp_path / "runs"), "run": "back"}
    run = import_adapters(tmp_path / "out" / "adapter.gguf", given)
    there, back = (load_file(each.best / "adapters.safetensors") for each in (undrawn, run))
    assert there.keys() == back.keys()
    for name, value in there.items():  # the file has them in float16
        assert abs(back[name] - value).max() <= 1e-3 * abs(value).max()
    assert run.config().lora.scale == undrawn.config().lora.scale


def test_what_a_format_does_not_know_is_refused(undrawn, tmp_path):
    with pytest.raises(ConfigError, match="--type says nothing about the format adapter; it belongs to gguf, ollama"):
        export_run(undrawn, tmp_path / "out", to="adapter", choices=ExportChoices(type="q8_0"))
    with pytest.raises(ConfigError, match="--with-base says nothing about the format gguf; it belongs to gguf-lora"):
        export_run(undrawn, tmp_path / "out", to="gguf", choices=ExportChoices(with_base=True))
    with pytest.raises(ConfigError, match="--strict: what gguf loses, only the verification tells"):
        export_run(undrawn, tmp_path / "out", to="gguf", choices=ExportChoices(strict=True), verified=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "choices", "bytes_a_weight"),
    [
        ("fused", {}, 3),  # while it chooses, in three numbers of bits
        ("fused", {"bits": "8"}, 1),
        ("fused-float16", {}, 0),
        ("gguf", {}, 2),  # the unquantised model that becomes it
        ("gguf", {"type": "f32"}, 5),
        ("ollama", {}, 0),
        ("ollama", {"type": "q8_0"}, 2),
    ],
    ids=str,
)
def test_room_is_asked_for_what_lies_there_meanwhile(undrawn, to, choices, bytes_a_weight):
    weights = undrawn.environment()["model"]["parameters"]
    form = FORMATS[to]
    wanted = form.predicted_bytes(undrawn) + bytes_a_weight * weights
    assert form.bytes_to_write(undrawn, ExportChoices(**choices)) == wanted
    alone, base_too = (
        FORMATS["gguf-lora"].bytes_to_write(undrawn, ExportChoices(with_base=each)) for each in (False, True)
    )
    assert base_too - alone == undrawn.environment()["model"]["loaded_bytes"]


def test_the_modelfile_says_how_the_run_answers(undrawn, tmp_path):
    export_run(undrawn, tmp_path / "out", to="ollama", verified=False)
    lines = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["FROM ./base.gguf", "ADAPTER ./adapter.gguf"]
    tokenizer, config = undrawn.tokenizer(), undrawn.config()
    ends = [f'PARAMETER stop "{tokenizer.control_names[i]}"' for i in tokenizer.eos_ids]
    assert [line for line in lines if line.startswith("PARAMETER stop")] == ends
    for setting in (f"num_predict {config.pace.max_answer_tokens}", "temperature 0", "repeat_penalty 1"):
        assert f"PARAMETER {setting}" in lines
    assert str(tmp_path) not in (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert "merged into it" not in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")


# The template in Go ---------------------------------------------------------------------------------------------


def in_go(template: str, turns: Sequence[tuple[str, str]]) -> str:
    """Run a template as Go does: those of its expressions that ours has, read anew from the text."""
    system = "".join(text for role, text in turns if role == "system")
    parts = iter(re.split(r"(\{\{.*?\}\})", template))
    nodes, _ = parse(parts)
    return "".join(run_nodes(nodes, {"Messages": turns, "System": system}))


def parse(parts: Iterator[str]) -> tuple[list, str]:
    """Nodes up to an `else` or `end`, and that."""
    nodes: list = []
    for part in parts:
        inner = part[2:-2].strip() if part.startswith("{{") else None
        if inner is None:
            nodes.append(part)
        elif inner.startswith(("range ", "if ")):
            nodes.append(branch(inner, parts))
        elif inner == "end" or inner.startswith("else"):
            return nodes, inner
        else:
            nodes.append(("value", inner))
    return nodes, ""


def branch(head: str, parts: Iterator[str]) -> tuple:
    body, end = parse(parts)
    if end.startswith("else if "):
        return (head, body, [branch(end.removeprefix("else "), parts)])
    others = parse(parts)[0] if end == "else" else []
    return (head, body, others)


def run_nodes(nodes: list, known: dict) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif node[0] == "value":
            yield json.loads(node[1]) if node[1].startswith('"') else str(known[node[1].lstrip(".")])
        elif node[0] == "range $i, $_ := .Messages":
            for i, (role, text) in enumerate(known["Messages"]):
                yield from run_nodes(node[1], {**known, "i": i, "Role": role, "Content": text})
        else:
            yield from run_nodes(node[1 if holds(node[0].removeprefix("if "), known) else 2], known)


def holds(condition: str, known: dict) -> bool:
    if found := re.fullmatch(r'eq \.Role "(\w+)"', condition):
        return known["Role"] == found[1]
    if found := re.fullmatch(r"eq \$i (\d)", condition):
        return known["i"] == int(found[1])
    assert condition == "not (and (eq $i 1) $.System)"
    return not (known["i"] == 1 and known["System"])


CONVERSATIONS = (
    [("user", "Quem?")],
    [("user", "{{ .Prompt }} e {% raw %}\n\n```x```")],
    [("system", "Sê breve."), ("user", "Quem?")],
    [("user", "Quem?"), ("assistant", "Eu."), ("user", "E depois?")],
    [
        ("system", "Sê breve."),
        ("user", "Quem?"),
        ("assistant", "Eu."),
        ("user", "E?"),
        ("assistant", "N."),
        ("user", "Q"),
    ],
)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_ollama_writes_what_the_template_writes(tmp_path, name, adds_bos):
    """Of every published template; what cannot be expressed is said, and is never a single question."""
    tokenizer = ChatTokenizer(write_published(tmp_path / "model", PUBLISHED[name], "bytes"))
    found, differences = find_surroundings(tokenizer, adds_bos=adds_bos)
    for turns in CONVERSATIONS:
        messages = [{"role": role, "content": text} for role, text in turns]
        wanted = tokenizer.render(messages, add_generation_prompt=True)
        text = in_go(found.template(), turns)
        begin = tokenizer.bos_token or ""
        if adds_bos and begin and wanted.startswith(begin):
            text = begin + text
        if any("further" in each for each in differences) and len(turns) > 2:
            assert text != wanted
        else:
            assert text == wanted


def test_a_template_that_changes_questions_is_refused(tmp_path, tiny_model):
    template = tmp_path / "loud.jinja"
    template.write_text("{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}", encoding="utf-8")
    tokenizer = ChatTokenizer(tiny_model, str(template))
    with pytest.raises(ExportError, match=r"cannot express\. Use --to gguf: llama\.cpp and LM Studio run the template"):
        find_surroundings(tokenizer, adds_bos=False)


@pytest.mark.parametrize("system", ["Sê breve.", 'Diz "sim".\nOu não.', " começa com um espaço"])
def test_texts_of_a_modelfile_are_quoted(trained, tmp_path, system):
    options = {"base": "base.gguf", "adapter": "", "adds_bos": False, "licence": ""}
    write_modelfile(tmp_path, trained.tokenizer(), trained.config(), system=system, **options)
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    found = re.search(r'^SYSTEM ("""(.*?)"""|"(.*?)")$', text, re.MULTILINE | re.DOTALL)
    assert (found[2] or found[3]) == system
    with pytest.raises(ExportError, match="which a Modelfile cannot"):
        write_modelfile(tmp_path, trained.tokenizer(), trained.config(), system='"""', **options)


def test_the_file_says_whether_a_chat_begins_with_the_beginning_of_text(undrawn, tmp_path):
    export_run(undrawn, tmp_path / "out", to="ollama", verified=False)
    adds = GgufFile(tmp_path / "out" / "base.gguf").metadata["tokenizer.ggml.add_bos_token"]
    assert adds is False or undrawn.tokenizer().bos_token


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_is_told_before_anything_is_written(undrawn, tmp_path, monkeypatch, to):
    free = 1_000
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - free, free))
    with pytest.raises(StorageError, match=r"out: needs .+ on the disk until it is complete, and .+ are free"):
        export_run(undrawn, tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


# Where llama.cpp is not installed ------------------------------------------------------------------------------------


@pytest.fixture
def without_llama_cpp(tmp_path, monkeypatch):
    """Processes of Python that find no llama.cpp."""
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text("import sys\nsys.modules['xllamacpp'] = None\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(hiding))


@pytest.mark.usefixtures("without_llama_cpp")
@pytest.mark.parametrize("to", FILES)
def test_without_llama_cpp_its_files_are_read_by_our_own_reader(undrawn, tmp_path, to):
    found = export_run(undrawn, tmp_path / "out", to=to)["verification"]
    assert (found["reader"], found["opened_with"]) == ("own", "this program's own reader, not llama.cpp itself")
    assert found["verdict"].startswith("Opened again with this program's own reader, not llama.cpp itself: ")
    assert found["same_answers"] == found["same_ids"] == found["questions"] > 0
    assert found["within"]
    assert abs(found["lost"]) < 0.01
    assert found["same_choice"] > 0.95
