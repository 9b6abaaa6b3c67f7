"""The page's server answers whoever has its token, and nobody else; a real server in a process of its own."""

import contextlib
import http.client
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from conftest import ROOT
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from qlora_core.cli import build_parser
from qlora_core.jobs import server as serve

ENDPOINTS = [
    ("GET", "/"),
    ("GET", "/compare/"),
    ("GET", "/chat/"),
    ("GET", "/health"),
    ("GET", "/api/status"),
    ("GET", "/api/version"),
    ("GET", "/api/usage"),
    ("POST", "/api/kernel/run"),
    ("POST", "/api/kernel/execute"),
    ("POST", "/api/kernel/instantiate"),
    ("POST", "/api/kernel/set_ui_element_value"),
    ("POST", "/api/kernel/function_call"),
    ("POST", "/api/files/list_files"),
    ("POST", "/api/export/html"),
    ("POST", "/auth/login"),
    ("GET", "/assets/index.js"),
    ("GET", "/@file/1-a.txt"),
    ("GET", "/public/../apps/train.py"),
    ("GET", "/%2e%2e/pyproject.toml"),
    ("OPTIONS", "/"),
    ("HEAD", "/"),
    ("DELETE", "/"),
]
WEBSOCKETS = ["/ws?session_id=a", "/ws_sync", "/terminal/ws", "/lsp/pylsp", "/chat/ws?session_id=a", "/compare/ws"]


class Page:
    """A server that `qlora app` started."""

    def __init__(self, process: subprocess.Popen, url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log
        parts = urlsplit(url)
        self.host, self.port, self.token = parts.hostname or "", parts.port or 0, parts.query.partition("=")[2]
        self.named = f"{self.host}:{self.port}"

    def ask(self, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
        """Ask as it is, without what a library would add."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=600)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"host": self.named, **headers}.items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        answer.text = answer.read().decode("utf-8", "replace")
        connection.close()
        return answer

    def status_of_websocket(self, path: str, **headers: str) -> int:
        """101 where a websocket opens."""
        address = f"ws://{self.named}{path}"
        try:
            with connect(address, additional_headers=headers, proxy=None, origin=headers.pop("Origin", None)):
                return 101
        except InvalidStatus as error:
            return error.response.status_code

    def cookie(self) -> str:
        """What a browser sends once it has opened the address."""
        answer = self.ask("GET", f"/?access_token={self.token}")
        assert answer.status == 307
        return answer.headers["set-cookie"].partition(";")[0]


@contextlib.contextmanager
def opened(directory: Path, *flags: str) -> Iterator[Page]:
    log = directory / "server.log"
    command = [sys.executable, "-m", "qlora_core", "app", "--no-browser", "--json", *flags]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    with process:
        try:
            page = Page(process, json.loads(process.stdout.readline())["url"], log)
            page.ask("GET", "/")  # it listens before it serves, and answers once it does
            yield page
        finally:
            process.kill()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("server")) as made:
        yield made


STRANGERS = {
    "no token": lambda page: {},
    "a wrong token": lambda page: {"cookie": f"qlora_{page.port}=wrong", "authorization": "Basic OndyZW5n"},
    "the token of the address as a cookie": lambda page: {"cookie": f"qlora_{page.port}={page.token}"},
    "another origin": lambda page: {"cookie": page.cookie(), "origin": "http://evil.example"},
    "no origin": lambda page: {"cookie": page.cookie(), "origin": "null"},
    "another port": lambda page: {"cookie": page.cookie(), "origin": f"http://{page.host}:1"},
    "a name that begins alike": lambda page: {"cookie": page.cookie(), "origin": f"http://{page.named}.evil.example"},
    "another name": lambda page: {"cookie": page.cookie(), "host": f"evil.example:{page.port}"},
    "another name and origin": lambda page: {
        "cookie": page.cookie(), "host": f"evil.example:{page.port}", "origin": f"http://evil.example:{page.port}",
    },
    "a name of brackets": lambda page: {"cookie": page.cookie(), "host": "[::1"},
    "an origin of brackets": lambda page: {"cookie": page.cookie(), "origin": "http://[::1"},
    "no name": lambda page: {"cookie": page.cookie(), "host": ""},
}  # fmt: skip


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_are_refused_everywhere(page: Page, who: str) -> None:
    headers = STRANGERS[who](page)
    for method, path in ENDPOINTS:
        answer = page.ask(method, path, **headers)
        assert answer.status in (401, 403), (method, path, answer.status)
        assert "marimo" not in answer.text
        assert answer.headers["set-cookie"] is None
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("who", [who for who in STRANGERS if "name" not in who and "brackets" not in who])
def test_strangers_open_no_websocket(page: Page, who: str) -> None:
    headers = {name.title(): value for name, value in STRANGERS[who](page).items()}
    for path in WEBSOCKETS:
        assert page.status_of_websocket(path, **headers) == 403, path


def test_another_name_opens_no_websocket(page: Page) -> None:
    upgrade = {"upgrade": "websocket", "connection": "Upgrade", "sec_websocket_version": "13",
               "sec_websocket_key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
    for name in ("evil.example", f"evil.example:{page.port}", "[::1", ""):
        answer = page.ask("GET", "/ws?session_id=a", cookie=page.cookie(), host=name, **upgrade)
        assert answer.status in (400, 403), name


def test_the_token_of_the_address_lets_in_once_and_then_the_cookie_does(page: Page) -> None:
    answer = page.ask("GET", f"/compare/?access_token={page.token}&run=a")
    assert (answer.status, answer.headers["location"]) == (307, "/compare/?run=a")
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert "samesite=lax" in answer.headers["set-cookie"].lower()
    assert page.token not in str(answer.headers)
    assert (answer.headers["referrer-policy"], answer.headers["cache-control"]) == ("no-referrer", "no-store")
    opened = page.ask("GET", "/", cookie=page.cookie(), origin=f"http://{page.named}")
    assert opened.status == 200
    assert opened.headers["x-frame-options"] == "SAMEORIGIN"
    assert page.status_of_websocket(WEBSOCKETS[0], Cookie=page.cookie(), Origin=f"http://{page.named}") == 101


@pytest.mark.parametrize("token", ["", "x", "wrong" * 9, "%00", "%c3%a9", "%ff", "%ed%a0%80"])
def test_a_wrong_token_lets_nobody_in(page: Page, token: str) -> None:
    assert page.ask("GET", f"/?access_token={token}").status == 401
    assert page.ask("GET", f"/?access_token={token}&access_token={page.token[:-1]}").status == 401


def test_the_token_stands_nowhere_else(page: Page, tmp_path: Path) -> None:
    page.ask("GET", f"/?access_token={page.token}")
    process = psutil.Process(page.process.pid)
    for one in (process, *process.children(recursive=True)):
        assert page.token not in " ".join(one.cmdline())
    assert page.token not in page.log.read_text(encoding="utf-8")
    assert "Traceback" not in page.log.read_text(encoding="utf-8")
    assert len(page.token) >= 32


def test_it_listens_to_this_machine_only(page: Page) -> None:
    listening = [c for c in psutil.Process(page.process.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_another_address_wants_the_token_as_well() -> None:
    """Reached by any name, since nobody knows all of a machine's; a name that only pretends to be its has no cookie."""

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    door, sent = serve.Door(inner, "secret", hosts=[], cookie="c"), []

    def status(*headers: tuple[str, str]) -> int:
        async def send(message):
            sent.append(message)

        raw = [(name.encode(), value.encode()) for name, value in headers]
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": raw}
        with pytest.raises(StopIteration):  # nothing in it waits
            door(scope, None, send).send(None)
        return sent[-2]["status"]

    known = ("cookie", f"c={door.pass_word}")
    assert status(("host", "10.0.0.7:2718")) == 401
    assert status(("host", "10.0.0.7:2718"), known) == 200
    assert status(("host", "10.0.0.7:2718"), ("origin", "http://evil.example"), known) == 403
    assert status(("host", "a"), ("host", "b"), known) == 403
    with pytest.raises(SystemExit):
        build_parser().parse_args(["app", "--host", "0.0.0.0", "--no-token"])


def test_tokens_are_compared_in_a_time_that_tells_nothing(monkeypatch) -> None:
    compared = []
    monkeypatch.setattr(serve.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or False)
    serve._same("given", "wanted")
    assert compared == [(b"given", b"wanted")]


def test_the_browser_is_sent_by_a_file_of_its_users(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(serve.webbrowser, "open", asked.append)
    monkeypatch.setenv("DISPLAY", ":0")
    before = os.umask(0)
    try:
        with serve.opened_in_browser("http://127.0.0.1:1/?access_token=secret"):
            (address,) = asked
            file = Path(urlsplit(address).path)
            assert "secret" not in address
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)
