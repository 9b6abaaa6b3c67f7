"""The examples of an export's guide, run as they stand: in the export's folder, against servers that they start."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import processes

PORT = "8080"  # what the guides say, and other programs may have
SERVERS = ("mlx_lm.server", "llama-server")
LLAMA_SERVER = f"""\
#!{sys.executable}
import argparse, threading
import xllamacpp
parser = argparse.ArgumentParser()
parser.add_argument("--jinja", action="store_true")
parser.add_argument("-m", required=True)
parser.add_argument("--lora")
parser.add_argument("--port", type=int)
given = parser.parse_args()
params = xllamacpp.CommonParams()
params.model.path, params.use_jinja = given.m, given.jinja
params.n_ctx, params.n_parallel, params.warmup, params.fit_params = 512, 1, False, False
if given.lora:
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(given.lora, 1.0)]
params.hostnames, params.port, params.ui = ["127.0.0.1"], given.port, False
server = xllamacpp.Server(params)
threading.Event().wait()
"""


def blocks(guide: Path, language: str | None = None) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", guide.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(name, code) for name, code in found if language in (None, name)]


def server_of(guide: Path) -> str:
    """The command that starts the guide's server."""
    (found,) = [code for _, code in blocks(guide, "bash") if is_server(code)]
    return found


def is_server(code: str) -> bool:
    return any(name in code for name in SERVERS)


def node() -> str:
    """Node of the system, else the one inside Playwright's package."""
    if found := shutil.which("node"):
        return found
    import playwright

    return str(Path(playwright.__file__).parent / "driver" / "node")


def command(language: str, code: str) -> list[str]:
    return {
        "bash": ["bash", "-euc", code],
        "python": [sys.executable, "-B", "-c", code],
        "javascript": [node(), "-e", code],
    }[language]


def example_environment() -> dict[str, str]:
    programs = str(Path(sys.executable).parent)  # as in an activated environment
    given = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": sys.executable, "PORT": "0"}
    return {**os.environ, **given, "PYTHONDONTWRITEBYTECODE": "1", "NO_PROXY": "127.0.0.1"}


def with_llama_server(directory: Path, environment: dict[str, str]) -> dict[str, str]:
    """An environment in which `llama-server` is llama.cpp's server as the package xllamacpp starts it."""
    program = directory / "llama-server"
    program.write_text(LLAMA_SERVER, encoding="utf-8")
    program.chmod(0o755)
    return {**environment, "PATH": f"{directory}:{environment['PATH']}"}


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


@contextlib.contextmanager
def serving(guide: Path, environment: dict[str, str]) -> Iterator[str]:
    """Start the guide's server in its folder; yields its port as soon as it answers."""
    port = free_port()
    started = command("bash", f"exec env {server_of(guide).replace(PORT, port)}")
    with subprocess.Popen(started, cwd=guide.parent, env=environment, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True) as server:  # fmt: skip
        try:
            wait_until_it_answers(server, port)
            yield port
        finally:
            server.kill()


def wait_until_it_answers(server: subprocess.Popen, port: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(1200):
        assert server.poll() is None, server.stderr.read()
        with contextlib.suppress(OSError), opener.open(f"http://127.0.0.1:{port}/health", timeout=10):
            return
        time.sleep(0.1)
    raise AssertionError("the server does not answer")


def printed(language: str, code: str, directory: Path, environment: dict[str, str]) -> str:
    """What an example prints, run in a folder."""
    done = processes.run(command(language, code), text=True, cwd=directory, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said_over_http(guide: Path, environment: dict[str, str]) -> list[str]:
    """What the guide's examples over HTTP say, from a terminal, Python and JavaScript."""
    asking = [(language, code) for language, code in blocks(guide) if f":{PORT}/v1" in code]
    assert [language for language, _ in asking] == ["bash", "python", "javascript"]
    with serving(guide, environment) as port:
        return [printed(name, code.replace(PORT, port), guide.parent, environment) for name, code in asking]
