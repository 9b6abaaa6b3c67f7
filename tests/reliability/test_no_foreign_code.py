"""No file of somebody else's is run as a program: no pickle, no code beside a model, no GGUF; and nothing is told."""

import ast
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest
from harness import FAST, load
from tiny import write_model

import qlora_core
from qlora_core.config import BaseConfig
from qlora_core.engine.model import read_tensors
from qlora_core.errors import ModelError
from qlora_core.models import base_models
from qlora_core.tokens.tokenizer import ChatTokenizer

SOURCE = Path(qlora_core.__file__).parent
APPS = sorted((SOURCE.parents[1] / "apps").glob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch", "yaml", "ctypes"}
CALLS = {"eval", "exec", "compile", "__import__"}
READS = {"mx.load", "mx.import_function", "np.load", "numpy.load", "pd.read_pickle", "GGUFReader", "load_model",
         "mlx_lm.load", "load_file", "safe_open", "spec_from_file_location", "exec_module"}  # fmt: skip
ALLOWED = {
    ("engine/model.py", "mx.load"): "behind tensor_headers",
    ("exports/peft.py", "load_file"): "of the safetensors library, in Rust",
    ("models/builtin_model.py", "GGUFReader"): "of the gguf package, in Python; its hash was compared",
    ("engine/weights.py", "load_model"): "after describe looked at the files; a model's own code stays off",
    ("exports/templates/inference.py", "mlx_lm.load"): "runs without this package, on what it exported",
    ("training/verifying.py", "spec_from_file_location"): "of the program that the export has just written",
    ("training/verifying.py", "exec_module"): "the same, in a process of its own",
    ("bench/works.py", "np.load"): "of rows that it wrote; pickles stay off",
    ("bench/mlxlm.py", "load_model"): "after describe looked at the files; a model's own code stays off",
    ("bench/torchpeft.py", "torch"): "in a process of its own, which opens safetensors alone",
    ("bench/torchpeft.py", "load_file"): "of the safetensors library, in Rust",
    ("engine/device.py", "ctypes"): "opens the BLAS",
    ("machine/denormals.py", "ctypes"): "asks libm to flush denormal numbers",
    ("jobs/device_lock.py", "ctypes"): "asks macOS for the machine's id",
    ("exports/templates/inference.py", "ctypes"): "asks libm to flush denormal numbers",
    ("machine/memory.py", "ctypes"): "asks macOS for the footprint of the process",
}


def name_of(node: ast.expr) -> str:
    """`a.b.c` of a name or an attribute, else empty."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def suspicious(tree: ast.AST) -> Iterator[str]:
    """What in a program may run somebody's code or crash on somebody's file."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            level = getattr(node, "level", 0)
            yield from (module.split(".")[0] for module in modules if not level and module.split(".")[0] in MODULES)
        if isinstance(node, ast.keyword):
            off = isinstance(node.value, ast.Constant) and not node.value.value
            if node.arg in ("trust_remote_code", "shell", "allow_pickle") and not off:
                yield f"{node.arg}=…"
        if isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield "trust_remote_code"
        if isinstance(node, ast.Call):
            name = name_of(node.func)
            last = name.rpartition(".")[2]
            if name in CALLS or name in READS or (last in READS and not name.startswith("mx.")):
                yield name if name in CALLS or name in READS else last
            if name in ("os.system", "os.popen", "subprocess.getoutput", "pickle.loads"):
                yield name


def test_the_package_reads_nothing_that_could_be_a_program() -> None:
    files = [*sorted(SOURCE.rglob("*.py")), *APPS]
    assert len(files) > 60
    found = {
        (str(path.relative_to(SOURCE)) if path.is_relative_to(SOURCE) else path.name, what)
        for path in files
        for what in suspicious(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set(ALLOWED)


def test_what_would_be_suspicious_is_noticed() -> None:
    code = (
        "import pickle\nfrom torch import load\neval('1')\nmx.load(p)\nsubprocess.run(c, shell=True)\n"
        "AutoTokenizer.from_pretrained(p, trust_remote_code=True)\nos.system('x')\nnp.load(p, allow_pickle=True)\n"
        "options = {'trust_remote_code': True}\nlibrary.safe_open(p)\nload_model(p, trust_remote_code=False)"
    )
    assert sorted(suspicious(ast.parse(code))) == sorted(
        ["pickle", "torch", "eval", "mx.load", "shell=…", "trust_remote_code=…", "os.system", "np.load",
         "allow_pickle=…", "trust_remote_code", "safe_open", "load_model"]
    )  # fmt: skip


# A model that brings a program ------------------------------------------------------------------------------------

EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Model: pass\nclass ModelArgs: pass\n"


def with_program(directory: Path, **config: object) -> Path:
    """A tiny model with programs beside it that leave a trace when they are run."""
    path = write_model(directory, **config)
    for name in ("evil.py", "modeling_evil.py", "tokenization_evil.py", "configuration_evil.py", "setup.py",
                 "conftest.py", "sitecustomize.py", "__init__.py"):  # fmt: skip
        (path / name).write_text(EVIL, encoding="utf-8")
    (path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    (path / "training_args.pt").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}, "chat_template_type": "..evil"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def test_programs_beside_a_model_are_not_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = with_program(tmp_path / "model", auto_map={"AutoModelForCausalLM": "modeling_evil.Model"})
    load(path, FAST)
    ChatTokenizer(path).encode_prompt("who?")
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("name", ["evil.py", "../model/evil.py", "", 7])
def test_a_model_that_wants_its_program_run_is_refused(tmp_path: Path, name: object) -> None:
    path = with_program(tmp_path / "model", model_file=name)
    with pytest.raises(ModelError, match="model_file names a program that comes with the model"):
        base_models.describe(path, BaseConfig(model=str(path)))
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("kind", ["..evil", "evil.py", "os", "../../../evil", "llama.evil", "a" * 99, "llama\n"])
def test_a_type_that_is_no_name_of_one_is_refused(tmp_path: Path, kind: str) -> None:
    path = with_program(tmp_path / "model")
    config = json.loads((path / "config.json").read_text(encoding="utf-8")) | {"model_type": kind}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"model_type must be a name|cannot be loaded as a os model"):
        load(path, FAST)
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "adapters.safetensors", "model.npz", "model.npy"])
def test_no_gguf_reaches_mlx_under_any_name(tmp_path: Path, monkeypatch, name: str) -> None:
    """MLX goes by the name unless it is told; what is no safetensors file does not get that far."""
    from qlora_core.engine import model

    path = tmp_path / name
    path.write_bytes(b"GGUF\x03\0\0\0" + bytes(64))
    monkeypatch.setattr(model.mx, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_tensors(path)


def test_a_directory_of_pickles_is_refused_in_words(tmp_path: Path) -> None:
    path = with_program(tmp_path / "model")
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"only pickled \.bin files, which can run code and are not opened"):
        base_models.describe(path, BaseConfig(model=str(path)))


# Nothing is told to anybody ----------------------------------------------------------------------------------------

SILENT = """
import json, socket, sys
asked = []
def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        asked.append(address)
        raise OSError("the network is not to be used")
    return original(self, address, *rest)
original = socket.socket.connect
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
def resolve(host, *rest, **named):
    asked.append(host)
    raise OSError("no name is to be looked up")
socket.getaddrinfo = socket.gethostbyname = resolve
from qlora_core.cli import main
for command in json.loads(sys.argv[1]):
    print(f"{command[0]}: {main(command)}, asked {asked}", file=sys.stderr)
"""


def test_data_and_questions_stay_on_the_machine(tiny_model: Path, tmp_path: Path) -> None:
    """Training, asking, evaluating and exporting ask the network for nothing, and work without it."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "{i}?", "completion": "secret {i}"}}\n' for i in range(20)), encoding="utf-8"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    commands = [
        ["train", "--model", str(tiny_model), "--data", "rows.jsonl", "--run", "club", "--max-steps", "2",
         "--samples", "1", "--max-answer-tokens", "2"],
        ["generate", "club", "--prompt", "7?", "--max-tokens", "2"],
        ["evaluate", "club"],
        ["export", "club", "--to", "peft"],
        ["export", "club", "--to", "fused"],
        ["compare", "club", "club"],
        ["runs"],
    ]  # fmt: skip
    command = [sys.executable, "-c", SILENT, json.dumps(commands)]
    done = processes.run(command, cwd=tmp_path, env=environment, text=True)
    told = [line for line in done.stderr.splitlines() if ", asked " in line]
    assert told == [f"{command}: 0, asked []" for command, *_ in commands], done.stderr
